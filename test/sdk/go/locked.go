package main

import (
	"context"
	"os"
	"time"

	"github.com/dapr/go-sdk/client"
	"google.golang.org/grpc/codes"
)

// locked uses a client that is made from the environment alone: endpoint, TLS, token.
func locked(r *report) error {
	var c client.Client
	r.step("a client from the environment", func(ctx context.Context) (err error) {
		if c, err = client.NewClient(); err != nil {
			return err
		}
		return c.Wait(ctx, 5*time.Second)
	})
	if c == nil {
		return nil
	}
	defer c.Close()
	r.step("a call with the token", func(ctx context.Context) error {
		if err := c.SaveState(ctx, "mem-state", "k", []byte("v"), nil); err != nil {
			return err
		}
		item, err := c.GetState(ctx, "mem-state", "k", nil)
		if err != nil {
			return err
		}
		return expect("the value", string(item.Value), "v")
	})
	for name, token := range map[string]string{"a wrong token": "guess", "no token": ""} {
		r.step(name, func(ctx context.Context) error {
			c.WithAuthToken(token)
			defer c.WithAuthToken(os.Getenv("DAPR_API_TOKEN"))
			_, err := c.GetState(ctx, "mem-state", "k", nil)
			return code(err, codes.Unauthenticated)
		})
	}
	r.step("shutdown", func(ctx context.Context) error { return c.Shutdown(ctx) })
	return nil
}
