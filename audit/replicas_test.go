package audit

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// The test of this file runs replicas as child processes, which are this test
// binary with these variables set.
const (
	childName = "AUDIT_TEST_REPLICA"
	childURL  = "AUDIT_TEST_URL"
	childKEK  = "AUDIT_TEST_KEK"
	childTTL  = 400 * time.Millisecond
)

var kills = flag.Int("trail.kills", 12, "how many replicas the kill -9 test kills")

func TestMain(m *testing.M) {
	if name := os.Getenv(childName); name != "" {
		if err := replica(name); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// replica sequences, and records events whose names it prints once they are
// committed, until its standard input ends.
func replica(name string) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	db, err := store.Open(ctx, os.Getenv(childURL))
	if err != nil {
		return err
	}
	defer db.Close()
	kek, err := secret.OpenFile(os.Getenv(childKEK))
	if err != nil {
		return err
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		return err
	}
	tr, err := Open(ctx, Config{DB: db, Sealer: sealer})
	if err != nil {
		return err
	}
	tr.ttl = childTTL
	var running sync.WaitGroup
	running.Go(func() { _ = tr.Run(ctx) })
	running.Go(func() { db.Relay(ctx, func(error) {}) })
	for w := range 3 {
		running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				event := fmt.Sprintf("%s/%d/%d", name, w, i)
				err := db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
					return Record(ctx, tx, Event{Action: "x", Resource: event, Actor: "ada"})
				})
				if err == nil {
					fmt.Println(event)
				}
			}
		})
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	stop()
	running.Wait()
	return nil
}

// Promise: replicas may be killed at any moment, the sequencer too. Indexes stay
// contiguous, there is one chain of checkpoints, what was acknowledged is in the
// log once, and nothing is there twice.
func TestReplicasWhenKilled(t *testing.T) {
	t.Parallel()
	url := storetest.Postgres(t)
	kekPath := filepath.Join(t.TempDir(), "kek.json")
	kek, err := secret.OpenOrCreateFile(kekPath)
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	acknowledged := map[string]bool{}
	type running struct {
		cmd   *osexec.Cmd
		stdin io.Closer
		read  sync.WaitGroup
	}
	started := 0
	start := func() *running {
		started++
		cmd := osexec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=r%d", childName, started), childURL+"="+url, childKEK+"="+kekPath)
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		r := &running{cmd: cmd, stdin: stdin}
		r.read.Go(func() {
			lines := bufio.NewScanner(out)
			for lines.Scan() {
				if strings.HasPrefix(lines.Text(), "failed:") {
					t.Errorf("a replica says %q", lines.Text())
				}
				mu.Lock()
				acknowledged[lines.Text()] = true
				mu.Unlock()
			}
		})
		return r
	}
	// A killed child may leave half a line, which is an event that was committed
	// and whose name is cut: it is not counted as acknowledged.
	complete := func(name string) bool { return strings.Count(name, "/") == 2 }

	replicas := []*running{start(), start()}
	for range *kills {
		mu.Lock()
		before := len(acknowledged)
		mu.Unlock()
		deadline := time.Now().Add(30 * time.Second)
		for n := before; n < before+40+rand.IntN(200); {
			time.Sleep(5 * time.Millisecond)
			mu.Lock()
			n = len(acknowledged)
			mu.Unlock()
			if time.Now().After(deadline) {
				t.Fatal("the replicas do not get on")
			}
		}
		victim := rand.IntN(2)
		r := replicas[victim]
		if err := r.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.read.Wait()
		if err := r.cmd.Wait(); err == nil {
			t.Fatal("a replica was not killed")
		}
		replicas[victim] = start()
	}
	for _, r := range replicas {
		_ = r.stdin.Close()
		r.read.Wait()
		if err := r.cmd.Wait(); err != nil {
			t.Errorf("a replica did not end well: %v", err)
		}
	}

	db := storetest.Open(t, url)
	tr := openTrail(t, Config{DB: db, Sealer: sealer})
	deadline := time.Now().Add(10 * time.Second)
	for { // until the lease of the last killed one is over
		n, err := tr.Sequence(t.Context())
		if err == nil && n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the rest can't be sequenced: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	records := verify(t, tr)
	inLog := map[string]int{}
	for _, r := range records {
		inLog[r.Resource]++
	}
	lost := 0
	for name := range acknowledged {
		if complete(name) && inLog[name] == 0 && lost < 5 {
			lost++
			t.Errorf("%s was acknowledged and is not in the log", name)
		}
	}
	for name, n := range inLog {
		if n > 1 {
			t.Errorf("%s is in the log %d times", name, n)
		}
	}
	// Each worker's events are in the order in which it made them.
	last := map[string]int{}
	for _, r := range records {
		i := strings.LastIndexByte(r.Resource, '/')
		var n int
		if strings.HasPrefix(r.Resource, "r") {
			if _, err := fmt.Sscan(r.Resource[i+1:], &n); err != nil {
				t.Fatal(err)
			}
			if before, ok := last[r.Resource[:i]]; ok && n <= before {
				t.Errorf("%s comes after %d", r.Resource, before)
			}
			last[r.Resource[:i]] = n
		}
	}
	t.Logf("%d events by %d replicas, %d of them killed; %d acknowledged", len(records), started, *kills, len(acknowledged))
}
