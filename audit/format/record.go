package format

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"golang.org/x/mod/sumdb/tlog"
)

// Bounds of what is written and read, in bytes.
const (
	maxOrigin = 255 // of a checkpoint's first line, too
	maxIndex  = 1<<53 - 1
	maxLine   = 512 << 10 // more than any record within the bounds takes, every byte of it escaped
)

// timeLayout is RFC 3339 in UTC with exactly six digits after the second.
const timeLayout = "2006-01-02T15:04:05.000000Z"

// column is one field of a record: the same names in every format.
type column int

const (
	colOrigin column = iota
	colIndex
	colHash
	colID
	colTime
	colAction
	colResource
	colOutcome
	colCount
	colActor
	colPartner
	colReason
	colRequestID
	colAddress
	colDetail
	colIntent
	colSalt
	colChecks
	colErased  // and one for each committed field
	numColumns = colErased + column(trail.NumFields)
)

// columnNames are the columns of csv and parquet, and the members of jsonl up
// to "checks".
var columnNames = [numColumns]string{
	"origin", "index", "hash", "id", "time", "action", "resource", "outcome", "count",
	"actor", "partner", "reason", "request_id", "address", "detail", "intent", "salt", "checks",
	"erased_actor", "erased_partner", "erased_reason", "erased_request_id", "erased_address", "erased_detail",
}

// check refuses a record that would not come back as it was.
func check(r *trail.Record) error {
	if r.Origin == "" || len(r.Origin) > maxOrigin || !utf8.ValidString(r.Origin) {
		return fmt.Errorf("write record %d: its origin is not UTF-8 of 1 to %d bytes", r.Index, maxOrigin)
	}
	if r.Index < 0 || r.Index > maxIndex {
		return fmt.Errorf("write record: its index %d is outside 0 to 2^53-1", r.Index)
	}
	for _, t := range [...]struct {
		name, text string
	}{
		{"id", r.ID}, {"action", r.Action}, {"resource", r.Resource}, {"outcome", r.Outcome}, {"actor", r.Actor}, {"partner", r.Partner},
		{"reason", r.Reason}, {"request_id", r.RequestID}, {"address", r.Address}, {"intent", r.Intent},
	} {
		if len(t.text) > trail.MaxText || !utf8.ValidString(t.text) {
			return fmt.Errorf("write record %d: its %s is not UTF-8 of at most %d bytes", r.Index, t.name, trail.MaxText)
		}
	}
	if err := checkDetail(r.Detail); err != nil {
		return fmt.Errorf("write record %d: its detail %w", r.Index, err)
	}
	if y := r.Time.UTC().Year(); y < 0 || y > 9999 || r.Time.Nanosecond()%1000 != 0 {
		return fmt.Errorf("write record %d: its time is outside of the years 0 to 9999, or has a fraction of a microsecond", r.Index)
	}
	if len(r.Salt) > trail.SaltsSize || len(r.Checks) > trail.ChecksSize {
		return fmt.Errorf("write record %d: its salt or its checks are longer than %d and %d bytes", r.Index, trail.SaltsSize, trail.ChecksSize)
	}
	return nil
}

// checkDetail allows a compact JSON object, and "" for a detail that was erased.
func checkDetail(s string) error {
	if len(s) > trail.MaxDetail {
		return fmt.Errorf("is longer than %d bytes", trail.MaxDetail)
	}
	if s == "" {
		return nil
	}
	end, err := scanValue(s, 0)
	if err != nil || s[0] != '{' || end != len(s) {
		return errors.New("is not a JSON object in compact form")
	}
	return nil
}

// isErased reports whether any field of r was erased.
func isErased(r *trail.Record) bool { return r.Erased != [trail.NumFields]tlog.Hash{} }

// text returns the field that a column holds as it is, or nil when the column
// holds a number, a time or bytes.
func text(r *trail.Record, c column) *string {
	switch c { //nolint:exhaustive // the others hold no text
	case colOrigin:
		return &r.Origin
	case colID:
		return &r.ID
	case colAction:
		return &r.Action
	case colResource:
		return &r.Resource
	case colOutcome:
		return &r.Outcome
	case colActor:
		return &r.Actor
	case colPartner:
		return &r.Partner
	case colReason:
		return &r.Reason
	case colRequestID:
		return &r.RequestID
	case colAddress:
		return &r.Address
	case colDetail:
		return &r.Detail
	case colIntent:
		return &r.Intent
	}
	return nil
}

// appendPlain appends a column's value as text without any escaping: numbers in
// decimal, bytes in base64, what is missing as "".
func appendPlain(b []byte, r *trail.Record, c column) []byte {
	switch c { //nolint:exhaustive // text has the others
	case colIndex:
		return strconv.AppendInt(b, r.Index, 10)
	case colCount:
		return strconv.AppendInt(b, r.Count, 10)
	case colTime:
		return appendTime(b, r.Time)
	case colHash:
		return base64.StdEncoding.AppendEncode(b, r.Hash[:])
	case colSalt:
		return base64.StdEncoding.AppendEncode(b, r.Salt)
	case colChecks:
		return base64.StdEncoding.AppendEncode(b, r.Checks)
	}
	if c >= colErased {
		h := &r.Erased[c-colErased]
		if *h == (tlog.Hash{}) {
			return b
		}
		return base64.StdEncoding.AppendEncode(b, h[:])
	}
	return append(b, *text(r, c)...)
}

// setPlain is the inverse of appendPlain.
func setPlain(r *trail.Record, c column, s string) (err error) {
	switch c { //nolint:exhaustive // text has the others
	case colIndex:
		r.Index, err = parseInt(s)
		return err
	case colCount:
		r.Count, err = parseInt(s)
		return err
	case colTime:
		r.Time, err = parseTime(s)
		return err
	case colHash:
		return parseHash(&r.Hash, s)
	case colSalt:
		r.Salt, err = parseBytes(s, trail.SaltsSize)
		return err
	case colChecks:
		r.Checks, err = parseBytes(s, trail.ChecksSize)
		return err
	}
	if c >= colErased {
		if s == "" {
			return nil
		}
		return parseHash(&r.Erased[c-colErased], s)
	}
	*text(r, c) = s
	return nil
}

func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, sec := t.Clock()
	digits := func(n, width int) {
		for div := pow10[width-1]; div > 0; div /= 10 {
			b = append(b, byte('0'+n/div%10))
		}
	}
	digits(year, 4)
	b = append(b, '-')
	digits(int(month), 2)
	b = append(b, '-')
	digits(day, 2)
	b = append(b, 'T')
	digits(hour, 2)
	b = append(b, ':')
	digits(minute, 2)
	b = append(b, ':')
	digits(sec, 2)
	b = append(b, '.')
	digits(t.Nanosecond()/1000, 6)
	return append(b, 'Z')
}

var pow10 = [...]int{1, 10, 100, 1000, 10000, 100000}

func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(timeLayout, s)
	if err != nil || len(s) != len(timeLayout) {
		return time.Time{}, fmt.Errorf("%.40q is no time of the form %s", s, timeLayout)
	}
	return t, nil
}

func parseInt(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%.40q is no whole number", s)
	}
	return n, nil
}

// parseBytes reads base64 of at most limit bytes; "" is nil.
func parseBytes(s string, limit int) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	if len(s) > base64.StdEncoding.EncodedLen(limit) {
		return nil, fmt.Errorf("it is longer than %d bytes", limit)
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%.40q is no base64", s)
	}
	return b, nil
}

// parseHash reads a hash into h. It allocates nothing.
func parseHash(h *tlog.Hash, s string) error {
	var buf [tlog.HashSize + 1]byte
	if len(s) != base64.StdEncoding.EncodedLen(tlog.HashSize) {
		return fmt.Errorf("%.60q is not %d bytes in base64", s, tlog.HashSize)
	}
	n, err := base64.StdEncoding.Decode(buf[:], []byte(s))
	if err != nil || n != tlog.HashSize {
		return fmt.Errorf("%.60q is not %d bytes in base64", s, tlog.HashSize)
	}
	copy(h[:], buf[:])
	return nil
}

// firstDiff returns the offset of the first byte at which two texts differ, or
// -1 when they are equal.
func firstDiff(a, b string) int {
	if a == b {
		return -1
	}
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
