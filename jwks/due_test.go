package jwks

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/schedule"
)

const us = time.Microsecond

// dueSet is a keyset under quick: active since epoch, its standby served since epoch.
func dueSet(p Policy, more ...Key) *Keyset {
	return &Keyset{ID: "id", Name: "payments", Policy: p, Keys: append([]Key{
		{Kid: "A", State: Active, Since: epoch, ServedSince: epoch, ActivatedAt: epoch, MaxTokenLife: p.TokenTTL},
		{Kid: "P", State: Pending, Since: epoch, ServedSince: epoch},
	}, more...)}
}

func retiring(kid string, demoted time.Duration, life time.Duration) Key {
	return Key{Kid: kid, State: Retiring, DemotedAt: epoch.Add(demoted), Since: epoch.Add(demoted), ServedSince: epoch, MaxTokenLife: life}
}

var rotation = []Move{{"A", Retiring}, {"P", Active}}

func TestDue(t *testing.T) {
	for _, tc := range []struct {
		name  string
		set   func() *Keyset
		at    time.Duration // after epoch
		asked bool
		want  []Move
	}{
		{"nothing yet", func() *Keyset { return dueSet(quick()) }, 0, false, nil},
		{"lead over, schedule not", func() *Keyset { return dueSet(quick()) }, time.Hour - us, false, nil},
		{"lead over, schedule not, asked", func() *Keyset { return dueSet(quick()) }, time.Hour - us, true, rotation},
		{"both over", func() *Keyset { return dueSet(quick()) }, time.Hour, false, rotation},
		{"long overdue", func() *Keyset { return dueSet(quick()) }, 365 * 24 * time.Hour, false, rotation},
		{"lead not over, asked", func() *Keyset { return dueSet(quick()) }, quickLead - us, true, nil},
		{"lead over to the microsecond, asked", func() *Keyset { return dueSet(quick()) }, quickLead, true, rotation},
		{"schedule over, lead not", func() *Keyset {
			s := dueSet(quick())
			s.Keys[1].ServedSince = epoch.Add(time.Hour - time.Second)
			return s
		}, time.Hour - time.Second + quickLead - us, false, nil},
		{"schedule over, lead over a little later", func() *Keyset {
			s := dueSet(quick())
			s.Keys[1].ServedSince = epoch.Add(time.Hour - time.Second)
			return s
		}, time.Hour - time.Second + quickLead, false, rotation},
		{"lead that was asked for", func() *Keyset {
			p := quick()
			p.PublishAhead = 2 * time.Hour
			return dueSet(p)
		}, 2*time.Hour - us, true, nil},
		{"older documents may be cached", func() *Keyset {
			s := dueSet(quick())
			s.LeadUntil = epoch.Add(2 * time.Hour)
			return s
		}, 2*time.Hour - us, true, nil},
		{"older documents are gone", func() *Keyset {
			s := dueSet(quick())
			s.LeadUntil = epoch.Add(2 * time.Hour)
			return s
		}, 2 * time.Hour, false, rotation},
		{"an earlier LeadUntil shortens nothing", func() *Keyset {
			s := dueSet(quick())
			s.LeadUntil = epoch.Add(time.Second)
			return s
		}, quickLead - us, true, nil},
		{"no standby", func() *Keyset {
			s := dueSet(quick())
			s.Keys = s.Keys[:1]
			return s
		}, 48 * time.Hour, true, nil},
		{"no active key", func() *Keyset {
			s := dueSet(quick())
			s.Keys = s.Keys[1:]
			return s
		}, 48 * time.Hour, true, nil},
		{"no keys", func() *Keyset { return &Keyset{Policy: quick()} }, 48 * time.Hour, true, nil},
		{"retiring a microsecond early", func() *Keyset { return dueSet(quick(), retiring("R", 0, 10*time.Minute)) }, quickRetire - us, false, nil},
		{"retiring to the microsecond", func() *Keyset { return dueSet(quick(), retiring("R", 0, 10*time.Minute)) }, quickRetire, false, []Move{{"R", Retired}}},
		{"longer tokens were issued", func() *Keyset { return dueSet(quick(), retiring("R", 0, 11*time.Minute)) }, quickRetire + time.Minute - us, false, nil},
		{"longer tokens are over", func() *Keyset { return dueSet(quick(), retiring("R", 0, 11*time.Minute)) }, quickRetire + time.Minute, false, []Move{{"R", Retired}}},
		{"no token was issued", func() *Keyset { return dueSet(quick(), retiring("R", 0, 0)) }, 130 * time.Second, false, []Move{{"R", Retired}}},
		{"a longer delay was asked for", func() *Keyset {
			p := quick()
			p.RetireAfter = 30 * time.Minute
			return dueSet(p, retiring("R", 0, 10*time.Minute))
		}, 30*time.Minute - us, false, nil},
		{"several retiring, one is due", func() *Keyset {
			return dueSet(quick(), retiring("R1", 0, 10*time.Minute), retiring("R2", us, 10*time.Minute), retiring("R3", -time.Second, 11*time.Minute))
		}, quickRetire, false, []Move{{"R1", Retired}}},
		{"several retiring, all are due, and the rotation", func() *Keyset {
			return dueSet(quick(), retiring("R1", 0, 10*time.Minute), retiring("R2", us, 10*time.Minute), retiring("R3", -time.Second, 11*time.Minute))
		}, time.Hour, false, append(rotation[:2:2], Move{"R1", Retired}, Move{"R2", Retired}, Move{"R3", Retired})},
		{"a policy with more frequent rotation", func() *Keyset {
			s := dueSet(quick())
			p := quick()
			p.Rotate.Every = 10 * time.Minute
			s.adopt(p, epoch.Add(30*time.Minute))
			return s
		}, 10 * time.Minute, false, rotation},
		{"a policy with a longer lead holds for the present standby", func() *Keyset {
			s := dueSet(quick())
			p := quick()
			p.Consumers = named("envoy") // 10s + 10m + 30s
			s.adopt(p, epoch.Add(59*time.Minute))
			s.Keys[1].ServedSince = epoch.Add(55 * time.Minute)
			return s
		}, 55*time.Minute + 640*time.Second - us, true, nil},
		{"a stored policy whose profile is gone", func() *Keyset {
			p := quick()
			p.Consumers = named("gone")
			return dueSet(p)
		}, maxDuration - us, true, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, tc.set().Due(epoch.Add(tc.at), tc.asked)); diff != "" {
				t.Errorf("moves (-want +got):\n%s", diff)
			}
		})
	}
}

// A document that was served with a longer max-age may still be cached.
func TestAdoptWhenMaxAgeOrCDNGoes(t *testing.T) {
	stepCA := func(maxAge time.Duration, cdn bool) Policy {
		p := quick()
		p.Consumers = named("step-ca") // no failures: lead is 10s + max-age + 30s
		p.MaxAge, p.CDN = maxAge, cdn
		return p
	}
	now := epoch.Add(20 * time.Minute)
	for _, tc := range []struct {
		name     string
		from, to Policy
		want     time.Duration // LeadUntil after now; 0: not set
	}{
		{"shorter max-age", stepCA(5*time.Minute, false), stepCA(time.Minute, false), 340 * time.Second},
		{"same", stepCA(time.Minute, false), stepCA(time.Minute, false), 0},
		{"longer max-age", stepCA(time.Minute, false), stepCA(5*time.Minute, false), 0},
		{"cache in between removed", stepCA(time.Minute, true), stepCA(time.Minute, false), 160 * time.Second},
		{"both", stepCA(5*time.Minute, true), stepCA(time.Minute, false), 640 * time.Second},
		{"cache in between put up", stepCA(time.Minute, false), stepCA(time.Minute, true), 0},
		{"max-age that no consumer follows", func() Policy { p := quick(); p.MaxAge = 5 * time.Minute; return p }(), quick(), 340 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := dueSet(tc.from)
			s.adopt(tc.to, now)
			want := time.Time{}
			if tc.want > 0 {
				want = now.Add(tc.want)
			}
			if !s.LeadUntil.Equal(want) {
				t.Errorf("LeadUntil is %s, want %s", s.LeadUntil, want)
			}
			if diff := cmp.Diff(tc.to, s.Policy); diff != "" {
				t.Errorf("policy (-want +got):\n%s", diff)
			}
			// The next policy can't shorten what this one owes.
			s.adopt(quick(), now.Add(time.Second))
			if s.LeadUntil.Before(want) {
				t.Errorf("LeadUntil moved back from %s to %s", want, s.LeadUntil)
			}
		})
	}
}

func TestOutlook(t *testing.T) {
	s := dueSet(quick(), retiring("R", 5*time.Minute, 20*time.Minute))
	got := s.Outlook()
	want := map[string]Next{
		"A": {To: Retiring, At: epoch.Add(time.Hour), Why: "when its successor signs"},
		"P": {To: Active, At: epoch.Add(time.Hour), Why: "rotates every 1h; its lead of 1m40s ends at 2026-01-05 00:01:40Z"},
		"R": {To: Retired, At: epoch.Add(27*time.Minute + 10*time.Second), Why: "stopped signing at 2026-01-05 00:05:00Z; its tokens live up to 20m, and 2m10s covers signers, leeway and clocks"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outlook (-want +got):\n%s", diff)
	}
	s.Keys[1].ServedSince = epoch.Add(59 * time.Minute)
	got = s.Outlook()
	if at := epoch.Add(59*time.Minute + quickLead); !got["P"].At.Equal(at) || !got["A"].At.Equal(at) {
		t.Errorf("a late standby moves at %s and the active key at %s, want %s", got["P"].At, got["A"].At, at)
	}
	if why := got["P"].Why; !strings.Contains(why, "served since 2026-01-05 00:59:00Z") || !strings.Contains(why, "1m40s") {
		t.Errorf("the standby waits because %q", why)
	}
	if got := dueSet(quick()); len(got.Outlook()) != 2 {
		t.Errorf("outlook of two keys: %v", got.Outlook())
	}
}

// Cron fires on the wall clock of its zone: 02:30 does not exist in Berlin on
// 29 March 2026, and fires at 03:00 local time, 01:00 UTC.
func TestOutlookWhenCronHasZone(t *testing.T) {
	p := quick()
	p.Rotate = schedule.Schedule{Cron: "30 2 * * *", Zone: "Europe/Berlin"}
	s := dueSet(p)
	for _, tc := range []struct{ since, want string }{
		{"2026-01-05T01:29:59.999999Z", "2026-01-05T01:30:00Z"},
		{"2026-01-05T01:30:00Z", "2026-01-06T01:30:00Z"},
		{"2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z"},
		{"2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"},
	} {
		since, want := rfc3339(t, tc.since), rfc3339(t, tc.want)
		s.Keys[0].Since = since
		if got := s.Outlook()["P"].At; !got.Equal(want) {
			t.Errorf("active since %s: rotates at %s, want %s", tc.since, got, want)
		}
		if got := s.Due(want.Add(-us), false); got != nil {
			t.Errorf("active since %s: due a microsecond early: %v", tc.since, got)
		}
		if diff := cmp.Diff(rotation, s.Due(want, false)); diff != "" {
			t.Errorf("active since %s (-want +got):\n%s", tc.since, diff)
		}
	}
}

func rfc3339(t testing.TB, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestNextAt(t *testing.T) {
	now := epoch.Add(time.Minute)
	for _, tc := range []struct {
		name string
		set  *Keyset
		want time.Time
	}{
		{"the rotation", dueSet(quick()), epoch.Add(time.Hour)},
		{"a withdrawal before it", dueSet(quick(), retiring("R1", time.Minute, 10*time.Minute), retiring("R2", 0, 10*time.Minute)), epoch.Add(quickRetire)},
		{"no standby", func() *Keyset { s := dueSet(quick()); s.Keys = s.Keys[:1]; return s }(), now.Add(time.Second)},
		{"overdue", dueSet(quick(), retiring("R", -time.Hour, 0)), epoch.Add(130*time.Second - time.Hour)},
	} {
		if got := tc.set.nextAt(now); !got.Equal(tc.want) {
			t.Errorf("%s: looked at again at %s, want %s", tc.name, got, tc.want)
		}
	}
}

// Removal of the first of several keys bounds max-age, in whole seconds.
func TestMaxAge(t *testing.T) {
	s := dueSet(quick(), retiring("R1", time.Second, 10*time.Minute), retiring("R2", 0, 10*time.Minute))
	s.Policy.MaxAge = 5 * time.Minute
	for _, tc := range []struct {
		at     time.Duration
		target time.Duration
		want   time.Duration
	}{
		{0, 0, 5 * time.Minute},
		{quickRetire - 5*time.Minute, 0, 5 * time.Minute},
		{quickRetire - 5*time.Minute + us, 0, 5*time.Minute - time.Second},
		{quickRetire - 1500*time.Millisecond, 0, time.Second},
		{quickRetire - time.Second, 0, time.Second},
		{quickRetire - us, 0, time.Second},
		{quickRetire, 0, time.Second},
		{quickRetire + time.Hour, 0, time.Second},
		{0, 90 * time.Second, 90 * time.Second},
		{0, 10 * time.Minute, 5 * time.Minute},
		{quickRetire - 30*time.Second, 90 * time.Second, 30 * time.Second},
		{0, 2500 * time.Millisecond, 2 * time.Second},
	} {
		s.Policy.EmergencyTarget = tc.target
		for i := range s.Keys {
			s.Keys[i].Public = []byte(`{}`)
		}
		d, err := render(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.MaxAge(epoch.Add(tc.at)); got != tc.want {
			t.Errorf("at %s with target %s: max-age %s, want %s", tc.at, tc.target, got, tc.want)
		}
	}
}
