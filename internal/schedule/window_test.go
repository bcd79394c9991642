package schedule

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

func window(t testing.TB, text string) Window {
	t.Helper()
	w, err := ParseWindow(text)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := Location(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func TestWindowWhenParsed(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"22:00-04:00", "22:00-04:00"},
		{"  mon-fri   01:00-05:00 ", "Mon-Fri 01:00-05:00"},
		{"Sat,Sun 00:00-24:00", "Sat,Sun 00:00-24:00"},
		{"Sun,Sat 00:00-24:00", "Sat,Sun 00:00-24:00"},
		{"Mon-Sun 00:00-24:00", "00:00-24:00"},
		{"Sun-Sat 12:00-12:01", "12:00-12:01"},
		{"Fri-Mon 20:00-06:00", "Mon,Fri-Sun 20:00-06:00"},
		{"Mon,Tue,Wed,Fri 20:00-06:00", "Mon-Wed,Fri 20:00-06:00"},
		{"Mon-Tue 20:00-00:00", "Mon,Tue 20:00-24:00"},
		{"Tue-Tue 20:00-21:00", "Tue 20:00-21:00"},
		{"Tue,Tue 00:01-00:00", "Tue 00:01-24:00"},
	} {
		w := window(t, c.text)
		if w.String() != c.want {
			t.Errorf("%q: got %q, want %q", c.text, w, c.want)
		}
		encoded, err := json.Marshal([]Window{w})
		if err != nil {
			t.Error(err)
		}
		var back []Window
		if err := json.Unmarshal(encoded, &back); err != nil || len(back) != 1 || back[0] != w {
			t.Errorf("%s came back from JSON as %v: %v", encoded, back, err)
		}
	}
	for _, bad := range []string{
		"", "22:00", "22:00-", "-04:00", "22:00 04:00", "22:00-04:00-05:00", "2:00-04:00", "22:00-25:00", "22:60-23:00", "24:01-05:00", "24:00-05:00", "05:00-05:00",
		"00:00-00:00", "Mon 22:00-04:00 UTC", "Monday 22:00-04:00", "Mon- 22:00-04:00", ",Mon 22:00-04:00", "Mon,,Tue 22:00-04:00", "Mon-Tue-Wed 22:00-04:00", "22:00–04:00",
		"+1:00-04:00", "22:00-04: 0", "Mon-Fri", "1-5 22:00-04:00", strings.Repeat("Mon,", 30) + "Mon 22:00-04:00",
	} {
		w, err := ParseWindow(bad)
		f, ok := errors.AsType[*fault.Error](err)
		if !ok || !errors.Is(err, fault.ErrInvalid) || f.Reason != "window_malformed" || len(f.Message) > 400 {
			t.Errorf("%q: got %v, %v", bad, w, err)
		}
	}
	if _, err := json.Marshal(Window{}); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("the empty window was encoded: %v", err)
	}
	if (Window{}).Contains(time.Unix(0, 0), time.UTC) || !(Window{}).NextOpen(time.Unix(0, 0), time.UTC).IsZero() || !(Window{}).End(time.Unix(0, 0), time.UTC).IsZero() {
		t.Error("the empty window opens")
	}
}

func TestWindowWhenTheClocksChange(t *testing.T) {
	for _, c := range []struct {
		name, window, zone string
		asked              string // NextOpen and End are asked for from here
		opens, ends        string
	}{
		{"a plain night", "22:00-04:00", "Europe/Berlin", "2026-06-01T00:00Z", "2026-06-01T00:00Z", "2026-06-01T02:00Z"},
		{"before a night", "22:00-04:00", "Europe/Berlin", "2026-06-01T02:00Z", "2026-06-01T20:00Z", "2026-06-02T02:00Z"},
		{"a day of a leap year", "Sat 00:00-24:00", "UTC", "2028-02-29T00:00Z", "2028-03-04T00:00Z", "2028-03-05T00:00Z"},
		{"into the leap day", "Mon 22:00-04:00", "UTC", "2028-02-28T00:00Z", "2028-02-28T22:00Z", "2028-02-29T04:00Z"},
		{"the leap day", "Tue 00:00-24:00", "America/New_York", "2028-02-28T12:00Z", "2028-02-29T05:00Z", "2028-03-01T05:00Z"},
		{"across the turn of the year", "Thu 23:00-01:00", "America/New_York", "2026-12-31T00:00Z", "2027-01-01T04:00Z", "2027-01-01T06:00Z"},

		// 29 March 2026, 02:00 to 03:00 does not exist in Berlin; 25 October 2026, it is there twice.
		{"Berlin, an hour less", "22:00-04:00", "Europe/Berlin", "2026-03-28T12:00Z", "2026-03-28T21:00Z", "2026-03-29T02:00Z"},
		{"Berlin, an hour more", "22:00-04:00", "Europe/Berlin", "2026-10-24T12:00Z", "2026-10-24T20:00Z", "2026-10-25T03:00Z"},
		{"Berlin, a begin that is not", "02:30-05:00", "Europe/Berlin", "2026-03-28T12:00Z", "2026-03-29T01:00Z", "2026-03-29T03:00Z"},
		{"Berlin, an end that is not", "01:00-02:30", "Europe/Berlin", "2026-03-28T12:00Z", "2026-03-29T00:00Z", "2026-03-29T01:00Z"},
		{"Berlin, all of it is not", "02:10-02:50", "Europe/Berlin", "2026-03-28T12:00Z", "2026-03-30T00:10Z", "2026-03-30T00:50Z"},
		{"Berlin, a begin that is twice", "02:30-05:00", "Europe/Berlin", "2026-10-24T12:00Z", "2026-10-25T00:30Z", "2026-10-25T04:00Z"},
		{"Berlin, an end that is twice", "01:00-02:30", "Europe/Berlin", "2026-10-24T12:00Z", "2026-10-24T23:00Z", "2026-10-25T01:30Z"},
		{"Berlin, all of it is twice", "02:10-02:50", "Europe/Berlin", "2026-10-24T12:00Z", "2026-10-25T00:10Z", "2026-10-25T01:50Z"},
		{"Berlin, a Sunday of 23 hours", "Sun 00:00-24:00", "Europe/Berlin", "2026-03-28T12:00Z", "2026-03-28T23:00Z", "2026-03-29T22:00Z"},

		// 8 March and 1 November 2026 in New York.
		{"New York, an hour less", "Sat 23:00-06:00", "America/New_York", "2026-03-07T12:00Z", "2026-03-08T04:00Z", "2026-03-08T10:00Z"},
		{"New York, an hour more", "Sat 23:00-06:00", "America/New_York", "2026-10-31T12:00Z", "2026-11-01T03:00Z", "2026-11-01T11:00Z"},
		{"New York, an end that is twice", "01:00-01:30", "America/New_York", "2026-10-31T12:00Z", "2026-11-01T05:00Z", "2026-11-01T06:30Z"},

		// Lord Howe moves by half an hour: 5 April 2026 back at 02:00, 4 October 2026 on at 02:00.
		{"Lord Howe, half an hour more", "01:30-02:30", "Australia/Lord_Howe", "2026-04-04T02:00Z", "2026-04-04T14:30Z", "2026-04-04T16:00Z"},
		{"Lord Howe, half an hour less", "01:30-03:00", "Australia/Lord_Howe", "2026-10-03T02:00Z", "2026-10-03T15:00Z", "2026-10-03T16:00Z"},
		{"Lord Howe, a begin that is not", "02:15-03:00", "Australia/Lord_Howe", "2026-10-03T02:00Z", "2026-10-03T15:30Z", "2026-10-03T16:00Z"},

		// 30 December 2011 does not exist in Samoa. It was a Friday.
		{"Apia, a day that is not", "Fri 10:00-12:00", "Pacific/Apia", "2011-12-29T12:00Z", "2012-01-05T20:00Z", "2012-01-05T22:00Z"},
	} {
		w, loc := window(t, c.window), zone(t, c.zone)
		opens := w.NextOpen(at(t, c.asked), loc)
		if !opens.Equal(at(t, c.opens)) {
			t.Errorf("%s: opens at %v, want %s", c.name, opens, c.opens)
		}
		ends := w.End(opens, loc)
		if !ends.Equal(at(t, c.ends)) {
			t.Errorf("%s: ends at %v, want %s", c.name, ends, c.ends)
		}
		if !w.Contains(opens, loc) || w.Contains(at(t, c.ends), loc) || !w.Contains(at(t, c.ends).Add(-time.Microsecond), loc) {
			t.Errorf("%s: it does not contain what it should", c.name)
		}
		if begin := at(t, c.opens); begin.After(at(t, c.asked)) && w.Contains(begin.Add(-time.Microsecond), loc) {
			t.Errorf("%s: it is open before it opens", c.name)
		}
	}
}

func TestWindowsWhenThereAreSeveral(t *testing.T) {
	list := func(texts ...string) (out []Window) {
		for _, text := range texts {
			out = append(out, window(t, text))
		}
		return out
	}
	// 2026-06-01 is a Monday.
	for _, c := range []struct {
		name        string
		windows     []Window
		asked       string
		opens, ends string // "": never
	}{
		{"none", nil, "2026-06-01T03:00Z", "2026-06-01T03:00Z", ""},
		{"they touch", list("Mon 22:00-24:00", "Tue 00:00-04:00"), "2026-06-01T12:00Z", "2026-06-01T22:00Z", "2026-06-02T04:00Z"},
		{"they overlap", list("Mon 22:00-02:00", "Tue 01:00-04:00"), "2026-06-02T01:30Z", "2026-06-02T01:30Z", "2026-06-02T04:00Z"},
		{"one in another", list("Mon 10:00-20:00", "Mon 12:00-13:00"), "2026-06-01T12:30Z", "2026-06-01T12:30Z", "2026-06-01T20:00Z"},
		{"the nearer one", list("Sat 10:00-20:00", "Wed 10:00-11:00"), "2026-06-01T12:30Z", "2026-06-03T10:00Z", "2026-06-03T11:00Z"},
		{"always", list("00:00-24:00"), "2026-06-01T12:30Z", "2026-06-01T12:30Z", ""},
		{"always, in parts", list("00:00-12:00", "12:00-24:00"), "2026-06-01T12:30Z", "2026-06-01T12:30Z", ""},
		{"most of the week", list("Mon-Sat 00:00-24:00"), "2026-06-01T12:30Z", "2026-06-01T12:30Z", "2026-06-07T00:00Z"},
	} {
		opens := NextOpen(c.windows, at(t, c.asked), time.UTC)
		if !opens.Equal(at(t, c.opens)) || !Open(c.windows, opens, time.UTC) {
			t.Errorf("%s: opens at %v, want %s", c.name, opens, c.opens)
		}
		ends := OpenUntil(c.windows, opens, time.UTC)
		if c.ends == "" && !ends.IsZero() || c.ends != "" && !ends.Equal(at(t, c.ends)) {
			t.Errorf("%s: ends at %v, want %q", c.name, ends, c.ends)
		}
		if c.ends != "" && Open(c.windows, ends, time.UTC) {
			t.Errorf("%s: it is open at its end", c.name)
		}
	}
	if got := OpenUntil(list("Mon 10:00-11:00"), at(t, "2026-06-01T12:00Z"), time.UTC); !got.IsZero() {
		t.Errorf("no window is open, but ends at %v", got)
	}
}

func TestWindowWhateverItIs(t *testing.T) {
	zones := []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia", "Asia/Kathmandu", "America/Caracas"}
	rapid.Check(t, func(t *rapid.T) {
		w := Window{days: uint8(rapid.IntRange(1, everyDay).Draw(t, "days")), from: int16(rapid.IntRange(0, minutes-1).Draw(t, "from")), to: int16(rapid.IntRange(1, minutes).Draw(t, "to"))}
		if w.from == w.to {
			t.Skip("no window")
		}
		loc, err := Location(rapid.SampledFrom(zones).Draw(t, "zone"))
		if err != nil {
			t.Fatal(err)
		}
		asked := drawAfter(t)
		later := asked.Add(time.Duration(rapid.Int64Range(0, int64(30*24*time.Hour)).Draw(t, "later")))
		opens := w.NextOpen(asked, loc)
		switch {
		case opens.Before(asked):
			t.Fatalf("%s: NextOpen(%v) = %v is before it", w, asked, opens)
		case !w.Contains(opens, loc):
			t.Fatalf("%s: is not open at NextOpen(%v) = %v", w, asked, opens)
		case w.Contains(asked, loc) != opens.Equal(asked):
			t.Fatalf("%s: Contains(%v) and NextOpen = %v disagree", w, asked, opens)
		case w.NextOpen(later, loc).Before(opens):
			t.Fatalf("%s: NextOpen(%v) = %v, but of the later %v it is %v", w, asked, opens, later, w.NextOpen(later, loc))
		case opens.Sub(asked) > 15*24*time.Hour:
			t.Fatalf("%s: opens %v after %v", w, opens.Sub(asked), asked)
		}
		ends := w.End(opens, loc)
		if !ends.After(opens) || !w.Contains(ends.Add(-time.Nanosecond), loc) || ends.Sub(opens) > 50*time.Hour {
			t.Fatalf("%s: the opening of %v ends at %v", w, opens, ends)
		}
		if middle := opens.Add(ends.Sub(opens) / 2); !w.Contains(middle, loc) || w.End(middle, loc) != ends {
			t.Fatalf("%s: in the middle of %v to %v, at %v, it ends at %v", w, opens, ends, middle, w.End(middle, loc))
		}
		if back, err := ParseWindow(w.String()); err != nil || back != w {
			t.Fatalf("%+v was written as %q and read as %+v: %v", w, w, back, err)
		}
	})
}

// FuzzParseWindow checks that text is either refused or makes a window that opens, and that is
// written in one form only.
func FuzzParseWindow(f *testing.F) {
	for _, seed := range []string{"22:00-04:00", "Mon-Fri 01:00-05:00", "Sat,Sun 00:00-24:00", "fri-mon 23:59-24:00", "Mon 00:00-00:00", "-", "Mon,", "\x00"} {
		f.Add(seed)
	}
	asked := time.Date(2026, 3, 28, 23, 0, 0, 1, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		w, err := ParseWindow(text)
		if err != nil {
			if !errors.Is(err, fault.ErrInvalid) || len(err.Error()) > 1000 {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if opens := w.NextOpen(asked, time.UTC); opens.Before(asked) || !w.Contains(opens, time.UTC) || w.Length() <= 0 {
			t.Fatalf("%q: opens at %v, for %v", text, opens, w.Length())
		}
		back, err := ParseWindow(w.String())
		if err != nil || back != w || back.String() != w.String() {
			t.Fatalf("%q was written as %q and read as %+v: %v", text, w, back, err)
		}
	})
}

func BenchmarkWindowNextOpen(b *testing.B) {
	w, loc := window(b, "Mon-Fri 22:00-04:00"), zone(b, "Europe/Berlin")
	asked := time.Date(2026, 6, 6, 12, 0, 0, 0, time.UTC)
	for b.Loop() {
		w.NextOpen(asked, loc)
	}
}
