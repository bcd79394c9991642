package format

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

const origin = "rotunda.example/trail"

// at is the time of the first sample.
var at = time.Date(2026, 3, 14, 9, 26, 53, 589793000, time.UTC)

// samples are records of every kind, with true leaf hashes.
func samples(t testing.TB) []trail.Record {
	t.Helper()
	id := func(n int) string { return fmt.Sprintf("0195a1b2-c3d4-7e5f-8a9b-%012x", n) }
	events := []trail.Event{
		{Actor: "token-7", Action: "keyset.create", Resource: "keysets/payments", Partner: "acme", Outcome: trail.OK,
			RequestID: "req-1", Address: "192.0.2.17", Detail: `{"algorithm":"ES256","token_ttl":"15m"}`, Count: 1},
		{Actor: "rotunda", Action: "signing_key.active", Resource: "keysets/payments/keys/kid-1", Outcome: trail.OK, Detail: "{}", Count: 1},
		{Actor: "anonymous", Action: "authenticate", Outcome: trail.Denied, Reason: "unknown token", Address: "2001:db8::2a", Detail: "{}", Count: 4711},
		{Actor: "token-8", Action: "rpc.DeleteKeyset", Resource: "keysets/payments", Partner: "évil=corp|\\", Outcome: trail.Denied,
			Reason: "not\nyours\r\nat all", RequestID: "=HYPERLINK(\"http://x\")", Address: "unix:@socket", Detail: `{"why":"a\"b\\c"}`, Count: 2},
		{Actor: "token-7", Action: "credential.rotate", Resource: "credentials/db", Outcome: trail.Started, Detail: `{"step":"issue"}`, Count: 1},
		{Actor: "token-7", Action: "credential.rotate", Resource: "credentials/db", Outcome: trail.Failed, Reason: "the target refused it",
			Detail: `{"step":"issue"}`, Count: 1, Intent: id(4)},
		{Actor: "jane@example.com", Action: "api_key.revoke", Resource: "api_keys/rk_live_1", Partner: "acme", Outcome: trail.OK,
			Reason: "left the company", RequestID: "req-2", Address: "198.51.100.200", Detail: `{"grace":"0s"}`, Count: 1},
		{Actor: "@cmd", Action: "token.create", Resource: "tokens/🔑", Partner: "'quoted'", Outcome: trail.OK, Reason: "＝1+1 \u2028\u0085\t", Detail: `{"role":"auditor"}`, Count: 1},
		{Actor: "token-7", Action: "trail.start", Outcome: trail.OK, Detail: "{}", Count: 1},
		{Actor: "gone", Action: "partner.update", Resource: "partners/acme", Partner: "acme", Outcome: trail.OK, Reason: "gone",
			RequestID: "req-3", Address: "203.0.113.9", Detail: `{"contact":"gone"}`, Count: 1},
	}
	records := make([]trail.Record, len(events))
	for i := range events {
		e := &events[i]
		e.ID, e.Time = id(i), at.Add(time.Duration(i)*61*time.Second)
		seed := sha256.Sum256([]byte(e.ID))
		e.Salt = seed[:trail.SeedSize]
		if i != 8 { // an event of a version that made none
			e.Checks = e.MakeChecks()
		}
		h, err := e.Hash()
		if err != nil {
			t.Fatal(err)
		}
		switch i {
		case 6:
			err = e.Erase(trail.Actor, trail.Address)
		case 9:
			err = e.Erase(trail.Actor, trail.Partner, trail.Reason, trail.RequestID, trail.Address, trail.Detail)
		}
		if err != nil {
			t.Fatal(err)
		}
		records[i] = trail.Record{Event: *e, Origin: origin, Index: int64(1000 + i), Hash: h}
	}
	return records
}

// anyRecord draws a record within the bounds, true or not.
func anyRecord() *rapid.Generator[trail.Record] {
	nasty := rapid.SampledFrom([]string{"", "=", "'", "''=", "\"", "\",\"", "\r\n", "\n", "|", "\\", "\\n", "\\u0041", " a=b ", " ", "\t", "\u2028", "\u2029", "\u0085",
		"\ufeff", "\u202e", "\ufffd", "ÿ", "🔑", "＝", "\x7f", "\x00", "\x1b[31m", "cs1Label=x", "CEF:0|", "{}", "null", "-1", "é", "\U0010ffff"})
	short := rapid.Custom(func(t *rapid.T) string {
		return nasty.Draw(t, "nasty") + rapid.String().Draw(t, "text") + nasty.Draw(t, "nasty")
	})
	word := rapid.Custom(func(t *rapid.T) string {
		s := short.Draw(t, "short")
		if rapid.IntRange(0, 19).Draw(t, "huge") == 0 && s != "" {
			s = strings.Repeat(s, 1+trail.MaxText/len(s))
		}
		for s = strings.ToValidUTF8(s, ""); len(s) > trail.MaxText; {
			s = strings.ToValidUTF8(s[:trail.MaxText], "")
		}
		return s
	})
	detail := rapid.Custom(func(t *rapid.T) string {
		switch rapid.IntRange(0, 3).Draw(t, "detail") {
		case 0:
			return "{}"
		case 1:
			return ""
		case 2:
			return `{"a":[1,-0.5e+3,true,null,{"b":"\u2028\\ 🔑"}],"":{}}`
		}
		return `{"x":` + string(appendQuoted(nil, word.Draw(t, "value"))) + `}`
	})
	octets := func(n int) *rapid.Generator[[]byte] { return rapid.SliceOfN(rapid.Byte(), n, n) }
	return rapid.Custom(func(t *rapid.T) trail.Record {
		r := trail.Record{
			Origin: "o" + strings.ToValidUTF8(fmt.Sprintf("%.60s", word.Draw(t, "origin")), ""),
			Index:  rapid.Int64Range(0, maxIndex).Draw(t, "index"),
			Hash:   tlog.Hash(octets(tlog.HashSize).Draw(t, "hash")),
		}
		for _, f := range []*string{&r.ID, &r.Action, &r.Resource, &r.Actor, &r.Partner, &r.Reason, &r.RequestID, &r.Address, &r.Intent} {
			*f = word.Draw(t, "text")
		}
		if rapid.Bool().Draw(t, "real") {
			r.Action = rapid.SampledFrom([]string{"keyset.create", "token.revoke", "rpc.X", "signing_key.lead_restarted", "a.", ".b"}).Draw(t, "action")
			r.Address = rapid.SampledFrom([]string{"", "192.0.2.1", "::1", "::ffff:192.0.2.1", "fe80::1%eth0", "2001:DB8::1", "010.0.0.1"}).Draw(t, "address")
		}
		r.Outcome = rapid.SampledFrom([]string{trail.OK, trail.Denied, trail.Started, trail.Failed, "", "=new"}).Draw(t, "outcome")
		r.Detail = detail.Draw(t, "detail")
		r.Count = rapid.Int64().Draw(t, "count")
		r.Time = time.UnixMicro(rapid.Int64Range(-62167219200_000000, 253402300799_999999).Draw(t, "time")).UTC()
		if n := rapid.SampledFrom([]int{0, 1, trail.SeedSize, trail.SaltsSize}).Draw(t, "salt size"); n > 0 {
			r.Salt = octets(n).Draw(t, "salt")
		}
		if rapid.Bool().Draw(t, "has checks") {
			r.Checks = octets(trail.ChecksSize).Draw(t, "checks")
		}
		for f := range trail.NumFields {
			if rapid.IntRange(0, 3).Draw(t, "erased") == 0 {
				r.Erased[f] = tlog.Hash(octets(tlog.HashSize).Draw(t, "commitment"))
			}
		}
		return r
	})
}

// failer is what *testing.T and *rapid.T have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func writeAll(t failer, name string, records []trail.Record) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(name, &b)
	if err != nil {
		t.Fatalf("NewWriter: %v", err)
	}
	for i := range records {
		if err := w.Write(&records[i]); err != nil {
			t.Fatalf("write record %d: %v", i, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	return b.Bytes()
}

// readAll reads until the first error, which is nil at a clean end.
func readAll(name string, r io.Reader) (records []trail.Record, err error) {
	in, err := NewReader(name, r)
	if err != nil {
		return nil, err
	}
	if c, ok := in.(io.Closer); ok {
		defer c.Close()
	}
	for {
		var rec trail.Record
		err := in.Read(&rec)
		if errors.Is(err, io.EOF) {
			return records, nil
		}
		if err != nil {
			if again := in.Read(&rec); again == nil || again.Error() != err.Error() {
				return records, fmt.Errorf("after %w the reader went on with %w", err, again)
			}
			return records, err
		}
		records = append(records, rec)
	}
}

func equalRecords(t failer, got, want []trail.Record) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("records differ (-want +got):\n%s", d)
	}
}
