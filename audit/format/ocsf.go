package format

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// ocsfVersion is the version of the schema that records are written in.
const ocsfVersion = "1.7.0"

// class is an OCSF event class, and how its activities are named.
type class struct {
	uid, category string
	activities    map[string]activity // by verb
}

type activity struct{ id, name string }

// The classes. OCSF's Account Change (3001) is about accounts of people, and is
// deprecated since 1.9.0; Rotunda's tokens are things with an id, like its keys.
var (
	entityManagement = class{uid: "3004", category: "3", activities: map[string]activity{
		"create":  {"1", "Create"},
		"import":  {"1", "Create"},
		"issue":   {"1", "Create"},
		"read":    {"2", "Read"},
		"list":    {"2", "Read"},
		"export":  {"2", "Read"},
		"verify":  {"2", "Read"},
		"update":  {"3", "Update"},
		"rotate":  {"3", "Update"},
		"roll":    {"3", "Update"},
		"delete":  {"4", "Delete"},
		"destroy": {"4", "Delete"},
		"erase":   {"4", "Delete"},
		"prune":   {"4", "Delete"},
		"remove":  {"4", "Delete"},
		"enable":  {"8", "Enable"},
		"disable": {"9", "Disable"},
		"revoke":  {"9", "Disable"},
		"revoked": {"9", "Disable"},
		"active":  {"10", "Activate"},
		"retired": {"11", "Deactivate"},
		"suspend": {"12", "Suspend"},
		"resume":  {"13", "Resume"},
	}}
	apiActivity = class{uid: "6003", category: "6", activities: map[string]activity{
		"create": {"1", "Create"},
		"import": {"1", "Create"},
		"read":   {"2", "Read"},
		"get":    {"2", "Read"},
		"list":   {"2", "Read"},
		"export": {"2", "Read"},
		"verify": {"2", "Read"},
		"update": {"3", "Update"},
		"delete": {"4", "Delete"},
	}}
)

// entities are the kinds of things whose events are Entity Management (3004).
// Denied attempts, and events of other kinds, are API Activity (6003).
var entities = map[string]bool{
	"keyset": true, "signing_key": true, "token": true, "api_key": true, "request_secret": true, "secret": true, "credential": true,
	"partner": true, "trail": true, "sink": true, "hold": true, "anchor": true, "policy": true, "gateway": true, "store": true, "target": true,
}

// statuses are status_id and status by outcome.
var statuses = map[string]activity{
	trail.OK:      {"1", "Success"},
	trail.Denied:  {"2", "Failure"},
	trail.Failed:  {"2", "Failure"},
	trail.Started: {"99", "Started"},
}

func classOf(r *trail.Record) *class {
	if r.Outcome != trail.Denied && entities[kindOf(r.Action)] {
		return &entityManagement
	}
	return &apiActivity
}

// AppendOCSF appends a record as one line of ocsf, without its line end. On
// failure b is returned as it was.
func AppendOCSF(b []byte, r *trail.Record) ([]byte, error) {
	if err := check(r); err != nil {
		return b, err
	}
	c := classOf(r)
	act, known := c.activities[verbOf(r.Action)]
	if !known {
		act.id = "99"
	}
	status, known := statuses[r.Outcome]
	if !known {
		status.id = "0"
	}
	level := &levels[levelOf(r)]

	b = append(b, `{"activity_id":`...)
	b = append(b, act.id...)
	b = append(b, `,"activity_name":`...)
	if act.name == "" {
		act.name = r.Action
	}
	b = appendQuoted(b, act.name)
	b = append(b, `,"category_uid":`...)
	b = append(b, c.category...)
	b = append(b, `,"class_uid":`...)
	b = append(b, c.uid...)
	b = append(b, `,"type_uid":`...)
	b = append(b, c.uid...)
	if len(act.id) == 1 {
		b = append(b, '0')
	}
	b = append(b, act.id...)
	b = append(b, `,"severity_id":`...)
	b = append(b, level.severityID...)
	b = append(b, `,"severity":"`...)
	b = append(b, level.severity...)
	b = append(b, `","status_id":`...)
	b = append(b, status.id...)
	b = appendMember(b, `,"status":`, status.name)
	b = append(b, `,"time":`...)
	b = strconv.AppendInt(b, r.Time.UnixMilli(), 10)
	b = append(b, `,"timezone_offset":0,"count":`...)
	b = strconv.AppendInt(b, r.Count, 10)
	b = append(b, `,"message":`...)
	b = appendQuoted(b, title(r))
	b = appendMetadata(b, r)
	b = append(b, `,"actor":{"user":{`...)
	if r.Actor == "" {
		b = append(b, `"name":"unknown","type_id":0}}`...)
	} else {
		b = append(b, `"uid":`...)
		b = append(appendQuoted(b, r.Actor), `}}`...)
	}
	ip := r.Address != "" && addressKey(r.Address) != "rotundaAddress"
	switch {
	case ip:
		b = append(b, `,"src_endpoint":{"ip":"`...)
		b = append(b, r.Address...) // digits, dots, colons
		b = append(b, `"}`...)
	case c == &apiActivity: // which requires one
		b = append(b, `,"src_endpoint":{"name":"unknown"}`...)
	}
	if c == &entityManagement {
		b = appendEntity(b, r)
		b = appendMember(b, `,"comment":`, r.Reason)
	} else {
		b = append(b, `,"api":{"operation":`...)
		b = appendQuoted(b, r.Action)
		if r.RequestID != "" {
			b = append(b, `,"request":{"uid":`...)
			b = append(appendQuoted(b, r.RequestID), '}')
		}
		b = append(b, '}')
		b = appendMember(b, `,"status_detail":`, r.Reason)
	}
	return appendUnmapped(b, r, ip), nil
}

func appendMetadata(b []byte, r *trail.Record) []byte {
	b = append(b, `,"metadata":{"version":"`+ocsfVersion+`","product":{"name":"Rotunda","vendor_name":"Rotunda"},"uid":`...)
	b = appendQuoted(b, r.ID)
	b = append(b, `,"log_name":`...)
	b = appendQuoted(b, r.Origin)
	b = append(b, `,"sequence":`...)
	b = strconv.AppendInt(b, r.Index, 10)
	b = appendMember(b, `,"correlation_uid":`, r.RequestID)
	return append(b, '}')
}

func appendEntity(b []byte, r *trail.Record) []byte {
	b = append(b, `,"entity":{`...)
	if r.Resource == "" {
		b = append(b, `"name":`...)
		b = appendQuoted(b, kindOf(r.Action))
	} else {
		b = append(b, `"uid":`...)
		b = appendQuoted(b, r.Resource)
	}
	b = append(b, `,"type_id":99,"type":`...)
	b = appendQuoted(b, kindOf(r.Action))
	return append(b, '}')
}

// appendUnmapped appends what the schema has no place for, or only a less exact one.
func appendUnmapped(b []byte, r *trail.Record, ip bool) []byte {
	b = append(b, `,"unmapped":{"hash":"`...)
	b = appendPlain(b, r, colHash)
	b = append(b, `","time":"`...)
	b = appendTime(b, r.Time)
	b = append(b, `","action":`...)
	b = appendQuoted(b, r.Action)
	b = append(b, `,"resource":`...)
	b = appendQuoted(b, r.Resource)
	b = append(b, `,"outcome":`...)
	b = appendQuoted(b, r.Outcome)
	b = appendMember(b, `,"partner":`, r.Partner)
	if !ip {
		b = appendMember(b, `,"address":`, r.Address)
	}
	b = appendTail(b, r)
	return append(b, `}}`...)
}

// ocsfColumns are the members that hold a field of the record. What is neither
// here nor in "unmapped" is derived.
var ocsfColumns = map[string]column{
	"count":                    colCount,
	"metadata.uid":             colID,
	"metadata.log_name":        colOrigin,
	"metadata.sequence":        colIndex,
	"metadata.correlation_uid": colRequestID,
	"actor.user.uid":           colActor,
	"src_endpoint.ip":          colAddress,
	"comment":                  colReason,
	"status_detail":            colReason,
}

func decodeOCSF(line string, r *trail.Record) error {
	return members(line, func(name, value string, _ int) error {
		if name == "unmapped" {
			return inMember(name, members(value, func(name, value string, _ int) error {
				switch name {
				case "hash":
					return inMember(name, setQuoted(r, colHash, value))
				case "time":
					return inMember(name, setQuoted(r, colTime, value))
				case "reason":
					return fmt.Errorf("member %q is none that Rotunda writes", name)
				}
				return decodeShared(r, name, value)
			}))
		}
		return decodeMapped(r, name, value)
	})
}

// decodeMapped reads the members that hold a field at any depth.
func decodeMapped(r *trail.Record, path, value string) error {
	if c, ok := ocsfColumns[path]; ok {
		if strings.HasPrefix(value, `"`) {
			return inMember(path, setQuoted(r, c, value))
		}
		if c != colCount && c != colIndex {
			return inMember(path, errJSON)
		}
		return inMember(path, setNumber(r, c, value))
	}
	switch path {
	case "metadata", "actor", "actor.user", "src_endpoint":
		return members(value, func(name, value string, _ int) error {
			return decodeMapped(r, path+"."+name, value)
		})
	}
	return nil
}
