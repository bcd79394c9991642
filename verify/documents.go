package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/json"
)

const (
	maxRedirects  = 3
	discoveryFor  = time.Hour // then the JWKS URL is looked up again
	maxHeaderSize = 64 << 10
)

// documents fetches the JWKS of an issuer, and the discovery document that names
// it. Its fetches follow one another, so it has no lock.
type documents struct {
	cfg  *TokensConfig
	http *http.Client

	jwksURL string
	foundAt time.Time // by discovery
}

func newDocuments(cfg *TokensConfig) *documents {
	return &documents{cfg: cfg, http: boundedClient(cfg.HTTPClient, redirectsWithin), jwksURL: cfg.JWKSURL}
}

// boundedClient is the caller's client with our redirect rule and without cookies,
// or a new one.
func boundedClient(from *http.Client, redirect func(*http.Request, []*http.Request) error) *http.Client {
	if from == nil {
		from = &http.Client{}
		if base, ok := http.DefaultTransport.(*http.Transport); ok {
			tr := base.Clone()
			tr.MaxResponseHeaderBytes = maxHeaderSize
			from.Transport = tr
		}
	}
	c := *from
	c.CheckRedirect, c.Jar = redirect, nil
	return &c
}

// redirectsWithin follows redirects within one origin only: who can make a host
// redirect may not be who owns its keys.
func redirectsWithin(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if first := via[0].URL; req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
		return fmt.Errorf("a redirect to %s, which is another origin: give that URL", req.URL.Redacted())
	}
	return nil
}

func (c *TokensConfig) checkURLs() error {
	if c.JWKSURL != "" && c.DiscoveryURL != "" {
		return errors.New("JWKSURL and DiscoveryURL are both set: set one")
	}
	if c.JWKSURL != "" {
		return c.checkURL("JWKSURL", c.JWKSURL)
	}
	if c.DiscoveryURL == "" {
		c.DiscoveryURL = strings.TrimSuffix(c.Issuer, "/") + "/.well-known/openid-configuration"
	}
	return c.checkURL("DiscoveryURL", c.DiscoveryURL)
}

func (c *TokensConfig) checkURL(name, text string) error {
	if err := checkURL(text, c.AllowHTTP); err != nil {
		return fmt.Errorf("%s %w", name, err)
	}
	return nil
}

// checkURL accepts https, and http to this very host.
func checkURL(text string, allowHTTP bool) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		return fmt.Errorf("is %q, which is not a URL with a host", text)
	case u.User != nil || u.Fragment != "":
		return errors.New("has a user name or a fragment: leave it out")
	case u.Scheme == "https":
		return nil
	case u.Scheme != "http":
		return fmt.Errorf("is %q: only https is spoken", text)
	case allowHTTP || isLoopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("is %q: use https, or set AllowHTTP", text)
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// fetch returns the set as its server has it now. old may be nil.
func (d *documents) fetch(ctx context.Context, old *keySet, revalidate bool) (*keySet, error) {
	from, err := d.where(ctx)
	if err != nil {
		return nil, fmt.Errorf("finding the JWKS of %s: %w", d.cfg.Issuer, err)
	}
	set, err := d.jwks(ctx, from, old, revalidate)
	if err != nil {
		d.foundAt = time.Time{} // it may have moved
		return nil, fmt.Errorf("fetching the JWKS at %s: %w", from, err)
	}
	return set, nil
}

// where is the URL of the JWKS. When discovery fails, the one that is known will do.
func (d *documents) where(ctx context.Context) (string, error) {
	now := d.cfg.Now()
	if d.cfg.DiscoveryURL == "" || !d.foundAt.IsZero() && now.Sub(d.foundAt) < discoveryFor {
		return d.jwksURL, nil
	}
	found, err := d.discover(ctx)
	if err != nil {
		if d.jwksURL != "" {
			return d.jwksURL, nil
		}
		return "", err
	}
	d.jwksURL, d.foundAt = found, now
	return found, nil
}

// discover reads the metadata of OpenID Connect Discovery or RFC 8414.
func (d *documents) discover(ctx context.Context) (string, error) {
	res, err := d.get(ctx, d.cfg.DiscoveryURL, "", true)
	if err != nil {
		return "", err
	}
	var doc struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if nesting(res.body) > 16 || json.Unmarshal(res.body, &doc) != nil {
		return "", fmt.Errorf("%s is not a JSON object", d.cfg.DiscoveryURL)
	}
	if doc.Issuer != d.cfg.Issuer {
		return "", fmt.Errorf("%s is the document of another issuer, %s", d.cfg.DiscoveryURL, quote(doc.Issuer))
	}
	if err := d.cfg.checkURL("its jwks_uri", doc.JWKSURI); err != nil {
		return "", err
	}
	return doc.JWKSURI, nil
}

func (d *documents) jwks(ctx context.Context, from string, old *keySet, revalidate bool) (*keySet, error) {
	begin := d.cfg.Now()
	etag := ""
	if old != nil && old.url == from {
		etag = old.etag
	}
	res, err := d.get(ctx, from, etag, revalidate)
	if err != nil {
		return nil, err
	}
	set := &keySet{fetched: begin, url: from, etag: res.header.Get("ETag")}
	if res.status == http.StatusNotModified {
		// It confirms what was asked about, not whatever tag it names.
		set.keys, set.etag = old.keys, old.etag
	} else if set.keys, err = parseSet(res.body); err != nil {
		return nil, fmt.Errorf("it can't be used: %w", err)
	}
	if len(set.etag) > 1024 {
		set.etag = ""
	}
	age := min(max(lifetime(res.header), minAge), d.cfg.MaxAge)
	set.expiresAt = begin.Add(age)
	set.refreshAt = begin.Add(age / 5 * 4)
	return set, nil
}

// lifetime is how long a response is fresh (RFC 9111, section 4.2): max-age less
// the age that it has already.
func lifetime(h http.Header) time.Duration {
	const most = 10 * 365 * 24 * 60 * 60
	age, said := int64(noHeaderAge/time.Second), false
	for _, line := range h.Values("Cache-Control") {
		for directive := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
			switch strings.ToLower(name) {
			case "no-store", "no-cache":
				return 0
			case "max-age":
				n, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 63)
				switch {
				case errors.Is(err, strconv.ErrRange):
					n = most
				case err != nil:
					n = 0 // it wanted to say something: stale (section 4.2.1)
				}
				if v := int64(min(n, most)); !said || v < age {
					age, said = v, true
				}
			}
		}
	}
	if already, err := strconv.ParseUint(h.Get("Age"), 10, 31); err == nil {
		age -= int64(already)
	}
	return time.Duration(max(age, 0)) * time.Second
}

type response struct {
	status int // 200, or 304 when a tag was sent
	header http.Header
	body   []byte
}

func (d *documents) get(ctx context.Context, from, etag string, revalidate bool) (*response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	req.Header.Set("User-Agent", "rotunda-verify")
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	if revalidate {
		req.Header.Set("Cache-Control", "no-cache")
	}
	res, err := d.http.Do(req)
	if err != nil {
		return nil, shortNetworkError(err)
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusNotModified && etag != "":
		return &response{status: res.StatusCode, header: res.Header}, nil
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the answer is %d and not 200", res.StatusCode)
	}
	if media, _, err := mime.ParseMediaType(res.Header.Get("Content-Type")); err != nil || !isJSON(media) {
		return nil, fmt.Errorf("the answer has the type %s and not application/json", quote(res.Header.Get("Content-Type")))
	}
	// The limit holds for what comes out of a compressed answer.
	body, err := io.ReadAll(io.LimitReader(res.Body, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("the answer breaks off: %w", shortNetworkError(err))
	}
	if len(body) > maxDocument {
		return nil, fmt.Errorf("the answer has more than %d bytes", maxDocument)
	}
	return &response{status: res.StatusCode, header: res.Header, body: body}, nil
}

func isJSON(media string) bool {
	return media == "application/json" || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json")
}

// shortNetworkError drops the method and URL that the caller says anyway.
func shortNetworkError(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if n, ok := errors.AsType[net.Error](err); ok && n.Timeout() {
		return fmt.Errorf("no answer in time: %w", err)
	}
	return err
}
