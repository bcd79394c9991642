package sinks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

// Sink is a place that keeps a copy of the trail. One goroutine uses it at a time.
type Sink interface {
	// Send delivers at least one record, in order. When it returns nil all of them are durable at
	// the other side, as far as its protocol can tell. After an error the same
	// records are sent again: some of them may have arrived.
	//
	// fault.ErrRejected: the other side refuses some of these very records, and will
	// again. Every other error is worth another try; a [Later] says when.
	Send(ctx context.Context, records []trail.Record) error
	Close() error
}

// Holder is a Sink whose other side may still lose what it took.
type Holder interface {
	// Hold is how long a delivered record may be lost at the other side.
	Hold() time.Duration
	// Alive returns an error when the other side may have restarted since the last
	// Send: what was delivered within Hold must then be sent again. It does not block.
	Alive() error
}

// Later is an error of a Sink that is too busy, and says when to try again.
type Later struct {
	After time.Duration // 0 to 5 min
	Err   error
}

func (l *Later) Error() string { return l.Err.Error() }

// Unwrap returns what happened.
func (l *Later) Unwrap() error { return l.Err }

// The kinds of sinks.
const (
	Syslog = "syslog" // tls://host[:6514], or tcp://127.0.0.1:port
	Splunk = "splunk" // https://host[:port][/services/collector/event]
	HTTPS  = "https"  // https://host/path
	OTLP   = "otlp"   // https://host[:port][/v1/logs]
	File   = "file"   // /absolute/path
)

// The formats of a record.
const (
	JSON = "json"
	CEF  = "cef"
)

// Config says where a copy of the trail goes. Its JSON form holds no secret.
type Config struct {
	Kind    string `json:"kind"`
	Address string `json:"address"`          // see the kinds; holds no user and no password
	Format  string `json:"format,omitempty"` // JSON when empty, or CEF

	CA         string `json:"ca,omitempty"`          // PEM: whom to trust; empty: the system's authorities
	ServerName string `json:"server_name,omitempty"` // the name in the other side's certificate; empty: the address's host
	ClientCert string `json:"client_cert,omitempty"` // PEM chain: how to show who we are; needs ClientKey

	// Options of the kind; unknown names are refused.
	//
	//	syslog  hostname  what to say in HOSTNAME; default "-"
	//	        sd_id     the structured data's id; default "rotunda@32473"
	//	        hold      how long the receiver may keep messages in memory; default "10s", at most "10m"
	//	        ack       "tls": wait for the receiver's close_notify; "tcp": its end of the connection is enough
	//	splunk  index, source, sourcetype, host   metadata of the events; sourcetype defaults to "rotunda:event"
	//	        ack       "true": wait until the indexers have it (the token must have acknowledgement on)
	//	https   auth      "bearer" (default), "standard-webhooks" or "none"
	//	file    max_bytes size of a file, default 104857600; at least 65536
	//	        keep      how many full files to keep, 1 to 10000, default 10
	Options map[string]string `json:"options,omitempty"`

	DialTimeout time.Duration `json:"dial_timeout,omitempty"` // 5 s when 0; at most 1 min
	Timeout     time.Duration `json:"timeout,omitempty"`      // of a whole request; 10 s when 0; at most 5 min

	Secret    secret.Value `json:"-"` // the token, or the key of the signature: "whsec_…" or raw
	ClientKey secret.Value `json:"-"` // PEM

	Now func() time.Time `json:"-"` // the clock of signatures and observed times; OTLP and standard-webhooks need it
}

var kindOptions = map[string][]string{
	Syslog: {"hostname", "sd_id", "hold", "ack"},
	Splunk: {"index", "source", "sourcetype", "host", "ack"},
	HTTPS:  {"auth"},
	OTLP:   {},
	File:   {"max_bytes", "keep"},
}

// Bounds of a Config, in bytes.
const (
	maxAddress = 2 << 10
	maxOption  = 255
	maxPEM     = 256 << 10
	maxSecret  = 4 << 10
)

// Validate returns fault.ErrInvalid, with the field at fault, for a Config that
// Open can never use. It opens nothing.
func Validate(c Config) error {
	_, err := parse(c)
	return err
}

// Open returns the sink of a Config. It connects to nothing yet; a file is opened.
func Open(c Config) (Sink, error) {
	p, err := parse(c)
	if err != nil {
		return nil, err
	}
	switch c.Kind {
	case Syslog:
		return openSyslog(p), nil
	case Splunk:
		return openSplunk(p), nil
	case HTTPS:
		return openHTTPS(p), nil
	case OTLP:
		return openOTLP(p), nil
	default:
		return openFile(p)
	}
}

// parsed is a Config that was checked.
type parsed struct {
	Config
	url    *url.URL
	tls    *tls.Config
	encode encoder

	hold     time.Duration
	maxBytes int64
	keep     int
	key      []byte // of the signature
}

func parse(c Config) (*parsed, error) {
	p := &parsed{Config: c}
	names, ok := kindOptions[c.Kind]
	if !ok {
		return nil, fault.Invalid("kind", "unknown_kind", "there is no sink of kind %.40q: use syslog, splunk, https, otlp or file", c.Kind)
	}
	if p.encode, ok = encoders[c.Format]; !ok {
		return nil, fault.Invalid("format", "unknown_format", "a sink has no format %.40q: use json or cef", c.Format)
	}
	for name, value := range c.Options {
		if !slices.Contains(names, name) {
			return nil, fault.Invalid("options", "unknown_option", "a %s sink has no option %.40q: it has %s", c.Kind, name, strings.Join(names, ", "))
		}
		if len(value) > maxOption || !isPrintable(value) {
			return nil, fault.Invalid("options."+name, "bad_option", "option %s must be printable ASCII of at most %d characters", name, maxOption)
		}
	}
	for _, d := range []struct {
		field string
		value *time.Duration
		def   time.Duration
		most  time.Duration
	}{{"dial_timeout", &p.DialTimeout, 5 * time.Second, time.Minute}, {"timeout", &p.Timeout, 10 * time.Second, 5 * time.Minute}} {
		if *d.value < 0 || *d.value > d.most {
			return nil, fault.Invalid(d.field, "out_of_range", "%s %v is not between 0 and %v", d.field, *d.value, d.most)
		}
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	if c.Secret.Len() > maxSecret {
		return nil, fault.Invalid("secret", "too_long", "the sink's secret has more than %d bytes", maxSecret)
	}
	if c.Kind == File {
		return p, p.parseFile()
	}
	if err := p.parseAddress(); err != nil {
		return nil, err
	}
	if err := p.parseTLS(); err != nil {
		return nil, err
	}
	return p, p.parseKind()
}

func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

func (p *parsed) parseFile() error {
	clean := p.Address != "" && filepath.IsAbs(p.Address) && filepath.Clean(p.Address) == p.Address && len(p.Address) <= maxAddress
	if !clean || strings.ContainsRune(p.Address, 0) {
		return fault.Invalid("address", "bad_path", "a file sink needs an absolute path of a file, such as /var/log/rotunda/trail.jsonl")
	}
	if err := p.number("max_bytes", &p.maxBytes, 100<<20, 64<<10, 1<<40); err != nil {
		return err
	}
	var keep int64
	err := p.number("keep", &keep, 10, 1, 10000)
	p.keep = int(keep)
	return err
}

func (p *parsed) number(option string, to *int64, def, least, most int64) error {
	*to = def
	text, ok := p.Options[option]
	if !ok {
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least || n > most {
		return fault.Invalid("options."+option, "out_of_range", "option %s must be a number from %d to %d", option, least, most)
	}
	*to = n
	return nil
}

// schemes are the safe scheme of each kind, and the one that is allowed on this
// machine only.
var schemes = map[string][2]string{Syslog: {"tls", "tcp"}, Splunk: {"https", "http"}, HTTPS: {"https", "http"}, OTLP: {"https", "http"}}

func (p *parsed) parseAddress() error {
	u, err := url.Parse(p.Address)
	if err != nil || len(p.Address) > maxAddress {
		return fault.Invalid("address", "bad_address", "the sink's address can't be read: it has the form %s://host:port", schemes[p.Kind][0])
	}
	if u.User != nil {
		return fault.Invalid("address", "secret_in_address", "the sink's address has a user or a password, and addresses are shown: give the secret by itself")
	}
	scheme := schemes[p.Kind]
	host := u.Hostname()
	switch u.Scheme {
	case scheme[0]:
	case scheme[1]:
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return fault.Invalid("address", "plain_text", "%s:// sends the trail unencrypted: it is for 127.0.0.1 and [::1] only; use %s://", scheme[1], scheme[0])
		}
	default:
		return fault.Invalid("address", "bad_scheme", "a %s sink has an address that begins with %s://", p.Kind, scheme[0])
	}
	if host == "" || u.Opaque != "" || u.Fragment != "" {
		return fault.Invalid("address", "bad_address", "the sink's address names no host: it has the form %s://host:port", scheme[0])
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return fault.Invalid("address", "bad_address", "the sink's address has a port that is no number from 1 to 65535")
		}
	}
	p.url = u
	return nil
}

func (p *parsed) parseTLS() error {
	p.tls = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: p.ServerName}
	if p.ServerName == "" {
		p.tls.ServerName = p.url.Hostname()
	}
	if len(p.CA) > maxPEM || len(p.ClientCert) > maxPEM || p.ClientKey.Len() > maxPEM {
		return fault.Invalid("ca", "too_long", "the sink's certificates have more than %d bytes", maxPEM)
	}
	if p.CA != "" {
		p.tls.RootCAs = x509.NewCertPool()
		if !p.tls.RootCAs.AppendCertsFromPEM([]byte(p.CA)) {
			return fault.Invalid("ca", "bad_pem", "ca has no certificate in PEM form")
		}
	}
	if (p.ClientCert == "") != p.ClientKey.IsZero() {
		return fault.Invalid("client_cert", "half_given", "a client certificate and its key are given together, or neither")
	}
	if p.ClientCert != "" {
		pair, err := tls.X509KeyPair([]byte(p.ClientCert), p.ClientKey.Reveal())
		if err != nil {
			// The cause may quote what it could not read, and that may be the key.
			return fault.Invalid("client_cert", "bad_pem", "the client certificate and its key can't be read, or do not belong together")
		}
		p.tls.Certificates = []tls.Certificate{pair}
	}
	return nil
}

func (p *parsed) parseKind() error {
	switch p.Kind {
	case Syslog:
		if p.url.Path != "" || p.url.RawQuery != "" {
			return fault.Invalid("address", "bad_address", "a syslog sink's address has no path: tls://host:6514")
		}
		return p.parseSyslog()
	case Splunk:
		if p.Secret.IsZero() {
			return fault.Invalid("secret", "missing_secret", "a splunk sink needs the token of its HTTP Event Collector")
		}
		if a := p.Options["ack"]; a != "" && a != "true" && a != "false" {
			return fault.Invalid("options.ack", "bad_option", "option ack is true or false")
		}
	case HTTPS:
		switch auth := p.Options["auth"]; auth {
		case "", "bearer":
			if p.Secret.IsZero() {
				return fault.Invalid("secret", "missing_secret", "an https sink needs a token (or the option auth=standard-webhooks with a key, or auth=none)")
			}
		case "standard-webhooks":
			return p.parseKey()
		case "none":
			if !p.Secret.IsZero() {
				return fault.Invalid("secret", "unused_secret", "the sink has a secret, and auth=none would not use it")
			}
		default:
			return fault.Invalid("options.auth", "bad_option", "option auth is bearer, standard-webhooks or none")
		}
	case OTLP:
		if p.Now == nil {
			return fmt.Errorf("open an otlp sink: Config.Now is nil")
		}
	}
	if s := p.Secret.RevealString(); !isPrintable(s) {
		return fault.Invalid("secret", "bad_secret", "a token is printable ASCII: it may have a line break at its end")
	}
	return nil
}
