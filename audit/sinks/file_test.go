package sinks

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

func encoded(t testing.TB, records []trail.Record) []byte {
	t.Helper()
	var b []byte
	for i := range records {
		var err error
		if b, err = format.AppendJSON(b, &records[i]); err != nil {
			t.Fatal(err)
		}
		b = append(b, '\n')
	}
	return b
}

// contents returns the sink's files, oldest first, one after the other.
func contents(t testing.TB, path string) (all []byte, names []string) {
	t.Helper()
	names, err := filepath.Glob(path + ".0*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	names = append(names, path)
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v (%v)", name, info.Mode(), err)
		}
		all = append(all, b...)
	}
	return all, names
}

func TestFileWhenFullRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trail.jsonl")
	conf := Config{Kind: File, Address: path, Options: map[string]string{"max_bytes": "65536", "keep": "4"}}
	records := newRecords(t, 0, 2000)
	s := newSink(t, conf)
	for i := 0; i < 400; i += 100 {
		if err := s.Send(t.Context(), records[i:i+100]); err != nil {
			t.Fatal(err)
		}
	}
	got, names := contents(t, path)
	if !bytes.Equal(got, encoded(t, records[:400])) {
		t.Fatalf("the files %v hold something else than what was sent", names)
	}
	for i := 400; i < 2000; i += 400 {
		if err := s.Send(t.Context(), records[i:i+400]); err != nil {
			t.Fatal(err)
		}
	}
	got, names = contents(t, path)
	want := encoded(t, records)
	if len(names) != 5 || !bytes.HasSuffix(want, got) || len(got) < 4*65536*9/10 {
		t.Errorf("the files %v hold %d bytes", names, len(got))
	}
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil || info.Size() > 65536 || info.Size() == 0 {
			t.Errorf("%s has %d bytes (%v)", name, info.Size(), err)
		}
	}
	if names[0] == path+".000001" {
		t.Errorf("the oldest file was kept, a newer one was not: %v", names)
	}
}

func TestFileWhenOneBatchIsMoreThanAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trail.jsonl")
	s := newSink(t, Config{Kind: File, Address: path, Options: map[string]string{"max_bytes": "65536"}})
	records := newRecords(t, 0, 500)
	if err := s.Send(t.Context(), records); err != nil {
		t.Fatal(err)
	}
	if got, names := contents(t, path); !bytes.Equal(got, encoded(t, records)) || len(names) < 3 {
		t.Errorf("the files %v hold %d bytes", names, len(got))
	}
}

// A crash in the middle of a line: the next start cuts it off, and appends.
func TestFileWhenCrashedInsideALine(t *testing.T) {
	records := newRecords(t, 0, 4)
	whole := encoded(t, records[:2])
	for _, torn := range []int{0, 1, 70, len(encoded(t, records[2:3])) - 1} {
		t.Run(fmt.Sprint(torn), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "trail.jsonl")
			if err := os.WriteFile(path, append(bytes.Clone(whole), encoded(t, records[2:3])[:torn]...), 0o600); err != nil {
				t.Fatal(err)
			}
			s := newSink(t, Config{Kind: File, Address: path})
			if err := s.Send(t.Context(), records[2:]); err != nil {
				t.Fatal(err)
			}
			if got, _ := contents(t, path); !bytes.Equal(got, encoded(t, records)) {
				t.Errorf("the file holds %q", got)
			}
		})
	}
}

func TestFileWhenTornLineHasNoEndBeforeIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trail.jsonl")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 200<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	records := newRecords(t, 0, 1)
	if err := newSink(t, Config{Kind: File, Address: path}).Send(t.Context(), records); err != nil {
		t.Fatal(err)
	}
	if got, _ := contents(t, path); !bytes.Equal(got, encoded(t, records)) {
		t.Errorf("the file holds %d bytes", len(got))
	}
}

func TestFileWhenRenamedOrRemovedByOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trail.jsonl")
	s, records := newSink(t, Config{Kind: File, Address: path}), newRecords(t, 0, 3)
	send := func(i int) {
		t.Helper()
		if err := s.Send(t.Context(), records[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	send(0)
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	send(1)
	if got, _ := contents(t, path); !bytes.Equal(got, encoded(t, records[1:2])) {
		t.Errorf("after a rename the file holds %q", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	send(2)
	if got, _ := contents(t, path); !bytes.Equal(got, encoded(t, records[2:])) {
		t.Errorf("after a removal the file holds %q", got)
	}
}

func TestFileWhenAnotherProcessHasIt(t *testing.T) {
	conf := Config{Kind: File, Address: filepath.Join(t.TempDir(), "trail.jsonl")}
	first := newSink(t, conf)
	if _, err := Open(conf); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("the second Open: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	newSink(t, conf)
}

// A disk that is full: the batch fails as a whole, nothing torn stays, and it goes on.
func TestFileWhenWritingFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trail.jsonl")
	s, records := newSink(t, Config{Kind: File, Address: path}), newRecords(t, 0, 4)
	if err := s.Send(t.Context(), records[:2]); err != nil {
		t.Fatal(err)
	}
	s.(*file).f.Close() // every write fails from here on
	if err := s.Send(t.Context(), records[2:]); !errors.Is(err, fault.ErrUnavailable) {
		t.Fatalf("Send: %v", err)
	}
	s.(*file).f = nil
	if err := s.Send(t.Context(), records[2:]); err != nil {
		t.Fatal(err)
	}
	if got, _ := contents(t, path); !bytes.Equal(got, encoded(t, records)) {
		t.Errorf("the file holds %q", got)
	}
	if _, err := Open(Config{Kind: File, Address: filepath.Join(t.TempDir(), "none", "x")}); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("no folder: %v", err)
	}
	if _, err := Open(Config{Kind: File, Address: t.TempDir()}); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("a folder: %v", err)
	}
}
