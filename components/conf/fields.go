package conf

import (
	"encoding"
	"reflect"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// field is one settable leaf of a configuration struct.
type field struct {
	name     string   // as users write it
	aliases  []string // other accepted names
	path     string   // Go path, "Conn.Host", for generated docs
	value    reflect.Value
	unit     time.Duration // of bare numbers; zero means none
	unitName string
	required bool
	enum     []string
}

// names are all names of the field, the main one first.
func (f *field) names() []string { return append([]string{f.name}, f.aliases...) }

var (
	typeDuration = reflect.TypeFor[time.Duration]()
	typeConfDur  = reflect.TypeFor[Duration]()
	typeByteSize = reflect.TypeFor[ByteSize]()
	typeSecret   = reflect.TypeFor[Secret]()
	typeText     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// fieldsOf lists the leaves of the struct v, nested structs flattened, in order.
func fieldsOf(v reflect.Value, path string) []*field {
	var out []*field
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		name, _, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if !sf.IsExported() || name == "-" {
			continue
		}
		fv := v.Field(i)
		if sf.Type.Kind() == reflect.Struct && !reflect.PointerTo(sf.Type).Implements(typeText) {
			out = append(out, fieldsOf(fv, path+sf.Name+".")...)
			continue
		}
		if name == "" {
			name = lowerFirst(sf.Name)
		}
		f := &field{name: name, aliases: csv(sf.Tag.Get("alias")), path: path + sf.Name, value: fv,
			required: sf.Tag.Get("required") == "true", enum: csv(sf.Tag.Get("enum"))}
		f.unitName = sf.Tag.Get("unit")
		f.unit = units[f.unitName]
		out = append(out, f)
	}
	return out
}

var units = map[string]time.Duration{"ns": time.Nanosecond, "us": time.Microsecond,
	"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour}

func lowerFirst(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToLower(r)) + s[n:]
}

// csv splits "a, b" into its parts; blanks around parts and empty parts do not count.
func csv(s string) []string {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}
