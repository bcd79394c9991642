package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newAuditProve(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "prove EVENT_ID",
		Short: "Print the proof that one event stands in the trail",
		Long: `Print the proof that one event stands in the trail: the event, its place in the tree and
the signed checkpoint, in the form that https://c2sp.org/tlog-proof specifies. It is for a
ticket or a mail, and verifies with the server's public key alone:

  rotunda audit verify proof.txt --key trail.pub

audit list --index shows the ids of events.`,
		Example:           "  rotunda audit prove 0191f3c2-7a64-7c0e-8a55-0d1c2b3a4f5e > proof.txt",
		Args:              arguments("EVENT_ID"),
		ValidArgsFunction: c.eventIDs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.audit.ProveEvent, &rotundav1.ProveEventRequest{Id: args[0]}, "")
			if err != nil {
				return err
			}
			if c.output.value == "table" {
				return c.write([]byte(res.GetProof())) // every byte counts
			}
			return c.print(res, nil)
		},
	}
}

// eventIDs suggests the newest events.
func (c *cli) eventIDs() suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		list, _, err := events(ctx, to, nil, 20)
		var out []string
		for _, e := range list {
			out = append(out, cobra.CompletionWithDesc(clean(e.GetId()), clean(e.GetAction()+" "+e.GetResource())))
		}
		return out, err
	})
}

func newAuditKey(c *cli) *cobra.Command {
	var every bool
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Print the public key that verifies the trail",
		Long: `Print the public key that verifies the trail, in the form of golang.org/x/mod/sumdb/note.
Save it while you trust the server, and keep it elsewhere. Its fingerprint goes to stderr:
compare it with the operator by phone.

When the key is rotated, the old one signs for the new one, so a saved key goes on to verify
what comes later: bundles and the server's log. To verify what is older than the key, or the
proof of one event, which holds no such signature, save all of them with --all.`,
		Example: `  rotunda audit key > trail.pub
  rotunda audit key --all > trail.pub`,
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.audit.ListTrailKeys, &rotundav1.ListTrailKeysRequest{}, "")
			if err != nil {
				return err
			}
			keys := res.GetKeys()
			if len(keys) == 0 {
				return errors.New("the server has no key of the trail yet: the first event makes it")
			}
			if !every {
				keys = keys[len(keys)-1:]
			}
			return c.print(res, func(p *page) {
				for _, k := range keys {
					p.line("%s", k)
					c.complain("%s", fingerprint(k))
				}
			})
		},
	}
	cmd.Flags().BoolVar(&every, "all", false, "also print the keys before it, oldest first")
	cmd.AddCommand(newAuditKeyRotate(c))
	return cmd
}

// fingerprint writes what two people compare: 128 bits of a vkey's SHA-256.
func fingerprint(vkey string) string {
	sum := sha256.Sum256([]byte(vkey))
	digits := hex.EncodeToString(sum[:16])
	var groups []string
	for i := 0; i < len(digits); i += 4 {
		groups = append(groups, digits[i:i+4])
	}
	name, _, _ := strings.Cut(vkey, "+")
	return "fingerprint of " + name + ": " + strings.Join(groups, " ")
}

func newAuditKeyRotate(c *cli) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Make a new key for checkpoints",
		Long: `Make a new key for checkpoints. The old key signs that it hands over to the new one and is
destroyed, so keys that auditors saved go on to verify.`,
		Example:           "  rotunda audit key rotate --reason 'yearly rotation'",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		PreRunE:           need("reason"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.trail.RotateTrailKey, &rotundav1.RotateTrailKeyRequest{Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) {
				p.line("%s", res.GetKey())
				c.complain("%s", fingerprint(res.GetKey()))
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the trail")
	return cmd
}

func newAuditCheckpoint(c *cli) *cobra.Command {
	var size int64
	cmd := &cobra.Command{
		Use:   "checkpoint",
		Short: "Print the newest signed checkpoint",
		Long: `Print the newest signed checkpoint: the trail's name, its number of leaves and the root hash
of its tree (C2SP tlog-checkpoint). Keep it where the operator of the server can't reach it.
Then audit verify --since-checkpoint shows later that nothing before it was rewritten.`,
		Example:           "  rotunda audit checkpoint > kept.txt",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if size < 0 {
				return usagef("--size must not be negative")
			}
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.audit.GetCheckpoint, &rotundav1.GetCheckpointRequest{Size: size}, "")
			if err != nil {
				return err
			}
			if c.output.value == "table" {
				return c.write([]byte(res.GetCheckpoint())) // every byte is signed
			}
			return c.print(res, nil)
		},
	}
	cmd.Flags().Int64Var(&size, "size", 0, "that of this many leaves (default: the newest)")
	return cmd
}

func newAuditOpenIntents(c *cli) *cobra.Command {
	var before string
	cmd := &cobra.Command{
		Use:   "open-intents [PATH] [flags]",
		Short: "List external effects that were begun and have no end in the trail",
		Long: `List external effects that were begun and have no end in the trail: what was under way when
a process was killed. Without PATH, those of the server that are older than a minute; with
PATH, those of a bundle, which is only read, not verified (audit verify does that).`,
		Example: `  rotunda audit open-intents
  rotunda audit open-intents --before 1h -o json`,
		Args:                  cobra.MaximumNArgs(1),
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&before, "before", "", "only those begun before this: 1h, or 2026-11-22T03:00:00Z (default: 1m ago)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		at, err := instantFlag("before", before, c.now())
		if err != nil {
			return err
		}
		if len(args) > 0 {
			if at != nil {
				return usagef("--before is for the server: a bundle's are listed all")
			}
			return c.openIntentsOf(cmd.Context(), args[0])
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.audit.ListOpenIntents, &rotundav1.ListOpenIntentsRequest{Before: at, PageSize: maxEvents}, "")
		if err != nil {
			return err
		}
		if len(res.GetEvents()) == maxEvents {
			c.complain("there may be more: these are the oldest %d", maxEvents)
		}
		return c.print(res, func(p *page) {
			if len(res.GetEvents()) == 0 {
				p.line("Everything that was begun has an end.")
				return
			}
			p.events(res.GetEvents(), eventStyle{names: c.actors(cmd.Context(), to), index: true})
		})
	}
	return cmd
}

// openIntentsOf lists those of a bundle.
func (c *cli) openIntentsOf(ctx context.Context, path string) error {
	files, err := openBundle(path)
	if err != nil {
		return unreadable("read the bundle: %w", err)
	}
	defer files.Close()
	keys, err := files.firstKey()
	if err != nil {
		return unreadable("read the bundle: %w: give the folder or the zip that audit export wrote", err)
	}
	r, err := bundle.Verify(ctx, path, bundle.Options{Keys: keys})
	if err != nil {
		return unreadable("%w", err)
	}
	if !r.OK() {
		c.complain("this bundle is not what it says (%s): see audit verify", counted(int64(len(r.Findings))+r.More, "finding"))
	}
	if describe(r.Filter) != "" || r.Pruned > 0 {
		c.complain("ends may be among the events that the filter left out, or that were pruned")
	}
	if c.output.value != "table" {
		raw, err := json.Marshal(map[string]any{"openIntents": intents(r.OpenIntents), "more": r.MoreIntents})
		if err != nil {
			return fmt.Errorf("encoding the result: %w", err)
		}
		return c.printJSON(raw, false)
	}
	p := c.newPage()
	if len(r.OpenIntents) == 0 {
		p.line("Everything that was begun has an end.")
		return p.flush()
	}
	var rows [][]string
	for _, x := range r.OpenIntents {
		rows = append(rows, []string{formatInt(x.Index), x.ID, instant(x.Time), x.Action, x.Resource})
	}
	p.table([]string{"INDEX", "ID", "TIME", "ACTION", "RESOURCE"}, rows)
	if r.MoreIntents {
		p.line("  … and more")
	}
	return p.flush()
}

func newAuditEvidence(c *cli) *cobra.Command {
	var since string
	cmd := &cobra.Command{
		Use:   "evidence RESOURCE --since TIME [flags]",
		Short: "Tell whether a token or key was accepted since an instant",
		Long: `Tell what the trail knows of the use of a token (tokens/ID) or a signing key
(keysets/NAME/keys/KID) since an instant, to the minute. Each replica writes its counts into
the trail; where one was killed, it can't vouch for its last minutes, and that is said.

Exit codes: 0 it was not accepted since; 1 it was; 4 it can't be proved that it was not.`,
		Example: `  rotunda audit evidence tokens/4fKq3w2xYd5sRt9u --since 30d
  rotunda audit evidence keysets/payments/keys/KID --since 2026-11-01`,
		Args:                  arguments("RESOURCE"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("since"),
	}
	cmd.Flags().StringVar(&since, "since", "", "since when: 30d, 2026-11-22 or 2026-11-22T03:00:00Z")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		at, err := instantFlag("since", since, c.now())
		if err != nil {
			return err
		}
		if at == nil {
			return usagef("--since is empty")
		}
		if !hasEvidence(args[0]) {
			return usagef("%q is neither tokens/ID nor keysets/NAME/keys/KID: these are what is counted", args[0])
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.audit.GetEvidence, &rotundav1.GetEvidenceRequest{Resource: args[0], Since: at}, "")
		if err != nil {
			return err
		}
		if err := c.print(res, func(p *page) { p.evidence(args[0], at, res) }); err != nil {
			return err
		}
		switch {
		case res.GetAccepted() > 0:
			return &exitError{exitRefused, fmt.Errorf("%s was accepted since %s", args[0], stamp(at.AsTime()))}
		case !covered(at, res) || res.GetBoundary() > 0 || res.GetVarious() > 0:
			return &exitError{exitUnproved, fmt.Errorf("it is not proved that %s was not accepted since %s", args[0], stamp(at.AsTime()))}
		}
		return nil
	}
	return cmd
}

// hasEvidence reports whether a resource is of a kind whose use is counted.
func hasEvidence(resource string) bool {
	switch parts := strings.Split(resource, "/"); {
	case slices.Contains(parts, ""):
		return false
	case len(parts) == 2:
		return parts[0] == "tokens"
	default:
		return len(parts) == 4 && parts[0] == "keysets" && parts[2] == "keys"
	}
}

// covered reports whether every replica told all it saw since an instant.
func covered(since *timestamppb.Timestamp, r *rotundav1.GetEvidenceResponse) bool {
	return r.GetCoveredUntil() != nil && r.GetCoveredUntil().AsTime().After(since.AsTime()) && len(r.GetGaps()) == 0
}

func (p *page) evidence(resource string, since *timestamppb.Timestamp, r *rotundav1.GetEvidenceResponse) {
	from := stamp(since.AsTime())
	switch {
	case r.GetAccepted() > 0:
		p.line("%s was accepted %s since %s, for the last time in the minute of %s.", resource, counted(max(r.GetAccepted(), 1), "time"), from, p.when(r.GetLastAccepted()))
	case r.GetCoveredUntil() == nil || !r.GetCoveredUntil().AsTime().After(since.AsTime()):
		p.line("No acceptance of %s since %s is known, and nothing vouches for that time yet.", resource, from)
	case len(r.GetGaps()) > 0:
		p.line("No acceptance of %s since %s is known, but there are gaps for which nobody can vouch.", resource, from)
	case r.GetBoundary() > 0:
		p.line("No acceptance of %s after the minute of %s, in which there were %s: before that instant, or after it.", resource, from, counted(r.GetBoundary(), "acceptance"))
	case r.GetVarious() > 0:
		p.line("No acceptance of %s since %s is known, but there were so many resources at a time that %s of others are not told apart.", resource, from, counted(r.GetVarious(), "acceptance"))
	default:
		p.line("No acceptance of %s since %s.", resource, from)
	}
	if r.GetAccepted() == 0 && r.GetLastAccepted() != nil {
		p.line("Before that it was accepted for the last time in the minute of %s.", p.when(r.GetLastAccepted()))
	}
	if r.GetCoveredUntil() != nil {
		p.line("Covered until %s: what came later is not counted yet.", p.when(r.GetCoveredUntil()))
	}
	if len(r.GetDenied()) > 0 {
		p.line("")
		p.line("Denied attempts:")
		var rows [][]string
		for _, reason := range slices.Sorted(maps.Keys(r.GetDenied())) {
			rows = append(rows, []string{reason, thousands(r.GetDenied()[reason])})
		}
		p.table([]string{"REASON", "HOW MANY"}, rows)
	}
	if len(r.GetGaps()) > 0 {
		p.line("")
		p.line("Gaps, in which a replica was killed before it told what it saw:")
		var rows [][]string
		for _, g := range r.GetGaps() {
			until, lost := "its end", "-"
			if g.GetUntil() != nil {
				until = instant(g.GetUntil().AsTime())
			}
			if g.GetLost() > 0 {
				lost = thousands(g.GetLost())
			}
			rows = append(rows, []string{g.GetReplica(), instant(g.GetFrom().AsTime()), until, lost})
		}
		p.table([]string{"REPLICA", "FROM", "UNTIL", "COUNTS LOST"}, rows)
	}
}

// confirm asks a person to type a word. Without that nothing is done.
func (c *cli) confirm(ctx context.Context, question, word string) error {
	fmt.Fprintf(c.stderr, "%s Type %s to go on: ", cleanLines(question), clean(word))
	// Reading can't be interrupted, so it runs beside; the process ends with the answer or the signal.
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(io.LimitReader(c.stdin, 1024)).ReadString('\n')
		answer <- line
	}()
	select {
	case line := <-answer:
		if strings.TrimSpace(line) != word {
			return errors.New("not confirmed, so nothing was changed")
		}
		return nil
	case <-ctx.Done():
		fmt.Fprintln(c.stderr)
		return errors.New("interrupted, so nothing was changed")
	}
}

// rootOf writes a checkpoint's size and root.
func rootOf(signed string) string {
	text, _ := cutNote(signed)
	cp, err := trail.ParseCheckpoint(text)
	if err != nil {
		return "none"
	}
	return counted(cp.Size, "leaf") + ", root " + base64.StdEncoding.EncodeToString(cp.Root[:])
}

// seconds is a length of the API that counts them.
func seconds(n int64) string { return formatDuration(time.Duration(n) * time.Second) }
