package redis

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/fault"
)

// ended is the error of a call whose context ended.
func ended(op fault.Op, where string, cause error, sent bool) error {
	code := fault.Canceled
	if errors.Is(cause, context.DeadlineExceeded) {
		code = fault.Deadline
	}
	e := fault.New(op, code, "%s", where).Because(cause).WithSent(fault.SentNever)
	if sent {
		e.Sent = fault.SentMaybe
	}
	return e
}

// failure is the error of a settled command, nil when it was carried out.
func (n *conn) failure(ctx context.Context, op fault.Op, cmd *command) error {
	err := cmd.Err()
	if err == nil || errors.Is(err, goredis.Nil) {
		return nil
	}
	return n.explain(ctx, op, err, cmd.sent())
}

// explain puts the client library's error into the house's words.
func (n *conn) explain(ctx context.Context, op fault.Op, err error, sent bool) error {
	var answer goredis.Error
	if errors.As(err, &answer) {
		return n.refusal(op, answer.Error(), sent)
	}
	return n.lost(ctx, op, err, sent)
}

// lost is the error of an exchange that broke off.
func (n *conn) lost(ctx context.Context, op fault.Op, err error, sent bool) error {
	if ctx.Err() != nil {
		return ended(op, n.where(), ctx.Err(), sent)
	}
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		// The connection's clock was a little faster than the context's.
		return ended(op, n.where(), context.DeadlineExceeded, sent)
	}
	var timeout net.Error
	text := "the connection broke"
	switch {
	case errors.Is(err, goredis.ErrClosed):
		text = "the component is closed"
	case errors.Is(err, goredis.ErrPoolTimeout):
		text = "all connections stay in use; is poolSize large enough?"
	case errors.As(err, &timeout) && timeout.Timeout() && sent:
		text = "no answer in time"
	case !sent:
		text = "is the server up, and is the address right?"
	}
	e := fault.New(op, fault.Unavailable, "%s: %s", n.where(), text).Because(err).WithSent(fault.SentNever)
	if sent {
		e.Sent = fault.SentMaybe
	}
	return e
}

// refusals says what an error answer means, by its beginning.
var refusals = []struct {
	prefix string
	code   fault.Code
	hint   string
}{
	{"NOAUTH", fault.Unauthenticated, "; set redisPassword"},
	{"WRONGPASS", fault.Unauthenticated, "; are redisUsername and redisPassword right?"},
	{"ERR invalid password", fault.Unauthenticated, "; is redisPassword right?"},
	{"ERR AUTH", fault.Unauthenticated, ""},
	{"ERR Client sent AUTH", fault.Unauthenticated, "; the server has no password, remove redisPassword"},
	{"NOPERM", fault.Denied, ""},
	{"OOM", fault.Exhausted, "; the server's memory is full"},
	{"CROSSSLOT", fault.Invalid, "; in a cluster the keys of a transaction must share a hash slot: give them a common part in braces, like {order-1}"},
	{"WRONGTYPE", fault.Unsupported, "; the key holds something of another kind"},
	{"ERR value is not an integer", fault.Invalid, "; the key holds something else than a number"},
	{"ERR increment or decrement would overflow", fault.Invalid, "; the number is as large as it can be"},
	{"LOADING", fault.Unavailable, ""},
	{"MASTERDOWN", fault.Unavailable, ""},
	{"CLUSTERDOWN", fault.Unavailable, ""},
	{"TRYAGAIN", fault.Unavailable, ""},
	{"READONLY", fault.Unavailable, "; the server is a replica"},
	{"NOREPLICAS", fault.Unavailable, ""},
	{"MISCONF", fault.Unavailable, ""},
	{"BUSY", fault.Unavailable, ""},
	{"MOVED", fault.Unavailable, ""},
	{"ASK", fault.Unavailable, ""},
	{"ERR max number of clients", fault.Unavailable, ""},
	{"ERR DB index", fault.Invalid, "; is redisDB right?"},
	{"ERR SELECT is not allowed", fault.Invalid, "; a cluster has database 0 only"},
	{"ERR Protocol error: invalid bulk length", fault.TooLarge, "; the server's proto-max-bulk-len is smaller"},
	{"ERR unknown command", fault.Unsupported, ""},
	{"ERR This instance has cluster support disabled", fault.Invalid, "; set redisType to node"},
}

// refusal is the error of an answer that is one. The ones known come before anything is changed,
// as do those to connecting (then nothing was sent).
func (n *conn) refusal(op fault.Op, answer string, sent bool) error {
	short := inner(answer)
	for _, r := range refusals {
		if strings.HasPrefix(short, r.prefix) {
			return fault.New(op, r.code, "%s answers %q%s", n.where(), short, r.hint).WithSent(fault.SentNever)
		}
	}
	e := fault.New(op, fault.Internal, "%s answers %q", n.where(), answer).WithSent(fault.SentNever)
	if sent {
		e.Sent = fault.SentMaybe
	}
	return e
}

// inner takes the answer to a command of a script out of what older servers wrap around it:
// "ERR Error running script (call to f_…): @user_script:7: -OOM command not allowed".
func inner(answer string) string {
	if strings.HasPrefix(answer, "ERR Error running script") {
		if i := strings.LastIndex(answer, ": -"); i >= 0 {
			return answer[i+3:]
		}
	}
	return answer
}
