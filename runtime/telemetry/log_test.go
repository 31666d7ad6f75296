package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

func newLog(t testing.TB, o telemetry.LogOptions) (*telemetry.Log, *bytes.Buffer) {
	t.Helper()
	var b bytes.Buffer
	if o.Writer == nil {
		o.Writer = &b
	}
	o.AppID, o.Instance, o.Version = "orders", "host1", "1.2.3"
	l, err := telemetry.NewLog(o)
	if err != nil {
		t.Fatal(err)
	}
	return l, &b
}

var when = regexp.MustCompile(`time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)" `)

// line is the one line in b without its time, which must be there.
func line(t *testing.T, b *bytes.Buffer) string {
	t.Helper()
	got := b.String()
	b.Reset()
	if strings.Count(got, "\n") != 1 || !when.MatchString(got) {
		t.Fatalf("not one line with a time: %q", got)
	}
	return strings.TrimSuffix(when.ReplaceAllString(got, ""), "\n")
}

type masked string

func (masked) LogValue() slog.Value { return slog.StringValue("***") }

type holder struct {
	Name   string
	secret string
}

type nilStringer struct{ s string }

func (n *nilStringer) String() string { return n.s }

func TestTextLines(t *testing.T) {
	tests := []struct {
		name string
		log  func(*slog.Logger)
		want string
	}{
		{"plain", func(l *slog.Logger) { l.Info("app id: orders") },
			`level=info msg="app id: orders" app_id=orders instance=host1 scope=dapr.runtime type=log ver=1.2.3`},
		{"scope", func(l *slog.Logger) { telemetry.Scope(l, "dapr.contrib").Warn("no app") },
			`level=warning msg="no app" app_id=orders instance=host1 scope=dapr.contrib type=log ver=1.2.3`},
		{"scope of scope", func(l *slog.Logger) {
			telemetry.Scope(telemetry.Scope(l, "a"), "b").Error("one two", "component", "ps (pubsub.redis/v1)")
		}, `level=error msg="one two" app_id=orders component="ps (pubsub.redis/v1)" instance=host1 scope=b type=log ver=1.2.3`},
		{"fatal", func(l *slog.Logger) { l.Log(context.Background(), telemetry.LevelFatal, "the end") },
			`level=fatal msg="the end" app_id=orders instance=host1 scope=dapr.runtime type=log ver=1.2.3`},
		{"debug", func(l *slog.Logger) { l.Debug("a b", "n", 3, "f", 1.5, "ok", true, "u", uint8(7)) },
			`level=debug msg="a b" app_id=orders f=1.5 instance=host1 n=3 ok=true scope=dapr.runtime type=log u=7 ver=1.2.3`},
		{"quoting", func(l *slog.Logger) { l.Info("word", "q", `say "hi"`+"\n", "empty", "", "path", "/a/b", "u", "…") },
			`level=info msg=word app_id=orders empty= instance=host1 path=/a/b q="say \"hi\"\n" scope=dapr.runtime type=log u="…" ver=1.2.3`},
		{"last value stands", func(l *slog.Logger) { l.With("k", 1).Info("a b", "k", 2, "k", 3) },
			`level=info msg="a b" app_id=orders instance=host1 k=3 scope=dapr.runtime type=log ver=1.2.3`},
		{"groups", func(l *slog.Logger) { l.WithGroup("g").Info("a b", slog.Group("h", "k", 1), "m", 2) },
			`level=info msg="a b" app_id=orders g.h.k=1 g.m=2 instance=host1 scope=dapr.runtime type=log ver=1.2.3`},
		{"clash", func(l *slog.Logger) { l.Info("a b", "level", "x", "msg", "y") },
			`level=info msg="a b" app_id=orders fields.level=x fields.msg=y instance=host1 scope=dapr.runtime type=log ver=1.2.3`},
		{"secrets", func(l *slog.Logger) {
			l.Info("a b", "s", masked("pw"), "h", holder{"n", "pw"}, "p", &holder{"n", "pw"})
		}, `level=info msg="a b" app_id=orders h="{\"Name\":\"n\"}" instance=host1 p="{\"Name\":\"n\"}" s="***" scope=dapr.runtime type=log ver=1.2.3`},
		{"kinds", func(l *slog.Logger) {
			l.Info("a b", "err", errors.New("it broke"), "d", time.Second, "nil", nil, "list", []int{1, 2}, "fn", io.EOF)
		}, `level=info msg="a b" app_id=orders d=1s err="it broke" fn=EOF instance=host1 list="[1,2]" nil="<nil>" scope=dapr.runtime type=log ver=1.2.3`},
		{"key from outside", func(l *slog.Logger) { l.Info("a b", "k\nlevel=fatal", 1) },
			`level=info msg="a b" app_id=orders instance=host1 "k\nlevel=fatal"=1 scope=dapr.runtime type=log ver=1.2.3`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, b := newLog(t, telemetry.LogOptions{Level: slog.LevelDebug})
			tt.log(l.Logger)
			if got := line(t, b); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestPanickingValue(t *testing.T) {
	l, b := newLog(t, telemetry.LogOptions{})
	l.Info("a b", "v", (*nilStringer)(nil))
	if got := line(t, b); !strings.Contains(got, "v=\"!PANIC: ") {
		t.Errorf("got %s", got)
	}
}

func TestJSONLines(t *testing.T) {
	l, b := newLog(t, telemetry.LogOptions{JSON: true})
	telemetry.Scope(l.Logger, "dapr.api").Warn("a \"b\"\x01\xff…", "n", 3, "z", []string{"x"}, "s", masked("pw"), "err", io.EOF)
	got := b.String()
	var m map[string]any
	if err := json.Unmarshal([]byte(got), &m); err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	if _, err := time.Parse(time.RFC3339Nano, m["time"].(string)); err != nil {
		t.Error(err)
	}
	got = regexp.MustCompile(`"time":"[^"]*",`).ReplaceAllString(got, "")
	want := `{"app_id":"orders","err":"EOF","instance":"host1","level":"warning","msg":"a \"b\"\u0001` + "\uFFFD" + `…","n":3,"s":"***","scope":"dapr.api","type":"log","ver":"1.2.3","z":["x"]}` + "\n"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestLevels(t *testing.T) {
	l, b := newLog(t, telemetry.LogOptions{Level: slog.LevelWarn})
	child := l.With("k", "v")
	child.Info("hidden")
	if b.Len() != 0 {
		t.Errorf("written below the level: %s", b)
	}
	l.SetLevel(slog.LevelDebug)
	child.Debug("shown now")
	if got := line(t, b); !strings.Contains(got, "shown now") || l.Level() != slog.LevelDebug {
		t.Errorf("after SetLevel: %q, level %v", got, l.Level())
	}
}

func TestParseLevel(t *testing.T) {
	for s, want := range map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
		"fatal": telemetry.LevelFatal, "INFO": slog.LevelInfo,
	} {
		if got, err := telemetry.ParseLevel(s); err != nil || got != want {
			t.Errorf("ParseLevel(%q) = %v, %v", s, got, err)
		}
	}
	_, err := telemetry.ParseLevel("loud")
	if err == nil || err.Error() != "invalid value for --log-level: loud" || fault.Of(err) != fault.Invalid {
		t.Errorf("err = %v", err)
	}
}

func TestLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	for range 2 { // the second opening appends
		l, err := telemetry.NewLog(telemetry.LogOptions{AppID: "orders", File: path})
		if err != nil {
			t.Fatal(err)
		}
		l.Info("to the file")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil || strings.Count(string(text), "to the file") != 2 {
		t.Errorf("%v, file: %s", err, text)
	}
	_, err = telemetry.NewLog(telemetry.LogOptions{File: filepath.Join(path, "below")})
	if err == nil || !strings.Contains(err.Error(), "--log-file") {
		t.Errorf("err = %v", err)
	}
}

type writes struct {
	mu    sync.Mutex
	lines []string
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, string(p))
	return len(p), nil
}

func TestOneWritePerLine(t *testing.T) {
	w := &writes{}
	l, _ := newLog(t, telemetry.LogOptions{Writer: w})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				l.Info("a b", "g", g, "i", i, "long", strings.Repeat("x", 300))
			}
		})
	}
	wg.Wait()
	if len(w.lines) != 400 {
		t.Fatalf("%d writes for 400 lines", len(w.lines))
	}
	for _, s := range w.lines {
		if strings.Count(s, "\n") != 1 || !strings.HasSuffix(s, " ver=1.2.3\n") || !strings.HasPrefix(s, "time=") {
			t.Fatalf("a torn line: %q", s)
		}
	}
}

func TestAPILog(t *testing.T) {
	get := telemetry.HTTPCall{Verb: "GET", Path: "/v1.0/state/mem/abc", Route: "GetState", UserAgent: "curl/8", Code: 200, Size: 12, Took: 3400 * time.Microsecond}
	health := telemetry.HTTPCall{Verb: "GET", Path: "/v1.0/healthz/outbound", Route: "Healthz", Code: 204}
	const tail = " type=log ver=1.2.3"
	tests := []struct {
		name string
		o    telemetry.APILogOptions
		call func(*telemetry.APILog)
		want string
	}{
		{"http", telemetry.APILogOptions{Enabled: true}, func(a *telemetry.APILog) { a.HTTP(get) },
			`level=info msg="HTTP API Called" app_id=orders code=200 duration=3 instance=host1 method="GET /v1.0/state/mem/abc" scope=dapr.runtime.http-info size=12 type=log useragent=curl/8 ver=1.2.3`},
		{"obfuscated", telemetry.APILogOptions{Enabled: true, ObfuscateURLs: true}, func(a *telemetry.APILog) { a.HTTP(get) },
			`level=info msg="HTTP API Called" app_id=orders code=200 duration=3 instance=host1 method=GetState scope=dapr.runtime.http-info size=12 type=log useragent=curl/8 ver=1.2.3`},
		{"health", telemetry.APILogOptions{Enabled: true}, func(a *telemetry.APILog) { a.HTTP(health) },
			`level=info msg="HTTP API Called" app_id=orders code=204 duration=0 instance=host1 method="GET /v1.0/healthz/outbound" scope=dapr.runtime.http-info size=0` + tail},
		{"health omitted", telemetry.APILogOptions{Enabled: true, OmitHealthChecks: true}, func(a *telemetry.APILog) { a.HTTP(health) }, ""},
		{"grpc", telemetry.APILogOptions{Enabled: true}, func(a *telemetry.APILog) {
			a.GRPC("/dapr.proto.runtime.v1.Dapr/GetState", "", 3, time.Second)
		}, `level=info msg="gRPC API Called" app_id=orders code=3 duration=1000 instance=host1 method=/dapr.proto.runtime.v1.Dapr/GetState scope=dapr.runtime.grpc.api-info` + tail},
		{"off", telemetry.APILogOptions{}, func(a *telemetry.APILog) { a.HTTP(get); a.GRPC("/a/b", "", 0, 0) }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, b := newLog(t, telemetry.LogOptions{})
			tt.call(telemetry.NewAPILog(l.Logger, tt.o))
			if tt.want == "" {
				if b.Len() != 0 {
					t.Errorf("logged %s", b)
				}
				return
			}
			if got := line(t, b); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestAPILogEnabled(t *testing.T) {
	on, off := true, false
	for _, tt := range []struct {
		name       string
		flag       *bool
		configured bool
		want       bool
	}{
		{"unset follows the configuration", nil, true, true}, {"unset and unconfigured", nil, false, false},
		{"flag on wins", &on, false, true}, {"flag off wins", &off, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := telemetry.APILogEnabled(tt.flag, tt.configured); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestLoggingAllocatesLittle(t *testing.T) {
	l, _ := newLog(t, telemetry.LogOptions{Writer: io.Discard})
	a := telemetry.NewAPILog(l.Logger, telemetry.APILogOptions{Enabled: true})
	var off *telemetry.APILog
	c := telemetry.HTTPCall{Verb: "GET", Path: "/v1.0/state/mem/abc", Code: 200, UserAgent: "curl"}
	if n := testing.AllocsPerRun(100, func() { a.HTTP(c) }); n > 4 {
		t.Errorf("an API log line: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { off.HTTP(c) }); n != 0 {
		t.Errorf("API logging off: %v allocations", n)
	}
}

func BenchmarkAPILog(b *testing.B) {
	l, _ := newLog(b, telemetry.LogOptions{Writer: io.Discard})
	a := telemetry.NewAPILog(l.Logger, telemetry.APILogOptions{Enabled: true})
	c := telemetry.HTTPCall{Verb: "GET", Path: "/v1.0/state/mem/abc", Code: 200, UserAgent: "curl"}
	b.ReportAllocs()
	for b.Loop() {
		a.HTTP(c)
	}
}
