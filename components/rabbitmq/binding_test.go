package rabbitmq_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/rabbitmq"
)

// What a request says is in the message, as other clients see it.
func TestMessages(t *testing.T) {
	srv := server(t)
	name := queueName(t)
	b := open(t, srv.URL(), "queueName", name, "durable", "true", "maxPriority", "300", "contentType", "application/json")
	create(t, b, "plain")
	create(t, b, "full", "ttlInSeconds", "90", "priority", "7", "ContentType", "text/csv", "x-own", "1", "empty", "")
	create(t, b, "clamped", "priority", "1000", "ttl", "1m30s")
	ch := broker(t, srv.URL())
	got := map[string]amqp.Delivery{}
	ids := map[string]bool{}
	for range 3 {
		m, ok, err := ch.Get(name, true)
		if err != nil || !ok {
			t.Fatalf("get: %v, %v", ok, err)
		}
		got[string(m.Body)] = m
		ids[m.MessageId] = true
	}
	if len(ids) != 3 || ids[""] {
		t.Errorf("message ids %v, want three", ids)
	}
	type shown struct {
		Type, Expiration string
		Priority, Mode   uint8
		Headers          amqp.Table
	}
	want := map[string]shown{
		"plain":   {"application/json", "", 0, 2, amqp.Table{}},
		"full":    {"text/csv", "90000", 7, 2, amqp.Table{"ttlInSeconds": "90", "priority": "7", "ContentType": "text/csv", "x-own": "1", "empty": ""}},
		"clamped": {"application/json", "90000", 255, 2, amqp.Table{"priority": "1000", "ttl": "1m30s"}}}
	for body, w := range want {
		m := got[body]
		if m.Headers == nil {
			m.Headers = amqp.Table{}
		}
		if d := cmp.Diff(w, shown{m.ContentType, m.Expiration, m.Priority, m.DeliveryMode, m.Headers}); d != "" {
			t.Errorf("%s (-want +got):\n%s", body, d)
		}
	}
}

func TestWrongMetadata(t *testing.T) {
	srv := server(t)
	b := open(t, srv.URL(), "queueName", queueName(t), "deleteWhenUnused", "true")
	for what, tt := range map[string]struct {
		name, value string
		code        fault.Code
	}{
		"a ttl that is no number":     {"ttlInSeconds", "soon", fault.Invalid},
		"a ttl of nothing":            {"ttlInSeconds", "0", fault.Invalid},
		"a negative ttl":              {"ttlInSeconds", "-1", fault.Invalid},
		"a ttl beyond the timers":     {"ttlInSeconds", "5000000", fault.Invalid},
		"a priority that is none":     {"priority", "high", fault.Invalid},
		"a name that is too long":     {strings.Repeat("n", 256), "v", fault.Invalid},
		"a type that is too long":     {"contentType", strings.Repeat("t", 256), fault.Invalid},
		"more than a frame can carry": {"x", strings.Repeat("x", 70_000), fault.TooLarge},
	} {
		if err := tryCreate(soon(t), b, "data", tt.name, tt.value); fault.Of(err) != tt.code || fault.SentOf(err) != fault.SentNever {
			t.Errorf("%s: %v (%v), want %v", what, err, fault.Of(err), tt.code)
		}
	}
	// None of these has hurt the connection, and the longest that is allowed passes.
	create(t, b, "data", "ttlInSeconds", "4294967", "priority", "-5", strings.Repeat("n", 255), strings.Repeat("x", 60_000), "contentType", strings.Repeat("t", 255))
}

// Headers reach the app as Dapr shows them: text only, escaped.
func TestEvents(t *testing.T) {
	srv := server(t)
	name := queueName(t)
	b := open(t, srv.URL(), "queueName", name)
	r := read(t, b, nil)
	create(t, b, "ours", "contentType", "text/plain", "traceparent", "00-ab-cd-01")
	if d := cmp.Diff(map[string]string{"contentType": "text%2Fplain", "traceparent": "00-ab-cd-01"}, r.next(t).Metadata); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	ch := broker(t, srv.URL())
	if err := ch.PublishWithContext(soon(t), "", name, false, false, amqp.Publishing{Body: []byte{0, 255}, Headers: amqp.Table{
		"a b": "c d&e\n", "number": int32(1), "table": amqp.Table{"x": "y"}, "bytes": []byte("z")}}); err != nil {
		t.Fatal(err)
	}
	e := r.next(t)
	if d := cmp.Diff(map[string]string{"a+b": "c+d%26e%0A"}, e.Metadata); d != "" || string(e.Data) != "\x00\xff" {
		t.Errorf("data %q (-want +got):\n%s", e.Data, d)
	}
}

// A message is gone from the queue when the app has taken it, and not before. One that it refuses
// comes again, at once the first time and then ever later; the others pass in order.
func TestAcknowledgement(t *testing.T) {
	srv := server(t)
	name := queueName(t)
	b := open(t, srv.URL(), "queueName", name)
	for i := range 5 {
		create(t, b, fmt.Sprint(i))
	}
	held, release := make(chan struct{}, 100), make(chan struct{})
	var refused atomic.Int32
	var inside, most atomic.Int32
	r := read(t, b, func(_ context.Context, e event) error {
		if n := inside.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer inside.Add(-1)
		held <- struct{}{}
		<-release
		if string(e.Data) == "2" && refused.Add(1) < 3 {
			return errors.New("not now")
		}
		return nil
	})
	<-held
	ch := broker(t, srv.URL())
	depth := func() (waiting int) {
		q, err := ch.QueueDeclarePassive(name, false, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return q.Messages
	}
	if n := depth(); n != 0 {
		t.Errorf("%d messages wait in the queue, want 0: they are sent ahead", n)
	}
	close(release)
	var order []string
	for len(order) < 7 {
		order = append(order, string(r.next(t).Data))
	}
	if err := r.stop(); fault.Of(err) != fault.Canceled {
		t.Errorf("Read: %v", err)
	}
	if d := cmp.Diff([]string{"0", "1", "2", "2", "2"}, withoutOthers(order)); d != "" || most.Load() != 1 {
		t.Errorf("order %v, %d at once (-want +got):\n%s", order, most.Load(), d)
	}
	// All were acknowledged: none comes back when the reader has left.
	eventually(t, func() error {
		if n := depth(); n != 0 {
			return fmt.Errorf("%d messages are in the queue", n)
		}
		return nil
	})
	if all := fmt.Sprint(order); strings.Count(all, "3") != 1 || strings.Count(all, "4") != 1 {
		t.Errorf("order %v", order)
	}
}

func withoutOthers(order []string) (out []string) {
	for _, o := range order {
		if o < "3" {
			out = append(out, o)
		}
	}
	return out
}

// What was sent ahead and not handled goes back when reading stops, and comes to the next reader.
func TestStopReading(t *testing.T) {
	srv := server(t)
	b := open(t, srv.URL(), "queueName", queueName(t))
	for i := range 10 {
		create(t, b, fmt.Sprint(i))
	}
	begun, release := make(chan struct{}, 10), make(chan struct{})
	r := read(t, b, func(context.Context, event) error { begun <- struct{}{}; <-release; return nil })
	<-begun
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	select {
	case err := <-stopped:
		t.Fatalf("Read returned %v while the app worked on an event", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-stopped; fault.Of(err) != fault.Canceled {
		t.Errorf("Read: %v", err)
	}
	if len(r.events) != 1 {
		t.Errorf("%d events, want 1", len(r.events))
	}
	again := read(t, b, nil)
	for i := range 9 {
		if got := string(again.next(t).Data); got != fmt.Sprint(i+1) {
			t.Errorf("event %d is %s", i+1, got)
		}
	}
}

// The server's settings of the queue are those of the component.
func TestQueue(t *testing.T) {
	srv := server(t)
	name := queueName(t)
	b := open(t, srv.URL(), "queueName", name, "durable", "true", "ttlInSeconds", "4294967", "maxPriority", "10")
	if err := b.Ping(soon(t)); err != nil {
		t.Fatal(err)
	}
	var queues []map[string]any
	if err := json.Unmarshal([]byte(srv.Ctl(t, "list_queues", "--formatter", "json", "-q", "name", "durable", "arguments")), &queues); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, q := range queues {
		if q["name"] == name {
			found = true
			args := fmt.Sprint(q["arguments"])
			if q["durable"] != true || !strings.Contains(args, "4294967000") && !strings.Contains(args, "4.294967e+09") || !strings.Contains(args, "x-max-priority") {
				t.Errorf("%v", q)
			}
		}
	}
	if !found {
		t.Errorf("no queue %s among %v", name, queues)
	}
	// Another component with other settings is told what is wrong, in both directions, and at start.
	other := open(t, srv.URL(), "queueName", name)
	for what, err := range map[string]error{"Ping": other.Ping(soon(t)), "create": tryCreate(soon(t), other, "data"),
		"Read": other.Read(soon(t), nil)} {
		if fault.Of(err) != fault.Invalid || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "exists with other settings") || !strings.Contains(err.Error(), "durable") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Messages end with the time to live of the queue, or their own if that is sooner.
func TestExpiry(t *testing.T) {
	srv := server(t)
	b := open(t, srv.URL(), "queueName", queueName(t), "ttlInSeconds", "10m")
	create(t, b, "short", "ttlInSeconds", "1ms")
	create(t, b, "long")
	if got := string(read(t, b, nil).next(t).Data); got != "long" {
		t.Errorf("%s came, want long: the other has expired", got)
	}
}

func TestPriority(t *testing.T) {
	srv := server(t)
	b := open(t, srv.URL(), "queueName", queueName(t), "maxPriority", "9", "prefetchCount", "1")
	for _, p := range []string{"1", "9", "5"} {
		create(t, b, p, "priority", p)
	}
	r := read(t, b, nil)
	if got := string(r.next(t).Data) + string(r.next(t).Data) + string(r.next(t).Data); got != "951" {
		t.Errorf("order %s, want 951", got)
	}
}

// An exclusive queue belongs to one connection: both directions share it, others are refused.
func TestExclusive(t *testing.T) {
	srv := server(t)
	name := queueName(t)
	b := open(t, srv.URL(), "queueName", name, "exclusive", "true")
	r := read(t, b, nil)
	create(t, b, "data")
	if got := string(r.next(t).Data); got != "data" {
		t.Error(got)
	}
	other := open(t, srv.URL(), "queueName", name, "exclusive", "true")
	if err := other.Ping(soon(t)); fault.Of(err) != fault.Conflict || !strings.Contains(err.Error(), "for itself") {
		t.Errorf("another connection: %v", err)
	}
	if err := r.stop(); fault.Of(err) != fault.Canceled {
		t.Error(err)
	}
	create(t, b, "later") // the connection is still there
}

// A queue that went missing is declared again, by whoever meets its absence.
func TestDeletedQueue(t *testing.T) {
	srv := server(t)
	name := queueName(t)
	b := open(t, srv.URL(), "queueName", name)
	create(t, b, "lost with the queue")
	ch := broker(t, srv.URL())
	if _, err := ch.QueueDelete(name, false, false, false); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 20 { // none of them may get lost
		all.Go(func() {
			if err := tryCreate(soon(t), b, fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	r := read(t, b, nil)
	seen := map[string]bool{}
	for range 20 {
		seen[string(r.next(t).Data)] = true
	}
	if len(seen) != 20 {
		t.Errorf("%d of 20 messages came", len(seen))
	}
	if _, err := ch.QueueDelete(name, false, false, false); err != nil { // under the reader
		t.Fatal(err)
	}
	eventually(t, func() error {
		if err := tryCreate(soon(t), b, "after"); err != nil {
			return err
		}
		select {
		case <-r.events:
			return nil
		case <-time.After(100 * time.Millisecond):
			return errors.New("no event")
		}
	})
}

// A queue of one that deletes it when unused is gone with its reader; sending makes it again.
func TestDeleteWhenUnused(t *testing.T) {
	srv := server(t)
	name := queueName(t)
	b := open(t, srv.URL(), "queueName", name, "deleteWhenUnused", "true")
	r := read(t, b, nil)
	create(t, b, "one")
	r.next(t)
	if err := r.stop(); fault.Of(err) != fault.Canceled {
		t.Error(err)
	}
	conn, err := amqp.Dial(srv.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	eventually(t, func() error {
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if _, err = ch.QueueDeclarePassive(name, false, true, false, false, nil); err == nil {
			_ = ch.Close()
			return errors.New("the queue is still there")
		}
		return nil
	})
	create(t, b, "two")
	if got := string(read(t, b, nil).next(t).Data); got != "two" {
		t.Error(got)
	}
}

// A full queue says so instead of losing what was sent.
func TestFullQueue(t *testing.T) {
	srv := server(t)
	name := queueName(t)
	ch := broker(t, srv.URL())
	srv.Ctl(t, "set_policy", "full", "^"+name+"$", `{"max-length":1,"overflow":"reject-publish"}`, "--apply-to", "queues")
	b := open(t, srv.URL(), "queueName", name)
	create(t, b, "first")
	eventually(t, func() error { // the server counts a little behind
		if err := tryCreate(soon(t), b, "more"); fault.Of(err) != fault.Exhausted || !strings.Contains(err.Error(), "full") {
			return fmt.Errorf("a full queue: %v", err)
		}
		return nil
	})
	if _, err := ch.QueuePurge(name, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return tryCreate(soon(t), b, "fits") })
}

func TestConfig(t *testing.T) {
	const at = "amqp://u:s3cret@h"
	for name, tt := range map[string]struct {
		items []string
		want  string
	}{
		"no address":             {[]string{"queueName", "q"}, "host"},
		"no queue":               {[]string{"host", at}, "queueName"},
		"another scheme":         {[]string{"queueName", "q", "host", "http://u:s3cret@h"}, "host: is no address of RabbitMQ"},
		"a letter not escaped":   {[]string{"queueName", "q", "host", "amqp://u:s3cret/x@h:1"}, "host: is no address of RabbitMQ"},
		"no port":                {[]string{"queueName", "q", "host", "amqp://u:s3cret@h:0"}, "host: is no address of RabbitMQ"},
		"an unknown way":         {[]string{"queueName", "q", "host", at + "?auth_mechanism=s3cret"}, "auth_mechanism"},
		"a heartbeat in the url": {[]string{"queueName", "q", "host", at + "?heartbeat=s3cret"}, "host: is no address of RabbitMQ"},
		"certificates, no TLS":   {[]string{"queueName", "q", "host", at, "caCert", "x"}, "write amqps://"},
		"a certificate alone":    {[]string{"queueName", "q", "host", "amqps://h", "clientCert", "x"}, "clientKey: required"},
		"external without TLS":   {[]string{"queueName", "q", "host", at, "saslExternal", "true"}, "externalSasl"},
		"a long name":            {[]string{"queueName", strings.Repeat("q", 256), "host", at}, "queueName"},
		"a priority":             {[]string{"queueName", "q", "host", at, "maxPriority", "-1"}, "maxPriority"},
		"a ttl":                  {[]string{"queueName", "q", "host", at, "ttlInSeconds", "5000000"}, "ttlInSeconds"},
		"a negative ttl":         {[]string{"queueName", "q", "host", at, "ttlInSeconds", "-1"}, "ttlInSeconds"},
		"a count":                {[]string{"queueName", "q", "host", at, "prefetchCount", "65536"}, "prefetchCount"},
		"no pause":               {[]string{"queueName", "q", "host", at, "reconnectWait", "0"}, "reconnectWaitInSeconds"},
		"a heartbeat":            {[]string{"queueName", "q", "host", at, "heartBeat", "1ms"}, "heartBeat"},
	} {
		_, err := tryOpen(nil, tt.items...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
	for name, items := range map[string][]string{
		"what Dapr's page shows": {"host", "amqp://u:p@h", "queueName", "queue1", "durable", "true", "deleteWhenUnused", "false", "ttlInSeconds", "60", "prefetchCount", "0", "exclusive", "false",
			"maxPriority", "5", "contentType", "text/plain", "reconnectWaitInSeconds", "5", "externalSasl", "false", "direction", "input, output"},
		"other names":      {"connectionString", "amqps://h", "queueName", "q", "ttl", "1m", "saslExternal", "no", "clientName", "me", "heartBeat", "10s"},
		"a virtual host":   {"host", "amqp://u:p@[::1]:5673/shop?heartbeat=20&connection_timeout=1000", "queueName", "q"},
		"an empty address": {"host", "amqp://", "queueName", "q"},
	} {
		b, err := tryOpen(nil, items...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = b.Close(context.Background())
	}
	if _, err := tryOpen(nil, "queueName", "q", "host", "amqps://h", "caCert", "/no/such/file"); fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "caCert") {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestTLS(t *testing.T) {
	srv := server(t)
	name := queueName(t)
	key, err := os.ReadFile(srv.Cert)
	if err != nil {
		t.Fatal(err)
	}
	create(t, open(t, srv.URLAt(srv.TLSPort), "queueName", name, "caCert", string(key), "deleteWhenUnused", "true"), "data")
	create(t, open(t, srv.URLAt(srv.TLSPort)+"?cacertfile="+url.QueryEscape(srv.Cert), "queueName", name, "deleteWhenUnused", "true"), "data")
	for what, tt := range map[string]struct {
		url  string
		more []string
	}{
		"an unknown authority": {srv.URLAt(srv.TLSPort), nil},
		"another name":         {srv.URLAt(srv.TLSPort), []string{"caCert", srv.Cert, "tlsServerName", "other.example"}},
		"a port without TLS":   {strings.Replace(srv.URL(), "amqp://", "amqps://", 1), []string{"caCert", srv.Cert}},
	} {
		err := open(t, tt.url, append([]string{"queueName", name}, tt.more...)...).Ping(soon(t))
		if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "TLS") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", what, err)
		}
	}
	cert, certKey := srv.Client(t, "orders")
	with := []string{"queueName", name, "deleteWhenUnused", "true", "caCert", srv.Cert, "clientCert", cert, "clientKey", certKey, "clientName", name}
	b := open(t, srv.URLAt(srv.TLSPort), with...)
	if err := b.Ping(soon(t)); err != nil {
		t.Fatal(err)
	}
	if all := srv.Ctl(t, "list_connections", "-q", "client_properties", "peer_cert_subject"); !strings.Contains(all, name) || !strings.Contains(all, "CN=orders") {
		t.Errorf("the server knows no connection %s with the certificate of orders: %s", name, all)
	}
	err = open(t, srv.URLAt(srv.TLSPort), append(with, "externalSasl", "true")...).Ping(soon(t))
	if fault.Of(err) != fault.Unauthenticated || !strings.Contains(err.Error(), "externalSasl") {
		t.Errorf("a server without the plugin: %v", err)
	}
}

func TestRefusedByTheServer(t *testing.T) {
	srv := server(t)
	name := queueName(t)
	srv.Ctl(t, "add_user", name, "s3cret")
	srv.Ctl(t, "set_permissions", name, "^$", "^$", "^$")
	var all sync.WaitGroup
	for what, tt := range map[string]struct {
		url  string
		code fault.Code
		want string
	}{
		"a wrong password":         {strings.Replace(srv.URL(), "mecha:", "mecha:x", 1), fault.Unauthenticated, "name and password"},
		"no such user":             {strings.Replace(srv.URL(), "mecha:", "nobody:", 1), fault.Unauthenticated, "name and password"},
		"a virtual host":           {srv.URL() + "nowhere", fault.Denied, "virtual host"},
		"a user without any right": {fmt.Sprintf("amqp://%s:s3cret@127.0.0.1:%d", name, srv.Port), fault.Denied, "may the user configure"},
	} {
		b := open(t, tt.url, "queueName", name)
		// The server takes three seconds to refuse a password.
		for call, try := range map[string]func() error{"Ping": func() error { return b.Ping(soon(t)) }, "create": func() error { return tryCreate(soon(t), b, "data") },
			"Read": func() error { return b.Read(soon(t), nil) }} {
			all.Go(func() {
				err := try()
				if fault.Of(err) != tt.code || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "p%40w") {
					t.Errorf("%s, %s: %v (%v)", what, call, err, fault.Of(err))
				}
			})
		}
	}
	all.Wait()
}

// No address makes the reader fail, or shows itself in an error.
func FuzzHost(f *testing.F) {
	for _, seed := range []string{"amqp://u:p@h:1/v", "amqps://h", "amqp:///v", "amqp://u:a/b@h", "amqp://[::1]:2/%2f?heartbeat=5", "%", "amqp://h?auth_mechanism=external", "amqp://h:99999"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c := rabbitmq.DefaultBindingConfig()
		c.Conn.Host = conf.Secret(text)
		if err := c.Conn.Validate(); err != nil && len(text) > 20 && strings.Contains(err.Error(), text) {
			t.Errorf("the error has the address: %v", err)
		}
	})
}
