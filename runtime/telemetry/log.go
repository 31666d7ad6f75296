package telemetry

import (
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/mecha-project/mecha/components/fault"
)

// LevelFatal is the level of the last line before the process gives up. Logging at it does not
// end the process; that is main's.
const LevelFatal = slog.Level(12)

// ScopeKey is the attribute that says which part of the sidecar speaks.
const ScopeKey = "scope"

// Scope returns log speaking for a part, as "dapr.runtime.http". A later scope replaces an earlier.
func Scope(log *slog.Logger, scope string) *slog.Logger {
	return log.With(slog.String(ScopeKey, scope))
}

const opLog fault.Op = "telemetry.log"

// ParseLevel reads a value of --log-level: debug, info, warn, error or fatal, in any case.
func ParseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	case "fatal":
		return LevelFatal, nil
	}
	// Tools match daprd's text; it stands alone for that.
	return slog.LevelInfo, fault.New(opLog, fault.Invalid, "invalid value for --log-level: %s", s)
}

// levelName is the level's word in a line.
func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "debug"
	case l < slog.LevelWarn:
		return "info"
	case l < slog.LevelError:
		return "warning"
	case l < LevelFatal:
		return "error"
	}
	return "fatal"
}

// LogOptions describe the sidecar's log. The zero value writes text at info level to stdout.
type LogOptions struct {
	AppID    string
	Instance string // the host's name
	Version  string
	Scope    string // of lines that set none; empty means dapr.runtime
	Level    slog.Level
	JSON     bool
	File     string    // append here instead of to stdout
	Writer   io.Writer // for tests; wins over File
}

// Log owns the sidecar's log output. Make one with NewLog and hand out its Logger.
type Log struct {
	*slog.Logger
	level *slog.LevelVar
	file  *os.File
}

// NewLog opens the log. The lines have the keys app_id, instance, level, msg, scope, time, type
// and ver, in text as in JSON, and each is one Write, also when many goroutines log.
func NewLog(o LogOptions) (*Log, error) {
	l := &Log{level: new(slog.LevelVar)}
	l.level.Set(o.Level)
	out := o.Writer
	if out == nil {
		out = os.Stdout
		if o.File != "" {
			f, err := os.OpenFile(o.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
			if err != nil {
				return nil, fault.New(opLog, fault.Invalid, "cannot open --log-file %s for appending", o.File).Because(err)
			}
			l.file, out = f, f
		}
	}
	if o.Scope == "" {
		o.Scope = "dapr.runtime"
	}
	l.Logger = slog.New(newHandler(out, l.level, o))
	return l, nil
}

// SetLevel changes what is written from now on, for every logger made from l.
func (l *Log) SetLevel(level slog.Level) { l.level.Set(level) }

// Level is the lowest level written.
func (l *Log) Level() slog.Level { return l.level.Level() }

// Close closes the log file, if there is one. Later lines are lost.
func (l *Log) Close() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
