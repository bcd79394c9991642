package postgres

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// marker is what the comment of a role says about the value that the role has.
type marker struct {
	Rotation   string
	Generation int64
	Epoch      int64
}

var markerPattern = regexp.MustCompile(`\[rotunda rotation=([0-9A-Za-z-]{1,64}) generation=([0-9]{1,18}) epoch=([0-9]{1,18})\]`)

// splitComment takes a role's comment apart into what a person wrote and the marker. Of
// several markers, which only a person can have made, the one of the newest generation
// counts, so that a copy of an old one can't make us forget.
func splitComment(comment string) (text string, m marker, ok bool) {
	at := markerPattern.FindAllStringSubmatchIndex(comment, -1)
	if at == nil {
		return comment, marker{}, false
	}
	var b strings.Builder
	from := 0
	for _, i := range at {
		part := comment[from:i[0]]
		if i[1] == len(comment) {
			part = strings.TrimSuffix(part, " ")
		}
		b.WriteString(part)
		from = i[1]
		// Eighteen digits fit into 63 bits.
		generation, _ := strconv.ParseInt(comment[i[4]:i[5]], 10, 64)
		epoch, _ := strconv.ParseInt(comment[i[6]:i[7]], 10, 64)
		if !ok || generation > m.Generation || generation == m.Generation && epoch > m.Epoch {
			m, ok = marker{comment[i[2]:i[3]], generation, epoch}, true
		}
	}
	b.WriteString(comment[from:])
	return b.String(), m, true
}

// comment is text with the marker behind it.
func (m marker) comment(text string) string {
	if text != "" {
		text += " "
	}
	return text + m.String()
}

func (m marker) String() string {
	return fmt.Sprintf("[rotunda rotation=%s generation=%d epoch=%d]", m.Rotation, m.Generation, m.Epoch)
}

func (m marker) of(h providers.Held) bool {
	return m.Generation == h.Generation && m.Rotation == h.Rotation
}

// fence refuses a change when a newer lease, a newer generation, or another rotation of
// the same generation has been at work on the role.
func (r role) fence(c providers.Change) error {
	m := r.marker
	switch {
	case !r.marked:
		return nil
	case m.Generation > c.Generation, m.Generation == c.Generation && m.Rotation != c.Rotation:
		return fault.New(fault.ErrStale, "generation_passed", "the role %q has a value of generation %d, rotation %s; this is generation %d, rotation %s: "+
			"if that value came from elsewhere (another credential, a restored database), remove the part in brackets from the role's comment and retry",
			r.name, m.Generation, m.Rotation, c.Generation, c.Rotation)
	case m.Epoch > c.Epoch:
		return fault.New(fault.ErrStale, "epoch_passed", "the role %q was changed under epoch %d, this call is of epoch %d: another process has taken the rotation over", r.name, m.Epoch, c.Epoch)
	}
	return nil
}
