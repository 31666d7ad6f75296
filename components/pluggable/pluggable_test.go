package pluggable_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/pluggable"
	"github.com/mecha-project/mecha/test/servers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits; nothing passes by waiting it out.
const patience = 20 * time.Second

// folder is a short one: a socket's path has at most 107 bytes.
func folder(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "pl-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func discover(tb testing.TB, dir string) *pluggable.Finder {
	tb.Helper()
	return pluggable.Discover(tb.Context(), dir, slog.New(slog.DiscardHandler))
}

// open opens a component of a type as the catalog does, without meeting the process.
func open(tb testing.TB, f *pluggable.Finder, typ, name string, metadata ...string) block.Component {
	tb.Helper()
	part, ok := f.Find(typ, "v1")
	if !ok {
		tb.Fatalf("no %s", typ)
	}
	config := part.Config()
	if err := conf.Decode(conf.Items(metadata...), config).Err(); err != nil {
		tb.Fatal(err)
	}
	c, err := part.Open(block.Env{Log: slog.New(slog.DiscardHandler), AppID: "app", Component: name}, config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func within(tb testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	tb.Cleanup(cancel)
	return ctx
}

// The suite learns abilities from interfaces. A pluggable component's are known only after Init, so
// these say what the component under test claims.
type expiring struct {
	block.State
	block.StateBatch
	block.StateTx
}

func (expiring) ExpiresItems() {}

func TestStateConformance(t *testing.T) {
	dir := folder(t)
	servers.StartPluggable(t, dir, "full")
	servers.StartPluggable(t, dir, "plain", "-features", "ETAG", "-bulk=false", "-serve", "state")
	servers.StartPluggable(t, dir, "small", "-features", "ETAG", "-max", "10", "-bulk=false")
	f := discover(t, dir)
	t.Run("full", func(t *testing.T) {
		blocktest.State(t, func(t *testing.T) block.State {
			c := open(t, f, "state.full", "s")
			return expiring{c.(block.State), c.(block.StateBatch), c.(block.StateTx)}
		})
	})
	t.Run("no expiry, bulk or transactions", func(t *testing.T) {
		blocktest.State(t, func(t *testing.T) block.State {
			c := open(t, f, "state.plain", "s").(block.State)
			if _, ok := c.(block.StateTx); ok {
				t.Fatal("transactions although the socket does not serve them")
			}
			return c
		})
	})
	t.Run("small transactions", func(t *testing.T) {
		blocktest.State(t, func(t *testing.T) block.State {
			c := open(t, f, "state.small", "s").(block.State)
			if err := c.Ping(within(t, patience)); err != nil {
				t.Fatal(err)
			}
			if n := c.(block.StateTx).MaxOps(); n != 10 {
				t.Fatalf("MaxOps = %d, want 10", n)
			}
			return c
		})
	})
}

func TestPubSubConformance(t *testing.T) {
	dir := folder(t)
	servers.StartPluggable(t, dir, "full")
	servers.StartPluggable(t, dir, "single", "-bulk=false")
	f := discover(t, dir)
	for _, typ := range []string{"pubsub.full", "pubsub.single"} {
		t.Run(typ, func(t *testing.T) {
			blocktest.Queue(t, func(t *testing.T) func() block.Queue {
				return func() block.Queue { return open(t, f, typ, "p").(block.Queue) }
			})
		})
	}
}

func TestStoreWithoutVersions(t *testing.T) {
	dir := folder(t)
	servers.StartPluggable(t, dir, "old", "-features", "")
	s := open(t, discover(t, dir), "state.old", "s").(block.State)
	for name, w := range map[string]block.StateWrite{"etag": {Key: "k", ETag: "1"}, "first write": {Key: "k", FirstWrite: true}, "ttl": {Key: "k", TTL: time.Second}} {
		err := s.Set(within(t, patience), w)
		if fault.Of(err) != fault.Unsupported || fault.SentOf(err) != fault.SentNever {
			t.Errorf("%s: %v (%v), want a refusal before anything is sent", name, err, fault.Of(err))
		}
	}
	if err := s.Delete(within(t, patience), block.StateDelete{Key: "k", ETag: "1"}); fault.Of(err) != fault.Unsupported {
		t.Errorf("delete: %v", err)
	}
}

func TestSecret(t *testing.T) {
	dir := folder(t)
	servers.StartPluggable(t, dir, "safe")
	s := open(t, discover(t, dir), "secretstores.safe", "s", "db", "p4ss", "Key", "k").(block.Secret)
	got, err := s.Get(within(t, patience), "db", map[string]string{"version": "2"})
	if err != nil || got["value"] != "p4ss" || got["asked"] != "2" {
		t.Errorf("Get = %v, %v", got, err)
	}
	if _, err := s.Get(within(t, patience), "none", nil); fault.Of(err) != fault.NotFound {
		t.Errorf("a missing secret: %v, want not found", err)
	}
	all, err := s.GetAll(within(t, patience), nil)
	if err != nil || len(all) != 2 || all["Key"]["value"] != "k" {
		t.Errorf("GetAll = %v, %v", all, err)
	}
	if !s.(block.SecretMany).ManyValues() {
		t.Error("the component's feature is not seen")
	}
}

func TestBinding(t *testing.T) {
	dir := folder(t)
	servers.StartPluggable(t, dir, "horn")
	servers.StartPluggable(t, dir, "ear", "-serve", "input")
	f := discover(t, dir)
	c := open(t, f, "bindings.horn", "b")
	out := c.(block.Output)
	if len(out.Operations()) != 0 || c.(block.Late).Features() != nil {
		t.Error("abilities before the component was met")
	}
	if err := c.Ping(within(t, patience)); err != nil { // has no Ping of its own
		t.Fatal(err)
	}
	if got := out.Operations(); !slices.Equal(got, []string{"shout", "event"}) {
		t.Errorf("operations %q", got)
	}
	a, err := out.Invoke(within(t, patience), block.BindingRequest{Operation: "shout", Data: []byte("hey"), Metadata: map[string]string{"m": "1"}})
	if err != nil || string(a.Data) != "HEY" || a.Metadata["m"] != "1" {
		t.Errorf("Invoke = %v, %v", a, err)
	}
	if _, err := out.Invoke(within(t, patience), block.BindingRequest{Operation: "whisper"}); fault.Of(err) != fault.Unsupported {
		t.Errorf("an unknown operation: %v", err)
	}
	if a, err := out.Invoke(within(t, patience), block.BindingRequest{Operation: "event", Data: []byte("e1")}); err != nil || a != nil {
		t.Errorf("an empty answer = %v, %v; want nil, nil", a, err)
	}
	ctx, cancel := context.WithCancel(within(t, patience))
	var seen []string
	err = c.(block.Input).Read(ctx, func(_ context.Context, e block.BindingEvent) ([]byte, error) {
		seen = append(seen, string(e.Data))
		if len(seen) < 3 {
			return nil, errors.New("not yet")
		}
		cancel()
		return nil, nil
	})
	if fault.Of(err) != fault.Canceled || !slices.Equal(seen, []string{"e1", "e1", "e1"}) {
		t.Errorf("Read = %v after %q, want the event again until it was handled", err, seen)
	}
	if _, ok := open(t, f, "bindings.ear", "e").(block.Output); ok {
		t.Error("an input binding became an output binding")
	}
}

// Each component of a socket is one of its own, with its own metadata.
func TestInstances(t *testing.T) {
	dir := folder(t)
	servers.StartPluggable(t, dir, "store")
	f := discover(t, dir)
	red := open(t, f, "state.store", "red", "colour", "red").(block.State)
	blue := open(t, f, "state.store", "blue", "Colour", "x", "colour", "blue").(block.State)
	for want, s := range map[string]block.State{"1red": red, "2blue": blue} {
		it, err := s.Get(within(t, patience), "a||properties", block.StateRead{})
		if err != nil || string(it.Value) != want {
			t.Errorf("properties %q, %v; want %q", it.Value, err, want)
		}
		if err := s.Set(within(t, patience), block.StateWrite{Key: "k", Value: []byte(want)}); err != nil {
			t.Fatal(err)
		}
	}
	if it, err := red.Get(within(t, patience), "k", block.StateRead{}); err != nil || string(it.Value) != "1red" {
		t.Errorf("one component reads another's: %q, %v", it.Value, err)
	}
	broken := open(t, f, "state.store", "broken", "fail", "no such table")
	if err := broken.Ping(within(t, patience)); fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "no such table") {
		t.Errorf("a failing Init: %v", err)
	}
}

// A process that comes back has forgotten its Init, and gets it again.
func TestRestart(t *testing.T) {
	dir := folder(t)
	p := servers.StartPluggable(t, dir, "store")
	s := open(t, discover(t, dir), "state.store", "s", "colour", "red").(block.State)
	if err := s.Set(within(t, patience), block.StateWrite{Key: "k", Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		p.Kill()
		start := time.Now()
		// The first call may meet the connection before its end is seen.
		if _, err := s.Get(within(t, patience), "k", block.StateRead{}); fault.Of(err) != fault.Unavailable || fault.SentOf(err) == fault.SentUnknown {
			t.Errorf("when the process goes: %v (%v, sent %v), want unavailable", err, fault.Of(err), fault.SentOf(err))
		}
		_, err := s.Get(within(t, patience), "k", block.StateRead{})
		if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
			t.Errorf("while the process is away: %v (%v, sent %v), want unavailable, never sent", err, fault.Of(err), fault.SentOf(err))
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("a process that is away took %v to notice", took)
		}
		p.Restart(t)
		it, err := s.Get(within(t, patience), "a||properties", block.StateRead{})
		if err != nil || string(it.Value) != "1red" {
			t.Errorf("after the restart: %q, %v", it.Value, err)
		}
	}
}

// Calls in progress when the process is killed may have been carried out.
func TestKilledUnderLoad(t *testing.T) {
	dir := folder(t)
	p := servers.StartPluggable(t, dir, "store")
	s := open(t, discover(t, dir), "state.store", "s").(block.State)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := s.Set(within(t, patience), block.StateWrite{Key: "k", Value: bytes.Repeat([]byte("v"), 1000)})
				if err != nil && (fault.Of(err) != fault.Unavailable || fault.SentOf(err) == fault.SentUnknown) {
					t.Errorf("%v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
				}
				if err != nil {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		p.Kill()
		p.Restart(t)
	}
	close(stop)
	wg.Wait()
	if err := s.Set(within(t, patience), block.StateWrite{Key: "k", Value: []byte("v")}); err != nil {
		t.Errorf("after the restarts: %v", err)
	}
}

// A process that hangs holds up its own calls, for as long as they want to wait, and no others.
func TestHang(t *testing.T) {
	dir := folder(t)
	hung := servers.StartPluggable(t, dir, "hung")
	servers.StartPluggable(t, dir, "well")
	f := discover(t, dir)
	met := open(t, f, "state.hung", "met").(block.State)
	if err := met.Ping(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	new := open(t, f, "state.hung", "new").(block.State) // Init is still to come
	well := open(t, f, "state.well", "w").(block.State)
	hung.Freeze()
	defer hung.Thaw()
	for met.Ping(within(t, 200*time.Millisecond)) == nil { // the signal takes effect a little later
	}
	for s, want := range map[block.State]fault.Sent{met: fault.SentMaybe, new: fault.SentNever} {
		var wg sync.WaitGroup
		for range 3 { // none waits for another
			wg.Go(func() {
				start := time.Now()
				err := s.Set(within(t, 300*time.Millisecond), block.StateWrite{Key: "k"})
				if fault.Of(err) != fault.Deadline || fault.SentOf(err) != want {
					t.Errorf("%v (%v, sent %v), want deadline, sent %v", err, fault.Of(err), fault.SentOf(err), want)
				}
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("a time limit of 300ms took %v", took)
				}
			})
		}
		wg.Wait()
		if err := well.Set(within(t, patience), block.StateWrite{Key: "k"}); err != nil {
			t.Errorf("another component: %v", err)
		}
	}
	if err := new.Close(within(t, patience)); err != nil {
		t.Errorf("Close: %v", err)
	}
	hung.Thaw()
	if err := met.Set(within(t, patience), block.StateWrite{Key: "k"}); err != nil {
		t.Errorf("after it went on: %v", err)
	}
}

// A subscription goes on when its process comes back.
func TestSubscriptionSurvives(t *testing.T) {
	dir := folder(t)
	p := servers.StartPluggable(t, dir, "bus")
	c := open(t, discover(t, dir), "pubsub.bus", "b").(block.Queue)
	got := make(chan string, 100)
	ctx, cancel := context.WithCancel(within(t, patience))
	ended := make(chan error)
	go func() {
		ended <- c.Consume(ctx, block.ConsumeOptions{Topic: "t", Group: "app", MaxInFlight: 2}, func(d block.Delivery) {
			got <- string(d.Data)
			d.Ack()
		})
	}()
	for _, want := range []string{"one", "two", "three"} {
		if errs := c.Publish(within(t, patience), []block.Message{{Topic: "t", Data: []byte(want)}}); errs != nil {
			t.Fatal(errs)
		}
		select {
		case s := <-got:
			if s != want {
				t.Errorf("got %q, want %q", s, want)
			}
		case <-time.After(patience):
			t.Fatalf("%q did not come", want)
		}
		p.Kill()
		p.Restart(t)
	}
	p.Freeze() // Consume ends although nobody reads its answers
	cancel()
	if err := <-ended; fault.Of(err) != fault.Canceled {
		t.Errorf("Consume = %v", err)
	}
	p.Thaw()
	err := c.Consume(within(t, patience), block.ConsumeOptions{Topic: "forbidden", MaxInFlight: 1}, func(block.Delivery) {})
	if fault.Of(err) != fault.Denied {
		t.Errorf("a refused topic: %v, want the end", err)
	}
}

func TestBulkPublishPartly(t *testing.T) {
	dir := folder(t)
	servers.StartPluggable(t, dir, "bus")
	c := open(t, discover(t, dir), "pubsub.bus", "b").(block.Queue)
	errs := c.Publish(within(t, patience), []block.Message{{Topic: "t", Data: []byte("a")}, {Topic: "t", Data: []byte("refused")}, {Topic: "u", Data: []byte("c")}})
	if len(errs) != 3 || errs[0] != nil || errs[1] == nil || errs[2] != nil {
		t.Errorf("Publish = %v, want an error of the second", errs)
	}
}

// Whatever lies in the folder, the components beside it are found.
func TestDiscover(t *testing.T) {
	dir := folder(t)
	servers.StartPluggable(t, dir, "Good")
	if err := os.WriteFile(filepath.Join(dir, "file.sock"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	garbage(t, filepath.Join(dir, "noise.sock"), "HTTP/1.1 400 Bad Request\r\n\r\n")
	garbage(t, filepath.Join(dir, "mute.sock"), "")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "dead.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	var said bytes.Buffer
	f := pluggable.Discover(t.Context(), dir, slog.New(slog.NewTextHandler(&said, nil)))
	for _, want := range []string{"pluggable component 'good' was successfully registered for 'dapr.proto.components.v1.StateStore'", "noise.sock", "mute.sock", "dead.sock"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, said.String())
		}
	}
	for typ, want := range map[string]bool{"state.good": true, "state.Good": true, "pubsub.good": true, "state.none": false, "lock.good": false, "state.file": false, "state": false} {
		if _, ok := f.Find(typ, "v1"); ok != want {
			t.Errorf("Find(%s) = %v, want %v", typ, ok, want)
		}
	}
	if _, ok := f.Find("state.good", "v2"); ok {
		t.Error("a version nobody serves was found")
	}
	servers.StartPluggable(t, dir, "late", "-serve", "state")
	if _, ok := f.Find("state.late", ""); !ok {
		t.Error("a process that started later was not found")
	}
	if _, ok := f.Find("pubsub.late", ""); ok {
		t.Error("a block that the socket does not serve was found")
	}
	if none := discover(t, filepath.Join(dir, "none")); none == nil {
		t.Error("a folder that does not exist")
	}
}

func TestMetadataTwice(t *testing.T) {
	dir := folder(t)
	servers.StartPluggable(t, dir, "s")
	part, _ := discover(t, dir).Find("state.s", "")
	if err := conf.Decode(conf.Items("a", "1", "a", "2"), part.Config()).Err(); err == nil {
		t.Error("an entry given twice passed")
	}
}

// garbage listens and answers every connection with text, or not at all.
func garbage(t *testing.T, path, text string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.WriteString(c, text)
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
}
