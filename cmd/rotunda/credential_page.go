package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func stepWord(s rotundav1.RotationStep) string { return word(s.String(), "ROTATION_STEP_") }

func outcomeWord(r *rotundav1.Rotation) string {
	return strings.ReplaceAll(word(r.GetOutcome().String(), "ROTATION_OUTCOME_"), "_", " ")
}

// driftText says what no longer agrees; empty when all does.
func driftText(d rotundav1.Drift) string {
	switch d {
	case rotundav1.Drift_DRIFT_STORE:
		return "store: a store serves another value than ours; the target accepts ours"
	case rotundav1.Drift_DRIFT_TARGET:
		return "target: the stores serve our value, and the target does not accept it"
	case rotundav1.Drift_DRIFT_BOTH:
		return "both: a store serves another value, and the target does not accept ours"
	case rotundav1.Drift_DRIFT_LABEL:
		return "label: a store serves our value under another version than the one we set"
	case rotundav1.Drift_DRIFT_MARKER:
		return "marker: the target says that somebody else set its value"
	default:
		return ""
	}
}

// driftHelp says what to type.
func (p *page) driftHelp(x *rotundav1.Credential) {
	if x.GetDrift() == rotundav1.Drift_DRIFT_UNSPECIFIED {
		return
	}
	p.line("What to do")
	p.line("  %s  # find who changed it", p.cli.suggest("audit list --resource", "credentials/"+x.GetName()))
	p.line("  %s  # a new value everywhere, over what is there", p.cli.suggest("credential rotate", x.GetName())+" --overwrite --watch")
}

// probed shows what was compared.
func (p *page) probed(res *rotundav1.ProbeCredentialResponse) {
	x := res.GetCredential()
	head := firstOf(driftText(x.GetDrift()), "all agree")
	if !res.GetComplete() {
		head = "not everything could be asked; so far as it is known, " + head
	}
	p.line("%s: %s", x.GetName(), head)
	p.fact("drift", x.GetDriftNote())
	p.fact("target", strings.Trim(res.GetTarget()+": "+res.GetTargetError(), ": "))
	for _, st := range res.GetStores() {
		text := st.GetStore() + " " + st.GetPath() + " serves " + st.GetServes()
		if st.GetVersion() != "" {
			text += ", version " + st.GetVersion()
		}
		if st.GetRecorded() != "" && st.GetRecorded() != st.GetVersion() {
			text += ", we put version " + st.GetRecorded()
		}
		p.fact("store", strings.TrimRight(text+"; "+strings.Trim(st.GetNote()+"; "+st.GetError(), "; "), "; "))
	}
	p.driftHelp(x)
}

func (p *page) credentials(list []*rotundav1.Credential) {
	if len(list) == 0 {
		p.line("there are no credentials: %s makes one", p.cli.command("credential create -f FILE"))
		return
	}
	rows := make([][]string, len(list))
	for i, x := range list {
		remark := x.GetReason()
		if d, _, _ := strings.Cut(driftText(x.GetDrift()), ":"); d != "" {
			remark = strings.Trim("drift: "+d+"; "+remark, "; ")
		}
		rotated := "never"
		if x.GetRotatedAt() != nil {
			rotated = p.when(x.GetRotatedAt())
		}
		rows[i] = []string{
			x.GetName(), word(x.GetState().String(), "CREDENTIAL_STATE_"), x.GetSpec().GetTarget(), x.GetSpec().GetStrategy(),
			formatInt(x.GetCurrent()), rotated, nextText(p, x), remark,
		}
	}
	p.table([]string{"NAME", "STATE", "TARGET", "STRATEGY", "VALUE", "ROTATED", "NEXT", "REMARK"}, rows)
}

func nextText(p *page, x *rotundav1.Credential) string {
	if x.GetNextAt() == nil {
		return "when asked"
	}
	return p.when(x.GetNextAt())
}

// until writes an instant as the end of something: "2026-11-23 02:00Z (in 23h)".
func until(p *page, t *timestamppb.Timestamp) string {
	if t == nil {
		return "a person says so"
	}
	text := stamp(t.AsTime())
	if left := t.AsTime().Sub(p.now); left >= time.Second {
		text += " (in " + roughly(left) + ")"
	}
	return text
}

// inZone writes an instant in the schedule's zone, if that is not UTC.
func inZone(t *timestamppb.Timestamp, zone string) string {
	if zone == "" || t == nil {
		return ""
	}
	loc, err := time.LoadLocation(zone)
	if err != nil || loc == time.UTC {
		return ""
	}
	return "; " + t.AsTime().In(loc).Format("Mon 2006-01-02 15:04 MST") + " in " + zone
}

// credential shows a credential; last is its last rotation, when none is under way.
func (p *page) credential(res *rotundav1.GetCredentialResponse, last *rotundav1.Rotation) {
	x, s := res.GetCredential(), res.GetCredential().GetSpec()
	head := x.GetName() + "  " + word(x.GetState().String(), "CREDENTIAL_STATE_")
	if x.GetReason() != "" {
		head += ": " + x.GetReason()
	}
	p.line("%s", head)
	p.fact("target", strings.TrimSpace(s.GetTarget()+"  "+s.GetStrategy()))
	p.values(res)
	p.schedule(x)
	if r := res.GetRotation(); r != nil {
		p.fact("under way", "rotation "+r.GetId()+" at "+stepWord(r.GetStep())+": "+runText(p, r))
	}
	if last != nil {
		p.fact("last", outcomeWord(last)+took(last)+"; "+causeText(last))
		p.oldUse(last.GetEvidence())
	}
	p.oldUse(res.GetRotation().GetEvidence())
	if x.GetTampered() {
		p.fact("tampered", "somebody else than Rotunda changed its row in the database: it is used for nothing")
	}
	drift := firstOf(driftText(x.GetDrift()), "none")
	switch {
	case x.GetDrift() != rotundav1.Drift_DRIFT_UNSPECIFIED:
		drift += ", since " + p.when(x.GetDriftSince())
	case x.GetProbedAt() != nil:
		drift += ", looked at " + p.when(x.GetProbedAt())
	default:
		drift = "not looked at yet"
	}
	p.fact("drift", drift)
	p.fact("", x.GetDriftNote())
	p.placements(res)
	p.fact("params", formatMetadata(s.GetParams()))
	p.fact("fields", formatMetadata(s.GetFields()))
	p.fact("labels", formatMetadata(s.GetLabels()))
	p.fact("tells", strings.Join(s.GetNotify(), " "))
	if r := res.GetRotation(); r.GetStep() == rotundav1.RotationStep_ROTATION_STEP_FAILED {
		p.decide(r)
	} else {
		p.driftHelp(x)
	}
}

// values shows the versions that are not yet retired.
func (p *page) values(res *rotundav1.GetCredentialResponse) {
	shown := false
	for _, v := range res.GetVersions() {
		account := ""
		if v.GetAccount() != "" {
			account = ", account " + v.GetAccount()
		}
		if v.GetTargetId() != "" {
			account += ", id " + v.GetTargetId()
		}
		about := "generation " + formatInt(v.GetGeneration()) + account
		switch v.GetState() {
		case rotundav1.VersionState_VERSION_STATE_CURRENT:
			p.fact("current", about+", since "+p.when(v.GetSince()))
			shown = true
		case rotundav1.VersionState_VERSION_STATE_PREVIOUS:
			text := about + ", still accepted"
			if v.GetGraceEndsAt() != nil {
				text += ", ends " + p.when(v.GetGraceEndsAt())
			}
			p.fact("previous", text)
		case rotundav1.VersionState_VERSION_STATE_STAGED:
			p.fact("staged", about+", no consumer reads it yet")
		default:
		}
	}
	if !shown {
		p.fact("current", "none yet: the first rotation makes it")
	}
}

func (p *page) schedule(x *rotundav1.Credential) {
	s := x.GetSpec()
	p.fact("schedule", scheduleText(s.GetSchedule()))
	if len(s.GetWindows()) > 0 {
		p.fact("windows", strings.Join(s.GetWindows(), "; ")+" "+firstOf(s.GetSchedule().GetZone(), "UTC")+"; a missed one is "+missedText(s.GetMissed()))
	}
	next := nextText(p, x) + inZone(x.GetNextAt(), s.GetSchedule().GetZone())
	p.fact("next", next)
	if x.GetRotatedAt() != nil {
		p.fact("rotated", p.when(x.GetRotatedAt())+inZone(x.GetRotatedAt(), s.GetSchedule().GetZone()))
	}
	grace := length(s.GetGrace(), "0s")
	if s.GetQuiet().AsDuration() > 0 {
		grace += ", or once the old value was unused for " + length(s.GetQuiet(), "")
	}
	p.fact("grace", grace)
}

func missedText(rule string) string {
	switch rule {
	case "skip":
		return "left out until the next time"
	case "alarm":
		return "left to a person, and an alarm says so"
	default:
		return "made up for in the next window"
	}
}

func (p *page) oldUse(e *rotundav1.Evidence) {
	switch {
	case e == nil:
	case !e.GetKnown():
		p.fact("evidence", "the target can't tell whether the old value is used")
	default:
		text := fmt.Sprintf("the old value has %s", counted(int64(e.GetSessions()), "session"))
		if e.GetLastUsed() != nil {
			text += ", and was last used " + p.when(e.GetLastUsed())
		}
		p.fact("evidence", text+" ("+e.GetSource()+")")
	}
}

func (p *page) placements(res *rotundav1.GetCredentialResponse) {
	states := map[string]*rotundav1.PlacementState{}
	for _, st := range res.GetStores() {
		states[st.GetStore()+"\x00"+st.GetPath()] = st
	}
	for i, pl := range res.GetCredential().GetSpec().GetStores() {
		label := "stores"
		if i > 0 {
			label = ""
		}
		text := pl.GetStore() + " " + pl.GetPath()
		if st := states[pl.GetStore()+"\x00"+pl.GetPath()]; st.GetVersion() != "" {
			text += ": version " + st.GetVersion() + ", generation " + formatInt(st.GetGeneration())
		} else {
			text += ": nothing of ours yet"
		}
		p.fact(label, text)
	}
}

// runText says in words where a rotation is.
func runText(p *page, r *rotundav1.Rotation) string {
	text := map[rotundav1.RotationStep]string{
		rotundav1.RotationStep_ROTATION_STEP_PLAN:    "target and stores are asked, and the new value is made and sealed here",
		rotundav1.RotationStep_ROTATION_STEP_ISSUE:   "the new value is sealed here; the target is made to accept it",
		rotundav1.RotationStep_ROTATION_STEP_VERIFY:  "the target said yes; a login proves it",
		rotundav1.RotationStep_ROTATION_STEP_PUBLISH: "proven; the stores are made to serve it",
		rotundav1.RotationStep_ROTATION_STEP_REVOKE:  "the old value is ended",
	}[r.GetStep()]
	if r.GetBack() {
		text = map[rotundav1.RotationStep]string{
			rotundav1.RotationStep_ROTATION_STEP_PUBLISH: "the stores are made to serve the old value again",
			rotundav1.RotationStep_ROTATION_STEP_REVOKE:  "the new value is ended",
		}[r.GetStep()]
		text = firstOf(text, "it is being rolled back")
	}
	switch r.GetStep() {
	case rotundav1.RotationStep_ROTATION_STEP_GRACE:
		return "consumers read generation " + formatInt(r.GetGeneration()) + "; the old value is accepted until " + until(p, r.GetGraceEndsAt())
	case rotundav1.RotationStep_ROTATION_STEP_DONE:
		return outcomeWord(r) + took(r)
	case rotundav1.RotationStep_ROTATION_STEP_FAILED:
		return "stopped at " + stepWord(r.GetFailedStep()) + ": " + r.GetError()
	default:
	}
	if r.GetError() != "" && r.GetAttempt() > 0 {
		text += fmt.Sprintf(" (try %d did not succeed: %s", r.GetAttempt(), r.GetError())
		if r.GetNextAt() != nil {
			text += "; the next is " + p.when(r.GetNextAt())
		}
		text += ")"
	}
	return text
}

func took(r *rotundav1.Rotation) string {
	if r.GetStartedAt() == nil || r.GetEndedAt() == nil {
		return ""
	}
	return ", after " + formatDuration(r.GetEndedAt().AsTime().Sub(r.GetStartedAt().AsTime()).Round(10*time.Millisecond))
}

func (p *page) rotation(r *rotundav1.Rotation) {
	p.line("%s  %s  generation %d  %s", r.GetId(), r.GetCredential(), r.GetGeneration(), stepWord(r.GetStep()))
	p.fact("state", runText(p, r))
	p.fact("cause", causeText(r))
	p.oldUse(r.GetEvidence())
	if r.GetStartedAt() != nil {
		p.fact("begun", p.when(r.GetStartedAt()))
	}
	if r.GetStep() == rotundav1.RotationStep_ROTATION_STEP_FAILED {
		p.decide(r)
	}
}

func causeText(r *rotundav1.Rotation) string {
	text := word(r.GetCause().String(), "ROTATION_CAUSE_")
	if r.GetActor() != "" {
		text += ", by " + r.GetActor()
	}
	if r.GetReason() != "" {
		text += ": " + r.GetReason()
	}
	if r.GetIncident() != "" {
		text += " (incident " + r.GetIncident() + ")"
	}
	return text
}

// decide says what to type about a rotation that failed.
func (p *page) decide(r *rotundav1.Rotation) {
	p.fact("reason", strings.TrimSpace(r.GetErrorReason()))
	p.line("What to do")
	retry := "once you did what the error says: goes on with the same value"
	inStore := r.GetFailedStep() == rotundav1.RotationStep_ROTATION_STEP_PLAN || r.GetFailedStep() == rotundav1.RotationStep_ROTATION_STEP_PUBLISH
	if inStore && (r.GetErrorReason() == "drift" || r.GetErrorReason() == "path_in_use") {
		retry = "once you know who wrote there: goes on, and replaces it"
	}
	for _, o := range []struct{ verb, why string }{
		{"retry", retry},
		{"rollback", "consumers keep the old value, or read it again; the new one is ended"},
		{"abandon", "ends it as things are, and tells what is left for you to clean up"},
	} {
		if o.verb == "rollback" && (r.GetBack() || r.GetFailedStep() == rotundav1.RotationStep_ROTATION_STEP_REVOKE) {
			continue // there is no way back any more
		}
		p.line("  %s  # %s", p.cli.suggest("credential "+o.verb, r.GetCredential()), o.why)
	}
}

func (p *page) rotations(list []*rotundav1.Rotation, names bool) {
	if len(list) == 0 {
		p.line("there was no rotation")
		return
	}
	head := []string{"BEGUN", "CREDENTIAL", "VALUE", "CAUSE", "STATE", "TOOK", "BY", "REMARK"}
	rows := make([][]string, len(list))
	for i, r := range list {
		state, lasted := stepWord(r.GetStep()), ""
		if r.GetStep() == rotundav1.RotationStep_ROTATION_STEP_DONE {
			state = outcomeWord(r)
			lasted = strings.TrimPrefix(took(r), ", after ")
		}
		remark := r.GetReason()
		if r.GetError() != "" && r.GetStep() != rotundav1.RotationStep_ROTATION_STEP_DONE {
			remark = strings.Trim(remark+"; "+r.GetError(), "; ")
		}
		begun := ""
		if r.GetStartedAt() != nil {
			begun = p.when(r.GetStartedAt())
		}
		rows[i] = []string{begun, r.GetCredential(), formatInt(r.GetGeneration()), word(r.GetCause().String(), "ROTATION_CAUSE_"), state, lasted, r.GetActor(), remark}
	}
	if !names {
		head = slices.Delete(head, 1, 2)
		for i := range rows {
			rows[i] = slices.Delete(rows[i], 1, 2)
		}
	}
	p.table(head, rows)
}

func (p *page) plannedEffects(res *rotundav1.PlanCredentialResponse) {
	head := "generation " + formatInt(res.GetGeneration()) + " by " + res.GetStrategy()
	if res.GetNextAt() != nil {
		head += ", by its schedule " + p.when(res.GetNextAt())
	}
	p.line("%s", head)
	rows := make([][]string, len(res.GetEffects()))
	for i, e := range res.GetEffects() {
		rows[i] = []string{e.GetEffect(), stepWord(e.GetStep()), e.GetWhere(), e.GetWhat()}
	}
	p.table([]string{"EFFECT", "STEP", "WHERE", "WHAT"}, rows)
	var notice []note
	var waits []note
	blocked := false
	for _, e := range res.GetEffects() {
		if e.GetConsumers() != "" {
			notice = append(notice, note{e.GetEffect(), e.GetConsumers()})
		}
		if e.GetWaits() != "" {
			waits = append(waits, note{e.GetEffect() + " waits", e.GetWaits()})
		}
		blocked = blocked || e.GetBlocked() != ""
	}
	p.notes(waits)
	p.line("")
	if len(notice) == 0 {
		p.line("Consumers notice nothing.")
	} else {
		p.line("What consumers notice")
		p.notes(notice)
	}
	if len(res.GetObstacles()) > 0 || blocked {
		p.line("")
		p.line("What stands in its way")
		for _, o := range res.GetObstacles() {
			p.hangTo(p.prose(), "  ", o)
		}
		var at []note
		for _, e := range res.GetEffects() {
			at = append(at, note{e.GetEffect(), e.GetBlocked()})
		}
		p.notes(at)
	}
}

func (p *page) forecast(res *rotundav1.ForecastResponse, days int32) {
	p.line("%s of %s in the next %d days", counted(res.GetRotations(), "rotation"), counted(res.GetCredentials(), "credential"), days)
	if n := res.GetPaused(); n > 0 {
		p.fact("paused", counted(n, "credential"))
	}
	if n := res.GetUnscheduled(); n > 0 {
		p.fact("unscheduled", counted(n, "credential")+": rotated only when asked")
	}
	if busiest := res.GetPeak(); busiest.GetRotations() > 0 {
		p.fact("busiest hour", stamp(busiest.GetHour().AsTime())+" with "+counted(busiest.GetRotations(), "rotation"))
	}
	if len(res.GetSystems()) == 0 {
		return
	}
	rows := make([][]string, len(res.GetSystems()))
	for i, s := range res.GetSystems() {
		state, quota := "ok", "none known"
		if s.GetQuota() > 0 {
			quota = thousands(s.GetQuota()) + " an hour"
			if s.GetPeak() > s.GetQuota() {
				state = "fail"
				quota += ", too few for " + counted(s.GetHoursOver(), "hour")
			}
		}
		peak := ""
		if s.GetPeakHour() != nil {
			peak = stamp(s.GetPeakHour().AsTime())
		}
		rows[i] = []string{state, s.GetSort() + " " + s.GetName(), thousands(s.GetRotations()), thousands(s.GetPeak()), peak, quota}
	}
	p.line("")
	p.table([]string{"STATE", "WHERE", "ROTATIONS", "MOST IN AN HOUR", "WHEN", "QUOTA"}, rows)
	p.weeks(res)
}

// weeks draws how many rotations each week has.
func (p *page) weeks(res *rotundav1.ForecastResponse) {
	if len(res.GetHours()) == 0 {
		return
	}
	const week = 7 * day
	from := res.GetHours()[0].GetHour().AsTime().Truncate(day)
	var counts []int64
	for _, h := range res.GetHours() {
		i := int(h.GetHour().AsTime().Sub(from) / week)
		if i < 0 || i > 60 {
			continue
		}
		for len(counts) <= i {
			counts = append(counts, 0)
		}
		counts[i] += h.GetRotations()
	}
	most := slices.Max(counts)
	p.line("")
	p.line("By week")
	for i, n := range counts {
		p.line("  %s  %-40s  %s", from.Add(time.Duration(i)*week).Format("2006-01-02"), strings.Repeat("#", int((n*40+most-1)/max(most, 1))), thousands(n))
	}
}
