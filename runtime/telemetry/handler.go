package telemetry

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// handler writes lines in Dapr's shape. In text, time, level and msg come first and the other
// keys follow in the order of their names; in JSON all keys are in that order. When a key
// repeats, the last value stands.
type handler struct {
	level  slog.Leveler
	json   bool
	out    *output
	prefix string  // of attribute keys, from WithGroup
	fields []field // sorted, unique; rendered once when the logger was made
}

// output is shared by all handlers made from one.
type output struct {
	mu sync.Mutex // one line at a time
	w  io.Writer
}

// field is one attribute ready to be written: key and value as they stand in the line.
type field struct {
	key  string
	text []byte
}

// line is the memory of one record, reused.
type line struct {
	out    []byte
	values []byte // the text of the record's own attributes
	fields []field
}

var lines = sync.Pool{New: func() any { return &line{out: make([]byte, 0, 512), values: make([]byte, 0, 256)} }}

// maxPooled keeps one huge line from staying in memory.
const maxPooled = 16 << 10

func newHandler(w io.Writer, level slog.Leveler, o LogOptions) *handler {
	h := &handler{level: level, json: o.JSON, out: &output{w: w}}
	return h.with([]slog.Attr{
		slog.String("app_id", o.AppID), slog.String("instance", o.Instance), slog.String(ScopeKey, o.Scope),
		slog.String("type", "log"), slog.String("ver", o.Version),
	})
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler { return h.with(attrs) }

func (h *handler) with(attrs []slog.Attr) *handler {
	next := *h
	next.fields = slices.Clone(h.fields)
	for _, a := range attrs {
		next.each(h.prefix, a, func(k string, v slog.Value) {
			next.fields = place(next.fields, field{k, next.appendField(nil, k, v)})
		})
	}
	return &next
}

// WithGroup implements slog.Handler. Groups become prefixes: the format is flat.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.prefix += name + "."
	return &next
}

// each calls f for the attribute, or for the members of a group, with the whole key.
func (h *handler) each(prefix string, a slog.Attr, f func(string, slog.Value)) {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindGroup {
		if a.Key == "" {
			return // as slog asks: an attribute without key is ignored
		}
		if prefix != "" {
			a.Key = prefix + a.Key
		}
		f(unclash(a.Key), v)
		return
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, m := range v.Group() {
		h.each(prefix, m, f)
	}
}

// unclash renames attributes that carry the name of a part every line has.
func unclash(k string) string {
	switch k {
	case "level", "msg", "time":
		return "fields." + k
	}
	return k
}

// place puts f at its place among sorted fields, in the stead of one with the same key.
func place(fields []field, f field) []field {
	i, found := slices.BinarySearchFunc(fields, f.key, func(e field, k string) int { return strings.Compare(e.key, k) })
	if found {
		fields[i] = f
		return fields
	}
	return slices.Insert(fields, i, f)
}

// Handle implements slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	l := lines.Get().(*line)
	l.out, l.values, l.fields = l.out[:0], l.values[:0], append(l.fields[:0], h.fields...)
	r.Attrs(func(a slog.Attr) bool {
		h.each(h.prefix, a, func(k string, v slog.Value) {
			start := len(l.values)
			l.values = h.appendField(l.values, k, v)
			// If values moves later, this part stays readable where it was.
			l.fields = place(l.fields, field{k, l.values[start:len(l.values):len(l.values)]})
		})
		return true
	})
	if h.json {
		h.writeJSON(l, r)
	} else {
		h.writeText(l, r)
	}
	h.out.mu.Lock()
	_, err := h.out.w.Write(l.out)
	h.out.mu.Unlock()

	clear(l.fields)
	if cap(l.out)+cap(l.values) <= maxPooled {
		lines.Put(l)
	}
	return err
}

// writeText puts the line together as time, level, msg and the fields.
func (h *handler) writeText(l *line, r slog.Record) {
	b := l.out
	if !r.Time.IsZero() {
		b = append(b, `time="`...)
		b = r.Time.AppendFormat(b, time.RFC3339Nano)
		b = append(b, `" `...)
	}
	b = append(b, "level="...)
	b = append(b, levelName(r.Level)...)
	b = append(b, " msg="...)
	b = appendText(b, r.Message)
	for _, f := range l.fields {
		b = append(b, ' ')
		b = append(b, f.text...)
	}
	l.out = append(b, '\n')
}

// writeJSON puts the line together with level, msg and time at their places among the fields.
func (h *handler) writeJSON(l *line, r slog.Record) {
	own := [...]string{"level", "msg", "time"}
	b := append(l.out, '{')
	next := 0
	flush := func(before string) {
		for ; next < len(own) && (before == "" || own[next] <= before); next++ {
			switch own[next] {
			case "level":
				b = append(append(append(b, `"level":"`...), levelName(r.Level)...), `",`...)
			case "msg":
				b = append(appendJSONString(append(b, `"msg":`...), r.Message), ',')
			case "time":
				if !r.Time.IsZero() {
					b = append(r.Time.AppendFormat(append(b, `"time":"`...), time.RFC3339Nano), `",`...)
				}
			}
		}
	}
	for _, f := range l.fields {
		flush(f.key)
		b = append(append(b, f.text...), ',')
	}
	flush("")
	b[len(b)-1] = '}'
	l.out = append(b, '\n')
}
