package apikeys

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

const (
	hookTolerance  = 5 * time.Minute // as Standard Webhooks has it
	hookVersions   = 20              // of a request secret that are tried: all of a line, and some of an ended one's
	versionsFor    = time.Second     // until versions are looked for anew when none fits
	maxSecretNames = 1000            // of a partner in memory
	nonceSlack     = time.Minute     // by which the clocks of replicas may differ
)

// Request is a signed request as the gateway got it.
type Request struct {
	Message        httpsig.Message
	Body           []byte
	BodyOmitted    bool   // there is a body, and it was not handed over
	DigestVerified bool   // the gateway has compared it with Content-Digest
	Label          string // "": there is exactly one signature
	Webhook        bool   // Standard Webhooks, in place of RFC 9421
	Secret         string // with Webhook: its name; Need.Partner says whose
	Explain        bool   // tell why it failed; nothing is counted, no nonce is spent
	SignerBase     []byte // with Explain: the base that the signer made
	Need           Need
}

// Explanation tells a partner why its signature was refused.
type Explanation struct {
	Message                           string
	Base                              string
	Component, ServerLine, SignerLine string
}

// VerifyRequest decides about a signed request.
//
// A request that is not signed as it must be costs nothing: no nonce, nothing of a
// rate limit, no count of the key's use, which anybody could then add to. With
// Explain a right one costs nothing either.
func (v *Verifier) VerifyRequest(ctx context.Context, r *Request) (Decision, *Explanation, error) {
	if r.Webhook {
		return v.verifyWebhook(ctx, r)
	}
	sig, err := httpsig.Parse(&r.Message, r.Label)
	if err != nil {
		return v.refuseRequest(r, Decision{Reason: signatureReason(err)}, err.Error())
	}
	if !v.given(sig.KeyID) {
		return v.refuseRequest(r, Decision{Reason: ReasonUnknown}, unknownKeyID)
	}
	if err := v.fresh(); err != nil {
		return Decision{}, nil, err
	}
	e, err := v.entry(ctx, sig.KeyID)
	if err != nil {
		return Decision{}, nil, err
	}
	if e == nil || e.key.Kind != RequestSecret {
		return v.refuseRequest(r, Decision{Reason: ReasonUnknown}, unknownKeyID)
	}
	now := v.cfg.DB.Now()
	d, err := v.standing(ctx, e, &r.Need, now)
	if err != nil {
		return Decision{}, nil, err
	}
	if d.Reason == ReasonUnknown {
		return v.refuseRequest(r, d, unknownKeyID)
	}
	if d.Reason != ReasonOK {
		if !r.Explain { // without a right signature nobody knows who asks
			d = Decision{Reason: d.Reason}
		}
		return v.refuseRequest(r, d, "the request secret is not accepted: "+d.Reason.String())
	}
	view := e.owner.view.Load()
	if view == nil || view.partner != d.Partner {
		view = newPartnerView(d.Partner) // the partner was changed just now
	}
	buf := v.bases.Get().(*[]byte)
	defer v.bases.Put(buf)
	base, err := checkSigned(sig, r, e.more.sign.key, &view.policy, now, (*buf)[:0])
	if cap(base) > cap(*buf) {
		*buf = base[:0]
	}
	if r.Explain {
		return v.explain(r, sig, e, d, err)
	}
	if err != nil {
		d.Reason = signatureReason(err)
		return v.refuseRequest(r, d, err.Error())
	}
	// For as long as any policy may allow: the partner's can be changed meanwhile.
	until := time.Unix(sig.Created, 0).Add(maxSignatureAge + nonceSlack)
	return v.admit(ctx, e, r, d, now, e.key.ID, sig.Nonce, until)
}

// given reports whether an id was given out. One that is in memory was.
func (v *Verifier) given(id string) bool {
	if k, ok := toCacheKey(id); ok {
		if e, _ := v.cache.get(k); e != nil {
			return true
		}
	}
	return v.peppers.issued(id)
}

// checkSigned checks all that a signature says and covers. It returns the base.
func checkSigned(sig *httpsig.Signature, r *Request, key *httpsig.Key, policy *httpsig.Policy, now time.Time, buf []byte) ([]byte, error) {
	hasBody := len(r.Body) > 0 || r.BodyOmitted
	if err := policy.Check(sig, &r.Message, hasBody, now); err != nil {
		return buf, err
	}
	base, err := httpsig.Verify(sig, &r.Message, key, buf)
	if err != nil {
		return base, err
	}
	digests := r.Message.Header["Content-Digest"]
	switch {
	case r.DigestVerified || !hasBody && len(digests) == 0:
		return base, nil
	case r.BodyOmitted:
		return base, &httpsig.Error{Reason: httpsig.ReasonDigest, Message: "the gateway handed the body over neither to Rotunda nor compared it with Content-Digest itself: configure one of the two"}
	case len(digests) == 0 && !slices.Contains(policy.Required, "content-digest"):
		return base, nil // the partner's policy leaves the body out
	}
	return base, httpsig.CheckDigest(digests, r.Body)
}

// admit does for a request that is rightly signed what is left to do.
func (v *Verifier) admit(ctx context.Context, e *entry, r *Request, d Decision, now time.Time, nonceKey, nonce string, until time.Time) (Decision, *Explanation, error) {
	d.Reason = e.access(d.Scopes, &r.Need)
	taken := false
	if d.Reason == ReasonOK && e.rate != nil {
		// Who has used his rate up writes no nonces. A replay must take nothing, so it
		// is only looked at here.
		look := d
		if err := v.take(ctx, e, 0, now, &look); err != nil {
			return Decision{}, nil, err
		}
		if look.Rate.Remaining < r.Need.cost() {
			if err := v.take(ctx, e, r.Need.cost(), now, &d); err != nil {
				return Decision{}, nil, err
			}
			taken = true
		}
	}
	if d.Reason == ReasonOK {
		fresh, err := v.cfg.Nonces.Spend(ctx, nonceKey, nonce, until)
		if err != nil {
			return Decision{}, nil, unavailable("spend a nonce", err)
		}
		if !fresh {
			d.Reason = ReasonReplay
		}
	}
	if d.Reason == ReasonOK && !taken {
		if err := v.take(ctx, e, r.Need.cost(), now, &d); err != nil {
			return Decision{}, nil, err
		}
	}
	v.shardOf(e).decisions[d.Reason].Add(1)
	v.cache.count(e, d.Reason, now)
	return d, nil, nil
}

const unknownKeyID = "there is no such request secret of yours: keyid is an id of 16 letters and digits, as the list of its versions has it"

// refuseRequest is the answer before there is a right signature.
func (v *Verifier) refuseRequest(r *Request, d Decision, why string) (Decision, *Explanation, error) {
	if r.Explain {
		return d, &Explanation{Message: why}, nil
	}
	v.other.decisions[d.Reason].Add(1)
	return d, nil, nil
}

// explain tells the signer why a signature was refused, which err says, or that it
// is right.
func (v *Verifier) explain(r *Request, sig *httpsig.Signature, e *entry, d Decision, err error) (Decision, *Explanation, error) {
	out := &Explanation{}
	ex, failed := httpsig.Explain(sig, &r.Message, e.more.sign.key, r.SignerBase)
	if failed != nil {
		out.Message = failed.Error()
	} else {
		*out = Explanation{Message: ex.Message, Base: ex.Base, Component: ex.Component, ServerLine: ex.Server, SignerLine: ex.Client}
	}
	if err == nil {
		d.Reason = e.access(d.Scopes, &r.Need)
		out.Message = "the signature is right"
		return d, out, nil
	}
	d.Reason = signatureReason(err)
	if f, ok := errors.AsType[*httpsig.Error](err); ok && f.Reason != httpsig.ReasonSignature {
		out.Message = err.Error()
		if out.Component == "" {
			out.Component = f.Component
		}
	}
	return d, out, nil
}

// signatureReason maps why a request was refused.
func signatureReason(err error) Reason {
	f, ok := errors.AsType[*httpsig.Error](err)
	if !ok {
		if h, ok := errors.AsType[*webhook.Error](err); ok {
			switch h.Reason {
			case webhook.ReasonWindow:
				return ReasonWindow
			case webhook.ReasonSignature:
				return ReasonSignature
			}
		}
		return ReasonMalformed
	}
	switch f.Reason {
	case httpsig.ReasonComponents, httpsig.ReasonNonce, httpsig.ReasonTag:
		return ReasonComponents
	case httpsig.ReasonWindow:
		return ReasonWindow
	case httpsig.ReasonAlgorithm, httpsig.ReasonSignature:
		return ReasonSignature
	case httpsig.ReasonDigest:
		return ReasonDigest
	}
	return ReasonMalformed
}

// verifyWebhook decides about a webhook, which names no secret: all versions of the
// one that the receiver names are tried.
func (v *Verifier) verifyWebhook(ctx context.Context, r *Request) (Decision, *Explanation, error) {
	if r.Need.Partner == "" || r.Secret == "" {
		return Decision{}, nil, fault.Invalid("secret", "webhook_needs_secret", "verify a webhook: name the partner and its request secret, because a webhook names neither")
	}
	if err := v.fresh(); err != nil {
		return Decision{}, nil, err
	}
	now := v.cfg.DB.Now()
	for again := false; ; again = true {
		tried, secrets, old, err := v.versions(ctx, &r.Need, r.Secret, again)
		if err != nil {
			return Decision{}, nil, err
		}
		if len(tried) == 0 && !old {
			return v.refuseRequest(r, Decision{Reason: ReasonUnknown}, unknownKeyID)
		}
		if len(tried) == 0 {
			continue
		}
		if r.BodyOmitted {
			return v.refuseRequest(r, Decision{Reason: ReasonDigest}, "a webhook is signed with its body, which the gateway did not hand over")
		}
		i, id, err := webhook.Verify(r.Message.Header, r.Body, now, hookTolerance, secrets...)
		if err != nil && old && signatureReason(err) == ReasonSignature {
			continue // a version may have been made meanwhile
		}
		if err != nil {
			return v.refuseRequest(r, Decision{Reason: signatureReason(err)}, err.Error())
		}
		e := tried[i]
		d, err := v.standing(ctx, e, &r.Need, now)
		if err != nil {
			return Decision{}, nil, err
		}
		if r.Explain {
			if d.Reason == ReasonOK {
				d.Reason = e.access(d.Scopes, &r.Need)
			}
			return d, &Explanation{Message: "the signature is right"}, nil
		}
		if d.Reason != ReasonOK {
			v.shardOf(e).decisions[d.Reason].Add(1)
			if d.Key != nil {
				v.cache.count(e, d.Reason, now)
			}
			return d, nil, nil
		}
		// All versions share what was seen: a webhook is often signed with two of them. A
		// sender that tries again signs the same id with a new timestamp, and that is no
		// replay: that it is told once only is the receiver's affair, who alone knows
		// whether the first try did what it should.
		at := ""
		if lines := r.Message.Header["Webhook-Timestamp"]; len(lines) == 1 {
			at = lines[0] // to the byte what was signed
		}
		return v.admit(ctx, e, r, d, now, e.key.Partner+"/"+e.key.Name, "wh:"+id+"."+at, now.Add(2*hookTolerance+nonceSlack))
	}
}

// versions returns the versions of a request secret that have not ended, and their
// secrets. old says that they may be looked for anew.
func (v *Verifier) versions(ctx context.Context, need *Need, name string, again bool) (tried []*entry, secrets []webhook.Secret, old bool, err error) {
	tick := v.cfg.DB.Tick()
	var known versions
	ok := false
	if o := v.owners.find(need.Partner); o != nil {
		o.mu.Lock()
		known, ok = o.secrets[name]
		o.mu.Unlock()
	}
	old = ok && !again && tick-known.read >= versionsFor
	if !ok || again {
		if known, err = v.readVersions(ctx, need.Partner, name); err != nil {
			return nil, nil, false, err
		}
	}
	for _, id := range known.ids {
		e, err := v.entry(ctx, id)
		if err != nil {
			return nil, nil, false, err
		}
		if e == nil || e.more.sign == nil || e.more.sign.hook == (webhook.Secret{}) || need.Environment != "" && need.Environment != e.key.Environment {
			continue
		}
		tried, secrets = append(tried, e), append(secrets, e.more.sign.hook)
	}
	return tried, secrets, old, nil
}

func (v *Verifier) readVersions(ctx context.Context, partner, name string) (versions, error) {
	epoch := uint64(0)
	o := v.owners.find(partner)
	// Anybody may make names up; who does uses up no other partner's looks, nor
	// those for keys.
	looks := &v.loads.names
	if o != nil {
		epoch = o.at()
		looks = &o.names
	}
	if !looks.wait(ctx, v.cfg.DB.Tick, absentWait) {
		return versions{}, v.tooMany()
	}
	out := versions{read: v.cfg.DB.Tick()}
	err := v.cfg.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		v.loaded.Add(1)
		out.ids = nil
		rows, err := tx.Query(ctx, `SELECT id FROM partner_keys WHERE partner = $1 AND kind = 'request_secret' AND name = $2 AND state IN ('active', 'retiring', 'suspended')
			ORDER BY created_at DESC, id LIMIT $3`, partner, name, hookVersions)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				return err
			}
			out.ids = append(out.ids, id)
		}
		return rows.Err()
	})
	if err != nil {
		return versions{}, unavailable("look for a request secret", err)
	}
	if len(out.ids) == 0 {
		looks.charge(v.cfg.DB.Tick())
	}
	if o == nil {
		return out, nil // kept next time, when a version of it is in memory
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.epoch == epoch {
		if o.secrets == nil || len(o.secrets) >= maxSecretNames {
			o.secrets = map[string]versions{}
		}
		o.secrets[name] = out
	}
	return out, nil
}
