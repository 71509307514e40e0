package dataplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// A packet is forwarded only if every forward chain of the machine accepts it:
// an accept in our table cannot override the drop policy of another's (docker and
// ufw set one), nor a last rule that drops or rejects the rest (firewalld's, and
// that of many hand-made rule sets). Where there is such a chain, and only there,
// two rules marked as ours go in front of it. Nothing else of another's table is
// touched, Options.KeepForward keeps even this from happening, and Clean takes them
// away.
const forwardMark = "ropeway: pods are forwarded"

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

func (c forwardChain) id() forwardID {
	family := map[string]byte{"ip": unix.NFPROTO_IPV4, "ip6": unix.NFPROTO_IPV6, "inet": unix.NFPROTO_INET}[c.Family]
	return forwardID{family: family, table: c.Table, name: c.Name}
}

// acceptForward makes other programs' forward chains accept pods' packets.
func (p *pass) acceptForward(ctx context.Context) error {
	l := p.l
	if l.options.KeepForward || !l.firewalls.due() {
		return nil
	}
	l.firewalls.look()
	chains, err := listForwardChains(ctx)
	if err != nil {
		return err
	}
	l.firewalls.found(chains)
	var errs []error
	for _, c := range chains {
		rules, err := c.rules(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if c.Policy != "drop" && !endsClosed(rules) || len(ownForwardRules(rules)) > 0 {
			continue
		}
		if err := l.firewalls.transact(func() error { return c.insertAccept(ctx) }); err != nil {
			errs = append(errs, err)
			continue
		}
		p.k.wrote("rules inserted", "chain", c.path())
		l.log.Info("another program's chain drops what is forwarded: pods are accepted there", "chain", c.path())
	}
	inserted, missing, err := acceptLegacy(ctx)
	if inserted {
		p.k.wrote("rules inserted", "chain", "iptables-legacy FORWARD")
	}
	if len(missing) > 0 && !l.legacyTold {
		l.legacyTold = true
		l.log.Warn("the node has rules that only a tool shows which is not here: where they drop what is forwarded, accept the pods' links in front of them",
			"tools", missing, "links", podlink.Prefix+"+")
	}
	if err = errors.Join(append(errs, err)...); err == nil {
		l.firewalls.seen()
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

// rules returns a chain's rules as nft writes them, each with its handle.
func (c forwardChain) rules(ctx context.Context) ([]string, error) {
	out, err := runNFT(ctx, "", "--terse", "--handle", "list", "chain", c.Family, c.Table, c.Name)
	if err != nil {
		return nil, err
	}
	var rules []string
	for line := range strings.Lines(out) {
		// The table's and the chain's own lines have one too, behind a brace.
		if text, _, found := strings.Cut(line, " # handle "); found && !strings.HasSuffix(text, "{") {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return rules, nil
}

// ownForwardRules returns the handles of our rules among a chain's.
func ownForwardRules(rules []string) []string {
	var handles []string
	for _, rule := range rules {
		if strings.Contains(rule, `comment "`+forwardMark+`"`) {
			_, handle, _ := strings.Cut(rule, "# handle ")
			handles = append(handles, handle)
		}
	}
	return handles
}

// closing is a rule without a condition that drops or rejects: nft's own, or one of
// iptables-nft, which writes some targets as its own.
var closing = regexp.MustCompile(`^(counter packets \d+ bytes \d+ |log (prefix "[^"]*" )?((level|flags) [a-z ]+ )?)*(drop|reject|xt target "REJECT")( |$)`)

// endsClosed reports whether the last of the rules lets nothing more through.
func endsClosed(rules []string) bool {
	return len(rules) > 0 && closing.MatchString(rules[len(rules)-1])
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
		rules, err := c.rules(ctx)
		errs = append(errs, err)
		for _, h := range ownForwardRules(rules) {
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

// legacyClosing is a last rule without a condition that drops or rejects.
var legacyClosing = regexp.MustCompile(`\n-A FORWARD -j (DROP|REJECT)[^\n]*\n$`)

func legacyRule(verb, direction string) []string {
	return []string{"--wait", verb, "FORWARD", direction, podlink.Prefix + "+", "-m", "comment", "--comment", forwardMark, "-j", "ACCEPT"}
}

// eachLegacy does something with each tool whose rules are in use. Those that this
// machine, or the agent's image, does not have are missing: their rules cannot even
// be seen.
func eachLegacy(do func(tool string) error) (missing []string, err error) {
	var errs []error
	for tool, names := range legacyTools() {
		b, err := os.ReadFile(names)
		if err != nil || !bytes.Contains(b, []byte("filter")) {
			continue
		}
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool)
			continue
		}
		errs = append(errs, do(tool))
	}
	return missing, errors.Join(errs...)
}

func acceptLegacy(ctx context.Context) (inserted bool, missing []string, err error) {
	missing, err = eachLegacy(func(tool string) error {
		rules, err := runTool(ctx, "", tool, "--wait", "-S", "FORWARD")
		if err != nil || !strings.Contains(rules, "-P FORWARD DROP") && !legacyClosing.MatchString(rules) || strings.Contains(rules, forwardMark) {
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
	return inserted, missing, err
}

func cleanLegacy(ctx context.Context) error {
	_, err := eachLegacy(func(tool string) error {
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
	return err
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
