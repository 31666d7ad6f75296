package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dapr/go-sdk/client"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// code fails unless err is a status of that code somewhere inside.
func code(err error, want codes.Code) error {
	var st interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &st) {
		return fmt.Errorf("got %w, want a status %v", err, want)
	}
	if got := st.GRPCStatus().Code(); got != want {
		return fmt.Errorf("got %v (%s), want %v", got, st.GRPCStatus().Message(), want)
	}
	return nil
}

func stateSteps(r *report, c client.Client, store string) {
	value := func(ctx context.Context, key, want string) error {
		item, err := c.GetState(ctx, store, key, nil)
		if err != nil {
			return err
		}
		return expect("the value of "+key, string(item.Value), want)
	}
	r.step("save and get", func(ctx context.Context) error {
		if err := c.SaveState(ctx, store, "plain", []byte(`{"n":1}`), nil); err != nil {
			return err
		}
		return value(ctx, "plain", `{"n":1}`)
	})
	r.step("bytes survive", func(ctx context.Context) error {
		data := string([]byte{0, 1, 2, 0xff, 0xfe, '"', '\n'})
		if err := c.SaveState(ctx, store, "bytes", []byte(data), nil); err != nil {
			return err
		}
		return value(ctx, "bytes", data)
	})
	r.step("an odd key", func(ctx context.Context) error {
		key := "a/b c?d=é.>*"
		if err := c.SaveState(ctx, store, key, []byte("odd"), nil); err != nil {
			return err
		}
		return value(ctx, key, "odd")
	})
	r.step("a missing key is empty", func(ctx context.Context) error {
		item, err := c.GetState(ctx, store, "never-written", nil)
		if err != nil {
			return err
		}
		return errors.Join(expect("the value", string(item.Value), ""), expect("the etag", item.Etag, ""))
	})
	etagSteps(r, c, store, value)
	manySteps(r, c, store, value)
	r.step("expiry", func(ctx context.Context) error {
		if err := c.SaveState(ctx, store, "brief", []byte("soon gone"), map[string]string{"ttlInSeconds": "1"}); err != nil {
			return err
		}
		item, err := c.GetState(ctx, store, "brief", nil)
		if err != nil {
			return err
		}
		if _, err := time.Parse(time.RFC3339, item.Metadata["ttlExpireTime"]); err != nil {
			return fmt.Errorf("ttlExpireTime: %w", err)
		}
		for value(ctx, "brief", "") != nil {
			select {
			case <-ctx.Done():
				return errors.New("the value did not expire")
			case <-time.After(100 * time.Millisecond):
			}
		}
		return nil
	})
	r.step("an unknown store", func(ctx context.Context) error {
		return code(c.SaveState(ctx, "no-such-store", "k", []byte("v"), nil), codes.InvalidArgument)
	})
}

type valueCheck func(ctx context.Context, key, want string) error

func etagSteps(r *report, c client.Client, store string, value valueCheck) {
	r.step("etags guard writes", func(ctx context.Context) error {
		if err := c.SaveState(ctx, store, "guarded", []byte("1"), nil); err != nil {
			return err
		}
		item, err := c.GetState(ctx, store, "guarded", nil)
		if err != nil {
			return err
		}
		if err := c.SaveStateWithETag(ctx, store, "guarded", []byte("2"), item.Etag, nil); err != nil {
			return fmt.Errorf("write with the current etag: %w", err)
		}
		if err := code(c.SaveStateWithETag(ctx, store, "guarded", []byte("3"), item.Etag, nil), codes.Aborted); err != nil {
			return fmt.Errorf("write with an old etag: %w", err)
		}
		return value(ctx, "guarded", "2")
	})
	r.step("etags guard deletes", func(ctx context.Context) error {
		if err := code(c.DeleteStateWithETag(ctx, store, "guarded", &client.ETag{Value: "999999"}, nil, nil), codes.Aborted); err != nil {
			return fmt.Errorf("delete with a wrong etag: %w", err)
		}
		item, err := c.GetState(ctx, store, "guarded", nil)
		if err != nil {
			return err
		}
		if err := c.DeleteStateWithETag(ctx, store, "guarded", &client.ETag{Value: item.Etag}, nil, nil); err != nil {
			return err
		}
		return value(ctx, "guarded", "")
	})
	r.step("the first write wins", func(ctx context.Context) error {
		first := client.WithConcurrency(client.StateConcurrencyFirstWrite)
		if err := c.DeleteState(ctx, store, "first", nil); err != nil {
			return err
		}
		if err := c.SaveState(ctx, store, "first", []byte("one"), nil, first); err != nil {
			return err
		}
		if err := code(c.SaveState(ctx, store, "first", []byte("two"), nil, first), codes.Aborted); err != nil {
			return err
		}
		return value(ctx, "first", "one")
	})
}

func manySteps(r *report, c client.Client, store string, value valueCheck) {
	r.step("bulk save, get and delete", func(ctx context.Context) error {
		if err := c.SaveBulkState(ctx, store, &client.SetStateItem{Key: "m1", Value: []byte("one")}, &client.SetStateItem{Key: "m2", Value: []byte("two")}); err != nil {
			return err
		}
		items, err := c.GetBulkState(ctx, store, []string{"m1", "m2", "m3"}, nil, 2)
		if err != nil {
			return err
		}
		var got []string
		for _, i := range items {
			got = append(got, i.Key+"="+string(i.Value))
		}
		slices.Sort(got)
		if err := expect("the items", got, []string{"m1=one", "m2=two", "m3="}); err != nil {
			return err
		}
		if err := c.DeleteBulkState(ctx, store, []string{"m1", "m2"}, nil); err != nil {
			return err
		}
		return errors.Join(value(ctx, "m1", ""), value(ctx, "m2", ""))
	})
	r.step("a transaction is all", func(ctx context.Context) error {
		if err := c.SaveState(ctx, store, "t2", []byte("goes"), nil); err != nil {
			return err
		}
		err := c.ExecuteStateTransaction(ctx, store, nil, []*client.StateOperation{
			{Type: client.StateOperationTypeUpsert, Item: &client.SetStateItem{Key: "t1", Value: []byte("here")}},
			{Type: client.StateOperationTypeDelete, Item: &client.SetStateItem{Key: "t2"}},
		})
		return errors.Join(err, value(ctx, "t1", "here"), value(ctx, "t2", ""))
	})
	r.step("or nothing", func(ctx context.Context) error {
		err := c.ExecuteStateTransaction(ctx, store, nil, []*client.StateOperation{
			{Type: client.StateOperationTypeUpsert, Item: &client.SetStateItem{Key: "t3", Value: []byte("never")}},
			{Type: client.StateOperationTypeUpsert, Item: &client.SetStateItem{Key: "t1", Value: []byte("never"), Etag: &client.ETag{Value: "999999"}}},
		})
		return errors.Join(code(err, codes.Internal), value(ctx, "t3", ""), value(ctx, "t1", "here"))
	})
}
