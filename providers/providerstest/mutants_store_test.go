package providerstest

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
)

type mutantStore struct {
	providers.Store
	read    func(ctx context.Context, path string) (providers.Served, error)
	stage   func(ctx context.Context, path string, v providers.Version) error
	publish func(ctx context.Context, path string, v providers.Version, prior string) (string, error)
	discard func(ctx context.Context, path string, v providers.Version) error
}

func (s *mutantStore) Read(ctx context.Context, path string) (providers.Served, error) {
	if s.read != nil {
		return s.read(ctx, path)
	}
	return s.Store.Read(ctx, path)
}

func (s *mutantStore) Stage(ctx context.Context, path string, v providers.Version) error {
	if s.stage != nil {
		return s.stage(ctx, path, v)
	}
	return s.Store.Stage(ctx, path, v)
}

func (s *mutantStore) Publish(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
	if s.publish != nil {
		return s.publish(ctx, path, v, prior)
	}
	return s.Store.Publish(ctx, path, v, prior)
}

func (s *mutantStore) Discard(ctx context.Context, path string, v providers.Version) error {
	if s.discard != nil {
		return s.discard(ctx, path, v)
	}
	return s.Store.Discard(ctx, path, v)
}

func (m *Memory) servedName(path string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.places[path]; p != nil && p.served >= 0 {
		return p.versions[p.served].name
	}
	return ""
}

// TestStoreSuiteWhenAdapterIsWrong: as above, for stores.
func TestStoreSuiteWhenAdapterIsWrong(t *testing.T) {
	for name, plant := range map[string]func(m *Memory, s *mutantStore){
		"Publish ignores prior": func(m *Memory, s *mutantStore) {
			s.publish = func(ctx context.Context, path string, v providers.Version, _ string) (string, error) {
				return s.Store.Publish(ctx, path, v, m.servedName(path))
			}
		},
		"Publish ignores prior where nothing is": func(m *Memory, s *mutantStore) {
			s.publish = func(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
				if m.servedName(path) == "" {
					prior = ""
				}
				return s.Store.Publish(ctx, path, v, prior)
			}
		},
		"Publish reads, then writes": func(m *Memory, s *mutantStore) {
			s.publish = func(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
				got, err := s.Store.Read(ctx, path)
				if err != nil || (got.Version == prior) == (got.Rotation == v.Rotation) {
					return s.Store.Publish(ctx, path, v, prior)
				}
				if got.Version != prior {
					return s.Store.Publish(ctx, path, v, prior)
				}
				time.Sleep(5 * time.Millisecond) // so that the race is certain
				return s.Store.Publish(ctx, path, v, m.servedName(path))
			}
		},
		"Publish makes a version each time": func(m *Memory, s *mutantStore) {
			s.publish = func(_ context.Context, path string, v providers.Version, prior string) (string, error) {
				m.mu.Lock()
				defer m.mu.Unlock()
				p := m.place(path)
				now := shelved{}
				if p.served >= 0 {
					now = p.versions[p.served]
				}
				if now.rotation != v.Rotation && now.name != prior {
					return "", fault.New(fault.ErrStale, "moved", "publish: moved")
				}
				return p.put(shelved{rotation: v.Rotation, fields: plainOf(v.Fields)}), nil
			}
		},
		"Publish can't be repeated": func(m *Memory, s *mutantStore) {
			s.publish = func(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
				if m.servedName(path) != prior {
					return "", fault.New(fault.ErrStale, "moved", "publish: moved")
				}
				return s.Store.Publish(ctx, path, v, prior)
			}
		},
		"Publish says invalid when its context ended": func(_ *Memory, s *mutantStore) {
			s.publish = func(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
				if ctx.Err() != nil {
					return "", fault.Invalid("path", "ended", "publish: the time is over")
				}
				return s.Store.Publish(ctx, path, v, prior)
			}
		},
		"Publish cuts long values": func(_ *Memory, s *mutantStore) {
			s.publish = func(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
				f := maps.Clone(v.Fields)
				for name, text := range f {
					if plain := text.RevealString(); len(plain) > 4096 {
						f[name] = secret.FromString(plain[:4096])
					}
				}
				v.Fields = f
				return s.Store.Publish(ctx, path, v, prior)
			}
		},
		"an error holds the value": func(_ *Memory, s *mutantStore) {
			s.publish = func(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
				name, err := s.Store.Publish(ctx, path, v, prior)
				if err != nil {
					err = fmt.Errorf("publish %q: %w", plainOf(v.Fields), err)
				}
				return name, err
			}
		},
		"Stage is visible": func(m *Memory, s *mutantStore) {
			s.stage = func(ctx context.Context, path string, v providers.Version) error {
				_, err := s.Store.Publish(ctx, path, v, m.servedName(path))
				return err
			}
		},
		"Stage takes another value": func(_ *Memory, s *mutantStore) {
			s.stage = func(ctx context.Context, path string, v providers.Version) error {
				if err := s.Store.Discard(ctx, path, v); err != nil {
					return err
				}
				return s.Store.Stage(ctx, path, v)
			}
		},
		"Stage keeps nothing": func(_ *Memory, s *mutantStore) {
			s.stage = func(context.Context, string, providers.Version) error { return nil }
		},
		"Discard drops what is served": func(m *Memory, s *mutantStore) {
			s.discard = func(ctx context.Context, path string, v providers.Version) error {
				m.mu.Lock()
				p := m.place(path)
				if p.served >= 0 && p.versions[p.served].rotation == v.Rotation {
					p.served = -1
				}
				m.mu.Unlock()
				return s.Store.Discard(ctx, path, v)
			}
		},
		"Discard goes back to the version before": func(m *Memory, s *mutantStore) {
			s.discard = func(ctx context.Context, path string, v providers.Version) error {
				m.mu.Lock()
				p := m.place(path)
				if p.served > 0 && p.versions[p.served].rotation == v.Rotation {
					p.served--
				}
				m.mu.Unlock()
				return s.Store.Discard(ctx, path, v)
			}
		},
		"Discard drops any staged copy": func(m *Memory, s *mutantStore) {
			s.discard = func(_ context.Context, path string, _ providers.Version) error {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.place(path).staged = nil
				return nil
			}
		},
		"Discard leaves the copy": func(_ *Memory, s *mutantStore) {
			s.discard = func(context.Context, string, providers.Version) error { return nil }
		},
		"Read remembers": func(_ *Memory, s *mutantStore) {
			seen := map[string]providers.Served{}
			s.read = func(ctx context.Context, path string) (providers.Served, error) {
				if got, ok := seen[path]; ok {
					return got, nil
				}
				got, err := s.Store.Read(ctx, path)
				seen[path] = got
				return got, err
			}
		},
		"Read fails where nothing is": func(m *Memory, s *mutantStore) {
			s.read = func(ctx context.Context, path string) (providers.Served, error) {
				if m.servedName(path) == "" {
					return providers.Served{}, fault.New(fault.ErrNotFound, "nothing", "read: nothing is there")
				}
				return s.Store.Read(ctx, path)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMemory(MemoryConfig{})
			bed := newStoreBed(m, m.System())
			bed.Open = func(testing.TB) providers.Store {
				wrong := &mutantStore{Store: m.System().Store()}
				plant(m, wrong)
				return wrong
			}
			wantFound(t, storeCases(bed))
		})
	}
}
