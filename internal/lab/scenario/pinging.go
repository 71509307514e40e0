package scenario

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// pinging is a ping from a pod that goes on until it is stopped.
type pinging struct {
	cmd  string // as a person would type it
	in   io.Closer
	out  *bufio.Reader
	wait func() error
}

// pingEvery is the time between a ping's packets.
const pingEvery = 20 * time.Millisecond

// pingScript pings until its input ends. Before that it says that an answer came.
const pingScript = `ping -c1 -W5 "$1" >/dev/null && echo answered || exit 1
ping -q -i 0.02 -w 300 "$1" & ping=$!; read -r _; kill -INT $ping; wait $ping`

// pingWhile has a pod ping another while something is done, and for a second after
// it, when what it left behind is taken down. It returns what the ping says.
func (s *stage) pingWhile(ctx context.Context, from, to pod, do func(context.Context) error) ([]byte, error) {
	ping, err := s.startPing(ctx, from, to.address)
	if err != nil {
		return nil, err
	}
	if err = do(ctx); err == nil {
		err = rest(ctx, time.Second)
	}
	out, stopped := ping.stop()
	s.r.Command(ping.cmd, out)
	return out, cmp.Or(err, stopped)
}

// rest waits.
func rest(ctx context.Context, span time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(span):
		return nil
	}
}

// startPing starts it, and returns once an answer came.
func (s *stage) startPing(ctx context.Context, from pod, to netip.Addr) (*pinging, error) {
	cmd, err := s.l.KubectlCommand(ctx, "exec", "-i", from.name, "--", "sh", "-c", pingScript, "ping", to.String())
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("kubectl exec %s: %w", from.name, err)
	}
	p := &pinging{cmd: fmt.Sprintf("kubectl exec %s -- ping -q -i 0.02 %s", from.name, to), in: in, out: bufio.NewReader(out), wait: cmd.Wait}
	if line, _ := p.out.ReadString('\n'); line != "answered\n" {
		_ = in.Close()
		return nil, fmt.Errorf("pod %s does not reach %s to begin with: %v", from.name, to, cmd.Wait())
	}
	return p, nil
}

// stop ends it and returns what it says.
func (p *pinging) stop() ([]byte, error) {
	_ = p.in.Close() // the script reads its end
	out, err := io.ReadAll(p.out)
	if ended := p.wait(); err == nil {
		err = ended
	}
	return out, err
}

var pingCounts = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)

// pingsLost reads how many were lost from what a ping says that was stopped: one may
// be on its way at that moment.
func pingsLost(out []byte) (int, error) {
	m := pingCounts.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("the ping says nothing of its packets: %q", strings.TrimSpace(string(out)))
	}
	sent, _ := strconv.Atoi(string(m[1]))
	received, _ := strconv.Atoi(string(m[2]))
	if received == 0 {
		return sent, fmt.Errorf("nothing was answered: %s", m[0])
	}
	return max(0, sent-received-1), nil
}

// noneLost wants a ping without loss.
func noneLost(out []byte) error {
	lost, err := pingsLost(out)
	if err == nil && lost > 0 {
		err = fmt.Errorf("%d packets were lost meanwhile: %s", lost, lastLine(out))
	}
	return err
}
