package providerstest

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// MemoryConfig says what a Memory can do. The zero value is a system that takes values,
// keeps a marker, and stages.
type MemoryConfig struct {
	Issues   bool // it makes the values itself, and gives each an id
	Unmarked bool // it keeps no marker
	Unstaged bool // its store has no staging
	Limit    int  // values of one account that it accepts at once; 0: two
	Now      func() time.Time
}

// Memory is a system that accepts credentials and keeps values. Its adapters, in this
// process and in others, share it; it knows nothing of them. Safe for concurrent use.
type Memory struct {
	conf MemoryConfig

	mu       sync.Mutex
	offset   time.Duration
	made     int64 // ids given out
	accounts map[string]*account
	places   map[string]*place
}

type account struct {
	values   []*value
	marker   providers.Applied
	shortest int // policy
	sessions []*session
}

type value struct {
	id         string
	text       string
	generation int64
	made       time.Time
	until      time.Time // zero: no end
	used       time.Time
}

type session struct{ of *value }

type place struct {
	versions []shelved // in the order in which they were first published
	served   int       // index; -1: nothing
	staged   *shelved
	count    int
}

type shelved struct {
	name     string
	rotation string
	fields   map[string]string
}

// NewMemory returns an empty system.
func NewMemory(conf MemoryConfig) *Memory {
	if conf.Limit == 0 {
		conf.Limit = 2
	}
	if conf.Now == nil {
		conf.Now = time.Now
	}
	return &Memory{conf: conf, accounts: map[string]*account{}, places: map[string]*place{}}
}

// Account makes an account, and the second one that strategy alternate needs.
func (m *Memory) Account(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.account(name)
}

func (m *Memory) account(name string) {
	for _, n := range []string{name, name + second} {
		if m.accounts[n] == nil {
			m.accounts[n] = &account{}
		}
	}
}

// Now is the system's clock.
func (m *Memory) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now()
}

func (m *Memory) now() time.Time { return m.conf.Now().Add(m.offset) }

// Pass moves the system's clock on.
func (m *Memory) Pass(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.offset += d
}

// Policy makes an account refuse values of fewer bytes. Values of its own are long
// enough, unless shortest is beyond 1,000: then it makes none.
func (m *Memory) Policy(name string, shortest int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range []string{name, name + second} {
		if a := m.accounts[n]; a != nil {
			a.shortest = shortest
		}
	}
}

// Accepts says whether account may log in with h, and leaves no trace of it.
func (m *Memory) Accepts(h providers.Held) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, v := m.find(h.Account, h.Fields.Text(passwordField))
	return v != nil
}

func (m *Memory) find(name, text string) (*account, *value) {
	a := m.accounts[name]
	if a == nil {
		return nil, nil
	}
	for _, v := range a.values {
		if subtle.ConstantTimeCompare([]byte(v.text), []byte(text)) == 1 && (v.until.IsZero() || m.now().Before(v.until)) {
			return a, v
		}
	}
	return a, nil
}

// Keys are the ids that the accounts of name hold.
func (m *Memory) Keys(name string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []string
	for _, n := range []string{name, name + second} {
		if a := m.accounts[n]; a != nil {
			for _, v := range a.values {
				ids = append(ids, v.id)
			}
		}
	}
	return ids
}

// Foreign makes a value that Rotunda knows nothing of, and returns its id.
func (m *Memory) Foreign(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.issue(m.accounts[name], 0).id
}

// Session logs in. alive says whether the session was ended since.
func (m *Memory) Session(h providers.Held) (alive func() bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, v := m.find(h.Account, h.Fields.Text(passwordField))
	if v == nil {
		return nil, fault.New(fault.ErrRejected, "login_refused", "log in as %q: the password is not accepted", h.Account)
	}
	v.used = m.now()
	s := &session{of: v}
	a.sessions = append(a.sessions, s)
	return func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return slices.Contains(a.sessions, s)
	}, nil
}

// Serves is what consumers of path read; nil: nothing.
func (m *Memory) Serves(path string) providers.Fields {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.places[path]
	if p == nil || p.served < 0 {
		return nil
	}
	return fieldsOf(p.versions[p.served].fields)
}

// Staged is the copy that is kept for path and not served; nil: none.
func (m *Memory) Staged(path string) providers.Fields {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.places[path]; p != nil && p.staged != nil {
		return fieldsOf(p.staged.fields)
	}
	return nil
}

// Write is somebody else who puts a value at path.
func (m *Memory) Write(path string, f providers.Fields) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.place(path)
	p.put(shelved{fields: plainOf(f)})
}

func (m *Memory) place(path string) *place {
	if m.places[path] == nil {
		m.places[path] = &place{served: -1}
	}
	return m.places[path]
}

func (p *place) put(v shelved) string {
	p.count++
	v.name = strconv.Itoa(p.count)
	p.versions = append(p.versions, v)
	p.served = len(p.versions) - 1
	return v.name
}

func fieldsOf(plain map[string]string) providers.Fields {
	f := providers.Fields{}
	for name, text := range plain {
		f = f.Set(name, text)
	}
	return f
}

func plainOf(f providers.Fields) map[string]string {
	plain := make(map[string]string, len(f))
	for name, v := range f {
		plain[name] = v.RevealString()
	}
	return plain
}

// request is one atomic operation of the system, as it also goes over HTTP.
type request struct {
	Op         string
	Account    string            `json:",omitempty"`
	ID         string            `json:",omitempty"`
	Text       string            `json:",omitempty"`
	Keep       bool              `json:",omitempty"` // the values that are there stay
	Emergency  bool              `json:",omitempty"`
	Rotation   string            `json:",omitempty"`
	Generation int64             `json:",omitempty"`
	Epoch      int64             `json:",omitempty"`
	End        time.Time         `json:",omitzero"`
	Path       string            `json:",omitempty"`
	Prior      string            `json:",omitempty"`
	Fields     map[string]string `json:",omitempty"`
}

type reply struct {
	ID       string            `json:",omitempty"`
	Text     string            `json:",omitempty"`
	Marker   providers.Applied `json:",omitzero"`
	Keys     []key             `json:",omitempty"`
	Sessions int               `json:",omitempty"`
	Used     time.Time         `json:",omitzero"`
	Version  string            `json:",omitempty"`
	Rotation string            `json:",omitempty"`
	Fields   map[string]string `json:",omitempty"`
	Issues   bool              `json:",omitempty"`
	Unmarked bool              `json:",omitempty"`
	Unstaged bool              `json:",omitempty"`
}

type key struct {
	ID   string
	Made time.Time
}

// call does one operation. It is the only way of the adapters into the system.
func (m *Memory) call(ctx context.Context, q request) (reply, error) {
	if err := ctx.Err(); err != nil {
		return reply{}, fmt.Errorf("ask the system in memory: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch q.Op {
	case "describe":
		return reply{Issues: m.conf.Issues, Unmarked: m.conf.Unmarked, Unstaged: m.conf.Unstaged}, nil
	case "read", "stage", "publish", "discard":
		return m.callStore(q)
	}
	if q.Op == "scratch" {
		m.account(q.Account)
		return reply{}, nil
	}
	if q.Op == "unscratch" {
		delete(m.accounts, q.Account)
		delete(m.accounts, q.Account+second)
		return reply{}, nil
	}
	a := m.accounts[q.Account]
	if a == nil {
		return reply{}, fault.New(fault.ErrNotFound, "account_missing", "the account %.200q does not exist: create it", q.Account)
	}
	return m.callAccount(a, q)
}

func (m *Memory) callAccount(a *account, q request) (reply, error) {
	switch q.Op {
	case "exists":
		return reply{}, nil
	case "marker":
		return reply{Marker: a.marker}, nil
	case "login":
		_, v := m.find(q.Account, q.Text)
		if v == nil {
			return reply{}, fault.New(fault.ErrRejected, "login_refused", "log in as %q: the password is not accepted", q.Account)
		}
		v.used = m.now()
		return reply{}, nil
	case "keys":
		var r reply
		for _, v := range a.values {
			r.Keys = append(r.Keys, key{v.id, v.made})
		}
		return r, nil
	case "usage":
		var r reply
		for _, v := range a.values {
			if q.matches(v) {
				r.Used = v.used
				r.Sessions = len(slices.DeleteFunc(slices.Clone(a.sessions), func(s *session) bool { return s.of != v }))
			}
		}
		return r, nil
	case "set":
		return m.set(a, q)
	case "issue":
		return m.issued(a, q)
	case "expire":
		if k := a.marker; k.Known && q.Epoch < k.Epoch {
			return reply{}, fault.New(fault.ErrStale, "newer_at_work", "end a value of %q by itself: epoch %d was at work, this is epoch %d", q.Account, k.Epoch, q.Epoch)
		}
		if q.End.IsZero() && a.marker.Known {
			a.marker.Epoch = q.Epoch
		}
		for _, v := range a.values {
			if q.matches(v) {
				v.until = q.End
			}
		}
		return reply{}, nil
	case "drop":
		a.drop(q)
		return reply{}, nil
	}
	return reply{}, fault.Invalid("op", "unknown", "there is no operation %.64q", q.Op)
}

// matches finds a value by its id, by itself, or, when the record has neither any more,
// by its generation.
func (q request) matches(v *value) bool {
	switch {
	case q.ID != "":
		return v.id == q.ID
	case q.Text != "":
		return v.text == q.Text
	}
	return v.generation == q.Generation
}

func (m *Memory) fence(a *account, q request) error {
	if m.conf.Unmarked {
		return nil
	}
	if k := a.marker; k.Known && (q.Generation < k.Generation || q.Epoch < k.Epoch || (q.Generation == k.Generation && q.Rotation != k.Rotation)) {
		return fault.New(fault.ErrStale, "newer_at_work", "set a value of %q: generation %d was set under epoch %d, this is generation %d under epoch %d",
			q.Account, k.Generation, k.Epoch, q.Generation, q.Epoch)
	}
	return nil
}

func (m *Memory) mark(a *account, q request) {
	if !m.conf.Unmarked {
		a.marker = providers.Applied{Known: true, Rotation: q.Rotation, Generation: q.Generation, Epoch: q.Epoch}
	}
}

func (m *Memory) set(a *account, q request) (reply, error) {
	if err := m.fence(a, q); err != nil {
		return reply{}, err
	}
	if len(q.Text) < a.shortest {
		return reply{}, fault.New(fault.ErrRejected, "too_short", "set a value of %q: it has %d bytes, the policy wants %d", q.Account, len(q.Text), a.shortest)
	}
	if _, v := m.find(q.Account, q.Text); v == nil {
		if q.Keep && len(a.values) >= m.conf.Limit {
			return reply{}, fault.New(fault.ErrDenied, "limit", "set a value of %q: it has %d, which is the limit: revoke one", q.Account, len(a.values))
		}
		if !q.Keep {
			a.values = nil
		}
		a.values = append(a.values, &value{text: q.Text, generation: q.Generation, made: m.now()})
	}
	m.mark(a, q)
	return reply{}, nil
}

func (m *Memory) issued(a *account, q request) (reply, error) {
	if err := m.fence(a, q); err != nil {
		return reply{}, err
	}
	if a.shortest > 1000 {
		return reply{}, fault.New(fault.ErrRejected, "too_short", "issue a value of %q: the policy allows none", q.Account)
	}
	if !q.Keep {
		a.values = nil
	}
	if len(a.values) >= m.conf.Limit {
		return reply{}, fault.New(fault.ErrDenied, "limit", "issue a value of %q: it has %d, which is the limit: revoke one", q.Account, len(a.values))
	}
	v := m.issue(a, q.Generation)
	m.mark(a, q)
	return reply{ID: v.id, Text: v.text}, nil
}

func (m *Memory) issue(a *account, generation int64) *value {
	m.made++
	v := &value{id: fmt.Sprintf("key-%d", m.made), text: rand.Text(), generation: generation, made: m.now()}
	a.values = append(a.values, v)
	return v
}

func (a *account) drop(q request) {
	for _, v := range slices.Clone(a.values) {
		if !q.matches(v) {
			continue
		}
		a.values = slices.DeleteFunc(a.values, func(w *value) bool { return w == v })
	}
	if q.Emergency {
		a.sessions = slices.DeleteFunc(a.sessions, func(s *session) bool { return q.matches(s.of) })
	}
}

func (m *Memory) callStore(q request) (reply, error) {
	p := m.place(q.Path)
	switch q.Op {
	case "read":
		if p.served < 0 {
			return reply{}, nil
		}
		v := p.versions[p.served]
		return reply{Version: v.name, Rotation: v.rotation, Fields: maps.Clone(v.fields)}, nil
	case "stage":
		if m.conf.Unstaged {
			return reply{}, fault.New(fault.ErrTransition, "no_staging", "stage at %.200q: this store has no staging", q.Path)
		}
		known := p.versions
		if p.staged != nil {
			known = append(slices.Clone(known), *p.staged)
		}
		for _, v := range known {
			if v.rotation == q.Rotation {
				if !maps.Equal(v.fields, q.Fields) {
					return reply{}, fault.New(fault.ErrStale, "another_value", "stage at %.200q: rotation %s has another value there", q.Path, q.Rotation)
				}
				return reply{}, nil
			}
		}
		p.staged = &shelved{rotation: q.Rotation, fields: maps.Clone(q.Fields)}
	case "publish":
		now := shelved{}
		if p.served >= 0 {
			now = p.versions[p.served]
		}
		if now.name != "" && now.rotation == q.Rotation && maps.Equal(now.fields, q.Fields) {
			return reply{Version: now.name}, nil
		}
		if now.name != q.Prior {
			return reply{}, fault.New(fault.ErrStale, "store_moved", "publish at %.200q: version %q is served, not %q", q.Path, now.name, q.Prior)
		}
		return reply{Version: p.put(shelved{rotation: q.Rotation, fields: maps.Clone(q.Fields)})}, nil
	case "discard":
		if p.staged != nil && p.staged.rotation == q.Rotation {
			p.staged = nil
		}
	}
	return reply{}, nil
}
