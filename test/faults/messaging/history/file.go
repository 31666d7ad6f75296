//go:build unix

package history

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Names of files in the directory of a history. Every other *.jsonl is events of one process.
const (
	setupFile = "setup.json"
	SinkFile  = "sink.jsonl"
)

// Now is the time by the system's monotonic clock, which all processes share.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // there is always such a clock
	}
	return time.Duration(ts.Nano())
}

// Recorder writes events to a file. What Add has written outlives the process, however it ends. It
// is safe for concurrent use, also by several processes on one file.
type Recorder struct {
	proc string
	mu   sync.Mutex
	f    *os.File // guarded by mu
}

// NewRecorder appends to a file. Events without a Proc get proc.
func NewRecorder(path, proc string) (*Recorder, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &Recorder{proc: proc, f: f}, nil
}

// Add stamps an event, unless it has a time, and writes it with one call to the system: lines of
// several processes do not mix.
func (r *Recorder) Add(e Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Proc == "" {
		e.Proc = r.proc
	}
	if e.T == 0 {
		e.T = Now()
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = r.f.Write(append(line, '\n'))
	return err
}

// Close closes the file.
func (r *Recorder) Close() error { return r.f.Close() }

// Save writes the setup into a history's directory.
func (s Setup) Save(dir string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, setupFile), text, 0o600)
}

// Load reads a history from its directory. A last line that a killed process did not finish is left
// out; any other damage is an error.
func Load(dir string) (*History, error) {
	h := &History{}
	text, err := os.ReadFile(filepath.Join(dir, setupFile))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &h.Setup); err != nil {
		return nil, fmt.Errorf("%s: %w", setupFile, err)
	}
	h.Events, err = Follow(dir).Next()
	return h, err
}

// Follower reads the events of a history while it is written. It is used by one goroutine.
type Follower struct {
	dir  string
	read map[string]int64 // bytes of each file
	sunk int              // lines of the sink
}

// Follow begins at the beginning.
func Follow(dir string) *Follower { return &Follower{dir: dir, read: map[string]int64{}} }

// Next returns the events that were added since the last call.
func (f *Follower) Next() ([]Event, error) {
	names, err := filepath.Glob(filepath.Join(f.dir, "*.jsonl"))
	if err != nil {
		return nil, err
	}
	var out []Event
	for _, name := range names {
		text, err := readFrom(name, f.read[name])
		if err != nil {
			return nil, err
		}
		text = text[:bytes.LastIndexByte(text, '\n')+1] // the rest is not whole, and may never be
		f.read[name] += int64(len(text))
		events, err := parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
		if filepath.Base(name) == SinkFile {
			for i := range events {
				f.sunk++
				events[i].Order = f.sunk
			}
		}
		out = append(out, events...)
	}
	return out, nil
}

func readFrom(name string, at int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(at, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}

func parse(text []byte) ([]Event, error) {
	var out []Event
	for line := range bytes.Lines(text) {
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("event %d: %w", len(out)+1, err)
		}
		out = append(out, e)
	}
	return out, nil
}
