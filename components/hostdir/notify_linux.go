package hostdir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// On Linux we speak to inotify ourselves for the sake of one event that portable libraries
// do not pass on: IN_CLOSE_WRITE, which a process causes when it dies holding its file. It
// makes a killed instance known at once, without polling and before anybody asks.

const inotifyMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM |
	unix.IN_CLOSE_WRITE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

type inotify struct{ f *os.File }

func watchFolder(dir string) (folderWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if errors.Is(err, unix.EMFILE) {
		return nil, fmt.Errorf("watch %s: %w; raise fs.inotify.max_user_instances", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	// A non-blocking descriptor is served by the runtime's poller: no thread waits, and
	// Close wakes the reader.
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, inotifyMask); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return &inotify{f: f}, nil
}

var errFolderGone = errors.New("the watched folder is gone")

func (w *inotify) next() error {
	var buf [16 * (unix.SizeofInotifyEvent + unix.NAME_MAX + 1)]byte
	n, err := w.f.Read(buf[:])
	if err != nil {
		return err
	}
	for at := 0; at+unix.SizeofInotifyEvent <= n; {
		mask, size := binary.NativeEndian.Uint32(buf[at+4:]), binary.NativeEndian.Uint32(buf[at+12:])
		if mask&(unix.IN_IGNORED|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT) != 0 {
			return errFolderGone
		}
		at += unix.SizeofInotifyEvent + int(size)
	}
	return nil
}

func (w *inotify) close() { _ = w.f.Close() }
