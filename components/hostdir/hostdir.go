// Package hostdir is the zero-configuration registry of one host: a private folder with one
// file per live instance. It needs no server, no port and no multicast.
//
// Liveness is a lock, not a lease. Each instance holds an exclusive lock on its file for as
// long as it is announced; the kernel releases the lock with the process, however that
// ends. Whoever finds a file whose lock is free knows that the instance is dead, ignores it
// and removes it. So a killed sidecar is gone at once and nothing has to wake up to renew.
//
// What makes this safe without a lock on the folder: a file gets its name only when it is
// locked and complete (it is written under a temporary name and renamed), and no name is
// ever used twice. A free lock therefore never belongs to somebody on the way in, and
// removing by name cannot hit a successor.
//
// The registry serves the processes of one user on one host. Other hosts, other users and
// containers with their own file systems need another registry (mdns, dns, staticfile,
// sqlite). Start reading at registry; entry.go has the file format, folder.go the rules for
// the folder, notify.go the news of changes.
package hostdir

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

const doc = "Registry of one host and user: a private folder of locked files, no server and no multicast."

// Backend lists the parts: a registry.
func Backend() block.Backend {
	return block.Backend{Name: "hostdir", Doc: doc, Parts: []block.Part{
		block.RegistryPart("hostdir", doc, DefaultConfig, New),
	}}
}

// Config configures the registry of one host.
type Config struct {
	// Dir is the folder of the registry, an absolute path. It is created with mode 0700 and
	// must belong to the user alone. Empty means <runtime dir>/mecha/registry, where the
	// runtime dir is $MECHA_RUNTIME_DIR, else $XDG_RUNTIME_DIR, else mecha-<uid> in the
	// system's folder for temporary files.
	Dir string `yaml:"dir"`
}

// DefaultConfig is the configuration with nothing set.
func DefaultConfig() *Config { return &Config{} }

// Validate reports every mistake in the configuration.
func (c *Config) Validate() error {
	if c.Dir != "" && !filepath.IsAbs(c.Dir) {
		return conf.Bad("dir", "%q is not an absolute path; apps started elsewhere would not meet", c.Dir)
	}
	return nil
}

var (
	_ block.Registry        = (*registry)(nil)
	_ block.Registrar       = (*registry)(nil)
	_ block.RegistryWatcher = (*registry)(nil)
)

const (
	opPing       fault.Op = "hostdir.registry.Ping"
	opResolve    fault.Op = "hostdir.registry.Resolve"
	opRegister   fault.Op = "hostdir.registry.Register"
	opDeregister fault.Op = "hostdir.registry.Deregister"
	opWatch      fault.Op = "hostdir.registry.Watch"
)

// registry is one sidecar's view of the folder.
type registry struct {
	log    *slog.Logger
	folder *folder
	bell   *bell
	warned warnings

	mu     sync.Mutex
	own    map[string]*announcement // guarded by mu; by instance id
	closed bool                     // guarded by mu
	stop   context.CancelFunc       // guarded by mu; ends the guard; nil while none runs
	guards sync.WaitGroup           // waits for the guard
	done   chan struct{}            // closed by Close
}

// announcement is one of our own instances and the file that holds it.
type announcement struct {
	self block.Instance
	file *heldFile
}

// New opens the registry. It touches no file: the first use does.
func New(env block.Env, c *Config) (block.Registry, error) {
	f := newFolder(c.Dir)
	return &registry{
		log: env.Log, folder: f, bell: newBell(f), warned: warnings{log: env.Log, seen: map[string]bool{}},
		own: map[string]*announcement{}, done: make(chan struct{}),
	}, nil
}

// Ping checks that the folder exists, or can be made, and is private.
func (r *registry) Ping(ctx context.Context) error { return r.ready(ctx, opPing) }

// ready is the common start of every operation.
func (r *registry) ready(ctx context.Context, op fault.Op) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	select {
	case <-r.done:
		return errClosed(op)
	default:
	}
	return r.folder.prepare(op)
}

func errClosed(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "the registry is closed").WithSent(fault.SentNever)
}

// Resolve lists the instances whose locks are held. It removes files of dead ones.
func (r *registry) Resolve(ctx context.Context, name block.Name) ([]block.Instance, error) {
	if err := r.ready(ctx, opResolve); err != nil {
		return nil, err
	}
	files, err := r.folder.list(ctx, namePrefix(name), &r.warned)
	if err != nil {
		return nil, fault.Wrap(opResolve, fault.Unavailable, err)
	}
	newest := map[string]entry{}
	for _, file := range files {
		e, err := r.folder.read(file)
		switch {
		case errors.Is(err, errDead), errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			r.warned.once(file, "registry entry ignored", err)
			continue
		case e.Name() != name:
			continue // another name with the same hash, or a file somebody renamed
		}
		// While an instance replaces its announcement both files are live for a moment.
		if old, twice := newest[e.ID]; !twice || e.Stamp > old.Stamp {
			newest[e.ID] = e
		}
	}
	out := make([]block.Instance, 0, len(newest))
	for _, id := range slices.Sorted(maps.Keys(newest)) {
		out = append(out, newest[id].instance())
	}
	return out, nil
}

// Register writes self's file and holds its lock until Deregister or Close. Should the
// file vanish meanwhile (a cleaner of temporary files, a removed session folder), it is
// written again.
func (r *registry) Register(ctx context.Context, self block.Instance) error {
	if err := self.Validate(); err != nil {
		return fault.Wrap(opRegister, fault.Invalid, err)
	}
	if err := r.ready(ctx, opRegister); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errClosed(opRegister)
	}
	self.Labels = maps.Clone(self.Labels)
	file, err := r.folder.announce(self)
	if err != nil {
		return fault.Wrap(opRegister, fault.Unavailable, err)
	}
	if old := r.own[self.ID]; old != nil {
		old.file.release()
	}
	r.own[self.ID] = &announcement{self: self, file: file}
	r.startGuardLocked()
	return nil
}

// Deregister removes the files of everything registered here.
func (r *registry) Deregister(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(opDeregister, fault.Canceled, err)
	}
	r.withdraw(false)
	return nil
}

func (r *registry) withdraw(forever bool) {
	r.mu.Lock()
	for _, a := range r.own {
		a.file.release()
	}
	clear(r.own)
	stop := r.stop
	r.stop = nil
	if forever && !r.closed {
		r.closed = true
		close(r.done)
	}
	r.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// Close withdraws everything and ends running watches.
func (r *registry) Close(context.Context) error {
	r.withdraw(true)
	r.bell.close()
	r.guards.Wait()
	return nil
}

// startGuardLocked makes sure that somebody looks after our own files. mu is held.
func (r *registry) startGuardLocked() {
	if r.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	r.guards.Go(func() {
		err := r.follow(ctx, func() error { r.repair(ctx); return nil })
		if err != nil && ctx.Err() == nil {
			r.log.Warn("registry entries are not guarded against removal by others", "error", err)
		}
	})
}

// repair announces again what lost its file.
func (r *registry) repair(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() != nil {
		return // withdrawn while we waited for the lock
	}
	for id, a := range r.own {
		if a.file.inPlace() {
			continue
		}
		if err := r.folder.prepare(opRegister); err != nil {
			r.warned.once("repair", "registry entry was removed and cannot be written again", err)
			continue
		}
		file, err := r.folder.announce(a.self)
		if err != nil {
			r.warned.once("repair", "registry entry was removed and cannot be written again", err)
			continue
		}
		a.file.release()
		a.file = file
		r.log.Warn("registry entry was removed by somebody else and is written again", "instance", id, "dir", r.folder.path)
	}
}

// Watch calls changed now and after each change of the list.
func (r *registry) Watch(ctx context.Context, name block.Name, changed func([]block.Instance)) error {
	if err := r.ready(ctx, opWatch); err != nil {
		return err
	}
	var last []block.Instance
	first := true
	return r.follow(ctx, func() error {
		list, err := r.Resolve(ctx, name)
		if err != nil {
			return err
		}
		if first || !slices.EqualFunc(list, last, same) {
			first, last = false, list
			changed(slices.Clone(list))
		}
		return nil
	})
}

func same(a, b block.Instance) bool {
	labels := maps.Equal(a.Labels, b.Labels)
	a.Labels, b.Labels = nil, nil
	return labels && a.ID == b.ID && a.Name() == b.Name() && a.Address == b.Address && a.Protocol == b.Protocol && a.Weight == b.Weight
}

// Rings come in bursts (create, rename, close). settle lets a burst finish. A process that
// dies rings just before the kernel frees its locks, so a second look follows.
const (
	settle     = 10 * time.Millisecond
	secondLook = 150 * time.Millisecond
)

// follow runs look at once and after each change in the folder, until ctx ends, the
// registry closes or look fails.
func (r *registry) follow(ctx context.Context, look func() error) error {
	rings, leave, err := r.bell.join()
	if err != nil {
		return fault.Wrap(opWatch, fault.Unavailable, err)
	}
	defer leave()
	again := time.NewTimer(0)
	defer again.Stop()
	looks, soon := 1, true
	for {
		select {
		case <-ctx.Done():
			return fault.Wrap(opWatch, fault.Canceled, ctx.Err())
		case <-r.done:
			return errClosed(opWatch)
		case <-rings:
			looks = 2
			if !soon { // later rings of a burst do not put the look off
				soon = true
				again.Reset(settle)
			}
		case <-again.C:
			soon = false
			if err := look(); err != nil {
				return err
			}
			if looks--; looks > 0 {
				again.Reset(secondLook)
			}
		}
	}
}

// heldFile is the file of a live announcement and the lock on it.
type heldFile struct {
	path string
	f    *os.File
}

// inPlace tells whether the file still stands under its name.
func (h *heldFile) inPlace() bool {
	ours, err1 := h.f.Stat()
	there, err2 := os.Lstat(h.path)
	return err1 == nil && err2 == nil && os.SameFile(ours, there)
}

// release withdraws the announcement: the name first, so that no reader meets a dead file.
func (h *heldFile) release() {
	if h.inPlace() {
		_ = os.Remove(h.path) // a reader removes what we cannot
	}
	_ = h.f.Close()
}

// warnings tells each complaint once, so that a foreign file does not fill the log.
type warnings struct {
	log *slog.Logger

	mu   sync.Mutex
	seen map[string]bool // guarded by mu; bounded by maxWarnings
}

const maxWarnings = 256

func (w *warnings) once(about, message string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen[about] || len(w.seen) >= maxWarnings {
		return
	}
	w.seen[about] = true
	w.log.Warn(message, "file", about, "error", err)
}
