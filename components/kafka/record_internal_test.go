package kafka

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mecha-project/mecha/components/conf"
)

// Whatever a request holds, it is refused or makes a record that says it, and whatever a record
// holds, the app is told its true place.
func FuzzRecord(f *testing.F) {
	f.Add([]byte("data"), "partitionKey", "k", "__topic", "forged", "^x", false)
	f.Add([]byte("null"), "__key", "\xff", "partitionNumber", "7", "", true)
	f.Add([]byte(nil), "partitionNumber", "-1", "valueSchemaType", "Avro", "(", false)
	f.Fuzz(func(t *testing.T, data []byte, name1, value1, name2, value2, exclude string, escape bool) {
		h, err := (&HeaderConfig{EscapeHeaders: escape, ExcludeHeaders: exclude}).compile()
		if err != nil {
			return
		}
		r, err := newRecord("op", "t", data, map[string]string{name1: value1, name2: value2}, h)
		if err != nil {
			return
		}
		if string(data) != "null" && !bytes.Equal(r.Value, data) || string(data) == "null" && r.Value != nil || r.Partition < anyPartition {
			t.Errorf("record %+v of %q", r, data)
		}
		r.Partition, r.Offset, r.Timestamp = 3, 5, time.UnixMilli(7)
		m := metadataOf(r, h)
		if m["__topic"] != "t" || m["__partition"] != "3" || m["__offset"] != "5" || m["__timestamp"] != "7" {
			t.Errorf("metadata %q", m)
		}
		if _, ok := m["__key"]; ok != (r.Key != nil) {
			t.Errorf("metadata %q of key %q", m, r.Key)
		}
	})
}

// Addresses have a host and a port, or are refused.
func FuzzAddresses(f *testing.F) {
	f.Add("a,b:1,[::1]:2")
	f.Add(":9092")
	f.Add("::1")
	f.Add(" ")
	f.Add(":0]0")
	f.Fuzz(func(t *testing.T, text string) {
		c := DefaultBindingConfig()
		if slices.ContainsFunc(conf.Decode(conf.Items("brokers", text, "authType", "none", "topics", "t"), c), func(f conf.Finding) bool { return f.Severity == conf.Error }) {
			return
		}
		n := &conn{config: c.Conn}
		addrs, err := n.config.addresses()
		if err != nil || len(addrs) == 0 {
			t.Fatalf("%q: %q, %v", text, addrs, err)
		}
		client, err := kgo.NewClient(kgo.SeedBrokers(addrs...))
		if err != nil {
			t.Fatalf("%q passes and the client library says %v", text, err)
		}
		client.Close()
	})
}
