package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rotunda-dev/rotunda/providers"
)

func newSchema(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of credential files, for editors",
		Long: `Print the JSON Schema (draft 2020-12) of the YAML files that credential create reads: every
kind of store and target with its settings, its login and the params of a credential. An editor
with a YAML language server checks and completes a file that begins with

  # yaml-language-server: $schema=./credential.schema.json`,
		Example:           "  rotunda schema > credential.schema.json",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			raw, err := manifestSchema(targetKinds(), allStoreKinds())
			if err != nil {
				return err
			}
			return c.write(raw)
		},
	}
}

// jsonSchema is a schema, or a part of one.
type jsonSchema = map[string]any

// manifestSchema is the JSON Schema of one document of a manifest.
func manifestSchema(targets []providers.TargetKind, stores []providers.StoreKind) ([]byte, error) {
	defs := jsonSchema{
		"name":     jsonSchema{"type": "string", "pattern": `^[a-z0-9][a-z0-9-]{0,62}$`, "description": "1 to 63 lower-case letters, digits and hyphens"},
		"duration": jsonSchema{"type": []string{"string", "integer"}, "pattern": `^(0|[0-9]+d([0-9].*)?|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)$`, "description": "a length of time: 30d, 12h, 90m, 1d12h"},
		"scalar":   jsonSchema{"type": []string{"string", "number", "boolean"}},
	}
	var storeNames, targetNames []string
	var storeRules, targetRules, params []any
	for _, k := range stores {
		storeNames = append(storeNames, k.Name)
		storeRules = append(storeRules, systemRule(k.Name, k.Doc, k.Settings, k.Login))
	}
	strategies := map[providers.Strategy]bool{}
	for _, k := range targets {
		targetNames = append(targetNames, k.Name)
		targetRules = append(targetRules, systemRule(k.Name, k.Doc, k.Settings, k.Login))
		for _, s := range k.Traits.Strategies {
			strategies[s] = true
		}
		one := settingsObject(k.Params)
		one["title"] = "params of a target of type " + k.Name
		params = append(params, one)
	}
	defs["store"] = systemSchema("store", storeNames, storeRules)
	defs["target"] = systemSchema("target", targetNames, targetRules)
	defs["credential"] = credentialSchema(params, strategies)
	defs["endpoint"] = jsonSchema{
		"type": "object", "description": "where consumers are told of new values",
		"additionalProperties": false, "required": []string{"kind", "name", "url", "partner", "secret"},
		"properties": jsonSchema{
			"kind": jsonSchema{"const": "endpoint"}, "name": ref("name"),
			"url":     jsonSchema{"type": "string", "pattern": "^https?://", "description": "where to send"},
			"partner": jsonSchema{"$ref": "#/$defs/name", "description": "whose request secret signs"},
			"secret":  jsonSchema{"type": "string", "description": "name of that request secret"},
		},
	}
	var choose []any
	for _, kind := range documentKinds {
		choose = append(choose, jsonSchema{
			"if":   jsonSchema{"required": []string{"kind"}, "properties": jsonSchema{"kind": jsonSchema{"const": kind}}},
			"then": ref(kind),
		})
	}
	schema := jsonSchema{
		"$schema":     "https://json-schema.org/draft/2020-12/schema",
		"$id":         "https://raw.githubusercontent.com/rotunda-dev/rotunda/main/docs/credential.schema.json",
		"title":       "Rotunda: stores, targets, endpoints and credentials",
		"description": "One document of a file for `rotunda credential create -f`. Made by `rotunda schema`.",
		"type":        "object",
		"required":    []string{"kind", "name"},
		"properties":  jsonSchema{"kind": jsonSchema{"enum": documentKinds, "description": "what this document describes"}},
		"allOf":       choose,
		"$defs":       defs,
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(schema); err != nil {
		return nil, fmt.Errorf("write the schema: %w", err)
	}
	return b.Bytes(), nil
}

func ref(name string) jsonSchema { return jsonSchema{"$ref": "#/$defs/" + name} }

func systemSchema(kind string, types []string, rules []any) jsonSchema {
	about := map[string]string{"store": "where consumers read credentials", "target": "what accepts credentials"}[kind]
	return jsonSchema{
		"type": "object", "description": about, "additionalProperties": false, "required": []string{"kind", "name", "type"},
		"properties": jsonSchema{
			"kind": jsonSchema{"const": kind}, "name": ref("name"),
			"type":             jsonSchema{"enum": types, "description": "what it is"},
			"settings":         jsonSchema{"type": "object"},
			"login":            jsonSchema{"type": "object", "description": "where its secrets come from: NAME_file, NAME_env, or NAME: \"-\" to be asked"},
			"login_credential": jsonSchema{"$ref": "#/$defs/name", "description": "its login is the current value of this credential, which Rotunda rotates"},
		},
		"not":   jsonSchema{"required": []string{"login", "login_credential"}},
		"allOf": rules,
	}
}

// systemRule is what holds for one type of system.
func systemRule(name, doc string, settings, login []providers.Setting) jsonSchema {
	object := settingsObject(settings)
	object["description"] = doc
	then := jsonSchema{"properties": jsonSchema{"settings": object, "login": loginObject(login)}}
	for _, s := range settings {
		if s.Required {
			then["required"] = []string{"settings"}
		}
	}
	return jsonSchema{
		"if":   jsonSchema{"required": []string{"type"}, "properties": jsonSchema{"type": jsonSchema{"const": name}}},
		"then": then,
	}
}

func settingsObject(list []providers.Setting) jsonSchema {
	properties, required := jsonSchema{}, []string{}
	for _, s := range list {
		properties[s.Name] = settingSchema(s)
		if strings.Contains(s.Pattern, "BEGIN CERTIFICATE") {
			properties[s.Name+"_file"] = jsonSchema{"type": "string", "description": s.Doc + ": the file that holds them"}
		}
		if s.Required {
			required = append(required, s.Name)
		}
	}
	out := jsonSchema{"type": "object", "additionalProperties": false, "properties": properties}
	if len(required) > 0 {
		out["required"] = required
	}
	return out
}

// settingSchema takes numbers and booleans too: YAML makes them of what is written
// without quotes, and they are read as written.
func settingSchema(s providers.Setting) jsonSchema {
	out := jsonSchema{"description": s.Doc}
	if s.Default != "" {
		out["default"] = s.Default
	}
	switch {
	case len(s.OneOf) > 0:
		values := []any{}
		for _, v := range s.OneOf {
			values = append(values, v)
			switch v {
			case "true", "false":
				values = append(values, v == "true")
			}
		}
		out["enum"] = values
	default:
		out["type"] = []string{"string", "number", "boolean"}
		// A pattern holds for texts only: a number without quotes is not looked at. Groups with
		// flags are Go's and not ECMA 262's.
		if s.Pattern != "" && !strings.Contains(s.Pattern, "(?") {
			out["pattern"] = "^(?:" + s.Pattern + ")$"
		}
	}
	return out
}

// loginObject says where secrets may come from; a secret itself is no part of it.
func loginObject(list []providers.Setting) jsonSchema {
	properties := jsonSchema{}
	var required []any
	for _, s := range list {
		properties[s.Name] = jsonSchema{"const": "-", "description": s.Doc + ": ask for it"}
		properties[s.Name+"_file"] = jsonSchema{"type": "string", "description": s.Doc + ": the file that holds it"}
		properties[s.Name+"_env"] = jsonSchema{"type": "string", "description": s.Doc + ": the variable that holds it"}
		if s.Required {
			var any []any
			for _, n := range []string{s.Name, s.Name + "_file", s.Name + "_env"} {
				any = append(any, jsonSchema{"required": []string{n}})
			}
			required = append(required, jsonSchema{"anyOf": any})
		}
	}
	out := jsonSchema{"type": "object", "additionalProperties": false, "properties": properties}
	if len(required) > 0 {
		out["allOf"] = required
	}
	return out
}

func credentialSchema(params []any, strategies map[providers.Strategy]bool) jsonSchema {
	names := []string{}
	for _, s := range []providers.Strategy{providers.Replace, providers.Alternate, providers.Dual} {
		if strategies[s] {
			names = append(names, string(s))
		}
	}
	texts := func(about string) jsonSchema {
		return jsonSchema{"type": "object", "additionalProperties": ref("scalar"), "description": about}
	}
	length := func(about string) jsonSchema {
		return jsonSchema{"$ref": "#/$defs/duration", "description": about}
	}
	return jsonSchema{
		"type": "object", "description": "a value that a target accepts, and that consumers read in stores",
		"additionalProperties": false, "required": []string{"kind", "name", "target"},
		"properties": jsonSchema{
			"kind": jsonSchema{"const": "credential"}, "name": ref("name"),
			"target":   jsonSchema{"$ref": "#/$defs/name", "description": "the target that accepts it"},
			"strategy": jsonSchema{"enum": names, "description": "how the old value and the new one overlap (default: the first that the target's type has)"},
			"params":   jsonSchema{"description": "as the target's type declares them", "anyOf": params},
			"fields":   texts("parts of the value that never change, and are no secret: host, port"),
			"stores": jsonSchema{
				"type": "array", "maxItems": 8, "description": "where consumers read it, in the order of publication",
				"items": jsonSchema{
					"type": "object", "additionalProperties": false, "required": []string{"store", "path"},
					"properties": jsonSchema{"store": ref("name"), "path": jsonSchema{"type": "string", "minLength": 1, "maxLength": 1024}},
				},
			},
			"schedule": jsonSchema{
				"type": "object", "additionalProperties": false, "description": "when it is rotated (default: only when somebody asks)",
				"oneOf": []any{jsonSchema{"required": []string{"every"}}, jsonSchema{"required": []string{"cron"}}},
				"properties": jsonSchema{
					"every":  length("time from one rotation to the next"),
					"cron":   jsonSchema{"type": "string", "description": "five fields: \"0 3 * * 1\""},
					"zone":   jsonSchema{"type": "string", "description": "IANA time zone of cron and windows (default UTC)"},
					"jitter": length("window within which this credential has its own stable offset"),
				},
			},
			"windows": jsonSchema{"type": "array", "maxItems": 16, "items": jsonSchema{"type": "string"}, "description": "local time in which a scheduled rotation may begin: \"Sat,Sun 22:00-04:00\" (default: any)"},
			"missed":  jsonSchema{"enum": []string{"late", "skip", "alarm"}, "default": "late", "description": "what becomes of a time that no window had room for"},
			"grace":   length("how long the old value stays accepted; at most 90d"),
			"quiet":   length("the grace ends earlier once the old value was unused for so long"),
			"labels":  texts("names of your own, to select by"),
			"notify":  jsonSchema{"type": "array", "maxItems": 8, "items": ref("name"), "description": "endpoints that are told of new values"},
			"adopt":   jsonSchema{"type": "boolean", "default": false, "description": "the first rotation may replace what is at the paths already"},
			"probe":   jsonSchema{"anyOf": []any{ref("duration"), jsonSchema{"const": "never"}}, "default": "1h", "description": "time between two probes for drift"},
		},
	}
}
