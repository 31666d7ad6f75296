package secret_test

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
	"github.com/mecha-project/mecha/runtime/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type values = map[string]string

// store is a secret store that keeps what it was asked.
type store struct {
	asked []string
	data  map[string]values
	err   error
}

func (s *store) Ping(context.Context) error  { return nil }
func (s *store) Close(context.Context) error { return nil }

func (s *store) Get(_ context.Context, name string, md map[string]string) (map[string]string, error) {
	s.asked = append(s.asked, fmt.Sprint("get ", name, " ", md))
	if s.err != nil {
		return nil, s.err
	}
	v, ok := s.data[name]
	if !ok {
		return nil, fault.New("test", fault.NotFound, "no secret %s", name)
	}
	return v, nil
}

func (s *store) GetAll(_ context.Context, md map[string]string) (map[string]map[string]string, error) {
	s.asked = append(s.asked, fmt.Sprint("all ", md))
	return s.data, s.err
}

type recorder struct{ lines []string }

func (r *recorder) Secret(component, op string, ok bool, took time.Duration) {
	r.lines = append(r.lines, fmt.Sprint(component, " ", op, " ", ok, " ", took >= 0))
}

// layer is a policy that sees, and may refuse, every call.
type layer struct {
	seen   []call.Desc
	refuse error
}

func (l *layer) Enter(ctx context.Context, c *call.Call) (context.Context, error) {
	l.seen = append(l.seen, c.Desc)
	return ctx, l.refuse
}
func (l *layer) Exit(_ *call.Call, err error) error { return err }

type kit struct {
	*secret.Service
	store  *store
	rec    *recorder
	policy *layer
}

func newKit(scopes ...secret.Scope) *kit {
	k := &kit{store: &store{data: map[string]values{"a": {"a": "1"}, "b": {"x": "2", "y": "3"}, "c": {"c": ""}}}, rec: &recorder{}, policy: &layer{}}
	stores := catalog.NewStore[block.Secret](block.KindSecret)
	t := &call.Target{Kind: call.Secret, Name: "s"}
	t.SetChain(&call.Chain{Layers: []call.Layer{k.policy}})
	stores.Put(catalog.NewHandle[block.Secret](catalog.Info{Name: "s"}, k.store, t))
	k.Service = secret.New(stores, identity.Self{App: "app", Namespace: "ns"}, scopes, k.rec)
	return k
}

func TestGet(t *testing.T) {
	k := newKit()
	got, err := k.Get(t.Context(), "s", "b", map[string]string{"version_id": "2"})
	if d := cmp.Diff(values{"x": "2", "y": "3"}, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	_, err = k.Get(t.Context(), "s", "none", nil)
	if fault.Of(err) != fault.NotFound || fault.ReasonOf(err) != "" {
		t.Errorf("a missing secret: %v (%v)", err, fault.ReasonOf(err))
	}
	if d := cmp.Diff([]string{"get b map[version_id:2]", "get none map[]"}, k.store.asked); d != "" {
		t.Errorf("asked (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"s get true true", "s get false true"}, k.rec.lines); d != "" {
		t.Errorf("recorded (-want +got):\n%s", d)
	}
	want := call.Desc{Op: "get", Resource: "b", Safety: call.Safe, Caller: call.Caller{App: "app", Namespace: "ns", Proven: true}}
	if d := cmp.Diff(want, k.policy.seen[0]); d != "" {
		t.Errorf("policy saw (-want +got):\n%s", d)
	}
}

func TestGetAll(t *testing.T) {
	k := newKit()
	got, err := k.GetAll(t.Context(), "s", nil)
	if d := cmp.Diff(k.store.data, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	k.store.err = fault.New("test", fault.Unavailable, "down")
	if got, err := k.GetAll(t.Context(), "s", nil); fault.Of(err) != fault.Unavailable || got != nil {
		t.Errorf("%v, %v; want unavailable", got, err)
	}
	if d := cmp.Diff([]string{"s bulk_get true true", "s bulk_get false true"}, k.rec.lines); d != "" {
		t.Errorf("recorded (-want +got):\n%s", d)
	}
	if len(k.policy.seen) != 2 || k.policy.seen[0].Op != "bulk_get" {
		t.Errorf("policy saw %+v", k.policy.seen)
	}
}

func TestUnknownStores(t *testing.T) {
	none := secret.New(catalog.NewStore[block.Secret](block.KindSecret), identity.Self{}, nil, nil)
	for what, tt := range map[string]struct {
		s    *secret.Service
		code fault.Code
		want fault.Reason
	}{"no stores": {none, fault.NotReady, fault.NoComponents}, "another name": {newKit().Service, fault.NotFound, fault.NoSuchComponent}} {
		_, one := tt.s.Get(t.Context(), "other", "a", nil)
		_, all := tt.s.GetAll(t.Context(), "other", nil)
		_, own := tt.s.Values(t.Context(), "other", "a", nil)
		for _, err := range []error{one, all, own} {
			if fault.Of(err) != tt.code || fault.ReasonOf(err) != tt.want {
				t.Errorf("%s: %v (%v, %v)", what, err, fault.Of(err), fault.ReasonOf(err))
			}
		}
	}
}

func TestScopes(t *testing.T) {
	for name, tt := range map[string]struct {
		scope secret.Scope
		open  string // of a, b, c and none
	}{
		"nothing said":                        {secret.Scope{Store: "s"}, "a b c none"},
		"another store":                       {secret.Scope{Store: "S", Deny: true}, "a b c none"},
		"denied by default":                   {secret.Scope{Store: "s", Deny: true}, ""},
		"some denied":                         {secret.Scope{Store: "s", Denied: []string{"a", "none"}}, "b c"},
		"some allowed":                        {secret.Scope{Store: "s", Allowed: []string{"a", "none"}}, "a none"},
		"some allowed where others are not":   {secret.Scope{Store: "s", Deny: true, Allowed: []string{"b"}}, "b"},
		"the allowed are all, whatever else":  {secret.Scope{Store: "s", Allowed: []string{"a", "b"}, Denied: []string{"b"}}, "a b"},
		"denied twice":                        {secret.Scope{Store: "s", Deny: true, Denied: []string{"a"}}, ""},
		"names are exact, stars mean nothing": {secret.Scope{Store: "s", Allowed: []string{"A", "*", "b*", " c", "a/"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(tt.scope)
			open, all := []string{}, map[string]values{}
			for _, n := range []string{"a", "b", "c", "none"} {
				asked := len(k.store.asked)
				_, err := k.Get(t.Context(), "s", n, nil)
				if fault.ReasonOf(err) != fault.ForbiddenSecret {
					open = append(open, n)
					if v, ok := k.store.data[n]; ok {
						all[n] = v
					}
					continue
				}
				if fault.Of(err) != fault.Denied || err.Error() != `access denied by policy to get "`+n+`" from "s"` {
					t.Errorf("%s: %v (%v)", n, err, fault.Of(err))
				}
				if len(k.store.asked) != asked {
					t.Errorf("%s is denied and the store was asked", n)
				}
			}
			if got := strings.Join(open, " "); got != tt.open {
				t.Errorf("open are %q, want %q", got, tt.open)
			}
			if len(k.rec.lines) != len(open) {
				t.Errorf("%d of %d denials were counted", len(k.rec.lines)-len(open), 4-len(open))
			}
			before := maps.Clone(k.store.data)
			got, err := k.GetAll(t.Context(), "s", nil)
			if d := cmp.Diff(all, got); err != nil || d != "" {
				t.Errorf("all: %v (-want +got):\n%s", err, d)
			}
			if d := cmp.Diff(before, k.store.data); d != "" {
				t.Errorf("the store's own map was changed (-want +got):\n%s", d)
			}
		})
	}
}

// The sidecar's own reads pass policy, and neither scopes nor the app's metrics.
func TestValues(t *testing.T) {
	k := newKit(secret.Scope{Store: "s", Deny: true})
	got, err := k.Values(t.Context(), "s", "a", map[string]string{"namespace": "n"})
	if d := cmp.Diff(values{"a": "1"}, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if len(k.rec.lines) != 0 || len(k.policy.seen) != 1 {
		t.Errorf("recorded %v, policy saw %v", k.rec.lines, k.policy.seen)
	}
}

func TestPolicyRefuses(t *testing.T) {
	k := newKit()
	k.policy.refuse = fault.New("policy", fault.Exhausted, "too many").With(fault.PolicyRejected)
	_, one := k.Get(t.Context(), "s", "a", nil)
	_, all := k.GetAll(t.Context(), "s", nil)
	for _, err := range []error{one, all} {
		if fault.Of(err) != fault.Exhausted || fault.ReasonOf(err) != fault.PolicyRejected {
			t.Errorf("%v (%v)", err, fault.ReasonOf(err))
		}
	}
	if len(k.store.asked) != 0 {
		t.Errorf("the store was asked %v", k.store.asked)
	}
}

func TestAPanicIsAnError(t *testing.T) {
	k := newKit()
	k.store.data = nil
	stores := catalog.NewStore[block.Secret](block.KindSecret)
	stores.Put(catalog.NewHandle[block.Secret](catalog.Info{Name: "s"}, nil, &call.Target{}))
	s := secret.New(stores, identity.Self{}, nil, k.rec)
	if _, err := s.Get(t.Context(), "s", "a", nil); fault.Of(err) != fault.Internal {
		t.Errorf("%v", err)
	}
	if d := cmp.Diff([]string{"s get false true"}, k.rec.lines); d != "" {
		t.Errorf("recorded (-want +got):\n%s", d)
	}
}
