package probe

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"ropeway.dev/ropeway/internal/plan"
)

// Port is the UDP port, on nodes' pod-network addresses, that probes are sent
// to, and from: except for bare requests (see sourcePorts).
const Port = 9798

// Lengths of a message in bytes. Both kinds have the same one, so that an answer
// is never larger than what it answers; a version before this one sent the first
// leastMessage of them.
const (
	messageSize  = 48
	leastMessage = 40
)

// magic begins every message; its last byte is the version of the layout.
const magic = "rwp\x01"

// Nonce ties an answer to the request that it answers.
type Nonce [16]byte

// kind is what a message is.
type kind byte

const (
	request kind = 1
	answer  kind = 2
)

// leg says what a request is to find out. Each but legPath is an aid to say what
// is wrong: see legs.go and sizes.go.
type leg byte

const (
	legPath        leg = iota // whether the transport passes
	legUnderlay               // bare, between the nodes' addresses in the fabric
	legSource                 // bare, from the pod-network address to the node's in the fabric
	legDestination            // bare, from the node's address in the fabric to the pod-network address
	legShort                  // as legPath of direct, with a hop limit that only just reaches the node
	legSize                   // as legPath, padded
	legChecksum               // as legPath of vxlan; size 1 if the inner checksum is left to the interface
	legsEnd
)

// message is what travels in a probe, in this order: magic (4), kind (1),
// transport (1), leg (1), flags (1), cluster (8), nonce (16), target (8), hops
// (1), via (1), size (2), four zero bytes. Behind it, a request may be padded.
type message struct {
	kind      kind
	transport plan.Transport // that the request goes by
	leg       leg
	// everyWay asks for an answer by every way, and not by the request's alone:
	// it says that the request arrived where its answer by the same way would not.
	everyWay bool
	// cluster and target are digests of the cluster's id and of the UID of the
	// Node object that is probed: an answer by a neighbour cluster, or by a
	// node of the same name that was made anew, proves nothing.
	cluster, target [8]byte
	nonce           Nonce
	hops            byte           // of an answer: the request's hop limit when it arrived; 0 if that is not known
	via             plan.Transport // of an answer: what it goes by
	size            uint16         // of a padded request's packet in bytes, and of the answer to it
}

// plain is what an answer goes by between the nodes' addresses in the fabric.
const plain plan.Transport = "plain"

// errNotOurs is returned for bytes that are no message of ours.
var errNotOurs = errors.New("not a probe message")

// digest shortens an identifier to what a message holds of it.
func digest(id string) [8]byte {
	sum := sha256.Sum256([]byte(id))
	return [8]byte(sum[:8])
}

// marshal returns the message's bytes.
func (m message) marshal() []byte {
	b := make([]byte, messageSize)
	copy(b, magic)
	b[4] = byte(m.kind)
	b[5] = transportNumber(m.transport)
	b[6] = byte(m.leg)
	if m.everyWay {
		b[7] = 1
	}
	copy(b[8:], m.cluster[:])
	copy(b[16:], m.nonce[:])
	copy(b[32:], m.target[:])
	b[40] = m.hops
	b[41] = transportNumber(m.via)
	binary.BigEndian.PutUint16(b[42:], m.size)
	return b
}

// parseMessage reads what marshal wrote. Bytes behind the message are ignored,
// so that a later version may append to it.
func parseMessage(b []byte) (message, error) {
	if len(b) < leastMessage || string(b[:4]) != magic {
		return message{}, errNotOurs
	}
	m := message{kind: kind(b[4]), transport: transportOf(b[5]), leg: leg(b[6]), everyWay: b[7]&1 != 0,
		cluster: [8]byte(b[8:16]), nonce: Nonce(b[16:32]), target: [8]byte(b[32:40])}
	m.via = m.transport
	if len(b) >= messageSize {
		m.hops, m.via, m.size = b[40], transportOf(b[41]), binary.BigEndian.Uint16(b[42:])
	}
	switch {
	case m.kind != request && m.kind != answer:
		return message{}, fmt.Errorf("%w: kind %d", errNotOurs, b[4])
	case m.transport == "" || m.transport == plain:
		return message{}, fmt.Errorf("%w: transport %d", errNotOurs, b[5])
	case m.leg >= legsEnd:
		return message{}, fmt.Errorf("%w: leg %d", errNotOurs, b[6])
	}
	return m, nil
}

// numbered are the transports by their numbers in a message, from 1.
func numbered() [4]plan.Transport {
	return [4]plan.Transport{plan.IPIP, plan.VXLAN, plan.Direct, plain}
}

func transportNumber(t plan.Transport) byte {
	for i, known := range numbered() {
		if t == known {
			return byte(i + 1)
		}
	}
	return 0
}

func transportOf(number byte) plan.Transport {
	all := numbered()
	if number < 1 || int(number) > len(all) {
		return ""
	}
	return all[number-1]
}
