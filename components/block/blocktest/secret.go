package blocktest

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Secret checks a secret store. open returns a component in which at least the secrets of want
// exist, with exactly these values; more may exist, for a store need not be the test's own. want
// holds at least two secrets. The suite closes the component and, as the contract has no way to
// write, changes nothing.
func Secret(t *testing.T, want map[string]map[string]string, open func(t *testing.T) block.Secret) {
	t.Helper()
	suite(t, block.KindSecret)
	if len(want) < 2 {
		t.Fatal("the suite needs two secrets or more")
	}
	groups := []struct {
		name string
		run  func(*secretTest)
	}{
		{"ping", secretPing},
		{"one secret", secretGet},
		{"all secrets", secretAll},
		{"names are exact", secretExact},
		{"missing secrets", secretMissing},
		{"several values", secretMany},
		{"unknown metadata", secretMetadata},
		{"maps belong to the caller", secretOwnership},
		{"many readers", secretReaders},
		{"an ended context", secretContext},
		{"close", secretClose},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			s := &secretTest{T: t, store: open(t), want: want}
			t.Cleanup(func() { closeQuietly(t, s.store) })
			g.run(s)
		})
	}
}

type secretTest struct {
	*testing.T
	store block.Secret
	want  map[string]map[string]string
}

func (s *secretTest) ctx() context.Context { return patiently(s.T) }

func (s *secretTest) get(name string) map[string]string {
	s.Helper()
	got, err := s.store.Get(s.ctx(), name, nil)
	if err != nil {
		s.Fatalf("Get(%s): %v", show(name), err)
	}
	return got
}

func (s *secretTest) all() map[string]map[string]string {
	s.Helper()
	got, err := s.store.GetAll(s.ctx(), nil)
	if err != nil {
		s.Fatalf("GetAll: %v", err)
	}
	return got
}

// any is one of the secrets.
func (s *secretTest) any() string {
	for name := range s.want {
		return name
	}
	return ""
}

func secretPing(s *secretTest) {
	if err := s.store.Ping(s.ctx()); err != nil {
		s.Fatalf("Ping: %v", err)
	}
}

func secretGet(s *secretTest) {
	for name, want := range s.want {
		if d := cmp.Diff(want, s.get(name)); d != "" {
			s.Errorf("Get(%s) (-want +got):\n%s", show(name), d)
		}
	}
}

// What is listed can be read, and is the same.
func secretAll(s *secretTest) {
	all := s.all()
	for name, want := range s.want {
		if d := cmp.Diff(want, all[name]); d != "" {
			s.Errorf("GetAll[%s] (-want +got):\n%s", show(name), d)
		}
	}
	for name, listed := range all {
		if d := cmp.Diff(listed, s.get(name)); d != "" {
			s.Errorf("Get(%s) differs from GetAll (-all +one):\n%s", show(name), d)
		}
		if strings.TrimSpace(name) == "" {
			s.Errorf("GetAll lists a secret without a name")
		}
	}
}

// secretExact tries other spellings of names that exist. A store that resolved one of them to
// the secret would let callers around a rule about its name.
func secretExact(s *secretTest) {
	for name := range s.want {
		for _, other := range []string{strings.ToUpper(name), strings.ToLower(name), name + "/", "/" + name, "./" + name, name + "/.", "x/../" + name,
			"//" + name, name + " ", " " + name, name + "\x00", name + "?", name + "#x", strings.ReplaceAll(name, "-", "%2D") + "%", name + "\n"} {
			if _, real := s.want[other]; real {
				continue
			}
			s.absent(other, "another spelling of "+show(name))
		}
	}
}

func secretMissing(s *secretTest) {
	for _, name := range []string{unique(), "no/such/" + unique(), "..", ".", "/", "%", "ü" + unique(), ""} {
		s.absent(name, "a missing secret")
	}
}

// absent checks that there is no secret of a name.
func (s *secretTest) absent(name, what string) {
	s.Helper()
	got, err := s.store.Get(s.ctx(), name, nil)
	if _, ok := s.store.(block.SecretBlank); !ok {
		wantCode(s, "Get("+show(name)+"), "+what, err, fault.NotFound)
		return
	}
	if d := cmp.Diff(map[string]string{name: ""}, got); err != nil || d != "" {
		s.Errorf("Get(%s), %s of a store that has a blank for it: %v (-want +got):\n%s", show(name), what, err, d)
	}
}

// A store that does not offer several values has one, under the secret's own name.
func secretMany(s *secretTest) {
	if m, ok := s.store.(block.SecretMany); ok && m.ManyValues() {
		for _, values := range s.want {
			if len(values) > 1 {
				return
			}
		}
		s.Errorf("the store offers several values and no secret of the test has them: the test proves nothing")
		return
	}
	for name, values := range s.all() {
		if _, own := values[name]; !own || len(values) != 1 {
			s.Errorf("secret %s has %d values (its own name among them: %v), want one under its own name", show(name), len(values), own)
		}
	}
}

func secretMetadata(s *secretTest) {
	name := s.any()
	got, err := s.store.Get(s.ctx(), name, map[string]string{"namespace": "default", "x-unknown": "1"})
	if d := cmp.Diff(s.want[name], got); err != nil || d != "" {
		s.Errorf("Get with options it does not know: %v (-want +got):\n%s", err, d)
	}
	all, err := s.store.GetAll(s.ctx(), map[string]string{"namespace": "default", "x-unknown": "1"})
	if d := cmp.Diff(s.want[name], all[name]); err != nil || d != "" {
		s.Errorf("GetAll with options it does not know: %v (-want +got):\n%s", err, d)
	}
}

func secretOwnership(s *secretTest) {
	name := s.any()
	clear(s.get(name))
	all := s.all()
	clear(all[name])
	if d := cmp.Diff(s.want[name], s.get(name)); d != "" {
		s.Errorf("a caller's change reached the store (-want +got):\n%s", d)
	}
	again := s.all()
	if d := cmp.Diff(s.want[name], again[name]); d != "" {
		s.Errorf("a caller's change reached the store's list (-want +got):\n%s", d)
	}
}

func secretReaders(s *secretTest) {
	const readers = 8
	failed := make(chan string, readers)
	ctx := s.ctx()
	for range readers {
		go func() {
			for name, want := range s.want {
				if got, err := s.store.Get(ctx, name, nil); err != nil || !maps.Equal(got, want) {
					failed <- "Get(" + show(name) + ") among many readers is not what it is alone"
					return
				}
			}
			if _, err := s.store.GetAll(ctx, nil); err != nil {
				failed <- "GetAll among many readers: " + err.Error()
				return
			}
			failed <- ""
		}()
	}
	for range readers {
		if text := <-failed; text != "" {
			s.Error(text)
		}
	}
}

func secretContext(s *secretTest) {
	name := s.any()
	s.get(name)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for what, call := range map[string]func() error{
		"Get":    func() error { _, err := s.store.Get(ended, name, nil); return err },
		"GetAll": func() error { _, err := s.store.GetAll(ended, nil); return err },
		"Ping":   func() error { return s.store.Ping(ended) },
	} {
		start := time.Now()
		wantCode(s, what+" with an ended context", call(), fault.Canceled)
		if took := time.Since(start); took > 2*time.Second {
			s.Errorf("%s with an ended context took %v", what, took)
		}
	}
	s.get(name)
}

func secretClose(s *secretTest) {
	name := s.any()
	s.get(name)
	for i := range 2 {
		if err := s.store.Close(s.ctx()); err != nil {
			s.Errorf("Close number %d: %v", i+1, err)
		}
	}
	_, err := s.store.Get(s.ctx(), name, nil)
	wantCode(s, "Get after Close", err, fault.Unavailable)
	_, err = s.store.GetAll(s.ctx(), nil)
	wantCode(s, "GetAll after Close", err, fault.Unavailable)
	wantCode(s, "Ping after Close", s.store.Ping(s.ctx()), fault.Unavailable)
}
