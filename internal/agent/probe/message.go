package probe

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"ropeway.dev/ropeway/internal/plan"
)

// Port is the UDP port, on nodes' pod-network addresses, that probes are sent
// from and to.
const Port = 9798

// messageSize is the length of a message in bytes; both kinds have it, so that
// an answer is never larger than what it answers.
const messageSize = 40

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

// message is what travels in a probe: 40 bytes, in this order: magic (4),
// kind (1), transport (1), two zero bytes, cluster (8), nonce (16), target (8).
type message struct {
	kind      kind
	transport plan.Transport
	// cluster and target are digests of the cluster's id and of the UID of the
	// Node object that is probed: an answer by a neighbour cluster, or by a
	// node of the same name that was made anew, proves nothing.
	cluster, target [8]byte
	nonce           Nonce
}

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
	copy(b[8:], m.cluster[:])
	copy(b[16:], m.nonce[:])
	copy(b[32:], m.target[:])
	return b
}

// parseMessage reads what marshal wrote. Bytes behind the message are ignored,
// so that a later version may append to it.
func parseMessage(b []byte) (message, error) {
	if len(b) < messageSize || string(b[:4]) != magic {
		return message{}, errNotOurs
	}
	m := message{kind: kind(b[4]), cluster: [8]byte(b[8:16]), nonce: Nonce(b[16:32]), target: [8]byte(b[32:40])}
	if m.kind != request && m.kind != answer {
		return message{}, fmt.Errorf("%w: kind %d", errNotOurs, b[4])
	}
	switch b[5] {
	case 1:
		m.transport = plan.IPIP
	case 2:
		m.transport = plan.VXLAN
	case 3:
		m.transport = plan.Direct
	default:
		return message{}, fmt.Errorf("%w: transport %d", errNotOurs, b[5])
	}
	return m, nil
}

func transportNumber(t plan.Transport) byte {
	switch t {
	case plan.IPIP:
		return 1
	case plan.VXLAN:
		return 2
	case plan.Direct:
		return 3
	default:
		return 0
	}
}
