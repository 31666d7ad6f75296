package settings

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/mecha-project/mecha/components/conf"
)

// defaultInitTimeout bounds a component's initialisation when the resource does not.
const defaultInitTimeout = 5 * time.Second

// Component is a Component resource: one configured, named instance of a backend's block.
type Component struct {
	Resource
	Type         string        // as written: "state.redis"
	Version      string        // as written; "", "v0" and "v1" mean the same
	InitTimeout  time.Duration // 5s unless written otherwise
	IgnoreErrors bool          // a failing component is left out instead of stopping the sidecar
	Metadata     []Entry       // as written; see Items
	SecretStore  string        // where secretKeyRef looks; empty means none is named
}

// Entry is one metadata entry as written: a value, or a reference to one.
type Entry struct {
	Name      string     `yaml:"name"`
	Value     Text       `yaml:"value"`
	SecretRef *SecretRef `yaml:"secretKeyRef"`
	EnvRef    string     `yaml:"envRef"` // a variable of the sidecar's environment
	File      string     `yaml:"-"`
	Line      int        `yaml:"-"`
}

// SecretRef names a value in a secret store.
type SecretRef struct {
	Name string `yaml:"name"`
	Key  string `yaml:"key"` // empty in the file means the same as Name; never empty here
}

type componentDoc struct {
	head `yaml:",inline"`
	Spec struct {
		Type         string  `yaml:"type"`
		Version      string  `yaml:"version"`
		InitTimeout  string  `yaml:"initTimeout"`
		IgnoreErrors bool    `yaml:"ignoreErrors"`
		Metadata     []Entry `yaml:"metadata"`
		Line         int     `yaml:"-"`
	} `yaml:"spec"`
	Auth auth `yaml:"auth"`
}

func readComponent(d document) (Component, conf.Findings, bool) {
	timeout := defaultInitTimeout
	doc, found, ok := read(d, func(c *componentDoc, s *strict) {
		s.named(&c.head)
		if c.Spec.Type == "" {
			s.add(conf.Error, max(c.Spec.Line, c.Line), "spec.type", "required, but not given; write for example state.redis")
		}
		if text := c.Spec.InitTimeout; text != "" {
			t, err := conf.ParseDuration(text, 0)
			switch {
			case err != nil:
				s.add(conf.Warning, c.Spec.Line, "spec.initTimeout", "%s; %v is used", err, timeout)
			case t <= 0:
				s.add(conf.Warning, c.Spec.Line, "spec.initTimeout", "must be positive; %v is used", timeout)
			default:
				timeout = t
			}
		}
		s.entries(c.Spec.Metadata, "spec.metadata")
	})
	return Component{Resource: doc.resource(), Type: doc.Spec.Type, Version: doc.Spec.Version, InitTimeout: timeout,
		IgnoreErrors: doc.Spec.IgnoreErrors, Metadata: doc.Spec.Metadata, SecretStore: doc.Auth.SecretStore}, found, ok
}

// entries completes metadata entries and reports contradictions in them.
func (s *strict) entries(list []Entry, path string) {
	for i := range list {
		e, at := &list[i], fmt.Sprintf("%s[%d]", path, i)
		if e.Name == "" {
			s.add(conf.Error, e.Line, at, "the entry has no name")
		}
		s.reference(e, at)
	}
}

func (s *strict) reference(e *Entry, at string) {
	if ref := e.SecretRef; ref != nil {
		if ref.Name == "" {
			s.add(conf.Error, e.Line, at+".secretKeyRef.name", "required, but not given")
		}
		if ref.Key == "" {
			ref.Key = ref.Name
		}
		if e.EnvRef != "" {
			s.add(conf.Warning, e.Line, at, "has both secretKeyRef and envRef; the secret counts")
		}
	} else if e.EnvRef != "" && e.Value != "" {
		s.add(conf.Warning, e.Line, at, "has both value and envRef; the value counts")
	}
}

// LogName is how messages name the component: "name (type/version)".
func (c *Component) LogName() string {
	if c.Version == "" {
		return fmt.Sprintf("%s (%s)", c.Name, c.Type)
	}
	return fmt.Sprintf("%s (%s/%s)", c.Name, c.Type, c.Version)
}

// Category is the block part of the type, "state" in "state.redis"; case counts.
// "middleware.http.x" has the category "middleware.http".
func (c *Component) Category() string {
	if strings.HasPrefix(c.Type, "middleware.http.") {
		return "middleware.http"
	}
	category, _, _ := strings.Cut(c.Type, ".")
	return category
}

// LookupType is the type to look a backend up by: the product in small letters, because
// its case does not count; the category as written, because its case does.
func (c *Component) LookupType() string {
	category := c.Category()
	return category + strings.ToLower(strings.TrimPrefix(c.Type, category))
}

// NamespaceScoped tells whether {namespace} occurs in the metadata, which puts a pub/sub
// component's topics in a namespace of their own.
func (c *Component) NamespaceScoped() bool {
	for _, e := range c.Metadata {
		if strings.Contains(string(e.Value), "{namespace}") {
			return true
		}
	}
	return false
}

// Expansion is what metadata values are completed from.
type Expansion struct {
	AppID     string
	Namespace string              // this sidecar's namespace; empty means "default"
	PodName   string              // for {podName}; empty means unknown
	Env       func(string) string // the sidecar's environment; nil means empty
	// Secret reads the value that a component, or what is written like one, refers to. Nil means
	// there is no store.
	Secret func(c *Component, ref *SecretRef) (string, error)
}

// Items gives the metadata as the backend is to see it: tokens expanded, references
// resolved. {uuid} is new on every call. An Error finding means the component cannot be
// opened; warnings tell of variables that stay empty.
//
// A reference to a secret that cannot be had, or is empty, is an Error unless a value is written
// beside it, for a component with an empty password is not what was asked for. A reference to a
// variable that stays empty is one where the value would have protected something (topic scopes).
// A key that encrypts state comes from a secret and from nowhere else.
func (c *Component) Items(x Expansion) ([]conf.Item, conf.Findings) {
	var found conf.Findings
	items := make([]conf.Item, 0, len(c.Metadata))
	for _, e := range c.Metadata {
		it := conf.Item{Name: e.Name, File: e.File, Line: e.Line}
		note := func(sev conf.Severity, format string, args ...any) {
			found = append(found, conf.Finding{File: e.File, Line: e.Line, Key: e.Name, Severity: sev, Msg: fmt.Sprintf(format, args...)})
		}
		value, err := x.expand(e)
		if err != nil {
			note(conf.Error, "%s", err)
		}
		it.Value = value
		if encryptionKey(e.Name) && c.Category() == "state" {
			it.Value = "" // what is written beside the reference is no substitute
			if e.SecretRef == nil {
				note(conf.Error, "must come from a secret store: the secret's name is stored with every value; write secretKeyRef instead, and auth.secretStore")
				items = append(items, it)
				continue
			}
		}
		switch {
		case e.SecretRef != nil:
			it.Secret = !readByService(c, it.Name)
			x.secret(c, e.SecretRef, &it, note)
		case e.EnvRef != "" && e.Value == "":
			x.variable(c, e.EnvRef, &it, note)
		}
		if (e.SecretRef != nil || e.EnvRef != "") && it.Value == "" && conf.Protective(e.Name) {
			note(conf.Error, "the reference gives no value, and without it the component would be less protected than written")
		}
		items = append(items, it)
	}
	return items, found
}

// variable resolves a reference to the sidecar's environment.
func (x *Expansion) variable(c *Component, name string, it *conf.Item, note func(conf.Severity, string, ...any)) {
	it.Secret = !readByService(c, it.Name) // environments hold passwords as often as not
	if !envAllowed(name, x.env("DAPR_ENV_KEYS")) {
		note(conf.Warning, "Component %s references an env variable that isn't allowed: %s", c.Name, name)
		return
	}
	it.Value = x.env(name)
}

// readByService tells whether a metadata entry is read by a service, which must see it wherever it
// comes from: it sees no secrets. Keys of encryption are secrets all the same.
func readByService(c *Component, entry string) bool {
	return !encryptionKey(entry) && slices.ContainsFunc(conf.ServiceKeys(c.Category()), func(k string) bool { return strings.EqualFold(k, entry) })
}

// encryptionKey tells whether a metadata entry is a key that state is encrypted with.
func encryptionKey(entry string) bool {
	return strings.EqualFold(entry, "primaryEncryptionKey") || strings.EqualFold(entry, "secondaryEncryptionKey")
}

func (x *Expansion) env(name string) string {
	if x.Env == nil {
		return ""
	}
	return x.Env(name)
}

// secret resolves a reference to a secret store. The finding says what is missing where, by names
// only.
func (x *Expansion) secret(c *Component, ref *SecretRef, it *conf.Item, note func(conf.Severity, string, ...any)) {
	err := errNoStores
	var value string
	if x.Secret != nil {
		value, err = x.Secret(c, ref)
	}
	if err == nil && value != "" {
		it.Value, it.SecretName = value, ref.Name
		return
	}
	if err == nil {
		err = errEmptySecret
	}
	if it.Value != "" {
		note(conf.Warning, "secret %q (key %q) of secret store %q cannot be used: %v; the value stays as written", ref.Name, ref.Key, c.SecretStore, err)
		return
	}
	note(conf.Error, "secret %q (key %q) of secret store %q cannot be used: %v", ref.Name, ref.Key, c.SecretStore, err)
}

var (
	errNoStores    = errors.New("there is no secret store here")
	errEmptySecret = errors.New("it is empty or does not exist; remove the reference if it is meant to be empty")
)

// expand replaces the template tokens in an entry's written value.
func (x *Expansion) expand(e Entry) (string, error) {
	v := string(e.Value)
	if !strings.Contains(v, "{") {
		return v, nil
	}
	if strings.Contains(v, "{podName}") && x.PodName == "" {
		return "", fmt.Errorf("property %s refers to {podName} but podName is not set", e.Name)
	}
	namespace := x.Namespace
	if namespace == "" {
		namespace = "default"
	}
	v = strings.NewReplacer("{podName}", x.PodName, "{namespace}", namespace+"."+x.AppID, "{appID}", x.AppID).Replace(v)
	for strings.Contains(v, "{uuid}") {
		v = strings.Replace(v, "{uuid}", uuid.NewString(), 1)
	}
	return v, nil
}

// envAllowed tells whether a component may read a variable of the sidecar's environment.
// The sidecar's own settings and tokens are never readable; a non-empty list of allowed
// names, separated by blanks, admits nothing else.
func envAllowed(name, allowed string) bool {
	if strings.Contains(name, " ") || strings.HasPrefix(strings.ToUpper(name), "DAPR_") || strings.EqualFold(name, "APP_API_TOKEN") {
		return false
	}
	if allowed == "" {
		return true
	}
	for _, a := range strings.Fields(allowed) {
		if a == name {
			return true
		}
	}
	return false
}

func hasPrefix(s, prefix string) bool { return strings.HasPrefix(s, prefix) }

func quoted(s string) string { return fmt.Sprintf("%q", s) }
