package settings

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/mecha-project/mecha/components/conf"
)

// Times of the watcher. A save is several events in a row; an editor that truncates a file
// before writing it shows an empty file for a moment.
const (
	settle     = 150 * time.Millisecond // quiet time before files are read
	emptyGrace = 500 * time.Millisecond // how long a file that was not empty may be
	patience   = 2 * time.Second        // after which files are read though they never settle
	rewatch    = 2 * time.Second        // between attempts to watch a folder that went away
)

// Watcher reads resource folders and reports what changes in them. Make it with
// NewWatcher, call Load once, then Run; one goroutine at a time may use it.
//
// It sleeps while nothing changes. A file that cannot be read or has errors keeps its last
// good resources, and so does a folder that vanishes: a slip of an editor must not stop
// components that work.
type Watcher struct {
	folders []string
	sel     Selection
	fs      *fsnotify.Watcher
	lost    map[string]bool       // folders not watched at present
	good    map[string]*Resources // per file, what was last read without errors
	current *Resources
	told    map[string]conf.Findings // per file or folder, what was reported last
}

// NewWatcher starts watching the folders. It fails when one does not exist.
func NewWatcher(folders []string, sel Selection) (*Watcher, error) {
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("failed to create watcher for resources: %w", err)
	}
	w := &Watcher{folders: folders, sel: sel, fs: fs, lost: map[string]bool{}, good: map[string]*Resources{}, told: map[string]conf.Findings{}}
	for _, dir := range folders {
		_, err := ListFolder(dir) // first, for it explains itself better
		if err == nil {
			err = fs.Add(dir)
		}
		if err != nil {
			_ = fs.Close() // the first error is the one to tell
			return nil, err
		}
	}
	return w, nil
}

// Close stops watching and makes Run return. It is safe twice.
func (w *Watcher) Close() error { return w.fs.Close() }

// Load reads the folders for the first time, as LoadResources does. Changes after it are
// seen by Run.
func (w *Watcher) Load() (*Resources, error) {
	files, err := listFolders(w.folders)
	if err != nil {
		return nil, err
	}
	var parsed []*Resources
	for _, f := range files {
		r := ParseFile(f)
		w.good[f], w.told[f] = r, r.Findings
		parsed = append(parsed, r)
	}
	w.current = assemble(parsed, w.sel)
	return w.current, w.current.duplicates()
}

// Resources are what was read last, without what is wrong now.
func (w *Watcher) Resources() *Resources { return w.current }

// Run calls changed with the differences after every change, until ctx ends or Close is
// called, and then returns ctx's error (nil after Close alone). It calls changed from its
// own goroutine and reads nothing meanwhile.
func (w *Watcher) Run(ctx context.Context, changed func(Diff)) error {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	var first time.Time // of the events not acted on yet
	schedule := func() {
		now := time.Now()
		if first.IsZero() {
			first = now
		}
		timer.Reset(min(settle, max(0, patience-now.Sub(first))))
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev, open := <-w.fs.Events:
			if !open {
				return ctx.Err()
			}
			if w.concerns(ev) {
				schedule()
			}
		case _, open := <-w.fs.Errors:
			if !open {
				return ctx.Err()
			}
			schedule() // events may have been dropped: look for ourselves
		case <-timer.C:
			first = time.Time{}
			diff, again := w.reload()
			if !diff.Empty() {
				changed(diff)
			}
			if again > 0 {
				timer.Reset(again)
			}
		}
	}
}

// concerns tells whether an event may change what is read.
func (w *Watcher) concerns(ev fsnotify.Event) bool {
	for _, dir := range w.folders {
		if filepath.Clean(ev.Name) != filepath.Clean(dir) {
			continue
		}
		if ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename) {
			w.lost[dir] = true
			_ = w.fs.Remove(dir) // a renamed folder would still be watched under its old name
		}
		return true
	}
	// Mounted folders are replaced as a whole by swapping a link called ..data.
	return IsResourceFile(ev.Name) || strings.HasPrefix(filepath.Base(ev.Name), "..")
}

// tell adds findings about a file or folder unless they are what was said last.
func (w *Watcher) tell(diff *Diff, about string, found conf.Findings) {
	if !slices.Equal(w.told[about], found) {
		diff.Findings = append(diff.Findings, found...)
	}
	w.told[about] = found
}

// reload reads everything again and compares. again is the delay after which to look once
// more though nothing may happen; zero means not to.
func (w *Watcher) reload() (diff Diff, again time.Duration) {
	var parsed []*Resources
	good := map[string]*Resources{}
	for _, dir := range w.folders {
		files, err := w.list(dir)
		var found conf.Findings
		if err != nil {
			found = conf.Findings{{File: dir, Severity: conf.Error, Msg: "cannot be read; the resources read from it before stay in force"}}
			files, again = w.before(dir), rewatch
		}
		w.tell(&diff, dir, found)
		for _, f := range files {
			r := w.good[f]
			if err == nil {
				var wait time.Duration
				r, wait = w.reread(&diff, f, r)
				again = max(again, wait)
			}
			good[f] = r
			parsed = append(parsed, r)
		}
	}
	next := assemble(parsed, w.sel)
	var clash conf.Findings
	err := next.duplicates()
	if err != nil {
		clash = conf.Findings{{Severity: conf.Error, Msg: err.Error() + "; the resources read before stay in force"}}
	}
	w.tell(&diff, "", clash)
	if err != nil {
		return diff, again
	}
	before := w.current
	if before == nil {
		before = &Resources{}
	}
	maps.DeleteFunc(w.told, func(about string, _ conf.Findings) bool {
		return IsResourceFile(about) && good[about] == nil && !slices.Contains(w.folders, about)
	})
	w.good, w.current = good, next
	diff.compare(before, next)
	return diff, again
}

// reread reads one file again and chooses between what it holds now and what it held last.
func (w *Watcher) reread(diff *Diff, file string, last *Resources) (*Resources, time.Duration) {
	now := ParseFile(file)
	if last != nil && now.blank() && !last.blank() && !last.emptied {
		kept := *last
		kept.emptied = true // once: a file that is still empty then is meant to be
		return &kept, emptyGrace
	}
	w.tell(diff, file, now.Findings)
	if last != nil && now.Findings.Err() != nil {
		return last, 0
	}
	return now, 0
}

// list names a folder's files and sees to it that the folder is watched.
func (w *Watcher) list(dir string) ([]string, error) {
	files, err := ListFolder(dir)
	if err != nil {
		w.lost[dir] = true
		return nil, err
	}
	if !w.lost[dir] {
		return files, nil
	}
	if err := w.fs.Add(dir); err != nil {
		return nil, err
	}
	delete(w.lost, dir)
	return ListFolder(dir) // again, for what came between listing and watching
}

// before names the files last read from a folder.
func (w *Watcher) before(dir string) []string {
	var out []string
	for _, f := range sortedKeys(w.good) {
		if filepath.Clean(filepath.Dir(f)) == filepath.Clean(dir) {
			out = append(out, f)
		}
	}
	return out
}
