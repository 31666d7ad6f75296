package nats

import (
	"strconv"
	"strings"
	"testing"

	natsgo "github.com/nats-io/nats.go"
)

func TestParseStand(t *testing.T) {
	want := stand{seq: 17, count: 3, time: 1700000000000000001}
	for _, reply := range []string{
		"$JS.ACK.S.c.1.17.3.1700000000000000001.42",
		"$JS.ACK._.hash.S.c.1.17.3.1700000000000000001.42",
		"$JS.ACK.hub.hash.S.c.1.17.3.1700000000000000001.42.random",
	} {
		if got, ok := parseStand(reply); !ok || got != want {
			t.Errorf("%s is %+v, %v; want %+v", reply, got, ok, want)
		}
	}
	for _, reply := range []string{"", "$JS.ACK.", "$JS.ACK.S.c.1.17.3", "$JS.ACK.S.c.1.17.x.5.6", "_INBOX.a.b.c.d.1.17.3.5.6", "$JS.ACK.S.c.1.-17.3.5.6"} {
		if got, ok := parseStand(reply); ok {
			t.Errorf("%q is %+v, want refused", reply, got)
		}
	}
}

// FuzzStand compares with the client library's own reading.
func FuzzStand(f *testing.F) {
	f.Add("$JS.ACK.S.c.1.17.3.1700000000000000001.42")
	f.Add("$JS.ACK.hub.hash.S.c.1.17.3.1700000000000000001.42.random")
	f.Add("$JS.ACK.S.c.1.17.3.5.")
	f.Fuzz(func(t *testing.T, reply string) {
		got, ok := parseStand(reply)
		m := &natsgo.Msg{Reply: reply, Sub: &natsgo.Subscription{}}
		meta, err := m.Metadata()
		if err != nil || !plainNumbers(reply) {
			return // the library reads what is no number too, as the greatest one
		}
		if !ok || got.seq != meta.Sequence.Stream || got.count != meta.Sequence.Consumer || got.time != meta.Timestamp.UnixNano() {
			t.Errorf("%q is %+v, %v; the library says %+v", reply, got, ok, meta)
		}
	})
}

// plainNumbers tells whether the parts that have to be numbers are.
func plainNumbers(reply string) bool {
	parts := strings.Split(reply, ".")
	from := 5
	if len(parts) > 9 {
		from = 7
	}
	for _, p := range parts[from : from+3] {
		if _, err := strconv.ParseUint(p, 10, 63); err != nil || p == "" {
			return false
		}
	}
	return true
}

func FuzzAck(f *testing.F) {
	f.Add([]byte(`{"stream":"MECHA_LOG_pubsub", "seq":12}`))
	f.Add([]byte(`{"stream":"S", "seq":12,"duplicate": true}`))
	f.Add([]byte(`{"stream":"S", "seq":18446744073709551616}`))
	f.Add([]byte(`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 4"},"stream":"S","seq":0}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := readAck("t", &natsgo.Msg{Data: data})
		if seq := plainAck(data); seq != 0 {
			// The short way reads only what the long one would, and the same.
			long, lerr := readAck("t", &natsgo.Msg{Data: append([]byte{' '}, data...)})
			if err != nil || lerr != nil || got != long || got.Seq != seq {
				t.Errorf("%q is %+v, %v; the long way %+v, %v", data, got, err, long, lerr)
			}
		}
		if err == nil && got.Error == nil && got.Seq == 0 {
			t.Errorf("%q is no error and no sequence", data)
		}
	})
}
