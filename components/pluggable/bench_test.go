package pluggable_test

import (
	"bytes"
	"testing"

	proto "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/test/servers"
)

// BenchmarkState is the hot methods beside the bare gRPC client on the same socket.
func BenchmarkState(b *testing.B) {
	dir := folder(b)
	p := servers.StartPluggable(b, dir, "store")
	s := open(b, discover(b, dir), "state.store", "s").(block.State)
	value := bytes.Repeat([]byte("v"), 256)
	if err := s.Set(b.Context(), block.StateWrite{Key: "k", Value: value}); err != nil {
		b.Fatal(err)
	}
	cc, err := grpc.NewClient("unix://"+p.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer cc.Close()
	direct := proto.NewStateStoreClient(cc)
	ctx := metadata.AppendToOutgoingContext(b.Context(), "x-component-instance", "s")
	for name, call := range map[string]func() error{
		"get":        func() error { _, err := s.Get(b.Context(), "k", block.StateRead{}); return err },
		"get/direct": func() error { _, err := direct.Get(ctx, &proto.GetRequest{Key: "k"}); return err },
		"set":        func() error { return s.Set(b.Context(), block.StateWrite{Key: "k", Value: value}) },
		"set/direct": func() error { _, err := direct.Set(ctx, &proto.SetRequest{Key: "k", Value: value}); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := call(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
