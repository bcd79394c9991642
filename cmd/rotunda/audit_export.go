package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/format"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// export is one run of audit export.
type export struct {
	c       *cli
	want    eventFilter
	format  choice
	out     string
	omitted bool
	quiet   bool
}

func newAuditExport(c *cli) *cobra.Command {
	x := &export{c: c, format: choice{allowed: format.Names, value: "jsonl"}}
	cmd := &cobra.Command{
		Use:   "export --out DIR [flags]",
		Short: "Write a part of the trail, with its proofs, into a folder or a zip",
		Long: `Write events into a bundle: a folder of data files with everything that is needed to verify
them without the server. Events that a filter leaves out are there as hashes, so that it can
be shown that nothing else was left out.

An export that was interrupted (also by a crash or a kill) goes on where it was when the same
command is run again; a lost connection is made again by itself. With --out FILE.zip the
bundle is one file, which can't be gone on with.`,
		Example: `  rotunda audit export --since 2026-01-01 --until 2026-04-01 --out q1
  rotunda audit export --partner acme --since 90d --format csv --out acme.zip
  rotunda audit export --action keyset. --omitted --format parquet --out keysets`,
		Args:                  arguments(),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("out"),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&x.out, "out", "", "folder to write, which is made; or a file that ends with .zip")
	f.Var(&x.format, "format", "form of the data")
	x.want.flags(c, cmd)
	f.BoolVar(&x.omitted, "omitted", false, "also write the leaves of events that the filter leaves out: they hold no personal data, and show that the filter is kept")
	f.BoolVarP(&x.quiet, "quiet", "q", false, "no progress bar")
	c.complete(cmd, "format", format.Names...)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		filter, err := x.want.filter(c.now())
		if err != nil {
			return err
		}
		if x.out == "" {
			return usagef("--out is empty: name a folder, or a file that ends with .zip")
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		pull := &puller{c: c, to: to, bar: c.newProgress("exporting", x.quiet), req: &rotundav1.ExportEventsRequest{Filter: filter, Omitted: x.omitted}}
		if strings.EqualFold(filepath.Ext(x.out), ".zip") {
			return x.zip(cmd.Context(), pull)
		}
		return x.folder(cmd.Context(), pull)
	}
	return cmd
}

// folder writes a folder, or goes on with one.
func (x *export) folder(ctx context.Context, pull *puller) error {
	var w *bundle.Writer
	pull.begin = func(h bundle.Head) (leaves, error) {
		var err error
		w, err = bundle.Create(x.out, h, x.format.value)
		return w, err
	}
	names, err := x.look()
	if err != nil {
		return err
	}
	if names["manifest.json"] || names["unfinished"] {
		if w, err = x.resume(pull); err != nil {
			return err
		}
		if w == nil {
			x.c.complain("this export is complete already: nothing was fetched; for newer events, export into another folder")
			return x.summary()
		}
	}
	err = pull.run(ctx)
	pull.bar.clear()
	if w == nil {
		return begun(ctx, err)
	}
	closed := w.Close()
	if err == nil && closed == nil {
		return x.summary()
	}
	if closed != nil && !errors.Is(closed, bundle.ErrUnfinished) {
		// What was written whole can be gone on with once the cause is gone.
		return fmt.Errorf("%w: run the same command again once that is repaired", closed)
	}
	how := fmt.Sprintf("%s has events %d to %d of %d: run the same command again to go on", x.out, pull.head.Begin, w.Next()-1, pull.head.End-pull.head.Begin)
	if ctx.Err() != nil {
		return errors.New("interrupted: " + how)
	}
	x.c.complain("%s", how)
	return err
}

// begun is the error of an export that has written nothing.
func begun(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted: nothing was written")
	}
	return err
}

// look returns what is in the folder; nothing when it is not there.
func (x *export) look() (map[string]bool, error) {
	entries, err := os.ReadDir(x.out)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if info, statErr := os.Stat(x.out); statErr == nil && !info.IsDir() {
		return nil, usagef("--out %s is a file: name a folder, or a new file that ends with .zip", x.out)
	}
	if err != nil {
		return nil, fmt.Errorf("write into the folder of --out: %w", err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	if len(names) > 0 && !names["manifest.json"] && !names["unfinished"] && !names["unfinished.tmp"] {
		return nil, fmt.Errorf("%s has other files in it (%s): name an empty folder, or one that is not there", x.out, entries[0].Name())
	}
	return names, nil
}

// resume goes on with what is in the folder. It returns nil for a complete one.
func (x *export) resume(pull *puller) (*bundle.Writer, error) {
	w, head, next, err := bundle.Resume(x.out)
	complete := errors.Is(err, bundle.ErrComplete)
	if err != nil && !complete {
		return nil, err
	}
	is := head.Filter
	name := ""
	if complete {
		m, err := x.manifest()
		if err != nil {
			return nil, err
		}
		is, name = m.Filter, m.Format
	} else if name, err = x.unfinishedFormat(); err != nil {
		_ = w.Close()
		return nil, err
	}
	if err := x.same(is, name, conditions(pull.req.GetFilter())); err != nil {
		if w != nil {
			_ = w.Close() // keeps what is there
		}
		return nil, err
	}
	if complete {
		return nil, nil
	}
	// "30d ago" was another instant when it was begun.
	if pull.req.Filter, err = filterOf(is); err == nil {
		err = pull.adopt(head)
	}
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	pull.leaves = w
	pull.bar.first = next - head.Begin
	x.c.complain("going on at event %d of %d to %d", next, head.Begin, head.End-1)
	return w, nil
}

// same reports whether the folder's export is the one that is asked for.
func (x *export) same(is map[string]string, formatName string, want map[string]string) error {
	other := func(what string) error {
		return fmt.Errorf("%s holds another export (%s, with %s, and this one would be %s, with %s): %s: name another folder",
			x.out, formatName, orNone(describe(is)), x.format.value, orNone(describe(want)), what)
	}
	if formatName != x.format.value {
		return other("the format differs")
	}
	for _, key := range []string{"actor", "action", "resource", "partner", "outcome", "request_id", "address"} {
		if is[key] != want[key] {
			return other("the " + key + " differs")
		}
	}
	for key, text := range map[string]string{"since": x.want.since, "until": x.want.until} {
		if (is[key] == "") != (want[key] == "") {
			return other("one has no " + key)
		}
		if is[key] == "" {
			continue
		}
		was, err1 := time.Parse(time.RFC3339Nano, is[key])
		now, err2 := time.Parse(time.RFC3339Nano, want[key])
		if err1 != nil || err2 != nil {
			return other("the " + key + " can't be read")
		}
		// "12h" is another instant each time; it stands for the first one as long as
		// it can't be mistaken for "13h".
		if away := now.Sub(was); away != 0 && (away < 0 || away > slack(text)) {
			return other(fmt.Sprintf("the %s differs (to go on with what is there, give --%s %s)", key, key, is[key]))
		}
	}
	return nil
}

// slack is half of the unit in which a length of time was written, and 0 for what
// is none.
func slack(text string) time.Duration {
	if _, err := parseDuration(text); err != nil {
		return 0
	}
	return map[byte]time.Duration{'d': day, 'h': time.Hour, 'm': time.Minute}[text[len(text)-1]] / 2
}

func orNone(filter string) string { return firstOf(filter, "no filter") }

func (x *export) manifest() (*bundle.Manifest, error) {
	raw, err := os.ReadFile(filepath.Join(x.out, "manifest.json"))
	m := &bundle.Manifest{}
	if err == nil {
		err = json.Unmarshal(raw, m)
	}
	if err != nil {
		return nil, fmt.Errorf("read the export in %s: %w: name another folder", x.out, err)
	}
	return m, nil
}

// unfinishedFormat reads the format of an export that did not end.
func (x *export) unfinishedFormat() (string, error) {
	f, err := os.Open(filepath.Join(x.out, "unfinished"))
	if err != nil {
		return "", fmt.Errorf("go on with the export in %s: %w", x.out, err)
	}
	defer f.Close()
	var head struct {
		Format string `json:"format"`
	}
	if err := json.NewDecoder(f).Decode(&head); err != nil {
		return "", fmt.Errorf("go on with the export in %s: %w: name another folder", x.out, err)
	}
	return head.Format, nil
}

// zip writes a new file, which gets its name when it is whole.
func (x *export) zip(ctx context.Context, pull *puller) error {
	if _, err := os.Lstat(x.out); err == nil {
		return fmt.Errorf("--out %s is there already: name another file, or remove it", x.out)
	}
	part := x.out + ".part"
	file, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write the file of --out: %w", err)
	}
	defer os.Remove(part)
	defer file.Close()
	buffer := bufio.NewWriterSize(file, 256<<10)
	var w *bundle.Writer
	pull.begin = func(h bundle.Head) (leaves, error) {
		var err error
		w, err = bundle.WriteZip(buffer, h, x.format.value)
		return w, err
	}
	err = pull.run(ctx)
	pull.bar.clear()
	if w == nil {
		return begun(ctx, err)
	}
	closed := w.Close()
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("interrupted: %s was not written; an export into a folder can be gone on with", x.out)
	case err != nil:
		return err
	case closed != nil:
		return closed
	}
	if err := errors.Join(buffer.Flush(), file.Sync(), file.Close(), os.Rename(part, x.out)); err != nil {
		return fmt.Errorf("write the file of --out: %w", err)
	}
	return x.done(pull.records, pull.head, pull.size)
}

// summary tells what is in the folder.
func (x *export) summary() error {
	m, err := x.manifest()
	if err != nil {
		return err
	}
	signed, err := os.ReadFile(filepath.Join(x.out, "checkpoint"))
	if err != nil {
		return fmt.Errorf("read the export in %s: %w", x.out, err)
	}
	return x.done(m.Records, &bundle.Head{Origin: m.Origin, Checkpoint: string(signed), Begin: m.Begin, End: m.End, Filter: m.Filter}, m.CheckpointSize)
}

// exported is the result of an export.
type exported struct {
	Path       string            `json:"path"`
	Format     string            `json:"format"`
	Origin     string            `json:"origin"`
	Filter     map[string]string `json:"filter"`
	Begin      int64             `json:"begin"`
	End        int64             `json:"end"`
	Records    int64             `json:"records"`
	Size       int64             `json:"checkpointSize"`
	Root       string            `json:"checkpointRoot"`
	Checkpoint string            `json:"checkpoint"`
}

func (x *export) done(records int64, h *bundle.Head, size int64) error {
	text, _ := cutNote(h.Checkpoint)
	root := ""
	if lines := strings.Split(text, "\n"); len(lines) > 2 {
		root = lines[2]
	}
	if x.c.output.value != "table" {
		raw, err := json.Marshal(exported{x.out, x.format.value, h.Origin, h.Filter, h.Begin, h.End, records, size, root, h.Checkpoint})
		if err != nil {
			return fmt.Errorf("encoding the result: %w", err)
		}
		return x.c.printJSON(raw, false)
	}
	p := x.c.newPage()
	p.line("exported    %s as %s into %s", counted(records, "record"), x.format.value, x.out)
	if h.End > h.Begin {
		p.line("range       events %d to %d of the log %s", h.Begin, h.End-1, h.Origin)
	} else {
		p.line("range       no event of the log %s", h.Origin)
	}
	if left := h.End - h.Begin - records; left > 0 {
		why := "they were pruned"
		if filter := describe(h.Filter); filter != "" {
			why = "the filter (" + filter + ") leaves them out, or they were pruned"
		}
		p.line("left out    %s of this range: %s", counted(left, "event"), why)
	}
	p.line("checkpoint  %s, root %s", counted(size, "leaf"), root)
	p.line("verify      %s audit verify %s --key trail.pub", x.c.program, quote(x.out))
	p.line("            trail.pub is the server's public key: %s > trail.pub", x.c.command("audit key"))
	return p.flush()
}
