package rtnl

import (
	"encoding/binary"
	"iter"
	"syscall"

	"golang.org/x/sys/unix"
)

const headerLen = unix.SizeofNlMsghdr

// Batch is messages to the kernel under construction; the zero Batch is empty.
// Attributes go to the message that was begun last.
type Batch struct {
	bytes []byte
	heads []int // where each message begins
}

// Begin begins a message of a kind (RTM_*) with its fixed part. NLM_F_REQUEST
// is added to the flags.
func (b *Batch) Begin(kind, flags uint16, fixed []byte) {
	b.close()
	b.heads = append(b.heads, len(b.bytes))
	b.bytes = binary.NativeEndian.AppendUint32(b.bytes, 0) // the length, see close
	b.bytes = binary.NativeEndian.AppendUint16(b.bytes, kind)
	b.bytes = binary.NativeEndian.AppendUint16(b.bytes, flags|unix.NLM_F_REQUEST)
	b.bytes = append(b.bytes, 0, 0, 0, 0, 0, 0, 0, 0) // sequence number, see seal; port
	b.bytes = b.pad(append(b.bytes, fixed...))
}

// close writes the length of the message that was begun last.
func (b *Batch) close() {
	if n := len(b.heads); n > 0 {
		head := b.heads[n-1]
		binary.NativeEndian.PutUint32(b.bytes[head:], uint32(len(b.bytes)-head))
	}
}

// seal numbers the messages, and asks for an answer to the last one: refusals
// are answered in any case, and success of the last means that all are done.
func (b *Batch) seal(first uint32) {
	b.close()
	for i, head := range b.heads {
		binary.NativeEndian.PutUint32(b.bytes[head+8:], first+uint32(i))
	}
	last := b.bytes[b.heads[len(b.heads)-1]+6:]
	flags := binary.NativeEndian.Uint16(last)
	if flags&unix.NLM_F_DUMP != unix.NLM_F_DUMP {
		binary.NativeEndian.PutUint16(last, flags|unix.NLM_F_ACK)
	}
}

func (b *Batch) pad(bytes []byte) []byte {
	for len(bytes)%unix.NLMSG_ALIGNTO != 0 {
		bytes = append(bytes, 0)
	}
	return bytes
}

// Attr adds an attribute.
func (b *Batch) Attr(kind uint16, value []byte) {
	b.bytes = binary.NativeEndian.AppendUint16(b.bytes, uint16(unix.SizeofRtAttr+len(value)))
	b.bytes = binary.NativeEndian.AppendUint16(b.bytes, kind)
	b.bytes = b.pad(append(b.bytes, value...))
}

// Uint32 adds an attribute with a number in the machine's byte order.
func (b *Batch) Uint32(kind uint16, v uint32) {
	b.Attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

// String adds an attribute with a text, and the zero byte behind it.
func (b *Batch) String(kind uint16, s string) {
	b.Attr(kind, append([]byte(s), 0))
}

// Nest adds an attribute that holds head and the attributes that fill adds.
func (b *Batch) Nest(kind uint16, head []byte, fill func()) {
	at := len(b.bytes)
	b.Attr(kind, head)
	if fill != nil {
		fill()
	}
	binary.NativeEndian.PutUint16(b.bytes[at:], uint16(len(b.bytes)-at))
}

// message is one of the kernel's.
type message struct {
	kind, flags uint16
	seq         uint32
	body        []byte
}

// next takes the first message off data.
func next(data []byte) (m message, rest []byte, err error) {
	if len(data) < headerLen {
		return m, nil, errShort
	}
	length := int(binary.NativeEndian.Uint32(data))
	if length < headerLen || length > len(data) {
		return m, nil, errShort
	}
	m = message{
		kind: binary.NativeEndian.Uint16(data[4:]), flags: binary.NativeEndian.Uint16(data[6:]),
		seq: binary.NativeEndian.Uint32(data[8:]), body: data[headerLen:length],
	}
	return m, data[min(aligned(length), len(data)):], nil
}

func aligned(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// Attributes of an error (linux/netlink.h), and the flag that says that they are
// there, and not behind a copy of the whole request.
const (
	nlmsgerrAttrMsg = 1
	nlmErrLen       = 4 + headerLen
)

// parseError reads an NLMSG_ERROR; nil is its way to say that all went well.
func parseError(m message) (*Error, error) {
	if len(m.body) < nlmErrLen {
		return nil, errShort
	}
	number := int32(binary.NativeEndian.Uint32(m.body))
	if number == 0 {
		return nil, nil
	}
	e := &Error{Errno: syscall.Errno(-number)}
	if m.flags&unix.NLM_F_ACK_TLVS == 0 {
		return e, nil
	}
	at := nlmErrLen
	if m.flags&unix.NLM_F_CAPPED == 0 { // the whole request lies between
		at = 4 + aligned(int(binary.NativeEndian.Uint32(m.body[4:])))
	}
	if at < nlmErrLen || at > len(m.body) {
		return nil, errShort
	}
	for kind, value := range Attrs(m.body[at:]) {
		if kind == nlmsgerrAttrMsg {
			e.Text = text(value)
		}
	}
	return e, nil
}

// kindMask leaves an attribute's kind without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const kindMask = 1<<14 - 1

// Attrs gives the attributes in data, kind -> value. It ends at the first one
// that is longer than data.
func Attrs(data []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(data) >= unix.SizeofRtAttr {
			length := int(binary.NativeEndian.Uint16(data))
			if length < unix.SizeofRtAttr || length > len(data) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(data[2:])&kindMask, data[unix.SizeofRtAttr:length]) {
				return
			}
			data = data[min(aligned(length), len(data)):]
		}
	}
}

// text reads a string without the zero byte behind it.
func text(value []byte) string {
	for i, c := range value {
		if c == 0 {
			return string(value[:i])
		}
	}
	return string(value)
}

// number reads a 32 bit number in the machine's byte order; 0 if it is none.
func number(value []byte) uint32 {
	if len(value) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(value)
}
