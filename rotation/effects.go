package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

// result is what an effect gave.
type result struct {
	plan     *plan
	held     providers.Held // of apply
	version  string         // of publish
	evidence providers.Evidence
	detail   map[string]any // for the trail

	target providers.Target // that issued held, to take it back
	change providers.Change
}

// plan is what E0 found, on its way into the database.
type plan struct {
	work    work
	value   providers.Fields
	version int64 // generation
}

// guarded is do. An adapter that panics may have done its effect: that is an unknown outcome.
func (rs *Rotations) guarded(ctx context.Context, j *job, e effect) (res result, err error) {
	defer func() {
		if p := recover(); p != nil {
			rs.log.ErrorContext(ctx, "an adapter panicked", "rotation", j.ID, "effect", e.name, "stack", string(debug.Stack()))
			err = fmt.Errorf("%s of rotation %s: %w", e.action, j.ID, ErrPanic) // what it panicked with may hold a value
		}
	}()
	return rs.do(ctx, j, e)
}

// do does one effect outside of the database.
func (rs *Rotations) do(ctx context.Context, j *job, e effect) (res result, err error) {
	w := &j.work
	switch e.action {
	case "plan":
		res.plan, err = rs.plan(ctx, j)
		return res, err
	case "stage":
		p := w.Places[e.index]
		s, v, err := rs.place(ctx, j, p.Placement)
		if err != nil {
			return res, err
		}
		return res, s.Stage(ctx, p.Path, v)
	case "publish":
		return rs.publish(ctx, j, e.index)
	case "discard":
		l := w.Left[e.index]
		s, _, err := rs.systems.openStore(ctx, l.Store)
		if err != nil {
			return res, err
		}
		v := providers.Version{Credential: j.Credential, Rotation: l.Rotation, Generation: l.Generation, Fields: j.values[l.Generation]}
		return res, s.Discard(ctx, l.Path, v)
	}

	c, err := rs.bind(ctx, j)
	if err != nil {
		return res, err
	}
	t, kind, err := rs.systems.openTarget(ctx, j.Target)
	if err != nil {
		return res, err
	}
	rs.learn(j.Target, kind.Traits)
	switch e.action {
	case "apply":
		res.target, res.change = t, c
		res.held, err = rs.apply(ctx, j, t, c)
	case "verify":
		if c.New.Generation == 0 {
			return res, nil // from before Rotunda: whose it is we don't know
		}
		err = t.Verify(ctx, c, c.New)
	case "retire":
		if !rs.db.Now().Before(j.GraceEndsAt) {
			return res, fault.New(fault.ErrTransition, "grace_over", "the grace was over before the target could be told of its end")
		}
		err = t.Retire(ctx, c, j.filled(w.Olds[e.index].Held), j.GraceEndsAt)
	case "unretire":
		err = t.Retire(ctx, c, c.New, time.Time{})
	case "usage":
		res.evidence, err = usage(ctx, t, c, j)
	case "revoke":
		err = t.Revoke(ctx, c, j.filled(w.Olds[e.index].Held))
		res.detail = evidenceDetail(j)
	default:
		err = fmt.Errorf("rotation %s: there is no effect %q", j.ID, e.action)
	}
	return res, err
}

// lease is the epoch as targets see it: it grows with each claim of a run, and from one
// generation of the credential to the next, though each run counts its claims anew.
func (j *job) lease(generation int64) int64 {
	const claims = 1 << 20
	return generation*claims + min(j.Epoch, claims-1)
}

// filled is h with its value, where we still have it.
func (j *job) filled(h providers.Held) providers.Held {
	h.Fields = maps.Clone(j.values[h.Generation])
	return h
}

// bind is the change of a run with its values, opened.
func (rs *Rotations) bind(ctx context.Context, j *job) (providers.Change, error) {
	c := j.work.Change
	c.Epoch, c.Emergency = j.lease(c.Generation), j.Cause == Emergency
	if j.values == nil {
		var versions []*CredentialVersion
		err := rs.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
			versions, err = readLiveVersions(ctx, tx, rs.systems.key, j.Credential)
			return err
		})
		if err != nil {
			return c, err
		}
		values := make(map[int64]providers.Fields, len(versions))
		for _, v := range versions {
			f, err := openVersion(ctx, rs.sealer, v)
			if errors.Is(err, secret.ErrCorrupt) {
				return c, fault.New(fault.ErrDenied, "value_corrupt", "the value of version %d of credential %q does not open: %w", v.Generation, v.Credential, err)
			}
			if err != nil {
				return c, err
			}
			values[v.Generation] = f
		}
		if j.work.Adopted != nil {
			f := providers.Fields{}
			for name, text := range j.work.Adopted {
				f[name] = secret.FromString(text)
			}
			values[0] = f
		}
		if _, ok := values[c.New.Generation]; !ok && c.New.Generation > 0 {
			return c, fault.New(fault.ErrDenied, "value_gone", "version %d of credential %q, which rotation %s is about, is no longer there: restore the database from a backup", c.New.Generation, j.Credential, j.ID)
		}
		j.values = values
	}
	c.New, c.Current = j.filled(c.New), j.filled(c.Current)
	c.Others = slices.Clone(c.Others)
	for i := range c.Others {
		c.Others[i] = j.filled(c.Others[i])
	}
	return c, nil
}

// plan is E0: it looks at the target and at all stores, has the new value made, and changes
// nothing. What it returns is kept before anything else happens.
func (rs *Rotations) plan(ctx context.Context, j *job) (*plan, error) {
	var c *Credential
	var placed []Placed
	var versions []*CredentialVersion
	err := rs.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		if c, err = rs.systems.readCredential(ctx, tx, j.Credential); err != nil {
			return err
		}
		if placed, err = rs.systems.readPlacements(ctx, tx, c); err != nil {
			return err
		}
		versions, err = readLiveVersions(ctx, tx, rs.systems.key, j.Credential)
		return err
	})
	if err != nil {
		return nil, err
	}
	if c.Target != j.Target {
		return nil, fault.New(fault.ErrTransition, "target_changed", "credential %q has target %q now, and rotation %s was begun for %q: abandon it, and begin another", c.Name, c.Target, j.ID, j.Target)
	}
	t, kind, err := rs.systems.openTarget(ctx, c.Target)
	if err != nil {
		return nil, err
	}
	rs.learn(j.Target, kind.Traits)
	p := &plan{version: c.Generation + 1}
	w := &p.work
	*w = work{Planned: true, Refused: j.work.Refused, Overwrite: j.work.Overwrite, Left: slices.Clone(j.work.Left), Issues: kind.Traits.Issues, Valueless: kind.Traits.Valueless, Quiet: c.Quiet}
	ch := providers.Change{
		Credential: c.Name, Rotation: j.ID, Generation: p.version, Epoch: j.lease(p.version), Strategy: c.Strategy, Static: c.Fields, At: rs.db.Now(), Emergency: j.Cause == Emergency,
	}
	if w.Refused > 0 {
		// Stores know the value that was refused under the first id, which can't name another.
		ch.Rotation = freshID(j.ID, p.version)
	}
	if ch.Strategy == "" {
		ch.Strategy = kind.Traits.Strategies[0]
	}
	if !slices.Contains(kind.Traits.Strategies, ch.Strategy) {
		return nil, fault.Invalid("strategy", "strategy_unknown", "targets of kind %s can't do %q: they can do %q", kind.Name, ch.Strategy, kind.Traits.Strategies)
	}
	if ch.Params, err = providers.Complete("params", kind.Params, c.Params); err != nil {
		return nil, err
	}
	for _, v := range versions {
		f, err := openVersion(ctx, rs.sealer, v)
		if err != nil {
			return nil, err
		}
		h := v.held()
		h.Fields = f
		if v.Generation == c.Current {
			ch.Current = h
		} else {
			ch.Others = append(ch.Others, h)
		}
	}
	read, err := rs.survey(ctx, c, placed, w, &ch)
	if err != nil {
		return nil, err
	}
	if err := followConsumers(&ch, w, placed, read); err != nil {
		return nil, err
	}
	ch.New = providers.Held{Generation: p.version, Rotation: ch.Rotation}
	made, err := t.Prepare(ctx, ch)
	if err != nil {
		return nil, err
	}
	ch.New.Account, ch.New.Fields, ch.Before = made.New.Account, made.New.Fields, made.Before
	if !w.Issues && !w.Valueless && len(ch.New.Fields) == 0 {
		return nil, fmt.Errorf("target %q prepared no value", j.Target)
	}
	if ch.Current.Generation > 0 {
		w.Olds = append(w.Olds, old{Held: bare(ch).Current})
	}
	for i, h := range bare(ch).Others {
		w.Olds = append(w.Olds, old{Held: h, Early: leftBehind(&ch, ch.Others[i], versions, read)})
	}
	p.value = ch.New.Fields
	w.Change = bare(ch)
	return p, nil
}

// serves says whether consumers of a place read h.
func serves(s providers.Served, h providers.Held) bool {
	return s.Rotation != "" && s.Rotation == h.Rotation || len(h.Fields) > 0 && s.Fields != nil && s.Fields.Equal(h.Fields)
}

// followConsumers makes the value that consumers read the one that has to stay accepted. It is not
// the current one where a rotation was abandoned between its publication and its end.
func followConsumers(ch *providers.Change, w *work, placed []Placed, read []providers.Served) error {
	readers := map[int64]string{} // a place that serves it, by generation
	for _, h := range append([]providers.Held{ch.Current}, ch.Others...) {
		for i, s := range read {
			if h.Generation > 0 && serves(s, h) {
				readers[h.Generation] = fmt.Sprintf("store %s at %.60q", placed[i].Store, placed[i].Path)
			}
		}
	}
	generations := slices.Sorted(maps.Keys(readers))
	switch {
	case len(generations) > 1 && ch.Strategy == providers.Alternate && !ch.Emergency:
		a, b := generations[0], generations[len(generations)-1]
		return fault.New(fault.ErrTransition, "half_published", "a rotation was abandoned half-way: %s serves generation %d, and %s generation %d, so both accounts are in use and neither may get a new value: "+
			"copy what the one serves to the other and retry, or abandon this run and take one of them away from the credential", readers[a], a, readers[b], b)
	case len(generations) != 1 || generations[0] == ch.Current.Generation:
		return nil
	}
	i := slices.IndexFunc(ch.Others, func(h providers.Held) bool { return h.Generation == generations[0] })
	was := ch.Current
	ch.Current, w.Adopted = ch.Others[i], nil
	ch.Others = slices.Delete(ch.Others, i, i+1)
	if was.Generation > 0 {
		ch.Others = append(ch.Others, was)
	}
	return nil
}

// leftBehind says whether a value that an abandoned rotation left is ended before the new one
// is made, so that there is room where a target has a limit: nobody reads it, and its grace is
// over, or there was none.
func leftBehind(ch *providers.Change, h providers.Held, versions []*CredentialVersion, read []providers.Served) bool {
	if ch.Strategy != providers.Dual {
		return false // the other account's value is overwritten
	}
	for _, s := range read {
		if serves(s, h) {
			return false
		}
	}
	i := slices.IndexFunc(versions, func(v *CredentialVersion) bool { return v.Generation == h.Generation })
	return ch.Emergency || !versions[i].GraceEndsAt.After(ch.At)
}

// survey reads what consumers of each store read now, and returns it: it has to be what we
// put there.
func (rs *Rotations) survey(ctx context.Context, c *Credential, placed []Placed, w *work, ch *providers.Change) (read []providers.Served, err error) {
	if w.Valueless {
		return nil, nil
	}
	for _, at := range placed {
		s, kind, err := rs.systems.openStore(ctx, at.Store)
		if err != nil {
			return nil, err
		}
		served, err := s.Read(ctx, at.Path)
		if err != nil {
			return nil, err
		}
		ours := served.Version == at.Version
		switch {
		case ours, w.Overwrite:
		case at.Version == "" && c.Adopt:
		case at.Version == "":
			return nil, fault.New(fault.ErrStale, pathInUse, "store %s holds something at %.200q that Rotunda did not put there: choose another path, or let the credential adopt it", at.Store, at.Path)
		default:
			return nil, fault.New(fault.ErrStale, "drift", "store %s serves version %.100q at %.200q, and %.100q is what Rotunda put there: somebody else has changed it", at.Store, served.Version, at.Path, at.Version)
		}
		if c.Current == 0 && served.Version != "" && served.Fields != nil && w.Adopted == nil {
			w.Adopted = make(map[string]string, len(served.Fields))
			for _, name := range served.Fields.Names() {
				w.Adopted[name] = served.Fields.Text(name)
			}
			ch.Current = providers.Held{Fields: served.Fields}
		}
		w.Places = append(w.Places, place{
			Placement: at.Placement, Stages: kind.Traits.Stages, Prior: served.Version,
			Had: w.Adopted != nil && served.Fields != nil && served.Fields.Equal(ch.Current.Fields),
		})
		read = append(read, served)
	}
	return read, nil
}

// planned keeps the new value, sealed, and what the run needs from here on.
func (rs *Rotations) planned(ctx context.Context, tx *store.Tx, k *job, p *plan) error {
	c, err := rs.systems.lockCredential(ctx, tx, k.Credential)
	if err != nil {
		return err
	}
	if c.Generation+1 != p.version {
		return fault.New(fault.ErrChanged, "changed", "credential %q got another version meanwhile", c.Name)
	}
	n := p.work.Change.New
	v := &CredentialVersion{Credential: c.Name, Generation: n.Generation, Rotation: n.Rotation, Account: n.Account}
	if err := sealVersion(ctx, rs.sealer, v, p.value); err != nil {
		return err
	}
	if err := insertVersion(ctx, tx, rs.systems.key, v); err != nil {
		return err
	}
	c.Generation = n.Generation
	if err := rs.systems.writeCredential(ctx, tx, c); err != nil {
		return err
	}
	k.Generation = n.Generation
	k.work = p.work.clone()
	k.values = nil
	return nil
}

// apply is E2. A refusal, when an earlier try may have come through, is no proof that the value
// is not accepted: the target may refuse it because it has it, or because our own login
// was the old value. A login with the new one tells.
func (rs *Rotations) apply(ctx context.Context, j *job, t providers.Target, c providers.Change) (providers.Held, error) {
	h, err := t.Apply(ctx, c)
	if err == nil {
		return h, nil
	}
	first := j.Epoch == j.work.FirstEpoch && j.Attempt == 0
	out := providers.OutcomeOf(err)
	if first || j.work.Issues || out == providers.Unknown || out == providers.Throttled || out == providers.Moved {
		return h, err
	}
	switch refused := t.Verify(ctx, c, c.New); {
	case refused == nil:
		return c.New, nil
	case providers.OutcomeOf(refused) == providers.Rejected:
		return h, err
	default:
		return h, refused
	}
}

// place opens a store and says what goes there.
func (rs *Rotations) place(ctx context.Context, j *job, p Placement) (providers.Store, providers.Version, error) {
	c, err := rs.bind(ctx, j)
	if err != nil {
		return nil, providers.Version{}, err
	}
	s, kind, err := rs.systems.openStore(ctx, p.Store)
	if err != nil {
		return nil, providers.Version{}, err
	}
	if wait := rs.quotas.take(p.Store, j.ID+"/"+p.Store+"/"+p.Path, kind.Traits.Quota, rs.db.Tick()); wait > 0 {
		return nil, providers.Version{}, &quotaError{wait: wait, store: p.Store}
	}
	return s, providers.Version{Credential: j.Credential, Rotation: c.New.Rotation, Generation: c.New.Generation, Fields: c.New.Fields}, nil
}

// publish is E4 for one store.
func (rs *Rotations) publish(ctx context.Context, j *job, index int) (res result, err error) {
	w := &j.work
	p := w.Places[index]
	s, v, err := rs.place(ctx, j, p.Placement)
	if err != nil {
		return res, err
	}
	prior := p.Prior
	if w.Back || w.Reread {
		served, err := s.Read(ctx, p.Path)
		if err != nil {
			return res, err
		}
		ours := served.Rotation == v.Rotation && served.Fields != nil && served.Fields.Equal(v.Fields)
		for _, f := range j.values {
			ours = ours || served.Fields != nil && served.Fields.Equal(f)
		}
		if !ours && !w.Reread && served.Version != "" {
			return res, fault.New(fault.ErrStale, "drift", "store %s serves a value at %.200q that Rotunda did not put there: somebody else has changed it", p.Store, p.Path)
		}
		prior = served.Version
	}
	res.version, err = s.Publish(ctx, p.Path, v, prior)
	if err == nil && res.version == "" {
		err = fmt.Errorf("store %s published a version without a name", p.Store)
	}
	if err == nil {
		res.detail = map[string]any{"version": clip(res.version)}
	}
	return res, err
}

// usage is the evidence on all values that are to end: one that is used counts for all.
func usage(ctx context.Context, t providers.Target, c providers.Change, j *job) (sum providers.Evidence, err error) {
	sum.Known = true
	for _, o := range j.work.Olds {
		if o.Ended {
			continue
		}
		e, err := t.Usage(ctx, c, j.filled(o.Held))
		if err != nil {
			return providers.Evidence{}, err
		}
		sum.Known = sum.Known && e.Known
		sum.Sessions += e.Sessions
		if e.LastUsed.After(sum.LastUsed) {
			sum.LastUsed = e.LastUsed
		}
		sum.Source = e.Source
	}
	return sum, nil
}

func evidenceDetail(j *job) map[string]any {
	e := j.Evidence
	if !e.Known {
		return map[string]any{"evidence": "unknown"}
	}
	d := map[string]any{"evidence": e.Source, "sessions": e.Sessions}
	if !e.LastUsed.IsZero() {
		d["last_used"] = e.LastUsed.UTC().Format(time.RFC3339)
	}
	return d
}
