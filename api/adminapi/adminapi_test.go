package adminapi_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/api/adminapi"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o adminapi.Options) *adminapi.Server {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := adminapi.New(o)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func get(t *testing.T, addr net.Addr, path string) (*http.Response, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	r, err := client.Get("http://" + addr.String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r, string(b)
}

func registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "dapr_test", Help: "For the test."})
	c.Add(3)
	r.MustRegister(c)
	return r
}

func TestMetricsOnAnyPath(t *testing.T) {
	var log bytes.Buffer
	s := start(t, adminapi.Options{MetricsAddr: "127.0.0.1:0", Metrics: registry(), Log: slog.New(slog.NewTextHandler(&log, nil))})
	for _, path := range []string{"/", "/metrics", "/what/ever?x=1"} {
		r, body := get(t, s.MetricsAddr(), path)
		if r.StatusCode != 200 || !strings.Contains(body, "\ndapr_test 3\n") || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain") {
			t.Errorf("%s: %d %s\n%s", path, r.StatusCode, r.Header.Get("Content-Type"), body)
		}
	}
	if s.ProfileAddr() != nil {
		t.Error("profiles are served unasked")
	}
	if want := "metrics server started on " + s.MetricsAddr().String() + "/"; !strings.Contains(log.String(), want) {
		t.Errorf("log lacks %q: %s", want, &log)
	}
}

func TestProfiles(t *testing.T) {
	s := start(t, adminapi.Options{ProfileAddr: "127.0.0.1:0"})
	if r, body := get(t, s.ProfileAddr(), "/debug/pprof/"); r.StatusCode != 200 || !strings.Contains(body, "goroutine") {
		t.Errorf("index: %d %s", r.StatusCode, body)
	}
	if r, body := get(t, s.ProfileAddr(), "/debug/pprof/goroutine?debug=1"); r.StatusCode != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("goroutine: %d %s", r.StatusCode, body)
	}
	if r, _ := get(t, s.ProfileAddr(), "/metrics"); r.StatusCode != 404 {
		t.Errorf("other path: %d", r.StatusCode)
	}
	if s.MetricsAddr() != nil {
		t.Error("metrics are served unasked")
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	busy := l.Addr().String()
	for name, o := range map[string]adminapi.Options{
		"metrics":  {MetricsAddr: busy},
		"profiles": {MetricsAddr: "127.0.0.1:0", ProfileAddr: busy},
	} {
		t.Run(name, func(t *testing.T) {
			s := adminapi.New(o)
			err := s.Start()
			if err == nil || !strings.HasPrefix(err.Error(), "failed to listen on "+busy+": ") {
				t.Errorf("err = %v", err)
			}
			if s.MetricsAddr() != nil {
				t.Error("one port is served after a failed start")
			}
			if err := s.Close(context.Background()); err != nil {
				t.Errorf("Close after a failed start: %v", err)
			}
		})
	}
}

func TestCloseCutsOffWhatTakesTooLong(t *testing.T) {
	block, entered := make(chan struct{}), make(chan struct{})
	slow := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		close(entered)
		<-block
		return nil, nil
	})
	s := adminapi.New(adminapi.Options{MetricsAddr: "127.0.0.1:0", Metrics: slow, Log: slog.New(slog.DiscardHandler)})
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		if r, err := client.Get("http://" + s.MetricsAddr().String()); err == nil {
			r.Body.Close()
			t.Error("the answer came although it was cut off")
		}
	}()
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); err == nil {
		t.Error("Close says nothing about the answer it cut off")
	}
	<-done
	close(block)
	if err := s.Close(context.Background()); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestListenAddr(t *testing.T) {
	for want, got := range map[string]string{
		"127.0.0.1:9090": adminapi.ListenAddr("", 9090),
		"0.0.0.0:9090":   adminapi.ListenAddr("0.0.0.0", 9090),
		"[::1]:7777":     adminapi.ListenAddr("::1", 7777),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
