package httpsig

// Bounds on what is read. They are far above what signers send.
const (
	maxField      = 8 << 10  // bytes of all lines of one signature field
	maxBase       = 64 << 10 // bytes of a signature base
	maxLabels     = 8
	maxLabel      = 64
	maxComponents = 32
	maxName       = 128 // of a component
	maxArg        = 256 // of ;key and ;name
	maxText       = 256 // keyid, nonce, tag
	maxAlg        = 32
	maxSignature  = 1024            // bytes: RSA of 8,192 bits
	maxTime       = 253_402_300_799 // the last second of the year 9999
	maxTimeDigits = 12
)

// Signature is one signature of a message as its fields describe it. It is a
// claim until [Verify] says otherwise.
type Signature struct {
	Label      string
	Components []Component
	Created    int64 // Unix seconds
	Expires    int64 // Unix seconds
	HasCreated bool
	HasExpires bool
	HasNonce   bool
	HasKeyID   bool
	KeyID      string
	Nonce      string
	Tag        string
	Alg        string // what the signer says; never what decides
	Value      []byte // the signature itself

	hasAlg, hasTag bool
	derived        uint16 // a bit for each kind that is covered without parameters
	input          string // the value in Signature-Input, which is canonical

	// Room for what most signatures need, in the same allocation.
	components [8]Component
	value      [64]byte
}

// Parse reads one signature from the Signature-Input and Signature fields (RFC
// 9421 section 4). With an empty label there must be exactly one signature in
// the message; else the one with that label is taken, and the others only have
// to be well-formed.
//
// The result holds substrings of the message's fields.
func Parse(m *Message, label string) (*Signature, error) {
	inputs, values := m.Header["Signature-Input"], m.Header["Signature"]
	if len(inputs) == 0 || len(values) == 0 {
		return nil, refuse(ReasonMissing, "the request needs both a Signature-Input and a Signature field")
	}
	s := new(Signature)
	if err := s.parseInput(inputs, label); err != nil {
		return nil, err
	}
	if err := s.parseValue(values, label); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Signature) parseInput(lines []string, label string) error {
	d := dictionary{name: "Signature-Input"}
	found := false
	for d.start(lines); d.more(); {
		name, err := d.member()
		if err != nil {
			return err
		}
		into := s
		switch {
		case label != "" && name != label:
			into = new(Signature)
		case found: // only without a label: a repeated label is refused by member
			return refuse(ReasonDuplicate, "the message has more than one signature and none is chosen by its label")
		default:
			found = true
		}
		into.Label = name
		if err := into.params(&d.scanner); err != nil {
			return err
		}
		if err := d.end(); err != nil {
			return err
		}
	}
	if d.err != nil {
		return d.err
	}
	if !found {
		return refuse(ReasonMissing, "Signature-Input has no signature with the label %s", clip(label))
	}
	return nil
}

// params reads an inner list of components with its parameters. It accepts the
// canonical form only, the one a serializer writes: then the text is the value of
// @signature-params for everybody, whether they sign the text or write it anew.
func (s *Signature) params(p *scanner) error {
	start := p.i
	if p.next() != '(' {
		return p.fail("a list of components in brackets belongs here")
	}
	p.i++
	s.Components = s.components[:0]
	for p.next() != ')' {
		if len(s.Components) > 0 {
			if p.next() != ' ' {
				return p.fail("one space between components, or a closing bracket, belongs here")
			}
			p.i++
		}
		if len(s.Components) == maxComponents {
			return refuse(ReasonMalformed, "the signature covers more than %d components", maxComponents)
		}
		n := len(s.Components)
		if n < len(s.components) {
			s.Components = s.components[:n+1]
		} else {
			s.Components = append(s.Components, Component{})
		}
		c := &s.Components[n]
		if err := p.component(c); err != nil {
			return err
		}
		if c.kind != field && c.flags == 0 {
			if s.derived&(1<<c.kind) != 0 {
				return refuseComponent(ReasonDuplicate, c.String(), "it is covered twice")
			}
			s.derived |= 1 << c.kind
			continue
		}
		for i := range s.Components[:n] {
			if c.same(&s.Components[i]) {
				return refuseComponent(ReasonDuplicate, c.String(), "it is covered twice")
			}
		}
	}
	p.i++
	for p.next() == ';' {
		p.i++
		if err := s.param(p); err != nil {
			return err
		}
	}
	s.input = p.s[start:p.i]
	return nil
}

func (s *Signature) param(p *scanner) error {
	name, err := p.key()
	if err != nil {
		return err
	}
	var text *string
	var seen *bool
	most := maxText
	switch name {
	case "created":
		return p.time(name, &s.Created, &s.HasCreated)
	case "expires":
		return p.time(name, &s.Expires, &s.HasExpires)
	case "keyid":
		text, seen = &s.KeyID, &s.HasKeyID
	case "nonce":
		text, seen = &s.Nonce, &s.HasNonce
	case "tag":
		text, seen = &s.Tag, &s.hasTag
	case "alg":
		text, seen, most = &s.Alg, &s.hasAlg, maxAlg
	default:
		// One that is not known might forbid what is about to be allowed.
		return refuse(ReasonMalformed, "the signature parameter %s is not known: created, expires, keyid, nonce, tag and alg are", clip(name))
	}
	if *seen {
		return refuse(ReasonDuplicate, "the signature parameter %s is there twice", name)
	}
	*seen = true
	if p.next() != '=' {
		return p.fail("the signature parameter %s needs a value", name)
	}
	p.i++
	if *text, err = p.str(); err != nil {
		return err
	}
	if len(*text) > most {
		return p.fail("the signature parameter %s is longer than %d characters", name, most)
	}
	return nil
}

func (s *Signature) parseValue(lines []string, label string) error {
	d := dictionary{name: "Signature"}
	found := false
	for d.start(lines); d.more(); {
		name, err := d.member()
		if err != nil {
			return err
		}
		text, err := d.bytes()
		if err != nil {
			return err
		}
		if err := d.end(); err != nil {
			return err
		}
		if name == s.Label {
			found = true
			var ok bool
			if s.Value, ok = appendBase64(s.value[:0], text); !ok {
				return refuse(ReasonMalformed, "Signature: the value of %s is not base64 with padding", clip(name))
			}
			continue
		}
		if label == "" {
			return refuse(ReasonDuplicate, "Signature has a label %s that Signature-Input has not", clip(name))
		}
		if _, ok := appendBase64(nil, text); !ok {
			return refuse(ReasonMalformed, "Signature: the value of %s is not base64 with padding", clip(name))
		}
	}
	if d.err != nil {
		return d.err
	}
	switch {
	case !found:
		return refuse(ReasonMissing, "Signature has no value for the label %s", clip(s.Label))
	case len(s.Value) == 0 || len(s.Value) > maxSignature:
		return refuse(ReasonMalformed, "Signature: a value has 1 to %d bytes", maxSignature)
	}
	return nil
}

// dictionary walks the members of a dictionary field over all its lines. A line
// has to be a dictionary by itself, and a label may be there once: who joins the
// lines and who takes the last of two must come to the same.
type dictionary struct {
	scanner
	name   string // of the field
	lines  []string
	labels [maxLabels]string
	count  int
	err    error
}

func (d *dictionary) start(lines []string) {
	size := 0
	for _, l := range lines {
		size += len(l)
	}
	if size > maxField || len(lines) > maxLabels {
		d.err = refuse(ReasonMalformed, "%s is longer than %d bytes or has more than %d lines", d.name, maxField, maxLabels)
		return
	}
	d.lines = lines
	d.scanner = scanner{field: d.name}
}

// more steps to the next member, and over the end of a line.
func (d *dictionary) more() bool {
	if d.err != nil {
		return false
	}
	if d.i < len(d.s) {
		return true
	}
	if len(d.lines) == 0 {
		return false
	}
	d.s, d.i, d.lines = trim(d.lines[0]), 0, d.lines[1:]
	if d.s == "" {
		d.err = refuse(ReasonMalformed, "%s has an empty line", d.name)
		return false
	}
	return true
}

// member reads a label and its equals sign.
func (d *dictionary) member() (string, error) {
	label, err := d.key()
	if err != nil {
		return "", err
	}
	for _, l := range d.labels[:d.count] {
		if l == label {
			return "", refuse(ReasonDuplicate, "%s has %s twice", d.name, clip(label))
		}
	}
	if d.count == maxLabels {
		return "", refuse(ReasonMalformed, "%s has more than %d members", d.name, maxLabels)
	}
	d.labels[d.count] = label
	d.count++
	if d.next() != '=' {
		return "", d.fail("a value belongs here")
	}
	d.i++
	return label, nil
}

// end reads what follows a member: the end of the line, or a comma and more.
func (d *dictionary) end() error {
	d.space()
	if d.i == len(d.s) {
		return nil
	}
	if d.s[d.i] != ',' {
		return d.fail("a comma or the end of the field belongs here")
	}
	d.i++
	d.space()
	if d.i == len(d.s) {
		return d.fail("a member is missing after the comma")
	}
	return nil
}
