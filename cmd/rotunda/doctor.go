package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

const (
	// lateAfter is how long a move may be due before it counts as late: passes
	// are a minute apart at most.
	lateAfter = 5 * time.Minute
	// standbyAfter is how long the search for the primes of an RSA standby may take.
	standbyAfter = 5 * time.Minute
	clockWarn    = 5 * time.Second
	clockFail    = 30 * time.Second // the skew that policies allow for by default
	certWarn     = 14 * 24 * time.Hour
)

// finding is the result of one check.
type finding struct {
	Check  string `json:"check"`
	State  string `json:"state"` // "ok", "warn", "fail", or "skip" when it does not apply here
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
}

var errUnwell = errors.New("something fails: see above for what to do")

func newDoctor(c *cli) *cobra.Command {
	return c.client(&cobra.Command{
		Use:   "doctor",
		Short: "Check file modes, the server, clocks, the token, keys and credentials",
		Long: `Check the data directory and its file modes, whether the server answers and is ready, its
clock and certificate, the token, the trail with its sinks, anchors and witnesses, each keyset
(whether its next key is late or its standby is missing), the partners' API keys (weak ones,
ones still used near the end of their grace, ones that keep an old pepper alive), and credentials:
overdue ones, drift, rotations that wait for a person, webhooks that were given up, stores and
targets that can't be logged in to. Exits with 1 if anything fails.`,
		Example:           "  rotunda doctor\n  rotunda doctor --data-dir /var/lib/rotunda -o json",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := c.examine(cmd.Context())
			if err := c.printFindings(findings); err != nil {
				return err
			}
			for _, f := range findings {
				if f.State == "fail" {
					return errUnwell
				}
			}
			return nil
		},
	})
}

func (c *cli) printFindings(findings []finding) error {
	if c.output.value != "table" {
		raw, err := json.Marshal(map[string]any{"checks": findings})
		if err != nil {
			return err
		}
		return c.printJSON(raw, false)
	}
	p := c.newPage()
	rows := make([][]string, len(findings))
	for i, f := range findings {
		text := f.Detail
		if f.Advice != "" {
			text += ": " + f.Advice
		}
		rows[i] = []string{f.State, f.Check, text}
	}
	p.table([]string{"STATE", "CHECK", "WHAT WAS FOUND"}, rows)
	return p.flush()
}

func (c *cli) examine(ctx context.Context) []finding {
	to, err := c.connect()
	here := err != nil || loopback(to.base.Hostname())
	out := c.dataDir().examine(here, c.program)
	if err != nil {
		return append(out, finding{"server", "fail", err.Error(), ""})
	}
	return append(out, c.examineServer(ctx, to)...)
}

// examine checks modes and owners. here tells whether the server runs on this
// machine, so that its data should be here too.
func (d dataDir) examine(here bool, program string) []finding {
	info, err := os.Stat(string(d))
	switch {
	case missing(err) && !here:
		return []finding{{"data directory", "skip", "the server is another machine, and " + string(d) + " is not here", ""}}
	case missing(err):
		return []finding{{"data directory", "warn", string(d) + " is not here", "give --data-dir as to `" + program + " serve`"}}
	case err != nil:
		return []finding{{"data directory", "fail", err.Error(), "run this as the user that runs the server"}}
	case !info.IsDir():
		return []finding{{"data directory", "fail", string(d) + " is not a directory", "give --data-dir as to `" + program + " serve`"}}
	}
	out := []finding{modeFinding("data directory", string(d), info, 0o700)}
	for _, file := range []struct {
		check, path string
		absent      finding
	}{
		{"admin token", d.adminToken(), finding{State: "warn", Advice: "that is right if it was put elsewhere after the first start"}},
		{"key file", d.kek(), finding{State: "fail", Advice: "restore it from a backup: nothing that was sealed can be opened without it"}},
		{"database", d.db(), finding{State: "skip", Advice: "that is right if the server uses --database-url"}},
		{"database log", d.db() + "-wal", finding{}},
		{"database index", d.db() + "-shm", finding{}},
	} {
		info, err := os.Lstat(file.path)
		switch {
		case missing(err) && file.absent.State == "":
			// SQLite keeps these only while the database is open.
		case missing(err):
			out = append(out, finding{file.check, file.absent.State, file.path + " is not there", file.absent.Advice})
		case err != nil:
			out = append(out, finding{file.check, "fail", err.Error(), "run this as the user that runs the server"})
		case !info.Mode().IsRegular():
			out = append(out, finding{file.check, "fail", fmt.Sprintf("%s is not a regular file (%s)", file.path, info.Mode()), "put the file itself there"})
		default:
			out = append(out, modeFinding(file.check, file.path, info, 0o600))
		}
	}
	return out
}

func modeFinding(check, path string, info fs.FileInfo, want fs.FileMode) finding {
	got := info.Mode().Perm()
	if got&^want&0o077 != 0 {
		return finding{check, "fail", fmt.Sprintf("%s has mode %04o, so others can reach it", path, got), fmt.Sprintf("run: chmod %o %s", want, path)}
	}
	return finding{check, "ok", fmt.Sprintf("%s has mode %04o", path, got), ""}
}

func (c *cli) examineServer(ctx context.Context, to *conn) []finding {
	ctx, cancel := context.WithTimeout(ctx, to.timeout)
	defer cancel()
	began := c.now()
	res, err := to.get(ctx, "/readyz")
	if err != nil {
		why := (&callError{to, err}).unreachable(connect.NewError(connect.CodeUnavailable, err))
		return []finding{{"server", "fail", "can't reach " + to.base.String(), why}}
	}
	took := c.now().Sub(began)
	out := []finding{{"server", "ok", to.base.String() + " answers", ""}, readyFinding(res)}
	clock, offset := clockFinding(res.date, began, took)
	out = append(out, clock)
	if to.base.Scheme == "https" {
		out = append(out, certificateFinding(res, c.now()))
	}
	who, err := call(ctx, to, to.tokens.WhoAmI, &rotundav1.WhoAmIRequest{}, "")
	if err != nil {
		if connect.CodeOf(err) == connect.CodeUnauthenticated {
			return append(out, finding{"token", "fail", to.tokenHint(), ""})
		}
		return append(out, finding{"token", "fail", messageOf(err), ""})
	}
	out = append(out, c.tokenFinding(who.GetToken()))
	out = append(out, examineTrail(ctx, to, c.now().Add(offset))...)
	out = append(out, examineKeysets(ctx, to, c.now().Add(offset))...)
	out = append(out, examineKeys(ctx, to, c.now().Add(offset))...)
	return append(out, examineRotation(ctx, to, c.now().Add(offset))...)
}

// answer is what is left of a response once its body was closed.
type answer struct {
	status int
	date   string
	body   string
	tls    *tls.ConnectionState
}

func (to *conn) get(ctx context.Context, path string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to.base.JoinPath(path).String(), nil)
	if err != nil {
		return answer{}, err
	}
	res, err := to.plain.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	return answer{res.StatusCode, res.Header.Get("Date"), strings.TrimSpace(string(body)), res.TLS}, err
}

func readyFinding(a answer) finding {
	if a.status == http.StatusOK {
		return finding{"ready", "ok", "/readyz says yes", ""}
	}
	said := strings.TrimSpace(fmt.Sprintf("/readyz says %d %s %s", a.status, http.StatusText(a.status), a.body))
	return finding{"ready", "fail", said, "look at the server's log, and whether its database answers"}
}

// clockFinding compares the server's Date, which has whole seconds, with the
// time here in the middle of the exchange.
func clockFinding(date string, began time.Time, took time.Duration) (finding, time.Duration) {
	theirs, err := http.ParseTime(date)
	if err != nil {
		return finding{"clock", "warn", "the server sent no usable Date", "check its clock there"}, 0
	}
	offset := theirs.Add(500 * time.Millisecond).Sub(began.Add(took / 2))
	unsure := took/2 + time.Second
	away := max(offset.Abs()-unsure, 0)
	detail := fmt.Sprintf("the server's clock and this one differ by %s", roughly(offset.Abs()))
	switch {
	case away > clockFail:
		return finding{"clock", "fail", detail, "run NTP on both machines; tokens are refused when clocks differ by more than the policy's skew"}, offset
	case away > clockWarn:
		return finding{"clock", "warn", detail, "run NTP on both machines"}, offset
	default:
		return finding{"clock", "ok", "the server's clock and this one agree", ""}, 0
	}
}

func certificateFinding(res answer, now time.Time) finding {
	if res.tls == nil || len(res.tls.PeerCertificates) == 0 {
		return finding{"certificate", "fail", "the server showed none", "serve with --tls-cert and --tls-key"}
	}
	end := res.tls.PeerCertificates[0].NotAfter
	detail := fmt.Sprintf("the server's certificate ends in %s (%s)", roughly(end.Sub(now)), stamp(end))
	if end.Sub(now) < certWarn {
		return finding{"certificate", "warn", detail, "renew it; the server loads it again by itself"}
	}
	return finding{"certificate", "ok", detail, ""}
}

func (c *cli) tokenFinding(t *rotundav1.Token) finding {
	detail := fmt.Sprintf("%s (%s) is accepted", firstOf(t.GetName(), t.GetId()), roleWord(t))
	if end := t.GetExpiresAt(); end != nil {
		detail += " and ends " + c.newPage().when(end)
		if end.AsTime().Sub(c.now()) < certWarn {
			return finding{"token", "warn", detail, "make a new one in time: " + c.program + " token create"}
		}
	}
	return finding{"token", "ok", detail, ""}
}

func examineKeysets(ctx context.Context, to *conn, now time.Time) []finding {
	list, next, err := collect(10000, maxPage, func(size int32, token string) ([]*rotundav1.Keyset, string, error) {
		r, err := call(ctx, to, to.keysets.ListKeysets, &rotundav1.ListKeysetsRequest{PageSize: size, PageToken: token}, "")
		return r.GetKeysets(), r.GetNextPageToken(), err
	})
	if connect.CodeOf(err) == connect.CodePermissionDenied {
		return []finding{{"keysets", "skip", "this token may not read them", "use a token of an auditor or an operator"}}
	}
	if err != nil {
		return []finding{{"keysets", "fail", messageOf(err), ""}}
	}
	var out []finding
	if next != "" {
		out = append(out, finding{"keysets", "warn", "there are more than 10000: the rest was not checked", ""})
	}
	for _, k := range list {
		// A list may leave the keys out.
		res, err := call(ctx, to, to.keysets.GetKeyset, &rotundav1.GetKeysetRequest{Name: k.GetName()}, "")
		if err != nil {
			out = append(out, finding{"keyset " + k.GetName(), "fail", messageOf(err), ""})
			continue
		}
		out = append(out, examineKeyset(res.GetKeyset(), now, to.program)...)
	}
	if len(list) == 0 {
		out = append(out, finding{"keysets", "ok", "there are none", ""})
	}
	return out
}

// examineKeyset returns what is wrong with k, or one ok.
func examineKeyset(k *rotundav1.Keyset, now time.Time, program string) []finding {
	check := "keyset " + k.GetName()
	var out []finding
	var active, standby *rotundav1.Key
	for _, key := range k.GetKeys() {
		switch key.GetState() {
		case rotundav1.KeyState_KEY_STATE_ACTIVE:
			active = key
		case rotundav1.KeyState_KEY_STATE_PENDING:
			standby = key
		default:
		}
	}
	if active == nil {
		out = append(out, finding{check, "fail", "no key is active: nothing signs", "look at the server's log and at `" + program + " keyset show " + k.GetName() + "`"})
	}
	if standby == nil {
		f := finding{check, "fail", "there is no standby", "look at the server's log: a new one should have been made"}
		if since := active.GetSince(); since != nil && now.Sub(since.AsTime()) < standbyAfter {
			f.State, f.Advice = "warn", "it is being made; look again in a minute"
		}
		out = append(out, f)
	}
	if next := k.GetNextAt(); next != nil {
		if late := now.Sub(next.AsTime()); late > lateAfter {
			out = append(out, finding{check, "fail", "its next move is late by " + roughly(late), "look at the server's log, and whether passes run (metrics)"})
		}
	}
	if since := k.GetFallbackSince(); since != nil {
		out = append(out, finding{check, "warn", "the standby signs since " + stamp(since.AsTime()), "the active key's signer is out of reach: bring it back"})
	}
	if out == nil {
		out = []finding{{check, "ok", "it has an active key and a standby, and nothing is late", ""}}
	}
	return out
}

// messageOf is an error of a call without Connect's code before it.
func messageOf(err error) string {
	if ce, ok := errors.AsType[*connect.Error](err); ok && ce.Message() != "" {
		return ce.Message()
	}
	return err.Error()
}
