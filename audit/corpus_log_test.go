package audit

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// honestLog is a log to which nothing was done, at rest: nobody has its database
// open, so that each attack gets a copy.
type honestLog struct {
	url    string
	old    string // the database as it was some hundred events before
	sealer *secret.Sealer
	at     time.Time // what the clock shows at its end

	vkey    string // of its first key: what an auditor was given
	kept    string // the checkpoint that he keeps
	witness trail.Witness
	size    int64
	first   int64 // the first event that is there: under a hold, among pruned ones
	middle  int64
	erased  int64 // an event whose actor was erased
}

// newHonestLog makes a log with everything in it that a log may have.
func newHonestLog(t *testing.T, url string) *honestLog {
	t.Helper()
	l := &honestLog{url: url, sealer: newSealer(t)}
	clock := storetest.NewClock(epoch)
	ctx := WithActor(t.Context(), Actor{ID: "token/auditor", Address: "192.0.2.1"})
	s := l.open(t, url, clock)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.tr.SetRetention(ctx, 24*time.Hour, "drill"))
	must(s.tr.AddHold(ctx, Hold{Name: "case-7", Reason: "court order", Partner: "held & co"}))
	s.add(t, 290, "early")
	record(t, s.db, fullEvent(1, "held & co")) // the first that will be left
	s.add(t, 250, "early")
	begin(t, s.db, Event{Action: "store.write", Resource: "keysets/open"}) // never ends
	s.add(t, 60, "early")
	clock.Advance(30 * time.Hour)
	s.add(t, 250, "later")
	for {
		p, err := s.tr.Prune(t.Context(), clock.Now())
		must(err)
		if !p.More {
			break
		}
	}
	sequence(t, s.tr)
	if _, err := s.tr.RotateKey(ctx, "yearly"); err != nil {
		t.Fatal(err)
	}
	s.add(t, 200, "later")
	record(t, s.db, fullEvent(2, "acme"))
	s.add(t, 200, "later")
	done, err := s.tr.Erase(ctx, Erase{Fields: []trail.Field{trail.Actor, trail.Address}, Actor: "token/leaver", Reason: "asked for it"})
	must(err)
	if done.Events == 0 {
		t.Fatal("nothing was erased")
	}
	sequence(t, s.tr)

	s.close(t)
	l.old = l.copyOf(t, url)
	s = l.open(t, url, clock)
	s.add(t, 740, "last")
	record(t, s.db, fullEvent(3, "acme"))
	sequence(t, s.tr)

	vkeys, _, err := s.tr.Keys(t.Context())
	must(err)
	c, signed, err := s.tr.Checkpoint(t.Context())
	must(err)
	l.vkey, l.size, l.at = vkeys[0], c.Size, clock.Now()
	line := ""
	l.witness, line = cosign(t, c)
	must(s.tr.AddCosignature(t.Context(), c.Size, "w1", line, clock.Now()))
	l.kept = signed
	must(s.db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT MIN(leaf_index) FROM events`).Scan(&l.first); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT leaf_index FROM events WHERE action = 'corpus.full' AND partner = 'acme' ORDER BY leaf_index LIMIT 1`).Scan(&l.middle); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT MAX(leaf_index) FROM events WHERE (erased & 1) <> 0`).Scan(&l.erased)
	}))
	s.close(t)
	return l
}

// fullEvent has every field filled, to its bound.
func fullEvent(n int, partner string) Event {
	long := func(s string) string { return clip(strings.Repeat(s, 300)) }
	return Event{
		Actor: "token/ada", Action: "corpus.full", Resource: "keysets/" + long("é"), Partner: partner, Outcome: Denied, Reason: long("ж𝄞"), RequestID: fmt.Sprintf("req-%d\u2028\"<&>", n),
		Address: "2001:db8::7", Detail: map[string]any{"text": strings.Repeat("x", trail.MaxDetail-40), "n": n}, Count: 1<<62 + 1, Intent: fmt.Sprintf("0198c0de-0001-7000-8000-%012d", n),
	}
}

// open starts a server on a copy of the log's database.
func (l *honestLog) open(t *testing.T, url string, clock *storetest.Clock) *server {
	t.Helper()
	db := storetest.Open(t, url)
	db.Now = clock.Now
	s := &server{db: db, clock: clock}
	s.tr = openTrail(t, Config{DB: db, Sealer: l.sealer, Origin: "rotunda.test/trail"})
	return s
}

// server is the honest program.
type server struct {
	db    *store.DB
	tr    *Trail
	clock *storetest.Clock
	n     int
}

func (s *server) close(t *testing.T) {
	t.Helper()
	if err := s.tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
}

// add records and sequences n events of many kinds, an intent and its end among
// each forty.
func (s *server) add(t *testing.T, n int, name string) {
	t.Helper()
	ctx := WithActor(t.Context(), Actor{ID: "token/ada", Address: "192.0.2.9"})
	for n > 0 {
		batch := min(n, 40)
		n -= batch
		if batch > 2 {
			batch -= 2
			intent := begin(t, s.db, Event{Action: "store.write", Resource: "keysets/" + name})
			if err := end(ctx, s.db, intent, Event{Action: "store.write", Outcome: []string{OK, Failed, Denied}[s.n%3]}); err != nil {
				t.Fatal(err)
			}
		}
		events := make([]Event, batch)
		for i := range events {
			s.n++
			events[i] = mixedEvent(s.n, name)
		}
		record(t, s.db, events...)
		s.clock.Advance(time.Second)
		sequence(t, s.tr)
	}
}

// mixedEvent is one of many kinds, empty fields and foreign letters among them.
func mixedEvent(n int, name string) Event {
	e := Event{Action: "keyset.rotate", Resource: fmt.Sprintf("keysets/%s/%d", name, n)}
	switch n % 7 {
	case 0:
		e.Outcome, e.Reason, e.Actor, e.Address = Denied, "role_missing", "anonymous", "198.51.100.4"
	case 1:
		e.Outcome, e.Reason = Failed, "die Platte ist voll – 磁盘已满 \U0001F512"
	case 2:
		e.Resource, e.Actor = "", "token/leaver"
	case 3:
		e.Partner, e.RequestID, e.Count = "acme", fmt.Sprint("req-", n), int64(n)
	case 4:
		e.Detail = map[string]any{"nested": map[string]any{"a": []any{1, "two", nil, "\u2028</script>"}}}
	case 5:
		e.Actor, e.Address = "token/leaver", "203.0.113.5"
	}
	return e
}

// copyOf copies a database that nobody has open.
func (l *honestLog) copyOf(t *testing.T, from string) string {
	t.Helper()
	if path, ok := strings.CutPrefix(from, "sqlite:"); ok {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), "copy.db")
		if err := os.WriteFile(to, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return "sqlite:" + to
	}
	u, err := url.Parse(from)
	if err != nil {
		t.Fatal("the database's URL can't be read")
	}
	template, name := strings.TrimPrefix(u.Path, "/"), "rotunda_corpus_"+strings.ToLower(rand.Text())
	u.Path = "/postgres"
	super := u.String()
	do := func(ctx context.Context, query string) error {
		db, err := sql.Open("pgx", super)
		if err != nil {
			return err
		}
		defer db.Close()
		_, err = db.ExecContext(ctx, query)
		return err
	}
	if err := do(t.Context(), "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := do(context.Background(), "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	u.Path = "/" + name
	return u.String()
}

// cosign returns a witness of the test's own, and its signature line of a
// checkpoint (C2SP tlog-cosignature).
func cosign(t *testing.T, c trail.Checkpoint) (trail.Witness, string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw := append([]byte{4}, public...)
	sum := sha256.Sum256([]byte("w1.test\n" + string(raw)))
	w, err := trail.ParseWitness(fmt.Sprintf("w1.test+%x+%s", sum[:4], base64.StdEncoding.EncodeToString(raw)))
	if err != nil {
		t.Fatal(err)
	}
	at := epoch.Unix()
	sig := append(sum[:4:4], binary.BigEndian.AppendUint64(nil, uint64(at))...)
	sig = append(sig, ed25519.Sign(private, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, c.Text()))...)
	return w, "— w1.test " + base64.StdEncoding.EncodeToString(sig) + "\n"
}
