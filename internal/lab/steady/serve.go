package steady

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
)

// Serve echoes at a TCP and a UDP port of the same number, of every address,
// until ctx is done. It calls ready once both are open.
func Serve(ctx context.Context, port int, ready func()) error {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{Port: port})
	if err != nil {
		return err
	}
	datagrams, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer context.AfterFunc(ctx, func() { _, _ = listener.Close(), datagrams.Close() })()
	if err := roomy(datagrams, plenty); err != nil {
		return err
	}
	ready()
	go echo(datagrams)
	for {
		c, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // a client that goes away is no failure
		}()
	}
}

// echo sends back what comes, and behind it how many datagrams the socket had no
// room for until then.
func echo(c *net.UDPConn) {
	buffer := make([]byte, 2048)
	for {
		n, overrun, from, err := receive(c, buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(buffer[:n], overrun), from) // lost is lost: the watcher counts
		}
	}
}
