package server

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Promise: who has nothing to do with credentials does not learn which there are: to name
// what is there and what is not gets one answer, to the byte, by whatever method.
func TestIsolationWhenOthersNameCredentials(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.system(t)
		b.kept(t, "own", "orders/db")
		b.credential(t, "orders")
		b.partner(t, "acme")
		there := map[string]string{"store": "mem", "target": "mem", "credential": "orders", "rotation": b.start(t, "orders"), "endpoint": "hook", "name": "orders", "path": "orders/db"}
		absent := map[string]string{"store": "mom", "target": "mom", "credential": "arders", "rotation": strings.Repeat("0", 36), "endpoint": "hock", "name": "arders", "path": "arders/db"}
		body := func(m method, of map[string]string) (text string, named bool) {
			t.Helper()
			d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(m.procedure, "/"), "/", ".")))
			if err != nil {
				t.Fatal(err)
			}
			tree := map[string]string{}
			for name, value := range of {
				if f := d.(protoreflect.MethodDescriptor).Input().Fields().ByName(protoreflect.Name(name)); f != nil && f.Kind() == protoreflect.StringKind {
					tree[name] = value
				}
			}
			raw, err := json.Marshal(tree)
			if err != nil {
				t.Fatal(err)
			}
			return string(raw), len(tree) > 0
		}
		tried := 0
		for _, req := range []apikeys.Create{{Role: apikeys.Manager, Partner: "acme"}, {Role: apikeys.Gateway}, {Role: apikeys.Signer}, {Role: apikeys.Reader, Paths: []string{"shared/*"}}} {
			token := b.token(t, req)
			for i, m := range methods(t) {
				switch service, _, _ := strings.Cut(m.short, "/"); service {
				case "StoreService", "TargetService", "CredentialService", "RotationService", "EndpointService":
				default:
					continue
				}
				one, named := body(m, there)
				other, _ := body(m, absent)
				if !named {
					continue
				}
				tried++
				yes, no := b.callWith(t, m, token, block(i), one), b.callWith(t, m, token, block(i), other)
				if yes.status == http.StatusOK && !m.stream || yes.problem.GetReason() != "role" && m.short != "StoreService/ReadSecret" {
					t.Errorf("%s by %s: %d %s", m.short, req.Role, yes.status, yes.body)
				}
				yes.body, no.body = yes.code+yes.message, no.code+no.message
				if got, want := normal(t, yes), normal(t, no); got != want {
					t.Errorf("%s by %s tells what is there from what is not:\n%s\n%s", m.short, req.Role, got, want)
				}
			}
		}
		if tried < 4*30 {
			t.Errorf("only %d requests were tried", tried)
		}
	})
}
