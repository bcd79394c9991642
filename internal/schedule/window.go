package schedule

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

const (
	everyDay  = 1<<7 - 1
	minutes   = 24 * 60
	maxWindow = 64 // bytes of its text

	// A window opens at least once a week. Clock changes may swallow one opening, and a zone
	// that crosses the date line a whole day.
	openingHorizon = 24
)

// Window is a stretch of local time in which something may begin, on some days of the week. It
// has its zone from the caller. Two windows are the same if they are ==; the zero Window is not
// valid and never open.
type Window struct {
	days     uint8 // bit n: the days that have the number n as time.Weekday; of the opening's begin
	from, to int16 // minutes of the day; to is 1 to 24*60; to <= from: on the next day
}

var dayNames = [...]string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// ParseWindow reads "[DAYS ]HH:MM-HH:MM". DAYS are names of three letters (Mon, Tue, …), ranges of
// them, which may run over Sunday, with commas in between; without them it is every day. An end
// that is not after the begin is on the next day. 24:00 is the end of a day, so "00:00-24:00" is
// all of it.
func ParseWindow(text string) (Window, error) {
	refuse := func(why string) (Window, error) {
		return Window{}, fault.Invalid("windows", "window_malformed", `window %.80q: %s: want "22:00-04:00", "Mon-Fri 01:00-05:00" or "Sat,Sun 00:00-24:00"`, text, why)
	}
	if len(text) > maxWindow {
		return refuse("it is too long")
	}
	words := strings.Fields(text)
	w := Window{days: everyDay}
	switch len(words) {
	case 1:
	case 2:
		var ok bool
		if w.days, ok = parseDays(words[0]); !ok {
			return refuse("its days are no list of Mon, Tue, Wed, Thu, Fri, Sat and Sun")
		}
	default:
		return refuse("it has a wrong number of words")
	}
	from, to, ok := strings.Cut(words[len(words)-1], "-")
	if !ok {
		return refuse("its times have no - in between")
	}
	var fromOK, toOK bool
	w.from, fromOK = parseTime(from)
	w.to, toOK = parseTime(to)
	switch {
	case !fromOK || !toOK:
		return refuse("a time is not HH:MM, from 00:00 to 24:00")
	case w.from == minutes:
		return refuse("24:00 is an end only, a window begins at 00:00 of the next day")
	case w.from == w.to:
		return refuse("it begins and ends at the same time, and for a whole day the end is 24:00")
	case w.to == 0:
		w.to = minutes // the same instant
	}
	return w, nil
}

func parseDays(text string) (days uint8, ok bool) {
	for item := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(item, "-")
		from := dayOf(first)
		to := from
		if isRange {
			to = dayOf(last)
		}
		if from < 0 || to < 0 {
			return 0, false
		}
		for d := from; ; d = (d + 1) % 7 {
			days |= 1 << d
			if d == to {
				break
			}
		}
	}
	return days, true
}

func dayOf(name string) int {
	return slices.IndexFunc(dayNames[:], func(n string) bool { return strings.EqualFold(n, name) })
}

func parseTime(text string) (int16, bool) {
	if len(text) != 5 || text[2] != ':' {
		return 0, false
	}
	for i, c := range []byte(text) {
		if i != 2 && (c < '0' || c > '9') {
			return 0, false
		}
	}
	h, m := int16(text[0]-'0')*10+int16(text[1]-'0'), int16(text[3]-'0')*10+int16(text[4]-'0')
	at := h*60 + m
	return at, m < 60 && at <= minutes
}

// String is the one text form of the window that ParseWindow reads; empty for the zero Window.
func (w Window) String() string {
	if w.days == 0 {
		return ""
	}
	var b strings.Builder
	if w.days != everyDay {
		// From Monday on; three and more days in a row are a range.
		var items []string
		for i := 0; i < 7; {
			if w.days>>day7(i)&1 == 0 {
				i++
				continue
			}
			j := i
			for j+1 < 7 && w.days>>day7(j+1)&1 == 1 {
				j++
			}
			if j-i >= 2 {
				items = append(items, dayNames[day7(i)]+"-"+dayNames[day7(j)])
			} else {
				for k := i; k <= j; k++ {
					items = append(items, dayNames[day7(k)])
				}
			}
			i = j + 1
		}
		b.WriteString(strings.Join(items, ",") + " ")
	}
	fmt.Fprintf(&b, "%02d:%02d-%02d:%02d", w.from/60, w.from%60, w.to/60, w.to%60)
	return b.String()
}

// day7 is the number of the i-th day of a week that begins on Monday.
func day7(i int) int { return (i + 1) % 7 }

// MarshalText is String for a valid window.
func (w Window) MarshalText() ([]byte, error) {
	if w.days == 0 {
		return nil, fault.Invalid("windows", "window_malformed", "window: it is empty")
	}
	return []byte(w.String()), nil
}

// UnmarshalText is ParseWindow.
func (w *Window) UnmarshalText(text []byte) error {
	parsed, err := ParseWindow(string(text))
	if err != nil {
		return err
	}
	*w = parsed
	return nil
}

// Length is how long the window is by the local clock.
func (w Window) Length() time.Duration {
	length := int(w.to) - int(w.from)
	if length <= 0 {
		length += minutes
	}
	return time.Duration(length) * time.Minute
}

// Location returns the zone of a name that Schedule.Zone may have; empty is UTC.
func Location(zone string) (*time.Location, error) { return loadZone(zone) }

// Contains tells whether the window is open at t.
func (w Window) Contains(t time.Time, loc *time.Location) bool {
	open, _, ok := w.opening(t, loc)
	return ok && !open.After(t)
}

// NextOpen is the first instant not before t at which the window is open, in UTC: t itself when
// it is open then. It is zero for the zero Window.
func (w Window) NextOpen(t time.Time, loc *time.Location) time.Time {
	open, _, ok := w.opening(t, loc)
	switch {
	case !ok:
		return time.Time{}
	case open.After(t):
		return open
	}
	return t.Round(0).UTC()
}

// End is when the opening ends that t is in, in UTC; zero when the window is not open at t.
func (w Window) End(t time.Time, loc *time.Location) time.Time {
	open, end, ok := w.opening(t, loc)
	if !ok || open.After(t) {
		return time.Time{}
	}
	return end
}

// opening is the first opening that ends after t.
func (w Window) opening(t time.Time, loc *time.Location) (open, end time.Time, ok bool) {
	if w.days == 0 {
		return open, end, false
	}
	p := plan{loc: loc}
	_, offset := t.In(loc).Zone()
	// Openings begin on a day of the local calendar. One lasts for less than two days, and so
	// does what a clock change moves.
	today := floor(t.Unix()+int64(offset), day)
	for d := today - 3*day; d < today+openingHorizon*day; d += day {
		if w.days>>time.Unix(d, 0).UTC().Weekday()&1 == 0 {
			continue
		}
		from, to := d+int64(w.from)*minute, d+int64(w.to)*minute
		if w.to <= w.from {
			to += day
		}
		begins, ends := p.firstShown(from), p.lastShown(to)
		if begins < ends && time.Unix(ends, 0).After(t) {
			return time.Unix(begins, 0).UTC(), time.Unix(ends, 0).UTC(), true
		}
	}
	return open, end, false
}

// firstShown is the first instant at which the local clock shows a reading or has gone past it.
func (p *plan) firstShown(reading int64) int64 {
	for at := reading - lookBack; ; {
		offset, end := p.stretch(at)
		if shown := max(at, reading-offset); shown < end {
			return shown
		}
		at = end
	}
}

// lastShown is the last instant at which the local clock shows a reading, or the first after the
// gap that swallowed it: at every later one it shows more.
func (p *plan) lastShown(reading int64) int64 {
	last := int64(0)
	for at := reading - lookBack; at < reading+lookBack; {
		offset, end := p.stretch(at)
		if below := min(end, reading-offset); at < below {
			last = below
		}
		at = end
	}
	return last
}

// Open tells whether one of the windows is open at t; without windows it always is.
func Open(windows []Window, t time.Time, loc *time.Location) bool {
	return len(windows) == 0 || slices.ContainsFunc(windows, func(w Window) bool { return w.Contains(t, loc) })
}

// NextOpen is the first instant not before t at which one of the windows is open, in UTC; without
// windows it is t.
func NextOpen(windows []Window, t time.Time, loc *time.Location) time.Time {
	first := t.Round(0).UTC()
	for i, w := range windows {
		if at := w.NextOpen(t, loc); i == 0 || at.Before(first) {
			first = at
		}
	}
	return first
}

// OpenUntil is when the windows are all closed again after t, at which one of them is open, in UTC:
// openings that overlap or touch are one. It is zero when none is open at t, and when that
// never ends, as without windows.
func OpenUntil(windows []Window, t time.Time, loc *time.Location) time.Time {
	if len(windows) == 0 || !Open(windows, t, loc) {
		return time.Time{}
	}
	// Windows repeat every week.
	for end, limit := t, t.AddDate(0, 0, 2*openingHorizon); ; {
		further := end
		for _, w := range windows {
			if at := w.End(end, loc); at.After(further) {
				further = at
			}
		}
		switch {
		case further.Equal(end):
			return end.Round(0).UTC()
		case further.After(limit):
			return time.Time{}
		}
		end = further
	}
}

// Offset is how much later than its nominal instant the schedule fires for an id: its jitter.
func (s Schedule) Offset(id string) time.Duration { return jitter(id, s.Jitter) }
