package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// There are logins in the folder of a drill. What a killed one leaves the next one removes, and
// nothing else: not that of a drill that runs, nor what has another name, nor what a link leads to.
func TestDrillWhenAnotherWasKilled(t *testing.T) {
	temp, kept := t.TempDir(), t.TempDir()
	for _, name := range []string{"TMPDIR", "TMP"} { // Unix and Windows
		t.Setenv(name, temp)
	}
	now := time.Now()
	old := now.Add(-drillLeft - time.Minute)
	for name, at := range map[string]time.Time{drillFolder + "1": old, drillFolder + "2": now, "other-1": old} {
		dir := filepath.Join(temp, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "scratch.kek"), []byte("key"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(dir, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(kept, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(kept, filepath.Join(temp, drillFolder+"link")); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	c := &cli{process: process{stderr: &said, now: func() time.Time { return now }}}
	c.sweepDrills()
	for path, want := range map[string]bool{
		filepath.Join(temp, drillFolder+"1"): false, filepath.Join(temp, drillFolder+"2", "scratch.kek"): true,
		filepath.Join(temp, "other-1", "scratch.kek"): true, filepath.Join(kept, "file"): true,
	} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s is there: %t", path, err == nil)
		}
	}
	if strings.Count(said.String(), "killed") != 1 {
		t.Errorf("it said %q", said.String())
	}
}
