// Package staticfile is a registry written by hand, or by a tool: a YAML or JSON file that
// names the addresses of each app. The file is read again when it changes; a bad new version
// is reported with file and line, and the last good one keeps serving.
//
// The file is believed: nothing checks whether an address answers (the caller's health
// checks do), and instances do not announce themselves. Start reading at parse.go for the
// format, then registry.
package staticfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

const doc = "Registry from a YAML or JSON file of app ids and addresses, read again when it changes."

// Backend lists the parts: a registry.
func Backend() block.Backend {
	return block.Backend{Name: "staticfile", Doc: doc, Parts: []block.Part{
		block.RegistryPart("staticfile", doc, DefaultConfig, New),
	}}
}

// Config configures the registry from a file.
type Config struct {
	// Path is the file, YAML or JSON. A relative path starts at the sidecar's working
	// directory.
	Path string `yaml:"path" alias:"file" required:"true"`
}

// DefaultConfig is the configuration with nothing set.
func DefaultConfig() *Config { return &Config{} }

// Validate reports every mistake in the configuration. A missing path is the decoder's to
// report.
func (c *Config) Validate() error { return nil }

var (
	_ block.Registry        = (*registry)(nil)
	_ block.RegistryWatcher = (*registry)(nil)
)

const (
	opPing    fault.Op = "staticfile.registry.Ping"
	opResolve fault.Op = "staticfile.registry.Resolve"
	opWatch   fault.Op = "staticfile.registry.Watch"
)

// settle lets a burst of writes to the file finish before it is read.
const settle = 30 * time.Millisecond

// registry serves the last good version of the file.
type registry struct {
	log       *slog.Logger
	path      string
	namespace string // of entries that name none
	done      chan struct{}
	watching  sync.WaitGroup // waits for the goroutine of watcher

	mu       sync.Mutex
	closed   bool                   // guarded by mu
	watcher  *fsnotify.Watcher      // guarded by mu; nil before the first use
	table    table                  // guarded by mu; nil before the first good version; never changed in place
	content  []byte                 // guarded by mu; what was read last, good or bad
	lastErr  error                  // guarded by mu; what was wrong with content
	watchers map[chan struct{}]bool // guarded by mu; who wants to hear of changes
}

// New opens the registry. It touches no file: the first use does.
func New(env block.Env, c *Config) (block.Registry, error) {
	if c.Path == "" {
		return nil, fault.New("staticfile.New", fault.Invalid, "path is required: name the file with the addresses")
	}
	return &registry{log: env.Log, path: filepath.Clean(c.Path), namespace: env.Namespace,
		done: make(chan struct{}), watchers: map[chan struct{}]bool{}}, nil
}

// Ping checks that there is a good version of the file to serve.
func (r *registry) Ping(ctx context.Context) error {
	_, err := r.current(ctx, opPing)
	return err
}

// Resolve lists what the file says.
func (r *registry) Resolve(ctx context.Context, name block.Name) ([]block.Instance, error) {
	t, err := r.current(ctx, opResolve)
	if err != nil {
		return nil, err
	}
	return t.copyOf(name), nil
}

// current is the table to serve; it is read at the first use.
func (r *registry) current(ctx context.Context, op fault.Op) (table, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(op, fault.Canceled, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errClosed(op)
	}
	if r.watcher == nil {
		if err := r.startLocked(); err != nil {
			// The file can be served all the same; it just does not follow changes.
			r.log.Warn("changes of the registry file will not be noticed", "path", r.path, "error", err)
		}
	}
	if r.table == nil {
		if err := r.loadLocked(); err != nil {
			code := fault.Invalid
			if isAccess(err) {
				code = fault.Unavailable
			}
			return nil, fault.Wrap(op, code, err)
		}
	}
	return r.table, nil
}

func errClosed(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "the registry is closed").WithSent(fault.SentNever)
}

// errAccess marks failures to read the file, as against mistakes in it.
type errAccess struct{ error }

func (e errAccess) Unwrap() error { return e.error }

func isAccess(err error) bool {
	var e errAccess
	return errors.As(err, &e)
}

// loadLocked reads the file and swaps the table. A file that did not change is not parsed
// again. mu is held.
func (r *registry) loadLocked() error {
	content, err := readBounded(r.path)
	if err != nil {
		return errAccess{fmt.Errorf("registry file cannot be read: %w", err)}
	}
	if r.content != nil && bytes.Equal(content, r.content) {
		return r.lastErr
	}
	t, err := parse(r.path, content, r.namespace)
	r.content, r.lastErr = content, err
	if err != nil {
		return err
	}
	r.table = t
	for c := range r.watchers {
		select {
		case c <- struct{}{}:
		default: // a token is there already
		}
	}
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

// startLocked starts to follow the file. The folder is watched, not the file, since editors
// and Kubernetes replace files by renaming; behind a link the target's folder is watched too.
func (r *registry) startLocked() error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	if err := r.follow(w); err != nil {
		return errors.Join(err, w.Close())
	}
	r.watcher = w
	r.watching.Go(func() { r.run(w) })
	return nil
}

func (r *registry) follow(w *fsnotify.Watcher) error {
	if err := w.Add(filepath.Dir(r.path)); err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(r.path); err == nil {
		return w.Add(filepath.Dir(real))
	}
	return nil // not there yet
}

// run reloads after each burst of events, until the watcher is closed.
func (r *registry) run(w *fsnotify.Watcher) {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	pending := false
	for {
		select {
		case _, ok := <-w.Events:
			if !ok {
				return
			}
			if !pending {
				pending = true
				timer.Reset(settle)
			}
		case err, ok := <-w.Errors:
			if !ok {
				return
			}
			r.log.Warn("following the registry file failed for a moment", "path", r.path, "error", err)
			pending = true
			timer.Reset(settle)
		case <-timer.C:
			pending = false
			r.reload(w)
		}
	}
}

func (r *registry) reload(w *fsnotify.Watcher) {
	_ = r.follow(w) // a link may point elsewhere now; a missing folder is reported by the load
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	before, had := r.content, r.table != nil
	err := r.loadLocked()
	switch changed := !bytes.Equal(before, r.content); {
	case err != nil && had && (changed || isAccess(err)):
		r.log.Error("registry file is bad; the last good version keeps serving", "path", r.path, "error", err)
	case err == nil && had && changed:
		r.log.Info("registry file loaded again", "path", r.path)
	}
}

// Watch calls changed now and after each change of the list.
func (r *registry) Watch(ctx context.Context, name block.Name, changed func([]block.Instance)) error {
	rings := make(chan struct{}, 1)
	r.mu.Lock()
	r.watchers[rings] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.watchers, rings)
		r.mu.Unlock()
	}()
	var last []block.Instance
	for first := true; ; first = false {
		t, err := r.current(ctx, opWatch)
		if err != nil {
			return err
		}
		if list := t.copyOf(name); first || !slices.EqualFunc(list, last, same) {
			last = list
			changed(t.copyOf(name))
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(opWatch, fault.Canceled, ctx.Err())
		case <-r.done:
			return errClosed(opWatch)
		case <-rings:
		}
	}
}

func same(a, b block.Instance) bool {
	labels := maps.Equal(a.Labels, b.Labels)
	a.Labels, b.Labels = nil, nil
	return labels && a.ID == b.ID && a.Name() == b.Name() && a.Address == b.Address && a.Protocol == b.Protocol && a.Weight == b.Weight
}

// Close stops following the file and ends running watches.
func (r *registry) Close(context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	close(r.done)
	w := r.watcher
	r.mu.Unlock()
	if w == nil {
		return nil
	}
	err := w.Close()
	r.watching.Wait()
	return fault.Wrap("staticfile.registry.Close", fault.Internal, err)
}
