package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// print writes a result in the form the user chose.
func (c *cli) print(msg proto.Message, table func(p *page)) error {
	if c.output.value == "table" {
		p := c.newPage()
		table(p)
		return p.flush()
	}
	return c.printData(msg, false)
}

// printNext is print for one of many results: JSON takes one line each, YAML a
// document each.
func (c *cli) printNext(msg proto.Message, table func(p *page)) error {
	if c.output.value == "table" {
		return c.print(msg, table)
	}
	return c.printData(msg, true)
}

func (c *cli) printData(msg proto.Message, many bool) error {
	raw, err := protojson.Marshal(msg)
	if err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	return c.printJSON(raw, many)
}

func (c *cli) printJSON(raw []byte, many bool) error {
	var b bytes.Buffer
	var err error
	switch {
	case c.output.value == "yaml":
		if many {
			b.WriteString("---\n")
		}
		err = jsonToYAML(&b, raw)
	case many:
		err = json.Compact(&b, raw)
		b.WriteByte('\n')
	default:
		// protojson varies its spaces from build to build.
		err = json.Indent(&b, raw, "", "  ")
		b.WriteByte('\n')
	}
	if err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	return c.write(b.Bytes())
}

func (c *cli) write(b []byte) error {
	if _, err := c.stdout.Write(b); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// jsonToYAML keeps the order of members and the type of every value.
func jsonToYAML(w io.Writer, raw []byte) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	root, err := yamlNode(dec)
	if err != nil {
		return err
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return err
	}
	return enc.Close()
}

func yamlNode(dec *json.Decoder) (*yaml.Node, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		n := &yaml.Node{}
		if num, ok := tok.(json.Number); ok {
			tag := "!!float"
			if strings.Trim(num.String(), "-0123456789") == "" {
				tag = "!!int"
			}
			n.Kind, n.Tag, n.Value = yaml.ScalarNode, tag, num.String()
			return n, nil
		}
		return n, n.Encode(tok)
	}
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	if delim == '[' {
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
	}
	for dec.More() {
		child, err := yamlNode(dec)
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, child)
	}
	_, err = dec.Token() // the end
	return n, err
}

// page is text for people.
type page struct {
	cli *cli
	now time.Time
	b   strings.Builder
}

func (c *cli) newPage() *page { return &page{cli: c, now: c.now()} }

func (p *page) flush() error { return p.cli.write([]byte(p.b.String())) }

// line writes one line as it is.
func (p *page) line(format string, args ...any) {
	p.b.WriteString(strings.TrimRight(clean(fmt.Sprintf(format, args...)), " "))
	p.b.WriteByte('\n')
}

// field writes "  label    text"; text that is too wide for the terminal goes on
// below itself.
func (p *page) field(label, format string, args ...any) {
	p.hang(fmt.Sprintf("  %-11s", label), fmt.Sprintf(format, args...))
}

// hang writes text after prefix, and its further lines indented to the same column.
func (p *page) hang(prefix, text string) { p.hangTo(p.cli.width, prefix, text) }

// hangTo is hang for lines of at most width characters; 0 means any length.
func (p *page) hangTo(width int, prefix, text string) {
	indent := strings.Repeat(" ", utf8.RuneCountInString(prefix))
	for i, part := range wrap(clean(text), width-len(indent)) {
		if i > 0 {
			prefix = indent
		}
		p.b.WriteString(strings.TrimRight(prefix+part, " "))
		p.b.WriteByte('\n')
	}
}

// wrap breaks text into lines of at most width characters where it has spaces.
// A width that leaves no room to speak of, or none at all, means one line.
func wrap(text string, width int) []string {
	if width < 20 || utf8.RuneCountInString(text) <= width {
		return []string{text}
	}
	var lines []string
	line, room := "", width
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		if line != "" && n+1 > room {
			lines = append(lines, line)
			line, room = "", width
		}
		if line != "" {
			line += " "
			room--
		}
		line += word
		room -= n
	}
	return append(lines, line)
}

// pipeWidth is the width of prose where there is no terminal.
const pipeWidth = 100

// prose is how wide sentences may be.
func (p *page) prose() int {
	if p.cli.width == 0 {
		return pipeWidth
	}
	return p.cli.width
}

// note is something to know about what stands in a table.
type note struct{ about, text string }

// notes writes each note once, below the table that it explains: a column of
// sentences would make lines that nobody can read.
func (p *page) notes(list []note) {
	said := map[note]bool{{}: true}
	for _, n := range list {
		if n.text == "" || said[n] {
			continue
		}
		said[n] = true
		p.hangTo(p.prose(), "  "+clean(n.about)+": ", n.text)
	}
}

// table writes aligned columns, two spaces in. The last one wraps, and is left
// out when it is empty.
func (p *page) table(head []string, rows [][]string) {
	last := len(head) - 1
	empty := true
	for _, r := range rows {
		empty = empty && r[last] == ""
	}
	if empty {
		last--
	}
	widths := make([]int, len(head))
	for _, r := range append([][]string{head}, rows...) {
		for i := range r {
			r[i] = clean(r[i])
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i]))
		}
	}
	for n, r := range append([][]string{head}, rows...) {
		prefix, used := "  ", 2
		for i := range last {
			cell := r[i] + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(r[i])+2)
			if n > 0 && head[i] == "STATE" {
				cell = p.paint(r[i], cell)
			}
			prefix, used = prefix+cell, used+widths[i]+2
		}
		for i, part := range wrap(r[last], p.cli.width-used) {
			if i > 0 {
				prefix = strings.Repeat(" ", used)
			}
			if n > 0 && head[last] == "STATE" {
				part = p.paint(part, part)
			}
			p.b.WriteString(strings.TrimRight(prefix+part, " "))
			p.b.WriteByte('\n')
		}
	}
}

// paint colours text by the state that it shows.
func (p *page) paint(state, text string) string {
	if !p.cli.colour {
		return text
	}
	switch state {
	case "active", "ok":
		return "\x1b[32m" + text + "\x1b[0m"
	case "pending":
		return "\x1b[36m" + text + "\x1b[0m"
	case "retiring", "warn":
		return "\x1b[33m" + text + "\x1b[0m"
	case "revoked", "fail", "denied":
		return "\x1b[31m" + text + "\x1b[0m"
	default:
		return text
	}
}

// when writes an instant both ways: "in 29d 23h (2026-12-22 03:00Z)".
func (p *page) when(t *timestamppb.Timestamp) string {
	if t == nil {
		return "never"
	}
	at := t.AsTime()
	away := at.Sub(p.now)
	relative := "now"
	switch {
	case away >= time.Second:
		relative = "in " + roughly(away)
	case away <= -time.Second:
		relative = roughly(-away) + " ago"
	}
	return relative + " (" + stamp(at) + ")"
}

// stamp writes an instant to the minute, in UTC.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

// length writes a duration of the API; otherwise says what an unset one means.
func length(d *durationpb.Duration, otherwise string) string {
	if d == nil {
		return otherwise
	}
	return formatDuration(d.AsDuration())
}

// word makes the API's KEY_STATE_ACTIVE the word "active".
func word(name, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}
