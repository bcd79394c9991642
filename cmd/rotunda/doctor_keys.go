package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

const (
	maxKeysExamined = 10000
	// pepperPatience is how long keys may take to move to a new pepper before that is said.
	pepperPatience = 30 * day
	// graceNear is how long before its end a grace is looked at, and usedLately
	// how long ago a use is one that goes on.
	graceNear  = 24 * time.Hour
	usedLately = 24 * time.Hour
	behindWarn = 10 * time.Second
)

// examineKeys looks for what partners and admins should do something about
// before clients are refused.
func examineKeys(ctx context.Context, to *conn, now time.Time) []finding {
	keys, next, err := listKeys(ctx, to, "", false, maxKeysExamined)
	if connect.CodeOf(err) == connect.CodePermissionDenied {
		return []finding{{"API keys", "skip", "this token may not read them", "use a token of an auditor or an operator"}}
	}
	if err != nil {
		return []finding{{"API keys", "fail", messageOf(err), ""}}
	}
	var out []finding
	if next != "" {
		out = append(out, finding{"API keys", "warn", "there are more than " + thousands(maxKeysExamined) + ": the rest was not checked", ""})
	}
	var weak, late []*rotundav1.ApiKey
	for _, k := range keys {
		if k.GetWeak() && k.GetReplacedBy() == "" && !ended(k.GetState()) {
			weak = append(weak, k)
		}
		end, used := k.GetGraceEndsAt(), k.GetLastUsedAt()
		if k.GetState() == rotundav1.ApiKeyState_API_KEY_STATE_RETIRING && end != nil && used != nil &&
			end.AsTime().Sub(now) < graceNear && now.Sub(used.AsTime()) < usedLately {
			late = append(late, k)
		}
	}
	if len(weak) > 0 {
		out = append(out, finding{"API keys", "warn", weakKeys(int64(len(weak))) + " imported and too easy to guess: " + keyNames(weak), "roll them before they end: " + to.program + " key roll KEY_ID"})
	}
	if len(late) > 0 {
		out = append(out, finding{"API keys", "warn", fmt.Sprintf("the grace of %s ends within a day, and somebody still uses them: %s", counted(int64(len(late)), "retiring key"), keyNames(late)), "tell the partner to use the new key"})
	}
	if out == nil {
		out = []finding{{"API keys", "ok", "none is weak, and none is used near the end of its grace", ""}}
	}
	return slices.Concat(out, examinePeppers(ctx, to, now), examineVerifier(ctx, to))
}

// maxMetrics is far more than the metrics of a server have.
const maxMetrics = 16 << 20

// examineVerifier looks whether the server hears of revocations. Whoever may not
// read metrics is not told.
func examineVerifier(ctx context.Context, to *conn) []finding {
	behind, err := verifierBehind(ctx, to)
	switch {
	case err != nil:
		return []finding{{"verifier", "skip", "how current it is can't be read: " + err.Error(), "use a token of an auditor or an operator"}}
	case behind > behindWarn:
		return []finding{{"verifier", "warn", "it has heard of no revocation of a key for " + roughly(behind), "look at the server's log, and whether its database answers: after serve --verify-stale it answers nobody"}}
	}
	return []finding{{"verifier", "ok", "it hears of revocations", ""}}
}

// verifierBehind reads rotunda_verifier_behind_seconds of the server's metrics.
func verifierBehind(ctx context.Context, to *conn) (time.Duration, error) {
	const name = "rotunda_verifier_behind_seconds "
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to.base.JoinPath("/metrics").String(), nil)
	if err != nil {
		return 0, err
	}
	res, err := to.private.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("/metrics says %d %s", res.StatusCode, http.StatusText(res.StatusCode))
	}
	lines := bufio.NewScanner(io.LimitReader(res.Body, maxMetrics))
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), name); ok {
			seconds, err := strconv.ParseFloat(text, 64)
			if err != nil || !(seconds >= 0 && seconds <= (100*365*day).Seconds()) {
				return 0, fmt.Errorf("%s is %q", strings.TrimSpace(name), clipText(text))
			}
			return time.Duration(seconds * float64(time.Second)), nil
		}
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return 0, errors.New("/metrics does not say")
}

// keyNames names the first few.
func keyNames(keys []*rotundav1.ApiKey) string {
	const few = 3
	var names []string
	for _, k := range keys[:min(len(keys), few)] {
		names = append(names, k.GetId()+" ("+k.GetName()+" of "+k.GetPartner()+")")
	}
	text := strings.Join(names, ", ")
	if len(keys) > few {
		text += ", …"
	}
	return text
}

func examinePeppers(ctx context.Context, to *conn, now time.Time) []finding {
	res, err := call(ctx, to, to.peppers.ListPeppers, &rotundav1.ListPeppersRequest{}, "")
	if connect.CodeOf(err) == connect.CodePermissionDenied {
		return []finding{{"pepper", "skip", "this token may not read it", "use a token of an auditor or an operator"}}
	}
	if err != nil {
		return []finding{{"pepper", "fail", messageOf(err), ""}}
	}
	var out []finding
	for i, p := range res.GetPeppers() {
		if i == 0 || p.GetRetiredAt() != nil {
			continue
		}
		n := p.GetKeys() + p.GetTokens()
		gen := formatInt(p.GetGeneration())
		since := res.GetPeppers()[i-1].GetCreatedAt() // when it was superseded
		switch {
		case n == 0:
			out = append(out, finding{"pepper", "ok", "nothing needs generation " + gen + " any more", to.program + " pepper retire " + gen})
		case since != nil && now.Sub(since.AsTime()) > pepperPatience:
			out = append(out, finding{
				"pepper", "warn", fmt.Sprintf("%s and %s were not used since generation %s was superseded %s ago", counted(p.GetKeys(), "key"), counted(p.GetTokens(), "token"), gen, roughly(now.Sub(since.AsTime()))),
				"roll or revoke what " + to.program + " pepper stragglers " + gen + " lists",
			})
		default:
			out = append(out, finding{"pepper", "ok", fmt.Sprintf("%s and %s move from generation %s when they are next used", counted(p.GetKeys(), "key"), counted(p.GetTokens(), "token"), gen), ""})
		}
	}
	if out == nil {
		out = []finding{{"pepper", "ok", "there is one generation", ""}}
	}
	return out
}
