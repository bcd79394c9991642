package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newIncident(c *cli) *cobra.Command {
	return c.client(newGroup("incident", "Follow emergencies: rotations of many credentials",
		newIncidentList(c), newIncidentShow(c), newIncidentWatch(c), newIncidentStop(c)))
}

func newIncidentList(c *cli) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List incidents, newest first",
		Example:           "  rotunda incident list",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res := &rotundav1.ListIncidentsResponse{}
			res.Incidents, res.NextPageToken, err = collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.Incident, string, error) {
				r, err := call(cmd.Context(), to, to.rotations.ListIncidents, &rotundav1.ListIncidentsRequest{PageSize: size, PageToken: token}, "")
				return r.GetIncidents(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.incidents(res.GetIncidents()) })
		},
	}
	limitFlag(cmd, &limit, 50)
	return cmd
}

func newIncidentShow(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Aliases: []string{"get"},
		Short:   "Show how far an incident is",
		Example: "  rotunda incident show 0191f3c2-7a64-7c0e-8a55-000000000002",
		Args:    arguments("ID"), ValidArgsFunction: c.oneIncident(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.rotations.GetIncident, &rotundav1.GetIncidentRequest{Incident: args[0]}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.incident(res.GetIncident()) })
		},
	}
}

func newIncidentWatch(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "watch ID",
		Short: "Follow an incident until every rotation has the new value published, or waits for a person",
		Long: `Follow an incident until each of its rotations has published its new value, or waits for a
person. Exits with 1 if one waits. Interrupting this ends the view, not the incident.`,
		Example: "  rotunda incident watch 0191f3c2-7a64-7c0e-8a55-000000000002",
		Args:    arguments("ID"), ValidArgsFunction: c.oneIncident(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			return c.watchIncident(cmd.Context(), to, args[0])
		},
	}
}

func newIncidentStop(c *cli) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:     "stop ID",
		Short:   "Begin no more rotations of an incident; those begun go on",
		Example: "  rotunda incident stop 0191f3c2-7a64-7c0e-8a55-000000000002 --reason \"it was the wrong store\"",
		Args:    arguments("ID"), ValidArgsFunction: c.oneIncident(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.rotations.StopIncident, &rotundav1.StopIncidentRequest{Incident: args[0], Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.incident(res.GetIncident()) })
		},
	}
	reasonFlag(cmd, &reason)
	return cmd
}

// incidentPoll is how often an incident is asked for while it is watched.
const incidentPoll = 500 * time.Millisecond

// watchIncident polls: an incident has no stream, since its figures move all the time.
func (c *cli) watchIncident(ctx context.Context, to *conn, id string) error {
	bar := c.newStepBar()
	defer bar.clear()
	said := ""
	for {
		res, err := call(ctx, to, to.rotations.GetIncident, &rotundav1.GetIncidentRequest{Incident: id}, "")
		if ctx.Err() != nil {
			bar.clear()
			c.complain("the incident goes on without you")
			return nil
		}
		if err != nil {
			return err
		}
		x := res.GetIncident()
		through := x.GetRotated() + x.GetInGrace()
		ended := through + x.GetFailed() + x.GetRolledBack() + x.GetAbandoned()
		settled := x.GetState() != rotundav1.IncidentState_INCIDENT_STATE_OPEN && ended >= x.GetBegun() || ended+x.GetSkipped() >= x.GetTotal()
		if text := progressText(x); text != said && (settled || c.barWidth == 0) {
			said = text
			bar.clear()
			if err := c.printNext(res, func(p *page) { p.line("%s  %s", p.now.UTC().Format("15:04:05Z"), text) }); err != nil {
				return err
			}
		}
		if settled {
			bar.clear()
			if x.GetFailed() > 0 {
				return fmt.Errorf("%s for you: `%s credential history --failed` lists what failed and why", waitsFor(x.GetFailed()), c.program)
			}
			return nil
		}
		bar.write(int(through), int(x.GetTotal()), "rotating", progressText(x)+"  "+roughly(c.now().Sub(bar.began)))
		select {
		case <-ctx.Done():
		case <-time.After(incidentPoll):
		}
	}
}

func waitsFor(n int64) string {
	if n == 1 {
		return "1 rotation waits"
	}
	return thousands(n) + " rotations wait"
}

func progressText(x *rotundav1.Incident) string {
	text := fmt.Sprintf("%s of %s begun, %s have the new value", thousands(x.GetBegun()), thousands(x.GetTotal()), thousands(x.GetRotated()+x.GetInGrace()))
	if x.GetInGrace() > 0 {
		text += fmt.Sprintf(" (%s in their grace)", thousands(x.GetInGrace()))
	}
	for _, part := range []struct {
		n    int64
		word string
	}{{x.GetFailed(), "failed"}, {x.GetRolledBack(), "rolled back"}, {x.GetAbandoned(), "abandoned"}, {x.GetSkipped(), "passed over"}} {
		if part.n > 0 {
			text += fmt.Sprintf(", %s %s", thousands(part.n), part.word)
		}
	}
	return text
}

func selectorText(s *rotundav1.Selector) string {
	var parts []string
	if s.GetAll() {
		parts = append(parts, "all")
	}
	if n := len(s.GetCredentials()); n > 3 {
		parts = append(parts, counted(int64(n), "name"))
	} else if n > 0 {
		parts = append(parts, strings.Join(s.GetCredentials(), " "))
	}
	if s.GetStore() != "" {
		parts = append(parts, "store "+s.GetStore())
	}
	if s.GetTarget() != "" {
		parts = append(parts, "target "+s.GetTarget())
	}
	if len(s.GetLabels()) > 0 {
		parts = append(parts, "label "+formatMetadata(s.GetLabels()))
	}
	return strings.Join(parts, ", ")
}

func incidentState(x *rotundav1.Incident) string {
	return word(x.GetState().String(), "INCIDENT_STATE_")
}

func (p *page) incident(x *rotundav1.Incident) {
	p.line("%s  %s", x.GetId(), incidentState(x))
	p.fact("selects", selectorText(x.GetSelector()))
	p.fact("reason", x.GetReason())
	p.fact("by", x.GetActor())
	p.fact("progress", progressText(x))
	if x.GetGrace() != nil {
		p.fact("grace", length(x.GetGrace(), ""))
	}
	if x.GetCreatedAt() != nil {
		p.fact("begun", p.when(x.GetCreatedAt()))
	}
	if x.GetEndedAt() != nil {
		p.fact("ended", p.when(x.GetEndedAt()))
	}
	if x.GetFailed() > 0 {
		p.line("look next  %s", p.cli.command("credential history --failed"))
	}
}

func (p *page) incidents(list []*rotundav1.Incident) {
	if len(list) == 0 {
		p.line("there was no incident")
		return
	}
	rows := make([][]string, len(list))
	for i, x := range list {
		rows[i] = []string{x.GetId(), incidentState(x), selectorText(x.GetSelector()), thousands(x.GetBegun()) + " of " + thousands(x.GetTotal()), p.when(x.GetCreatedAt()), x.GetActor(), x.GetReason()}
	}
	p.table([]string{"ID", "STATE", "SELECTS", "ROTATIONS", "BEGUN", "BY", "REASON"}, rows)
}

// emergency shows a plan.
func (p *page) emergency(plan *rotundav1.PlanEmergencyResponse) {
	p.line("%s will be rotated, about %s by the quotas", counted(plan.GetTotal(), "credential"), length(plan.GetEta(), "0s"))
	if len(plan.GetParts()) > 0 {
		rows := make([][]string, len(plan.GetParts()))
		for i, part := range plan.GetParts() {
			rows[i] = []string{part.GetSort() + " " + part.GetName(), thousands(part.GetRotations()), length(part.GetEta(), "no bound known")}
		}
		p.table([]string{"WHERE", "ROTATIONS", "TAKES"}, rows)
	}
	const shown = 20
	if names := plan.GetCredentials(); len(names) > 0 {
		text := strings.Join(names[:min(len(names), shown)], " ")
		if more := plan.GetTotal() - shown; more > 0 {
			text += " and " + thousands(more) + " more"
		}
		p.fact("order", text)
	}
	if plan.GetSkippedTotal() > 0 {
		p.line("%s passed over", counted(plan.GetSkippedTotal(), "credential"))
		var why []note
		for _, s := range plan.GetSkipped()[:min(len(plan.GetSkipped()), shown)] {
			why = append(why, note{s.GetCredential(), s.GetWhy()})
		}
		p.notes(why)
	}
}

// oneIncident suggests an incident as the only argument.
func (c *cli) oneIncident() suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		res, err := call(ctx, to, to.rotations.ListIncidents, &rotundav1.ListIncidentsRequest{PageSize: maxPage}, "")
		var out []string
		for _, x := range res.GetIncidents() {
			out = append(out, cobra.CompletionWithDesc(clean(x.GetId()), clean(incidentState(x)+" "+x.GetReason())))
		}
		return out, err
	})
}
