package storetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

func TestMain(m *testing.M) {
	if os.Getenv("STORETEST_ROLE") == "start" {
		s, err := start()
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(s.super.Host, s.folder)
		select {} // until killed
	}
	os.Exit(m.Run())
}

// Promise: a test that is killed leaves no server and no files behind.
func TestServerWhenProcessIsKilled(t *testing.T) {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "STORETEST_ROLE=start")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	host, folder, ok := strings.Cut(strings.TrimSpace(line), " ")
	if err != nil || !ok {
		t.Fatalf("child said %q, %v", line, err)
	}
	conn, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatalf("the server is not there: %v", err)
	}
	conn.Close()
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := os.Stat(folder)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s is still there", folder)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if conn, err := net.Dial("tcp", host); err == nil {
		conn.Close()
		t.Error("the server still listens")
	}
}

func TestRunWhenDatabasesAreShared(t *testing.T) {
	seen := make(map[string]bool)
	for range 2 { // each run finds its table missing: the database is its own
		Run(t, func(t *testing.T, db *store.DB) {
			seen[db.Dialect()] = true
			if err := db.Migrate(t.Context()); err != nil {
				t.Errorf("Migrate: %v", err)
			}
			err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.Exec(ctx, `CREATE TABLE mine (id BIGINT)`)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	if !seen["sqlite"] || !seen["postgres"] {
		t.Errorf("ran on %v, want both databases", seen)
	}
}

func TestClockWhenMoved(t *testing.T) {
	at := time.Unix(1000, 0)
	c := NewClock(at)
	c.Advance(-time.Second)
	if got := c.Now(); !got.Equal(at.Add(-time.Second)) {
		t.Errorf("clock shows %v", got)
	}
	c.Set(at)
	if got := c.Now(); !got.Equal(at) {
		t.Errorf("clock shows %v", got)
	}
}
