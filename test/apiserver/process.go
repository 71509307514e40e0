package apiserver

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// diesWithParent makes the kernel kill the program when the test that started
// it is killed. The signal is tied to the thread that forked, which the Go
// runtime may end; a program that then dies early is reported by failed.
func diesWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// suspendTimeout is long because the machine may be building something else.
const suspendTimeout = time.Minute

// Suspend stops the API server's process without ending it, and returns when
// it has stopped: calls hang, as with a machine that is overloaded or cut off.
// Resume lets it go on.
func (s *Server) Suspend() error {
	if err := s.signalAPIServer(syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(suspendTimeout); ; {
		stopped, err := s.stopped()
		if err != nil || stopped {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kube-apiserver did not stop within %s", suspendTimeout)
		}
		<-time.After(time.Millisecond)
	}
}

// Resume undoes Suspend.
func (s *Server) Resume() error { return s.signalAPIServer(syscall.SIGCONT) }

func (s *Server) apiServer() *process {
	for _, p := range s.processes {
		if p.name == "kube-apiserver" {
			return p
		}
	}
	return nil
}

func (s *Server) signalAPIServer(sig os.Signal) error {
	if err := s.apiServer().cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal kube-apiserver: %w", err)
	}
	return nil
}

// stopped reads from /proc whether every thread of the API server has stopped.
func (s *Server) stopped() (bool, error) {
	tasks := fmt.Sprintf("/proc/%d/task", s.apiServer().cmd.Process.Pid)
	entries, err := os.ReadDir(tasks)
	if err != nil {
		return false, fmt.Errorf("look at kube-apiserver: %w", err)
	}
	for _, e := range entries {
		stat, err := os.ReadFile(tasks + "/" + e.Name() + "/stat")
		if err != nil {
			continue // the thread has ended
		}
		// pid (name) state ...: proc(5); the name may hold anything.
		if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
			return false, nil
		}
	}
	return true, nil
}
