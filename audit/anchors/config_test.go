package anchors

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

func TestValidateWhenASettingIsWrong(t *testing.T) {
	t.Parallel()
	s3 := Config{Kind: S3, Origin: origin, Address: "my-bucket", Region: "eu-central-1", AccessKey: "AKIA", Secret: secret.FromString("hush-hush")}
	hook := Config{Kind: Webhook, Origin: origin, Address: "https://hooks.example/token-in-path?k=token-in-query", Secret: secret.FromString("hush-hush")}
	file := Config{Kind: File, Origin: origin, Address: "/srv/worm"}
	for _, c := range []Config{s3, hook, file} {
		if err := Validate(c); err != nil {
			t.Errorf("%s: %v", c.Kind, err)
		}
	}
	with := func(c Config, f func(*Config)) Config { f(&c); return c }
	for _, tt := range []struct {
		c             Config
		field, reason string
	}{
		{with(file, func(c *Config) { c.Kind = "ftp" }), "kind", "kind_unknown"},
		{with(file, func(c *Config) { c.Origin = "" }), "origin", "origin_malformed"},
		{with(file, func(c *Config) { c.Origin = "a b" }), "origin", "origin_malformed"},
		{with(file, func(c *Config) { c.Origin = "a\x00b" }), "origin", "origin_malformed"},
		{with(file, func(c *Config) { c.Origin = strings.Repeat("+", 80) }), "origin", "origin_too_long"},
		{with(file, func(c *Config) { c.Address = "relative" }), "address", "folder_not_absolute"},
		{with(file, func(c *Config) { c.Address = "/a/../b" }), "address", "folder_not_absolute"},
		{with(file, func(c *Config) { c.Secret = hook.Secret }), "secret", "not_of_this_kind"},
		{with(file, func(c *Config) { c.RetainDays = 3 }), "retain_days", "not_of_this_kind"},
		{with(hook, func(c *Config) { c.Region = "x" }), "region", "not_of_this_kind"},
		{with(hook, func(c *Config) { c.NoLatest = true }), "no_latest", "not_of_this_kind"},
		{with(hook, func(c *Config) { c.Address = "http://hooks.example/token-in-path" }), "address", "url_not_https"},
		{with(hook, func(c *Config) { c.Address = "http://localhost.example/token-in-path" }), "address", "url_not_https"},
		{with(hook, func(c *Config) { c.Address = "ftp://hooks.example/" }), "address", "url_not_https"},
		{with(hook, func(c *Config) { c.Address = "https://me:hush-hush@hooks.example/" }), "address", "url_has_password"},
		{with(hook, func(c *Config) { c.Address = "https:///token-in-path" }), "address", "url_malformed"},
		{with(hook, func(c *Config) { c.Address = "https://hooks.example/%zz?hush-hush" }), "address", "url_malformed"},
		{with(hook, func(c *Config) { c.Address = "https://hooks.example/#hush-hush" }), "address", "url_malformed"},
		{with(hook, func(c *Config) { c.Secret = secret.FromString("hush-hush\n") }), "secret", "secret_malformed"},
		{with(hook, func(c *Config) { c.Secret = secret.FromString(strings.Repeat("h", 5000)) }), "secret", "secret_too_long"},
		{with(s3, func(c *Config) { c.Address = "Bucket" }), "address", "bucket_malformed"},
		{with(s3, func(c *Config) { c.Region = "" }), "region", "region_malformed"},
		{with(s3, func(c *Config) { c.Prefix = "/a" }), "prefix", "prefix_malformed"},
		{with(s3, func(c *Config) { c.Prefix = "a//b" }), "prefix", "prefix_malformed"},
		{with(s3, func(c *Config) { c.AccessKey = "" }), "access_key", "access_key_malformed"},
		{with(s3, func(c *Config) { c.Secret = secret.Value{} }), "secret", "secret_required"},
		{with(s3, func(c *Config) { c.RetainDays = -1 }), "retain_days", "retain_days_out_of_bounds"},
		{with(s3, func(c *Config) { c.RetainDays = MaxRetainDays + 1 }), "retain_days", "retain_days_out_of_bounds"},
		{with(s3, func(c *Config) { c.RetainDays = 1 }), "now", "clock_required"},
		{with(s3, func(c *Config) { c.Endpoint = "http://s3.example" }), "endpoint", "url_not_https"},
		{with(s3, func(c *Config) { c.Endpoint = "https://s3.example/path" }), "endpoint", "endpoint_has_path"},
	} {
		err := Validate(tt.c)
		e, ok := errors.AsType[*fault.Error](err)
		if !ok || !errors.Is(err, fault.ErrInvalid) || e.Field != tt.field || e.Reason != tt.reason {
			t.Errorf("%v, want %s at %s", err, tt.reason, tt.field)
			continue
		}
		if strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "token-in") {
			t.Errorf("the error shows a secret: %v", err)
		}
		if _, opened := Open(tt.c); !errors.Is(opened, fault.ErrInvalid) {
			t.Errorf("it was opened: %v", opened)
		}
	}
	if err := Validate(with(s3, func(c *Config) { c.RetainDays, c.Now = 365, time.Now })); err != nil {
		t.Error(err)
	}
}

func TestWitnessWhenItsConfigurationIsWrong(t *testing.T) {
	t.Parallel()
	_, err := OpenWitness(WitnessConfig{URL: "https://witness.example/w1"})
	wantFault(t, err, fault.ErrInvalid, "key_required")
	key, err := trail.ParseWitness(sampleWitness)
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenWitness(WitnessConfig{URL: "http://witness.example/w1", Key: key})
	wantFault(t, err, fault.ErrInvalid, "url_not_https")
	_, err = OpenWitness(WitnessConfig{URL: "https://witness.example/w1?x=1", Key: key})
	wantFault(t, err, fault.ErrInvalid, "url_malformed")
	w := openWitness(t, WitnessConfig{URL: "https://witness.example/w1/", Key: key})
	if w.url != "https://witness.example/w1/add-checkpoint" || w.Name() != "witness.example/w1" {
		t.Errorf("%s, %s", w.url, w.Name())
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"https://a.example/x?y", "http://127.0.0.1:1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://127.1/", "https://u:p@h/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := parseURL("address", raw)
		if err == nil && (u.User != nil || u.Hostname() == "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname()))) {
			t.Errorf("%q was taken", raw)
		}
	})
}
