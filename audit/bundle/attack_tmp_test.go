package bundle

import (
	"bytes"
	"os"
	"testing"
"crypto/sha256"
"encoding/hex"
	"math/rand"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

func TestTmpFlip(t *testing.T) {
	for _, name := range []string{"parquet", "csv", "ocsf", "cef", "jsonl"} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t, 12)
			for i := 12; i < 14; i++ {
				e := event(i)
				e.Detail = `{"a":"é\u0001<b>","=x":"=1+1","n":{"k":[1,2.5,null,true]}}`
				e.Reason = "=cmd|' /C calc'!A0, \"quoted\"\nline | pipe \\ = eq"
				e.Checks = e.MakeChecks()
				l.add(t, e)
			}
			e := event(14)
			e.Reason = "gone"
			e.Checks = e.MakeChecks()
			if err := e.Erase(trail.Actor, trail.Reason, trail.Detail); err != nil { t.Fatal(err) }
			l.add(t, e)
			dir := t.TempDir() + "/b"
			w, err := Create(dir, l.head(t, 0, 15, 15, nil), name)
			if err != nil { t.Fatal(err) }
			l.export(t, w, nil, false)
			if err := w.Close(); err != nil { t.Fatal(err) }
			wantHonest(t, verify(t, dir, l.trusted(t)))
			ext, _ := extensionOf(name)
			file := dir + "/" + dataName(0, ext)
			raw, _ := os.ReadFile(file)
						keys := l.trusted(t)
			hit := 0
			mraw, _ := os.ReadFile(dir + "/" + fileManifest)
			reset := func(b []byte) {
				m, err := parseManifest(mraw)
				if err != nil { t.Fatal(err) }
				sum := sha256.Sum256(b)
				m.Parts[0].Data.Bytes, m.Parts[0].Data.SHA256 = int64(len(b)), hex.EncodeToString(sum[:])
				e, _ := m.encode()
				os.WriteFile(dir+"/"+fileManifest, e, 0o600)
			}
			try := func(b []byte, what string, i int) {
				os.WriteFile(file, b, 0o600)
				reset(b)
				r, err := Verify(t.Context(), dir, Options{Keys: keys, Workers: 1})
				if err == nil && len(r.Findings) == 0 && r.RootVerified {
					hit++
					if hit < 60 { lo, hi := max(0, i-30), min(len(b), i+30); t.Logf("%s at %d of %d: %q", what, i, len(raw), b[lo:hi]) }
				}
			}
			for i := range raw {
				for _, c := range []byte{raw[i] ^ 0x21} {
					if c == raw[i] { continue }
					b := bytes.Clone(raw); b[i] = c
					try(b, "set", i)
				}
				if name != "parquet" {
				try(append(append(bytes.Clone(raw[:i]), raw[i+1:]...)), "del", i)
				for _, c := range []byte{' ', '0', '"'} {
					b := append(bytes.Clone(raw[:i]), c)
					try(append(b, raw[i:]...), "ins", i)
				}
				}
			}
			_ = rand.Int
			t.Logf("%s: %d hits", name, hit)
		})
	}
}
