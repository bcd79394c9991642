package awstest

import (
	"crypto/rand"
	"maps"
	"slices"
	"strings"
	"time"
)

// The staging labels that AWS moves by itself.
const (
	labelCurrent  = "AWSCURRENT"
	labelPrevious = "AWSPREVIOUS"
	labelPending  = "AWSPENDING"
)

// maxVersions is the quota of versions of a secret, and youngVersion the age under
// which AWS does not remove one to make room (PutSecretValue in AWS's model).
const (
	maxVersions  = 100
	youngVersion = 24 * time.Hour
)

type secretRecord struct {
	state secretState

	// What reads see instead, as long as the last write lags.
	stale      *secretState
	staleReads int
	staleUntil time.Time

	// A secret that was deleted without a recovery window is gone after that many reads.
	purging    bool
	purgeReads int
}

type secretState struct {
	exists                          bool
	arn, name, description, kms     string
	owner                           string
	created, changed, read, deleted time.Time
	versions                        map[string]secretVersion
	labels                          map[string]string // the version that has each
	rotates                         bool
	lambda                          string
	rules                           map[string]any
}

type secretVersion struct {
	id      string
	value   map[string]any // SecretString or SecretBinary; nil: RotateSecret made room for one
	created time.Time
}

func (s secretState) clone() secretState {
	s.versions = maps.Clone(s.versions)
	s.labels = maps.Clone(s.labels)
	return s
}

func (s secretState) labelsOf(id string) []any {
	var out []any
	for _, l := range slices.Sorted(maps.Keys(s.labels)) {
		if s.labels[l] == id {
			out = append(out, l)
		}
	}
	return out
}

// move puts a label on a version, and AWSPREVIOUS where AWSCURRENT was.
func (s *secretState) move(label, to string) {
	from := s.labels[label]
	if label == labelCurrent && from != "" && from != to {
		s.labels[labelPrevious] = from
	}
	s.labels[label] = to
	if label == labelCurrent && s.labels[labelPrevious] == to {
		delete(s.labels, labelPrevious)
	}
}

// Secret is a secret as it is, whatever lags.
type Secret struct {
	ARN      string
	Deleted  bool
	Versions map[string]SecretVersion
}

// SecretVersion is one version of a secret.
type SecretVersion struct {
	Value  string // the SecretString
	Labels []string
}

// Labelled returns the version that has the label, or "".
func (s Secret) Labelled(label string) string {
	for id, v := range s.Versions {
		if slices.Contains(v.Labels, label) {
			return id
		}
	}
	return ""
}

// Secret reads a secret past the API, and past the lag. The zero Secret: there is none.
func (s *Sim) Secret(name string) Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.secrets[name]
	if r == nil {
		return Secret{}
	}
	out := Secret{ARN: r.state.arn, Deleted: !r.state.deleted.IsZero(), Versions: map[string]SecretVersion{}}
	for id, v := range r.state.versions {
		sv := SecretVersion{}
		sv.Value, _ = v.value["SecretString"].(string)
		for _, l := range r.state.labelsOf(id) {
			sv.Labels = append(sv.Labels, l.(string))
		}
		out.Versions[id] = sv
	}
	return out
}

// Forget removes a version that has no label, as AWS does in its own time.
func (s *Sim) Forget(name, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.secrets[name]; r != nil && len(r.state.labelsOf(id)) == 0 {
		r.state.versions = maps.Clone(r.state.versions)
		delete(r.state.versions, id)
	}
}

// Own makes another service of AWS the owner of a secret, as with managed rotation.
func (s *Sim) Own(name, service string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.secrets[name]; r != nil {
		r.state.owner = service
	}
}

func notFound(what string) *refusal {
	return refuse("ResourceNotFoundException", "Secrets Manager can't find the specified secret%s.", what)
}

// find returns the record of a name, an ARN, or an ARN without its six last characters.
func (s *Sim) find(in map[string]any) (*secretRecord, error) {
	id, _ := in["SecretId"].(string)
	if r := s.secrets[id]; r != nil {
		return r, nil
	}
	for _, r := range s.secrets {
		if id == r.state.arn || id == strings.TrimSuffix(r.state.arn, r.state.arn[max(0, len(r.state.arn)-7):]) {
			return r, nil
		}
	}
	return nil, notFound("")
}

// view is the secret as a read sees it.
func (s *Sim) view(in map[string]any) (secretState, error) {
	r, err := s.find(in)
	if err != nil {
		return secretState{}, err
	}
	if r.purging {
		if r.purgeReads--; r.purgeReads < 0 {
			delete(s.secrets, r.state.name)
			return secretState{}, notFound("")
		}
	}
	if r.stale == nil {
		return r.state, nil
	}
	if r.staleReads <= 0 && !s.now().Before(r.staleUntil) {
		r.stale = nil
		return r.state, nil
	}
	r.staleReads--
	if !r.stale.exists {
		return secretState{}, notFound("")
	}
	return *r.stale, nil
}

// write changes a secret, and lets reads see what was before for as long as writes lag.
func (s *Sim) write(r *secretRecord, change func(*secretState)) {
	if s.lagReads > 0 || s.lagFor > 0 {
		before := r.state.clone()
		r.stale, r.staleReads, r.staleUntil = &before, s.lagReads, s.now().Add(s.lagFor)
	}
	r.state = r.state.clone()
	change(&r.state)
	r.state.changed = s.now()
}

// writable finds a secret that may be written to.
func (s *Sim) writable(in map[string]any) (*secretRecord, error) {
	r, err := s.find(in)
	if err != nil {
		return nil, err
	}
	if !r.state.deleted.IsZero() {
		return nil, refuse("InvalidRequestException", "You can't perform this operation on the secret because it was marked for deletion.")
	}
	if r.state.owner != "" {
		return nil, refuse("InvalidRequestException", "You can't perform this operation on the secret because it is managed by %s.", r.state.owner)
	}
	return r, nil
}

func valueOf(in map[string]any) map[string]any {
	v := map[string]any{}
	for _, f := range []string{"SecretString", "SecretBinary"} {
		if x, ok := in[f]; ok {
			v[f] = x
		}
	}
	return v
}

func token(in map[string]any) string {
	if t, ok := in["ClientRequestToken"].(string); ok {
		return t
	}
	return strings.ToLower(rand.Text() + rand.Text())[:36]
}
