package agent

import (
	"errors"
	"log/slog"
	"reflect"
	"sync"

	"ropeway.dev/ropeway/internal/agent/laststate"
	"ropeway.dev/ropeway/internal/kube"
)

// podWords is a podAPI that remembers what the node's pods said, in a file, so
// that an agent that starts while the API server is down knows what they ask for.
// As soon as the API server has been read, it alone counts.
type podWords struct {
	podAPI
	path, boot string
	log        *slog.Logger

	mu    sync.Mutex
	saved map[string]laststate.PodWords
}

func newPodWords(api podAPI, cfg *Config, boot string) *podWords {
	w := &podWords{podAPI: api, path: cfg.inRunDir(wordsName), boot: boot, log: cfg.Log}
	last, err := laststate.LoadWords(w.path)
	if err != nil {
		w.log.Warn("what pods asked for is not known until the API server says it", "err", err, "unusable", errors.Is(err, laststate.ErrUnusable))
	}
	if last != nil && last.BootID == boot {
		w.saved = last.Pods
	}
	return w
}

// PodWords implements podAPI.
func (w *podWords) PodWords(namespace, name, uid string) (kube.PodWords, bool) {
	if words, known := w.podAPI.PodWords(namespace, name, uid); known {
		return words, true
	}
	if w.PodsRead() {
		return kube.PodWords{}, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	words, known := w.saved[namespace+"/"+name]
	if !known || uid != words.UID && (uid == "" || uid != words.ConfigHash) {
		return kube.PodWords{}, false // another pod of that name is not known
	}
	return kube.PodWords(words), true
}

// keep writes down what the node's pods say, if that has changed.
func (w *podWords) keep() error {
	all, read := w.AllPodWords()
	if !read {
		return nil
	}
	now := make(map[string]laststate.PodWords, len(all))
	for pod, words := range all {
		now[pod] = laststate.PodWords(words)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if reflect.DeepEqual(now, w.saved) {
		return nil
	}
	if err := laststate.SaveWords(w.path, laststate.Words{BootID: w.boot, Pods: now}); err != nil {
		return err
	}
	w.saved = now
	return nil
}
