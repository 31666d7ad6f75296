package localsecret

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"strconv"
	"sync"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// maxFileBytes bounds the file, which is held in memory.
const maxFileBytes = 16 << 20

// FileConfig configures a JSON file as a secret store.
type FileConfig struct {
	// SecretsFile is the path of the file. A relative one starts at the sidecar's working
	// directory.
	SecretsFile string `yaml:"secretsFile" required:"true"`
	// NestedSeparator joins the names of nested objects to one.
	NestedSeparator string `yaml:"nestedSeparator"`
	// MultiValued makes each top-level object one secret of several values, instead of one
	// secret for each value in it.
	MultiValued bool `yaml:"multiValued"`
}

// DefaultFileConfig is the configuration without any metadata.
func DefaultFileConfig() *FileConfig { return &FileConfig{NestedSeparator: ":"} }

// NewFile opens a file as a secret store. The file is read at the first use, and only once.
func NewFile(_ block.Env, c *FileConfig) (block.Secret, error) {
	return &file{c: *c}, nil
}

type file struct {
	gate
	c  FileConfig
	mu sync.Mutex // guards secrets
	// secrets is what the file held when it was read; nil before. It does not change.
	secrets map[string]map[string]string
}

var (
	_ block.Secret     = (*file)(nil)
	_ block.SecretMany = (*file)(nil)
)

// ManyValues implements block.SecretMany.
func (f *file) ManyValues() bool { return f.c.MultiValued }

// Ping reads the file, if that has not been done.
func (f *file) Ping(ctx context.Context) error {
	_, err := f.read(ctx, "localsecret.file.Ping")
	return err
}

// Get reads one secret.
func (f *file) Get(ctx context.Context, name string, _ map[string]string) (map[string]string, error) {
	const op fault.Op = "localsecret.file.Get"
	all, err := f.read(ctx, op)
	if err != nil {
		return nil, err
	}
	values, ok := all[name]
	if !ok {
		return nil, fault.New(op, fault.NotFound, "secret %s not found", name)
	}
	return maps.Clone(values), nil
}

// GetAll reads every secret.
func (f *file) GetAll(ctx context.Context, _ map[string]string) (map[string]map[string]string, error) {
	all, err := f.read(ctx, "localsecret.file.GetAll")
	if err != nil {
		return nil, err
	}
	out := make(map[string]map[string]string, len(all))
	for name, values := range all {
		out[name] = maps.Clone(values)
	}
	return out, nil
}

// read gives the secrets of the file. A file that could not be used is tried again.
func (f *file) read(ctx context.Context, op fault.Op) (map[string]map[string]string, error) {
	if err := f.check(ctx, op); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.secrets != nil {
		return f.secrets, nil
	}
	text, err := f.text()
	if err == nil {
		f.secrets, err = parse(text, f.c.NestedSeparator, f.c.MultiValued)
	}
	if err != nil {
		return nil, fault.New(op, fault.Unavailable, "secretsFile %s", f.c.SecretsFile).Because(err)
	}
	return f.secrets, nil
}

// text is the content of the file.
func (f *file) text() ([]byte, error) {
	info, err := os.Stat(f.c.SecretsFile)
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait for ever
		return nil, errors.New("is not a file")
	}
	in, err := os.Open(f.c.SecretsFile)
	if err != nil {
		return nil, cause(err)
	}
	defer func() { _ = in.Close() }() // read only: nothing can be lost
	text, err := io.ReadAll(io.LimitReader(in, maxFileBytes+1))
	if err == nil && len(text) > maxFileBytes {
		err = fmt.Errorf("is larger than %d MiB", maxFileBytes>>20)
	}
	return text, err
}

// cause is the system's reason alone: the path is named already.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// parse turns the text into secrets. Its errors hold nothing of the text, which is secret.
func parse(text []byte, separator string, many bool) (map[string]map[string]string, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // numbers as they are written
	var top map[string]any
	if err := d.Decode(&top); err != nil {
		return nil, unusable(text, d.InputOffset(), err)
	}
	if top == nil {
		return nil, errors.New("is not a JSON object: it holds null")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, unusable(text, d.InputOffset(), errors.New("more follows the object"))
	}
	p := parser{separator: separator, out: map[string]map[string]string{}}
	for name, v := range top {
		if object, ok := v.(map[string]any); ok && many {
			p.out[name] = map[string]string{}
			for key, inner := range object {
				p.leaves(key, inner, func(key, value string) { p.put(name, key, value) })
			}
			continue
		}
		p.leaves(name, v, func(name, value string) { p.put(name, name, value) })
	}
	if p.err != nil {
		return nil, p.err
	}
	return p.out, nil
}

type parser struct {
	separator string
	out       map[string]map[string]string
	err       error
}

// leaves calls put for every value at or below v, by its joined name.
func (p *parser) leaves(name string, v any, put func(name, value string)) {
	switch v := v.(type) {
	case map[string]any:
		for key, inner := range v {
			p.leaves(name+p.separator+key, inner, put)
		}
	case []any:
		for i, inner := range v {
			p.leaves(name+p.separator+strconv.Itoa(i), inner, put)
		}
	case string:
		put(name, v)
	case json.Number:
		put(name, v.String())
	case bool:
		put(name, strconv.FormatBool(v))
	}
}

// put keeps a value. Which of two values of one name is meant cannot be known.
func (p *parser) put(secret, key, value string) {
	values := p.out[secret]
	if values == nil {
		values = map[string]string{}
		p.out[secret] = values
	}
	if _, twice := values[key]; twice {
		p.err = fmt.Errorf("has two values called %q once nested names are joined with %q; rename one, or choose another nestedSeparator", key, p.separator)
	}
	values[key] = value
}

// unusable says on which line the text stops being an object of JSON, and nothing of what stands
// there: the standard library's words quote it.
func unusable(text []byte, offset int64, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("is not a JSON object: it ends too early")
	}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	}
	line := 1 + bytes.Count(text[:min(int(offset), len(text))], []byte("\n"))
	return fmt.Errorf("is not a JSON object: see line %d", line)
}
