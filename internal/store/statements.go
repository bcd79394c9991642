package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
)

// maxStatements bounds the compiled statements of one SQLite connection.
const maxStatements = 64

// SQLite compiles a statement each time it is run by its text, which costs more
// than running it: half of the time of an insert. database/sql could keep
// compiled ones, but only for a *sql.DB, and preparing there would wait for the
// connection that the transaction holds. So they are kept below it, one set for
// each connection.

// openCaching is sql.Open for SQLite, with connections that keep their statements.
func openCaching(dsn string) (*sql.DB, error) {
	plain, err := sql.Open("sqlite", dsn) // connects to nothing; it knows the driver
	if err != nil {
		return nil, err
	}
	d := plain.Driver()
	if err := plain.Close(); err != nil {
		return nil, err
	}
	return sql.OpenDB(cachingConnector{d, dsn}), nil
}

type cachingConnector struct {
	driver driver.Driver
	dsn    string
}

// Connect implements driver.Connector.
func (c cachingConnector) Connect(context.Context) (driver.Conn, error) {
	conn, err := c.driver.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	s, ok := conn.(sqliteConn)
	if !ok {
		return nil, errors.Join(errors.New("store: the SQLite driver lacks what connections are used for"), conn.Close())
	}
	return &cachingConn{sqliteConn: s, kept: map[string]*compiled{}}, nil
}

// Driver implements driver.Connector.
func (c cachingConnector) Driver() driver.Driver { return c.driver }

// sqliteConn is what the driver's connections can do, and database/sql asks for.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// cachingConn is a connection that keeps compiled statements. database/sql uses a
// connection from one goroutine at a time.
type cachingConn struct {
	sqliteConn
	kept map[string]*compiled
}

// compiled is a statement. While rows of it are open it can't be run again.
type compiled struct {
	stmt interface {
		driver.Stmt
		driver.StmtExecContext
		driver.StmtQueryContext
	}
	busy bool
}

// statement returns the compiled form of a text, or nil when it can't be kept or is
// in use.
func (c *cachingConn) statement(ctx context.Context, query string, args []driver.NamedValue) (*compiled, error) {
	if s, ok := c.kept[query]; ok {
		if s.busy {
			return nil, nil
		}
		return s, nil
	}
	if len(args) == 0 {
		return nil, nil // a script, or something that is rare
	}
	stmt, err := c.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s := &compiled{}
	var ok bool
	if s.stmt, ok = stmt.(interface {
		driver.Stmt
		driver.StmtExecContext
		driver.StmtQueryContext
	}); !ok {
		return nil, stmt.Close()
	}
	if len(c.kept) >= maxStatements {
		for text, old := range c.kept { // any one: searches have many texts, changes have few
			if !old.busy {
				delete(c.kept, text)
				if err := old.stmt.Close(); err != nil {
					return nil, errors.Join(err, stmt.Close())
				}
				break
			}
		}
	}
	c.kept[query] = s
	return s, nil
}

// ExecContext implements driver.ExecerContext.
func (c *cachingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.statement(ctx, query, args)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.sqliteConn.ExecContext(ctx, query, args)
	}
	return s.stmt.ExecContext(ctx, args)
}

// QueryContext implements driver.QueryerContext.
func (c *cachingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.statement(ctx, query, args)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.sqliteConn.QueryContext(ctx, query, args)
	}
	rows, err := s.stmt.QueryContext(ctx, args)
	if err != nil {
		return nil, err
	}
	s.busy = true
	return &keptRows{Rows: rows, of: s}, nil
}

// keptRows are rows of a statement that is kept.
type keptRows struct {
	driver.Rows
	of *compiled
}

// Close implements driver.Rows.
func (r *keptRows) Close() error {
	err := r.Rows.Close()
	r.of.busy = false
	return err
}

// Close implements driver.Conn.
func (c *cachingConn) Close() error {
	var errs []error
	for _, s := range c.kept {
		errs = append(errs, s.stmt.Close())
	}
	clear(c.kept)
	return errors.Join(append(errs, c.sqliteConn.Close())...)
}
