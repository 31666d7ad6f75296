package conf_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/mecha-project/mecha/components/conf"
)

func TestSecretShowsNowhere(t *testing.T) {
	const value = "hunter2"
	s := conf.Secret(value)
	if s.Reveal() != value || s.Empty() {
		t.Fatalf("the secret itself is wrong")
	}
	type holder struct{ S conf.Secret }
	outputs := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%f", "%U"} {
		outputs[verb] = fmt.Sprintf(verb, s)
		outputs["struct "+verb] = fmt.Sprintf(verb, holder{s})
		outputs["pointer "+verb] = fmt.Sprintf(verb, &holder{s})
		outputs["slice "+verb] = fmt.Sprintf(verb, []conf.Secret{s})
	}
	j, _ := json.Marshal(map[string]any{"a": s, "b": holder{s}})
	y, _ := yaml.Marshal(holder{s})
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "s", s, "h", holder{s})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "s", s, "h", holder{s})
	outputs["json"], outputs["yaml"], outputs["slog"] = string(j), string(y), log.String()
	for how, out := range outputs {
		if strings.Contains(out, value) || strings.Contains(strings.ToLower(out), fmt.Sprintf("%x", value)) {
			t.Errorf("%s shows the secret: %s", how, out)
		}
		if !strings.Contains(out, "****") {
			t.Errorf("%s does not show a mask: %s", how, out)
		}
	}
	if got := fmt.Sprintf("%s|%v", conf.Secret(""), conf.Secret("")); got != "|" {
		t.Errorf("an empty secret prints %q, want nothing", got)
	}
}

func TestByteSize(t *testing.T) {
	for in, want := range map[string]conf.ByteSize{
		"4Mi": 4 << 20, "4Ki": 4096, "4M": 4e6, "4k": 4000, "4096": 4096, "-1": -1, "0": 0, "+5": 5, "1.5Gi": 3 << 29,
		"1e3": 1000, "1E3": 1000, "2E": 2e18, "4096m": 5, "0.1": 1, "-0.1": -1, ".5Ki": 512, "5.": 5, " 1Ki ": 1024, "7Ei": 7 << 60, "1e-2": 1,
	} {
		got, err := conf.ParseByteSize(in)
		if err != nil || got != want {
			t.Errorf("ParseByteSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for in, hint := range map[string]string{
		"": "4Mi", "x": "4Mi", "4MB": "4Mi", "4mib": "4Mi", "4 Mi": "4Mi", "8Ei": "64-bit", "1e99": "64-bit", "1e999999999": "not a size",
		"4K": "4k", "10b": "leave it out", "4Qi": "known are", strings.Repeat("9", 40): "not a size",
	} {
		_, err := conf.ParseByteSize(in)
		if err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("ParseByteSize(%q): %v, want a hint with %q", in, err, hint)
		}
	}
	for in, want := range map[conf.ByteSize]string{4 << 20: "4Mi", 4e6: "4M", 4097: "4097", -1: "-1", 0: "0", 1 << 60: "1Ei"} {
		if got := in.String(); got != want {
			t.Errorf("(%d).String() = %q, want %q", int64(in), got, want)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for _, tc := range []struct {
		in   string
		unit time.Duration
		want time.Duration
	}{
		{"5s", 0, 5 * time.Second}, {"0", 0, 0}, {" 1h30m ", 0, 90 * time.Minute}, {"100", time.Millisecond, 100 * time.Millisecond},
		{"-1", time.Millisecond, -time.Millisecond}, {"1.5", time.Second, 1500 * time.Millisecond}, {"5s", time.Millisecond, 5 * time.Second},
		{"9007199254740993", time.Nanosecond, 9007199254740993},
	} {
		got, err := conf.ParseDuration(tc.in, tc.unit)
		if err != nil || got != tc.want {
			t.Errorf("ParseDuration(%q, %v) = %v, %v; want %v", tc.in, tc.unit, got, err, tc.want)
		}
	}
	for _, in := range []string{"", "5", "5 s", "s", "1d", "99999999999999999999", strings.Repeat("x", 500)} {
		_, err := conf.ParseDuration(in, 0)
		if err == nil || len(err.Error()) > 250 {
			t.Errorf("ParseDuration(%q): %v, want a short error", in, err)
		}
	}
	if _, err := conf.ParseDuration("999999999999999", time.Hour); err == nil {
		t.Error("a span beyond the type was accepted")
	}
}

func TestTLS(t *testing.T) {
	cert, key := selfSigned(t)
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	for name, text := range map[string]string{certFile: cert, keyFile: key} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good := map[string]conf.TLS{
		"empty": {}, "inline": {CACert: cert, ClientCert: cert, ClientKey: conf.Secret(key)},
		"files": {CACert: certFile, ClientCert: certFile, ClientKey: conf.Secret(keyFile), SkipVerify: true, ServerName: "x"},
	}
	for name, c := range good {
		t.Run(name, func(t *testing.T) {
			got, err := c.Config()
			if err != nil {
				t.Fatal(err)
			}
			if (got.RootCAs != nil) != (c.CACert != "") || (len(got.Certificates) == 1) != (c.ClientCert != "") || got.InsecureSkipVerify != c.SkipVerify || got.ServerName != c.ServerName {
				t.Errorf("wrong configuration for %s", name)
			}
		})
	}
	bad := map[string]struct {
		c    conf.TLS
		want string
	}{
		"certificate without key": {conf.TLS{ClientCert: cert}, "clientKey: required"},
		"key without certificate": {conf.TLS{ClientKey: conf.Secret(key)}, "clientCert: required"},
		"absent file":             {conf.TLS{CACert: filepath.Join(dir, "none")}, "caCert: is no PEM text and cannot be read as a file"},
		"not a certificate":       {conf.TLS{CACert: keyFile}, "caCert: holds no certificate"},
		"key and cert swapped":    {conf.TLS{ClientCert: key, ClientKey: conf.Secret(cert)}, "clientCert: does not make a pair"},
		"key text without frame":  {conf.TLS{ClientCert: cert, ClientKey: "MHcCAQEE\nhunter2"}, "clientKey: is neither PEM text nor a path"},
		"key text on one line":    {conf.TLS{ClientCert: cert, ClientKey: "MHcCAQEEhunter2"}, "clientKey: is no PEM text"},
	}
	for name, tc := range bad {
		t.Run(name, func(t *testing.T) {
			_, err := tc.c.Config()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the key is shown: %v", err)
			}
		})
	}
}

func selfSigned(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kb}))
}

func FuzzParseByteSize(f *testing.F) {
	for _, s := range []string{"4Mi", "-1", "1e9", "1.5Gi", "4MB", "9e99", "0.0001n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := conf.ParseByteSize(s)
		if err != nil {
			return
		}
		again, err := conf.ParseByteSize(v.String())
		if err != nil || again != v {
			t.Errorf("%q gives %d, whose text %q gives %d, %v", s, v, v.String(), again, err)
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"5s", "100", "-1", "1.5", "1h", "99999999999999999"} {
		f.Add(s, int64(time.Millisecond))
	}
	f.Fuzz(func(t *testing.T, s string, unit int64) {
		v, err := conf.ParseDuration(s, time.Duration(unit))
		if err != nil {
			return
		}
		if again, err := conf.ParseDuration(v.String(), 0); err != nil || again != v {
			t.Errorf("%q gives %v, whose text gives %v, %v", s, v, again, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add("redisHost", "h", "dialTimeout", "5")
	f.Add("labels", `{"a":"b"}`, "ports", "1,2")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		items := conf.Items(k1, v1, k2, v2)
		for i := range items {
			items[i].Secret = true
		}
		for _, fd := range conf.Decode(items, defaults()) {
			if fd.Msg == "" {
				t.Errorf("a finding without words: %+v", fd)
			}
		}
	})
}
