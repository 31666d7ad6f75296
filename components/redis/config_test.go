package redis_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/redis"
)

func TestConfigFindings(t *testing.T) {
	host := []string{"redisHost", "h"}
	tests := []struct {
		name  string
		items []string
		want  string // the key and a word of the only finding; empty means none
	}{
		{"as little as possible", host, ""},
		{"every key", []string{"redisHost", "h:1", "redisPort", "6379", "redisUsername", "u", "redisPassword", "p", "redisDB", "3", "redisType", "NODE",
			"enableTLS", "y", "insecureSkipTLSVerify", "true", "redisMaxRetries", "-1", "redisMinRetryInterval", "8ms", "redisMaxRetryInterval", "2s",
			"dialTimeout", "5s", "readTimeout", "-1", "writeTimeout", "500", "poolSize", "5", "poolTimeout", "1s", "minIdleConns", "1", "maxConnAge", "1h",
			"idleTimeout", "-1", "idleCheckFrequency", "-1", "useEntraID", "false", "useOIDC", "false", "oidcScopes", "openid", "ttlInSeconds", "60",
			"queryIndexes", "[]"}, ""},
		{"old names", append(host, "maxRetries", "1", "maxRetryBackoff", "2s", "useAzureAD", "false"), ""},
		{"no host", nil, "redisHost: required"},
		{"an address with credentials", []string{"redisHost", "redis://u:hunter2@h:1"}, "redisHost: entry 1"},
		{"not a port", []string{"redisHost", "h:x"}, "redisHost"},
		{"several hosts for one server", []string{"redisHost", "a,b"}, "redisHost: several"},
		{"database of a cluster", append(host, "redisType", "cluster", "redisDB", "1"), "redisDB: a cluster"},
		{"sentinels of a cluster", append(host, "redisType", "cluster", "failover", "true", "sentinelMasterName", "m"), "failover"},
		{"sentinels without a name", append(host, "failover", "true"), "sentinelMasterName: required"},
		{"unknown type", append(host, "redisType", "ring"), "redisType"},
		{"user without password", append(host, "redisUsername", "u"), "redisUsername"},
		{"certificate without TLS", append(host, "clientCert", "c", "clientKey", "k"), "enableTLS"},
		{"Entra ID", append(host, "useEntraID", "true"), "useEntraID: sign-in"},
		{"Entra ID by its old name", append(host, "useAzureAD", "true"), "useEntraID: sign-in"},
		{"OIDC", append(host, "useOIDC", "true"), "useOIDC: sign-in"},
		{"negative pool", append(host, "poolSize", "-1"), "poolSize"},
		{"negative timeout", append(host, "readTimeout", "-5s"), "readTimeout"},
		{"negative dial timeout", append(host, "dialTimeout", "-1s"), "dialTimeout"},
		{"negative TTL", append(host, "ttlInSeconds", "-2"), "ttlInSeconds"},
		{"too few retries", append(host, "redisMaxRetries", "-2"), "redisMaxRetries"},
		{"a slip", append(host, "redisPasword", "p"), "redisPasword: unknown"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			found := conf.Decode(conf.Items(tc.items...), redis.DefaultStateConfig())
			switch {
			case tc.want == "" && len(found) > 0:
				t.Errorf("findings: %v", found)
			case tc.want != "" && (len(found) != 1 || !strings.HasPrefix(found[0].Text(), tc.want)):
				t.Errorf("findings: %v, want one that begins with %q", found, tc.want)
			}
			if strings.Contains(fmt.Sprint(found), "hunter2") {
				t.Error("a finding shows the password")
			}
		})
	}
}

func TestBadCertificateIsFoundAtOpen(t *testing.T) {
	c := redis.DefaultStateConfig()
	c.Conn.Hosts, c.Conn.EnableTLS, c.Conn.TLS.CACert = []string{"h"}, true, "/nowhere/ca.pem"
	_, err := redis.NewState(block.Env{Log: slog.New(slog.DiscardHandler)}, c)
	if err == nil || !strings.Contains(err.Error(), "caCert") {
		t.Errorf("NewState: %v, want an error about caCert", err)
	}
	if _, err := redis.NewState(block.Env{}, redis.DefaultStateConfig()); err == nil {
		t.Error("NewState without a host succeeded")
	}
}

// Opening does nothing: goleak and the absence of a server check it.
func TestOpenDoesNoIO(t *testing.T) {
	opened(t, "redisHost", "192.0.2.1:1", "minIdleConns", "5")
	opened(t, "redisHost", "192.0.2.1:1", "redisType", "cluster")
	opened(t, "redisHost", "192.0.2.1:1", "failover", "true", "sentinelMasterName", "m")
}
