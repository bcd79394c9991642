package providerstest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/providers"
)

// watch remembers the secrets that went through an adapter's calls, and searches for
// them whatever the adapter says to people.
type watch struct {
	t       testing.TB
	public  []string
	mu      sync.Mutex
	secrets map[string]string // value to the name of its field
	clear   map[string]bool   // values that may be seen
}

// shortest is the length from which a value is searched for: "1" is in every text.
const shortest = 6

func (w *watch) allow(values ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.clear == nil {
		w.clear = map[string]bool{}
	}
	for _, v := range values {
		w.clear[v] = true
	}
}

func (w *watch) add(f providers.Fields) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.secrets == nil {
		w.secrets = map[string]string{}
	}
	for name, v := range f {
		if !slices.Contains(w.public, name) {
			w.secrets[v.RevealString()] = name
		}
	}
}

func (w *watch) held(hs ...providers.Held) {
	for _, h := range hs {
		w.allow(h.Account, h.ID, h.Rotation)
		w.add(h.Fields)
	}
}

func (w *watch) change(c providers.Change) {
	w.allow(c.Credential, c.Rotation)
	for _, v := range c.Static {
		w.allow(v)
	}
	for _, v := range c.Params {
		w.allow(v)
	}
	w.held(c.New, c.Current)
	w.held(c.Others...)
}

func (w *watch) text(of, text string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for secret, name := range w.secrets {
		if len(secret) >= shortest && !w.clear[secret] && strings.Contains(text, secret) {
			w.t.Errorf("%s: what it says holds the value of the field %s", of, name)
		}
	}
}

func (w *watch) err(of string, err error) {
	w.t.Helper()
	if err != nil {
		w.text(of, err.Error())
	}
}

func (w *watch) findings(found []providers.Finding) {
	w.t.Helper()
	for _, f := range found {
		w.text("Check", f.Check+"\n"+f.Detail+"\n"+f.Remedy+"\n"+f.Measured)
		if f.Check == "" || (!f.OK && f.Detail == "") || (!f.OK && f.Remedy == "") || (f.OK && (f.Remedy != "" || f.Warning)) {
			w.t.Errorf("Check: finding %q has no name; or is not OK and does not say what is wrong and what to do; or is OK and does", f.Check)
		}
	}
}

type watchedTarget struct {
	providers.Target
	*watch
}

func (w *watchedTarget) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	w.t.Helper()
	w.change(c)
	found, err := w.Target.Check(ctx, c)
	w.findings(found)
	w.err("Check", err)
	return found, err
}

func (w *watchedTarget) Prepare(ctx context.Context, c providers.Change) (providers.Change, error) {
	w.t.Helper()
	w.change(c)
	got, err := w.Target.Prepare(ctx, c)
	w.change(got)
	w.err("Prepare", err)
	return got, err
}

func (w *watchedTarget) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	w.t.Helper()
	w.change(c)
	h, err := w.Target.Apply(ctx, c)
	w.held(h)
	w.err("Apply", err)
	return h, err
}

func (w *watchedTarget) Verify(ctx context.Context, c providers.Change, h providers.Held) error {
	w.t.Helper()
	w.change(c)
	w.held(h)
	err := w.Target.Verify(ctx, c, h)
	w.err("Verify", err)
	return err
}

func (w *watchedTarget) Applied(ctx context.Context, c providers.Change, account string) (providers.Applied, error) {
	w.t.Helper()
	w.change(c)
	a, err := w.Target.Applied(ctx, c, account)
	w.err("Applied", err)
	return a, err
}

func (w *watchedTarget) Usage(ctx context.Context, c providers.Change, h providers.Held) (providers.Evidence, error) {
	w.t.Helper()
	w.change(c)
	w.held(h)
	e, err := w.Target.Usage(ctx, c, h)
	w.err("Usage", err)
	w.text("Usage", e.Source)
	return e, err
}

func (w *watchedTarget) Retire(ctx context.Context, c providers.Change, h providers.Held, end time.Time) error {
	w.t.Helper()
	w.change(c)
	w.held(h)
	err := w.Target.Retire(ctx, c, h, end)
	w.err("Retire", err)
	return err
}

func (w *watchedTarget) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	w.t.Helper()
	w.change(c)
	w.held(h)
	err := w.Target.Revoke(ctx, c, h)
	w.err("Revoke", err)
	return err
}

type watchedStore struct {
	providers.Store
	*watch
}

func (w *watchedStore) Check(ctx context.Context, path string) ([]providers.Finding, error) {
	w.t.Helper()
	found, err := w.Store.Check(ctx, path)
	w.findings(found)
	w.err("Check", err)
	return found, err
}

func (w *watchedStore) Read(ctx context.Context, path string) (providers.Served, error) {
	w.t.Helper()
	s, err := w.Store.Read(ctx, path)
	w.err("Read", err)
	w.text("Read", s.Note)
	return s, err
}

func (w *watchedStore) Stage(ctx context.Context, path string, v providers.Version) error {
	w.t.Helper()
	w.add(v.Fields)
	err := w.Store.Stage(ctx, path, v)
	w.err("Stage", err)
	return err
}

func (w *watchedStore) Publish(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
	w.t.Helper()
	w.add(v.Fields)
	version, err := w.Store.Publish(ctx, path, v, prior)
	w.err("Publish", err)
	w.text("Publish", version)
	return version, err
}

func (w *watchedStore) Discard(ctx context.Context, path string, v providers.Version) error {
	w.t.Helper()
	w.add(v.Fields)
	err := w.Store.Discard(ctx, path, v)
	w.err("Discard", err)
	return err
}
