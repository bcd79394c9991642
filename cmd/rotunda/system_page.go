package main

import (
	"fmt"
	"slices"
	"strings"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func (p *page) system(s *rotundav1.System) {
	p.line("%s  %s", s.GetName(), s.GetKind())
	for _, name := range slices.Sorted(mapKeys(s.GetSettings())) {
		p.fact(name, settingText(s.GetSettings()[name]))
	}
	p.fact("login", loginText(s))
	if s.GetCreatedAt() != nil {
		p.fact("created", p.when(s.GetCreatedAt()))
	}
	if s.GetVersion() > 1 && s.GetSince() != nil {
		p.fact("changed", p.when(s.GetSince()))
	}
}

// settingText is a setting on one line: of certificates, how long they are.
func settingText(s string) string {
	if strings.Contains(s, "-----BEGIN ") {
		return fmt.Sprintf("PEM, %d bytes", len(s))
	}
	return clipText(s)
}

func loginText(s *rotundav1.System) string {
	switch {
	case s.GetLoginCredential() != "":
		return "the current value of credential " + s.GetLoginCredential()
	case s.GetHasLogin():
		return "sealed"
	default:
		return "none"
	}
}

func settingsText(all map[string]string) string {
	short := make(map[string]string, len(all))
	for name, s := range all {
		short[name] = settingText(s)
	}
	return formatMetadata(short)
}

func (p *page) systems(kind string, list []*rotundav1.System) {
	if len(list) == 0 {
		p.line("there are no %ss: %s makes one", kind, p.cli.command(kind+" create -f FILE"))
		return
	}
	rows := make([][]string, len(list))
	for i, s := range list {
		rows[i] = []string{s.GetName(), s.GetKind(), loginText(s), settingsText(s.GetSettings())}
	}
	p.table([]string{"NAME", "KIND", "LOGIN", "SETTINGS"}, rows)
}

func (p *page) storeKinds(kinds []*rotundav1.StoreKind, settings bool) {
	if settings {
		for _, k := range kinds {
			p.hangTo(p.prose(), "", k.GetName()+": "+k.GetDoc())
			p.fact("stages", either(k.GetStages(), "keeps a second copy of a new value that no consumer reads", "no"))
			if k.GetQuota() > 0 {
				p.fact("quota", fmt.Sprintf("%g writes per second, %d per rotation", k.GetQuota(), k.GetWritesPerRotation()))
			}
			p.settings("Settings", k.GetSettings())
			p.settings("Login", k.GetLogin())
			if k.GetPath() != nil {
				p.settings("Path", []*rotundav1.Setting{k.GetPath()})
			}
		}
		return
	}
	rows := make([][]string, len(kinds))
	for i, k := range kinds {
		quota := "none known"
		if k.GetQuota() > 0 {
			quota = fmt.Sprintf("%g writes/s", k.GetQuota())
		}
		rows[i] = []string{k.GetName(), either(k.GetStages(), "yes", "no"), quota, k.GetDoc()}
	}
	p.table([]string{"KIND", "STAGES", "QUOTA", "WHAT IT IS"}, rows)
}

func (p *page) targetKinds(kinds []*rotundav1.TargetKind, settings bool) {
	if settings {
		for _, k := range kinds {
			p.hangTo(p.prose(), "", k.GetName()+": "+k.GetDoc())
			p.fact("strategies", strings.Join(k.GetStrategies(), " "))
			p.fact("value", valueText(k))
			p.settings("Settings", k.GetSettings())
			p.settings("Login", k.GetLogin())
			p.settings("Params of a credential", k.GetParams())
		}
		return
	}
	rows := make([][]string, len(kinds))
	for i, k := range kinds {
		rows[i] = []string{k.GetName(), strings.Join(k.GetStrategies(), " "), valueText(k), k.GetDoc()}
	}
	p.table([]string{"KIND", "STRATEGIES", "VALUE", "WHAT IT IS"}, rows)
}

func valueText(k *rotundav1.TargetKind) string {
	switch {
	case k.GetValueless():
		return "none"
	case k.GetIssues():
		return "made by the target"
	default:
		return "chosen by Rotunda"
	}
}

func either(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

func (p *page) settings(title string, list []*rotundav1.Setting) {
	if len(list) == 0 {
		return
	}
	p.line("")
	p.line("%s", title)
	rows := make([][]string, len(list))
	for i, s := range list {
		about := s.GetDoc()
		if len(s.GetOneOf()) > 0 {
			about += " (" + strings.Join(s.GetOneOf(), ", ") + ")"
		}
		rows[i] = []string{s.GetName(), firstOf(s.GetDefault(), either(s.GetRequired(), "must be given", "none")), about}
	}
	p.table([]string{"NAME", "DEFAULT", "WHAT IT IS"}, rows)
}

// checks shows the findings of a preflight: what is wrong first, with what to do.
func (p *page) checks(list []*rotundav1.Finding) {
	if len(list) == 0 {
		p.line("nothing was found")
		return
	}
	state := func(f *rotundav1.Finding) string {
		switch {
		case f.GetOk():
			return "ok"
		case f.GetWarning():
			return "warn"
		default:
			return "fail"
		}
	}
	order := []string{"fail", "warn", "ok"}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b *rotundav1.Finding) int {
		return slices.Index(order, state(a)) - slices.Index(order, state(b))
	})
	rows := make([][]string, len(list))
	for i, f := range list {
		text := f.GetDetail()
		if f.GetMeasured() != "" {
			text = strings.TrimPrefix(text+" ("+f.GetMeasured()+")", " ")
		}
		rows[i] = []string{state(f), f.GetCheck(), f.GetWhere(), text}
	}
	p.table([]string{"STATE", "CHECK", "WHERE", "WHAT WAS FOUND"}, rows)
	var remedies []note
	for _, f := range list {
		if !f.GetOk() && f.GetRemedy() != "" {
			remedies = append(remedies, note{strings.TrimSpace(f.GetCheck() + " " + f.GetWhere()), f.GetRemedy()})
		}
	}
	if len(remedies) > 0 {
		p.line("")
		p.line("What to do")
		p.notes(remedies)
	}
}

// checksError is an error when something of the list would make a rotation fail.
func checksError(what string, list []*rotundav1.Finding) error {
	n := 0
	for _, f := range list {
		if !f.GetOk() && !f.GetWarning() {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s would fail: see above for what to do", what, counted(int64(n), "thing"))
}
