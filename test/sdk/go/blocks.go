package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/dapr/go-sdk/client"
	"google.golang.org/grpc/codes"
)

// write writes a configuration item as its operator does, for the SDKs only read.
func write(ctx context.Context, store, key, value string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, os.Getenv("OPERATOR")+"/"+store+"/"+key, strings.NewReader(value))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return expect("the operator's status", resp.StatusCode, http.StatusOK)
}

// changes keeps what a subscription told.
type changes chan string

func (c changes) told(_ string, items map[string]*client.ConfigurationItem) {
	for k, it := range items {
		c <- k + "=" + it.Value
	}
}

func (c changes) next(ctx context.Context) (string, error) {
	select {
	case s := <-c:
		return s, nil
	case <-ctx.Done():
		return "", errors.New("no change arrived")
	}
}

func configurationSteps(r *report, c client.Client, store string) {
	a, b, missing := os.Getenv("RPC_APP_ID")+"-a", os.Getenv("RPC_APP_ID")+"-b", os.Getenv("RPC_APP_ID")+"-missing"
	r.step("get", func(ctx context.Context) error {
		if err := errors.Join(write(ctx, store, a, "1"), write(ctx, store, b, "é<>&")); err != nil {
			return err
		}
		one, err := c.GetConfigurationItem(ctx, store, a)
		if err != nil || one == nil {
			return fmt.Errorf("got %v, %w", one, err)
		}
		items, err := c.GetConfigurationItems(ctx, store, []string{a, b, missing})
		if err != nil || items[b] == nil {
			return fmt.Errorf("got %v, %w", items, err)
		}
		return errors.Join(expect("one value", one.Value, "1"), expect("the number of items", len(items), 2), expect("the other value", items[b].Value, "é<>&"))
	})
	r.step("subscribe and unsubscribe", func(ctx context.Context) error {
		first, second := make(changes, 10), make(changes, 10)
		id, err := c.SubscribeConfigurationItems(ctx, store, []string{a}, first.told)
		if err != nil {
			return err
		}
		other, err := c.SubscribeConfigurationItems(ctx, store, []string{a, b}, second.told)
		if err != nil {
			return err
		}
		if err := write(ctx, store, a, "2"); err != nil {
			return err
		}
		for _, s := range []changes{first, second} {
			got, err := s.next(ctx)
			if err := errors.Join(err, expect("the change", got, a+"=2")); err != nil {
				return err
			}
		}
		if err := errors.Join(c.UnsubscribeConfigurationItems(ctx, store, id), write(ctx, store, a, "3")); err != nil {
			return err
		}
		got, err := second.next(ctx)
		return errors.Join(err, expect("the next change", got, a+"=3"), expect("what an ended subscription was told", len(first), 0),
			c.UnsubscribeConfigurationItems(ctx, store, other))
	})
	r.step("unsubscribe twice", func(ctx context.Context) error {
		err := c.UnsubscribeConfigurationItems(ctx, store, "no-such-subscription")
		if err == nil || !strings.Contains(err.Error(), "does not exist") {
			return fmt.Errorf("got %v, want an error that says so", err)
		}
		return nil
	})
	r.step("an unknown store", func(ctx context.Context) error {
		_, err := c.GetConfigurationItem(ctx, "no-such-store", a)
		return code(err, codes.InvalidArgument)
	})
}

// lockSteps: this SDK has the alpha calls, which are all there are.
func lockSteps(r *report, c client.Client, store string) {
	try := func(ctx context.Context, name, owner string, seconds int32, want bool) error {
		res, err := c.TryLockAlpha1(ctx, store, &client.LockRequest{ResourceID: name, LockOwner: owner, ExpiryInSeconds: seconds})
		if err != nil {
			return err
		}
		return expect("whether "+owner+" has the lock", res.Success, want)
	}
	unlock := func(ctx context.Context, name, owner, want string) error {
		res, err := c.UnlockAlpha1(ctx, store, &client.UnlockRequest{ResourceID: name, LockOwner: owner})
		if err != nil {
			return err
		}
		return expect("what unlocking by "+owner+" says", res.Status, want)
	}
	r.step("one owner at a time", func(ctx context.Context) error {
		return errors.Join(try(ctx, "turn", "one", 60, true), try(ctx, "turn", "one", 60, false), try(ctx, "turn", "two", 60, false),
			unlock(ctx, "turn", "two", "LOCK_BELONGS_TO_OTHERS"), unlock(ctx, "turn", "one", "SUCCESS"), unlock(ctx, "turn", "one", "LOCK_DOES_NOT_EXIST"),
			try(ctx, "turn", "two", 60, true), unlock(ctx, "turn", "two", "SUCCESS"))
	})
	r.step("a lock ends by itself", func(ctx context.Context) error {
		if err := try(ctx, "brief", "one", 1, true); err != nil {
			return err
		}
		for try(ctx, "brief", "two", 60, true) != nil {
			select {
			case <-ctx.Done():
				return errors.New("the lock did not end")
			case <-time.After(50 * time.Millisecond):
			}
		}
		return unlock(ctx, "brief", "two", "SUCCESS")
	})
	r.step("a time that is none", func(ctx context.Context) error {
		return code(try(ctx, "turn", "one", 0, false), codes.InvalidArgument)
	})
}

func secretSteps(r *report, c client.Client) {
	r.step("get", func(ctx context.Context) error {
		one, err := c.GetSecret(ctx, "file-secrets", "plain", nil)
		two, err2 := c.GetSecret(ctx, "file-secrets", "pair", nil)
		return errors.Join(err, err2, expect("a secret", one, map[string]string{"plain": "hidden"}), expect("one of two values", two, map[string]string{"user": "u", "password": "p"}))
	})
	r.step("get all", func(ctx context.Context) error {
		all, err := c.GetBulkSecret(ctx, "file-secrets", nil)
		return errors.Join(err, expect("the secrets", all, map[string]map[string]string{"plain": {"plain": "hidden"}, "pair": {"user": "u", "password": "p"}}))
	})
	r.step("a missing secret", func(ctx context.Context) error {
		_, err := c.GetSecret(ctx, "file-secrets", "missing", nil)
		return code(err, codes.Internal)
	})
	r.step("an unknown store", func(ctx context.Context) error {
		_, err := c.GetBulkSecret(ctx, "no-such-store", nil)
		return code(err, codes.InvalidArgument)
	})
}

func bindingSteps(r *report, c client.Client, in *inbox) {
	invoke := func(ctx context.Context, operation, file, data string) (string, error) {
		out, err := c.InvokeBinding(ctx, &client.InvokeBindingRequest{Name: "files", Operation: operation, Data: []byte(data), Metadata: map[string]string{"fileName": file}})
		if err != nil {
			return "", err
		}
		return string(out.Data), nil
	}
	r.step("output: create, get, delete", func(ctx context.Context) error {
		created, err := invoke(ctx, "create", "go/file.txt", "line é\n")
		got, err2 := invoke(ctx, "get", "go/file.txt", "")
		if err := errors.Join(err, err2, expect("what creating says", strings.Contains(created, "go/file.txt"), true), expect("the file", got, "line é\n")); err != nil {
			return err
		}
		err = c.InvokeOutputBinding(ctx, &client.InvokeBindingRequest{Name: "files", Operation: "delete", Metadata: map[string]string{"fileName": "go/file.txt"}})
		_, err2 = invoke(ctx, "get", "go/file.txt", "")
		return errors.Join(err, code(err2, codes.Internal))
	})
	r.step("output: an unknown operation", func(ctx context.Context) error {
		_, err := invoke(ctx, "sing", "x", "")
		return code(err, codes.Internal)
	})
	// This SDK serves the gRPC app's side; that of the HTTP app is a plain handler.
	for _, app := range []string{"rpc", "web"} {
		r.step("input: events come to the "+app+" app", func(ctx context.Context) error {
			first, err := in.from(ctx, "tick", app)
			if err != nil {
				return err
			}
			second, err := in.from(ctx, "tick", app)
			if err != nil {
				return err
			}
			return errors.Join(expect("data", len(first.RawData), 0), expect("there is a time", first.ID != "", true), expect("it is another time", first.ID != second.ID, true))
		})
	}
}
