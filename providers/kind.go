package providers

import (
	"context"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Setting is one thing that can be set of a store, a target, or a credential of a
// target. All of them together are the reference in docs/ and the JSON Schema.
type Setting struct {
	Name     string // lower_snake
	Doc      string // one line; begins in lower case, has no full stop
	Default  string // empty: none
	Required bool
	Pattern  string   // regular expression for the whole; empty: any text up to 1,024 bytes
	OneOf    []string // instead of Pattern
}

// Config is what an adapter is opened with. Settings are complete: defaults filled in,
// nothing unknown.
type Config struct {
	Name     string
	Settings map[string]string
	Login    Fields // secret settings, by the names of Kind.Login
	Now      func() time.Time
}

// TargetKind describes a kind of target.
type TargetKind struct {
	Name     string // "postgres"
	Doc      string // one sentence
	Settings []Setting
	Login    []Setting // secret
	Params   []Setting // of a credential
	Traits   Traits

	// Open checks the configuration. It need not reach the target.
	Open func(ctx context.Context, c Config) (Target, error)
}

// StoreKind describes a kind of store.
type StoreKind struct {
	Name     string // "vault-kv"
	Doc      string
	Settings []Setting
	Login    []Setting // secret
	Path     Setting   // what a path looks like
	Traits   StoreTraits
	Open     func(ctx context.Context, c Config) (Store, error)
}

const maxSetting = 1024

// Complete checks given against the declared settings and returns them with defaults
// filled in. field is how the API calls the whole: "settings", "params". Unknown and
// malformed ones are fault.ErrInvalid; values of secret settings are not quoted,
// because none is.
func Complete(field string, declared []Setting, given map[string]string) (map[string]string, error) {
	out := make(map[string]string, len(declared))
	for _, s := range declared {
		v, ok := given[s.Name]
		if !ok || v == "" {
			if s.Required {
				return nil, fault.Invalid(field+"."+s.Name, "setting_missing", "%s is missing: %s", s.Name, s.Doc)
			}
			if s.Default != "" {
				out[s.Name] = s.Default
			}
			continue
		}
		switch {
		case len(v) > maxSetting && s.Pattern == "":
			return nil, fault.Invalid(field+"."+s.Name, "setting_too_long", "%s has %d bytes, at most %d are allowed", s.Name, len(v), maxSetting)
		case len(s.OneOf) > 0 && !slices.Contains(s.OneOf, v):
			return nil, fault.Invalid(field+"."+s.Name, "setting_unknown_value", "%s is none of %q: %s", s.Name, s.OneOf, s.Doc)
		case s.Pattern != "" && !regexp.MustCompile(`^(?:`+s.Pattern+`)$`).MatchString(v):
			return nil, fault.Invalid(field+"."+s.Name, "setting_malformed", "%s does not look like %s: %s", s.Name, s.Pattern, s.Doc)
		}
		out[s.Name] = v
	}
	for name := range given {
		if !slices.ContainsFunc(declared, func(s Setting) bool { return s.Name == name }) {
			names := make([]string, len(declared))
			for i, s := range declared {
				names[i] = s.Name
			}
			return nil, fault.Invalid(field, "setting_unknown", "%.64q is no setting here: there are %q", name, names)
		}
	}
	return out, nil
}

// Plaintext is the setting by which an adapter may speak without TLS to another machine.
func Plaintext() Setting {
	return Setting{Name: "plaintext", Doc: "allow: speak without TLS also to another machine", OneOf: []string{"allow", "refuse"}, Default: "refuse"}
}

// CheckPlaintext refuses plain text to host unless it is loopback or allowed.
func CheckPlaintext(c Config, host string) error {
	if c.Settings["plaintext"] == "allow" || Loopback(host) {
		return nil
	}
	return fault.Invalid("settings.address", "plaintext", "%s: %.200q would be spoken to without TLS, and the login with it: use TLS, or set plaintext=allow if nobody else can listen", c.Name, host)
}

// Loopback says whether host, without port, is this machine by its name or number.
func Loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// CheckURL parses the address of an HTTP service, and refuses user names in it,
// queries, and plain text where that is not allowed.
func CheckURL(c Config, address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fault.Invalid("settings.address", "address_malformed", "%s: the address is not https://HOST[:PORT][/PATH], without user name and query", c.Name)
	}
	if u.Scheme == "http" {
		if err := CheckPlaintext(c, u.Hostname()); err != nil {
			return nil, err
		}
	}
	return u, nil
}
