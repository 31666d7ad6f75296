package settings

import (
	"reflect"
	"slices"

	"github.com/mecha-project/mecha/components/conf"
)

// Kinds of resources read from resource folders.
const (
	KindComponent     = "Component"
	KindConfiguration = "Configuration"
	KindSubscription  = "Subscription"
	KindHTTPEndpoint  = "HTTPEndpoint"
	KindResiliency    = "Resiliency"
	KindTrafficPolicy = "TrafficPolicy"
)

// Resource is what every resource has: a name, and where it applies and was written.
type Resource struct {
	Name      string
	Namespace string            // as written; empty means every namespace
	Labels    map[string]string // as written
	Scopes    []string          // app ids it is for; empty means all
	File      string            // as given by the user
	Line      int               // of the document
}

// AppliesTo tells whether the resource is meant for an app. Either argument may be empty,
// which matches everything.
func (r *Resource) AppliesTo(appID, namespace string) bool {
	if namespace != "" && r.Namespace != "" && r.Namespace != namespace {
		return false
	}
	return appID == "" || len(r.Scopes) == 0 || slices.Contains(r.Scopes, appID)
}

// overlaps tells whether some app could see both resources.
func (r *Resource) overlaps(o *Resource) bool {
	if r.Namespace != "" && o.Namespace != "" && r.Namespace != o.Namespace {
		return false
	}
	return len(r.Scopes) == 0 || len(o.Scopes) == 0 ||
		slices.ContainsFunc(r.Scopes, func(app string) bool { return slices.Contains(o.Scopes, app) })
}

// Resources is everything read from resource folders, in file and document order.
type Resources struct {
	Components    []Component
	Subscriptions []Subscription
	HTTPEndpoints []HTTPEndpoint
	Resiliencies  []Resiliency
	Policies      []TrafficPolicy
	// Configurations are found in resource folders only by mistake, or by mecha check; the
	// sidecar reads them from the files named by --config.
	Configurations []Configuration
	// Findings are what is wrong. A document with an Error finding is not in the lists.
	Findings conf.Findings
	// Refused are those of the findings that are errors in documents of our own kinds. They stop
	// a sidecar from starting: it would run without a policy it was given.
	Refused conf.Findings
	// Ignored are documents that are none of our business, worth a debug line.
	Ignored conf.Findings

	emptied bool // the file these came from was seen empty once; see Watcher
}

// meta is a resource's metadata. Fields not listed are Kubernetes' own and are let pass.
type meta struct {
	Name      string            `yaml:"name"`
	Namespace string            `yaml:"namespace"`
	Labels    map[string]string `yaml:"labels"`
}

// head is what all resource documents share.
type head struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Metadata   meta     `yaml:"metadata"`
	Scopes     []string `yaml:"scopes"`
	Status     any      `yaml:"status"` // written by Kubernetes, never read
	Line       int      `yaml:"-"`
	File       string   `yaml:"-"`
}

func (h *head) resource() Resource {
	return Resource{Name: h.Metadata.Name, Namespace: h.Metadata.Namespace, Labels: h.Metadata.Labels,
		Scopes: h.Scopes, File: h.File, Line: h.Line}
}

type auth struct {
	SecretStore string `yaml:"secretStore"`
}

// read decodes a document into a *T with strict rules. ok is false when it must not be used.
func read[T any](d document, check func(*T, *strict)) (out T, found conf.Findings, ok bool) {
	s := strict{file: d.file}
	s.decode(d.root, reflect.ValueOf(&out).Elem(), "")
	if check != nil {
		check(&out, &s)
	}
	return out, s.found, s.found.Err() == nil
}

// named reports a document without a name.
func (s *strict) named(h *head) {
	if h.Metadata.Name == "" {
		s.add(conf.Error, h.Line, "metadata.name", "required, but not given")
	}
}

// ParseResources reads the documents of one file, whoever they are for. It never fails as a whole: what is wrong
// is in Findings.
func ParseResources(file string, data []byte) *Resources {
	docs, found := parseDocuments(file, data)
	r := &Resources{Findings: found}
	for _, d := range docs {
		r.take(d)
	}
	return r
}

func (r *Resources) take(d document) {
	if !r.ours(d) {
		return
	}
	var found conf.Findings
	switch d.kind {
	case KindComponent:
		found = keep(&r.Components, readComponent, d)
	case KindSubscription:
		found = keep(&r.Subscriptions, readSubscription, d)
	case KindHTTPEndpoint:
		found = keep(&r.HTTPEndpoints, readHTTPEndpoint, d)
	case KindResiliency:
		found = keep(&r.Resiliencies, readResiliency, d)
	case KindTrafficPolicy:
		found = keep(&r.Policies, readTrafficPolicy, d)
	case KindConfiguration:
		found = keep(&r.Configurations, readConfiguration, d)
	}
	r.Findings = append(r.Findings, found...)
	if hasPrefix(d.apiVersion, mechaGroup) && found.Err() != nil {
		r.Refused = append(r.Refused, found...)
	}
}

// keep appends what reading d gives, if it may be used.
func keep[T any](list *[]T, read func(document) (T, conf.Findings, bool), d document) conf.Findings {
	v, found, ok := read(d)
	if ok {
		*list = append(*list, v)
	}
	return found
}

// kinds are the kinds we read with the API versions they exist in.
var kinds = map[string][]string{
	KindComponent:     {"dapr.io/v1alpha1"},
	KindConfiguration: {"dapr.io/v1alpha1"},
	KindSubscription:  {"dapr.io/v1alpha1", "dapr.io/v2alpha1"},
	KindHTTPEndpoint:  {"dapr.io/v1alpha1"},
	KindResiliency:    {"dapr.io/v1alpha1"},
	KindTrafficPolicy: {mechaGroup + "v1"},
}

// mechaGroup is the group of our own kinds. They are strict: one that this version does not
// know is an error, for a policy that is silently not applied protects nobody.
const mechaGroup = "mecha.io/"

// ours tells whether a document is a resource to read, and notes why not.
func (r *Resources) ours(d document) bool {
	note := func(list *conf.Findings, sev conf.Severity, key, nearest, msg string) {
		*list = append(*list, conf.Finding{File: d.file, Line: d.line, Key: key, Msg: msg, Nearest: nearest, Severity: sev})
	}
	versions, known := kinds[d.kind]
	switch {
	case hasPrefix(d.apiVersion, mechaGroup) && (!known || !slices.Contains(versions, d.apiVersion)):
		note(&r.Findings, conf.Error, "kind", conf.Nearest(d.kind, []string{KindTrafficPolicy}), "this version of Mecha reads no "+quoted(d.kind)+" of "+d.apiVersion+"; it reads TrafficPolicy of "+mechaGroup+"v1")
		r.Refused = append(r.Refused, r.Findings[len(r.Findings)-1])
		return false
	case hasPrefix(d.apiVersion, mechaGroup):
		return true
	case d.kind == KindTrafficPolicy:
		note(&r.Findings, conf.Error, "apiVersion", "", quoted(d.apiVersion)+" is not a version of TrafficPolicy; write "+mechaGroup+"v1")
		r.Refused = append(r.Refused, r.Findings[len(r.Findings)-1])
		return false
	case d.kind == "":
		note(&r.Findings, conf.Warning, "kind", "", "the document names no kind, ignored")
		return false
	case !known && hasPrefix(d.apiVersion, "dapr.io/"):
		list, sev := &r.Ignored, conf.Warning
		nearest := conf.Nearest(d.kind, []string{KindComponent, KindConfiguration, KindSubscription, KindHTTPEndpoint, KindResiliency, KindTrafficPolicy})
		if nearest != "" {
			list = &r.Findings // likely a typing error, so louder than a debug line
		}
		note(list, sev, "kind", nearest, "kind "+quoted(d.kind)+" is not read, ignored")
		return false
	case !known || (d.apiVersion != "" && !hasPrefix(d.apiVersion, "dapr.io/")):
		note(&r.Ignored, conf.Warning, "kind", "", "kind "+quoted(d.kind)+" of "+quoted(d.apiVersion)+" is not read, ignored")
		return false
	case !slices.Contains(versions, d.apiVersion):
		note(&r.Findings, conf.Warning, "apiVersion", conf.Nearest(d.apiVersion, versions), quoted(d.apiVersion)+" is not a version of "+d.kind+"; read as "+versions[0])
	}
	return true
}
