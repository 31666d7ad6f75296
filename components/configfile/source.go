package configfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/mecha-project/mecha/components/fault"
)

// How long the file must have been left alone before it is read. One that does not end with a
// line's end may be cut off where a writer's buffer was full, so it gets more time.
const (
	settle    = 40 * time.Millisecond
	settleCut = time.Second
)

// poll is how often the file is looked at: beside the system's reports, which network file
// systems do not make, and instead of them where there are none to be had.
const (
	pollBeside  = 30 * time.Second
	pollInstead = time.Second
)

// source reads the file and follows it from the first use on.
type source struct {
	log  *slog.Logger
	path string
	done chan struct{}  // closed by close
	work sync.WaitGroup // waits for follow

	mu      sync.Mutex
	closed  bool              // guarded by mu
	begun   bool              // guarded by mu; follow runs
	values  map[string]string // guarded by mu; nil before the first good version; never changed in place
	content []byte            // guarded by mu; what values were read from
	bad     string            // guarded by mu; what was wrong the last time, to say it once
	known   stamp             // of the content judged last; touched by follow only
	changed chan struct{}     // guarded by mu; closed and replaced when values change
}

func newSource(log *slog.Logger, path string) *source {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &source{log: log, path: filepath.Clean(path), done: make(chan struct{}), changed: make(chan struct{})}
}

func errClosed(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "the configuration file's component is closed").WithSent(fault.SentNever)
}

// current is the version to serve, and a channel that is closed when there is another.
func (s *source) current(ctx context.Context, op fault.Op) (map[string]string, <-chan struct{}, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fault.Wrap(op, fault.Canceled, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, errClosed(op)
	}
	if s.values == nil {
		// Followed before it is read, so that no change falls between the two.
		if !s.begun {
			s.begun = true
			w := s.watch()
			s.work.Go(func() { s.follow(w) })
		}
		content, err := readBounded(s.path)
		if err != nil {
			return nil, nil, fault.New(op, fault.Unavailable, "configuration file cannot be read").Because(err).WithSent(fault.SentNever)
		}
		if err := s.takeLocked(content); err != nil {
			return nil, nil, fault.Wrap(op, fault.Invalid, err)
		}
	}
	return s.values, s.changed, nil
}

// takeLocked puts a version in force if it is good. mu is held.
func (s *source) takeLocked(content []byte) error {
	values, err := parse(s.path, content)
	if err != nil {
		return err
	}
	s.values, s.content, s.bad = values, content, ""
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(data) > maxFileBytes {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFileBytes)
	}
	return data, err
}

// watch asks the system to report changes. The folder is watched, not the file, since editors
// and Kubernetes replace files by renaming; behind a link the target's folder is watched too.
func (s *source) watch() *fsnotify.Watcher {
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = s.aim(w); err == nil {
			return w
		}
		err = errors.Join(err, w.Close())
	}
	s.log.Warn("the system does not report changes of the configuration file; looking at it every second", "path", s.path, "error", err)
	return nil
}

func (s *source) aim(w *fsnotify.Watcher) error {
	if err := w.Add(filepath.Dir(s.path)); err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(s.path); err == nil {
		return w.Add(filepath.Dir(real))
	}
	return nil // not there yet
}

// follow looks at the file after each burst of reports, and now and then without any.
func (s *source) follow(w *fsnotify.Watcher) {
	every := pollInstead
	var events <-chan fsnotify.Event
	var errs <-chan error
	if w != nil {
		defer w.Close()
		every, events, errs = pollBeside, w.Events, w.Errors
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	rest := time.NewTimer(time.Hour)
	rest.Stop()
	defer rest.Stop()
	var last glimpse // of the file while it has not come to rest
	pending := false // reports do not postpone a look: they may be about other files, and never end
	for {
		select {
		case <-s.done:
			return
		case _, ok := <-events:
			if !ok {
				return
			}
		case err := <-errs:
			s.log.Warn("following the configuration file failed for a moment", "path", s.path, "error", err)
		case <-tick.C:
		case <-rest.C:
			pending = false
			if w != nil {
				_ = s.aim(w) // a link may point elsewhere now; a missing folder is reported by the read
			}
			if s.known.holds(s.path) {
				continue
			}
			seen := s.look()
			if wait := seen.since(last); wait > 0 { // it changed since the last look, or may be cut off
				last, pending = seen, true
				rest.Reset(wait)
				continue
			}
			last, s.known = glimpse{}, seen.stamp
			s.reload(seen)
			continue
		}
		if !pending {
			pending = true
			rest.Reset(settle)
		}
	}
}

// stamp tells without reading whether a file is still the one that was read.
type stamp struct {
	info os.FileInfo // nil: nothing is known
	at   time.Time   // of the reading
}

// holds is never true for a file that was read right after it was written: another write may have
// the same time.
func (s stamp) holds(path string) bool {
	if s.info == nil || s.at.Sub(s.info.ModTime()) < 2*time.Second {
		return false
	}
	now, err := os.Stat(path)
	return err == nil && os.SameFile(now, s.info) && now.ModTime().Equal(s.info.ModTime()) && now.Size() == s.info.Size()
}

// glimpse is the file at one moment.
type glimpse struct {
	content []byte
	err     error
	stamp   stamp
}

func (s *source) look() glimpse {
	at := time.Now()
	info, err := os.Stat(s.path) // before the reading: a write between the two is seen again
	if err != nil {
		return glimpse{err: err, stamp: stamp{at: at}}
	}
	content, err := readBounded(s.path)
	return glimpse{content, err, stamp{info, at}}
}

// since tells how long to wait before g can be believed, last being the look before.
func (g glimpse) since(last glimpse) time.Duration {
	whole := len(g.content) > 0 && (g.content[len(g.content)-1] == '\n' || g.content[len(g.content)-1] == '}')
	switch rested := !last.stamp.at.IsZero() && bytes.Equal(last.content, g.content) && (last.err == nil) == (g.err == nil); {
	case rested:
		return 0
	case whole:
		return settle
	}
	return settleCut
}

// reload takes a version that has come to rest.
func (s *source) reload(g glimpse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.values == nil || g.err == nil && bytes.Equal(g.content, s.content) {
		s.bad = ""
		return
	}
	err := g.err
	if err == nil {
		err = s.takeLocked(g.content)
	}
	switch {
	case err == nil:
		s.log.Info("configuration file loaded again", "path", s.path)
	case err.Error() != s.bad:
		s.bad = err.Error()
		s.log.Error("configuration file is bad; the last good version keeps serving", "path", s.path, "error", err)
	}
}

func (s *source) close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	s.mu.Unlock()
	s.work.Wait()
	return nil
}
