package rotation

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
)

func wantReason(t testing.TB, err, kind error, reason string) {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || !errors.Is(err, kind) || f.Reason != reason {
		t.Errorf("got %v, want %s", err, reason)
	}
}

// heard are the actions of a resource with their reasons, sorted: the clock of a rig stands still.
func (r *rig) heard(resource string) (actions []string) {
	r.t.Helper()
	for page := (audit.Query{Resource: resource, Limit: 500}); ; {
		events, next, err := audit.List(r.t.Context(), r.db, page)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, e := range events {
			actions = append(actions, strings.TrimSpace(e.Action+" "+e.Reason))
		}
		if next == "" {
			break
		}
		page.Page = next
	}
	slices.Sort(actions)
	return actions
}

func (r *rig) exec(query string, args ...any) {
	r.t.Helper()
	err := r.db.Update(r.t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// loginKind is a kind of system whose login is checked, and which notes what is open.
type loginKind struct {
	r        *rig
	accepted string // the password that is
	open     map[*loginTarget2]bool
	logins   []string // passwords that were tried
}

// loginTarget2 is the target in memory behind a login.
type loginTarget2 struct {
	providers.Target
	kind     *loginKind
	password string
}

func (l *loginTarget2) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	if err := l.login(); err != nil {
		return nil, err
	}
	return l.Target.Check(ctx, c)
}

func (l *loginTarget2) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	if err := l.login(); err != nil {
		return providers.Held{}, err
	}
	return l.Target.Apply(ctx, c)
}

func (l *loginTarget2) login() error {
	l.kind.logins = append(l.kind.logins, l.password)
	if l.password != l.kind.accepted {
		return fault.New(fault.ErrDenied, "login_refused", "log in: the password is not accepted")
	}
	return nil
}

func (l *loginTarget2) Close() error {
	delete(l.kind.open, l)
	return l.Target.Close()
}

func (k *loginKind) target() providers.TargetKind {
	kind := k.r.memory.System().TargetKind()
	kind.Name = "locked"
	kind.Settings = []providers.Setting{{Name: "address", Doc: "where it is", Required: true, Pattern: `[a-z0-9.:]+`}, {Name: "mode", Doc: "how", OneOf: []string{"a", "b"}, Default: "a"}, providers.Plaintext()}
	kind.Login = []providers.Setting{{Name: "username", Doc: "who", Default: "admin"}, {Name: "password", Doc: "the password", Required: true}}
	kind.Open = func(_ context.Context, c providers.Config) (providers.Target, error) {
		if err := providers.CheckPlaintext(c, strings.Split(c.Settings["address"], ":")[0]); err != nil {
			return nil, err
		}
		t := &loginTarget2{Target: k.r.memory.System().Target(), kind: k, password: c.Login.Text("password")}
		k.open[t] = true
		return t, nil
	}
	return kind
}

// newLocked adds a kind of target with a login to a rig.
func newLocked(r *rig) *loginKind {
	k := &loginKind{r: r, accepted: "first", open: map[*loginTarget2]bool{}}
	shelf := r.memory.System().StoreKind()
	shelf.Name, shelf.Path.Pattern = "shelf", `kv/[a-z0-9-]+`
	shelf.Traits.Quota, shelf.Traits.WritesPerRotation = 10, 2
	r.kinds.Targets = append(r.kinds.Targets, k.target())
	r.kinds.Stores = append(r.kinds.Stores, shelf)
	r.systems, r.Rotations = r.replica(nil)
	var err error
	if r.creds, err = NewCredentials(CredentialsConfig{DB: r.db, Systems: r.systems, Rotations: r.Rotations}); err != nil {
		r.t.Fatal(err)
	}
	return k
}

func lockedSpec() SystemSpec {
	return SystemSpec{Kind: "locked", Settings: map[string]string{"address": "localhost:1"}, Login: providers.Fields{}.Set("password", "first")}
}

func TestSystemWhenMadeAndChanged(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		newLocked(r)
		once := store.Once{Scope: "s", Key: "k", Fingerprint: "f"}
		made, err := r.systems.Create(t.Context(), TargetSort, "orders", lockedSpec(), once)
		if err != nil {
			t.Fatal(err)
		}
		again, err := r.systems.Create(t.Context(), TargetSort, "orders", lockedSpec(), once)
		if err != nil || cmp.Diff(made, again) != "" {
			t.Errorf("the repeated request: %v\n%s", err, cmp.Diff(made, again))
		}
		got, err := r.systems.Get(t.Context(), TargetSort, "orders")
		if err != nil || cmp.Diff(made, got) != "" {
			t.Errorf("what was made and what is read differ: %v\n%s", err, cmp.Diff(made, got))
		}
		want := map[string]string{"address": "localhost:1", "mode": "a", "plaintext": "refuse"}
		if !cmp.Equal(got.Settings, want) || !got.HasLogin || got.Version != 1 {
			t.Errorf("got %+v", got)
		}
		_, err = r.systems.Create(t.Context(), TargetSort, "orders", lockedSpec(), store.Once{})
		wantReason(t, err, fault.ErrExists, "target_exists")
		if _, err := r.systems.Create(t.Context(), StoreSort, "orders", SystemSpec{Kind: "memory"}, store.Once{}); err != nil {
			t.Errorf("a store may have the name of a target: %v", err)
		}

		// The login stays only with its settings.
		_, err = r.systems.Update(t.Context(), TargetSort, "orders", 1, SystemSpec{Settings: map[string]string{"address": "localhost:2"}})
		wantReason(t, err, fault.ErrInvalid, "login_required")
		_, err = r.systems.Update(t.Context(), TargetSort, "orders", 7, lockedSpec())
		wantReason(t, err, fault.ErrChanged, "version_changed")
		_, err = r.systems.Update(t.Context(), TargetSort, "orders", 1, SystemSpec{Kind: "memory"})
		wantReason(t, err, fault.ErrInvalid, "kind_stays")
		kept, err := r.systems.Update(t.Context(), TargetSort, "orders", 1, SystemSpec{Settings: map[string]string{"address": "localhost:1"}})
		if err != nil || !kept.HasLogin || kept.Version != 2 {
			t.Fatalf("%+v, %v", kept, err)
		}
		moved := lockedSpec()
		moved.Settings["address"], moved.Login = "localhost:2", moved.Login.Set("password", "second")
		if _, err := r.systems.Update(t.Context(), TargetSort, "orders", 2, moved); err != nil {
			t.Fatal(err)
		}

		page, next, err := r.systems.List(t.Context(), TargetSort, "", 1)
		if err != nil || len(page) != 1 || page[0].Name != "mem" || next != "mem" {
			t.Errorf("the first page: %v, %q, %v", page, next, err)
		}
		page, next, err = r.systems.List(t.Context(), TargetSort, next, 1)
		if err != nil || len(page) != 1 || page[0].Name != "orders" || next != "" {
			t.Errorf("the second page: %v, %q, %v", page, next, err)
		}

		r.credential("a", providers.Dual, nil)
		wantReason(t, r.systems.Delete(t.Context(), TargetSort, "mem"), fault.ErrTransition, "is_used")
		wantReason(t, r.systems.Delete(t.Context(), StoreSort, "mem"), fault.ErrTransition, "is_used")
		if err := r.systems.Delete(t.Context(), TargetSort, "orders"); err != nil {
			t.Error(err)
		}
		_, err = r.systems.Get(t.Context(), TargetSort, "orders")
		wantReason(t, err, fault.ErrNotFound, "target_not_found")
		if diff := cmp.Diff([]string{"target.create", "target.delete", "target.update", "target.update"}, r.heard("targets/orders")); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
	})
}

func TestSystemWhenRefused(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	newLocked(r)
	for what, c := range map[string]struct {
		sort          Sort
		name          string
		edit          func(*SystemSpec)
		field, reason string
	}{
		"another sort":          {"shelf", "x", func(*SystemSpec) {}, "sort", "bad_sort"},
		"no name":               {TargetSort, "", func(*SystemSpec) {}, "name", "bad_name"},
		"a name in capitals":    {TargetSort, "X", func(*SystemSpec) {}, "name", "bad_name"},
		"an unknown kind":       {TargetSort, "x", func(s *SystemSpec) { s.Kind = "nosuch" }, "kind", "kind_unknown"},
		"a kind of store":       {TargetSort, "x", func(s *SystemSpec) { s.Kind = "shelf" }, "kind", "kind_unknown"},
		"no address":            {TargetSort, "x", func(s *SystemSpec) { s.Settings = nil }, "settings.address", "setting_missing"},
		"a malformed address":   {TargetSort, "x", func(s *SystemSpec) { s.Settings["address"] = "A B" }, "settings.address", "setting_malformed"},
		"an unknown setting":    {TargetSort, "x", func(s *SystemSpec) { s.Settings["color"] = "red" }, "settings", "setting_unknown"},
		"a value not there":     {TargetSort, "x", func(s *SystemSpec) { s.Settings["mode"] = "c" }, "settings.mode", "setting_unknown_value"},
		"no password":           {TargetSort, "x", func(s *SystemSpec) { s.Login = nil }, "login.password", "setting_missing"},
		"an unknown login":      {TargetSort, "x", func(s *SystemSpec) { s.Login = s.Login.Set("token", "hunter2") }, "login", "setting_unknown"},
		"the adapter says no":   {TargetSort, "x", func(s *SystemSpec) { s.Settings["address"] = "db.example:5" }, "settings.address", "plaintext"},
		"two logins":            {TargetSort, "x", func(s *SystemSpec) { s.LoginCredential = "a" }, "login_credential", "login_twice"},
		"a login that is none":  {TargetSort, "x", func(s *SystemSpec) { s.Login, s.LoginCredential = nil, "a b" }, "login_credential", "bad_name"},
		"a login not there":     {TargetSort, "x", func(s *SystemSpec) { s.Login, s.LoginCredential = nil, "nosuch" }, "login_credential", "credential_not_found"},
		"a login nobody asks":   {TargetSort, "x", func(s *SystemSpec) { *s = SystemSpec{Kind: "memory", LoginCredential: "a"} }, "login_credential", "login_unknown"},
		"a login nobody needs":  {StoreSort, "x", func(s *SystemSpec) { *s = SystemSpec{Kind: "shelf", Login: s.Login} }, "login", "setting_unknown"},
		"a login that is large": {TargetSort, "x", func(s *SystemSpec) { s.Login = s.Login.Set("password", strings.Repeat("x", 2000)) }, "login.password", "setting_too_long"},
	} {
		spec := lockedSpec()
		c.edit(&spec)
		_, err := r.systems.Create(t.Context(), c.sort, c.name, spec, store.Once{})
		f, ok := errors.AsType[*fault.Error](err)
		if !ok || !errors.Is(err, fault.ErrInvalid) || f.Reason != c.reason || f.Field != c.field || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v (%+v)", what, err, f)
		}
	}
	if n := r.count(`SELECT COUNT(*) FROM systems`); n != 2 {
		t.Errorf("there are %d systems, want the two of the rig", n)
	}
}

// Who may write to the database can't have a login sent to an address of his.
func TestSystemWhenTamperedWith(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		k := newLocked(r)
		for _, name := range []string{"one", "two"} {
			spec := lockedSpec()
			spec.Login = spec.Login.Set("password", name)
			if _, err := r.systems.Create(t.Context(), TargetSort, name, spec, store.Once{}); err != nil {
				t.Fatal(err)
			}
		}
		clear(k.open)
		for what, query := range map[string]string{
			"the address":       `UPDATE systems SET settings = '{"address":"localhost:6","mode":"a","plaintext":"refuse"}' WHERE name = 'one' AND sort = 'target'`,
			"another's login":   `UPDATE systems SET login = (SELECT login FROM systems WHERE name = 'two' AND sort = 'target') WHERE name = 'one' AND sort = 'target'`,
			"the kind":          `UPDATE systems SET kind = 'memory' WHERE name = 'one' AND sort = 'target'`,
			"the credential":    `UPDATE systems SET login = NULL, login_credential = 'a' WHERE name = 'one' AND sort = 'target'`,
			"settings that are": `UPDATE systems SET settings = 'x' WHERE name = 'one' AND sort = 'target'`,
		} {
			err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				if _, err := tx.Exec(ctx, query); err != nil {
					return err
				}
				_, err := r.systems.readSystem(ctx, tx, TargetSort, "one")
				return err // and undo it
			})
			f, ok := errors.AsType[*fault.Error](err)
			if !ok || !errors.Is(err, fault.ErrDenied) || f.Reason != "tampered" {
				t.Errorf("%s: got %v", what, err)
			}
		}
		r.exec(`UPDATE systems SET settings = '{"address":"localhost:6","mode":"a","plaintext":"refuse"}' WHERE name = 'one' AND sort = 'target'`)
		_, _, err := r.systems.openTarget(t.Context(), "one")
		wantReason(t, err, fault.ErrDenied, "tampered")
		if len(k.open) != 0 {
			t.Error("a target was opened with another's address")
		}
		if _, _, err := r.systems.openTarget(t.Context(), "two"); err != nil {
			t.Error(err)
		}
	})
}

func TestOpenWhenSupersededAndIdle(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	k := newLocked(r)
	if _, err := r.systems.Create(t.Context(), TargetSort, "orders", lockedSpec(), store.Once{}); err != nil {
		t.Fatal(err)
	}
	open := func() providers.Target {
		t.Helper()
		target, kind, err := r.systems.openTarget(t.Context(), "orders")
		if err != nil || kind.Name != "locked" {
			t.Fatal(err)
		}
		return target
	}
	first := open()
	if second := open(); second != first || len(k.open) != 1 {
		t.Errorf("it was opened twice (%d are open)", len(k.open))
	}
	spec := lockedSpec()
	spec.Login = spec.Login.Set("password", "second")
	if _, err := r.systems.Update(t.Context(), TargetSort, "orders", 1, spec); err != nil {
		t.Fatal(err)
	}
	second := open()
	if second == first || second.(*loginTarget2).password != "second" {
		t.Fatal("the old login is used after the change")
	}
	// The first may still be in use.
	if !k.open[first.(*loginTarget2)] {
		t.Error("the superseded one was closed at once")
	}
	r.clock.Advance(maxLinger)
	if open(); k.open[first.(*loginTarget2)] {
		t.Error("the superseded one was never closed")
	}
	r.clock.Advance(maxIdle)
	if _, _, err := r.systems.openTarget(t.Context(), "mem"); err != nil {
		t.Fatal(err)
	}
	if len(k.open) != 0 {
		t.Errorf("%d idle ones are open", len(k.open))
	}
	open()
	if err := r.systems.Close(); err != nil || len(k.open) != 0 {
		t.Errorf("%d are open after Close, %v", len(k.open), err)
	}
	_, _, err := r.systems.openTarget(t.Context(), "orders")
	wantReason(t, err, fault.ErrUnavailable, "closed")
}

// closer counts what is open.
type closer struct{ open *atomic.Int64 }

func (c closer) Close() error { c.open.Add(-1); return nil }

// Whatever fails and whoever waits meanwhile, what was opened is closed in the end.
func TestOpenWhenItFailsForSome(t *testing.T) {
	for range 50 {
		var o opened[closer]
		var open, calls atomic.Int64
		var running sync.WaitGroup
		for range 8 {
			running.Go(func() {
				_, err := o.get("a", "1", 0, func() (closer, error) {
					if calls.Add(1) <= 3 {
						return closer{}, errors.New("out of reach")
					}
					open.Add(1)
					return closer{&open}, nil
				}, func(err error) { t.Error(err) })
				if err != nil && err.Error() != "out of reach" {
					t.Error(err)
				}
			})
		}
		running.Wait()
		if err := o.close(); err != nil || open.Load() != 0 {
			t.Fatalf("%d are open, %v", open.Load(), err)
		}
	}
}

// Promise: Rotunda's own login may be rotated. During the rotation it logs in with whichever of
// the values is accepted, and never tries more than two that are not.
func TestLoginCredentialWhenRotated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		k := newLocked(r)
		r.credential("root", providers.Dual, nil)
		_, err := r.systems.Create(t.Context(), TargetSort, "orders", SystemSpec{Kind: "locked", Settings: map[string]string{"address": "localhost:1"}, LoginCredential: "root"}, store.Once{})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = r.systems.openTarget(t.Context(), "orders")
		wantReason(t, err, fault.ErrUnavailable, "login_without_value")
		r.rotate("root")
		password := func(generation int64) string { return r.values("root")[generation].Fields.Text("password") }
		check := func(want ...int64) {
			t.Helper()
			target, _, err := r.systems.openTarget(t.Context(), "orders")
			if err != nil {
				t.Fatal(err)
			}
			k.logins = nil
			if _, err := target.Check(t.Context(), providers.Change{}); err != nil {
				t.Fatalf("with %d tries: %v", len(k.logins), err)
			}
			if len(k.logins) != len(want) {
				t.Fatalf("%d logins, want those of generations %v", len(k.logins), want)
			}
			for i, g := range want {
				if k.logins[i] != password(g) {
					t.Errorf("login %d is not that of generation %d", i, g)
				}
			}
		}
		k.accepted = password(1)
		check(1)
		check(1)
		run := r.settle(r.start("root", nil).ID, StepGrace)
		check(2, 1) // the target has not heard of the new one
		check(1)    // and that is remembered
		k.accepted = password(2)
		check(1, 2)
		check(2)
		r.settle(run.ID, StepDone)
		check(2)

		// What is denied with every login is not our login's fault.
		k.accepted = "another"
		target, _, err := r.systems.openTarget(t.Context(), "orders")
		if err != nil {
			t.Fatal(err)
		}
		_, err = target.Check(t.Context(), providers.Change{})
		wantReason(t, err, fault.ErrDenied, "login_refused")

		// It is not deleted while it is a login, and no loop is made with it.
		wantReason(t, r.creds.Delete(t.Context(), "root", ""), fault.ErrTransition, "is_login")
		r.memory.Account("inner")
		if _, err := r.creds.Create(t.Context(), "inner", Spec{Target: "orders", Params: map[string]string{"account": "inner"}}, store.Once{}); err != nil {
			t.Fatal(err)
		}
		_, err = r.systems.Create(t.Context(), TargetSort, "deep", SystemSpec{Kind: "locked", Settings: map[string]string{"address": "localhost:1"}, LoginCredential: "inner"}, store.Once{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.systems.Update(t.Context(), TargetSort, "orders", 1, SystemSpec{Settings: map[string]string{"address": "localhost:1"}, LoginCredential: "inner"})
		if err != nil { // it logs in to itself, which its strategy allows
			t.Fatal(err)
		}
		r.memory.Account("outer")
		if _, err := r.creds.Create(t.Context(), "outer", Spec{Target: "deep", Params: map[string]string{"account": "outer"}}, store.Once{}); err != nil {
			t.Fatal(err)
		}
		_, err = r.systems.Update(t.Context(), TargetSort, "orders", 2, SystemSpec{Settings: map[string]string{"address": "localhost:1"}, LoginCredential: "outer"})
		wantReason(t, err, fault.ErrInvalid, "login_loop")
		_, err = r.creds.Update(t.Context(), "inner", 1, Spec{Target: "mem", Params: map[string]string{"account": "inner"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = r.systems.Update(t.Context(), TargetSort, "orders", 2, SystemSpec{Settings: map[string]string{"address": "localhost:1"}, LoginCredential: "outer"}); err != nil {
			t.Fatal(err) // now the chain ends
		}
		_, err = r.creds.Update(t.Context(), "inner", 2, Spec{Target: "orders", Params: map[string]string{"account": "inner"}})
		wantReason(t, err, fault.ErrInvalid, "login_loop")
	})
}

func fullSpec(t testing.TB) Spec {
	t.Helper()
	window, err := schedule.ParseWindow("Mon-Fri 22:00-04:00")
	if err != nil {
		t.Fatal(err)
	}
	return Spec{
		Target: "mem", Strategy: providers.Alternate, Params: map[string]string{"account": "a"}, Fields: map[string]string{"host": "db.example", "port": "5432"},
		Stores:   []Placement{{Store: "shelf", Path: "kv/b"}, {Store: "mem", Path: "kv/a"}},
		Schedule: schedule.Schedule{Cron: "0 3 * * 1", Zone: "Europe/Berlin", Jitter: time.Hour}, Windows: []schedule.Window{window}, Missed: MissedSkip,
		Grace: 24*time.Hour + 1, Quiet: time.Hour, Labels: map[string]string{"tier": "1", "team/owner": "Zoë"}, Adopt: true, Probe: 10 * time.Minute,
	}
}

func TestCredentialWhenMadeAndChanged(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		newLocked(r)
		if _, err := r.systems.Create(t.Context(), StoreSort, "shelf", SystemSpec{Kind: "shelf"}, store.Once{}); err != nil {
			t.Fatal(err)
		}
		r.memory.Account("a")
		ignore := cmpopts.IgnoreUnexported(Credential{})
		same := cmp.Comparer(func(a, b schedule.Window) bool { return a == b })
		once := store.Once{Scope: "s", Key: "k", Fingerprint: "f"}
		made, err := r.creds.Create(t.Context(), "a", fullSpec(t), once)
		if err != nil {
			t.Fatal(err)
		}
		again, err := r.creds.Create(t.Context(), "a", fullSpec(t), once)
		if err != nil || cmp.Diff(made, again, ignore, same) != "" {
			t.Errorf("the repeated request: %v\n%s", err, cmp.Diff(made, again, ignore, same))
		}
		got, err := r.creds.Get(t.Context(), "a")
		if err != nil || got.Tampered() || cmp.Diff(made, got, ignore, same) != "" {
			t.Errorf("what was made and what is read differ: %v\n%s", err, cmp.Diff(made, got, ignore, same))
		}
		want := fullSpec(t)
		want.Grace = 24 * time.Hour
		if diff := cmp.Diff(want, got.Spec, same); diff != "" {
			t.Errorf("the spec (-want +got):\n%s", diff)
		}
		// Monday 5 January 2026, 00:00 UTC: 03:00 in Berlin is ahead, and the window of the night opened on Friday is over.
		if got.DueAt.Before(rigEpoch.Add(2*time.Hour)) || got.DueAt.After(rigEpoch.Add(3*time.Hour)) || !got.NextAt.Equal(rigEpoch.Add(21*time.Hour)) {
			t.Errorf("due at %v, looked at at %v", got.DueAt, got.NextAt)
		}
		_, err = r.creds.Create(t.Context(), "a", fullSpec(t), store.Once{})
		wantReason(t, err, fault.ErrExists, "credential_exists")
		_, err = r.creds.Create(t.Context(), "b", fullSpec(t), store.Once{})
		wantReason(t, err, fault.ErrExists, "path_taken")

		// The defaults, and the shortest spec there is.
		r.memory.Account("b")
		plain, err := r.creds.Create(t.Context(), "b", Spec{Target: "mem", Params: map[string]string{"account": "b"}}, store.Once{})
		if err != nil || plain.Strategy != providers.Dual || plain.Missed != MissedLate || plain.Probe != time.Hour || !plain.NextAt.IsZero() || plain.State != CredentialActive {
			t.Errorf("%+v, %v", plain, err)
		}

		for what, c := range map[string]struct {
			q    ListCredentials
			want []string
		}{
			"all":           {ListCredentials{Limit: 10}, []string{"a", "b"}},
			"a page":        {ListCredentials{Limit: 1}, []string{"a"}},
			"the next":      {ListCredentials{Limit: 1, Page: "a"}, []string{"b"}},
			"a store":       {ListCredentials{Limit: 10, Store: "shelf"}, []string{"a"}},
			"a target":      {ListCredentials{Limit: 10, Target: "mem"}, []string{"a", "b"}},
			"no target":     {ListCredentials{Limit: 10, Target: "shelf"}, nil},
			"two labels":    {ListCredentials{Limit: 10, Labels: map[string]string{"tier": "1", "team/owner": "Zoë"}}, []string{"a"}},
			"another label": {ListCredentials{Limit: 10, Labels: map[string]string{"tier": "1", "team/owner": "Ada"}}, nil},
			"paused":        {ListCredentials{Limit: 10, State: CredentialPaused}, nil},
			"drift":         {ListCredentials{Limit: 10, Drift: AnyDrift}, nil},
		} {
			list, _, err := r.creds.List(t.Context(), c.q)
			var names []string
			for _, c := range list {
				names = append(names, c.Name)
			}
			if err != nil || !cmp.Equal(names, c.want) {
				t.Errorf("%s: got %v, want %v (%v)", what, names, c.want, err)
			}
		}

		spec := fullSpec(t)
		_, err = r.creds.Update(t.Context(), "a", 9, spec)
		wantReason(t, err, fault.ErrChanged, "version_changed")
		unchanged, err := r.creds.Update(t.Context(), "a", 1, spec)
		if err != nil || unchanged.Version != 1 {
			t.Errorf("an update that changes nothing: %+v, %v", unchanged, err)
		}
		spec.Stores, spec.Labels = []Placement{{Store: "mem", Path: "kv/a"}, {Store: "mem", Path: "kv/c"}}, map[string]string{"tier": "2"}
		spec.Windows = nil
		changed, err := r.creds.Update(t.Context(), "a", 1, spec)
		if err != nil || changed.Version != 2 || !changed.NextAt.Equal(changed.DueAt) {
			t.Fatalf("%+v, %v", changed, err)
		}
		placed, err := r.creds.Placements(t.Context(), "a")
		if err != nil || len(placed) != 2 || placed[1].Path != "kv/c" {
			t.Errorf("%v, %v", placed, err)
		}
		if n := r.count(`SELECT COUNT(*) FROM credential_labels WHERE credential = 'a'`); n != 1 {
			t.Errorf("%d labels", n)
		}

		// During a run some of it stays.
		r.start("a", nil)
		for field, edit := range map[string]func(*Spec){
			"strategy": func(s *Spec) { s.Strategy = providers.Dual },
			"params":   func(s *Spec) { s.Params = map[string]string{"account": "b"} },
			"stores":   func(s *Spec) { s.Stores = s.Stores[:1] },
		} {
			other := spec
			edit(&other)
			_, err := r.creds.Update(t.Context(), "a", 2, other)
			wantReason(t, err, fault.ErrTransition, "is_rotating")
			if f, ok := errors.AsType[*fault.Error](err); ok && f.Field != field {
				t.Errorf("%s: the error is on %q", field, f.Field)
			}
		}
		spec.Grace, spec.Quiet = time.Hour, 0
		if _, err := r.creds.Update(t.Context(), "a", 2, spec); err != nil {
			t.Errorf("the grace may change during a run: %v", err)
		}
		wantReason(t, r.creds.Delete(t.Context(), "a", ""), fault.ErrTransition, "is_rotating")
		r.settle(r.ids("a")[0], StepDone)

		// With a value the target stays.
		if _, err := r.systems.Create(t.Context(), TargetSort, "mem2", SystemSpec{Kind: "memory"}, store.Once{}); err != nil {
			t.Fatal(err)
		}
		now, err := r.creds.Get(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		elsewhere := spec
		elsewhere.Target = "mem2"
		_, err = r.creds.Update(t.Context(), "a", now.Version, elsewhere)
		wantReason(t, err, fault.ErrTransition, "target_stays")

		paused, err := r.creds.Pause(t.Context(), "a", "freeze")
		if err != nil || paused.State != CredentialPaused || paused.Reason != "freeze" || !paused.NextAt.IsZero() {
			t.Errorf("%+v, %v", paused, err)
		}
		_, err = r.creds.Pause(t.Context(), "a", "again")
		wantReason(t, err, fault.ErrTransition, "already_paused")
		resumed, err := r.creds.Resume(t.Context(), "a", "thaw")
		if err != nil || resumed.State != CredentialActive || !resumed.NextAt.After(r.clock.Now()) {
			t.Errorf("%+v, %v", resumed, err)
		}
		served := r.memory.Serves("kv/a")
		if err := r.creds.Delete(t.Context(), "a", "gone"); err != nil {
			t.Fatal(err)
		}
		for _, table := range []string{"credential_versions WHERE credential", "credential_stores WHERE credential", "credential_labels WHERE credential", "rotations WHERE credential", "credentials WHERE name"} {
			if n := r.count(`SELECT COUNT(*) FROM ` + table + ` = 'a'`); n != 0 {
				t.Errorf("%d rows are left in %s", n, table)
			}
		}
		if !r.memory.Serves("kv/a").Equal(served) || len(served) == 0 {
			t.Error("the store was touched")
		}
		_, err = r.creds.Get(t.Context(), "a")
		wantReason(t, err, fault.ErrNotFound, "credential_not_found")
		wantTrail := []string{"credential.create", "credential.delete gone", "credential.pause freeze", "credential.resume thaw", "credential.rotated test", "credential.update", "credential.update"}
		if diff := cmp.Diff(wantTrail, r.heard("credentials/a")); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
	})
}

// ids are those of the runs of a credential, the newest first.
func (r *rig) ids(name string) (ids []string) {
	r.t.Helper()
	runs, _, err := r.List(r.t.Context(), RotationQuery{Credential: name})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, run := range runs {
		ids = append(ids, run.ID)
	}
	return ids
}
