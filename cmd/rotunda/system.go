package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newStore(c *cli) *cobra.Command {
	k := &systemCommands{c: c, kind: "store", does: "consumers read credentials there", example: "vault-prod", adapter: "vault-kv", set: "address=https://vault.example.com:8200", login: "token"}
	return c.client(newGroup("store", "Keep stores: where consumers read credentials",
		k.create(), k.list(), k.show(), k.update(), k.remove(), newStoreTest(c), k.kinds()))
}

func newTarget(c *cli) *cobra.Command {
	k := &systemCommands{c: c, kind: "target", does: "it accepts credentials", example: "orders-pg", adapter: "postgres", set: "host=db.example.com", login: "password"}
	return c.client(newGroup("target", "Keep targets: what accepts credentials",
		k.create(), k.list(), k.show(), k.update(), k.remove(), newTargetTest(c), k.kinds()))
}

// systemCommands are the commands of stores, or of targets.
type systemCommands struct {
	c                                        *cli
	kind, does, example, adapter, set, login string
}

// systemFlags say what a system is, instead of a file.
type systemFlags struct {
	settings                    metadataFlag
	files, envs, asks           []string
	loginCredential, file, kind string
	inline                      bool
}

func (k *systemCommands) bind(cmd *cobra.Command, s *systemFlags) {
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&s.settings, "set", "a setting, as name=value, once for each; "+k.c.program+" "+k.kind+" kinds lists them")
	f.StringArrayVar(&s.files, "login-file", nil, "a secret of its login, as name=file, once for each")
	f.StringArrayVar(&s.envs, "login-env", nil, "a secret of its login, as name=VARIABLE, once for each")
	f.StringArrayVar(&s.asks, "login-ask", nil, "a secret of its login, for which you are asked, or which is a line of stdin: its name, once for each")
	f.StringVar(&s.loginCredential, "login-credential", "", "its login is the current value of this credential, which Rotunda rotates")
	f.StringVarP(&s.file, "file", "f", "", "YAML with documents of kind "+k.kind+" instead of flags; - for stdin")
	f.BoolVar(&s.inline, "allow-inline-secrets", false, "take secrets that stand in the file")
	_ = cmd.RegisterFlagCompletionFunc("login-credential", k.c.oneCredential())
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
}

// document is what the flags say.
func (s *systemFlags) document(kind, name string) (*document, error) {
	d := &document{kind: kind, name: name, at: "the command line", system: &systemDocument{adapter: s.kind, settings: s.settings.set, loginCredential: s.loginCredential}}
	add := func(from string, all []string) error {
		for _, text := range all {
			name, value, ok := strings.Cut(text, "=")
			if from != "ask" && (!ok || value == "") || name == "" {
				return usagef("--login-%s %q is not of the form name=value", from, clipText(text))
			}
			d.system.login = append(d.system.login, loginEntry{name: name, from: from, value: value, at: "--login-" + from})
		}
		return nil
	}
	for from, all := range map[string][]string{"file": s.files, "env": s.envs, "ask": s.asks} {
		if err := add(from, all); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(d.system.login, func(a, b loginEntry) int { return strings.Compare(a.name, b.name) })
	if len(d.system.login) > 0 && s.loginCredential != "" {
		return nil, usagef("give a login or --login-credential, not both")
	}
	return d, nil
}

// documents reads the file of -f, which has only documents of these kinds.
func (c *cli) documents(file string, kinds ...string) ([]*document, error) {
	raw, err := c.read(file, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	docs, err := parseManifest(file, raw)
	if err != nil {
		return nil, err
	}
	for _, d := range docs {
		if !slices.Contains(kinds, d.kind) {
			return nil, fmt.Errorf("%s: a document of kind %s: this command takes %s; `%s credential create -f` takes all kinds", d.at, d.kind, strings.Join(kinds, ", "), c.program)
		}
	}
	return docs, nil
}

// apply is create or update with -f.
func (c *cli) apply(ctx context.Context, docs []*document, change func(*applier)) error {
	to, err := c.connect()
	if err != nil {
		return err
	}
	a, err := newApplier(ctx, c, to)
	if err != nil {
		return err
	}
	change(a)
	return a.all(ctx, docs)
}

func (k *systemCommands) create() *cobra.Command {
	var s systemFlags
	cmd := &cobra.Command{
		Use:   "create NAME --kind KIND [--set NAME=VALUE …] [flags] | -f FILE",
		Short: "Configure a " + k.kind,
		Long: "Configure a " + k.kind + ": " + k.does + `. Its login is sealed under the
server's key, and never shown again. A secret is taken from a file, a variable or the
terminal, never from the command line, which other users of this machine can read.

With -f, what is there already and the same is left alone; what differs is shown, and
refused.`,
		Example: fmt.Sprintf(`  rotunda %[1]s create %[2]s --kind %[3]s --set %[4]s --login-file %[5]s=./%[5]s.txt
  rotunda %[1]s create -f %[2]s.yaml`, k.kind, k.example, k.adapter, k.set, k.login),
		Args:                  optional("NAME"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&s.kind, "kind", "", "what it is, as "+k.c.program+" "+k.kind+" kinds lists them")
	k.bind(cmd, &s)
	_ = cmd.RegisterFlagCompletionFunc("kind", k.kindNames())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		docs, err := k.wanted(cmd, args, &s)
		if err != nil {
			return err
		}
		return k.c.apply(cmd.Context(), docs, func(a *applier) { a.inline = s.inline })
	}
	return cmd
}

// wanted is what the arguments of create or update ask for.
func (k *systemCommands) wanted(cmd *cobra.Command, args []string, s *systemFlags) ([]*document, error) {
	if s.file != "" {
		if len(args) > 0 || !nothingGiven(cmd.Flags(), "file", "allow-inline-secrets", "logins") {
			return nil, usagef("-f says all: give no NAME and no other flag of a %s with it", k.kind)
		}
		return k.c.documents(s.file, k.kind)
	}
	if len(args) == 0 {
		return nil, usagef("NAME is missing, or -f FILE")
	}
	if !manifestName.MatchString(args[0]) {
		return nil, usagef("%q is not a name: 1 to 63 lower-case letters, digits and hyphens", clipText(args[0]))
	}
	if s.kind == "" {
		return nil, usagef("--kind must be given, as `%s %s kinds` lists them", k.c.program, k.kind)
	}
	d, err := s.document(k.kind, args[0])
	return []*document{d}, err
}

func (k *systemCommands) update() *cobra.Command {
	var s systemFlags
	var logins bool
	cmd := &cobra.Command{
		Use:   "update NAME [--set NAME=VALUE …] [flags] | -f FILE",
		Short: "Change the settings or the login of a " + k.kind,
		Long: "Change a " + k.kind + `. What no flag names stays as it is; a setting that is set to nothing
(NAME=) goes back to its default. With other settings the login must be given again: a sealed
login does not follow an address. With -f, the file says all settings.`,
		Example: fmt.Sprintf(`  rotunda %[1]s update %[2]s --login-file %[5]s=./new.txt
  rotunda %[1]s update %[2]s --set %[4]s --login-ask %[5]s`, k.kind, k.example, k.adapter, k.set, k.login),
		Args:                  optional("NAME"),
		ValidArgsFunction:     k.one(),
		DisableFlagsInUseLine: true,
	}
	k.bind(cmd, &s)
	cmd.Flags().BoolVar(&logins, "logins", false, "with -f: send logins again also where nothing else differs")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if s.file != "" {
			docs, err := k.wanted(cmd, args, &s)
			if err != nil {
				return err
			}
			return k.c.apply(cmd.Context(), docs, func(a *applier) { a.update, a.logins, a.inline = true, logins, s.inline })
		}
		if len(args) == 0 {
			return usagef("NAME is missing, or -f FILE")
		}
		if nothingGiven(cmd.Flags()) {
			return usagef("nothing to change: give what is to be another, as --set")
		}
		return k.change(cmd.Context(), args[0], &s, cmd.Flags().Changed("login-credential"))
	}
	return cmd
}

func (k *systemCommands) change(ctx context.Context, name string, s *systemFlags, otherCredential bool) error {
	d, err := s.document(k.kind, name)
	if err != nil {
		return err
	}
	to, err := k.c.connect()
	if err != nil {
		return err
	}
	there, err := k.get(ctx, to, name)
	if err != nil {
		return err
	}
	settings := s.settings.apply(maps.Clone(there.GetSettings()))
	login, err := k.c.resolveLogin(ctx, k.kind+" "+name, d.system.login, false)
	if err != nil {
		return err
	}
	from := there.GetLoginCredential()
	if otherCredential || len(login) > 0 {
		from = s.loginCredential
	}
	var system *rotundav1.System
	if k.kind == "store" {
		var res *rotundav1.UpdateStoreResponse
		res, err = call(ctx, to, to.stores.UpdateStore, &rotundav1.UpdateStoreRequest{Store: name, Version: there.GetVersion(), Settings: settings, Login: login, LoginCredential: from}, rand.Text())
		system = res.GetStore()
	} else {
		var res *rotundav1.UpdateTargetResponse
		res, err = call(ctx, to, to.targets.UpdateTarget, &rotundav1.UpdateTargetRequest{Target: name, Version: there.GetVersion(), Settings: settings, Login: login, LoginCredential: from}, rand.Text())
		system = res.GetTarget()
	}
	if err != nil {
		return err
	}
	return k.c.print(systemMessage(k.kind, system), func(p *page) { p.system(system) })
}

func (k *systemCommands) get(ctx context.Context, to *conn, name string) (*rotundav1.System, error) {
	if k.kind == "store" {
		res, err := call(ctx, to, to.stores.GetStore, &rotundav1.GetStoreRequest{Store: name}, "")
		return res.GetStore(), err
	}
	res, err := call(ctx, to, to.targets.GetTarget, &rotundav1.GetTargetRequest{Target: name}, "")
	return res.GetTarget(), err
}

func (k *systemCommands) show() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Aliases:           []string{"get"},
		Short:             "Show a " + k.kind + ", without its login",
		Example:           "  rotunda " + k.kind + " show " + k.example,
		Args:              arguments("NAME"),
		ValidArgsFunction: k.one(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := k.c.connect()
			if err != nil {
				return err
			}
			s, err := k.get(cmd.Context(), to, args[0])
			if err != nil {
				return err
			}
			return k.c.print(systemMessage(k.kind, s), func(p *page) { p.system(s) })
		},
	}
}

func (k *systemCommands) fetch(ctx context.Context, to *conn, limit int) ([]*rotundav1.System, string, error) {
	return collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.System, string, error) {
		if k.kind == "store" {
			r, err := call(ctx, to, to.stores.ListStores, &rotundav1.ListStoresRequest{PageSize: size, PageToken: token}, "")
			return r.GetStores(), r.GetNextPageToken(), err
		}
		r, err := call(ctx, to, to.targets.ListTargets, &rotundav1.ListTargetsRequest{PageSize: size, PageToken: token}, "")
		return r.GetTargets(), r.GetNextPageToken(), err
	})
}

func (k *systemCommands) list() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List " + k.kind + "s by name",
		Example:           "  rotunda " + k.kind + " list",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := k.c.connect()
			if err != nil {
				return err
			}
			all, next, err := k.fetch(cmd.Context(), to, limit)
			if err != nil {
				return err
			}
			k.c.more(next)
			table := func(p *page) { p.systems(k.kind, all) }
			if k.kind == "store" {
				return k.c.print(&rotundav1.ListStoresResponse{Stores: all, NextPageToken: next}, table)
			}
			return k.c.print(&rotundav1.ListTargetsResponse{Targets: all, NextPageToken: next}, table)
		},
	}
	limitFlag(cmd, &limit, 1000)
	return cmd
}

func (k *systemCommands) remove() *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: "Forget a " + k.kind + " that no credential uses",
		Long: "Forget a " + k.kind + ` and its login. One that a credential uses is refused. What is in it stays
as it is.`,
		Example:           "  rotunda " + k.kind + " delete " + k.example,
		Args:              arguments("NAME"),
		ValidArgsFunction: k.one(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := k.c.connect()
			if err != nil {
				return err
			}
			done := func(p *page) { p.line("%s %s is forgotten", k.kind, args[0]) }
			if k.kind == "store" {
				res, err := call(cmd.Context(), to, to.stores.DeleteStore, &rotundav1.DeleteStoreRequest{Store: args[0]}, "")
				if err != nil {
					return err
				}
				return k.c.print(res, done)
			}
			res, err := call(cmd.Context(), to, to.targets.DeleteTarget, &rotundav1.DeleteTargetRequest{Target: args[0]}, "")
			if err != nil {
				return err
			}
			return k.c.print(res, done)
		},
	}
}

func (k *systemCommands) kinds() *cobra.Command {
	return &cobra.Command{
		Use:               "kinds [KIND]",
		Short:             "List the kinds of " + k.kind + "s; with KIND, its settings",
		Example:           "  rotunda " + k.kind + " kinds\n  rotunda " + k.kind + " kinds " + k.adapter,
		Args:              optional("KIND"),
		ValidArgsFunction: k.kindNames(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := k.c.connect()
			if err != nil {
				return err
			}
			if k.kind == "store" {
				res, err := call(cmd.Context(), to, to.stores.ListStoreKinds, &rotundav1.ListStoreKindsRequest{}, "")
				if err != nil {
					return err
				}
				if res.Kinds, err = onlyKind(res.GetKinds(), first(args)); err != nil {
					return err
				}
				return k.c.print(res, func(p *page) { p.storeKinds(res.GetKinds(), len(args) > 0) })
			}
			res, err := call(cmd.Context(), to, to.targets.ListTargetKinds, &rotundav1.ListTargetKindsRequest{}, "")
			if err != nil {
				return err
			}
			if res.Kinds, err = onlyKind(res.GetKinds(), first(args)); err != nil {
				return err
			}
			return k.c.print(res, func(p *page) { p.targetKinds(res.GetKinds(), len(args) > 0) })
		},
	}
}

// onlyKind is the kind of that name; all for "".
func onlyKind[K interface{ GetName() string }](kinds []K, name string) ([]K, error) {
	if name == "" {
		return kinds, nil
	}
	var names []string
	for _, k := range kinds {
		if k.GetName() == name {
			return []K{k}, nil
		}
		names = append(names, k.GetName())
	}
	return nil, fmt.Errorf("there is no kind %q: there are %s%s", clipText(name), strings.Join(names, ", "), didYouMean(name, names))
}

func newStoreTest(c *cli) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "test NAME [--path PATH]",
		Short: "Log in to a store, and tell what would fail later",
		Long: `Log in to a store and tell what would fail later; with --path, whether a credential could
be published there. Nothing that consumers read is changed. Exits with 1 if anything would fail.`,
		Example:               "  rotunda store test vault-prod\n  rotunda store test vault-prod --path orders/db",
		Args:                  arguments("NAME"),
		ValidArgsFunction:     (&systemCommands{c: c, kind: "store"}).one(),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.stores.TestStore, &rotundav1.TestStoreRequest{Store: args[0], Path: path}, "")
			if err != nil {
				return err
			}
			if err := c.print(res, func(p *page) { p.checks(res.GetFindings()) }); err != nil {
				return err
			}
			return checksError("store "+args[0], res.GetFindings())
		},
	}
	cmd.Flags().StringVar(&path, "path", "", "a path in it (default: only the login is tested)")
	_ = cmd.RegisterFlagCompletionFunc("path", cobra.NoFileCompletions)
	return cmd
}

func newTargetTest(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "test NAME",
		Short: "Log in to a target, and tell what would fail later",
		Long: `Log in to a target and tell what would fail later; credential preflight tells it for one
credential. Nothing is changed. Exits with 1 if anything would fail.`,
		Example:           "  rotunda target test orders-pg",
		Args:              arguments("NAME"),
		ValidArgsFunction: (&systemCommands{c: c, kind: "target"}).one(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.targets.TestTarget, &rotundav1.TestTargetRequest{Target: args[0]}, "")
			if err != nil {
				return err
			}
			if err := c.print(res, func(p *page) { p.checks(res.GetFindings()) }); err != nil {
				return err
			}
			return checksError("target "+args[0], res.GetFindings())
		},
	}
}

func (k *systemCommands) names(ctx context.Context, to *conn) ([]string, error) {
	all, _, err := k.fetch(ctx, to, maxPage)
	var out []string
	for _, s := range all {
		out = append(out, cobra.CompletionWithDesc(clean(s.GetName()), clean(s.GetKind())))
	}
	return out, err
}

// one suggests a system as the only argument.
func (k *systemCommands) one() suggest {
	return k.c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		return k.names(ctx, to)
	})
}

func (k *systemCommands) kindNames() suggest {
	return k.c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		var out []string
		if k.kind == "store" {
			res, err := call(ctx, to, to.stores.ListStoreKinds, &rotundav1.ListStoreKindsRequest{}, "")
			for _, x := range res.GetKinds() {
				out = append(out, cobra.CompletionWithDesc(clean(x.GetName()), clean(x.GetDoc())))
			}
			return out, err
		}
		res, err := call(ctx, to, to.targets.ListTargetKinds, &rotundav1.ListTargetKindsRequest{}, "")
		for _, x := range res.GetKinds() {
			out = append(out, cobra.CompletionWithDesc(clean(x.GetName()), clean(x.GetDoc())))
		}
		return out, err
	})
}
