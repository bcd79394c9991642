package httptarget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

func TestTarget(t *testing.T) {
	p := newPartner(t)
	var fresh atomic.Int64
	change := func(name string, s providers.Strategy) providers.Change {
		params := map[string]string{"account": name}
		if s == providers.Alternate {
			params["account_b"] = name + "-b"
		}
		return providers.Change{Credential: "partner-login", Params: params}
	}
	providerstest.Target(t, providerstest.TargetBed{
		Kind: Kind(),
		Open: p.open,
		Change: func(_ testing.TB, s providers.Strategy) providers.Change {
			name := fmt.Sprintf("app-%d", fresh.Add(1))
			p.add(name, name+"-b")
			return change(name, s)
		},
		Accepts: func(_ testing.TB, h providers.Held) bool { return p.accepts(h) },
		Missing: func(_ testing.TB, s providers.Strategy) providers.Change { return change("nobody", s) },
		Reject: func(testing.TB, providers.Change) func() {
			p.setPolicy(1000)
			return func() { p.setPolicy(0) }
		},
		Session: func(_ testing.TB, h providers.Held) func() bool { return p.session(h) },
		Retires: true,
		Now:     p.now,
		Pass:    func(_ testing.TB, d time.Duration) { p.pass(d) },
	})
}

func (p *partner) setPolicy(shortest int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.policy = shortest
}

func held(generation int64, password string) providers.Held {
	return providers.Held{
		Generation: generation, Rotation: "6f1d2c7e-0000-4000-8000-000000000001", Account: "app",
		Fields: providers.Fields{"password": secret.FromString(password), "username": secret.FromString("app")},
	}
}

func changeTo(h providers.Held) providers.Change {
	return providers.Change{
		Credential: "c", Rotation: h.Rotation, Generation: h.Generation, Epoch: 7, Strategy: providers.Dual,
		Params: map[string]string{"account": "app"}, New: h,
	}
}

// TestBodyByteForByte: what doc.go says is what is sent.
func TestBodyByteForByte(t *testing.T) {
	p := newPartner(t)
	p.add("app")
	target := p.open(t)
	h := held(2, `a"<&>`)
	c := changeTo(h)
	old := held(1, "old")
	old.Fields = nil
	emergency := c
	emergency.Emergency = true
	if _, err := target.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		target.Verify(t.Context(), c, h),
		target.Revoke(t.Context(), c, old),
		target.Revoke(t.Context(), emergency, old),
		target.Retire(t.Context(), c, old, time.Date(2026, 11, 22, 13, 0, 0, 999, time.FixedZone("", 3600))),
		target.Retire(t.Context(), c, old, time.Time{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := target.Usage(t.Context(), c, h); err != nil {
		t.Fatal(err)
	}
	const id = "6f1d2c7e-0000-4000-8000-000000000001"
	rest := func(generation int) string {
		return fmt.Sprintf(`"rotation":"%s","generation":%d,"epoch":7,"strategy":"dual","account":"app","fields":`, id, generation)
	}
	value := `{"password":"a\"<&>","username":"app"}`
	want := []string{
		`{"type":"credential.set",` + rest(2) + value + `}`,
		`{"type":"credential.test",` + rest(2) + value + `}`,
		`{"type":"credential.revoke",` + rest(1) + `{}}`,
		`{"type":"credential.revoke",` + rest(1) + `{},"emergency":true}`,
		`{"type":"credential.retire",` + rest(1) + `{},"end":"2026-11-22T12:00:00Z"}`,
		`{"type":"credential.retire",` + rest(1) + `{}}`,
		`{"type":"credential.usage",` + rest(2) + value + `}`,
	}
	if diff := cmp.Diff(want, p.bodies); diff != "" {
		t.Error(diff)
	}
	for i, step := range []string{"_set", "_test_", "_revoke_1", "_revoke_1_now", "_retire_1_1795348800", "_retire_1_never", "_usage_"} {
		got := p.seen[i].Get("webhook-id")
		if exact := !strings.HasSuffix(step, "_"); exact && got != id+step || !strings.HasPrefix(got, id+step) {
			t.Errorf("the webhook-id is %q, want %s", got, id+step)
		}
		if p.seen[i].Get("Content-Type") != "application/json" {
			t.Errorf("%s: the content type is %q", step, p.seen[i].Get("Content-Type"))
		}
	}
}

// TestIDWhenRepeated: an effect keeps its id, a question gets a new one.
func TestIDWhenRepeated(t *testing.T) {
	p := newPartner(t)
	p.add("app")
	target := p.open(t)
	c := changeTo(held(2, "geheim-geheim"))
	for range 2 {
		if _, err := target.Apply(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if err := target.Verify(t.Context(), c, c.New); err != nil {
			t.Fatal(err)
		}
	}
	ids := make([]string, 4)
	for i := range ids {
		ids[i] = p.seen[i].Get("webhook-id")
	}
	if ids[0] != ids[2] || ids[1] == ids[3] {
		t.Errorf("the ids are %q", ids)
	}
}

func TestAnswerIsSorted(t *testing.T) {
	p := newPartner(t)
	p.add("app")
	target := p.open(t)
	for code, want := range map[int]providers.Outcome{
		200: "", 201: "", 202: "", 204: "",
		301: providers.Refused, 302: providers.Refused, 307: providers.Refused, 308: providers.Refused,
		400: providers.Refused, 401: providers.Refused, 403: providers.Refused, 404: providers.Refused,
		405: providers.Refused, 410: providers.Refused, 413: providers.Refused, 415: providers.Refused,
		408: providers.Unknown, 409: providers.Moved, 418: providers.Unknown, 422: providers.Rejected, 425: providers.Unknown, 429: providers.Throttled,
		500: providers.Unknown, 502: providers.Unknown, 503: providers.Unknown, 504: providers.Unknown,
	} {
		p.answer = func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Location", p.url+"/elsewhere")
			w.WriteHeader(code)
			fmt.Fprint(w, "geheim-geheim is what you sent")
			return true
		}
		c := changeTo(held(2, "geheim-geheim"))
		_, err := target.Apply(t.Context(), c)
		if (err == nil) != (want == "") || (err != nil && providers.OutcomeOf(err) != want) {
			t.Errorf("set answered %d: %v, want %q", code, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("set answered %d: the error quotes the answer: %v", code, err)
		}
		for step, err := range map[string]error{
			"revoke": target.Revoke(t.Context(), c, held(1, "x")), "retire": target.Retire(t.Context(), c, held(1, "x"), time.Now()),
		} {
			if done := want == "" || code == 410; (err == nil) != done {
				t.Errorf("%s answered %d: %v", step, code, err)
			}
		}
	}
}

func TestAnswerWhenThrottled(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"": "", "x": "", "-1": "", "30": ": again in 30 seconds", "Sun, 22 Nov 2026 12:01:00 GMT": ": again in 60 seconds",
		"Sun, 22 Nov 2026 11:00:00 GMT": ": again in 0 seconds",
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("Retry-After %q: %q, want %q", text, got, want)
		}
	}
}

// TestRedirectIsNotFollowed: the value does not go where an answer says.
func TestRedirectIsNotFollowed(t *testing.T) {
	p := newPartner(t)
	calls := 0
	p.answer = func(w http.ResponseWriter, r *http.Request) bool {
		calls++
		http.Redirect(w, r, p.url+"/other", http.StatusTemporaryRedirect)
		return true
	}
	_, err := p.open(t).Apply(t.Context(), changeTo(held(2, "geheim-geheim")))
	if providers.OutcomeOf(err) != providers.Refused || calls != 1 {
		t.Errorf("%d requests, %v", calls, err)
	}
}

// TestNoAnswer: the connection breaks, or the answer takes too long.
func TestNoAnswer(t *testing.T) {
	p := newPartner(t)
	p.answer = func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
	_, err := p.open(t).Apply(t.Context(), changeTo(held(2, "geheim-geheim")))
	if !errors.Is(err, fault.ErrUnavailable) || providers.OutcomeOf(err) != providers.Unknown {
		t.Errorf("broken connection: %v", err)
	}

	settings := p.settings()
	settings["timeout"] = "1"
	target, err := openTarget(t, settings, signing)
	if err != nil {
		t.Fatal(err)
	}
	p.answer = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	if _, err := target.Apply(t.Context(), changeTo(held(2, "geheim-geheim"))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer within the timeout: %v", err)
	}
}

// TestAnswerWhenEndless: an answer is read up to a bound, and the status counts. What
// the partner gets rid of is what buffers on the way hold.
func TestAnswerWhenEndless(t *testing.T) {
	p := newPartner(t)
	sent := 0
	p.answer = func(w http.ResponseWriter, r *http.Request) bool {
		for chunk := make([]byte, 32<<10); sent < 256<<20 && r.Context().Err() == nil; sent += len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				break
			}
		}
		return true
	}
	if _, err := p.open(t).Apply(t.Context(), changeTo(held(2, "geheim-geheim"))); err != nil {
		t.Error(err)
	}
	p.mu.Lock() // until the partner has given up
	defer p.mu.Unlock()
	if sent > 64<<20 {
		t.Errorf("%d bytes of an answer were taken", sent)
	}
}

func TestPartnerWhenNotTrusted(t *testing.T) {
	p := newPartner(t)
	p.add("app")
	for name, c := range map[string]struct {
		change func(settings map[string]string)
		key    string
		reason string
	}{
		"certificate of somebody": {func(s map[string]string) { delete(s, "ca_cert") }, signing, "certificate"},
		"private address":         {func(s map[string]string) { delete(s, "allow_private") }, signing, "address_private"},
		"private by its name": {func(s map[string]string) {
			delete(s, "allow_private")
			s["address"] = strings.Replace(s["address"], "127.0.0.1", "localhost", 1)
		}, signing, "address_private"},
		"another secret": {func(map[string]string) {}, "whsec_" + strings.Repeat("QUJD", 11), "signature"},
	} {
		t.Run(name, func(t *testing.T) {
			settings := p.settings()
			c.change(settings)
			target, err := openTarget(t, settings, c.key)
			if err != nil {
				t.Fatal(err)
			}
			_, err = target.Apply(t.Context(), changeTo(held(2, "geheim-geheim")))
			e, ok := errors.AsType[*fault.Error](err)
			if !ok || e.Reason != c.reason || providers.OutcomeOf(err) != providers.Refused {
				t.Errorf("%v, want refused for %s", err, c.reason)
			}
			if len(p.seen) != 0 {
				t.Error("a request arrived, and its signature was good")
			}
			found, err := target.Check(t.Context(), providers.Change{Params: map[string]string{"account": "app"}})
			if err != nil || len(found) != 2 || found[1].OK || found[1].Remedy == "" {
				t.Errorf("Check found %+v, %v", found, err)
			}
		})
	}
}

func TestCheckWhenPartnerAcceptsAnything(t *testing.T) {
	p := newPartner(t)
	p.answer = func(http.ResponseWriter, *http.Request) bool { return true }
	found, err := p.open(t).Check(t.Context(), providers.Change{Params: map[string]string{"account": "app"}})
	if err != nil || len(found) != 2 || found[1].OK || found[1].Warning {
		t.Errorf("Check found %+v, %v, want a problem", found, err)
	}
	p.answer = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true }
	if found, err := p.open(t).Check(t.Context(), providers.Change{Params: map[string]string{"account": "app"}}); providers.OutcomeOf(err) != providers.Unknown {
		t.Errorf("Check found %+v, %v, want an error", found, err)
	}
}

func TestAddressIsPublic(t *testing.T) {
	for text, want := range map[string]bool{
		"8.8.8.8": true, "93.184.216.34": true, "2606:4700::1111": true, "::ffff:8.8.8.8": true,
		"127.0.0.1": false, "10.1.2.3": false, "172.16.0.1": false, "172.31.255.255": false, "192.168.1.1": false, "169.254.169.254": false,
		"100.100.100.200": false, "168.63.129.16": false, "0.0.0.0": false, "0.1.2.3": false, "224.0.0.1": false, "255.255.255.255": false, "198.18.0.1": false, "192.0.0.192": false,
		"::1": false, "::": false, "fe80::1": false, "fe80::1%eth0": false, "fc00::1": false, "fd00:ec2::254": false, "ff02::1": false,
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "::7f00:1": false, "64:ff9b::a00:1": false, "2002:a00:1::": false, "2001::1": false, "fec0::1": false,
	} {
		if got := public(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: public %t, want %t", text, got, want)
		}
	}
	if public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

func TestOpenWhenConfigIsWrong(t *testing.T) {
	p := newPartner(t)
	for name, c := range map[string]struct {
		setting, value, key string
	}{
		"plain text":     {"address", "http://partner.example", signing},
		"no URL":         {"address", "partner.example", signing},
		"user in URL":    {"address", "https://a:b@partner.example", signing},
		"query in URL":   {"address", "https://partner.example/?a=b", signing},
		"no certificate": {"ca_cert", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", signing},
		"no secret":      {"set", "set", ""},
		"short secret":   {"set", "set", "whsec_QUJD"},
		"public key":     {"set", "set", "whpk_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="},
		"bad path":       {"set", "/set?x", signing},
		"long timeout":   {"timeout", "61", signing},
	} {
		t.Run(name, func(t *testing.T) {
			settings := p.settings()
			settings[c.setting] = c.value
			target, err := openTarget(t, settings, c.key)
			if !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("opened %v, %v, want fault.ErrInvalid", target, err)
			}
			if err != nil && len(c.key) > 8 && strings.Contains(err.Error(), c.key) {
				t.Errorf("the error holds the secret: %v", err)
			}
		})
	}
}

func TestPrepareWhenParamsAreWrong(t *testing.T) {
	target := newPartner(t).open(t)
	for name, c := range map[string]providers.Change{
		"no account":     {Strategy: providers.Dual},
		"no second":      {Strategy: providers.Alternate, Params: map[string]string{"account": "a"}},
		"second is same": {Strategy: providers.Alternate, Params: map[string]string{"account": "a", "account_b": "a"}},
		"one field":      {Strategy: providers.Dual, Params: map[string]string{"account": "a", "field": "x", "account_field": "x"}},
		"static field":   {Strategy: providers.Dual, Params: map[string]string{"account": "a"}, Static: map[string]string{"password": "x"}},
	} {
		if _, err := target.Prepare(t.Context(), c); providers.OutcomeOf(err) != providers.Refused {
			t.Errorf("%s: %v, want refused", name, err)
		}
		if found, err := target.Check(t.Context(), c); err != nil || len(found) != 1 || found[0].OK {
			t.Errorf("%s: Check found %+v, %v", name, found, err)
		}
	}
}

func TestUsageIsRead(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for body, want := range map[string]providers.Evidence{
		`{"sessions":3}`: {Known: true, Sessions: 3, Source: "p"},
		`{"sessions":0}`: {Known: true, Source: "p"},
		`{"last_used":"2026-11-22T13:00:00+01:00","more":1}`: {Known: true, LastUsed: at, Source: "p"},
		`{}`: {},
	} {
		if got, err := parseUsage("p", []byte(body)); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", body, got, err, want)
		}
	}
	for _, body := range []string{``, `[]`, `{"sessions":-1}`, `{"sessions":"1"}`, `{"last_used":"yesterday"}`} {
		if _, err := parseUsage("p", []byte(body)); providers.OutcomeOf(err) != providers.Unknown {
			t.Errorf("%s: %v, want unknown", body, err)
		}
	}
}

func FuzzUsage(f *testing.F) {
	f.Add([]byte(`{"sessions":1,"last_used":"2026-11-22T13:00:00Z"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := parseUsage("p", body)
		if err != nil {
			return
		}
		if e.Sessions < 0 || !json.Valid(body) || (!e.Known && e != providers.Evidence{}) {
			t.Errorf("%q was read as %+v", body, e)
		}
	})
}
