package rotation

import (
	"context"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

// Bounds of a credential.
const (
	maxStores    = 8
	maxStatic    = 32
	maxWindows   = 16
	maxLabels    = 32
	maxNotify    = 16
	minWindow    = 5 * time.Minute
	defaultProbe = time.Hour
	minProbe     = time.Minute
	maxProbe     = 30 * 24 * time.Hour
)

var labelShape = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$`)

// checkSpec checks a spec of the credential of this name, and returns it complete. What it checks
// of other rows stays right until the transaction ends.
func (s *Systems) checkSpec(ctx context.Context, tx *store.Tx, name string, spec Spec) (Spec, error) {
	target, err := s.lockSystem(ctx, tx, TargetSort, spec.Target)
	if errors.Is(err, fault.ErrNotFound) {
		return spec, fault.Invalid("target", "target_not_found", "there is no target %q: see `rotunda target list`", clip(spec.Target))
	}
	if err != nil {
		return spec, err
	}
	kind, err := s.targetKind(target.Kind)
	if err != nil {
		return spec, err
	}
	if spec, err = spec.checked(kind); err != nil {
		return spec, err
	}
	if err := s.checkPlacements(ctx, tx, target, spec); err != nil {
		return spec, err
	}
	for _, endpoint := range spec.Notify {
		var there bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM endpoints WHERE name = $1)`, endpoint).Scan(&there); err != nil {
			return spec, err
		}
		if !there {
			return spec, fault.Invalid("notify", "endpoint_not_found", "there is no endpoint %q: see `rotunda endpoint list`", clip(endpoint))
		}
	}
	if target.LoginCredential == name {
		return spec, checkSelfReference(spec, kind, target.Name)
	}
	if target.LoginCredential == "" {
		return spec, nil
	}
	login, err := s.readCredential(ctx, tx, target.LoginCredential)
	if err != nil {
		return spec, err
	}
	return spec, s.checkCredentialLoop(ctx, tx, name, login)
}

// checkSelfReference refuses a credential that logs in to its own target by itself where a crash
// would lock us out: when the target makes the value and forgets the old one at once, a lost reply
// leaves nobody with a value that is accepted. Where the value is ours it is sealed before, and
// the login falls back to whichever is accepted.
func checkSelfReference(spec Spec, kind providers.TargetKind, target string) error {
	if spec.Strategy == providers.Replace && kind.Traits.Issues {
		return fault.Invalid("strategy", "self_reference", "target %s is logged in to with this very credential, and %s makes the value itself: with the strategy %s a lost answer would lock Rotunda out: take another strategy, or give the target a login of its own",
			target, kind.Name, spec.Strategy)
	}
	return nil
}

// checkCredentialLoop follows the login credentials from one of them, and refuses to come back to
// the credential of this name.
func (s *Systems) checkCredentialLoop(ctx context.Context, tx *store.Tx, name string, login *Credential) error {
	chain := []string{name}
	for range maxLoginChain {
		chain = append(chain, login.Name)
		target, err := s.readSystem(ctx, tx, TargetSort, login.Target)
		if err != nil {
			return err
		}
		next := target.LoginCredential
		switch next {
		case name:
			return fault.Invalid("target", "login_loop", "to rotate it Rotunda would log in with %q in turn, which comes back to it: give one of their targets a login of its own", append(chain, name))
		case "", login.Name:
			return nil
		}
		if login, err = s.readCredential(ctx, tx, next); err != nil {
			return err
		}
	}
	return fault.Invalid("target", "login_loop", "its login depends on more than %d credentials: %q", maxLoginChain, chain)
}

func (s *Systems) checkPlacements(ctx context.Context, tx *store.Tx, target *systemRow, spec Spec) error {
	stores := map[string]*systemRow{}
	names := make([]string, len(spec.Stores))
	for i, p := range spec.Stores {
		names[i] = p.Store
	}
	slices.Sort(names) // one order of locks for everybody
	for _, name := range slices.Compact(names) {
		row, err := s.lockSystem(ctx, tx, StoreSort, name)
		if errors.Is(err, fault.ErrNotFound) {
			return fault.Invalid("stores", "store_not_found", "there is no store %q: see `rotunda store list`", clip(name))
		}
		if err != nil {
			return err
		}
		stores[name] = row
	}
	for _, p := range spec.Stores {
		row := stores[p.Store]
		kind, err := s.storeKind(row.Kind)
		if err != nil {
			return err
		}
		if err := checkPath(kind, p.Path); err != nil {
			return err
		}
		if sameRole(target, spec, row, p) {
			return fault.Invalid("stores", "store_is_target", "store %s and target %s are both the mount %q of one Vault: consumers read a static role there themselves: take a store of key-value secrets",
				row.Name, target.Name, mountOf(target.Settings, spec.Params))
		}
	}
	return nil
}

// sameRole says whether a placement lies where Vault itself serves the value of a target: below
// the mount of a database or LDAP engine of the same Vault.
func sameRole(target *systemRow, spec Spec, row *systemRow, p Placement) bool {
	if !strings.HasPrefix(target.Kind, "vault-") || !strings.HasPrefix(row.Kind, "vault-") || target.Settings["address"] != row.Settings["address"] ||
		target.Settings["namespace"] != row.Settings["namespace"] {
		return false
	}
	mount := mountOf(target.Settings, spec.Params)
	if mount == "" {
		return false
	}
	there := strings.Trim(row.Settings["mount"], "/")
	return there == mount || there == "" && strings.HasPrefix(strings.Trim(p.Path, "/")+"/", mount+"/")
}

func mountOf(settings, params map[string]string) string {
	if m := params["mount"]; m != "" {
		return strings.Trim(m, "/")
	}
	return strings.Trim(settings["mount"], "/")
}

// checked checks what needs no other row than the kind of the target, and fills in defaults.
func (spec Spec) checked(kind providers.TargetKind) (Spec, error) {
	if spec.Strategy == "" {
		spec.Strategy = kind.Traits.Strategies[0]
	}
	if !slices.Contains(kind.Traits.Strategies, spec.Strategy) {
		return spec, fault.Invalid("strategy", "strategy_unknown", "the strategy %q is none that %s has: %q", clip(string(spec.Strategy)), kind.Name, kind.Traits.Strategies)
	}
	var err error
	if spec.Params, err = providers.Complete("params", kind.Params, spec.Params); err != nil {
		return spec, err
	}
	for _, check := range []func() error{
		func() error { return spec.checkFields() },
		func() error { return spec.checkStores(kind) },
		func() error { return spec.checkTimes() },
		func() error { return spec.checkLabels() },
	} {
		if err := check(); err != nil {
			return spec, err
		}
	}
	if spec.Missed == "" {
		spec.Missed = MissedLate
	}
	switch {
	case spec.Probe == 0:
		spec.Probe = defaultProbe
	case spec.Probe < 0:
		spec.Probe = -1
	}
	// As it will be read again.
	spec.Grace, spec.Quiet = spec.Grace.Truncate(time.Microsecond), spec.Quiet.Truncate(time.Microsecond)
	for _, m := range []*map[string]string{&spec.Params, &spec.Fields, &spec.Labels} {
		*m = maps.Clone(*m)
		if len(*m) == 0 {
			*m = nil
		}
	}
	spec.Stores, spec.Windows, spec.Notify = copied(spec.Stores), copied(spec.Windows), copied(spec.Notify)
	return spec, nil
}

func copied[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return slices.Clone(list)
}

func (spec *Spec) checkFields() error {
	if len(spec.Fields) > maxStatic {
		return fault.Invalid("fields", "too_many", "%d fields are given, at most %d are allowed", len(spec.Fields), maxStatic)
	}
	fields := providers.Fields{}
	for name, text := range spec.Fields {
		if len(text) > 1024 || !utf8.ValidString(text) {
			return fault.Invalid("fields", "bad_field", "field %q has %d bytes, at most 1024 of UTF-8 are allowed", clip(name), len(text))
		}
		fields = fields.Set(name, text)
	}
	_, err := fields.Encode()
	return err
}

func (spec *Spec) checkStores(kind providers.TargetKind) error {
	switch {
	case len(spec.Stores) > maxStores:
		return fault.Invalid("stores", "too_many", "%d stores are given, at most %d are allowed", len(spec.Stores), maxStores)
	case kind.Traits.Valueless && len(spec.Stores) > 0:
		return fault.Invalid("stores", "valueless", "%d stores are given, but no value comes out of a target of kind %s: leave them away", len(spec.Stores), kind.Name)
	}
	for i, p := range spec.Stores {
		if slices.Contains(spec.Stores[:i], p) {
			return fault.Invalid("stores", "store_twice", "%.200q of store %s is there twice", p.Path, clip(p.Store))
		}
	}
	return nil
}

func (spec *Spec) checkTimes() error {
	interval := time.Duration(0) // no schedule: as long as people want
	if !spec.Schedule.IsZero() {
		if err := spec.Schedule.Validate(); err != nil {
			if f, ok := errors.AsType[*fault.Error](err); ok {
				return f.On("schedule." + f.Field)
			}
			return err
		}
		interval = spec.Schedule.MinInterval()
	}
	if spec.Missed != "" && spec.Missed != MissedLate && spec.Missed != MissedSkip && spec.Missed != MissedAlarm {
		return fault.Invalid("missed", "missed_unknown", "the rule %q for missed firings is none of %q, %q and %q", clip(string(spec.Missed)), MissedLate, MissedSkip, MissedAlarm)
	}
	if len(spec.Windows) > maxWindows {
		return fault.Invalid("windows", "too_many", "%d windows are given, at most %d are allowed", len(spec.Windows), maxWindows)
	}
	if len(spec.Windows) > 0 && spec.Schedule.IsZero() {
		return fault.Invalid("windows", "windows_without_schedule", "%d windows are given, and no schedule that they could hold back: give a schedule", len(spec.Windows))
	}
	for i, w := range spec.Windows {
		switch {
		case w.String() == "":
			return fault.Invalid("windows", "window_malformed", "window %d is empty", i+1)
		case w.Length() < minWindow:
			return fault.Invalid("windows", "window_short", "the window %s lasts for %s, and a rotation needs at least %s to begin in: make it longer", w, w.Length(), minWindow)
		case slices.Contains(spec.Windows[:i], w):
			return fault.Invalid("windows", "window_twice", "the window %s is there twice", w)
		}
	}
	switch {
	case spec.Grace < 0 || spec.Grace > maxGrace:
		return fault.Invalid("grace", "grace_range", "the grace %s is outside 0 to %s", spec.Grace, maxGrace)
	case spec.Strategy == providers.Replace && spec.Grace > 0:
		return fault.Invalid("grace", "grace_with_replace", "the grace is %s, but with the strategy %s the old value ends at once: set the grace to 0, or take a strategy with an overlap", spec.Grace, spec.Strategy)
	case interval > 0 && spec.Grace > interval:
		return fault.Invalid("grace", "grace_too_long", "the grace %s is longer than %s, the shortest time between two firings of the schedule: the next rotation would come while the old value still counts: shorten the grace, or rotate less often", spec.Grace, interval)
	case spec.Quiet < 0:
		return fault.Invalid("quiet", "quiet_range", "quiet %s is negative", spec.Quiet)
	case spec.Quiet > spec.Grace:
		return fault.Invalid("quiet", "quiet_longer_than_grace", "quiet %s is longer than the grace %s, which would end first: make it shorter, or 0 to go by the clock only", spec.Quiet, spec.Grace)
	case spec.Probe > 0 && (spec.Probe < minProbe || spec.Probe > maxProbe):
		return fault.Invalid("probe", "probe_range", "the time between two probes %s is outside %s to %s", spec.Probe, minProbe, maxProbe)
	}
	return nil
}

func (spec *Spec) checkLabels() error {
	if len(spec.Labels) > maxLabels {
		return fault.Invalid("labels", "too_many", "%d labels are given, at most %d are allowed", len(spec.Labels), maxLabels)
	}
	for label, value := range spec.Labels {
		if !labelShape.MatchString(label) {
			return fault.Invalid("labels", "bad_label", "the label %q is not 1 to 63 letters, digits, dots, dashes, underscores and slashes", clip(label))
		}
		if len(value) > 128 || !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
			return fault.Invalid("labels", "bad_label", "the value of label %s is not at most 128 bytes of UTF-8 without control characters", label)
		}
	}
	if len(spec.Notify) > maxNotify {
		return fault.Invalid("notify", "too_many", "%d endpoints are given, at most %d are allowed", len(spec.Notify), maxNotify)
	}
	for i, endpoint := range spec.Notify {
		if slices.Contains(spec.Notify[:i], endpoint) {
			return fault.Invalid("notify", "endpoint_twice", "the endpoint %q is there twice", clip(endpoint))
		}
	}
	return nil
}
