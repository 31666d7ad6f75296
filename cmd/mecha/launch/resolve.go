package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// FromTemplate makes Options of the run file called name: a file, a directory with a
// dapr.yaml, or "-" for stdin. The caller adds what is not the template's to say (Grace,
// Stdout, LogAsJSON). Findings are returned together, each with file and line.
func FromTemplate(name string, stdin io.Reader) (Options, error) {
	data, dir, path, err := readTemplate(name, stdin)
	if err != nil {
		return Options{}, err
	}
	t, err := parseTemplate(path, data)
	if err != nil {
		return Options{}, err
	}
	home, _ := os.UserHomeDir() // without one its defaults do not exist either
	r := resolver{path: path, dir: dir, home: home}
	o := Options{Multi: true, TemplatePath: path, TemplateName: t.Name}
	if t.Name == "" {
		o.TemplateName = filepath.Base(dir)
	}
	for i := range t.Apps {
		o.Apps = append(o.Apps, r.app(t, &t.Apps[i]))
	}
	r.uniqueIDs(t, o.Apps)
	o.Warnings = r.warnings
	return o, errors.Join(r.errs...)
}

// resolver turns a template's entries into apps: defaults, merging, and paths made absolute.
type resolver struct {
	path, dir, home string
	warnings        []string
	errs            []error
}

func (r *resolver) fail(line int, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%s:%d: %s", r.path, line, fmt.Sprintf(format, args...)))
}

func (r *resolver) app(t *template, ta *templateApp) *App {
	a := &App{
		Dir: r.existing(ta.line, "appDirPath", ta.AppDirPath, r.dir), Command: ta.Command,
		AppPort: ta.AppPort, ChannelAddress: ta.AppChannelAddress,
		HTTPPort: ta.DaprHTTPPort, GRPCPort: ta.DaprGRPCPort, InternalPort: ta.DaprInternalGRPCPort,
		MetricsPort: ta.MetricsPort, ProfilePort: ta.ProfilePort,
		Shared: ta.Shared,
	}
	if ta.UnixDomainSocket != "" {
		a.UnixSocketDir = r.absolute(ta.UnixDomainSocket, a.Dir)
	}
	a.ID = ta.AppID
	if a.ID == "" {
		a.ID = cleanAppID(filepath.Base(a.Dir))
	}
	a.merge(&t.Common)
	a.ResourcesPaths = r.resources(t, ta, a.Dir)
	a.ConfigFilePath = r.config(t, ta, a.Dir)
	if a.DaprdLogDestination == "" {
		a.DaprdLogDestination = ToFile
	}
	if a.AppLogDestination == "" {
		a.AppLogDestination = ToFileAndConsole
	}
	if err := a.check(); err != nil {
		r.fail(ta.line, "%v", err)
	}
	r.ignored(ta, a)
	return a
}

// ignored warns about keys that mean something only elsewhere.
func (r *resolver) ignored(ta *templateApp, a *App) {
	warn := func(key, why string) {
		r.warnings = append(r.warnings, fmt.Sprintf("%s:%d: %s of app %q is ignored: %s", r.path, ta.line, key, a.ID, why))
	}
	for key, set := range map[string]bool{
		"containerImage": ta.ContainerImage != "", "containerImagePullPolicy": ta.ContainerImagePullPolicy != "",
		"createService": ta.CreateService,
	} {
		if set {
			warn(key, "it is for Kubernetes, and mecha run starts processes on this machine")
		}
	}
	if a.RuntimePath != "" {
		warn("runtimePath", "the sidecar is in this very program")
	}
	slices.Sort(r.warnings)
}

// resources are the directories of the first place that has any: the app's keys, the app's
// .dapr/resources, the common keys, the user's .dapr/components.
func (r *resolver) resources(t *template, ta *templateApp, appDir string) []string {
	if paths := ta.resources(); len(paths) > 0 {
		return r.allExisting(ta.line, paths, appDir)
	}
	if dir := filepath.Join(appDir, ".dapr", "resources"); exists(dir) {
		return []string{dir}
	}
	if paths := t.Common.resources(); len(paths) > 0 {
		return r.allExisting(1, paths, r.dir)
	}
	return defaultResources(r.home)
}

func (r *resolver) config(t *template, ta *templateApp, appDir string) string {
	if ta.ConfigFilePath != "" {
		return r.existing(ta.line, "configFilePath", ta.ConfigFilePath, appDir)
	}
	if file := filepath.Join(appDir, ".dapr", "config.yaml"); exists(file) {
		return file
	}
	if t.Common.ConfigFilePath != "" {
		return r.existing(1, "configFilePath", t.Common.ConfigFilePath, r.dir)
	}
	return defaultConfig(r.home)
}

// resources joins the two spellings.
func (s *Shared) resources() []string {
	if s.ResourcesPath == "" {
		return s.ResourcesPaths
	}
	return append(slices.Clone(s.ResourcesPaths), s.ResourcesPath)
}

func defaultResources(home string) []string {
	if dir := filepath.Join(home, ".dapr", "components"); home != "" && exists(dir) {
		return []string{dir}
	}
	return nil
}

func defaultConfig(home string) string {
	if file := filepath.Join(home, ".dapr", "config.yaml"); home != "" && exists(file) {
		return file
	}
	return ""
}

func (r *resolver) allExisting(line int, paths []string, base string) []string {
	out := make([]string, len(paths))
	for i, p := range paths {
		out[i] = r.existing(line, "resourcesPaths", p, base)
	}
	return out
}

// existing is absolute for a path that must be there.
func (r *resolver) existing(line int, key, path, base string) string {
	abs := r.absolute(path, base)
	if _, err := os.Stat(abs); err != nil {
		r.fail(line, "%s: %s does not exist or cannot be read (written %q, taken relative to %s)", key, abs, path, base)
	}
	return abs
}

// absolute expands a leading ~ and takes a relative path from base.
func (r *resolver) absolute(path, base string) string {
	if rest, ok := strings.CutPrefix(path, "~"); ok && r.home != "" && (rest == "" || os.IsPathSeparator(rest[0])) {
		return filepath.Join(r.home, rest)
	}
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(base, path)
}

func (r *resolver) uniqueIDs(t *template, apps []*App) {
	first := map[string]int{}
	for i, a := range apps {
		if line, ok := first[a.ID]; ok {
			r.fail(t.Apps[i].line, "app id %q is taken by the app at line %d; give one of them another appID", a.ID, line)
			continue
		}
		first[a.ID] = t.Apps[i].line
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
