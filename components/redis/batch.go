package redis

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// GetMany reads several keys, pipelined. They are not read at one moment.
func (s *state) GetMany(ctx context.Context, keys []string, _ block.StateRead) ([]block.StateItem, error) {
	const op fault.Op = "redis.state.GetMany"
	if len(keys) == 0 {
		return nil, nil
	}
	cmds := make([]*command, len(keys))
	for i, k := range keys {
		cmds[i] = s.reading(k)
	}
	if err := s.conn.run(ctx, op, readItem, cmds...); err != nil {
		return nil, err
	}
	items := make([]block.StateItem, len(keys))
	for i, k := range keys {
		err := s.conn.failure(ctx, op, cmds[i])
		if err == nil {
			items[i], err = item(op, k, cmds[i])
		}
		if err != nil {
			return nil, err
		}
	}
	return items, nil
}

// SetMany writes several keys, pipelined, each on its own.
func (s *state) SetMany(ctx context.Context, ws []block.StateWrite) []error {
	ops := make([]block.StateOp, len(ws))
	for i := range ws {
		ops[i].StateWrite = ws[i]
	}
	return s.many(ctx, "redis.state.SetMany", ops)
}

// DeleteMany removes several keys, pipelined, each on its own.
func (s *state) DeleteMany(ctx context.Context, ds []block.StateDelete) []error {
	ops := make([]block.StateOp, len(ds))
	for i, d := range ds {
		ops[i] = removal(d)
	}
	return s.many(ctx, "redis.state.DeleteMany", ops)
}

func (s *state) many(ctx context.Context, op fault.Op, ops []block.StateOp) []error {
	errs := make([]error, len(ops))
	var cmds []*command
	var place []int // of cmds in ops
	var keys []string
	var strong bool
	for i := range ops {
		cmd, s1, err := s.writing(op, ops[i:i+1], nil)
		if err != nil {
			errs[i] = err
			continue
		}
		strong = strong || s1
		cmds, place, keys = append(cmds, cmd), append(place, i), append(keys, cmd.args[3].(string))
	}
	if len(cmds) > 0 {
		lost := s.perform(ctx, op, cmds, keys, strong)
		for j, i := range place {
			if errs[i] = lost; lost == nil {
				errs[i] = s.settle(ctx, op, cmds[j], ops[i:i+1])
			}
		}
	}
	for _, err := range errs {
		if err != nil {
			return errs
		}
	}
	return nil
}

// perform sends writes. Those of one key happen in the order given: so that none is sent again
// behind a later one, scripts go in full when a key repeats.
func (s *state) perform(ctx context.Context, op fault.Op, cmds []*command, keys []string, strong bool) error {
	if strong || repeats(keys) {
		for _, c := range cmds {
			c.inFull(writeItems.text)
		}
	}
	if strong {
		return s.conn.confirm(ctx, op, cmds, keys)
	}
	return s.conn.run(ctx, op, writeItems, cmds...)
}

func repeats(keys []string) bool {
	seen := make(map[string]struct{}, len(keys))
	for _, k := range keys {
		seen[k] = struct{}{}
	}
	return len(seen) < len(keys)
}

// confirmTime is how long a strong write waits for replicas: a second, as Dapr does, unless the
// connection would give up first.
func (n *conn) confirmTime() time.Duration {
	if d := n.config.ReadTimeout; d > 0 {
		return max(min(time.Second, d/2), time.Millisecond) // 0 would be for ever
	}
	return time.Second
}

// confirm performs writes, and waits until the replicas have them. The server counts for the
// connection that wrote, so each server's part goes over one connection of its own.
func (n *conn) confirm(ctx context.Context, op fault.Op, cmds []*command, keys []string) error {
	return n.exchange(ctx, op, cmds, func(ctx context.Context, client goredis.UniversalClient) {
		parts := map[*goredis.Client][]*command{}
		for i, c := range cmds {
			node, err := nodeOf(ctx, client, keys[i])
			if err != nil {
				c.SetErr(err)
				continue
			}
			parts[node] = append(parts[node], c)
		}
		for node, part := range parts {
			n.confirmOn(ctx, node, part)
		}
		if cluster, ok := client.(*goredis.ClusterClient); ok && slices.ContainsFunc(cmds, redirected) {
			cluster.ReloadState(ctx) // not followed here, but the next call is to know
		}
	})
}

func redirected(c *command) bool {
	return goredis.HasErrorPrefix(c.Err(), "MOVED") || goredis.HasErrorPrefix(c.Err(), "ASK")
}

func nodeOf(ctx context.Context, client goredis.UniversalClient, key string) (*goredis.Client, error) {
	if cluster, ok := client.(*goredis.ClusterClient); ok {
		return cluster.MasterForKey(ctx, key)
	}
	return client.(*goredis.Client), nil // the only other kind we make
}

// confirmOn performs writes on one server.
func (n *conn) confirmOn(ctx context.Context, node *goredis.Client, cmds []*command) {
	cn := node.Conn()
	defer cn.Close()
	info := newCommand(false, 0, "info", "replication")
	if err := cn.Process(ctx, info); err != nil {
		for _, c := range cmds {
			c.SetErr(err)
		}
		return
	}
	copies := replicas(info)
	p := cn.Pipeline()
	for _, c := range cmds {
		_ = p.Process(ctx, c)
	}
	wait := newCommand(false, 0, "wait", strconv.Itoa(copies), n.confirmTime().Milliseconds())
	if copies > 0 {
		_ = p.Process(ctx, wait)
	}
	_, _ = p.Exec(ctx)
	confirmed, _ := wait.Val().(int64)
	for _, c := range cmds {
		c.copies, c.confirmed = copies, int(confirmed)
	}
}

// replicas counts the replicas that follow the server: lines like "slave0:ip=…,state=online,…".
func replicas(info *command) int {
	text, _ := info.Text()
	n := 0
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "slave") && strings.Contains(line, "state=online") {
			n++
		}
	}
	return n
}
