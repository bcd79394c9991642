package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

const (
	maxKeysFile = 1 << 20  // bytes of a file of public keys
	maxNoteFile = 64 << 10 // bytes of a checkpoint
)

// verification is one run of audit verify.
type verification struct {
	c              *cli
	key            string
	fromBundle     bool
	kept           []string // files of checkpoints
	witnesses      []string
	least          int
	leastGiven     bool
	whole          bool
	since          string // file of a checkpoint
	full           bool
	save           string
	quiet          bool
	keys           *trail.Keys
	trustedWitness []trail.Witness
}

func newAuditVerify(c *cli) *cobra.Command {
	v := &verification{c: c}
	cmd := &cobra.Command{
		Use:   "verify PATH --key FILE [flags]",
		Short: "Verify a bundle or a proof offline, or the server's log",
		Long: `Verify what an auditor was given. PATH is a bundle (a folder or a zip that audit export
wrote) or a proof that audit prove printed. No server, network or configuration is used.

--key is a file with the server's public key, as audit key prints it. Get it once, while you
trust the server, or by another way than the bundle: the keys inside of a bundle prove
nothing, because who rewrites it puts in their own. --checkpoint is a checkpoint that you
kept: the bundle must extend it, so that nobody, not even the holder of the private key, can
have rewritten what was before.

Without PATH, the log of the server is verified: with --since-checkpoint, that it extends a
checkpoint that you kept; with --full, every leaf of it as well.

Exit codes: 0 verified; 1 something was altered or does not verify, each finding on a line of
its own; 2 wrong usage, or a file can't be read; 3 the server can't be reached; 4 nothing is
wrong, but it is not proved (--key-from-bundle, or a checkpoint that can't be compared).`,
		Example: `  rotunda audit verify q1 --key trail.pub
  rotunda audit verify acme.zip --key trail.pub --checkpoint kept.txt -o json
  rotunda audit verify proof.txt --key trail.pub
  rotunda audit verify --since-checkpoint kept.txt --key trail.pub --save kept.txt
  rotunda audit verify --full --key trail.pub`,
		DisableFlagsInUseLine: true,
		Args:                  cobra.MaximumNArgs(1),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&v.key, "key", "", "file with the server's public key, see audit key; - for stdin")
	f.BoolVar(&v.fromBundle, "key-from-bundle", false, "take the key from the bundle: shows damage, but not who wrote it")
	f.StringArrayVar(&v.kept, "checkpoint", nil, "file with a checkpoint that you kept, which the bundle must extend; once for each")
	f.StringArrayVar(&v.witnesses, "witness", nil, "a witness whose cosignature counts: its vkey, or a file with vkeys; once for each")
	f.IntVar(&v.least, "witnesses", 0, "how many of them must have cosigned the checkpoint (default: all)")
	f.BoolVar(&v.whole, "whole", false, "don't accept events that the filter left out and of which only hashes are shown; see export --omitted")
	f.StringVar(&v.since, "since-checkpoint", "", "file with a checkpoint that you kept, which the server's log must extend")
	f.BoolVar(&v.full, "full", false, "read the server's whole log, and verify every leaf")
	f.StringVar(&v.save, "save", "", "file to keep the server's new checkpoint in when it is verified")
	f.BoolVarP(&v.quiet, "quiet", "q", false, "no progress bar")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		v.leastGiven = cmd.Flags().Changed("witnesses")
		if err := v.check(args); err != nil {
			return err
		}
		if len(args) == 0 {
			return v.server(cmd.Context())
		}
		return v.offline(cmd.Context(), args[0])
	}
	return cmd
}

// check reads keys and witnesses, and refuses flags that do not go together.
func (v *verification) check(args []string) error {
	online := v.since != "" || v.full || v.save != ""
	switch {
	case len(args) == 0 && !online:
		return usagef("PATH is missing: name a bundle or a proof; or give --since-checkpoint, or --full, to verify the server's log")
	case len(args) > 0 && args[0] == "":
		return usagef("PATH is empty")
	case len(args) > 0 && online:
		return usagef("--since-checkpoint, --full and --save are for the server's log: leave out %s; a checkpoint to compare a bundle with is --checkpoint", args[0])
	case len(args) > 0 && v.c.conf.server != "":
		return usagef("--server is for the server's log: %s is verified without a server", args[0])
	case online && (v.fromBundle || v.whole || len(v.kept) > 0):
		return usagef("--key-from-bundle, --checkpoint and --whole are for bundles; the server's log is compared with --since-checkpoint")
	case v.fromBundle && v.key != "":
		return usagef("give --key or --key-from-bundle, not both")
	case v.key == "" && !v.fromBundle:
		return usagef("--key is missing: it is a file with the server's public key. Make it with `%s > trail.pub` while you trust the server, or have it given to you by another way. "+
			"The key inside of a bundle proves nothing: who rewrites the bundle puts in their own", v.c.command("audit key"))
	case v.leastGiven && (v.least < 1 || len(v.witnesses) == 0):
		return usagef("--witnesses is how many of the --witness keys must have cosigned: at least 1, and there must be some")
	}
	if v.key != "" {
		raw, err := v.c.read(v.key, maxKeysFile)
		if err != nil {
			return unreadable("reading --key: %w", err)
		}
		if n := strangeLine(string(raw)); n > 0 {
			return unreadable("--key %s: its line %d is no public key (name+hash+base64): give the file that `%s audit key > trail.pub` made", v.key, n, v.c.program)
		}
		if v.keys, err = trail.ParseKeys(string(raw)); err != nil {
			return unreadable("--key %s: %w", v.key, err)
		}
	}
	return v.readWitnesses()
}

// strangeLine returns the number of the first line that has not even the form of a
// vkey, and 0 when there is none. A file that was named by mistake may hold a
// secret, so it is not quoted.
func strangeLine(text string) int {
	n := 0
	for line := range strings.Lines(text) {
		n++
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && strings.Count(line, "+") < 2 {
			return n
		}
	}
	return 0
}

func unreadable(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func (v *verification) readWitnesses() error {
	for _, text := range v.witnesses {
		lines := text
		if !strings.Contains(text, "+") {
			raw, err := v.c.read(text, maxKeysFile)
			if err != nil {
				return unreadable("--witness is no vkey (name+hash+base64), and as a file: %w", err)
			}
			lines = string(raw)
			if n := strangeLine(lines); n > 0 {
				return unreadable("--witness %s: its line %d is no vkey (name+hash+base64): give a file with the vkeys of witnesses", text, n)
			}
		}
		for line := range strings.Lines(lines) {
			if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
				continue
			}
			w, err := trail.ParseWitness(line)
			if err != nil {
				return unreadable("--witness: %w", err)
			}
			v.trustedWitness = append(v.trustedWitness, w)
		}
	}
	if !v.leastGiven {
		v.least = len(v.trustedWitness)
	}
	if v.least > len(v.trustedWitness) {
		return usagef("--witnesses %d is more than the %d that are given", v.least, len(v.trustedWitness))
	}
	return nil
}

// cosigned returns a finding when too few witnesses cosigned a checkpoint.
func (v *verification) cosigned(signed string) (n int, findings []bundle.Finding) {
	if len(v.trustedWitness) == 0 {
		return 0, nil
	}
	n, missing := trail.CountWitnesses(signed, v.trustedWitness)
	if n < v.least {
		why := ""
		if missing != nil {
			why = ": " + strings.ReplaceAll(missing.Error(), "\n", "; ")
		}
		findings = append(findings, bundle.Finding{Kind: "witness", Index: -1, Text: fmt.Sprintf("%d of the %d witnesses that must have cosigned the checkpoint did%s", n, v.least, why)})
	}
	return n, findings
}

// offline verifies a file or a folder.
func (v *verification) offline(ctx context.Context, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return unreadable("read what is to be verified: %w", err)
	}
	if info.Mode().IsRegular() {
		head, err := readHead(path)
		if err != nil {
			return unreadable("read what is to be verified: %w", err)
		}
		if bytes.HasPrefix(head, []byte("c2sp.org/tlog-proof@")) {
			return v.proof(path)
		}
	}
	files, err := openBundle(path)
	if err == nil {
		defer files.Close()
	}
	if v.fromBundle {
		if err != nil {
			return unreadable("read the key from the bundle: %w", err)
		}
		if v.keys, err = files.firstKey(); err != nil {
			return unreadable("read the key from the bundle: %w", err)
		}
	}
	kept, err := v.readKept()
	if err != nil {
		return err
	}
	bar := v.c.newProgress("verifying", v.quiet)
	r, err := bundle.Verify(ctx, path, bundle.Options{Keys: v.keys, Whole: v.whole, Progress: func(done, total int64) { bar.show(done, total, done) }})
	bar.clear()
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted: nothing was shown to be right or wrong")
		}
		return &exitError{exitUsage, err}
	}
	d := &verdict{Path: path, Report: &r, FromBundle: v.fromBundle}
	if r.RootVerified { // so files were found, and what they say is what the log has
		signed, err := files.text("checkpoint")
		if err != nil {
			return unreadable("%w", err)
		}
		d.Signers = signersOf(signed)
		n, bad := v.cosigned(signed)
		d.Witnesses = n
		r.Findings = append(r.Findings, bad...)
		if err := v.compare(files, &r, kept, d); err != nil {
			return err
		}
	}
	return v.tell(d)
}

func readHead(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 64)
	n, err := io.ReadFull(f, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return b[:n], err
}

// tell prints a verdict, and returns the error that ends the run.
func (v *verification) tell(d *verdict) error {
	if v.c.output.value == "table" {
		p := v.c.newPage()
		d.page(p)
		if err := p.flush(); err != nil {
			return err
		}
	} else {
		raw, err := json.Marshal(d.data())
		if err != nil {
			return fmt.Errorf("encoding the result: %w", err)
		}
		if err := v.c.printJSON(raw, false); err != nil {
			return err
		}
	}
	return conclude(d.Path, int64(len(d.Report.Findings))+d.Report.More, d.unproved())
}

// conclude is the error that a number of findings makes.
func conclude(what string, findings int64, unproved string) error {
	switch {
	case findings > 0:
		return &exitError{exitRefused, fmt.Errorf("%s does not verify: %s", what, counted(findings, "finding"))}
	case unproved != "":
		return &exitError{exitUnproved, errors.New(unproved)}
	}
	return nil
}

// proof verifies the proof of one event.
func (v *verification) proof(path string) error {
	if v.fromBundle || v.whole {
		return usagef("%s is a proof of one event: it has no key inside, and --whole is for bundles; give --key", path)
	}
	if len(v.kept) > 0 {
		return usagef("%s is a proof of one event: it can't show that its checkpoint extends another one; use --since-checkpoint with the server", path)
	}
	raw, err := v.c.read(path, trail.MaxProof)
	if err != nil {
		return unreadable("read the proof: %w", err)
	}
	d := &proofVerdict{path: path}
	d.record, err = bundle.VerifyProof(string(raw), v.keys)
	if f, ok := errors.AsType[bundle.Finding](err); ok {
		d.findings = append(d.findings, f)
	} else if err != nil {
		return unreadable("read the proof: %w", err)
	} else {
		p, err := trail.ParseProof(string(raw))
		if err != nil {
			return unreadable("read the proof: %w", err)
		}
		d.checkpoint = p.Checkpoint
		d.witnesses, d.findings = v.cosigned(p.Checkpoint)
	}
	if v.c.output.value == "table" {
		page := v.c.newPage()
		d.page(page)
		if err := page.flush(); err != nil {
			return err
		}
	} else {
		raw, err := d.data()
		if err != nil {
			return fmt.Errorf("encoding the result: %w", err)
		}
		if err := v.c.printJSON(raw, false); err != nil {
			return err
		}
	}
	if len(d.findings) > 0 && d.findings[0].Kind == bundle.Signature {
		v.c.complain("if the log's key was rotated after --key was saved: a proof does not say so; save all keys, with `%s audit key --all`", v.c.program)
	}
	return conclude(path, int64(len(d.findings)), "")
}
