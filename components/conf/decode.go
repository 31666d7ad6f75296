package conf

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Decode fills the struct into points at from items and reports everything it finds wrong.
// The struct holds the defaults when Decode is called; keys not given leave them alone.
//
// Fields are matched by their `yaml` tag (else the field name with a small first letter),
// ignoring case. Nested structs are flattened: their fields are keys of the same list.
// Further tags:
//
//	alias:"a,b"      other accepted names
//	unit:"ms"        the unit of a bare number in a duration (ns us ms s m h)
//	required:"true"  a non-empty value must be given
//	enum:"a,b"       the only accepted values, ignoring case; stored as spelt in the tag
//
// Field types: string, Secret, bool, integers, floats, time.Duration, Duration, ByteSize,
// anything with UnmarshalText, slices of these (values separated by commas), map[string]string
// (a JSON object, or k=v pairs separated by commas), and pointers to these for "not given".
// An empty value counts as not given.
//
// An unknown key is a Warning with the nearest known name. A wrong type or value, a key
// given twice and a missing required key are Errors. Then the methods Validate() error of
// the struct and of its nested structs are called, and their errors (joined ones separately)
// become Errors on the line of the key they name; see Bad. The same error twice counts once.
//
// A configuration with a method DecodeItems([]Item) Findings takes the entries itself: which
// keys there are is then known to somebody else.
func Decode(items []Item, into any, opts ...Option) Findings {
	if own, ok := into.(interface{ DecodeItems(items []Item) Findings }); ok {
		return own.DecodeItems(items)
	}
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return Findings{{Msg: fmt.Sprintf("configuration is %T, want a pointer to a struct", into), Severity: Error}}
	}
	d := decoder{fields: fieldsOf(v.Elem(), ""), byName: map[string]*field{}, given: map[*field]Item{}, bad: map[*field]bool{}}
	for _, o := range opts {
		o(&d)
	}
	for _, f := range d.fields {
		for _, n := range f.names() {
			d.byName[strings.ToLower(n)] = f
		}
	}
	for _, it := range items {
		d.item(it)
	}
	d.missing(items)
	d.validate(items, validation(v.Elem()))
	return d.out
}

// Option adjusts Decode.
type Option func(*decoder)

// Also names keys that are known though the struct has no field for them: somebody else
// reads them from the same list. Case does not count.
func Also(keys ...string) Option {
	return func(d *decoder) { d.also = append(d.also, keys...) }
}

type decoder struct {
	fields []*field
	byName map[string]*field
	also   []string
	given  map[*field]Item // the first entry seen for each field
	bad    map[*field]bool // fields with an Error already
	out    Findings
}

func (d *decoder) add(it Item, sev Severity, format string, args ...any) {
	d.out = append(d.out, Finding{File: it.File, Line: it.Line, Key: it.Name, Severity: sev, Msg: fmt.Sprintf(format, args...)})
}

func (d *decoder) item(it Item) {
	f := d.byName[strings.ToLower(it.Name)]
	if f == nil {
		d.unknown(it)
		return
	}
	if first, dup := d.given[f]; dup {
		d.bad[f] = true
		where := ""
		if first.Line > 0 {
			where = fmt.Sprintf(" (first on line %d)", first.Line)
		}
		if strings.EqualFold(first.Name, it.Name) {
			d.add(it, Error, "given twice%s; keep one", where)
		} else {
			d.add(it, Error, "means the same as %s, which is given too%s; keep one", first.Name, where)
		}
		return
	}
	d.given[f] = it
	if it.Value == "" {
		return
	}
	if err := f.set(f.value, it.Value); err != nil {
		d.bad[f] = true
		if it.Secret || holdsSecret(f.value.Type()) {
			d.add(it, Error, "the secret value is not %s", f.wants(f.value.Type()))
			return
		}
		d.add(it, Error, "%s", err)
	}
}

func (d *decoder) unknown(it Item) {
	if slices.ContainsFunc(d.also, func(k string) bool { return strings.EqualFold(k, it.Name) }) {
		return
	}
	if it.Name == "" {
		d.add(it, Error, "an entry has no name")
		return
	}
	d.add(it, Warning, "unknown key, ignored")
	d.out[len(d.out)-1].Nearest = Nearest(it.Name, d.known())
}

func (d *decoder) known() []string {
	var names []string
	for _, f := range d.fields {
		names = append(names, f.name)
	}
	for _, f := range d.fields {
		names = append(names, f.aliases...)
	}
	return append(names, d.also...)
}

// missing reports required keys without a value, on the line of the key, else at the file.
func (d *decoder) missing(items []Item) {
	for _, f := range d.fields {
		it, given := d.given[f]
		if !f.required || it.Value != "" {
			continue
		}
		if !given {
			it = Item{Name: f.name}
			if len(items) > 0 {
				it.File = items[0].File
			}
		}
		d.bad[f] = true
		d.add(it, Error, "required, but not given")
	}
}

// validation calls Validate on the struct v and on the structs in it, outermost first.
func validation(v reflect.Value) error {
	var errs []error
	if val, ok := v.Addr().Interface().(interface{ Validate() error }); ok {
		errs = append(errs, val.Validate())
	}
	for i := range v.NumField() {
		if sf := v.Type().Field(i); sf.IsExported() && sf.Type.Kind() == reflect.Struct {
			errs = append(errs, validation(v.Field(i)))
		}
	}
	return errors.Join(errs...)
}

// validate places a Validate method's errors. One about a key that is wrong already is
// dropped: it would only judge the default left in place.
func (d *decoder) validate(items []Item, err error) {
	for _, e := range flatten(err) {
		finding := Finding{Msg: e.Error(), Severity: Error}
		if len(items) > 0 {
			finding.File = items[0].File
		}
		key := ""
		if fe, ok := errors.AsType[*FieldError](e); ok {
			key, finding.Key, finding.Msg = fe.Key, fe.Key, fe.Msg
		} else {
			key, _, _ = strings.Cut(e.Error(), ":")
		}
		if f := d.byName[strings.ToLower(key)]; f != nil {
			if d.bad[f] {
				continue
			}
			if it, given := d.given[f]; given {
				finding.File, finding.Line = it.File, it.Line
			}
			finding.Msg = strings.TrimSpace(strings.TrimPrefix(finding.Msg, key+":"))
			finding.Key = key
		}
		if !slices.Contains(d.out, finding) {
			d.out = append(d.out, finding)
		}
	}
}

func holdsSecret(t reflect.Type) bool {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	return t == typeSecret
}
