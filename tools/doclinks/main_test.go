package main

import (
	"slices"
	"testing"
	"testing/fstest"
)

func TestCheckWhenLinksAreBroken(t *testing.T) {
	const other = "# One, two: `three`\n## Same\n## Same\n<a id=\"here\"></a>\n"
	tests := []struct {
		name, text string
		want       []string
	}{
		{"to a file", "[a](docs/other.md)", nil},
		{"to a folder", "[a](docs)", nil},
		{"to nothing", "x\n\n[a](docs/gone.md)", []string{"README.md:3: docs/gone.md: there is no docs/gone.md"}},
		{"image", "![a](gone.svg)", []string{"README.md:1: gone.svg: there is no gone.svg"}},
		{"html", `<img src="gone.svg">`, []string{"README.md:1: gone.svg: there is no gone.svg"}},
		{"reference", "[a]: gone.md", []string{"README.md:1: gone.md: there is no gone.md"}},
		{"two in one line", "[a](docs/other.md) [b](gone.md \"t\")", []string{"README.md:1: gone.md: there is no gone.md"}},
		{"heading", "[a](docs/other.md#one-two-three)", nil},
		{"second of two headings", "[a](docs/other.md#same-1)", nil},
		{"third of two headings", "[a](docs/other.md#same-2)",
			[]string{"README.md:1: docs/other.md#same-2: docs/other.md has no heading #same-2"}},
		{"id", "[a](docs/other.md#here)", nil},
		{"own heading", "# Top\n[a](#top) [b](#bottom)", []string{"README.md:2: #bottom: README.md has no heading #bottom"}},
		{"network", "[a](https://example.com/gone) [b](mailto:a@example.com)", nil},
		{"in code", "`[a](gone.md)`\n```\n[a](gone.md)\n```\n", nil},
		{"after code", "````\n```\n[a](gone.md)\n````\n[a](gone.md)", []string{"README.md:5: gone.md: there is no gone.md"}},
		{"absolute", "[a](/docs/other.md)",
			[]string{"README.md:1: /docs/other.md: a link inside the repository is relative, without a leading slash"}},
		{"outside", "[a](../x.md)", []string{"README.md:1: ../x.md leads out of the repository"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := check(fstest.MapFS{
				"README.md":                 {Data: []byte(test.text)},
				"docs/other.md":             {Data: []byte(other)},
				"node_modules/x/README.md":  {Data: []byte("[a](gone.md)")},
				"docs/testdata/ignored.md":  {Data: []byte("[a](gone.md)")},
				".hidden/folder/ignored.md": {Data: []byte("[a](gone.md)")},
			})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("check:\n got %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestFragmentWhenTargetIsAFileInAFolder(t *testing.T) {
	got, err := check(fstest.MapFS{
		"docs/a.md": {Data: []byte("[up](../README.md#top) [side](b.md#none)")},
		"docs/b.md": {Data: []byte("# B")},
		"README.md": {Data: []byte("# Top")},
	})
	want := []string{"docs/a.md:1: b.md#none: docs/b.md has no heading #none"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("check: got %q, %v; want %q", got, err, want)
	}
}
