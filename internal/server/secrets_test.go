package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

func newP256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newJWK(t testing.TB, public bool) []byte {
	t.Helper()
	k := jose.JSONWebKey{Key: newP256(t), Algorithm: "ES256", Use: "sig"}
	if public {
		k = k.Public()
	}
	raw, err := k.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// recorder keeps every body and header that comes back.
type recorder struct {
	next http.RoundTripper
	mu   sync.Mutex
	b    bytes.Buffer
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := r.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := res.Header.Write(&r.b); err != nil {
		return nil, err
	}
	body := res.Body
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.TeeReader(body, writer(func(p []byte) (int, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.b.Write(p)
	})), body}
	return res, nil
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

// forms are the ways in which bytes may be spelled.
func forms(b []byte) map[string]string {
	return map[string]string{
		"raw": string(b), "hex": hex.EncodeToString(b), "base64": base64.RawStdEncoding.EncodeToString(b), "base64url": base64.RawURLEncoding.EncodeToString(b),
	}
}

// Promise: no secret reaches a log, an error, an event or a metric; a token's
// value and a JWT are in the one response that is asked for them.
func TestSecretsWhenEveryMethodIsCalled(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		ctx := t.Context()
		rec := &recorder{next: as(b.admin, home).Transport}
		hc := &http.Client{Transport: rec}
		opts := connect.WithClientOptions(connect.WithProtoJSON(), connect.WithAcceptCompression("gzip", nil, nil))
		keysets := v1connect.NewKeysetServiceClient(hc, b.http.URL, opts)
		tokens := v1connect.NewTokenServiceClient(hc, b.http.URL, opts)
		trail := v1connect.NewAuditServiceClient(hc, b.http.URL, opts)

		// What is searched for, and how often a response may hold it.
		secrets, shown := map[string]string{"admin token": b.admin, "its secret": secretOf(b.admin)}, map[string]int{}
		must := func(what string, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		refused := func(what string, err error) {
			t.Helper()
			if err == nil {
				t.Fatalf("%s was accepted", what)
			}
		}

		policy := &rotundav1.Policy{TokenTtl: durationpb.New(time.Minute)}
		_, err := keysets.CreateKeyset(ctx, withKey(&rotundav1.CreateKeysetRequest{Name: "a", Issuer: "https://a.example", Policy: policy}, "k"))
		must("create", err)
		_, err = keysets.CreateKeyset(ctx, connect.NewRequest(&rotundav1.CreateKeysetRequest{Name: "a", Issuer: "https://a.example", Policy: policy}))
		refused("a second keyset of the name", err)

		made, err := tokens.CreateToken(ctx, withKey(&rotundav1.CreateTokenRequest{Name: "made", Role: rotundav1.Role_ROLE_SIGNER}, "k"))
		must("create token", err)
		value := made.Msg.GetValue()
		secrets["made token"], secrets["secret of made token"] = value, secretOf(value)
		shown["made token"], shown["secret of made token"] = 1, 1
		_, err = tokens.CreateToken(ctx, withKey(&rotundav1.CreateTokenRequest{Name: "made", Role: rotundav1.Role_ROLE_SIGNER}, "k"))
		refused("a token shown twice", err)
		_, err = b.keysets(value).ListKeys(ctx, connect.NewRequest(&rotundav1.ListKeysRequest{Name: "a"}))
		refused("a signer that reads", err)
		_, err = b.keysets(value[:len(value)-1]+"!").ListKeys(ctx, connect.NewRequest(&rotundav1.ListKeysRequest{Name: "a"}))
		refused("a damaged token", err)

		signed, err := keysets.Sign(ctx, connect.NewRequest(&rotundav1.SignRequest{Name: "a", Claims: `{"sub":"claim-of-a-person"}`}))
		must("sign", err)
		secrets["JWT"], shown["JWT"] = signed.Msg.GetToken(), 1
		secrets["signature"], shown["signature"] = signed.Msg.GetToken()[strings.LastIndex(signed.Msg.GetToken(), ".")+1:], 1
		secrets["claims"] = "claim-of-a-person"
		_, err = keysets.Sign(ctx, connect.NewRequest(&rotundav1.SignRequest{Name: "a", Claims: `{"sub":"claim-of-a-person","iat":1}`}))
		refused("claims with iat", err)

		active, inPEM := newP256(t), newP256(t)
		for name, k := range map[string]*ecdsa.PrivateKey{"imported": active, "imported as PEM": inPEM} {
			d, err := k.Bytes()
			must("encode", err)
			for form, s := range forms(d) {
				secrets[name+" "+form] = s
			}
		}
		jwk, err := jose.JSONWebKey{Key: active, Algorithm: "ES256", KeyID: "old"}.MarshalJSON()
		must("encode", err)
		_, err = keysets.ImportKey(ctx, withKey(&rotundav1.ImportKeyRequest{Name: "a", Key: jwk, State: rotundav1.KeyState_KEY_STATE_ACTIVE, MaxTokenLife: durationpb.New(time.Minute), Reason: "moved"}, "k2"))
		must("import a JWK", err)
		pkcs8, err := x509.MarshalPKCS8PrivateKey(inPEM)
		must("encode", err)
		whole := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
		for i, line := range strings.Split(strings.TrimSpace(string(whole)), "\n") {
			if !strings.HasPrefix(line, "-----") {
				secrets["PEM line "+string(rune('0'+i))] = line
			}
		}
		bring := func(key []byte) error {
			_, err := keysets.ImportKey(ctx, connect.NewRequest(&rotundav1.ImportKeyRequest{Name: "a", Key: bytes.Clone(key), State: rotundav1.KeyState_KEY_STATE_RETIRING, MaxTokenLife: durationpb.New(time.Minute)}))
			return err
		}
		must("import PEM", bring(whole))
		refused("the same key again", bring(whole))
		refused("half a PEM", bring(whole[:len(whole)/2]))
		refused("half a JWK", bring(jwk[:len(jwk)-5]))
		refused("a JWK with a wrong member", bring(bytes.Replace(jwk, []byte(`"kty":"EC"`), []byte(`"kty":"RSA"`), 1)))
		refused("a JWK of another curve", bring(bytes.Replace(jwk, []byte(`"crv":"P-256"`), []byte(`"crv":"P-384"`), 1)))

		got, err := keysets.GetKeyset(ctx, connect.NewRequest(&rotundav1.GetKeysetRequest{Name: "a"}))
		must("get", err)
		_, err = keysets.ListKeysets(ctx, connect.NewRequest(&rotundav1.ListKeysetsRequest{}))
		must("list", err)
		_, err = keysets.ListKeys(ctx, connect.NewRequest(&rotundav1.ListKeysRequest{Name: "a"}))
		must("list keys", err)
		_, err = keysets.ListProfiles(ctx, connect.NewRequest(&rotundav1.ListProfilesRequest{}))
		must("list profiles", err)
		_, err = keysets.UpdatePolicy(ctx, connect.NewRequest(&rotundav1.UpdatePolicyRequest{Name: "a", Policy: policy, PolicyVersion: got.Msg.GetKeyset().GetPolicyVersion()}))
		must("update the policy", err)
		// The private halves that are about to be destroyed, too.
		privateHalves(t, b, secrets)
		_, err = keysets.RotateKeyset(ctx, connect.NewRequest(&rotundav1.RotateKeysetRequest{Name: "a"}))
		refused("a rotation before its lead", err)
		_, err = keysets.RotateKeyset(ctx, connect.NewRequest(&rotundav1.RotateKeysetRequest{Name: "a", OverrideLead: true, Reason: "test"}))
		must("rotate", err)
		for _, dry := range []bool{true, false} {
			_, err = keysets.RevokeKey(ctx, connect.NewRequest(&rotundav1.RevokeKeyRequest{Name: "a", Kid: signed.Msg.GetKid(), Mode: rotundav1.RevokeMode_REVOKE_MODE_FRESH, Reason: "key_compromise", DryRun: dry}))
			must("revoke", err)
		}
		privateHalves(t, b, secrets)
		_, err = keysets.ListHistory(ctx, connect.NewRequest(&rotundav1.ListHistoryRequest{Name: "a"}))
		must("history", err)
		stream, err := keysets.Watch(ctx, connect.NewRequest(&rotundav1.WatchRequest{Name: "a"}))
		must("watch", err)
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
		_ = stream.Close() // which ends the stream by cutting it
		_, err = tokens.ListTokens(ctx, connect.NewRequest(&rotundav1.ListTokensRequest{}))
		must("list tokens", err)
		_, err = tokens.WhoAmI(ctx, connect.NewRequest(&rotundav1.WhoAmIRequest{}))
		must("who am I", err)
		_, err = tokens.RevokeToken(ctx, connect.NewRequest(&rotundav1.RevokeTokenRequest{Id: made.Msg.GetToken().GetId()}))
		must("revoke token", err)
		_, err = b.keysets(value).Sign(ctx, connect.NewRequest(&rotundav1.SignRequest{Name: "a"}))
		refused("a revoked token", err)
		partnerSecrets(t, b, hc, opts, secrets, shown)
		rotationSecrets(t, b, hc, opts, secrets, shown)
		placeSecrets(t, b, v1connect.NewTrailServiceClient(hc, b.http.URL, opts), secrets)
		b.sequence(t)
		privateKeyOfTrail(t, b, secrets)
		_, err = trail.GetTrailStatus(ctx, connect.NewRequest(&rotundav1.GetTrailStatusRequest{}))
		must("get the trail's status", err)
		export, err := trail.ExportEvents(ctx, connect.NewRequest(&rotundav1.ExportEventsRequest{}))
		must("export", err)
		for export.Receive() {
		}
		must("export", export.Err())
		must("end the export", export.Close())
		rec.add(b.get(t, b.admin, home, "/trail/export?format=csv").body)
		rec.add(b.get(t, b.admin, home, "/trail/tile/entries/000.p/5").body)
		if _, err := b.Keysets.Pass(ctx, b.clock.Now()); err != nil {
			t.Fatal(err)
		}
		if err := b.Denials.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		_, err = trail.ListEvents(ctx, connect.NewRequest(&rotundav1.ListEventsRequest{PageSize: 1000}))
		must("list events", err)

		for _, gen := range []string{"0", "1", "2"} { // the root, too
			pepper := b.open(t, secret.Place{Table: "peppers", Row: gen, Column: "sealed"}, `SELECT sealed FROM peppers WHERE gen = `+gen)
			for form, s := range forms(pepper[0]) {
				secrets["pepper "+gen+" "+form] = s
			}
		}
		if len(secrets) < 40 {
			t.Fatalf("only %d secrets are searched for", len(secrets))
		}
		events, err := json.Marshal(b.events(t, audit.Query{}))
		must("encode the trail", err)
		metrics := b.get(t, b.admin, home, "/metrics").body
		document := b.get(t, "", home, "/keysets/a/jwks.json").body
		if !strings.Contains(metrics, `rotunda_tokens_signed_total{fallback="no",keyset="a"} 1`) || !strings.Contains(string(events), "token.create") {
			t.Fatalf("the run left no traces to search: %s", metrics)
		}
		responses := rec.String()
		for name, s := range secrets {
			if len(s) < 16 {
				t.Fatalf("%s is too short to be searched for", name)
			}
			for where, text := range map[string]string{"log": b.log.String(), "trail": string(events), "metrics": metrics, "document": document} {
				if strings.Contains(text, s) {
					t.Errorf("%s is in the %s", name, where)
				}
			}
			if n := strings.Count(responses, s); n != shown[name] {
				t.Errorf("%s is in the responses %d times, want %d", name, n, shown[name])
			}
		}
	})
}

func (r *recorder) add(body string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.b.WriteString(body)
}

// placeSecrets gives secrets to sinks and anchors, those that are refused too.
func placeSecrets(t testing.TB, b *bed, client v1connect.TrailServiceClient, secrets map[string]string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(newP256(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sink", "refused sink", "sink of a bad name", "anchor", "second anchor"} {
		secrets["token of "+name] = "place-" + rand.Text()
	}
	clientKey := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	for i, line := range strings.Split(strings.TrimSpace(clientKey), "\n") {
		if !strings.HasPrefix(line, "-----") {
			secrets["client key line "+string(rune('0'+i))] = line
		}
	}
	sink := func(name, kind, from string) error {
		return errOf(client.CreateSink(t.Context(), connect.NewRequest(&rotundav1.CreateSinkRequest{
			Sink: &rotundav1.Sink{Name: name, Kind: kind, Address: "https://siem.test"}, Secret: secrets["token of "+from], ClientKey: clientKey,
		})))
	}
	anchor := func(name, from string) error {
		return errOf(client.CreateAnchor(t.Context(), connect.NewRequest(&rotundav1.CreateAnchorRequest{
			Anchor: &rotundav1.Anchor{Name: name, Kind: "webhook", AccessKey: "an-identifier"}, Secret: secrets["token of "+from],
		})))
	}
	for what, err := range map[string]error{"sink": sink("siem", "https", "sink"), "anchor": anchor("hook", "anchor")} {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for what, err := range map[string]error{"sink": sink("other", "", "refused sink"), "named sink": sink("a/b", "https", "sink of a bad name"), "anchor": anchor("hook", "second anchor")} {
		if err == nil {
			t.Fatalf("a wrong %s was accepted", what)
		}
	}
	// Values of a field that are too long are refused before they are looked at.
	long := strings.Repeat(secrets["token of sink"], 400)
	if err := errOf(client.CreateSink(t.Context(), connect.NewRequest(&rotundav1.CreateSinkRequest{Sink: &rotundav1.Sink{Name: "x"}, Secret: long}))); err == nil {
		t.Fatal("a secret of 12 kB was accepted")
	}
	sinks, err := client.ListSinks(t.Context(), connect.NewRequest(&rotundav1.ListSinksRequest{}))
	if err != nil || len(sinks.Msg.GetSinks()) != 1 || !sinks.Msg.GetSinks()[0].GetHasSecret() || sinks.Msg.GetSinks()[0].GetState() != "unknown" {
		t.Fatalf("sinks %v, %v", sinks, err)
	}
	anchors, err := client.ListAnchors(t.Context(), connect.NewRequest(&rotundav1.ListAnchorsRequest{}))
	if err != nil || len(anchors.Msg.GetAnchors()) != 1 || !anchors.Msg.GetAnchors()[0].GetHasSecret() {
		t.Fatalf("anchors %v, %v", anchors, err)
	}
	for what, err := range map[string]error{
		"rotate": errOf(client.RotateTrailKey(t.Context(), connect.NewRequest(&rotundav1.RotateTrailKeyRequest{Reason: "test"}))),
		"delete": errOf(client.DeleteSink(t.Context(), connect.NewRequest(&rotundav1.DeleteSinkRequest{Name: "siem"}))),
	} {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// privateKeyOfTrail adds the key that signs checkpoints to what is searched for.
func privateKeyOfTrail(t testing.TB, b *bed, secrets map[string]string) {
	t.Helper()
	keys, _, err := b.Trail.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := strings.Split(keys[len(keys)-1], "+")[1]
	skey := string(b.open(t, secret.Place{Table: "trail_keys", Row: id, Column: "private"}, `SELECT private FROM trail_keys WHERE id = '`+id+`'`)[0])
	secrets["key of the trail"] = strings.SplitN(skey, "+", 5)[4]
}

func secretOf(token string) string { return token[strings.LastIndex(token, "_")+1:] }

// open unseals what a query gives, as only a process with the key file can.
func (b *bed) open(t testing.TB, p secret.Place, query string) [][]byte {
	t.Helper()
	var out [][]byte
	err := b.db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		var sealed []byte
		if err := tx.QueryRow(ctx, query).Scan(&sealed); err != nil {
			return err
		}
		v, err := b.sealer.Open(ctx, p, sealed)
		if err != nil {
			return err
		}
		out = append(out, v.Reveal())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// privateHalves adds the private halves of all keys to what is searched for.
func privateHalves(t testing.TB, b *bed, secrets map[string]string) {
	t.Helper()
	type row struct{ keyset, kid string }
	var rows []row
	err := b.db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		rows = nil
		list, err := tx.Query(ctx, `SELECT keyset_id, kid FROM signing_keys WHERE private IS NOT NULL`)
		if err != nil {
			return err
		}
		defer list.Close()
		for list.Next() {
			var r row
			if err := list.Scan(&r.keyset, &r.kid); err != nil {
				return err
			}
			rows = append(rows, r)
		}
		return list.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) == 0 {
		t.Fatal("no key has a private half")
	}
	for _, r := range rows {
		der := b.open(t, secret.Place{Table: "signing_keys", Row: r.keyset + "/" + r.kid, Column: "private"}, `SELECT private FROM signing_keys WHERE kid = '`+r.kid+`'`)[0]
		key, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			t.Fatal(err)
		}
		d, err := key.(*ecdsa.PrivateKey).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		for form, s := range forms(d) {
			secrets[r.kid+" "+form] = s
		}
		for form, s := range forms(der) {
			secrets[r.kid+" PKCS #8 "+form] = s
		}
	}
}
