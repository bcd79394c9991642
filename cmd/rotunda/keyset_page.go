package main

import (
	"strconv"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func stateWord(s rotundav1.KeyState) string { return word(s.String(), "KEY_STATE_") }

// keyset shows everything that is known about a keyset and its keys.
func (p *page) keyset(k *rotundav1.Keyset) {
	p.header(k)
	p.consumers(k)
	p.line("")
	p.line("Keys")
	for _, key := range k.GetKeys() {
		p.key(key)
	}
	if len(k.GetKeys()) == 0 {
		p.line("  none yet")
	}
}

func (p *page) header(k *rotundav1.Keyset) {
	pol, tim := k.GetPolicy(), k.GetTiming()
	p.line("%s  %s  %s", k.GetName(), k.GetIssuer(), k.GetAlgorithm())
	p.field("version", "%d, policy version %d", k.GetVersion(), k.GetPolicyVersion())
	if k.GetCreatedAt() != nil {
		p.field("created", "%s", p.when(k.GetCreatedAt()))
	}
	p.field("rotates", "%s", rotationText(pol.GetRotate()))
	if k.GetNextAt() != nil {
		p.field("next move", "%s", p.when(k.GetNextAt()))
	}
	p.field("tokens", "live up to %s; a longer life is %s", length(pol.GetTokenTtl(), "an unset time"), overlongWord(pol))
	p.field("keys", "are served for %s before they sign, and %s after; max-age %s",
		length(tim.GetPublishAhead(), "an unknown time"), length(tim.GetRetireAfter(), "an unknown time"), length(tim.GetMaxAge(), "unknown"))
	if pol.GetEmergencyTarget() != nil {
		p.field("emergency", "a revoked key may stay accepted for %s", length(pol.GetEmergencyTarget(), ""))
	}
	switch {
	case k.GetFallbackSince() != nil:
		p.field("fallback", "the standby signs since %s: the active key's signer is out of reach", p.when(k.GetFallbackSince()))
	case pol.GetFallback() == rotundav1.Fallback_FALLBACK_STANDBY:
		p.field("fallback", "the standby may sign when the active key's signer is out of reach")
	}
	if pol.GetCdn() {
		p.field("cache", "a shared HTTP cache stands before the consumers")
	}
	p.warnings(k)
}

func (p *page) warnings(k *rotundav1.Keyset) {
	for _, w := range k.GetTiming().GetWarnings() {
		p.field("warning", "%s", w)
	}
}

func (p *page) consumers(k *rotundav1.Keyset) {
	p.line("")
	p.line("Consumers: lead is how long a key is served before it signs; reach, how long a revoked key")
	p.line("stays accepted at most; refusal, how long good new tokens are refused after a fresh key signs.")
	p.consumerTable(nil, k.GetTiming())
}

// consumerTable shows the times of each consumer, and when there is a before,
// how they change.
func (p *page) consumerTable(before, after *rotundav1.Timing) {
	cells := func(t *rotundav1.ProfileTiming) []string {
		if t == nil {
			return []string{"none", "none", "none", "none"}
		}
		return []string{length(t.GetLead(), "unknown"), length(t.GetReachStandby(), "unbounded"), length(t.GetReachFresh(), "unbounded"), length(t.GetRefusalFresh(), "0s")}
	}
	was := map[string]*rotundav1.ProfileTiming{}
	for _, t := range before.GetProfiles() {
		was[t.GetName()] = t
	}
	var rows [][]string
	var notes []note
	add := func(name string, a, b *rotundav1.ProfileTiming) {
		row := []string{name}
		old, now := cells(a), cells(b)
		for i := range now {
			if before == nil {
				row = append(row, now[i])
			} else {
				row = append(row, change(old[i], now[i]))
			}
		}
		rows = append(rows, row)
		notes = append(notes, note{name, b.GetNote()})
	}
	for _, t := range after.GetProfiles() {
		add(t.GetName(), was[t.GetName()], t)
		delete(was, t.GetName())
	}
	for _, t := range before.GetProfiles() {
		if _, gone := was[t.GetName()]; gone {
			add(t.GetName(), t, nil)
		}
	}
	p.table([]string{"CONSUMER", "LEAD", "REACH (STANDBY)", "REACH (FRESH)", "REFUSAL (FRESH)"}, rows)
	p.notes(notes)
}

// key shows a key, what comes next, and why not sooner.
func (p *page) key(k *rotundav1.Key) {
	state := stateWord(k.GetState())
	p.b.WriteString("  " + p.paint(state, state) + spaces(10-len(state)) + clean(k.GetKid()) + "\n")
	p.hang("            ", "since "+p.when(k.GetSince()))
	if k.GetState() == rotundav1.KeyState_KEY_STATE_PENDING && k.GetServedSince() != nil {
		p.hang("            ", "served since "+p.when(k.GetServedSince()))
	}
	if k.GetOrigin() == "imported" {
		p.hang("            ", "imported: "+firstOf(k.GetReason(), "no reason was given"))
	}
	n := k.GetNext()
	if n == nil {
		return
	}
	next := "next: " + stateWord(n.GetState()) + " " + p.when(n.GetAt())
	if n.GetAt() != nil {
		switch late := p.now.Sub(n.GetAt().AsTime()); {
		case late > lateAfter:
			next = "next: " + stateWord(n.GetState()) + ", late: was due " + p.when(n.GetAt())
		case late > 0:
			next = "next: " + stateWord(n.GetState()) + ", due " + p.when(n.GetAt())
		}
	}
	why := n.GetWhy()
	if k.GetState() == rotundav1.KeyState_KEY_STATE_ACTIVE && why != "" {
		// It follows its successor, whose own lines say what that waits for.
		next, why = next+", "+why, ""
	}
	p.hang("            ", next)
	if why != "" {
		p.hang("            ", "why not sooner: "+why)
	}
}

func spaces(n int) string {
	const many = "                "
	return many[:min(max(n, 1), len(many))]
}

func (p *page) keysets(list []*rotundav1.Keyset) {
	rows := make([][]string, len(list))
	for i, k := range list {
		rows[i] = []string{k.GetName(), k.GetAlgorithm(), strconv.FormatInt(k.GetVersion(), 10), rotationText(k.GetPolicy().GetRotate()), p.when(k.GetNextAt()), k.GetIssuer()}
	}
	p.table([]string{"NAME", "ALGORITHM", "VERSION", "ROTATES", "NEXT MOVE", "ISSUER"}, rows)
}

func (p *page) keyTable(list []*rotundav1.Key) {
	rows := make([][]string, len(list))
	for i, k := range list {
		next := ""
		if n := k.GetNext(); n != nil {
			next = stateWord(n.GetState()) + " " + p.when(n.GetAt())
		}
		rows[i] = []string{k.GetKid(), stateWord(k.GetState()), p.when(k.GetSince()), next}
	}
	p.table([]string{"KID", "STATE", "SINCE", "NEXT"}, rows)
}

func (p *page) history(list []*rotundav1.Key) {
	rows := make([][]string, len(list))
	for i, k := range list {
		rows[i] = []string{k.GetKid(), stateWord(k.GetState()), k.GetAlgorithm(), p.when(k.GetActivatedAt()), p.when(k.GetWithdrawnAt()), k.GetReason()}
	}
	p.table([]string{"KID", "STATE", "ALGORITHM", "SIGNED SINCE", "WITHDRAWN", "REASON"}, rows)
}

func (p *page) profiles(list []*rotundav1.ProfileInfo) {
	rows := make([][]string, len(list))
	notes := make([]note, len(list))
	for i, f := range list {
		cache := length(f.GetCache(), "no end")
		if f.GetHonoursMaxAge() {
			cache = "max-age"
		}
		refetch := "no"
		if f.GetRefetchesOnUnknownKid() {
			refetch = "yes"
			if t := f.GetThrottle().AsDuration(); t > 0 {
				refetch = "every " + formatDuration(t)
			}
		}
		t := f.GetTiming()
		rows[i] = []string{f.GetName(), f.GetTitle(), cache, refetch, length(t.GetLead(), "unknown"),
			length(t.GetReachStandby(), "unbounded"), length(t.GetReachFresh(), "unbounded")}
		notes[i] = note{f.GetName(), f.GetNote()}
	}
	p.line("Refetch: whether an unknown kid makes it fetch again. Lead and reach as in `%s keyset show`,", p.cli.program)
	p.line("with a policy of defaults.")
	p.table([]string{"NAME", "CONSUMER", "CACHE", "REFETCH", "LEAD", "REACH (STANDBY)", "REACH (FRESH)"}, rows)
	p.notes(notes)
}
