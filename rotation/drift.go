package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

const (
	probeBatch    = 64 // credentials per pass
	probeParallel = 8
	probeTimeout  = 20 * time.Second
	maxDriftNote  = 500

	maxProbeVersions = 100 // values of ours that a value is compared with
)

// What a store serves.
const (
	ServesCurrent = "current" // our value of now
	ServesOlder   = "older"   // another value of ours
	ServesForeign = "foreign" // a value that is none of ours
	ServesNothing = "nothing"
	ServesUnknown = "unknown" // it could not be read, or not be compared
)

// What a target does with the value that consumers read by our records.
const (
	TargetAccepts = "accepts"
	TargetRejects = "rejects"
	TargetUnknown = "unknown" // it could not be asked
)

// ProbedStore is what a store serves at the place of a credential.
type ProbedStore struct {
	Placement
	Recorded   string // the version that we put there; empty: none
	Version    string // the version that it serves; empty: nothing
	Serves     string
	Generation int64  // of the value, when it is one of ours; else 0
	Note       string // holds no value
	Err        string // why it could not be read
}

// ProbeResult is what a probe found.
type ProbeResult struct {
	Credential string
	At         time.Time
	Drift      Drift
	Note       string // holds no value
	Complete   bool   // false: something could not be asked, and Drift stays as it was
	Stores     []ProbedStore
	Target     string
	TargetErr  string
}

// probe is what a probe has to know before it asks anybody.
type probe struct {
	c       *Credential
	placed  []Placed
	current *CredentialVersion
	others  []*CredentialVersion // all there are beside it, the newest first
	value   providers.Fields     // of current
}

// Probe looks now whether store, target and our records agree, and records what it finds. It
// logs in to the target once, at most. While a run is at work it is fault.ErrTransition; a run in
// its grace is not.
func (cs *Credentials) Probe(ctx context.Context, name string) (*ProbeResult, error) {
	r, err := cs.probe(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("probe credential %q: %w", clip(name), err)
	}
	return r, nil
}

func (cs *Credentials) probe(ctx context.Context, name string) (*ProbeResult, error) {
	p, err := cs.readProbe(ctx, name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	r := &ProbeResult{Credential: name, Complete: true}
	for _, at := range p.placed {
		s := cs.probeStore(ctx, p, at)
		r.Complete = r.Complete && s.Err == ""
		r.Stores = append(r.Stores, s)
	}
	marker := cs.probeTarget(ctx, p, r)
	r.Drift, r.Note = classify(p, r, marker)
	return r, cs.recordProbe(context.WithoutCancel(ctx), p, r)
}

// atWork is fault.ErrTransition while a run of a credential is anywhere but in its grace.
func atWork(ctx context.Context, tx *store.Tx, name string) error {
	runs, err := listRotations(ctx, tx, RotationQuery{Credential: name, Unended: true, Limit: 2})
	if err != nil {
		return err
	}
	for _, r := range runs {
		if r.Step != StepGrace {
			return fault.New(fault.ErrTransition, "is_rotating", "rotation %s is under way, at %s: what it has not finished would look like drift", r.ID, r.Step)
		}
	}
	return nil
}

func (cs *Credentials) readProbe(ctx context.Context, name string) (*probe, error) {
	p := &probe{}
	err := cs.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		*p = probe{}
		if p.c, err = cs.systems.readCredential(ctx, tx, name); err != nil {
			return err
		}
		if p.c.Current == 0 {
			return fault.New(fault.ErrTransition, "no_value", "it has no value yet: rotate it first")
		}
		if err := atWork(ctx, tx, name); err != nil {
			return err
		}
		if p.placed, err = cs.systems.readPlacements(ctx, tx, p.c); err != nil {
			return err
		}
		versions, err := readVersions(ctx, tx, cs.systems.key, name, maxProbeVersions)
		if err != nil {
			return err
		}
		for _, v := range versions {
			if v.Generation == p.c.Current {
				p.current = v
			} else if !v.tampered {
				p.others = append(p.others, v)
			}
		}
		if p.current == nil {
			p.current, err = readVersion(ctx, tx, cs.systems.key, name, p.c.Current)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	p.value, err = openVersion(ctx, cs.systems.sealer, p.current)
	return p, err
}

func (cs *Credentials) probeStore(ctx context.Context, p *probe, at Placed) ProbedStore {
	s := ProbedStore{Placement: at.Placement, Recorded: at.Version, Serves: ServesUnknown}
	if at.Version == "" { // a store that was added, or a value that was never published
		s.Note = "nothing of ours is there yet"
		return s
	}
	st, _, err := cs.systems.openStore(ctx, at.Store)
	var served providers.Served
	if err == nil {
		served, err = st.Read(ctx, at.Path)
	}
	if err != nil {
		s.Err = err.Error()
		return s
	}
	s.Version, s.Note = served.Version, served.Note
	switch {
	case served.Version == "":
		s.Serves = ServesNothing
	case served.Fields == nil:
		// Only the version tells.
		if served.Version == at.Version {
			s.Serves, s.Generation = ServesCurrent, at.Generation
		} else {
			s.Serves = cs.serves(ctx, p, served, &s)
		}
	case served.Fields.Equal(p.value):
		s.Serves, s.Generation = ServesCurrent, p.c.Current
	default:
		s.Serves = cs.serves(ctx, p, served, &s)
	}
	return s
}

// serves tells a value that is not the current one: another one of ours, or a foreign one. A value
// that was destroyed with us is known by the id of the rotation that the store keeps with it.
func (cs *Credentials) serves(ctx context.Context, p *probe, served providers.Served, s *ProbedStore) string {
	for _, v := range p.others {
		same := served.Fields == nil && served.Rotation != "" && served.Rotation == v.Rotation
		if served.Fields != nil {
			f, err := openVersion(ctx, cs.systems.sealer, v)
			same = err == nil && f != nil && served.Fields.Equal(f)
			if f == nil && v.State == Retired && served.Rotation != "" {
				same = served.Rotation == v.Rotation
			}
		}
		if same {
			s.Generation = v.Generation
			return ServesOlder
		}
	}
	return ServesForeign
}

// probeTarget asks the target, and returns what its marker says.
func (cs *Credentials) probeTarget(ctx context.Context, p *probe, r *ProbeResult) (marker providers.Applied) {
	r.Target = TargetUnknown
	fail := func(err error) providers.Applied {
		r.Complete, r.TargetErr = false, err.Error()
		return providers.Applied{}
	}
	t, kind, err := cs.systems.openTarget(ctx, p.c.Target)
	if err != nil {
		return fail(err)
	}
	change := p.c.change(p.current)
	held := p.current.held()
	held.Fields = p.value
	if p.value != nil || kind.Traits.Valueless {
		switch err := t.Verify(ctx, change, held); {
		case err == nil:
			r.Target = TargetAccepts
		case providers.OutcomeOf(err) == providers.Rejected:
			r.Target, r.TargetErr = TargetRejects, err.Error()
		default:
			return fail(err)
		}
	}
	if held.Account == "" {
		return providers.Applied{}
	}
	if marker, err = t.Applied(ctx, change, held.Account); err != nil {
		return fail(err)
	}
	return marker
}

// change is a credential as its target sees it between two rotations.
func (c *Credential) change(current *CredentialVersion) providers.Change {
	out := providers.Change{Credential: c.Name, Generation: c.Generation, Strategy: c.Strategy, Params: c.Params, Static: c.Fields}
	if current != nil {
		out.Current = current.held()
		out.Rotation = current.Rotation
	}
	return out
}

// classify says what no longer agrees, in words that hold no value.
func classify(p *probe, r *ProbeResult, marker providers.Applied) (Drift, string) {
	if !r.Complete {
		return p.c.Drift, p.c.DriftNote
	}
	var store, label []string
	for _, s := range r.Stores {
		where := fmt.Sprintf("store %s at %s", s.Store, s.Path)
		switch s.Serves {
		case ServesNothing:
			store = append(store, where+" serves nothing: it was deleted there")
		case ServesOlder:
			store = append(store, fmt.Sprintf("%s serves an older value of ours, of generation %d, as version %s: something puts it back, such as infrastructure code that holds a copy", where, s.Generation, s.Version))
		case ServesForeign:
			store = append(store, fmt.Sprintf("%s serves a value that is none of ours, as version %s: somebody else wrote it", where, s.Version))
		case ServesCurrent:
			if s.Version != s.Recorded {
				label = append(label, fmt.Sprintf("%s serves our value as version %s, and we put it there as %s", where, s.Version, s.Recorded))
			}
		}
	}
	rejects := r.Target == TargetRejects
	var notes []string
	drift := NoDrift
	switch {
	case len(store) > 0 && rejects:
		drift, notes = DriftBoth, append(store, "target "+p.c.Target+" does not accept our value either")
	case len(store) > 0:
		drift, notes = DriftStore, store
	case rejects:
		drift, notes = DriftTarget, []string{"target " + p.c.Target + " does not accept the value that consumers read: somebody else changed it there, or ended it"}
	case marker.Known && !p.ours(marker):
		drift, notes = DriftMarker, []string{fmt.Sprintf("target %s says that its value is generation %d of rotation %s, which is none of ours: another Rotunda, or a copy of this one, is at work there",
			p.c.Target, marker.Generation, clip(marker.Rotation))}
	case len(label) > 0:
		drift, notes = DriftLabel, label
	}
	note := strings.Join(notes, "; ")
	if len(note) > maxDriftNote {
		note = strings.ToValidUTF8(note[:maxDriftNote], "") + "…"
	}
	return drift, note
}

// ours says whether a marker is of a rotation of ours. It need not be that of the current value:
// what was rolled back leaves its marker.
func (p *probe) ours(marker providers.Applied) bool {
	if marker.Rotation == p.current.Rotation && marker.Generation == p.current.Generation {
		return true
	}
	for _, v := range p.others {
		if marker.Rotation == v.Rotation && marker.Generation == v.Generation {
			return true
		}
	}
	// One that is older than what was read.
	return len(p.others) >= maxProbeVersions-1 && marker.Generation < p.others[len(p.others)-1].Generation
}

// recordProbe writes what was found, unless the credential has changed meanwhile: then it is asked
// again soon. A change of drift is an event and a webhook.
func (cs *Credentials) recordProbe(ctx context.Context, p *probe, r *ProbeResult) error {
	return cs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, err := cs.systems.lockCredential(ctx, tx, p.c.Name)
		if err != nil {
			return err
		}
		r.At = tx.Now
		if err := atWork(ctx, tx, c.Name); err != nil {
			return err
		}
		if c.Current != p.c.Current || !slices.Equal(c.Stores, p.c.Stores) || c.Target != p.c.Target {
			return fault.New(fault.ErrChanged, "changed", "it was changed while it was probed: probe it again")
		}
		if !c.ProbeAt.IsZero() {
			c.plan(tx.Now)
		}
		if !r.Complete {
			return cs.systems.writeCredential(ctx, tx, c)
		}
		c.ProbedAt = tx.Now
		before := c.Drift
		if before == r.Drift {
			c.DriftNote = r.Note
			return cs.systems.writeCredential(ctx, tx, c)
		}
		c.Drift, c.DriftNote, c.DriftSince = r.Drift, r.Note, tx.Now
		action := "drift"
		if r.Drift == NoDrift {
			action, c.DriftSince = "drift_end", time.Time{}
		}
		if err := cs.systems.writeCredential(ctx, tx, c); err != nil {
			return err
		}
		detail := map[string]any{"drift": string(r.Drift), "was": string(before), "generation": c.Current}
		if r.Note != "" {
			detail["note"] = r.Note
		}
		if err := recordCredential(ctx, tx, c, action, "", detail); err != nil {
			return err
		}
		return cs.systems.enqueue(ctx, tx, c, "credential."+action, detail)
	})
}

// ProbePass probes what is due, up to 64 credentials, a few at a time.
func (cs *Credentials) ProbePass(ctx context.Context, now time.Time) (time.Time, error) {
	var names []string
	err := cs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		names = nil
		rows, err := tx.Query(ctx, `SELECT name FROM credentials WHERE probe_at > 0 AND probe_at <= $1 ORDER BY probe_at LIMIT $2`, store.Micros(now), probeBatch)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			names = append(names, name)
		}
		return rows.Err()
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("look for credentials to probe: %w", err)
	}
	var running sync.WaitGroup
	places := make(chan struct{}, probeParallel)
	errs := make([]error, len(names))
	for i, name := range names {
		if ctx.Err() != nil {
			break
		}
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			_, err := cs.probe(ctx, name)
			// Whatever it was, it is not asked again at once.
			if err != nil && ctx.Err() == nil {
				errs[i] = cs.putProbeOff(ctx, name, now, err)
			}
		})
	}
	running.Wait()
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) > 0 {
		return time.Time{}, joined("probes", errs)
	}
	if len(names) == probeBatch {
		return now, nil
	}
	var next int64
	err = cs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(MIN(probe_at), 0) FROM credentials WHERE probe_at > 0`).Scan(&next)
	})
	return store.Time(next), err
}

// putProbeOff plans the next probe of a credential that could not be probed, and returns why when
// that is something to be told of.
func (cs *Credentials) putProbeOff(ctx context.Context, name string, now time.Time, why error) error {
	err := cs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, err := cs.systems.lockCredential(ctx, tx, name)
		switch {
		case errors.Is(err, fault.ErrNotFound):
			return nil
		case errors.Is(err, fault.ErrDenied): // not even its seal may be renewed
			_, err := tx.Exec(ctx, `UPDATE credentials SET probe_at = $1 WHERE name = $2`, store.Micros(now.Add(maxWait)), name)
			return err
		case err != nil || c.ProbeAt.After(now):
			return err
		}
		c.plan(tx.Now)
		return cs.systems.writeCredential(ctx, tx, c)
	})
	if err != nil {
		return fmt.Errorf("credential %q: %w", name, err)
	}
	if errors.Is(why, fault.ErrTransition) || errors.Is(why, fault.ErrChanged) || errors.Is(why, fault.ErrNotFound) {
		return nil
	}
	return fmt.Errorf("credential %q: %w", name, why)
}

// plan sets when a credential is probed next: at its own place in the interval, so that many are
// spread out.
func (c *Credential) plan(after time.Time) {
	if c.Probe <= 0 || c.Current == 0 {
		c.ProbeAt = time.Time{}
		return
	}
	h := sha256.Sum256([]byte("probe " + c.Name))
	at, _ := bits.Mul64(binary.BigEndian.Uint64(h[:]), uint64(c.Probe))
	next := after.UTC().Truncate(c.Probe).Add(time.Duration(at)).Truncate(time.Microsecond)
	if !next.After(after) {
		next = next.Add(c.Probe)
	}
	c.ProbeAt = next
}
