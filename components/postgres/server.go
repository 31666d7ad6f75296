package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlstate"
)

// server is a component's way to the database.
type server struct {
	pool    *pool
	timeout time.Duration
	where   string // the database, for messages
	closed  atomic.Bool
}

func (s *server) open(p *poolConfig, timeout time.Duration) {
	s.pool, s.timeout = newPool(p), timeout
	s.where = fmt.Sprintf("the database %s on %s:%d", p.conn.Database, p.conn.Host, p.conn.Port)
}

func (s *server) close(ctx context.Context, op fault.Op) error {
	s.closed.Store(true)
	if err := s.pool.close(ctx); err != nil {
		return sqlstate.Ended(op, err, fault.SentUnknown)
	}
	return nil
}

// do runs one operation on a connection, within timeout, after ready (which may be nil, and
// whose failure means that nothing was asked), and puts its failure into the house's words.
func (s *server) do(ctx context.Context, op fault.Op, ready, run func(context.Context, *pgx.Conn) error) error {
	if err := ctx.Err(); err != nil {
		return sqlstate.Ended(op, err, fault.SentNever)
	}
	if s.closed.Load() {
		return sqlstate.Closed(op)
	}
	limited, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	c, err := s.pool.get(limited)
	if err != nil {
		return s.failed(ctx, limited, op, err, fault.SentNever)
	}
	defer s.pool.put(c)
	if ready != nil {
		if err := ready(limited, c.Conn); err != nil {
			return s.failed(ctx, limited, op, err, fault.SentNever)
		}
	}
	return s.failed(ctx, limited, op, run(limited, c.Conn), fault.SentMaybe)
}

// failed puts an error into the house's words. sent is how far the operation may have got when
// nobody knows better.
func (s *server) failed(ctx, limited context.Context, op fault.Op, err error, sent fault.Sent) error {
	if err == nil {
		return nil
	}
	if known, ok := errors.AsType[*fault.Error](err); ok {
		known.Op = op
		return err
	}
	if pgconn.SafeToRetry(err) {
		sent = fault.SentNever
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return s.explain(op, e)
	}
	switch {
	case errors.Is(err, errClosed):
		return sqlstate.Closed(op)
	case sqlstate.Over(ctx) != nil:
		return sqlstate.Ended(op, sqlstate.Over(ctx), sent)
	case sqlstate.Over(limited) != nil:
		return fault.New(op, fault.Unavailable, "%s did not answer within %v", s.where, s.timeout).Because(err).WithSent(sent)
	}
	return fault.New(op, fault.Unavailable, "%s cannot be reached; is the server up?", s.where).Because(err).WithSent(sent)
}

// explain puts the server's refusal into the house's words. A statement that was refused did
// nothing.
func (s *server) explain(op fault.Op, e *pgconn.PgError) error {
	say := func(code fault.Code, hint string) error {
		return fault.New(op, code, "%s refuses%s", s.where, hint).Because(e).WithSent(fault.SentNever)
	}
	switch e.Code {
	case "40001", "40P01", "55P03":
		return say(fault.Unavailable, ", for others write the same rows; try again")
	case "42501", "28000", "28P01":
		return say(fault.Denied, "; check user and password, and what the role may do")
	case "42703":
		return say(fault.Unsupported, "; is the table one of another version (v1, v2)?")
	case "54000":
		return say(fault.TooLarge, "; keys can be about 2700 bytes")
	case "57P01", "57P02":
		// The server goes down. It may have carried out the statement before it said so.
		return fault.New(op, fault.Unavailable, "%s is shutting down", s.where).Because(e).WithSent(fault.SentMaybe)
	}
	switch e.Code[:min(2, len(e.Code))] {
	case "22":
		return say(fault.Invalid, " the data")
	case "53":
		if e.Code == "53300" {
			return say(fault.Unavailable, ", for it has too many connections; lower maxConns")
		}
		return say(fault.Exhausted, "; is its disk full?")
	}
	return say(fault.Unavailable, "")
}
