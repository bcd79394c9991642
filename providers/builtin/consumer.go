package builtin

import (
	"context"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

// Label names a version by what it is for.
type Label string

// The labels. A version that is kept and has none is found by its number.
const (
	Current  Label = "current"
	Previous Label = "previous"
	InStage  Label = "staged"
)

// Which chooses a version: by its number, or, when that is 0, by its label. The zero
// Which is the current version.
type Which struct {
	Label  Label
	Number int64
}

// Version is a version of a path.
type Version struct {
	Path       string
	Number     int64
	Label      Label // empty: none
	Credential string
	Rotation   string
	Generation int64
	Time       time.Time        // when it was written
	Fields     providers.Fields // nil in lists
}

func (h head) version(path string, e entry) Version {
	v := Version{Path: path, Number: e.Number, Credential: e.Credential, Rotation: e.Rotation, Generation: e.Generation, Time: store.Time(e.At)}
	switch e.Number {
	case h.Current:
		v.Label = Current
	case h.Previous:
		v.Label = Previous
	case h.Staged:
		v.Label = InStage
	}
	return v
}

func (h head) choose(w Which) (int64, error) {
	switch {
	case w.Number != 0:
		return w.Number, nil
	case w.Label == "" || w.Label == Current:
		return h.Current, nil
	case w.Label == Previous:
		return h.Previous, nil
	case w.Label == InStage:
		return h.Staged, nil
	}
	return 0, fault.Invalid("label", "label_unknown", "there is no label %.64q: use current, previous or staged", w.Label)
}

// Get gives a version to the actor of ctx, once its event is in the trail. What is not
// there is fault.ErrNotFound.
func (s *Store) Get(ctx context.Context, path string, w Which) (Version, error) {
	if err := checkPath(path); err != nil {
		return Version{}, err
	}
	st, err := s.load(ctx, path, func(h head, e entry) bool {
		n, err := h.choose(w)
		return err == nil && n == e.Number
	})
	if err != nil {
		return Version{}, fmt.Errorf("read %s: %w", path, err)
	}
	n, err := st.choose(w)
	if err != nil {
		return Version{}, err
	}
	e, ok := st.number(n)
	if !ok {
		return Version{}, fault.New(fault.ErrNotFound, "version_missing", "%s has no such version: it has the versions %v", path, st.numbers())
	}
	v := st.version(path, e)
	v.Fields = st.values[e.Number]
	if err := s.reads.record(ctx, s.db, v); err != nil {
		return Version{}, fmt.Errorf("read %s: the trail could not be written, so the value is not given out: %w", path, err)
	}
	return v, nil
}

func (h head) numbers() []int64 {
	out := make([]int64, len(h.Versions))
	for i, e := range h.Versions {
		out[i] = e.Number
	}
	return out
}

// Versions lists what is kept at path, oldest first, without values. It is no read.
func (s *Store) Versions(ctx context.Context, path string) ([]Version, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	st, err := s.load(ctx, path, func(head, entry) bool { return false })
	if err != nil {
		return nil, fmt.Errorf("list the versions of %s: %w", path, err)
	}
	out := make([]Version, len(st.Versions))
	for i, e := range st.Versions {
		out[i] = st.version(path, e)
	}
	return out, nil
}

// Watch waits until the current version of path is another one than after (0: any), and
// gives it to the actor of ctx as Get does. It ends with ctx.
func (s *Store) Watch(ctx context.Context, path string, after int64) (Version, error) {
	if err := checkPath(path); err != nil {
		return Version{}, err
	}
	woken, stop := s.db.Listen(Topic)
	defer stop()
	tick := time.NewTicker(s.floor)
	defer tick.Stop()
	for {
		st, err := s.load(ctx, path, func(head, entry) bool { return false })
		if err != nil {
			return Version{}, fmt.Errorf("watch %s: %w", path, err)
		}
		if st.Current != 0 && st.Current != after {
			return s.Get(ctx, path, Which{})
		}
		select {
		case <-ctx.Done():
			return Version{}, fmt.Errorf("watch %s: %w", path, ctx.Err())
		case <-woken:
		case <-tick.C:
		}
	}
}
