package conf

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// set writes text into v as v's type asks. On error v is unchanged.
func (f *field) set(v reflect.Value, text string) error {
	t := v.Type()
	switch t {
	case typeDuration, typeConfDur:
		d, err := ParseDuration(text, f.unit)
		if err == nil {
			v.SetInt(int64(d))
		}
		return err
	}
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		fresh := reflect.New(t)
		u := fresh.Interface().(encoding.TextUnmarshaler)
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return err
		}
		v.Set(fresh.Elem())
		return nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		fresh := reflect.New(t.Elem())
		if err := f.set(fresh.Elem(), text); err != nil {
			return err
		}
		v.Set(fresh)
		return nil
	case reflect.Slice:
		return f.setSlice(v, text)
	case reflect.Map:
		return f.setMap(v, text)
	}
	return f.setScalar(v, text)
}

func (f *field) setScalar(v reflect.Value, text string) error {
	wrong := func() error { return fmt.Errorf("%s is not %s", quote(text), f.wants(v.Type())) }
	trimmed := strings.TrimSpace(text)
	switch v.Kind() {
	case reflect.String:
		if len(f.enum) == 0 {
			v.SetString(text)
			return nil
		}
		for _, e := range f.enum {
			if strings.EqualFold(e, trimmed) {
				v.SetString(e)
				return nil
			}
		}
		return wrong()
	case reflect.Bool:
		b, err := ParseBool(text)
		if err != nil {
			return err
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(trimmed, 10, v.Type().Bits())
		if err != nil {
			return wrong()
		}
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(trimmed, 10, v.Type().Bits())
		if err != nil {
			return wrong()
		}
		v.SetUint(n)
	case reflect.Float32, reflect.Float64:
		n, err := strconv.ParseFloat(trimmed, v.Type().Bits())
		if err != nil {
			return wrong()
		}
		v.SetFloat(n)
	default:
		return fmt.Errorf("cannot be set: fields of type %s have no text form", v.Type())
	}
	return nil
}

func (f *field) setSlice(v reflect.Value, text string) error {
	parts := csv(text)
	out := reflect.MakeSlice(v.Type(), len(parts), len(parts))
	for i, p := range parts {
		if err := f.set(out.Index(i), p); err != nil {
			return err
		}
	}
	v.Set(out)
	return nil
}

// setMap reads {"k":"v"} or k=v,k=v into a map of strings.
func (f *field) setMap(v reflect.Value, text string) error {
	wrong := fmt.Errorf("%s is not %s", quote(text), f.wants(v.Type()))
	m := map[string]string{}
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		if json.Unmarshal([]byte(text), &m) != nil {
			return wrong
		}
	} else {
		for _, pair := range csv(text) {
			key, value, ok := strings.Cut(pair, "=")
			if !ok {
				return wrong
			}
			m[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	got := reflect.ValueOf(m)
	if !got.Type().ConvertibleTo(v.Type()) {
		return fmt.Errorf("cannot be set: only maps of strings have a text form, not %s", v.Type())
	}
	v.Set(got.Convert(v.Type()))
	return nil
}

// ParseBool reads a truth value as Dapr's users write it: true, t, yes, y, on, 1 and
// false, f, no, n, off, 0, ignoring case and blanks around.
func ParseBool(text string) (bool, error) {
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "true", "t", "yes", "y", "on", "1":
		return true, nil
	case "false", "f", "no", "n", "off", "0":
		return false, nil
	}
	return false, fmt.Errorf("%s is not true or false", quote(text))
}

// wants says what a value of type t looks like, for messages and reference pages.
func (f *field) wants(t reflect.Type) string {
	switch t {
	case typeDuration, typeConfDur:
		if f.unitName != "" {
			return "a duration like 30s (a bare number counts " + f.unitName + ")"
		}
		return "a duration like 30s"
	case typeByteSize:
		return "a size like 4Mi"
	case typeSecret:
		return "text"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return f.wants(t.Elem())
	case reflect.Slice:
		return "a comma-separated list, each " + f.wants(t.Elem())
	case reflect.Map:
		return `a JSON object of strings or k=v pairs separated by commas`
	case reflect.String:
		if len(f.enum) > 0 {
			return "one of " + strings.Join(f.enum, ", ")
		}
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		return fmt.Sprintf("a whole number from 0 to %d", ^uint64(0)>>(64-t.Bits()))
	case reflect.Int8, reflect.Int16, reflect.Int32:
		top := int64(1)<<(t.Bits()-1) - 1
		return fmt.Sprintf("a whole number from %d to %d", -top-1, top)
	case reflect.Int, reflect.Int64:
		return "a whole number"
	}
	return "a valid " + t.String()
}
