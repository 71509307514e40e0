package dataplane

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// nftables keeps our table equal to a ruleset. Each change is one transaction.
//
// Whether the table is still as it was written is told by listing it: nft writes
// rules differently from how it reads them, so the listing right after a
// transaction is remembered (by its hash, in a file, so that a restarted agent
// need not write anything).
type nftables struct {
	run    knftables.Interface
	list   func(context.Context) (string, error) // the table as nft prints it, "" if it is not there
	memory string                                // path of the remembered hashes, "" for none
	last   nftMemory
	// generation counts the transactions of everybody; false if the kernel does
	// not say. seen is what it was before the last listing, which found the
	// table as last has it: 0 for none.
	generation func() (uint32, bool)
	seen       uint32
	transact   func(run func() error) error // runs a transaction of ours
}

// nftMemory is what was written last, as hashes.
type nftMemory struct {
	// Shape is what changes by a new table only: names, types and hooks.
	Shape   string            `json:"shape"`
	Rules   map[string]string `json:"rules"` // name of a chain -> its rules
	Sets    map[string]string `json:"sets"`  // name of a set -> its elements
	Listing string            `json:"listing"`
}

// newNFTables finds nft and asks whether it works.
func newNFTables(stateDir string, transact func(run func() error) error) (*nftables, error) {
	run, err := knftables.New(knftables.InetFamily, tableName)
	if err != nil {
		return nil, fmt.Errorf("nftables (nft 1.0.1 and a kernel with nf_tables are needed): %w", err)
	}
	n := &nftables{run: run, list: listTable, generation: tableGeneration, transact: transact}
	if stateDir != "" {
		n.memory = filepath.Join(stateDir, "nftables.json")
	}
	if err := n.load(); err != nil {
		return nil, err
	}
	return n, nil
}

// listTable runs nft: knftables lists names or elements, never a table's text.
func listTable(ctx context.Context) (string, error) {
	out, err := runNFT(ctx, "", "--stateless", "--numeric", "list", "table", "inet", tableName)
	if err != nil && strings.Contains(err.Error(), "No such file or directory") {
		return "", nil
	}
	return out, err
}

// tableGeneration asks the kernel how many transactions of nftables this network
// namespace has seen (NFT_MSG_GETGEN of linux/netfilter/nf_tables.h; never 0). It
// grows with each of them, whoever made it.
func tableGeneration() (uint32, bool) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(answers) != 1 || len(answers[0]) < nl.SizeofNfgenmsg {
		return 0, false
	}
	attrs, err := nl.ParseRouteAttr(answers[0][nl.SizeofNfgenmsg:])
	for _, a := range attrs {
		if a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) == 4 {
			return binary.BigEndian.Uint32(a.Value), err == nil
		}
	}
	return 0, false
}

func (n *nftables) load() error {
	if n.memory == "" {
		return nil
	}
	b, err := os.ReadFile(n.memory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what was last written to nftables: %w", err)
	}
	if json.Unmarshal(b, &n.last) != nil {
		n.last = nftMemory{} // the table is then written anew
	}
	return nil
}

func (n *nftables) save() error {
	if n.memory == "" {
		return nil
	}
	if err := writeState(n.memory, n.last); err != nil {
		return fmt.Errorf("remember what was written to nftables: %w", err)
	}
	return nil
}

// set makes the table equal to want. Where nobody has changed any table since it
// was found right, it is not read again: a program would be started for it, by
// each of many Sets that are about routes only.
func (n *nftables) set(ctx context.Context, want ruleset) (changed bool, err error) {
	now := want.memory()
	same := now.Shape == n.last.Shape && mapsEqual(now.Rules, n.last.Rules) && mapsEqual(now.Sets, n.last.Sets)
	generation, told := n.generation()
	if same && told && generation == n.seen {
		return false, nil
	}
	n.seen = 0
	listing, err := n.list(ctx)
	if err != nil {
		return false, err
	}
	intact := listing != "" && hash(listing) == n.last.Listing
	if intact && same {
		n.seen = generation
		return false, nil
	}
	tx := n.run.NewTransaction()
	if intact && now.Shape == n.last.Shape {
		want.writeChanged(tx, n.last)
	} else {
		want.write(tx)
	}
	if err := n.transact(func() error { return n.run.Run(ctx, tx) }); err != nil {
		return false, fmt.Errorf("write nftables table inet %s: %w", tableName, err)
	}
	generation, _ = n.generation()
	if listing, err = n.list(ctx); err != nil {
		return true, err
	}
	now.Listing = hash(listing)
	n.last, n.seen = now, generation
	return true, n.save()
}

// clean removes the table and what is remembered of it.
func (n *nftables) clean(ctx context.Context) error {
	tx := n.run.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if err := n.run.Run(ctx, tx); err != nil {
		return fmt.Errorf("remove nftables table inet %s: %w", tableName, err)
	}
	n.last, n.seen = nftMemory{}, 0
	if n.memory != "" {
		if err := os.Remove(n.memory); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget what was written to nftables: %w", err)
		}
	}
	return nil
}

func hash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// memory returns the hashes of a ruleset.
func (r ruleset) memory() nftMemory {
	var shape []string
	rules := make(map[string]string, len(r.Chains))
	for _, c := range r.Chains {
		shape = append(shape, c.Name, c.Type, c.Hook, strconv.Itoa(c.Priority), c.Comment)
		var texts []string
		for _, rule := range c.Rules {
			texts = append(texts, rule.Text, rule.Comment)
		}
		rules[c.Name] = hash(texts...)
	}
	sets := make(map[string]string, len(r.Sets))
	for _, s := range r.Sets {
		shape = append(shape, s.Name, s.Type, strconv.FormatBool(s.CIDRs))
		sets[s.Name] = hash(s.Elements...)
	}
	return nftMemory{Shape: hash(shape...), Rules: rules, Sets: sets}
}

// write replaces the whole table, in one transaction: no packet sees a half.
func (r ruleset) write(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("the pod network of ropeway.dev")})
	for _, s := range r.Sets {
		set := &knftables.Set{Name: s.Name, Type: s.Type}
		if s.CIDRs {
			set.Flags = []knftables.SetFlag{knftables.IntervalFlag}
			set.AutoMerge = knftables.PtrTo(true)
		}
		tx.Add(set)
		s.add(tx)
	}
	for _, c := range r.Chains {
		chain := &knftables.Chain{Name: c.Name}
		if c.Hook != "" {
			chain.Type = knftables.PtrTo(knftables.BaseChainType(c.Type))
			chain.Hook = knftables.PtrTo(knftables.BaseChainHook(c.Hook))
			chain.Priority = knftables.PtrTo(knftables.BaseChainPriority(strconv.Itoa(c.Priority)))
		}
		if c.Comment != "" {
			chain.Comment = knftables.PtrTo(c.Comment)
		}
		tx.Add(chain)
		c.add(tx)
	}
}

// add adds the rules.
func (c ruleChain) add(tx *knftables.Transaction) {
	for _, rule := range c.Rules {
		added := &knftables.Rule{Chain: c.Name, Rule: rule.Text}
		if rule.Comment != "" {
			added.Comment = knftables.PtrTo(rule.Comment)
		}
		tx.Add(added)
	}
}

// writeChanged replaces the rules of the chains, and the elements of the sets, that
// are not as they were, and leaves the rest alone: the guards and their sets, say,
// when a change of transport changes the size of segments. While a whole table is
// replaced, packets that are under way meet the hooks of both.
func (r ruleset) writeChanged(tx *knftables.Transaction, was nftMemory) {
	now := r.memory()
	for _, s := range r.Sets {
		if was.Sets[s.Name] != now.Sets[s.Name] {
			tx.Flush(&knftables.Set{Name: s.Name})
			s.add(tx)
		}
	}
	for _, c := range r.Chains {
		if was.Rules[c.Name] != now.Rules[c.Name] {
			tx.Flush(&knftables.Chain{Name: c.Name})
			c.add(tx)
		}
	}
}

func (s ruleSet) add(tx *knftables.Transaction) {
	for _, e := range s.Elements {
		tx.Add(&knftables.Element{Set: s.Name, Key: []string{e}})
	}
}

// String returns the table as nft reads it, for people and for tests.
func (r ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", tableName)
	for _, s := range r.Sets {
		fmt.Fprintf(&b, "\tset %s {\n\t\ttype %s\n", s.Name, s.Type)
		if s.CIDRs {
			b.WriteString("\t\tflags interval\n\t\tauto-merge\n")
		}
		if len(s.Elements) > 0 {
			fmt.Fprintf(&b, "\t\telements = { %s }\n", strings.Join(s.Elements, ", "))
		}
		b.WriteString("\t}\n")
	}
	for _, c := range r.Chains {
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != "" {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d;\n", c.Type, c.Hook, c.Priority)
		}
		for _, rule := range c.Rules {
			b.WriteString("\t\t" + rule.Text)
			if rule.Comment != "" {
				fmt.Fprintf(&b, " comment %q", rule.Comment)
			}
			b.WriteString("\n")
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}
