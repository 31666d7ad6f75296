package settings

import (
	"net/url"
	"slices"

	"github.com/mecha-project/mecha/components/conf"
)

// HTTPEndpoint is a server outside the mesh that apps invoke by name.
type HTTPEndpoint struct {
	Resource
	BaseURL     string // http or https; may have a path
	Headers     []Entry
	ClientTLS   *ClientTLS // nil means the defaults
	SecretStore string
}

// ClientTLS is how to speak TLS to an HTTPEndpoint. Values are PEM text.
type ClientTLS struct {
	RootCA        *Entry `yaml:"rootCA"`
	Certificate   *Entry `yaml:"certificate"`
	PrivateKey    *Entry `yaml:"privateKey"`
	Renegotiation string `yaml:"renegotiation"` // empty means RenegotiateNever
	Line          int    `yaml:"-"`
}

type endpointDoc struct {
	head `yaml:",inline"`
	Spec struct {
		BaseURL   string     `yaml:"baseUrl"`
		Headers   []Entry    `yaml:"headers"`
		ClientTLS *ClientTLS `yaml:"clientTLS"`
		Line      int        `yaml:"-"`
	} `yaml:"spec"`
	Auth auth `yaml:"auth"`
}

func readHTTPEndpoint(d document) (HTTPEndpoint, conf.Findings, bool) {
	doc, found, ok := read(d, func(e *endpointDoc, s *strict) {
		s.named(&e.head)
		line := max(e.Spec.Line, e.Line)
		u, err := url.Parse(e.Spec.BaseURL)
		switch {
		case e.Spec.BaseURL == "":
			s.add(conf.Error, line, "spec.baseUrl", "required, but not given")
		case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
			s.add(conf.Error, line, "spec.baseUrl", "is not an http or https URL; write for example https://api.example.com/v1")
		}
		s.entries(e.Spec.Headers, "spec.headers")
		s.clientTLS(e.Spec.ClientTLS)
	})
	return HTTPEndpoint{Resource: doc.resource(), BaseURL: doc.Spec.BaseURL, Headers: doc.Spec.Headers,
		ClientTLS: doc.Spec.ClientTLS, SecretStore: doc.Auth.SecretStore}, found, ok
}

var renegotiations = []string{"RenegotiateNever", "RenegotiateOnceAsClient", "RenegotiateFreelyAsClient"}

func (s *strict) clientTLS(t *ClientTLS) {
	if t == nil {
		return
	}
	for name, e := range map[string]*Entry{"rootCA": t.RootCA, "certificate": t.Certificate, "privateKey": t.PrivateKey} {
		if e != nil {
			e.Name = name
			s.reference(e, "spec.clientTLS."+name)
		}
	}
	if (t.Certificate == nil) != (t.PrivateKey == nil) {
		s.add(conf.Error, t.Line, "spec.clientTLS", "certificate and privateKey go together")
	}
	if t.Renegotiation != "" && !slices.Contains(renegotiations, t.Renegotiation) {
		s.add(conf.Error, t.Line, "spec.clientTLS.renegotiation", "%q is not one of %v", t.Renegotiation, renegotiations)
	}
}
