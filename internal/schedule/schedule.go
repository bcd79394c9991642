package schedule

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
	"time"
	_ "time/tzdata" // zones must work on a machine without zone files

	"github.com/robfig/cron/v3"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Bounds of a period.
const (
	MinEvery = time.Second
	MaxEvery = 10 * 365 * 24 * time.Hour

	maxCron = 256
	maxZone = 64
)

// Schedule says when something is due: exactly one of Every and Cron is set. Two
// schedules are the same if they are ==.
type Schedule struct {
	// Every is a period, from MinEvery to MaxEvery. It is counted from the last
	// firing, so an interval lasts Every plus the id's jitter.
	Every time.Duration

	// Cron is a five-field cron expression or a descriptor such as @daily.
	Cron string

	// Zone is the IANA name of the time zone that Cron is read in. Empty is UTC. It
	// may be set only with Cron.
	Zone string

	// Jitter spreads firings over this long after their nominal instant. It is
	// shorter than the shortest interval between two firings.
	Jitter time.Duration
}

// Validate tells whether the schedule can be followed. It fails with
// fault.ErrInvalid on "every", "cron", "zone" or "jitter".
func (s Schedule) Validate() error {
	p, err := s.plan()
	if err != nil {
		return err
	}
	if s.Jitter == 0 {
		return nil
	}
	if shortest := p.minInterval(); s.Jitter < 0 || s.Jitter >= shortest {
		return fault.Invalid("jitter", "jitter_out_of_range", "schedule: jitter %v: want at least 0 and less than %v, the shortest time between two firings", s.Jitter, shortest)
	}
	return nil
}

// Next returns the first firing of id strictly after the given instant, in UTC:
// for Every that is one period and the id's jitter later, for Cron the next
// matching time on the wall clock with the id's jitter added. It is the zero time
// for a schedule that Validate refuses.
func (s Schedule) Next(after time.Time, id string) time.Time {
	p, err := s.plan()
	if err != nil || s.Jitter < 0 {
		return time.Time{}
	}
	after = after.Round(0).UTC()
	j := jitter(id, s.Jitter)
	if p.every > 0 {
		return after.Add(p.every + j)
	}
	next := p.next(after.Add(-j))
	if next.IsZero() {
		return next
	}
	return next.Add(j)
}

// jitter spreads ids evenly over [0, within), in whole microseconds: an instant
// that is stored as microseconds must still be the same firing when it comes back.
func jitter(id string, within time.Duration) time.Duration {
	if within <= 0 {
		return 0
	}
	h := sha256.Sum256([]byte(id))
	j, _ := bits.Mul64(binary.BigEndian.Uint64(h[:]), uint64(within))
	return time.Duration(j).Truncate(time.Microsecond)
}

// MinInterval is the shortest time between two firings of one id, and zero for a
// schedule that Validate refuses. For Cron it takes in the 28 years from 2026, a
// whole cycle of weekdays and leap days, with every clock change of the zone.
func (s Schedule) MinInterval() time.Duration {
	p, err := s.plan()
	if err != nil {
		return 0
	}
	return p.minInterval()
}

// IsZero tells whether no schedule is set.
func (s Schedule) IsZero() bool { return s == Schedule{} }

// String returns the text form that Parse reads, such as "every 720h0m0s",
// "cron 0 3 * * 1 Europe/Berlin" or "cron @daily UTC jitter 1h0m0s". It is empty for
// the zero Schedule.
func (s Schedule) String() string {
	var b strings.Builder
	if s.Every != 0 {
		fmt.Fprintf(&b, "every %v", s.Every)
	}
	if s.Cron != "" {
		fmt.Fprintf(&b, "cron %s %s", strings.Join(strings.Fields(s.Cron), " "), zoneOrUTC(s.Zone))
	}
	if s.Jitter != 0 {
		fmt.Fprintf(&b, " jitter %v", s.Jitter)
	}
	return b.String()
}

// Parse reads what String writes and validates it. The zone may be left out: UTC.
func Parse(text string) (Schedule, error) {
	refuse := func(why string) (Schedule, error) {
		return Schedule{}, fault.Invalid("schedule", "schedule_malformed",
			`schedule %.80q: %s: want "every <duration> [jitter <duration>]" or "cron <five fields> [<zone>] [jitter <duration>]"`, text, why)
	}
	if len(text) > maxCron+maxZone+64 {
		return refuse("it is too long")
	}
	words := strings.Fields(text)
	var s Schedule
	var err error
	if n := len(words); n >= 2 && words[n-2] == "jitter" {
		if s.Jitter, err = time.ParseDuration(words[n-1]); err != nil {
			return refuse("the jitter is not a duration")
		}
		words = words[:n-2]
	}
	switch {
	case len(words) == 2 && words[0] == "every":
		if s.Every, err = time.ParseDuration(words[1]); err != nil {
			return refuse("the period is not a duration")
		}
	case len(words) >= 2 && words[0] == "cron":
		n := 6
		if strings.HasPrefix(words[1], "@") {
			n = 2
		}
		if len(words) != n && len(words) != n+1 {
			return refuse("it has a wrong number of words")
		}
		s.Cron = strings.Join(words[1:n], " ")
		if len(words) > n {
			s.Zone = words[n]
		}
	default:
		return refuse("it is neither a period nor a cron expression")
	}
	return s, s.Validate()
}

// MarshalText is String for a valid schedule.
func (s Schedule) MarshalText() ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return []byte(s.String()), nil
}

// UnmarshalText is Parse.
func (s *Schedule) UnmarshalText(text []byte) error {
	parsed, err := Parse(string(text))
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}

// plan checks all fields but Jitter and makes the schedule ready for arithmetic.
func (s Schedule) plan() (*plan, error) {
	switch {
	case s.Every == 0 && s.Cron == "":
		return nil, fault.Invalid("every", "schedule_required", "schedule: neither a period nor a cron expression is set: set one")
	case s.Every != 0 && s.Cron != "":
		return nil, fault.Invalid("cron", "schedule_ambiguous", "schedule: both a period (%v) and a cron expression (%.80q) are set: set one", s.Every, s.Cron)
	case s.Cron == "" && s.Zone != "":
		return nil, fault.Invalid("zone", "zone_without_cron", "schedule: zone %.80q is set with a period: a zone only matters to a cron expression, remove it", s.Zone)
	case s.Cron == "":
		if s.Every < MinEvery || s.Every > MaxEvery {
			return nil, fault.Invalid("every", "every_out_of_range", "schedule: period %v: want %v to %v", s.Every, MinEvery, MaxEvery)
		}
		return &plan{every: s.Every}, nil
	}
	loc, err := loadZone(s.Zone)
	if err != nil {
		return nil, err
	}
	p, err := parseCron(s.Cron)
	if err != nil {
		return nil, err
	}
	p.loc = loc
	return p, nil
}

func zoneOrUTC(name string) string {
	if name == "" {
		return "UTC"
	}
	return name
}

func loadZone(name string) (*time.Location, error) {
	refuse := func(why string) error {
		return fault.Invalid("zone", "zone_unknown", "schedule: zone %.80q: %s: use an IANA name such as Europe/Berlin or UTC", name, why)
	}
	switch {
	case len(name) > maxZone:
		return nil, refuse("the name is too long")
	case name == "Local", name == "localtime", name == "posixrules", name == "Factory":
		return nil, refuse("it means something else on each machine")
	case strings.HasPrefix(name, "right/"), strings.HasPrefix(name, "posix/"):
		return nil, refuse("it is a variant that not every machine has")
	}
	loc, err := time.LoadLocation(zoneOrUTC(name))
	if err != nil {
		return nil, refuse("it is not known")
	}
	return loc, nil
}

// descriptors, as in crontab(5).
var descriptors = map[string]string{
	"@yearly":   "0 0 1 1 *",
	"@annually": "0 0 1 1 *",
	"@monthly":  "0 0 1 * *",
	"@weekly":   "0 0 * * 0",
	"@daily":    "0 0 * * *",
	"@midnight": "0 0 * * *",
	"@hourly":   "0 * * * *",
}

// parseCron reads an expression; the zone is left to the caller.
func parseCron(expr string) (*plan, error) {
	refuse := func(reason, why string) error {
		return fault.Invalid("cron", reason, "schedule: cron expression %.80q: %s", expr, why)
	}
	if len(expr) > maxCron {
		return nil, refuse("cron_malformed", fmt.Sprintf("it has %d characters, at most %d are allowed", len(expr), maxCron))
	}
	fields := strings.Fields(expr)
	switch {
	case strings.Contains(expr, "="):
		return nil, refuse("cron_zone", "it holds a setting such as TZ=: put the time zone into the zone field")
	case len(fields) > 0 && fields[0] == "@every":
		return nil, refuse("cron_every", "@every is a period: put the duration into the every field")
	case len(fields) == 1 && descriptors[fields[0]] != "":
		fields = strings.Fields(descriptors[fields[0]])
	case len(fields) > 0 && strings.HasPrefix(fields[0], "@"):
		return nil, refuse("cron_malformed", "the descriptor is not one of @yearly @annually @monthly @weekly @daily @midnight @hourly")
	}
	if len(fields) != 5 {
		return nil, refuse("cron_malformed", fmt.Sprintf("it has %d fields, want 5: minute, hour, day of month, month, day of week", len(fields)))
	}
	parser := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)
	parsed, err := parser.Parse(strings.Join(fields, " "))
	if err != nil {
		return nil, refuse("cron_malformed", err.Error())
	}
	spec := parsed.(*cron.SpecSchedule)
	p := &plan{
		minute: spec.Minute &^ star, hour: spec.Hour &^ star,
		day: spec.Dom &^ star, month: spec.Month &^ star, weekday: spec.Dow &^ star,
		bothDays: (spec.Dom|spec.Dow)&star != 0,
		elapsed:  strings.ContainsAny(fields[1], "*?/") && bits.OnesCount64(spec.Hour&^star) > 1,
	}
	// The library takes "," for a field that nothing matches.
	if p.minute == 0 || p.hour == 0 || p.day == 0 || p.month == 0 || p.weekday == 0 {
		return nil, refuse("cron_malformed", "a field is empty")
	}
	if _, ok := p.reading(anchor); !ok {
		return nil, refuse("cron_never", "it never fires: no date matches its day and month")
	}
	return p, nil
}
