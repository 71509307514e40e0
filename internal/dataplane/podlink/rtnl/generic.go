package rtnl

import (
	"encoding/binary"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// Generic is a socket to one family of generic netlink, in the network namespace
// of the thread that opened it. It is not safe for concurrent use.
type Generic struct {
	*Conn
	family  uint16
	version uint8
}

// ctrlVersion is that of the controller, the family that knows the others.
const ctrlVersion = 2

// OpenGeneric opens a socket to a family by its name, and speaks the given
// version of it. If the kernel has no such family, the error is unix.ENOENT.
func OpenGeneric(family string, version uint8) (*Generic, error) {
	c, err := dial(unix.NETLINK_GENERIC)
	if err != nil {
		return nil, err
	}
	controller := &Generic{Conn: c, family: unix.GENL_ID_CTRL, version: ctrlVersion}
	id, err := controller.find(family)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("finding the kernel's generic netlink family %s: %w", family, err)
	}
	return &Generic{Conn: c, family: id, version: version}, nil
}

// find asks the controller for a family's number.
func (g *Generic) find(family string) (uint16, error) {
	var b Batch
	g.Begin(&b, unix.CTRL_CMD_GETFAMILY)
	b.String(unix.CTRL_ATTR_FAMILY_NAME, family)
	answers, err := g.Do(&b)
	if err != nil {
		return 0, err
	}
	for kind, value := range GenericAttrs(answers[0].Body) {
		if kind == unix.CTRL_ATTR_FAMILY_ID && len(value) >= 2 {
			return binary.NativeEndian.Uint16(value), nil
		}
	}
	return 0, errShort
}

// Begin begins a message with a command of the family's.
func (g *Generic) Begin(b *Batch, command uint8) {
	b.Begin(g.family, 0, []byte{command, g.version, 0, 0})
}

// GenericAttrs are the attributes of a family's answer (see Attrs).
func GenericAttrs(body []byte) iter.Seq2[uint16, []byte] {
	return Attrs(body[min(unix.GENL_HDRLEN, len(body)):])
}
