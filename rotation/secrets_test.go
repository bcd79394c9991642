package rotation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

// Promise: no secret reaches the database in plain text, an event, an error or a log; also not
// when an adapter puts it into its errors.
func TestNoValueIsWrittenInPlainText(t *testing.T) {
	url := storetest.SQLiteURL(t)
	db := storetest.Open(t, url)
	var logged bytes.Buffer
	r := newRig(t, db, rigConfig{rotation: func(c *RotationsConfig) { c.Log = slog.New(slog.NewTextHandler(&logged, nil)) }})
	var secrets, told []string
	note := func() {
		for _, h := range r.values("a") {
			secrets = append(secrets, h.Fields.Text("password"))
		}
	}
	r.credential("a", providers.Dual, func(s *Spec) { s.Adopt = true })
	r.memory.Write("kv/a", providers.Fields{}.Set("username", "a").Set("password", "was-there-before-rotunda"))
	secrets = append(secrets, "was-there-before-rotunda")
	for range 3 {
		run := r.settle(r.start("a", nil).ID, StepGrace, StepDone)
		note()
		told = append(told, r.settle(run.ID, StepDone).Error)
	}
	// An adapter that tells.
	inner := r.kinds.Targets[0].Open
	r.kinds.Targets[0].Open = func(ctx context.Context, c providers.Config) (providers.Target, error) {
		target, err := inner(ctx, c)
		return leaky{target}, err
	}
	_, rs := r.replica(nil)
	run := r.start("a", nil)
	for range 10 {
		if _, err := rs.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	note()
	run = r.get(run.ID)
	if run.Step != StepFailed || !strings.Contains(run.Error, "the password") {
		t.Fatalf("the run is at %s: %q", run.Step, run.Error)
	}
	told = append(told, run.Error, logged.String())
	for _, e := range r.events("") {
		told = append(told, fmt.Sprint(e))
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	path := strings.TrimPrefix(url, "sqlite:")
	for _, name := range []string{path, path + "-wal"} {
		content, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		told = append(told, string(content))
	}
	if len(secrets) < 5 {
		t.Fatalf("only %d secrets were seen", len(secrets))
	}
	for i, text := range told {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("text %d of %d holds a value", i, len(told))
			}
		}
	}
}

type leaky struct{ providers.Target }

func (l leaky) Apply(_ context.Context, c providers.Change) (providers.Held, error) {
	return providers.Held{}, fault.New(fault.ErrDenied, "leaky", "the password %s is none of mine", c.New.Fields.Text("password"))
}

// Promise: nobody who may write to the database can redirect a credential, put another value in
// its place, or have another one ended, unnoticed.
func TestTamperedRowsAreUsedForNothing(t *testing.T) {
	for name, statement := range map[string]string{
		"version's account":  `UPDATE credential_versions SET account = 'root' WHERE generation = 2`,
		"version's id":       `UPDATE credential_versions SET target_id = 'key-99' WHERE generation = 2`,
		"version's value":    `UPDATE credential_versions SET sealed = (SELECT sealed FROM credential_versions WHERE credential = 'b' AND generation = 2) WHERE credential = 'a' AND generation = 2`,
		"version's state":    `UPDATE credential_versions SET state = 'previous' WHERE generation = 2`,
		"place":              `UPDATE credential_stores SET path = 'kv/elsewhere' WHERE credential = 'a'`,
		"place's version":    `UPDATE credential_stores SET version = '7' WHERE credential = 'a'`,
		"credential's spec":  `UPDATE credentials SET spec = REPLACE(spec, 'dual', 'replace')`,
		"credential's place": `UPDATE credentials SET current = 1`,
		"target's kind":      `UPDATE systems SET kind = 'memory2' WHERE sort = 'target'`,
		"target's address":   `UPDATE systems SET settings = '{"address":"https://evil.example"}' WHERE sort = 'target'`,
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				r := newRig(t, db, rigConfig{})
				for _, c := range []string{"a", "b"} {
					r.credential(c, providers.Dual, nil)
					r.rotate(c)
					r.rotate(c)
				}
				before := r.serves("a")
				err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					_, err := tx.Exec(ctx, statement)
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				calls := r.plan.Calls("Apply")
				run, err := r.Start(t.Context(), StartRequest{Credential: "a", Overwrite: true})
				if err == nil {
					run = r.settle(run.ID, StepFailed, StepDone)
					if run.ErrorReason != "tampered" {
						t.Errorf("the run came to %s with %q (%s)", run.Step, run.ErrorReason, run.Error)
					}
				} else if !errors.Is(err, fault.ErrDenied) {
					t.Errorf("start: %v", err)
				}
				if r.plan.Calls("Apply") != calls || !r.memory.Accepts(before) || !r.serves("a").Fields.Equal(before.Fields) {
					t.Error("something was done by the row")
				}
			})
		})
	}
}

// What a run has to know can't be changed, nor be taken from another run.
func TestWorkOfAnotherRunDoesNotOpen(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		r.credential("a", providers.Dual, nil)
		r.credential("b", providers.Dual, nil)
		a, b := r.start("a", nil), r.start("b", nil)
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE rotations SET work = (SELECT work FROM rotations WHERE id = $1) WHERE id = $2`, b.ID, a.ID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := r.Pass(t.Context(), r.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		if a = r.get(a.ID); a.ErrorReason != "work_unreadable" || a.Step != StepPlan || r.serves("a").Fields != nil {
			t.Errorf("it is at %s: %s", a.Step, a.Error)
		}
		if r.serves("b").Fields == nil {
			t.Error("the other run did not go on")
		}

		// It must not hold up its credential for ever.
		if _, err := r.Rollback(t.Context(), a.ID, ""); !errors.Is(err, secret.ErrCorrupt) {
			t.Errorf("roll it back: %v", err)
		}
		if _, left, err := r.Abandon(t.Context(), a.ID, ""); err != nil || len(left) != 1 {
			t.Errorf("abandon it: %q, %v", left, err)
		}
		if run := r.rotate("a"); run.Outcome != Rotated {
			t.Errorf("the next one ended with %q", run.Outcome)
		}
		if err := r.ended("a"); err != nil {
			t.Error(err)
		}
	})
}

func TestRowKeyIsOneForAll(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		again, err := openRowKey(t.Context(), db, r.sealer)
		if err != nil || !bytes.Equal(again.key, r.systems.key.key) {
			t.Errorf("another key: %v", err)
		}
	})
}

func TestSealRowTellsAllPartsApart(t *testing.T) {
	key := rowKey{bytes.Repeat([]byte{1}, rowKeySize)}
	at := time.Unix(1, 0)
	rows := [][]any{
		{"a", "b"}, {"ab", ""}, {"", "ab"}, {"a"}, {int64(1)}, {1, 0}, {true}, {"1"}, {at}, {time.Second}, {[]string{"a", "b"}}, {[]string{"a"}, "b"},
		{map[string]string{"a": "b"}}, {map[string]string{"a": "", "b": ""}}, {[]byte("abc")}, {Staged},
	}
	seen := map[string]int{}
	for i, parts := range rows {
		seal := string(sealRow(key, "t", parts...))
		if j, ok := seen[seal]; ok && fmt.Sprint(rows[j]) != fmt.Sprint(parts) {
			t.Errorf("%v and %v have one seal", rows[j], parts)
		}
		seen[seal] = i
		if !genuineRow(key, []byte(seal), "t", parts...) || genuineRow(key, []byte(seal), "u", parts...) || genuineRow(rowKey{}, []byte(seal), "t", parts...) {
			t.Errorf("%v: the seal is not that of its row alone", parts)
		}
	}
}

// The login of a target may be the credential that is rotated in it.
func TestRotationOfOurOwnLogin(t *testing.T) {
	for _, strategy := range []providers.Strategy{providers.Replace, providers.Dual} {
		for _, f := range []providerstest.Fault{"", providerstest.Lose} {
			t.Run(string(strategy)+" "+string(f), func(t *testing.T) {
				r := newRig(t, storetest.SQLite(t), rigConfig{memory: providerstest.MemoryConfig{Limit: 3}}) // one is from before
				inner := r.kinds.Targets[0].Open
				kind := r.kinds.Targets[0]
				kind.Name, kind.Login = "guarded", []providers.Setting{{Name: "password", Doc: "of the account", Required: true}}
				kind.Open = func(ctx context.Context, c providers.Config) (providers.Target, error) {
					target, err := inner(ctx, c)
					return lockedTarget{target, r.memory, c.Login}, err
				}
				r.kinds.Targets = append(r.kinds.Targets, kind)
				var err error
				r.systems, r.Rotations = r.replica(nil)
				if r.creds, err = NewCredentials(CredentialsConfig{DB: r.db, Systems: r.systems, Rotations: r.Rotations}); err != nil {
					t.Fatal(err)
				}
				r.memory.Account("a")
				first := providers.Held{Account: "a", Fields: providers.Fields{}.Set("username", "a").Set("password", "installed")}
				if _, err := r.memory.System().Target().Apply(t.Context(), providers.Change{New: first}); err != nil {
					t.Fatal(err)
				}
				if _, err := r.systems.Create(t.Context(), TargetSort, "own", SystemSpec{Kind: "guarded", Login: providers.Fields{}.Set("password", "installed")}, store.Once{}); err != nil {
					t.Fatal(err)
				}
				r.credential("a", strategy, func(s *Spec) { s.Target, s.Grace = "own", 0 })
				r.rotate("a")
				own, err := r.systems.Get(t.Context(), TargetSort, "own")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := r.systems.Update(t.Context(), TargetSort, "own", own.Version, SystemSpec{LoginCredential: "a"}); err != nil {
					t.Fatal(err)
				}
				for range 3 {
					if f != "" {
						r.plan.Steps = []providerstest.Step{{Method: "Apply", From: r.plan.Calls("Apply") + 1, Fault: f}}
					}
					run := r.settle(r.start("a", nil).ID, StepDone, StepFailed)
					if run.Outcome != Rotated || !r.memory.Accepts(r.serves("a")) {
						t.Fatalf("it came to %s: %s", run.Step, run.Error)
					}
				}
			})
		}
	}
}

// lockedTarget is a target that wants a login for what changes something.
type lockedTarget struct {
	providers.Target
	memory *providerstest.Memory
	login  providers.Fields
}

func (g lockedTarget) let() error {
	if g.memory.Accepts(providers.Held{Account: "a", Fields: g.login}) {
		return nil
	}
	return fault.New(fault.ErrDenied, "login", "the login is not accepted")
}

func (g lockedTarget) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	if err := g.let(); err != nil {
		return providers.Held{}, err
	}
	return g.Target.Apply(ctx, c)
}

func (g lockedTarget) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	if err := g.let(); err != nil {
		return err
	}
	return g.Target.Revoke(ctx, c, h)
}

func TestStuckRunsAreToldOfOnce(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Dual, nil)
	r.plan.Steps = []providerstest.Step{{Method: "Apply", Times: -1, Fault: providerstest.Drop}}
	run := r.start("a", nil)
	at := r.clock.Now()
	for r.clock.Now().Sub(at) < 30*time.Hour {
		next, err := r.Pass(t.Context(), r.clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		r.clock.Set(next)
		r.clock.Advance(time.Minute)
	}
	if n := len(r.events("rotation.stuck")); n != 1 {
		t.Errorf("%d events", n)
	}
	r.plan.Steps = nil
	r.settle(run.ID, StepDone)
}

func TestStepsOfTheDiagramAreTheMoves(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	want.WriteString("//\tstateDiagram-v2\n//\t  [*] --> plan\n")
	for _, m := range stepMoves {
		for _, to := range m.To {
			fmt.Fprintf(&want, "//\t  %s --> %s\n", m.From, to)
		}
	}
	want.WriteString("//\t  done --> [*]\n")
	if !strings.Contains(string(text), want.String()) {
		t.Errorf("the diagram of doc.go is not that of the moves, which is:\n%s", want.String())
	}
}

// Nor can a run be made one of another credential, whose value would then go where this one's
// does, or of another target, which would be told of the value.
func TestWorkOfAnotherCredentialOrTargetDoesNotOpen(t *testing.T) {
	for name, statement := range map[string]string{
		"credential": `UPDATE rotations SET credential = 'b' WHERE id = $1`,
		"target":     `UPDATE rotations SET target = 'other' WHERE id = $1`,
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				r := newRig(t, db, rigConfig{})
				if _, err := r.systems.Create(t.Context(), TargetSort, "other", SystemSpec{Kind: "memory"}, store.Once{}); err != nil {
					t.Fatal(err)
				}
				for _, c := range []string{"a", "b"} {
					r.credential(c, providers.Dual, nil)
					r.rotate(c)
				}
				theirs := r.serves("b")
				run := r.settle(r.start("a", nil).ID, StepGrace)
				published := r.serves("a")
				err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					_, err := tx.Exec(ctx, statement, run.ID)
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				calls := r.plan.Calls("Revoke")
				r.clock.Advance(2 * time.Hour)
				for range 3 {
					if _, err := r.Pass(t.Context(), r.clock.Now()); err != nil {
						t.Fatal(err)
					}
				}
				if run = r.get(run.ID); run.ErrorReason != "work_unreadable" || r.plan.Calls("Revoke") != calls {
					t.Errorf("it came to %s (%s %s)", run.Step, run.ErrorReason, run.Error)
				}
				_, err = r.Rollback(t.Context(), run.ID, "test")
				if err == nil {
					t.Error("it was rolled back")
				}
				if !r.memory.Accepts(theirs) || !r.serves("a").Fields.Equal(published.Fields) || !r.serves("b").Fields.Equal(theirs.Fields) {
					t.Error("something was done by the row")
				}
			})
		})
	}
}
