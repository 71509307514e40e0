package cniwire

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// ReadyFor is how long a node counts as able to serve an ADD after its agent did so
// last. Agents are restarted, upgraded, and killed; the dataplane outlives them, and
// an ADD waits for the next one. A runtime that was told at once would make its node
// NotReady, whose pods the kubelet then neither starts nor starts again, and whose
// pods are evicted after five minutes.
const ReadyFor = 10 * time.Minute

// readyName is a file beside the agent's socket; when it was written last is when the
// agent was able to serve an ADD.
const readyName = "ready"

// MarkReady notes, beside the socket in dir, that the agent can serve an ADD now. It
// is to be called again well within ReadyFor.
func MarkReady(dir string) error {
	path, now := filepath.Join(dir, readyName), time.Now()
	err := os.Chtimes(path, now, now)
	if errors.Is(err, os.ErrNotExist) {
		var file *os.File
		if file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
			err = file.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("noting that the agent is ready: %w", err)
	}
	return nil
}

// ReadyLately reports whether the agent of that socket was able to serve an ADD
// within ReadyFor, in this boot: the file lies where a boot clears.
func ReadyLately(socket string) bool {
	file, err := os.Stat(filepath.Join(filepath.Dir(socket), readyName))
	return err == nil && time.Since(file.ModTime()) < ReadyFor
}
