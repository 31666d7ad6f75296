package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// templateFile is the name looked for when the run file is a directory.
const templateFile = "dapr.yaml"

// maxTemplate bounds a run template, in bytes.
const maxTemplate = 1 << 20

// template is a run template as it is written.
type template struct {
	Version int           `yaml:"version"`
	Name    string        `yaml:"name"`
	Common  Shared        `yaml:"common"`
	Apps    []templateApp `yaml:"apps"`
}

// templateApp is one entry of `apps`.
type templateApp struct {
	AppID                    string   `yaml:"appID"`
	AppDirPath               string   `yaml:"appDirPath"`
	AppPort                  int      `yaml:"appPort"`
	AppChannelAddress        string   `yaml:"appChannelAddress"`
	DaprHTTPPort             int      `yaml:"daprHTTPPort"`
	DaprGRPCPort             int      `yaml:"daprGRPCPort"`
	DaprInternalGRPCPort     int      `yaml:"daprInternalGRPCPort"`
	ProfilePort              int      `yaml:"profilePort"`
	MetricsPort              int      `yaml:"metricsPort"`
	UnixDomainSocket         string   `yaml:"unixDomainSocket"`
	Command                  []string `yaml:"command"`
	ContainerImage           string   `yaml:"containerImage"`
	ContainerImagePullPolicy string   `yaml:"containerImagePullPolicy"`
	CreateService            bool     `yaml:"createService"`
	Shared                   `yaml:",inline"`

	line int // where the entry starts
}

// readTemplate reads the run file called name: a file, a directory with a dapr.yaml, or "-"
// for stdin. It also returns the directory that the template's paths are relative to and the
// path to show.
func readTemplate(name string, stdin io.Reader) (data []byte, dir, path string, err error) {
	if name == "-" {
		if dir, err = os.Getwd(); err != nil {
			return nil, "", "", err
		}
		data, err = io.ReadAll(io.LimitReader(stdin, maxTemplate+1))
		path = "stdin"
	} else {
		if path, err = filepath.Abs(name); err != nil {
			return nil, "", "", err
		}
		if info, statErr := os.Stat(path); statErr == nil && info.IsDir() {
			path = filepath.Join(path, templateFile)
		}
		dir = filepath.Dir(path)
		var f *os.File
		if f, err = os.Open(path); err == nil {
			data, err = io.ReadAll(io.LimitReader(f, maxTemplate+1))
			f.Close()
		}
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, "", "", fmt.Errorf("read the run file: there is no %s; name a run template, or a directory with a %s", path, templateFile)
	case err != nil:
		return nil, "", "", fmt.Errorf("read the run file %s: %w", path, err)
	case len(data) > maxTemplate:
		return nil, "", "", fmt.Errorf("the run file %s is larger than %d bytes; is it a run template?", path, maxTemplate)
	}
	return data, dir, path, nil
}

// parseTemplate decodes a run template strictly: an unknown or repeated key, a wrong type and
// a missing part are errors that name the line, all of them together.
func parseTemplate(path string, data []byte) (*template, error) {
	d := decoder{path: path}
	var doc, more yaml.Node
	y := yaml.NewDecoder(strings.NewReader(string(data)))
	switch err := y.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s is empty; a run template has version: 1 and a list of apps", path)
	case err != nil:
		return nil, fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if y.Decode(&more) == nil {
		d.add(more.Line, "a run template is one document; remove what follows the second ---")
	}
	var t template
	d.mapping(doc.Content[0], reflect.ValueOf(&t).Elem(), "the run template")
	if len(d.errs) == 0 {
		d.validate(&t)
	}
	return &t, errors.Join(d.errs...)
}

func (d *decoder) validate(t *template) {
	if t.Version != 1 {
		d.add(1, "version is %d; version: 1 is the only one there is, and it is required", t.Version)
	}
	if len(t.Apps) == 0 {
		d.add(1, "apps is empty; list at least one app with its appDirPath")
	}
	for i := range t.Apps {
		if a := &t.Apps[i]; a.AppDirPath == "" {
			d.add(a.line, "an app needs appDirPath: the directory it runs in, relative to this file")
		}
	}
}

// decoder fills structs from YAML nodes by the structs' yaml tags and collects findings.
type decoder struct {
	path string
	errs []error
}

func (d *decoder) add(line int, format string, args ...any) {
	d.errs = append(d.errs, fmt.Errorf("%s:%d: %s", d.path, line, fmt.Sprintf(format, args...)))
}

// mapping decodes n into the struct v; what names it in messages.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, what string) {
	fields := map[string]reflect.Value{}
	tagged(v, fields)
	d.merge(n, fields, what, 0)
}

// merge is mapping for a node whose keys may come from a YAML merge (<<) too. The keys written
// out win, so they are taken last.
func (d *decoder) merge(n *yaml.Node, fields map[string]reflect.Value, what string, depth int) {
	n = aliased(n)
	if n.Kind != yaml.MappingNode {
		d.add(n.Line, "%s must be a mapping of keys to values, not %s", what, describe(n))
		return
	}
	if depth > 4 {
		d.add(n.Line, "%s merges too deeply; write the keys out", what)
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Tag == "!!merge" {
			d.merge(n.Content[i+1], fields, what, depth+1)
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], aliased(n.Content[i+1])
		if key.Tag == "!!merge" {
			continue
		}
		field, known := fields[key.Value]
		switch {
		case !known:
			d.add(key.Line, "%s has no key %q%s", what, key.Value, didYouMean(key.Value, sortedKeys(fields)))
		case seen[key.Value]:
			d.add(key.Line, "%q is given twice in %s; remove one", key.Value, what)
		case value.Tag == "!!null": // not said
		default:
			d.value(key, value, field)
		}
		seen[key.Value] = true
	}
}

func (d *decoder) value(key, n *yaml.Node, field reflect.Value) {
	switch target := field.Addr().Interface().(type) {
	case *Shared:
		d.mapping(n, field, key.Value)
	case *[]templateApp:
		if n.Kind != yaml.SequenceNode {
			d.add(n.Line, "apps must be a list, not %s", describe(n))
			return
		}
		for _, item := range n.Content {
			app := templateApp{line: item.Line}
			d.mapping(item, reflect.ValueOf(&app).Elem(), "an app")
			*target = append(*target, app)
		}
	default:
		if err := n.Decode(target); err != nil {
			d.add(n.Line, "%s must be %s, not %s", key.Value, wanted(field.Type()), describe(n))
		}
	}
}

// tagged maps yaml keys to the fields of v, those of inlined structs included.
func tagged(v reflect.Value, into map[string]reflect.Value) {
	for i := range v.NumField() {
		switch tag := v.Type().Field(i).Tag.Get("yaml"); tag {
		case "":
		case ",inline":
			tagged(v.Field(i), into)
		default:
			into[tag] = v.Field(i)
		}
	}
}

func sortedKeys(m map[string]reflect.Value) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// aliased follows an alias to what it stands for.
func aliased(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	if len(n.Value) > 40 {
		return strconv.Quote(n.Value[:40]) + "…"
	}
	return strconv.Quote(n.Value)
}

func wanted(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Int:
		return "a whole number"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return `a list, such as ["python3", "app.py"]`
	case reflect.Map:
		return "a mapping of names to values"
	}
	return "text"
}
