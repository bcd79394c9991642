package httpsig

import "strings"

// kind tells a field from the derived components of RFC 9421 section 2.2.
type kind uint8

const (
	field kind = iota
	method
	targetURI
	authority
	scheme
	requestTarget
	path
	query
	queryParam
	status
)

// flags are the parameters of a component that carry no value.
type flags uint8

const (
	flagSF flags = 1 << iota
	flagBS
	flagReq
	flagTR
	flagKey  // arg is a dictionary key
	flagName // arg is the name of a query parameter
)

// Component is one covered component: a field, or a part of the message that is
// not a field, with the parameters that say how its value is made.
type Component struct {
	raw   string // as it is in Signature-Input: "@query-param";name="id"
	size  uint8  // of the name
	kind  kind
	flags flags
}

// Name is the component's name without parameters, as "@path" or "content-type".
func (c Component) Name() string { return c.name() }

func (c *Component) name() string {
	if c.raw == "" {
		return ""
	}
	return c.raw[1 : 1+c.size]
}

// String is the component identifier, as @query-param;name="id".
func (c Component) String() string {
	if c.raw == "" {
		return ""
	}
	return c.name() + c.raw[c.size+2:]
}

// arg is the value of ;key or ;name. A signature that has one is rare, so it is
// read again here and not kept.
func (c *Component) arg() string {
	p := scanner{s: c.raw, i: int(c.size) + 2}
	for p.next() == ';' {
		p.i++
		if _, err := p.key(); err != nil {
			return ""
		}
		if p.next() == '=' {
			p.i++
			s, err := p.str()
			if err != nil {
				return ""
			}
			return s
		}
	}
	return ""
}

// same says whether two identifiers mean one component: the order of parameters
// makes no difference (RFC 9421 section 2).
func (c *Component) same(d *Component) bool {
	if c.size != d.size || c.kind != d.kind || c.flags != d.flags || c.name() != d.name() {
		return false
	}
	return c.flags&(flagKey|flagName) == 0 || c.arg() == d.arg()
}

// is says whether the identifier is the one that is asked for, which is written
// as String writes it.
func (c *Component) is(identifier string) bool {
	n := int(c.size)
	if len(identifier) < n || c.raw[1:1+n] != identifier[:n] {
		return false
	}
	if len(identifier) > n {
		return identifier[n] == ';' && c.raw[n+2:] == identifier[n:]
	}
	// With ;sf or ;bs the whole value is covered still; ;key is one member of
	// it, ;tr and ;req are something else.
	return c.flags&^(flagSF|flagBS) == 0
}

func kindOf(name string) (kind, bool) {
	switch name {
	case "@method":
		return method, true
	case "@target-uri":
		return targetURI, true
	case "@authority":
		return authority, true
	case "@scheme":
		return scheme, true
	case "@request-target":
		return requestTarget, true
	case "@path":
		return path, true
	case "@query":
		return query, true
	case "@query-param":
		return queryParam, true
	case "@status":
		return status, true
	}
	return 0, false
}

// component reads one component identifier with its parameters into the zero c.
func (p *scanner) component(c *Component) error {
	start := p.i
	if p.next() != '"' {
		return p.fail(`a component identifier in double quotes, as "@method", belongs here`)
	}
	p.i++
	rest := p.s[p.i:]
	size := strings.IndexByte(rest, '"')
	if size < 1 || size > maxName {
		return p.fail("a component name has 1 to %d characters and a closing quote", maxName)
	}
	name := rest[:size]
	p.i += size + 1
	c.raw, c.size = p.s[start:p.i], uint8(size)
	if name[0] == '@' {
		var known bool
		if c.kind, known = kindOf(name); !known {
			return refuseComponent(ReasonComponents, clip(name), "there is no such derived component: see RFC 9421 section 2.2")
		}
	} else {
		if !all(name, inFieldName) {
			return refuseComponent(ReasonMalformed, clip(name), "a field name is written in lower case and in ASCII")
		}
	}
	if p.next() != ';' && c.kind != queryParam {
		return nil
	}
	for p.next() == ';' {
		if err := p.componentParam(c); err != nil {
			return err
		}
	}
	c.raw = p.s[start:p.i]
	return c.check()
}

func (p *scanner) componentParam(c *Component) error {
	p.i++
	name, err := p.key()
	if err != nil {
		return err
	}
	var f flags
	switch name {
	case "sf":
		f = flagSF
	case "bs":
		f = flagBS
	case "req":
		f = flagReq
	case "tr":
		f = flagTR
	case "key":
		f = flagKey
	case "name":
		f = flagName
	default:
		return refuseComponent(ReasonComponents, clip(c.name()), "the parameter %s is not known", clip(name))
	}
	if c.flags&f != 0 {
		return refuseComponent(ReasonDuplicate, clip(c.name()), "the parameter %s is there twice", name)
	}
	c.flags |= f
	if f&(flagKey|flagName) == 0 {
		if p.next() == '=' {
			return p.fail("the parameter %s is written without a value", name)
		}
		return nil
	}
	if p.next() != '=' {
		return p.fail("the parameter %s needs a value", name)
	}
	p.i++
	arg, err := p.str()
	if err != nil {
		return err
	}
	if len(arg) > maxArg {
		return p.fail("the value of %s is longer than %d characters", name, maxArg)
	}
	return nil
}

// check refuses parameters that don't go together, or with this component.
func (c *Component) check() error {
	f := c.flags &^ flagReq
	switch {
	case c.kind == queryParam:
		if f != flagName {
			return refuseComponent(ReasonComponents, c.String(), `write it as "@query-param";name="…"`)
		}
	case c.kind != field && f != 0:
		return refuseComponent(ReasonComponents, c.String(), "a derived component has no such parameter")
	case f&flagName != 0:
		return refuseComponent(ReasonComponents, c.String(), "only @query-param has a name")
	}
	if encodings := f & (flagSF | flagBS | flagKey); encodings&(encodings-1) != 0 {
		return refuseComponent(ReasonComponents, c.String(), "sf, bs and key exclude each other")
	}
	return nil
}
