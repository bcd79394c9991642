package sinks

import "github.com/rotunda-dev/rotunda/audit/trail"

func appendCEF(dst []byte, r *trail.Record) ([]byte, error) {
	return append(dst, "CEF:0|"+r.ID...), nil
}
