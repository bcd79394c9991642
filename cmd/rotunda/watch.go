package main

import (
	"encoding/json"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newWatch(c *cli) *cobra.Command {
	var after int64
	cmd := &cobra.Command{
		Use:   "watch NAME",
		Short: "Follow the versions of a keyset's JWKS document",
		Long: `Print the present version of a keyset's JWKS document, then each new one, until you
interrupt it. With -o json, each version is one line.`,
		Example: `  rotunda keyset watch payments
  rotunda keyset watch payments --after-version 12 -o json`,
		Args:              arguments("NAME"),
		ValidArgsFunction: c.keysetThenKid(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			if after < 0 {
				return usagef("--after-version must not be negative")
			}
			to, err := c.connect()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			stream, err := to.keysets.Watch(ctx, connect.NewRequest(&rotundav1.WatchRequest{Name: args[0], AfterVersion: after}))
			if err != nil {
				return &callError{to, err}
			}
			defer func() { _ = stream.Close() }()
			for stream.Receive() {
				if err := c.printNext(stream.Msg(), func(p *page) { p.document(stream.Msg()) }); err != nil {
					return err
				}
			}
			if ctx.Err() != nil {
				return nil // the way to end a watch
			}
			if err := stream.Err(); err != nil {
				return &callError{to, err}
			}
			c.complain("the server ended the stream")
			return nil
		},
	}
	cmd.Flags().Int64Var(&after, "after-version", 0, "print only versions larger than this")
	return cmd
}

func (p *page) document(w *rotundav1.WatchResponse) {
	var doc struct {
		Keys []struct {
			Kid string `json:"kid"`
		} `json:"keys"`
	}
	kids := "not a JWKS document"
	if json.Unmarshal([]byte(w.GetJwks()), &doc) == nil {
		all := make([]string, len(doc.Keys))
		for i, k := range doc.Keys {
			all[i] = k.Kid
		}
		kids = strings.Join(all, " ")
	}
	p.hang("", p.now.UTC().Format("2006-01-02 15:04:05Z")+"  version "+formatInt(w.GetVersion())+"  max-age "+length(w.GetMaxAge(), "unknown")+"  etag "+w.GetEtag()+"  kids "+kids)
}
