package server

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// Promise: a reader's token reads what its paths cover. Of everything else it learns
// nothing, and each try is in the trail.
func TestReadSecretWhenReaderIsLimited(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.kept(t, "orders-db", "orders/db")
		b.kept(t, "billing-db", "billing/db")
		reader := b.reader(t, "orders/*")
		read := func(token, path, version string) (*connect.Response[rotundav1.ReadSecretResponse], error) {
			return b.stores(token).ReadSecret(t.Context(), connect.NewRequest(&rotundav1.ReadSecretRequest{Path: path, Version: version}))
		}
		for who, token := range map[string]string{"reader": reader, "admin": b.admin} {
			res, err := read(token, "orders/db", "")
			if err != nil || len(res.Msg.GetFields()) == 0 || res.Msg.GetVersion() == "" || res.Header().Get("Cache-Control") != "no-store" {
				t.Fatalf("%s: %v, %v", who, res, err)
			}
			for name, value := range res.Msg.GetFields() {
				if len(value) < 16 {
					t.Errorf("%s: the field %s has %d bytes", who, name, len(value))
				}
			}
		}
		if n := len(b.events(t, audit.Query{Action: "secret.read", Actor: idOf(reader)})); n != 1 {
			t.Errorf("the reader's read is in the trail %d times", n)
		}

		// What is there, what is not, and what can't be are one answer.
		_, there := read(reader, "billing/db", "")
		for what, try := range map[string]func() error{
			"not there":                  func() error { _, err := read(reader, "billing/nothing", ""); return err },
			"of nobody":                  func() error { _, err := read(reader, "elsewhere", ""); return err },
			"its own folder":             func() error { _, err := read(reader, "orders", ""); return err },
			"not there, in its own":      func() error { _, err := read(reader, "orders/nothing", ""); return err },
			"a version that is not":      func() error { _, err := read(reader, "orders/db", "999999"); return err },
			"out of its folder":          func() error { _, err := read(reader, "orders/../billing/db", ""); return err },
			"what no consumer reads yet": func() error { _, err := read(b.admin, "orders/db", "staged"); return err },
			"a version of another's":     func() error { _, err := read(reader, "billing/db", "previous"); return err },
			"no version of nobody's":     func() error { _, err := read(reader, "elsewhere", "previous"); return err },
			"the same for an admin":      func() error { _, err := read(b.admin, "elsewhere", ""); return err },
			"with a folder's own letter": func() error { _, err := read(reader, "orders2/db", ""); return err },
		} {
			err := try()
			p := wantProblem(t, err, connect.CodeNotFound, "secret_not_found")
			if err.Error() != there.Error() || p.GetField() != "path" {
				t.Errorf("%s is told apart:\n%v\n%v", what, err, there)
			}
		}
		var denied []string
		for _, e := range b.events(t, audit.Query{Outcome: audit.Denied, Actor: idOf(reader)}) {
			denied = append(denied, e.Action+" "+e.Resource+" "+e.Reason)
		}
		for _, want := range []string{"rpc.ReadSecret secrets/billing/db path", "rpc.ReadSecret secrets/billing/nothing path", "rpc.ReadSecret secrets/? path", "rpc.ReadSecret secrets/orders2/db path"} {
			if !strings.Contains(strings.Join(denied, "\n"), want) {
				t.Errorf("%q is not in the trail: %q", want, denied)
			}
		}
		for _, path := range []string{"", strings.Repeat("a", 513)} {
			_, err := read(reader, path, "")
			if code, _ := problemOf(t, err); code != connect.CodeInvalidArgument {
				t.Errorf("a path of %d bytes: %v", len(path), err)
			}
		}

		// Nobody else reads, whatever he may otherwise.
		b.partner(t, "acme")
		for _, req := range []apikeys.Create{{Role: apikeys.Operator}, {Role: apikeys.Auditor}, {Role: apikeys.Gateway}, {Role: apikeys.Signer}, {Role: apikeys.Manager, Partner: "acme"}} {
			token := b.token(t, req)
			_, there := read(token, "orders/db", "")
			_, absent := read(token, "elsewhere", "")
			wantProblem(t, there, connect.CodePermissionDenied, "role")
			wantProblem(t, absent, connect.CodePermissionDenied, "role")
			if there.Error() != absent.Error() {
				t.Errorf("%s learns what is there:\n%v\n%v", req.Role, there, absent)
			}
		}
		// And a reader does nothing else.
		_, err := b.credentials(reader).GetCredential(t.Context(), connect.NewRequest(&rotundav1.GetCredentialRequest{Credential: "orders-db"}))
		wantProblem(t, err, connect.CodePermissionDenied, "role")

		// Without the trail nobody reads. (Whoever has just read it, and is in the trail with
		// that, is counted for a minute.)
		b.clock.Advance(time.Hour)
		before := b.contents(t)
		repair := b.refuseEvents(t)
		if res, err := read(reader, "orders/db", ""); err == nil {
			t.Errorf("read without an event: %d fields", len(res.Msg.GetFields()))
		}
		repair()
		if d := cmp.Diff(before["event_queue"], b.contents(t)["event_queue"]); d != "" {
			t.Errorf("events (-before +after):\n%s", d)
		}
	})
}

func TestTokenWhenReaderIsMadeOverTheAPI(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		paths := []string{"orders/*", "shared/db"}
		made, err := b.tokens(b.admin).CreateToken(t.Context(), connect.NewRequest(&rotundav1.CreateTokenRequest{Name: "app", Role: rotundav1.Role_ROLE_READER, Paths: paths}))
		if err != nil {
			t.Fatal(err)
		}
		list, err := b.tokens(b.admin).ListTokens(t.Context(), connect.NewRequest(&rotundav1.ListTokensRequest{PageSize: 1}))
		if err != nil {
			t.Fatal(err)
		}
		who, err := b.tokens(made.Msg.GetValue()).WhoAmI(t.Context(), connect.NewRequest(&rotundav1.WhoAmIRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for where, token := range map[string]*rotundav1.Token{"made": made.Msg.GetToken(), "who am I": who.Msg.GetToken()} {
			if token.GetRole() != rotundav1.Role_ROLE_READER || !cmp.Equal(token.GetPaths(), paths) {
				t.Errorf("%s: %v", where, token)
			}
		}
		if len(list.Msg.GetTokens()) != 1 {
			t.Errorf("list: %v", list.Msg)
		}
		_, err = b.tokens(b.admin).CreateToken(t.Context(), connect.NewRequest(&rotundav1.CreateTokenRequest{Name: "app", Role: rotundav1.Role_ROLE_READER}))
		if p := wantProblem(t, err, connect.CodeInvalidArgument, "paths_and_role"); p.GetField() != "paths" {
			t.Errorf("field %q", p.GetField())
		}
	})
}
