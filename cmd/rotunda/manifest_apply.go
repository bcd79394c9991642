package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// applier makes what a manifest says true.
type applier struct {
	c      *cli
	to     *conn
	update bool // change what is there
	logins bool // with update: send logins again also where nothing else differs
	inline bool // secrets may stand in the file

	stores  map[string]*rotundav1.StoreKind
	targets map[string]*rotundav1.TargetKind

	differ []string // things that are there and differ
	done   int
}

// applied is what became of one document.
type applied struct {
	doc     *document
	result  string // "created", "updated", "unchanged"
	message proto.Message
	diff    []string
}

func newApplier(ctx context.Context, c *cli, to *conn) (*applier, error) {
	a := &applier{c: c, to: to, stores: map[string]*rotundav1.StoreKind{}, targets: map[string]*rotundav1.TargetKind{}}
	stores, err := call(ctx, to, to.stores.ListStoreKinds, &rotundav1.ListStoreKindsRequest{}, "")
	if err != nil {
		return nil, err
	}
	targets, err := call(ctx, to, to.targets.ListTargetKinds, &rotundav1.ListTargetKindsRequest{}, "")
	if err != nil {
		return nil, err
	}
	for _, k := range stores.GetKinds() {
		a.stores[k.GetName()] = k
	}
	for _, k := range targets.GetKinds() {
		a.targets[k.GetName()] = k
	}
	return a, nil
}

// all applies documents in order. What is there and differs is not touched without
// update, and told at the end, together.
func (a *applier) all(ctx context.Context, docs []*document) error {
	for _, d := range docs {
		if err := a.known(d); err != nil {
			return err
		}
	}
	for _, d := range docs {
		res, err := a.one(ctx, d)
		if err != nil {
			if a.done > 0 {
				a.c.complain("%s before it %s done; what is the same is not made twice, so the whole file may be given again", counted(int64(a.done), "document"), wasWere(a.done))
			}
			return err
		}
		if res.result == "" {
			a.differ = append(a.differ, fmt.Sprintf("%s %s (%s):\n  %s", d.kind, d.name, d.at, strings.Join(res.diff, "\n  ")))
			continue
		}
		a.done++
		if err := a.c.printNext(res.message, func(p *page) {
			p.line("%s %s: %s", d.kind, d.name, res.result)
			for _, line := range res.diff {
				p.line("  %s", line)
			}
		}); err != nil {
			return err
		}
	}
	if len(a.differ) > 0 {
		return fmt.Errorf("%s\nwhat is there differs from the file, and was not touched: use update to change it", strings.Join(a.differ, "\n"))
	}
	return nil
}

func wasWere(n int) string {
	if n == 1 {
		return "was"
	}
	return "were"
}

// known refuses kinds of systems that the server has not, with those that it has.
func (a *applier) known(d *document) error {
	if d.system == nil {
		return nil
	}
	names := slices.Sorted(mapKeys(a.stores))
	store, ok := a.stores[d.system.adapter]
	declared := store.GetSettings()
	if d.kind == "target" {
		var target *rotundav1.TargetKind
		names = slices.Sorted(mapKeys(a.targets))
		target, ok = a.targets[d.system.adapter]
		declared = target.GetSettings()
	}
	if !ok {
		return fmt.Errorf("%s: there is no type %q of %ss: there are %s%s", d.at, clipText(d.system.adapter), d.kind, strings.Join(names, ", "), didYouMean(d.system.adapter, names))
	}
	return d.readSettings(declared)
}

// maxSettingFile is the longest setting that is read from a file: certificates.
const maxSettingFile = 64 << 10

// readSettings replaces each NAME_file by NAME with what is in that file: certificates
// are files everywhere else.
func (d *document) readSettings(declared []*rotundav1.Setting) error {
	has := func(name string) bool {
		return slices.ContainsFunc(declared, func(s *rotundav1.Setting) bool { return s.GetName() == name })
	}
	for _, key := range slices.Sorted(maps.Keys(d.system.settings)) {
		name, isFile := strings.CutSuffix(key, "_file")
		if !isFile || has(key) || !has(name) {
			continue
		}
		if _, twice := d.system.settings[name]; twice {
			return fmt.Errorf("%s: %s %s has %s and %s: give one of them", d.at, d.kind, d.name, name, key)
		}
		path := d.system.settings[key]
		if !filepath.IsAbs(path) {
			path = filepath.Join(d.dir, path)
		}
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("%s: %s of %s %s: %w", d.at, key, d.kind, d.name, err)
		}
		b, err := io.ReadAll(io.LimitReader(f, maxSettingFile+1))
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: %s of %s %s: %w", d.at, key, d.kind, d.name, err)
		}
		if len(b) > maxSettingFile {
			return fmt.Errorf("%s: %s of %s %s: %s has more than %d bytes", d.at, key, d.kind, d.name, path, maxSettingFile)
		}
		delete(d.system.settings, key)
		d.system.settings[name] = string(b)
	}
	return nil
}

func (a *applier) one(ctx context.Context, d *document) (applied, error) {
	switch d.kind {
	case "store", "target":
		return a.applySystem(ctx, d)
	case "endpoint":
		return a.applyEndpoint(ctx, d)
	default:
		return a.applyCredential(ctx, d)
	}
}

func (a *applier) applySystem(ctx context.Context, d *document) (applied, error) {
	out := applied{doc: d}
	s := d.system
	var there *rotundav1.System
	var declared []*rotundav1.Setting
	var err error
	if d.kind == "store" {
		var res *rotundav1.GetStoreResponse
		res, err = call(ctx, a.to, a.to.stores.GetStore, &rotundav1.GetStoreRequest{Store: d.name}, "")
		there, declared = res.GetStore(), a.stores[s.adapter].GetSettings()
	} else {
		var res *rotundav1.GetTargetResponse
		res, err = call(ctx, a.to, a.to.targets.GetTarget, &rotundav1.GetTargetRequest{Target: d.name}, "")
		there, declared = res.GetTarget(), a.targets[s.adapter].GetSettings()
	}
	what := d.kind + " " + d.name
	if connect.CodeOf(err) == connect.CodeNotFound {
		if a.update {
			return out, fmt.Errorf("%s: there is no %s yet: use create", d.at, what)
		}
		login, err := a.c.resolveLogin(ctx, what, s.login, a.inline)
		if err != nil {
			return out, err
		}
		out.result = "created"
		if d.kind == "store" {
			out.message, err = call(ctx, a.to, a.to.stores.CreateStore, &rotundav1.CreateStoreRequest{Name: d.name, Kind: s.adapter, Settings: s.settings, Login: login, LoginCredential: s.loginCredential}, rand.Text())
		} else {
			out.message, err = call(ctx, a.to, a.to.targets.CreateTarget, &rotundav1.CreateTargetRequest{Name: d.name, Kind: s.adapter, Settings: s.settings, Login: login, LoginCredential: s.loginCredential}, rand.Text())
		}
		return out, err
	}
	if err != nil {
		return out, err
	}
	if there.GetKind() != s.adapter {
		return out, fmt.Errorf("%s: %s is of type %s, and that never changes: use another name, or delete it first", d.at, what, there.GetKind())
	}
	out.diff = diffTexts("settings.", complete(declared, there.GetSettings()), complete(declared, s.settings))
	if there.GetLoginCredential() != s.loginCredential {
		out.diff = append(out.diff, diffLine("login_credential", there.GetLoginCredential(), s.loginCredential))
	}
	if s.loginCredential == "" && len(s.login) > 0 && !there.GetHasLogin() {
		out.diff = append(out.diff, "login: it has none")
	}
	out.message = systemMessage(d.kind, there)
	switch {
	case len(out.diff) == 0 && (!a.logins || len(s.login) == 0):
		out.result = "unchanged"
		return out, nil
	case !a.update:
		return out, nil
	}
	login, err := a.c.resolveLogin(ctx, what, s.login, a.inline)
	if err != nil {
		return out, err
	}
	out.result = "updated"
	if d.kind == "store" {
		out.message, err = call(ctx, a.to, a.to.stores.UpdateStore, &rotundav1.UpdateStoreRequest{Store: d.name, Version: there.GetVersion(), Settings: s.settings, Login: login, LoginCredential: s.loginCredential}, "")
	} else {
		out.message, err = call(ctx, a.to, a.to.targets.UpdateTarget, &rotundav1.UpdateTargetRequest{Target: d.name, Version: there.GetVersion(), Settings: s.settings, Login: login, LoginCredential: s.loginCredential}, "")
	}
	return out, err
}

func systemMessage(kind string, s *rotundav1.System) proto.Message {
	if kind == "store" {
		return &rotundav1.GetStoreResponse{Store: s}
	}
	return &rotundav1.GetTargetResponse{Target: s}
}

func (a *applier) applyEndpoint(ctx context.Context, d *document) (applied, error) {
	out := applied{doc: d}
	there, err := findEndpoint(ctx, a.to, d.name)
	if err != nil {
		return out, err
	}
	if there == nil {
		if a.update {
			return out, fmt.Errorf("%s: there is no endpoint %s yet: use create", d.at, d.name)
		}
		out.result = "created"
		out.message, err = call(ctx, a.to, a.to.endpoints.CreateEndpoint, d.endpoint, rand.Text())
		return out, err
	}
	out.diff = diffTexts("", map[string]string{"url": there.GetUrl(), "partner": there.GetPartner(), "secret": there.GetSecret()},
		map[string]string{"url": d.endpoint.GetUrl(), "partner": d.endpoint.GetPartner(), "secret": d.endpoint.GetSecret()})
	out.message = &rotundav1.CreateEndpointResponse{Endpoint: there}
	if len(out.diff) == 0 {
		out.result = "unchanged"
		return out, nil
	}
	if a.update {
		out.result = "updated"
		out.message, err = call(ctx, a.to, a.to.endpoints.UpdateEndpoint, &rotundav1.UpdateEndpointRequest{
			Endpoint: d.name, Version: there.GetVersion(), Url: d.endpoint.GetUrl(), Partner: d.endpoint.GetPartner(), Secret: d.endpoint.GetSecret(),
		}, "")
	}
	return out, err
}

func (a *applier) applyCredential(ctx context.Context, d *document) (applied, error) {
	out := applied{doc: d}
	there, err := call(ctx, a.to, a.to.credentials.GetCredential, &rotundav1.GetCredentialRequest{Credential: d.name}, "")
	if connect.CodeOf(err) == connect.CodeNotFound {
		if a.update {
			return out, fmt.Errorf("%s: there is no credential %s yet: use create", d.at, d.name)
		}
		out.result = "created"
		out.message, err = call(ctx, a.to, a.to.credentials.CreateCredential, &rotundav1.CreateCredentialRequest{Name: d.name, Spec: d.credential}, rand.Text())
		return out, err
	}
	if err != nil {
		return out, err
	}
	was, err := a.specTexts(ctx, there.GetCredential().GetSpec())
	if err != nil {
		return out, err
	}
	is, err := a.specTexts(ctx, d.credential)
	if err != nil {
		return out, err
	}
	out.diff = diffTexts("", was, is)
	out.message = there
	switch {
	case len(out.diff) == 0:
		out.result = "unchanged"
	case a.update:
		out.result = "updated"
		out.message, err = call(ctx, a.to, a.to.credentials.UpdateCredential, &rotundav1.UpdateCredentialRequest{Credential: d.name, Version: there.GetCredential().GetVersion(), Spec: d.credential}, "")
	}
	return out, err
}

// specTexts is a specification as texts by place, with the defaults filled in, so that
// two of them can be compared.
func (a *applier) specTexts(ctx context.Context, s *rotundav1.CredentialSpec) (map[string]string, error) {
	out := map[string]string{
		"target": s.GetTarget(), "strategy": s.GetStrategy(), "missed": firstOf(s.GetMissed(), "late"),
		"schedule": scheduleText(s.GetSchedule()), "windows": strings.Join(s.GetWindows(), "; "), "notify": strings.Join(s.GetNotify(), " "),
		"grace": shortLength(s.GetGrace(), "0s"), "quiet": shortLength(s.GetQuiet(), "0s"), "probe": probeText(s.GetProbe()), "adopt": fmt.Sprint(s.GetAdopt()),
	}
	var stores []string
	for _, p := range s.GetStores() {
		stores = append(stores, p.GetStore()+":"+p.GetPath())
	}
	out["stores"] = strings.Join(stores, " ")
	for k, v := range s.GetFields() {
		out["fields."+k] = v
	}
	for k, v := range s.GetLabels() {
		out["labels."+k] = v
	}
	params := s.GetParams()
	res, err := call(ctx, a.to, a.to.targets.GetTarget, &rotundav1.GetTargetRequest{Target: s.GetTarget()}, "")
	switch {
	case connect.CodeOf(err) == connect.CodeNotFound: // the server will say so
	case err != nil:
		return nil, err
	default:
		kind := a.targets[res.GetTarget().GetKind()]
		params = complete(kind.GetParams(), params)
		if out["strategy"] == "" && len(kind.GetStrategies()) > 0 {
			out["strategy"] = kind.GetStrategies()[0]
		}
	}
	for k, v := range params {
		out["params."+k] = v
	}
	return out, nil
}

// complete fills in defaults.
func complete(declared []*rotundav1.Setting, given map[string]string) map[string]string {
	out := maps.Clone(given)
	if out == nil {
		out = map[string]string{}
	}
	for _, s := range declared {
		if out[s.GetName()] == "" && s.GetDefault() != "" {
			out[s.GetName()] = s.GetDefault()
		}
	}
	return out
}

// diffTexts says what of was becomes another in is, one line each, by name.
func diffTexts(prefix string, was, is map[string]string) []string {
	names := map[string]bool{}
	for k := range was {
		names[k] = true
	}
	for k := range is {
		names[k] = true
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(names)) {
		if was[k] != is[k] {
			out = append(out, diffLine(prefix+k, was[k], is[k]))
		}
	}
	return out
}

func diffLine(name, was, is string) string {
	show := func(s string) string {
		if s == "" {
			return "nothing"
		}
		return clipText(s)
	}
	return name + ": " + show(was) + " → " + show(is)
}

// shortLength is a length of time as one word.
func shortLength(d *durationpb.Duration, otherwise string) string {
	return strings.ReplaceAll(length(d, otherwise), " ", "")
}

func probeText(d *durationpb.Duration) string {
	if d.AsDuration() < 0 {
		return "never"
	}
	if d.AsDuration() == 0 {
		return "1h"
	}
	return shortLength(d, "1h")
}

// scheduleText is a schedule as one line.
func scheduleText(s *rotundav1.Schedule) string {
	var text string
	switch {
	case s.GetCron() != "":
		text = "cron " + s.GetCron() + " " + firstOf(s.GetZone(), "UTC")
	case s.GetEvery() != nil:
		text = "every " + shortLength(s.GetEvery(), "")
	default:
		return "only when asked"
	}
	if s.GetJitter().AsDuration() > 0 {
		text += " jitter " + shortLength(s.GetJitter(), "")
	}
	return text
}
