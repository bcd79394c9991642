package rotation

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// A scrape with very many rows reads an index each, and no more of it than is counted.
func TestStatsWhenThereAreManyRows(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		const many = MaxCounted + 500
		insert := func(query string, row func(i int) string) {
			t.Helper()
			err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				for i := 0; i < many; i += 500 {
					rows := make([]string, 500)
					for j := range rows {
						rows[j] = row(i + j)
					}
					if _, err := tx.Exec(ctx, query+strings.Join(rows, ", ")); err != nil {
						return err
					}
				}
				if db.Dialect() == "postgres" {
					_, err := tx.Exec(ctx, `ANALYZE credentials`)
					return err
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		insert(`INSERT INTO credentials (name, target, spec, state, reason, generation, current, next_at, due_at, rotated_at, drift, drift_note, drift_since, probe_at, probed_at, created_at, since, version, seal) VALUES `,
			func(i int) string {
				return fmt.Sprintf(`('c%d', 'mem', '{}', 'active', '', 0, 0, %d, 0, 0, 'store', '', 0, 0, 0, 0, 0, 1, '')`, i, store.Micros(rigEpoch)-int64(i))
			})
		st, err := r.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.Drifted != MaxCounted || st.Overdue.Microseconds() != many-1 || st.Unworked != 0 || st.Steps[StepFailed] != 0 {
			t.Errorf("counted %+v", st)
		}
		for _, query := range []string{
			`SELECT 1 FROM rotations WHERE step = 'failed' LIMIT 10`, `SELECT 1 FROM credentials WHERE drift <> '' LIMIT 10`, `SELECT 1 FROM deliveries WHERE state = 'dead' LIMIT 10`,
			`SELECT MIN(next_at) FROM credentials WHERE next_at > 0`, `SELECT outcome FROM rotations ORDER BY id DESC LIMIT 10`,
		} {
			if plan := r.explain(query); db.Dialect() == "sqlite" && (!strings.Contains(plan, "INDEX") || strings.Contains(plan, "TEMP B-TREE")) {
				t.Errorf("%s is done by %s", query, plan)
			}
		}
	})
}

// explain is SQLite's plan of a query.
func (r *rig) explain(query string) (plan string) {
	r.t.Helper()
	if r.db.Dialect() != "sqlite" {
		return ""
	}
	err := r.db.View(r.t.Context(), func(ctx context.Context, tx *store.Tx) error {
		rows, err := tx.Query(ctx, `EXPLAIN QUERY PLAN `+query)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var a, b, c int
			var text string
			if err := rows.Scan(&a, &b, &c, &text); err != nil {
				return err
			}
			plan += text + "\n"
		}
		return rows.Err()
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return plan
}
