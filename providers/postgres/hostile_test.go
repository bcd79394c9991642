package postgres_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
)

// With replace nothing took the place of the value of the role that the credential had
// before it was given another.
func TestRevokeWhenTheRoleWasRenamed(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Replace), 1, 1))
	old := apply(t, target, c)
	c = b.change(t, providers.Replace)
	c.Current = old
	c = prepare(t, target, rotation(c, 2, 2))
	h := apply(t, target, c)
	if old.Account == h.Account || !b.accepts(t, old) {
		t.Fatal("the credential has the same role still, or the old value has ended: the case proves nothing")
	}
	if err := target.Retire(t.Context(), c, old, time.Now().Add(-time.Hour)); err != nil || b.accepts(t, old) {
		t.Errorf("retire: %v; the old value is accepted: %v", err, b.accepts(t, old))
	}
	if err := target.Retire(t.Context(), c, old, time.Time{}); err != nil || !b.accepts(t, old) {
		t.Errorf("retire, taken back: %v; the old value is accepted: %v", err, b.accepts(t, old))
	}
	if err := target.Revoke(t.Context(), c, old); err != nil || b.accepts(t, old) || !b.accepts(t, h) {
		t.Errorf("revoke: %v; accepted are the old value: %v, the new: %v; want false, true", err, b.accepts(t, old), b.accepts(t, h))
	}
}

// What was there before Rotunda is known by its fields only.
func TestPrepareWhenConsumersUseARoleAlready(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	c := b.change(t, providers.Alternate)
	first := strings.Split(c.Params["users"], ",")[0]
	b.Exec(t, "ALTER ROLE "+quote(first)+" PASSWORD 'from-before-us'")
	adopted := providers.Held{Fields: providers.Fields{}.Set("username", first).Set("password", "from-before-us")}
	c.Current = adopted
	c = prepare(t, target, rotation(c, 1, 1))
	apply(t, target, c)
	adopted.Account = first
	if c.New.Account == first || !b.accepts(t, adopted) {
		t.Errorf("consumers use %q, %q was next, and what they read is accepted: %v", first, c.New.Account, b.accepts(t, adopted))
	}
	c.New.Account = first
	if _, err := target.Apply(t.Context(), c); !errors.Is(err, fault.ErrInvalid) || !b.accepts(t, adopted) {
		t.Errorf("apply to the role that consumers use: %v, want invalid", err)
	}
}

// Somebody else's marker is in the way of the first rotation: what to do is said before
// and then.
func TestMarkerWhenOfAnotherCredential(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	warns := func(c providers.Change) bool {
		t.Helper()
		found, err := target.Check(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if f.Check == "marker" && !f.OK {
				return true
			}
		}
		return false
	}
	const claims = 1 << 20 // epochs grow with generations
	for _, generation := range []int64{1, 5} {
		c := b.change(t, providers.Replace)
		theirs := prepare(t, target, rotation(c, generation, generation*claims+1))
		theirs.Rotation = "00000000-0000-4000-8000-00000000000a"
		theirs.New.Rotation = theirs.Rotation
		apply(t, target, theirs)
		ours := prepare(t, target, rotation(c, 1, claims+1))
		_, err := target.Apply(t.Context(), ours)
		if known, ok := errors.AsType[*fault.Error](err); !ok || known.Reason != "generation_passed" || !strings.Contains(err.Error(), "in brackets") {
			t.Errorf("over a marker of generation %d: %v, want generation_passed, with what to do", generation, err)
		}
		ours.Epoch = 0 // a preflight has no lease
		if !warns(ours) {
			t.Errorf("Check says nothing of a marker of generation %d", generation)
		}
		next := rotation(theirs, generation+1, 0)
		if warns(next) {
			t.Error("Check warns of the credential's own marker")
		}
	}
}

// A session that does not end is said not to have ended.
func TestEmergencyWhenASessionDoesNotEnd(t *testing.T) {
	b := newBed(t, bedtest.NewPostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Alternate), 1, 1))
	old := apply(t, target, c)
	alive := b.session(t, old)
	bystander := prepare(t, target, rotation(b.change(t, providers.Replace), 1, 1))
	stays := b.session(t, apply(t, target, bystander))
	c.Current = old
	c = prepare(t, target, rotation(c, 2, 2))
	c.Emergency = true
	c.New = apply(t, target, c)
	pid, err := strconv.Atoi(b.query(t, "SELECT pid::text FROM pg_stat_activity WHERE usename = $1", old.Account))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	err = target.Revoke(t.Context(), c, old)
	if providers.OutcomeOf(err) != providers.Unknown || err == nil || b.accepts(t, old) {
		t.Errorf("a session that can't end: %v, want unknown; the value is accepted: %v", err, b.accepts(t, old))
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := target.Revoke(t.Context(), c, old); err != nil || alive() || !stays() {
		t.Errorf("the same again: %v; the session works: %v; another role's: %v", err, alive(), stays())
	}
}

// A server announces a message for which there is no memory.
func TestAnswerWhenLengthIsALie(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	defer func() { _ = listener.Close(); <-done }()
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			var size [4]byte
			if _, err := io.ReadFull(conn, size[:]); err == nil {
				_, _ = io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(size[:]))-4)
				_, _ = conn.Write(binary.BigEndian.AppendUint32([]byte("E"), 1<<29)) // and then nothing
				_, _ = io.Copy(io.Discard, conn)
			}
			_ = conn.Close()
		}
	}()
	b := &bed{admin: "rotator", password: "login-password"}
	config := (&bed{Postgres: &bedtest.Postgres{}, admin: b.admin, password: b.password}).config(t, map[string]string{"address": listener.Addr().String()})
	target := b.openWith(t, config)
	defer target.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	h := providers.Held{Account: "app", Fields: providers.Fields{}.Set("password", "some-password")}
	err = target.Verify(ctx, providers.Change{}, h)
	if !errors.Is(err, fault.ErrUnavailable) || ctx.Err() != nil {
		t.Errorf("%v, want unavailable before the context ends", err)
	}
}
