package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"github.com/dapr/go-sdk/client"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
)

func invokeSteps(r *report, web, rpc client.Client) {
	webApp, rpcApp := os.Getenv("WEB_APP_ID"), os.Getenv("RPC_APP_ID")
	r.step("gRPC app: content", func(ctx context.Context) error {
		out, err := web.InvokeMethodWithContent(ctx, rpcApp, "echo", "post", &client.DataContent{Data: []byte("hi"), ContentType: "text/plain"})
		if err != nil {
			return err
		}
		return expect("the answer", string(out), "hi")
	})
	r.step("gRPC app: a megabyte", func(ctx context.Context) error {
		data := bytes.Repeat([]byte("m"), 1<<20)
		out, err := web.InvokeMethodWithContent(ctx, rpcApp, "echo", "post", &client.DataContent{Data: data, ContentType: "application/octet-stream"})
		if err != nil {
			return err
		}
		return expect("the answer's equality", bytes.Equal(out, data), true)
	})
	r.step("gRPC app: verb and query", func(ctx context.Context) error {
		out, err := web.InvokeMethod(ctx, rpcApp, "about?a=1&b=c%20d", "get")
		if err != nil {
			return err
		}
		return expect("the answer", string(out), "GET a=1&b=c%20d")
	})
	r.step("gRPC app: no answer", func(ctx context.Context) error {
		out, err := web.InvokeMethod(ctx, rpcApp, "empty", "post")
		return errors.Join(err, expect("the answer", string(out), ""))
	})
	r.step("gRPC app: its error", func(ctx context.Context) error {
		_, err := web.InvokeMethod(ctx, rpcApp, "fail", "post")
		if err == nil || !strings.Contains(err.Error(), "the handler failed") {
			return fmt.Errorf("got %v, want the handler's error", err)
		}
		return code(err, codes.Unknown)
	})
	for _, verb := range []string{"get", "post", "put", "delete"} {
		r.step("HTTP app: "+verb, func(ctx context.Context) error {
			out, err := rpc.InvokeMethodWithCustomContent(ctx, webApp, "about?q=1", verb, "application/json", map[string]int{"n": 1})
			if err != nil {
				return err
			}
			var a about
			if err := json.Unmarshal(out, &a); err != nil {
				return err
			}
			return expect("what the app saw", a, about{Verb: strings.ToUpper(verb), Query: "q=1", Type: "application/json", Body: `{"n":1}`, Caller: rpcApp, TokenOK: true})
		})
	}
	for method, want := range map[string]codes.Code{"missing": codes.NotFound, "broken": codes.Unknown, "busy": codes.Unavailable, "teapot": codes.Unknown} {
		r.step("HTTP app: status of "+method, func(ctx context.Context) error {
			_, err := rpc.InvokeMethod(ctx, webApp, method, "get")
			return code(err, want)
		})
	}
	r.step("HTTP app: no content", func(ctx context.Context) error {
		out, err := rpc.InvokeMethod(ctx, webApp, "nothing", "get")
		return errors.Join(err, expect("the answer", string(out), ""))
	})
	r.step("an app calls itself", func(ctx context.Context) error {
		out, err := rpc.InvokeMethodWithContent(ctx, rpcApp, "echo", "post", &client.DataContent{Data: []byte("me"), ContentType: "text/plain"})
		return errors.Join(err, expect("the answer", string(out), "me"))
	})
	r.step("an unknown app", func(ctx context.Context) error {
		_, err := rpc.InvokeMethod(ctx, "no-such-app", "x", "get")
		return code(err, codes.Internal)
	})
	r.step("a gRPC service of the app, proxied", func(ctx context.Context) error {
		ctx = metadata.AppendToOutgoingContext(ctx, "dapr-app-id", rpcApp)
		_, err := runtimev1.NewAppCallbackHealthCheckClient(web.GrpcClientConn()).HealthCheck(ctx, &emptypb.Empty{})
		return err
	})
	r.step("trace context is accepted", func(ctx context.Context) error {
		ctx = rpc.WithTraceID(ctx, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
		_, err := rpc.InvokeMethod(ctx, webApp, "about", "get")
		return err
	})
}

func metadataSteps(r *report, c client.Client) {
	r.step("set and get", func(ctx context.Context) error {
		if err := c.SetMetadata(ctx, "colour", "blue"); err != nil {
			return err
		}
		m, err := c.GetMetadata(ctx)
		if err != nil {
			return err
		}
		return errors.Join(expect("id", m.ID, os.Getenv("RPC_APP_ID")), expect("colour", m.ExtendedMetadata["colour"], "blue"))
	})
	r.step("components", func(ctx context.Context) error {
		m, err := c.GetMetadata(ctx)
		if err != nil {
			return err
		}
		var found []string
		for _, x := range m.RegisteredComponents {
			found = append(found, x.Name+" "+x.Type+" "+x.Version)
		}
		slices.Sort(found)
		return expect("the components", strings.Join(found, ","), os.Getenv("COMPONENTS"))
	})
	r.step("subscriptions", func(ctx context.Context) error {
		m, err := c.GetMetadata(ctx)
		if err != nil {
			return err
		}
		rules := map[string]int{}
		for _, s := range m.Subscriptions {
			rules[s.PubsubName+"/"+s.Topic] = len(s.Rules.Rules)
		}
		for _, want := range []string{"mem-pubsub/plain=1", "emb-pubsub/plain=1", "mem-pubsub/routed=2", "emb-pubsub/declared=2"} {
			name, n, _ := strings.Cut(want, "=")
			if err := expect("the number of rules of "+name, rules[name], n); err != nil {
				return err
			}
		}
		return nil
	})
}
