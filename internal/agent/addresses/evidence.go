package addresses

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/ipam"
)

// Besides what it has noted itself, the node has two other witnesses: the
// runtime, whose CNI library keeps a file for each attachment from the end of
// its ADD to its DEL, and host-local with its own files. Both tell of pods that
// were there before Ropeway.

// attachment is one interface that the runtime has noted.
type attachment struct {
	key       ipam.Key
	owner     ipam.Owner
	netns     string // its sandbox's network namespace; "" from older libraries
	addresses []netip.Addr
	// served is true where the addresses were ours to give, whoever made the interface.
	served bool
	noted  time.Time
}

// readResults reads what the CNI library has noted in each directory that is
// there. What cannot be read speaks for nothing. read is false if there is no
// such directory at all, so that an attachment's absence means nothing.
func readResults(dirs []string) (noted []attachment, read bool) {
	for _, dir := range dirs {
		files, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		read = true
		for _, f := range files {
			text, err := os.ReadFile(filepath.Join(dir, f.Name()))
			if err != nil {
				continue // ended meanwhile
			}
			if a, ok := parseResult(text); ok {
				if info, err := f.Info(); err == nil {
					a.noted = info.ModTime()
				}
				noted = append(noted, a)
			}
		}
	}
	return noted, read
}

// parseResult reads one file of the CNI library's (libcni, cacheAdd).
func parseResult(text []byte) (attachment, bool) {
	var file struct {
		ContainerID string      `json:"containerId"`
		NetworkName string      `json:"networkName"`
		IfName      string      `json:"ifName"`
		NetNS       string      `json:"netns"`
		Args        [][2]string `json:"cniArgs"`
		Config      []byte      `json:"config"` // a network, or a list of plugins
		Result      struct {
			IPs []struct {
				Address netip.Prefix `json:"address"`
			} `json:"ips"`
		} `json:"result"`
	}
	if json.Unmarshal(text, &file) != nil || file.ContainerID == "" {
		return attachment{}, false
	}
	a := attachment{key: ipam.Key{Network: file.NetworkName, ContainerID: file.ContainerID, IfName: file.IfName}, netns: file.NetNS, served: serves(file.Config)}
	for _, arg := range file.Args {
		switch arg[0] {
		case "K8S_POD_NAMESPACE":
			a.owner.Namespace = arg[1]
		case "K8S_POD_NAME":
			a.owner.Name = arg[1]
		case "K8S_POD_UID":
			a.owner.UID = arg[1]
		}
	}
	for _, ip := range file.Result.IPs {
		if address := ip.Address.Addr(); address.IsValid() { // an entry may lack it
			a.addresses = append(a.addresses, address)
		}
	}
	return a, true
}

// serves reports whether a configuration asks us for addresses.
func serves(config []byte) bool {
	type plugin struct {
		IPAM struct {
			Type string `json:"type"`
		} `json:"ipam"`
	}
	var conf struct {
		plugin
		Plugins []plugin `json:"plugins"`
	}
	if json.Unmarshal(config, &conf) != nil {
		return false
	}
	return slices.ContainsFunc(append(conf.Plugins, conf.plugin), func(p plugin) bool { return cniwire.IsServed(p.IPAM.Type) })
}

// life is what is known of a sandbox.
type life int

const (
	unknown life = iota // nobody has noted its network namespace
	lives
	ended
)

// witness answers for sandboxes, as things were when it was made.
type witness struct {
	book *Book
	// wired maps whoever has a link of ours -> its name; routed maps what
	// leads to anybody's link -> that link's name, and wiredTo whose it is, if
	// it is ours.
	wired   map[ipam.Key]string
	routed  map[netip.Addr]string
	wiredTo map[netip.Addr]ipam.Key
	// results are read when they are first asked for.
	results func() (map[ipam.Key]attachment, bool)
}

func (b *Book) newWitness() (*witness, error) {
	links, err := b.options.Kernel.PodLinks()
	if err != nil {
		return nil, fmt.Errorf("listing the pods' links: %w", err)
	}
	foreign, err := b.options.Kernel.ForeignPods()
	if err != nil {
		return nil, fmt.Errorf("listing routes to other products' pods: %w", err)
	}
	w := &witness{book: b, wired: map[ipam.Key]string{}, routed: map[netip.Addr]string{}, wiredTo: map[netip.Addr]ipam.Key{}}
	for _, l := range links {
		key, _ := attachmentOf(l)
		w.wired[key] = l.Name
		for _, a := range l.Addresses {
			w.routed[a], w.wiredTo[a] = l.Name, key
		}
	}
	for _, p := range foreign {
		w.routed[p.Address] = p.Link
	}
	w.results = sync.OnceValues(func() (map[ipam.Key]attachment, bool) {
		noted, read := readResults(b.options.ResultDirs)
		byKey := make(map[ipam.Key]attachment, len(noted))
		for _, a := range noted {
			byKey[a.key] = a
		}
		return byKey, read
	})
	return w, nil
}

// link returns the link that leads to a sandbox's interface, "" for none.
func (w *witness) link(key ipam.Key, addrs []netip.Addr) string {
	if name := w.wired[key]; name != "" {
		return name
	}
	for _, a := range addrs {
		if name := w.routed[a]; name != "" {
			return name
		}
	}
	return ""
}

// sandbox says what became of a sandbox, by its network namespace: as the plugin
// named it, or else the runtime. Of one that neither has, and that was found by its
// link, the link is the evidence: it goes with the namespace, and the address with
// it.
func (w *witness) sandbox(key ipam.Key) life {
	text, err := os.ReadFile(w.book.sandboxFile(key))
	path, noted := string(text), err == nil && len(text) > 0 // it may have been cut off before it was written
	if !noted || path == byLink {
		if results, _ := w.results(); results[key].netns != "" {
			path, noted = results[key].netns, true
		}
	}
	switch {
	case !noted:
		return unknown
	case path == byLink && w.wired[key] == "" || path != byLink && netnsGone(path):
		return ended
	}
	return lives // or its directory is not seen from here
}

// dropHostLocal removes host-local's files of a sandbox that is gone, as its own
// DEL would: where host-local is the plugin no more, nobody else does, and its
// addresses would be held again by the next agent.
func (b *Book) dropHostLocal(key ipam.Key, addrs []netip.Addr) {
	dir := filepath.Join(b.options.HostLocalDir, key.Network)
	for _, a := range addrs {
		if err := removeHostLocal(dir, key, a); err != nil {
			b.log.Warn("host-local's file of a pod that ended stays, and holds its address again when the agent starts: remove it by hand", "file", filepath.Join(dir, a.String()), "err", err)
		}
	}
}

// removeHostLocal removes one file under host-local's own lock, if it is this
// sandbox's.
func removeHostLocal(dir string, key ipam.Key, a netip.Addr) error {
	path := filepath.Join(dir, a.String())
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := lockFor(lock, hostLocalPatience); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	r, err := readHostLocalFile(filepath.Base(dir), path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && r.Key != key {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// hostLocalPatience is how long host-local's lock is waited for: host-local has it
// for milliseconds, and every ADD and DEL of the node waits meanwhile.
const hostLocalPatience = time.Second

// lockFor takes a file's lock, which goes with the file; the error is
// unix.EWOULDBLOCK if another process keeps it for longer than the patience.
func lockFor(f *os.File, patience time.Duration) error {
	for deadline := time.Now().Add(patience); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// hasFile returns whether host-local has a file of this sandbox.
func hasFile(files []hostLocalRecord, key ipam.Key) bool {
	return slices.ContainsFunc(files, func(r hostLocalRecord) bool { return r.Key == key })
}
