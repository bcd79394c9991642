package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newAuditStatus(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the trail is doing: size, what waits, sinks, anchors, retention",
		Long: `Show how the trail is doing. Exit code 1 when it is stopped, so that nothing is recorded and
changes are refused.`,
		Example:           "  rotunda audit status",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.audit.GetTrailStatus, &rotundav1.GetTrailStatusRequest{}, "")
			if err != nil {
				return err
			}
			if err := c.print(res, func(p *page) { p.trailStatus(res) }); err != nil {
				return err
			}
			if res.GetStopped() != "" {
				return errors.New("the trail is stopped: changes are refused until somebody has looked")
			}
			return nil
		},
	}
}

// slow is for how long an event may wait for its leaf index before that is said.
const slow = 10 * time.Second

func (p *page) trailStatus(s *rotundav1.GetTrailStatusResponse) {
	if s.GetStopped() != "" {
		p.hangTo(p.prose(), "STOPPED: ", s.GetStopped())
		p.line("  Changes are refused, because they could not be recorded; JWKS and verification go on.")
		p.line("  If the database was restored from a backup, that is why: go on with")
		p.line("    %s --reason 'restored the backup of ...'", p.cli.command("audit restart"))
		p.line("  If not, somebody altered the trail: take a copy of the database first, then compare it")
		p.line("  with a checkpoint that was kept: %s --since-checkpoint kept.txt --key trail.pub", p.cli.command("audit verify"))
		p.line("")
	}
	p.line("log %s", s.GetOrigin())
	p.field("size", "%s", counted(s.GetSize(), "event"))
	switch {
	case s.GetWaiting() > 0 && s.GetWaitingSince() != nil:
		since := p.now.Sub(s.GetWaitingSince().AsTime())
		text := counted(s.GetWaiting(), "event") + " for a leaf index"
		if since >= time.Second {
			text += ", the oldest for " + roughly(since)
		}
		if since > slow && s.GetStopped() == "" {
			text += ": no replica gives them one; is the database under load, or every replica down?"
		}
		p.field("waiting", "%s", text)
	case s.GetWaiting() > 0:
		p.field("waiting", "%s for a leaf index", counted(s.GetWaiting(), "event"))
	default:
		p.field("waiting", "none")
	}
	p.field("checkpoint", "%s", rootOf(s.GetCheckpoint()))
	if s.GetCheckpointAt() != nil {
		p.field("signed", "%s", p.when(s.GetCheckpointAt()))
	}
	if s.GetKey() != "" {
		p.field("key", "%s", s.GetKey())
	}
	p.field("retention", "%s", retention(s.GetRetentionSeconds()))
	if s.GetPruned() > 0 {
		p.field("pruned", "events below %d, but for those under a hold", s.GetPruned())
	}
	if len(s.GetSinks()) > 0 {
		p.line("")
		p.line("sinks")
		p.sinks(s.GetSinks())
	}
	if len(s.GetAnchors()) > 0 {
		p.line("")
		p.line("anchors")
		p.anchors(s.GetAnchors())
	}
	if len(s.GetWitnesses()) > 0 {
		p.line("")
		p.line("witnesses")
		p.witnesses(s.GetWitnesses())
	}
	if len(s.GetHolds()) > 0 {
		p.line("")
		p.line("holds")
		p.holds(s.GetHolds())
	}
	if len(s.GetAnchors()) == 0 && len(s.GetWitnesses()) == 0 {
		p.line("")
		p.hangTo(p.prose(), "", "No anchor and no witness keeps checkpoints: who holds the server and its key could rewrite the trail unseen by everybody who kept none. See audit anchor add --help.")
	}
}

func retention(n int64) string {
	if n == 0 {
		return "for ever"
	}
	return seconds(n)
}

func newAuditRestart(c *cli) *cobra.Command {
	var reason string
	var yes bool
	cmd := &cobra.Command{
		Use:   "restart --reason REASON [flags]",
		Short: "Go on with the trail after the database was restored from a backup",
		Long: `Go on with the trail after the database was restored from a backup. The server has noticed
that the log is shorter than the one it signed, and is stopped. It can't notice when its
trail.checkpoint was restored or lost as well, and no anchor knows better: restart then too,
before anything is changed.

The log goes on under a new name ("NAME~..."), with a new key that the old one hands over to,
so that nothing that was signed is signed again with another content. Events after the backup
are lost for good; every auditor who kept a newer checkpoint sees how many at most
(audit verify --since-checkpoint). The restart and its reason stand in the trail.

It can't be undone. If no backup was restored, don't: the trail was altered, and the
database as it is now is the evidence.`,
		Example:               "  rotunda audit restart --reason 'disk lost, restored the backup of 2026-11-21 03:00'",
		Args:                  arguments(),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("reason"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if reason == "" {
				return usagef("--reason is empty: say which backup was restored, and why")
			}
			if !yes && !c.person {
				return usagef("nobody is here to ask: give --yes if the database was restored from a backup")
			}
			to, err := c.connect()
			if err != nil {
				return err
			}
			if !yes {
				question := "Restart the trail under a new name. Events after the backup are lost for good, and every\n" +
					"auditor who kept a newer checkpoint will see that. This can't be undone."
				if err := c.confirm(cmd.Context(), question, "restart"); err != nil {
					return fmt.Errorf("restart the trail: %w", err)
				}
			}
			res, err := call(cmd.Context(), to, to.trail.RestartTrail, &rotundav1.RestartTrailRequest{Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) {
				p.line("restarted  as %s", res.GetOrigin())
				p.line("key        %s", res.GetKey())
				p.line("           %s", fingerprint(res.GetKey()))
				p.line("tell       everybody who keeps checkpoints or the public key: the old key hands over to this one")
			})
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&reason, "reason", "", "which backup was restored and why, for the trail")
	f.BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}
