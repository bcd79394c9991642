package jwks

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/schedule"
)

// Next is the next planned move of a key.
type Next struct {
	To  State
	At  time.Time
	Why string // what it waits for
}

// Outlook returns the next planned move of each published key, by kid. It is
// pure: the scheduler acts on it, and `keyset show` prints it.
func (s *Keyset) Outlook() map[string]Next {
	out := make(map[string]Next, len(s.Keys))
	active, standby := s.Active(), s.Standby()
	for _, k := range s.Keys {
		if k.State == Retiring {
			out[k.Kid] = s.withdrawal(k)
		}
	}
	if active == nil || standby == nil {
		return out
	}
	ready := s.leadOver(*standby)
	due := s.Policy.Rotate.Next(active.Since, s.ID)
	n := Next{To: Active, At: due, Why: fmt.Sprintf("rotates %s; its lead of %s ends at %s", rhythm(s.Policy.Rotate), span(ready.Sub(standby.ServedSince)), stamp(ready))}
	if ready.After(due) {
		n.At = ready
		n.Why = fmt.Sprintf("served since %s, and must be for %s before it signs", stamp(standby.ServedSince), span(ready.Sub(standby.ServedSince)))
	}
	out[standby.Kid] = n
	out[active.Kid] = Next{To: Retiring, At: n.At, Why: "when its successor signs"}
	return out
}

// leadOver is the first instant at which a pending key may sign.
func (s *Keyset) leadOver(k Key) time.Time {
	at := k.ServedSince.Add(s.Policy.Lead())
	if s.LeadUntil.After(at) {
		return s.LeadUntil
	}
	return at
}

// adopt gives the keyset a new policy at now. A document that was served with
// a longer max-age may still be cached: until it can't be, no key signs that
// it might lack.
func (s *Keyset) adopt(p Policy, now time.Time) {
	cached := p
	cached.MaxAge, cached.EmergencyTarget, cached.CDN = max(p.maxAge(), s.Policy.maxAge()), 0, p.CDN || s.Policy.CDN
	if cached.MaxAge > p.maxAge() || cached.CDN && !p.CDN {
		// A consumer that no policy names yet may be named before those documents
		// are gone, so they count as if one honoured their max-age.
		cached.Consumers = append([]Consumer{{Name: honest}}, p.Consumers...)
		if len(p.Consumers) == 0 {
			cached.Consumers = append(cached.Consumers, Consumer{Name: unknownLead})
		}
		if until := now.Add(cached.Lead()); until.After(s.LeadUntil) {
			s.LeadUntil = until
		}
	}
	s.Policy = p
	s.NextAt = s.nextAt(now)
}

// withdrawal is when a retiring key leaves the document.
func (s *Keyset) withdrawal(k Key) Next {
	delay := s.Policy.RetireDelay(k.MaxTokenLife)
	return Next{To: Retired, At: k.DemotedAt.Add(delay), Why: fmt.Sprintf("stopped signing at %s; its tokens live up to %s, and %s covers signers, leeway and clocks",
		stamp(k.DemotedAt), span(k.MaxTokenLife), span(delay-k.MaxTokenLife))}
}

// Move is a change of one key's state that is due.
type Move struct {
	Kid string
	To  State
}

// Due returns the moves that are due at now, in the order in which they are to
// be made. asked promotes the standby without waiting for the schedule, but
// never before its lead is over.
func (s *Keyset) Due(now time.Time, asked bool) []Move {
	var moves []Move
	outlook := s.Outlook()
	if a, p := s.Active(), s.Standby(); a != nil && p != nil {
		if at := outlook[p.Kid].At; !at.After(now) || asked && !s.leadOver(*p).After(now) {
			moves = append(moves, Move{a.Kid, Retiring}, Move{p.Kid, Active})
		}
	}
	for _, k := range s.Keys {
		if k.State == Retiring && !outlook[k.Kid].At.After(now) {
			moves = append(moves, Move{k.Kid, Retired})
		}
	}
	return moves
}

// retryStandby is how soon a pass looks again for a standby that could not be made yet.
const retryStandby = time.Second

// nextAt is when the keyset must be looked at again.
func (s *Keyset) nextAt(now time.Time) time.Time {
	at := now.Add(maxDuration)
	for _, n := range s.Outlook() {
		if n.At.Before(at) {
			at = n.At
		}
	}
	if soon := now.Add(retryStandby); s.Standby() == nil && soon.Before(at) {
		at = soon
	}
	return at
}

// nextRemoval is when the first key leaves the document; zero when none is planned.
func (s *Keyset) nextRemoval() time.Time {
	var at []time.Time
	for _, k := range s.Keys {
		if k.State == Retiring {
			at = append(at, s.withdrawal(k).At)
		}
	}
	if len(at) == 0 {
		return time.Time{}
	}
	return slices.MinFunc(at, time.Time.Compare)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// span writes a duration as people read it: "30d", "1h2m10s".
func span(d time.Duration) string {
	out := ""
	if days := d / (24 * time.Hour); days > 0 {
		out, d = fmt.Sprintf("%dd", days), d%(24*time.Hour)
	}
	if d == 0 && out != "" {
		return out
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return out + s
}

// rhythm writes a schedule as people read it: "every 30d".
func rhythm(s schedule.Schedule) string {
	if s.Every == 0 || s.Jitter != 0 {
		return s.String()
	}
	return "every " + span(s.Every)
}
