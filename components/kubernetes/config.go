package kubernetes

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/mecha-project/mecha/components/conf"
)

// Config configures a Kubernetes cluster as a secret store.
type Config struct {
	// DefaultNamespace is where secrets are that a request names no namespace for. Empty means the
	// sidecar's own (NAMESPACE).
	DefaultNamespace string `yaml:"defaultNamespace"`
	// KubeconfigPath is a kubeconfig file, whose current context says which cluster, and who asks.
	// Empty means the cluster that the pod runs in, as its service account; outside of one the file
	// of KUBECONFIG, or ~/.kube/config.
	KubeconfigPath string `yaml:"kubeconfigPath"`
}

// DefaultConfig is the configuration without any metadata.
func DefaultConfig() *Config { return &Config{} }

// Validate reports what cannot be used. It reads no file.
func (c *Config) Validate() error {
	if c.DefaultNamespace != "" && !isLabel(c.DefaultNamespace) {
		return conf.Bad("defaultNamespace", "want the name of a namespace: small letters, digits and hyphens")
	}
	return nil
}

// serviceAccount is where a pod finds its credentials. Tests put it elsewhere.
var serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// cluster is where an API server is, and how to sign requests to it.
type cluster struct {
	server string
	tls    *tls.Config
	sign   func(*http.Request) error
}

// cluster finds the cluster that is meant.
func (c *Config) cluster() (*cluster, error) {
	if c.KubeconfigPath != "" {
		return fromFile(c.KubeconfigPath)
	}
	if host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"); host != "" && port != "" {
		return inCluster(net.JoinHostPort(host, port))
	}
	path := os.Getenv("KUBECONFIG")
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, conf.Bad("kubeconfigPath", "required outside of a cluster")
		}
		path = filepath.Join(home, ".kube", "config")
	}
	if _, err := os.Stat(path); err != nil {
		return nil, conf.Bad("kubeconfigPath", "required: this is no pod (KUBERNETES_SERVICE_HOST is not set), and there is no file %s", path)
	}
	return fromFile(path)
}

// inCluster is the pod's own cluster. The cluster replaces the token from time to time, so the file
// is read for every request.
func inCluster(address string) (*cluster, error) {
	pool, err := authorities("kubeconfigPath", filepath.Join(serviceAccount, "ca.crt"), nil)
	if err != nil {
		return nil, err
	}
	return &cluster{server: "https://" + address, tls: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool},
		sign: bearerFile(filepath.Join(serviceAccount, "token"))}, nil
}

// kubeconfig is the part of such a file that is used, and what of it cannot be.
type kubeconfig struct {
	Current  string `yaml:"current-context"`
	Clusters []struct {
		Name    string      `yaml:"name"`
		Cluster kubeCluster `yaml:"cluster"`
	} `yaml:"clusters"`
	Users []struct {
		Name string   `yaml:"name"`
		User kubeUser `yaml:"user"`
	} `yaml:"users"`
	Contexts []struct {
		Name    string `yaml:"name"`
		Context struct {
			Cluster string `yaml:"cluster"`
			User    string `yaml:"user"`
		} `yaml:"context"`
	} `yaml:"contexts"`
}

type kubeCluster struct {
	Server     string `yaml:"server"`
	ServerName string `yaml:"tls-server-name"`
	SkipVerify bool   `yaml:"insecure-skip-tls-verify"`
	CA         string `yaml:"certificate-authority"`
	CAData     string `yaml:"certificate-authority-data"`
	Proxy      string `yaml:"proxy-url"`
}

type kubeUser struct {
	Token     string `yaml:"token"`
	TokenFile string `yaml:"tokenFile"`
	Cert      string `yaml:"client-certificate"`
	CertData  string `yaml:"client-certificate-data"`
	Key       string `yaml:"client-key"`
	KeyData   string `yaml:"client-key-data"`
	Name      string `yaml:"username"`
	Password  string `yaml:"password"`
	Exec      any    `yaml:"exec"`
	Provider  any    `yaml:"auth-provider"`
	As        string `yaml:"as"`
}

// fromFile is the cluster of a kubeconfig file's current context. Errors quote nothing of the file.
func fromFile(path string) (*cluster, error) {
	bad := func(format string, args ...any) error {
		return conf.Bad("kubeconfigPath", path+": "+format, args...)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, conf.Bad("kubeconfigPath", "%v", err)
	}
	var file kubeconfig
	if yaml.Unmarshal(text, &file) != nil { // its error would quote
		return nil, bad("is no kubeconfig file: want YAML with clusters, users and contexts")
	}
	cl, user, err := file.current()
	if err != nil {
		return nil, bad("%v", err)
	}
	dir := filepath.Dir(path)
	out := &cluster{server: strings.TrimRight(cl.Server, "/")}
	if err := cl.check(user.signs()); err != nil {
		return nil, bad("%v", err)
	}
	if out.tls, err = cl.tls(dir); err != nil {
		return nil, err
	}
	if out.sign, err = user.sign(dir, out.tls); err != nil {
		return nil, bad("%v", err)
	}
	return out, nil
}

// current is the cluster and the user of the current context.
func (f *kubeconfig) current() (cl kubeCluster, user kubeUser, err error) {
	for i := range f.Contexts {
		ctx := &f.Contexts[i]
		if ctx.Name != f.Current || f.Current == "" {
			continue
		}
		found := false
		for j := range f.Clusters {
			if f.Clusters[j].Name == ctx.Context.Cluster {
				cl, found = f.Clusters[j].Cluster, true
			}
		}
		if !found {
			return cl, user, errors.New("the current context names a cluster that is not in the file")
		}
		for j := range f.Users {
			if f.Users[j].Name == ctx.Context.User {
				return cl, f.Users[j].User, nil
			}
		}
		if ctx.Context.User == "" {
			return cl, user, nil // nobody in particular, as through a local proxy
		}
		return cl, user, errors.New("the current context names a user who is not in the file")
	}
	return cl, user, errors.New("current-context names no context of the file")
}

// check judges the server's address; signs tells whether requests carry something that others could
// use.
func (c *kubeCluster) check(signs bool) error {
	u, err := url.Parse(c.Server)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return errors.New("the cluster's server is no URL like https://10.0.0.1:6443")
	case u.Scheme == "http" && (signs || !isLoopback(u.Hostname())):
		return errors.New("the cluster's server has no TLS; that is only for a proxy on this host, without credentials")
	case c.Proxy != "":
		return errors.New("proxy-url is not supported")
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (c *kubeCluster) tls(dir string) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, InsecureSkipVerify: c.SkipVerify}
	if c.CA == "" && c.CAData == "" {
		return out, nil
	}
	var data []byte
	if c.CAData != "" {
		var err error
		if data, err = base64.StdEncoding.DecodeString(c.CAData); err != nil {
			return nil, conf.Bad("kubeconfigPath", "certificate-authority-data is not base64")
		}
	}
	var err error
	out.RootCAs, err = authorities("kubeconfigPath", beside(dir, c.CA), data)
	return out, err
}

// authorities reads certificates from data, or from a file when there are none.
func authorities(key, path string, data []byte) (*x509.CertPool, error) {
	where := "certificate-authority-data"
	if data == nil {
		var err error
		if data, err = os.ReadFile(path); err != nil {
			return nil, conf.Bad(key, "%v", err)
		}
		where = path
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, conf.Bad(key, "%s holds no certificate; want PEM text with BEGIN CERTIFICATE", where)
	}
	return pool, nil
}

// beside is a path of a kubeconfig file, which is relative to the file.
func beside(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// signs tells whether requests carry something that others could use.
func (u *kubeUser) signs() bool {
	return u.Token != "" || u.TokenFile != "" || u.Name != "" || u.Password != ""
}

// sign makes what signs requests, and gives the client's certificate to to.
func (u *kubeUser) sign(dir string, to *tls.Config) (func(*http.Request) error, error) {
	switch {
	case u.Exec != nil || u.Provider != nil:
		return nil, errors.New("the user signs in with another program (exec, auth-provider), which is not run; use a token, a tokenFile or a client certificate")
	case u.As != "":
		return nil, errors.New("the user acts as another (as), which is not supported")
	}
	if err := u.certificate(dir, to); err != nil {
		return nil, err
	}
	switch {
	case u.TokenFile != "": // it is the newer one, if both are there
		return bearerFile(beside(dir, u.TokenFile)), nil
	case u.Token != "":
		return func(r *http.Request) error { r.Header.Set("Authorization", "Bearer "+u.Token); return nil }, nil
	case u.Name != "" || u.Password != "":
		return func(r *http.Request) error { r.SetBasicAuth(u.Name, u.Password); return nil }, nil
	}
	return func(*http.Request) error { return nil }, nil
}

// certificate presents the user's certificate. One in files is read for every connection, for it
// is replaced before it ends.
func (u *kubeUser) certificate(dir string, to *tls.Config) error {
	if u.Cert == "" && u.CertData == "" {
		return nil
	}
	load := func() (*tls.Certificate, error) {
		cert, err := pemOf(beside(dir, u.Cert), u.CertData)
		if err != nil {
			return nil, err
		}
		key, err := pemOf(beside(dir, u.Key), u.KeyData)
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, errors.New("the user's client-certificate and client-key are no pair of a certificate and its key in PEM form")
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return err
	}
	to.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return nil
}

// pemOf is the text of a file, unless data has it in base64.
func pemOf(path, data string) ([]byte, error) {
	if data == "" {
		return os.ReadFile(path)
	}
	text, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, errors.New("client-certificate-data or client-key-data is not base64")
	}
	return text, nil
}

// bearerFile signs with the token in a file, read for every request.
func bearerFile(path string) func(*http.Request) error {
	return func(r *http.Request) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		token := strings.TrimSpace(string(data))
		if token == "" || strings.ContainsAny(token, "\r\n") {
			return errors.New(path + " does not hold one token")
		}
		r.Header.Set("Authorization", "Bearer "+token)
		return nil
	}
}
