package main

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestTCPAnswerIsPrinted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		line := make([]byte, len("hostName\n"))
		if _, err := io.ReadFull(conn, line); err == nil {
			conn.Write([]byte("pod-1"))
		}
	}()
	out, chat := speak(t, "-v -t -w 2", l.Addr(), "hostName\n")
	if out != "pod-1" || !strings.Contains(chat, "succeeded") {
		t.Errorf("printed %q and %q", out, chat)
	}
}

func TestUDPEndsWhenNothingMoreComes(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buffer := make([]byte, 100)
		if _, from, err := server.ReadFrom(buffer); err == nil {
			server.WriteTo([]byte("pod-2"), from)
		}
	}()
	began := time.Now()
	out, _ := speak(t, "-u -w 1", server.LocalAddr(), "hostName\n")
	if out != "pod-2" || time.Since(began) < time.Second {
		t.Errorf("printed %q after %s, want the answer and one second of silence", out, time.Since(began))
	}
}

func TestNobodyThereIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c, err := parse(arguments("-w 2", l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.talk(strings.NewReader(""), io.Discard, io.Discard); err == nil {
		t.Error("connecting to a closed port succeeded")
	}
}

func TestWrongArguments(t *testing.T) {
	for _, line := range []string{"", "host", "-w x host 1", "a b c"} {
		if _, err := parse(strings.Fields(line)); err == nil {
			t.Errorf("%q was accepted", line)
		}
	}
}

func arguments(flags string, to net.Addr) []string {
	host, port, _ := net.SplitHostPort(to.String())
	return append(strings.Fields(flags), host, port)
}

func speak(t *testing.T, flags string, to net.Addr, say string) (out, chat string) {
	t.Helper()
	c, err := parse(arguments(flags, to))
	if err != nil {
		t.Fatal(err)
	}
	var printed, said bytes.Buffer
	if err := c.talk(strings.NewReader(say), &printed, &said); err != nil {
		t.Fatal(err)
	}
	return printed.String(), said.String()
}
