package format

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

const csvEnd = "\r\n" // RFC 4180, section 2

// csvHead is the first line of csv, without its end.
var csvHead = strings.Join(columnNames[:], ",")

func appendCSV(b []byte, r *trail.Record) ([]byte, error) {
	if err := check(r); err != nil {
		return b, err
	}
	for c := range numColumns {
		if c > 0 {
			b = append(b, ',')
		}
		start := len(b)
		b = appendPlain(b, r, c)
		if c != colIndex && c != colCount && c != colTime {
			b = guardCell(b, start)
		}
	}
	return b, nil
}

// guardCell escapes the cell b[start:] in place: an apostrophe before what a
// spreadsheet would take for a formula, quotes around what RFC 4180 asks for.
func guardCell(b []byte, start int) []byte {
	cell := b[start:]
	marked, quoted := false, false
	if len(cell) > 0 {
		marked = isFormula(cell)
		quoted = cell[0] == ' ' || cell[len(cell)-1] == ' '
		for _, c := range cell {
			quoted = quoted || csvSpecial[c]
		}
	}
	if !marked && !quoted {
		return b
	}
	text := string(cell)
	b = b[:start]
	if quoted {
		b = append(b, '"')
	}
	if marked {
		b = append(b, '\'')
	}
	if !quoted {
		return append(b, text...)
	}
	for i := range len(text) {
		if text[i] == '"' {
			b = append(b, '"')
		}
		b = append(b, text[i])
	}
	return append(b, '"')
}

// csvSpecial are the bytes for which a cell is quoted: those of RFC 4180, and
// what some spreadsheets take for the separator.
var csvSpecial = [256]bool{'"': true, ',': true, ';': true, '\t': true, '\r': true, '\n': true, '|': true}

// isFormula reports whether a cell gets a leading apostrophe: a spreadsheet may
// take what begins with one of these for a formula (OWASP, CSV Injection), the
// full-width forms and those behind white space too. A cell that begins with an
// apostrophe gets one more, so that it can be taken off again.
func isFormula(cell []byte) bool {
	switch cell[0] {
	case '\'', '\t', '\r', '\n':
		return true
	}
	for i := 0; i < len(cell); {
		if c := cell[i]; c > ' ' && c < utf8.RuneSelf {
			return c == '=' || c == '+' || c == '-' || c == '@'
		}
		r, n := utf8.DecodeRune(cell[i:])
		switch r {
		case '\uff1d', '\uff0b', '\uff0d', '\uff20': // full-width = + - @
			return true
		}
		if !unicode.IsSpace(r) && !unicode.IsControl(r) && !unicode.Is(unicode.Cf, r) {
			return false
		}
		i += n
	}
	return false
}

func decodeCSV(line string, r *trail.Record) error {
	rest, more := line, true
	for c := range numColumns {
		if !more {
			return fmt.Errorf("it has %d columns, want %d", c, numColumns)
		}
		var cell string
		var err error
		if cell, rest, more, err = nextCell(rest); err != nil {
			return fmt.Errorf("column %q: %w", columnNames[c], err)
		}
		cell = strings.TrimPrefix(cell, "'")
		if err := setPlain(r, c, cell); err != nil {
			return fmt.Errorf("column %q: %w", columnNames[c], err)
		}
	}
	if more {
		return fmt.Errorf("it has more than %d columns", numColumns)
	}
	return nil
}

// nextCell takes the first cell off a row. more says that another one follows.
func nextCell(row string) (cell, rest string, more bool, err error) {
	if !strings.HasPrefix(row, `"`) {
		cell, rest, more = strings.Cut(row, ",")
		if strings.Contains(cell, `"`) {
			return "", "", false, errors.New("a double quote stands in a cell that does not begin with one")
		}
		return cell, rest, more, nil
	}
	doubled := false
	for i := 1; ; {
		n := strings.IndexByte(row[i:], '"')
		if n < 0 {
			return "", "", false, errors.New("the closing double quote is missing")
		}
		i += n
		if i+1 < len(row) && row[i+1] == '"' {
			doubled = true
			i += 2
			continue
		}
		cell = row[1:i]
		if doubled {
			cell = strings.ReplaceAll(cell, `""`, `"`)
		}
		switch {
		case i+1 == len(row):
			return cell, "", false, nil
		case row[i+1] == ',':
			return cell, row[i+2:], true, nil
		}
		return "", "", false, errors.New("something stands between the closing double quote and the comma")
	}
}

// columnAt names the column of a row at an offset.
func columnAt(line string, offset int) string {
	rest := line
	for c := range numColumns {
		_, next, more, err := nextCell(rest)
		if end := len(line) - len(next); err != nil || !more || offset < end {
			return fmt.Sprintf("column %q", columnNames[c])
		}
		rest = next
	}
	return "the row"
}
