package vpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"time"
)

// counterFence counts what the security group kept from coming in; the name is the nftables counter's, too.
const counterFence = "security-group"

// fenceRules are the security group's default towards the outside: nothing comes in that no host asked for. They stand
// at the outside's end of its wire, because they need connection tracking and the fabric is better off without.
const fenceRules = `table inet rwlab {
	counter security-group {
	}
	chain admitted {
	}
	chain out {
		type filter hook output priority filter; policy accept;
		oifname != "` + hostLink + `" accept
		ct state established,related accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld-listener-report, mld2-listener-report } accept
		jump admitted
		counter name security-group drop
	}
}
`

// AdmitNodePorts switches a rule of the security group that lets the outside reach the nodes' NodePorts, TCP and UDP.
func AdmitNodePorts(ctx context.Context, lab string, on bool) error {
	rules := "flush chain inet rwlab admitted\n"
	if on {
		rules += "add rule inet rwlab admitted th dport 30000-32767 accept\n"
	}
	err := inNetns(OutsideNetns(lab), func() error {
		_, err := runNft(ctx, rules, "-f", "-")
		return err
	})
	if err != nil {
		return fmt.Errorf("the security group of lab %q: %w", lab, err)
	}
	return nil
}

func fenceOutside(ctx context.Context, lab string) error {
	return inNetns(OutsideNetns(lab), func() error {
		_, err := runNft(ctx, fenceRules, "-f", "-")
		return err
	})
}

// fenceCount reads how many packets from the outside the fence stopped.
func fenceCount(ctx context.Context, lab string) (uint64, error) {
	var out []byte
	err := inNetns(OutsideNetns(lab), func() error {
		var err error
		out, err = runNft(ctx, "", "-j", "list", "counter", "inet", "rwlab", counterFence)
		return err
	})
	if err != nil {
		return 0, err
	}
	counters, err := parseCounters(out)
	if n, found := counters[counterFence]; found {
		return n, nil
	}
	return 0, errors.Join(fmt.Errorf("read the counter %s: %w", counterFence, errNoCounter), err)
}

// runNft runs nft in the namespace of the thread.
func runNft(ctx context.Context, stdin string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "nft", args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("nft %s (Debian package nftables): %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// Seen is what the outside's HTTP server answers, as JSON.
type Seen struct {
	// Client is the address that the request came from, as the outside saw it.
	Client string `json:"client"`
	// Host is the request's Host header.
	Host string `json:"host"`
	Path string `json:"path"`
	Time string `json:"time"` // RFC 3339
}

// ServeOutside answers HTTP on port 80 of every address in the namespace that the process is in, until ctx is done. It
// is meant to be run inside OutsideNetns.
func ServeOutside(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":80")
	if err != nil {
		return fmt.Errorf("the outside's HTTP server: %w", err)
	}
	server := &http.Server{Handler: http.HandlerFunc(answerSeen), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("the outside's HTTP server: %w", err)
	}
	return nil
}

func answerSeen(w http.ResponseWriter, r *http.Request) {
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		client = r.RemoteAddr
	}
	w.Header().Set("Content-Type", "application/json")
	seen := Seen{Client: client, Host: r.Host, Path: r.URL.Path, Time: time.Now().UTC().Format(time.RFC3339)}
	if err := json.NewEncoder(w).Encode(seen); err != nil {
		return // the client went away
	}
}
