package bpf

import "fmt"

// events names what the programs count, in the order of enum event in
// ropeway.bpf.c.
var events = [...]string{
	"ipip_sent",
	"ipip_received",
	"ipip_dropped_not_a_node",
	"ipip_dropped_foreign_source",
	"ipip_dropped_malformed",
	"ipip_dropped_congestion_mark",
	"ipip_fragment_to_stack",
	"ipip_dropped_no_room",
	"vxlan_received",
	"vxlan_dropped_not_a_node",
	"vxlan_dropped_foreign_source",
	"vxlan_dropped_malformed",
	"probe_sent_bare",
}

// Counters returns packets by event since the maps were made: name -> packets.
func (t *Tunnel) Counters() (map[string]uint64, error) {
	out := make(map[string]uint64, len(events))
	for i, name := range events {
		var perCPU []uint64
		if err := t.maps.Counters.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("read eBPF counter %s: %w", name, err)
		}
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		out[name] = sum
	}
	return out, nil
}
