package anchors

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

func newFile(t *testing.T, l *testLog) (Anchor, string) {
	t.Helper()
	dir := t.TempDir()
	a := open(t, Config{Kind: File, Origin: origin, Check: l.check(), Address: dir})
	return a, filepath.Join(dir, "rotunda.example%2Ftrail")
}

func mustWrite(t *testing.T, path, text string) {
	t.Helper()
	_ = os.Remove(path)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFolderKeepsWhatItHolds(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	a, dir := newFile(t, log)
	_, err := a.Newest(t.Context())
	wantFault(t, err, fault.ErrNotFound, "anchor_empty")
	mustPush(t, a, log, 5)
	before, err := os.Stat(filepath.Join(dir, sizeName(5)))
	if err != nil || before.Mode() != 0o400 {
		t.Fatalf("%v, %v", before, err)
	}
	mustPush(t, a, log, 5)
	mustPush(t, a, log, 11)
	after, err := os.Stat(filepath.Join(dir, sizeName(5)))
	if err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Fatal("a checkpoint was written again")
	}
	_, eleven := log.at(11)
	mustNewest(t, a, eleven)
	if got, err := os.ReadFile(filepath.Join(dir, latest)); err != nil || string(got) != eleven {
		t.Fatalf("latest is %q, %v", got, err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	hidden, _ := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(names) != 3 || len(hidden) != 0 {
		t.Fatalf("the folder holds %v, %v", names, hidden)
	}
	wantFault(t, push(t, a, log.fork(10), 11), fault.ErrChanged, ReasonAnchorFork)
	wantFault(t, push(t, a, log, 5), fault.ErrChanged, ReasonAnchorAhead)

	// The same after a restart, and when `latest` was removed.
	if err := os.Remove(filepath.Join(dir, latest)); err != nil {
		t.Fatal(err)
	}
	again := open(t, Config{Kind: File, Origin: origin, Check: log.check(), Address: filepath.Dir(dir)})
	mustNewest(t, again, eleven)
	wantFault(t, push(t, again, log, 6), fault.ErrChanged, ReasonAnchorAhead)
	wantFault(t, push(t, again, log.fork(10), 11), fault.ErrChanged, ReasonAnchorFork)
}

// What another process brought is seen although this one scanned before.
func TestFolderWhenAnotherServerIsAhead(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	a, dir := newFile(t, log)
	b := open(t, Config{Kind: File, Origin: origin, Check: log.check(), Address: filepath.Dir(dir)})
	mustPush(t, a, log, 3)
	mustPush(t, b, log, 8)
	wantFault(t, push(t, a, log, 4), fault.ErrChanged, ReasonAnchorAhead)
	_, eight := log.at(8)
	mustNewest(t, a, eight)
	mustPush(t, a, log, 9)
}

func TestFolderWhenTwoWriteAtOnce(t *testing.T) {
	t.Parallel()
	for range 20 {
		log := newLog(t)
		a, dir := newFile(t, log)
		b := open(t, Config{Kind: File, Origin: origin, Check: log.check(), Address: filepath.Dir(dir)})
		cp, one := log.at(4)
		fcp, two := log.fork(3).at(4)
		var errs [2]error
		var work sync.WaitGroup
		work.Go(func() { errs[0] = a.Push(t.Context(), cp, one) })
		work.Go(func() { errs[1] = b.Push(t.Context(), fcp, two) })
		work.Wait()
		lost := errs[0]
		if lost == nil {
			lost = errs[1]
		} else if errs[1] != nil {
			t.Fatalf("both failed: %v", errs)
		}
		wantFault(t, lost, fault.ErrChanged, ReasonAnchorFork)
	}
}

func TestFolderWhenItHoldsGarbage(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	_, five := log.at(5)
	for what, text := range map[string]string{
		"nothing": "", "no note": "garbage", "endless": strings.Repeat("x", maxBody+1), "renamed": five,
		"unsigned": strings.SplitAfter(five, "\n\n")[0],
	} {
		a, dir := newFile(t, log)
		mustPush(t, a, log, 2)
		mustWrite(t, filepath.Join(dir, sizeName(7)), text)
		t.Run(what, func(t *testing.T) {
			wantFault(t, push(t, a, log, 7), fault.ErrRejected, "anchor_garbage")
			_, err := a.Newest(t.Context())
			wantFault(t, err, fault.ErrRejected, "anchor_garbage")
			mustPush(t, a, log, 8) // later ones are taken
		})
	}
	// A broken latest is replaced, and other names are passed over.
	a, dir := newFile(t, log)
	mustPush(t, a, log, 2)
	mustWrite(t, filepath.Join(dir, latest), "garbage")
	mustWrite(t, filepath.Join(dir, "99.checkpoint"), "garbage")
	mustPush(t, a, log, 3)
	_, three := log.at(3)
	mustNewest(t, a, three)
}

// An origin can't leave the folder, nor can a link in it lead out.
func TestFolderWhenNamesLeadOut(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"..": "%2E%2E", ".": "%2E", "a/../b": "a%2F..%2Fb", "x.": "x%2E", "a+b": "a%2Bb", "é": "%C3%A9", "log-1_x.example": "log-1_x.example",
	} {
		if got := escape(name); got != want {
			t.Errorf("escape(%q) = %q, want %q", name, got, want)
		}
	}
	log := newLog(t)
	a, dir := newFile(t, log)
	outside := filepath.Join(t.TempDir(), "victim")
	mustWrite(t, outside, "untouched")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, sizeName(2))); err != nil {
		t.Fatal(err)
	}
	if err := push(t, a, log, 2); err == nil {
		t.Fatal("a link that leads out was followed")
	}
	if got, _ := os.ReadFile(outside); string(got) != "untouched" {
		t.Fatal("what the link leads to was written")
	}
}

func TestFolderWhenOutOfReach(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	_, err := Open(Config{Kind: File, Origin: origin, Address: "/nowhere/at/all"})
	wantFault(t, err, fault.ErrUnavailable, "anchor_unreachable")
	a, dir := newFile(t, log)
	if err := os.Remove(filepath.Dir(dir)); err != nil { // the mount went away
		t.Fatal(err)
	}
	wantFault(t, push(t, a, log, 2), fault.ErrUnavailable, "anchor_unreachable")

	b, _ := newFile(t, log)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	cp, signed := log.at(2)
	if err := b.Push(ended, cp, signed); !errors.Is(err, context.Canceled) {
		t.Fatalf("a push whose context ended answers %v", err)
	}
	mustPush(t, b, log, 2)
}

func TestFolderWhenNothingCanBeReplaced(t *testing.T) {
	t.Parallel()
	log, dir := newLog(t), t.TempDir()
	a := open(t, Config{Kind: File, Origin: origin, Address: dir, NoLatest: true})
	mustPush(t, a, log, 2)
	mustPush(t, a, log, 3)
	if _, err := os.Stat(filepath.Join(dir, escape(origin), latest)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("latest: %v", err)
	}
	_, three := log.at(3)
	mustNewest(t, a, three)
}

func TestPushWhenTheNoteIsNotTheCheckpoint(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	a, _ := newFile(t, log)
	cp, signed := log.at(4)
	other := cp
	other.Size++
	wantFault(t, a.Push(t.Context(), other, signed), fault.ErrInvalid, "checkpoint_differs")
	other = cp
	other.Origin = "another.example"
	wantFault(t, a.Push(t.Context(), other, signed), fault.ErrInvalid, "origin_differs")
	wantFault(t, a.Push(t.Context(), cp, signed+strings.Repeat("x", maxBody)), fault.ErrInvalid, "checkpoint_too_long")
	wantFault(t, a.Push(t.Context(), cp, cp.Text()), fault.ErrInvalid, "checkpoint_differs")
}

func FuzzSizeName(f *testing.F) {
	for _, s := range []string{sizeName(0), sizeName(7), "7.checkpoint", "latest", "-000000000000000001.checkpoint", "9999999999999999999.checkpoint"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if size, ok := parseSize(name); ok && (size < 0 || fmt.Sprintf("%019d.checkpoint", size) != name) {
			t.Errorf("%q is read as %d", name, size)
		}
	})
}
