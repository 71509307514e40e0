package dataplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// A packet is forwarded only if every forward chain of the machine accepts it:
// an accept in our table cannot override the drop policy of another's (docker,
// ufw and firewalld set one). Where there is such a policy, and only there, two
// rules marked as ours go in front of that chain. Nothing else of another's
// table is touched, Options.KeepForward keeps even this from happening, and
// Clean takes them away.
const (
	forwardMark = "ropeway: pods are forwarded"
	// forwardEvery is how often other programs' chains are looked at: they are
	// many where kube-proxy uses nftables, and change their policy seldom.
	forwardEvery = time.Minute
)

// forwardChain is another program's base chain at the forward hook.
type forwardChain struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Name   string `json:"name"`
	Type   string `json:"type"`
	Hook   string `json:"hook"`
	Policy string `json:"policy"`
}

func (c forwardChain) path() string { return c.Family + " " + c.Table + " " + c.Name }

// acceptForward makes other programs' forward chains accept pods' packets.
func (p *pass) acceptForward(ctx context.Context) error {
	l := p.l
	if l.options.KeepForward || time.Since(l.forwardChecked) < forwardEvery {
		return nil
	}
	chains, err := listForwardChains(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range chains {
		if c.Policy != "drop" {
			continue
		}
		handles, err := ownForwardRules(ctx, c)
		if err != nil || len(handles) > 0 {
			errs = append(errs, err)
			continue
		}
		if err := c.insertAccept(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		p.k.wrote("rules inserted", "chain", c.path())
		l.log.Info("another program's chain drops what is forwarded: pods are accepted there", "chain", c.path())
	}
	inserted, err := acceptLegacy(ctx)
	if inserted {
		p.k.wrote("rules inserted", "chain", "iptables-legacy FORWARD")
	}
	if err = errors.Join(append(errs, err)...); err == nil {
		l.forwardChecked = time.Now()
	}
	return err
}

// listForwardChains returns the filter chains of others at the forward hook.
func listForwardChains(ctx context.Context) ([]forwardChain, error) {
	out, err := runNFT(ctx, "", "--json", "list", "chains")
	if err != nil {
		return nil, err
	}
	var listing struct {
		Objects []struct {
			Chain *forwardChain `json:"chain"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(out), &listing); err != nil {
		return nil, fmt.Errorf("read list of nftables chains: %w", err)
	}
	var chains []forwardChain
	for _, o := range listing.Objects {
		c := o.Chain
		ip := c != nil && (c.Family == "ip" || c.Family == "ip6" || c.Family == "inet")
		if ip && c.Hook == "forward" && c.Type == "filter" && c.Table != tableName {
			chains = append(chains, *c)
		}
	}
	return chains, nil
}

// ownForwardRules returns the handles of our rules in a chain.
func ownForwardRules(ctx context.Context, c forwardChain) ([]string, error) {
	out, err := runNFT(ctx, "", "--handle", "list", "chain", c.Family, c.Table, c.Name)
	if err != nil {
		return nil, err
	}
	var handles []string
	for _, line := range strings.Split(out, "\n") {
		_, handle, found := strings.Cut(line, "# handle ")
		if found && strings.Contains(line, `comment "`+forwardMark+`"`) {
			handles = append(handles, strings.TrimSpace(handle))
		}
	}
	return handles, nil
}

func (c forwardChain) insertAccept(ctx context.Context) error {
	var b strings.Builder
	for _, match := range []string{"iifname", "oifname"} {
		// No more than iptables-nft can read, whose table it may be.
		fmt.Fprintf(&b, "insert rule %s %s %s counter accept comment %q\n", c.path(), match, podLinks, forwardMark)
	}
	_, err := runNFT(ctx, b.String(), "-f", "-")
	return err
}

// cleanForward takes our rules out of other programs' chains.
func cleanForward(ctx context.Context) error {
	chains, err := listForwardChains(ctx)
	if err != nil {
		return err
	}
	errs := []error{cleanLegacy(ctx)}
	for _, c := range chains {
		handles, err := ownForwardRules(ctx, c)
		errs = append(errs, err)
		for _, h := range handles {
			_, err := runNFT(ctx, "", "delete", "rule", c.Family, c.Table, c.Name, "handle", h)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// legacyTools are the commands for the older kernel interface of iptables, whose
// rules nft does not see, and the file that tells whether the interface is in use.
func legacyTools() map[string]string {
	return map[string]string{
		"iptables-legacy":  "/proc/thread-self/net/ip_tables_names",
		"ip6tables-legacy": "/proc/thread-self/net/ip6_tables_names",
	}
}

func legacyRule(verb, direction string) []string {
	return []string{"--wait", verb, "FORWARD", direction, podlink.Prefix + "+", "-m", "comment", "--comment", forwardMark, "-j", "ACCEPT"}
}

func eachLegacy(do func(tool string) error) error {
	var errs []error
	for tool, names := range legacyTools() {
		b, err := os.ReadFile(names)
		if err != nil || !bytes.Contains(b, []byte("filter")) {
			continue
		}
		if _, err := exec.LookPath(tool); err != nil {
			continue // the rules cannot be seen either: doctor asks the kernel by a packet
		}
		errs = append(errs, do(tool))
	}
	return errors.Join(errs...)
}

func acceptLegacy(ctx context.Context) (inserted bool, err error) {
	err = eachLegacy(func(tool string) error {
		rules, err := runTool(ctx, "", tool, "--wait", "-S", "FORWARD")
		if err != nil || !strings.Contains(rules, "-P FORWARD DROP") || strings.Contains(rules, forwardMark) {
			return err
		}
		for _, direction := range []string{"-i", "-o"} {
			if _, err := runTool(ctx, "", tool, legacyRule("-I", direction)...); err != nil {
				return err
			}
		}
		inserted = true
		return nil
	})
	return inserted, err
}

func cleanLegacy(ctx context.Context) error {
	return eachLegacy(func(tool string) error {
		rules, err := runTool(ctx, "", tool, "--wait", "-S", "FORWARD")
		if err != nil || !strings.Contains(rules, forwardMark) {
			return err
		}
		var errs []error
		for _, direction := range []string{"-i", "-o"} {
			_, err := runTool(ctx, "", tool, legacyRule("-D", direction)...)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

func runNFT(ctx context.Context, stdin string, args ...string) (string, error) {
	return runTool(ctx, stdin, "nft", args...)
}

// runTool runs a command and returns what it prints.
func runTool(ctx context.Context, stdin, tool string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
