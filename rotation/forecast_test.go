package rotation

import (
	"fmt"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
)

// simulated counts the rotations of a credential by asking decide, as the passes do.
func simulated(c *Credential, from time.Time, days int) (hours map[int]int64, total int64) {
	hours = map[int]int64{}
	end := from.AddDate(0, 0, days)
	k := *c
	for now := k.NextAt; !now.IsZero() && now.Before(end); now = k.NextAt {
		if now.Before(from) {
			now = from
		}
		start, _, next, due := decide(&k, now)
		if start {
			hours[int(now.Sub(from)/time.Hour)]++
			total++
			k.RotatedAt = now
		}
		k.NextAt, k.DueAt = next, due
		k.settle(now)
	}
	return hours, total
}

// The forecast agrees with what the passes will do, hour by hour.
func TestForecastWhenComparedWithThePasses(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{quota: 0.001})
		window := func(text string) []schedule.Window {
			w, err := schedule.ParseWindow(text)
			if err != nil {
				t.Fatal(err)
			}
			return []schedule.Window{w}
		}
		const days = 90
		want := make([]int64, days*24)
		total := int64(0)
		for i, s := range []struct {
			schedule schedule.Schedule
			windows  []schedule.Window
		}{
			{schedule.Schedule{Cron: "0 3 * * *"}, nil},
			{schedule.Schedule{Cron: "0 3 * * *", Zone: "Europe/Berlin", Jitter: 2 * time.Hour}, nil},
			{schedule.Schedule{Cron: "0 3 * * *", Zone: "Europe/Berlin", Jitter: 2 * time.Hour}, nil},
			{schedule.Schedule{Cron: "30 2 * * 1", Zone: "America/New_York"}, window("22:00-04:00")},
			{schedule.Schedule{Cron: "30 12 * * *", Zone: "America/New_York", Jitter: time.Hour}, window("22:00-04:00")},
			{schedule.Schedule{Cron: "30 12 * * *"}, window("Sat 01:00-04:00")}, // seven firings, one rotation
			{schedule.Schedule{Every: 36 * time.Hour, Jitter: time.Hour}, nil},
			{schedule.Schedule{Every: 20 * time.Hour}, window("Mon-Fri 08:00-18:00")},
			{schedule.Schedule{Cron: "*/15 * * * *"}, nil},
			{schedule.Schedule{Every: 720 * time.Hour}, nil},
			{schedule.Schedule{Cron: "30 23 * * *", Jitter: 20 * time.Hour}, nil},
		} {
			c := r.credential(fmt.Sprint("c", i), providers.Dual, func(spec *Spec) { spec.Schedule, spec.Windows, spec.Grace = s.schedule, s.windows, 0 })
			hours, n := simulated(c, rigEpoch, days)
			for h, n := range hours {
				want[h] += n
			}
			total += n
		}
		r.credential("plain", providers.Dual, nil)
		r.credential("paused", providers.Dual, func(s *Spec) { s.Schedule = schedule.Schedule{Cron: "@daily"} })
		if _, err := r.creds.Pause(t.Context(), "paused", ""); err != nil {
			t.Fatal(err)
		}
		f, err := r.creds.Forecast(t.Context(), rigEpoch.Add(time.Minute), days)
		if err != nil {
			t.Fatal(err)
		}
		if f.Credentials != 11 || f.Paused != 1 || f.Unscheduled != 1 || f.Stuck != 0 || f.Rotations != total || len(f.Hours) != days*24 || !f.From.Equal(rigEpoch) {
			t.Errorf("%d credentials, %d paused, %d unscheduled, %d stuck, %d rotations; want %d rotations", f.Credentials, f.Paused, f.Unscheduled, f.Stuck, f.Rotations, total)
		}
		peak, wrong := int64(0), 0
		for h, n := range want {
			peak = max(peak, n)
			if f.Hours[h].Rotations != n {
				if wrong++; wrong < 5 {
					t.Errorf("%v: %d rotations, the passes make %d", f.Hours[h].At, f.Hours[h].Rotations, n)
				}
			}
		}
		if f.Peak.Rotations != peak {
			t.Errorf("the peak is %d, want %d", f.Peak.Rotations, peak)
		}
		// 0.001 writes a second, 3 a rotation: one in an hour.
		if len(f.Systems) != 2 || f.Systems[0].Sort != StoreSort || f.Systems[0].PerHour != 1 || f.Systems[0].Rotations != total || f.Systems[0].Peak != peak || f.Systems[0].Over == 0 || f.Systems[1].PerHour != 0 {
			t.Errorf("%+v", f.Systems)
		}

		// A part of it is the same part. (Periods with windows are left out: where one is then depends
		// on all before.)
		if err := r.creds.Delete(t.Context(), "c7", ""); err != nil {
			t.Fatal(err)
		}
		if f, err = r.creds.Forecast(t.Context(), rigEpoch, days); err != nil {
			t.Fatal(err)
		}
		part, err := r.creds.Forecast(t.Context(), rigEpoch.AddDate(0, 0, 30).Add(time.Hour), 30)
		if err != nil {
			t.Fatal(err)
		}
		for h, want := range f.Hours[30*24+1 : 60*24+1] {
			if part.Hours[h] != want {
				t.Errorf("of the whole %+v, of the part %+v", want, part.Hours[h])
				break
			}
		}

		// What is due already is in the first hour.
		r.clock.Set(rigEpoch.AddDate(0, 0, 400))
		late, err := r.creds.Forecast(t.Context(), rigEpoch.AddDate(0, 0, 400), 1)
		if err != nil || late.Hours[0].Rotations < 9 {
			t.Errorf("%d in the first hour after an outage, %v", late.Hours[0].Rotations, err)
		}
		for _, days := range []int{0, -1, 367} {
			_, err := r.creds.Forecast(t.Context(), rigEpoch, days)
			wantReason(t, err, fault.ErrInvalid, "days_range")
		}
	})
}

// Schedules that fire all the time don't make it slow.
func TestForecastWhenFiringsAreMany(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	for i := range 5 {
		r.credential(fmt.Sprint("s", i), providers.Dual, func(s *Spec) { s.Schedule, s.Grace = schedule.Schedule{Every: time.Second}, 0 })
		r.credential(fmt.Sprint("m", i), providers.Dual, func(s *Spec) { s.Schedule, s.Grace = schedule.Schedule{Cron: "* * * * *"}, 0 })
	}
	f, err := r.creds.Forecast(t.Context(), rigEpoch, 366)
	if err != nil {
		t.Fatal(err)
	}
	// By the hour, so the firings of the first one are not exact.
	if h := f.Hours[100]; h.Rotations != 5*3600+5*60 {
		t.Errorf("%d in an hour, want %d", h.Rotations, 5*3600+5*60)
	}
}

func BenchmarkForecast(b *testing.B) {
	db := storetest.SQLite(b)
	r := newRig(b, db, rigConfig{})
	for i := range 200 {
		r.credential(fmt.Sprint("c", i), providers.Dual, func(s *Spec) {
			s.Schedule = schedule.Schedule{Cron: fmt.Sprintf("%d 3 * * *", i%60), Zone: "Europe/Berlin", Jitter: time.Hour}
		})
	}
	for b.Loop() {
		if _, err := r.creds.Forecast(b.Context(), rigEpoch, 90); err != nil {
			b.Fatal(err)
		}
	}
}
