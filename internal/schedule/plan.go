package schedule

import (
	"math"
	"math/bits"
	"time"
)

const (
	star   = 1 << 63 // set by the parser in a field that is * or ?
	minute = 60
	day    = 24 * 60 * minute

	// The longest wait of any expression is that for 29 February across a year like
	// 2100: eight years.
	horizon = 9 * 366

	// The clock of a zone that moved across the date line was set by a whole day.
	lookBack = 2 * day

	// 2026-01-01, where enumerations start, and how many days they take in.
	anchor    = 1767225600
	cycleDays = 28*365 + 7
)

// plan is a schedule that has been checked. A reading is what a local clock shows,
// as the Unix time of the clock that shows it in UTC: instant plus zone offset.
type plan struct {
	every time.Duration // the rest matters only when this is 0

	loc                               *time.Location
	minute, hour, day, month, weekday uint64 // bit n: n matches
	bothDays                          bool   // day and weekday must match, not either
	elapsed                           bool   // fires whenever a matching reading is shown
}

// next returns the first firing strictly after the given instant, in UTC, or the
// zero time when there is none.
//
// It walks the stretches of time in which the zone's offset does not change; inside
// one, readings and instants differ by a constant.
func (p *plan) next(after time.Time) time.Time {
	earliest := after.Unix() + 1 // firings are whole seconds
	s := earliest                // start of the stretch, or of what is looked at in it
	if !p.elapsed {
		s -= lookBack // to know which readings were shown before
	}
	offset, end := p.stretch(s)
	shown := s + offset // readings below this one have been shown or passed
	from := max(shown, earliest+offset)
	due, ok := p.reading(from) // the first matching reading not below from
	for ok {
		if due-offset < end {
			return time.Unix(due-offset, 0).UTC()
		}
		shown = max(shown, end+offset)
		s = end
		offset, end = p.stretch(s)
		if !p.elapsed && due < s+offset && s >= earliest {
			return time.Unix(s, 0).UTC() // the gap swallowed it
		}
		again := max(s+offset, earliest+offset)
		if !p.elapsed {
			again = max(again, shown)
		}
		if again < from || due < again {
			due, ok = p.reading(again)
		}
		from = again
	}
	return time.Time{}
}

// stretch returns the zone's offset at an instant and when it next may change.
func (p *plan) stretch(at int64) (offset, end int64) {
	t := time.Unix(at, 0).In(p.loc)
	_, seconds := t.Zone()
	_, until := t.ZoneBounds()
	if until.IsZero() {
		return int64(seconds), math.MaxInt64
	}
	end = until.Unix()
	if end <= at {
		// On the last day of a leap year time.Time.ZoneBounds may answer with an end
		// that is already over (seen with Go 1.26). Zones change on quarter hours.
		end = floor(at, 15*minute) + 15*minute
	}
	return int64(seconds), end
}

// reading returns the first reading that matches the fields and is not below r.
func (p *plan) reading(r int64) (int64, bool) {
	r = ceil(r, minute)
	today := floor(r, day)
	for d := today; d < today+horizon*day; d += day {
		t := time.Unix(d, 0).UTC()
		if p.month>>t.Month()&1 == 0 {
			// To the day before the first of the next month.
			d = time.Date(t.Year(), t.Month()+1, 0, 0, 0, 0, 0, time.UTC).Unix()
			continue
		}
		if !p.dayMatches(t) {
			continue
		}
		if at, ok := p.timeOfDay(int(max(r-d, 0) / minute)); ok {
			return d + int64(at)*minute, true
		}
	}
	return 0, false
}

func (p *plan) dayMatches(t time.Time) bool {
	dom, dow := p.day>>t.Day()&1 == 1, p.weekday>>t.Weekday()&1 == 1
	if p.bothDays {
		return dom && dow
	}
	return dom || dow
}

// timeOfDay returns the first matching minute of the day not below m.
func (p *plan) timeOfDay(m int) (int, bool) {
	h := m / 60
	if p.hour>>h&1 == 1 {
		if later := p.minute >> (m % 60); later != 0 {
			return m + bits.TrailingZeros64(later), true
		}
	}
	later := p.hour >> (h + 1)
	if later == 0 {
		return 0, false
	}
	return (h+1+bits.TrailingZeros64(later))*60 + bits.TrailingZeros64(p.minute), true
}

// minInterval looks at the three things that can bring two firings close: two
// times of one day, the last and first times of two days, and a clock change.
func (p *plan) minInterval() time.Duration {
	if p.every > 0 {
		return p.every
	}
	shortest := int64(math.MaxInt64)

	first, _ := p.timeOfDay(0)
	last := first
	for at, ok := p.timeOfDay(first + 1); ok && at < day/minute; at, ok = p.timeOfDay(at + 1) {
		shortest = min(shortest, int64(at-last)*minute)
		last = at
	}

	const end = anchor + cycleDays*day
	previous := int64(0)
	for d := int64(anchor); d < end; d += day {
		t := time.Unix(d, 0).UTC()
		if p.month>>t.Month()&1 == 0 || !p.dayMatches(t) {
			continue
		}
		if previous != 0 {
			shortest = min(shortest, d-previous+int64(first-last)*minute)
		}
		previous = d
	}

	for at := int64(anchor); at < end; {
		before, change := p.stretch(at)
		if change >= end {
			break
		}
		if after, _ := p.stretch(change); after != before {
			shortest = min(shortest, p.shortestAround(change))
		}
		at = change
	}
	return time.Duration(shortest) * time.Second
}

// shortestAround returns the shortest interval from the last firing before a clock
// change to the second one not before it.
func (p *plan) shortestAround(change int64) int64 {
	shortest := int64(math.MaxInt64)
	for back := int64(2 * minute); back < horizon*day; back *= 2 {
		last := p.next(time.Unix(change-back, 0)).Unix()
		if last >= change {
			continue
		}
		for later := 0; later < 2; {
			at := p.next(time.Unix(last, 0)).Unix()
			shortest = min(shortest, at-last)
			if last = at; at >= change {
				later++
			}
		}
		break
	}
	return shortest
}

func floor(n, unit int64) int64 { return n - ((n%unit)+unit)%unit }

func ceil(n, unit int64) int64 { return floor(n+unit-1, unit) }
