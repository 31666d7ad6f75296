package mesh

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	"github.com/mecha-project/mecha/test/harness"

	_ "modernc.org/sqlite" // driver of dump
)

// seen is a request an app got.
type seen struct {
	Path   string
	Header http.Header
	Body   string
}

// inbox is an HTTP app that keeps what it gets, by path, and answers 200.
type inbox struct {
	mu   sync.Mutex
	got  map[string][]seen
	more func(path string, s seen, w http.ResponseWriter) // may be nil
}

func (b *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s := seen{Path: r.URL.Path, Header: r.Header, Body: string(body)}
	b.mu.Lock()
	if b.got == nil {
		b.got = map[string][]seen{}
	}
	b.got[r.URL.Path] = append(b.got[r.URL.Path], s)
	b.mu.Unlock()
	if b.more != nil {
		b.more(r.URL.Path, s, w)
	}
}

// await waits for a request to a path and returns the first.
func (b *inbox) await(t *testing.T, path string) seen {
	t.Helper()
	var first seen
	eventually(t, 15*time.Second, "the app gets "+path, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.got[path]) == 0 {
			return false
		}
		first = b.got[path][0]
		return true
	})
	return first
}

// count is how many requests to a path came so far.
func (b *inbox) count(path string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.got[path])
}

// last is the latest request to a path.
func (b *inbox) last(t *testing.T, path string) seen {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.got[path]) == 0 {
		t.Fatalf("the app got nothing at %s", path)
	}
	return b.got[path][len(b.got[path])-1]
}

// eventually polls until ok, and fails after limit.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %v: %s", limit, what)
}

// component is the text of a Component resource.
func component(name, typ string, metadata ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: %s}\nspec:\n  type: %s\n  version: v1\n", name, typ)
	for i := 0; i+1 < len(metadata); i += 2 {
		if i == 0 {
			b.WriteString("  metadata:\n")
		}
		fmt.Fprintf(&b, "  - {name: %s, value: %q}\n", metadata[i], metadata[i+1])
	}
	return b.String()
}

// configuration is the text of a Configuration resource; spec is indented by two.
func configuration(spec string) string {
	return "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: test}\nspec:\n" + spec
}

// nodeDir is a directory for an embedded node, which is ended with the test.
func nodeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "node-") // short: a socket lives in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(filepath.Join(dir, "lock")); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
				if p, err := os.FindProcess(pid); err == nil {
					_ = p.Kill() // it may have left
				}
			}
		}
		os.RemoveAll(dir)
	})
	return dir
}

// stop ends sidecars in order, so that what they hold (spans above all) is sent.
func stop(sidecars ...*harness.Sidecar) {
	for _, s := range sidecars {
		s.Signal(syscall.SIGTERM)
	}
	for _, s := range sidecars {
		s.Wait(15 * time.Second)
	}
}

// echoService is a gRPC app that keeps the metadata of the last call.
type echoService struct {
	grpc_testing.UnimplementedTestServiceServer
	mu sync.Mutex
	md metadata.MD
}

func (e *echoService) UnaryCall(ctx context.Context, in *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	e.mu.Lock()
	e.md = md
	e.mu.Unlock()
	return &grpc_testing.SimpleResponse{Payload: in.GetPayload()}, nil
}

func (e *echoService) saw(name string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return one(e.md, name)
}

// serveGRPC runs a gRPC app until the test ends.
func serveGRPC(t *testing.T, register func(*grpc.Server)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	register(srv)
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	return l.Addr().(*net.TCPAddr).Port
}

func dial(t *testing.T, target string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func one(md metadata.MD, name string) string {
	if v := md.Get(name); len(v) > 0 {
		return v[0]
	}
	return ""
}

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// dump is all keys of a SQLite store.
func dump(t *testing.T, file string) string {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+file+"?mode=ro&_pragma=busy_timeout(2000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(t.Context(), "SELECT key FROM state")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var b strings.Builder
	for rows.Next() {
		var key string
		if err := rows.Scan(&key); err != nil {
			t.Fatal(err)
		}
		b.WriteString(key + "\n")
	}
	return b.String()
}
