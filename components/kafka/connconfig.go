package kafka

import (
	"errors"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/conf"
)

// ConnConfig says how to reach Kafka. Names are Dapr's.
type ConnConfig struct {
	// Brokers are host:port of some brokers, from which the others are learnt. A host without a
	// port has 9092.
	Brokers []string `yaml:"brokers" required:"true"`
	// ClientID is the name that brokers log and set quotas by. Default: the app's id.
	ClientID string `yaml:"clientID"`
	// AuthType is how to sign in, and whether to speak TLS: none (neither), password (TLS unless
	// disableTls; saslUsername and saslPassword), certificate (TLS, no sign-in), mtls (TLS with
	// clientCert and clientKey).
	AuthType string `yaml:"authType" enum:"none,password,certificate,mtls,oidc,oidc_private_key_jwt,awsiam"`
	// AuthRequired is an older word for authType: true is password, false is none.
	AuthRequired *bool `yaml:"authRequired"`
	// SASLUsername and SASLPassword sign in.
	SASLUsername string      `yaml:"saslUsername"`
	SASLPassword conf.Secret `yaml:"saslPassword"`
	// SASLMechanism is how the password is shown: SHA-256 and SHA-512 are SCRAM, PLAINTEXT sends it.
	SASLMechanism string `yaml:"saslMechanism" enum:"PLAINTEXT,SHA-256,SHA-512"`
	// DisableTLS speaks without TLS with authType password too.
	DisableTLS bool `yaml:"disableTls"`
	TLS        conf.TLS
	// Version is accepted and has no effect: client and broker agree on versions.
	Version string `yaml:"version"`
	// DialTimeout bounds connecting.
	DialTimeout time.Duration `yaml:"dialTimeout" unit:"s"`
	// ReadTimeout is how long a broker may stay silent before its connection is given up, beyond
	// the time a request may take by itself.
	ReadTimeout time.Duration `yaml:"readTimeout" unit:"s"`
	// KeepAlive is the pause between probes of an idle connection. 0 means 15s.
	KeepAlive time.Duration `yaml:"clientConnectionKeepAliveInterval" unit:"s"`
	// MetadataRefresh is how often topics and partitions are asked for when nothing points at a
	// change.
	MetadataRefresh time.Duration `yaml:"clientConnectionTopicMetadataRefreshInterval" unit:"s"`
	// MetadataTimeout has no effect: a call's own limit holds.
	MetadataTimeout time.Duration `yaml:"metadataTimeout" unit:"s"`
	Identity        IdentityConfig
	Schemas         SchemaConfig
}

// IdentityConfig holds the keys of sign-in by token, which is not offered: the authType that needs
// them is refused.
type IdentityConfig struct {
	OIDCTokenEndpoint string      `yaml:"oidcTokenEndpoint"`
	OIDCClientID      string      `yaml:"oidcClientID"`
	OIDCClientSecret  conf.Secret `yaml:"oidcClientSecret"`
	OIDCScopes        string      `yaml:"oidcScopes"`
	OIDCExtensions    conf.Secret `yaml:"oidcExtensions"`
	OIDCAssertionCert string      `yaml:"oidcClientAssertionCert"`
	OIDCAssertionKey  conf.Secret `yaml:"oidcClientAssertionKey"`
	OIDCResource      string      `yaml:"oidcResource"`
	OIDCAudience      string      `yaml:"oidcAudience"`
	OIDCKid           string      `yaml:"oidcKid"`
	AWSRegion         string      `yaml:"region" alias:"awsRegion"`
	AWSAccessKey      conf.Secret `yaml:"accessKey" alias:"awsAccessKey"`
	AWSSecretKey      conf.Secret `yaml:"secretKey" alias:"awsSecretKey"`
	AWSSessionToken   conf.Secret `yaml:"sessionToken" alias:"awsSessionToken"`
	AWSRole           string      `yaml:"assumeRoleArn" alias:"awsIamRoleArn"`
	AWSSession        string      `yaml:"sessionName" alias:"awsStsSessionName"`
}

// SchemaConfig holds the keys of a schema registry, which is not offered: a request that names a
// schema is refused.
type SchemaConfig struct {
	RegistryURL    string        `yaml:"schemaRegistryURL"`
	RegistryKey    conf.Secret   `yaml:"schemaRegistryAPIKey"`
	RegistrySecret conf.Secret   `yaml:"schemaRegistryAPISecret"`
	Caching        bool          `yaml:"schemaCachingEnabled"`
	CacheTTL       time.Duration `yaml:"schemaLatestVersionCacheTTL" unit:"s"`
	AvroJSON       bool          `yaml:"useAvroJSON"`
}

// The values of authType that are offered.
const (
	authNone        = "none"
	authPassword    = "password"
	authCertificate = "certificate"
	authMTLS        = "mtls"
)

func defaultConn() ConnConfig {
	return ConnConfig{SASLMechanism: "PLAINTEXT", DialTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, MetadataRefresh: 8 * time.Minute,
		Schemas: SchemaConfig{Caching: true, CacheTTL: 5 * time.Minute}, Identity: IdentityConfig{OIDCScopes: "openid"}}
}

// auth is how to sign in; empty when nothing says so.
func (c *ConnConfig) auth() string {
	switch {
	case c.AuthType != "":
		return c.AuthType
	case c.AuthRequired == nil:
		return ""
	case *c.AuthRequired:
		return authPassword
	}
	return authNone
}

// secure tells whether connections speak TLS.
func (c *ConnConfig) secure() bool { return c.auth() != authNone && !c.DisableTLS }

var versionForm = regexp.MustCompile(`^v?\d{1,3}(\.\d{1,3}){0,3}$`)

// Validate reports every mistake. It reads no file.
func (c *ConnConfig) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if _, err := c.addresses(); err != nil {
		errs = append(errs, err)
	}
	certificates := c.TLS.CACert != "" || c.TLS.ClientCert != "" || !c.TLS.ClientKey.Empty()
	switch c.auth() {
	case "":
		bad("authType", "required: none, password, certificate or mtls")
	case authNone:
		if certificates {
			bad("authType", "none speaks without TLS, and certificates are given; want certificate or mtls")
		}
		if c.AuthRequired != nil && *c.AuthRequired {
			bad("authType", "none contradicts authRequired true")
		}
	case authPassword:
		if c.SASLUsername == "" {
			bad("saslUsername", "required with authType password")
		}
		if c.SASLPassword.Empty() {
			bad("saslPassword", "required with authType password")
		}
		if c.DisableTLS && certificates {
			bad("disableTls", "certificates are given and TLS is switched off; leave one out")
		}
	case authCertificate, authMTLS:
		if c.DisableTLS {
			bad("disableTls", "authType %s is TLS; it cannot be switched off", c.AuthType)
		}
		if c.auth() == authMTLS && c.TLS.ClientCert == "" {
			bad("clientCert", "required with authType mtls")
		}
	default:
		bad("authType", "%s is not offered; want none, password, certificate or mtls", c.AuthType)
	}
	if c.Version != "" && !versionForm.MatchString(c.Version) {
		bad("version", "%q is no version; want for example 2.0.0.0", c.Version)
	}
	for _, d := range []struct {
		key         string
		given       time.Duration
		least, most time.Duration
	}{{"dialTimeout", c.DialTimeout, time.Millisecond, time.Hour}, {"readTimeout", c.ReadTimeout, 100 * time.Millisecond, 15 * time.Minute},
		{"clientConnectionTopicMetadataRefreshInterval", c.MetadataRefresh, time.Second, 24 * time.Hour}} {
		if d.given < d.least || d.given > d.most {
			bad(d.key, "%v is not between %v and %v", d.given, d.least, d.most)
		}
	}
	if c.KeepAlive < 0 {
		bad("clientConnectionKeepAliveInterval", "must not be negative")
	}
	return errors.Join(errs...)
}

// addresses are the brokers with their ports.
func (c *ConnConfig) addresses() ([]string, error) {
	if len(c.Brokers) == 0 {
		return nil, conf.Bad("brokers", "holds no address; want host:port, several separated by commas")
	}
	out := make([]string, len(c.Brokers))
	for i, b := range c.Brokers {
		if strings.ContainsAny(b, "@/ ") {
			// Not quoted: an address in URL form holds a password.
			return nil, conf.Bad("brokers", "entry %d is not host:port; credentials and TLS have keys of their own", i+1)
		}
		host, port, err := net.SplitHostPort(b)
		if err != nil {
			host, port = strings.Trim(b, "[]"), "9092"
		}
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return nil, conf.Bad("brokers", "%q: %q is not a port", b, port)
		}
		bare, _, _ := strings.Cut(host, "%") // the zone of an IPv6 address
		switch {
		case host == "":
			return nil, conf.Bad("brokers", "%q has no host", b)
		case strings.ContainsAny(host, "[]") || strings.Contains(host, ":") && net.ParseIP(bare) == nil:
			return nil, conf.Bad("brokers", "%q is not host:port", b)
		}
		out[i] = net.JoinHostPort(host, port)
	}
	return out, nil
}
