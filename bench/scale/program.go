package scale

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// program is a process `ropeway ...`.
type program struct {
	cmd     *exec.Cmd
	log     string
	ended   chan struct{}
	Started time.Time
}

// start starts a command with its output at the end of a log file. It dies with
// this one.
func start(log string, cmd *exec.Cmd) (*program, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", cmd.Path, err)
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &program{cmd: cmd, log: log, ended: make(chan struct{}), Started: time.Now()}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go func() {
		defer close(p.ended)
		cmd.Wait()
	}()
	return p, nil
}

// Stop ends the program as Kubernetes does.
func (p *program) Stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the program: %w", err)
	}
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		return errors.Join(errors.New("the program did not end within 20 s and was killed"), p.cmd.Process.Kill())
	}
	return nil
}

// Kill ends the program as kill -9 does, and returns when it has ended.
func (p *program) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the program: %w", err)
	}
	<-p.ended
	return nil
}

// Alive is an error if the program has ended, with its last words.
func (p *program) Alive() error {
	select {
	case <-p.ended:
		text, _ := os.ReadFile(p.log)
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		return fmt.Errorf("it has ended; its last words: %s", strings.Join(lines[max(0, len(lines)-5):], " | "))
	default:
		return nil
	}
}

// Memory is what a process has resident, in MiB, now and at most so far
// (proc_pid_status(5): VmRSS, VmHWM), and what of it is pages of files, the
// program's own above all.
type Memory struct{ Now, Most, File float64 }

// Memory reads what the program has resident.
func (p *program) Memory() (Memory, error) {
	var m Memory
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "status"))
	if err != nil {
		return m, fmt.Errorf("read the program's memory: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		field := map[string]*float64{"VmRSS": &m.Now, "VmHWM": &m.Most, "RssFile": &m.File}[name]
		if field == nil {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		if err != nil {
			return m, fmt.Errorf("read the program's memory: %w", err)
		}
		*field = kib / 1024
	}
	return m, nil
}

// scrape reads metrics (Prometheus' text format): name with labels -> value.
func scrape(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), at string) (map[string]float64, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	defer resp.Body.Close()
	return parseMetrics(resp.Body)
}

func parseMetrics(r io.Reader) (map[string]float64, error) {
	out := map[string]float64{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(line[at+1:], 64); err == nil {
			out[line[:at]] = v
		}
	}
	return out, lines.Err()
}

// until calls done again and again until it says so.
func until(ctx context.Context, every, most time.Duration, what string, done func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		ok, err := done(ctx)
		if ok && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, most, errors.Join(err, ctx.Err()))
		case <-tick.C:
		}
	}
}
