// Command ropeway-cni is the CNI plugin of Ropeway (CNI specification 0.1.0 to
// 1.1.0). The container runtime starts it for every pod, so it is thin: it asks
// the node's agent over a unix socket, wires the pod, and prints the result. It
// holds no credentials and knows no cluster.
//
// What it is depends on the name that it is started by:
//
//	ropeway, calico (and any other)          a main plugin: makes the pod's interface
//	ropeway-ipam, calico-ipam, spiderpool    an IPAM plugin under another main plugin
//
// As a main plugin it serves ipam.type ropeway-ipam, calico-ipam, spiderpool and
// none by the agent's allocator; any other type is delegated to the plugin of that
// name on CNI_PATH, as section 4 of the specification says.
//
// It logs nothing: failures go to standard output as the specification wants,
// what a person may want to know beside them goes to standard error.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"
)

// version is the release, set by the linker.
var version = "v0.0.0-dev"

func main() {
	p := &plugin{
		signals: sync.OnceValue(catchSignals), name: filepath.Base(os.Args[0]), environ: os.Environ(), stdout: os.Stdout, stderr: os.Stderr,
	}
	about := fmt.Sprintf("ropeway CNI plugin %s, started as %q", version, p.name)
	if err := skel.PluginMainFuncsWithError(p.verbs(), cniversion.All, about); err != nil {
		if printErr := err.Print(); printErr != nil {
			fmt.Fprintf(os.Stderr, "ropeway: %v; and printing this error failed: %v\n", err, printErr)
		}
		os.Exit(1)
	}
}

// catchSignals returns a context that ends with SIGTERM, for an ADD to undo
// itself. To catch signals takes two threads: it is done for a plugin that has
// to wait, not for one that is done in a few milliseconds. A runtime that kills
// that one calls DEL, as after kill -9.
func catchSignals() context.Context {
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	return ctx
}

// plugin is one execution: the environment that main read.
type plugin struct {
	signals func() context.Context // from the first call on, until SIGTERM
	name    string                 // the one that it was started by
	environ []string               // for delegated plugins
	stdout  io.Writer
	stderr  io.Writer
}

// ipamNames are the names under which the plugin allocates only.
func ipamNames() []string { return []string{"ropeway-ipam", "calico-ipam", "spiderpool"} }

// verbs are the operations of the specification (section 2) under this name.
func (p *plugin) verbs() skel.CNIFuncs {
	if slices.Contains(ipamNames(), p.name) {
		return skel.CNIFuncs{
			Add: p.wrap(p.ipamAdd), Del: p.wrap(p.ipamDel), Check: p.wrap(p.ipamCheck), GC: p.wrap(p.ipamGC), Status: p.wrap(p.ipamStatus),
		}
	}
	return skel.CNIFuncs{
		Add: p.wrap(p.add), Del: p.wrap(p.del), Check: p.wrap(p.check), GC: p.wrap(p.gc), Status: p.wrap(p.status),
	}
}

// wrap turns every error into one with a code of the specification (section 5).
func (p *plugin) wrap(verb func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		if err := verb(args); err != nil {
			return coded(err)
		}
		return nil
	}
}

// warn tells a person something that is no failure of the operation.
func (p *plugin) warn(format string, args ...any) {
	fmt.Fprintf(p.stderr, "ropeway: "+format+"\n", args...)
}
