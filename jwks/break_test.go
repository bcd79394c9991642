package jwks

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// breakWrites makes the database refuse an INSERT or UPDATE whose NEW row meets
// a condition, until the returned function is called.
func breakWrites(t testing.TB, db *store.DB, table, operation, condition string) (mend func()) {
	t.Helper()
	statements := []string{fmt.Sprintf(`CREATE TRIGGER broken BEFORE %s ON %s WHEN %s BEGIN SELECT RAISE(ABORT, 'broken by the test'); END`, operation, table, condition)}
	undo := []string{`DROP TRIGGER broken`}
	if db.Dialect() == "postgres" {
		statements = []string{
			`CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'broken by the test'; END $$`,
			fmt.Sprintf(`CREATE TRIGGER broken BEFORE %s ON %s FOR EACH ROW WHEN (%s) EXECUTE FUNCTION broken()`, operation, table, condition),
		}
		undo = []string{`DROP TRIGGER broken ON ` + table, `DROP FUNCTION broken()`}
	}
	for _, s := range statements {
		mustExec(t, db, s)
	}
	return func() {
		t.Helper()
		for _, s := range undo {
			mustExec(t, db, s)
		}
	}
}

// away is a home whose keys can be put out of reach.
type away struct {
	Home

	mu   sync.Mutex
	down map[string]bool // by kid
}

func (b *bed) away() *away {
	a := &away{Home: b.local, down: map[string]bool{}}
	b.homes[LocalHome] = a
	return a
}

func (a *away) set(kid string, down bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down[kid] = down
}

func (a *away) reach(kid string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down[kid] {
		return fault.New(fault.ErrUnavailable, "signer_unreachable", "key %s is out of reach", kid)
	}
	return nil
}

func (a *away) Open(ctx context.Context, k Key) (Signer, error) {
	if err := a.reach(k.Kid); err != nil {
		return nil, err
	}
	s, err := a.Home.Open(ctx, k)
	return awaySigner{a, k.Kid, s}, err
}

type awaySigner struct {
	home *away
	kid  string
	s    Signer
}

func (s awaySigner) Sign(ctx context.Context, input []byte) ([]byte, error) {
	if err := s.home.reach(s.kid); err != nil {
		return nil, err
	}
	return s.s.Sign(ctx, input)
}
