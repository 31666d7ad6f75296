package mesh

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dapr/go-sdk/client"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

// records is an app that takes the records of a Kafka binding.
type records struct {
	mu   sync.Mutex
	got  map[string]int // deliveries that were answered well, by body
	head map[string]http.Header
	fail func(body string) bool
}

func (a *records) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	b := string(body)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil && a.fail(b) {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	a.got[b]++
	a.head[b] = r.Header
}

func (a *records) count(body string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.got[body]
}

// Apps exchange records of Kafka through their sidecars. Neither a broker that comes after them, nor
// one that is killed, nor a sidecar that is, loses one that was taken.
func TestKafkaBinding(t *testing.T) {
	k := servers.StartKafka(t)
	k.CreateTopic(t, "orders", 4)
	k.Kill()
	app := &records{got: map[string]int{}, head: map[string]http.Header{}}
	port := harness.Serve(t, app)
	mesh := harness.NewMesh(t)
	start := func() *harness.Sidecar {
		return mesh.Start(harness.Options{AppID: "shop", AppPort: port, Files: map[string]string{
			"k.yaml": component("orders", "bindings.kafka", "brokers", k.Addr, "authType", "none", "topics", "orders", "publishTopic", "orders",
				"initialOffset", "oldest", "consumerGroup", "shops", "sessionTimeout", "6s", "backOffMaxInterval", "200ms"),
		}})
	}
	one := start()
	k.Restart(t)
	send := func(s *harness.Sidecar, body string) bool {
		resp, _ := harness.Do(t, "POST", s.URL("/v1.0/bindings/orders"), fmt.Appendf(nil, `{"operation":"create","data":%s,"metadata":{"partitionKey":"k","color":"red"}}`, body))
		return resp.StatusCode == http.StatusNoContent
	}
	eventually(t, 60*time.Second, "a record can be sent", func() bool { return send(one, `{"n": 0}`) })
	eventually(t, 60*time.Second, "and comes", func() bool { return app.count(`{"n":0}`) > 0 })
	app.mu.Lock()
	head := app.head[`{"n":0}`]
	app.mu.Unlock()
	if head.Get("color") != "red" || head.Get("__key") != "k" || head.Get("__topic") != "orders" || head.Get("__offset") == "" || head.Get("Content-Type") != "application/json" {
		t.Errorf("headers of a record: %v", head)
	}

	c := sdk(t, one)
	if err := c.InvokeOutputBinding(t.Context(), &client.InvokeBindingRequest{Name: "orders", Operation: "create", Data: []byte("\x00raw")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "bytes come as they are", func() bool { return app.count("\x00raw") > 0 })
	if resp, body := harness.Do(t, "POST", one.URL("/v1.0/bindings/orders"), []byte(`{"operation":"create","data":1,"metadata":{"partitionNumber":"9"}}`)); resp.StatusCode != 500 || !strings.Contains(string(body), "ERR_INVOKE_OUTPUT_BINDING") || !strings.Contains(string(body), "no partition 9") {
		t.Errorf("a partition that is not: %d %s", resp.StatusCode, body)
	}

	// A record that the app refuses comes until it does not, also to another sidecar.
	failing := true
	app.mu.Lock()
	app.fail = func(body string) bool { return failing && body == `"bad"` }
	app.mu.Unlock()
	if !send(one, `"bad"`) || !send(one, `"behind"`) {
		t.Fatal("a record was not taken")
	}
	eventually(t, 60*time.Second, "the app refuses it", func() bool {
		return strings.Contains(one.Log(), "the app did not handle an event of an input binding")
	})
	one.Kill()
	two := start()
	if n := app.count(`"behind"`); n != 0 {
		t.Error("a record passed one that was not handled")
	}
	app.mu.Lock()
	failing = false
	app.mu.Unlock()
	eventually(t, 60*time.Second, "both come", func() bool { return app.count(`"bad"`) > 0 && app.count(`"behind"`) > 0 })

	three := start()
	sent := 0
	for i := range 60 {
		switch i {
		case 20:
			k.Kill()
			k.Restart(t)
		case 40:
			two.Kill()
		}
		via := three
		if i%2 == 0 && i < 40 {
			via = two
		}
		body := strconv.Itoa(1000 + i)
		eventually(t, 60*time.Second, "a record is sent", func() bool { return send(via, body) })
		sent++
	}
	for i := range sent {
		eventually(t, 60*time.Second, "every record comes", func() bool { return app.count(strconv.Itoa(1000+i)) > 0 })
	}
	wantMetric(t, three, "dapr_component_output_binding_count{", `component="orders"`, `operation="create"`, `success="true"`)
	three.Signal(syscall.SIGTERM)
	if code := three.Wait(30 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A text over HTTP is a mail without its quotes.
func TestMailBinding(t *testing.T) {
	server := servers.StartSMTP(t, servers.SMTPOptions{})
	s := harness.NewMesh(t).Start(harness.Options{AppID: "shop", Files: map[string]string{
		"m.yaml": component("mail", "bindings.smtp", "host", server.Host, "port", strconv.Itoa(server.Port), "emailFrom", "shop@example.com", "subject", "Your order")}})
	resp, body := harness.Do(t, "POST", s.URL("/v1.0/bindings/mail"), []byte(`{"operation":"create","data":"<b>\"Thanks\"</b>","metadata":{"emailTo":"a@example.com"}}`))
	if m := server.Mails(t); resp.StatusCode != http.StatusNoContent || len(m) != 1 || !strings.HasSuffix(strings.TrimSpace(string(m[0].Data)), `<b>"Thanks"</b>`) {
		t.Errorf("%d %s; taken: %+v", resp.StatusCode, body, m)
	}
	resp, body = harness.Do(t, "POST", s.URL("/v1.0/bindings/mail"), []byte(`{"operation":"create","data":"x","metadata":{"emailTo":"a@example.com","subject":"s\r\nBcc: evil@example.com"}}`))
	if resp.StatusCode != http.StatusInternalServerError || !strings.Contains(string(body), "subject holds a line break") || len(server.Mails(t)) != 1 {
		t.Errorf("another header in a subject: %d %s", resp.StatusCode, body)
	}
}
