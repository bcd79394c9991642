package sinks

import (
	"context"
	"net/http"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// otlp sends log records by OTLP/HTTP in protobuf (OTLP 1.x).
//
// A partial success says how many records were refused, and not which. OTLP asks
// senders not to send those again, to spare receivers repeats; a record of an audit
// trail that went missing without a name is worse, and repeats are told by index.
// So a partial success counts as a refusal: the pump halves the batch until the
// refused records are known.
type otlp struct {
	*client
	address string
}

func openOTLP(p *parsed) *otlp {
	s := &otlp{client: newClient(p), address: p.Address}
	if p.url.Path == "" || p.url.Path == "/" {
		s.address = s.at("/v1/logs", p.url.RawQuery)
	}
	return s
}

func (s *otlp) Send(ctx context.Context, records []trail.Record) error {
	now := uint64(s.Now().UnixNano())
	scope := &logs.ScopeLogs{Scope: &common.InstrumentationScope{Name: "rotunda.trail"}}
	for i := range records {
		r := &records[i]
		body, err := s.encode(nil, r)
		if err != nil {
			return fault.New(fault.ErrRejected, "encoding", "write record %d for %s: %w", r.Index, s.Kind, err)
		}
		scope.LogRecords = append(scope.LogRecords, logRecord(r, string(body), now))
	}
	body, err := proto.Marshal(&collogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
		Resource:  &resource.Resource{Attributes: []*common.KeyValue{text("service.name", "rotunda")}},
		ScopeLogs: []*logs.ScopeLogs{scope},
	}}})
	if err != nil {
		return fault.New(fault.ErrRejected, "encoding", "write records %d to %d for %s: %w", records[0].Index, records[len(records)-1].Index, s.Kind, err)
	}
	h := http.Header{}
	h.Set("Content-Type", "application/x-protobuf")
	if !s.Secret.IsZero() {
		h.Set("Authorization", "Bearer "+s.Secret.RevealString())
	}
	reply, err := s.post(ctx, s.address, h, body)
	if err != nil {
		return err
	}
	var answer collogs.ExportLogsServiceResponse
	if err := proto.Unmarshal(reply, &answer); err != nil {
		return s.unavailable("bad_answer", "its answer is not OTLP in protobuf: check the address")
	}
	if n := answer.GetPartialSuccess().GetRejectedLogRecords(); n > 0 {
		said := answer.GetPartialSuccess().GetErrorMessage()
		return fault.New(fault.ErrRejected, "refused", "%s %s refuses %d of %d records: it says %.160q", s.Kind, s.where(), n, len(records), s.scrub(said))
	}
	return nil
}

func logRecord(r *trail.Record, body string, now uint64) *logs.LogRecord {
	sev := severityOf(r.Outcome)
	l := &logs.LogRecord{
		TimeUnixNano:         uint64(r.Time.UnixNano()),
		ObservedTimeUnixNano: now,
		SeverityNumber:       logs.SeverityNumber(sev.otlp),
		SeverityText:         sev.text,
		EventName:            r.Action,
		Body:                 &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: body}},
		Attributes: []*common.KeyValue{
			text("rotunda.origin", r.Origin), number("rotunda.index", r.Index), text("rotunda.hash", hash(r)), text("rotunda.id", r.ID),
			text("rotunda.action", r.Action), text("rotunda.resource", r.Resource), text("rotunda.outcome", r.Outcome), number("rotunda.count", r.Count),
		},
	}
	if r.Intent != "" {
		l.Attributes = append(l.Attributes, text("rotunda.intent", r.Intent))
	}
	for f := range trail.Detail { // the detail is in the body alone
		if v := r.Value(f); v != "" {
			l.Attributes = append(l.Attributes, text("rotunda."+f.String(), v))
		}
	}
	return l
}

func text(key, value string) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: value}}}
}

func number(key string, value int64) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: value}}}
}
