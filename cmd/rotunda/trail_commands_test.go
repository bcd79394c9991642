package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

const (
	aSecret = "hec-token-that-must-stay-secret"
	aPEM    = "-----BEGIN X-----\naGk=\n-----END X-----\n"
)

func TestTrailRequestWhenFlagsAreGiven(t *testing.T) {
	dir := t.TempDir()
	ca, token := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "token")
	write(t, ca, aPEM, 0o600)
	write(t, token, aSecret+"\n", 0o600)
	zero := int64(0)
	seven := int64(7)
	for _, test := range []struct {
		name, stdin string
		args        []string
		want        proto.Message
	}{
		{"prove", "", []string{"prove", "an-id"}, &v1.ProveEventRequest{Id: "an-id"}},
		{"checkpoint", "", []string{"checkpoint", "--size", "4"}, &v1.GetCheckpointRequest{Size: 4}},
		{"rotate", "", []string{"key", "rotate", "--reason", "yearly"}, &v1.RotateTrailKeyRequest{Reason: "yearly"}},
		{"restart", "", []string{"restart", "--reason", "backup", "--yes"}, &v1.RestartTrailRequest{Reason: "backup"}},
		{"open intents", "", []string{"open-intents", "--before", "1h", "-o", "json"}, &v1.ListOpenIntentsRequest{Before: at(-time.Hour), PageSize: 1000}},
		{"evidence", "", []string{"evidence", "tokens/x", "--since", "2026-11-01"}, &v1.GetEvidenceRequest{Resource: "tokens/x", Since: timestamppb.New(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC))}},
		{"sink of the fewest", "", []string{"sink", "add", "--kind", "syslog", "--address", "tls://SIEM.example:6514"},
			&v1.CreateSinkRequest{Sink: &v1.Sink{Name: "syslog-siem.example", Kind: "syslog", Address: "tls://SIEM.example:6514"}}},
		{"sink of all", aPEM, []string{"sink", "add", "hec", "--kind", "splunk", "--address", "https://s:8088", "--format", "cef", "--ca", ca, "--server-name", "n",
			"--client-cert", ca, "--client-key", "-", "--option", "index=audit", "--option", "ack=true", "--secret-file", token, "--index", "7"},
			&v1.CreateSinkRequest{Sink: &v1.Sink{Name: "hec", Kind: "splunk", Address: "https://s:8088", Format: "cef", Ca: aPEM, ServerName: "n", ClientCert: aPEM, Options: map[string]string{"index": "audit", "ack": "true"}},
				Secret: aSecret, ClientKey: aPEM, Index: &seven}},
		{"sink from the start", aSecret + "\r\n", []string{"sink", "add", "--kind", "file", "--address", "/var/log/trail.jsonl", "--from-start", "--secret-file", "-"},
			&v1.CreateSinkRequest{Sink: &v1.Sink{Name: "file-trail.jsonl", Kind: "file", Address: "/var/log/trail.jsonl"}, Secret: aSecret, Index: &zero}},
		{"sink remove", "", []string{"sink", "remove", "hec"}, &v1.DeleteSinkRequest{Name: "hec"}},
		{"anchor", aSecret, []string{"anchor", "add", "a", "--kind", "s3", "--address", "bucket", "--region", "r", "--endpoint", "https://e", "--path-style", "--access-key", "AK", "--prefix", "p",
			"--retain-days", "400", "--no-latest", "--ca", ca, "--secret-file", "-"},
			&v1.CreateAnchorRequest{Secret: aSecret, Anchor: &v1.Anchor{Name: "a", Kind: "s3", Address: "bucket", Region: "r", Endpoint: "https://e", PathStyle: true, AccessKey: "AK", Prefix: "p", RetainDays: 400, NoLatest: true, Ca: aPEM}}},
		{"anchor without a name", "", []string{"anchor", "add", "--kind", "webhook", "--address", "https://a.example/x"},
			&v1.CreateAnchorRequest{Anchor: &v1.Anchor{Name: "webhook-a.example", Kind: "webhook", Address: "https://a.example/x"}}},
		{"anchor remove", "", []string{"anchor", "remove", "a"}, &v1.DeleteAnchorRequest{Name: "a"}},
		{"witness", "", []string{"witness", "add", "w+1+k", "--url", "https://w"}, &v1.CreateWitnessRequest{Vkey: "w+1+k", Url: "https://w"}},
		{"witness remove", "", []string{"witness", "remove", "w"}, &v1.DeleteWitnessRequest{Name: "w"}},
		{"cosign", "a note", []string{"witness", "cosign", "-"}, &v1.AddCosignatureRequest{Checkpoint: "a note"}},
		{"retention", "", []string{"retention", "set", "400d", "--reason", "policy"}, &v1.SetRetentionRequest{Seconds: 400 * 86400, Reason: "policy"}},
		{"retention for ever", "", []string{"retention", "set", "forever", "--dry-run"}, &v1.SetRetentionRequest{DryRun: true}},
		{"hold", "", []string{"hold", "add", "h", "--reason", "case", "--partner", "acme", "--resource", "tokens/"}, &v1.CreateHoldRequest{Hold: &v1.Hold{Name: "h", Reason: "case", Partner: "acme", Resource: "tokens/"}}},
		{"release", "", []string{"hold", "release", "h", "--reason", "closed"}, &v1.ReleaseHoldRequest{Name: "h", Reason: "closed"}},
		{"erase", "", []string{"erase", "--field", "address", "--field", "actor", "--actor", "a", "--address", "::1", "--partner", "p", "--request-id", "r", "--id", "i", "--since", "1d", "--until", "1h", "--reason", "dsr", "--yes"},
			&v1.EraseFieldsRequest{Fields: []string{"address", "actor"}, Actor: "a", Address: "::1", Partner: "p", RequestId: "r", Id: "i", Since: at(-day), Until: at(-time.Hour), Reason: "dsr"}},
		{"erase dry", "", []string{"erase", "--field", "detail", "--id", "i", "--reason", "dsr", "--dry-run"}, &v1.EraseFieldsRequest{Fields: []string{"detail"}, Id: "i", Reason: "dsr", DryRun: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newService(t)
			r := execute(t, s, func(p *process) { p.stdin = strings.NewReader(test.stdin) }, append([]string{"audit"}, test.args...)...)
			if r.code != exitDone {
				t.Fatalf("exit code %d:\n%s", r.code, r.stderr)
			}
			got, _ := s.last(t)
			if diff := cmp.Diff(test.want, got, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
			if strings.Contains(r.stdout+r.stderr, aSecret) {
				t.Errorf("it printed a secret:\n%s%s", r.stdout, r.stderr)
			}
		})
	}
}

func TestTrailWhenUsageIsWrong(t *testing.T) {
	s := newService(t)
	sink := []string{"sink", "add", "--kind", "https", "--address", "https://a"}
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"group alone", []string{"sink"}, "rotunda audit sink needs a command"},
		{"until before since", []string{"list", "--since", "1d", "--until", "2d"}, "--until is not after --since"},
		{"outcome", []string{"list", "--outcome", "good"}, "it must be one of ok, denied, started, failed"},
		{"export without out", []string{"export"}, "--out must be given"},
		{"export to nothing", []string{"export", "--out", ""}, "--out is empty"},
		{"export format", []string{"export", "--out", "x", "--format", "xml"}, "it must be one of jsonl, csv, cef, ocsf, parquet"},
		{"prove nothing", []string{"prove"}, "EVENT_ID is missing"},
		{"rotate without reason", []string{"key", "rotate"}, "--reason must be given"},
		{"key of something", []string{"key", "x"}, `"x" is one argument too many`},
		{"checkpoint size", []string{"checkpoint", "--size", "-1"}, "--size must not be negative"},
		{"restart without reason", []string{"restart", "--yes"}, "--reason must be given"},
		{"restart with an empty reason", []string{"restart", "--yes", "--reason", ""}, "--reason is empty"},
		{"restart by a script", []string{"restart", "--reason", "r"}, "nobody is here to ask: give --yes if the database was restored"},
		{"open intents before", []string{"open-intents", "--before", "soon"}, `--before: "soon" is neither a time`},
		{"open intents of a bundle before", []string{"open-intents", "q1", "--before", "1h"}, "--before is for the server"},
		{"evidence without since", []string{"evidence", "tokens/x"}, "--since must be given"},
		{"evidence of what is not counted", []string{"evidence", "keysets/payments", "--since", "1d"}, `"keysets/payments" is neither tokens/ID nor keysets/NAME/keys/KID`},
		{"evidence of no name", []string{"evidence", "tokens/", "--since", "1d"}, `"tokens/" is neither tokens/ID`},
		{"evidence since nothing", []string{"evidence", "tokens/x", "--since", ""}, "--since is empty"},
		{"sink kind", []string{"sink", "add", "--kind", "kafka", "--address", "x"}, "it must be one of syslog, splunk, https, otlp, file"},
		{"sink without address", []string{"sink", "add", "--kind", "https"}, "--address must be given"},
		{"sink from two places", append(sink, "--from-start", "--index", "3"), "--from-start or --index, not both"},
		{"sink index", append(sink, "--index", "-3"), "--index must not be negative"},
		{"sink certificate without key", append(sink, "--client-cert", "x"), "--client-cert and --client-key go together"},
		{"sink stdin twice", append(sink, "--client-cert", "x", "--client-key", "-", "--secret-file", "-"), "only one of --secret-file and --client-key"},
		{"sink option", append(sink, "--option", "auth"), "is not of the form name=value"},
		{"sink option twice", append(sink, "--option", "a=1", "--option", "a=2"), "--option a is given twice"},
		{"sink of two names", []string{"sink", "add", "a", "b", "--kind", "https", "--address", "https://a"}, `"b" is one argument too many`},
		{"sink without a name", []string{"sink", "add", "", "--kind", "https", "--address", "https://a"}, "NAME is empty; leave it out"},
		{"anchor days", []string{"anchor", "add", "--kind", "s3", "--address", "b", "--retain-days", "-1"}, "--retain-days must not be negative"},
		{"retention", []string{"retention", "set", "long"}, `TIME: "long" is not a length of time: write it like 30d, 12h, 90m or 1d12h, or forever`},
		{"retention of an hour", []string{"retention", "set", "1h", "--reason", "r"}, "shorter than a day; to keep events for ever, write forever"},
		{"retention without reason", []string{"retention", "set", "400d"}, "--reason must be given; --dry-run needs none"},
		{"hold without reason", []string{"hold", "add", "h"}, "--reason must be given"},
		{"release without reason", []string{"hold", "release", "h"}, "--reason must be given"},
		{"erase nothing", []string{"erase"}, "--field and --reason must be given"},
		{"erase a field that is none", []string{"erase", "--field", "action"}, "it must be one of actor, partner, reason, request_id, address, detail"},
		{"erase a field twice", []string{"erase", "--field", "actor", "--field", "actor"}, "actor is given twice"},
		{"erase nowhere", []string{"erase", "--field", "actor", "--reason", "r", "--since", "1d"}, "say in which events: at least one of --id"},
		{"erase by a script", []string{"erase", "--field", "actor", "--actor", "a", "--reason", "r"}, "nobody is here to ask: give --yes"},
	} {
		r := execute(t, s, nil, append([]string{"audit"}, test.args...)...)
		if r.code != exitUsage || !strings.Contains(r.stderr, test.want) || !strings.Contains(r.stderr, "\nusage: rotunda audit") || r.stdout != "" {
			t.Errorf("%s: exit code %d, want %d with %q and the usage line on stderr only:\n%s%s", test.name, r.code, exitUsage, test.want, r.stdout, r.stderr)
		}
	}
	if n := s.count(); n > 0 {
		t.Errorf("wrong usage led to %d calls", n)
	}
}

func TestTrailWhenAFileIsWrong(t *testing.T) {
	s := newService(t)
	file := filepath.Join(t.TempDir(), "f")
	write(t, file, "no pem, but "+aSecret, 0o600)
	large := filepath.Join(t.TempDir(), "large")
	write(t, large, strings.Repeat("s", maxSecretFile+1), 0o600)
	none := filepath.Join(t.TempDir(), "none")
	sink := []string{"audit", "sink", "add", "--kind", "https", "--address", "https://a"}
	for _, test := range []struct {
		args []string
		want string
	}{
		{append(sink, "--ca", file), "reading --ca: " + file + " is not in PEM form"},
		{append(sink, "--client-cert", file, "--client-key", file), "reading --client-cert: "},
		{append(sink, "--secret-file", large), "reading --secret-file: there are more than 4096 bytes"},
		{append(sink, "--secret-file", none), "reading --secret-file: open "},
		{[]string{"audit", "anchor", "add", "--kind", "file", "--address", "/x", "--ca", none}, "reading --ca: open "},
		{[]string{"audit", "witness", "cosign", none}, "reading the cosigned checkpoint: open "},
	} {
		r := execute(t, s, nil, test.args...)
		if r.code != exitRefused || !strings.Contains(r.stderr, test.want) || strings.Contains(r.stderr, aSecret) {
			t.Errorf("%q: %+v", test.want, r)
		}
	}
	if r := execute(t, s, nil, "audit", "open-intents", none); r.code != exitUsage || !strings.Contains(r.stderr, "no such file") {
		t.Errorf("%+v", r)
	}
	if s.count() > 0 {
		t.Error("the server was called")
	}
}

// The server knows instants to the microsecond, and a bundle says which it was.
func TestInstantFlagWhenTheClockIsFiner(t *testing.T) {
	now := time.Date(2026, 11, 22, 3, 0, 0, 123456789, time.UTC)
	got, err := instantFlag("since", "1d", now)
	if want := time.Date(2026, 11, 21, 3, 0, 0, 123456000, time.UTC); err != nil || !got.AsTime().Equal(want) {
		t.Errorf("%v, %v, want %v", got.AsTime(), err, want)
	}
}

// What can't be undone is done only when its word is typed.
func TestTrailWhenAPersonIsAsked(t *testing.T) {
	for _, test := range []struct {
		args     []string
		question string
		word     string
	}{
		{[]string{"restart", "--reason", "r"}, "Restart the trail under a new name.", "restart"},
		{[]string{"erase", "--field", "address", "--actor", "a", "--reason", "r"}, "Erase address in 42 events. This can't be undone.", "42"},
		{[]string{"retention", "set", "2d", "--reason", "r"}, "Keep events for 2d: 1,204 events will be pruned at once.", "1204"},
	} {
		for answer, done := range map[string]bool{test.word + "\n": true, "yes\n": false, "": false} {
			s := newService(t)
			r := execute(t, s, func(p *process) { p.person, p.stdin = true, strings.NewReader(answer) }, append([]string{"audit"}, test.args...)...)
			acted := false
			for _, m := range s.calls {
				switch m := m.(type) {
				case *v1.RestartTrailRequest:
					acted = true
				case *v1.EraseFieldsRequest:
					acted = acted || !m.GetDryRun()
				case *v1.SetRetentionRequest:
					acted = acted || !m.GetDryRun()
				}
			}
			if acted != done || (r.code == exitDone) != done || !strings.Contains(r.stderr, test.question) || !done && !strings.Contains(r.stderr, "not confirmed, so nothing was changed") {
				t.Errorf("%q answered %q: acted %v: %+v", test.args, answer, acted, r)
			}
		}
	}
	s := newService(t)
	s.reply = func(context.Context, proto.Message) (proto.Message, error) { return &v1.EraseFieldsResponse{}, nil }
	r := execute(t, s, func(p *process) { p.person = true }, "audit", "erase", "--field", "actor", "--actor", "a", "--reason", "r")
	if r.code != exitRefused || !strings.Contains(r.stderr, "no event matches") {
		t.Errorf("%+v", r)
	}
}

func TestEvidenceWhenThereIsMore(t *testing.T) {
	for name, test := range map[string]struct {
		res  *v1.GetEvidenceResponse
		code int
		want string
	}{
		"accepted": {&v1.GetEvidenceResponse{LastAccepted: at(-time.Hour), Accepted: 3, CoveredUntil: at(-time.Minute)}, exitRefused,
			"tokens/x was accepted 3 times since 2026-11-21 03:00Z, for the last time in the minute of 1h ago (2026-11-22 02:00Z)."},
		"a gap": {&v1.GetEvidenceResponse{CoveredUntil: at(-time.Minute), Gaps: []*v1.CoverageGap{{Replica: "r1", From: at(-2 * time.Hour), Until: at(-time.Hour), Lost: 4}}}, exitUnproved,
			"  r1       2026-11-22 01:00:00Z  2026-11-22 02:00:00Z  4"},
		"nobody told":       {&v1.GetEvidenceResponse{}, exitUnproved, "nothing vouches for that time yet"},
		"told before since": {&v1.GetEvidenceResponse{CoveredUntil: at(-2 * day)}, exitUnproved, "nothing vouches for that time yet"},
	} {
		s := newService(t)
		s.reply = func(context.Context, proto.Message) (proto.Message, error) { return test.res, nil }
		r := execute(t, s, nil, "audit", "evidence", "tokens/x", "--since", "1d")
		if r.code != test.code || !strings.Contains(r.stdout, test.want) {
			t.Errorf("%s: want %d and %q: %+v", name, test.code, test.want, r)
		}
	}
}

func TestStatusWhenTheTrailIsStopped(t *testing.T) {
	s := newService(t)
	s.reply = func(context.Context, proto.Message) (proto.Message, error) {
		return &v1.GetTrailStatusResponse{Origin: sampleOrigin, Size: 9, Stopped: "this process signed a tree of 12 leaves, and finds one of 9", Waiting: 3, WaitingSince: at(-time.Hour), Checkpoint: sampleLog(9).checkpoint(9)}, nil
	}
	r := execute(t, s, nil, "audit", "status")
	if r.code != exitRefused || !strings.Contains(r.stderr, "the trail is stopped") {
		t.Errorf("%+v", r)
	}
	golden(t, "audit-status-stopped", r.stdout)
}

func TestTrailCompletionWhenTheServerAnswers(t *testing.T) {
	s := newService(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"sink", "remove", ""}, "syslog-siem\tsyslog tls://siem:6514"},
		{[]string{"sink", "add", "--kind", "s"}, "syslog\nsplunk"},
		{[]string{"anchor", "remove", ""}, "auditor\ts3 trail-anchors"},
		{[]string{"witness", "remove", ""}, "witness.example\thttps://witness.example"},
		{[]string{"hold", "release", ""}, "case-2026-7\tlitigation hold"},
		{[]string{"export", "--format", "o"}, "ocsf"},
		{[]string{"erase", "--field", "a"}, "actor\npartner"},
		{[]string{"list", "--outcome", "s"}, "started"},
		{[]string{"prove", ""}, "2\tkeyset.rotate keysets/payments"},
		{[]string{"retention", "set", "f"}, "forever"},
	} {
		r := execute(t, s, nil, append([]string{"__complete", "audit"}, test.args...)...)
		if r.code != exitDone || !strings.Contains(r.stdout, test.want) {
			t.Errorf("%q: exit code %d, want %q in:\n%s", test.args, r.code, test.want, r.stdout)
		}
	}
}

func TestKeyWhenItIsSavedAndUsed(t *testing.T) {
	l := sampleLog(5)
	s := newLogService(t, l)
	dir := newExport(t, l)
	r := execute(t, s, nil, "audit", "key")
	if r.code != exitDone || r.stdout != l.keys[0]+"\n" || !strings.Contains(r.stderr, "fingerprint of "+sampleOrigin+": ") {
		t.Fatalf("%+v", r)
	}
	file := filepath.Join(t.TempDir(), "trail.pub")
	write(t, file, r.stdout, 0o600)
	verified(t, exitDone, dir, "--key", file)
	if raw, err := os.ReadFile(file); err != nil || fingerprint(strings.TrimSpace(string(raw))) != strings.TrimSpace(r.stderr) {
		t.Errorf("%v: %s", err, r.stderr)
	}
	l.keys = nil
	if r := execute(t, s, nil, "audit", "key"); r.code != exitRefused || !strings.Contains(r.stderr, "no key of the trail yet") {
		t.Errorf("%+v", r)
	}
}
