package redis

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
)

// TestAnswerWhenLengthIsALie: a node announces more than there is memory for. Without a
// bound this is no failed test, but the end of the process.
func TestAnswerWhenLengthIsALie(t *testing.T) {
	for name, answer := range map[string]string{
		"a text":           "$9223372036854775807\r\n",
		"a shorter text":   "$4611686018427387904\r\n",
		"an array":         "*4611686018427387904\r\n",
		"a map":            "%4611686018427387904\r\n",
		"an error":         "!9223372036854775807\r\n",
		"arrays in arrays": strings.Repeat("*1\r\n", 8<<20),
		"a line":           "+" + strings.Repeat("x", 1<<20),
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					for r := bufio.NewReader(conn); ; {
						var n int
						if _, err := fmt.Fscanf(r, "*%d\r\n", &n); err != nil {
							return
						}
						words := make([]string, n)
						for i := range words {
							var length int
							if _, err := fmt.Fscanf(r, "$%d\r\n%s\r\n", &length, &words[i]); err != nil {
								return
							}
						}
						reply := "+OK\r\n"
						switch strings.ToLower(words[0]) {
						case "hello":
							reply = "-ERR unknown command 'HELLO'\r\n"
						case "acl":
							reply = answer
						}
						if _, err := conn.Write([]byte(reply)); err != nil {
							return
						}
					}
				}()
			}
		}()
		settings, err := providers.Complete("settings", Kind().Settings, map[string]string{"addresses": listener.Addr().String(), "tls": "off", "user": "rotator"})
		if err != nil {
			t.Fatal(err)
		}
		target, err := Kind().Open(t.Context(), providers.Config{Name: "cache", Settings: settings, Login: providers.Fields{"password": secret.FromString("login-password")}, Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		_, err = target.Applied(ctx, providers.Change{}, "app")
		cancel()
		if providers.OutcomeOf(err) != providers.Unknown || err == nil || !strings.Contains(err.Error(), errAnswer.Error()) {
			t.Errorf("%s: %v, want %v", name, err, errAnswer)
		}
		_, _ = target.Close(), listener.Close()
	}
}

// FuzzReplies: how an answer is cut into reads makes no difference, and what is let
// through announces no more than the bounds.
func FuzzReplies(f *testing.F) {
	for _, s := range []string{"*2\r\n$5\r\nhello\r\n:1\r\n", "$-1\r\n", "+OK\r\n", "*-1\r\n", "%1\r\n+a\r\n$3\r\n$9\n\r\n", "$33554433\r\n", "*65537\r\n", "$x\r\n", "\r\n"} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, answer []byte, cut int) {
		if len(answer) > 1<<16 {
			return
		}
		var whole, parts scanner
		want := whole.take(answer)
		cut = 1 + abs(cut)%16
		for rest := answer; len(rest) > 0; {
			n := min(cut, len(rest))
			parts.take(rest[:n])
			rest = rest[n:]
		}
		if parts.bad == want {
			t.Errorf("%q is taken: %t; in parts of %d: %t", answer, want, cut, !parts.bad)
		}
		if want && (whole.skip > maxText+2 || whole.items > maxItems || len(whole.line) > 24) {
			t.Errorf("%q was let through: %+v", answer, whole)
		}
	})
}

func abs(n int) int { return max(n, -(n + 1)) }
