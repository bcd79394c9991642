package bundle

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

const (
	treeTitle = "rotunda trail tree 1"
	gapsTitle = "rotunda trail gaps 1"
)

func formatTree(left, right []tlog.Hash) string {
	var b strings.Builder
	b.WriteString(treeTitle + "\n")
	for _, h := range left {
		b.WriteString("left " + base64.StdEncoding.EncodeToString(h[:]) + "\n")
	}
	for _, h := range right {
		b.WriteString("right " + base64.StdEncoding.EncodeToString(h[:]) + "\n")
	}
	return b.String()
}

func parseTree(text string) (left, right []tlog.Hash, err error) {
	lines := strings.Split(text, "\n")
	if lines[0] != treeTitle || lines[len(lines)-1] != "" || len(lines) > 256 {
		return nil, nil, fmt.Errorf("it does not begin with the line %q, or is cut short, or too long", treeTitle)
	}
	for _, line := range lines[1 : len(lines)-1] {
		side, value, _ := strings.Cut(line, " ")
		h, err := parseHash(value)
		switch {
		case err != nil:
			return nil, nil, err
		case side == "left" && len(right) == 0:
			left = append(left, h)
		case side == "right":
			right = append(right, h)
		default:
			return nil, nil, fmt.Errorf("it has a line that begins with %.20q", side)
		}
	}
	return left, right, nil
}

func parseHash(text string) (h tlog.Hash, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != tlog.HashSize || len(text) != 44 {
		return h, errors.New("a hash is not 32 bytes in base64")
	}
	copy(h[:], raw)
	return h, nil
}

// joinNotes writes signed notes, or other texts that have stanzas, with an empty
// line between two. splitNotes takes them apart by their number of stanzas.
func joinNotes(notes []string) string { return strings.Join(notes, "\n") }

func splitNotes(text string, stanzas int) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	all := strings.SplitAfter(text, "\n\n")
	if len(all)%stanzas != 0 || !strings.HasSuffix(text, "\n") || strings.HasSuffix(text, "\n\n") {
		return nil, errors.New("it is cut short, or has too many empty lines")
	}
	var notes []string
	for i := 0; i < len(all); i += stanzas {
		note := strings.Join(all[i:i+stanzas], "")
		if i+stanzas < len(all) {
			note = strings.TrimSuffix(note, "\n")
		}
		notes = append(notes, note)
	}
	return notes, nil
}

// appendGap writes a gap's lines.
func appendGap(b []byte, g *Gap) []byte {
	b = fmt.Appendf(b, "gap %d %d %s\n", g.Begin, g.End, g.Why)
	for _, e := range g.Entries {
		b = append(b, "leaf "...)
		b = base64.StdEncoding.AppendEncode(b, e)
		b = append(b, '\n')
	}
	if len(g.Entries) == 0 {
		for _, h := range g.Hashes {
			b = append(b, "hash "...)
			b = base64.StdEncoding.AppendEncode(b, h[:])
			b = append(b, '\n')
		}
	}
	return b
}

// gapReader reads a gaps file, a gap at a time.
type gapReader struct {
	lines *bufio.Scanner
	line  string // the line that was read and not used yet
	ended bool
}

func newGapReader(r io.Reader) (*gapReader, error) {
	g := &gapReader{lines: bufio.NewScanner(&wholeLines{r: r})}
	// The longest line holds a leaf: two texts of trail.MaxText and 300 bytes more.
	g.lines.Buffer(make([]byte, 4096), 4096)
	if err := g.advance(); err != nil {
		return nil, err
	}
	if g.ended || g.line != gapsTitle {
		return nil, fmt.Errorf("it does not begin with the line %q", gapsTitle)
	}
	return g, g.advance()
}

// wholeLines fails at the end of a text whose last line has no end, and on
// carriage returns, both of which a Scanner would pass over.
type wholeLines struct {
	r    io.Reader
	last byte
}

func (w *wholeLines) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	for _, c := range p[:n] {
		if c == '\r' {
			return 0, errors.New("it has a carriage return")
		}
		w.last = c
	}
	if errors.Is(err, io.EOF) && n == 0 && w.last != '\n' {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

func (g *gapReader) advance() error {
	if !g.lines.Scan() {
		g.ended, g.line = true, ""
		return g.lines.Err()
	}
	g.line = g.lines.Text()
	return nil
}

// next reads the next gap, or returns io.EOF. Where a gap has entries, Hashes is
// computed from them.
func (g *gapReader) next() (*Gap, error) {
	if g.ended {
		return nil, io.EOF
	}
	words := strings.Split(g.line, " ")
	if len(words) != 4 || words[0] != "gap" || words[3] != Filtered && words[3] != Pruned {
		return nil, fmt.Errorf("the line %.80q is not of the form: gap BEGIN END filter|pruned", g.line)
	}
	gap := &Gap{Why: words[3]}
	var err1, err2 error
	gap.Begin, err1 = strconv.ParseInt(words[1], 10, 64)
	gap.End, err2 = strconv.ParseInt(words[2], 10, 64)
	if err1 != nil || err2 != nil || gap.Begin < 0 || gap.End <= gap.Begin || strconv.FormatInt(gap.Begin, 10)+" "+strconv.FormatInt(gap.End, 10) != words[1]+" "+words[2] {
		return nil, fmt.Errorf("the gap %.40s to %.40s is no range of leaves", words[1], words[2])
	}
	if err := g.advance(); err != nil {
		return nil, err
	}
	want := trail.RangeSize(gap.Begin, gap.End)
	for !g.ended {
		kind, value, _ := strings.Cut(g.line, " ")
		switch kind {
		case "gap":
			return gap, gap.settle(want)
		case "hash":
			h, err := parseHash(value)
			if err != nil || len(gap.Hashes) == want {
				return nil, fmt.Errorf("the gap %d to %d has a hash that can't be read, or one too many", gap.Begin, gap.End)
			}
			gap.Hashes = append(gap.Hashes, h)
		case "leaf":
			raw, err := base64.StdEncoding.Strict().DecodeString(value)
			if err != nil || len(gap.Entries) == maxGapEntries || int64(len(gap.Entries)) == gap.End-gap.Begin {
				return nil, fmt.Errorf("the gap %d to %d has a leaf that can't be read, or one too many", gap.Begin, gap.End)
			}
			gap.Entries = append(gap.Entries, raw)
		default:
			return nil, fmt.Errorf("the gap %d to %d has a line that begins with %.20q", gap.Begin, gap.End, kind)
		}
		if err := g.advance(); err != nil {
			return nil, err
		}
	}
	return gap, gap.settle(want)
}

// settle checks the number of a gap's hashes or entries.
func (g *Gap) settle(want int) error {
	if len(g.Entries) == 0 {
		if len(g.Hashes) != want {
			return fmt.Errorf("the gap %d to %d has %d hashes, and its leaves are covered by %d", g.Begin, g.End, len(g.Hashes), want)
		}
		return nil
	}
	if len(g.Hashes) > 0 || int64(len(g.Entries)) != g.End-g.Begin {
		return fmt.Errorf("the gap %d to %d has %d leaves and %d hashes: it has as many leaves as it is long, or hashes only", g.Begin, g.End, len(g.Entries), len(g.Hashes))
	}
	r, err := trail.NewRange(g.Begin, g.Begin, nil)
	if err != nil {
		return err
	}
	for _, e := range g.Entries {
		r.Append(tlog.RecordHash(e))
	}
	g.Hashes = r.Hashes()
	return nil
}
