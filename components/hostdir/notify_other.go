//go:build !linux

package hostdir

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// Elsewhere a killed instance is noticed by the next Resolve of anybody, which removes its
// file and so rings the bell.
type notifier struct {
	dir string
	w   *fsnotify.Watcher
}

func watchFolder(dir string) (folderWatch, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	if err := w.Add(dir); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return &notifier{dir: filepath.Clean(dir), w: w}, nil
}

var errFolderGone = errors.New("the watched folder is gone")

func (n *notifier) next() error {
	select {
	case e, ok := <-n.w.Events:
		if !ok || (filepath.Clean(e.Name) == n.dir && e.Has(fsnotify.Remove|fsnotify.Rename)) {
			return errFolderGone
		}
		return nil
	case err, ok := <-n.w.Errors:
		if !ok {
			return errFolderGone
		}
		if errors.Is(err, fsnotify.ErrEventOverflow) {
			return nil
		}
		return err
	}
}

func (n *notifier) close() { _ = n.w.Close() }
