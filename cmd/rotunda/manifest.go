package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// Bounds of a manifest.
const (
	maxManifest  = 1 << 20 // bytes
	maxDocuments = 2000
	maxListed    = 64 // items of a list
	maxNamed     = 64 // entries of a map
)

// The kinds of documents, in the order in which they are created: what comes later
// names what comes before.
var documentKinds = []string{"store", "target", "endpoint", "credential"}

// document is one document of a manifest: something that is to be there.
type document struct {
	kind string // one of documentKinds
	name string
	at   string // "orders-db.yaml:12"
	dir  string // relative paths begin here

	system     *systemDocument
	credential *rotundav1.CredentialSpec
	endpoint   *rotundav1.CreateEndpointRequest
}

// systemDocument is a store or a target.
type systemDocument struct {
	adapter         string // "vault-kv", "postgres"
	settings        map[string]string
	login           []loginEntry
	loginCredential string
}

// manifestFields is how a mapping is read: what each key that it may have is for.
type manifestFields map[string]func(*yaml.Node) error

// manifestReader reads one file.
type manifestReader struct {
	file string
	dir  string // relative paths begin here
}

// errorf is an error at a place of the file.
func (r *manifestReader) errorf(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s: %w", r.at(n), fmt.Errorf(format, args...))
}

func (r *manifestReader) at(n *yaml.Node) string { return fmt.Sprintf("%s:%d", r.file, n.Line) }

// parseManifest reads a YAML file of documents. It is strict: a key that is not known,
// or is there twice, is refused with its line; so are anchors, aliases and tags, which
// nobody needs here.
func parseManifest(file string, raw []byte) ([]*document, error) {
	r := &manifestReader{file: filepath.Base(file), dir: filepath.Dir(file)}
	if file == "-" {
		r.file, r.dir = "stdin", "."
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	var out []*document
	seen := map[string]string{}
	for {
		var root yaml.Node
		err := dec.Decode(&root)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %s", r.file, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if len(root.Content) != 1 || root.Content[0].Tag == "!!null" {
			continue // nothing but a comment
		}
		if len(out) == maxDocuments {
			return nil, fmt.Errorf("%s: it has more than %d documents", r.file, maxDocuments)
		}
		d, err := r.document(root.Content[0])
		if err != nil {
			return nil, err
		}
		id := d.kind + " " + d.name
		if before, twice := seen[id]; twice {
			return nil, r.errorf(root.Content[0], "%s is there twice: before at %s", id, before)
		}
		seen[id] = d.at
		out = append(out, d)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: there is nothing in it: write documents of kind %s", r.file, strings.Join(documentKinds, ", "))
	}
	slices.SortStableFunc(out, func(a, b *document) int {
		return slices.Index(documentKinds, a.kind) - slices.Index(documentKinds, b.kind)
	})
	return out, nil
}

func (r *manifestReader) document(n *yaml.Node) (*document, error) {
	if n.Kind != yaml.MappingNode {
		return nil, r.errorf(n, "a document is a mapping: kind, name and so on")
	}
	d := &document{at: r.at(n), dir: r.dir}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "kind" {
			if err := r.text(&d.kind)(n.Content[i+1]); err != nil {
				return nil, err
			}
		}
	}
	fields := manifestFields{"kind": func(*yaml.Node) error { return nil }, "name": r.name(&d.name)}
	var required []string
	switch d.kind {
	case "":
		return nil, r.errorf(n, "kind is missing: one of %s", strings.Join(documentKinds, ", "))
	case "store", "target":
		required = r.systemFields(d, fields)
	case "credential":
		required = r.credentialFields(d, fields)
	case "endpoint":
		d.endpoint = &rotundav1.CreateEndpointRequest{}
		fields["url"], fields["partner"], fields["secret"] = r.text(&d.endpoint.Url), r.name(&d.endpoint.Partner), r.text(&d.endpoint.Secret)
		required = []string{"url", "partner", "secret"}
	default:
		return nil, r.errorf(n, "kind %q is none of %s", clipText(d.kind), strings.Join(documentKinds, ", "))
	}
	if err := r.mapping("a document of kind "+d.kind, fields, append([]string{"name"}, required...)...)(n); err != nil {
		return nil, err
	}
	if d.system != nil && len(d.system.login) > 0 && d.system.loginCredential != "" {
		return nil, r.errorf(n, "%s %s has a login and a login_credential: give one of them", d.kind, d.name)
	}
	if d.endpoint != nil {
		d.endpoint.Name = d.name
	}
	return d, nil
}

func (r *manifestReader) systemFields(d *document, fields manifestFields) (required []string) {
	d.system = &systemDocument{}
	fields["type"], fields["settings"] = r.name(&d.system.adapter), r.texts(&d.system.settings)
	fields["login"] = func(n *yaml.Node) (err error) { d.system.login, err = r.login(n); return err }
	fields["login_credential"] = r.name(&d.system.loginCredential)
	return []string{"type"}
}

func (r *manifestReader) credentialFields(d *document, fields manifestFields) (required []string) {
	s := &rotundav1.CredentialSpec{}
	d.credential = s
	fields["target"], fields["strategy"], fields["missed"] = r.name(&s.Target), r.text(&s.Strategy), r.text(&s.Missed)
	fields["params"], fields["fields"], fields["labels"] = r.texts(&s.Params), r.texts(&s.Fields), r.texts(&s.Labels)
	fields["windows"], fields["notify"] = r.list(&s.Windows), r.list(&s.Notify)
	fields["grace"], fields["quiet"] = r.duration(&s.Grace), r.duration(&s.Quiet)
	fields["adopt"] = r.yes(&s.Adopt)
	fields["probe"] = func(n *yaml.Node) error {
		if n.Kind == yaml.ScalarNode && n.Value == "never" {
			s.Probe = durationpb.New(-1)
			return nil
		}
		return r.duration(&s.Probe)(n)
	}
	fields["schedule"] = func(n *yaml.Node) error {
		s.Schedule = &rotundav1.Schedule{}
		err := r.mapping("a schedule", manifestFields{
			"every": r.duration(&s.Schedule.Every), "cron": r.text(&s.Schedule.Cron), "zone": r.text(&s.Schedule.Zone), "jitter": r.duration(&s.Schedule.Jitter),
		})(n)
		if err == nil && (s.GetSchedule().GetEvery() == nil) == (s.GetSchedule().GetCron() == "") {
			return r.errorf(n, "a schedule has either every or cron")
		}
		return err
	}
	fields["stores"] = r.items(func(n *yaml.Node) error {
		p := &rotundav1.Placement{}
		s.Stores = append(s.Stores, p)
		return r.mapping("a store of a credential", manifestFields{"store": r.name(&p.Store), "path": r.text(&p.Path)}, "store", "path")(n)
	})
	return []string{"target"}
}

// mapping reads a mapping of exactly these keys.
func (r *manifestReader) mapping(what string, fields manifestFields, required ...string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		seen := map[string]bool{}
		err := r.pairs(n, what, func(key string, k, v *yaml.Node) error {
			read, ok := fields[key]
			if !ok {
				names := slices.Sorted(mapKeys(fields))
				return r.errorf(k, "%q is not known in %s: there are %s%s", clipText(key), what, strings.Join(names, ", "), didYouMean(key, names))
			}
			seen[key] = true
			return read(v)
		})
		if err != nil {
			return err
		}
		for _, name := range required {
			if !seen[name] {
				return r.errorf(n, "%s is missing in %s", name, what)
			}
		}
		return nil
	}
}

// pairs calls f with each key and value of a mapping.
func (r *manifestReader) pairs(n *yaml.Node, what string, f func(key string, k, v *yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return r.errorf(n, "%s is a mapping, name: value", what)
	}
	if len(n.Content)/2 > maxNamed {
		return r.errorf(n, "%s has more than %d entries", what, maxNamed)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.Anchor != "" || v.Anchor != "" || v.Kind == yaml.AliasNode || k.Tag == "!!merge" {
			return r.errorf(k, "anchors, aliases and merged mappings are not read here: write it out")
		}
		if seen[k.Value] {
			return r.errorf(k, "%q is there twice", clipText(k.Value))
		}
		seen[k.Value] = true
		if err := f(k.Value, k, v); err != nil {
			return err
		}
	}
	return nil
}

// items reads a list.
func (r *manifestReader) items(f func(*yaml.Node) error) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode {
			return r.errorf(n, "this is a list: write each item after a dash")
		}
		if len(n.Content) > maxListed {
			return r.errorf(n, "the list has more than %d items", maxListed)
		}
		for _, item := range n.Content {
			if item.Kind == yaml.AliasNode || item.Anchor != "" {
				return r.errorf(item, "anchors and aliases are not read here: write it out")
			}
			if err := f(item); err != nil {
				return err
			}
		}
		return nil
	}
}

func (r *manifestReader) list(to *[]string) func(*yaml.Node) error {
	return r.items(func(n *yaml.Node) error {
		var s string
		err := r.text(&s)(n)
		*to = append(*to, s)
		return err
	})
}

// text reads a scalar as it is written: 5432 and "5432" are the same.
func (r *manifestReader) text(to *string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" || n.Tag == "!!binary" {
			return r.errorf(n, "a text is wanted here")
		}
		*to = n.Value
		return nil
	}
}

var manifestName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// name reads a name of ours.
func (r *manifestReader) name(to *string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if err := r.text(to)(n); err != nil {
			return err
		}
		if !manifestName.MatchString(*to) {
			return r.errorf(n, "%q is not a name: 1 to 63 lower-case letters, digits and hyphens", clipText(*to))
		}
		return nil
	}
}

func (r *manifestReader) texts(to *map[string]string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		*to = map[string]string{}
		return r.pairs(n, "this", func(key string, _, v *yaml.Node) error {
			var s string
			err := r.text(&s)(v)
			(*to)[key] = s
			return err
		})
	}
}

func (r *manifestReader) duration(to **durationpb.Duration) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		var s string
		if err := r.text(&s)(n); err != nil {
			return err
		}
		d, err := parseDuration(s)
		if err != nil {
			return r.errorf(n, "%w", err)
		}
		*to = durationpb.New(d)
		return nil
	}
}

func (r *manifestReader) yes(to *bool) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
			return r.errorf(n, "this is true or false")
		}
		*to = n.Value == "true"
		return nil
	}
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// didYouMean suggests the name of which key may be a misspelling.
func didYouMean(key string, names []string) string {
	best, at := "", 3 // more changes make another word
	for _, name := range names {
		if d := changes(key, name); d < at {
			best, at = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// changes counts the letters to be put in, taken out or exchanged to get from a to b.
func changes(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost = 1 + min(last, row[j], row[j+1])
			}
			last, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
