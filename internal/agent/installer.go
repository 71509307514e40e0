package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"ropeway.dev/ropeway/internal/agent/hostinstall"
	"ropeway.dev/ropeway/internal/kube"
)

// installer puts the plugins onto the node at the start, and the conflist last:
// when it is there, the runtime begins to start pods.
type installer struct {
	config *Config
	host   hostinstall.Host
	event  func(warning bool, reason, message string)
	log    *slog.Logger

	installed bool // the plugins are

	mu      sync.Mutex
	problem string // why the conflist is not as the template says
	foreign string // conflists that hide ours
}

func newInstaller(cfg *Config, event func(bool, string, string)) *installer {
	return &installer{config: cfg, host: cfg.host(), event: event, log: cfg.Log}
}

// plugins installs the plugins, once.
func (in *installer) plugins() error {
	if in.installed {
		return nil
	}
	wrote, err := in.host.InstallPlugins()
	if len(wrote) > 0 {
		in.log.Info("installed plugins", "directory", in.config.BinDir, "plugins", wrote)
	}
	in.installed = err == nil
	return err
}

// step installs the plugins, and makes the conflist what the template says. may is whether a conflist may
// appear where there is none; one that is there is kept up to date in any case
// and never taken away. With a template that cannot be used, the conflist stays
// as it was.
func (in *installer) step(may bool) error {
	err := in.plugins()
	if err == nil && (may || in.host.ConflistInstalled()) {
		err = in.conflist()
		in.nameForeign()
	}
	in.note(err)
	if _, broken := errors.AsType[*hostinstall.TemplateError](err); broken {
		return nil // only a person can mend it; it was told
	}
	return err
}

func (in *installer) conflist() error {
	template, err := in.template()
	if err != nil {
		return err
	}
	conf, err := hostinstall.Render(template, hostinstall.Values{NodeName: in.config.NodeName, MTU: in.config.VethMTU})
	if err != nil {
		return err
	}
	changed, err := in.host.InstallConflist(conf)
	if changed {
		in.log.Info("installed the conflist: the container runtime uses Ropeway from here on", "directory", in.config.ConfDir, "name", in.config.ConfName)
	}
	return err
}

// template returns the text that is in force now.
func (in *installer) template() (string, error) {
	switch {
	case in.config.ConflistTemplateFile != "":
		data, err := os.ReadFile(in.config.ConflistTemplateFile)
		if err != nil {
			return "", fmt.Errorf("reading the conflist template (is the ConfigMap ropeway-config mounted, with the key cni_network_config?): %w", err)
		}
		return string(data), nil
	case in.config.ConflistTemplate != "":
		return in.config.ConflistTemplate, nil
	default:
		return hostinstall.DefaultTemplate, nil
	}
}

// note tells of a new problem with the conflist, once.
func (in *installer) note(err error) {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if problem == in.problem {
		return
	}
	in.problem = problem
	if problem == "" {
		in.event(false, "ConflistInstalled", "the conflist is as its template says again")
		return
	}
	in.log.Error("the conflist is not as its template says; what was installed before stays", "err", err)
	in.event(true, reasonBroken, problem+"; what was installed before stays")
}

// problemNow says what is wrong with the conflist, or "".
func (in *installer) problemNow() string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.problem
}

// condition says it for the NodeNetwork; nothing while there is no conflist and
// nothing wrong with it.
func (in *installer) condition() kube.Condition {
	problem := in.problemNow()
	switch {
	case problem != "":
		return kube.Condition{Reason: reasonBroken, Message: problem + "; what was installed before stays"}
	case in.foreignNow() != "" && in.host.ConflistInstalled():
		return kube.Condition{Reason: reasonForeign, Message: in.foreignNow()}
	case in.host.ConflistInstalled():
		return kube.Condition{Status: true, Reason: reasonInstalled, Message: "the conflist is as its template says"}
	default:
		return kube.Condition{}
	}
}

// nameForeign tells of conflists that the runtime prefers to ours, once.
func (in *installer) nameForeign() {
	found, err := in.host.Foreign()
	if err != nil {
		in.log.Warn("looking for other products' conflists", "err", err)
		return
	}
	var all []string
	for _, f := range found {
		all = append(all, f.String())
	}
	text := strings.Join(all, "; ")
	in.mu.Lock()
	defer in.mu.Unlock()
	if text != in.foreign && text != "" {
		in.log.Warn("another conflist hides Ropeway's", "conflists", text)
		in.event(true, reasonForeign, text)
	}
	in.foreign = text
}

// foreignNow says which conflists the runtime prefers to ours, or "".
func (in *installer) foreignNow() string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.foreign
}
