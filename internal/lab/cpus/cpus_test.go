package cpus

import "testing"

func TestRead(t *testing.T) {
	before := parse("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 0 0 900 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 5\n")
	after := parse("cpu0 110 0 20 950 10 0 10 0 0 0\ncpu1 5 0 0 95 0 0 0 0 0 0\n")
	if len(before) != 2 || Share(before[0], after[0]) != 0.4 {
		t.Errorf("%+v to %+v is a share of %v, want 0.4", before, after, Share(before[0], after[0]))
	}
	if Share(after[0], after[0]) != 0 {
		t.Error("no time has passed, and a CPU was busy in it")
	}
	if got := Idle(before, after); got < 0.774 || got > 0.776 {
		t.Errorf("CPUs of 60 %% and 95 %% idle are %v together, want 0.775", got)
	}
	if cpus, err := Read(); err != nil || len(cpus) == 0 {
		t.Errorf("this machine has %d CPUs (%v)", len(cpus), err)
	}
}
