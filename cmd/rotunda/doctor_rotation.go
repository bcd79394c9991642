package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

const (
	maxCredentialsExamined = 10000
	// maxSystemsTested is how many stores, and how many targets, are logged in to.
	maxSystemsTested = 20
	// systemPatience is how long one of them may take.
	systemPatience = 5 * time.Second
)

// examineRotation looks for what waits for a person, and for what would fail the next time.
func examineRotation(ctx context.Context, to *conn, now time.Time) []finding {
	all, next, err := collect(maxCredentialsExamined, maxPage, func(size int32, token string) ([]*rotundav1.Credential, string, error) {
		r, err := call(ctx, to, to.credentials.ListCredentials, &rotundav1.ListCredentialsRequest{PageSize: size, PageToken: token}, "")
		return r.GetCredentials(), r.GetNextPageToken(), err
	})
	if connect.CodeOf(err) == connect.CodePermissionDenied {
		return []finding{{"credentials", "skip", "this token may not read them", "use a token of an auditor or an operator"}}
	}
	if err != nil {
		return []finding{{"credentials", "fail", messageOf(err), ""}}
	}
	out := examineCredentials(all, now, to.program)
	if next != "" {
		out = append(out, finding{"credentials", "warn", "there are more than " + thousands(maxCredentialsExamined) + ": the rest was not checked", ""})
	}
	out = append(out, examineRuns(ctx, to)...)
	out = append(out, examineDeliveries(ctx, to)...)
	for _, kind := range []string{"store", "target"} {
		out = append(out, examineSystems(ctx, to, kind)...)
	}
	return out
}

// examineCredentials returns what is wrong with credentials, or one ok.
func examineCredentials(all []*rotundav1.Credential, now time.Time, program string) []finding {
	var out []finding
	var late, drifted, tampered []string
	for _, x := range all {
		if x.GetTampered() {
			tampered = append(tampered, x.GetName())
		}
		if x.GetDrift() != rotundav1.Drift_DRIFT_UNSPECIFIED {
			drifted = append(drifted, x.GetName())
		}
		if at := x.GetNextAt(); at != nil && now.Sub(at.AsTime()) > lateAfter {
			late = append(late, x.GetName())
		}
	}
	if len(tampered) > 0 {
		out = append(out, finding{"credentials", "fail", "somebody else than Rotunda changed the rows of " + fewNames(tampered) + " in the database: they are used for nothing", "restore the database, and find who can write to it"})
	}
	if len(late) > 0 {
		out = append(out, finding{"credentials", "fail", "the next rotation is overdue of " + fewNames(late), "look at the server's log, and at `" + program + " credential show " + late[0] + "`"})
	}
	if len(drifted) > 0 {
		out = append(out, finding{"credentials", "warn", "store, target and Rotunda do not agree on " + fewNames(drifted), "look at `" + program + " credential show " + drifted[0] + "`"})
	}
	if out == nil {
		detail := "there are none"
		if len(all) > 0 {
			detail = "of " + counted(int64(len(all)), "credential") + " none is overdue, and none drifted"
		}
		out = []finding{{"credentials", "ok", detail, ""}}
	}
	return out
}

// fewNames names the first few.
func fewNames(names []string) string {
	const few = 3
	text := strings.Join(names[:min(len(names), few)], ", ")
	if more := len(names) - few; more > 0 {
		text += fmt.Sprintf(" and %s more", thousands(int64(more)))
	}
	return text
}

func examineRuns(ctx context.Context, to *conn) []finding {
	failed, next, err := listRotations(ctx, to, &rotundav1.ListRotationsRequest{Failed: true}, maxPage)
	if err != nil {
		return []finding{{"rotations", "fail", messageOf(err), ""}}
	}
	if len(failed) == 0 {
		return []finding{{"rotations", "ok", "none waits for a person", ""}}
	}
	count := waitsFor(int64(len(failed)))
	if next != "" {
		count = "more than " + count
	}
	var names []string
	for _, r := range failed {
		names = append(names, r.GetCredential())
	}
	return []finding{{"rotations", "fail", count + " for a person: " + fewNames(names), "see why with `" + to.program + " credential show " + failed[0].GetCredential() + "`, then retry, rollback or abandon"}}
}

func examineDeliveries(ctx context.Context, to *conn) []finding {
	res, err := call(ctx, to, to.endpoints.ListDeliveries, &rotundav1.ListDeliveriesRequest{PageSize: maxPage, Dead: true}, "")
	if err != nil {
		return []finding{{"webhooks", "fail", messageOf(err), ""}}
	}
	n := len(res.GetDeliveries())
	if n == 0 {
		return []finding{{"webhooks", "ok", "no message was given up", ""}}
	}
	count := counted(int64(n), "message")
	if res.GetNextPageToken() != "" {
		count = "more than " + count
	}
	return []finding{{"webhooks", "warn", count + " to consumers given up, the last one to " + res.GetDeliveries()[0].GetEndpoint(), "look at `" + to.program + " endpoint deliveries --dead`, then " + to.program + " endpoint redeliver --all-dead"}}
}

// examineSystems logs in to stores, or targets.
func examineSystems(ctx context.Context, to *conn, kind string) []finding {
	k := &systemCommands{kind: kind}
	all, _, err := k.fetch(ctx, to, maxPage)
	if err != nil {
		return []finding{{kind + "s", "fail", messageOf(err), ""}}
	}
	var out []finding
	good := 0
	for _, s := range all[:min(len(all), maxSystemsTested)] {
		f := testSystem(ctx, to, kind, s.GetName())
		if f.State == "skip" {
			return append(out, f)
		}
		if f.State == "ok" {
			good++
			continue
		}
		out = append(out, f)
	}
	if good > 0 {
		out = append(out, finding{kind + "s", "ok", counted(int64(good), kind) + " can be logged in to", ""})
	}
	if more := len(all) - maxSystemsTested; more > 0 {
		out = append(out, finding{kind + "s", "skip", thousands(int64(more)) + " more were not tried", "try one with " + to.program + " " + kind + " test NAME"})
	}
	return out
}

func testSystem(ctx context.Context, to *conn, kind, name string) finding {
	ctx, cancel := context.WithTimeout(ctx, systemPatience)
	defer cancel()
	var found []*rotundav1.Finding
	var err error
	if kind == "store" {
		var res *rotundav1.TestStoreResponse
		res, err = call(ctx, to, to.stores.TestStore, &rotundav1.TestStoreRequest{Store: name}, "")
		found = res.GetFindings()
	} else {
		var res *rotundav1.TestTargetResponse
		res, err = call(ctx, to, to.targets.TestTarget, &rotundav1.TestTargetRequest{Target: name}, "")
		found = res.GetFindings()
	}
	check := kind + " " + name
	switch {
	case connect.CodeOf(err) == connect.CodePermissionDenied:
		return finding{kind + "s", "skip", "this token may not log in to them", "use a token of an operator"}
	case connect.CodeOf(err) == connect.CodeDeadlineExceeded:
		return finding{check, "fail", "it does not answer within " + formatDuration(systemPatience), "look whether it runs, and whether the server's machine reaches it"}
	case err != nil:
		return finding{check, "fail", messageOf(err), ""}
	}
	for _, f := range found {
		if !f.GetOk() && !f.GetWarning() {
			return finding{check, "fail", f.GetDetail(), f.GetRemedy()}
		}
	}
	return finding{check, "ok", "", ""}
}
