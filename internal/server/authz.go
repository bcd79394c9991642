package server

import (
	_ "embed"
	"fmt"

	"github.com/cedar-policy/cedar-go"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

//go:embed policy.cedar
var policyText []byte

// group is a set of actions that the policy treats alike.
type group string

const (
	read    group = "read"
	change  group = "change"
	sign    group = "sign"
	watch   group = "watch"
	tokens  group = "tokens"
	trails  group = "trail"
	metrics group = "metrics"
	self    group = "self"
)

// groups puts every procedure into its group. A procedure that is missing
// here is allowed to nobody; a test holds the table against the descriptors.
var groups = map[string]group{
	rotundav1connect.KeysetServiceCreateKeysetProcedure:    change,
	rotundav1connect.KeysetServiceGetKeysetProcedure:       read,
	rotundav1connect.KeysetServiceListKeysetsProcedure:     read,
	rotundav1connect.KeysetServiceUpdatePolicyProcedure:    change,
	rotundav1connect.KeysetServiceRotateKeysetProcedure:    change,
	rotundav1connect.KeysetServiceRevokeKeyProcedure:       change,
	rotundav1connect.KeysetServiceImportKeyProcedure:       change,
	rotundav1connect.KeysetServiceListKeysProcedure:        read,
	rotundav1connect.KeysetServiceListHistoryProcedure:     read,
	rotundav1connect.KeysetServiceListProfilesProcedure:    read,
	rotundav1connect.KeysetServiceSignProcedure:            sign,
	rotundav1connect.KeysetServiceWatchProcedure:           watch,
	rotundav1connect.AuditServiceListEventsProcedure:       read,
	rotundav1connect.AuditServiceFollowEventsProcedure:     read,
	rotundav1connect.AuditServiceExportEventsProcedure:     read,
	rotundav1connect.AuditServiceProveEventProcedure:       read,
	rotundav1connect.AuditServiceGetCheckpointProcedure:    read,
	rotundav1connect.AuditServiceProveConsistencyProcedure: read,
	rotundav1connect.AuditServiceListTrailKeysProcedure:    read,
	rotundav1connect.AuditServiceListOpenIntentsProcedure:  read,
	rotundav1connect.AuditServiceGetEvidenceProcedure:      read,
	rotundav1connect.AuditServiceGetTrailStatusProcedure:   read,
	rotundav1connect.TrailServiceCreateSinkProcedure:       trails,
	rotundav1connect.TrailServiceListSinksProcedure:        read,
	rotundav1connect.TrailServiceDeleteSinkProcedure:       trails,
	rotundav1connect.TrailServiceCreateAnchorProcedure:     trails,
	rotundav1connect.TrailServiceListAnchorsProcedure:      read,
	rotundav1connect.TrailServiceDeleteAnchorProcedure:     trails,
	rotundav1connect.TrailServiceCreateWitnessProcedure:    trails,
	rotundav1connect.TrailServiceListWitnessesProcedure:    read,
	rotundav1connect.TrailServiceDeleteWitnessProcedure:    trails,
	rotundav1connect.TrailServiceAddCosignatureProcedure:   trails,
	rotundav1connect.TrailServiceRotateTrailKeyProcedure:   trails,
	rotundav1connect.TrailServiceRestartTrailProcedure:     trails,
	rotundav1connect.TrailServiceSetRetentionProcedure:     trails,
	rotundav1connect.TrailServiceCreateHoldProcedure:       trails,
	rotundav1connect.TrailServiceListHoldsProcedure:        read,
	rotundav1connect.TrailServiceReleaseHoldProcedure:      trails,
	rotundav1connect.TrailServiceEraseFieldsProcedure:      trails,
	rotundav1connect.TokenServiceCreateTokenProcedure:      tokens,
	rotundav1connect.TokenServiceListTokensProcedure:       tokens,
	rotundav1connect.TokenServiceRevokeTokenProcedure:      tokens,
	rotundav1connect.TokenServiceWhoAmIProcedure:           self,
	metricsPath:    metrics,
	checkpointPath: read,
	keysPath:       read,
	tilePath:       read,
	exportPath:     read,
}

// authorizer decides by the Cedar policy.
type authorizer struct {
	policies *cedar.PolicySet
	actions  cedar.EntityMap // actions and roles, the same for every request
}

func newAuthorizer() (*authorizer, error) {
	policies, err := cedar.NewPolicySetFromBytes("policy.cedar", policyText)
	if err != nil {
		return nil, fmt.Errorf("read the authorization policy: %w", err)
	}
	a := &authorizer{policies: policies, actions: cedar.EntityMap{}}
	for procedure, g := range groups {
		uid := cedar.NewEntityUID("Action", cedar.String(procedure))
		a.actions[uid] = cedar.Entity{UID: uid, Parents: cedar.NewEntityUIDSet(cedar.NewEntityUID("Group", cedar.String(g)))}
	}
	return a, nil
}

// subject is a caller as the policy sees it, computed once for a request.
type subject struct {
	uid    cedar.EntityUID
	entity cedar.Entity
}

func newSubject(t *apikeys.Token) subject {
	uid := cedar.NewEntityUID("Token", cedar.String(t.ID))
	names := make([]cedar.Value, len(t.Keysets))
	for i, k := range t.Keysets {
		names[i] = cedar.String(k)
	}
	return subject{uid, cedar.Entity{
		UID:     uid,
		Parents: cedar.NewEntityUIDSet(cedar.NewEntityUID("Role", cedar.String(t.Role))),
		Attributes: cedar.NewRecord(cedar.RecordMap{
			"everyKeyset": cedar.Boolean(len(t.Keysets) == 0),
			"keysets":     cedar.NewSet(names...),
		}),
	}}
}

// entities answers the policy's questions without building a map per request.
type entities struct {
	fixed    cedar.EntityMap
	subject  cedar.Entity
	resource cedar.Entity
}

func (e entities) Get(uid cedar.EntityUID) (cedar.Entity, bool) {
	switch uid {
	case e.subject.UID:
		return e.subject, true
	case e.resource.UID:
		return e.resource, true
	}
	return e.fixed.Get(uid)
}

// allows reports whether s may call a procedure on a keyset ("" for none).
// An error while a rule is evaluated denies.
func (a *authorizer) allows(s subject, procedure, keyset string) bool {
	resource := cedar.NewEntityUID("Keyset", cedar.String(keyset))
	decision, diag := cedar.Authorize(a.policies, entities{a.actions, s.entity, cedar.Entity{
		UID: resource, Attributes: cedar.NewRecord(cedar.RecordMap{"name": cedar.String(keyset)}),
	}}, cedar.Request{Principal: s.uid, Action: cedar.NewEntityUID("Action", cedar.String(procedure)), Resource: resource})
	return decision == cedar.Allow && len(diag.Errors) == 0
}
