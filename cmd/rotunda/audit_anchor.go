package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newAuditAnchor(c *cli) *cobra.Command {
	return newGroup("anchor", "Push checkpoints to places that the operator does not control: add, list, remove",
		newAnchorAdd(c), newAnchorList(c), newAnchorRemove(c))
}

func newAnchorAdd(c *cli) *cobra.Command {
	to := place{kind: choice{allowed: []string{"file", "webhook", "s3"}}}
	a := &rotundav1.Anchor{}
	cmd := &cobra.Command{
		Use:   "add [NAME] --kind KIND --address ADDRESS [flags]",
		Short: "Push the newest checkpoints somewhere",
		Long: `Push the newest checkpoints to a place that whoever operates the server can't rewrite. A
checkpoint is a few hundred bytes; every one that is kept elsewhere fixes all events before
it for good.

  file     an absolute folder on the server's machine, such as a mounted share, in a folder
           that serve --copies-dir allows
  webhook  an https URL; the secret, if any, is a bearer token
  s3       the name of a bucket; the secret is the secret access key; --retain-days locks each
           object (object lock, mode COMPLIANCE), so that nobody can delete it

NAME is made of kind and address when it is left out. A secret comes from a file or from
stdin, never from the command line.`,
		Example: `  rotunda audit anchor add --kind file --address /mnt/auditor/checkpoints
  rotunda audit anchor add auditor --kind s3 --address trail-anchors --region eu-central-1 --access-key AKIAEXAMPLE --secret-file - --retain-days 400 < s3.secret`,
		Args:                  atMostName,
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("kind", "address"),
	}
	to.flags(c, cmd, "a folder, an https URL, or a bucket", "file with its secret, mode 0600; - for stdin")
	f := cmd.Flags()
	f.StringVar(&a.Prefix, "prefix", "", "for s3: what the names of objects begin with")
	f.StringVar(&a.Region, "region", "", "for s3")
	f.StringVar(&a.Endpoint, "endpoint", "", "for s3: https URL of an S3-compatible server (default: AWS)")
	f.BoolVar(&a.PathStyle, "path-style", false, "for s3: the bucket's name stands in the path")
	f.StringVar(&a.AccessKey, "access-key", "", "for s3: the id of the access key, which is no secret")
	f.Int32Var(&a.RetainDays, "retain-days", 0, "for s3: nobody can delete an object for this long (default: what the bucket says)")
	f.BoolVar(&a.NoLatest, "no-latest", false, "leave out the object that is replaced with each push, for places where nothing can be replaced")
	key := idempotency(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.GetRetainDays() < 0 {
			return usagef("--retain-days must not be negative")
		}
		a.Name, a.Kind, a.Address = to.name(args), to.kind.value, to.address
		var err error
		if a.Ca, err = c.pem("ca", to.ca); err != nil {
			return err
		}
		req := &rotundav1.CreateAnchorRequest{Anchor: a}
		if req.Secret, err = c.secret(to.secretRef); err != nil {
			return err
		}
		server, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), server, server.trail.CreateAnchor, req, key())
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) {
			p.anchors([]*rotundav1.Anchor{res.GetAnchor()})
			p.line("see what it got: %s", c.command("audit anchor list"))
		})
	}
	return cmd
}

func newAnchorList(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Short:             "List anchors, and which checkpoint each got last",
		Example:           "  rotunda audit anchor list",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.trail.ListAnchors, &rotundav1.ListAnchorsRequest{}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.anchors(res.GetAnchors()) })
		},
	}
}

func newAnchorRemove(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Short:   "Push no more to an anchor; what it got stays where it is",
		Example: "  rotunda audit anchor remove auditor",
		Args:    arguments("NAME"),
		ValidArgsFunction: c.names(func(ctx context.Context, to *conn) ([]string, error) {
			res, err := call(ctx, to, to.trail.ListAnchors, &rotundav1.ListAnchorsRequest{}, "")
			var out []string
			for _, a := range res.GetAnchors() {
				out = append(out, cobra.CompletionWithDesc(clean(a.GetName()), clean(a.GetKind()+" "+a.GetAddress())))
			}
			return out, err
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.trail.DeleteAnchor, &rotundav1.DeleteAnchorRequest{Name: args[0]}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.line("removed the anchor %s", args[0]) })
		},
	}
}

func (p *page) anchors(list []*rotundav1.Anchor) {
	if len(list) == 0 {
		p.line("There is no anchor.")
		return
	}
	rows := make([][]string, len(list))
	for i, a := range list {
		rows[i] = []string{a.GetName(), a.GetKind(), a.GetAddress(), firstOf(a.GetState(), "unknown"), sizeOr(a.GetSize()), p.when(a.GetPushedAt()), a.GetLastError()}
	}
	p.table([]string{"NAME", "KIND", "ADDRESS", "STATE", "CHECKPOINT", "PUSHED", "LAST ERROR"}, rows)
}

func sizeOr(size int64) string {
	if size == 0 {
		return "none"
	}
	return counted(size, "leaf")
}

func newAuditWitness(c *cli) *cobra.Command {
	return newGroup("witness", "Have others cosign checkpoints: add, list, remove, cosign",
		newWitnessAdd(c), newWitnessList(c), newWitnessRemove(c), newWitnessCosign(c))
}

func newWitnessAdd(c *cli) *cobra.Command {
	var url string
	cmd := &cobra.Command{
		Use:   "add VKEY [flags]",
		Short: "Have a witness cosign checkpoints",
		Long: `Have a witness (C2SP tlog-witness) cosign checkpoints. It signs only what extends what it
saw before, so the server can't show two people two histories without it. VKEY is its public
key, name+hash+base64. Without --url its cosignatures come by audit witness cosign.`,
		Example:               "  rotunda audit witness add witness.example+5f7a1b2c+BNlu4SmVs2o4TnOkqjzCS5ieUm7xrwL1yJbu8ACwqdOG --url https://witness.example",
		Args:                  arguments("VKEY"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.trail.CreateWitness, &rotundav1.CreateWitnessRequest{Vkey: args[0], Url: url}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.witnesses([]*rotundav1.Witness{res.GetWitness()}) })
		},
	}
	cmd.Flags().StringVar(&url, "url", "", "where it takes checkpoints")
	return cmd
}

func newWitnessList(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Short:             "List witnesses, and what each cosigned last",
		Example:           "  rotunda audit witness list",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.trail.ListWitnesses, &rotundav1.ListWitnessesRequest{}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.witnesses(res.GetWitnesses()) })
		},
	}
}

func newWitnessRemove(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Short:   "Ask a witness no more",
		Example: "  rotunda audit witness remove witness.example",
		Args:    arguments("NAME"),
		ValidArgsFunction: c.names(func(ctx context.Context, to *conn) ([]string, error) {
			res, err := call(ctx, to, to.trail.ListWitnesses, &rotundav1.ListWitnessesRequest{}, "")
			var out []string
			for _, w := range res.GetWitnesses() {
				out = append(out, cobra.CompletionWithDesc(clean(w.GetName()), clean(w.GetUrl())))
			}
			return out, err
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.trail.DeleteWitness, &rotundav1.DeleteWitnessRequest{Name: args[0]}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.line("removed the witness %s", args[0]) })
		},
	}
}

func newWitnessCosign(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "cosign FILE",
		Short: "Hand in a checkpoint that a witness cosigned",
		Long: `Hand in a checkpoint that a witness cosigned by hand: what audit checkpoint printed, with the
witness's signature line below the server's. FILE may be - for stdin.`,
		Example: "  rotunda audit witness cosign - < cosigned.txt",
		Args:    arguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := c.read(args[0], maxNoteFile)
			if err != nil {
				return fmt.Errorf("reading the cosigned checkpoint: %w", err)
			}
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.trail.AddCosignature, &rotundav1.AddCosignatureRequest{Checkpoint: string(b)}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.line("took the cosignature of %s", strings.Join(res.GetWitnesses(), ", ")) })
		},
	}
}

func (p *page) witnesses(list []*rotundav1.Witness) {
	if len(list) == 0 {
		p.line("There is no witness.")
		return
	}
	rows := make([][]string, len(list))
	for i, w := range list {
		rows[i] = []string{w.GetName(), firstOf(w.GetUrl(), "by hand"), firstOf(w.GetState(), "unknown"), sizeOr(w.GetSize()), p.when(w.GetCosignedAt()), w.GetLastError()}
	}
	p.table([]string{"NAME", "URL", "STATE", "CHECKPOINT", "COSIGNED", "LAST ERROR"}, rows)
}
