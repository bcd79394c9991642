package sinks

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// splunk is the HTTP Event Collector. Without acknowledgement a 200 means that
// Splunk took the events into its queue; with it, that the indexers have them.
type splunk struct {
	*client
	address string
	ackURL  string // empty: no acknowledgement
	channel string
}

const (
	splunkPath = "/services/collector/event"
	splunkAck  = "/services/collector/ack"
)

func openSplunk(p *parsed) *splunk {
	s := &splunk{client: newClient(p), address: p.Address}
	path := p.url.Path
	if path == "" || path == "/" {
		path = splunkPath
		s.address = s.at(path, p.url.RawQuery)
	}
	if p.Options["ack"] == "true" {
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails
		h := hex.EncodeToString(id[:])
		s.channel = h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
		prefix, _ := strings.CutSuffix(path, splunkPath)
		if prefix == path {
			prefix = ""
		}
		s.ackURL = s.at(prefix+splunkAck, "channel="+s.channel)
	}
	return s
}

func (s *splunk) header() http.Header {
	h := http.Header{}
	h.Set("Authorization", "Splunk "+s.Secret.RevealString())
	h.Set("Content-Type", "application/json")
	if s.channel != "" {
		h.Set("X-Splunk-Request-Channel", s.channel)
	}
	return h
}

// splunkEvent is the envelope of one event: Splunk's documentation, "Format events
// for HTTP Event Collector".
type splunkEvent struct {
	Time       json.Number       `json:"time"` // seconds since 1970
	Host       string            `json:"host,omitempty"`
	Source     string            `json:"source,omitempty"`
	Sourcetype string            `json:"sourcetype,omitempty"`
	Index      string            `json:"index,omitempty"`
	Event      json.RawMessage   `json:"event"`
	Fields     map[string]string `json:"fields"`
}

func (s *splunk) Send(ctx context.Context, records []trail.Record) error {
	var body, text []byte
	for i := range records {
		r := &records[i]
		var err error
		if text, err = s.encode(text[:0], r); err != nil {
			return fault.New(fault.ErrRejected, "encoding", "write record %d for %s: %w", r.Index, s.Kind, err)
		}
		if s.Format == CEF {
			if text, err = json.Marshal(string(text)); err != nil {
				return fault.New(fault.ErrRejected, "encoding", "write record %d for %s: %w", r.Index, s.Kind, err)
			}
		}
		us := r.Time.UnixMicro()
		event := splunkEvent{
			Time: json.Number(strconv.FormatFloat(float64(us)/1e6, 'f', 6, 64)),
			Host: s.Options["host"], Source: s.Options["source"], Sourcetype: s.Options["sourcetype"], Index: s.Options["index"],
			Event:  text,
			Fields: map[string]string{"rotunda_origin": r.Origin, "rotunda_index": strconv.FormatInt(r.Index, 10), "rotunda_hash": hash(r)},
		}
		if event.Sourcetype == "" {
			event.Sourcetype = "rotunda:event"
		}
		line, err := json.Marshal(event)
		if err != nil {
			return fault.New(fault.ErrRejected, "encoding", "write record %d for %s: %w", r.Index, s.Kind, err)
		}
		body = append(append(body, line...), '\n')
	}
	reply, err := s.post(ctx, s.address, s.header(), body)
	if err != nil {
		return s.classify(reply, err)
	}
	var answer struct {
		Code  *int   `json:"code"`
		AckID *int64 `json:"ackId"`
	}
	if err := json.Unmarshal(reply, &answer); err != nil || answer.Code == nil {
		return s.unavailable("bad_answer", "its answer is not that of an HTTP Event Collector: check the address")
	}
	if *answer.Code != 0 {
		return s.unavailable("bad_answer", fmt.Sprintf("it answers code %d", *answer.Code))
	}
	if s.ackURL == "" {
		return nil
	}
	if answer.AckID == nil {
		return s.unavailable("no_ack", "its answer has no ackId: turn on indexer acknowledgement for the token, or the sink's option ack off")
	}
	return s.waitAck(ctx, *answer.AckID)
}

// aboutEvents are the codes of a 400 that say something of the events themselves:
// invalid data format, event missing, event blank, indexed fields. The others are of
// the request: a wrong index or channel would refuse every event, and must not be
// taken for a verdict on each.
var aboutEvents = map[int]bool{6: true, 12: true, 13: true, 15: true}

func (s *splunk) classify(reply []byte, err error) error {
	f, ok := err.(*fault.Error) //nolint:errorlint // as check made it
	if !ok || f.Reason != "refused" {
		return err
	}
	var answer struct {
		Code *int `json:"code"`
	}
	if json.Unmarshal(reply, &answer) == nil && answer.Code != nil && !aboutEvents[*answer.Code] {
		return s.unavailable("misconfigured", fmt.Sprintf("it refuses the request with code %d%s", *answer.Code, s.excerpt(reply)))
	}
	return err
}

// waitAck asks until the indexers have the events. Splunk forgets an id once it
// answered true for it, so a lost answer ends in a repeat.
func (s *splunk) waitAck(ctx context.Context, id int64) error {
	const limit = 2 * time.Minute // splunkd acknowledges within one flush, normally 10 s or so
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	body := fmt.Appendf(nil, `{"acks":[%d]}`, id)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		reply, err := s.post(ctx, s.ackURL, s.header(), body)
		if err != nil {
			if errors.Is(err, fault.ErrRejected) {
				return s.unavailable("no_ack", "it can't say whether the events are indexed: check acknowledgement for the token"+s.excerpt(reply))
			}
			return err
		}
		var answer struct {
			Acks map[string]bool `json:"acks"`
		}
		if err := json.Unmarshal(reply, &answer); err != nil {
			return s.unavailable("bad_answer", "its answer about acknowledgements can't be read")
		}
		if answer.Acks[strconv.FormatInt(id, 10)] {
			return nil
		}
		if err := sleep(ctx, pause); err != nil {
			return s.unavailable("no_ack", "the indexers did not acknowledge in time")
		}
	}
}
