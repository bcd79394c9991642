package rotation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/providers"
)

// PlannedEffect is one thing that a rotation would do.
type PlannedEffect struct {
	Step    Step
	Effect  string // "E0" to "E8"
	System  string // "targets/orders-db", "stores/vault-prod"; empty: Rotunda itself
	Does    string // what is called, and on what
	Sees    string // what consumers notice; empty: nothing
	Waits   string // what it waits for, and how long; empty: nothing
	Blocked string // why the rotation would stop here; empty: nothing is known
}

// RotationPlan is what the next rotation would do. Making it changes nothing.
type RotationPlan struct {
	Credential string
	Strategy   providers.Strategy
	Generation int64     // that it would make
	Account    string    // whose value it would be; empty: the target could not be asked
	NextAt     time.Time // when its schedule has to be looked at; zero: never
	Effects    []PlannedEffect
	Blocked    bool // one of the effects is
}

// Plan says what the next rotation of a credential would do, in its order. It asks the target and
// the stores as they are now.
func (cs *Credentials) Plan(ctx context.Context, name string) (*RotationPlan, error) {
	k, err := cs.know(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("plan a rotation of credential %q: %w", clip(name), err)
	}
	ctx, cancel := context.WithTimeout(ctx, preflightTimeout)
	defer cancel()
	p := &planner{known: k, plan: &RotationPlan{Credential: name, Strategy: k.c.Strategy, Generation: k.c.Generation + 1, NextAt: k.c.NextAt}}
	cs.planTarget(ctx, p)
	cs.planStores(ctx, p)
	p.planEnd()
	for _, e := range p.plan.Effects {
		p.plan.Blocked = p.plan.Blocked || e.Blocked != ""
	}
	return p.plan, nil
}

type planner struct {
	*known
	plan   *RotationPlan
	kind   providers.TargetKind
	staged []string // places with a staged copy
	later  []PlannedEffect
}

func (p *planner) add(e PlannedEffect) { p.plan.Effects = append(p.plan.Effects, e) }

func (p *planner) targetName() string { return "targets/" + p.c.Target }

// planTarget plans E0, E2 and E3. E1 comes in between, from planStores.
func (cs *Credentials) planTarget(ctx context.Context, p *planner) {
	first := PlannedEffect{Step: StepPlan, Effect: "E0", Does: fmt.Sprintf("the intent, and generation %d sealed, are made durable with us, in one transaction with the event rotation.run", p.plan.Generation)}
	if p.failed != "" {
		first.Blocked = "rotation " + p.failed + " failed and waits for a person: retry it, roll it back or abandon it"
	}
	if p.running != nil {
		first.Waits = fmt.Sprintf("for the end of rotation %s, which is at %s", p.running.ID, p.running.Step)
		if !p.running.GraceEndsAt.IsZero() {
			first.Waits += ", until " + p.running.GraceEndsAt.Format(time.RFC3339) + " at the latest"
		}
	}
	apply := PlannedEffect{Step: StepIssue, Effect: "E2", System: p.targetName()}
	t, kind, err := cs.systems.openTarget(ctx, p.c.Target)
	p.kind = kind
	var prepared providers.Change
	if err == nil {
		prepared, err = t.Prepare(ctx, p.change())
	}
	if err != nil {
		first.Blocked = strings.TrimPrefix(first.Blocked+"; ", "; ") + err.Error()
	}
	p.plan.Account = prepared.New.Account
	account := prepared.New.Account
	if account == "" {
		account = "its account"
	}
	if kind.Traits.Issues {
		first.Does = fmt.Sprintf("the intent of generation %d and the ids that the target has now are made durable with us, in one transaction with the event rotation.run", p.plan.Generation)
		apply.Does = fmt.Sprintf("the target is asked for a new value of %s, which is sealed with us at once; what an earlier try left is deleted before, by its id", account)
	} else {
		apply.Does = fmt.Sprintf("the target is made to accept generation %d for %s", p.plan.Generation, account)
	}
	switch p.c.Strategy {
	case providers.Replace:
		if p.current != nil {
			apply.Sees = fmt.Sprintf("generation %d is refused from now on, until consumers have read the new value; connections that are open stay", p.current.Generation)
		}
	case providers.Alternate:
		apply.Waits = "nothing: " + account + " is not the account that consumers use now"
	case providers.Dual:
		apply.Waits = "nothing: the current value stays accepted"
	}
	p.add(first)
	p.later = []PlannedEffect{apply, {Step: StepVerify, Effect: "E3", System: p.targetName(), Does: "a login with the new value, as a consumer does it, over a connection of its own", Waits: "a target that spreads changes slowly is asked again for a while"}}
}

// planStores plans E1, and E4 after what is between.
func (cs *Credentials) planStores(ctx context.Context, p *planner) {
	var stage, publish []PlannedEffect
	for _, at := range p.placed {
		system := "stores/" + at.Store
		e := PlannedEffect{Step: StepPublish, Effect: "E4", System: system, Sees: "consumers that read " + at.Path + " get the new value"}
		prior := "nothing is served"
		if at.Version != "" {
			prior = "version " + at.Version + " is served"
		}
		e.Does = fmt.Sprintf("generation %d is published at %s, if %s", p.plan.Generation, at.Path, prior)
		st, kind, err := cs.systems.openStore(ctx, at.Store)
		var served providers.Served
		if err == nil {
			served, err = st.Read(ctx, at.Path)
		}
		if err != nil {
			e.Blocked = err.Error()
		} else {
			e.Blocked = p.stops(at, served)
		}
		if kind.Traits.Stages {
			stage = append(stage, PlannedEffect{Step: StepIssue, Effect: "E1", System: system, Does: "a second copy of the new value is staged at " + at.Path + ", which no consumer reads"})
			p.staged = append(p.staged, at.Store+" at "+at.Path)
		}
		publish = append(publish, e)
	}
	if p.kind.Traits.Issues { // there is nothing to stage before the target has made it
		p.later = slices.Insert(p.later, 1, stage...)
	} else {
		p.later = append(stage, p.later...)
	}
	p.plan.Effects = append(append(p.plan.Effects, p.later...), publish...)
}

// planEnd plans what follows the publication.
func (p *planner) planEnd() {
	if len(p.c.Notify) > 0 {
		p.add(PlannedEffect{Step: StepPublish, Effect: "E5", Does: "webhooks credential.rotated are queued for " + strings.Join(p.c.Notify, ", ") + ", in the transaction of the publication"})
	}
	var olds []string
	for _, v := range p.versions {
		if v.State == Staged {
			continue
		}
		old := fmt.Sprintf("generation %d", v.Generation)
		if v.Account != "" {
			old += " of " + v.Account
		}
		if v.TargetID != "" {
			old += " (" + v.TargetID + ")"
		}
		olds = append(olds, old)
	}
	if len(olds) > 0 && p.c.Strategy != providers.Replace {
		grace := PlannedEffect{Step: StepGrace, Effect: "E6", System: p.targetName(), Does: "the target is asked for evidence that " + olds[0] + " is no longer used, and told to end it by itself at the end of the grace, where it can",
			Waits: "for the grace of " + p.c.Grace.String()}
		if p.c.Quiet > 0 {
			grace.Waits += ", or until it was unused for " + p.c.Quiet.String()
		}
		p.add(grace)
		p.add(PlannedEffect{Step: StepRevoke, Effect: "E7", System: p.targetName(), Does: "ended, by their recorded ids: " + strings.Join(olds, ", "), Sees: "consumers that have not read the new value are refused"})
	}
	last := PlannedEffect{Step: StepDone, Effect: "E8", Does: "sealed values that are no longer accepted are destroyed with us, and the event rotation.run ends"}
	if len(p.staged) > 0 {
		last.Does = "staged copies are removed from " + strings.Join(p.staged, ", ") + "; " + last.Does
	}
	p.add(last)
}
