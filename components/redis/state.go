package redis

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var (
	_ block.State      = (*state)(nil)
	_ block.StateBatch = (*state)(nil)
	_ block.StateTx    = (*state)(nil)
	_ block.StateTTL   = (*state)(nil)
)

// state is a store of hashes in Dapr's format.
type state struct {
	conn    *conn
	ttl     time.Duration   // of items written without one
	recheck time.Duration   // how often a watch looks whether it is told all
	silence time.Duration   // after which a watch asks for a sign of life
	alive   context.Context // ends at Close
	end     context.CancelFunc
}

// ExpiresItems marks native expiry.
func (s *state) ExpiresItems() {}

// Ping checks that the server answers.
func (s *state) Ping(ctx context.Context) error { return s.conn.ping(ctx, "redis.state.Ping") }

// Close ends watches and connections.
func (s *state) Close(ctx context.Context) error {
	s.end()
	return s.conn.close(ctx, "redis.state.Close")
}

// Get reads one key. The answer is always the master's, so every read is a strong one.
func (s *state) Get(ctx context.Context, key string, _ block.StateRead) (block.StateItem, error) {
	const op fault.Op = "redis.state.Get"
	cmd := s.reading(key)
	if err := s.conn.run(ctx, op, readItem, cmd); err != nil {
		return block.StateItem{}, err
	}
	if err := s.conn.failure(ctx, op, cmd); err != nil {
		return block.StateItem{}, err
	}
	it, err := item(op, key, cmd)
	s.conn.replied(len(it.Value))
	return it, err
}

// Set writes one key.
func (s *state) Set(ctx context.Context, w block.StateWrite) error {
	return s.apply(ctx, "redis.state.Set", []block.StateOp{{StateWrite: w}})
}

// Delete removes one key.
func (s *state) Delete(ctx context.Context, d block.StateDelete) error {
	const op fault.Op = "redis.state.Delete"
	if d.ETag == "" {
		return s.conn.one(ctx, op, s.removing(d.Key))
	}
	return s.apply(ctx, op, []block.StateOp{removal(d)})
}

func removal(d block.StateDelete) block.StateOp {
	return block.StateOp{Delete: true, StateWrite: block.StateWrite{Key: d.Key, ETag: d.ETag}}
}

// apply carries out all operations or none, in one script.
func (s *state) apply(ctx context.Context, op fault.Op, ops []block.StateOp) error {
	cmd, strong, err := s.writing(op, ops, nil)
	if err != nil {
		return err
	}
	if err := s.carry(ctx, op, writeItems, cmd, strong, ops[0].Key); err != nil {
		return err
	}
	return s.settle(ctx, op, cmd, ops)
}

// carry sends the command of a script that writes. key is one of its keys.
func (s *state) carry(ctx context.Context, op fault.Op, sc *script, cmd *command, strong bool, key string) error {
	if !strong {
		return s.conn.run(ctx, op, sc, cmd)
	}
	cmd.inFull(sc.text)
	return s.conn.confirm(ctx, op, []*command{cmd}, []string{key})
}

// settle reads the answer to writeItems.
func (s *state) settle(ctx context.Context, op fault.Op, cmd *command, ops []block.StateOp) error {
	if err := s.conn.failure(ctx, op, cmd); err != nil {
		return err
	}
	failed, err := cmd.Int()
	switch {
	case err != nil || failed < 0 || failed > len(ops):
		return fault.New(op, fault.Internal, "the script that writes answers %.100q", cmd.Val()).WithSent(fault.SentMaybe)
	case failed > 0:
		return mismatch(op, &ops[failed-1])
	case cmd.confirmed < cmd.copies:
		return fault.New(op, fault.Unavailable, "key %q is written, but %d of %d replicas do not confirm it in time; strong consistency asks for all",
			ops[0].Key, cmd.copies-cmd.confirmed, cmd.copies).WithSent(fault.SentMaybe)
	}
	return nil
}

func mismatch(op fault.Op, o *block.StateOp) error {
	if o.ETag != "" {
		return fault.New(op, fault.Conflict, "key %q does not have etag %q; read it again", o.Key, o.ETag)
	}
	return fault.New(op, fault.Conflict, "key %q exists already and the request is a first write", o.Key)
}

func (s *state) reading(key string) *command {
	return newCommand(s.conn.repeat(), 3, "evalsha", readItem.digest, 1, strings.Clone(key))
}

func (s *state) removing(key string) *command {
	return newCommand(s.conn.repeat(), 1, "del", strings.Clone(key))
}

// writing makes the command for ops, behind a fence if there is one.
func (s *state) writing(op fault.Op, ops []block.StateOp, f *fence) (cmd *command, strong bool, err error) {
	lead, sc := 0, writeItems
	if f != nil {
		lead, sc = 1, writeFenced
	}
	all := make([]any, 1+5*len(ops)+2*lead)
	all[0] = len(ops) + lead
	keys, args := all[1:1+lead+len(ops)], all[1+lead+len(ops):]
	if f != nil {
		keys[0], args[0] = f.key, f.epoch
		keys, args = keys[1:], args[1:]
	}
	for i := range ops {
		o := &ops[i]
		if err := checkETag(op, o.ETag); err != nil {
			return nil, false, err
		}
		keys[i] = strings.Clone(o.Key)
		how, ttl := "w", s.life(o.TTL)
		switch {
		case o.Delete:
			how = "d"
		case o.FirstWrite:
			how = "f"
		}
		condition := strings.Clone(o.ETag)
		if o.ETag == "" && o.FirstWrite && !o.Delete {
			condition = "-"
		}
		// The value is copied because a call that ends early leaves the command behind.
		at := args[4*i:]
		at[0], at[1], at[2], at[3] = how, condition, ttl, append([]byte(nil), o.Value...)
		strong = strong || o.Strong
	}
	return newCommand(s.conn.repeat(), 3, "evalsha", sc.digest, all...), strong, nil
}

// life is a time to live in milliseconds, never rounded to nothing.
func (s *state) life(ttl time.Duration) int64 {
	if ttl <= 0 {
		ttl = s.ttl
	}
	return int64((ttl + time.Millisecond - 1) / time.Millisecond)
}

// checkETag refuses what this store cannot have issued: an etag is a version, a decimal number,
// or the digest of a string.
func checkETag(op fault.Op, etag string) error {
	if etag == "" {
		return nil
	}
	if n, err := strconv.ParseInt(etag, 10, 64); err == nil && strconv.FormatInt(n, 10) == etag {
		return nil
	}
	if len(etag) == 40 && strings.Trim(etag, "0123456789abcdef") == "" {
		return nil
	}
	return fault.New(op, fault.BadEtag, "%.60q is not an etag of this store; those are whole numbers", etag).WithSent(fault.SentNever)
}

// item reads the answer to readItem.
func item(op fault.Op, key string, cmd *command) (block.StateItem, error) {
	it := block.StateItem{Key: key}
	fields, ok := cmd.Val().([]any)
	if !ok || len(fields) != 4 {
		return it, fault.New(op, fault.Internal, "the script that reads answers %.100q", cmd.Val())
	}
	left, _ := fields[2].(int64)
	if left == -2 {
		return it, nil
	}
	value, hasValue := fields[0].(string)
	version, hasVersion := fields[1].(string)
	if !hasValue || !hasVersion {
		return it, fault.New(op, fault.Unsupported, "key %q holds a hash without data or version, which is not an item of state", key)
	}
	it.Exists, it.Value, it.ETag = true, []byte(value), version
	if end, _ := fields[3].(int64); end > 0 {
		it.Expires = time.UnixMilli(end)
	} else if left >= 0 {
		it.Expires = time.Now().Add(time.Duration(left) * time.Millisecond)
	}
	return it, nil
}
