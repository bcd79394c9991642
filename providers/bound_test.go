package providers

import (
	"io"
	"net"
	"strings"
	"testing"
)

func TestBoundWhenAnswerIsLong(t *testing.T) {
	here, there := net.Pipe()
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	go func() {
		ask := make([]byte, 1)
		for {
			if _, err := io.ReadFull(there, ask); err != nil {
				return
			}
			if _, err := there.Write([]byte(strings.Repeat("x", int(ask[0])))); err != nil {
				return
			}
		}
	}()
	conn := Bound(here, 100)
	for range 3 { // each question has an answer of its own
		if _, err := conn.Write([]byte{90}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 90)); err != nil {
			t.Errorf("an answer of 90 of 100 bytes: %v", err)
		}
	}
	if _, err := conn.Write([]byte{200}); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(byteByByte{conn}); err == nil || len(got) != 100 {
		t.Errorf("of an answer of 200 bytes %d were read (%v), want 100 and an error", len(got), err)
	}
}

// byteByByte reads byte by byte, so that the bound falls between two reads.
type byteByByte struct{ io.Reader }

func (r byteByByte) Read(p []byte) (int, error) { return r.Reader.Read(p[:1]) }
