package server

import (
	_ "embed"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"

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

	// On a partner, or on what a partner has.
	view    group = "view"
	manage  group = "manage"
	verify  group = "verify"
	explain group = "explain"
	peppers group = "peppers"
	foreign group = "foreign" // what gateways ask by protocols that are not Rotunda's

	// On credentials. What only reads of them is in read.
	systems     group = "systems"     // stores, targets and endpoints, which hold logins and addresses
	credentials group = "credentials" // credentials, and single rotations of them
	emergency   group = "emergency"   // rotations of all that a selector names
	secrets     group = "secrets"     // values
)

// explainAction is asking VerifyRequest for an explanation: an action of its own
// beside the procedure's.
const explainAction = rotundav1connect.VerificationServiceVerifyRequestProcedure + "?explain"

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

	rotundav1connect.PartnerServiceCreatePartnerProcedure:  change,
	rotundav1connect.PartnerServiceGetPartnerProcedure:     view,
	rotundav1connect.PartnerServiceListPartnersProcedure:   read,
	rotundav1connect.PartnerServiceUpdatePartnerProcedure:  change,
	rotundav1connect.PartnerServiceSuspendPartnerProcedure: change,
	rotundav1connect.PartnerServiceResumePartnerProcedure:  change,

	rotundav1connect.ApiKeyServiceCreateApiKeyProcedure:  manage,
	rotundav1connect.ApiKeyServiceImportApiKeysProcedure: change,
	rotundav1connect.ApiKeyServiceGetApiKeyProcedure:     view,
	rotundav1connect.ApiKeyServiceListApiKeysProcedure:   view,
	rotundav1connect.ApiKeyServiceUpdateApiKeyProcedure:  manage,
	rotundav1connect.ApiKeyServiceRollApiKeyProcedure:    manage,
	rotundav1connect.ApiKeyServiceSuspendApiKeyProcedure: manage,
	rotundav1connect.ApiKeyServiceResumeApiKeyProcedure:  manage,
	rotundav1connect.ApiKeyServiceRevokeApiKeyProcedure:  manage,

	rotundav1connect.RequestSecretServiceCreateRequestSecretProcedure:  manage,
	rotundav1connect.RequestSecretServiceGetRequestSecretProcedure:     view,
	rotundav1connect.RequestSecretServiceListRequestSecretsProcedure:   view,
	rotundav1connect.RequestSecretServiceRollRequestSecretProcedure:    manage,
	rotundav1connect.RequestSecretServiceSuspendRequestSecretProcedure: manage,
	rotundav1connect.RequestSecretServiceResumeRequestSecretProcedure:  manage,
	rotundav1connect.RequestSecretServiceRevokeRequestSecretProcedure:  manage,

	rotundav1connect.PepperServiceListPeppersProcedure:    read,
	rotundav1connect.PepperServiceRotatePepperProcedure:   peppers,
	rotundav1connect.PepperServiceListStragglersProcedure: read,
	rotundav1connect.PepperServiceRetirePepperProcedure:   peppers,

	rotundav1connect.VerificationServiceVerifyApiKeyProcedure:  verify,
	rotundav1connect.VerificationServiceVerifyApiKeysProcedure: verify,
	rotundav1connect.VerificationServiceVerifyRequestProcedure: verify,

	rotundav1connect.StoreServiceListStoreKindsProcedure:   read,
	rotundav1connect.StoreServiceCreateStoreProcedure:      systems,
	rotundav1connect.StoreServiceGetStoreProcedure:         read,
	rotundav1connect.StoreServiceListStoresProcedure:       read,
	rotundav1connect.StoreServiceUpdateStoreProcedure:      systems,
	rotundav1connect.StoreServiceDeleteStoreProcedure:      systems,
	rotundav1connect.StoreServiceTestStoreProcedure:        systems,
	rotundav1connect.StoreServiceReadSecretProcedure:       secrets,
	rotundav1connect.TargetServiceListTargetKindsProcedure: read,
	rotundav1connect.TargetServiceCreateTargetProcedure:    systems,
	rotundav1connect.TargetServiceGetTargetProcedure:       read,
	rotundav1connect.TargetServiceListTargetsProcedure:     read,
	rotundav1connect.TargetServiceUpdateTargetProcedure:    systems,
	rotundav1connect.TargetServiceDeleteTargetProcedure:    systems,
	rotundav1connect.TargetServiceTestTargetProcedure:      systems,

	rotundav1connect.CredentialServiceCreateCredentialProcedure:    credentials,
	rotundav1connect.CredentialServiceGetCredentialProcedure:       read,
	rotundav1connect.CredentialServiceListCredentialsProcedure:     read,
	rotundav1connect.CredentialServiceUpdateCredentialProcedure:    credentials,
	rotundav1connect.CredentialServicePauseCredentialProcedure:     credentials,
	rotundav1connect.CredentialServiceResumeCredentialProcedure:    credentials,
	rotundav1connect.CredentialServiceDeleteCredentialProcedure:    credentials,
	rotundav1connect.CredentialServicePreflightCredentialProcedure: credentials, // these three log in
	rotundav1connect.CredentialServicePlanCredentialProcedure:      credentials,
	rotundav1connect.CredentialServiceProbeCredentialProcedure:     credentials,
	rotundav1connect.CredentialServiceForecastProcedure:            read,

	rotundav1connect.RotationServiceStartRotationProcedure:    credentials,
	rotundav1connect.RotationServiceGetRotationProcedure:      read,
	rotundav1connect.RotationServiceListRotationsProcedure:    read,
	rotundav1connect.RotationServiceWatchRotationProcedure:    read,
	rotundav1connect.RotationServiceRetryRotationProcedure:    credentials,
	rotundav1connect.RotationServiceRollbackRotationProcedure: credentials,
	rotundav1connect.RotationServiceAbandonRotationProcedure:  credentials,
	rotundav1connect.RotationServicePlanEmergencyProcedure:    read,
	rotundav1connect.RotationServiceStartEmergencyProcedure:   emergency,
	rotundav1connect.RotationServiceGetIncidentProcedure:      read,
	rotundav1connect.RotationServiceListIncidentsProcedure:    read,
	rotundav1connect.RotationServiceStopIncidentProcedure:     emergency,

	rotundav1connect.EndpointServiceCreateEndpointProcedure:   systems,
	rotundav1connect.EndpointServiceListEndpointsProcedure:    read,
	rotundav1connect.EndpointServiceUpdateEndpointProcedure:   systems,
	rotundav1connect.EndpointServiceDisableEndpointProcedure:  systems,
	rotundav1connect.EndpointServiceEnableEndpointProcedure:   systems,
	rotundav1connect.EndpointServiceDeleteEndpointProcedure:   systems,
	rotundav1connect.EndpointServiceTestEndpointProcedure:     systems,
	rotundav1connect.EndpointServiceListDeliveriesProcedure:   read,
	rotundav1connect.EndpointServiceRedeliverMessageProcedure: credentials,

	explainAction:     explain,
	extAuthzProcedure: foreign,
	forwardAuthPath:   foreign,

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
	return subject{uid, cedar.Entity{
		UID:     uid,
		Parents: cedar.NewEntityUIDSet(cedar.NewEntityUID("Role", cedar.String(t.Role))),
		Attributes: cedar.NewRecord(cedar.RecordMap{
			"everyKeyset": cedar.Boolean(len(t.Keysets) == 0),
			"keysets":     texts(t.Keysets),
			"partner":     cedar.String(t.Partner),
			"paths":       texts(t.Paths),
		}),
	}}
}

func texts(list []string) cedar.Set {
	values := make([]cedar.Value, len(list))
	for i, s := range list {
		values[i] = cedar.String(s)
	}
	return cedar.NewSet(values...)
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

// onPartners reports whether a procedure works on partners, or on what they have.
func onPartners(procedure string) bool {
	g := groups[procedure]
	if g == change { // which is of keysets too
		return strings.HasPrefix(procedure, "/"+rotundav1connect.PartnerServiceName+"/") || procedure == rotundav1connect.ApiKeyServiceImportApiKeysProcedure
	}
	return g == view || g == manage || g == verify || g == explain
}

// allows reports whether s may call a procedure on a keyset, or on a partner when it
// is one of those that work on partners, or on a path when it is about secrets; name ""
// is none, or all. An error while a rule is evaluated denies.
func (a *authorizer) allows(s subject, procedure, name string) bool {
	kind, attributes := cedar.EntityType("Keyset"), cedar.RecordMap{"name": cedar.String(name)}
	switch {
	case onPartners(procedure):
		kind = "Partner"
	case groups[procedure] == secrets:
		kind = "Secret"
		attributes["patterns"] = texts(apikeys.Patterns(name))
	}
	resource := cedar.NewEntityUID(kind, cedar.String(name))
	decision, diag := cedar.Authorize(a.policies, entities{a.actions, s.entity, cedar.Entity{
		UID: resource, Attributes: cedar.NewRecord(attributes),
	}}, cedar.Request{Principal: s.uid, Action: cedar.NewEntityUID("Action", cedar.String(procedure)), Resource: resource})
	return decision == cedar.Allow && len(diag.Errors) == 0
}

// maxVerdicts bounds what is remembered for one token; beyond it is decided anew.
const maxVerdicts = 256

// principal is a token as it was read from its row, with what the policy said about
// it. The policy never changes while the server runs, and a token that changed is
// read anew, as another *apikeys.Token: so what it said once it would say again.
type principal struct {
	token   *apikeys.Token
	subject subject
	mu      sync.Mutex                        // of who adds to verdicts
	said    atomic.Pointer[map[question]bool] // never changed once it is there
}

type question struct{ procedure, name string }

// may is allows, from memory when the same was asked before.
func (p *principal) may(a *authorizer, procedure, name string) bool {
	q := question{procedure, name}
	if said := p.said.Load(); said != nil {
		if yes, ok := (*said)[q]; ok {
			return yes
		}
	}
	yes := a.allows(p.subject, procedure, name)
	if len(name) > maxName {
		return yes
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	said := map[question]bool{}
	if old := p.said.Load(); old != nil {
		if len(*old) >= maxVerdicts {
			return yes
		}
		said = maps.Clone(*old)
	}
	q.name = strings.Clone(q.name) // which is part of a request
	said[q] = yes
	p.said.Store(&said)
	return yes
}

// principals are the callers that this process has seen lately.
type principals struct {
	mu sync.RWMutex
	of map[string]*principal // by the id of the token
}

const maxPrincipals = 10_000

// find returns the principal of a token, which is the same one for as long as the
// token was not read anew.
func (ps *principals) find(t *apikeys.Token) *principal {
	ps.mu.RLock()
	p := ps.of[t.ID]
	ps.mu.RUnlock()
	if p != nil && p.token == t {
		return p
	}
	p = &principal{token: t, subject: newSubject(t)}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.of == nil || len(ps.of) >= maxPrincipals {
		ps.of = map[string]*principal{} // it fills again within a second
	}
	ps.of[t.ID] = p
	return p
}
