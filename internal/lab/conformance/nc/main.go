// Command nc sends its standard input to HOST PORT and prints what comes back:
// as much of netcat as Kubernetes' end-to-end specs use, for the image that
// they run in. (busybox's nc knows neither -v nor -u.)
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"
)

func main() {
	c, err := parse(os.Args[1:])
	if err == nil {
		err = c.talk(os.Stdin, os.Stdout, os.Stderr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nc:", err)
		os.Exit(1)
	}
}

// call is one connection.
type call struct {
	network string // tcp or udp
	address string
	source  int           // local port, 0 for any
	idle    time.Duration // without an answer for so long, the call ends; 0: never
	verbose bool
	knock   bool // connect only
}

// parse reads the command line.
func parse(args []string) (call, error) {
	c := call{network: "tcp"}
	flags := flag.NewFlagSet("nc", flag.ContinueOnError)
	flags.BoolVar(&c.verbose, "v", false, "say whether the connection succeeded")
	flags.BoolVar(&c.knock, "z", false, "connect, and send nothing")
	udp := flags.Bool("u", false, "UDP")
	flags.Bool("t", false, "TCP, which is the default")
	flags.IntVar(&c.source, "p", 0, "local port")
	seconds := flags.Int("w", 0, "give up after so many seconds without an answer")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() != 2 {
		return c, errors.New("want HOST PORT")
	}
	if *udp {
		c.network = "udp"
	}
	c.idle = time.Duration(*seconds) * time.Second
	c.address = net.JoinHostPort(flags.Arg(0), flags.Arg(1))
	return c, nil
}

// talk connects, sends, and prints until the other side closes or is silent.
// Silence is no failure: a UDP service may have nothing to say.
func (c call) talk(in io.Reader, out, chat io.Writer) error {
	dialer := net.Dialer{Timeout: c.idle}
	if c.source != 0 {
		local, err := net.ResolveUDPAddr("udp", ":"+strconv.Itoa(c.source))
		if err != nil {
			return err
		}
		dialer.LocalAddr = local
		if c.network == "tcp" {
			dialer.LocalAddr = &net.TCPAddr{Port: c.source}
		}
	}
	conn, err := dialer.Dial(c.network, c.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if c.verbose {
		fmt.Fprintf(chat, "Connection to %s %s succeeded!\n", c.address, c.network)
	}
	if c.knock {
		return nil
	}
	if _, err := io.Copy(conn, in); err != nil {
		return err
	}
	return c.print(conn, out)
}

// print copies what comes back.
func (c call) print(conn net.Conn, out io.Writer) error {
	buffer := make([]byte, 64<<10)
	for {
		if c.idle > 0 {
			if err := conn.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
				return err
			}
		}
		n, err := conn.Read(buffer)
		if _, writeErr := out.Write(buffer[:n]); writeErr != nil {
			return writeErr
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
	}
}
