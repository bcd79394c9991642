// Doclinks checks the relative links of Markdown files: that the file they point
// to exists, and that a #fragment is a heading (or an id) of it. Links to the
// network are not followed: a check must not fail because somebody else is down.
//
//	go run ./doclinks DIR
//
// It reads every .md file below DIR except in folders named node_modules or
// testdata, or that begin with a dot. Links in code, fenced or inline, are text.
// It prints one line per broken link and exits 1; 2 means that it could not read.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"regexp"
	"strings"
	"unicode"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: doclinks DIR")
		os.Exit(2)
	}
	broken, err := check(os.DirFS(os.Args[1]))
	if err != nil {
		fmt.Fprintln(os.Stderr, "doclinks:", err)
		os.Exit(2)
	}
	for _, b := range broken {
		fmt.Println(b)
	}
	if len(broken) > 0 {
		os.Exit(1)
	}
}

// document is what other documents may refer to and what it refers to itself.
type document struct {
	anchors map[string]bool
	links   []link
}

type link struct {
	line   int
	target string
}

// check returns a line "file:line: what is wrong" for each broken link in tree.
func check(tree fs.FS) ([]string, error) {
	documents := map[string]document{}
	var names []string
	err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if entry.IsDir() {
			if name != "." && (base == "node_modules" || base == "testdata" || strings.HasPrefix(base, ".")) {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".md" {
			return nil
		}
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		documents[name] = parse(string(text))
		names = append(names, name)
		return nil
	})
	if err != nil {
		return nil, err
	}

	var broken []string
	for _, name := range names {
		for _, l := range documents[name].links {
			if wrong := follow(tree, documents, name, l.target); wrong != "" {
				broken = append(broken, fmt.Sprintf("%s:%d: %s", name, l.line, wrong))
			}
		}
	}
	return broken, nil
}

// follow returns what is wrong with a link to target in the document from, or "".
func follow(tree fs.FS, documents map[string]document, from, target string) string {
	u, err := url.Parse(target)
	if err != nil {
		return fmt.Sprintf("%s is not a link: %v", target, err)
	}
	if u.Scheme != "" || u.Host != "" {
		return ""
	}
	to := from
	if u.Path != "" {
		if strings.HasPrefix(u.Path, "/") {
			return fmt.Sprintf("%s: a link inside the repository is relative, without a leading slash", target)
		}
		to = path.Join(path.Dir(from), u.Path)
		if !fs.ValidPath(to) {
			return fmt.Sprintf("%s leads out of the repository", target)
		}
		if _, err := fs.Stat(tree, to); errors.Is(err, fs.ErrNotExist) {
			return fmt.Sprintf("%s: there is no %s", target, to)
		} else if err != nil {
			return fmt.Sprintf("%s: %v", target, err)
		}
	}
	if u.Fragment == "" {
		return ""
	}
	if d, ok := documents[to]; ok && !d.anchors[strings.ToLower(u.Fragment)] {
		return fmt.Sprintf("%s: %s has no heading #%s", target, to, u.Fragment)
	}
	return ""
}

var (
	fence      = regexp.MustCompile("^ {0,3}(```+|~~~+)")
	inlineCode = regexp.MustCompile("`+[^`]*`+")
	heading    = regexp.MustCompile(`^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$`)
	htmlID     = regexp.MustCompile(`\b(?:id|name)="([^"]+)"`)
	// [text](target "title"), ![alt](target), [name]: target, href="target", src="target".
	linkForms = []*regexp.Regexp{
		regexp.MustCompile(`\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)`),
		regexp.MustCompile(`^ {0,3}\[[^\]]+\]:\s+<?([^\s>]+)>?`),
		regexp.MustCompile(`\b(?:href|src|srcset)="([^"]+)"`),
	}
	headingLink = regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`)
)

func parse(text string) document {
	d := document{anchors: map[string]bool{}}
	seen := map[string]int{}
	fenced := ""
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if m := fence.FindStringSubmatch(line); m != nil {
			switch {
			case fenced == "":
				fenced = m[1]
			case strings.HasPrefix(m[1], fenced):
				fenced = ""
			}
			continue
		}
		if fenced != "" {
			continue
		}
		if m := heading.FindStringSubmatch(line); m != nil {
			a := anchor(m[1])
			if k := seen[a]; k > 0 {
				d.anchors[fmt.Sprintf("%s-%d", a, k)] = true
			} else {
				d.anchors[a] = true
			}
			seen[a]++
		}
		line = inlineCode.ReplaceAllString(line, "")
		for _, m := range htmlID.FindAllStringSubmatch(line, -1) {
			d.anchors[strings.ToLower(m[1])] = true
		}
		for _, form := range linkForms {
			for _, m := range form.FindAllStringSubmatch(line, -1) {
				d.links = append(d.links, link{n, m[1]})
			}
		}
	}
	return d
}

// anchor is the fragment that code hosts give a heading: lower case, punctuation
// dropped, spaces to hyphens.
func anchor(heading string) string {
	heading = headingLink.ReplaceAllString(heading, "$1")
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}
