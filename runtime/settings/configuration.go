package settings

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/conf"
)

// Configuration is the sidecar's behaviour as resources describe it: the Configuration
// files named by --config, merged section by section. A nil section was not written.
type Configuration struct {
	Resource
	HTTPPipeline    *Pipeline       `yaml:"httpPipeline"`    // around the API
	AppHTTPPipeline *Pipeline       `yaml:"appHttpPipeline"` // around calls to the app
	Tracing         *Tracing        `yaml:"tracing"`
	MetricSection   *Metric         `yaml:"metric"`
	MetricsSection  *Metric         `yaml:"metrics"`
	MTLS            *MTLS           `yaml:"mtls"`
	Secrets         *Secrets        `yaml:"secrets"`
	AccessControl   *AccessControl  `yaml:"accessControl"`
	NameResolution  *NameResolution `yaml:"nameResolution"`
	Features        []Feature       `yaml:"features"`
	API             *API            `yaml:"api"`
	Components      *ComponentRules `yaml:"components"`
	Logging         *Logging        `yaml:"logging"`
	Wasm            *Wasm           `yaml:"wasm"`
	Workflow        *Workflow       `yaml:"workflow"`
}

// Pipeline lists HTTP middleware, outermost first.
type Pipeline struct {
	Handlers []Handler `yaml:"handlers"`
}

// Handler names a middleware component.
type Handler struct {
	Name     string `yaml:"name"`
	Type     string `yaml:"type"`
	Version  string `yaml:"version"`
	Selector any    `yaml:"selector"`
	Line     int    `yaml:"-"`
}

// Tracing says which calls are traced and where spans go.
type Tracing struct {
	SamplingRate string  `yaml:"samplingRate"` // a share as text, "0" to "1"; "0" turns tracing off
	Stdout       bool    `yaml:"stdout"`
	Zipkin       *Zipkin `yaml:"zipkin"`
	Otel         *Otel   `yaml:"otel"`
}

// Zipkin is a Zipkin collector.
type Zipkin struct {
	EndpointAddress string `yaml:"endpointAddress"`
}

// Otel is an OpenTelemetry collector.
type Otel struct {
	Protocol        string        `yaml:"protocol"` // http or grpc
	EndpointAddress string        `yaml:"endpointAddress"`
	IsSecure        *bool         `yaml:"isSecure"` // nil means true
	Headers         []OtelHeader  `yaml:"headers"`
	Timeout         time.Duration `yaml:"timeout"` // zero means the exporter's default
	Line            int           `yaml:"-"`
}

// Secure tells whether the collector is spoken to over TLS.
func (o *Otel) Secure() bool { return o.IsSecure == nil || *o.IsSecure }

// OtelHeader is a header sent to the collector.
type OtelHeader struct {
	Name      string      `yaml:"name"`
	Value     conf.Secret `yaml:"value"`
	SecretRef *SecretRef  `yaml:"secretKeyRef"`
	EnvRef    string      `yaml:"envRef"`
	// SecretStore is where SecretRef looks: auth.secretStore of the Configuration.
	SecretStore string `yaml:"-"`
	File        string `yaml:"-"`
	Line        int    `yaml:"-"`
}

// HeaderItems gives the headers with their references resolved. An Error finding means that
// traces would be sent without what the collector is to see.
func (o *Otel) HeaderItems(x Expansion) ([]conf.Item, conf.Findings) {
	var found conf.Findings
	items := make([]conf.Item, 0, len(o.Headers))
	for _, h := range o.Headers {
		it := conf.Item{Name: h.Name, Value: h.Value.Reveal(), File: h.File, Line: h.Line, Secret: true}
		switch {
		case h.SecretRef != nil:
			x.secret(&Component{SecretStore: h.SecretStore}, h.SecretRef, &it, func(sev conf.Severity, format string, args ...any) {
				found = append(found, conf.Finding{File: h.File, Line: h.Line, Key: "spec.tracing.otel.headers." + h.Name, Severity: sev, Msg: fmt.Sprintf(format, args...)})
			})
		case h.EnvRef != "" && it.Value == "":
			it.Value = x.env(h.EnvRef)
		}
		items = append(items, it)
	}
	return items, found
}

// Metric says what is measured. Nil fields mean the defaults; read them through Metrics.
type Metric struct {
	Enabled                    *bool        `yaml:"enabled"`
	RecordErrorCodes           *bool        `yaml:"recordErrorCodes"`
	HTTP                       *MetricHTTP  `yaml:"http"`
	LatencyDistributionBuckets []int        `yaml:"latencyDistributionBuckets"` // ms
	Workflow                   any          `yaml:"workflow"`
	Rules                      []MetricRule `yaml:"rules"`
}

// MetricHTTP tunes the labels of HTTP metrics.
type MetricHTTP struct {
	IncreasedCardinality *bool    `yaml:"increasedCardinality"`
	PathMatching         []string `yaml:"pathMatching"`
	ExcludeVerbs         *bool    `yaml:"excludeVerbs"`
}

// MetricRule rewrites label values of one metric.
type MetricRule struct {
	Name   string        `yaml:"name"`
	Labels []MetricLabel `yaml:"labels"`
}

// MetricLabel replaces a label's value by the first name whose expression matches.
type MetricLabel struct {
	Name  string            `yaml:"name"`
	Regex map[string]string `yaml:"regex"`
}

// Metrics is what to measure with every default filled in.
type Metrics struct {
	Enabled                    bool
	RecordErrorCodes           bool
	IncreasedCardinality       bool
	PathMatching               []string
	ExcludeVerbs               bool
	LatencyDistributionBuckets []int // ms; empty means the built-in ones
	Rules                      []MetricRule
}

// Metrics merges the two spellings of the section; metrics wins over metric, field by field.
func (c *Configuration) Metrics() Metrics {
	m := Metrics{Enabled: true, IncreasedCardinality: true}
	for _, s := range []*Metric{c.MetricSection, c.MetricsSection} {
		if s == nil {
			continue
		}
		override(&m.Enabled, s.Enabled)
		override(&m.RecordErrorCodes, s.RecordErrorCodes)
		if s.HTTP != nil {
			override(&m.IncreasedCardinality, s.HTTP.IncreasedCardinality)
			override(&m.ExcludeVerbs, s.HTTP.ExcludeVerbs)
			overrideList(&m.PathMatching, s.HTTP.PathMatching)
		}
		overrideList(&m.LatencyDistributionBuckets, s.LatencyDistributionBuckets)
		overrideList(&m.Rules, s.Rules)
	}
	return m
}

func override[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func overrideList[T any](to *[]T, from []T) {
	if len(from) > 0 {
		*to = from
	}
}

// MTLS is the mesh's own encryption.
type MTLS struct {
	Enabled                 bool   `yaml:"enabled"`
	WorkloadCertTTL         string `yaml:"workloadCertTTL"`
	AllowedClockSkew        string `yaml:"allowedClockSkew"`
	SentryAddress           string `yaml:"sentryAddress"`
	ControlPlaneTrustDomain string `yaml:"controlPlaneTrustDomain"`
	TokenValidators         any    `yaml:"tokenValidators"`
	Line                    int    `yaml:"-"`
}

// Secrets limits which secrets the app may read.
type Secrets struct {
	Scopes []SecretScope `yaml:"scopes"`
	Line   int           `yaml:"-"`
}

// SecretScope limits one secret store.
type SecretScope struct {
	StoreName      string   `yaml:"storeName"`
	DefaultAccess  string   `yaml:"defaultAccess"`
	AllowedSecrets []string `yaml:"allowedSecrets"`
	DeniedSecrets  []string `yaml:"deniedSecrets"`
	Line           int      `yaml:"-"`
}

// Denies tells whether the default of the scope is to refuse.
func (c *SecretScope) Denies() bool { return strings.EqualFold(c.DefaultAccess, "deny") }

// AccessControl says which apps may call this one.
type AccessControl struct {
	DefaultAction string            `yaml:"defaultAction"`
	TrustDomain   string            `yaml:"trustDomain"`
	Policies      []AppAccessPolicy `yaml:"policies"`
	Line          int               `yaml:"-"`
}

// AppAccessPolicy is what one caller may do.
type AppAccessPolicy struct {
	AppID         string            `yaml:"appId"`
	DefaultAction string            `yaml:"defaultAction"`
	TrustDomain   string            `yaml:"trustDomain"`
	Namespace     string            `yaml:"namespace"`
	Operations    []AccessOperation `yaml:"operations"`
	Line          int               `yaml:"-"`
}

// AccessOperation is a rule for some paths and verbs.
type AccessOperation struct {
	Name     string   `yaml:"name"`
	HTTPVerb []string `yaml:"httpVerb"`
	Action   string   `yaml:"action"`
	Line     int      `yaml:"-"`
}

// NameResolution chooses and configures the registry.
type NameResolution struct {
	Component     string `yaml:"component"`
	Version       string `yaml:"version"`
	Configuration any    `yaml:"configuration"`
	File          string `yaml:"-"`
	Line          int    `yaml:"-"`
}

// Items gives the configuration as a flat list of entries for conf.Decode. Lists of plain
// values become comma-separated text, anything deeper JSON.
func (n *NameResolution) Items() []conf.Item {
	m, _ := n.Configuration.(map[string]any)
	items := make([]conf.Item, 0, len(m))
	for _, name := range sortedKeys(m) {
		items = append(items, conf.Item{Name: name, Value: flatText(m[name]), File: n.File, Line: n.Line})
	}
	return items
}

// Feature turns a named feature on or off.
type Feature struct {
	Name    string `yaml:"name"`
	Enabled bool   `yaml:"enabled"`
}

// API lists which APIs the app may use.
type API struct {
	Allowed []APIRule `yaml:"allowed"`
	Denied  []APIRule `yaml:"denied"`
}

// APIRule names a group of API methods.
type APIRule struct {
	Name     string `yaml:"name"`
	Version  string `yaml:"version"`
	Protocol string `yaml:"protocol"` // http or grpc
	Line     int    `yaml:"-"`
}

// ComponentRules limits which component types may be loaded.
type ComponentRules struct {
	Deny []string `yaml:"deny"` // "type" or "type/version"
}

// Logging tunes API logging.
type Logging struct {
	APILogging struct {
		Enabled          *bool `yaml:"enabled"` // nil means the flag decides
		ObfuscateURLs    bool  `yaml:"obfuscateURLs"`
		OmitHealthChecks bool  `yaml:"omitHealthChecks"`
	} `yaml:"apiLogging"`
}

// Wasm tunes WebAssembly middleware.
type Wasm struct {
	StrictSandbox bool `yaml:"strictSandbox"`
}

// Workflow tunes workflows.
type Workflow struct {
	MaxConcurrentWorkflowInvocations int `yaml:"maxConcurrentWorkflowInvocations"`
	MaxConcurrentActivityInvocations int `yaml:"maxConcurrentActivityInvocations"`
	StateRetentionPolicy             any `yaml:"stateRetentionPolicy"`
	Line                             int `yaml:"-"`
}

// Feature tells whether a named feature is on; fallback answers when it is not mentioned.
func (c *Configuration) Feature(name string, fallback bool) bool {
	for _, f := range c.Features {
		if f.Name == name {
			fallback = f.Enabled
		}
	}
	return fallback
}

// Denied tells whether the deny list forbids loading a component. A component without a
// version is its v1.
func (c *Configuration) Denied(comp *Component) bool {
	if c.Components == nil {
		return false
	}
	version := canonicalVersion(comp.Version)
	return slices.ContainsFunc(c.Components.Deny, func(rule string) bool {
		typ, v, versioned := strings.Cut(strings.TrimSpace(rule), "/")
		return strings.EqualFold(typ, comp.Type) && (!versioned || canonicalVersion(v) == version)
	})
}

func canonicalVersion(v string) string {
	if v == "" || v == "v0" {
		return "v1"
	}
	return v
}

type configurationDoc struct {
	head `yaml:",inline"`
	Spec Configuration `yaml:"spec"`
	Auth auth          `yaml:"auth"`
}

func readConfiguration(d document) (Configuration, conf.Findings, bool) {
	doc, found, ok := read(d, func(c *configurationDoc, s *strict) {
		c.Spec.lendStore(c.Auth.SecretStore)
		s.configuration(&c.Spec)
	})
	doc.Spec.Resource = doc.resource()
	return doc.Spec, found, ok
}

// lendStore completes references to secrets, as those of components are.
func (c *Configuration) lendStore(store string) {
	if c.Tracing == nil || c.Tracing.Otel == nil {
		return
	}
	for i := range c.Tracing.Otel.Headers {
		h := &c.Tracing.Otel.Headers[i]
		h.SecretStore = store
		if h.SecretRef != nil && h.SecretRef.Key == "" {
			h.SecretRef.Key = h.SecretRef.Name
		}
	}
}

// LoadConfiguration reads Configuration files, the environment's variables expanded in
// their text ($NAME, ${NAME}), and merges them: a section of a later file replaces the same
// section of an earlier one. No files give the defaults. The findings hold only warnings;
// anything worse is the error, for a sidecar must not run with half of its rules.
func LoadConfiguration(paths []string, env func(string) string) (*Configuration, conf.Findings, error) {
	out := &Configuration{}
	var found conf.Findings
	for _, path := range paths {
		data, err := readFile(path)
		if err != nil {
			return nil, found, fmt.Errorf("error loading configuration: %w", err)
		}
		if env != nil {
			data = []byte(os.Expand(string(data), env))
		}
		r := ParseResources(path, data)
		found = append(found, r.Findings...)
		if len(r.Configurations) == 0 && r.Findings.Err() == nil {
			found = append(found, conf.Finding{File: path, Severity: conf.Error, Msg: "holds no Configuration resource"})
		}
		for i := range r.Configurations {
			out.merge(&r.Configurations[i])
		}
	}
	if err := found.Err(); err != nil {
		return nil, found, fmt.Errorf("error loading configuration: %w", err)
	}
	return out, found, nil
}

func (c *Configuration) merge(later *Configuration) {
	to, from := reflect.ValueOf(c).Elem(), reflect.ValueOf(later).Elem()
	for i := range from.NumField() {
		if !from.Field(i).IsZero() {
			to.Field(i).Set(from.Field(i))
		}
	}
}
