package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func TestRevokeWhenAPersonIsAsked(t *testing.T) {
	args := []string{"keyset", "revoke", "payments", activeKid, "--mode", "fresh", "--reason", "key_compromise"}
	for _, test := range []struct {
		name, answer string
		more         []string
		code, calls  int
	}{
		{"the name", "payments\n", nil, exitDone, 3},
		{"another name", "ledger\n", nil, exitRefused, 2},
		{"nothing", "", nil, exitRefused, 2},
		{"not asked", "", []string{"--yes"}, exitDone, 1},
		{"dry run", "", []string{"--dry-run"}, exitDone, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newService(t)
			r := execute(t, s, func(p *process) { p.person, p.stdin = true, strings.NewReader(test.answer) }, append(args, test.more...)...)
			if r.code != test.code || s.count() != test.calls {
				t.Fatalf("exit code %d after %d calls, want %d after %d:\n%s", r.code, s.count(), test.code, test.calls, r.stderr)
			}
			if asked := strings.Contains(r.stderr, "Type payments to revoke"); asked != (test.more == nil) {
				t.Errorf("asked: %v\n%s", asked, r.stderr)
			}
			last, _ := s.last(t)
			if dry := last.(*v1.RevokeKeyRequest).GetDryRun(); dry != (test.code != exitDone || test.name == "dry run") {
				t.Errorf("the last call has dry_run %v", dry)
			}
		})
	}
}

func TestRevokeWhenInterruptedAtTheQuestion(t *testing.T) {
	s := newService(t)
	p, _, stderr := newProcess(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	p.person = true
	p.stdin = readerFunc(func([]byte) (int, error) { cancel(); <-t.Context().Done(); return 0, errors.New("closed") })
	code := run(ctx, []string{"keyset", "revoke", "payments", activeKid, "--reason", "superseded"}, p)
	if code != exitRefused || s.count() != 2 || !strings.Contains(stderr.String(), "nothing was changed") {
		t.Errorf("exit code %d after %d calls: %s", code, s.count(), stderr)
	}
}

func TestSuggestionsWhenTheProgramHasAPath(t *testing.T) {
	s := newService(t)
	called := func(p *process) { p.program = "bin/rotunda" }
	r := execute(t, s, called, "keyset", "revoke", "payments", activeKid, "--dry-run", "--server", s.URL, "--comment", "it's gone")
	want := ""
	for _, mode := range []string{"standby", "fresh"} {
		want += "  bin/rotunda keyset revoke payments " + activeKid + " --server " + s.URL + " --mode " + mode + ` --reason key_compromise --comment 'it'\''s gone'` + "\n"
	}
	if !strings.HasSuffix(r.stdout, "\nTo go on, one of:\n"+want) {
		t.Errorf("the dry run ends otherwise than with\n%s\n%s", want, r.stdout)
	}
	for _, test := range []struct {
		want string
		args []string
	}{
		{"\nusage: bin/rotunda keyset show NAME", []string{"keyset", "show"}},
		{"run `bin/rotunda keyset show --help`", []string{"keyset", "show"}},
		{"\n  bin/rotunda keyset show payments\n", []string{"keyset", "show", "--help"}},
		{"\n  (umask 077; bin/rotunda token create orders", []string{"token", "create", "--help"}},
		{"is `bin/rotunda serve` running", []string{"keyset", "list", "--server", "http://127.0.0.1:1"}},
		{"look next  bin/rotunda keyset show payments\n", []string{"keyset", "revoke", "payments", activeKid, "--mode", "fresh", "--reason", "superseded"}},
	} {
		if r := execute(t, s, called, test.args...); !strings.Contains(r.stdout+r.stderr, test.want) {
			t.Errorf("%q does not say %q:\n%s%s", test.args, test.want, r.stdout, r.stderr)
		}
	}
	r = execute(t, s, func(p *process) { p.program = "/opt/my tools/rotunda" }, "keyset", "revoke", "payments", "old-2023", "--dry-run")
	if want := "To go on: '/opt/my tools/rotunda' keyset revoke payments old-2023 --reason key_compromise --yes\n"; !strings.Contains(r.stdout, want) {
		t.Errorf("it does not say %q:\n%s", want, r.stdout)
	}
}

func TestRevokeWhenTheStandbyIsOfSomeAge(t *testing.T) {
	s := newService(t)
	for served, want := range map[*timestamppb.Timestamp]string{
		at(-20 * time.Second): "served for 20s of its lead of 16m 35s, so consumers that have not fetched",
		at(-2 * time.Hour):    "served for 2h, and its lead of 16m 35s is over",
		nil:                   "it is not served yet",
	} {
		s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
			if _, ok := req.(*v1.GetKeysetRequest); !ok {
				return nil, nil
			}
			k := payments()
			k.Keys[1].ServedSince = served
			return &v1.GetKeysetResponse{Keyset: k}, nil
		}
		if r := execute(t, s, nil, "keyset", "revoke", "payments", activeKid, "--dry-run"); !strings.Contains(r.stdout, want) {
			t.Errorf("it does not say %q:\n%s", want, r.stdout)
		}
	}
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		if _, ok := req.(*v1.GetKeysetRequest); ok {
			return nil, connect.NewError(connect.CodePermissionDenied, errors.New("denied"))
		}
		return nil, nil
	}
	if r := execute(t, s, nil, "keyset", "revoke", "payments", activeKid, "--dry-run"); r.code != exitDone || !strings.Contains(r.stdout, "mode standby") {
		t.Errorf("without the keyset there is no prediction: %+v", r)
	}
}
