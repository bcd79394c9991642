package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

const maxEvents = 1000 // of one page of the trail

func newAudit(c *cli) *cobra.Command {
	cmd := newGroup("audit", "Read, export and verify the trail of changes and denied attempts",
		newAuditList(c), newAuditExport(c), newAuditVerify(c), newAuditProve(c), newAuditKey(c), newAuditCheckpoint(c),
		newAuditStatus(c), newAuditOpenIntents(c), newAuditEvidence(c),
		newAuditSink(c), newAuditAnchor(c), newAuditWitness(c),
		newAuditRetention(c), newAuditHold(c), newAuditErase(c), newAuditRestart(c))
	cmd.Long = `The trail has an event for every change and every denied attempt. Events are the leaves of a
Merkle tree whose head, the checkpoint, the server signs. Who keeps the server's public key
and a checkpoint can tell later, without trusting the server, whether an event was altered,
left out, inserted or moved.

  look       list, open-intents, evidence, status
  take away  key, checkpoint, prove, export
  verify     verify: offline a bundle or a proof, or the server's log against a checkpoint
  copies     sink (SIEM), anchor and witness (checkpoints)
  keep       retention, hold, erase, restart`
	cmd.Example = `  rotunda audit list --partner acme --action api_key.revoke --since 30d
  rotunda audit key > trail.pub
  rotunda audit export --since 2026-01-01 --out q1
  rotunda audit verify q1 --key trail.pub`
	return c.client(cmd)
}

// eventFilter is which events a command is about.
type eventFilter struct {
	since, until string // as they were written
	outcome      choice
	f            rotundav1.Filter
}

func (f *eventFilter) flags(c *cli, cmd *cobra.Command) {
	f.outcome.allowed = []string{"ok", "denied", "started", "failed"}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.f.Action, "action", "", `an action, or a prefix that ends with a dot: "signing_key."`)
	flags.StringVar(&f.f.Actor, "actor", "", `a token's id (16 letters and digits), or "rotunda" for the scheduler`)
	flags.StringVar(&f.f.Resource, "resource", "", "a resource; with a trailing slash, everything below it")
	flags.StringVar(&f.f.Partner, "partner", "", "a partner")
	flags.Var(&f.outcome, "outcome", "ok, denied, started or failed")
	flags.StringVar(&f.f.RequestId, "request-id", "", "the id of a request")
	flags.StringVar(&f.f.Address, "address", "", "where the request came from")
	flags.StringVar(&f.since, "since", "", "only events at or after this: 30d, 12h, 2026-11-22 or 2026-11-22T03:00:00Z")
	flags.StringVar(&f.until, "until", "", "only events before this")
	c.complete(cmd, "outcome", f.outcome.allowed...)
}

// filter returns what was asked for.
func (f *eventFilter) filter(now time.Time) (*rotundav1.Filter, error) {
	f.f.Outcome = f.outcome.value
	var err error
	if f.f.Since, err = instantFlag("since", f.since, now); err != nil {
		return nil, err
	}
	if f.f.Until, err = instantFlag("until", f.until, now); err != nil {
		return nil, err
	}
	if f.f.Since != nil && f.f.Until != nil && !f.f.GetSince().AsTime().Before(f.f.GetUntil().AsTime()) {
		return nil, usagef("--until is not after --since, so no event can match")
	}
	return &f.f, nil
}

// instantFlag reads an instant, to the microsecond, which may also be a date: its
// first moment in UTC.
func instantFlag(flag, text string, now time.Time) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return timestamppb.New(t), nil
	}
	t, err := parseSince(text, now)
	if err != nil {
		return nil, usagef("--%s: %w", flag, err)
	}
	// Events have microseconds, and so have the filters of bundles.
	return timestamppb.New(t.Truncate(time.Microsecond)), nil
}

func newAuditList(c *cli) *cobra.Command {
	var want eventFilter
	var limit int
	var follow, index bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List events, newest first",
		Long: `List events, newest first. With --follow, print the newest --limit of them oldest first,
then each new one, until you interrupt it; with -o json, each event is one line.

An event with outcome started is about an external effect that was about to be tried; its
end is an event of its own. (open) marks a start that has no end yet. (erased) stands for a
value that was erased.`,
		Example: `  rotunda audit list --since 30d --action signing_key.
  rotunda audit list --resource keysets/payments/ --outcome denied
  rotunda audit list -f -o json`,
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	want.flags(c, cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new events")
	cmd.Flags().BoolVar(&index, "index", false, "show leaf indexes and ids, as proofs and exports name events")
	limitFlag(cmd, &limit, 100)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		filter, err := want.filter(c.now())
		if err != nil {
			return err
		}
		if follow && filter.GetUntil() != nil {
			return usagef("--follow goes on for ever: leave out --until")
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		if follow {
			return c.follow(cmd.Context(), to, filter, limit, index)
		}
		res := &rotundav1.ListEventsResponse{}
		if res.Events, res.NextPageToken, err = events(cmd.Context(), to, filter, limit); err != nil {
			return err
		}
		c.more(res.GetNextPageToken())
		return c.print(res, func(p *page) {
			p.events(res.GetEvents(), eventStyle{c.actors(cmd.Context(), to), openIntents(cmd.Context(), to, res.GetEvents()), index})
		})
	}
	return cmd
}

func events(ctx context.Context, to *conn, f *rotundav1.Filter, limit int) ([]*rotundav1.Event, string, error) {
	return collect(limit, maxEvents, func(size int32, token string) ([]*rotundav1.Event, string, error) {
		r, err := call(ctx, to, to.audit.ListEvents, &rotundav1.ListEventsRequest{
			PageSize: size, PageToken: token, Since: f.GetSince(), Until: f.GetUntil(), Actor: f.GetActor(), Action: f.GetAction(), Resource: f.GetResource(),
			Partner: f.GetPartner(), Outcome: f.GetOutcome(), RequestId: f.GetRequestId(), Address: f.GetAddress(),
		}, "")
		return r.GetEvents(), r.GetNextPageToken(), err
	})
}

// openIntents returns which of the started events have no end yet. It asks only
// when the list itself does not tell; that there is no answer marks none.
func openIntents(ctx context.Context, to *conn, list []*rotundav1.Event) map[string]bool {
	open := map[string]bool{}
	for _, e := range list {
		if e.GetOutcome() == "started" {
			open[e.GetId()] = true
		}
	}
	for _, e := range list {
		delete(open, e.GetIntent())
	}
	if len(open) == 0 {
		return nil
	}
	// Younger ones than a minute are open too.
	res, err := call(ctx, to, to.audit.ListOpenIntents, &rotundav1.ListOpenIntentsRequest{Before: timestamppb.New(farFuture), PageSize: maxEvents}, "")
	if err != nil {
		return nil
	}
	still := map[string]bool{}
	for _, e := range res.GetEvents() {
		still[e.GetId()] = open[e.GetId()]
	}
	return still
}

// farFuture is after every event.
var farFuture = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// maxActors is how many tokens are asked for to name those of the trail.
const maxActors = 1000

// actors are the names of tokens by their ids.
type actors map[string]string

// name writes "name (id)", or only the id of an actor that is not known.
func (a actors) name(id string) string {
	if name := a[id]; name != "" {
		return name + " (" + id + ")"
	}
	return id
}

// actors asks who the actors of the trail are. Only an admin may list tokens; for
// others the attempt would stand in the trail as denied, so it is not made. That
// the names can't be had is no reason to withhold the events.
func (c *cli) actors(ctx context.Context, to *conn) actors {
	who, err := call(ctx, to, to.tokens.WhoAmI, &rotundav1.WhoAmIRequest{}, "")
	if err != nil || who.GetToken().GetRole() != rotundav1.Role_ROLE_ADMIN {
		return nil
	}
	list, _, err := collect(maxActors, maxPage, func(size int32, token string) ([]*rotundav1.Token, string, error) {
		r, err := call(ctx, to, to.tokens.ListTokens, &rotundav1.ListTokensRequest{PageSize: size, PageToken: token}, "")
		return r.GetTokens(), r.GetNextPageToken(), err
	})
	if err != nil {
		return nil
	}
	names := actors{}
	for _, t := range list {
		names[t.GetId()] = t.GetName()
	}
	return names
}

// eventStyle is how events are shown.
type eventStyle struct {
	names actors
	open  map[string]bool // ids of intents without an end
	index bool
}

// cells are an event's columns, in the order of eventHead.
func (s *eventStyle) cells(e *rotundav1.Event) []string {
	value := func(field, is string) string {
		if is == "" && slices.Contains(e.GetErased(), field) {
			return "(erased)"
		}
		return is
	}
	outcome := e.GetOutcome()
	if s.open[e.GetId()] {
		outcome += " (open)"
	}
	cells := []string{eventTime(e), outcome + times(e), value("actor", s.names.name(e.GetActor())), e.GetAction(), e.GetResource(), value("reason", e.GetReason())}
	if s.index {
		index := "waiting"
		if e.GetIndex() >= 0 {
			index = formatInt(e.GetIndex())
		}
		cells = append([]string{index, e.GetId()}, cells...)
	}
	return cells
}

func (s *eventStyle) head() []string {
	head := []string{"TIME", "OUTCOME", "ACTOR", "ACTION", "RESOURCE", "REASON"}
	if s.index {
		head = append([]string{"INDEX", "ID"}, head...)
	}
	return head
}

func (p *page) events(list []*rotundav1.Event, s eventStyle) {
	if len(list) == 0 {
		p.line("There is no such event.")
		return
	}
	rows := make([][]string, len(list))
	for i, e := range list {
		rows[i] = s.cells(e)
	}
	p.table(s.head(), rows)
}

func (p *page) event(e *rotundav1.Event, s eventStyle) {
	p.line("%s", strings.Join(s.cells(e), "  "))
}

func eventTime(e *rotundav1.Event) string {
	return e.GetTime().AsTime().Format("2006-01-02 15:04:05Z")
}

// times tells how many equal attempts an event stands for.
func times(e *rotundav1.Event) string {
	if e.GetCount() > 1 {
		return fmt.Sprintf(" ×%d", e.GetCount())
	}
	return ""
}

func formatInt(n int64) string { return strconv.FormatInt(n, 10) }

// thousands writes a count for people: "1,234,567".
func thousands(n int64) string {
	s := formatInt(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// counted writes "1 record" or "1,234 records".
func counted(n int64, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "leaf"):
		return thousands(n) + " " + strings.TrimSuffix(noun, "f") + "ves"
	}
	return thousands(n) + " " + noun + "s"
}

// command is a command line that reaches the same server.
func (c *cli) command(words string) string {
	return strings.Join(append([]string{c.program, words}, c.conf.args()...), " ")
}
