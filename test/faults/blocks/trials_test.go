//go:build unix

package blocks

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// component is a file that configures one. Pairs are its metadata.
func component(name, typ string, pairs ...string) string {
	text := fmt.Sprintf("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: %s}\nspec:\n  type: %s\n  version: v1\n  metadata:\n", name, typ)
	if len(pairs) == 0 {
		text = strings.Replace(text, "  metadata:\n", "", 1)
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		text += fmt.Sprintf("  - {name: %s, value: %q}\n", pairs[i], pairs[i+1])
	}
	return text
}

// value is what call n writes: long enough to travel in pieces, and never the same.
func value(n int64) []byte {
	return []byte(fmt.Sprintf("%d:%s", n, strings.Repeat(fmt.Sprintf("%07d|", n%1e7), 180)))
}

func save(ctx context.Context, a *api, store, key string, v []byte) error {
	return a.call(ctx, runtimev1.Dapr_SaveState_FullMethodName, &runtimev1.SaveStateRequest{StoreName: store,
		States: []*commonv1.StateItem{{Key: key, Value: v}}}, &emptypb.Empty{})
}

// savePair writes two keys in one transaction.
func savePair(ctx context.Context, a *api, store, one, two string, v []byte) error {
	op := func(key string) *runtimev1.TransactionalStateOperation {
		return &runtimev1.TransactionalStateOperation{OperationType: "upsert", Request: &commonv1.StateItem{Key: key, Value: v}}
	}
	return a.call(ctx, runtimev1.Dapr_ExecuteStateTransaction_FullMethodName, &runtimev1.ExecuteStateTransactionRequest{StoreName: store,
		Operations: []*runtimev1.TransactionalStateOperation{op(one), op(two)}}, &emptypb.Empty{})
}

// read gets a key; a missing one is empty.
func read(ctx context.Context, a *api, store, key string) ([]byte, error) {
	var out runtimev1.GetStateResponse
	err := a.call(ctx, runtimev1.Dapr_GetState_FullMethodName, &runtimev1.GetStateRequest{StoreName: store, Key: key}, &out)
	return out.GetData(), err
}

// mustRead reads after the fault is over, when a call may still have to be repeated.
func mustRead(t testing.TB, a *api, store, key string) []byte {
	t.Helper()
	var last error
	for range 5 {
		var v []byte
		if v, last = read(context.Background(), a, store, key); last == nil {
			return v
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("reading %s of %s: %v", key, store, last)
	return nil
}

// trial is a block under load: what its callers do, and what must be there afterwards.
type trial struct {
	name  string
	call  func(ctx context.Context, a *api, n int64) error
	audit func(t testing.TB, a *api, acked []int64)
}

func stateTrial(name, store string) trial {
	return trial{name,
		func(ctx context.Context, a *api, n int64) error {
			return save(ctx, a, store, fmt.Sprint("k", n), value(n))
		},
		func(t testing.TB, a *api, acked []int64) {
			each(acked, func(n int64) {
				if got := mustRead(t, a, store, fmt.Sprint("k", n)); string(got) != string(value(n)) {
					t.Errorf("%s: the acknowledged write %d reads %.40q", name, n, got)
				}
			})
		}}
}

func cacheTrial(name, cache string) trial {
	return trial{name,
		func(ctx context.Context, a *api, n int64) error {
			return a.call(ctx, mechav1.Cache_Set_FullMethodName, &mechav1.CacheSetRequest{CacheName: cache, Key: fmt.Sprint("k", n), Value: value(n),
				Options: &mechav1.CacheOptions{Ttl: durationpb.New(time.Hour)}}, &mechav1.CacheSetResponse{})
		},
		func(t testing.TB, a *api, acked []int64) {
			each(acked, func(n int64) {
				var out mechav1.CacheEntry
				err := a.call(t.Context(), mechav1.Cache_Get_FullMethodName, &mechav1.CacheGetRequest{CacheName: cache, Key: fmt.Sprint("k", n)}, &out)
				if err != nil || string(out.GetValue()) != string(value(n)) {
					t.Errorf("%s: the acknowledged entry %d reads %.40q, %v", name, n, out.GetValue(), err)
				}
			})
		}}
}

// lockTrial takes resources for an hour, each by an owner of its own.
func lockTrial(name, store string) trial {
	var mu sync.Mutex
	tokens := map[uint64]int64{}
	resource := func(n int64) string { return fmt.Sprint("r", n) }
	owner := func(n int64) string { return fmt.Sprint("o", n) }
	return trial{name,
		func(ctx context.Context, a *api, n int64) error {
			var out mechav1.AcquireResponse
			err := a.call(ctx, mechav1.Lock_Acquire_FullMethodName, &mechav1.AcquireRequest{StoreName: store, ResourceId: resource(n), Owner: owner(n),
				Ttl: durationpb.New(time.Hour)}, &out)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if !out.GetAcquired() {
				return fmt.Errorf("%w: resource %d is taken, and nobody else asked for it", errWrong, n)
			}
			if other, used := tokens[out.GetFencingToken()]; used {
				return fmt.Errorf("%w: grants %d and %d have the same fencing token %d", errWrong, other, n, out.GetFencingToken())
			}
			tokens[out.GetFencingToken()] = n
			return nil
		},
		func(t testing.TB, a *api, acked []int64) {
			each(acked, func(n int64) {
				var theft runtimev1.TryLockResponse
				if err := a.call(t.Context(), runtimev1.Dapr_TryLockAlpha1_FullMethodName, &runtimev1.TryLockRequest{StoreName: store, ResourceId: resource(n),
					LockOwner: "thief", ExpiryInSeconds: 60}, &theft); err != nil || theft.GetSuccess() {
					t.Errorf("%s: another owner asks for the taken resource %d: %v, %v", name, n, theft.GetSuccess(), err)
				}
				var out mechav1.RenewResponse
				if err := a.call(t.Context(), mechav1.Lock_Renew_FullMethodName, &mechav1.RenewRequest{StoreName: store, ResourceId: resource(n), Owner: owner(n),
					Ttl: durationpb.New(time.Hour)}, &out); err != nil || !out.GetHeld() {
					t.Errorf("%s: the owner of resource %d does not hold it: %v", name, n, err)
				}
			})
		}}
}

// configTrial reads the item that stays as it is.
func configTrial(name, store string) trial {
	get := func(ctx context.Context, a *api) error {
		var out runtimev1.GetConfigurationResponse
		err := a.call(ctx, runtimev1.Dapr_GetConfiguration_FullMethodName, &runtimev1.GetConfigurationRequest{StoreName: store, Keys: []string{"fixed"}}, &out)
		if err == nil && out.GetItems()["fixed"].GetValue() != "10" {
			err = fmt.Errorf("%w: the item reads %v", errWrong, out.GetItems())
		}
		return err
	}
	return trial{name,
		func(ctx context.Context, a *api, _ int64) error { return get(ctx, a) },
		func(t testing.TB, a *api, _ []int64) {
			if err := get(t.Context(), a); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}}
}
