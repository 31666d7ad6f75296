package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// The registry keeps one row per instance, renewed before it ends; rows that nobody
// renewed for UpdateInterval are not returned. The table is Dapr's: its sidecars see ours
// and we see theirs, as instances that speak "dapr". What their table has no column for is
// in a second one.
//
// Unlike Dapr's, a sidecar whose row vanished does not exit: it warns and writes the row
// again, unless another live instance has taken its address.

var (
	_ block.Registry  = (*registry)(nil)
	_ block.Registrar = (*registry)(nil)
)

const (
	opPing       fault.Op = "sqlite.registry.Ping"
	opResolve    fault.Op = "sqlite.registry.Resolve"
	opRegister   fault.Op = "sqlite.registry.Register"
	opDeregister fault.Op = "sqlite.registry.Deregister"
	opClose      fault.Op = "sqlite.registry.Close"
)

type registry struct {
	log    *slog.Logger
	config RegistryConfig
	db     *sql.DB
	sql    statements

	ready sync.Mutex // held while the tables are made
	made  bool       // guarded by ready

	turn chan struct{} // holds a token while rows of own are written

	mu       sync.Mutex
	own      map[string]block.Instance // guarded by mu; by id
	closed   bool                      // guarded by mu
	stop     context.CancelFunc        // guarded by mu; ends the renewal; nil while none runs
	renewing sync.WaitGroup
}

// details is what the second table holds, as JSON.
type details struct {
	Protocol string            `json:"protocol,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Weight   int               `json:"weight,omitempty"`
}

// NewRegistry opens the registry. It touches no file: the first use does.
func NewRegistry(env block.Env, c *RegistryConfig) (block.Registry, error) {
	if err := c.Validate(); err != nil {
		return nil, fault.Wrap("sqlite.NewRegistry", fault.Invalid, err)
	}
	db, err := openDB(c.ConnectionString, c.BusyTimeout, !c.DisableWAL, false)
	if err != nil {
		return nil, fault.Wrap("sqlite.NewRegistry", fault.Invalid, err)
	}
	if inMemory(c.ConnectionString) {
		env.Log.Warn("the registry is in memory: no other sidecar can see it; name a file in connectionString")
	}
	return &registry{log: env.Log, config: *c, db: db, own: map[string]block.Instance{}, turn: make(chan struct{}, 1),
		sql: newStatements(c.TableName, c.MetadataTableName, c.UpdateInterval)}, nil
}

// do runs one operation against the database: within Timeout, with the tables made, and
// with its failure in the house's words.
func (r *registry) do(ctx context.Context, op fault.Op, run func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	r.mu.Lock()
	closed := r.closed
	r.mu.Unlock()
	if closed && op != opClose {
		return errClosed(op)
	}
	limited, cancel := context.WithTimeout(ctx, r.config.Timeout)
	defer cancel()
	err := r.tables(limited)
	if err == nil {
		err = run(limited)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fault.Wrap(op, fault.Canceled, ctx.Err())
	case limited.Err() != nil:
		return fault.New(op, fault.Unavailable, "the database %s did not answer within %v (%v)", r.config.ConnectionString, r.config.Timeout, err)
	}
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	return fault.New(op, fault.Unavailable, "the database %s failed", r.config.ConnectionString).Because(err)
}

func errClosed(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "the registry is closed").WithSent(fault.SentNever)
}

// tables makes the tables once per registry.
func (r *registry) tables(ctx context.Context) error {
	r.ready.Lock()
	defer r.ready.Unlock()
	if r.made {
		return nil
	}
	err := r.sql.ensure(ctx, r.db)
	r.made = err == nil
	return err
}

// Ping checks that the database answers and has its tables.
func (r *registry) Ping(ctx context.Context) error {
	return r.do(ctx, opPing, r.db.PingContext)
}

// Resolve lists the rows renewed in time.
func (r *registry) Resolve(ctx context.Context, name block.Name) ([]block.Instance, error) {
	out := []block.Instance{}
	err := r.do(ctx, opResolve, func(ctx context.Context) error {
		rows, err := r.db.QueryContext(ctx, r.sql.resolve, name.App, name.Namespace)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			in, err := scan(rows, name)
			if err != nil {
				return err
			}
			if err := in.Validate(); err != nil {
				r.log.Warn("registry row ignored", "error", err)
				continue
			}
			out = append(out, in)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func scan(rows *sql.Rows, name block.Name) (block.Instance, error) {
	in := block.Instance{App: name.App, Namespace: name.Namespace}
	var text sql.NullString
	if err := rows.Scan(&in.ID, &in.Address, &text); err != nil {
		return in, err
	}
	if !text.Valid {
		in.Protocol = "dapr" // a row of one of Dapr's sidecars
		return in, nil
	}
	var d details
	if err := json.Unmarshal([]byte(text.String), &d); err != nil {
		return in, fmt.Errorf("details of instance %s: %w", in.ID, err)
	}
	in.Protocol, in.Labels, in.Weight = d.Protocol, d.Labels, d.Weight
	return in, nil
}

// Register writes self's row and renews it until Deregister or Close. An earlier row with
// the same address, as a crash leaves it, is replaced.
func (r *registry) Register(ctx context.Context, self block.Instance) error {
	if err := self.Validate(); err != nil {
		return fault.Wrap(opRegister, fault.Invalid, err)
	}
	self.Labels = maps.Clone(self.Labels)
	if err := r.takeTurn(ctx); err != nil {
		return fault.Wrap(opRegister, fault.Canceled, err)
	}
	defer r.endTurn()
	if err := r.do(ctx, opRegister, func(ctx context.Context) error { return r.write(ctx, self) }); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errClosed(opRegister) // Close came between; the row ends by itself
	}
	r.own[self.ID] = self
	if r.stop == nil {
		ctx, cancel := context.WithCancel(context.Background())
		r.stop = cancel
		r.renewing.Go(func() { r.keepAlive(ctx) })
	}
	return nil
}

// takeTurn keeps a renewal and a new registration of one id from overwriting each other.
func (r *registry) takeTurn(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *registry) endTurn() { <-r.turn }

func (r *registry) write(ctx context.Context, self block.Instance) error {
	text, err := json.Marshal(details{self.Protocol, self.Labels, self.Weight})
	if err != nil {
		return err
	}
	return inTx(ctx, r.db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, r.sql.register, self.ID, self.Address, self.App, self.Namespace); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, r.sql.describe, self.ID, string(text))
		return err
	})
}

// keepAlive renews our rows and now and then removes those of the dead.
func (r *registry) keepAlive(ctx context.Context) {
	tick := time.NewTicker(r.config.UpdateInterval - r.config.Timeout)
	defer tick.Stop()
	cleaned := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.renewAll(ctx)
		if r.config.CleanupInterval > 0 && time.Since(cleaned) >= r.config.CleanupInterval {
			cleaned = time.Now()
			if err := r.cleanup(ctx); err != nil && ctx.Err() == nil {
				r.log.Warn("rows of dead instances were not removed", "error", err)
			}
		}
	}
}

func (r *registry) renewAll(ctx context.Context) {
	if r.takeTurn(ctx) != nil {
		return
	}
	defer r.endTurn()
	r.mu.Lock()
	own := maps.Clone(r.own)
	r.mu.Unlock()
	for _, self := range own {
		if err := r.renew(ctx, self); err != nil && ctx.Err() == nil {
			r.log.Warn("registry entry was not renewed; others may not find this app", "instance", self.ID, "error", err)
		}
	}
}

// renew stamps a row. A row that vanished is written again.
func (r *registry) renew(ctx context.Context, self block.Instance) error {
	lost := false
	err := r.do(ctx, opRegister, func(ctx context.Context) error {
		n, err := affected(r.db.ExecContext(ctx, r.sql.renew, self.ID, self.Address))
		if err != nil || n > 0 {
			return err
		}
		lost = true
		var other string
		switch err := r.db.QueryRowContext(ctx, r.sql.holder, self.Address).Scan(&other); {
		case err == nil:
			// Taking it back would start a fight that neither can win.
			return fault.New(opRegister, fault.Exists, "the address %s is held by the live instance %s", self.Address, other)
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		return r.write(ctx, self)
	})
	if err == nil && lost {
		r.log.Warn("registry entry was removed by somebody else and is written again", "instance", self.ID)
	}
	return err
}

func affected(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (r *registry) cleanup(ctx context.Context) error {
	return r.do(ctx, opRegister, func(ctx context.Context) error {
		return inTx(ctx, r.db, func(tx *sql.Tx) error {
			n, err := affected(tx.ExecContext(ctx, r.sql.claimCleanup, int64(r.config.CleanupInterval.Seconds())))
			if err != nil || n == 0 { // 0: another sidecar did it
				return err
			}
			_, err = tx.ExecContext(ctx, r.sql.cleanup)
			return err
		})
	})
}

// Deregister removes the rows of everything registered here.
func (r *registry) Deregister(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(opDeregister, fault.Canceled, err)
	}
	return r.withdraw(ctx, opDeregister)
}

func (r *registry) withdraw(ctx context.Context, op fault.Op) error {
	r.mu.Lock()
	own, stop := r.own, r.stop
	r.own, r.stop = map[string]block.Instance{}, nil
	r.mu.Unlock()
	if stop != nil {
		stop()
		r.renewing.Wait() // a renewal in flight must not write the row again
	}
	if len(own) == 0 {
		return nil
	}
	return r.do(ctx, op, func(ctx context.Context) error {
		return inTx(ctx, r.db, func(tx *sql.Tx) error {
			for _, self := range own {
				for _, q := range []string{r.sql.forget, r.sql.deregister} { // forget looks at the row
					if _, err := tx.ExecContext(ctx, q, self.ID, self.Address); err != nil {
						return err
					}
				}
			}
			return nil
		})
	})
}

// Close withdraws everything and closes the file. When the rows cannot be removed it says
// so; they end by themselves after UpdateInterval.
func (r *registry) Close(ctx context.Context) error {
	r.mu.Lock()
	again := r.closed
	r.closed = true
	r.mu.Unlock()
	if again {
		return nil
	}
	err := r.withdraw(context.WithoutCancel(ctx), opClose) // bounded by Timeout
	return errors.Join(err, fault.Wrap(opClose, fault.Internal, r.db.Close()))
}
