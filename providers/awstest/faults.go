package awstest

import (
	"net/http"
	"strings"
	"time"
)

// Mode is what goes wrong.
type Mode string

// The modes of a fault.
const (
	Throttled   Mode = "throttled"    // refused: too many requests
	Denied      Mode = "denied"       // refused: no policy allows it
	Expired     Mode = "expired"      // refused: the session has expired
	KeyDisabled Mode = "key_disabled" // refused: the KMS key of the secret can't be used
	FailBefore  Mode = "fail_before"  // nothing is done, and the answer is 500
	FailAfter   Mode = "fail_after"   // it is done, and the answer is 500
	DropBefore  Mode = "drop_before"  // nothing is done, and the connection is closed
	DropAfter   Mode = "drop_after"   // it is done, and the connection is closed
	Slow        Mode = "slow"         // it is done after Wait
	notInjected Mode = ""
)

// Fault is one thing that goes wrong.
type Fault struct {
	Action string // "secretsmanager:PutSecretValue", "iam:*"; empty: every one
	Mode   Mode
	Skip   int // calls that pass first
	Times  int // calls that it hits; 0: all until Heal
	Wait   time.Duration
}

// Inject adds a fault; the first that was added and fits a call hits it.
func (s *Sim) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Times == 0 {
		f.Times = -1
	}
	s.faults = append(s.faults, &f)
}

// Heal removes all faults, and ends the lag.
func (s *Sim) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults, s.lagReads, s.lagFor = nil, 0, 0
	for _, r := range s.secrets {
		r.stale = nil
	}
	for _, k := range s.keys {
		k.hiddenReads, k.hiddenLogins, k.hiddenUntil = 0, 0, time.Time{}
	}
}

// Lag makes what is written from now on appear late: the next reads of a secret see it
// as it was before its last write, and a new access key is neither listed nor accepted
// as many times. With d above zero that lasts also until d has passed by the clock.
func (s *Sim) Lag(reads int, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lagReads, s.lagFor = reads, d
}

// take returns the fault that hits this call, or one that does nothing.
func (s *Sim) take(action string) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		service, all := strings.CutSuffix(f.Action, "*")
		if f.Times == 0 || (f.Action != "" && f.Action != action && !(all && strings.HasPrefix(action, service))) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		if f.Times > 0 {
			f.Times--
		}
		return *f
	}
	return Fault{}
}

// before is the answer of a fault that comes before anything is done.
func (f Fault) before(m *model) error {
	query := m.Metadata.Protocol != "json"
	switch f.Mode {
	case Throttled:
		if query {
			return refuse("Throttling", "Rate exceeded")
		}
		return refuse("ThrottlingException", "Rate exceeded")
	case Denied:
		return denied(m, "User: arn:aws:iam::123456789012:user/administrator is not authorized to perform: "+f.Action+" with an explicit deny in an identity-based policy")
	case Expired:
		return expired(m)
	case KeyDisabled:
		return refuse("EncryptionFailure", "The KMS key is disabled.")
	case FailBefore:
		return internal(m)
	case FailAfter, DropBefore, DropAfter, Slow, notInjected:
	}
	return nil
}

// after is the answer of a fault that comes when everything is done.
func (f Fault) after(m *model) error {
	if f.Mode == FailAfter {
		return internal(m)
	}
	return nil
}

func internal(m *model) *refusal {
	if m.Metadata.Protocol == "json" {
		return refuse("InternalServiceError", "An error occurred on the server side.")
	}
	return &refusal{"ServiceFailure", "The request processing has failed because of an unknown error.", http.StatusInternalServerError}
}

func denied(m *model, message string) *refusal {
	if m.Metadata.Protocol == "json" {
		return refuse("AccessDeniedException", "%s", message)
	}
	return &refusal{"AccessDenied", message, http.StatusForbidden}
}

func expired(m *model) *refusal {
	if m.Metadata.Protocol == "json" {
		return refuse("ExpiredTokenException", "The security token included in the request is expired")
	}
	return &refusal{"ExpiredToken", "The security token included in the request is expired", http.StatusForbidden}
}
