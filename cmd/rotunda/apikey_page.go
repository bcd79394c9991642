package main

import (
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func keyState(s rotundav1.ApiKeyState) string { return word(s.String(), "API_KEY_STATE_") }

func revokedFor(r rotundav1.RevocationReason) string { return word(r.String(), "REVOCATION_REASON_") }

// graceText says how long something that was replaced goes on.
func graceText(p *page, state rotundav1.ApiKeyState, end *timestamppb.Timestamp, quiet *durationpb.Duration) string {
	if state != rotundav1.ApiKeyState_API_KEY_STATE_RETIRING {
		return "which is " + keyState(state)
	}
	text := "which works on, and ends " + p.when(end)
	if quiet != nil {
		text += ", or once it was not used for " + formatDuration(quiet.AsDuration())
	}
	return text
}

// standing is what an API key and a version of a request secret both have, for
// one remark: why it is not simply active.
type standing interface {
	GetState() rotundav1.ApiKeyState
	GetGraceEndsAt() *timestamppb.Timestamp
	GetQuiet() *durationpb.Duration
	GetReplacedBy() string
	GetRevocationReason() rotundav1.RevocationReason
	GetReasonText() string
}

func (p *page) remark(k standing) string {
	var parts []string
	switch k.GetState() {
	case rotundav1.ApiKeyState_API_KEY_STATE_RETIRING:
		text := "ends " + p.when(k.GetGraceEndsAt())
		if k.GetQuiet() != nil {
			text += ", or once it was not used for " + formatDuration(k.GetQuiet().AsDuration())
		}
		parts = append(parts, text)
	case rotundav1.ApiKeyState_API_KEY_STATE_REVOKED:
		parts = append(parts, revokedFor(k.GetRevocationReason()))
	default:
	}
	if k.GetReasonText() != "" {
		parts = append(parts, k.GetReasonText())
	}
	if k.GetReplacedBy() != "" {
		parts = append(parts, "replaced by "+k.GetReplacedBy())
	}
	return strings.Join(parts, "; ")
}

const weakText = "weak: it is too easy to guess, and must be rolled before it ends"

func (p *page) keys(list []*rotundav1.ApiKey) {
	if len(list) == 0 {
		p.line("there are no keys: %s makes one", p.cli.command("key create --name NAME --scope SCOPE"))
		return
	}
	rows := make([][]string, len(list))
	for i, k := range list {
		remark := p.remark(k)
		if k.GetWeak() && !ended(k.GetState()) {
			remark = strings.Trim(remark+"; weak", "; ")
		}
		rows[i] = []string{
			k.GetId(), k.GetName(), k.GetPartner(), k.GetEnvironment(), keyState(k.GetState()), firstOf(strings.Join(k.GetScopes(), " "), "none"),
			p.when(k.GetExpiresAt()), p.when(k.GetLastUsedAt()), remark,
		}
	}
	p.table([]string{"ID", "NAME", "PARTNER", "ENV", "STATE", "SCOPES", "EXPIRES", "LAST USED", "REMARK"}, rows)
}

func ended(s rotundav1.ApiKeyState) bool {
	return s == rotundav1.ApiKeyState_API_KEY_STATE_RETIRED || s == rotundav1.ApiKeyState_API_KEY_STATE_REVOKED || s == rotundav1.ApiKeyState_API_KEY_STATE_EXPIRED
}

func (p *page) apiKey(k *rotundav1.ApiKey) {
	p.line("%s  %s of %s  %s", k.GetId(), k.GetName(), k.GetPartner(), keyState(k.GetState()))
	p.fact("remark", p.remark(k))
	if k.GetWeak() {
		p.fact("warning", weakText)
	}
	p.fact("environment", k.GetEnvironment())
	p.fact("class", word(k.GetClass().String(), "KEY_CLASS_"))
	p.grant(k.GetScopes(), k.GetCidrs(), k.GetRateLimit(), k.GetMetadata())
	p.times(k)
	p.fact("replaces", k.GetReplaces())
	if k.GetOrigin() != "" && k.GetOrigin() != "rotunda" {
		p.fact("origin", "imported, "+k.GetOrigin())
	}
	if k.GetPepperGeneration() > 0 {
		p.fact("pepper", "generation "+formatInt(k.GetPepperGeneration()))
	}
}

func (p *page) grant(scopes, cidrs []string, rate *rotundav1.RateLimit, metadata map[string]string) {
	p.fact("scopes", firstOf(strings.Join(scopes, " "), "none: it may do nothing"))
	p.fact("addresses", firstOf(strings.Join(cidrs, " "), "any"))
	p.fact("rate", formatRate(rate))
	p.fact("metadata", formatMetadata(metadata))
}

func (p *page) times(k interface {
	GetCreatedAt() *timestamppb.Timestamp
	GetExpiresAt() *timestamppb.Timestamp
	GetFirstUsedAt() *timestamppb.Timestamp
	GetLastUsedAt() *timestamppb.Timestamp
},
) {
	if k.GetCreatedAt() != nil {
		p.fact("created", p.when(k.GetCreatedAt()))
	}
	p.fact("expires", p.when(k.GetExpiresAt()))
	if k.GetFirstUsedAt() == nil {
		p.fact("used", "never")
		return
	}
	p.fact("used", "first "+p.when(k.GetFirstUsedAt())+", last "+p.when(k.GetLastUsedAt()))
}
