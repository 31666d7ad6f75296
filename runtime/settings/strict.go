package settings

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/mecha-project/mecha/components/conf"
)

// Text is a metadata value: any scalar as text, a list or mapping as JSON.
type Text string

// strict decodes YAML nodes into tagged structs and reports every field it does not know
// and every value that does not fit, with its line. Field names match ignoring case, as in
// the JSON decoding existing resources were written for.
//
// Struct rules: `yaml:"name"` names a field, "-" hides it; anonymous structs tagged
// `yaml:",inline"` are inlined, untagged ones skipped;
// a hidden field Line int receives the mapping's line, a hidden field File string the file.
type strict struct {
	file  string
	found conf.Findings
	// own is set for our own kinds, where a field that is not known is an error: a policy that
	// is silently not applied protects nobody.
	own bool
}

var (
	typeText     = reflect.TypeFor[Text]()
	typeDuration = reflect.TypeFor[time.Duration]()
	typeMeta     = reflect.TypeFor[meta]()
)

func (s *strict) add(sev conf.Severity, line int, key, format string, args ...any) {
	s.found = append(s.found, conf.Finding{File: s.file, Line: line, Key: key, Severity: sev, Msg: fmt.Sprintf(format, args...)})
}

// decode fills v from n. An explicit null leaves v as it is. path is the key for findings.
func (s *strict) decode(n *yaml.Node, v reflect.Value, path string) {
	t := v.Type()
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	switch t {
	case typeText, typePolicyD:
		v.SetString(valueText(n))
		return
	case typeDuration:
		s.duration(n, v, path)
		return
	}
	if text, ok := scalarText(n); ok && v.CanAddr() {
		if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
			if err := u.UnmarshalText([]byte(text)); err != nil {
				s.add(conf.Error, n.Line, path, "%s", err)
			}
			return
		}
	}
	switch t.Kind() {
	case reflect.Pointer:
		fresh := reflect.New(t.Elem())
		s.decode(n, fresh.Elem(), path)
		v.Set(fresh)
	case reflect.Struct:
		s.object(n, v, path)
	case reflect.Slice:
		s.list(n, v, path)
	case reflect.Map:
		s.mapping(n, v, path)
	case reflect.Interface:
		if x := reflect.ValueOf(anyOf(n)); x.IsValid() {
			v.Set(x)
		}
	default:
		s.scalar(n, v, path)
	}
}

func (s *strict) scalar(n *yaml.Node, v reflect.Value, path string) {
	text, ok := scalarText(n)
	if !ok {
		s.add(conf.Error, n.Line, path, "want one value, got %s", nameNode(n))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, ok := boolOf(n)
		if _, quoted := booleans11[n.Value]; !ok && quoted {
			s.add(conf.Error, n.Line, path, "want true or false, got text in quotes; remove the quotes")
			return
		}
		if !ok {
			s.add(conf.Error, n.Line, path, "want true or false, got %s", nameNode(n))
			return
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil || n.Tag != "!!int" {
			s.add(conf.Error, n.Line, path, "want a whole number, got %s", nameNode(n))
			return
		}
		v.SetInt(i)
	case reflect.Float64:
		x, err := strconv.ParseFloat(text, 64)
		if err != nil || (n.Tag != "!!int" && n.Tag != "!!float") || math.IsNaN(x) || math.IsInf(x, 0) {
			s.add(conf.Error, n.Line, path, "want a number, got %s", nameNode(n))
			return
		}
		v.SetFloat(x)
	default:
		s.add(conf.Error, n.Line, path, "fields of type %s cannot be read", v.Type())
	}
}

func (s *strict) duration(n *yaml.Node, v reflect.Value, path string) {
	text, ok := scalarText(n)
	if !ok {
		s.add(conf.Error, n.Line, path, "want a duration like 5s, got %s", nameNode(n))
		return
	}
	d, err := conf.ParseDuration(text, 0)
	if err != nil {
		s.add(conf.Error, n.Line, path, "%s", err)
		return
	}
	v.SetInt(int64(d))
}

func (s *strict) list(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		s.add(conf.Error, n.Line, path, "want a list, got %s", nameNode(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		s.decode(c, out.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
	v.Set(out)
}

func (s *strict) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		s.add(conf.Error, n.Line, path, "want a mapping, got %s", nameNode(n))
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := textOf(n.Content[i]), reflect.New(v.Type().Elem()).Elem()
		s.decode(n.Content[i+1], value, join(path, key))
		k := reflect.ValueOf(key)
		if out.MapIndex(k).IsValid() {
			s.add(conf.Warning, n.Content[i].Line, join(path, key), "given twice; the last one counts")
		}
		out.SetMapIndex(k, value)
	}
	v.Set(out)
}

func (s *strict) object(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		s.add(conf.Error, n.Line, path, "want a mapping, got %s", nameNode(n))
		return
	}
	fields, names := map[string]reflect.Value{}, []string(nil)
	s.fields(n, v, fields, &names)
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := textOf(n.Content[i])
		lower := strings.ToLower(name)
		f, known := fields[lower]
		if !known { // a key like on, which YAML 1.1 takes for true
			name, lower = n.Content[i].Value, strings.ToLower(n.Content[i].Value)
			f, known = fields[lower]
		}
		switch {
		case !known && v.Type() == typeMeta: // Kubernetes keeps more there than we need
		case !known:
			sev, msg := conf.Warning, "unknown field, ignored"
			if s.own {
				sev, msg = conf.Error, "unknown field"
			}
			s.add(sev, n.Content[i].Line, join(path, name), "%s", msg)
			s.found[len(s.found)-1].Nearest = conf.Nearest(name, names)
		default:
			if seen[lower] {
				sev := conf.Warning
				if s.own {
					sev = conf.Error
				}
				s.add(sev, n.Content[i].Line, join(path, name), "given twice; the last one counts")
				f.SetZero()
			}
			seen[lower] = true
			s.decode(n.Content[i+1], f, join(path, name))
		}
	}
}

// fields maps lower-case names to the fields of v, inlining anonymous structs, and fills
// the position fields.
func (s *strict) fields(n *yaml.Node, v reflect.Value, into map[string]reflect.Value, names *[]string) {
	for i := range v.NumField() {
		sf, fv := v.Type().Field(i), v.Field(i)
		tag := sf.Tag.Get("yaml")
		switch {
		case tag == "-" && sf.Name == "Line":
			fv.SetInt(int64(n.Line))
		case tag == "-" && sf.Name == "File":
			fv.SetString(s.file)
		case tag == "-" || (sf.Anonymous && tag == ""):
		case sf.Anonymous:
			s.fields(n, fv, into, names)
		default:
			into[strings.ToLower(tag)] = fv
			*names = append(*names, tag)
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
