package settings

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mecha-project/mecha/components/conf"
)

// Selection says which resources concern a sidecar.
type Selection struct {
	AppID string // empty means every app
	// Namespace is the NAMESPACE variable as it is; when empty, namespaces do not count.
	Namespace string
}

// LoadResources reads every *.yaml and *.yml file of the folders, in their order, and keeps
// the resources meant for the selected app. Sub-folders are not read. Documents that cannot
// be used are left out and reported in Findings; the others of the same file are loaded.
//
// It fails when a folder cannot be read and when two components that concern the same app
// have one name.
func LoadResources(folders []string, sel Selection) (*Resources, error) {
	files, err := listFolders(folders)
	if err != nil {
		return nil, err
	}
	var parsed []*Resources
	for _, f := range files {
		parsed = append(parsed, ParseFile(f))
	}
	out := assemble(parsed, sel)
	return out, out.duplicates()
}

// ParseFile reads the resources of one file, whoever they are for. A file that cannot be read
// is an Error finding.
func ParseFile(path string) *Resources {
	data, err := readFile(path)
	if err != nil {
		return &Resources{Findings: conf.Findings{{File: path, Msg: "cannot be read: " + cause(err), Severity: conf.Error}}}
	}
	return ParseResources(path, data)
}

// listFolders names the resource files of the folders.
func listFolders(folders []string) ([]string, error) {
	var out []string
	for _, dir := range folders {
		files, err := ListFolder(dir)
		if err != nil {
			return nil, err
		}
		out = append(out, files...)
	}
	return out, nil
}

// ListFolder names the resource files of a folder in the order they are read: *.yaml and
// *.yml, regular files or links to them, sorted by name.
func ListFolder(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("failed to create watcher for resources path %q: %s; --resources-path wants an existing folder", dir, cause(err))
	}
	var out []string
	for _, e := range entries { // sorted by name
		path := filepath.Join(dir, e.Name())
		if !IsResourceFile(path) {
			continue
		}
		// Stat follows links, which is how mounted folders present files. Only regular files:
		// opening a pipe would wait for ever.
		if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
			continue
		}
		out = append(out, path)
	}
	return out, nil
}

// IsResourceFile tells whether a file name has a resource file's ending.
func IsResourceFile(name string) bool {
	ext := strings.ToLower(filepath.Ext(name))
	return ext == ".yaml" || ext == ".yml"
}

// readFile reads a resource file of bounded size.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only: nothing can be lost
	return io.ReadAll(io.LimitReader(f, maxFileBytes+1))
}

// cause is the system's reason alone, for messages that name the path themselves.
func cause(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// assemble joins the resources of several files and keeps those that concern the selection.
func assemble(files []*Resources, sel Selection) *Resources {
	out := &Resources{}
	for _, f := range files {
		out.Findings = append(out.Findings, f.Findings...)
		out.Ignored = append(out.Ignored, f.Ignored...)
		out.Refused = append(out.Refused, f.Refused...)
		for i := range f.Components {
			pick(&out.Components, f.Components[i], &f.Components[i].Resource, sel)
		}
		for i := range f.Subscriptions {
			pick(&out.Subscriptions, f.Subscriptions[i], &f.Subscriptions[i].Resource, sel)
		}
		for i := range f.HTTPEndpoints {
			pick(&out.HTTPEndpoints, f.HTTPEndpoints[i], &f.HTTPEndpoints[i].Resource, sel)
		}
		for i := range f.Resiliencies {
			pick(&out.Resiliencies, f.Resiliencies[i], &f.Resiliencies[i].Resource, sel)
		}
		for i := range f.Policies {
			pick(&out.Policies, f.Policies[i], &f.Policies[i].Resource, sel)
		}
		for i := range f.Configurations {
			pick(&out.Configurations, f.Configurations[i], &f.Configurations[i].Resource, Selection{})
		}
	}
	return out
}

func pick[T any](list *[]T, v T, r *Resource, sel Selection) {
	if r.AppliesTo(sel.AppID, sel.Namespace) {
		*list = append(*list, v)
	}
}

// duplicates reports the first two components that share a name and an app.
func (r *Resources) duplicates() error {
	for _, d := range r.DuplicateFindings() {
		if d.Severity == conf.Error {
			if d.Key != "" { // its words need their place
				return errors.New(d.String())
			}
			return errors.New(d.Msg)
		}
	}
	return nil
}

// DuplicateFindings reports resources of one kind that share a name and an app: Errors for
// components and traffic policies, warnings for HTTP endpoints, of which the first counts.
func (r *Resources) DuplicateFindings() conf.Findings {
	var found conf.Findings
	for i := range r.Components {
		for j := range i {
			a, b := &r.Components[j], &r.Components[i]
			if a.Name == b.Name && a.overlaps(&b.Resource) {
				found = append(found, conf.Finding{File: b.File, Line: b.Line, Severity: conf.Error, Msg: fmt.Sprintf(
					"failed to load components: duplicate definition of Component name %s with existing %s", b.LogName(), a.LogName())})
				break
			}
		}
	}
	for i := range r.HTTPEndpoints {
		for j := range i {
			a, b := &r.HTTPEndpoints[j], &r.HTTPEndpoints[i]
			if a.Name == b.Name && a.overlaps(&b.Resource) {
				found = append(found, conf.Finding{File: b.File, Line: b.Line, Key: "metadata.name",
					Msg: fmt.Sprintf("another HTTPEndpoint is called %q (%s:%d); the first counts", b.Name, a.File, a.Line)})
				break
			}
		}
	}
	for i := range r.Policies {
		for j := range i {
			a, b := &r.Policies[j], &r.Policies[i]
			if a.Name == b.Name && a.overlaps(&b.Resource) {
				found = append(found, conf.Finding{File: b.File, Line: b.Line, Key: "metadata.name", Severity: conf.Error,
					Msg: fmt.Sprintf("another TrafficPolicy is called %q (%s:%d)", b.Name, a.File, a.Line)})
				break
			}
		}
	}
	return found
}
