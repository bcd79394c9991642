package jwks

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
)

func dur(t testing.TB, s string) time.Duration {
	t.Helper()
	if s == "forever" {
		return Forever
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func named(names ...string) []Consumer {
	out := make([]Consumer, len(names))
	for i, n := range names {
		out[i].Name = n
	}
	return out
}

func TestProfilesAreSortedAndComplete(t *testing.T) {
	names := make([]string, len(Profiles))
	for i, p := range Profiles {
		names[i] = p.Name
	}
	// The look-up is a binary search.
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("profiles are not sorted by unique names: %v", names)
	}
	for _, p := range Profiles {
		got, err := Consumer{Name: p.Name}.profile()
		if err != nil {
			t.Errorf("profile %s is not found: %v", p.Name, err)
		}
		if diff := cmp.Diff(p, got); diff != "" {
			t.Errorf("profile %s without figures of its own (-want +got):\n%s", p.Name, diff)
		}
		if p.Title == "" {
			t.Errorf("profile %s has no title", p.Name)
		}
		if !p.Refetch && p.Cache == Forever {
			t.Errorf("profile %s would never learn of a new key", p.Name)
		}
	}
	// Every consumer with figures that was researched.
	for _, want := range []string{
		"apigee", "auth0-go", "aws-http-api", "aws-rest-api", "dotnet", "envoy", "envoy-jwt-cache", "go-oidc", "hashicorp-cap",
		"istio", "jose", "jwks-rsa", "jwx", "keycloak", "keyfunc", "lua-resty-openidc", "mod_auth_openidc", "pyjwt", "spring", "spring-reactive", "step-ca", "unknown",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("profile %s is missing", want)
		}
	}
}

// The figures are worked out by hand from the researched behaviour, with
// P = 10s, S = 30s, F = 5m, max-age 5m: lead = P + C + F + retry + S.
func TestTimingOfEachProfile(t *testing.T) {
	for _, tc := range []struct{ name, lead, standby, fresh, refusal string }{
		{"apigee", "10m40s", "5m10s", "5m10s", "5m10s"},
		{"auth0-go", "10m40s", "10m10s", "10m10s", "5m10s"},
		{"aws-http-api", "2h5m40s", "2h10s", "2h10s", "2h10s"},
		{"aws-rest-api", "1h5m40s", "1h10s", "5m10s", "10s"},
		{"dotnet", "13h41m40s", "13h41m10s", "15m10s", "5m10s"},
		{"envoy", "15m41s", "15m11s", "15m11s", "10m10s"},
		{"envoy-jwt-cache", "15m41s", "forever", "forever", "10m10s"},
		{"get-jwks", "15m40s", "10m10s", "10m10s", "10s"},
		{"go-oidc", "40s", "forever", "5m10s", "10s"},
		{"hashicorp-cap", "40s", "forever", "5m10s", "10s"},
		{"istio", "31m40s", "31m10s", "31m10s", "20m10s"},
		{"jose", "15m40s", "10m10s", "6m10s", "40s"},
		{"jwks-rsa", "15m40s", "10m10s", "10m10s", "10s"},
		{"jwx", "35m42s", "35m12s", "35m12s", "15m12s"},
		{"keycloak", "24h5m40s", "24h10s", "5m30s", "20s"},
		{"keyfunc", "2h5m40s", "2h5m10s", "15m10s", "5m10s"},
		{"lua-resty-openidc", "24h5m40s", "24h10s", "24h10s", "10s"},
		{"mod_auth_openidc", "1h5m40s", "1h5m10s", "7m10s", "1m10s"},
		{"oathkeeper", "1h5m40s", "1h10s", "5m10s", "10s"},
		{"pyjwt", "10m40s", "5m10s", "5m10s", "10s"},
		{"spring", "10m40s", "5m10s", "5m10s", "10s"},
		{"domino", "25m40s", "25m10s", "25m10s", "5m10s"},
		{"hasura", "11m40s", "11m10s", "11m10s", "5m10s"},
		{"openfga", "2h5m40s", "2h5m10s", "2h5m10s", "1h10s"},
		{"ping-agent", "1h5m40s", "1h10s", "1h10s", "1h10s"},
		{"ping-gateway", "7m40s", "2m10s", "2m10s", "2m10s"},
		{"ktor", "10h5m40s", "10h10s", "10h10s", "10h10s"},
		{"spring-reactive", "40s", "forever", "5m10s", "10s"},
		{"step-ca", "10m40s", "10m10s", "10m10s", "5m10s"},
		{"unknown", "24h5m40s", "24h5m10s", "24h5m10s", "24h10s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := DefaultPolicy()
			p.Consumers = named(tc.name)
			got, err := p.Check(RS256)
			if err != nil {
				t.Fatal(err)
			}
			got.Consumers[0].Note, got.Warnings = "", nil
			want := Timing{
				PublishAhead: dur(t, tc.lead),
				RetireAfter:  dur(t, "1h2m10s"), // 10s + 1h + 1m + 2 × 30s
				MaxAge:       dur(t, "5m"),
				Consumers: []ConsumerTiming{{Name: tc.name, Lead: dur(t, tc.lead), ReachStandby: dur(t, tc.standby),
					ReachFresh: dur(t, tc.fresh), RefusalFresh: dur(t, tc.refusal)}},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("timing (-want +got):\n%s", diff)
			}
		})
	}
	if len(Profiles) != 30 {
		t.Errorf("%d profiles, 30 are checked here", len(Profiles))
	}
}

func ptr[T any](v T) *T { return &v }

func TestPolicyCheckWhenSafe(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Policy)
		lead   string
		retire string
		maxAge string
	}{
		{"no consumer named", func(*Policy) {}, "24h5m40s", "1h2m10s", "5m"},
		{"the slowest of several", func(p *Policy) { p.Consumers = named("go-oidc", "jwx", "envoy") }, "35m42s", "1h2m10s", "5m"},
		{"envoy with a cache of its own", func(p *Policy) { p.Consumers = []Consumer{{Name: "envoy", Cache: ptr(5 * time.Minute)}} }, "10m41s", "1h2m10s", "5m"},
		{"keyfunc's retry follows its interval", func(p *Policy) { p.Consumers = []Consumer{{Name: "keyfunc", Cache: ptr(10 * time.Minute)}} }, "25m40s", "1h2m10s", "5m"},
		{"jwx with a shorter interval", func(p *Policy) { p.Consumers = []Consumer{{Name: "jwx", MinInterval: ptr(time.Minute)}} }, "11m42s", "1h2m10s", "5m"},
		{"jwx clamps from above", func(p *Policy) {
			p.Consumers = []Consumer{{Name: "jwx", MinInterval: ptr(time.Minute), MaxInterval: ptr(2 * time.Minute)}}
		}, "8m42s", "1h2m10s", "5m"},
		{"jwx follows max-age above its minimum", func(p *Policy) {
			p.Consumers = []Consumer{{Name: "jwx", MinInterval: ptr(time.Duration(0))}}
			p.MaxAge = 2 * time.Minute
		}, "7m42s", "1h2m10s", "2m"},
		{"no cache at all", func(p *Policy) { p.Consumers = []Consumer{{Name: "apigee", Cache: ptr(time.Duration(0))}} }, "5m40s", "1h2m10s", "5m"},
		{"a cache in between", func(p *Policy) { p.Consumers, p.CDN = named("envoy"), true }, "20m41s", "1h2m10s", "5m"},
		{"a cache in between answers a refetch", func(p *Policy) { p.Consumers, p.CDN = named("go-oidc"), true }, "5m40s", "1h2m10s", "5m"},
		{"fetches that never fail", func(p *Policy) { p.Consumers, p.FetchFailure = named("jose"), 0 }, "1m10s", "1h2m10s", "5m"},
		{"fetches that never fail, throttled", func(p *Policy) { p.Consumers, p.FetchFailure = named("keyfunc"), 0 }, "5m40s", "1h2m10s", "5m"},
		{"fetches that never fail, throttled, a cache in between", func(p *Policy) { p.Consumers, p.FetchFailure, p.CDN = named("keyfunc"), 0, true }, "10m40s", "1h2m10s", "5m"},
		{"fetches that never fail, but come too late", func(p *Policy) { p.Consumers, p.FetchFailure = named("dotnet"), 0 }, "12h36m40s", "1h2m10s", "5m"},
		{"fetches that never fail, on a timer", func(p *Policy) { p.Consumers, p.FetchFailure = named("jwx"), 0 }, "15m42s", "1h2m10s", "5m"},
		{"istio's wait follows the failure", func(p *Policy) { p.Consumers, p.FetchFailure = named("istio"), 30*time.Minute }, "1h21m40s", "1h2m10s", "5m"},
		{"istio's wait is an hour at most", func(p *Policy) { p.Consumers, p.FetchFailure = named("istio"), 2*time.Hour }, "3h20m40s", "1h2m10s", "5m"},
		{"a longer lead than needed", func(p *Policy) { p.Consumers, p.PublishAhead = named("envoy"), time.Hour }, "1h", "1h2m10s", "5m"},
		{"exactly the lead needed", func(p *Policy) { p.Consumers, p.PublishAhead = named("envoy"), 15*time.Minute+41*time.Second }, "15m41s", "1h2m10s", "5m"},
		{"rotation exactly at the lead", func(p *Policy) {
			p.Consumers, p.Rotate, p.TokenTTL = named("envoy"), schedule.Schedule{Every: 15*time.Minute + 41*time.Second}, time.Minute
		}, "15m41s", "3m10s", "5m"},
		{"exactly the delay needed", func(p *Policy) { p.RetireAfter = time.Hour + 2*time.Minute + 10*time.Second }, "24h5m40s", "1h2m10s", "5m"},
		{"a longer delay", func(p *Policy) { p.RetireAfter = 48 * time.Hour }, "24h5m40s", "48h", "5m"},
		{"an emergency target caps max-age", func(p *Policy) {
			p.Consumers, p.EmergencyTarget, p.FetchFailure = []Consumer{{Name: "apigee", Cache: ptr(time.Minute)}}, 70*time.Second, 0
		}, "1m40s", "1h2m10s", "1m10s"},
		{"no leeway, no skew, no propagation", func(p *Policy) { p.Leeway, p.Skew, p.Propagation, p.Consumers = 0, 0, 0, named("envoy") }, "15m1s", "1h10s", "5m"},
		{"the longest token", func(p *Policy) { p.TokenTTL = maxDuration }, "24h5m40s", "17520h2m10s", "5m"},
		{"a cache of two years", func(p *Policy) {
			p.Consumers = []Consumer{{Name: "envoy", Cache: ptr(maxDuration)}}
			p.Rotate.Every = 3 * 365 * 24 * time.Hour
		}, "17520h5m41s", "1h2m10s", "5m"},
		{"32 keys at once", func(p *Policy) {
			// 2 + floor(29h/1h) + 1 = 32
			p.Consumers, p.Rotate.Every, p.TokenTTL = named("envoy"), time.Hour, 29*time.Hour-130*time.Second
		}, "15m41s", "29h", "5m"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := DefaultPolicy()
			tc.change(&p)
			got, err := p.Check(RS256)
			if err != nil {
				t.Fatal(err)
			}
			if got.PublishAhead != dur(t, tc.lead) || got.RetireAfter != dur(t, tc.retire) || got.MaxAge != dur(t, tc.maxAge) {
				t.Errorf("got lead %s, retire %s, max-age %s, want %s, %s, %s", got.PublishAhead, got.RetireAfter, got.MaxAge, tc.lead, tc.retire, tc.maxAge)
			}
			if p.Lead() != got.PublishAhead || p.RetireDelay(p.TokenTTL) != got.RetireAfter {
				t.Errorf("what is shown (%s, %s) is not what is enforced (%s, %s)", got.PublishAhead, got.RetireAfter, p.Lead(), p.RetireDelay(p.TokenTTL))
			}
		})
	}
}

// A cache between Rotunda and its consumers hands out a copy that is up to
// max-age old to a consumer that refetches, too.
func TestReachWhenCacheStandsInBetween(t *testing.T) {
	p := DefaultPolicy()
	p.Consumers, p.CDN = named("go-oidc", "jose", "jwks-rsa", "envoy"), true
	got, err := p.Check(ES256)
	if err != nil {
		t.Fatal(err)
	}
	want := [][3]string{ // standby, fresh, refusal
		{"forever", "10m10s", "5m10s"}, // 10s + 5m cached + 5m failing; 10s + 5m
		{"15m10s", "11m10s", "5m40s"},  // 10s + 10m + 5m; 10s + 30s + 5m + 5m + 30s; 10s + 30s + 5m
		{"15m10s", "15m10s", "5m10s"},
		{"20m11s", "20m11s", "15m10s"},
	}
	for i, c := range got.Consumers {
		if c.ReachStandby != dur(t, want[i][0]) || c.ReachFresh != dur(t, want[i][1]) || c.RefusalFresh != dur(t, want[i][2]) {
			t.Errorf("%s: got reach %s and %s, refusal %s, want %v", c.Name, spell(c.ReachStandby), spell(c.ReachFresh), c.RefusalFresh, want[i])
		}
	}
}

func TestPolicyCheckWhenUnsafe(t *testing.T) {
	for _, tc := range []struct {
		name   string
		alg    Algorithm
		change func(*Policy)
		reason string
		field  string
		words  []string
	}{
		{"lead a microsecond short", ES256, func(p *Policy) {
			p.Consumers, p.PublishAhead = named("go-oidc", "envoy"), 15*time.Minute+41*time.Second-time.Microsecond
		}, "lead_too_short", "policy.publish_ahead", []string{"15m40.999999s", "15m41s", "envoy"}},
		{"rotation inside the lead", ES256, func(p *Policy) {
			p.Consumers, p.Rotate.Every, p.TokenTTL = named("envoy"), 15*time.Minute+41*time.Second-time.Microsecond, time.Minute
		}, "rotates_too_often", "policy.rotate", []string{"15m40.999999s", "15m41s", "envoy"}},
		{"rotation inside a lead that was asked for", ES256, func(p *Policy) {
			p.Consumers, p.Rotate.Every, p.PublishAhead = named("envoy"), time.Hour, 2*time.Hour
		}, "rotates_too_often", "policy.rotate", []string{"1h0m0s", "2h0m0s"}},
		{"cron inside the lead", ES256, func(p *Policy) {
			p.Consumers, p.Rotate = named("envoy"), schedule.Schedule{Cron: "0,10 3 * * *"}
		}, "rotates_too_often", "policy.rotate", []string{"10m0s", "15m41s"}},
		{"withdrawn too early", ES256, func(p *Policy) { p.RetireAfter = time.Hour }, "retires_too_early", "policy.retire_after", []string{"1h2m10s", "1h0m0s"}},
		{"withdrawn a microsecond early", ES256, func(p *Policy) { p.RetireAfter = time.Hour + 130*time.Second - time.Microsecond },
			"retires_too_early", "policy.retire_after", []string{"1h2m10s", "1h2m9.999999s"}},
		{"33 keys at once", ES256, func(p *Policy) {
			p.Consumers, p.Rotate.Every, p.TokenTTL = named("envoy"), time.Hour, 30*time.Hour-130*time.Second
		}, "too_many_keys", "policy.rotate", []string{"33", "32", "30h0m0s", "1h0m0s"}},
		{"reach beyond the target", ES256, func(p *Policy) { p.Consumers, p.EmergencyTarget = named("envoy"), 15*time.Minute },
			"reach_too_long", "policy.emergency_target", []string{"15m0s", "15m11s", "envoy"}},
		{"reach without end", ES256, func(p *Policy) { p.Consumers, p.EmergencyTarget = named("envoy-jwt-cache"), maxDuration },
			"reach_too_long", "policy.emergency_target", []string{"unbounded time", "17520h0m0s", "envoy-jwt-cache"}},
		{"algorithm that a consumer can't verify", ES256, func(p *Policy) { p.Consumers = named("envoy", "aws-http-api") }, "profile_algorithm", "algorithm", []string{"ES256", "aws-http-api", "RS256"}},
		{"Ed25519 for Apache", Ed25519, func(p *Policy) { p.Consumers = named("mod_auth_openidc") }, "profile_algorithm", "algorithm", []string{"Ed25519", "mod_auth_openidc"}},
		{"unknown profile", ES256, func(p *Policy) { p.Consumers = named("envoi") }, "unknown_profile", "policy.profiles", []string{"envoi"}},
		{"empty profile", ES256, func(p *Policy) { p.Consumers = named("") }, "unknown_profile", "policy.profiles", nil},
		{"33 profiles", ES256, func(p *Policy) { p.Consumers = slices.Repeat(named("envoy"), 33) }, "too_many", "policy.profiles", []string{"33", "32"}},
		{"cache of a consumer that follows max-age", ES256, func(p *Policy) { p.Consumers = []Consumer{{Name: "jwx", Cache: ptr(time.Hour)}} }, "profile_override", "policy.profiles", []string{"jwx", "cache"}},
		{"throttle of a consumer that never refetches", ES256, func(p *Policy) { p.Consumers = []Consumer{{Name: "envoy", Throttle: ptr(time.Hour)}} }, "profile_override", "policy.profiles", []string{"envoy", "throttle"}},
		{"interval of a consumer with a cache", ES256, func(p *Policy) { p.Consumers = []Consumer{{Name: "envoy", MaxInterval: ptr(time.Hour)}} }, "profile_override", "policy.profiles", []string{"max_interval"}},
		{"intervals crossed", ES256, func(p *Policy) { p.Consumers = []Consumer{{Name: "jwx", MaxInterval: ptr(time.Minute)}} }, "profile_override", "policy.profiles", []string{"15m0s", "1m0s"}},
		{"negative cache", ES256, func(p *Policy) { p.Consumers = []Consumer{{Name: "envoy", Cache: ptr(-time.Second)}} }, "duration_range", "policy.profiles", []string{"-1s"}},
		{"endless cache", ES256, func(p *Policy) { p.Consumers = []Consumer{{Name: "envoy", Cache: ptr(Forever)}} }, "duration_range", "policy.profiles", []string{"17520h0m0s"}},
		{"no token life", ES256, func(p *Policy) { p.TokenTTL = 0 }, "duration_range", "policy.token_ttl", []string{"0s", "1s"}},
		{"half a second of life", ES256, func(p *Policy) { p.TokenTTL = time.Second / 2 }, "duration_range", "policy.token_ttl", nil},
		{"token life over two years", ES256, func(p *Policy) { p.TokenTTL = maxDuration + 1 }, "duration_range", "policy.token_ttl", nil},
		{"token life that overflows", ES256, func(p *Policy) { p.TokenTTL = Forever }, "duration_range", "policy.token_ttl", nil},
		{"negative token life", ES256, func(p *Policy) { p.TokenTTL = -time.Hour }, "duration_range", "policy.token_ttl", nil},
		{"negative lead", ES256, func(p *Policy) { p.PublishAhead = -1 }, "duration_range", "policy.publish_ahead", nil},
		{"lead that overflows", ES256, func(p *Policy) { p.PublishAhead = Forever }, "duration_range", "policy.publish_ahead", nil},
		{"negative delay", ES256, func(p *Policy) { p.RetireAfter = -1 }, "duration_range", "policy.retire_after", nil},
		{"delay that overflows", ES256, func(p *Policy) { p.RetireAfter = Forever }, "duration_range", "policy.retire_after", nil},
		{"negative target", ES256, func(p *Policy) { p.EmergencyTarget = -1 }, "duration_range", "policy.emergency_target", nil},
		{"max-age over five minutes", ES256, func(p *Policy) { p.MaxAge = 5*time.Minute + 1 }, "duration_range", "policy.max_age", nil},
		{"negative max-age", ES256, func(p *Policy) { p.MaxAge = -1 }, "duration_range", "policy.max_age", nil},
		{"leeway over an hour", ES256, func(p *Policy) { p.Leeway = time.Hour + 1 }, "duration_range", "policy.leeway", nil},
		{"negative leeway", ES256, func(p *Policy) { p.Leeway = -1 }, "duration_range", "policy.leeway", nil},
		{"skew that overflows when doubled", ES256, func(p *Policy) { p.Skew = Forever/2 + 1 }, "duration_range", "policy.skew", nil},
		{"negative propagation", ES256, func(p *Policy) { p.Propagation = -1 }, "duration_range", "policy.propagation", nil},
		{"propagation over a day", ES256, func(p *Policy) { p.Propagation = 24*time.Hour + 1 }, "duration_range", "policy.propagation", nil},
		{"fetches that fail forever", ES256, func(p *Policy) { p.FetchFailure = Forever }, "duration_range", "policy.fetch_failure", nil},
		{"negative failure", ES256, func(p *Policy) { p.FetchFailure = -1 }, "duration_range", "policy.fetch_failure", nil},
		{"unknown fallback", ES256, func(p *Policy) { p.Fallback = "maybe" }, "unknown_value", "policy.fallback", []string{"maybe"}},
		{"no fallback said", ES256, func(p *Policy) { p.Fallback = "" }, "unknown_value", "policy.fallback", nil},
		{"unknown overlong", ES256, func(p *Policy) { p.Overlong = "cut" }, "unknown_value", "policy.overlong", []string{"cut"}},
		{"no schedule", ES256, func(p *Policy) { p.Rotate = schedule.Schedule{} }, "schedule_required", "policy.rotate.every", nil},
		{"bad zone", ES256, func(p *Policy) { p.Rotate = schedule.Schedule{Cron: "@daily", Zone: "Mars/Olympus"} }, "zone_unknown", "policy.rotate.zone", nil},
		{"bad cron", ES256, func(p *Policy) { p.Rotate = schedule.Schedule{Cron: "61 * * * *"} }, "cron_malformed", "policy.rotate.cron", nil},
		{"the zero policy", ES256, func(p *Policy) { *p = Policy{} }, "duration_range", "policy.token_ttl", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := DefaultPolicy()
			tc.change(&p)
			_, err := p.Check(tc.alg)
			wantFault(t, err, fault.ErrInvalid, tc.reason, tc.field, tc.words...)
		})
	}
}

func TestPolicyWarnings(t *testing.T) {
	for _, tc := range []struct {
		name string
		p    func(*Policy)
		want []string
	}{
		{"unknown consumers", func(*Policy) {}, []string{"no consumer profile is named"}},
		{"nothing to warn of", func(p *Policy) { p.Consumers = named("envoy") }, nil},
		{"only a fresh kid evicts", func(p *Policy) { p.Consumers = named("go-oidc") }, []string{"revoke with mode fresh", "no lead helps"}},
		{"nothing evicts", func(p *Policy) { p.Consumers = named("envoy-jwt-cache") }, []string{"restart it after a revocation"}},
		{"short max-age", func(p *Policy) { p.Consumers, p.MaxAge = named("envoy"), 59*time.Second }, []string{"59s"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := DefaultPolicy()
			tc.p(&p)
			got, err := p.Check(ES256)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Warnings) != len(tc.want) {
				t.Fatalf("warnings %q, want %q", got.Warnings, tc.want)
			}
			for i, w := range tc.want {
				if !strings.Contains(got.Warnings[i], w) {
					t.Errorf("warning %q lacks %q", got.Warnings[i], w)
				}
			}
		})
	}
}

func TestCheckName(t *testing.T) {
	for _, ok := range []string{"a", "7", "payments", "a-b", "a--b", strings.Repeat("x", 63)} {
		if err := checkName(ok); err != nil {
			t.Errorf("name %q is refused: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "-", "-a", "a-", "A", "a b", "a_b", "a.b", "a/b", "ä", "a\n", "a\x00", "..", strings.Repeat("x", 64), strings.Repeat("ä", 50)} {
		wantFault(t, checkName(bad), fault.ErrInvalid, "bad_name", "name")
	}
}

func TestCheckIssuer(t *testing.T) {
	for _, ok := range []string{
		"https://auth.example.com", "https://auth.example.com/", "https://auth.example.com:8443/a/b", "https://[2001:db8::1]/x",
		"http://localhost", "http://localhost:8470/x", "http://127.0.0.1:1", "http://[::1]:80",
		"https://a.b/" + strings.Repeat("x", 500),
	} {
		if err := checkIssuer(ok); err != nil {
			t.Errorf("issuer %q is refused: %v", ok, err)
		}
	}
	for _, bad := range []string{
		"", "auth.example.com", "//auth.example.com", "https:auth.example.com", "https://", "https:///path", "http://auth.example.com",
		"http://127.0.0.1.example.com", "http://localhost.example.com", "http://127.0.0.2", "ftp://localhost", "HTTP://example.com",
		"https://a.b?x=1", "https://a.b?", "https://a.b#f", "https://a.b#", "https://user@a.b", "https://user:secret@a.b",
		"https://a.b/%zz", "https://a b", "https://a.b/\x00", "https://:443", "https://a.b/" + strings.Repeat("x", 501),
		"https://a.b/\xff", "javascript:alert(1)",
	} {
		err := checkIssuer(bad)
		if err == nil {
			t.Errorf("issuer %q is let through", bad)
			continue
		}
		wantFault(t, err, fault.ErrInvalid, "bad_issuer", "issuer")
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("the password is in the message: %v", err)
		}
	}
}
