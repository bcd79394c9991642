package rotation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	maxForecastDays    = 366
	maxForecastSystems = 2000 // each has a number per hour

	// A schedule with more firings than this is counted by the hour, and without its jitter,
	// which is shorter than the time between two of them.
	maxFirings = 10_000

	// Schedules whose firings are remembered: most credentials share a few.
	maxRemembered = 256
)

// ForecastHour is one hour of a forecast.
type ForecastHour struct {
	At        time.Time
	Rotations int64
}

// ForecastSystem is what a forecast says of one store or target.
type ForecastSystem struct {
	Sort      Sort
	Name      string
	Rotations int64 // in all
	Peak      int64 // in its busiest hour
	PeakAt    time.Time
	PerHour   int64 // how many rotations an hour its quota has room for; 0: no quota is known
	Over      int64 // hours with more than PerHour
}

// Forecast says how many scheduled rotations are ahead. It takes in jitter, windows, and what is
// due already; not rotations that people ask for, nor failures.
type Forecast struct {
	From        time.Time // a full hour
	Days        int
	Credentials int64 // that are active and have a schedule
	Paused      int64
	Unscheduled int64
	Stuck       int64 // a missed firing waits for a person, or the row was tampered with
	Rotations   int64
	Hours       []ForecastHour // all hours, also those without
	Peak        ForecastHour
	Systems     []ForecastSystem // those over their quota first, then by peak
}

// forecast is a forecast that is being made.
type forecast struct {
	from, end  int64 // Unix seconds
	ahead      bool  // from is in the future: what comes before is not late, but done by then
	hours      []int64
	systems    map[systemName][]uint32
	remembered map[schedule.Schedule]*firings
}

// firings are the nominal firings of a schedule in the time of a forecast.
type firings struct {
	at     []int64  // Unix seconds
	hourly []uint32 // instead, when there are too many
}

// Forecast counts the scheduled rotations of the days (1 to 366) after from, by hour, store and
// target. It reads all credentials, a thousand at a time.
func (cs *Credentials) Forecast(ctx context.Context, from time.Time, days int) (*Forecast, error) {
	if days < 1 || days > maxForecastDays {
		return nil, fault.Invalid("days", "days_range", "forecast: %d days are outside 1 to %d", days, maxForecastDays)
	}
	from = from.UTC().Truncate(time.Hour)
	rates, err := cs.systems.rates(ctx)
	if err != nil {
		return nil, fmt.Errorf("forecast: %w", err)
	}
	n := days * 24
	f := &forecast{from: from.Unix(), end: from.Unix() + int64(n)*3600, hours: make([]int64, n), systems: map[systemName][]uint32{}, remembered: map[schedule.Schedule]*firings{}}
	f.ahead = from.After(cs.db.Now())
	out := &Forecast{From: from, Days: days}
	for page := ""; ; {
		var batch []*Credential
		err := cs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
			batch, err = cs.systems.listCredentials(ctx, tx, ListCredentials{Page: page}, streamPage)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("forecast: %w", err)
		}
		for _, c := range batch {
			page = c.Name
			switch {
			case c.tampered:
				out.Stuck++
			case c.Schedule.IsZero():
				out.Unscheduled++
			case c.State != CredentialActive:
				out.Paused++
			case c.NextAt.IsZero():
				out.Stuck++
			default:
				out.Credentials++
				if err := f.add(c); err != nil {
					return nil, err
				}
			}
		}
		if len(batch) < streamPage {
			break
		}
	}
	f.into(out, rates)
	return out, nil
}

// add counts the firings of one credential.
func (f *forecast) add(c *Credential) error {
	var rows [][]uint32
	for _, name := range c.systems() {
		row := f.systems[name]
		if row == nil {
			if len(f.systems) >= maxForecastSystems {
				return fault.New(fault.ErrLimited, "too_many", "forecast: there are more than %d stores and targets", maxForecastSystems)
			}
			row = make([]uint32, len(f.hours))
			f.systems[name] = row
		}
		rows = append(rows, row)
	}
	count := func(at int64, n uint32) {
		if at < f.from && !f.ahead {
			at = f.from // it is due already
		}
		if at < f.from || at >= f.end {
			return
		}
		h := (at - f.from) / 3600
		f.hours[h] += int64(n)
		for _, row := range rows {
			row[h] += n
		}
	}
	first := c.NextAt.Unix()
	count(first, 1)
	if c.Schedule.Every > 0 {
		f.addPeriod(c, first, count)
		return nil
	}
	offset := int64(c.Schedule.Offset(c.Name) / time.Second)
	all := f.firings(c.Schedule)
	if all.hourly != nil {
		for h, n := range all.hourly {
			if at := f.from + int64(h)*3600; n > 0 && at > first && windowsOpen(c, at) {
				count(at, n)
			}
		}
		return nil
	}
	after := max(first, c.DueAt.Unix())
	at, _ := slices.BinarySearch(all.at, after-offset+1)
	loc := c.location()
	for last := first; at < len(all.at); at++ {
		begins := all.at[at] + offset
		if len(c.Windows) > 0 {
			begins = schedule.NextOpen(c.Windows, time.Unix(begins, 0), loc).Unix()
			if begins == last { // several firings begin with one opening, and are one rotation
				continue
			}
			last = begins
		}
		count(begins, 1)
	}
	return nil
}

func windowsOpen(c *Credential, at int64) bool {
	return len(c.Windows) == 0 || schedule.Open(c.Windows, time.Unix(at, 0), c.location())
}

// addPeriod counts the firings of a period after the first. The period begins anew with each
// rotation.
func (f *forecast) addPeriod(c *Credential, first int64, count func(int64, uint32)) {
	period := c.Schedule.Every + c.Schedule.Offset(c.Name)
	from, end := max(first, f.from), time.Unix(f.end, 0)
	if time.Duration(f.end-from)*time.Second/period > maxFirings { // many in each hour
		for h := from - from%3600; h < f.end; h += 3600 {
			if n := time.Hour / period; windowsOpen(c, h) {
				count(h, uint32(n))
			}
		}
		return
	}
	loc := c.location()
	at := c.NextAt
	if begin := time.Unix(f.from, 0); at.Before(begin) {
		if f.ahead {
			at = at.Add(begin.Sub(at).Truncate(period))
		} else {
			at = begin
		}
	}
	for {
		if at = schedule.NextOpen(c.Windows, at.Add(period), loc); !at.Before(end) {
			return
		}
		count(at.Unix(), 1)
	}
}

// firings are those of a schedule without its jitter.
func (f *forecast) firings(s schedule.Schedule) *firings {
	s.Jitter = 0
	if all, ok := f.remembered[s]; ok {
		return all
	}
	all := &firings{}
	// Jitter may bring firings of before into the time.
	for at := s.Next(time.Unix(f.from, 0).Add(-s.MinInterval()-time.Second), ""); !at.IsZero() && at.Unix() < f.end; at = s.Next(at, "") {
		if all.hourly == nil {
			all.at = append(all.at, at.Unix())
			if len(all.at) > maxFirings {
				all.hourly = make([]uint32, len(f.hours))
				for _, t := range all.at {
					if t >= f.from {
						all.hourly[(t-f.from)/3600]++
					}
				}
				all.at = nil
			}
		} else if at.Unix() >= f.from {
			all.hourly[(at.Unix()-f.from)/3600]++
		}
	}
	if len(f.remembered) >= maxRemembered {
		for forget := range f.remembered {
			delete(f.remembered, forget)
			break
		}
	}
	f.remembered[s] = all
	return all
}

// into sums up.
func (f *forecast) into(out *Forecast, rates map[systemName]float64) {
	out.Hours = make([]ForecastHour, len(f.hours))
	for h, n := range f.hours {
		out.Hours[h] = ForecastHour{At: out.From.Add(time.Duration(h) * time.Hour), Rotations: n}
		out.Rotations += n
		if n > out.Peak.Rotations {
			out.Peak = out.Hours[h]
		}
	}
	for name, row := range f.systems {
		s := ForecastSystem{Sort: name.sort, Name: name.name, PerHour: int64(rates[name] * 3600)}
		for h, n := range row {
			s.Rotations += int64(n)
			if int64(n) > s.Peak {
				s.Peak, s.PeakAt = int64(n), out.From.Add(time.Duration(h)*time.Hour)
			}
			if s.PerHour > 0 && int64(n) > s.PerHour {
				s.Over++
			}
		}
		out.Systems = append(out.Systems, s)
	}
	slices.SortFunc(out.Systems, func(a, b ForecastSystem) int {
		if d := compareMost(a.Over, b.Over); d != 0 {
			return d
		}
		if d := compareMost(a.Peak, b.Peak); d != 0 {
			return d
		}
		return strings.Compare(string(a.Sort)+a.Name, string(b.Sort)+b.Name)
	})
}
