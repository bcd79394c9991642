package main

import (
	"archive/zip"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/audit/bundle"
)

// newExport exports a log into a folder.
func newExport(t *testing.T, l *testLog, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "bundle")
	if r := execute(t, newLogService(t, l), nil, append([]string{"audit", "export", "--out", out}, args...)...); r.code != exitDone {
		t.Fatalf("%+v", r)
	}
	return out
}

// replace changes text in a file.
func replace(t *testing.T, file, old, text string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), old) {
		t.Fatalf("there is no %q in %s", old, file)
	}
	write(t, file, strings.Replace(string(raw), old, text, 1), 0o600)
}

func TestVerifyWhenTheBundleWasAltered(t *testing.T) {
	l := sampleLog(20)
	key := trailPub(t, l)
	data := "data-000000.jsonl"
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		kind  string
		want  string // of the line
	}{
		{"a field", func(t *testing.T, dir string) {
			replace(t, filepath.Join(dir, data), `"address":"203.0.113.9"`, `"address":"203.0.113.8"`)
		}, "altered", "  altered  event 0 (" + eventID(0) + "): address was altered"},
		{"an event taken out", func(t *testing.T, dir string) {
			raw, err := os.ReadFile(filepath.Join(dir, data))
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.SplitAfter(string(raw), "\n")
			write(t, filepath.Join(dir, data), strings.Join(slices.Delete(lines, 7, 8), ""), 0o600)
		}, "missing", "  missing  event 7 is not there: deleted from data-000000.jsonl"},
		{"the checkpoint", func(t *testing.T, dir string) {
			other := sampleLog(20)
			other.signer, _ = testSigner(sampleOrigin, "thief")
			write(t, filepath.Join(dir, "checkpoint"), other.checkpoint(20), 0o600)
		}, "signature", "no key that you trust signed the checkpoint"},
		{"a file taken out", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "tree")); err != nil {
				t.Fatal(err)
			}
		}, "missing", "the file tree is not there"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := newExport(t, l)
			test.spoil(t, dir)
			d := verified(t, exitRefused, dir, "--key", key)
			if d.Verified || !slices.ContainsFunc(d.Findings, func(f findingData) bool { return f.Kind == test.kind }) {
				t.Errorf("findings %+v, want one of kind %s", d.Findings, test.kind)
			}
			r := execute(t, nil, nil, "audit", "verify", dir, "--key", key)
			if r.code != exitRefused || !strings.HasPrefix(r.stdout, "NOT VERIFIED: "+dir) || !strings.Contains(r.stdout, test.want) || !strings.Contains(r.stderr, dir+" does not verify: ") {
				t.Errorf("no %q in\n%s%s", test.want, r.stdout, r.stderr)
			}
		})
	}
}

func TestVerifyWhenTheKeyIsAnother(t *testing.T) {
	l := sampleLog(5)
	dir := newExport(t, l)
	_, vkey := testSigner(sampleOrigin, "two")
	other := filepath.Join(t.TempDir(), "other.pub")
	write(t, other, vkey+"\n", 0o600)
	d := verified(t, exitRefused, dir, "--key", other)
	if d.Findings[0].Kind != bundle.Key {
		t.Errorf("%+v", d.Findings)
	}
	r := execute(t, nil, nil, "audit", "verify", dir, "--key-from-bundle")
	if r.code != exitUnproved || !strings.HasPrefix(r.stdout, "self-consistent, not authenticated: "+dir) {
		t.Errorf("%+v", r)
	}
	if d := verified(t, exitUnproved, dir, "--key-from-bundle"); !d.Verified || d.Authenticated {
		t.Errorf("%+v", d)
	}
	replace(t, filepath.Join(dir, "data-000000.jsonl"), "203.0.113.9", "203.0.113.8")
	verified(t, exitRefused, dir, "--key-from-bundle")
}

func TestVerifyWhenUsageIsWrong(t *testing.T) {
	l := sampleLog(5)
	dir, key := newExport(t, l), trailPub(t, l)
	empty := filepath.Join(t.TempDir(), "empty")
	write(t, empty, "# nothing\n", 0o600)
	secret := filepath.Join(t.TempDir(), "admin.token")
	write(t, secret, aSecret+"\n", 0o600)
	proof := filepath.Join(t.TempDir(), "proof.txt")
	write(t, proof, l.prove(2), 0o600)
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"nothing":                   {[]string{"--key", key}, "PATH is missing: name a bundle or a proof; or give --since-checkpoint"},
		"no key":                    {[]string{dir}, "The key inside of a bundle proves nothing"},
		"two keys":                  {[]string{dir, "--key", key, "--key-from-bundle"}, "--key or --key-from-bundle, not both"},
		"a server":                  {[]string{dir, "--key", key, "--server", "https://a.example"}, "is verified without a server"},
		"path and since":            {[]string{dir, "--key", key, "--since-checkpoint", "x"}, "a checkpoint to compare a bundle with is --checkpoint"},
		"whole of a server":         {[]string{"--full", "--whole", "--key", key}, "are for bundles"},
		"witnesses of none":         {[]string{dir, "--key", key, "--witnesses", "1"}, "there must be some"},
		"witness that is none":      {[]string{dir, "--key", key, "--witness", l.keys[0]}, "it is the key of a log"},
		"no such key file":          {[]string{dir, "--key", filepath.Join(dir, "none")}, "reading --key: "},
		"key file without a key":    {[]string{dir, "--key", empty}, "there is none"},
		"key file that is a secret": {[]string{dir, "--key", secret}, "its line 1 is no public key"},
		"witness that is a secret":  {[]string{dir, "--key", key, "--witness", secret}, "its line 1 is no vkey"},
		"no such path":              {[]string{filepath.Join(dir, "none"), "--key", key}, "no such file"},
		"no such kept checkpoint":   {[]string{dir, "--key", key, "--checkpoint", filepath.Join(dir, "none")}, "reading --checkpoint: "},
		"since that is none":        {[]string{"--since-checkpoint", empty, "--key", key}, "a checkpoint has three lines"},
		"key from a proof":          {[]string{proof, "--key-from-bundle"}, "is a proof of one event"},
		"kept checkpoint and proof": {[]string{proof, "--key", key, "--checkpoint", key}, "is a proof of one event"},
		"two paths":                 {[]string{dir, dir, "--key", key}, "accepts at most 1 arg(s)"},
	} {
		r := execute(t, nil, nil, append([]string{"audit", "verify"}, test.args...)...)
		if r.code != exitUsage || !strings.Contains(r.stderr, test.want) || strings.Contains(r.stderr, aSecret) || r.stdout != "" {
			t.Errorf("%s: exit code %d, want %d with %q:\n%s", name, r.code, exitUsage, test.want, r.stderr)
		}
	}
}

func TestVerifyWhenAZipWasMadeByHand(t *testing.T) {
	l := sampleLog(25)
	dir := newExport(t, l, "--action", "keyset.")
	file := filepath.Join(t.TempDir(), "by-hand.zip")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := zip.NewWriter(f)
	err = fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		w, err := z.Create("q1/" + path)
		if err != nil {
			return err
		}
		raw, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			return err
		}
		_, err = w.Write(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(t.TempDir(), "kept.txt")
	write(t, kept, l.checkpoint(25), 0o600)
	if d := verified(t, exitDone, file, "--key", trailPub(t, l), "--checkpoint", kept); d.Checkpoints[0].State != "extended" {
		t.Errorf("%+v", d)
	}
	r := execute(t, nil, nil, "audit", "open-intents", file)
	if r.code != exitDone || !strings.Contains(r.stderr, "ends may be among the events that the filter left out") {
		t.Errorf("%+v", r)
	}
}

// A log that was rewritten by somebody who has its key verifies; only a
// checkpoint that somebody kept shows it.
func TestVerifyWhenACheckpointWasKept(t *testing.T) {
	l := sampleLog(30)
	forged := sampleLog(10)
	for forged.size() < 30 {
		e := forged.sample(forged.size())
		if forged.size() == 12 {
			e.Resource = "keysets/other"
		}
		forged.grow(e)
	}
	dir := t.TempDir()
	keep := func(name string, l *testLog, size int64) string {
		file := filepath.Join(dir, name)
		write(t, file, l.checkpoint(size), 0o600)
		return file
	}
	key := trailPub(t, l)
	whole, shown, hidden := newExport(t, l), newExport(t, l, "--action", "keyset.", "--omitted", "--format", "parquet"), newExport(t, l, "--action", "keyset.")
	late := newExport(t, l, "--since", "2026-11-22T04:00:00Z")
	for _, size := range []int64{1, 7, 16, 29, 30} {
		for name, path := range map[string]string{"whole": whole, "with what is left out": shown} {
			if d := verified(t, exitDone, path, "--key", key, "--checkpoint", keep("k", l, size)); d.Checkpoints[0].State != "extended" {
				t.Errorf("%s, %d: %+v", name, size, d.Checkpoints)
			}
		}
		want, code := "fork", exitRefused
		if size <= 12 {
			want, code = "extended", exitDone
		}
		if d := verified(t, code, whole, "--key", key, "--checkpoint", keep("k", l, 30), "--checkpoint", keep("f", forged, size)); d.Checkpoints[1].State != want || d.Checkpoints[0].State != "extended" {
			t.Errorf("forged at 12, %d: %+v", size, d.Checkpoints)
		}
	}
	// 2, 3, 4 and 5 are of one run of hashes.
	for name, test := range map[string]struct {
		path string
		size int64
	}{"inside of a gap": {hidden, 5}, "before the range": {late, 5}, "after the bundle": {whole, 40}} {
		grown := sampleLog(40)
		d := verified(t, exitUnproved, test.path, "--key", key, "--checkpoint", keep("k", grown, test.size))
		if d.Checkpoints[0].State != "not_comparable" || !d.Verified {
			t.Errorf("%s: %+v", name, d.Checkpoints)
		}
	}
	other := sampleLog(3)
	other.signer, _ = testSigner(sampleOrigin, "thief")
	if d := verified(t, exitRefused, whole, "--key", key, "--checkpoint", keep("k", other, 3)); d.Findings[0].Kind != bundle.Signature {
		t.Errorf("%+v", d.Findings)
	}
}

// cosign adds a witness's signature line, and returns its vkey.
func cosign(signed, name string) (cosigned, vkey string) {
	seed := sha256.Sum256([]byte(name))
	private := ed25519.NewKeyFromSeed(seed[:])
	raw := append([]byte{0x04}, private.Public().(ed25519.PublicKey)...)
	sum := sha256.Sum256([]byte(name + "\n" + string(raw)))
	text, _ := cutNote(signed)
	sig := append([]byte{}, sum[:4]...)
	sig = binary.BigEndian.AppendUint64(sig, uint64(testNow.Unix()))
	sig = append(sig, ed25519.Sign(private, []byte(fmt.Sprintf("cosignature/v1\ntime %d\n%s", testNow.Unix(), text)))...)
	return signed + "— " + name + " " + base64.StdEncoding.EncodeToString(sig) + "\n", fmt.Sprintf("%s+%x+%s", name, sum[:4], base64.StdEncoding.EncodeToString(raw))
}

func TestVerifyWhenWitnessesMustHaveCosigned(t *testing.T) {
	l := sampleLog(5)
	key, dir := trailPub(t, l), newExport(t, l)
	signed, one := cosign(l.checkpoint(5), "one.example")
	signed, two := cosign(signed, "two.example")
	_, absent := cosign("x\n\n", "absent.example")
	write(t, filepath.Join(dir, "checkpoint"), signed, 0o600)
	list := filepath.Join(t.TempDir(), "witnesses")
	write(t, list, "# ours\n"+one+"\n"+two+"\n", 0o600)
	for name, test := range map[string]struct {
		code int
		n    int
		args []string
	}{
		"all of a file":     {exitDone, 2, []string{"--witness", list}},
		"two of three":      {exitDone, 2, []string{"--witness", list, "--witness", absent, "--witnesses", "2"}},
		"all of three":      {exitRefused, 2, []string{"--witness", one, "--witness", two, "--witness", absent}},
		"the one who isn't": {exitRefused, 0, []string{"--witness", absent}},
	} {
		d := verified(t, test.code, append([]string{dir, "--key", key}, test.args...)...)
		if d.Witnesses != test.n || (test.code == exitRefused) != (len(d.Findings) == 1 && d.Findings[0].Kind == "witness") {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestVerifyWhenItIsAProof(t *testing.T) {
	l := sampleLog(20)
	key := trailPub(t, l)
	file := filepath.Join(t.TempDir(), "proof.txt")
	write(t, file, l.prove(2), 0o600)
	r := execute(t, nil, nil, "audit", "verify", file, "--key", key)
	golden(t, "audit-verify-proof", strings.ReplaceAll(r.stdout, file, "proof.txt"))
	if r.code != exitDone {
		t.Errorf("%+v", r)
	}
	other := sampleLog(20)
	other.records[2].Reason = "scope"
	write(t, file, other.prove(2), 0o600)
	r = execute(t, nil, nil, "audit", "verify", file, "--key", key)
	if r.code != exitRefused || !strings.Contains(r.stdout, "  altered  event 2 ("+eventID(2)+"): reason was altered") {
		t.Errorf("%+v", r)
	}
	r = execute(t, nil, nil, "audit", "verify", file, "--key", key, "-o", "json")
	if r.code != exitRefused || !strings.Contains(r.stdout, `"verified": false`) {
		t.Errorf("%+v", r)
	}
	_, vkey := testSigner(sampleOrigin, "two")
	old := filepath.Join(t.TempDir(), "old.pub")
	write(t, old, vkey+"\n", 0o600)
	r = execute(t, nil, nil, "audit", "verify", file, "--key", old)
	if r.code != exitRefused || !strings.Contains(r.stderr, "save all keys, with `rotunda audit key --all`") {
		t.Errorf("%+v", r)
	}
}

func TestVerifyOutputWhenThereIsMuchToSay(t *testing.T) {
	l := sampleLog(40)
	l.pruned = 4
	declares := l.sample(40)
	declares.Action, declares.Outcome, declares.Intent, declares.Detail = bundle.PruneAction, "ok", "", `{"begin":0,"end":4}`
	l.grow(declares)
	key := trailPub(t, l)
	dir := newExport(t, l, "--partner", "acme")
	write(t, filepath.Join(dir, "notes.txt"), "x", 0o600)
	kept := filepath.Join(t.TempDir(), "kept.txt")
	write(t, kept, l.checkpoint(41), 0o600)
	r := execute(t, nil, nil, "audit", "verify", dir, "--key", key, "--checkpoint", kept)
	if r.code != exitDone {
		t.Fatalf("%+v", r)
	}
	golden(t, "audit-verify", strings.NewReplacer(dir, "q1", kept, "kept.txt").Replace(r.stdout))
	replace(t, filepath.Join(dir, "data-000000.jsonl"), `"partner":"acme"`, `"partner":"acne"`)
	r = execute(t, nil, nil, "audit", "verify", dir, "--key", key)
	golden(t, "audit-verify-altered", strings.ReplaceAll(r.stdout+"--- stderr\n"+r.stderr, dir, "q1"))
}
