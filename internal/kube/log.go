package kube

import (
	"context"
	"log/slog"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// WithLog returns a context in which client-go logs to log.
func WithLog(ctx context.Context, log *slog.Logger) context.Context {
	return klog.NewContext(ctx, logr.FromSlogHandler(log.Handler()))
}

// logCache lets the caches' own messages (a watch that failed and is retried)
// go to log. controller-runtime has one place for that in a program; without it
// the messages are lost, and a stack trace complains.
func logCache(log *slog.Logger) {
	ctrllog.SetLogger(logr.FromSlogHandler(log.Handler()))
}

// LogAll lets all of client-go and what is built on it log to log, also where no
// context says so. It is for main, before anything else runs.
func LogAll(log *slog.Logger) {
	klog.SetLogger(logr.FromSlogHandler(log.Handler()))
}
