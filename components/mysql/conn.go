package mysql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mecha-project/mecha/components/sqlstate"
)

// open makes the pool without I/O.
func open(dc *mysql.Config, timeout time.Duration, conns int) (*sql.DB, error) {
	c, err := mysql.NewConnector(dc)
	if err != nil {
		return nil, err
	}
	_, tx := dc.Params["tx_isolation"]
	_, transaction := dc.Params["transaction_isolation"]
	db := sql.OpenDB(&connector{Connector: c, timeout: timeout, isolate: !tx && !transaction})
	if conns <= 0 {
		conns = defaultConns
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	db.SetConnMaxIdleTime(5 * time.Minute) // proxies and firewalls forget idle connections
	return db, nil
}

// connector bounds connecting, which the pool may do in the background with no bound, and says
// of its failures that nothing was sent.
type connector struct {
	driver.Connector
	timeout time.Duration
	isolate bool
}

func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	plain, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, &sqlstate.Unsent{Err: err}
	}
	made := conn{plain.(rawConn)}
	if c.isolate {
		// The server's default locks gaps between keys: writers of neighbours would wait for
		// each other in circles. The name of the variable differs between products.
		if _, err := made.ExecContext(ctx, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", nil); err != nil {
			_ = made.Close()
			return nil, &sqlstate.Unsent{Err: err}
		}
	}
	return made, nil
}

// rawConn is what the driver's connections can do.
type rawConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
	driver.NamedValueChecker
}

// conn is the driver's connection with two changes. One: its transactions end with their
// contexts; the driver's own COMMIT and ROLLBACK wait for a silent server forever. The other
// is stmt.
type conn struct{ rawConn }

// PrepareContext wraps the statement, too.
func (c conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	st, err := c.rawConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return stmt{st.(rawStmt), c}, nil
}

// rawStmt is what the driver's statements can do.
type rawStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
	driver.NamedValueChecker
}

// stmt gives up its connection after a value that was too long: the server would answer every
// later execution of the statement with the same error.
type stmt struct {
	rawStmt
	conn conn
}

func (s stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	r, err := s.rawStmt.ExecContext(ctx, args)
	if number(err) == errUnnamed {
		_ = s.conn.Close()
	}
	return r, err
}

// BeginTx begins a transaction whose end hears ctx.
func (c conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if _, err := c.rawConn.BeginTx(ctx, opts); err != nil {
		return nil, err
	}
	return tx{ctx, c}, nil
}

type tx struct {
	ctx  context.Context // of the whole transaction, as database/sql has it
	conn conn
}

func (t tx) Commit() error   { return t.end("COMMIT") }
func (t tx) Rollback() error { return t.end("ROLLBACK") }

// end gives up the connection when the statement fails: nobody knows what it is in the middle
// of, and the server rolls back what a lost connection began.
func (t tx) end(statement string) error {
	_, err := t.conn.ExecContext(t.ctx, statement, nil)
	if err != nil {
		_ = t.conn.Close()
	}
	return err
}
