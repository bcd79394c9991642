package format

import (
	"fmt"
	"strconv"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"golang.org/x/mod/sumdb/tlog"
)

// AppendJSON appends a record as one line of jsonl, without its line end. On
// failure b is returned as it was.
func AppendJSON(b []byte, r *trail.Record) ([]byte, error) {
	if err := check(r); err != nil {
		return b, err
	}
	b = append(b, `{"origin":`...)
	b = appendQuoted(b, r.Origin)
	b = append(b, `,"index":`...)
	b = strconv.AppendInt(b, r.Index, 10)
	b = append(b, `,"hash":"`...)
	b = appendPlain(b, r, colHash)
	b = append(b, `","id":`...)
	b = appendQuoted(b, r.ID)
	b = append(b, `,"time":"`...)
	b = appendTime(b, r.Time)
	b = append(b, `","action":`...)
	b = appendQuoted(b, r.Action)
	b = append(b, `,"resource":`...)
	b = appendQuoted(b, r.Resource)
	b = append(b, `,"outcome":`...)
	b = appendQuoted(b, r.Outcome)
	b = append(b, `,"count":`...)
	b = strconv.AppendInt(b, r.Count, 10)
	b = appendMember(b, `,"actor":`, r.Actor)
	b = appendMember(b, `,"partner":`, r.Partner)
	b = appendMember(b, `,"reason":`, r.Reason)
	b = appendMember(b, `,"request_id":`, r.RequestID)
	b = appendMember(b, `,"address":`, r.Address)
	b = appendTail(b, r)
	return append(b, '}'), nil
}

// appendTail appends the members that jsonl and ocsf have alike.
func appendTail(b []byte, r *trail.Record) []byte {
	if r.Detail != "" {
		b = append(b, `,"detail":`...)
		b = append(b, r.Detail...)
	}
	b = appendMember(b, `,"intent":`, r.Intent)
	if len(r.Salt) > 0 {
		b = append(b, `,"salt":"`...)
		b = appendPlain(b, r, colSalt)
		b = append(b, '"')
	}
	if len(r.Checks) > 0 {
		b = append(b, `,"checks":"`...)
		b = appendPlain(b, r, colChecks)
		b = append(b, '"')
	}
	if !isErased(r) {
		return b
	}
	b = append(b, `,"erased":`...)
	sep := byte('{')
	for f := range trail.NumFields {
		if r.Erased[f] == (tlog.Hash{}) {
			continue
		}
		b = append(b, sep, '"')
		b = append(b, f.String()...)
		b = append(b, `":"`...)
		b = appendPlain(b, r, colErased+column(f))
		b = append(b, '"')
		sep = ','
	}
	return append(b, '}')
}

// appendMember appends a member that is left out when it is empty.
func appendMember(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendQuoted(append(b, name...), value)
}

// appendQuoted appends a JSON string. U+2028 and U+2029, which end a line for
// some readers, are escaped like control characters.
func appendQuoted(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if plainJSON[c] {
			continue
		}
		if c == 0xe2 && (i+2 >= len(s) || s[i+1] != 0x80 || s[i+2]&^1 != 0xa8) {
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		case 0xe2:
			b = append(b, `\u202`...)
			b = append(b, hex[s[i+2]&0xf])
			i += 2
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
		start = i + 1
	}
	return append(append(b, s[start:]...), '"')
}

// plainJSON marks the bytes that never need an escape.
var plainJSON = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= 0x20 && c != '"' && c != '\\' && c != 0x7f && c != 0xe2
	}
	return t
}()

func decodeJSON(line string, r *trail.Record) error {
	return members(line, func(name, value string, _ int) error {
		switch name {
		case "index":
			return inMember(name, setNumber(r, colIndex, value))
		case "count":
			return inMember(name, setNumber(r, colCount, value))
		case "origin":
			return inMember(name, setQuoted(r, colOrigin, value))
		case "hash":
			return inMember(name, setQuoted(r, colHash, value))
		case "id":
			return inMember(name, setQuoted(r, colID, value))
		case "time":
			return inMember(name, setQuoted(r, colTime, value))
		case "actor":
			return inMember(name, setQuoted(r, colActor, value))
		case "request_id":
			return inMember(name, setQuoted(r, colRequestID, value))
		}
		return decodeShared(r, name, value)
	})
}

// decodeShared reads a member that jsonl and ocsf's "unmapped" have alike.
func decodeShared(r *trail.Record, name, value string) error {
	c := column(-1)
	switch name {
	case "action":
		c = colAction
	case "resource":
		c = colResource
	case "outcome":
		c = colOutcome
	case "partner":
		c = colPartner
	case "reason":
		c = colReason
	case "address":
		c = colAddress
	case "detail":
		r.Detail = value
		return nil
	case "intent":
		c = colIntent
	case "salt":
		c = colSalt
	case "checks":
		c = colChecks
	case "erased":
		return inMember(name, members(value, func(field, commitment string, _ int) error {
			f, ok := trail.ParseField(field)
			if !ok {
				return fmt.Errorf("%.40q is no field that can be erased", field)
			}
			return setQuoted(r, colErased+column(f), commitment)
		}))
	default:
		return fmt.Errorf("member %.40q is none that Rotunda writes", name)
	}
	return inMember(name, setQuoted(r, c, value))
}

// inMember says which member an error is about.
func inMember(name string, err error) error {
	if err != nil {
		return fmt.Errorf("member %q: %w", name, err)
	}
	return nil
}

func setQuoted(r *trail.Record, c column, value string) error {
	s, err := unquote(value)
	if err != nil {
		return err
	}
	return setPlain(r, c, s)
}

func setNumber(r *trail.Record, c column, value string) error {
	return setPlain(r, c, value)
}
