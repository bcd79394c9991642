package rotation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
)

func TestSpecWhenRefused(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	newLocked(r)
	for name, kind := range map[string]string{"shelf": "shelf"} {
		if _, err := r.systems.Create(t.Context(), StoreSort, name, SystemSpec{Kind: kind}, store.Once{}); err != nil {
			t.Fatal(err)
		}
	}
	r.credential("other", providers.Dual, nil)
	windows := func(texts ...string) (list []schedule.Window) {
		for _, text := range texts {
			w, err := schedule.ParseWindow(text)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, w)
		}
		return list
	}
	pairs := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprint("k", i)] = ""
		}
		return m
	}
	for what, c := range map[string]struct {
		edit          func(*Spec)
		field, reason string
		figures       []string // that the message names
	}{
		"no target":               {func(s *Spec) { s.Target = "" }, "target", "target_not_found", nil},
		"an unknown target":       {func(s *Spec) { s.Target = "nosuch" }, "target", "target_not_found", []string{"nosuch"}},
		"an unknown strategy":     {func(s *Spec) { s.Strategy = "triple" }, "strategy", "strategy_unknown", []string{"triple", "dual"}},
		"no account":              {func(s *Spec) { s.Params = nil }, "params.account", "setting_missing", nil},
		"an unknown param":        {func(s *Spec) { s.Params["x"] = "y" }, "params", "setting_unknown", []string{"account"}},
		"33 fields":               {func(s *Spec) { s.Fields = pairs(33) }, "fields", "too_many", []string{"33", "32"}},
		"a bad field":             {func(s *Spec) { s.Fields = map[string]string{"a b": ""} }, "fields", "field_malformed", nil},
		"a long field":            {func(s *Spec) { s.Fields = map[string]string{"a": strings.Repeat("x", 1025)} }, "fields", "bad_field", []string{"1025", "1024"}},
		"nine stores":             {func(s *Spec) { s.Stores = append(make([]Placement, 8), s.Stores...) }, "stores", "too_many", []string{"10", "8"}},
		"a store twice":           {func(s *Spec) { s.Stores = []Placement{s.Stores[0], s.Stores[0]} }, "stores", "store_twice", []string{"kv/b"}},
		"an unknown store":        {func(s *Spec) { s.Stores[0].Store = "nosuch" }, "stores", "store_not_found", []string{"nosuch"}},
		"a malformed path":        {func(s *Spec) { s.Stores[0].Path = "KV" }, "stores.path", "setting_malformed", nil},
		"no path":                 {func(s *Spec) { s.Stores[1].Path = "" }, "stores.path", "setting_missing", nil},
		"a long path":             {func(s *Spec) { s.Stores[1].Path = strings.Repeat("x", 1025) }, "stores.path", "setting_too_long", []string{"1025", "1024"}},
		"another's path":          {func(s *Spec) { s.Stores[1].Path = "kv/other" }, "stores", "path_taken", []string{"other", "kv/other"}},
		"a bad schedule":          {func(s *Spec) { s.Schedule = schedule.Schedule{Cron: "61 * * * *"} }, "schedule.cron", "cron_malformed", nil},
		"a zone not there":        {func(s *Spec) { s.Schedule.Zone = "Mars" }, "schedule.zone", "zone_unknown", []string{"Mars"}},
		"jitter that is long":     {func(s *Spec) { s.Schedule.Jitter = 30 * 24 * time.Hour }, "schedule.jitter", "jitter_out_of_range", []string{"720h", "167h"}},
		"another rule":            {func(s *Spec) { s.Missed = "never" }, "missed", "missed_unknown", []string{"never", "alarm"}},
		"17 windows":              {func(s *Spec) { s.Windows = make([]schedule.Window, 17) }, "windows", "too_many", []string{"17", "16"}},
		"windows of nothing":      {func(s *Spec) { s.Schedule = schedule.Schedule{} }, "windows", "windows_without_schedule", nil},
		"an empty window":         {func(s *Spec) { s.Windows = make([]schedule.Window, 1) }, "windows", "window_malformed", nil},
		"a short window":          {func(s *Spec) { s.Windows = windows("22:00-22:04") }, "windows", "window_short", []string{"4m0s", "5m0s"}},
		"a window twice":          {func(s *Spec) { s.Windows = windows("22:00-23:00", "22:00-23:00") }, "windows", "window_twice", nil},
		"a negative grace":        {func(s *Spec) { s.Grace, s.Quiet = -1, 0 }, "grace", "grace_range", nil},
		"91 days of grace":        {func(s *Spec) { s.Grace = 91 * 24 * time.Hour }, "grace", "grace_range", []string{"2184h", "2160h"}},
		"grace with replace":      {func(s *Spec) { s.Strategy = providers.Replace }, "grace", "grace_with_replace", []string{"24h0m0", "replace"}},
		"grace over the interval": {func(s *Spec) { s.Grace = 8 * 24 * time.Hour }, "grace", "grace_too_long", []string{"192h", "167h"}},
		"grace over the period":   {func(s *Spec) { s.Schedule = schedule.Schedule{Every: time.Hour} }, "grace", "grace_too_long", []string{"24h0m0", "1h0m0s"}},
		"a negative quiet":        {func(s *Spec) { s.Quiet = -1 }, "quiet", "quiet_range", nil},
		"quiet over the grace":    {func(s *Spec) { s.Quiet = 48 * time.Hour }, "quiet", "quiet_longer_than_grace", []string{"48h0m0s", "24h0m0"}},
		"quiet with replace":      {func(s *Spec) { s.Strategy, s.Grace = providers.Replace, 0 }, "quiet", "quiet_longer_than_grace", []string{"1h0m0s", "0s"}},
		"33 labels":               {func(s *Spec) { s.Labels = pairs(33) }, "labels", "too_many", []string{"33", "32"}},
		"a bad label":             {func(s *Spec) { s.Labels = map[string]string{"a b": ""} }, "labels", "bad_label", nil},
		"a line in a label":       {func(s *Spec) { s.Labels = map[string]string{"a": "b\nc"} }, "labels", "bad_label", nil},
		"a long label":            {func(s *Spec) { s.Labels = map[string]string{"a": strings.Repeat("x", 129)} }, "labels", "bad_label", []string{"128"}},
		"17 endpoints":            {func(s *Spec) { s.Notify = make([]string, 17) }, "notify", "too_many", []string{"17", "16"}},
		"an endpoint twice":       {func(s *Spec) { s.Notify = []string{"a", "a"} }, "notify", "endpoint_twice", nil},
		"an unknown endpoint":     {func(s *Spec) { s.Notify = []string{"nosuch"} }, "notify", "endpoint_not_found", []string{"nosuch"}},
		"a probe each second":     {func(s *Spec) { s.Probe = time.Second }, "probe", "probe_range", []string{"1s", "1m0s"}},
		"a probe each year":       {func(s *Spec) { s.Probe = 365 * 24 * time.Hour }, "probe", "probe_range", []string{"8760h", "720h"}},
	} {
		spec := fullSpec(t)
		c.edit(&spec)
		_, err := r.creds.Create(t.Context(), "a", spec, store.Once{})
		f, ok := errors.AsType[*fault.Error](err)
		if !ok || (!errors.Is(err, fault.ErrInvalid) && !errors.Is(err, fault.ErrExists)) || f.Reason != c.reason || f.Field != c.field || len(err.Error()) > 700 {
			t.Errorf("%s: got %v (%+v)", what, err, f)
			continue
		}
		for _, figure := range c.figures {
			if !strings.Contains(err.Error(), figure) {
				t.Errorf("%s: the message does not name %q: %v", what, figure, err)
			}
		}
	}
	for _, name := range []string{"", "-a", "A", "a_b", strings.Repeat("x", 64)} {
		_, err := r.creds.Create(t.Context(), name, fullSpec(t), store.Once{})
		wantReason(t, err, fault.ErrInvalid, "bad_name")
	}
	if n := r.count(`SELECT COUNT(*) FROM credentials`); n != 1 {
		t.Errorf("%d credentials were made", n-1)
	}
}

func TestSpecWhenTargetsAreSpecial(t *testing.T) {
	valueless := providers.TargetKind{Name: "void", Traits: providers.Traits{Strategies: []providers.Strategy{providers.Replace}, Valueless: true}}
	_, err := Spec{Stores: []Placement{{"a", "b"}}}.checked(valueless)
	wantReason(t, err, fault.ErrInvalid, "valueless")
	if _, err := (Spec{}).checked(valueless); err != nil {
		t.Error(err)
	}
	issues := providers.TargetKind{Name: "mint", Traits: providers.Traits{Strategies: []providers.Strategy{providers.Replace, providers.Dual}, Issues: true}}
	wantReason(t, checkSelfReference(Spec{Strategy: providers.Replace}, issues, "x"), fault.ErrInvalid, "self_reference")
	if err := checkSelfReference(Spec{Strategy: providers.Dual}, issues, "x"); err != nil {
		t.Error(err)
	}
	issues.Traits.Issues = false
	if err := checkSelfReference(Spec{Strategy: providers.Replace}, issues, "x"); err != nil {
		t.Error(err)
	}
	system := func(kind, address, mount string) *systemRow {
		return &systemRow{System: System{Kind: kind, Settings: map[string]string{"address": address, "mount": mount}}}
	}
	for what, c := range map[string]struct {
		target, store *systemRow
		params        map[string]string
		path          string
		want          bool
	}{
		"one mount":         {system("vault-database", "https://v", "database/"), system("vault-kv", "https://v", "database"), nil, "static-creds/a", true},
		"the mount of it":   {system("vault-database", "https://v", ""), system("vault-kv", "https://v", "db"), map[string]string{"mount": "db"}, "a", true},
		"by its path":       {system("vault-database", "https://v", "db"), system("vault-kv", "https://v", ""), nil, "db/static-creds/a", true},
		"another mount":     {system("vault-database", "https://v", "db"), system("vault-kv", "https://v", "secret"), nil, "db", false},
		"another Vault":     {system("vault-database", "https://v", "db"), system("vault-kv", "https://w", "db"), nil, "a", false},
		"no Vault":          {system("postgres", "https://v", "db"), system("vault-kv", "https://v", "db"), nil, "a", false},
		"a prefix of names": {system("vault-database", "https://v", "db"), system("vault-kv", "https://v", ""), nil, "db2/a", false},
	} {
		if got := sameRole(c.target, Spec{Params: c.params}, c.store, Placement{Store: "s", Path: c.path}); got != c.want {
			t.Errorf("%s: got %v", what, got)
		}
	}
}

// Who may write to the database can't redirect a credential.
func TestCredentialWhenTamperedWith(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		r.credential("a", providers.Dual, func(s *Spec) { s.Labels = map[string]string{"x": "1"} })
		r.rotate("a")
		for what, query := range map[string]string{
			"its target":     `UPDATE credentials SET target = 'elsewhere'`,
			"its spec":       `UPDATE credentials SET spec = REPLACE(spec, 'kv/a', 'kv/b')`,
			"its state":      `UPDATE credentials SET state = 'paused'`,
			"its version":    `UPDATE credentials SET current = 0`,
			"its next":       `UPDATE credentials SET next_at = 1`,
			"no spec at all": `UPDATE credentials SET spec = 'null'`,
		} {
			err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				if _, err := tx.Exec(ctx, query); err != nil {
					return err
				}
				c, err := r.systems.seeCredential(ctx, tx, "a")
				if err != nil || !c.Tampered() {
					t.Errorf("%s: it is shown as genuine, %v", what, err)
				}
				_, err = r.systems.lockCredential(ctx, tx, "a")
				return err // and undo it
			})
			wantReason(t, err, fault.ErrDenied, "tampered")
		}
		for what, query := range map[string]string{
			"a path":        `UPDATE credential_stores SET path = 'kv/b'`,
			"a version":     `UPDATE credential_stores SET version = '7'`,
			"a row that is": `DELETE FROM credential_stores`,
		} {
			err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				if _, err := tx.Exec(ctx, query); err != nil {
					return err
				}
				c, err := r.systems.readCredential(ctx, tx, "a")
				if err != nil {
					t.Fatal(err)
				}
				_, err = r.systems.readPlacements(ctx, tx, c)
				if err == nil {
					t.Errorf("%s: nobody noticed", what)
				}
				return err
			})
			wantReason(t, err, fault.ErrDenied, "tampered")
		}
		if _, err := r.creds.Placements(t.Context(), "a"); err != nil {
			t.Error(err)
		}
	})
}
