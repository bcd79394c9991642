package bundle

import (
	"archive/zip"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// source is a bundle's files. open is safe for concurrent use, and fails with
// fs.ErrNotExist for a file that is not there.
type source interface {
	open(name string) (io.ReadCloser, error)
	names() ([]string, error)
	Close() error
}

func openSource(file string) (source, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		root, err := os.OpenRoot(file)
		return folderSource{root}, err
	}
	z, err := zip.OpenReader(file)
	if err != nil {
		return nil, fmt.Errorf("%s is neither a folder nor a zip: %w", file, err)
	}
	s := &zipSource{zip: z, files: map[string]*zip.File{}}
	// A zip made of the folder by hand has the folder's name before each file's.
	prefix := ""
	for _, f := range z.File {
		if dir, name := path.Split(f.Name); name == fileManifest && (prefix == "" || len(dir) < len(prefix)) {
			prefix = dir
		}
	}
	for _, f := range z.File {
		name, ok := strings.CutPrefix(f.Name, prefix)
		if strings.HasSuffix(f.Name, "/") {
			continue
		}
		if !ok {
			s.apart = append(s.apart, f.Name)
			continue
		}
		if s.files[name] != nil {
			_ = z.Close()
			return nil, Finding{Kind: Format, Index: -1, Text: fmt.Sprintf("the zip has %.80q twice: programs would not agree on which one is meant", name)}
		}
		s.files[name] = f
	}
	return s, nil
}

type folderSource struct{ root *os.Root }

func (s folderSource) open(name string) (io.ReadCloser, error) {
	// A pipe would be waited for; a link out of the folder is refused by Root.
	info, err := s.root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is no regular file", errDamaged, name)
	}
	return s.root.Open(name)
}

func (s folderSource) names() ([]string, error) {
	d, err := s.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func (s folderSource) Close() error { return s.root.Close() }

type zipSource struct {
	zip   *zip.ReadCloser
	files map[string]*zip.File
	apart []string // the names of files beside the bundle's folder
}

func (s *zipSource) open(name string) (io.ReadCloser, error) {
	f := s.files[name]
	if f == nil {
		return nil, fmt.Errorf("open %s in the zip: %w", name, fs.ErrNotExist)
	}
	return f.Open()
}

func (s *zipSource) names() ([]string, error) {
	names := slices.Clone(s.apart)
	for name := range s.files {
		names = append(names, name)
	}
	return names, nil
}

func (s *zipSource) Close() error { return s.zip.Close() }

var errDamaged = errors.New("the file is damaged")

// damaged reports whether a read failed because of what the file is, not
// because the machine could not read it.
func damaged(err error) bool {
	_, corrupt := errors.AsType[flate.CorruptInputError](err)
	return corrupt || errors.Is(err, errDamaged) || errors.Is(err, zip.ErrChecksum) || errors.Is(err, zip.ErrFormat) || errors.Is(err, zip.ErrAlgorithm) || errors.Is(err, io.ErrUnexpectedEOF)
}

// read returns a whole file of at most limit bytes.
func read(s source, name string, limit int64) ([]byte, error) {
	f, err := s.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%w: %s has more than %d bytes", errDamaged, name, limit)
	}
	return b, err
}
