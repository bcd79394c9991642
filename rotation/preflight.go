package rotation

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

const (
	preflightTimeout = time.Minute

	// An emergency of all credentials of a store that takes longer is worth a warning.
	longEmergency = time.Hour
)

// known is what our records say of a credential, for what looks at it without changing anything.
type known struct {
	c        *Credential
	target   *systemRow
	placed   []Placed
	versions []*CredentialVersion // that may be accepted, the newest first
	current  *CredentialVersion   // nil: none
	value    providers.Fields     // of current
	failed   string               // a run that waits for a person
	running  *Rotation            // the run under way
	now      time.Time
}

func (cs *Credentials) know(ctx context.Context, name string) (*known, error) {
	k := &known{}
	err := cs.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		*k = known{now: tx.Now}
		if k.c, err = cs.systems.readCredential(ctx, tx, name); err != nil {
			return err
		}
		if k.target, err = cs.systems.readSystem(ctx, tx, TargetSort, k.c.Target); err != nil {
			return err
		}
		if k.placed, err = cs.systems.readPlacements(ctx, tx, k.c); err != nil {
			return err
		}
		if k.versions, err = readLiveVersions(ctx, tx, cs.systems.key, name); err != nil {
			return err
		}
		runs, err := listRotations(ctx, tx, RotationQuery{Credential: name, Unended: true, Limit: 2})
		if err != nil {
			return err
		}
		for _, r := range runs {
			if r.Step == StepFailed {
				k.failed = r.ID
			} else {
				k.running = r
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, v := range k.versions {
		if v.State == Current {
			k.current = v
			if k.value, err = openVersion(ctx, cs.systems.sealer, v); err != nil {
				return nil, err
			}
		}
	}
	return k, nil
}

// change is the next rotation as the target would see it, without New.
func (k *known) change() providers.Change {
	out := k.c.change(k.current)
	out.Generation, out.At, out.Rotation = k.c.Generation+1, k.now, "00000000-0000-7000-8000-000000000000"
	out.Current.Fields = k.value
	for _, v := range k.versions {
		if v != k.current {
			out.Others = append(out.Others, v.held())
		}
	}
	return out
}

// Preflight checks everything that would fail in a rotation of a credential, and changes nothing
// that anybody reads. What can't be asked is a finding; an error means that our own records can't
// be read.
func (cs *Credentials) Preflight(ctx context.Context, name string) ([]providers.Finding, error) {
	k, err := cs.know(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("preflight of credential %q: %w", clip(name), err)
	}
	ctx, cancel := context.WithTimeout(ctx, preflightTimeout)
	defer cancel()
	found := k.checkState()
	found = append(found, k.checkTimes()...)
	found = append(found, cs.checkLogin(ctx, k)...)
	found = append(found, cs.checkTarget(ctx, k)...)
	for _, p := range k.placed {
		found = append(found, cs.checkStore(ctx, k, p)...)
	}
	more, err := cs.checkOwn(ctx, k)
	if err != nil {
		return nil, fmt.Errorf("preflight of credential %q: %w", name, err)
	}
	return append(found, more...), nil
}

func (k *known) checkState() (found []providers.Finding) {
	switch {
	case k.failed != "":
		found = append(found, providers.Finding{Check: "rotation_failed", Detail: "rotation " + k.failed + " failed and waits for a person", Remedy: "retry it, roll it back or abandon it"})
	case k.running != nil:
		found = append(found, providers.Finding{Check: "is_rotating", Warning: true, Detail: fmt.Sprintf("rotation %s is at %s: the next one waits for its end", k.running.ID, k.running.Step), Remedy: "wait for it"})
	}
	if k.c.State == CredentialPaused {
		found = append(found, providers.Finding{Check: "paused", Warning: true, Detail: "its schedule is not followed since " + k.c.Since.Format(time.RFC3339), Remedy: "resume it"})
	}
	if k.c.State == CredentialActive && !k.c.Schedule.IsZero() && k.c.NextAt.IsZero() {
		found = append(found, providers.Finding{Check: "missed", Warning: true, Detail: "the firing of " + k.c.DueAt.Format(time.RFC3339) + " was missed, and no other happens before somebody rotates it", Remedy: "rotate it now"})
	}
	if len(found) == 0 {
		found = append(found, providers.Finding{Check: "state", OK: true, Detail: "nothing is in the way"})
	}
	return found
}

// checkTimes looks for schedules that can't do what they say.
func (k *known) checkTimes() (found []providers.Finding) {
	c := k.c
	warn := func(check, detail, remedy string) {
		found = append(found, providers.Finding{Check: check, Warning: true, Detail: detail, Remedy: remedy})
	}
	if c.Schedule.IsZero() {
		warn("schedule", "it has no schedule: it is rotated when somebody asks for it, only", "give it one")
	} else if len(c.Windows) > 0 {
		// Many firings and few openings: what the schedule promises does not happen.
		firings, openings := 0, map[time.Time]bool{}
		end := k.now.AddDate(0, 0, 28)
		for at := c.Schedule.Next(k.now, c.Name); !at.IsZero() && at.Before(end) && firings < 1000; at = c.Schedule.Next(at, c.Name) {
			firings++
			opens, _ := c.firing(at)
			openings[opens] = true
		}
		if firings > len(openings) {
			warn("windows", fmt.Sprintf("of the next %d firings, several have one window in common: there will be %d rotations", firings, len(openings)), "add windows, or rotate less often")
		}
	}
	switch {
	case c.Strategy == providers.Replace && !hasNoConsumers(c):
		warn("overlap", "with the strategy replace the value that consumers hold is refused from the change until they have read the new one", "take a strategy with an overlap, or have consumers read again when they are refused")
	case c.Strategy != providers.Replace && c.Grace == 0:
		warn("grace", "the grace is 0: the old value ends as soon as the new one is published", "set a grace that is longer than consumers take to read the new value")
	}
	if len(found) == 0 {
		found = append(found, providers.Finding{Check: "times", OK: true, Detail: "schedule, windows and grace fit"})
	}
	return found
}

func hasNoConsumers(c *Credential) bool { return len(c.Stores) == 0 }

// accountNames are what settings, params and logins call an account.
var accountNames = []string{"username", "user", "account", "role", "role_name", "role_id", "access_key_id", "user_name"}

// checkLogin looks for a rotation that breaks Rotunda's own login.
func (cs *Credentials) checkLogin(ctx context.Context, k *known) []providers.Finding {
	c := k.c
	if k.target.LoginCredential == c.Name {
		return []providers.Finding{{Check: "self_reference", OK: true, Detail: "target " + c.Target + " is logged in to with this credential: during its rotation the login falls back to whichever value is accepted"}}
	}
	ours := map[string]string{} // account → where it is named
	for name, v := range c.Params {
		if slices.Contains(accountNames, name) {
			ours[v] = "params." + name
		}
	}
	for _, v := range k.versions {
		if v.Account != "" {
			ours[v.Account] = fmt.Sprintf("generation %d", v.Generation)
		}
	}
	refuse := func(account, where string) []providers.Finding {
		return []providers.Finding{{Check: "self_reference", Detail: fmt.Sprintf("target %s is logged in to as %s (%s), and this credential rotates that account (%s): its first rotation would lock Rotunda out", c.Target, clip(account), where, ours[account]),
			Remedy: "make this credential the login of the target, or give the target an account of its own"}}
	}
	for name, v := range k.target.Settings {
		if slices.Contains(accountNames, name) && ours[v] != "" {
			return refuse(v, "settings."+name)
		}
	}
	if k.target.login != nil {
		v, err := cs.systems.sealer.Open(ctx, loginPlace(TargetSort, k.target.Name), k.target.login)
		if err != nil {
			return []providers.Finding{{Check: "self_reference", Detail: err.Error(), Remedy: "see the key-encryption key"}}
		}
		defer v.Destroy()
		if login, err := providers.Decode(v); err == nil {
			for _, name := range accountNames {
				if account := login.Text(name); account != "" && ours[account] != "" {
					return refuse(account, "login."+name)
				}
			}
		}
	}
	return []providers.Finding{{Check: "self_reference", OK: true, Detail: "Rotunda does not log in with what it rotates here"}}
}

// checkTarget asks the target, and proves that the value that consumers read is accepted.
func (cs *Credentials) checkTarget(ctx context.Context, k *known) []providers.Finding {
	t, _, err := cs.systems.openTarget(ctx, k.c.Target)
	var found []providers.Finding
	if err == nil {
		found, err = t.Check(ctx, k.change())
	}
	if err != nil {
		return append(found, providers.Finding{Check: "target", Detail: err.Error(), Remedy: "see the settings and the login of target " + k.c.Target})
	}
	if k.current == nil || k.value == nil {
		return found
	}
	held := k.current.held()
	held.Fields = k.value
	switch err := t.Verify(ctx, k.change(), held); {
	case err == nil:
		found = append(found, providers.Finding{Check: "login", OK: true, Detail: fmt.Sprintf("generation %d, which consumers read, is accepted", k.current.Generation)})
	case providers.OutcomeOf(err) == providers.Rejected:
		found = append(found, providers.Finding{Check: "login", Warning: true, Detail: fmt.Sprintf("generation %d, which consumers read, is not accepted: %s", k.current.Generation, err), Remedy: "rotate it: the next value is accepted"})
	default:
		found = append(found, providers.Finding{Check: "login", Detail: err.Error(), Remedy: "see whether target " + k.c.Target + " can be reached from here as consumers reach it"})
	}
	return found
}

// checkStore asks a store, and looks whether it serves what it should.
func (cs *Credentials) checkStore(ctx context.Context, k *known, p Placed) []providers.Finding {
	where := fmt.Sprintf("store %s at %s", p.Store, p.Path)
	st, _, err := cs.systems.openStore(ctx, p.Store)
	var found []providers.Finding
	var served providers.Served
	if err == nil {
		if found, err = st.Check(ctx, p.Path); err == nil {
			served, err = st.Read(ctx, p.Path)
		}
	}
	if err != nil {
		return append(found, providers.Finding{Check: "store", Detail: where + ": " + err.Error(), Remedy: "see the settings, the login and the policy of store " + p.Store})
	}
	if stop := k.stops(p, served); stop != "" {
		return append(found, providers.Finding{Check: "store_version", Detail: where + " " + stop, Remedy: "see who wrote it; to replace it set adopt, or retry the rotation that stops there"})
	}
	return append(found, providers.Finding{Check: "store_version", OK: true, Detail: where + " serves what it should"})
}

// stops says why a publication at a place would stop; empty: it would not.
func (k *known) stops(p Placed, served providers.Served) string {
	switch {
	case served.Version == p.Version:
		return ""
	case p.Version == "" && k.c.Adopt:
		return ""
	case p.Version == "":
		return "serves version " + served.Version + " already, which is none of ours, and adopt is not set"
	case served.Version == "":
		return "serves nothing, and we put version " + p.Version + " there"
	case k.value != nil && served.Fields != nil && served.Fields.Equal(k.value):
		return ""
	}
	return "serves version " + served.Version + ", and we put version " + p.Version + " there"
}

// checkOwn looks at what our own database knows: endpoints, and how fast an emergency could go.
func (cs *Credentials) checkOwn(ctx context.Context, k *known) (found []providers.Finding, err error) {
	rates, err := cs.systems.rates(ctx)
	if err != nil {
		return nil, err
	}
	err = cs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		found = nil
		for _, name := range k.c.systems() {
			rate := rates[name]
			if rate == 0 {
				continue
			}
			var n int64
			if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM credential_stores WHERE store = $1`, name.name).Scan(&n); err != nil {
				return err
			}
			takes := seconds(float64(n) / rate).Round(time.Second)
			f := providers.Finding{Check: "quota", OK: takes <= longEmergency, Warning: takes > longEmergency, Measured: fmt.Sprintf("%d credentials at %.1f/s: %s", n, rate, takes),
				Detail: fmt.Sprintf("to rotate all credentials of store %s takes %s by its quota", name.name, takes)}
			if f.Warning {
				f.Remedy = "spread them over several accounts or stores"
			}
			found = append(found, f)
		}
		for _, endpoint := range k.c.Notify {
			f, err := checkEndpoint(ctx, tx, endpoint)
			if err != nil {
				return err
			}
			found = append(found, f)
		}
		return nil
	})
	return found, err
}

// checkEndpoint tells from the last delivery whether an endpoint can be reached.
func checkEndpoint(ctx context.Context, tx *store.Tx, name string) (providers.Finding, error) {
	f := providers.Finding{Check: "endpoint", Warning: true}
	var state EndpointState
	err := tx.QueryRow(ctx, `SELECT state FROM endpoints WHERE name = $1`, name).Scan(&state)
	if errors.Is(err, sql.ErrNoRows) {
		f.Detail, f.Remedy = "there is no endpoint "+name+" any more", "remove it from notify"
		return f, nil
	}
	if err != nil {
		return f, err
	}
	if state != EndpointActive {
		f.Detail, f.Remedy = "endpoint "+name+" is "+string(state)+": it hears of nothing", "enable it"
		return f, nil
	}
	var last, text string
	err = tx.QueryRow(ctx, `SELECT state, last_error FROM deliveries WHERE endpoint = $1 ORDER BY id DESC LIMIT 1`, name).Scan(&last, &text)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		f.Detail, f.Remedy = "nothing was sent to endpoint "+name+" yet", "test it"
	case err != nil:
		return f, err
	case DeliveryState(last) == Delivered:
		f.OK, f.Warning, f.Detail = true, false, "endpoint "+name+" took its last webhook"
	case text != "":
		f.Detail, f.Remedy = "endpoint "+name+" did not take its last webhook: "+strings.TrimSpace(text), "test it"
	default:
		f.OK, f.Warning, f.Detail = true, false, "a webhook to endpoint "+name+" is on its way"
	}
	return f, nil
}
