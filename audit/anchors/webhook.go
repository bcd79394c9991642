package anchors

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

// webhook posts checkpoints to a URL. The receiver answers 2xx once it holds the
// checkpoint, also when it had it before, and 409 when it holds another one of
// that size.
type webhook struct {
	keeper
	url    string
	secret secret.Value
	client *http.Client
}

func openWebhook(c Config) (Anchor, error) {
	u, err := parseURL("address", c.Address)
	if err != nil {
		return nil, err
	}
	// Paths and queries of webhooks often are the secret: only the host is shown.
	return &webhook{keeper: newKeeper(c, "the webhook at "+u.Host), url: c.Address, secret: c.Secret, client: newClient(c.CAs)}, nil
}

func (w *webhook) Push(ctx context.Context, cp trail.Checkpoint, signed string) error {
	if err := w.mine(cp, signed); err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, strings.NewReader(signed))
	if err != nil {
		return fault.Invalid("address", "url_malformed", "%s: its address makes no request", w.place)
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	req.Header.Set("User-Agent", "rotunda")
	if !w.secret.IsZero() {
		req.Header.Set("Authorization", "Bearer "+w.secret.RevealString())
	}
	res, err := w.client.Do(req)
	if err != nil {
		return unreached(w.place, err)
	}
	defer res.Body.Close()
	// Read to the end, within bounds, so that the connection can be used again.
	// What it says is not looked at: it may repeat the token.
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxBody))
	switch {
	case res.StatusCode >= 200 && res.StatusCode < 300:
		return nil
	case res.StatusCode == http.StatusConflict:
		return w.fork("it answered 409", cp)
	default:
		return refused(w.place, res.StatusCode)
	}
}

// Newest always fails: a webhook can't be read.
func (w *webhook) Newest(context.Context) (string, error) {
	return "", fault.New(fault.ErrNotFound, "anchor_write_only", "%s can't be read back: compare with another kind of anchor", w.place)
}

func (w *webhook) Close() error {
	w.client.CloseIdleConnections()
	return nil
}
