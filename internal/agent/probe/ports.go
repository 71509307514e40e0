package probe

import "math/rand/v2"

// A bare request is to find out whether a pod's new connection would get through.
// A security group or a firewall between the nodes lets in what belongs to a
// connection that it knows: what answers something it let out, and what it let in
// before a rule was taken away. Two nodes that probe one another from the same
// port to the same port would open the way for one another, for as long as they
// go on, and prove what carries no pod's packet. So each bare request comes from a
// port that the path has not used for long. Requests in a tunnel keep their port: what
// lies between the nodes sees the outer packet, and of those no two ends answer one
// another's (protocol 4 has no ports, and VXLAN is always sent to its own).

// The ports that bare requests come from, the dynamic ones of RFC 6335. At several
// a second they last for more than an hour; a security group of Alibaba Cloud
// forgets a connection after 910 s.
const (
	firstSource = 49152
	lastSource  = 65535
)

// sourcePorts hands out ports in turn. The zero value begins anywhere, so that a
// prober that was started anew does not begin where the last one did.
type sourcePorts uint16

func (s *sourcePorts) take() uint16 {
	switch *s {
	case 0:
		*s = firstSource + sourcePorts(rand.N(lastSource-firstSource+1))
	case lastSource:
		*s = firstSource
	default:
		*s++
	}
	return uint16(*s)
}
