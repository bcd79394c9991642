package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// progress is a bar on the terminal, rewritten in place. Without a terminal, or
// when it is not wanted, it shows nothing. It is for one goroutine at a time.
type progress struct {
	c           *cli
	word        string // what is under way: "exporting"
	on          bool
	began, last time.Time
	first       int64 // where this run began, for the rate
}

func (c *cli) newProgress(word string, quiet bool) *progress {
	now := c.now()
	return &progress{c: c, word: word, on: c.barWidth > 0 && !quiet, began: now, last: now}
}

// show tells how far it has come: done of total, of which records were written
// or verified in this run.
func (p *progress) show(done, total, records int64) {
	if !p.on {
		return
	}
	now := p.c.now()
	if now.Sub(p.last) < 200*time.Millisecond {
		return
	}
	p.last = now
	fmt.Fprint(p.c.stderr, "\r\x1b[K"+p.line(now, done, total, records))
}

func (p *progress) line(now time.Time, done, total, records int64) string {
	share := 1.0
	if total > 0 {
		share = min(float64(done)/float64(total), 1)
	}
	text := fmt.Sprintf("%3.0f%%  %s", 100*share, counted(records, "record"))
	if elapsed := now.Sub(p.began).Seconds(); elapsed > 0 && records > 0 {
		text += fmt.Sprintf("  %s/s", thousands(int64(float64(records)/elapsed)))
	}
	if moved := done - p.first; moved > 0 && done < total {
		left := time.Duration(float64(now.Sub(p.began)) / float64(moved) * float64(total-done))
		text += "  " + roughly(max(left, time.Second)) + " left"
	}
	head := p.word + "  "
	// One column stays free: a terminal would wrap at its last one.
	if room := min(p.c.barWidth-1-len(head)-4-utf8.RuneCountInString(text), 40); room >= 8 {
		full := int(share * float64(room))
		head += "[" + strings.Repeat("#", full) + strings.Repeat(".", room-full) + "]  "
	}
	line := []rune(head + text)
	return string(line[:min(len(line), max(p.c.barWidth-1, 0))])
}

// clear takes the bar away, before something else is written and at the end.
func (p *progress) clear() {
	if p.on {
		fmt.Fprint(p.c.stderr, "\r\x1b[K")
	}
}
