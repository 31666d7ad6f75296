package kafka_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/kafka"
)

func TestConfig(t *testing.T) {
	base := []string{"brokers", "a:9092,b", "topics", "orders"}
	none := append(base[:4:4], "authType", "none")
	password := append(base[:4:4], "authType", "password", "saslUsername", "u", "saslPassword", "hidden")
	for name, tt := range map[string]struct {
		items []string
		want  string // part of what is found; empty: nothing
	}{
		"nothing":                    {nil, "brokers: required"},
		"no way to sign in":          {base, "authType: required"},
		"the older word":             {append(base[:4:4], "authRequired", "false"), ""},
		"the words disagree":         {append(none[:6:6], "authRequired", "true"), "authType: none contradicts"},
		"no topic":                   {[]string{"brokers", "a", "authType", "none"}, "neither topics nor publishTopic"},
		"a bad topic":                {append(none[:6:6], "publishTopic", "a b"), `publishTopic: "a b" is no name`},
		"a list with a bad topic":    {[]string{"brokers", "a", "authType", "none", "topics", "a,.."}, `topics: ".." is no name`},
		"a URL":                      {[]string{"brokers", "kafka://u:hidden@a", "topics", "t", "authType", "none"}, "brokers: entry 1 is not host:port"},
		"a port":                     {[]string{"brokers", "a:99999", "topics", "t", "authType", "none"}, `brokers: "a:99999": "99999" is not a port`},
		"no host":                    {[]string{"brokers", ":9092", "topics", "t", "authType", "none"}, "has no host"},
		"certificates without TLS":   {append(none[:6:6], "caCert", "/ca.pem"), "authType: none speaks without TLS"},
		"certificates, TLS off":      {append(password[:10:10], "caCert", "/ca.pem", "disableTls", "true"), "disableTls: certificates are given"},
		"no user":                    {append(base[:4:4], "authType", "password", "saslPassword", "hidden"), "saslUsername: required"},
		"no password":                {append(base[:4:4], "authType", "password", "saslUsername", "u"), "saslPassword: required"},
		"a password":                 {password, ""},
		"mtls without a certificate": {append(base[:4:4], "authType", "mtls"), "clientCert: required"},
		"certificate, TLS off":       {append(base[:4:4], "authType", "certificate", "disableTls", "true"), "disableTls: authType certificate is TLS"},
		"oidc":                       {append(base[:4:4], "authType", "oidc", "oidcClientSecret", "hidden"), "authType: oidc is not offered"},
		"awsiam":                     {append(base[:4:4], "authType", "awsiam", "awsAccessKey", "hidden"), "authType: awsiam is not offered"},
		"a mechanism":                {append(password[:10:10], "saslMechanism", "SHA-1"), "saslMechanism: "},
		"an offset":                  {append(none[:6:6], "initialOffset", "first"), "initialOffset: "},
		"a strategy":                 {append(none[:6:6], "consumerGroupRebalanceStrategy", "fair"), "consumerGroupRebalanceStrategy: "},
		"a codec":                    {append(none[:6:6], "compression", "rar"), "compression: "},
		"a version":                  {append(none[:6:6], "version", "new"), "version: "},
		"a regular expression":       {append(none[:6:6], "excludeHeaderMetaRegex", "("), "excludeHeaderMetaRegex: "},
		"a large message":            {append(none[:6:6], "maxMessageBytes", "1Gi"), "maxMessageBytes: "},
		"heartbeats":                 {append(none[:6:6], "heartbeatInterval", "20s"), "heartbeatInterval: 20s is not between"},
		"timeouts":                   {append(none[:6:6], "writeTimeout", "1ms"), "writeTimeout: 1ms is not between"},
		"a typing error":             {append(none[:6:6], "consumerGrup", "g"), "consumerGrup: unknown key"},
		"all of Dapr's keys": {append(none[:6:6], "publishTopic", "t", "consumerGroup", "g", "clientID", "c", "initialOffset", "oldest", "maxMessageBytes", "1024", "consumeRetryEnabled", "true",
			"consumeRetryInterval", "200", "heartbeatInterval", "3s", "sessionTimeout", "10s", "version", "2.0.0.0", "disableTls", "true", "skipVerify", "false", "channelBufferSize", "256",
			"consumerFetchMin", "1", "consumerFetchDefault", "1048576", "clientConnectionTopicMetadataRefreshInterval", "8m", "clientConnectionKeepAliveInterval", "0", "dialTimeout", "30s",
			"readTimeout", "30s", "writeTimeout", "30s", "metadataTimeout", "0", "producerRequiredAcks", "all", "producerRetryMax", "5", "compression", "none", "consumerGroupRebalanceStrategy", "range",
			"escapeHeaders", "true", "excludeHeaderMetaRegex", "^x", "schemaRegistryURL", "u", "schemaCachingEnabled", "true", "useAvroJSON", "false", "backOffPolicy", "constant", "backOffDuration", "5s", "direction", "input", "route", "/r"), ""},
	} {
		f := conf.Decode(conf.Items(tt.items...), kafka.DefaultBindingConfig(), conf.Also(conf.ServiceKeys("bindings")...))
		text := fmt.Sprint(f)
		if (tt.want == "") != (len(f) == 0) || !strings.Contains(text, tt.want) {
			t.Errorf("%s: %s, want %q", name, text, tt.want)
		}
		if strings.Contains(text, "hidden") {
			t.Errorf("%s: a secret is told: %s", name, text)
		}
	}
}

// A group must have a name.
func TestNoGroup(t *testing.T) {
	c := kafka.DefaultBindingConfig()
	if f := conf.Decode(conf.Items("brokers", "a", "topics", "t", "authType", "none"), c); len(f) > 0 {
		t.Fatal(f)
	}
	if _, err := kafka.NewBinding(block.Env{}, c); fault.Of(err) != fault.Invalid {
		t.Errorf("NewBinding: %v", err)
	}
}
