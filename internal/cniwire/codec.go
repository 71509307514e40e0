package cniwire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// ErrTooLong is returned for a message of more than MaxMessage bytes.
var ErrTooLong = fmt.Errorf("the message is longer than %d bytes", MaxMessage)

// Compatible reports whether a peer that speaks version v is understood: its
// version is ours, or differs by one.
func Compatible(v int) bool {
	return v >= 1 && v >= Version-1 && v <= Version+1
}

// writeMessage writes m as one line of JSON.
func writeMessage(w io.Writer, m any) error {
	line, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	if len(line) >= MaxMessage {
		return fmt.Errorf("encoding a message of %d bytes: %w", len(line), ErrTooLong)
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// readMessage reads one line of JSON into m, of MaxMessage bytes at most. What
// follows the line is ignored: there is one message each way. A stream that
// ends before its first byte gives io.EOF, one that ends before the newline
// io.ErrUnexpectedEOF, a line that is not understood an *Error.
func readMessage(r io.Reader, m any) error {
	line, err := bufio.NewReader(io.LimitReader(r, MaxMessage)).ReadBytes('\n')
	switch {
	case errors.Is(err, io.EOF) && len(line) == 0:
		return io.EOF
	case errors.Is(err, io.EOF) && len(line) == MaxMessage:
		return ErrTooLong
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case err != nil:
		return err
	}
	if err := json.Unmarshal(bytes.TrimSpace(line), m); err != nil {
		return &Error{Code: CodeDecode, Msg: "the message on the agent's socket is not understood", Details: err.Error()}
	}
	return nil
}

// Validate says what is wrong with a request, or nil.
func (r Request) Validate() *Error {
	if !Compatible(r.Version) {
		return &Error{
			Code: CodeIncompatibleVersion,
			Msg:  fmt.Sprintf("the plugin speaks version %d of the node's protocol and the agent version %d: restart the ropeway agent of this node, it installs the plugin that fits", r.Version, Version),
		}
	}
	switch r.Verb {
	case Add, Del, Check:
		if r.Attachment.Network == "" || r.Attachment.ContainerID == "" || r.Attachment.IfName == "" {
			return &Error{Code: CodeInvalidEnvironment, Msg: fmt.Sprintf("%s names no attachment: network, containerID and ifName are needed, got %+v", r.Verb, r.Attachment)}
		}
	case GC:
		if r.Attachment.Network == "" {
			return &Error{Code: CodeInvalidConfig, Msg: "GC names no network: attachment.network is needed"}
		}
	case Status, Node:
	default:
		return &Error{Code: CodeDecode, Msg: fmt.Sprintf("the agent does not know the verb %q", r.Verb)}
	}
	return r.validateAddresses()
}

func (r Request) validateAddresses() *Error {
	for _, a := range r.Addresses {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return &Error{Code: CodeInvalidConfig, Msg: fmt.Sprintf("%q is no address of a pod", a)}
		}
	}
	for _, f := range r.Families {
		if f != FamilyIPv4 && f != FamilyIPv6 {
			return &Error{Code: CodeInvalidConfig, Msg: fmt.Sprintf("%q is no address family: use %s or %s", f, FamilyIPv4, FamilyIPv6)}
		}
	}
	return nil
}
