package awstest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/google/go-cmp/cmp"
)

// post sends a request as the recordings and examples have it, signed.
func (s *Sim) post(t testing.TB, service, target, contentType string, body []byte) *http.Response {
	t.Helper()
	r := s.request(t, service, target, contentType, body, time.Now())
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatalf("post: %v", err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

func (s *Sim) request(t testing.TB, service, target, contentType string, body []byte, at time.Time) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, s.URL+"/", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	if target != "" {
		r.Header.Set("X-Amz-Target", target)
	}
	sum := sha256.Sum256(body)
	creds := aws.Credentials{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey}
	if err := v4.NewSigner().SignHTTP(context.Background(), creds, r, hex.EncodeToString(sum[:]), service, s.Region, at); err != nil {
		t.Fatal(err)
	}
	return r
}

func bodyOf(t testing.TB, res *http.Response) map[string]any {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return object(t, b)
}

func object(t testing.TB, b []byte) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("no JSON object: %s", b)
	}
	return v
}

// shapeOf replaces what differs from run to run by its kind. Names, labels, codes,
// messages and values stay.
func shapeOf(v any, field string) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			out[k] = shapeOf(x, k)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = shapeOf(x, field)
		}
		return out
	case float64:
		return "a number"
	case string:
		if field == "ARN" {
			parts := strings.Split(v, ":")
			if len(parts) != 7 || len(parts[6]) < 7 || parts[6][len(parts[6])-7] != '-' {
				return "no ARN of a secret: " + v
			}
			return "arn of " + parts[6][:len(parts[6])-7]
		}
		return v
	}
	return v
}

// TestRecordingsWhenReplayed sends what was once sent to AWS, and compares the answers:
// status, content type, the headers that every answer has, and all of the body but
// times, request ids, and what is random in an ARN.
func TestRecordingsWhenReplayed(t *testing.T) {
	files, err := filepath.Glob("testdata/recordings/*.replay")
	if err != nil || len(files) < 5 {
		t.Fatalf("recordings: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var recording struct {
				Entries []struct {
					Request struct {
						Header    http.Header
						BodyParts [][]byte
					}
					Response struct {
						StatusCode int
						Header     http.Header
						Body       []byte
					}
				}
			}
			if err := json.Unmarshal(b, &recording); err != nil {
				t.Fatal(err)
			}
			s := Start(t)
			for i, e := range recording.Entries {
				target := e.Request.Header.Get("X-Amz-Target")
				body := bytes.Join(e.Request.BodyParts, nil)
				// A secret that was deleted at once is still described for a while: as
				// often as it was when this was recorded.
				described := 0
				if strings.HasSuffix(target, ".DeleteSecret") {
					for _, later := range recording.Entries[i+1:] {
						if later.Response.StatusCode != http.StatusOK {
							break
						}
						described++
					}
				}
				s.Lag(described, 0)
				res := s.post(t, "secretsmanager", target, "application/x-amz-json-1.1", body)
				if res.StatusCode != e.Response.StatusCode {
					t.Errorf("%d %s: status %d, AWS answered %d", i, target, res.StatusCode, e.Response.StatusCode)
				}
				if got, want := res.Header.Get("Content-Type"), e.Response.Header.Get("Content-Type"); got != want {
					t.Errorf("%d %s: content type %q, AWS answered %q", i, target, got, want)
				}
				if diff := cmp.Diff(slices.Sorted(maps.Keys(e.Response.Header)), slices.Sorted(maps.Keys(res.Header))); diff != "" {
					t.Errorf("%d %s: headers (-AWS +simulator):\n%s", i, target, diff)
				}
				if diff := cmp.Diff(shapeOf(object(t, e.Response.Body), ""), shapeOf(bodyOf(t, res), "")); diff != "" {
					t.Errorf("%d %s: answer (-AWS +simulator):\n%s", i, target, diff)
				}
			}
		})
	}
}

// TestExamplesWhenReplayed sends the requests of the examples in AWS's documentation,
// in an order that makes sense, and compares what the answers have: the same members,
// of the same kinds. Their values are made up.
func TestExamplesWhenReplayed(t *testing.T) {
	s := Start(t)
	m := s.services["secretsmanager"]
	seen := 0
	for _, name := range []string{
		"CreateSecret", "PutSecretValue", "UpdateSecret", "UpdateSecretVersionStage", "GetSecretValue",
		"ListSecretVersionIds", "RotateSecret", "CancelRotateSecret", "DescribeSecret",
	} {
		for i, example := range m.Examples[name] {
			in := maps.Clone(example.Input)
			switch {
			case name == "UpdateSecret" && i == 0:
				// The example gives a token that is in use, and no value.
				delete(in, "ClientRequestToken")
			case name == "RotateSecret" && i == 1:
				// The function would have ended the first rotation.
				pending := s.Secret("MyTestDatabaseSecret").Labelled("AWSPENDING")
				s.post(t, "secretsmanager", "secretsmanager.UpdateSecretVersionStage", "application/x-amz-json-1.1",
					[]byte(`{"SecretId":"MyTestDatabaseSecret","VersionStage":"AWSPENDING","RemoveFromVersionId":"`+pending+`"}`))
			case name == "UpdateSecretVersionStage":
				// The versions of these examples, in the places where they are.
				moved := map[string]string{
					"EXAMPLE1-90ab-cdef-fedc-ba987SECRET1": "EXAMPLE1-90ab-cdef-fedc-ba987SECRET1",
					"EXAMPLE2-90ab-cdef-fedc-ba987SECRET2": "EXAMPLE2-90ab-cdef-fedc-ba987EXAMPLE",
				}
				for _, f := range []string{"MoveToVersionId", "RemoveFromVersionId"} {
					if id, ok := in[f].(string); ok {
						in[f] = moved[id]
					}
				}
				if in["VersionStage"] == "AWSCURRENT" {
					in["RemoveFromVersionId"] = s.Secret("MyTestDatabaseSecret").Labelled("AWSCURRENT")
				}
			}
			b, _ := json.Marshal(in)
			res := s.post(t, "secretsmanager", "secretsmanager."+name, "application/x-amz-json-1.1", b)
			out := bodyOf(t, res)
			if res.StatusCode != http.StatusOK {
				t.Errorf("%s, example %d: %v", name, i, out)
				continue
			}
			seen++
			for member, want := range example.Output {
				if slices.Contains([]string{"Tags", "NextRotationDate", "LastRotatedDate", "NextToken"}, member) {
					continue // no tags here, and no function that rotates
				}
				if have, ok := out[member]; !ok || fmt.Sprintf("%T", have) != fmt.Sprintf("%T", want) && member != "LastAccessedDate" {
					t.Errorf("%s, example %d: %s is %T, in the example it is %T", name, i, member, have, want)
				}
			}
		}
	}
	if seen != 14 {
		t.Errorf("%d examples were replayed, want 14", seen)
	}
}

// TestIdentityExamplesWhenReplayed does the same for IAM and STS.
func TestIdentityExamplesWhenReplayed(t *testing.T) {
	s := Start(t)
	s.NewUser("Bob")
	s.NewUser("Alice")
	s.NewKey("Alice")
	s.NewKey("Alice")
	s.Role("demo", "123ABC")
	for _, step := range []struct{ service, name string }{
		{"iam", "GetUser"}, {"iam", "CreateAccessKey"}, {"iam", "ListAccessKeys"}, {"iam", "UpdateAccessKey"}, {"iam", "DeleteAccessKey"},
		{"sts", "AssumeRole"}, {"sts", "GetCallerIdentity"},
	} {
		m := s.services[step.service]
		example := m.Examples[step.name][0]
		form := url.Values{"Action": {step.name}, "Version": {map[string]string{"iam": "2010-05-08", "sts": "2011-06-15"}[step.service]}}
		for k, v := range example.Input {
			text, ok := v.(string)
			if !ok {
				continue // tags of a session
			}
			if k == "AccessKeyId" {
				text = s.Keys("Bob")[0].ID
			}
			form.Set(k, text)
		}
		res := s.post(t, step.service, "", "application/x-www-form-urlencoded", []byte(form.Encode()))
		b, _ := io.ReadAll(res.Body)
		text := string(b)
		if res.StatusCode != http.StatusOK || !strings.Contains(text, "<"+step.name+"Response xmlns=\""+m.Metadata.XMLNamespace+"\">") || !strings.Contains(text, "<ResponseMetadata><RequestId>") {
			t.Errorf("%s: status %d: %s", step.name, res.StatusCode, text)
		}
		var walk func(any)
		walk = func(v any) {
			switch v := v.(type) {
			case map[string]any:
				for k, x := range v {
					if k != "PackedPolicySize" && !strings.Contains(text, "<"+k+">") {
						t.Errorf("%s: the answer has no %s", step.name, k)
					}
					walk(x)
				}
			case []any:
				if !strings.Contains(text, "<member>") {
					t.Errorf("%s: the answer has no list", step.name)
				}
			}
		}
		walk(example.Output)
	}
}

func TestSignatureWhenWrong(t *testing.T) {
	s := Start(t)
	body := []byte(`{"SecretId":"x"}`)
	for name, row := range map[string]struct {
		change func(r *http.Request)
		at     time.Duration
		code   string
	}{
		"right":              {func(*http.Request) {}, 0, "ResourceNotFoundException"},
		"other body":         {func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{"SecretId":"y"}`)) }, 0, "InvalidSignatureException"},
		"other header":       {func(r *http.Request) { r.Header.Set("X-Amz-Target", "secretsmanager.GetSecretValue") }, 0, "InvalidSignatureException"},
		"header not signed":  {func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "") }, 0, "InvalidSignatureException"},
		"no signature":       {func(r *http.Request) { r.Header.Del("Authorization") }, 0, "MissingAuthenticationTokenException"},
		"half a signature":   {func(r *http.Request) { r.Header.Set("Authorization", r.Header.Get("Authorization")[:90]) }, 0, "IncompleteSignatureException"},
		"old":                {func(*http.Request) {}, -6 * time.Minute, "InvalidSignatureException"},
		"early":              {func(*http.Request) {}, 6 * time.Minute, "InvalidSignatureException"},
		"four minutes early": {func(*http.Request) {}, 4 * time.Minute, "ResourceNotFoundException"},
		"other region": {func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), s.Region, "us-east-1", 1))
		}, 0, "InvalidSignatureException"},
		"unknown key": {func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), s.AccessKey, "AKIAUNKNOWN000000000", 1))
		}, 0, "UnrecognizedClientException"},
	} {
		t.Run(name, func(t *testing.T) {
			r := s.request(t, "secretsmanager", "secretsmanager.DescribeSecret", "application/x-amz-json-1.1", body, time.Now().Add(row.at))
			row.change(r)
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if got := bodyOf(t, res)["__type"]; got != row.code {
				t.Errorf("the answer is %v, want %s", got, row.code)
			}
		})
	}
}

// FuzzRequest: whatever is posted, signed by the administrator, gets an answer that
// the model allows.
func FuzzRequest(f *testing.F) {
	for _, name := range []string{"CreateSecret", "PutSecretValue", "UpdateSecretVersionStage", "ListSecretVersionIds"} {
		f.Add("secretsmanager."+name, []byte(`{"SecretId":"x","Name":"x","VersionStages":["a"],"MaxResults":1,"SecretString":"x"}`))
	}
	f.Add("", []byte("Action=TagUser&Version=2010-05-08&UserName=administrator&Tags.member.1.Key=a&Tags.member.1.Value=b"))
	f.Add("", []byte("Action=GetCallerIdentity&Version=2011-06-15"))
	f.Fuzz(func(t *testing.T, target string, body []byte) {
		if strings.ContainsFunc(target, func(r rune) bool { return r < 0x21 || r > 0x7e }) {
			return
		}
		s := Start(t)
		service := "secretsmanager"
		if target == "" {
			service = "iam"
			if form, _ := url.ParseQuery(string(body)); form.Get("Version") == "2011-06-15" {
				service = "sts"
			}
		}
		res := s.post(t, service, target, "application/x-amz-json-1.1", body)
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode >= 500 || len(b) == 0 {
			t.Errorf("status %d, %d bytes, %v", res.StatusCode, len(b), err)
		}
	})
}
