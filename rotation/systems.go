package rotation

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

// checkOpen bounds the opening of a system that is made or changed.
const checkOpen = 10 * time.Second

// SystemsConfig is what Systems needs.
type SystemsConfig struct {
	DB      *store.DB
	Sealer  *secret.Sealer
	Targets []providers.TargetKind
	Stores  []providers.StoreKind

	// Log receives what no caller can be told. Default: nowhere.
	Log *slog.Logger
}

// Systems keeps stores and targets, and opens them. It also holds the rows of credentials for the
// other types of this package. Its methods may be called from many goroutines.
type Systems struct {
	db      *store.DB
	sealer  *secret.Sealer
	key     rowKey
	log     *slog.Logger
	targets []providers.TargetKind
	stores  []providers.StoreKind

	openTargets opened[providers.Target]
	openStores  opened[providers.Store]
}

// NewSystems returns the systems of a database.
func NewSystems(ctx context.Context, c SystemsConfig) (*Systems, error) {
	if c.DB == nil || c.Sealer == nil {
		return nil, fault.Invalid("db", "config_incomplete", "systems: DB and Sealer are required")
	}
	s := &Systems{db: c.DB, sealer: c.Sealer, log: c.Log, targets: slices.Clone(c.Targets), stores: slices.Clone(c.Stores)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	slices.SortFunc(s.targets, func(a, b providers.TargetKind) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.stores, func(a, b providers.StoreKind) int { return cmp.Compare(a.Name, b.Name) })
	for i, k := range s.targets {
		if k.Open == nil || len(k.Traits.Strategies) == 0 || i > 0 && s.targets[i-1].Name == k.Name {
			return nil, fault.Invalid("targets", "bad_kind", "systems: the kind of targets %q is there twice, can't be opened, or has no strategy", k.Name)
		}
	}
	for i, k := range s.stores {
		if k.Open == nil || i > 0 && s.stores[i-1].Name == k.Name {
			return nil, fault.Invalid("stores", "bad_kind", "systems: the kind of stores %q is there twice, or can't be opened", k.Name)
		}
	}
	var err error
	if s.key, err = openRowKey(ctx, s.db, s.sealer); err != nil {
		return nil, err
	}
	return s, nil
}

// TargetKinds are the kinds of targets, by name.
func (s *Systems) TargetKinds() []providers.TargetKind { return slices.Clone(s.targets) }

// StoreKinds are the kinds of stores, by name.
func (s *Systems) StoreKinds() []providers.StoreKind { return slices.Clone(s.stores) }

func (s *Systems) targetKind(name string) (providers.TargetKind, error) {
	i := slices.IndexFunc(s.targets, func(k providers.TargetKind) bool { return k.Name == name })
	if i < 0 {
		return providers.TargetKind{}, unknownKind(TargetSort, name, s.targets, func(k providers.TargetKind) string { return k.Name })
	}
	return s.targets[i], nil
}

func (s *Systems) storeKind(name string) (providers.StoreKind, error) {
	i := slices.IndexFunc(s.stores, func(k providers.StoreKind) bool { return k.Name == name })
	if i < 0 {
		return providers.StoreKind{}, unknownKind(StoreSort, name, s.stores, func(k providers.StoreKind) string { return k.Name })
	}
	return s.stores[i], nil
}

func unknownKind[K any](sort Sort, name string, kinds []K, nameOf func(K) string) error {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = nameOf(k)
	}
	return fault.Invalid("kind", "kind_unknown", "%q is no kind of %s: there are %q", clip(name), sort, names)
}

// SystemSpec is what may change of a system. Its kind stays.
type SystemSpec struct {
	Kind     string // "vault-kv"; on Update empty, or as it is
	Settings map[string]string

	// Login are the secret settings. Empty on Update keeps what is there, which is refused when
	// the settings change: a login must not follow an address.
	Login providers.Fields

	// LoginCredential names a credential whose current value is the login, instead of Login.
	LoginCredential string
}

var nameShape = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func checkName(what, name string) error {
	if !nameShape.MatchString(name) {
		return fault.Invalid("name", "bad_name", "the name of a %s is 1 to 63 lower-case letters, digits and hyphens, and no hyphen first", what)
	}
	return nil
}

func checkSort(sort Sort) error {
	if sort != StoreSort && sort != TargetSort {
		return fault.Invalid("sort", "bad_sort", "a system is a %s or a %s, not %q", StoreSort, TargetSort, clip(string(sort)))
	}
	return nil
}

// declared are the settings of a kind.
func (s *Systems) declared(sort Sort, kind string) (settings, login []providers.Setting, err error) {
	if sort == TargetSort {
		k, err := s.targetKind(kind)
		return k.Settings, k.Login, err
	}
	k, err := s.storeKind(kind)
	return k.Settings, k.Login, err
}

// checked completes a spec. The login is checked unless it is kept.
func (s *Systems) checked(sort Sort, spec SystemSpec, keepLogin bool) (SystemSpec, error) {
	settings, login, err := s.declared(sort, spec.Kind)
	if err != nil {
		return spec, err
	}
	if spec.Settings, err = providers.Complete("settings", settings, spec.Settings); err != nil {
		return spec, err
	}
	switch {
	case spec.LoginCredential != "" && len(spec.Login) > 0:
		return spec, fault.Invalid("login_credential", "login_twice", "both a login and the credential %q are given: give one", clip(spec.LoginCredential))
	case spec.LoginCredential != "" && !nameShape.MatchString(spec.LoginCredential):
		return spec, fault.Invalid("login_credential", "bad_name", "%q is not the name of a credential", clip(spec.LoginCredential))
	case spec.LoginCredential != "" && len(login) == 0:
		return spec, fault.Invalid("login_credential", "login_unknown", "the kind %s has no login", spec.Kind)
	case spec.LoginCredential != "" || keepLogin:
		return spec, nil
	}
	spec.Login, err = completeLogin(login, spec.Login)
	return spec, err
}

func completeLogin(declared []providers.Setting, given providers.Fields) (providers.Fields, error) {
	plain := make(map[string]string, len(given))
	for name := range given {
		plain[name] = given.Text(name)
	}
	plain, err := providers.Complete("login", declared, plain)
	if err != nil {
		return nil, err
	}
	out := providers.Fields{}
	for name, text := range plain {
		out = out.Set(name, text)
	}
	return out, nil
}

func (s *Systems) sealLogin(ctx context.Context, sort Sort, name string, login providers.Fields) ([]byte, error) {
	if len(login) == 0 {
		return nil, nil
	}
	v, err := login.Encode()
	if err != nil {
		return nil, err
	}
	defer v.Destroy()
	return s.sealer.Seal(ctx, loginPlace(sort, name), v)
}

func loginPlace(sort Sort, name string) secret.Place {
	return secret.Place{Table: "systems", Row: string(sort) + "/" + name, Column: "login"}
}

// tryOpen refuses a configuration that its adapter calls invalid. A system out of reach is no
// reason to refuse.
func (s *Systems) tryOpen(ctx context.Context, sort Sort, name string, spec SystemSpec) error {
	ctx, cancel := context.WithTimeout(ctx, checkOpen)
	defer cancel()
	cfg := providers.Config{Name: name, Settings: maps.Clone(spec.Settings), Login: maps.Clone(spec.Login), Now: s.db.Now}
	var opened interface{ Close() error }
	var err error
	if sort == TargetSort {
		k, kindErr := s.targetKind(spec.Kind)
		if kindErr != nil {
			return kindErr
		}
		opened, err = k.Open(ctx, cfg)
	} else {
		k, kindErr := s.storeKind(spec.Kind)
		if kindErr != nil {
			return kindErr
		}
		opened, err = k.Open(ctx, cfg)
	}
	if err != nil {
		if errors.Is(err, fault.ErrInvalid) {
			return err
		}
		return nil
	}
	if err := opened.Close(); err != nil {
		s.log.WarnContext(ctx, "closing a system that was tried", "sort", sort, "name", name, "error", err)
	}
	return nil
}

// Create makes a system. That it can be reached is not needed yet: see Test.
func (s *Systems) Create(ctx context.Context, sort Sort, name string, spec SystemSpec, once store.Once) (made *System, err error) {
	fail := func(err error) (*System, error) {
		return nil, fmt.Errorf("create %s %q: %w", clip(string(sort)), clip(name), err)
	}
	if err := errors.Join(checkSort(sort), checkName("store or target", name)); err != nil {
		return fail(err)
	}
	if spec, err = s.checked(sort, spec, false); err != nil {
		return fail(err)
	}
	if spec.LoginCredential == "" {
		if err := s.tryOpen(ctx, sort, name, spec); err != nil {
			return fail(err)
		}
	}
	sealed, err := s.sealLogin(ctx, sort, name, spec.Login)
	if err != nil {
		return fail(err)
	}
	err = s.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		prior, err := tx.Once(ctx, once, string(sort)+"/"+name)
		if err != nil {
			return err
		}
		if prior != "" {
			row, err := s.readSystem(ctx, tx, sort, name)
			if err == nil {
				made = &row.System
			}
			return err
		}
		row := &systemRow{System: System{
			Sort: sort, Name: name, Kind: spec.Kind, Settings: spec.Settings, HasLogin: sealed != nil, LoginCredential: spec.LoginCredential,
			CreatedAt: tx.Now, Since: tx.Now, Version: 1,
		}, login: sealed}
		if err := s.checkLoginCredential(ctx, tx, row); err != nil {
			return err
		}
		if err := s.insertSystem(ctx, tx, row); err != nil {
			return err
		}
		made = &row.System
		return recordSystem(ctx, tx, made, "create", row.detail())
	})
	if err != nil {
		return fail(err)
	}
	return made, nil
}

// Get returns a system, or fault.ErrNotFound.
func (s *Systems) Get(ctx context.Context, sort Sort, name string) (*System, error) {
	var row *systemRow
	err := s.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		row, err = s.readSystem(ctx, tx, sort, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s %q: %w", clip(string(sort)), clip(name), err)
	}
	return &row.System, nil
}

// List returns up to limit systems of a sort by name, and the page to continue at.
func (s *Systems) List(ctx context.Context, sort Sort, page string, limit int) (list []*System, next string, err error) {
	if err := errors.Join(checkSort(sort), checkPage(page, limit)); err != nil {
		return nil, "", fmt.Errorf("list systems: %w", err)
	}
	err = s.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		list = nil
		rows, err := tx.Query(ctx, `SELECT `+systemColumns+` FROM systems WHERE sort = $1 AND name > $2 ORDER BY name LIMIT $3`, sort, page, limit+1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			row, err := s.scanSystem(rows)
			if err != nil {
				return err
			}
			list = append(list, &row.System)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list systems: %w", err)
	}
	if len(list) > limit {
		list = list[:limit]
		next = list[limit-1].Name
	}
	return list, next, nil
}

// checkPage checks the page token and the limit of a list by name.
func checkPage(page string, limit int) error {
	if page != "" && !nameShape.MatchString(page) {
		return fault.Invalid("page_token", "bad_page_token", "the page token is not one that Rotunda gave: start from the first page")
	}
	return checkLimit(limit)
}

func checkLimit(limit int) error {
	if limit < 1 || limit > 1000 {
		return fault.Invalid("page_size", "page_size_range", "the limit %d is outside 1 to 1000", limit)
	}
	return nil
}

// Update replaces what may change of a system, if it still has the version.
func (s *Systems) Update(ctx context.Context, sort Sort, name string, version int64, spec SystemSpec) (changed *System, err error) {
	fail := func(err error) (*System, error) {
		return nil, fmt.Errorf("update %s %q: %w", clip(string(sort)), clip(name), err)
	}
	seen, err := s.Get(ctx, sort, name)
	if err != nil {
		return nil, err
	}
	switch {
	case seen.Version != version:
		return fail(changedSince(seen.Version, version))
	case spec.Kind == "":
		spec.Kind = seen.Kind
	case spec.Kind != seen.Kind:
		return fail(fault.Invalid("kind", "kind_stays", "it is of kind %s, which can't become %q: make another one", seen.Kind, clip(spec.Kind)))
	}
	keep := len(spec.Login) == 0 && spec.LoginCredential == "" && seen.HasLogin
	if spec, err = s.checked(sort, spec, keep); err != nil {
		return fail(err)
	}
	if keep && !maps.Equal(spec.Settings, seen.Settings) {
		return fail(fault.Invalid("login", "login_required", "the settings change, and a login must not follow them to another address: give the login again"))
	}
	if !keep && spec.LoginCredential == "" {
		if err := s.tryOpen(ctx, sort, name, spec); err != nil {
			return fail(err)
		}
	}
	sealed, err := s.sealLogin(ctx, sort, name, spec.Login)
	if err != nil {
		return fail(err)
	}
	err = s.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		row, err := s.lockSystem(ctx, tx, sort, name)
		if err != nil {
			return err
		}
		if row.Version != version {
			return changedSince(row.Version, version)
		}
		row.Settings, row.LoginCredential = spec.Settings, spec.LoginCredential
		if !keep {
			row.login = sealed
		}
		row.HasLogin, row.Since = row.login != nil, tx.Now
		if err := s.checkLoginCredential(ctx, tx, row); err != nil {
			return err
		}
		if err := s.writeSystem(ctx, tx, row); err != nil {
			return err
		}
		changed = &row.System
		return recordSystem(ctx, tx, changed, "update", row.detail())
	})
	if err != nil {
		return fail(err)
	}
	return changed, nil
}

func changedSince(have, given int64) error {
	return fault.New(fault.ErrChanged, "version_changed", "it has version %d, not %d: read it again", have, given)
}

// Delete removes a system that no credential uses.
func (s *Systems) Delete(ctx context.Context, sort Sort, name string) error {
	err := s.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		row, err := s.lockSystem(ctx, tx, sort, name)
		if err != nil {
			return err
		}
		query := `SELECT name FROM credentials WHERE target = $1 ORDER BY name LIMIT 1`
		if sort == StoreSort {
			query = `SELECT credential FROM credential_stores WHERE store = $1 ORDER BY credential LIMIT 1`
		}
		var user string
		err = tx.QueryRow(ctx, query, name).Scan(&user)
		if err == nil {
			return fault.New(fault.ErrTransition, "is_used", "credential %q uses it: change or delete that first", user)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if err := tx.Swap(ctx, `DELETE FROM systems WHERE sort = $1 AND name = $2 AND version = $3`, sort, name, row.Version); err != nil {
			return err
		}
		return recordSystem(ctx, tx, &row.System, "delete", nil)
	})
	if err != nil {
		return fmt.Errorf("delete %s %q: %w", clip(string(sort)), clip(name), err)
	}
	return nil
}

// Test opens a system. Of a store it checks path too, when one is given. It changes nothing.
// That the system can't be asked is a finding.
func (s *Systems) Test(ctx context.Context, sort Sort, name, path string) ([]providers.Finding, error) {
	if err := checkSort(sort); err != nil {
		return nil, err
	}
	if _, err := s.Get(ctx, sort, name); err != nil {
		return nil, err
	}
	var found []providers.Finding
	var err error
	if sort == TargetSort {
		_, _, err = s.openTarget(ctx, name)
	} else {
		var st providers.Store
		var kind providers.StoreKind
		st, kind, err = s.openStore(ctx, name)
		if err == nil && path != "" {
			if err := checkPath(kind, path); err != nil {
				return nil, fmt.Errorf("test store %q: %w", name, err)
			}
			found, err = st.Check(ctx, path)
		}
	}
	if err != nil {
		return append(found, providers.Finding{Check: "reachable", Detail: fmt.Sprintf("%s %s: %s", sort, name, err), Remedy: "see its settings and its login"}), nil
	}
	return append([]providers.Finding{{Check: "reachable", OK: true, Detail: fmt.Sprintf("%s %s was opened", sort, name)}}, found...), nil
}

// checkPath checks a path as its kind of store declares it.
func checkPath(kind providers.StoreKind, path string) error {
	rule := kind.Path
	rule.Required = true
	if rule.Name == "" {
		rule.Name = "path"
	}
	_, err := providers.Complete("stores", []providers.Setting{rule}, map[string]string{rule.Name: path})
	return err
}
