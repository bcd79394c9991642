package sinks

import (
	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// encoder appends a record in a format: one line, without its end.
type encoder func(dst []byte, r *trail.Record) ([]byte, error)

var encoders = map[string]encoder{"": format.AppendJSON, JSON: format.AppendJSON, CEF: format.AppendCEF}

// hash is the leaf hash as the formats have it: base64.
func hash(r *trail.Record) string { return r.Hash.String() }

// severity of a record in the three vocabularies: syslog (RFC 5424, section 6.2.1),
// and OTLP's number and text.
type severity struct {
	syslog int
	otlp   int32
	text   string
}

func severityOf(outcome string) severity {
	switch outcome {
	case trail.Failed:
		return severity{3, 17, "ERROR"}
	case trail.Denied:
		return severity{4, 13, "WARN"}
	default:
		return severity{6, 9, "INFO"}
	}
}

// size is about how many bytes a record takes in a message.
func size(r *trail.Record) int {
	n := 640 + len(r.ID) + len(r.Action) + len(r.Resource) + len(r.Origin) + len(r.Intent)
	for f := range trail.NumFields {
		n += len(r.Value(f))
	}
	return n
}
