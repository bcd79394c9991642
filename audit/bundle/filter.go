package bundle

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// Filter tells which events are in a bundle: those that match all of its
// conditions.
type Filter struct {
	since, until     time.Time
	action, resource string
	outcome          string
	committed        [trail.NumFields]string
}

// ParseFilter reads a filter as a bundle gives it. Keys:
//
//	since, until       RFC 3339 times: since ≤ time < until
//	action             whole, or a prefix that ends with "."
//	resource           whole, or a prefix that ends with "/"
//	outcome            ok, denied, started or failed
//	actor, partner, reason, request_id, address   whole
//
// An empty value is no condition. No filter and an empty one let everything in.
func ParseFilter(conditions map[string]string) (Filter, error) {
	var f Filter
	for _, key := range slices.Sorted(maps.Keys(conditions)) {
		value := conditions[key]
		if value == "" {
			continue
		}
		switch key {
		case "since", "until":
			t, err := time.Parse(time.RFC3339Nano, value)
			if err != nil {
				return f, fmt.Errorf("the filter's %s %.40q is no time: it has the form 2026-01-31T00:00:00Z", key, value)
			}
			if key == "since" {
				f.since = t
			} else {
				f.until = t
			}
		case "action":
			f.action = value
		case "resource":
			f.resource = value
		case "outcome":
			f.outcome = value
		default:
			field, ok := trail.ParseField(key)
			if !ok || field == trail.Detail {
				return f, fmt.Errorf("the filter has a condition on %.40q, which this program does not know: what was left out because of it can't be judged", key)
			}
			f.committed[field] = value
		}
	}
	return f, nil
}

// Empty reports whether everything matches.
func (f *Filter) Empty() bool { return *f == Filter{} }

// clear returns the first condition on a leaf's clear fields that it does not
// meet, or "".
func (f *Filter) clear(l *trail.Leaf) string {
	part := func(is, want, sep string) bool {
		return want == "" || is == want || strings.HasSuffix(want, sep) && strings.HasPrefix(is, want)
	}
	switch {
	case !f.since.IsZero() && l.Time.Before(f.since):
		return "since"
	case !f.until.IsZero() && !l.Time.Before(f.until):
		return "until"
	case !part(l.Action, f.action, "."):
		return "action"
	case !part(l.Resource, f.resource, "/"):
		return "resource"
	case f.outcome != "" && l.Outcome != f.outcome:
		return "outcome"
	}
	return ""
}

// LeftOut reports whether the filter leaves a leaf out, as far as the leaf alone
// can tell: known is false when that depends on a field that the leaf hides.
func (f *Filter) LeftOut(l *trail.Leaf) (out, known bool) {
	if f.clear(l) != "" {
		return true, true
	}
	known = true
	for field, want := range f.committed {
		if want == "" {
			continue
		}
		if l.Commitments[field] == (tlog.Hash{}) {
			return true, true // an empty field is not what was asked for
		}
		known = false
	}
	return false, known
}

// refuses returns the first condition that an event does not meet, or "". An
// erased field meets every condition: nobody can tell any more.
func (f *Filter) refuses(e *trail.Event, l *trail.Leaf) string {
	if name := f.clear(l); name != "" {
		return name
	}
	for i, want := range f.committed {
		field := trail.Field(i)
		if want != "" && !e.IsErased(field) && e.Value(field) != want {
			return field.String()
		}
	}
	return ""
}
