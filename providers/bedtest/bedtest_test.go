package bedtest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestMain is also the child of TestServersWhenTheirProcessIsKilled.
func TestMain(m *testing.M) {
	if os.Getenv("ROTUNDA_BEDTEST_CHILD") == "" {
		os.Exit(m.Run())
	}
	var folders []string
	p, err := startPostgres()
	if err == nil {
		folders = append(folders, p.folder)
	}
	r, errRedis := startRedis(RedisOptions{})
	if errRedis == nil {
		folders = append(folders, r.folder)
	}
	d, errMaria := startMariaDB()
	if errMaria == nil {
		folders = append(folders, d.folder)
	}
	fmt.Println(strings.Join(folders, " "), err, errRedis, errMaria)
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed
}

func TestServersWhenTheirProcessIsKilled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0])
	child.Env = append(os.Environ(), "ROTUNDA_BEDTEST_CHILD=1")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	words := strings.Fields(line)
	if err != nil || len(words) != 6 || !strings.HasSuffix(line, "<nil> <nil> <nil>\n") {
		t.Fatalf("the child says %q, %v", line, err)
	}
	for _, folder := range words[:3] {
		if _, err := os.Stat(folder); err != nil {
			t.Errorf("a server runs without its folder: %v", err)
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	for _, folder := range words[:3] {
		for {
			if _, err := os.Stat(folder); os.IsNotExist(err) {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("%s is there long after its process was killed", folder)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}
