package scenario

import (
	"maps"
	"testing"

	"ropeway.dev/ropeway/internal/lab/steady"
)

func TestRuleCounters(t *testing.T) {
	got := ruleCounters(`table inet ropeway {
	chain forwarded {
		udp dport 4789 ip daddr @nodes4 counter packets 3 bytes 90 drop comment "vxlan to a node"
		udp dport 4789 ip6 daddr @nodes6 counter packets 4 bytes 90 drop comment "vxlan to a node"
		ip daddr @denied4 counter packets 1 bytes 60 reject with icmpx admin-prohibited comment "the cloud's metadata"
		counter packets 5 bytes 60 accept comment "passes"
	}
}`)
	want := steady.Counters{`dropped by the rule "vxlan to a node"`: 7, `dropped by the rule "the cloud's metadata"`: 1}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPingsLost(t *testing.T) {
	for out, want := range map[string]int{
		"300 packets transmitted, 300 received, 0% packet loss, time 5998ms":     0,
		"301 packets transmitted, 300 received, 0.332% packet loss, time 5998ms": 0, // on its way
		"303 packets transmitted, 300 received, 0.990% packet loss, time 5998ms": 2,
		"303 packets transmitted, 0 received, 100% packet loss, time 5998ms":     -1,
		"ping: connect: Network is unreachable":                                  -1,
		"":                                                                       -1,
	} {
		lost, err := pingsLost([]byte(out))
		if (err != nil) != (want < 0) || err == nil && lost != want {
			t.Errorf("%q: %d lost, %v, want %d", out, lost, err, want)
		}
		if none := noneLost([]byte(out)); (none == nil) != (want == 0) {
			t.Errorf("%q: %v", out, none)
		}
	}
}
