package apikeys

import (
	"encoding/base64"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// A page token that nobody gave out is refused as a caller's mistake, or reads
// some page; it never becomes a failure of the database.
func FuzzListPage(f *testing.F) {
	beds := map[string]*bed{
		"sqlite":   newBed(f, storetest.SQLite(f)),
		"postgres": newBed(f, storetest.Open(f, storetest.Postgres(f))),
	}
	f.Add("")
	f.Add("!")
	for _, b := range beds {
		for range 3 {
			b.create(f, Create{Role: Signer})
		}
		_, next, err := b.List(f.Context(), "", 1)
		if err != nil || next == "" {
			f.Fatalf("no second page: %v", err)
		}
		f.Add(next)
	}
	for _, inside := range []string{"5", "5 ", "-9223372036854775808 a", "9223372036854775808 a", "0x5 a", " a", "5  a", "5 '", "5 é", "5 \x00", "5 \xff"} {
		f.Add(inside)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, page := range []string{s, base64.RawURLEncoding.EncodeToString([]byte(s))} {
			for name, b := range beds {
				tokens, next, err := b.List(t.Context(), page, 2)
				switch {
				case err != nil && (!errors.Is(err, fault.ErrInvalid) || tokens != nil || next != ""):
					t.Errorf("%s: page %q gives %d tokens, next page %q, error %v", name, page, len(tokens), next, err)
				case err == nil && (len(tokens) > 2 || next != "" && len(tokens) != 2):
					t.Errorf("%s: page %q gives %d tokens, next page %q", name, page, len(tokens), next)
				}
			}
		}
	})
}

// What is read as a range is in the one form in which ranges are stored and
// compared; the rest is refused, in a message of bounded length.
func FuzzParsePrefix(f *testing.F) {
	for _, s := range []string{
		"", "203.0.113.0/24", "203.0.113.7/24", "203.0.113.7", "2001:db8::/32", "2001:db8::1", "::ffff:203.0.113.7", "::ffff:203.0.113.0/120",
		"fe80::1%eth0", "fe80::1%eth0/64", "0.0.0.0/0", "::/0", "10.0.0.0/33", "10.0.0.0/-1", "010.0.0.1", " 10.0.0.1", strings.Repeat("1", 1000),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePrefix(s)
		if err != nil {
			if !errors.Is(err, fault.ErrInvalid) || p.IsValid() || len(err.Error()) > 500 {
				t.Errorf("%q gives %s and %v", s, p, err)
			}
			return
		}
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			t.Fatalf("%q is read as %s", s, p)
		}
		if again, err := parsePrefix(p.String()); err != nil || again != p {
			t.Errorf("%q is read as %s, which is read as %s (%v)", s, p, again, err)
		}
		// The address that was written is in the range.
		text, _, _ := strings.Cut(s, "/")
		if a, err := netip.ParseAddr(text); err != nil || !p.Contains(a.Unmap()) {
			t.Errorf("%s, from %q, does not hold %s (%v)", p, s, text, err)
		}
	})
}
