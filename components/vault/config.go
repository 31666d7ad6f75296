package vault

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/mecha-project/mecha/components/conf"
)

// text is the value type of secrets that are taken as a whole.
const text = "text"

// Config configures Vault as a secret store.
type Config struct {
	// VaultAddr is the server's URL.
	VaultAddr string `yaml:"vaultAddr"`
	// CAPem is the authority that signed the server's certificate, as PEM text. At most one of
	// CAPem, CAPath and CACert counts, in this order; none means the system's authorities.
	CAPem string `yaml:"caPem"`
	// CAPath is a folder of authorities in PEM files.
	CAPath string `yaml:"caPath"`
	// CACert is a PEM file of authorities.
	CACert string `yaml:"caCert"`
	// SkipVerify accepts any server certificate. It gives up protection against interception.
	SkipVerify bool `yaml:"skipVerify"`
	// TLSServerName is the name expected in the server's certificate. Empty means the host
	// connected to.
	TLSServerName string `yaml:"tlsServerName"`
	// Token signs requests. Exactly one of it and TokenMountPath is given.
	Token conf.Secret `yaml:"vaultToken"`
	// TokenMountPath is a file that holds the token, read for every request.
	TokenMountPath string `yaml:"vaultTokenMountPath"`
	// KVPrefix is the folder of the engine that secrets are in.
	KVPrefix string `yaml:"vaultKVPrefix"`
	// KVUsePrefix says whether they are in a folder.
	KVUsePrefix bool `yaml:"vaultKVUsePrefix"`
	// EnginePath is where the key-value engine is mounted.
	EnginePath string `yaml:"enginePath"`
	// ValueType is map for secrets of several values, or text for secrets that are taken as a
	// whole: one value, the JSON of all.
	ValueType string `yaml:"vaultValueType" enum:"map,text"`
}

// DefaultConfig is the configuration without any metadata.
func DefaultConfig() *Config {
	return &Config{VaultAddr: "https://127.0.0.1:8200", KVPrefix: "dapr", KVUsePrefix: true, EnginePath: "secret", ValueType: "map"}
}

// Validate reports what cannot be used. It reads no file.
func (c *Config) Validate() error {
	var errs []error
	u, err := url.Parse(c.VaultAddr)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		errs = append(errs, conf.Bad("vaultAddr", "want a URL like https://vault:8200"))
	}
	switch {
	case c.Token == "" && c.TokenMountPath == "":
		errs = append(errs, conf.Bad("vaultToken", "required, unless vaultTokenMountPath is given"))
	case c.Token != "" && c.TokenMountPath != "":
		errs = append(errs, conf.Bad("vaultTokenMountPath", "not together with vaultToken; remove one"))
	}
	if !plain(c.EnginePath) {
		errs = append(errs, conf.Bad("enginePath", "want the path the engine is mounted at, like secret or kv/team"))
	}
	if p := c.prefix(); p != "" && !plain(p) {
		errs = append(errs, conf.Bad("vaultKVPrefix", "want a folder like dapr or apps/shop, without a slash at its ends"))
	}
	return errors.Join(errs...)
}

// prefix is the folder of the secrets; empty means all of the engine.
func (c *Config) prefix() string {
	if !c.KVUsePrefix {
		return ""
	}
	return c.KVPrefix
}

// token is what signs a request. Errors are about the file, whose path they name.
func (c *Config) token() (string, error) {
	if c.TokenMountPath == "" {
		return c.Token.Reveal(), nil
	}
	data, err := os.ReadFile(c.TokenMountPath)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsAny(token, "\r\n") {
		return "", errors.New(c.TokenMountPath + " does not hold one token")
	}
	return token, nil
}

// tls makes the settings of connections, reading files where paths were given.
func (c *Config) tls() (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.TLSServerName, InsecureSkipVerify: c.SkipVerify}
	if c.SkipVerify {
		return out, nil
	}
	switch {
	case c.CAPem != "":
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM([]byte(c.CAPem)) {
			return nil, conf.Bad("caPem", "holds no certificate; want PEM text with BEGIN CERTIFICATE")
		}
	case c.CAPath != "":
		return out, c.folder(out)
	case c.CACert != "":
		out.RootCAs = x509.NewCertPool()
		return out, authorities("caCert", out.RootCAs, c.CACert)
	}
	return out, nil
}

// folder trusts the authorities in the files of a folder and those below it.
func (c *Config) folder(out *tls.Config) error {
	out.RootCAs = x509.NewCertPool()
	return filepath.WalkDir(c.CAPath, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return conf.Bad("caPath", "%v", err)
		}
		if d.IsDir() {
			return nil
		}
		// Mounted volumes present files, and their folder, as links.
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return nil
		}
		return authorities("caPath", out.RootCAs, path)
	})
}

func authorities(key string, pool *x509.CertPool, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return conf.Bad(key, "%v", err)
	}
	if !pool.AppendCertsFromPEM(text) {
		return conf.Bad(key, "%s holds no certificate; want PEM text with BEGIN CERTIFICATE", path)
	}
	return nil
}
