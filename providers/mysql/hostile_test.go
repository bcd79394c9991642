package mysql_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
)

// What was there before Rotunda is known by its fields only.
func TestPrepareWhenConsumersUseAnAccountAlready(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
	target := b.open(t)
	defer target.Close()
	c := b.change(t, providers.Alternate)
	first := strings.Split(c.Params["users"], ",")[0]
	b.Exec(t, "ALTER USER "+literal(first)+"@'%' IDENTIFIED BY 'from-before-us'")
	adopted := providers.Held{Fields: providers.Fields{}.Set("username", first).Set("password", "from-before-us")}
	c.Current = adopted
	c = prepare(t, target, rotation(c, 1, 1))
	apply(t, target, c)
	if c.New.Account == first+"@%" || !b.accepts(t, adopted) {
		t.Errorf("consumers use %q, %q was next, and what they read is accepted: %v", first, c.New.Account, b.accepts(t, adopted))
	}
	c.New.Account = first + "@%"
	if _, err := target.Apply(t.Context(), c); !errors.Is(err, fault.ErrInvalid) || !b.accepts(t, adopted) {
		t.Errorf("apply to the account that consumers use: %v, want invalid", err)
	}
}

// With replace nothing took the place of the value of the account that the credential had
// before it was given another.
func TestRevokeWhenTheAccountWasRenamed(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Replace), 1, 1))
	old := apply(t, target, c)
	c = b.change(t, providers.Replace)
	c.Current = old
	c = prepare(t, target, rotation(c, 2, 2))
	h := apply(t, target, c)
	if err := target.Revoke(t.Context(), c, old); err != nil || b.accepts(t, old) || !b.accepts(t, h) {
		t.Errorf("revoke: %v; accepted are the old value: %v, the new: %v; want false, true", err, b.accepts(t, old), b.accepts(t, h))
	}
}

// Somebody else's marker is in the way of the first rotation: what to do is said before
// and then.
func TestMarkerWhenOfAnotherCredential(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
	target := b.open(t)
	defer target.Close()
	warns := func(c providers.Change) bool {
		t.Helper()
		found, err := target.Check(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(found, func(f providers.Finding) bool { return f.Check == "marker" && !f.OK })
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
		if known, ok := errors.AsType[*fault.Error](err); !ok || known.Reason != "generation_passed" || !strings.Contains(err.Error(), "remove the account's marker") {
			t.Errorf("over a marker of generation %d: %v, want generation_passed, with what to do", generation, err)
		}
		ours.Epoch = 0 // a preflight has no lease
		if !warns(ours) {
			t.Errorf("Check says nothing of a marker of generation %d", generation)
		}
		if warns(rotation(theirs, generation+1, 0)) {
			t.Error("Check warns of the credential's own marker")
		}
	}
}

// A server sends packets that are all parts of one, without an end.
func TestAnswerWhenEndless(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan int64, 1)
	go func() {
		var n int64
		defer func() { sent <- n }()
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		part := make([]byte, 1<<24-1)
		for sequence := 0; n < 256<<20; sequence++ {
			if _, err := conn.Write([]byte{0xff, 0xff, 0xff, byte(sequence)}); err != nil {
				return
			}
			if _, err := conn.Write(part); err != nil {
				return
			}
			n += int64(len(part))
		}
		_, _ = io.Copy(io.Discard, conn)
	}()
	config := (&bed{MariaDBServer: &bedtest.MariaDBServer{}, admin: "rotator", password: "login-password"}).config(t, map[string]string{"address": listener.Addr().String(), "marker_table": ""})
	target := openWith(t, config)
	defer target.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	h := providers.Held{Account: "app@%", Fields: providers.Fields{}.Set("password", "some-password")}
	err = target.Verify(ctx, providers.Change{}, h)
	_ = listener.Close()
	if n := <-sent; !errors.Is(err, fault.ErrUnavailable) || ctx.Err() != nil || n > 64<<20 {
		t.Errorf("%d bytes of an answer were taken: %v", n, err)
	}
}
