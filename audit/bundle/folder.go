package bundle

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// ErrComplete is what Resume returns for a bundle that is finished.
var ErrComplete = errors.New("the bundle is complete")

const temporary = ".tmp"

// Create begins a bundle in a folder, which is made when it is not there, and
// must be empty when it is.
func Create(dir string, head Head, formatName string) (*Writer, error) {
	return create(dir, head, formatName, func(string) {})
}

func create(dir string, head Head, formatName string, step func(string)) (*Writer, error) {
	// What is wrong with the head is said before the folder is touched.
	if _, err := newWriter(nil, head, formatName); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for the bundle: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the folder for the bundle: %w", err)
	}
	f := &folder{root: root, dir: dir, step: step}
	w, err := f.begin(head, formatName)
	if err != nil {
		f.release()
	}
	return w, err
}

func (f *folder) begin(head Head, formatName string) (*Writer, error) {
	names, err := f.names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		// Left by a crash before anything else was there.
		if name != fileUnfinished+temporary {
			return nil, fmt.Errorf("begin a bundle in %s: %w: it holds %s: go on with an export that was interrupted, or name another folder", f.dir, fs.ErrExist, name)
		}
	}
	line, err := json.Marshal(journalHead{Version: 1, Format: formatName, Head: head})
	if err != nil {
		return nil, err
	}
	j, err := f.create(fileUnfinished)
	if err != nil {
		return nil, err
	}
	if _, err := j.Write(append(line, '\n')); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	if err := j.Close(); err != nil {
		return nil, err
	}
	if err := f.openJournal(); err != nil {
		return nil, err
	}
	return newWriter(f, head, formatName)
}

// Resume goes on with the bundle in a folder after a crash or an interruption.
// What was written after the last whole part is discarded; next is the leaf that
// is due.
func Resume(dir string) (w *Writer, head Head, next int64, err error) {
	return resume(dir, func(string) {})
}

func resume(dir string, step func(string)) (*Writer, Head, int64, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, Head{}, 0, fmt.Errorf("go on with a bundle: %w", err)
	}
	f := &folder{root: root, dir: dir, step: step}
	w, err := f.reopen()
	if err != nil {
		f.release()
		return nil, Head{}, 0, fmt.Errorf("go on with the bundle in %s: %w", dir, err)
	}
	return w, w.head, w.next, nil
}

func (f *folder) reopen() (*Writer, error) {
	if _, err := f.root.Stat(fileManifest); err == nil {
		if err := f.finish(); err != nil {
			return nil, err
		}
		return nil, ErrComplete
	}
	raw, err := f.root.ReadFile(fileUnfinished)
	if err != nil {
		return nil, fmt.Errorf("there is no export to go on with: %w", err)
	}
	var w *Writer
	whole := 0
	for rest := raw; ; {
		line, after, ok := bytes.Cut(rest, []byte("\n"))
		if !ok {
			break // torn by the crash
		}
		if w == nil {
			var h journalHead
			if err := json.Unmarshal(line, &h); err != nil || h.Version != 1 {
				return nil, fmt.Errorf("the file %s can't be read (version %d): begin again in another folder", fileUnfinished, h.Version)
			}
			if w, err = newWriter(f, h.Head, h.Format); err != nil {
				return nil, err
			}
		} else {
			var p Part
			if err := json.Unmarshal(line, &p); err != nil {
				break
			}
			if p.Begin != w.next || p.End <= p.Begin || p.End > w.head.End || !f.has(p.Data) || !f.has(p.GapFile) {
				return nil, fmt.Errorf("part %d is not what the file %s says: begin again in another folder", len(w.parts), fileUnfinished)
			}
			w.parts, w.next = append(w.parts, p), p.End
		}
		whole += len(line) + 1
		rest = after
	}
	if w == nil {
		return nil, fmt.Errorf("the file %s is empty: begin again in another folder", fileUnfinished)
	}
	if err := f.clean(w); err != nil {
		return nil, err
	}
	if err := f.openJournal(); err != nil {
		return nil, err
	}
	if err := f.journal.Truncate(int64(whole)); err != nil {
		return nil, err
	}
	_, err = f.journal.Seek(0, io.SeekEnd)
	return w, err
}

// clean removes what the journal does not know of.
func (f *folder) clean(w *Writer) error {
	keep := map[string]bool{fileUnfinished: true}
	for _, p := range w.parts {
		for _, file := range []*File{p.Data, p.GapFile} {
			if file != nil {
				keep[file.Name] = true
			}
		}
	}
	names, err := f.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		ours := strings.HasPrefix(name, "data-") || strings.HasPrefix(name, "gaps-") || strings.HasSuffix(name, temporary) ||
			name == fileTree || name == fileKeys || name == fileHandovers || name == fileEvidence || name == fileCheckpoint
		if ours && !keep[name] {
			if err := f.root.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *folder) has(file *File) bool {
	if file == nil {
		return true
	}
	info, err := f.root.Stat(file.Name)
	return err == nil && info.Size() == file.Bytes
}

// journalHead is the first line of the file unfinished. Each other line is a Part.
type journalHead struct {
	Version int    `json:"version"`
	Format  string `json:"format"`
	Head    Head   `json:"head"`
}

// folder is an output whose files appear whole or not at all.
type folder struct {
	root    *os.Root
	dir     string
	journal *os.File
	open    *os.File     // the file that is being written, if any
	step    func(string) // called before each change of the folder, for tests of crashes
}

func (f *folder) names() ([]string, error) {
	d, err := f.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func (f *folder) openJournal() (err error) {
	f.journal, err = f.root.OpenFile(fileUnfinished, os.O_RDWR|os.O_APPEND, 0o600)
	return err
}

func (f *folder) create(name string) (io.WriteCloser, error) {
	f.step("create " + name)
	file, err := f.root.OpenFile(name+temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	f.open = file
	return &atomicFile{File: file, folder: f, name: name}, nil
}

func (f *folder) note(p Part) error {
	line, err := json.Marshal(p)
	if err != nil {
		return err
	}
	f.step("note")
	if _, err := f.journal.Write(append(line, '\n')); err != nil {
		return err
	}
	f.step("sync note")
	return f.journal.Sync()
}

func (f *folder) finish() error {
	f.step("finish")
	if err := f.root.Remove(fileUnfinished); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f.step("finished")
	return f.sync()
}

func (f *folder) release() {
	for _, file := range []*os.File{f.journal, f.open} {
		if file != nil {
			file.Close()
		}
	}
	_ = f.root.Close()
}

// sync makes new names durable.
func (f *folder) sync() error {
	d, err := f.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// atomicFile gets its name when it is closed and on the disk.
type atomicFile struct {
	*os.File
	folder *folder
	name   string
}

func (a *atomicFile) Close() error {
	a.folder.step("sync " + a.name)
	if err := errors.Join(a.Sync(), a.File.Close()); err != nil {
		return err
	}
	a.folder.step("rename " + a.name)
	if err := a.folder.root.Rename(a.name+temporary, a.name); err != nil {
		return err
	}
	a.folder.step("sync folder after " + a.name)
	return a.folder.sync()
}

// WriteZip begins a bundle that goes to w as one zip, from its first byte to its
// last. It can't be resumed.
func WriteZip(w io.Writer, head Head, formatName string) (*Writer, error) {
	z := zip.NewWriter(w)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		return flate.NewWriter(w, flate.BestSpeed)
	})
	return newWriter(&zipOutput{z}, head, formatName)
}

type zipOutput struct{ zip *zip.Writer }

func (z *zipOutput) create(name string) (io.WriteCloser, error) {
	file, err := z.zip.Create(name)
	return wholeFile{file}, err
}

func (z *zipOutput) note(Part) error { return nil }
func (z *zipOutput) finish() error   { return z.zip.Close() }
func (z *zipOutput) release()        {}

// wholeFile needs no closing.
type wholeFile struct{ io.Writer }

func (wholeFile) Close() error { return nil }
