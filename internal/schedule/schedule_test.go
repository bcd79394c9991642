package schedule

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

const never = "never"

// at reads an instant such as "2026-03-29T02:30+01:00"; the offset says which of
// two equal readings is meant.
func at(t *testing.T, text string) time.Time {
	t.Helper()
	parsed, err := time.Parse("2006-01-02T15:04Z07:00", text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// firings lists what fires after the first instant and until the second, as the
// zone's clock shows it.
func firings(t *testing.T, s Schedule, from, until string) []string {
	t.Helper()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	loc, err := time.LoadLocation(zoneOrUTC(s.Zone))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	end := at(t, until)
	for next := s.Next(at(t, from), ""); !next.After(end); next = s.Next(next, "") {
		if got = append(got, next.In(loc).Format("02T15:04-07:00")); len(got) > 200 {
			t.Fatalf("%v: more than 200 firings: %v", s, got[:5])
		}
	}
	return got
}

// TestNextWhenTheClocksChange pins the rule that the package comment states, in a
// zone that moves at 02:00, one that moves at another instant, and one that moves
// by half an hour.
func TestNextWhenTheClocksChange(t *testing.T) {
	const berlin, newYork, lordHowe = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
	for _, c := range []struct {
		name, zone, cron, from, until string
		want                          []string
	}{
		// Berlin: 2026-03-29 02:00 +01 becomes 03:00 +02; 2026-10-25 03:00 +02 becomes 02:00 +01.
		{"set time in the gap", berlin, "30 2 * * *", "2026-03-28T00:00+01:00", "2026-03-31T00:00+02:00",
			[]string{"28T02:30+01:00", "29T03:00+02:00", "30T02:30+02:00"}},
		{"start of the gap", berlin, "0 2 * * *", "2026-03-28T12:00+01:00", "2026-03-30T12:00+02:00",
			[]string{"29T03:00+02:00", "30T02:00+02:00"}},
		{"several times in the gap fire once", berlin, "*/20 2 * * *", "2026-03-28T12:00+01:00", "2026-03-30T02:10+02:00",
			[]string{"29T03:00+02:00", "30T02:00+02:00"}},
		{"in the gap and at its end fire once", berlin, "0 2,3 * * *", "2026-03-28T12:00+01:00", "2026-03-29T12:00+02:00",
			[]string{"29T03:00+02:00"}},
		{"set time in the overlap", berlin, "30 2 * * *", "2026-10-24T00:00+02:00", "2026-10-27T00:00+01:00",
			[]string{"24T02:30+02:00", "25T02:30+02:00", "26T02:30+01:00"}},
		{"asked inside the second pass of the overlap", berlin, "30 2 * * *", "2026-10-25T02:10+01:00", "2026-10-26T12:00+01:00",
			[]string{"26T02:30+01:00"}},
		{"end of the overlap", berlin, "0 3 * * *", "2026-10-24T12:00+02:00", "2026-10-26T12:00+01:00",
			[]string{"25T03:00+01:00", "26T03:00+01:00"}},
		{"set day in the gap", berlin, "30 2 29 3 *", "2026-01-01T00:00+01:00", "2027-12-31T00:00+01:00",
			[]string{"29T03:00+02:00", "29T02:30+02:00"}},
		{"a step of one hour a day is a set time", berlin, "30 2/22 * * *", "2026-03-28T12:00+01:00", "2026-03-30T12:00+02:00",
			[]string{"29T03:00+02:00", "30T02:30+02:00"}},
		{"hourly in spring", berlin, "15 * * * *", "2026-03-29T00:30+01:00", "2026-03-29T04:30+02:00",
			[]string{"29T01:15+01:00", "29T03:15+02:00", "29T04:15+02:00"}},
		{"hourly in autumn", berlin, "15 * * * *", "2026-10-25T00:30+02:00", "2026-10-25T03:30+01:00",
			[]string{"25T01:15+02:00", "25T02:15+02:00", "25T02:15+01:00", "25T03:15+01:00"}},
		{"@hourly in autumn", berlin, "@hourly", "2026-10-25T01:30+02:00", "2026-10-25T03:30+01:00",
			[]string{"25T02:00+02:00", "25T02:00+01:00", "25T03:00+01:00"}},
		{"every two hours in spring", berlin, "0 */2 * * *", "2026-03-28T23:00+01:00", "2026-03-29T06:30+02:00",
			[]string{"29T00:00+01:00", "29T04:00+02:00", "29T06:00+02:00"}},
		{"every two hours in autumn", berlin, "0 */2 * * *", "2026-10-24T23:00+02:00", "2026-10-25T04:30+01:00",
			[]string{"25T00:00+02:00", "25T02:00+02:00", "25T02:00+01:00", "25T04:00+01:00"}},
		{"every minute in autumn", berlin, "*/30 * * * *", "2026-10-25T02:00+02:00", "2026-10-25T03:00+01:00",
			[]string{"25T02:30+02:00", "25T02:00+01:00", "25T02:30+01:00", "25T03:00+01:00"}},

		// New York: 2026-03-08 02:00 -05 becomes 03:00 -04; 2026-11-01 02:00 -04 becomes 01:00 -05.
		{"set time in the gap", newYork, "59 2 * * *", "2026-03-07T12:00-05:00", "2026-03-09T12:00-04:00",
			[]string{"08T03:00-04:00", "09T02:59-04:00"}},
		{"set time in the overlap", newYork, "30 1 * * *", "2026-10-31T12:00-04:00", "2026-11-02T12:00-05:00",
			[]string{"01T01:30-04:00", "02T01:30-05:00"}},
		{"weekday in the overlap", newYork, "0 1 * * sun", "2026-10-31T12:00-04:00", "2026-11-08T12:00-05:00",
			[]string{"01T01:00-04:00", "08T01:00-05:00"}},
		{"hourly in spring", newYork, "0 * * * *", "2026-03-08T00:30-05:00", "2026-03-08T04:30-04:00",
			[]string{"08T01:00-05:00", "08T03:00-04:00", "08T04:00-04:00"}},
		{"hourly in autumn", newYork, "0 * * * *", "2026-11-01T00:30-04:00", "2026-11-01T02:30-05:00",
			[]string{"01T01:00-04:00", "01T01:00-05:00", "01T02:00-05:00"}},

		// Lord Howe: 2026-10-04 02:00 +10:30 becomes 02:30 +11; 2026-04-05 02:00 +11 becomes 01:30 +10:30.
		{"set time in the gap", lordHowe, "15 2 * * *", "2026-10-03T12:00+10:30", "2026-10-05T12:00+11:00",
			[]string{"04T02:30+11:00", "05T02:15+11:00"}},
		{"end of the gap", lordHowe, "30 2 * * *", "2026-10-03T12:00+10:30", "2026-10-05T12:00+11:00",
			[]string{"04T02:30+11:00", "05T02:30+11:00"}},
		{"set time in the overlap", lordHowe, "45 1 * * *", "2026-04-04T12:00+11:00", "2026-04-06T12:00+10:30",
			[]string{"05T01:45+11:00", "06T01:45+10:30"}},
		{"start of the overlap", lordHowe, "30 1 * * *", "2026-04-04T12:00+11:00", "2026-04-06T12:00+10:30",
			[]string{"05T01:30+11:00", "06T01:30+10:30"}},
		{"hourly in spring", lordHowe, "0 * * * *", "2026-10-04T00:30+10:30", "2026-10-04T04:30+11:00",
			[]string{"04T01:00+10:30", "04T03:00+11:00", "04T04:00+11:00"}},
		{"hourly in autumn, half past", lordHowe, "30 * * * *", "2026-04-05T00:45+11:00", "2026-04-05T03:45+10:30",
			[]string{"05T01:30+11:00", "05T01:30+10:30", "05T02:30+10:30", "05T03:30+10:30"}},

		// Zones whose midnight does not exist, and one that left out a whole day.
		{"midnight in the gap", "America/Santiago", "@daily", "2026-09-05T12:00-04:00", "2026-09-07T12:00-03:00",
			[]string{"06T01:00-03:00", "07T00:00-03:00"}},
		{"a day that does not exist", "Pacific/Apia", "0 3 * * *", "2011-12-28T12:00-10:00", "2012-01-01T12:00+14:00",
			[]string{"29T03:00-10:00", "31T00:00+14:00", "31T03:00+14:00", "01T03:00+14:00"}},
	} {
		t.Run(c.zone+" "+c.name, func(t *testing.T) {
			s := Schedule{Cron: c.cron, Zone: c.zone}
			if diff := cmp.Diff(c.want, firings(t, s, c.from, c.until)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", s, diff)
			}
		})
	}
}

func TestNextWhenTheCalendarIsOdd(t *testing.T) {
	for _, c := range []struct{ cron, after, want string }{
		{"0 0 29 2 *", "2026-01-01T00:00Z", "2028-02-29T00:00Z"},
		{"0 0 29 2 *", "2096-02-29T00:00Z", "2104-02-29T00:00Z"}, // 2100 is no leap year
		{"0 0 29 2 *", "2396-03-01T00:00Z", "2400-02-29T00:00Z"}, // 2400 is one
		{"59 23 31 12 *", "2026-12-31T23:58Z", "2026-12-31T23:59Z"},
		{"59 23 31 12 *", "2026-12-31T23:59Z", "2027-12-31T23:59Z"},
		{"0 0 1 1 *", "2026-12-31T23:59Z", "2027-01-01T00:00Z"},
		{"@yearly", "9997-06-01T00:00Z", "9998-01-01T00:00Z"},
		{"0 0 31 * *", "2026-01-31T00:00Z", "2026-03-31T00:00Z"},
		{"0 0 13 * 5", "2026-11-01T00:00Z", "2026-11-06T00:00Z"}, // either day field
		{"0 0 13 * *", "2026-11-01T00:00Z", "2026-11-13T00:00Z"},
		{"* * * * *", "1969-12-31T23:58Z", "1969-12-31T23:59Z"},
		{"0 12 * jan-mar,dec mon-fri", "2026-03-31T12:00Z", "2026-12-01T12:00Z"},
	} {
		got := Schedule{Cron: c.cron}.Next(at(t, c.after), "").Format("2006-01-02T15:04Z07:00")
		if got != c.want {
			t.Errorf("%s after %s: got %s, want %s", c.cron, c.after, got, c.want)
		}
	}
}

func TestNextWhenAfterIsBetweenSeconds(t *testing.T) {
	s := Schedule{Cron: "0 3 * * *"}
	due := at(t, "2026-05-01T03:00Z")
	for _, c := range []struct {
		after, want time.Time
	}{
		{due.Add(-time.Nanosecond), due},
		{due, due.AddDate(0, 0, 1)},
		{due.Add(time.Nanosecond), due.AddDate(0, 0, 1)},
	} {
		if got := s.Next(c.after, ""); !got.Equal(c.want) {
			t.Errorf("after %v: got %v, want %v", c.after, got, c.want)
		}
	}
}

// oracle states the rule for cron in the plainest way: it goes minute by minute.
func oracle(s Schedule, from time.Time, minutes int) []time.Time {
	p, err := s.plan()
	if err != nil {
		panic(err)
	}
	reading := func(t time.Time) int64 {
		_, offset := t.In(p.loc).Zone()
		return t.Unix() + int64(offset)
	}
	matches := func(r int64) bool {
		t := time.Unix(r, 0).UTC()
		return p.minute>>t.Minute()&1 == 1 && p.hour>>t.Hour()&1 == 1 && p.month>>t.Month()&1 == 1 && p.dayMatches(t)
	}
	var fired []time.Time
	before := from.Add(-48 * time.Hour)
	highest := reading(before) - 60
	for t := before; t.Before(from.Add(time.Duration(minutes) * time.Minute)); t = t.Add(time.Minute) {
		r := reading(t)
		due := p.elapsed && matches(r)
		if !p.elapsed {
			for passed := highest + 60; passed <= r; passed += 60 {
				due = due || matches(passed)
			}
		}
		highest = max(highest, r)
		if due && t.After(from) {
			fired = append(fired, t)
		}
	}
	return fired
}

var zones = []string{"", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Pacific/Apia", "Africa/Casablanca", "Asia/Kathmandu", "Antarctica/Troll"}

// changes are instants near which one of the zones sets its clock.
var changes = []time.Time{
	time.Date(2026, 3, 29, 1, 0, 0, 0, time.UTC), time.Date(2026, 10, 25, 1, 0, 0, 0, time.UTC),
	time.Date(2026, 3, 8, 7, 0, 0, 0, time.UTC), time.Date(2026, 11, 1, 6, 0, 0, 0, time.UTC),
	time.Date(2026, 10, 3, 15, 30, 0, 0, time.UTC), time.Date(2026, 4, 4, 15, 0, 0, 0, time.UTC),
	time.Date(2026, 9, 6, 4, 0, 0, 0, time.UTC), time.Date(2026, 4, 5, 3, 0, 0, 0, time.UTC),
	time.Date(2011, 12, 30, 10, 0, 0, 0, time.UTC), time.Date(2026, 12, 31, 23, 0, 0, 0, time.UTC),
	time.Date(2028, 2, 28, 23, 0, 0, 0, time.UTC),
}

func drawField(t *rapid.T, name string, lo, hi int) string {
	n := func(what string) int { return rapid.IntRange(lo, hi).Draw(t, name+what) }
	switch rapid.IntRange(0, 5).Draw(t, name+" kind") {
	case 0, 1:
		return "*"
	case 2:
		return fmt.Sprintf("*/%d", rapid.IntRange(1, hi-lo+1).Draw(t, name+" step"))
	case 3:
		a, b := n(" a"), n(" b")
		return fmt.Sprintf("%d-%d", min(a, b), max(a, b))
	case 4:
		return fmt.Sprintf("%d,%d", n(" a"), n(" b"))
	default:
		return fmt.Sprint(n(" one"))
	}
}

func drawCron(t *rapid.T) Schedule {
	day, month, weekday := "*", "*", "*"
	if rapid.IntRange(0, 3).Draw(t, "dates") == 0 {
		day, month, weekday = drawField(t, "day", 1, 28), drawField(t, "month", 1, 12), drawField(t, "weekday", 0, 6)
	}
	// Hours in which clocks change are drawn more often than others.
	hour := drawField(t, "hour", 0, []int{4, 23}[rapid.IntRange(0, 1).Draw(t, "early")])
	return Schedule{
		Cron: strings.Join([]string{drawField(t, "minute", 0, 59), hour, day, month, weekday}, " "),
		Zone: rapid.SampledFrom(zones).Draw(t, "zone"),
	}
}

func drawAfter(t *rapid.T) time.Time {
	return rapid.SampledFrom(changes).Draw(t, "near").
		Add(time.Duration(rapid.Int64Range(-int64(30*time.Hour), int64(30*time.Hour)).Draw(t, "off")))
}

func TestNextWhenComparedMinuteByMinute(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawCron(t)
		after := drawAfter(t)
		const minutes = 3 * 24 * 60
		want := oracle(s, after.Truncate(time.Minute), minutes)
		want = slices.DeleteFunc(want, func(w time.Time) bool { return !w.After(after) })
		end := after.Truncate(time.Minute).Add(minutes * time.Minute)
		var got []time.Time
		for next := s.Next(after, ""); next.Before(end); next = s.Next(next, "") {
			got = append(got, next)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s after %v (-want +got):\n%s", s, after, diff)
		}
	})
}

func TestNextWhenDrawnAtRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawCron(t)
		if rapid.Bool().Draw(t, "period") {
			s = Schedule{Every: time.Duration(rapid.Int64Range(int64(MinEvery), int64(MaxEvery)).Draw(t, "every"))}
		}
		shortest := s.MinInterval()
		if shortest < time.Second {
			t.Fatalf("%s: shortest interval %v", s, shortest)
		}
		s.Jitter = time.Duration(rapid.Int64Range(0, int64(shortest)-1).Draw(t, "jitter"))
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		id := rapid.String().Draw(t, "id")
		after := drawAfter(t)
		later := after.Add(time.Duration(rapid.Int64Range(0, int64(100*time.Hour)).Draw(t, "later")))

		next := s.Next(after, id)
		if !next.After(after) {
			t.Fatalf("%s: Next(%v) = %v is not after it", s, after, next)
		}
		if again := s.Next(after, id); again != next {
			t.Fatalf("%s: two calls disagree: %v and %v", s, next, again)
		}
		if local := s.Next(after.In(time.FixedZone("", 3*3600)), id); local != next {
			t.Fatalf("%s: the zone of the argument matters: %v and %v", s, next, local)
		}
		if s.Next(later, id).Before(next) {
			t.Fatalf("%s: Next(%v) = %v, but the later %v gives %v", s, after, next, later, s.Next(later, id))
		}
		if next.Location() != time.UTC {
			t.Fatalf("%s: next is in %v", s, next.Location())
		}
		second := s.Next(next, id)
		if gap := second.Sub(next); after.Year() >= 2026 && gap < shortest {
			t.Fatalf("%s: firings at %v and %v are %v apart, less than MinInterval %v", s, next, second, gap, shortest)
		}
		// Stored as microseconds, a firing is still the same firing.
		if s.Every == 0 && s.Next(next.Truncate(time.Microsecond), id) != second {
			t.Fatalf("%s: %v fires again once it was stored", s, next)
		}
	})
}

func TestMinIntervalWhenTheClocksChange(t *testing.T) {
	for _, c := range []struct {
		s    Schedule
		want time.Duration
	}{
		{Schedule{Every: 90 * time.Second}, 90 * time.Second},
		{Schedule{Cron: "* * * * *"}, time.Minute},
		{Schedule{Cron: "0 3 * * *"}, 24 * time.Hour},
		{Schedule{Cron: "0 3 * * *", Zone: "Europe/Berlin"}, 23 * time.Hour},
		{Schedule{Cron: "30 2 * * *", Zone: "Europe/Berlin"}, 23*time.Hour + 30*time.Minute}, // 03:00, then 02:30
		{Schedule{Cron: "30 1 * * *", Zone: "Australia/Lord_Howe"}, 23*time.Hour + 30*time.Minute},
		{Schedule{Cron: "0 */2 * * *", Zone: "Europe/Berlin"}, time.Hour}, // 02:00 twice
		{Schedule{Cron: "0 */2 * * *"}, 2 * time.Hour},
		{Schedule{Cron: "30 2,3 * * *", Zone: "Europe/Berlin"}, 30 * time.Minute}, // 03:00 for 02:30
		{Schedule{Cron: "0 0,23 * * *"}, time.Hour},
		{Schedule{Cron: "0 0 1 * *"}, 28 * 24 * time.Hour},
		{Schedule{Cron: "0 0 29 2 *"}, (4*365 + 1) * 24 * time.Hour},
		{Schedule{Cron: "0 0 1 1 *"}, 365 * 24 * time.Hour},
		{Schedule{Cron: "0 0 13 * 5"}, 24 * time.Hour}, // Thursday the 12th is none; Friday, then Saturday the 13th
		{Schedule{Cron: "0 0 31 2 *"}, 0},
		{Schedule{}, 0},
	} {
		if got := c.s.MinInterval(); got != c.want {
			t.Errorf("%s: got %v, want %v", c.s, got, c.want)
		}
	}
}

func TestJitterWhenManyIDs(t *testing.T) {
	s := Schedule{Cron: "0 3 * * *", Jitter: time.Hour}
	after, nominal := at(t, "2026-05-01T00:00Z"), at(t, "2026-05-01T03:00Z")
	const ids, buckets = 60_000, 60
	var count [buckets]int
	for i := range ids {
		by := s.Next(after, fmt.Sprintf("key-%d", i)).Sub(nominal)
		if by < 0 || by >= s.Jitter {
			t.Fatalf("id %d is moved by %v", i, by)
		}
		count[by*buckets/s.Jitter]++
	}
	// Chi-squared with 59 degrees of freedom: above 122 once in a million.
	var chi float64
	for _, n := range count {
		chi += math.Pow(float64(n)-ids/buckets, 2) / (ids / buckets)
	}
	if chi > 122 {
		t.Errorf("ids are not spread evenly: chi-squared %.0f, buckets %v", chi, count)
	}
}

func TestJitterWhenTheSameIDFires(t *testing.T) {
	s := Schedule{Cron: "0 3 * * *", Jitter: time.Hour}
	// Pinned: a release that spread ids differently would move every rotation once.
	if got, want := s.Next(at(t, "2026-05-01T00:00Z"), "payments"), "2026-05-01T03:52:19.029746Z"; got.Format(time.RFC3339Nano) != want {
		t.Errorf("got %s, want %s", got.Format(time.RFC3339Nano), want)
	}
	first := s.Next(at(t, "2026-05-01T00:00Z"), "payments")
	if again := s.Next(first.Add(-time.Microsecond), "payments"); !again.Equal(first) {
		t.Errorf("asked between the nominal instant and the firing: got %v, want %v", again, first)
	}
	if second := s.Next(first, "payments"); second.Sub(first) != 24*time.Hour {
		t.Errorf("firings at %v and %v are not a day apart", first, second)
	}
	e := Schedule{Every: 24 * time.Hour, Jitter: time.Hour}
	if next := e.Next(first, "payments"); !next.Equal(first.Add(24*time.Hour + jitter("payments", time.Hour))) {
		t.Errorf("a period does not count from the instant given: %v", next)
	}
}

func TestValidateWhenTheScheduleIsBad(t *testing.T) {
	long := strings.Repeat("0,", 200) + "0 * * * *"
	for _, c := range []struct {
		s             Schedule
		field, reason string
	}{
		{Schedule{}, "every", "schedule_required"},
		{Schedule{Jitter: time.Second}, "every", "schedule_required"},
		{Schedule{Every: time.Hour, Cron: "@daily"}, "cron", "schedule_ambiguous"},
		{Schedule{Every: time.Hour, Zone: "UTC"}, "zone", "zone_without_cron"},
		{Schedule{Every: -time.Hour}, "every", "every_out_of_range"},
		{Schedule{Every: MinEvery - 1}, "every", "every_out_of_range"},
		{Schedule{Every: MaxEvery + 1}, "every", "every_out_of_range"},
		{Schedule{Every: time.Hour, Jitter: time.Hour}, "jitter", "jitter_out_of_range"},
		{Schedule{Every: time.Hour, Jitter: -1}, "jitter", "jitter_out_of_range"},
		{Schedule{Cron: "0 3 * * *", Zone: "Europe/Berlin", Jitter: 23 * time.Hour}, "jitter", "jitter_out_of_range"},
		{Schedule{Cron: "@daily", Zone: "Europe/Berlim"}, "zone", "zone_unknown"},
		{Schedule{Cron: "@daily", Zone: "Local"}, "zone", "zone_unknown"},
		{Schedule{Cron: "@daily", Zone: "localtime"}, "zone", "zone_unknown"},
		{Schedule{Cron: "@daily", Zone: "right/Europe/Berlin"}, "zone", "zone_unknown"},
		{Schedule{Cron: "@daily", Zone: "../../etc/passwd"}, "zone", "zone_unknown"},
		{Schedule{Cron: "@daily", Zone: strings.Repeat("A", 65)}, "zone", "zone_unknown"},
		{Schedule{Cron: "CRON_TZ=Europe/Berlin 0 3 * * *"}, "cron", "cron_zone"},
		{Schedule{Cron: "TZ=UTC"}, "cron", "cron_zone"}, // the library panics on this one
		{Schedule{Cron: "@every 1h"}, "cron", "cron_every"},
		{Schedule{Cron: "@reboot"}, "cron", "cron_malformed"},
		{Schedule{Cron: "@daily 3"}, "cron", "cron_malformed"},
		{Schedule{Cron: " "}, "cron", "cron_malformed"},
		{Schedule{Cron: "0 3 * *"}, "cron", "cron_malformed"},
		{Schedule{Cron: "0 0 3 * * *"}, "cron", "cron_malformed"},
		{Schedule{Cron: "60 3 * * *"}, "cron", "cron_malformed"},
		{Schedule{Cron: "0 3 * * 7"}, "cron", "cron_malformed"},
		{Schedule{Cron: "0 5-3 * * *"}, "cron", "cron_malformed"},
		{Schedule{Cron: "0 */0 * * *"}, "cron", "cron_malformed"},
		{Schedule{Cron: ", 3 * * *"}, "cron", "cron_malformed"},
		{Schedule{Cron: "0 3 * * ,"}, "cron", "cron_malformed"},
		{Schedule{Cron: long}, "cron", "cron_malformed"},
		{Schedule{Cron: "0 3 31 2 *"}, "cron", "cron_never"},
		{Schedule{Cron: "0 3 31 2,4,6,9,11 *"}, "cron", "cron_never"},
	} {
		err := c.s.Validate()
		f, ok := errors.AsType[*fault.Error](err)
		if !ok || !errors.Is(err, fault.ErrInvalid) || f.Field != c.field || f.Reason != c.reason {
			t.Errorf("%+v: got %+v, want %s on %q", c.s, err, c.reason, c.field)
			continue
		}
		if len(f.Message) > 400 {
			t.Errorf("%+v: the message has %d bytes", c.s, len(f.Message))
		}
		if c.field != "jitter" || c.s.Jitter < 0 {
			if next := c.s.Next(at(t, "2026-01-01T00:00Z"), ""); !next.IsZero() {
				t.Errorf("%+v: refused, but fires at %v", c.s, next)
			}
		}
	}
}

func TestTextWhenRoundTripped(t *testing.T) {
	for _, c := range []struct {
		s    Schedule
		want string
	}{
		{Schedule{Every: 720 * time.Hour}, "every 720h0m0s"},
		{Schedule{Every: 90 * time.Minute, Jitter: 10 * time.Second}, "every 1h30m0s jitter 10s"},
		{Schedule{Cron: "0 3 * * 1", Zone: "Europe/Berlin"}, "cron 0 3 * * 1 Europe/Berlin"},
		{Schedule{Cron: "@daily", Zone: "UTC", Jitter: time.Hour}, "cron @daily UTC jitter 1h0m0s"},
	} {
		if c.s.String() != c.want {
			t.Errorf("got %q, want %q", c.s, c.want)
		}
		encoded, err := json.Marshal(c.s)
		if err != nil {
			t.Error(err)
		}
		var back Schedule
		if err := json.Unmarshal(encoded, &back); err != nil || back != c.s {
			t.Errorf("%s came back from JSON as %+v: %v", encoded, back, err)
		}
	}
	if got, err := Parse("  cron\t0  3 * * 1  "); err != nil || got != (Schedule{Cron: "0 3 * * 1"}) {
		t.Errorf("without a zone: %+v, %v", got, err)
	}
	if _, err := json.Marshal(Schedule{Every: 1}); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("an invalid schedule was encoded: %v", err)
	}
	for _, bad := range []string{"", "every", "every day", "every 1h UTC", "cron", "cron 0 3 * *", "cron 0 3 * * * UTC x", "daily", "every 1h jitter", "every 1h jitter x", "every 1h jitter 2h", "cron @daily UTC jitter 1h jitter 1h", strings.Repeat(" ", 1000)} {
		if s, err := Parse(bad); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%q: got %+v, %v", bad, s, err)
		}
	}
}

// FuzzParse checks that text is either refused or makes a schedule that fires and
// that is written back as it was read.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"every 720h", "every 1s jitter 1ms", "cron 0 3 * * 1 Europe/Berlin", "cron @daily", "cron */7 0-6/2 1,31 feb-dec ? UTC jitter 1s",
		"cron TZ=", "cron TZ= 1 2 3 4", "cron 0 0 31 2 *", "cron , , , , ,", "every 9223372036854775807ns", "cron 1/9223372036854775807 * * * *", never,
	} {
		f.Add(seed)
	}
	after := time.Date(2026, 3, 29, 0, 59, 59, 999, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			if !errors.Is(err, fault.ErrInvalid) || len(err.Error()) > 2000 {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		next := s.Next(after, text)
		if !next.After(after) {
			t.Fatalf("%q: Next(%v) = %v", text, after, next)
		}
		if s.Next(next, text).Sub(next) < s.MinInterval() {
			t.Fatalf("%q: fires at %v and %v, MinInterval %v", text, next, s.Next(next, text), s.MinInterval())
		}
		back, err := Parse(s.String())
		if err != nil || back.String() != s.String() {
			t.Fatalf("%q was written as %q and read as %+v: %v", text, s, back, err)
		}
	})
}

func BenchmarkNext(b *testing.B) {
	after := time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC)
	for _, s := range []Schedule{
		{Every: time.Hour},
		{Cron: "0 3 * * *", Jitter: time.Hour},
		{Cron: "0 3 * * *", Zone: "Europe/Berlin", Jitter: time.Hour},
		{Cron: "0 0 29 2 *", Zone: "Europe/Berlin"},
	} {
		b.Run(strings.ReplaceAll(s.String(), " ", "_"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Next(after, "payments")
			}
		})
	}
}

func BenchmarkMinInterval(b *testing.B) {
	for _, expr := range []string{"* * * * *", "*/2 1,2,3 * * *", "0 3 * * *", "0 0 29 2 *"} {
		b.Run(strings.ReplaceAll(strings.ReplaceAll(expr, " ", "_"), "/", ":"), func(b *testing.B) {
			for b.Loop() {
				Schedule{Cron: expr, Zone: "Africa/Casablanca"}.MinInterval()
			}
		})
	}
}
