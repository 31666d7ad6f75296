package launch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
)

// maxLine bounds a line. A longer one is shown in pieces of this size, each with its prefix.
const maxLine = 64 << 10

// Terminal colours, as SGR parameters.
const (
	colourNone  = ""
	colourNote  = "32" // green
	colourWarn  = "33" // yellow
	colourBad   = "31" // red
	colourMecha = "90" // grey: the sidecar speaks in the background
)

// appColours tell the apps of a template apart.
var appColours = [...]string{"36", "35", "34", "96", "95", "94"}

// console writes whole lines from many processes to one place. It is safe for concurrent use.
type console struct {
	mu     sync.Mutex // guards w: one Write is one or more whole lines
	w      io.Writer
	colour bool
	json   bool
}

func newConsole(w io.Writer, asJSON bool) *console {
	return &console{w: w, colour: !asJSON && wantsColour(w), json: asJSON}
}

// wantsColour says whether w is a terminal whose owner did not ask for plain text.
func wantsColour(w io.Writer) bool {
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (c *console) write(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A console that is gone must not stop the app; a broken pipe on stdout ends us anyway.
	_, _ = c.w.Write(p)
}

// note, warn and fail are the voice of `mecha run` itself.
func (c *console) note(format string, args ...any) { c.say("info", colourNote, format, args...) }
func (c *console) warn(format string, args ...any) { c.say("warn", colourWarn, format, args...) }
func (c *console) fail(format string, args ...any) { c.say("error", colourBad, format, args...) }

func (c *console) say(level, colour, format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if c.json {
		line, err := json.Marshal(map[string]string{"level": level, "msg": msg, "scope": "mecha.run"})
		if err == nil {
			c.write(append(line, '\n'))
		}
		return
	}
	if level != "info" {
		msg = level + ": " + msg
	}
	l := c.lines("mecha: ", colour)
	_, _ = io.WriteString(l, msg)
	l.flush()
}

// lines returns a writer that puts prefix before every line. The writer is for one stream and
// not safe for concurrent use; any number of them share the console.
func (c *console) lines(prefix, colour string) *lineWriter {
	l := &lineWriter{to: c, head: []byte(prefix)}
	if c.colour && colour != colourNone {
		l.head = []byte("\x1b[" + colour + "m" + prefix + "\x1b[0m")
	}
	return l
}

// lineWriter cuts a stream into lines and passes on whole ones only.
type lineWriter struct {
	to   *console
	head []byte
	part []byte // the unfinished line, shorter than maxLine
	out  []byte // scratch: what one Write passes on
}

// Write never fails and keeps nothing of p.
func (l *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	l.out = l.out[:0]
	for len(p) > 0 {
		take := bytes.IndexByte(p, '\n') + 1
		whole := take > 0
		if !whole {
			take = len(p)
		}
		if room := maxLine - len(l.part); take > room {
			take, whole = room, true
		}
		if whole {
			l.emit(p[:take])
		} else {
			l.part = append(l.part, p[:take]...)
		}
		p = p[take:]
	}
	if len(l.out) > 0 {
		l.to.write(l.out)
	}
	return n, nil
}

// emit adds the unfinished line and its end to what goes out.
func (l *lineWriter) emit(end []byte) {
	l.out = append(l.out, l.head...)
	l.out = append(l.out, l.part...)
	l.out = append(l.out, end...)
	if len(end) == 0 || end[len(end)-1] != '\n' {
		l.out = append(l.out, '\n')
	}
	l.part = l.part[:0]
}

// flush passes on an unfinished last line.
func (l *lineWriter) flush() {
	if len(l.part) == 0 {
		return
	}
	l.out = l.out[:0]
	l.emit(nil)
	l.to.write(l.out)
}

// tail keeps the last lines of a process, for the case that it dies.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

const maxTail = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-2*maxTail):]...)
	if over := len(t.buf) - maxTail; over > 0 {
		if i := bytes.IndexByte(t.buf[over:], '\n'); i >= 0 && over+i+1 < len(t.buf) {
			over += i + 1
		}
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// String is what was kept, without a newline at its end.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimRight(t.buf, "\n"))
}
