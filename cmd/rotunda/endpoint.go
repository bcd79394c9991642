package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newEndpoint(c *cli) *cobra.Command {
	return c.client(newGroup("endpoint", "Keep endpoints: where consumers are told of new values",
		newEndpointCreate(c), newEndpointList(c), newEndpointSwitch(c, false), newEndpointSwitch(c, true), newEndpointDelete(c), newEndpointTest(c), newDeliveries(c), newRedeliver(c)))
}

// maxEndpoints is how many endpoints are looked through for one.
const maxEndpoints = 10000

func listEndpoints(ctx context.Context, to *conn, limit int) ([]*rotundav1.Endpoint, string, error) {
	return collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.Endpoint, string, error) {
		r, err := call(ctx, to, to.endpoints.ListEndpoints, &rotundav1.ListEndpointsRequest{PageSize: size, PageToken: token}, "")
		return r.GetEndpoints(), r.GetNextPageToken(), err
	})
}

// findEndpoint is the endpoint of that name, or nil.
func findEndpoint(ctx context.Context, to *conn, name string) (*rotundav1.Endpoint, error) {
	all, _, err := listEndpoints(ctx, to, maxEndpoints)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.GetName() == name {
			return e, nil
		}
	}
	return nil, nil
}

func newEndpointCreate(c *cli) *cobra.Command {
	req := &rotundav1.CreateEndpointRequest{}
	cmd := &cobra.Command{
		Use:   "create NAME --url URL --partner PARTNER --secret SECRET",
		Short: "Add an endpoint that is told of new values",
		Long: `Add an endpoint. It is told that a credential has a new value, never the value itself, by
Standard Webhooks: signed with a request secret of a partner (secret create), at least once, with
a stable id, for three days.`,
		Example:               "  rotunda endpoint create orders --url https://orders.example.com/hooks/rotunda --partner acme --secret hooks",
		Args:                  arguments("NAME"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("url", "partner", "secret"),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&req.Url, "url", "", "where to send: https://…")
	c.partnerFlag(cmd, &req.Partner, "whose request secret signs")
	f.StringVar(&req.Secret, "secret", "", "name of that request secret")
	for _, n := range []string{"url", "secret"} {
		_ = cmd.RegisterFlagCompletionFunc(n, cobra.NoFileCompletions)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, err := c.connect()
		if err != nil {
			return err
		}
		req.Name = args[0]
		res, err := call(cmd.Context(), to, to.endpoints.CreateEndpoint, req, rand.Text())
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.endpoints([]*rotundav1.Endpoint{res.GetEndpoint()}) })
	}
	return cmd
}

func newEndpointList(c *cli) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List endpoints by name",
		Example:           "  rotunda endpoint list",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			all, next, err := listEndpoints(cmd.Context(), to, limit)
			if err != nil {
				return err
			}
			c.more(next)
			return c.print(&rotundav1.ListEndpointsResponse{Endpoints: all, NextPageToken: next}, func(p *page) { p.endpoints(all) })
		},
	}
	limitFlag(cmd, &limit, 1000)
	return cmd
}

// newEndpointSwitch is the command enable, or disable.
func newEndpointSwitch(c *cli, enable bool) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:               "disable NAME",
		Short:             "Send nothing to an endpoint until enable",
		Example:           "  rotunda endpoint disable orders --reason \"it moves tonight\"",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.oneEndpoint(),
	}
	if enable {
		cmd.Use, cmd.Short, cmd.Example = "enable NAME", "Undo disable", "  rotunda endpoint enable orders"
	}
	reasonFlag(cmd, &reason)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, err := c.connect()
		if err != nil {
			return err
		}
		if enable {
			res, err := call(cmd.Context(), to, to.endpoints.EnableEndpoint, &rotundav1.EnableEndpointRequest{Endpoint: args[0], Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.endpoints([]*rotundav1.Endpoint{res.GetEndpoint()}) })
		}
		res, err := call(cmd.Context(), to, to.endpoints.DisableEndpoint, &rotundav1.DisableEndpointRequest{Endpoint: args[0], Reason: reason}, "")
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.endpoints([]*rotundav1.Endpoint{res.GetEndpoint()}) })
	}
	return cmd
}

func newEndpointDelete(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "delete NAME",
		Short:             "Remove an endpoint that no credential tells, and what waits for it",
		Example:           "  rotunda endpoint delete orders",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.oneEndpoint(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.endpoints.DeleteEndpoint, &rotundav1.DeleteEndpointRequest{Endpoint: args[0]}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.line("endpoint %s is removed", args[0]) })
		},
	}
}

// How long the answer to a test message is waited for, and how often it is looked for.
const (
	testPatience = 30 * time.Second
	testPoll     = 100 * time.Millisecond
)

func newEndpointTest(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "test NAME",
		Short:             "Send a message, and tell what came back",
		Example:           "  rotunda endpoint test orders",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.oneEndpoint(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.endpoints.TestEndpoint, &rotundav1.TestEndpointRequest{Endpoint: args[0]}, "")
			if err != nil {
				return err
			}
			d, err := c.tested(cmd.Context(), to, res.GetDelivery())
			if err != nil {
				return err
			}
			if err := c.print(&rotundav1.TestEndpointResponse{Delivery: d}, func(p *page) { p.deliveries([]*rotundav1.Delivery{d}) }); err != nil {
				return err
			}
			if d.GetState() != "delivered" {
				return fmt.Errorf("endpoint %s did not take the message: %s", args[0], firstOf(d.GetLastError(), "it has not answered yet"))
			}
			return nil
		},
	}
}

// tested is a message once it was tried.
func (c *cli) tested(ctx context.Context, to *conn, d *rotundav1.Delivery) (*rotundav1.Delivery, error) {
	began := c.now()
	for d.GetAttempts() == 0 && d.GetState() == "waiting" && c.now().Sub(began) < testPatience {
		select {
		case <-ctx.Done():
			return d, nil
		case <-time.After(testPoll):
		}
		res, err := call(ctx, to, to.endpoints.ListDeliveries, &rotundav1.ListDeliveriesRequest{PageSize: maxPage, Endpoint: d.GetEndpoint()}, "")
		if err != nil {
			return nil, err
		}
		for _, x := range res.GetDeliveries() {
			if x.GetId() == d.GetId() {
				d = x
			}
		}
	}
	return d, nil
}

func newDeliveries(c *cli) *cobra.Command {
	var limit int
	var dead bool
	cmd := &cobra.Command{
		Use:               "deliveries [NAME]",
		Short:             "List messages, newest first; --dead: those that are given up",
		Example:           "  rotunda endpoint deliveries orders\n  rotunda endpoint deliveries --dead",
		Args:              optional("NAME"),
		ValidArgsFunction: c.oneEndpoint(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res := &rotundav1.ListDeliveriesResponse{}
			res.Deliveries, res.NextPageToken, err = collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.Delivery, string, error) {
				r, err := call(cmd.Context(), to, to.endpoints.ListDeliveries, &rotundav1.ListDeliveriesRequest{PageSize: size, PageToken: token, Endpoint: first(args), Dead: dead}, "")
				return r.GetDeliveries(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.deliveries(res.GetDeliveries()) })
		},
	}
	cmd.Flags().BoolVar(&dead, "dead", false, "only those that are given up")
	limitFlag(cmd, &limit, 50)
	return cmd
}

func newRedeliver(c *cli) *cobra.Command {
	var all bool
	var endpoint string
	cmd := &cobra.Command{
		Use:     "redeliver ID | --all-dead [--endpoint NAME]",
		Short:   "Send a message again, under its id",
		Example: "  rotunda endpoint redeliver 0191f3c2-7a64-7c0e-8a55-000000000002\n  rotunda endpoint redeliver --all-dead",
		Args:    optional("ID"), ValidArgsFunction: cobra.NoFileCompletions, DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVar(&all, "all-dead", false, "all messages that are given up")
	cmd.Flags().StringVar(&endpoint, "endpoint", "", "with --all-dead: only those of this endpoint")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if all == (len(args) == 1) {
			return usagef("give the ID of a message, or --all-dead")
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		ids := args
		if all {
			dead, next, err := collect(10000, maxPage, func(size int32, token string) ([]*rotundav1.Delivery, string, error) {
				r, err := call(cmd.Context(), to, to.endpoints.ListDeliveries, &rotundav1.ListDeliveriesRequest{PageSize: size, PageToken: token, Endpoint: endpoint, Dead: true}, "")
				return r.GetDeliveries(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			if next != "" {
				c.complain("there are more than 10000: run this again for the rest")
			}
			for _, d := range dead {
				ids = append(ids, d.GetId())
			}
			if len(ids) == 0 {
				return errors.New("no message is given up")
			}
		}
		for _, id := range ids {
			res, err := call(cmd.Context(), to, to.endpoints.RedeliverMessage, &rotundav1.RedeliverMessageRequest{Delivery: id}, "")
			if err != nil {
				return err
			}
			if err := c.printNext(res, func(p *page) { p.line("message %s goes to %s again", id, res.GetDelivery().GetEndpoint()) }); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

func (p *page) endpoints(list []*rotundav1.Endpoint) {
	if len(list) == 0 {
		p.line("there are no endpoints: %s makes one", p.cli.command("endpoint create NAME --url URL --partner PARTNER --secret SECRET"))
		return
	}
	rows := make([][]string, len(list))
	for i, e := range list {
		rows[i] = []string{e.GetName(), e.GetState(), e.GetUrl(), e.GetPartner() + " " + e.GetSecret(), e.GetReason()}
	}
	p.table([]string{"NAME", "STATE", "URL", "SIGNED WITH", "REASON"}, rows)
}

func (p *page) deliveries(list []*rotundav1.Delivery) {
	if len(list) == 0 {
		p.line("there are no messages")
		return
	}
	rows := make([][]string, len(list))
	for i, d := range list {
		then := p.when(d.GetNextAt())
		switch {
		case d.GetDeliveredAt() != nil:
			then = p.when(d.GetDeliveredAt())
		case d.GetNextAt() == nil:
			then = ""
		}
		why := d.GetLastError()
		if why == "" && d.GetLastStatus() != 0 {
			why = fmt.Sprintf("it answered %d", d.GetLastStatus())
		}
		rows[i] = []string{d.GetId(), d.GetEndpoint(), d.GetType(), d.GetState(), formatInt(int64(d.GetAttempts())), p.when(d.GetCreatedAt()), then, why}
	}
	p.table([]string{"ID", "ENDPOINT", "TYPE", "STATE", "TRIES", "MADE", "DELIVERED OR NEXT", "LAST ANSWER"}, rows)
}

// oneEndpoint suggests an endpoint as the only argument.
func (c *cli) oneEndpoint() suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		all, _, err := listEndpoints(ctx, to, maxPage)
		var out []string
		for _, e := range all {
			out = append(out, cobra.CompletionWithDesc(clean(e.GetName()), clean(e.GetUrl())))
		}
		return out, err
	})
}
