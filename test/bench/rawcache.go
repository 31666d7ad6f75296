package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	goredis "github.com/redis/go-redis/v9"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// loader wants an entry of a cache, and loads it when it is told to.
type loader struct {
	*grpcCaller
	value []byte
}

func (l *loader) call(ctx context.Context) error {
	var got carried
	if err := l.conn.cc.Invoke(metadata.NewOutgoingContext(ctx, l.out), l.method, l.body, &got); err != nil {
		return l.failed(ctx, l.method, err)
	}
	var out mechav1.CacheGetOrLoadResponse
	data := got.data.MaterializeToBuffer(mem.DefaultBufferPool())
	err := proto.Unmarshal(data.ReadOnlyData(), &out)
	data.Free()
	got.data.Free()
	switch {
	case err != nil:
		return err
	case out.GetLease() == nil && len(out.GetEntry().GetValue()) < l.reply:
		return fmt.Errorf("%s: a value of %d bytes; want %d", l.method, len(out.GetEntry().GetValue()), l.reply)
	case out.GetLease() == nil:
		return nil
	}
	fill, err := proto.Marshal(&mechav1.CacheFillRequest{CacheName: "cache", Key: out.GetEntry().GetKey(), Lease: out.GetLease().GetId(),
		Result: &mechav1.CacheFillRequest_Value{Value: l.value}})
	if err != nil {
		return err
	}
	var n size
	const method = cacheMethod + "Fill"
	if err := l.conn.cc.Invoke(metadata.NewOutgoingContext(ctx, l.out), method, fill, &n); err != nil {
		return l.failed(ctx, method, err)
	}
	return nil
}

func (l *loader) failed(ctx context.Context, method string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("%s: %w", method, err)
}

// redisCaller reads or writes one key, with the library's pool of connections.
type redisCaller struct {
	client *goredis.Client
	users  *atomic.Int32
	key    string
	value  []byte // nil: it reads
	reply  int
}

func newRedisCallers(j *job) []caller {
	client := goredis.NewClient(&goredis.Options{Addr: j.Addr, DisableIdentity: true, PoolSize: j.Callers})
	users := &atomic.Int32{}
	users.Store(int32(j.Callers))
	out := make([]caller, j.Callers)
	for i := range out {
		c := &redisCaller{client: client, users: users, key: "direct-" + strings.ReplaceAll(j.Path, callerMark, number(i)), reply: j.Reply}
		if j.Call == "set" {
			c.value = j.Body
		}
		out[i] = c
	}
	return out
}

func (r *redisCaller) call(ctx context.Context) error {
	if r.value != nil {
		return r.client.Set(ctx, r.key, r.value, 0).Err()
	}
	got, err := r.client.Get(ctx, r.key).Bytes()
	if err == nil && len(got) < r.reply {
		err = errors.New("the value is too short")
	}
	return err
}

func (r *redisCaller) close() {
	if r.users.Add(-1) == 0 {
		r.client.Close()
	}
}
