package httpsig

import (
	"encoding/base64"
	"strconv"
	"strings"
	"time"
)

// Params says how to sign a message.
type Params struct {
	Label      string    // "sig1" when empty
	Components []string  // identifiers, as "@path" or `@query-param;name="id"`
	Created    time.Time // left out when zero
	Expires    time.Time // left out when zero
	KeyID      string    // left out when empty, like what follows
	Nonce      string
	Tag        string
	Alg        bool // say the algorithm; verifiers know it from the key
}

// Sign makes the values of the Signature-Input and Signature fields. It makes
// nothing that [Parse] would refuse. Set Content-Digest before when it is covered.
func Sign(m *Message, k *Key, p Params) (input, signature string, err error) {
	label := p.Label
	if label == "" {
		label = "sig1"
	}
	text := p.append(nil, k.alg)
	s := &Signature{Label: label}
	scan := scanner{s: string(text), field: "Signature-Input"}
	if err := s.params(&scan); err != nil {
		return "", "", err
	}
	if scan.i < len(scan.s) {
		return "", "", scan.fail("a component identifier or a parameter ends before this")
	}
	for i, want := range p.Components {
		if len(s.Components) != len(p.Components) || s.Components[i].String() != want {
			return "", "", refuseComponent(ReasonComponents, clip(want), `write a component as @path or @query-param;name="id"`)
		}
	}
	l := scanner{s: label, field: "label"}
	if name, err := l.key(); err != nil || name != label {
		return "", "", refuse(ReasonMalformed, "the label %s is not a name in lower case", clip(label))
	}
	base, err := s.Base(nil, m)
	if err != nil {
		return "", "", err
	}
	value, err := k.sign(base)
	if err != nil {
		return "", "", err
	}
	return label + "=" + s.input, label + "=:" + base64.StdEncoding.EncodeToString(value) + ":", nil
}

func (p *Params) append(dst []byte, alg Algorithm) []byte {
	dst = append(dst, '(')
	for i, c := range p.Components {
		if i > 0 {
			dst = append(dst, ' ')
		}
		name, params := c, ""
		if j := strings.IndexByte(c, ';'); j >= 0 {
			name, params = c[:j], c[j:]
		}
		dst = append(append(append(append(dst, '"'), name...), '"'), params...)
	}
	dst = append(dst, ')')
	if !p.Created.IsZero() {
		dst = strconv.AppendInt(append(dst, ";created="...), p.Created.Unix(), 10)
	}
	if !p.Expires.IsZero() {
		dst = strconv.AppendInt(append(dst, ";expires="...), p.Expires.Unix(), 10)
	}
	texts := []struct{ name, value string }{{"keyid", p.KeyID}, {"nonce", p.Nonce}, {"tag", p.Tag}}
	if p.Alg {
		texts = append(texts, struct{ name, value string }{"alg", string(alg)})
	}
	for _, t := range texts {
		if t.value != "" {
			dst = appendString(append(append(append(dst, ';'), t.name...), '='), t.value)
		}
	}
	return dst
}
