package conf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
)

// TLS is how to speak to a server over TLS, for use as a field of configuration structs.
// Certificates and keys are PEM text, or paths of files holding it.
type TLS struct {
	// CACert is the authority trusted to sign the server's certificate, PEM or path. Empty
	// means the system's authorities.
	CACert string `yaml:"caCert"`
	// ClientCert is this side's certificate, PEM or path. Needs clientKey.
	ClientCert string `yaml:"clientCert"`
	// ClientKey is the certificate's private key, PEM or path.
	ClientKey Secret `yaml:"clientKey"`
	// ServerName is the name expected in the server's certificate. Empty means the host
	// connected to.
	ServerName string `yaml:"tlsServerName"`
	// SkipVerify accepts any server certificate. It gives up protection against
	// interception.
	SkipVerify bool `yaml:"skipVerify" alias:"insecureSkipVerify,insecureSkipTLSVerify"`
}

// Validate reports a certificate without its key and the reverse. It reads no file.
func (t *TLS) Validate() error {
	switch {
	case t.ClientCert != "" && t.ClientKey == "":
		return Bad("clientKey", "required with clientCert")
	case t.ClientCert == "" && t.ClientKey != "":
		return Bad("clientCert", "required with clientKey")
	}
	return nil
}

// Config builds the standard library's form, TLS 1.2 or newer, reading files where paths
// were given. Errors name the key and, for files, the path; never the content.
func (t *TLS) Config() (*tls.Config, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.SkipVerify}
	if t.CACert != "" {
		text, err := pemText("caCert", t.CACert)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, Bad("caCert", "holds no certificate; want PEM text with BEGIN CERTIFICATE, or the path of a file with it")
		}
	}
	if t.ClientCert != "" {
		cert, err := pemText("clientCert", t.ClientCert)
		if err != nil {
			return nil, err
		}
		key, err := pemText("clientKey", t.ClientKey.Reveal())
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, Bad("clientCert", "does not make a pair with clientKey: %v", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// pemText returns value itself when it is PEM, else the content of the file it names.
func pemText(key, value string) ([]byte, error) {
	if strings.Contains(value, "-----BEGIN") {
		return []byte(value), nil
	}
	// A value with a line break is text that lost its PEM frame, perhaps a secret: it must not
	// come back in an error as a file name.
	if strings.ContainsAny(value, "\r\n") {
		return nil, Bad(key, "is neither PEM text nor a path")
	}
	text, err := os.ReadFile(value)
	if err != nil {
		var pe *os.PathError
		if key == "clientKey" && errors.As(err, &pe) {
			return nil, Bad(key, "is no PEM text and cannot be read as a file: %v", pe.Err)
		}
		return nil, Bad(key, "%v", fmt.Errorf("is no PEM text and cannot be read as a file: %w", err))
	}
	return text, nil
}
