package fakestore_test

import (
	"errors"
	"reflect"
	"testing"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/fakestore"
)

func record(container string) ipam.Record {
	return ipam.Record{Op: ipam.OpHold, Binding: ipam.Binding{Key: ipam.Key{ContainerID: container, IfName: "eth0"}}}
}

func TestFaults(t *testing.T) {
	other := errors.New("other")
	s := fakestore.New(record("a"))
	s.Inject(fakestore.Fault{}, fakestore.Fault{Err: fakestore.ErrFault}, fakestore.Fault{Err: other, Written: true}, fakestore.Fault{Err: other})
	for i, want := range []error{nil, fakestore.ErrFault, other} {
		if err := s.Append(record(string(rune('b' + i)))); err != want {
			t.Errorf("append %d: %v, want %v", i, err, want)
		}
	}
	s.Heal()
	if err := s.Append(record("e")); err != nil {
		t.Errorf("healed: %v", err)
	}
	want := []ipam.Record{record("a"), record("b"), record("d"), record("e")}
	if got, err := s.Load(); err != nil || !reflect.DeepEqual(got, want) || !reflect.DeepEqual(s.Records(), want) {
		t.Errorf("%v, %v", got, err)
	}
	s.FailLoad(other)
	if _, err := s.Load(); err != other {
		t.Errorf("load: %v", err)
	}
}
