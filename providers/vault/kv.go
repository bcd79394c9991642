package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
)

// Names in custom metadata. The version says which one the rotation wrote: the metadata
// belongs to all versions of a path.
const (
	markRotation   = "rotunda_rotation"
	markGeneration = "rotunda_generation"
	markVersion    = "rotunda_version"
	markEpoch      = "rotunda_epoch"
)

// KVKind is the store kind "vault-kv".
func KVKind() providers.StoreKind {
	return providers.StoreKind{
		Name: "vault-kv",
		Doc:  "HashiCorp Vault, KV secrets engine version 2.",
		Settings: append(Settings(),
			providers.Setting{Name: "mount", Doc: "path of the KV mount", Default: "secret", Pattern: mountPattern}),
		Login: Logins(),
		Path: providers.Setting{
			Name: "path", Doc: "path below the mount, without data/: apps/orders/db", Required: true,
			Pattern: `[A-Za-z0-9_@:=-][A-Za-z0-9_@:=.-]{0,63}(/[A-Za-z0-9_@:=-][A-Za-z0-9_@:=.-]{0,63}){0,7}`,
		},
		Traits: providers.StoreTraits{WritesPerRotation: 2},
		Open: func(_ context.Context, c providers.Config) (providers.Store, error) {
			client, err := NewClient(c)
			if err != nil {
				return nil, err
			}
			return &kv{client, c.Settings["mount"]}, nil
		},
	}
}

type kv struct {
	*Client
	mount string
}

// kvPath refuses what Vault, or a proxy before it, would read as another path: no
// segment begins with a dot, and none is empty.
func kvPath(path string) error {
	if _, err := providers.Complete("path", []providers.Setting{KVKind().Path}, map[string]string{"path": path}); err != nil {
		return fault.Invalid("path", "path_malformed", "a path in KV is up to 8 segments of up to 64 letters, digits and _@:=.- (no dot at their start), with single slashes between them: %.80q is not", path)
	}
	return nil
}

// kvData is what KV v2 answers to a read, also with 404 of a deleted version.
type kvData struct {
	Data     map[string]json.RawMessage `json:"data"`
	Metadata struct {
		Version      int64             `json:"version"`
		DeletionTime string            `json:"deletion_time"`
		Destroyed    bool              `json:"destroyed"`
		Custom       map[string]string `json:"custom_metadata"`
	} `json:"metadata"`
}

// current is what consumers read now. number is the present version's, 0 when there is
// none; live is false when it is deleted.
type current struct {
	number int64
	live   bool
	fields providers.Fields // nil when it is no object of strings
	custom map[string]string
}

func (s *kv) read(ctx context.Context, path string) (current, error) {
	var d kvData
	err := s.Client.Read(ctx, s.mount+"/data/"+path, &d)
	if err != nil && !errors.Is(err, fault.ErrNotFound) {
		return current{}, err
	}
	m := d.Metadata
	out := current{number: m.Version, custom: m.Custom, live: err == nil && !m.Destroyed && m.Version > 0}
	if out.live {
		out.fields = stringsOf(d.Data)
	}
	return out, nil
}

// stringsOf is nil when data is anything but an object of strings.
func stringsOf(data map[string]json.RawMessage) providers.Fields {
	if data == nil || len(data) > providers.MaxFields {
		return nil
	}
	fields := make(providers.Fields, len(data))
	for name, raw := range data {
		var text string
		if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &text) != nil {
			return nil
		}
		fields[name] = secret.FromString(text)
	}
	return fields
}

// Read returns what consumers of path read now. A deleted version is nothing.
func (s *kv) Read(ctx context.Context, path string) (providers.Served, error) {
	if err := kvPath(path); err != nil {
		return providers.Served{}, err
	}
	c, err := s.read(ctx, path)
	if err != nil {
		return providers.Served{}, fmt.Errorf("read %s: %w", path, err)
	}
	if !c.live {
		if c.number > 0 {
			return providers.Served{Note: fmt.Sprintf("version %d is deleted", c.number)}, nil
		}
		return providers.Served{}, nil
	}
	out := providers.Served{Version: c.name(), Fields: c.fields}
	if c.custom[markVersion] == out.Version {
		out.Rotation = c.custom[markRotation]
	}
	if c.fields == nil {
		out.Note = "the value is no object of strings"
	}
	return out, nil
}

// Stage is nothing that KV v2 has: a write is read by everybody at once.
func (s *kv) Stage(context.Context, string, providers.Version) error {
	return fault.New(fault.ErrInvalid, "no_staging", "stage in %s: KV has no versions that are not read", s.name)
}

// Discard has nothing to do: nothing is staged.
func (s *kv) Discard(context.Context, string, providers.Version) error { return nil }

// Publish writes v over the version prior, unless it is there.
func (s *kv) Publish(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
	if err := kvPath(path); err != nil {
		return "", err
	}
	if _, err := v.Fields.Encode(); err != nil { // its bounds
		return "", fmt.Errorf("publish %s: %w", path, err)
	}
	now, err := s.read(ctx, path)
	if err != nil {
		return "", fmt.Errorf("publish %s: %w", path, err)
	}
	if now.holds(v, prior) {
		return s.mark(ctx, path, v, now)
	}
	if now.name() != prior {
		return "", moved(path, now)
	}
	plain := make(map[string]string, len(v.Fields))
	for name, value := range v.Fields {
		plain[name] = value.RevealString()
	}
	// The number of a deleted version counts, too.
	err = s.Write(ctx, s.mount+"/data/"+path, map[string]any{"data": plain, "options": map[string]any{"cas": now.number}}, nil)
	if errors.Is(err, fault.ErrInvalid) && said(err, "check-and-set parameter did not match") {
		after, err := s.read(ctx, path)
		if err != nil {
			return "", fmt.Errorf("publish %s: read what is there: %w", path, err)
		}
		if after.holds(v, prior) {
			return s.mark(ctx, path, v, after)
		}
		return "", moved(path, after)
	}
	if err != nil {
		return "", fmt.Errorf("publish %s: %w", path, err)
	}
	return s.mark(ctx, path, v, current{number: now.number + 1}) // what cas means
}

// name is what consumers read now, as the contract has it.
func (c current) name() string {
	if !c.live {
		return ""
	}
	return strconv.FormatInt(c.number, 10)
}

// holds tells whether v is what consumers read: the same fields, in a version that is
// marked as v's, or that nobody marked and that is the one which v would have become.
func (c current) holds(v providers.Version, prior string) bool {
	if !c.live || c.fields == nil || !c.fields.Equal(v.Fields) {
		return false
	}
	if c.custom[markVersion] == c.name() {
		return c.custom[markRotation] == v.Rotation
	}
	return prior == "" || prior == strconv.FormatInt(c.number-1, 10)
}

func moved(path string, now current) error {
	what := "is neither what was to be replaced nor what was to be written"
	if !now.live {
		what = "is deleted, or was never there"
	}
	return fault.New(fault.ErrStale, "store_moved", "publish %s: version %d %s: somebody else wrote there", path, now.number, what)
}

// mark notes beside the value which rotation wrote it. The value is published already,
// so a refusal, which Check warns of, is no failure; anything else is asked again.
func (s *kv) mark(ctx context.Context, path string, v providers.Version, now current) (string, error) {
	number := strconv.FormatInt(now.number, 10)
	marks := map[string]string{markRotation: v.Rotation, markGeneration: strconv.FormatInt(v.Generation, 10), markVersion: number}
	missing := false
	for name, text := range marks {
		missing = missing || now.custom[name] != text
	}
	if !missing {
		return number, nil
	}
	err := s.call(ctx, patch, s.mount+"/metadata/"+path, map[string]any{"custom_metadata": marks}, nil)
	if err != nil && providers.OutcomeOf(err) != providers.Refused {
		return "", fmt.Errorf("publish %s: version %s is written, but not marked: %w", path, number, err)
	}
	return number, nil
}

// kvMeta is what KV says of a path, and of a mount, without a value.
type kvMeta struct {
	MaxVersions        int64  `json:"max_versions"`
	DeleteVersionAfter string `json:"delete_version_after"`
}

func (m kvMeta) deletes() bool {
	d, err := time.ParseDuration(m.DeleteVersionAfter)
	return err == nil && d > 0
}

// Check looks at the mount, the policy, and what is at the path.
func (s *kv) Check(ctx context.Context, path string) ([]providers.Finding, error) {
	if err := kvPath(path); err != nil {
		return finding("path", "choose another path", err)
	}
	found, err := s.Health(ctx)
	if err != nil || !fine(found) {
		return found, err
	}
	kind, version, err := s.mountOf(ctx, s.mount)
	if err != nil {
		more, err := finding("mount", policy([]need{{path: s.mount + "/data/" + path, may: []string{"create", "update", "read"}}}), err)
		return append(found, more...), err
	}
	switch {
	case kind != "kv" && kind != "generic":
		return append(found, bad("mount", "set mount to a KV version 2 mount", "%s is a mount of %s, not of KV", s.mount, kind)), nil
	case version != "2":
		return append(found, bad("mount", "run `vault kv enable-versioning "+s.mount+"`, or use another mount",
			"%s is KV version 1, which keeps no versions: an unanswered write could not be told from somebody else's", s.mount)), nil
	}
	found = append(found, good("mount", "%s is KV version 2", s.mount))
	more, err := s.permissions(ctx, []need{
		{path: s.mount + "/data/" + path, may: []string{"create", "update", "read"}, why: "to publish, and to see what consumers read"},
		{path: s.mount + "/metadata/" + path, may: []string{"read", "patch"}, why: "to note which rotation wrote a version, and to see how many versions are kept", extra: true},
	})
	found = append(found, more...)
	if err != nil || !fine(found) {
		return found, err
	}
	now, err := s.read(ctx, path)
	if err != nil {
		return found, err
	}
	switch {
	case now.number > 0 && !now.live:
		found = append(found, warn("value", "", "version %d is deleted: the next one is written after it", now.number))
	case now.live && now.fields == nil:
		found = append(found, warn("value", "let consumers read single strings", "the value is no object of strings: the next version replaces all of it"))
	}
	var meta, config kvMeta
	if err := s.Client.Read(ctx, s.mount+"/metadata/"+path, &meta); err != nil && providers.OutcomeOf(err) != providers.Refused {
		return found, err
	}
	if err := s.Client.Read(ctx, s.mount+"/config", &config); err != nil && providers.OutcomeOf(err) != providers.Refused {
		return found, err
	}
	kept := meta.MaxVersions
	if kept == 0 {
		kept = config.MaxVersions
	}
	if kept == 1 {
		found = append(found, warn("versions", "set max_versions to 2 or more", "only one version is kept: the previous value is gone at once"))
	}
	if meta.deletes() || (meta.DeleteVersionAfter == "" || meta.DeleteVersionAfter == "0s") && config.deletes() {
		found = append(found, warn("versions", "set delete_version_after to 0s, or rotate more often than it", "versions are deleted by themselves (delete_version_after), also the one that consumers read"))
	}
	return found, nil
}
