package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

const (
	maxEvents = 1000 // of one page of the trail
	// settle is how long after its time an event may still become visible: its
	// time is the beginning of the transaction that writes it.
	settle = 30 * time.Second
)

func newAudit(c *cli) *cobra.Command {
	return c.client(newGroup("audit", "Read the trail of changes and denied attempts", newAuditList(c)))
}

func newAuditList(c *cli) *cobra.Command {
	var filter rotundav1.ListEventsRequest
	var since, until string
	var limit int
	var follow bool
	interval := durationFlag{}
	outcome := choice{allowed: []string{"ok", "denied"}}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List events, newest first",
		Long: `List events, newest first. With --follow, print the newest --limit of them oldest first,
then each new one, until you interrupt it; with -o json, each event is one line.`,
		Example: `  rotunda audit list --since 30d --action signing_key.
  rotunda audit list --resource keysets/payments/ --outcome denied
  rotunda audit list -f -o json`,
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&filter.Action, "action", "", `an action, or a prefix that ends with a dot: "signing_key."`)
	f.StringVar(&filter.Actor, "actor", "", `a token's id (16 letters and digits), or "rotunda" for the scheduler`)
	f.StringVar(&filter.Resource, "resource", "", "a resource; with a trailing slash, everything below it")
	f.StringVar(&filter.Partner, "partner", "", "a partner")
	f.Var(&outcome, "outcome", "ok or denied")
	f.StringVar(&filter.RequestId, "request-id", "", "the id of a request")
	f.StringVar(&filter.Address, "address", "", "where the request came from")
	f.StringVar(&since, "since", "", "only events at or after this: 30d, 12h or 2026-11-22T03:00:00Z")
	f.StringVar(&until, "until", "", "only events before this")
	f.BoolVarP(&follow, "follow", "f", false, "go on with new events")
	f.Var(&interval, "interval", "time between two looks with --follow (default 2s)")
	c.complete(cmd, "outcome", outcome.allowed...)
	limitFlag(cmd, &limit, 100)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		filter.Outcome = outcome.value
		for _, at := range []struct {
			flag, text string
			to         **timestamppb.Timestamp
		}{{"since", since, &filter.Since}, {"until", until, &filter.Until}} {
			if at.text == "" {
				continue
			}
			t, err := parseSince(at.text, c.now())
			if err != nil {
				return usagef("--%s: %w", at.flag, err)
			}
			*at.to = timestamppb.New(t)
		}
		pause := 2 * time.Second
		if interval.given != nil {
			pause = *interval.given
		}
		if follow && (pause < 10*time.Millisecond || filter.Until != nil) {
			return usagef("--follow needs an --interval of at least 10ms, and no --until")
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		if follow {
			return c.follow(cmd.Context(), to, &filter, limit, pause)
		}
		res := &rotundav1.ListEventsResponse{}
		if res.Events, res.NextPageToken, err = events(cmd.Context(), to, &filter, limit); err != nil {
			return err
		}
		c.more(res.GetNextPageToken())
		return c.print(res, func(p *page) { p.events(res.GetEvents(), c.actors(cmd.Context(), to)) })
	}
	return cmd
}

func events(ctx context.Context, to *conn, filter *rotundav1.ListEventsRequest, limit int) ([]*rotundav1.Event, string, error) {
	return collect(limit, maxEvents, func(size int32, token string) ([]*rotundav1.Event, string, error) {
		req := proto.CloneOf(filter)
		req.PageSize, req.PageToken = size, token
		r, err := call(ctx, to, to.trail.ListEvents, req, "")
		return r.GetEvents(), r.GetNextPageToken(), err
	})
}

// follow prints events until it is interrupted. It looks back a little each
// time and leaves out what it has printed, so an event that was committed late
// is not lost.
func (c *cli) follow(ctx context.Context, to *conn, filter *rotundav1.ListEventsRequest, limit int, pause time.Duration) error {
	var names actors
	if c.output.value == "table" {
		names = c.actors(ctx, to)
	}
	printed := map[string]time.Time{}
	var newest time.Time
	for first := true; ; first = false {
		list, next, err := events(ctx, to, filter, limit)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // an interrupt is the way to end it
		}
		if err != nil {
			return err
		}
		if next != "" && !first {
			c.complain("more than %d events since the last look: some are not shown; raise --limit", limit)
		}
		slices.Reverse(list)
		for _, e := range list {
			at := e.GetTime().AsTime()
			if at.After(newest) {
				newest = at
			}
			if _, seen := printed[e.GetId()]; seen {
				continue
			}
			printed[e.GetId()] = at
			if err := c.printNext(e, func(p *page) { p.event(e, names) }); err != nil {
				return err
			}
		}
		if edge := newest.Add(-settle); !newest.IsZero() && edge.After(filter.GetSince().AsTime()) {
			filter.Since = timestamppb.New(edge)
			for id, at := range printed {
				if at.Before(edge) {
					delete(printed, id)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

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

func (p *page) events(list []*rotundav1.Event, names actors) {
	rows := make([][]string, len(list))
	for i, e := range list {
		rows[i] = []string{eventTime(e), e.GetOutcome() + times(e), names.name(e.GetActor()), e.GetAction(), e.GetResource(), e.GetReason()}
	}
	p.table([]string{"TIME", "OUTCOME", "ACTOR", "ACTION", "RESOURCE", "REASON"}, rows)
}

func (p *page) event(e *rotundav1.Event, names actors) {
	p.line("%s  %s  %s  %s  %s  %s", eventTime(e), e.GetOutcome()+times(e), names.name(e.GetActor()), e.GetAction(), e.GetResource(), e.GetReason())
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
