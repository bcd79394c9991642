package server

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/jwks"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// defaultPage is the size of a page when the caller does not say.
const defaultPage = 50

func pageSize(asked int32) int {
	if asked == 0 {
		return defaultPage
	}
	return int(asked)
}

func badPage() error {
	return fault.Invalid("page_token", "bad_page_token", "the page token is not one that Rotunda gave: start from the first page")
}

// pageOf reads a page token, which holds text: no database takes anything else.
func pageOf(token string) (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || !storable(string(b)) {
		return "", badPage()
	}
	return string(b), nil
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func instant(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// bounded is a duration, or nothing when it has no bound.
func bounded(d time.Duration) *durationpb.Duration {
	if d == jwks.Forever {
		return nil
	}
	return durationpb.New(d)
}

// duration reads a duration that may be absent, and refuses one that does not
// fit into a time.Duration instead of clamping it.
func duration(field string, d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, fault.Invalid(field, "duration_range", "%s is no valid duration", field)
	}
	out := d.AsDuration()
	if durationpb.New(out).GetSeconds() != d.GetSeconds() {
		return 0, fault.Invalid(field, "duration_range", "%s is out of range", field)
	}
	return out, nil
}

var fallbacksFrom = map[rotundav1.Fallback]jwks.Fallback{
	rotundav1.Fallback_FALLBACK_UNSPECIFIED: jwks.FallbackNone,
	rotundav1.Fallback_FALLBACK_NONE:        jwks.FallbackNone,
	rotundav1.Fallback_FALLBACK_STANDBY:     jwks.FallbackStandby,
}

var overlongsFrom = map[rotundav1.Overlong]jwks.Overlong{
	rotundav1.Overlong_OVERLONG_UNSPECIFIED: jwks.OverlongClamp,
	rotundav1.Overlong_OVERLONG_CLAMP:       jwks.OverlongClamp,
	rotundav1.Overlong_OVERLONG_REFUSE:      jwks.OverlongRefuse,
}

// policyFrom reads a policy; what is not set has the default.
func policyFrom(m *rotundav1.Policy) (jwks.Policy, error) {
	p := jwks.DefaultPolicy()
	var errs []error
	set := func(field string, d *durationpb.Duration, to *time.Duration) {
		if d == nil {
			return
		}
		v, err := duration("policy."+field, d)
		errs = append(errs, err)
		*to = v
	}
	if r := m.GetRotate(); r != nil {
		every := p.Rotate.Every
		p.Rotate = schedule.Schedule{Cron: r.GetCron(), Zone: r.GetZone()}
		if r.GetCron() == "" {
			p.Rotate.Every = every
		}
		set("rotate.every", r.GetEvery(), &p.Rotate.Every)
		set("rotate.jitter", r.GetJitter(), &p.Rotate.Jitter)
	}
	set("token_ttl", m.GetTokenTtl(), &p.TokenTTL)
	set("publish_ahead", m.GetPublishAhead(), &p.PublishAhead)
	set("retire_after", m.GetRetireAfter(), &p.RetireAfter)
	set("max_age", m.GetMaxAge(), &p.MaxAge)
	set("emergency_target", m.GetEmergencyTarget(), &p.EmergencyTarget)
	set("leeway", m.GetLeeway(), &p.Leeway)
	set("skew", m.GetSkew(), &p.Skew)
	set("propagation", m.GetPropagation(), &p.Propagation)
	set("fetch_failure", m.GetFetchFailure(), &p.FetchFailure)
	for _, c := range m.GetProfiles() {
		consumer := jwks.Consumer{Name: c.GetName()}
		for _, o := range []struct {
			from *durationpb.Duration
			to   **time.Duration
		}{{c.GetCache(), &consumer.Cache}, {c.GetThrottle(), &consumer.Throttle}, {c.GetMinInterval(), &consumer.MinInterval}, {c.GetMaxInterval(), &consumer.MaxInterval}} {
			if o.from != nil {
				v, err := duration("policy.profiles", o.from)
				errs = append(errs, err)
				*o.to = &v
			}
		}
		p.Consumers = append(p.Consumers, consumer)
	}
	p.CDN = m.GetCdn()
	if p.Home = m.GetHome(); p.Home == jwks.LocalHome {
		p.Home = "" // one way to say it
	}
	var ok bool
	if p.Fallback, ok = fallbacksFrom[m.GetFallback()]; !ok {
		errs = append(errs, fault.Invalid("policy.fallback", "unknown_value", "fallback %d is unknown", m.GetFallback()))
	}
	if p.Overlong, ok = overlongsFrom[m.GetOverlong()]; !ok {
		errs = append(errs, fault.Invalid("policy.overlong", "unknown_value", "overlong %d is unknown", m.GetOverlong()))
	}
	return p, errors.Join(errs...)
}

// policyTo writes a policy with every figure that is in force.
func policyTo(p jwks.Policy) *rotundav1.Policy {
	optional := func(d time.Duration) *durationpb.Duration {
		if d == 0 {
			return nil
		}
		return durationpb.New(d)
	}
	override := func(d *time.Duration) *durationpb.Duration {
		if d == nil {
			return nil
		}
		return durationpb.New(*d)
	}
	m := &rotundav1.Policy{
		Rotate:   &rotundav1.Schedule{Every: optional(p.Rotate.Every), Cron: p.Rotate.Cron, Zone: p.Rotate.Zone, Jitter: optional(p.Rotate.Jitter)},
		TokenTtl: durationpb.New(p.TokenTTL), PublishAhead: optional(p.PublishAhead), RetireAfter: optional(p.RetireAfter),
		MaxAge: durationpb.New(p.MaxAge), EmergencyTarget: optional(p.EmergencyTarget), Leeway: durationpb.New(p.Leeway), Skew: durationpb.New(p.Skew),
		Propagation: durationpb.New(p.Propagation), FetchFailure: durationpb.New(p.FetchFailure), Cdn: p.CDN, Home: cmp.Or(p.Home, jwks.LocalHome),
		Fallback: rotundav1.Fallback_FALLBACK_NONE, Overlong: rotundav1.Overlong_OVERLONG_CLAMP,
	}
	if p.Fallback == jwks.FallbackStandby {
		m.Fallback = rotundav1.Fallback_FALLBACK_STANDBY
	}
	if p.Overlong == jwks.OverlongRefuse {
		m.Overlong = rotundav1.Overlong_OVERLONG_REFUSE
	}
	for _, c := range p.Consumers {
		m.Profiles = append(m.Profiles, &rotundav1.Profile{Name: c.Name, Cache: override(c.Cache), Throttle: override(c.Throttle), MinInterval: override(c.MinInterval), MaxInterval: override(c.MaxInterval)})
	}
	return m
}

var states = map[jwks.State]rotundav1.KeyState{
	jwks.Pending:  rotundav1.KeyState_KEY_STATE_PENDING,
	jwks.Active:   rotundav1.KeyState_KEY_STATE_ACTIVE,
	jwks.Retiring: rotundav1.KeyState_KEY_STATE_RETIRING,
	jwks.Retired:  rotundav1.KeyState_KEY_STATE_RETIRED,
	jwks.Revoked:  rotundav1.KeyState_KEY_STATE_REVOKED,
}

func stateFrom(m rotundav1.KeyState) jwks.State {
	for d, p := range states {
		if p == m {
			return d
		}
	}
	return ""
}

func timingTo(t jwks.ConsumerTiming) *rotundav1.ProfileTiming {
	return &rotundav1.ProfileTiming{
		Name: t.Name, Lead: durationpb.New(t.Lead), ReachStandby: bounded(t.ReachStandby), ReachFresh: bounded(t.ReachFresh),
		RefusalFresh: bounded(t.RefusalFresh), Note: t.Note,
	}
}

func keyTo(k jwks.Key, next *jwks.Next) *rotundav1.Key {
	out := &rotundav1.Key{
		Kid: k.Kid, State: states[k.State], Algorithm: string(k.Algorithm), PublicJwk: string(k.Public), Home: k.Home, Origin: k.Origin,
		CreatedAt: timestamp(k.CreatedAt), Since: timestamp(k.Since), ServedSince: timestamp(k.ServedSince), MaxTokenLife: durationpb.New(k.MaxTokenLife),
		Reason: k.Reason, ActivatedAt: timestamp(k.ActivatedAt), DemotedAt: timestamp(k.DemotedAt), WithdrawnAt: timestamp(k.WithdrawnAt),
	}
	if next != nil {
		out.Next = &rotundav1.NextMove{State: states[next.To], At: timestamp(next.At), Why: next.Why}
	}
	return out
}

// keysetTo writes a keyset with what follows from its policy.
func keysetTo(s *jwks.Keyset) *rotundav1.Keyset {
	out := &rotundav1.Keyset{
		Id: s.ID, Name: s.Name, Issuer: s.Issuer, Algorithm: string(s.Algorithm), Policy: policyTo(s.Policy), PolicyVersion: s.PolicyVersion,
		Version: s.Version, CreatedAt: timestamp(s.CreatedAt), NextAt: timestamp(s.NextAt), FallbackSince: timestamp(s.FallbackSince),
	}
	outlook := s.Outlook()
	for _, k := range s.Keys {
		var next *jwks.Next
		if n, ok := outlook[k.Kid]; ok {
			next = &n
		}
		out.Keys = append(out.Keys, keyTo(k, next))
	}
	// A stored policy was checked when it was set. If a later release judges it
	// otherwise, the keyset is shown without its timing and with the reason.
	t, err := s.Policy.Check(s.Algorithm)
	if err != nil {
		t.Warnings = append(t.Warnings, "this policy would be refused today: "+err.Error())
		t.PublishAhead, t.RetireAfter, t.MaxAge = s.Policy.Lead(), s.Policy.RetireDelay(s.Policy.TokenTTL), s.Policy.MaxAge
	}
	if s.Foreign {
		t.Warnings = append(t.Warnings, "the row of this keyset was changed in the database by somebody else than Rotunda: what was published before goes on, and nothing else; restore the row from a backup")
	}
	for _, k := range s.Tampered {
		t.Warnings = append(t.Warnings, fmt.Sprintf("the row of key %s was changed in the database by somebody else than Rotunda: it is not published; revoke it", k.Kid))
	}
	out.Timing = &rotundav1.Timing{
		PublishAhead: durationpb.New(t.PublishAhead), RetireAfter: durationpb.New(t.RetireAfter), MaxAge: durationpb.New(t.MaxAge), Warnings: t.Warnings,
	}
	for _, c := range t.Consumers {
		out.Timing.Profiles = append(out.Timing.Profiles, timingTo(c))
	}
	return out
}
