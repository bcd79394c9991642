package format

import (
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// What cef and ocsf say for people about a record. All of it is derived from
// the record, and checked when it is read.

// level is how much an event matters to who watches.
type level int

const (
	routine   level = iota
	withdrawn       // something was taken away, in good order
	refused         // an attempt that was denied, or that failed
)

var levels = [...]struct {
	cef        string // 0 to 10
	severityID string // OCSF severity_id
	severity   string
}{
	routine:   {"2", "1", "Informational"},
	withdrawn: {"4", "2", "Low"},
	refused:   {"6", "3", "Medium"},
}

// withdrawals are the verbs of level withdrawn. A verb is what an action has
// behind its last dot, up to the first underscore.
var withdrawals = map[string]bool{
	"revoke": true, "revoked": true, "delete": true, "destroy": true, "erase": true, "prune": true, "suspend": true, "disable": true,
	"release": true, "override": true, "remove": true,
}

func levelOf(r *trail.Record) level {
	switch {
	case r.Outcome == trail.Denied || r.Outcome == trail.Failed:
		return refused
	case withdrawals[verbOf(r.Action)]:
		return withdrawn
	}
	return routine
}

// kindOf returns what an action is about: keyset for keyset.create.
func kindOf(action string) string {
	kind, _, _ := strings.Cut(action, ".")
	return kind
}

// verbOf returns the verb of an action: revoke for keyset.revoke_key.
func verbOf(action string) string {
	verb := action[strings.LastIndexByte(action, '.')+1:]
	verb, _, _ = strings.Cut(verb, "_")
	return verb
}

// title is a record's name for people: "keyset create", or "keyset create: denied".
func title(r *trail.Record) string {
	t := words.Replace(r.Action)
	if r.Outcome != trail.OK {
		t += ": " + r.Outcome
	}
	return t
}

var words = strings.NewReplacer(".", " ", "_", " ")

func unixMicro(us int64) time.Time { return time.UnixMicro(us).UTC() }
