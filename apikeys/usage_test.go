package apikeys

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Promise: each verification of a token that is known is in the trail, by its
// outcome; whoever guesses counts for no token.
func TestVerifyIsCounted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.Usage = &audit.Usage{DB: db}
		if _, err := b.Usage.Pass(t.Context(), b.clock.Now()); err != nil {
			t.Fatal(err)
		}
		token, value := b.create(t, Create{Role: Signer, CIDRs: []string{"192.0.2.0/24"}, ExpiresIn: time.Hour})
		forged, forgedValue := b.create(t, Create{Role: Signer})
		exec(t, db, `UPDATE access_tokens SET role = 'admin' WHERE id = $1`, forged.ID)
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() { mustVerify(t, b.Tokens, value, here) })
		}
		wg.Wait()
		wantDenied(t, b.Tokens, value, netip.MustParseAddr("203.0.113.9"), "address")
		wantDenied(t, b.Tokens, forgedValue, here, "tampered")
		guess, _ := newKeyString("signer")
		body := brand + "_signer_" + token.ID + "_" + guess.secret
		wantDenied(t, b.Tokens, body+checksum(body), here, "unknown")
		b.pass(time.Hour)
		wantDenied(t, b.Tokens, value, here, "expired")
		if _, err := b.Revoke(t.Context(), token.ID, "superseded"); err != nil {
			t.Fatal(err)
		}
		wantDenied(t, b.Tokens, value, here, "revoked")
		wantDenied(t, b.Tokens, value, here, "revoked")
		if err := b.Usage.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		evidence := func(id string, since time.Time) audit.Report {
			t.Helper()
			r, err := audit.Evidence(t.Context(), db, "tokens/"+id, since)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		r := evidence(token.ID, epoch)
		if diff := cmp.Diff(map[string]int64{"address": 1, "expired": 1, "revoked": 2}, r.Denied); diff != "" || r.Accepted != 40 || len(r.Gaps) != 0 {
			t.Errorf("%+v, denied (-want +got):\n%s", r, diff)
		}
		if r := evidence(forged.ID, epoch); r.Accepted != 0 || r.Denied["tampered"] != 1 {
			t.Errorf("the tampered token: %+v", r)
		}
		if r := evidence(token.ID, epoch.Add(time.Minute)); !r.Unused() {
			t.Errorf("its last acceptance was an hour ago: %+v", r)
		}
	})
}
