package redis_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

// certificate makes a self-signed certificate for 127.0.0.1 that is also its own authority, in two
// files.
func certificate(t testing.TB) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redis"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestTLS(t *testing.T) {
	cert, key := certificate(t)
	otherCert, otherKey := certificate(t)
	port := strconv.Itoa(servers.Port(t))
	servers.StartRedis(t, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert)
	addr := "127.0.0.1:" + port
	tests := []struct {
		name  string
		items []string
		code  fault.Code
	}{
		{"both trusted", []string{"enableTLS", "true", "caCert", cert, "clientCert", cert, "clientKey", key}, fault.OK},
		{"server not verified", []string{"enableTLS", "true", "insecureSkipTLSVerify", "true", "clientCert", cert, "clientKey", key}, fault.OK},
		{"server of another authority", []string{"enableTLS", "true", "caCert", otherCert, "clientCert", cert, "clientKey", key}, fault.Unavailable},
		{"client of another authority", []string{"enableTLS", "true", "caCert", cert, "clientCert", otherCert, "clientKey", otherKey}, fault.Unavailable},
		{"client without certificate", []string{"enableTLS", "true", "caCert", cert}, fault.Unavailable},
		{"no TLS", nil, fault.Unavailable},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			s := opened(t, append([]string{"redisHost", addr}, tc.items...)...)
			err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("v")})
			if fault.Of(err) != tc.code || err != nil && fault.SentOf(err) != fault.SentNever {
				t.Errorf("Set: %v (%v, sent %v), want %v", err, fault.Of(err), fault.SentOf(err), tc.code)
			}
		})
	}
}

func TestPasswords(t *testing.T) {
	srv := servers.StartRedis(t, "--requirepass", "s3cret", "--user", "alice", "on", ">wonder", "~app||*", "+@all")
	tests := []struct {
		name  string
		items []string
		code  fault.Code
	}{
		{"right", []string{"redisPassword", "s3cret"}, fault.OK},
		{"wrong", []string{"redisPassword", "guess"}, fault.Unauthenticated},
		{"none", nil, fault.Unauthenticated},
		{"user", []string{"redisUsername", "alice", "redisPassword", "wonder"}, fault.OK},
		{"user, wrong", []string{"redisUsername", "alice", "redisPassword", "s3cret"}, fault.Unauthenticated},
		{"unknown user", []string{"redisUsername", "bob", "redisPassword", "s3cret"}, fault.Unauthenticated},
		{"no such database", []string{"redisPassword", "s3cret", "redisDB", "99"}, fault.Invalid},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			s := opened(t, append([]string{"redisHost", srv.Addr}, tc.items...)...)
			for what, err := range map[string]error{"Ping": s.Ping(t.Context()), "Set": s.Set(t.Context(), block.StateWrite{Key: "app||k"})} {
				if fault.Of(err) != tc.code || err != nil && fault.SentOf(err) != fault.SentNever {
					t.Errorf("%s: %v (%v, sent %v), want %v", what, err, fault.Of(err), fault.SentOf(err), tc.code)
				}
			}
		})
	}
	s := opened(t, "redisHost", srv.Addr, "redisUsername", "alice", "redisPassword", "wonder")
	wantCode(t, "a key of others", s.Set(t.Context(), block.StateWrite{Key: "other||k"}), fault.Denied)
}

// A server without memory refuses writes, changes nothing, and can still be read and freed.
func TestFullServer(t *testing.T) {
	srv := servers.StartRedis(t)
	s := opened(t, "redisHost", srv.Addr)
	set(t, s, block.StateWrite{Key: "k", Value: []byte("v")})
	if _, err := servers.RedisCommand(srv.Port, "CONFIG", "SET", "maxmemory", "1"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "Set", s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("w")}), fault.Exhausted)
	err := s.(block.StateTx).Transact(t.Context(), []block.StateOp{
		{StateWrite: block.StateWrite{Key: "a", Value: []byte("w")}}, {StateWrite: block.StateWrite{Key: "k", Value: []byte("w")}}})
	wantCode(t, "Transact", err, fault.Exhausted)
	wantCode(t, "Set of a new key", s.Set(t.Context(), block.StateWrite{Key: "a", Value: []byte("w")}), fault.Exhausted)
	if string(get(t, s, "k").Value) != "v" || get(t, s, "a").Exists {
		t.Error("a refused write changed something")
	}
	if err := s.Delete(t.Context(), block.StateDelete{Key: "k"}); err != nil {
		t.Errorf("Delete: %v", err)
	}
}
