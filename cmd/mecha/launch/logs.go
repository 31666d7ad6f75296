package launch

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// output takes what one process writes, on both its streams, to the console, a file or both,
// and keeps the last lines. Both streams go to standard output, as Dapr's CLI does it:
// tools that read `dapr run` look for all of an app's lines there.
type output struct {
	sinks  []sink
	tail   tail
	file   *os.File // nil without one
	toTerm bool     // the console shows it
	pumps  sync.WaitGroup
	reads  []*os.File
	writes []*os.File
}

type sink struct {
	to             *console
	prefix, colour string
}

// newOutput makes the two pipes of a process. logPath is empty for no file.
func newOutput(c *console, prefix, colour, logPath string, toConsole bool) (*output, error) {
	o := &output{toTerm: toConsole}
	if toConsole {
		o.sinks = append(o.sinks, sink{c, prefix, colour})
	}
	if logPath != "" {
		if err := os.MkdirAll(filepath.Dir(logPath), 0o755); err != nil {
			return nil, fmt.Errorf("create the directory of the log file %s: %w; choose the destination console, or make it writable", logPath, err)
		}
		f, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open the log file %s: %w; choose the destination console, or make it writable", logPath, err)
		}
		o.file = f
		o.sinks = append(o.sinks, sink{to: &console{w: f}})
	}
	o.sinks = append(o.sinks, sink{to: &console{w: &o.tail}})
	for range 2 {
		r, w, err := os.Pipe()
		if err != nil {
			o.discard()
			return nil, fmt.Errorf("make a pipe for the output of a process: %w", err)
		}
		o.reads, o.writes = append(o.reads, r), append(o.writes, w)
	}
	return o, nil
}

// follow starts copying. The writing ends must already be in the hands of the process.
func (o *output) follow() {
	for _, w := range o.writes {
		w.Close()
	}
	for _, r := range o.reads {
		o.pumps.Go(func() { o.pump(r) })
	}
}

func (o *output) pump(r io.Reader) {
	writers := make([]*lineWriter, len(o.sinks))
	for i, s := range o.sinks {
		writers[i] = s.to.lines(s.prefix, s.colour)
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		for _, w := range writers {
			_, _ = w.Write(buf[:n])
		}
		if err != nil {
			break
		}
	}
	for _, w := range writers {
		w.flush()
	}
}

// drained waits until both streams have ended, at most for limit: a process that outlives the
// run by right may still hold one.
func (o *output) drained(limit time.Duration) {
	done := make(chan struct{})
	go func() { o.pumps.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(limit):
	}
}

// close ends the copying and closes the file.
func (o *output) close() {
	o.drained(time.Second)
	for _, r := range o.reads {
		r.Close()
	}
	o.pumps.Wait()
	if o.file != nil {
		o.file.Close()
	}
}

// discard closes everything of an output that was never followed.
func (o *output) discard() {
	for _, f := range append(o.reads, o.writes...) {
		f.Close()
	}
	if o.file != nil {
		o.file.Close()
	}
}

// logName is the name of a log file in a template's log directory: `<app>_<what>_<time>.log`.
func logName(a *App, what string, at time.Time) string {
	return filepath.Join(a.logDir(), fmt.Sprintf("%s_%s_%s.log", a.ID, what, at.Format("20060102150405")))
}
