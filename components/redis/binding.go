package redis

import (
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var _ block.Output = (*output)(nil)

// BindingConfig configures Redis as an output binding.
type BindingConfig struct {
	Conn ConnConfig
}

// DefaultBindingConfig returns the defaults.
func DefaultBindingConfig() *BindingConfig { return &BindingConfig{Conn: defaultConn()} }

// NewBinding opens an output binding.
func NewBinding(_ block.Env, c *BindingConfig) (block.Component, error) {
	n, err := newConn(c.Conn)
	if err != nil {
		return nil, err
	}
	return &output{conn: n}, nil
}

// output reads and writes strings under keys that the app names in full: no prefix is added.
type output struct{ conn *conn }

// Operations of the binding.
const (
	opCreate    = "create"
	opGet       = "get"
	opDelete    = "delete"
	opIncrement = "increment"
)

var operations = []string{opCreate, opGet, opDelete, opIncrement}

// Metadata entries of a request.
const (
	keyEntry    = "key"
	ttlEntry    = "ttlInSeconds"
	deleteEntry = "delete" // of a get: take the value away
)

// fetch and put are the commands GET and SET: as small scripts they share exchanges with those of
// other callers, which plain commands cannot.
//
//	KEYS, ARGV  the key; for put the value, milliseconds or 0 for ever
var (
	fetch = newScript(`return redis.call('GET', KEYS[1])`)
	put   = newScript(`if ARGV[2] == '0' then return redis.call('SET', KEYS[1], ARGV[1]) end
return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])`)
)

// take reads a string and deletes it.
//
//	KEYS    the key
//	answer  the value, or nil
var take = newScript(`local v = redis.call('GET', KEYS[1])
if v then redis.call('DEL', KEYS[1]) end
return v`)

// increment adds 1 to a number, which starts at 0, and gives it another time to live.
//
//	KEYS, ARGV  the key, milliseconds or 0 for the time it has
//	answer      the number
var increment = newScript(`local n = redis.call('INCR', KEYS[1])
if ARGV[1] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return n`)

// Operations are what Invoke takes.
func (o *output) Operations() []string { return slices.Clone(operations) }

// Ping checks that the server answers.
func (o *output) Ping(ctx context.Context) error { return o.conn.ping(ctx, "redis.binding.Ping") }

// Close ends the connections.
func (o *output) Close(ctx context.Context) error { return o.conn.close(ctx, "redis.binding.Close") }

// Invoke does one operation on one key. Only get has an answer, an empty one for a missing key.
func (o *output) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	const op fault.Op = "redis.binding.Invoke"
	if !slices.Contains(operations, r.Operation) {
		return nil, fault.New(op, fault.Unsupported, "invalid operation: %s; known are %s", r.Operation, strings.Join(operations, ", ")).WithSent(fault.SentNever)
	}
	key := strings.Clone(r.Metadata[keyEntry])
	if key == "" {
		return nil, fault.New(op, fault.Invalid, "redis binding: missing key in request metadata").With(fault.BadMetadata).WithSent(fault.SentNever)
	}
	ttl, err := timeToLive(op, r.Metadata[ttlEntry])
	if err != nil {
		return nil, err
	}
	switch r.Operation {
	case opGet:
		return o.get(ctx, op, key, truthy(r.Metadata[deleteEntry]))
	case opDelete:
		return nil, o.conn.one(ctx, op, newCommand(o.conn.repeat(), 1, "del", key))
	case opIncrement:
		_, err := o.run(ctx, op, increment, key, strconv.FormatInt(ttl, 10))
		return nil, err
	}
	data := append([]byte{}, r.Data...) // nil is no argument
	if o.conn.shares() {
		_, err := o.run(ctx, op, put, key, data, strconv.FormatInt(ttl, 10))
		return nil, err
	}
	args := []any{data}
	if ttl > 0 {
		args = append(args, "px", ttl)
	}
	return nil, o.conn.one(ctx, op, newCommand(o.conn.repeat(), 1, "set", key, args...))
}

// get answers a string, or nothing when there is none.
func (o *output) get(ctx context.Context, op fault.Op, key string, away bool) (*block.BindingAnswer, error) {
	var cmd *command
	var err error
	switch {
	case away:
		cmd, err = o.run(ctx, op, take, key)
	case o.conn.shares():
		cmd, err = o.run(ctx, op, fetch, key)
	default:
		cmd = newCommand(o.conn.repeat(), 1, "get", key)
		err = o.conn.one(ctx, op, cmd)
	}
	switch {
	case err != nil:
		return nil, err
	case errors.Is(cmd.Err(), goredis.Nil):
		return &block.BindingAnswer{}, nil
	}
	text, ok := cmd.Val().(string)
	if !ok {
		return nil, fault.New(op, fault.Internal, "%s: a read answers %.100v", o.conn.where(), cmd.Val()).WithSent(fault.SentMaybe)
	}
	o.conn.replied(len(text))
	return &block.BindingAnswer{Data: []byte(text)}, nil
}

// run performs a script on a key.
func (o *output) run(ctx context.Context, op fault.Op, sc *script, key string, args ...any) (*command, error) {
	cmd := newCommand(o.conn.repeat(), 3, "evalsha", sc.digest, append([]any{1, key}, args...)...)
	if err := o.conn.run(ctx, op, sc, cmd); err != nil {
		return nil, err
	}
	return cmd, o.conn.failure(ctx, op, cmd)
}

// timeToLive reads a request's time to live as milliseconds; 0 when it has none.
func timeToLive(op fault.Op, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 {
		return 0, fault.New(op, fault.Invalid, "metadata entry %s is %.40q; want a whole number of seconds above 0, or leave it out", ttlEntry, text).
			With(fault.BadExpiry).WithSent(fault.SentNever)
	}
	// Longer than the server can count means as long as we can.
	return min(n, int64(math.MaxInt64/time.Second)) * 1000, nil
}

// truthy reads a boolean of a request's metadata.
func truthy(text string) bool {
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "y", "yes", "true", "t", "on", "1":
		return true
	}
	return false
}
