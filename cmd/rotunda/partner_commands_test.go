package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func TestPartnerRequestWhenFlagsAreGiven(t *testing.T) {
	pem := filepath.Join(t.TempDir(), "pub.pem")
	write(t, pem, "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n", 0o644)
	public := "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"
	rate := func(quota int64, window time.Duration, burst int64) *v1.RateLimit {
		return &v1.RateLimit{Quota: quota, Window: dur(window), Burst: burst}
	}
	p, k := acme(), ciKey()
	for _, test := range []struct {
		name string
		args []string
		want proto.Message
	}{
		{"create with the tour's", []string{"partner", "create", "acme", "--scope", "orders:read", "--scope", "orders:write", "--max-key-ttl", "8760h"},
			&v1.CreatePartnerRequest{Name: "acme", Scopes: []string{"orders:read", "orders:write"}, MaxKeyTtl: dur(8760 * time.Hour)}},
		{"create with all", []string{"partner", "create", "acme", "--scope", "a", "--publishable-scope", "a", "--max-keys", "7", "--max-key-ttl", "1d", "--metadata", "k=v=w", "--metadata", "l=m",
			"--signing-component", "@query", "--signing-component", "content-digest", "--signing-max-age", "1m", "--signing-skew", "0", "--signing-tag", "t"},
			&v1.CreatePartnerRequest{Name: "acme", Scopes: []string{"a"}, PublishableScopes: []string{"a"}, MaxKeys: 7, MaxKeyTtl: dur(day), Metadata: map[string]string{"k": "v=w", "l": "m"},
				SigningPolicy: &v1.SigningPolicy{Components: []string{"@query", "content-digest"}, MaxAge: dur(time.Minute), Skew: dur(0), Tag: "t"}}},
		{"update one thing", []string{"partner", "update", "acme", "--max-keys", "5"},
			&v1.UpdatePartnerRequest{Partner: "acme", Version: 3, Scopes: p.Scopes, PublishableScopes: p.PublishableScopes, MaxKeys: 5, MaxKeyTtl: p.MaxKeyTtl, SigningPolicy: p.SigningPolicy, Metadata: p.Metadata}},
		{"update the lists", []string{"partner", "update", "acme", "--add-scope", "x", "--add-scope", "orders:read", "--remove-scope", "orders:write", "--publishable-scope", "none", "--no-max-key-ttl", "--signing-tag", "", "--metadata", "crm=", "--metadata", "new=1"},
			&v1.UpdatePartnerRequest{Partner: "acme", Version: 3, Scopes: []string{"orders:read", "x"}, MaxKeys: 1000, SigningPolicy: &v1.SigningPolicy{MaxAge: dur(time.Minute)}, Metadata: map[string]string{"tier": "gold", "new": "1"}}},
		{"get oneself", []string{"partner", "get"}, &v1.GetPartnerRequest{}},
		{"suspend", []string{"partner", "suspend", "acme", "--reason", "r"}, &v1.SuspendPartnerRequest{Partner: "acme", Reason: "r"}},
		{"resume", []string{"partner", "resume", "acme", "--reason", "r"}, &v1.ResumePartnerRequest{Partner: "acme", Reason: "r"}},

		{"key create with the tour's", []string{"key", "create", "--name", "ci", "--scope", "orders:read", "--expires-in", "2160h", "--cidr", "203.0.113.0/24", "--rate", "100/s"},
			&v1.CreateApiKeyRequest{Name: "ci", Scopes: []string{"orders:read"}, ExpiresIn: dur(2160 * time.Hour), Cidrs: []string{"203.0.113.0/24"}, RateLimit: rate(100, time.Second, 0)}},
		{"key create with all", []string{"key", "create", "--name", "web", "--class", "publishable", "--env", "test", "--rate", "1000/24h", "--burst", "50", "--metadata", "k=v", "--partner", "acme", "--cidr", "::/0"},
			&v1.CreateApiKeyRequest{Partner: "acme", Name: "web", Environment: "test", Class: v1.KeyClass_KEY_CLASS_PUBLISHABLE, RateLimit: rate(1000, day, 50), Metadata: map[string]string{"k": "v"}, Cidrs: []string{"::/0"}}},
		{"key list", []string{"key", "list", "--partner", "acme", "--ended", "--limit", "7"}, &v1.ListApiKeysRequest{Partner: "acme", Ended: true, PageSize: 7}},
		{"key get", []string{"key", "get", keyID, "--partner", "acme"}, &v1.GetApiKeyRequest{Partner: "acme", Id: keyID}},
		{"key update", []string{"key", "update", keyID, "--burst", "300", "--remove-cidr", "2001:db8::/32", "--name", "n"},
			&v1.UpdateApiKeyRequest{Id: keyID, Version: 5, Name: "n", Scopes: k.Scopes, Cidrs: k.Cidrs[:1], RateLimit: rate(100, time.Second, 300), Metadata: k.Metadata}},
		{"key update takes the rate and the metadata away", []string{"key", "update", keyID, "--rate", "none", "--metadata", "none", "--scope", "a", "--scope", "b"},
			&v1.UpdateApiKeyRequest{Id: keyID, Version: 5, Name: "ci", Scopes: []string{"a", "b"}, Cidrs: k.Cidrs}},
		{"key roll", []string{"key", "roll", keyID}, &v1.RollApiKeyRequest{Id: keyID}},
		{"key roll with all", []string{"key", "roll", keyID, "--grace", "0", "--quiet", "24h", "--expires-in", "90d", "--partner", "acme"},
			&v1.RollApiKeyRequest{Partner: "acme", Id: keyID, Grace: dur(0), Quiet: dur(day), ExpiresIn: dur(90 * day)}},
		{"key suspend", []string{"key", "suspend", keyID, "--reason", "r"}, &v1.SuspendApiKeyRequest{Id: keyID, Reason: "r"}},
		{"key resume", []string{"key", "resume", keyID, "--reason", "r"}, &v1.ResumeApiKeyRequest{Id: keyID, Reason: "r"}},
		{"key revoke", []string{"key", "revoke", keyID, "--reason", "key_compromise", "--text", "t"},
			&v1.RevokeApiKeyRequest{Id: keyID, Reason: v1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE, Text: "t"}},

		{"secret create", []string{"secret", "create", "--name", "s", "--scope", "a", "--rate", "5000/m", "--expires-in", "1d", "--env", "test", "--partner", "acme"},
			&v1.CreateRequestSecretRequest{Partner: "acme", Name: "s", Environment: "test", Scopes: []string{"a"}, RateLimit: rate(5000, time.Minute, 0), ExpiresIn: dur(day)}},
		{"secret create with a public key", []string{"secret", "create", "--name", "s", "--public-key", pem}, &v1.CreateRequestSecretRequest{Name: "s", PublicKey: public}},
		{"secret get", []string{"secret", "get", "s"}, &v1.GetRequestSecretRequest{Name: "s"}},
		{"secret list", []string{"secret", "list", "--ended"}, &v1.ListRequestSecretsRequest{Ended: true, PageSize: 200}},
		{"secret roll", []string{"secret", "roll", "s", "--grace", "72h", "--public-key", pem}, &v1.RollRequestSecretRequest{Name: "s", Grace: dur(72 * time.Hour), PublicKey: public}},
		{"secret suspend", []string{"secret", "suspend", secretID}, &v1.SuspendRequestSecretRequest{Id: secretID}},
		{"secret resume", []string{"secret", "resume", secretID}, &v1.ResumeRequestSecretRequest{Id: secretID}},
		{"secret revoke", []string{"secret", "revoke", secretID, "--reason", "superseded"}, &v1.RevokeRequestSecretRequest{Id: secretID, Reason: v1.RevocationReason_REVOCATION_REASON_SUPERSEDED}},

		{"pepper rotate", []string{"pepper", "rotate", "--reason", "r"}, &v1.RotatePepperRequest{Reason: "r"}},
		{"pepper stragglers", []string{"pepper", "stragglers", "2"}, &v1.ListStragglersRequest{Generation: 2, PageSize: 200}},
		{"pepper retire", []string{"pepper", "retire", "2", "--reason", "r"}, &v1.RetirePepperRequest{Generation: 2, Reason: "r"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newService(t)
			r := execute(t, s, nil, test.args...)
			if r.code != exitDone {
				t.Fatalf("exit code %d:\n%s", r.code, r.stderr)
			}
			got, _ := s.last(t)
			if diff := cmp.Diff(test.want, got, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPartnerUsageWhenItIsWrong(t *testing.T) {
	s := newService(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"partner", "create"}, "NAME is missing"},
		{[]string{"partner", "create", "a", "--max-keys", "0"}, "--max-keys 0 must be at least 1"},
		{[]string{"partner", "create", "a", "--max-key-ttl", "0"}, "--max-key-ttl must be longer than 0"},
		{[]string{"partner", "create", "a", "--metadata", "k"}, `"k" is not of the form name=value`},
		{[]string{"partner", "create", "a", "--add-scope", "x"}, "unknown flag: --add-scope"},
		{[]string{"partner", "update", "acme"}, "nothing to change"},
		{[]string{"partner", "update", "acme", "-o", "json"}, "nothing to change"},
		{[]string{"partner", "update", "acme", "--max-key-ttl", "1d", "--no-max-key-ttl"}, "--max-key-ttl or --no-max-key-ttl, not both"},
		{[]string{"token", "create", "--role", "partner"}, "--role partner needs a --partner"},
		{[]string{"token", "create", "n", "--role", "admin", "--partner", "acme"}, "--partner goes with --role partner only"},
		{[]string{"token", "create", "--role", "admin"}, "NAME is missing"},
		{[]string{"key", "create"}, "--name must be given"},
		{[]string{"key", "create", "ci"}, `"ci" is one argument too many`},
		{[]string{"key", "create", "--name", "n", "--rate", "100"}, `"100" is not a rate: write it like 100/s`},
		{[]string{"key", "create", "--name", "n", "--rate", "0/s"}, "outside 1 to 1000000000"},
		{[]string{"key", "create", "--name", "n", "--rate", "1/week"}, "is not a length of time"},
		{[]string{"key", "create", "--name", "n", "--rate", "1/25h"}, "outside 1ms to 24h"},
		{[]string{"key", "create", "--name", "n", "--burst", "5"}, "--burst needs a --rate"},
		{[]string{"key", "create", "--name", "n", "--rate", "1/s", "--burst", "-1"}, "--burst -1 is outside"},
		{[]string{"key", "create", "--name", "n", "--class", "public"}, "it must be one of secret, publishable"},
		{[]string{"key", "update", "k", "--partner", "acme"}, "nothing to change"},
		{[]string{"key", "revoke", "k"}, "--reason must be given"},
		{[]string{"key", "revoke", "k", "--reason", "because"}, "it must be one of unspecified, key_compromise"},
		{[]string{"key", "roll"}, "KEY_ID is missing"},
		{[]string{"key", "import", "f.csv"}, "--from must be given"},
		{[]string{"key", "import", "--from", "md5", "f.csv"}, "it must be one of sha256, raw"},
		{[]string{"key", "verify", "--cost", "0", "k"}, "--cost 0 is outside"},
		{[]string{"key", "verify"}, "KEY is missing: there is nothing on stdin"},
		{[]string{"key", "verify", "k", "l"}, `"l" is one argument too many`},
		{[]string{"key", "verify", strings.Repeat("k", maxKeyText+1)}, "this is no key"},
		{[]string{"secret", "create"}, "--name must be given"},
		{[]string{"secret", "explain"}, "--request must be given"},
		{[]string{"secret", "explain", "--request", "-", "--signer-base", "-"}, "only one of --request and --signer-base"},
		{[]string{"secret", "explain", "--request", "f", "--scheme", "ftp"}, "neither http nor https"},
		{[]string{"pepper", "retire", "one"}, `GENERATION "one" is not a number`},
		{[]string{"pepper", "stragglers", "0"}, `GENERATION "0" is not a number`},
	} {
		r := execute(t, s, nil, test.args...)
		if r.code != exitUsage || !strings.Contains(r.stderr, test.want) || r.stdout != "" {
			t.Errorf("%q: exit code %d, want %d with %q:\n%s", test.args, r.code, exitUsage, test.want, r.stderr)
		}
	}
	for _, call := range s.calls {
		switch call.(type) {
		case *v1.GetPartnerRequest, *v1.GetApiKeyRequest:
		default:
			t.Errorf("wrong usage led to a change: %T", call)
		}
	}
}

func TestUpdateWhenWhatIsRemovedIsNotThere(t *testing.T) {
	s := newService(t)
	r := execute(t, s, nil, "partner", "update", "acme", "--remove-scope", "nope")
	if r.code != exitRefused || !strings.Contains(r.stderr, "--remove-scope nope: it is not there: there is orders:read orders:write, so nothing was changed") || s.count() != 1 {
		t.Errorf("%+v", r)
	}
}

// A value is on stdout, alone, or nowhere.
func TestValueWhenItIsShownOnce(t *testing.T) {
	s := newService(t)
	for _, test := range []struct {
		args  []string
		value string
	}{
		{[]string{"key", "create", "--name", "ci"}, testKey},
		{[]string{"key", "roll", keyID}, testKey},
		{[]string{"secret", "create", "--name", "s"}, testSecret},
		{[]string{"secret", "roll", "s"}, testSecret},
		{[]string{"token", "create", "--role", "partner", "--partner", "acme"}, "rk_live_new-value"},
	} {
		r := execute(t, s, nil, test.args...)
		if r.code != exitDone || r.stdout != test.value+"\n" || strings.Contains(r.stderr, test.value) || !strings.Contains(r.stderr, "this is the only time") {
			t.Errorf("%q: %+v", test.args, r)
		}
	}
	pem := filepath.Join(t.TempDir(), "pub.pem")
	write(t, pem, "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n", 0o644)
	r := execute(t, s, nil, "secret", "create", "--name", "s", "--public-key", pem)
	if r.stdout != secretID+"\n" || strings.Contains(r.stderr, "only time") {
		t.Errorf("a public key: %+v", r)
	}
	for name, content := range map[string]string{"holds a private key": "-----BEGIN PRIVATE KEY-----\nsecret\n", "no PEM block PUBLIC KEY": "-----BEGIN CERTIFICATE-----\n"} {
		write(t, pem, content, 0o600)
		before := s.count()
		r := execute(t, s, nil, "secret", "create", "--name", "s", "--public-key", pem)
		if r.code != exitRefused || !strings.Contains(r.stderr, name) || strings.Contains(r.stderr, "secret\n") || s.count() != before {
			t.Errorf("%+v, want %q and no call", r, name)
		}
	}
}

func TestVerifyWhenKeyComesFromSomewhere(t *testing.T) {
	s := newService(t)
	for name, test := range map[string]struct {
		args  []string
		stdin string
		warns bool
	}{
		"argument":        {[]string{"key", "verify", testKey}, "", true},
		"hyphen":          {[]string{"key", "verify", "-"}, testKey + "\n", false},
		"left out":        {[]string{"key", "verify"}, "  " + testKey + "\r\n", false},
		"without newline": {[]string{"key", "verify"}, testKey, false},
	} {
		r := execute(t, s, func(p *process) { p.stdin = strings.NewReader(test.stdin) }, append(test.args, "--scope", "orders:read", "--address", "203.0.113.9")...)
		if r.code != exitDone || !strings.HasPrefix(r.stdout, "ok\n") {
			t.Errorf("%s: %+v", name, r)
		}
		if strings.Contains(r.stdout+r.stderr, testKey) || strings.Contains(r.stderr, "can be read by everybody") != test.warns {
			t.Errorf("%s: it prints the key, or warns wrongly: %s%s", name, r.stdout, r.stderr)
		}
		got, _ := s.last(t)
		want := &v1.VerifyApiKeyRequest{Key: testKey, Scopes: []string{"orders:read"}, Address: "203.0.113.9", Cost: 1}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	before := s.count()
	for want, change := range map[string]func(*process){
		"give it on stdin": func(p *process) {
			p.typed = true
			p.stdin = readerFunc(func([]byte) (int, error) { panic("it waits for a person") })
		},
		"more than one line":                 func(p *process) { p.stdin = strings.NewReader(testKey + "\n" + testKey) },
		"more than 1024 characters on stdin": func(p *process) { p.stdin = strings.NewReader(strings.Repeat("k", 5000)) },
		"reading the key from stdin: a failure": func(p *process) {
			p.stdin = readerFunc(func([]byte) (int, error) { return 0, errors.New("a failure") })
		},
	} {
		if r := execute(t, s, change, "key", "verify"); r.code == exitDone || !strings.Contains(r.stderr, want) || strings.Contains(r.stderr, testKey) {
			t.Errorf("%+v, want %q", r, want)
		}
	}
	if s.count() != before {
		t.Error("the server was called")
	}
}

func TestKeyWhenAnAdminNamesNoPartner(t *testing.T) {
	s := newService(t)
	s.reply = func(context.Context, proto.Message) (proto.Message, error) {
		return nil, problem(t, connect.CodeInvalidArgument, "name the partner", "partner_missing", "partner", "req-1")
	}
	r := execute(t, s, nil, "key", "get", keyID)
	if want := "rotunda: whose is it? Give --partner: only a partner's own token may leave it out\n  reason partner_missing, field partner, request req-1\n"; r.code != exitRefused || r.stderr != want {
		t.Errorf("%+v, want\n%s", r, want)
	}
}

func TestVerifyWhenDenied(t *testing.T) {
	s := newService(t)
	for number, name := range v1.VerifyReason_name {
		reason := v1.VerifyReason(number)
		if reason == v1.VerifyReason_VERIFY_REASON_OK {
			continue
		}
		s.reply = func(context.Context, proto.Message) (proto.Message, error) {
			return &v1.VerifyApiKeyResponse{Reason: reason}, nil
		}
		r := execute(t, s, nil, "key", "verify", "k")
		word := strings.ToLower(strings.TrimPrefix(name, "VERIFY_REASON_"))
		if r.code != exitRefused || r.stdout != "denied: "+word+"\n" || !strings.Contains(r.stderr, "rotunda: the key is denied ("+word+"): ") {
			t.Errorf("%s: %+v", name, r)
		}
		if r := execute(t, s, nil, "key", "verify", "k", "-o", "json"); r.code != exitRefused || !strings.Contains(r.stdout, "{") {
			t.Errorf("%s as JSON: %+v", name, r)
		}
		if verdicts[reason] == "" && reason != v1.VerifyReason_VERIFY_REASON_UNSPECIFIED {
			t.Errorf("nothing is said about %s", name)
		}
	}
	s.reply = func(context.Context, proto.Message) (proto.Message, error) {
		return &v1.VerifyApiKeyResponse{Reason: v1.VerifyReason_VERIFY_REASON_ADDRESS, Verified: aVerified()}, nil
	}
	for address, want := range map[string]string{"": "give the client's with --address", "203.0.113.9": "it is not accepted from this address"} {
		if r := execute(t, s, nil, "key", "verify", "k", "--address", address); r.code != exitRefused || !strings.Contains(r.stderr, want) || strings.Contains(r.stdout, "left of") {
			t.Errorf("address %q: %+v, want %q", address, r, want)
		}
	}
	s.reply = func(context.Context, proto.Message) (proto.Message, error) {
		v := aVerified()
		v.State, v.GraceEndsAt, v.ReplacedBy = v1.ApiKeyState_API_KEY_STATE_RETIRING, at(time.Hour), oldKeyID
		v.Rate.Remaining, v.Rate.RetryAfter = 0, dur(10*time.Millisecond)
		return &v1.VerifyApiKeyResponse{Reason: v1.VerifyReason_VERIFY_REASON_RATE, Verified: v}, nil
	}
	golden(t, "key-verify-rate", execute(t, s, nil, "key", "verify", "k").stdout)
}

func TestPartnerOutputWhenTextHoldsEscapeSequences(t *testing.T) {
	s := newService(t)
	evil := "\x1b]0;owned\x07\r\u202e\nactive"
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		switch req := req.(type) {
		case *v1.GetPartnerRequest:
			p := acme()
			p.Reason, p.Metadata = evil, map[string]string{evil: evil}
			return &v1.GetPartnerResponse{Partner: p}, nil
		case *v1.GetApiKeyRequest:
			k := oldKey()
			k.Name, k.ReasonText, k.Metadata = evil, evil, map[string]string{"a": evil}
			return &v1.GetApiKeyResponse{Key: k}, nil
		case *v1.ListApiKeysRequest:
			return &v1.ListApiKeysResponse{Keys: []*v1.ApiKey{{Name: evil, ReasonText: evil}}}, nil
		case *v1.CreateApiKeyRequest:
			return &v1.CreateApiKeyResponse{Key: &v1.ApiKey{Name: evil}, Value: evil}, nil
		case *v1.ListStragglersRequest:
			return &v1.ListStragglersResponse{Stragglers: []*v1.Straggler{{Name: evil}}}, nil
		case *v1.VerifyRequestRequest:
			return &v1.VerifyRequestResponse{Explanation: &v1.SignatureExplanation{Message: evil, SignatureBase: evil, Component: evil, ServerLine: evil, SignerLine: evil}}, nil
		case *v1.ImportApiKeysRequest:
			return &v1.ImportApiKeysResponse{Results: []*v1.ImportResult{{Reason: evil, Message: evil}}}, nil
		default:
			return nil, fmt.Errorf("%T", req)
		}
	}
	for stdin, args := range map[string][]string{
		"":                                    {"partner", "get", "acme"},
		" ":                                   {"key", "get", keyID},
		"  ":                                  {"key", "list"},
		"   ":                                 {"key", "create", "--name", "n"},
		"    ":                                {"pepper", "stragglers", "2"},
		"GET / HTTP/1.1\nHost: a.example\n\n": {"secret", "explain", "--request", "-"},
		"value\nx\n":                          {"key", "import", "--partner", "acme", "--from", "raw", "-"},
	} {
		r := execute(t, s, func(p *process) { p.stdin = strings.NewReader(stdin) }, args...)
		for _, bad := range []string{"\x1b", "\x07", "\r", "\u202e"} {
			if strings.Contains(r.stdout+r.stderr, bad) {
				t.Errorf("%q prints %q:\n%s%s", args, bad, r.stdout, r.stderr)
			}
		}
		if !strings.Contains(r.stdout+r.stderr, `\u001b`) {
			t.Errorf("%q hides what it escaped: %+v", args, r)
		}
	}
}

func TestRateWhenParsed(t *testing.T) {
	for text, want := range map[string]string{"100/s": "100/s", "5000/m": "5000/m", "10/h": "10/h", "1000/24h": "1000/d", "7/d": "7/d", "1/1ms": "1/1ms", "3/90s": "3/1m30s", "1000000000/s": "1000000000/s", "none": "none"} {
		r, err := parseRate(text)
		if err != nil || formatRate(r) != want {
			t.Errorf("%s: %v %s, want %s", text, err, formatRate(r), want)
		}
	}
	for _, text := range []string{"", "/", "1", "1/", "/s", "-1/s", "+1/s", "1.5/s", "0/s", "1/0", "1/0s", "1/-1s", "1/1us", "1/25h", "1/s/s", "1000000001/s", "9223372036854775808/s", "1/ s", "1 /s", "x/s"} {
		if r, err := parseRate(text); err == nil {
			t.Errorf("%q is %v", text, r)
		}
	}
}

func FuzzRate(f *testing.F) {
	for _, s := range []string{"100/s", "1000/24h", "none", "1/1d12h", "0/s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseRate(s)
		if err != nil || r == nil {
			return
		}
		if d := r.GetWindow().AsDuration(); r.GetQuota() < 1 || r.GetQuota() > maxQuota || d < time.Millisecond || d > day {
			t.Errorf("%q is %v", s, r)
		}
		again, err := parseRate(formatRate(r))
		if err != nil || !proto.Equal(r, again) {
			t.Errorf("%q is written as %q, which is %v, %v", s, formatRate(r), again, err)
		}
	})
}

// requestText is a signed request as a tool saves it.
const requestText = "POST /orders?page=2 HTTP/1.1\r\nHost: api.example.com\r\nContent-Type: application/json\r\nX-Twice: a\r\nx-twice:  b \r\n" +
	"Content-Length: 7\r\nSignature-Input: sig=();keyid=\"k\"\r\nSignature: sig=:AA==:\r\n\r\n{\"a\":1}"

func TestExplainWhenRequestIsInAFile(t *testing.T) {
	s := newService(t)
	dir := t.TempDir()
	file, base := filepath.Join(dir, "request.txt"), filepath.Join(dir, "base.txt")
	want := &v1.VerifyRequestRequest{
		Profile: v1.SignatureProfile_SIGNATURE_PROFILE_HTTP_MESSAGE_SIGNATURES, Method: "POST", Scheme: "https", Authority: "api.example.com", Target: "/orders?page=2",
		Headers: []*v1.Header{
			{Name: "Host", Value: "api.example.com"}, {Name: "Content-Type", Value: "application/json"}, {Name: "X-Twice", Value: "a"}, {Name: "x-twice", Value: "b"},
			{Name: "Content-Length", Value: "7"}, {Name: "Signature-Input", Value: `sig=();keyid="k"`}, {Name: "Signature", Value: "sig=:AA==:"},
		},
		Body: []byte(`{"a":1}`), Explain: true, SignerBase: "\"@method\": POST",
	}
	write(t, base, "\"@method\": POST\n", 0o600)
	for name, text := range map[string]string{"as sent": requestText, "as an editor leaves it": strings.ReplaceAll(requestText, "\r\n", "\n") + "\n"} {
		write(t, file, text, 0o600)
		r := execute(t, s, nil, "secret", "explain", "--request", file, "--signer-base", base)
		if r.code != exitRefused || !strings.Contains(r.stderr, "the request is denied (signature)") {
			t.Errorf("%s: %+v", name, r)
		}
		golden(t, "secret-explain", r.stdout)
		got, _ := s.last(t)
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	r := execute(t, s, nil, "secret", "explain", "--request", file, "--webhook", "orders", "--authority", "other.example:8443", "--scheme", "http", "--partner", "acme", "--label", "sig", "--address", "::1")
	want.Profile, want.Secret, want.Authority, want.Scheme, want.SignerBase = v1.SignatureProfile_SIGNATURE_PROFILE_STANDARD_WEBHOOKS, "orders", "other.example:8443", "http", ""
	want.Partner, want.Label, want.Address = "acme", "sig", "::1"
	got, _ := s.last(t)
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%+v: %s", r, diff)
	}
}

func digestOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func TestExplainWhenBodyIsLong(t *testing.T) {
	s := newService(t)
	body := strings.Repeat("x", maxBodySent+1)
	head := "POST / HTTP/1.1\nHost: a.example\n"
	stdin := func(text string) func(*process) { return func(p *process) { p.stdin = strings.NewReader(text) } }
	r := execute(t, s, stdin(head+"Content-Digest: sha-256=:"+digestOf(body)+":\n\n"+body), "secret", "explain", "--request", "-")
	got, _ := s.last(t)
	if req := got.(*v1.VerifyRequestRequest); len(req.GetBody()) > 0 || !req.GetBodyOmitted() || !req.GetContentDigestVerified() {
		t.Errorf("%+v: sent %d bytes, omitted %v, verified %v", r, len(req.GetBody()), req.GetBodyOmitted(), req.GetContentDigestVerified())
	}
	before := s.count()
	for name, digest := range map[string]string{"another body's": "Content-Digest: sha-256=:" + digestOf("y") + ":\n", "none": ""} {
		r = execute(t, s, stdin(head+digest+"\n"+body), "secret", "explain", "--request", "-")
		if r.code != exitRefused || !strings.Contains(r.stderr, "compared with Content-Digest here") || s.count() != before {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestExplainWhenFileIsNoRequest(t *testing.T) {
	s := newService(t)
	for text, want := range map[string]string{
		"":                                       "there is nothing in it",
		"hello\n\n":                              "not a request line",
		"GET /\n\n":                              "not a request line",
		"GET https://a.example/ HTTP/1.1\n\n":    "has no path",
		"GET / HTTP/1.1\nHost a\n\n":             "line 2 is not a field",
		"GET / HTTP/1.1\nA: b\n folded\n\n":      "line 3 is not a field",
		"GET / HTTP/1.1\nA : b\n\n":              "line 2 is not a field",
		"GET / HTTP/1.1\nA: b\n\n":               "no Host field: give --authority",
		"GET / HTTP/1.1\nContent-Length: 9\n\nx": "there are 1 bytes of a body",
		"GET / HTTP/1.1\nContent-Length: x\n\nx": `its Content-Length is "x"`,
		"GET / HTTP/1.1\nTransfer-Encoding: chunked\n\n0\n\n": "without a transfer coding",
	} {
		r := execute(t, s, func(p *process) { p.stdin = strings.NewReader(text) }, "secret", "explain", "--request", "-")
		if r.code != exitRefused || !strings.Contains(r.stderr, want) {
			t.Errorf("%q: %+v, want %q", text, r, want)
		}
	}
	if s.count() > 0 {
		t.Error("the server was called")
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(requestText))
	f.Add([]byte("GET / HTTP/1.1\nA: b\nContent-Length: 1\n\nx"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		req, err := parseRequest(raw)
		if err != nil {
			return
		}
		if !strings.HasPrefix(req.GetTarget(), "/") || len(req.GetBody()) > maxBodySent {
			t.Errorf("%q is %v", raw, req)
		}
		for _, h := range req.GetHeaders() {
			if h.GetName() == "" || strings.ContainsAny(h.GetName()+h.GetValue(), "\n") {
				t.Errorf("%q has the field %q", raw, h)
			}
		}
	})
}

func newCSV(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys.csv")
	write(t, file, content, 0o600)
	return file
}

func TestImportWhenAllColumnsAreThere(t *testing.T) {
	s := newService(t)
	want := &v1.ImportApiKeysRequest{Partner: "acme", Form: v1.ImportForm_IMPORT_FORM_SHA256, WeakTtl: dur(7 * day), Items: []*v1.ImportItem{
		{Value: "hash-1", Name: `Smith, "Joe"`, Scopes: []string{"a", "b"}, Environment: "test", Cidrs: []string{"10.0.0.0/8", "::1/128"}, RateLimit: &v1.RateLimit{Quota: 100, Window: dur(time.Second)},
			ExpiresAt: timestamppb.New(time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC)), Metadata: map[string]string{"owner": "ann", "tier": "gold"}},
		{Value: "hash-2", ExpiresAt: timestamppb.New(time.Date(2027, 1, 31, 11, 0, 0, 0, time.UTC))},
	}}
	text := "\xef\xbb\xbfName,value,scopes , environment,cidrs,rate,expires_at,metadata\n" +
		"\"Smith, \"\"Joe\"\"\",hash-1,a b,test,10.0.0.0/8  ::1/128,100/s,2027-01-31,owner=ann tier=gold\n\n" +
		", hash-2 ,,,,,2027-01-31T12:00:00+01:00,\n"
	for name, text := range map[string]string{"lines": text, "CRLF": strings.ReplaceAll(text, "\n", "\r\n"), "no last line end": strings.TrimSuffix(text, "\n")} {
		r := execute(t, s, nil, "key", "import", "--partner", "acme", "--from", "sha256", "--weak-ttl", "7d", newCSV(t, text))
		if r.code != exitDone || r.stdout != "2 imported, 0 there already, 0 refused\n" || r.stderr != "" {
			t.Errorf("%s: %+v", name, r)
		}
		got, _ := s.last(t)
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestImportWhenRowsNameTheirPartner(t *testing.T) {
	s := newService(t)
	text := "partner,value\nacme,a\nacme,b\nbeta,c\n,d\nacme,e\n"
	r := execute(t, s, nil, "key", "import", "--from", "raw", newCSV(t, text))
	if r.code != exitRefused || r.stdout != "4 imported, 0 there already, 1 refused\n" || !strings.Contains(r.stderr, "line 5: partner is empty") {
		t.Errorf("%+v", r)
	}
	var got []string
	for _, c := range s.calls {
		req := c.(*v1.ImportApiKeysRequest)
		for _, item := range req.GetItems() {
			got = append(got, req.GetPartner()+" "+item.GetValue())
		}
	}
	if diff := cmp.Diff([]string{"acme a", "acme b", "beta c", "acme e"}, got); diff != "" || len(s.calls) != 3 {
		t.Errorf("%d calls: %s", len(s.calls), diff)
	}
	r = execute(t, s, nil, "key", "import", "--partner", "acme", "--from", "raw", newCSV(t, text))
	if r.code != exitRefused || !strings.Contains(r.stderr, "line 4: its partner is not the one that --partner names") || !strings.HasPrefix(r.stdout, "4 imported") {
		t.Errorf("%+v", r)
	}
	before := s.count()
	if r = execute(t, s, nil, "key", "import", "--from", "raw", newCSV(t, "value\na\n")); r.code != exitRefused || !strings.Contains(r.stderr, "whose keys are they? Give --partner, or a column partner") || s.count() != before {
		t.Errorf("%+v", r)
	}
}

func TestImportWhenRowsAreRefused(t *testing.T) {
	s := newService(t)
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		res := &v1.ImportApiKeysResponse{}
		for _, item := range req.(*v1.ImportApiKeysRequest).GetItems() {
			switch r := (&v1.ImportResult{Id: keyID}); item.GetName() {
			case "known":
				r.Reason = "exists"
				res.Results = append(res.Results, r)
			case "foreign":
				res.Results = append(res.Results, &v1.ImportResult{Reason: "scope_unknown", Message: "the partner has no scope b"})
			case "weak":
				r.Weak = true
				res.Results = append(res.Results, r)
			default:
				res.Results = append(res.Results, r)
			}
		}
		return res, nil
	}
	const secret = "the-secret-value"
	text := "value,name,rate,expires_at,metadata,cidrs\n" +
		secret + "1,known,,,,\n" + // line 2
		secret + "2,foreign,,,,\n" +
		secret + "3,\"two\nlines\",,,,\n" + // lines 4 and 5
		secret + "4,weak,,,,\n" +
		secret + "5,n," + secret + ",,,\n" + // line 7
		secret + "6,n,,tomorrow " + secret + ",,\n" +
		secret + "7,n,,," + secret + ",\n" +
		secret + "8,n\n" + // line 10
		",n,,,,\n" +
		secret + "9,n,,,,\n"
	r := execute(t, s, nil, "key", "import", "--partner", "acme", "--from", "raw", newCSV(t, text))
	golden(t, "key-import-refused", r.stdout+"--- stderr\n"+r.stderr)
	if r.code != exitRefused || strings.Contains(r.stdout+r.stderr, secret) {
		t.Errorf("exit code %d, or a value is printed:\n%s", r.code, r.stderr)
	}
	r = execute(t, s, nil, "key", "import", "--partner", "acme", "--from", "raw", "-o", "json", newCSV(t, text))
	if !strings.Contains(r.stdout, `"imported": 3`) || !strings.Contains(r.stdout, `"refused": 6`) || r.code != exitRefused {
		t.Errorf("%+v", r)
	}
}

func TestImportWhenFileIsWrong(t *testing.T) {
	s := newService(t)
	const secret = "the-secret-value"
	for text, want := range map[string]string{
		"":                                    "there is nothing in it",
		"\xef\xbb\xbf":                        "there is nothing in it",
		"value\n":                             "there is no key in it",
		secret + ",n\n":                       "its column 1 is none of value, partner, name,",
		"name\nn\n":                           "names no column value",
		"value,value\na,b\n":                  "names the column value twice",
		"value,name\n" + secret + ",a\"b\n":   "line 2 is not CSV: a quote stands where none may be",
		"value,name\n" + secret + ",\"open\n": "line 2 is not CSV",
		"value,name\na,b\n" + secret + ",\"" + strings.Repeat("open\n", 10000): "the row after line 2 has more than 16384 bytes: is a quote open?",
		strings.Repeat("value", 10000):                                         "more than 16384 bytes",
	} {
		r := execute(t, s, nil, "key", "import", "--partner", "acme", "--from", "raw", newCSV(t, text))
		if r.code != exitRefused || !strings.Contains(r.stderr, want) || strings.Contains(r.stdout+r.stderr, secret) {
			t.Errorf("%.60q: %+v, want %q", text, r, want)
		}
	}
	if r := execute(t, s, nil, "key", "import", "--partner", "acme", "--from", "raw", t.TempDir()); r.code != exitRefused || !strings.Contains(r.stderr, "is a folder") {
		t.Errorf("%+v", r)
	}
	file := newCSV(t, "value\nx\n")
	for mode, warns := range map[os.FileMode]bool{0o600: false, 0o640: true} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		for form, holds := range map[string]bool{"raw": true, "sha256": false} {
			r := execute(t, s, nil, "key", "import", "--partner", "acme", "--from", form, file)
			if r.code != exitDone || strings.Contains(r.stderr, "chmod 600") != (warns && holds) {
				t.Errorf("%s with mode %o: %+v", form, mode, r)
			}
		}
	}
}

func TestImportWhenThereAreManyRows(t *testing.T) {
	s := newService(t)
	seen, largest, fail := map[string]int{}, 0, 0
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		r := req.(*v1.ImportApiKeysRequest)
		if fail--; fail == 0 {
			return nil, connect.NewError(connect.CodeUnavailable, errors.New("the database is away"))
		}
		res := &v1.ImportApiKeysResponse{}
		largest = max(largest, proto.Size(r))
		if len(r.GetItems()) > importBatch {
			t.Errorf("%d items at once", len(r.GetItems()))
		}
		for _, item := range r.GetItems() {
			seen[item.GetValue()]++
			reason := ""
			if seen[item.GetValue()] > 1 {
				reason = "exists"
			}
			res.Results = append(res.Results, &v1.ImportResult{Reason: reason})
		}
		s.mu.Lock()
		s.calls = nil // the test keeps no million of them
		s.mu.Unlock()
		return res, nil
	}
	rows := func(n int) func(*process) {
		return func(p *process) { p.stdin = &manyRows{n: n} }
	}
	const n = 20_000
	fail = 11
	r := execute(t, s, rows(n), "key", "import", "--partner", "acme", "--from", "sha256", "-")
	if r.code != exitRefused || !strings.Contains(r.stderr, "stopped after line 5001: 5,000 imported") || !strings.Contains(r.stderr, "the database is away") {
		t.Errorf("%+v", r)
	}
	r = execute(t, s, rows(n), "key", "import", "--partner", "acme", "--from", "sha256", "-")
	if r.code != exitDone || r.stdout != "15,000 imported, 5,000 there already, 0 refused\n" {
		t.Errorf("%+v", r)
	}
	if len(seen) != n || largest > importBatchBytes+1024 {
		t.Errorf("%d of %d keys arrived; the largest request had %d bytes", len(seen), n, largest)
	}
	r = execute(t, s, func(p *process) {
		p.stdin = strings.NewReader("value,name\n" + strings.Repeat(strings.Repeat("v", 500)+","+strings.Repeat("n", 120)+"\n", 400))
	}, "key", "import", "--partner", "acme", "--from", "raw", "-")
	if r.code != exitDone || largest > importBatchBytes+1024 {
		t.Errorf("%+v: the largest request had %d bytes", r, largest)
	}
}

// manyRows is a CSV of n hashes, without their being in memory.
type manyRows struct {
	n, at int
	left  string
}

func (m *manyRows) Read(b []byte) (int, error) {
	for m.left == "" {
		switch {
		case m.at == 0:
			m.left = "value,name\n"
		case m.at > m.n:
			return 0, io.EOF
		default:
			m.left = fmt.Sprintf("%064x,key %d\n", m.at, m.at)
		}
		m.at++
	}
	k := copy(b, m.left)
	m.left = m.left[k:]
	return k, nil
}

func TestImportWhenProgressIsShown(t *testing.T) {
	s := newService(t)
	now := testNow
	text := &strings.Builder{}
	_, _ = io.Copy(text, &manyRows{n: 2000})
	r := execute(t, s, func(p *process) {
		p.barWidth = 100
		p.now = func() time.Time { now = now.Add(time.Second); return now }
	}, "key", "import", "--partner", "acme", "--from", "sha256", newCSV(t, text.String()))
	if r.code != exitDone || !strings.Contains(r.stderr, "importing  [") || !strings.Contains(r.stderr, "1,000 records") || !strings.HasSuffix(r.stderr, "\r\x1b[K") {
		t.Errorf("%+v", r)
	}
}

func FuzzImportRows(f *testing.F) {
	f.Add([]byte("value,name\na,b\n"))
	f.Add([]byte("\xef\xbb\xbfvalue,rate,expires_at,metadata\r\n\"a\nb\",1/s,2027-01-31,k=v\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		rows, err := newImportRows(strings.NewReader(string(raw)))
		if err != nil {
			return
		}
		for last := 1; ; {
			line, _, item, err := rows.next()
			if _, bad := errors.AsType[*badRow](err); err != nil && !bad {
				return
			}
			if line <= last {
				t.Fatalf("line %d comes after %d", line, last)
			}
			last = line
			if err == nil && item.GetValue() == "" {
				t.Errorf("line %d has no value", line)
			}
		}
	})
}
