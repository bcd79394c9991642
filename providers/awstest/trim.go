//go:build ignore

// Trim writes into testdata the parts of AWS's API models that the simulator speaks.
// Its argument is the folder of the module github.com/aws/aws-sdk-go v1.55.8:
//
//	go run trim.go "$(go mod download -json github.com/aws/aws-sdk-go@v1.55.8 | jq -r .Dir)"
package main

import (
	"encoding/json"
	"log"
	"os"
	"path/filepath"
)

type trimmed struct {
	Metadata   json.RawMessage
	Operations map[string]json.RawMessage
	Shapes     map[string]json.RawMessage
	Examples   map[string]json.RawMessage `json:",omitempty"`
}

var wanted = []struct {
	service, version string
	examples         bool
	operations       []string
}{
	{"secretsmanager", "2017-10-17", true, []string{
		"CancelRotateSecret", "CreateSecret", "DeleteSecret", "DescribeSecret", "GetSecretValue", "ListSecretVersionIds",
		"PutSecretValue", "RestoreSecret", "RotateSecret", "UpdateSecret", "UpdateSecretVersionStage",
	}},
	{"iam", "2010-05-08", true, []string{
		"CreateAccessKey", "CreateUser", "DeleteAccessKey", "DeleteUser", "GetAccessKeyLastUsed", "GetUser",
		"ListAccessKeys", "TagUser", "UntagUser", "UpdateAccessKey",
	}},
	{"sts", "2011-06-15", true, []string{"AssumeRole", "GetCallerIdentity"}},
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: go run trim.go FOLDER-OF-AWS-SDK-GO")
	}
	for _, w := range wanted {
		from := filepath.Join(os.Args[1], "models", "apis", w.service, w.version)
		var whole, examples trimmed
		read(filepath.Join(from, "api-2.json"), &whole)
		read(filepath.Join(from, "examples-1.json"), &examples)
		out := trimmed{whole.Metadata, map[string]json.RawMessage{}, map[string]json.RawMessage{}, map[string]json.RawMessage{}}
		for _, name := range w.operations {
			op, ok := whole.Operations[name]
			if !ok {
				log.Fatalf("%s has no operation %s", w.service, name)
			}
			out.Operations[name] = op
			follow(op, whole.Shapes, out.Shapes)
			if e, ok := examples.Examples[name]; ok {
				out.Examples[name] = e
			}
		}
		b, err := json.MarshalIndent(out, "", " ")
		if err != nil {
			log.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join("testdata", w.service+".json"), append(b, '\n'), 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

func read(path string, into any) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		log.Fatalf("%s: %v", path, err)
	}
}

// follow copies every shape that something names, and what those name.
func follow(something json.RawMessage, from, to map[string]json.RawMessage) {
	var tree any
	if err := json.Unmarshal(something, &tree); err != nil {
		log.Fatal(err)
	}
	var walk func(any)
	walk = func(n any) {
		switch n := n.(type) {
		case []any:
			for _, m := range n {
				walk(m)
			}
		case map[string]any:
			if name, ok := n["shape"].(string); ok && to[name] == nil {
				to[name] = from[name]
				follow(from[name], from, to)
			}
			for _, m := range n {
				walk(m)
			}
		}
	}
	walk(tree)
}
