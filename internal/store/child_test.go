package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// The tests of this file run parts of themselves in child processes, which
// are this test binary with these variables set.
const (
	childRole = "STORE_TEST_ROLE"
	childURL  = "STORE_TEST_URL"
)

func TestMain(m *testing.M) {
	switch os.Getenv(childRole) {
	case "":
		os.Exit(m.Run())
	case "write":
		writeForever(os.Getenv(childURL))
	case "open":
		db, err := store.Open(context.Background(), os.Getenv(childURL))
		if err != nil {
			fmt.Println(err)
			os.Exit(0)
		}
		fmt.Println("opened", db.Close())
	}
	os.Exit(3)
}

// writeForever inserts pairs of rows, and prints the number of each pair after
// its Update has returned.
func writeForever(url string) {
	ctx := context.Background()
	db, err := store.Open(ctx, url)
	if err != nil {
		fmt.Println(err)
		return
	}
	for pair := int64(0); ; pair++ {
		err := db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
			for _, id := range []int64{2 * pair, 2*pair + 1} {
				if _, err := tx.Exec(ctx, insertThing, id, strconv.FormatInt(id, 10), "active"); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(pair)
	}
}

func newChild(role, url string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"="+role, childURL+"="+url)
	return cmd
}

// Promise: what was acknowledged survives kill -9 in the middle of writing,
// and what was not is there as a whole or not at all.
func TestUpdateWhenProcessIsKilled(t *testing.T) {
	for name, newURL := range map[string]func(testing.TB) string{"sqlite": storetest.SQLiteURL, "postgres": storetest.Postgres} {
		t.Run(name, func(t *testing.T) {
			url := newURL(t)
			db, err := store.Open(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			newTable(t, db)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}

			child := newChild("write", url)
			out, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = child.Process.Kill() })
			acknowledged := int64(-1)
			lines := bufio.NewScanner(out)
			for lines.Scan() { // to the end: the pipe holds more than was read at the kill
				pair, err := strconv.ParseInt(lines.Text(), 10, 64)
				if err != nil || pair != acknowledged+1 {
					t.Fatalf("the child said %q after %d", lines.Text(), acknowledged)
				}
				acknowledged = pair
				if pair == 0 && name == "sqlite" {
					_, err := store.Open(t.Context(), url)
					if !errors.Is(err, fault.ErrUnavailable) || !strings.Contains(err.Error(), "process "+strconv.Itoa(child.Process.Pid)) {
						t.Errorf("a second process opened the file: %v, want a refusal that names the first", err)
					}
				}
				if pair == 150 {
					if err := child.Process.Kill(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := child.Wait(); err == nil || acknowledged < 150 {
				t.Fatalf("the child was not killed: %v, %d pairs", err, acknowledged)
			}

			got := ids(t, storetest.Open(t, url))
			for i, id := range got {
				if id != int64(i) {
					t.Fatalf("row %d is missing", i)
				}
			}
			if n := int64(len(got)); n%2 != 0 || n < 2*(acknowledged+1) {
				t.Errorf("%d rows after %d acknowledged pairs", n, acknowledged+1)
			}
		})
	}
}
