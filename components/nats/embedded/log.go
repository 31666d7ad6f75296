package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
)

// maxLog bounds node.log in bytes. The file starts anew beyond it: what matters is the end.
const maxLog = 1 << 20

// logFile appends to a file and keeps it below maxLog. Other writers (a panicking runtime)
// append to the same file through their own descriptor.
type logFile struct {
	mu sync.Mutex
	f  *os.File // guarded by mu
}

func openLog(path string) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &logFile{f: f}, nil
}

// Write appends p. A log that cannot be written stops nobody.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if info, err := l.f.Stat(); err == nil && info.Size() > maxLog {
		_ = l.f.Truncate(0)
		_, _ = l.f.WriteString("(earlier lines were dropped)\n")
	}
	_, _ = l.f.Write(p)
	return len(p), nil
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}

// natsLog hands the server library's lines to slog and remembers why it could not start.
type natsLog struct {
	log     *slog.Logger
	trouble chan struct{} // one slot: the library reported an error

	mu    sync.Mutex
	fatal string // guarded by mu
}

func (n *natsLog) line(level slog.Level, format string, args []any) {
	if n.log.Enabled(context.Background(), level) {
		n.log.Log(context.Background(), level, strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
}

// Noticef is the library's start-up chatter: of interest when debugging only.
func (n *natsLog) Noticef(format string, args ...any) { n.line(slog.LevelDebug, format, args) }

// Warnf logs a warning.
func (n *natsLog) Warnf(format string, args ...any) { n.line(slog.LevelWarn, format, args) }

// Errorf logs an error and lets the node look into it.
func (n *natsLog) Errorf(format string, args ...any) {
	n.line(slog.LevelError, format, args)
	select {
	case n.trouble <- struct{}{}:
	default:
	}
}

// Debugf logs details.
func (n *natsLog) Debugf(format string, args ...any) { n.line(slog.LevelDebug, format, args) }

// Tracef logs the protocol itself.
func (n *natsLog) Tracef(format string, args ...any) { n.line(slog.LevelDebug-4, format, args) }

// Fatalf is told when the library gives up; it goes on running, so the node has to look.
func (n *natsLog) Fatalf(format string, args ...any) {
	n.mu.Lock()
	n.fatal = fmt.Sprintf(format, args...)
	n.mu.Unlock()
	n.line(slog.LevelError, format, args)
}

func (n *natsLog) failure() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fatal
}
