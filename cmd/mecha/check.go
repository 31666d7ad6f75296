package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mecha-project/mecha/api/httpapi/middleware"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy/file"
	"github.com/mecha-project/mecha/runtime/settings"
)

// newCheckCommand is `mecha check`: what a sidecar would say about resource files, without
// starting one and without any network. Everything it finds is an error.
//
// Its error, if any, has an ExitCode method; an empty cause means that all has been said.
func newCheckCommand(backends *block.Set) *cobra.Command {
	var folders, configs []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check [-d folder]... [-c file]... [file or folder...]",
		Short: "Check resource files without starting anything",
		Long: `Check reads resource files as a sidecar would and reports everything that is wrong in
them: YAML errors, unknown fields and metadata keys (with the nearest known name), values of
a wrong type, unknown component types, duplicates, references that lead nowhere, traffic
policies that contradict themselves. What is
only a warning at run time is an error here.

It touches no network. Values that come from secrets or from the environment of the sidecar
are not known to it and not judged.`,
		Example: `  mecha check -d ./resources -c ./config.yaml
  mecha check --json store.yaml`,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, files []string) error {
			if len(folders)+len(configs)+len(files) == 0 {
				return &settings.ExitError{Code: 2, Err: errors.New("nothing to check: name resource files, folders with -d, or configuration files with -c")}
			}
			c := checker{backends: backends}
			for _, f := range files {
				if info, err := os.Stat(f); err == nil && info.IsDir() {
					folders = append(folders, f)
				} else {
					c.files([]string{f})
				}
			}
			c.folders(folders)
			c.configurations(configs)
			c.all()
			return c.report(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return &settings.ExitError{Code: 2, Err: err}
	})
	f := cmd.Flags()
	f.StringArrayVarP(&folders, "resources-path", "d", nil, "folder of resource files; may be repeated")
	f.StringArrayVarP(&configs, "config", "c", nil, "configuration file; may be repeated")
	f.BoolVar(&asJSON, "json", false, "write the findings as JSON")
	return cmd
}

// checker collects resources and what is wrong with them.
type checker struct {
	backends *block.Set
	res      settings.Resources // everything read
	found    conf.Findings
	read     int // files
}

func (c *checker) add(r *settings.Resources) {
	c.res.Components = append(c.res.Components, r.Components...)
	c.res.Subscriptions = append(c.res.Subscriptions, r.Subscriptions...)
	c.res.HTTPEndpoints = append(c.res.HTTPEndpoints, r.HTTPEndpoints...)
	c.res.Resiliencies = append(c.res.Resiliencies, r.Resiliencies...)
	c.res.Policies = append(c.res.Policies, r.Policies...)
	c.res.Configurations = append(c.res.Configurations, r.Configurations...)
	c.found = append(c.found, r.Findings...)
}

func (c *checker) folders(dirs []string) {
	for _, dir := range dirs {
		files, err := settings.ListFolder(dir)
		if err != nil {
			c.found = append(c.found, conf.Finding{File: dir, Msg: err.Error()})
			continue
		}
		c.files(files)
	}
}

func (c *checker) files(files []string) {
	for _, f := range files {
		c.read++
		c.add(settings.ParseFile(f))
	}
}

// configurations reads files meant for --config, whose text has variables expanded first.
func (c *checker) configurations(files []string) {
	for _, f := range files {
		c.read++
		cfg, found, err := settings.LoadConfiguration([]string{f}, os.Getenv)
		c.found = append(c.found, found...)
		switch {
		case err == nil:
			c.res.Configurations = append(c.res.Configurations, *cfg)
		case found.Err() == nil: // the file itself, not what is in it
			c.found = append(c.found, conf.Finding{File: f, Msg: err.Error()})
		}
	}
}

// all checks what can be judged only with everything read.
func (c *checker) all() {
	c.found = append(c.found, c.res.DuplicateFindings()...)
	for i := range c.res.Components {
		comp := &c.res.Components[i]
		c.component(comp)
		c.references(comp.Metadata, comp.SecretStore, &comp.Resource)
	}
	for i := range c.res.HTTPEndpoints {
		e := &c.res.HTTPEndpoints[i]
		entries := e.Headers
		if t := e.ClientTLS; t != nil {
			for _, entry := range []*settings.Entry{t.RootCA, t.Certificate, t.PrivateKey} {
				if entry != nil {
					entries = append(slices.Clip(entries), *entry)
				}
			}
		}
		c.references(entries, e.SecretStore, &e.Resource)
	}
	for i := range c.res.Subscriptions {
		c.subscription(&c.res.Subscriptions[i])
	}
	for i := range c.res.Configurations {
		c.configuration(&c.res.Configurations[i])
	}
	c.policies()
}

// policies compiles the traffic policies and Resiliency resources as a sidecar would.
func (c *checker) policies() {
	src := file.Source{Policies: c.res.Policies, Resiliencies: c.res.Resiliencies}
	if len(c.res.Components) > 0 { // else the names in policies cannot be judged
		src.Components = map[call.Kind][]string{}
		for _, kind := range []call.Kind{call.State, call.Publish, call.Secret, call.Lock, call.Config, call.Crypto, call.Binding} {
			src.Components[kind] = implicitNames(kind)
		}
		for i := range c.res.Components {
			switch comp := &c.res.Components[i]; block.Kind(strings.SplitN(comp.LookupType(), ".", 2)[0]) {
			case block.KindState:
				src.Components[call.State] = append(src.Components[call.State], comp.Name)
			case block.KindPubSub:
				src.Components[call.Publish] = append(src.Components[call.Publish], comp.Name)
			case block.KindSecret:
				src.Components[call.Secret] = append(src.Components[call.Secret], comp.Name)
			case block.KindLock:
				src.Components[call.Lock] = append(src.Components[call.Lock], comp.Name)
			case block.KindConfig:
				src.Components[call.Config] = append(src.Components[call.Config], comp.Name)
			case block.KindCrypto:
				src.Components[call.Crypto] = append(src.Components[call.Crypto], comp.Name)
			case block.KindBinding:
				src.Components[call.Binding] = append(src.Components[call.Binding], comp.Name)
			}
		}
	}
	c.found = append(c.found, file.Compile(src).Findings...)
}

// middleware decodes the settings of an HTTP middleware.
func (c *checker) middleware(comp *settings.Component, unknown func(text, nearest string)) {
	f, ok := middleware.Find(comp.LookupType(), comp.Version)
	if !ok {
		unknown(fmt.Sprintf("unknown HTTP middleware %q", comp.Type), conf.Nearest(comp.Type, middleware.Types()))
		return
	}
	items, found := comp.Items(offline())
	c.judge(comp, append(found, conf.Decode(items, f.Config())...))
}

// offline completes metadata without an environment or secrets.
func offline() settings.Expansion {
	return settings.Expansion{AppID: "app", PodName: "pod", Env: unknownVariable,
		Secret: func(_ *settings.Component, ref *settings.SecretRef) (string, error) {
			return unknownValue(ref.Name), nil
		}}
}

// component decodes the metadata into the backend's configuration, as opening it would.
func (c *checker) component(comp *settings.Component) {
	unknown := func(text, nearest string) {
		c.found = append(c.found, conf.Finding{File: comp.File, Line: comp.Line, Key: "spec.type", Msg: text, Nearest: nearest})
	}
	if comp.Category() == "middleware.http" {
		c.middleware(comp, unknown)
		return
	}
	part, ok := c.backends.Find(comp.LookupType(), comp.Version)
	if !ok {
		if _, known := c.backends.Find(comp.LookupType(), ""); known {
			unknown(fmt.Sprintf("%s has no version %q; leave spec.version out or write v1", comp.Type, comp.Version), "")
			return
		}
		unknown(fmt.Sprintf("unknown component type %q (a pluggable component's cannot be checked offline)", comp.Type),
			conf.Nearest(comp.Type, c.backends.Types()))
		return
	}
	items, found := comp.Items(offline())
	config := part.Config()
	found = append(found, conf.Decode(items, config, conf.Also(conf.ServiceKeys(string(part.Kind))...))...)
	c.judge(comp, found)
}

// judge keeps the findings about a component that do not hang on unknown values.
func (c *checker) judge(comp *settings.Component, found conf.Findings) {
	for _, f := range found {
		if !c.unjudged(comp, f) {
			if f.Line == 0 { // a key that is missing has no line of its own
				f.File, f.Line = comp.File, comp.Line
			}
			c.found = append(c.found, f)
		}
	}
}

// unknownValue stands for a value that only the running sidecar knows.
func unknownValue(string) string { return "?" }

// unknownVariable is the sidecar's environment as far as it can be known: every variable has
// a value, and the list of those that may be read is not set.
func unknownVariable(name string) string {
	if name == "DAPR_ENV_KEYS" {
		return ""
	}
	return unknownValue(name)
}

// unjudged tells whether a finding is about a value that stands for an unknown one.
func (c *checker) unjudged(comp *settings.Component, f conf.Finding) bool {
	if f.Severity == conf.Warning || conf.Protective(f.Key) { // about the key, not the value
		return false
	}
	for _, e := range comp.Metadata {
		if strings.EqualFold(e.Name, f.Key) {
			return e.SecretRef != nil || (e.EnvRef != "" && e.Value == "")
		}
	}
	return false
}

// references looks the store of a resource's secrets up among those read, if any were.
func (c *checker) references(entries []settings.Entry, store string, r *settings.Resource) {
	if !slices.ContainsFunc(entries, func(e settings.Entry) bool { return e.SecretRef != nil }) {
		return
	}
	var names []string
	for i := range c.res.Components {
		if block.Kind(c.res.Components[i].Category()) == block.KindSecret {
			names = append(names, c.res.Components[i].Name)
		}
	}
	f := conf.Finding{File: r.File, Line: r.Line, Key: "auth.secretStore"}
	switch {
	case store == "":
		f.Msg = "required with secretKeyRef, but not given"
	case len(names) > 0 && !slices.Contains(names, store):
		f.Msg, f.Nearest = fmt.Sprintf("no secret store is called %q", store), conf.Nearest(store, names)
	default:
		return
	}
	c.found = append(c.found, f)
}

// subscription looks its pub/sub component up among those read, if any were.
func (c *checker) subscription(s *settings.Subscription) {
	var names []string
	for i := range c.res.Components {
		if c.res.Components[i].Category() == "pubsub" {
			names = append(names, c.res.Components[i].Name)
		}
	}
	for _, n := range names {
		if n == s.PubSub {
			return
		}
	}
	if len(names) > 0 {
		c.found = append(c.found, conf.Finding{File: s.File, Line: s.Line, Key: "spec.pubsubname",
			Msg: fmt.Sprintf("no pub/sub component is called %q", s.PubSub), Nearest: conf.Nearest(s.PubSub, names)})
	}
}

// configuration decodes the settings of the name resolver.
func (c *checker) configuration(cfg *settings.Configuration) {
	n := cfg.NameResolution
	if n == nil || n.Component == "" {
		return
	}
	prefix := string(block.KindRegistry) + "."
	part, ok := c.backends.Find(prefix+strings.ToLower(n.Component), n.Version)
	if !ok {
		var names []string
		for _, t := range c.backends.Types() {
			if name, is := strings.CutPrefix(t, prefix); is {
				names = append(names, name)
			}
		}
		c.found = append(c.found, conf.Finding{File: n.File, Line: n.Line, Key: "spec.nameResolution.component",
			Msg: fmt.Sprintf("couldn't find name resolver %s/%s", n.Component, n.Version), Nearest: conf.Nearest(n.Component, names)})
		return
	}
	c.found = append(c.found, conf.Decode(n.Items(), part.Config())...)
}

// jsonFinding is a finding in --json output.
type jsonFinding struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Key     string `json:"key,omitempty"`
	Message string `json:"message"`
	Nearest string `json:"nearest,omitempty"`
}

// report writes the findings in the order of the files, and a summary. The error has the
// exit code.
func (c *checker) report(w io.Writer, asJSON bool) error {
	c.found.Sort()
	var err error
	if asJSON {
		err = c.writeJSON(w)
	} else {
		err = c.writeText(w)
	}
	switch {
	case err != nil:
		return &settings.ExitError{Code: 1, Err: fmt.Errorf("writing the findings: %w", err)}
	case len(c.found) > 0:
		return &settings.ExitError{Code: 1}
	}
	return nil
}

func (c *checker) writeText(w io.Writer) error {
	var b strings.Builder
	for _, f := range c.found {
		if pos := f.Position(); pos != "" {
			b.WriteString(filepath.ToSlash(pos) + ": ")
		}
		b.WriteString(f.Text() + "\n")
	}
	resources := len(c.res.Components) + len(c.res.Subscriptions) + len(c.res.HTTPEndpoints) + len(c.res.Resiliencies) + len(c.res.Policies) + len(c.res.Configurations)
	fmt.Fprintf(&b, "%s in %s with %s\n", count(len(c.found), "finding"), count(c.read, "file"), count(resources, "usable resource"))
	_, err := io.WriteString(w, b.String())
	return err
}

func (c *checker) writeJSON(w io.Writer) error {
	out := make([]jsonFinding, len(c.found))
	for i, f := range c.found {
		out[i] = jsonFinding{File: f.File, Line: f.Line, Key: f.Key, Message: f.Msg, Nearest: f.Nearest}
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(out)
}

// count is "no findings", "1 finding", "2 findings".
func count(n int, what string) string {
	switch n {
	case 0:
		return "no " + what + "s"
	case 1:
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
