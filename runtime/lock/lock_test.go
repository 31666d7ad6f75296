package lock_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
	"github.com/mecha-project/mecha/runtime/lock"
)

// store keeps what it was asked and answers as told.
type store struct {
	asked  string
	ok     bool
	status block.UnlockStatus
	err    error
}

func (s *store) Ping(context.Context) error  { return nil }
func (s *store) Close(context.Context) error { return nil }

func (s *store) TryLock(_ context.Context, name, owner string, ttl time.Duration) (bool, error) {
	s.asked = fmt.Sprintf("lock %s %s %v", name, owner, ttl)
	return s.ok, s.err
}

func (s *store) Unlock(_ context.Context, name, owner string) (block.UnlockStatus, error) {
	s.asked = fmt.Sprintf("unlock %s %s", name, owner)
	return s.status, s.err
}

var shop = identity.Self{App: "shop", Namespace: "default"}

func service(s *store, raw map[string]string, target *call.Target) *lock.Service {
	stores := catalog.NewStore[block.Lock](block.KindLock)
	if target == nil {
		target = &call.Target{Kind: call.Lock, Name: "locks"}
	}
	if s != nil {
		stores.Put(catalog.NewHandle[block.Lock](catalog.Info{Name: "locks", Raw: raw}, s, target))
	}
	return lock.New(stores, shop)
}

func TestLockAndUnlock(t *testing.T) {
	s := &store{ok: true, status: block.LockOfAnother}
	l := service(s, nil, nil)
	if ok, err := l.TryLock(t.Context(), "locks", "r", "o", 5); err != nil || !ok || s.asked != "lock lock||shop||r o 5s" {
		t.Errorf("TryLock: %v, %v, asked %s", ok, err, s.asked)
	}
	s.ok = false
	if ok, err := l.TryLock(t.Context(), "locks", "r", "o", 2147483647); err != nil || ok {
		t.Errorf("a taken lock: %v, %v", ok, err)
	}
	if st, err := l.Unlock(t.Context(), "locks", "r", "o"); err != nil || st != block.LockOfAnother || s.asked != "unlock lock||shop||r o" {
		t.Errorf("Unlock: %d, %v, asked %s", st, err, s.asked)
	}
	s.err = fault.New("op", fault.Unavailable, "down")
	if st, err := l.Unlock(t.Context(), "locks", "r", "o"); fault.Of(err) != fault.Unavailable || st != block.UnlockFailed {
		t.Errorf("Unlock of a store that is down: %d, %v", st, err)
	}
}

func TestNames(t *testing.T) {
	for setting, want := range map[string]string{"": "lock||shop||r", "appid": "lock||shop||r", "AppID": "lock||shop||r", "none": "lock||r",
		"name": "lock||locks||r", "namespace": "lock||namespace||r", "Mine": "lock||mine||r"} {
		s := &store{}
		l := service(s, map[string]string{"keyprefix": setting}, nil)
		if _, err := l.Unlock(t.Context(), "locks", "r", "o"); err != nil || s.asked != "unlock "+want+" o" {
			t.Errorf("keyPrefix %q: asked %s, %v; want %s", setting, s.asked, err, want)
		}
	}
	l := service(&store{}, map[string]string{"keyprefix": "a||b"}, nil)
	if _, err := l.TryLock(t.Context(), "locks", "r", "o", 1); fault.ReasonOf(err) != lock.BadPrefix {
		t.Errorf("a prefix with a separator: %v", err)
	}
}

// The order of the checks is Dapr's, and nothing refused reaches the store.
func TestChecks(t *testing.T) {
	for _, tt := range []struct {
		name, store, resource, owner string
		seconds                      int32
		none                         bool
		want                         fault.Reason
	}{
		{"no store at all wins", "x", "", "", 0, true, fault.NoComponents},
		{"resource before owner", "x", "", "", 0, false, fault.EmptyName},
		{"owner before time", "x", "r", "", 0, false, fault.EmptyName},
		{"time before the store", "x", "r", "o", 0, false, fault.BadExpiry},
		{"a negative time", "locks", "r", "o", -1, false, fault.BadExpiry},
		{"the store before the name", "x", "a||b", "o", 1, false, fault.NoSuchComponent},
		{"the name", "locks", "a||b", "o", 1, false, fault.IllegalKey},
	} {
		s := &store{}
		l := service(s, nil, nil)
		if tt.none {
			l = service(nil, nil, nil)
		}
		_, err := l.TryLock(t.Context(), tt.store, tt.resource, tt.owner, tt.seconds)
		if fault.ReasonOf(err) != tt.want {
			t.Errorf("%s: TryLock: %v, want %s", tt.name, err, tt.want)
		}
		if tt.want != fault.BadExpiry {
			if st, err := l.Unlock(t.Context(), tt.store, tt.resource, tt.owner); fault.ReasonOf(err) != tt.want || st != block.UnlockFailed {
				t.Errorf("%s: Unlock: %d, %v, want %s", tt.name, st, err, tt.want)
			}
		}
		if s.asked != "" {
			t.Errorf("%s: the store was asked %s", tt.name, s.asked)
		}
	}
}

// Every operation passes the store's policy, and is not repeated when nobody knows how it went.
func TestPolicy(t *testing.T) {
	s := &store{err: fault.New("op", fault.Unavailable, "lost").WithSent(fault.SentMaybe)}
	target := &call.Target{Kind: call.Lock, Name: "locks"}
	var seen []string
	target.SetChain(&call.Chain{Retry: func(c *call.Call, err error) (time.Duration, bool) {
		seen = append(seen, fmt.Sprintf("%s %s %s %v", c.Op, c.Resource, c.Key, c.Safety == call.Conditional))
		return 0, false
	}})
	l := service(s, nil, target)
	_, _ = l.TryLock(t.Context(), "locks", "r", "o", 1)
	_, _ = l.Unlock(t.Context(), "locks", "r", "o")
	if fmt.Sprint(seen) != "[tryLock r r true unlock r r true]" {
		t.Errorf("policy saw %v", seen)
	}
}
