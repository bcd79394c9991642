package format

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"pgregory.net/rapid"
)

// ocsfSchema is the excerpt of the published schema (testdata/ocsf/README.md).
type ocsfSchema struct {
	Version    string                         `json:"version"`
	Categories map[string]struct{ UID int64 } `json:"categories"`
	Classes    map[string]ocsfType            `json:"classes"`
	Objects    map[string]ocsfType            `json:"objects"`
	Dictionary map[string]ocsfAttribute       `json:"dictionary"`
	Types      map[string]struct {
		Type   string `json:"type"`
		MaxLen int    `json:"max_len"`
	} `json:"types"`
}

type ocsfType struct {
	UID         int64                    `json:"uid"`
	Caption     string                   `json:"caption"`
	Category    string                   `json:"category"`
	Extends     string                   `json:"extends"`
	Attributes  map[string]ocsfAttribute `json:"attributes"`
	Constraints struct {
		AtLeastOne []string `json:"at_least_one"`
	} `json:"constraints"`
}

type ocsfAttribute struct {
	Requirement string                              `json:"requirement"`
	Type        string                              `json:"type"`
	Sibling     string                              `json:"sibling"`
	Enum        map[string]struct{ Caption string } `json:"enum"`
	Deprecated  any                                 `json:"@deprecated"`
}

func loadSchema(t testing.TB) *ocsfSchema {
	t.Helper()
	b, err := os.ReadFile("testdata/ocsf/schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var s ocsfSchema
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// resolve merges a type with what it extends, and its attributes with the
// dictionary: the nearest requirement and type win, enums are joined, and the
// type's own constraints replace those it inherits.
func (s *ocsfSchema) resolve(in map[string]ocsfType, name string) (ocsfType, error) {
	t, ok := in[name]
	if !ok {
		return t, fmt.Errorf("there is no type %q in the excerpt", name)
	}
	attributes := map[string]ocsfAttribute{}
	if t.Extends != "" {
		base, err := s.resolve(in, t.Extends)
		if err != nil {
			return t, err
		}
		attributes = base.Attributes
		if t.Category == "" {
			t.Category = base.Category
		}
		if len(t.Constraints.AtLeastOne) == 0 {
			t.Constraints = base.Constraints
		}
	}
	for n, a := range t.Attributes {
		b, inherited := attributes[n]
		if !inherited {
			b = s.Dictionary[n]
		}
		if a.Requirement == "" {
			a.Requirement = b.Requirement
		}
		if a.Type == "" {
			a.Type = b.Type
		}
		a.Sibling = b.Sibling
		enum := maps.Clone(b.Enum)
		if enum == nil {
			enum = a.Enum
		} else {
			maps.Copy(enum, a.Enum)
		}
		a.Enum = enum
		attributes[n] = a
	}
	t.Attributes = attributes
	return t, nil
}

// validate returns what is wrong with an event by the rules of the schema.
func (s *ocsfSchema) validate(line []byte) (faults []string) {
	in := json.NewDecoder(bytes.NewReader(line))
	in.UseNumber()
	var event map[string]any
	if err := in.Decode(&event); err != nil {
		return []string{err.Error()}
	}
	uid, _ := event["class_uid"].(json.Number)
	for name := range s.Classes {
		class, err := s.resolve(s.Classes, name)
		if err != nil {
			return []string{err.Error()}
		}
		category := s.Categories[class.Category].UID
		classUID := category*1000 + class.UID
		if class.UID == 0 || uid.String() != fmt.Sprint(classUID) {
			continue
		}
		activity, _ := event["activity_id"].(json.Number)
		n, _ := activity.Int64()
		for attr, want := range map[string]int64{"category_uid": category, "type_uid": classUID*100 + n} {
			if fmt.Sprint(event[attr]) != fmt.Sprint(want) {
				faults = append(faults, fmt.Sprintf("%s is %v, want %d", attr, event[attr], want))
			}
		}
		// These two have one value for each class.
		for _, attr := range []string{"category_uid", "class_uid"} {
			a := class.Attributes[attr]
			a.Enum = nil
			class.Attributes[attr] = a
		}
		if v := event["metadata"].(map[string]any)["version"]; v != s.Version {
			faults = append(faults, fmt.Sprintf("metadata.version is %v, want %s", v, s.Version))
		}
		return append(faults, s.validateObject(class, event, "")...)
	}
	return []string{fmt.Sprintf("class_uid %v is of no class", uid)}
}

func (s *ocsfSchema) validateObject(t ocsfType, object map[string]any, path string) (faults []string) {
	fault := func(name, format string, args ...any) {
		faults = append(faults, path+name+": "+fmt.Sprintf(format, args...))
	}
	for n, a := range t.Attributes {
		if _, ok := object[n]; a.Requirement == "required" && !ok {
			fault(n, "is required")
		}
	}
	if c := t.Constraints.AtLeastOne; len(c) > 0 && !slices.ContainsFunc(c, func(n string) bool { return object[n] != nil }) {
		fault("", "has none of %v", c)
	}
	for n, v := range object {
		a, ok := t.Attributes[n]
		if !ok {
			fault(n, "is no attribute of this type")
			continue
		}
		if a.Deprecated != nil {
			fault(n, "is deprecated")
		}
		if a.Enum != nil {
			e, ok := a.Enum[fmt.Sprint(v)]
			if !ok {
				fault(n, "%v is not in its enum", v)
			}
			if label, has := object[a.Sibling]; has && fmt.Sprint(v) != "99" && label != e.Caption {
				fault(a.Sibling, "is %v, want %s", label, e.Caption)
			}
		}
		base := a.Type
		for s.Types[base].Type != "" {
			base = s.Types[base].Type
		}
		switch base {
		case "":
			fault(n, "has no type in the excerpt")
		case "string_t":
			text, ok := v.(string)
			if limit := s.Types[a.Type].MaxLen; !ok || limit > 0 && len(text) > limit {
				fault(n, "%v is no %s", v, a.Type)
			}
			if _, err := netip.ParseAddr(text); a.Type == "ip_t" && err != nil {
				fault(n, "%v is no IP address", v)
			}
		case "integer_t", "long_t":
			number, ok := v.(json.Number)
			if _, err := number.Int64(); !ok || err != nil {
				fault(n, "%v is no %s", v, a.Type)
			}
		case "json_t":
		case "object": // of any members
			if _, ok := v.(map[string]any); !ok {
				fault(n, "is no object")
			}
		default:
			inner, ok := v.(map[string]any)
			object, err := s.resolve(s.Objects, base)
			if !ok || err != nil {
				fault(n, "is no %s (%v)", base, err)
				continue
			}
			faults = append(faults, s.validateObject(object, inner, path+n+".")...)
		}
	}
	return faults
}

// TestOCSFWhenValidated: every record is an event that keeps the rules of the
// published schema.
func TestOCSFWhenValidated(t *testing.T) {
	schema := loadSchema(t)
	classes := map[string]bool{}
	check := func(t failer, r *trail.Record) {
		line, err := AppendOCSF(nil, r)
		if err != nil {
			t.Fatalf("AppendOCSF: %v", err)
		}
		if faults := schema.validate(line); len(faults) > 0 {
			t.Fatalf("%s\nbreaks the schema:\n%s", line, strings.Join(faults, "\n"))
		}
		classes[classOf(r).uid] = true
	}
	for _, r := range samples(t) {
		check(t, &r)
	}
	// Every verb of the tables, with every outcome.
	for _, c := range []*class{&entityManagement, &apiActivity} {
		for verb := range c.activities {
			for outcome := range statuses {
				r := samples(t)[0]
				r.Action, r.Outcome = "keyset."+verb, outcome
				check(t, &r)
				r.Action, r.Address, r.Actor, r.Resource = "other."+verb, "", "", ""
				check(t, &r)
			}
		}
	}
	if len(classes) != 2 {
		t.Fatalf("classes %v, want two", classes)
	}
	rapid.Check(t, func(t *rapid.T) {
		r := anyRecord().Draw(t, "record")
		check(t, &r)
	})
}

// TestSchemaWhenEventBreaksIt: the validator of this test finds what is wrong.
func TestSchemaWhenEventBreaksIt(t *testing.T) {
	schema := loadSchema(t)
	r := samples(t)[0]
	line, err := AppendOCSF(nil, &r)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{`"activity_id":1`, `"activity_id":14`, "activity_id: 14 is not in its enum"},
		{`"activity_name":"Create"`, `"activity_name":"Make"`, "activity_name: is Make, want Create"},
		{`"severity":"Informational"`, `"severity":"Low"`, "severity: is Low"},
		{`"type_uid":300401`, `"type_uid":300402`, "type_uid is 300402"},
		{`"category_uid":3`, `"category_uid":6`, "category_uid is 6"},
		{`"time":1773480413589`, `"time":"2026"`, "time: 2026 is no timestamp_t"},
		{`"severity_id":1,`, ``, "severity_id: is required"},
		{`"version":"1.7.0"`, `"version":"1.0.0"`, "metadata.version is 1.0.0"},
		{`"vendor_name":`, `"vendor":`, "metadata.product.vendor: is no attribute"},
		{`{"ip":"192.0.2.17"}`, `{"ip":"here"}`, "src_endpoint.ip: here is no IP address"},
		{`{"ip":"192.0.2.17"}`, `{"port":1}`, "src_endpoint.: has none of"},
		{`{"uid":"token-7"}`, `{"credential_uid":"x","uid":"y"}`, "actor.user.credential_uid: is deprecated"},
		{`"unmapped":{`, `"unmapped":1,"x":{`, "unmapped: is no object"},
		{`"class_uid":3004`, `"class_uid":3003`, "class_uid 3003 is of no class"},
		{`"entity":{`, `"entity":1,"x":{`, "entity: is no managed_entity"},
	} {
		altered := strings.Replace(string(line), c.old, c.new, 1)
		faults := strings.Join(schema.validate([]byte(altered)), "\n")
		if altered == string(line) || !strings.Contains(faults, c.want) {
			t.Errorf("%s for %s: faults %q, want %q", c.new, c.old, faults, c.want)
		}
	}
}

func TestOCSFClassWhenChosen(t *testing.T) {
	for _, c := range []struct{ action, outcome, class, activity, severity string }{
		{"keyset.create", trail.OK, "3004", `"activity_id":1,"activity_name":"Create"`, "Informational"},
		{"keyset.revoke_key", trail.OK, "3004", `"activity_id":9,"activity_name":"Disable"`, "Low"},
		{"signing_key.active", trail.OK, "3004", `"activity_id":10,"activity_name":"Activate"`, "Informational"},
		{"signing_key.lead_restarted", trail.OK, "3004", `"activity_id":99,"activity_name":"signing_key.lead_restarted"`, "Informational"},
		{"token.revoke", trail.Denied, "6003", `"activity_id":99,"activity_name":"token.revoke"`, "Medium"},
		{"token.create", trail.Denied, "6003", `"activity_id":1,"activity_name":"Create"`, "Medium"},
		{"credential.rotate", trail.Failed, "3004", `"activity_id":3,"activity_name":"Update"`, "Medium"},
		{"authenticate", trail.OK, "6003", `"activity_id":99,"activity_name":"authenticate"`, "Informational"},
	} {
		r := samples(t)[0]
		r.Action, r.Outcome = c.action, c.outcome
		line, err := AppendOCSF(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"class_uid":` + c.class, c.activity, `"severity":"` + c.severity + `"`} {
			if !strings.Contains(string(line), want) {
				t.Errorf("%s, %s: no %s in %s", c.action, c.outcome, want, line)
			}
		}
	}
}
