package kafka

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mecha-project/mecha/components/fault"
)

// producer appends records. Its client is made at first use and serves Ping too.
type producer struct {
	*conn
	config ProducerConfig

	mu     sync.Mutex
	client *kgo.Client   // guarded by mu; nil until first use
	closed bool          // guarded by mu
	over   chan struct{} // closed by close
}

func newProducer(n *conn, c ProducerConfig) *producer {
	c.warn(n.log)
	return &producer{conn: n, config: c, over: make(chan struct{})}
}

// use is the client, unless ctx has ended or the component is closed.
func (p *producer) use(ctx context.Context, op fault.Op) (*kgo.Client, error) {
	if err := ctx.Err(); err != nil {
		return nil, ended(op, p.where(), err, false)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, p.gone(op)
	}
	if p.client == nil {
		client, err := p.conn.client(p.config.options()...)
		if err != nil {
			return nil, err
		}
		p.client = client
	}
	return p.client, nil
}

func (n *conn) gone(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "%s: the component is closed", n.where()).WithSent(fault.SentNever)
}

// append appends one record and waits until all in-sync replicas have it.
//
// The record is the client's, not the call's: one whose caller has gone is sent all the same when
// the broker comes back within writeTimeout. Taking it back would break the sequence of those
// behind it, which are others'.
func (p *producer) append(ctx context.Context, op fault.Op, r *kgo.Record) error {
	client, err := p.use(ctx, op)
	if err != nil {
		return err
	}
	named := strconv.Itoa(int(r.Partition)) // the record is the client's soon
	done := make(chan error, 1)
	client.TryProduce(context.WithoutCancel(ctx), r, func(_ *kgo.Record, err error) { done <- err })
	// A broker that took the record and does not answer keeps it in doubt for longer.
	late := time.NewTimer(p.config.WriteTimeout + time.Second)
	defer late.Stop()
	select {
	case err := <-done:
		if n := misplaced(r); n > 0 && err != nil {
			return fault.New(op, fault.Invalid, "topic %s has no partition %s; its partitions are 0 to %d", r.Topic, named, n-1).With(fault.BadMetadata).WithSent(fault.SentNever)
		}
		if err != nil {
			return p.explain(op, err, true)
		}
		return nil
	case <-ctx.Done():
		return ended(op, p.where(), p.cause(ctx.Err()), true)
	case <-late.C:
		return fault.New(op, fault.Unavailable, "%s: no answer within writeTimeout", p.where()).Because(p.health.why()).WithSent(fault.SentMaybe)
	}
}

// cause adds to a context's error why there is no connection, when there is none.
func (p *producer) cause(err error) error {
	if why := p.health.why(); why != nil {
		return &disconnected{err, why}
	}
	return err
}

// disconnected is a call that ended while there was no connection.
type disconnected struct{ ended, why error }

func (d *disconnected) Error() string { return d.ended.Error() + ": " + d.why.Error() }
func (d *disconnected) Unwrap() error { return d.ended }

// ping asks a broker for a sign of life.
func (p *producer) ping(ctx context.Context, op fault.Op) error {
	client, err := p.use(ctx, op)
	if err != nil {
		return err
	}
	if err := client.Ping(ctx); err != nil {
		if ctx.Err() != nil {
			return ended(op, p.where(), p.cause(ctx.Err()), true)
		}
		return p.explain(op, err, true)
	}
	return nil
}

// close ends the client. Appends under way fail.
func (p *producer) close() {
	p.mu.Lock()
	client := p.client
	if !p.closed {
		p.closed = true
		close(p.over)
	}
	p.client = nil
	p.mu.Unlock()
	if client != nil {
		client.Close()
	}
}
