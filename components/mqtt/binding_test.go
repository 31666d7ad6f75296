package mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/mqtt"
	"github.com/mecha-project/mecha/test/servers"
)

// other is another product's client, subscribed to a topic.
func other(t testing.TB, topic string) (paho.Client, <-chan paho.Message) {
	t.Helper()
	m := server(t)
	c := paho.NewClient(paho.NewClientOptions().AddBroker(fmt.Sprintf("tcp://127.0.0.1:%d", m.Port)).SetClientID(own(t)).
		SetUsername("mecha").SetPassword(servers.MosquittoPassword))
	wait := func(what string, token paho.Token) {
		t.Helper()
		if !token.WaitTimeout(20*time.Second) || token.Error() != nil {
			t.Fatalf("%s: %v", what, token.Error())
		}
	}
	wait("connect", c.Connect())
	t.Cleanup(func() { c.Disconnect(250) })
	got := make(chan paho.Message, 1000)
	wait("subscribe", c.Subscribe(topic, 2, func(_ paho.Client, m paho.Message) { got <- m }))
	return c, got
}

// What is sent is what another client gets; what that sends is what the app gets.
func TestMessages(t *testing.T) {
	base := own(t)
	client, got := other(t, base+"/#")
	b := open(t, address(t), "topic", base+"/in", "consumerID", own(t))
	kept := open(t, address(t), "topic", base+"/kept", "retain", "true", "consumerID", own(t))
	shown := func() string {
		select {
		case m := <-got:
			return fmt.Sprintf("%s %q qos %d retained %v", strings.TrimPrefix(m.Topic(), base), m.Payload(), m.Qos(), m.Retained())
		case <-time.After(20 * time.Second):
			t.Fatal("no message")
			return ""
		}
	}
	create(t, b, "one")
	create(t, b, "\x00\xff", "topic", base+"/a/ü", "traceparent", "00-ab")
	create(t, kept, "three")
	want := []string{`/in "one" qos 1 retained false`, `/a/ü "\x00\xff" qos 1 retained false`, `/kept "three" qos 1 retained false`}
	if d := cmp.Diff(want, []string{shown(), shown(), shown()}); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	_, late := other(t, base+"/kept")
	if m := <-late; !m.Retained() || string(m.Payload()) != "three" {
		t.Errorf("kept: %v %q", m.Retained(), m.Payload())
	}
	if _, early := other(t, base+"/in"); len(early) != 0 {
		t.Error("a message was kept")
	}
	wild := open(t, address(t), "topic", base+"/+/x/#", "consumerID", own(t))
	r := read(t, wild, nil)
	r.begun(t, b, base+"/l/x")
	for qos := range byte(3) {
		client.Publish(fmt.Sprint(base, "/l/x/", qos), qos, false, "from qos").Wait()
		if d := cmp.Diff(event{Data: []byte("from qos"), Metadata: map[string]string{"topic": fmt.Sprint(base, "/l/x/", qos)}}, r.next(t)); d != "" {
			t.Errorf("qos %d (-want +got):\n%s", qos, d)
		}
	}
	big := strings.Repeat("x", 4<<20)
	create(t, b, big, "topic", base+"/l/x/big")
	if e := r.next(t); string(e.Data) != big {
		t.Errorf("%d bytes came of %d", len(e.Data), len(big))
	}
	create(t, b, "", "topic", base+"/l/x")
	if e := r.next(t); len(e.Data) != 0 {
		t.Errorf("%q came, want nothing", e.Data)
	}
}

func TestWrongTopics(t *testing.T) {
	b := open(t, address(t), "topic", own(t)+"/#", "consumerID", own(t))
	for what, topic := range map[string]string{"the component's, for many": "", "one level of any": "a/+", "all": "#", "no text": "a\x00b", "no UTF-8": "\xff", "too long": strings.Repeat("t", 60_001)} {
		if err := tryCreate(soon(t), b, "data", "topic", topic); fault.Of(err) != fault.Invalid || fault.SentOf(err) != fault.SentNever || len(err.Error()) > 500 {
			t.Errorf("%s: %v", what, err)
		}
	}
	create(t, b, "data", "topic", own(t)) // the connection is well
}

// An event is acknowledged when the app has taken it, and not before: the broker keeps it for the
// next run of the same client.
func TestAcknowledgement(t *testing.T) {
	topic, id := own(t), own(t)
	out := open(t, address(t), "topic", topic, "consumerID", own(t))
	b := open(t, address(t), "topic", topic, "consumerID", id)
	var refuse atomic.Bool
	r := read(t, b, func(_ context.Context, e event) error {
		if refuse.Load() && string(e.Data) != "fine" {
			return errors.New("not now")
		}
		return nil
	})
	r.begun(t, out, topic)
	create(t, out, "taken")
	r.next(t)
	refuse.Store(true)
	create(t, out, "refused")
	create(t, out, "fine")
	if a, b := string(r.next(t).Data), string(r.next(t).Data); a+b != "refusedfine" && a+b != "finerefused" {
		t.Errorf("%s and %s came", a, b)
	}
	if err := r.stop(); fault.Of(err) != fault.Canceled {
		t.Errorf("Read: %v", err)
	}
	create(t, out, "while nobody read")
	again := read(t, b, nil)
	seen := map[string]int{}
	for len(seen) < 2 {
		seen[string(again.next(t).Data)]++
	}
	create(t, out, "last")
	for string(again.next(t).Data) != "last" {
	}
	if d := cmp.Diff(map[string]int{"refused": 1, "while nobody read": 1}, seen); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A clean session forgets.
func TestCleanSession(t *testing.T) {
	topic, id := own(t), own(t)
	out := open(t, address(t), "topic", topic, "consumerID", own(t))
	b := open(t, address(t), "topic", topic, "consumerID", id, "cleanSession", "true")
	r := read(t, b, nil)
	r.begun(t, out, topic)
	_ = r.stop()
	create(t, out, "lost")
	again := read(t, b, nil)
	again.begun(t, out, topic)
	close(again.events)
	for e := range again.events {
		t.Errorf("%s came", e.Data)
	}
	again.events = make(chan event, 1)
}

// An event that the app refuses comes again: after the first pause backOffMaxRetries times, after
// the second for ever.
func TestRetries(t *testing.T) {
	for retries, want := range map[string]int{"0": 0, "2": 2, "-1": 5} {
		topic := own(t)
		out := open(t, address(t), "topic", topic, "consumerID", own(t))
		b := open(t, address(t), "topic", topic, "consumerID", own(t), "backOffMaxRetries", retries)
		const short, long = 20 * time.Millisecond, 500 * time.Millisecond
		mqtt.Hasten(b, short, long)
		var mu sync.Mutex
		var at []time.Time
		r := read(t, b, func(_ context.Context, e event) error {
			if string(e.Data) != "poor" {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if at = append(at, time.Now()); len(at) < 6 {
				return errors.New("not now")
			}
			return nil
		})
		r.begun(t, out, topic)
		create(t, out, "poor")
		for range 6 {
			r.next(t)
		}
		mu.Lock()
		for i := 1; i < 6; i++ {
			if pause := at[i].Sub(at[i-1]); (i > want) != (pause >= long) {
				t.Errorf("retries %s: try %d came after %v", retries, i+1, pause)
			}
		}
		mu.Unlock()
		if err := r.stop(); fault.Of(err) != fault.Canceled {
			t.Error(err)
		}
	}
}

// Events are at the app side by side, so that one that takes long holds up no other; at most 64.
func TestSideBySide(t *testing.T) {
	m := servers.MosquittoWith(t, "max_inflight_messages 0")
	topic := own(t)
	out := open(t, m.URL("tcp", m.Port), "topic", topic, "consumerID", own(t))
	b := open(t, m.URL("tcp", m.Port), "topic", topic, "consumerID", own(t))
	release := make(chan struct{})
	var inside, most atomic.Int32
	r := read(t, b, func(_ context.Context, e event) error {
		if !strings.HasPrefix(string(e.Data), "slow") {
			return nil
		}
		if n := inside.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer inside.Add(-1)
		<-release
		return nil
	})
	r.begun(t, out, topic)
	for i := range 100 {
		create(t, out, fmt.Sprint("slow", i))
	}
	eventually(t, func() error {
		if n := inside.Load(); n != 64 {
			return fmt.Errorf("%d at the app, want 64", n)
		}
		return nil
	})
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	select {
	case err := <-stopped:
		t.Fatalf("Read returned %v while the app worked", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-stopped; fault.Of(err) != fault.Canceled {
		t.Errorf("Read: %v", err)
	}
	if most.Load() > 64 {
		t.Errorf("%d were at the app", most.Load())
	}
	// What was not begun comes to the next run, and nothing else.
	again := read(t, b, nil)
	left := map[string]bool{}
	for range 36 {
		left[string(again.next(t).Data)] = true
	}
	if len(left) != 36 {
		t.Errorf("%d different events of 36", len(left))
	}
}

func TestConfig(t *testing.T) {
	const at = "tcp://u:s3cret@h"
	for name, tt := range map[string]struct {
		items []string
		want  string
	}{
		"no address":           {[]string{"topic", "t"}, "url"},
		"no topic":             {[]string{"url", at}, "topic"},
		"another scheme":       {[]string{"topic", "t", "url", "http://u:s3cret@h"}, "url: is no address of an MQTT broker"},
		"no host":              {[]string{"topic", "t", "url", "tcp://"}, "url: is no address of an MQTT broker"},
		"a letter not escaped": {[]string{"topic", "t", "url", "tcp://u:s3cret/x@h:1"}, "url: is no address of an MQTT broker"},
		"a port that is none":  {[]string{"topic", "t", "url", at + ":70000"}, "url: is no address of an MQTT broker"},
		"certificates, no TLS": {[]string{"topic", "t", "url", at, "caCert", "x"}, "write ssl://"},
		"a certificate alone":  {[]string{"topic", "t", "url", "ssl://h", "clientCert", "x"}, "clientKey: required"},
		"half a level":         {[]string{"topic", "a/b+/c", "url", at}, "topic: +"},
		"all in the middle":    {[]string{"topic", "a/#/c", "url", at}, "topic: #"},
		"an id":                {[]string{"topic", "t", "url", at, "consumerID", "a\x00"}, "consumerID"},
		"retries":              {[]string{"topic", "t", "url", at, "backOffMaxRetries", "-2"}, "backOffMaxRetries"},
		"qos":                  {[]string{"topic", "t", "url", at, "qos", "3"}, "qos"},
	} {
		_, err := tryOpen(nil, tt.items...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
	out := &logs{}
	for name, items := range map[string][]string{
		"what Dapr's page shows": {"url", "tcp://u:p@h.domain:1883", "topic", "mytopic", "consumerID", "myapp", "retain", "false", "cleanSession", "false", "backOffMaxRetries", "0", "direction", "input, output"},
		"qos":                    {"url", "mqtts://h", "topic", "+/#", "qos", "2"},
		"web socket":             {"url", "wss://h/mqtt?x=y", "topic", "#"},
	} {
		b, err := tryOpen(out.logger(), items...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = b.Close(context.Background())
	}
	if strings.Count(out.String(), "qos has no effect") != 1 {
		t.Errorf("logged: %s", out)
	}
	if _, err := tryOpen(nil, "topic", "t", "url", "ssl://h", "caCert", "/no/such/file"); fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "caCert") {
		t.Errorf("a file that is not there: %v", err)
	}
}

// Every way to the broker that an address can name.
func TestWays(t *testing.T) {
	m := server(t)
	ca, err := os.ReadFile(m.Cert)
	if err != nil {
		t.Fatal(err)
	}
	topic := own(t)
	for scheme, port := range map[string]int{"tcp": m.Port, "mqtt": m.Port, "ssl": m.TLSPort, "tls": m.TLSPort, "mqtts": m.TLSPort, "tcps": m.TLSPort, "ws": m.WebSocketPort} {
		with := []string{"topic", topic, "consumerID", own(t)}
		if port == m.TLSPort {
			with = append(with, "caCert", string(ca))
		}
		b := open(t, m.URL(scheme, port), with...)
		r := read(t, b, nil)
		r.begun(t, b, topic)
		big := strings.Repeat(scheme, 1<<18)
		create(t, b, big)
		if e := r.next(t); string(e.Data) != big {
			t.Errorf("%s: %d bytes came of %d", scheme, len(e.Data), len(big))
		}
		_ = r.stop()
	}
	for what, tt := range map[string]struct {
		url  string
		more []string
		want string
	}{
		"an unknown authority":   {m.URL("ssl", m.TLSPort), nil, "TLS"},
		"another name":           {m.URL("ssl", m.TLSPort), []string{"caCert", m.Cert, "tlsServerName", "other.example"}, "TLS"},
		"a port without TLS":     {m.URL("ssl", m.Port), []string{"caCert", m.Cert}, "TLS"},
		"a port without sockets": {m.URL("ws", m.Port), nil, "web socket"},
	} {
		err := open(t, tt.url, append([]string{"topic", topic, "consumerID", own(t)}, tt.more...)...).Ping(soon(t))
		if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A broker may ask for certificates instead of passwords.
func TestCertificates(t *testing.T) {
	port := servers.Port(t)
	m := servers.StartMosquitto(t) // its certificate is there before its settings
	m.Configure(t, fmt.Sprintf("listener %d 127.0.0.1", port), "cafile "+m.Cert, "certfile "+m.Cert, "keyfile "+strings.Replace(m.Cert, "cert.pem", "key.pem", 1),
		"require_certificate true", "use_identity_as_username true")
	cert, key := m.Client(t, "orders")
	url := fmt.Sprintf("ssl://127.0.0.1:%d", port)
	b := open(t, url, "topic", "t", "caCert", m.Cert, "clientCert", cert, "clientKey", key)
	read(t, b, nil).begun(t, b, "t")
	if err := open(t, url, "topic", "t", "caCert", m.Cert).Ping(soon(t)); fault.Of(err) != fault.Unavailable {
		t.Errorf("without a certificate: %v", err)
	}
}

func TestRefusedByTheBroker(t *testing.T) {
	m := server(t)
	for what, url := range map[string]string{
		"a wrong password": strings.Replace(m.URL("tcp", m.Port), "mecha:", "mecha:x", 1),
		"no such user":     strings.Replace(m.URL("tcp", m.Port), "mecha:", "nobody:", 1),
		"nobody":           fmt.Sprintf("tcp://127.0.0.1:%d", m.Port),
	} {
		b := open(t, url, "topic", own(t), "consumerID", own(t))
		for call, err := range map[string]error{"Ping": b.Ping(soon(t)), "create": tryCreate(soon(t), b, "data"), "Read": b.Read(soon(t), nil)} {
			if fault.Of(err) != fault.Unauthenticated || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "name and password") || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "p%40w") {
				t.Errorf("%s, %s: %v (%v)", what, call, err, fault.Of(err))
			}
		}
	}
}
