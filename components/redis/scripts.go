package redis

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/fault"
)

// script is a text the server runs, known to it by its digest once it has seen it.
type script struct{ text, digest string }

func newScript(text string) *script {
	sum := sha1.Sum([]byte(text))
	return &script{text: text, digest: hex.EncodeToString(sum[:])}
}

// run performs commands of one script, which the server knows by its digest; where it does not,
// the text is sent.
func (n *conn) run(ctx context.Context, op fault.Op, sc *script, cmds ...*command) error {
	if err := n.send(ctx, op, cmds); err != nil {
		return err
	}
	var unknown []*command
	for _, c := range cmds {
		if goredis.HasErrorPrefix(c.Err(), "NOSCRIPT") {
			c.inFull(sc.text)
			unknown = append(unknown, c)
		}
	}
	if unknown == nil {
		return nil
	}
	err := n.send(ctx, op, unknown)
	if e, ok := errors.AsType[*fault.Error](err); ok && len(unknown) < len(cmds) {
		return e.WithSent(fault.SentMaybe) // it speaks for the others too, which were carried out
	}
	return err
}

// send performs commands in one go.
func (n *conn) send(ctx context.Context, op fault.Op, cmds []*command) error {
	if len(cmds) == 1 && n.sharable(cmds[0]) {
		return n.share(ctx, op, cmds[0])
	}
	return n.apart(ctx, op, cmds)
}

// readItem reads value, version and time to live at one moment. A string is the value of a very
// old version of Dapr: its version is the digest of what it holds. The time to live of a missing
// key is -2; a hash that is no item lacks value or version. When an item ends is asked of the
// server too, so that it is the same at every read; versions before 7 do not tell.
//
//	KEYS[1]  the key
//	answer   {value, version, milliseconds to live, end in milliseconds or 0}
var readItem = newScript(`local f = redis.pcall('HMGET', KEYS[1], 'data', 'version')
if f.err then
  local s = redis.pcall('GET', KEYS[1])
  if type(s) ~= 'string' then return s end
  f = {s, redis.sha1hex(s)}
end
` + readEnd)

// lookItem is readItem for whoever does not know what there is: what is no item is missing.
//
//	KEYS[1]  the key
//	ARGV[1]  'k' to leave out the value
//	answer   as of readItem
var lookItem = newScript(`local f = redis.pcall('HMGET', KEYS[1], 'data', 'version')
if f.err then
  local s = redis.pcall('GET', KEYS[1])
  if type(s) ~= 'string' then return {false, false, -2, 0} end
  f = {s, redis.sha1hex(s)}
end
if not (f[1] and f[2]) then return {false, false, -2, 0} end
if ARGV[1] == 'k' then f[1] = '' end
` + readEnd)

const readEnd = `local ttl, at = redis.call('PTTL', KEYS[1]), 0
if ttl >= 0 then
  at = redis.pcall('PEXPIRETIME', KEYS[1])
  if type(at) ~= 'number' then at = 0 end
end
return {f[1], f[2], ttl, at}`

// writeItems checks all conditions, then carries out all operations in their order, or none.
//
//	KEYS[i]      the key of operation i
//	ARGV[4i-3]   'w' write, 'f' write and leave the mark of a first write, 'd' delete
//	ARGV[4i-2]   '' no condition, '-' the key must not exist, else the version it must have
//	ARGV[4i-1]   milliseconds to live, 0 for ever
//	ARGV[4i]     the value
//	answer       0, or the number of the first operation whose condition does not hold
//
// The mark is Dapr's: its own writes obey it, ours leave it where it is. A new item's version is
// the time in microseconds, not 1 as Dapr's, so that no version returns after a key was deleted;
// it counts on from there, as it does from a version that Dapr wrote. What is no item (a string,
// a hash without a version) is replaced. A new key is not deleted first to be sure: the server
// refuses a script for want of memory at its first write only, and a deletion would be that one.
var writeItems = newScript(checkItems + changeItems)

const checkItems = `local function version(k)
  local v = redis.pcall('HGET', k, 'version')
  if type(v) ~= 'table' then return v end
  v = redis.pcall('GET', k)
  return type(v) == 'string' and redis.sha1hex(v)
end
for i, k in ipairs(KEYS) do
  local want = ARGV[4*i-2]
  if want == '-' then
    if redis.call('EXISTS', k) == 1 then return i end
  elseif want ~= '' and version(k) ~= want then
    return i
  end
end
`

const changeItems = `for i, k in ipairs(KEYS) do
  local how, ttl = ARGV[4*i-3], ARGV[4*i-1]
  if how == 'd' then
    redis.call('DEL', k)
  else
    local v = redis.pcall('HGET', k, 'version')
    local old = type(v) == 'string' and #v < 19 and string.find(v, '^%d+$')
    if not old and redis.call('EXISTS', k) == 1 then redis.call('DEL', k) end
    redis.call('HSET', k, 'data', ARGV[4*i])
    if how == 'f' then redis.call('HSET', k, 'first-write', '0') end
    if old then
      redis.call('HINCRBY', k, 'version', 1)
    else
      local now = redis.call('TIME')
      redis.call('HSET', k, 'version', now[1] .. string.format('%06d', now[2]))
    end
    if ttl ~= '0' then
      redis.call('PEXPIRE', k, ttl)
    elseif old then
      redis.call('PERSIST', k)
    end
  end
end
return 0`

// writeFenced is writeItems, if the number of a fence is not greater than the one given, which it
// then becomes. Numbers are compared as text, which has no limit.
//
//	KEYS[1]  the fence, then those of writeItems
//	ARGV[1]  the number in decimal, then those of writeItems
//	answer   as of writeItems, or -1 when the number is smaller
var writeFenced = newScript(`local fence, epoch = table.remove(KEYS, 1), table.remove(ARGV, 1)
local last = redis.call('HGET', fence, 'fence') or '0'
if #last > #epoch or #last == #epoch and last > epoch then return -1 end
` + checkItems + `if last ~= epoch then redis.call('HSET', fence, 'fence', epoch) end
` + changeItems)

// apart performs commands in one exchange that nobody shares.
func (n *conn) apart(ctx context.Context, op fault.Op, cmds []*command) error {
	return n.exchange(ctx, op, cmds, func(ctx context.Context, client goredis.UniversalClient) {
		if len(cmds) == 1 {
			_ = client.Process(ctx, cmds[0])
			return
		}
		p := client.Pipeline()
		for _, c := range cmds {
			_ = p.Process(ctx, c)
		}
		_, _ = p.Exec(ctx)
	})
}
