package sinks

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// https posts batches to any endpoint that answers 2xx once it has them: a line
// per record, application/x-ndjson or, for CEF, text/plain.
type https struct{ *client }

func openHTTPS(p *parsed) *https { return &https{newClient(p)} }

// parseKey reads the key of signatures: "whsec_" and base64 (Standard Webhooks),
// or the bytes as they are.
func (p *parsed) parseKey() error {
	if p.Now == nil {
		return errors.New("open a sink that signs: Config.Now is nil")
	}
	key := p.Secret.Reveal()
	if encoded, ok := strings.CutPrefix(string(key), "whsec_"); ok {
		var err error
		if key, err = base64.StdEncoding.DecodeString(encoded); err != nil {
			return fault.Invalid("secret", "bad_secret", "the key that begins with whsec_ is no base64")
		}
	}
	if len(key) < 24 {
		return fault.Invalid("secret", "weak_secret", "the key of an https sink's signatures has %d bytes: it needs at least 24", len(key))
	}
	p.key = key
	return nil
}

func (s *https) Send(ctx context.Context, records []trail.Record) error {
	body, err := lines(nil, records, s.encode)
	if err != nil {
		return err
	}
	h := http.Header{}
	h.Set("Content-Type", "application/x-ndjson")
	if s.Format == CEF {
		h.Set("Content-Type", "text/plain; charset=utf-8")
	}
	id := batchID(records)
	h.Set("Idempotency-Key", id)
	h.Set("Rotunda-Records", strconv.Itoa(len(records)))
	switch {
	case s.key != nil:
		s.sign(h, id, body)
	case !s.Secret.IsZero():
		h.Set("Authorization", "Bearer "+s.Secret.RevealString())
	}
	_, err = s.post(ctx, s.Address, h, body)
	return err
}

// sign adds the headers of Standard Webhooks 1.0.0.
func (s *https) sign(h http.Header, id string, body []byte) {
	at := strconv.FormatInt(s.Now().Truncate(time.Second).Unix(), 10)
	mac := hmac.New(sha256.New, s.key)
	mac.Write([]byte(id + "." + at + "."))
	mac.Write(body)
	h.Set("webhook-id", id)
	h.Set("webhook-timestamp", at)
	h.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// batchID names a batch: the origin and the first and last index, "example.com/log:10-19".
// A dot would be ambiguous in what is signed only if the time could hold one; it can't.
func batchID(records []trail.Record) string {
	origin := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, records[0].Origin)
	return fmt.Sprintf("%s:%d-%d", origin, records[0].Index, records[len(records)-1].Index)
}

// lines appends each record and a line feed.
func lines(dst []byte, records []trail.Record, encode encoder) ([]byte, error) {
	for i := range records {
		var err error
		if dst, err = encode(dst, &records[i]); err != nil {
			return nil, fault.New(fault.ErrRejected, "encoding", "write record %d: %w", records[i].Index, err)
		}
		dst = append(dst, '\n')
	}
	return dst, nil
}
