package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

const (
	importBatch      = 500      // what the API takes at once
	importBatchRaw   = 100      // each of which may need a slow hash
	importBatchBytes = 96 << 10 // so that a request stays below the server's 128 KiB
	maxImportRow     = 16 << 10
)

func newKeyImport(c *cli) *cobra.Command {
	var partner string
	var weakTTL durationFlag
	from := choice{allowed: []string{"sha256", "raw"}}
	cmd := &cobra.Command{
		Use:   "import --from sha256|raw FILE.csv|- [flags]",
		Short: "Take over keys that partners hold already",
		Long: `Take over keys of another system, so that nobody needs a new one: as SHA-256 hashes of the
whole key (hex or base64), or as the keys themselves. It is for admins and operators. The
first line of the file names its columns, in any order; only value is needed, and partner
unless --partner names the one that holds them all:

  value        the hash, or the key
  partner      who holds it; lines of one partner after each other go faster
  name         what people call it
  scopes       separated by spaces
  environment  as live
  cidrs        address ranges, separated by spaces
  rate         as 100/s
  expires_at   as 2027-01-31 or 2027-01-31T12:00:00Z
  metadata     as owner=ann tier=gold

A key that is too easy to guess is taken over as weak: it ends after --weak-ttl, and is to be
rolled before. A line that can't be taken over is told by its number, and the rest is done.
What was interrupted is run again: keys that are there already are counted, and left alone.`,
		Example: `  rotunda key import --from sha256 hashes.csv
  rotunda key import --partner acme --from sha256 hashes.csv
  rotunda key import --partner acme --from raw - < keys.csv`,
		Args:                  arguments("FILE"),
		DisableFlagsInUseLine: true,
		PreRunE:               need("from"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return []cobra.Completion{"csv"}, cobra.ShellCompDirectiveFilterFileExt
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&from, "from", "what the column value holds")
	f.Var(&weakTTL, "weak-ttl", "life of keys that are too easy to guess, 90d at most (default 30d)")
	c.partnerFlag(cmd, &partner, "who holds all of them")
	c.complete(cmd, "from", from.allowed...)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, err := c.connect()
		if err != nil {
			return err
		}
		im := &importer{
			c: c, to: to, partner: partner, weakTTL: weakTTL.proto(), batch: importBatch,
			form: rotundav1.ImportForm(rotundav1.ImportForm_value["IMPORT_FORM_"+strings.ToUpper(from.value)]),
		}
		if im.form == rotundav1.ImportForm_IMPORT_FORM_RAW {
			im.batch = importBatchRaw
		}
		return im.run(cmd.Context(), args[0])
	}
	return cmd
}

// importer takes a file over, a batch at a time, in bounded memory.
type importer struct {
	c       *cli
	to      *conn
	partner string // "": each row says whose it is
	form    rotundav1.ImportForm
	weakTTL *durationpb.Duration
	batch   int

	rows    *importRows
	size    int64 // of the file; 0: unknown
	bar     *progress
	items   []*rotundav1.ImportItem
	whose   string // of the items
	lines   []int  // of the items
	bytes   int
	refused []refusal // that were not told yet
	tally   tally
	through int // every line up to this one was answered for
}

// refusal is a line that was not taken over.
type refusal struct {
	line int
	why  string
}

// tally is how an import went.
type tally struct {
	Imported int64 `json:"imported"`
	Existing int64 `json:"existing"`
	Weak     int64 `json:"weak"`
	Refused  int64 `json:"refused"`
}

func (im *importer) run(ctx context.Context, file string) error {
	in, closeFile, err := im.open(file)
	if err != nil {
		return fmt.Errorf("reading the keys to import: %w", err)
	}
	defer closeFile()
	im.bar = im.c.newProgress("importing", im.size == 0)
	defer im.bar.clear()
	if im.rows, err = newImportRows(in); err != nil {
		return fmt.Errorf("reading the keys to import: %w", err)
	}
	if im.partner == "" && !slices.Contains(im.rows.columns, "partner") {
		return errors.New("whose keys are they? Give --partner, or a column partner in the file")
	}
	if err := im.all(ctx); err != nil {
		im.tell()
		im.bar.clear()
		if done := im.tally.Imported + im.tally.Existing + im.tally.Refused; done > 0 {
			im.c.complain("stopped after line %d: %s; run the same command again for the rest: what is there already is left alone", im.through, im.tally)
		}
		return err
	}
	im.bar.clear()
	return im.report()
}

// open opens the file, which may hold keys: that others can read it is said.
func (im *importer) open(file string) (io.Reader, func(), error) {
	if file == "-" {
		return im.c.stdin, func() {}, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, err
	}
	closeFile := func() { _ = f.Close() }
	info, err := f.Stat()
	if err != nil {
		closeFile()
		return nil, nil, err
	}
	if info.IsDir() {
		closeFile()
		return nil, nil, fmt.Errorf("%s is a folder: give a file", file)
	}
	if im.form == rotundav1.ImportForm_IMPORT_FORM_RAW && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		im.c.complain("warning: %s holds keys, and others can read it (mode %04o): run: chmod 600 %s", file, info.Mode().Perm(), quote(file))
	}
	im.size = info.Size()
	return f, closeFile, nil
}

// all reads rows and sends batches until the end.
func (im *importer) all(ctx context.Context) error {
	for {
		line, partner, item, err := im.rows.next()
		switch {
		case err != nil:
		case partner == "" && im.partner == "":
			err = badRowf("partner is empty")
		case partner != "" && im.partner != "" && partner != im.partner:
			err = badRowf("its partner is not the one that --partner names")
		default:
			partner = firstOf(im.partner, partner)
		}
		bad, isBad := errors.AsType[*badRow](err)
		switch {
		case errors.Is(err, io.EOF):
			return im.send(ctx)
		case isBad:
			im.refused = append(im.refused, refusal{line, bad.what})
			if len(im.refused) < im.batch {
				continue
			}
			if err := im.send(ctx); err != nil {
				return err
			}
			continue
		case err != nil:
			if err := im.send(ctx); err != nil {
				return err
			}
			return fmt.Errorf("reading the keys to import: %w", err)
		}
		n := proto.Size(item) + 8
		if len(im.items) == im.batch || im.bytes+n > importBatchBytes || partner != im.whose {
			if err := im.send(ctx); err != nil {
				return err
			}
		}
		im.items, im.lines, im.bytes, im.whose = append(im.items, item), append(im.lines, line), im.bytes+n, partner
	}
}

// send has the server take over what was collected.
func (im *importer) send(ctx context.Context) error {
	if len(im.items) == 0 {
		im.tell()
		return nil
	}
	req := &rotundav1.ImportApiKeysRequest{Partner: im.whose, Form: im.form, WeakTtl: im.weakTTL, Items: im.items}
	res, err := call(ctx, im.to, im.to.keys.ImportApiKeys, req, "")
	if err != nil {
		return err
	}
	if len(res.GetResults()) != len(im.items) {
		return fmt.Errorf("the server answered for %d of %d keys: this is a fault of the server", len(res.GetResults()), len(im.items))
	}
	for i, r := range res.GetResults() {
		switch r.GetReason() {
		case "":
			im.tally.Imported++
		case "exists":
			im.tally.Existing++
		default:
			im.refused = append(im.refused, refusal{im.lines[i], r.GetReason() + ": " + r.GetMessage()})
			continue
		}
		if r.GetWeak() {
			im.tally.Weak++
		}
	}
	im.through = im.lines[len(im.lines)-1]
	im.items, im.lines, im.bytes = nil, nil, 0
	im.tell()
	done := im.tally.Imported + im.tally.Existing + im.tally.Refused
	im.bar.show(im.rows.offset(), im.size, done)
	return nil
}

// tell prints what was refused since it was last called, in the order of the file.
func (im *importer) tell() {
	if len(im.refused) == 0 {
		return
	}
	slices.SortStableFunc(im.refused, func(a, b refusal) int { return a.line - b.line })
	im.bar.clear()
	for _, r := range im.refused {
		im.c.complain("line %d: %s", r.line, r.why)
		im.through = max(im.through, r.line)
	}
	im.tally.Refused += int64(len(im.refused))
	im.refused = nil
}

func (t tally) String() string {
	return fmt.Sprintf("%s imported, %s there already, %s refused", thousands(t.Imported), thousands(t.Existing), thousands(t.Refused))
}

func (im *importer) report() error {
	t := im.tally
	if im.c.output.value != "table" {
		raw, err := json.Marshal(t)
		if err != nil {
			return err
		}
		if err := im.c.printJSON(raw, false); err != nil {
			return err
		}
	} else {
		p := im.c.newPage()
		p.line("%s", t)
		if t.Weak > 0 {
			p.line("%s too easy to guess, and must be rolled soon: %s shows until when", weakKeys(t.Weak), im.c.command("key list"))
		}
		if err := p.flush(); err != nil {
			return err
		}
	}
	switch {
	case t.Refused > 0:
		return fmt.Errorf("%s refused: see above; correct them and run the same command again", isAre(t.Refused, "line"))
	case t.Imported+t.Existing == 0:
		return errors.New("there is no key in it: only the line that names the columns")
	}
	return nil
}

func isAre(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun + " was"
	}
	return counted(n, noun) + " were"
}

func weakKeys(n int64) string {
	if n == 1 {
		return "1 key is"
	}
	return thousands(n) + " keys are"
}

// badRow is a row that can't be a key. It never repeats what stands there, which may be one.
type badRow struct{ what string }

func (e *badRow) Error() string { return e.what }

func badRowf(format string, args ...any) error { return &badRow{fmt.Sprintf(format, args...)} }

var importColumns = []string{"value", "partner", "name", "scopes", "environment", "cidrs", "rate", "expires_at", "metadata"}

// importRows reads the rows of a CSV file (RFC 4180) one by one. No row may be
// longer than maxImportRow, so that an open quote does not swallow the file.
type importRows struct {
	limit   *rowLimit
	csv     *csv.Reader
	columns []string
	line    int // of the last row
}

func newImportRows(r io.Reader) (*importRows, error) {
	b := bufio.NewReaderSize(r, 4096)
	if mark, _ := b.Peek(3); bytes.Equal(mark, []byte("\xef\xbb\xbf")) {
		_, _ = b.Discard(3) // the mark that spreadsheets put first
	}
	limit := &rowLimit{r: b}
	limit.begin()
	x := csv.NewReader(limit)
	x.FieldsPerRecord = -1
	x.ReuseRecord = true
	rows := &importRows{limit: limit, csv: x}
	head, err := x.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("there is nothing in it")
	}
	if err != nil {
		return nil, rows.unreadable(err)
	}
	for i, name := range head {
		name = strings.ToLower(strings.TrimSpace(name))
		switch {
		case !slices.Contains(importColumns, name):
			// The name is not repeated: without a first line of names, it is a key.
			return nil, fmt.Errorf("the first line must name the columns, and its column %d is none of %s", i+1, strings.Join(importColumns, ", "))
		case slices.Contains(rows.columns, name):
			return nil, fmt.Errorf("the first line names the column %s twice", name)
		}
		rows.columns = append(rows.columns, name)
	}
	if !slices.Contains(rows.columns, "value") {
		return nil, errors.New("the first line names no column value, which holds the key or its hash")
	}
	return rows, nil
}

// offset is how many bytes were read.
func (rows *importRows) offset() int64 { return rows.csv.InputOffset() }

// next returns the next row, its line and its partner, a badRow, or io.EOF.
func (rows *importRows) next() (line int, partner string, item *rotundav1.ImportItem, err error) {
	rows.limit.begin()
	fields, err := rows.csv.Read()
	if errors.Is(err, io.EOF) {
		return 0, "", nil, err
	}
	if err != nil {
		return 0, "", nil, rows.unreadable(err)
	}
	line, _ = rows.csv.FieldPos(0)
	rows.line = line
	if len(fields) != len(rows.columns) {
		return line, "", nil, badRowf("it has %s, and the first line names %d", counted(int64(len(fields)), "column"), len(rows.columns))
	}
	item = &rotundav1.ImportItem{}
	for i, f := range fields {
		text := strings.Clone(strings.TrimSpace(f))
		if rows.columns[i] == "partner" {
			partner = text
			continue
		}
		if err := setColumn(item, rows.columns[i], text); err != nil {
			return line, "", nil, err
		}
	}
	if item.GetValue() == "" {
		return line, "", nil, badRowf("value is empty")
	}
	return line, partner, item, nil
}

// unreadable tells where the file ends to be CSV. What follows can't be told
// apart into rows, so it is not read.
func (rows *importRows) unreadable(err error) error {
	if e, ok := errors.AsType[*csv.ParseError](err); ok {
		what := "a quote stands where none may be"
		if errors.Is(e.Err, errLongRow) {
			what = e.Err.Error()
		}
		return fmt.Errorf("line %d is not CSV: %s: nothing from there on was read", e.StartLine, what)
	}
	if errors.Is(err, errLongRow) {
		return fmt.Errorf("the row after line %d has %w", rows.line, err)
	}
	return err
}

func setColumn(item *rotundav1.ImportItem, column, text string) (err error) {
	if text == "" {
		return nil
	}
	switch column {
	case "value":
		item.Value = text
	case "name":
		item.Name = text
	case "scopes":
		item.Scopes = strings.Fields(text)
	case "environment":
		item.Environment = text
	case "cidrs":
		item.Cidrs = strings.Fields(text)
	case "rate":
		if item.RateLimit, err = parseRate(text); err != nil {
			return badRowf("rate is not of the form 100/s, 5000/m or 1000/24h")
		}
	case "expires_at":
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t, err = time.Parse(time.DateOnly, text)
		}
		if err != nil {
			return badRowf("expires_at is not a time as 2027-01-31 or 2027-01-31T12:00:00Z")
		}
		item.ExpiresAt = timestamppb.New(t)
	case "metadata":
		item.Metadata = map[string]string{}
		for _, pair := range strings.Fields(text) {
			k, v, ok := strings.Cut(pair, "=")
			if !ok || k == "" {
				return badRowf("metadata is not of the form name=value name=value")
			}
			item.Metadata[k] = v
		}
	}
	return nil
}

var errLongRow = fmt.Errorf("more than %d bytes: is a quote open?", maxImportRow)

// rowLimit fails when one row needs more than maxImportRow. The reader above reads ahead by up to 4 KiB.
type rowLimit struct {
	r    io.Reader
	left int
}

func (l *rowLimit) begin() { l.left = maxImportRow + 4096 }

func (l *rowLimit) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errLongRow
	}
	n, err := l.r.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}
