package jwks

import (
	"fmt"
	"slices"
	"strings"
)

// State is what a signing key may do.
type State string

// The states of a signing key.
const (
	Pending  State = "pending"  // published, not signing
	Active   State = "active"   // published, signing; one per keyset
	Retiring State = "retiring" // published, no longer signing
	Retired  State = "retired"  // withdrawn, private half destroyed
	Revoked  State = "revoked"  // withdrawn early: it may be compromised
)

// States lists every state in the order of a key's life.
var States = []State{Pending, Active, Retiring, Retired, Revoked}

// Published reports whether a key in this state is in the JWKS document.
func (s State) Published() bool { return s == Pending || s == Active || s == Retiring }

// unborn is the state of a key that does not exist yet.
const unborn State = ""

// moves is the whole state machine: move refuses whatever is not listed.
// A key is born active only as the first of its keyset, by import, or in an emergency.
var moves = map[State][]State{
	unborn:   {Pending, Active, Retiring},
	Pending:  {Active, Revoked},
	Active:   {Retiring, Revoked},
	Retiring: {Retired, Revoked},
}

// labels says what lets a key make a move; the diagram shows it.
var labels = map[[2]State]string{
	{unborn, Pending}:   "published ahead",
	{unborn, Active}:    "first key, import, or fresh key of an emergency",
	{unborn, Retiring}:  "import",
	{Pending, Active}:   "served for the lead, and rotation is due",
	{Pending, Revoked}:  "revoke",
	{Active, Retiring}:  "its successor signs",
	{Active, Revoked}:   "revoke",
	{Retiring, Retired}: "its last token has expired",
	{Retiring, Revoked}: "revoke",
}

// Diagram returns the state machine as a Mermaid state diagram. It is made
// from the same table that move obeys.
func Diagram() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n")
	name := func(s State) string {
		if s == unborn {
			return "[*]"
		}
		return string(s)
	}
	for _, from := range append([]State{unborn}, States...) {
		for _, to := range States {
			if slices.Contains(moves[from], to) {
				fmt.Fprintf(&b, "    %s --> %s: %s\n", name(from), to, labels[[2]State{from, to}])
			}
		}
	}
	b.WriteString("    retired --> [*]\n    revoked --> [*]\n")
	return b.String()
}
