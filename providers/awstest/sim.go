package awstest

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Sim is one simulated account in one region. Its methods may be called at any time,
// also while requests are under way. Administrator's login is AccessKey and SecretKey.
type Sim struct {
	URL       string
	Region    string
	Account   string
	AccessKey string
	SecretKey string

	services map[string]*model
	server   *httptest.Server

	mu       sync.Mutex
	now      func() time.Time
	secrets  map[string]*secretRecord // by name
	users    map[string]*userRecord   // by name
	keys     map[string]*keyRecord    // by access key id
	roles    map[string]*roleRecord   // by ARN
	faults   []*Fault
	lagReads int
	lagFor   time.Duration
	calls    []Call
	broken   []string
}

// Call is a request that was answered, or that was done without an answer.
type Call struct {
	Action string // "secretsmanager:PutSecretValue"
	Caller string // ARN of who signed it; empty when nobody who is known did
	Code   string // of the error; empty: it was done
}

// maxCalls bounds what Calls remembers: a test may run a simulator for a long time.
const maxCalls = 100_000

// maxRequest is above the largest request that the model allows, a secret of 65,536
// bytes that are all escaped.
const maxRequest = 1 << 20

// Start runs a simulator on 127.0.0.1 until the test ends, with an administrator and
// nothing else in the account. It fails the test if the simulator ever gave an answer
// that AWS's model does not allow.
func Start(t testing.TB) *Sim {
	t.Helper()
	s, err := newSim()
	if err != nil {
		t.Fatalf("the AWS simulator: %v", err)
	}
	s.server = httptest.NewServer(s)
	s.URL = s.server.URL
	t.Cleanup(func() {
		s.server.CloseClientConnections()
		s.server.Close()
		for _, b := range s.broken {
			t.Errorf("the AWS simulator gave an answer against AWS's model: %s", b)
		}
	})
	return s
}

func newSim() (*Sim, error) {
	s := &Sim{
		Region:   "eu-central-1",
		Account:  "123456789012",
		services: map[string]*model{},
		now:      time.Now,
		secrets:  map[string]*secretRecord{},
		users:    map[string]*userRecord{},
		keys:     map[string]*keyRecord{},
		roles:    map[string]*roleRecord{},
	}
	for _, name := range []string{"secretsmanager", "iam", "sts"} {
		m, err := readModel(name)
		if err != nil {
			return nil, err
		}
		s.services[name] = m
	}
	s.AccessKey, s.SecretKey = s.User("administrator", true)
	return s, nil
}

// Env is the environment by which the SDK of any process reaches the simulator as its
// administrator, and no file or machine role of whoever runs the test.
func (s *Sim) Env() []string {
	return []string{
		"AWS_ENDPOINT_URL=" + s.URL,
		"AWS_REGION=" + s.Region,
		"AWS_ACCESS_KEY_ID=" + s.AccessKey,
		"AWS_SECRET_ACCESS_KEY=" + s.SecretKey,
		"AWS_SESSION_TOKEN=",
		"AWS_PROFILE=",
		"AWS_CONFIG_FILE=/dev/null",
		"AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		"AWS_EC2_METADATA_DISABLED=true",
	}
}

// SetClock replaces the clock of the account.
func (s *Sim) SetClock(now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

// Calls are all requests so far, oldest first, at most 100,000.
func (s *Sim) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Call(nil), s.calls...)
}

// refusal is an error as AWS answers it.
type refusal struct {
	code    string
	message string
	status  int // 0: as the model says, else 400
}

func (r *refusal) Error() string { return r.code + ": " + r.message }

func refuse(code, format string, args ...any) *refusal {
	return &refusal{code: code, message: fmt.Sprintf(format, args...)}
}

type handler func(caller *keyRecord, in map[string]any) (map[string]any, error)

// ServeHTTP answers one request: by the header X-Amz-Target in the JSON protocol, else
// in the query protocol.
func (s *Sim) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	now := s.now()
	s.mu.Unlock()
	w.Header().Set("Date", now.UTC().Format(http.TimeFormat))

	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/" {
		http.Error(w, "a request here is a POST of at most 1 MiB to /", http.StatusBadRequest)
		return
	}
	m, name, form := s.route(r, body)
	out, mode, err := s.answer(r, body, m, name, form, now)
	if mode == DropBefore || mode == DropAfter {
		panic(http.ErrAbortHandler)
	}
	id := rand.Text()
	if m.Metadata.Protocol == "json" {
		writeJSON(w, m, id, out, err)
	} else {
		writeXML(w, m, name, id, out, err)
	}
}

// route finds the service and the operation of a request.
func (s *Sim) route(r *http.Request, body []byte) (m *model, name string, form url.Values) {
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		_, name, _ = strings.Cut(target, ".")
		return s.services["secretsmanager"], name, nil
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		form = url.Values{}
	}
	m = s.services["iam"]
	if form.Get("Version") == "2011-06-15" {
		m = s.services["sts"]
	}
	name = form.Get("Action")
	form.Del("Action")
	form.Del("Version")
	return m, name, form
}

func (s *Sim) handlers(m *model) map[string]handler {
	switch m.service {
	case "secretsmanager":
		return s.secretsManager()
	case "iam":
		return s.iam()
	default:
		return s.sts()
	}
}

// answer does what was asked: who is it, may they, is it well-formed, then the effect.
// Slow faults wait before anything else, outside of the lock.
func (s *Sim) answer(r *http.Request, body []byte, m *model, name string, form url.Values, now time.Time) (out map[string]any, mode Mode, err error) {
	action := m.service + ":" + name
	fault := s.take(action)
	if fault.Mode == Slow {
		select {
		case <-time.After(fault.Wait):
		case <-r.Context().Done():
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	call := Call{Action: action}
	defer func() {
		var no *refusal
		if errors.As(err, &no) {
			call.Code = no.code
		}
		if len(s.calls) < maxCalls {
			s.calls = append(s.calls, call)
		}
	}()
	if err := fault.before(m); err != nil || fault.Mode == DropBefore {
		return nil, fault.Mode, err
	}
	op, ok := m.Operations[name]
	do := s.handlers(m)[name]
	if !ok || do == nil {
		return nil, "", unknownOperation(m, name)
	}
	caller, err := s.authenticate(r, body, m, now)
	if err != nil {
		return nil, "", err
	}
	call.Caller = caller.arn(s.Account)
	caller.lastUsed, caller.lastService = now, m.service
	if !caller.admin() && action != "sts:GetCallerIdentity" {
		return nil, "", denied(m, fmt.Sprintf("User: %s is not authorized to perform: %s because no identity-based policy allows the %s action", call.Caller, action, action))
	}
	in, err := s.input(m, op, body, form)
	if err != nil {
		return nil, "", err
	}
	if out, err = do(caller, in); err != nil {
		return nil, fault.Mode, err
	}
	if op.Output != nil {
		if msg := m.check(op.Output.Shape, "", out); msg != "" {
			s.broken = append(s.broken, action+": "+msg)
		}
	}
	return out, fault.Mode, fault.after(m)
}

func (s *Sim) input(m *model, op operation, body []byte, form url.Values) (map[string]any, error) {
	var in any
	if form == nil {
		dec := json.NewDecoder(strings.NewReader(string(body)))
		dec.UseNumber()
		if err := dec.Decode(&in); err != nil {
			return nil, refuse("SerializationException", "the body is no JSON")
		}
		in = m.fromJSON(op.Input.Shape, in)
	} else {
		in = m.fromForm(op.Input.Shape, "", form)
		for k := range form {
			return nil, refuse("ValidationError", "Unknown parameter '%s'", k)
		}
	}
	if msg := m.check(op.Input.Shape, "", in); msg != "" {
		if m.Metadata.Protocol == "json" {
			return nil, refuse("ValidationException", "%s", msg)
		}
		return nil, refuse("ValidationError", "%s", msg)
	}
	return in.(map[string]any), nil
}

func unknownOperation(m *model, name string) *refusal {
	if m.Metadata.Protocol == "json" {
		return refuse("UnknownOperationException", "")
	}
	return refuse("InvalidAction", "Could not find operation %.64s", name)
}

// status is what the model says of an error, or what the request's protocol does.
func (m *model) status(r *refusal) int {
	if r.status != 0 {
		return r.status
	}
	for name, sh := range m.Shapes {
		if sh.Exception && (sh.Error.Code == r.code || name == r.code) {
			if sh.Error.HTTPStatusCode != 0 {
				return sh.Error.HTTPStatusCode
			}
			if sh.Fault {
				return http.StatusInternalServerError
			}
		}
	}
	return http.StatusBadRequest
}

func asRefusal(err error) *refusal {
	var no *refusal
	if !errors.As(err, &no) {
		no = &refusal{"InternalServiceError", "the simulator failed", http.StatusInternalServerError}
	}
	return no
}

func writeJSON(w http.ResponseWriter, m *model, id string, out map[string]any, err error) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Requestid", id)
	var answer any = m.toJSON(out)
	status := http.StatusOK
	if err != nil {
		no := asRefusal(err)
		status = m.status(no)
		answer = map[string]string{"__type": no.code, "Message": no.message}
	}
	b, _ := json.Marshal(answer)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

func writeXML(w http.ResponseWriter, m *model, name, id string, out map[string]any, err error) {
	w.Header().Set("Content-Type", "text/xml")
	w.Header().Set("X-Amzn-Requestid", id)
	var b strings.Builder
	status := http.StatusOK
	if err != nil {
		no := asRefusal(err)
		status = m.status(no)
		kind := "Sender"
		if status >= 500 {
			kind = "Receiver"
		}
		fmt.Fprintf(&b, `<ErrorResponse xmlns="%s"><Error><Type>%s</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>%s</RequestId></ErrorResponse>`,
			m.Metadata.XMLNamespace, kind, no.code, escape(no.message), id)
	} else {
		fmt.Fprintf(&b, `<%sResponse xmlns="%s">`, name, m.Metadata.XMLNamespace)
		if o := m.Operations[name].Output; o != nil {
			b.WriteString("<" + o.ResultWrapper + ">")
			m.toXML(&b, o.Shape, out)
			b.WriteString("</" + o.ResultWrapper + ">")
		}
		fmt.Fprintf(&b, `<ResponseMetadata><RequestId>%s</RequestId></ResponseMetadata></%sResponse>`, id, name)
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, b.String())
}
