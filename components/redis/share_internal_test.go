package redis

import (
	"context"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

// A caller who goes between its turn and the write neither runs nor disturbs.
func TestSharedGoneAtTheWrite(t *testing.T) {
	srv := servers.StartRedis(t)
	c := defaultConn()
	c.Hosts = []string{srv.Addr}
	n, err := newConn(c)
	if err != nil {
		t.Fatal(err)
	}
	defer n.close(context.Background(), "test")
	write := newScript(`return redis.call('SET', KEYS[1], '1')`)
	for _, form := range []string{"evalsha", "eval"} {
		cmds := make([]*command, 3)
		for i := range cmds {
			key := form + string(rune('a'+i))
			cmds[i] = newCommand(false, 3, "evalsha", write.digest, 1, key)
			if form == "eval" {
				cmds[i].inFull(write.text)
			}
			cmds[i].shared = true
		}
		err := n.exchange(t.Context(), "test", cmds, func(ctx context.Context, client goredis.UniversalClient) {
			_ = client.Do(ctx, "script", "load", write.text).Err()
			p := client.Pipeline()
			for _, c := range cmds {
				_ = p.Process(ctx, c)
			}
			if cmds[1].abandon() {
				t.Error("a command that waits counts as sent")
			}
			_, _ = p.Exec(ctx)
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range cmds {
			there := newCommand(false, 1, "exists", form+string(rune('a'+i)))
			if err := n.one(t.Context(), "test", there); err != nil {
				t.Fatal(err)
			}
			got, _ := there.Bool()
			if i == 1 && got || i != 1 && (!got || c.Err() != nil) {
				t.Errorf("%s %d: happened %v, %v (%v)", form, i, got, c.Err(), fault.Of(c.Err()))
			}
		}
	}
}
