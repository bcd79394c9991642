package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// recordOf makes what the API sends a record of the log origin.
func recordOf(origin string, m *rotundav1.Record) (trail.Record, error) {
	e := m.GetEvent()
	r := trail.Record{
		Origin: origin, Index: e.GetIndex(),
		Event: trail.Event{
			ID: e.GetId(), Time: time.UnixMicro(m.GetTimeMicros()).UTC(), Actor: e.GetActor(), Action: e.GetAction(), Resource: e.GetResource(),
			Partner: e.GetPartner(), Outcome: e.GetOutcome(), Reason: e.GetReason(), RequestID: e.GetRequestId(), Address: e.GetAddress(),
			Detail: m.GetDetail(), Count: max(e.GetCount(), 1), Intent: e.GetIntent(), Salt: m.GetSalt(), Checks: m.GetChecks(),
		},
	}
	var err error
	if r.Hash, err = hashOf(m.GetHash()); err != nil {
		return r, fmt.Errorf("event %d: its leaf hash: %w", r.Index, err)
	}
	for name, raw := range m.GetErased() {
		f, ok := trail.ParseField(name)
		if !ok {
			return r, fmt.Errorf("event %d has an erased field %.40q, which this program does not know: use a newer one", r.Index, name)
		}
		if r.Erased[f], err = hashOf(raw); err != nil {
			return r, fmt.Errorf("event %d: the commitment of %v: %w", r.Index, f, err)
		}
	}
	return r, nil
}

func gapOf(m *rotundav1.Gap) (bundle.Gap, error) {
	g := bundle.Gap{Begin: m.GetBegin(), End: m.GetEnd(), Why: m.GetWhy(), Entries: m.GetEntries()}
	var err error
	if g.Hashes, err = hashesOf(m.GetHashes()); err != nil {
		return g, fmt.Errorf("the gap %d to %d: %w", g.Begin, g.End, err)
	}
	return g, nil
}

func headOf(m *rotundav1.ExportHead) (bundle.Head, error) {
	h := bundle.Head{
		Origin: m.GetOrigin(), Checkpoint: m.GetCheckpoint(), Keys: m.GetKeys(), Handovers: m.GetHandovers(),
		Begin: m.GetBegin(), End: m.GetEnd(), Filter: m.GetFilter(), Evidence: m.GetEvidence(),
	}
	var err error
	if h.Left, err = hashesOf(m.GetLeft()); err != nil {
		return h, err
	}
	h.Right, err = hashesOf(m.GetRight())
	return h, err
}

func hashOf(raw []byte) (h tlog.Hash, err error) {
	if len(raw) != tlog.HashSize {
		return h, fmt.Errorf("the server sent a hash of %d bytes, and one has %d", len(raw), tlog.HashSize)
	}
	copy(h[:], raw)
	return h, nil
}

func hashesOf(all [][]byte) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(all))
	for i, raw := range all {
		var err error
		if out[i], err = hashOf(raw); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// conditions is a filter in the form that bundles give it.
func conditions(f *rotundav1.Filter) map[string]string {
	out := map[string]string{
		"actor": f.GetActor(), "action": f.GetAction(), "resource": f.GetResource(), "partner": f.GetPartner(),
		"outcome": f.GetOutcome(), "request_id": f.GetRequestId(), "address": f.GetAddress(),
	}
	for key, t := range map[string]*timestamppb.Timestamp{"since": f.GetSince(), "until": f.GetUntil()} {
		if t != nil {
			out[key] = t.AsTime().Format(time.RFC3339Nano)
		}
	}
	maps.DeleteFunc(out, func(_, value string) bool { return value == "" })
	return out
}

// filterOf is the inverse of conditions.
func filterOf(conditions map[string]string) (*rotundav1.Filter, error) {
	f := &rotundav1.Filter{
		Actor: conditions["actor"], Action: conditions["action"], Resource: conditions["resource"], Partner: conditions["partner"],
		Outcome: conditions["outcome"], RequestId: conditions["request_id"], Address: conditions["address"],
	}
	for key, to := range map[string]**timestamppb.Timestamp{"since": &f.Since, "until": &f.Until} {
		if conditions[key] == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339Nano, conditions[key])
		if err != nil {
			return nil, fmt.Errorf("its %s %.40q is no time", key, conditions[key])
		}
		*to = timestamppb.New(t)
	}
	return f, nil
}

// sameConditions reports whether two filters select the same events.
func sameConditions(a, b map[string]string) bool {
	fa, err1 := filterOf(a)
	fb, err2 := filterOf(b)
	return errors.Join(err1, err2) == nil && maps.Equal(conditions(fa), conditions(fb))
}

// describe writes a filter for people: "action=keyset. since=2026-01-01T00:00:00Z".
func describe(conditions map[string]string) string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(conditions)) {
		if conditions[key] != "" {
			value := conditions[key]
			if key == "since" || key == "until" {
				value = strings.Replace(value, ".000000Z", "Z", 1)
			}
			all = append(all, key+"="+value)
		}
	}
	return strings.Join(all, " ")
}

// cutNote splits a signed note into its text and its signatures. A note that has
// none is all text.
func cutNote(signed string) (text, signatures string) {
	text, signatures, ok := strings.Cut(signed, "\n\n")
	if !ok {
		return signed, ""
	}
	return text + "\n", signatures
}

// signersOf lists the names in a note's signature lines, unverified.
func signersOf(signed string) []string {
	_, sigs := cutNote(signed)
	var out []string
	for line := range strings.Lines(sigs) {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "— "), " "); ok {
			out = append(out, name)
		}
	}
	return out
}
