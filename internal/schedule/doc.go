// Package schedule says when something is due. It is arithmetic: no clock, no
// goroutine, no state. The caller says what time it is.
//
// # Model
//
// A [Schedule] is either a period (Every), counted from the instant it is given,
// or a five-field cron expression (Cron) read on the wall clock of a time zone.
// [Schedule.Next] is the first instant strictly after the given one, moved later by
// the caller's jitter: a hash of its id, spread evenly over [0, Jitter). The same
// id always gets the same jitter, so many schedules are spread out and each stays
// predictable.
//
// # Cron
//
// The fields are minute, hour, day of month, month, day of week, as
// github.com/robfig/cron/v3 parses them: lists, ranges, steps, names of months and
// days, Sunday is 0. When both day fields are restricted, either may match. The
// descriptors @yearly, @annually, @monthly, @weekly, @daily, @midnight and @hourly
// stand for five fields. A zone inside the expression (TZ=, CRON_TZ=) and @every are
// refused: they have fields of their own.
//
// # When the clocks change
//
// Only parsing is left to the library. Its search loses or moves firings around
// clock changes: "30 2 * * *" skips the day on which 02:30 does not exist and fires
// twice on the day that has it twice, and it gives up after five years, which loses
// 29 February 2104. The rule here is:
//
//   - Set times. A time fires at the first instant at which the local clock shows it
//     or has gone past it. So a time that does not exist fires at the first instant
//     after the gap (several such times fire once, together), and a time that exists
//     twice fires once, the first time.
//   - An hour field with *, ? or a step that selects more than one hour follows
//     elapsed time: it fires at every instant at which the local clock shows a
//     matching time. So "0 * * * *" goes on hour by hour: nothing is made up for an
//     hour that does not exist, and an hour that exists twice fires twice.
//
// # Windows
//
// A [Window] is a stretch of local time on some days of the week, in which something may begin:
// "Mon-Fri 22:00-04:00". The days are those on which it begins; an end that is not after the begin
// is on the next day. It has no zone of its own: the caller gives one. When the clocks change:
//
//   - It opens at the first instant at which the local clock shows the begin or has gone past it: a
//     begin that does not exist is the first instant after the gap, one that exists twice is the first.
//   - It closes at the last instant at which the local clock shows the end, or at the first after the
//     gap that swallowed it: an end that exists twice is the second.
//   - A window that lies wholly in a gap does not open on that day.
//
// Of several windows, [Open], [NextOpen] and [OpenUntil] speak as of one: openings that overlap or
// touch are one opening.
//
// Zone data is compiled in, so zones work on a machine that has none. Where the
// machine has its own, that is used, so that it can be kept up to date.
//
// # Invariants
//
//   - Next(t) > t, and Next is monotone in t: a clock that is stepped back asks again
//     about the past and gets the same answers.
//   - A schedule that passes Validate always has a next firing (up to the year 9999).
//   - No two firings of one id are closer than MinInterval, and Jitter is shorter.
//   - A window is open at its NextOpen, which is monotone in t, and at most 15 days away.
//
// # What happens on failure
//
// Validate and Parse refuse with fault.ErrInvalid and the field at fault. A schedule
// that they would refuse has no firings: Next is the zero time. So it is with ParseWindow
// and the zero Window.
package schedule
