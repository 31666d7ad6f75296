package conf

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
)

// FieldDoc describes one key of a configuration struct, for generated reference pages.
type FieldDoc struct {
	Name     string   // as users write it
	Aliases  []string // other accepted names
	Path     string   // Go path of the field, "Conn.Host", to find its doc comment
	Type     string   // in a user's words: "text", "duration", "list of text", …
	Default  string   // as a user would write it; secrets are masked; empty means none
	Required bool
	Enum     []string // the only accepted values, if limited
	Unit     string   // of bare numbers in a duration; empty means they are refused
}

// Describe lists the keys of config, a pointer to a struct holding its defaults, in the
// order they are declared. It returns nil for anything else.
func Describe(config any) []FieldDoc {
	v := reflect.ValueOf(config)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return nil
	}
	var out []FieldDoc
	for _, f := range fieldsOf(v.Elem(), "") {
		out = append(out, FieldDoc{Name: f.name, Aliases: f.aliases, Path: f.path, Type: typeName(f.value.Type()),
			Default: show(f.value), Required: f.required, Enum: f.enum, Unit: f.unitName})
	}
	return out
}

func typeName(t reflect.Type) string {
	switch t {
	case typeDuration, typeConfDur:
		return "duration"
	case typeByteSize:
		return "size"
	case typeSecret:
		return "secret"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem())
	case reflect.Slice:
		return "list of " + typeName(t.Elem())
	case reflect.Map:
		return "map"
	case reflect.Bool:
		return "bool"
	case reflect.String:
		return "text"
	case reflect.Float32, reflect.Float64:
		return "number"
	}
	if t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64 {
		return "integer"
	}
	return t.String()
}

// show writes a default as a user would; the zero value of text, lists and pointers is "".
func show(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return ""
		}
		return show(v.Elem())
	case reflect.Slice:
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = show(v.Index(i))
		}
		return strings.Join(parts, ",")
	case reflect.Map:
		if v.Len() == 0 {
			return ""
		}
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		if text, err := m.MarshalText(); err == nil {
			return string(text)
		}
	}
	return fmt.Sprint(v.Interface())
}
