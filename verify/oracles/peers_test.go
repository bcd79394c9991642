package oracles

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	remitly "github.com/remitly-oss/httpsig-go"
	"github.com/remitly-oss/httpsig-go/keyman"
	"github.com/yaronf/httpsign"

	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

const label = "sig1"

// keyPair is a key of RFC 9421 appendix B.1 in the forms the peers want.
type keyPair struct {
	alg            httpsig.Algorithm
	id             string
	secret         []byte
	private        crypto.Signer
	privPEM        string
	pubPEM         string
	sign, verifies *httpsig.Key
}

func newKeyPair(t testing.TB, id string) keyPair {
	t.Helper()
	k := keyPair{id: id}
	var err error
	if id == "test-shared-secret" {
		if k.secret, err = base64.StdEncoding.DecodeString(strings.TrimSpace(readTestdata(t, id))); err != nil {
			t.Fatal(err)
		}
		if k.sign, err = httpsig.NewHMACKey(k.secret); err != nil {
			t.Fatal(err)
		}
		k.verifies, k.alg = k.sign, k.sign.Algorithm()
		return k
	}
	block, _ := pem.Decode([]byte(readTestdata(t, id+".key")))
	if block == nil {
		t.Fatalf("%s.key is not PEM", id)
	}
	var private any
	switch {
	case strings.Contains(block.Type, "EC "):
		private, err = x509.ParseECPrivateKey(block.Bytes)
	case id == "test-key-rsa-pss":
		var pkcs8 struct {
			Version    int
			Algorithm  pkix.AlgorithmIdentifier
			PrivateKey []byte
		}
		if _, err = asn1.Unmarshal(block.Bytes, &pkcs8); err == nil {
			private, err = x509.ParsePKCS1PrivateKey(pkcs8.PrivateKey)
		}
	default:
		private, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		t.Fatal(err)
	}
	k.private = private.(crypto.Signer)
	k.privPEM, k.pubPEM = readTestdata(t, id+".key"), readTestdata(t, id+".pub")
	if k.sign, err = httpsig.NewPrivateKey(k.private); err != nil {
		t.Fatal(err)
	}
	if k.verifies, err = httpsig.NewPublicKey(k.private.Public()); err != nil {
		t.Fatal(err)
	}
	k.alg = k.sign.Algorithm()
	return k
}

func readTestdata(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "httpsig", "testdata", "rfc9421", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// peer is somebody else's implementation of RFC 9421. A refusal is an error.
type peer struct {
	name   string
	algs   []httpsig.Algorithm
	sign   func(t testing.TB, r *http.Request, k keyPair, components []string) error
	verify func(t testing.TB, r *http.Request, k keyPair) error
}

func peers(node *node) []peer {
	all := []httpsig.Algorithm{httpsig.HMACSHA256, httpsig.Ed25519, httpsig.ECDSAP256, httpsig.RSAPSS512}
	return []peer{
		{"yaronf/httpsign", all, yaronfSign, yaronfVerify},
		{"remitly-oss/httpsig-go", all, remitlySign, remitlyVerify},
		{"http-message-signatures", all, node.sign, node.verify},
	}
}

func yaronfSign(_ testing.TB, r *http.Request, k keyPair, components []string) error {
	fields := httpsign.NewFields()
	for _, c := range components {
		if name, ok := strings.CutPrefix(c, `@query-param;name="`); ok {
			fields.AddQueryParam(strings.TrimSuffix(name, `"`))
		} else {
			fields.AddHeader(c)
		}
	}
	config := httpsign.NewSignConfig().SetKeyID(k.id).SetNonce(newNonce()).SignAlg(false)
	var s *httpsign.Signer
	var err error
	switch key := k.private.(type) {
	case nil:
		s, err = httpsign.NewHMACSHA256Signer(k.secret, config, *fields)
	case ed25519.PrivateKey:
		s, err = httpsign.NewEd25519Signer(key, config, *fields)
	case *ecdsa.PrivateKey:
		s, err = httpsign.NewP256Signer(*key, config, *fields)
	case *rsa.PrivateKey:
		s, err = httpsign.NewRSAPSSSigner(*key, config, *fields)
	}
	if err != nil {
		return err
	}
	input, signature, err := httpsign.SignRequest(label, *s, r)
	if err != nil {
		return err
	}
	r.Header.Set("Signature-Input", input)
	r.Header.Set("Signature", signature)
	return nil
}

func yaronfVerifier(k keyPair) (*httpsign.Verifier, error) {
	config := httpsign.NewVerifyConfig().SetNotOlderThan(5 * time.Minute).SetKeyID(k.id)
	fields := *httpsign.NewFields()
	switch key := k.private.(type) {
	case nil:
		return httpsign.NewHMACSHA256Verifier(k.secret, config, fields)
	case ed25519.PrivateKey:
		return httpsign.NewEd25519Verifier(key.Public().(ed25519.PublicKey), config, fields)
	case *ecdsa.PrivateKey:
		return httpsign.NewP256Verifier(key.PublicKey, config, fields)
	case *rsa.PrivateKey:
		return httpsign.NewRSAPSSVerifier(key.PublicKey, config, fields)
	}
	return nil, errors.New("no such key")
}

func yaronfVerify(_ testing.TB, r *http.Request, k keyPair) error {
	v, err := yaronfVerifier(k)
	if err != nil {
		return err
	}
	return httpsign.VerifyRequest(label, *v, r)
}

func remitlySign(_ testing.TB, r *http.Request, k keyPair, components []string) error {
	var fields []remitly.SignedField
	for _, c := range components {
		if name, ok := strings.CutPrefix(c, `@query-param;name="`); ok {
			fields = append(fields, remitly.SignedField{Name: "@query-param", Parameters: map[string]any{"name": strings.TrimSuffix(name, `"`)}})
		} else {
			fields = append(fields, remitly.Fields(c)...)
		}
	}
	profile := remitly.SigningProfile{
		Algorithm: remitly.Algorithm(k.alg), Fields: fields, Label: label, Nonce: remitly.NonceRandom32,
		Metadata: []remitly.Metadata{remitly.MetaCreated, remitly.MetaKeyID, remitly.MetaNonce},
	}
	key := remitly.SigningKey{Secret: k.secret, MetaKeyID: k.id}
	if k.private != nil {
		key.Key = k.private
	}
	return remitly.Sign(r, profile, key)
}

func remitlyVerify(_ testing.TB, r *http.Request, k keyPair) error {
	spec := remitly.KeySpec{KeyID: k.id, Algo: remitly.Algorithm(k.alg), Secret: k.secret}
	if k.private != nil {
		spec.PubKey = k.private.Public()
	}
	_, err := remitly.Verify(r, keyman.NewKeyFetchInMemory(map[string]remitly.KeySpec{k.id: spec}), remitly.VerifyProfile{
		SignatureLabel: label, AllowedAlgorithms: []remitly.Algorithm{remitly.Algorithm(k.alg)}, CreatedValidDuration: 5 * time.Minute,
	})
	return err
}

// node is the process that runs oracle.mjs.
type node struct {
	in  io.Writer
	out *bufio.Reader
}

func newNode(t testing.TB) *node {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // t.Context ends before the clean-up
	t.Cleanup(cancel)
	if _, err := os.Stat(filepath.Join("node_modules", ".package-lock.json")); err != nil {
		t.Fatalf("the npm packages are not installed: run verify/oracles/setup.sh: %v", err)
	}
	cmd := exec.CommandContext(ctx, "node", "oracle.mjs")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
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
	t.Cleanup(func() {
		in.Close() // its loop ends with its input
		if err := cmd.Wait(); err != nil {
			t.Errorf("node: %v: %s", err, stderr.String())
		}
	})
	return &node{in: in, out: bufio.NewReader(out)}
}

// ask sends a request and decodes its result, or returns the library's refusal.
func (n *node) ask(t testing.TB, request map[string]any, result any) error {
	t.Helper()
	line, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.in.Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
	if line, err = n.out.ReadBytes('\n'); err != nil {
		t.Fatalf("node ended: %v", err)
	}
	var answer struct {
		Result  json.RawMessage
		Refused string
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	if answer.Refused != "" {
		return errors.New(answer.Refused)
	}
	if err := json.Unmarshal(answer.Result, result); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return nil
}

func (n *node) key(k keyPair, private bool) string {
	switch {
	case k.secret != nil:
		return base64.StdEncoding.EncodeToString(k.secret)
	case private:
		return k.privPEM
	}
	return k.pubPEM
}

func nodeMessage(r *http.Request) map[string]any {
	headers := map[string]string{}
	for name, lines := range r.Header {
		headers[name] = strings.Join(lines, ", ")
	}
	return map[string]any{"method": r.Method, "url": r.URL.String(), "headers": headers}
}

func (n *node) sign(t testing.TB, r *http.Request, k keyPair, components []string) error {
	t.Helper()
	var headers map[string]string
	err := n.ask(t, map[string]any{
		"op": "sign", "message": nodeMessage(r), "alg": k.alg, "key": n.key(k, true), "keyid": k.id, "fields": components, "label": label,
		"params": []string{"created", "keyid", "nonce"}, "created": time.Now().Unix(), "nonce": newNonce(),
	}, &headers)
	if err != nil {
		return err
	}
	r.Header.Set("Signature-Input", headers["Signature-Input"])
	r.Header.Set("Signature", headers["Signature"])
	return nil
}

func (n *node) verify(t testing.TB, r *http.Request, k keyPair) error {
	t.Helper()
	var ok bool
	return n.ask(t, map[string]any{"op": "verify", "message": nodeMessage(r), "alg": k.alg, "key": n.key(k, false), "keyid": k.id}, &ok)
}

func newNonce() string { return rand.Text() }
