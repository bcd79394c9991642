package server

import (
	"context"
	"strings"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// A partner's token works on its own partner and on no other. Three things see to it,
// each by itself:
//
//   - [Server.admitPartner] asks the policy about every partner that a message names,
//     before anything is looked up;
//   - handlers take the partner from [Server.partner], which for a partner's token is
//     its own, whatever the message says;
//   - the domain looks for ids within that partner only: what others have is not
//     found, by the same statement with which nothing would be.
//
// So a partner that exists and one that does not get one answer by one path, and in
// one time: there is no look-up that could tell.

// partnersIn calls f with each partner that a message names; "" where it names none.
// It ends with the first error.
func partnersIn(msg any, f func(partner string) error) error {
	switch m := msg.(type) {
	case *rotundav1.VerifyApiKeysRequest:
		for _, r := range m.GetRequests() {
			if err := f(r.GetPartner()); err != nil {
				return err
			}
		}
		if len(m.GetRequests()) > 0 {
			return nil
		}
	case interface{ GetPartner() string }:
		return f(m.GetPartner())
	case *rotundav1.CreatePartnerRequest:
		return f(m.GetName())
	}
	return f("")
}

// admitPartner decides whether a caller may send a message that works on partners.
// For a partner's token, a partner that the message names and that is not its own
// does not exist.
func (s *Server) admitPartner(ctx context.Context, c caller, procedure string, msg any) error {
	if c.token == nil {
		return s.denyRole(ctx, c, procedure, "")
	}
	action := procedure
	if v, ok := msg.(*rotundav1.VerifyRequestRequest); ok && v.GetExplain() {
		action = explainAction
	}
	own := c.token.Partner
	return partnersIn(msg, func(asked string) error {
		name := asked
		if name == "" {
			name = own
		}
		if c.who.may(s.authz, procedure, name) && (action == procedure || c.who.may(s.authz, action, name)) {
			return nil
		}
		if own == "" || name == own || !c.who.may(s.authz, action, own) {
			return s.denyRole(ctx, c, action, "")
		}
		s.deny(ctx, audit.Event{Action: actionOf(procedure), Resource: partnerNoise(asked), Reason: "partner"})
		return errNoPartner(asked)
	})
}

// partner is the partner that a call works on. "" is all, for who may see all: an id
// names one key of them, so that in an emergency nobody has to look for its partner.
func (s *Server) partner(ctx context.Context, asked string) string {
	if c := callerOf(ctx); c.token != nil && c.token.Partner != "" {
		return c.token.Partner
	}
	return asked
}

// onePartner is partner for calls that name nothing which belongs to one partner only.
func (s *Server) onePartner(ctx context.Context, asked string) (string, error) {
	name := s.partner(ctx, asked)
	if name == "" {
		return "", fault.Invalid("partner", "partner_missing", "name the partner: only a partner's own token may leave it out")
	}
	return name, nil
}

// errNoPartner says that there is no such partner, as the domain does.
func errNoPartner(name string) error {
	return fault.New(fault.ErrNotFound, "partner_not_found", "partner %q does not exist: see `rotunda partner list`", name[:min(len(name), 64)]).On("partner")
}

// partnerNoise is how the trail names a partner that somebody else's token asked for.
// What can't be the name of one is the caller's noise.
func partnerNoise(name string) string {
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	}) {
		return "partners/?"
	}
	return "partners/" + name
}
