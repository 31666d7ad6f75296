package redis

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// command is one request and knows how far it got.
//
// The client library does not tell whether a failed request was sent, and cannot be stopped while
// it waits for an answer. So one argument of each command is a mark: the library asks it for its
// bytes at the moment it writes the command. Before that moment the request certainly has not left,
// and one whose caller has gone refuses to be written.
type command struct {
	*goredis.Cmd
	args   []any // of the command; the mark is at place 1
	reach  atomic.Int32
	repeat bool // whether the user lets the library repeat it

	confirmed, copies int // of a strong write: replicas that have it, replicas there are

	size    int           // of its arguments, about
	shared  bool          // it travels with those of other callers
	done    chan struct{} // of a shared one: gets a signal when it is settled
	until   time.Time     // of a shared one: its caller's deadline, if bounded
	bounded bool
}

// How far a command got.
const (
	waiting   int32 = iota // not written
	written                // perhaps in part
	abandoned              // its caller has gone; it may have been written before
)

var errAbandoned = errors.New("the caller has gone")

// mark is an argument that notes when it is written.
type mark struct {
	cmd  *command
	text string
}

// MarshalBinary is called when the command is written.
func (m mark) MarshalBinary() ([]byte, error) {
	if !m.cmd.reach.CompareAndSwap(waiting, written) && m.cmd.reach.Load() == abandoned {
		if m.cmd.shared {
			return []byte(harmless(m.cmd.args[0] == "eval")), nil // an error would fail the others too
		}
		return nil, errAbandoned
	}
	return []byte(m.text), nil
}

// harmless is put in place of a script that is not to run any more.
func harmless(text bool) string {
	if text {
		return "return 0"
	}
	return "0000000000000000000000000000000000000000" // the digest of nothing
}

// String is the argument, by which a cluster's client finds the key's server.
func (m mark) String() string { return m.text }

// newCommand makes a command; arg is its first argument. The arguments must be the command's own:
// it may outlive the call.
func newCommand(repeat bool, key int8, name, arg string, more ...any) *command {
	c := &command{repeat: repeat, args: make([]any, 2, 2+len(more))}
	c.args[0], c.args[1] = name, mark{c, arg}
	c.args = append(c.args, more...)
	for _, a := range more {
		switch a := a.(type) {
		case string:
			c.size += len(a)
		case []byte:
			c.size += len(a)
		}
	}
	c.Cmd = goredis.NewCmd(context.Background(), c.args...) // the context is that of the exchange
	c.SetFirstKeyPos(key)
	return c
}

// inFull makes the same request again with the script's text, for a server that does not know its
// digest. The old one must be settled.
func (c *command) inFull(text string) {
	c.reach.Store(waiting)
	c.args[0], c.args[1] = "eval", mark{c, text}
	c.Cmd = goredis.NewCmd(context.Background(), c.args...)
	c.SetFirstKeyPos(3)
}

// NoRetry keeps the client library from sending a command twice. Redirections in a cluster are
// followed all the same: those are refusals.
func (c *command) NoRetry() bool { return !c.repeat }

// sent tells whether the command may have reached the server.
func (c *command) sent() bool { return c.reach.Load() != waiting }

// abandon tells whether the command may have reached the server, and stops it if not.
func (c *command) abandon() bool { return c.reach.Swap(abandoned) != waiting }
