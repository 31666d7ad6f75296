package redis

import (
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/conf"
)

// ConnConfig says how to reach Redis. Names and defaults are Dapr's.
type ConnConfig struct {
	// Hosts is the server's host:port. A cluster or sentinels may be given by several, separated
	// by commas.
	Hosts []string `yaml:"redisHost" required:"true"`
	// Port is added to hosts that have none. Default: 6379, for sentinels 26379.
	Port int `yaml:"redisPort"`
	// Username and Password authenticate. Without a username the password is the server's own.
	Username string      `yaml:"redisUsername"`
	Password conf.Secret `yaml:"redisPassword"`
	// DB is the number of the database; a cluster has only 0.
	DB int `yaml:"redisDB"`
	// Type is node for a single server or one behind sentinels, cluster for a cluster.
	Type string `yaml:"redisType" enum:"node,cluster"`
	// Failover asks sentinels, whose addresses are in redisHost, for the master.
	Failover bool `yaml:"failover"`
	// SentinelMaster is the name the sentinels know the master by.
	SentinelMaster string `yaml:"sentinelMasterName"`
	// SentinelUsername and SentinelPassword authenticate at the sentinels.
	SentinelUsername string      `yaml:"sentinelUsername"`
	SentinelPassword conf.Secret `yaml:"sentinelPassword"`
	// EnableTLS speaks TLS, to sentinels too.
	EnableTLS bool `yaml:"enableTLS"`
	TLS       conf.TLS
	// MaxRetries is how often the client library repeats a failed command by itself, also one that
	// may have been carried out. 0 and -1 mean never: repeating is the resiliency policy's.
	MaxRetries int `yaml:"redisMaxRetries" alias:"maxRetries"`
	// MinRetryInterval and MaxRetryInterval bound the pauses between these.
	MinRetryInterval time.Duration `yaml:"redisMinRetryInterval" unit:"ms"`
	MaxRetryInterval time.Duration `yaml:"redisMaxRetryInterval" alias:"maxRetryBackoff" unit:"ms"`
	// DialTimeout bounds connecting.
	DialTimeout time.Duration `yaml:"dialTimeout" unit:"ms"`
	// ReadTimeout bounds waiting for an answer, beside the call's own deadline. -1 means no bound.
	ReadTimeout time.Duration `yaml:"readTimeout" unit:"ms"`
	// WriteTimeout bounds sending. Default: readTimeout.
	WriteTimeout time.Duration `yaml:"writeTimeout" unit:"ms"`
	// PoolSize is the number of connections, per server of a cluster. Default: 10 for each CPU.
	PoolSize int `yaml:"poolSize"`
	// PoolTimeout bounds waiting for a connection when all are in use. Default: readTimeout and 1s.
	PoolTimeout time.Duration `yaml:"poolTimeout" unit:"ms"`
	// MinIdleConns is the number of connections kept open when there is nothing to do.
	MinIdleConns int `yaml:"minIdleConns"`
	// MaxConnAge is when a connection is replaced. 0 means never.
	MaxConnAge time.Duration `yaml:"maxConnAge" unit:"ms"`
	// IdleTimeout is when an unused connection is closed. -1 means never.
	IdleTimeout time.Duration `yaml:"idleTimeout" unit:"ms"`
	// IdleCheckFrequency has no effect: idle connections are checked when they are next used.
	IdleCheckFrequency time.Duration `yaml:"idleCheckFrequency" unit:"ms"`
	Identity           IdentityConfig
}

// IdentityConfig holds the keys of sign-in by token, which is not offered: setting one of the
// first two is refused, the others have no meaning without them.
type IdentityConfig struct {
	// UseEntraID would sign in by Microsoft Entra ID. Not offered.
	UseEntraID bool `yaml:"useEntraID" alias:"useAzureAD"`
	// UseOIDC would sign in by a token of an OIDC issuer. Not offered.
	UseOIDC             bool        `yaml:"useOIDC"`
	OIDCTokenEndpoint   string      `yaml:"oidcTokenEndpoint"`
	OIDCClientID        string      `yaml:"oidcClientID"`
	OIDCAssertionCert   string      `yaml:"oidcClientAssertionCert"`
	OIDCAssertionKey    conf.Secret `yaml:"oidcClientAssertionKey"`
	OIDCResource        string      `yaml:"oidcResource"`
	OIDCAudience        string      `yaml:"oidcAudience"`
	OIDCScopes          string      `yaml:"oidcScopes"`
	OIDCKid             string      `yaml:"oidcKid"`
	OIDCCertificateAuth string      `yaml:"oidcCACert"`
}

const (
	typeNode    = "node"
	typeCluster = "cluster"
)

func defaultConn() ConnConfig {
	return ConnConfig{Type: typeNode, MinRetryInterval: 2 * time.Second, DialTimeout: 5 * time.Second,
		ReadTimeout: 3 * time.Second, IdleTimeout: 5 * time.Minute, IdleCheckFrequency: time.Minute}
}

// Validate reports every mistake.
func (c *ConnConfig) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if _, err := c.addresses(); err != nil {
		errs = append(errs, err)
	}
	if c.Port < 0 || c.Port > 65535 {
		bad("redisPort", "%d is not a port", c.Port)
	}
	if c.DB < 0 {
		bad("redisDB", "%d is not a database; they are counted from 0", c.DB)
	}
	cluster := c.Type == typeCluster
	switch {
	case cluster && c.DB != 0:
		bad("redisDB", "a cluster has database 0 only")
	case cluster && c.Failover:
		bad("failover", "a cluster fails over by itself; sentinels are for redisType node")
	case c.Failover && c.SentinelMaster == "":
		bad("sentinelMasterName", "required with failover")
	case !cluster && !c.Failover && len(c.Hosts) > 1:
		bad("redisHost", "several hosts need redisType cluster or failover true")
	}
	if c.Username != "" && c.Password.Empty() {
		bad("redisUsername", "needs redisPassword")
	}
	if !c.EnableTLS && (c.TLS.CACert != "" || c.TLS.ClientCert != "" || !c.TLS.ClientKey.Empty()) {
		bad("enableTLS", "certificates are given but TLS is off; set it to true")
	}
	return errors.Join(append(errs, c.validateNumbers())...)
}

func (c *ConnConfig) validateNumbers() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if c.MaxRetries < -1 {
		bad("redisMaxRetries", "must be -1 or more")
	}
	for key, n := range map[string]int{"poolSize": c.PoolSize, "minIdleConns": c.MinIdleConns} {
		if n < 0 {
			bad(key, "must not be negative")
		}
	}
	for key, d := range map[string]time.Duration{"dialTimeout": c.DialTimeout, "poolTimeout": c.PoolTimeout, "maxConnAge": c.MaxConnAge,
		"redisMinRetryInterval": c.MinRetryInterval, "redisMaxRetryInterval": c.MaxRetryInterval} {
		if d < 0 {
			bad(key, "must not be negative")
		}
	}
	for key, d := range map[string]time.Duration{"readTimeout": c.ReadTimeout, "writeTimeout": c.WriteTimeout, "idleTimeout": c.IdleTimeout} {
		if d < 0 && !off(d) {
			bad(key, "must be -1 or not negative")
		}
	}
	return errors.Join(errs...)
}

// off tells "-1", which means "none" and is read in milliseconds when it has no unit.
func off(d time.Duration) bool { return d == -time.Millisecond || d == -1 }

// Validate refuses what is not offered; to ignore it would send no credentials at all.
func (c *IdentityConfig) Validate() error {
	var errs []error
	if c.UseEntraID {
		errs = append(errs, conf.Bad("useEntraID", "sign-in by Microsoft Entra ID is not offered; use redisUsername and redisPassword"))
	}
	if c.UseOIDC {
		errs = append(errs, conf.Bad("useOIDC", "sign-in by OIDC is not offered; use redisUsername and redisPassword"))
	}
	return errors.Join(errs...)
}

// addresses are the hosts with their ports.
func (c *ConnConfig) addresses() ([]string, error) {
	port := c.Port
	if port == 0 {
		port = 6379
		if c.Failover {
			port = 26379
		}
	}
	out := make([]string, len(c.Hosts))
	for i, h := range c.Hosts {
		if strings.Contains(h, "://") || strings.ContainsAny(h, "@/ ") {
			// Not quoted: an address in URL form holds the password.
			return nil, conf.Bad("redisHost", "entry %d is not host:port; credentials and TLS have keys of their own", i+1)
		}
		if host, p, err := net.SplitHostPort(h); err == nil {
			if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
				return nil, conf.Bad("redisHost", "%q: %q is not a port", h, p)
			}
			out[i] = net.JoinHostPort(host, p)
			continue
		}
		out[i] = net.JoinHostPort(strings.Trim(h, "[]"), strconv.Itoa(port))
	}
	return out, nil
}
