package main

import (
	"archive/zip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// bundleFiles are the files of a bundle, for what is asked beside its
// verification. Only what was verified before is believed.
type bundleFiles struct {
	fs.FS
	io.Closer
}

func openBundle(name string) (*bundleFiles, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, err
		}
		return &bundleFiles{root.FS(), root}, nil
	}
	z, err := zip.OpenReader(name)
	if err != nil {
		return nil, fmt.Errorf("%s is neither a folder nor a zip: %w", name, err)
	}
	// A zip made of the folder by hand has the folder's name before each file's.
	prefix, found := "", false
	for _, f := range z.File {
		if dir, file := path.Split(f.Name); file == "manifest.json" && (!found || len(dir) < len(prefix)) {
			prefix, found = dir, true
		}
	}
	b := &bundleFiles{z, z}
	if prefix != "" {
		sub, err := fs.Sub(z, path.Clean(prefix))
		if err != nil {
			return nil, errors.Join(err, z.Close())
		}
		b.FS = sub
	}
	return b, nil
}

// text returns one of the small files.
func (b *bundleFiles) text(name string) (string, error) {
	f, err := b.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, 64<<20))
	return string(raw), err
}

// firstKey returns the key of the log's beginning, as the bundle says.
func (b *bundleFiles) firstKey() (*trail.Keys, error) {
	text, err := b.text("keys")
	if err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(text, "\n")
	return trail.ParseKeys(first)
}

// handovers returns the notes of the file handovers.
func (b *bundleFiles) handovers() ([]string, error) {
	text, err := b.text("handovers")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var notes []string
	stanzas := strings.Split(text, "\n\n")
	for i := 0; i+1 < len(stanzas); i += 2 {
		notes = append(notes, stanzas[i]+"\n\n"+strings.TrimSuffix(stanzas[i+1], "\n")+"\n")
	}
	return notes, nil
}

// keptCheckpoint is a checkpoint that the user kept, not verified yet.
type keptCheckpoint struct{ file, signed string }

func (v *verification) readKept() ([]keptCheckpoint, error) {
	var out []keptCheckpoint
	for _, file := range v.kept {
		raw, err := v.c.read(file, maxNoteFile)
		if err != nil {
			return nil, unreadable("reading --checkpoint: %w", err)
		}
		out = append(out, keptCheckpoint{file, string(raw)})
	}
	return out, nil
}

// compared is how a kept checkpoint relates to what was verified.
type compared struct {
	File  string `json:"file"`
	Size  int64  `json:"size"`
	State string `json:"state"` // "extended", "not_comparable", or the kind of the finding
	Text  string `json:"text,omitempty"`
}

// compare checks that a verified bundle extends the kept checkpoints.
func (v *verification) compare(files *bundleFiles, r *bundle.Report, kept []keptCheckpoint, d *verdict) error {
	if len(kept) == 0 {
		return nil
	}
	notes, err := files.handovers()
	if err != nil {
		return unreadable("%w", err)
	}
	keys := v.keys.Clone()
	if err := keys.Follow(notes); err != nil {
		return unreadable("%w", err)
	}
	for _, k := range kept {
		x := compared{File: k.file, State: "extended"}
		cp, err := keys.Open(k.signed)
		x.Size = cp.Size
		fail := func(kind, format string, args ...any) {
			x.State, x.Text = kind, fmt.Sprintf(format, args...)
			r.Findings = append(r.Findings, bundle.Finding{Kind: kind, Index: -1, Text: x.Text})
		}
		switch {
		case err != nil:
			fail(bundle.Signature, "the kept checkpoint %s: %v: it was altered, or is another log's, or --key lacks the key of its time (see audit key --all)", k.file, err)
		case cp.Origin != r.Origin && !sameLog(cp.Origin, r.Origin):
			fail(bundle.Fork, "the kept checkpoint %s is of the log %q, and the bundle of %q", k.file, cp.Origin, r.Origin)
		case cp.Size > r.Size:
			x.State, x.Text = "not_comparable", fmt.Sprintf("it is of %d leaves, and the bundle's of %d only: the bundle is older than it, or the log lost its end: compare with a newer export, or with the server (--since-checkpoint)", cp.Size, r.Size)
		default:
			root, ok, err := files.rootAt(cp.Size, r)
			switch {
			case err != nil:
				return unreadable("compare with the checkpoint %s: %w", k.file, err)
			case !ok:
				x.State, x.Text = "not_comparable", fmt.Sprintf("the bundle has not all that gives the root of its first %d leaves: compare with an export that begins at the log's beginning, without a filter or with --omitted, or with the server (--since-checkpoint)", cp.Size)
			case root != cp.Root:
				fail(bundle.Fork, "the log does not extend the kept checkpoint %s: its first %d leaves have another root: events were rewritten after the checkpoint was signed, or the log shows two people two histories", k.file, cp.Size)
			}
		}
		d.Kept = append(d.Kept, x)
	}
	return nil
}

// sameLog reports whether two origins are of one log, before and after it was
// restarted.
func sameLog(a, b string) bool {
	a, _, _ = strings.Cut(a, "~")
	b, _, _ = strings.Cut(b, "~")
	return a == b
}

// rootAt returns the root of the first size leaves of a bundle that was verified.
// ok is false when the bundle does not have what gives it.
func (b *bundleFiles) rootAt(size int64, r *bundle.Report) (root tlog.Hash, ok bool, err error) {
	if size == r.Size {
		return r.Root, true, nil
	}
	text, err := b.text("tree")
	if err != nil {
		return root, false, err
	}
	tree := &prefix{size: size}
	begin, end := []tlog.Hash(nil), []tlog.Hash(nil)
	for line := range strings.Lines(text) {
		if side, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && (side == "left" || side == "right") {
			h, err := parseHash(value)
			if err != nil {
				return root, false, err
			}
			if side == "left" {
				begin = append(begin, h)
			} else {
				end = append(end, h)
			}
		}
	}
	tree.add(0, r.Begin, begin)
	raw, err := b.text("manifest.json")
	if err != nil {
		return root, false, err
	}
	var m bundle.Manifest
	if err := json.Unmarshal([]byte(raw), &m); err != nil {
		return root, false, err
	}
	for i := range m.Parts {
		if m.Parts[i].Begin >= size {
			break
		}
		if err := b.part(&m, &m.Parts[i], tree); err != nil {
			return root, false, err
		}
	}
	tree.add(r.End, r.Size, end)
	return tree.root()
}

// prefix collects subtrees, left to right, until it has the first size leaves.
type prefix struct {
	size   int64
	leaves trail.Range
	broken bool
}

// add takes in the subtrees that cover a run of leaves, as far as they are whole
// within the first size leaves.
func (p *prefix) add(begin, end int64, hashes []tlog.Hash) {
	nodes := trail.RangeNodes(begin, end)
	if len(nodes) != len(hashes) {
		p.broken = true
		return
	}
	for i, n := range nodes {
		if p.broken || p.leaves.End() >= p.size {
			return
		}
		from, to := n.Index<<n.Level, (n.Index+1)<<n.Level
		r, err := trail.NewRange(from, to, hashes[i:i+1])
		if err != nil || to > p.size || p.leaves.AppendRange(r) != nil {
			p.broken = true
		}
	}
}

func (p *prefix) root() (tlog.Hash, bool, error) {
	if p.broken || p.leaves.End() != p.size {
		return tlog.Hash{}, false, nil
	}
	h, err := p.leaves.Root()
	return h, err == nil, err
}

// part takes in a part's records and gaps.
func (b *bundleFiles) part(m *bundle.Manifest, p *bundle.Part, tree *prefix) error {
	gaps, err := b.gaps(p)
	if err != nil {
		return err
	}
	fill := func(until int64) {
		for len(gaps) > 0 && gaps[0].Begin < until {
			tree.add(gaps[0].Begin, gaps[0].End, gaps[0].Hashes)
			gaps = gaps[1:]
		}
	}
	if p.Data != nil {
		f, err := b.Open(p.Data.Name)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		records, err := format.NewReader(m.Format, f)
		if err != nil {
			return err
		}
		if c, ok := records.(io.Closer); ok {
			defer c.Close()
		}
		for {
			var r trail.Record
			if err := records.Read(&r); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return err
			}
			fill(r.Index)
			if tree.broken || tree.leaves.End() >= tree.size {
				return nil
			}
			tree.add(r.Index, r.Index+1, []tlog.Hash{r.Hash})
		}
	}
	fill(p.End)
	return nil
}

// gaps reads a part's gaps. Leaves that are shown are gaps of one.
func (b *bundleFiles) gaps(p *bundle.Part) ([]bundle.Gap, error) {
	if p.GapFile == nil {
		return nil, nil
	}
	text, err := b.text(p.GapFile.Name)
	if err != nil {
		return nil, err
	}
	var gaps []bundle.Gap
	shown := int64(0)
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 4 && words[0] == "gap":
			begin, err1 := strconv.ParseInt(words[1], 10, 64)
			end, err2 := strconv.ParseInt(words[2], 10, 64)
			if err := errors.Join(err1, err2); err != nil {
				return nil, err
			}
			gaps, shown = append(gaps, bundle.Gap{Begin: begin, End: end}), begin
		case len(words) == 2 && words[0] == "hash" && len(gaps) > 0:
			h, err := parseHash(words[1])
			if err != nil {
				return nil, err
			}
			last := &gaps[len(gaps)-1]
			last.Hashes = append(last.Hashes, h)
		case len(words) == 2 && words[0] == "leaf" && len(gaps) > 0:
			raw, err := base64.StdEncoding.DecodeString(words[1])
			if err != nil {
				return nil, err
			}
			one := bundle.Gap{Begin: shown, End: shown + 1, Hashes: []tlog.Hash{tlog.RecordHash(raw)}}
			if last := &gaps[len(gaps)-1]; last.Begin == shown && len(last.Hashes) == 0 {
				*last = one
			} else {
				gaps = append(gaps, one)
			}
			shown++
		}
	}
	return gaps, nil
}

func parseHash(text string) (h tlog.Hash, err error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != tlog.HashSize {
		return h, errors.New("a hash is not 32 bytes in base64")
	}
	copy(h[:], raw)
	return h, nil
}
