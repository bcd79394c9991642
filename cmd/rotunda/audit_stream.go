package main

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// fruitless is how many attempts in a row may bring nothing: with the pauses
// between them, about two minutes.
const fruitless = 12

// leaves takes what an export sends, in the order of the indexes.
type leaves interface {
	Next() int64 // the leaf that is due
	Write(*trail.Record) error
	Gap(bundle.Gap) error
}

// puller reads an export to its end, over as many connections as that takes. All
// of them are of one checkpoint.
type puller struct {
	c   *cli
	to  *conn
	req *rotundav1.ExportEventsRequest
	bar *progress

	// head and leaves are what an export that was interrupted left, or nil; begin
	// makes leaves of the head.
	head   *bundle.Head
	leaves leaves
	begin  func(bundle.Head) (leaves, error)

	size    int64 // of the checkpoint
	records int64 // in this run
}

// adopt takes a head as the export's.
func (p *puller) adopt(h bundle.Head) error {
	text, _ := cutNote(h.Checkpoint)
	cp, err := trail.ParseCheckpoint(text)
	if err != nil {
		return err
	}
	p.head, p.size = &h, cp.Size
	return nil
}

// run reads until the last leaf is there. Lost connections are made again; an
// error is final.
func (p *puller) run(ctx context.Context) error {
	var again pauses
	for {
		before := p.at()
		err := p.once(ctx)
		if p.leaves != nil && p.leaves.Next() == p.head.End {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if p.leaves == nil || !lost(err) {
			if err == nil {
				err = errors.New("the server sent nothing: this is a fault of the server")
			}
			return err
		}
		if p.at() > before {
			again.failed = 0
		}
		if again.failed >= fruitless {
			if err == nil {
				err = fmt.Errorf("the server ended the export at leaf %d of %d each time: this is a fault of the server", p.at(), p.head.End)
			}
			return err
		}
		if again.failed == 0 {
			p.bar.clear()
			p.c.complain("the connection was lost (%s): going on as soon as it is back", p.to.why(err))
		}
		if err := again.wait(ctx); err != nil {
			return err
		}
	}
}

func (p *puller) at() int64 {
	if p.leaves == nil {
		return -1
	}
	return p.leaves.Next()
}

func (p *puller) once(ctx context.Context) error {
	req := &rotundav1.ExportEventsRequest{Filter: p.req.GetFilter(), Omitted: p.req.GetOmitted(), Size: p.req.GetSize()}
	if p.leaves != nil {
		req.Index, req.Size = p.leaves.Next(), p.size
	}
	stream, err := p.to.audit.ExportEvents(ctx, connect.NewRequest(req))
	if err != nil {
		return &callError{p.to, err}
	}
	defer func() { _ = stream.Close() }()
	headed := false
	for stream.Receive() {
		switch m := stream.Msg(); {
		case m.GetHead() != nil:
			if headed {
				return errors.New("the server sent two heads: this is a fault of the server")
			}
			headed = true
			if err := p.headed(m.GetHead()); err != nil {
				return err
			}
		case !headed:
			return errors.New("the server sent items before the head: this is a fault of the server")
		default:
			for _, item := range m.GetItems().GetItems() {
				if err := p.item(item); err != nil {
					return err
				}
			}
			p.bar.show(p.leaves.Next()-p.head.Begin, p.head.End-p.head.Begin, p.records)
		}
	}
	if err := stream.Err(); err != nil {
		return &callError{p.to, err}
	}
	return nil
}

// headed takes in the head of one connection.
func (p *puller) headed(m *rotundav1.ExportHead) error {
	h, err := headOf(m)
	if err != nil {
		return err
	}
	if p.leaves == nil {
		if !sameConditions(h.Filter, conditions(p.req.GetFilter())) {
			return fmt.Errorf("the server applied another filter (%s) than was asked for (%s): this is a fault of the server", describe(h.Filter), describe(conditions(p.req.GetFilter())))
		}
		if err := p.adopt(h); err != nil {
			return err
		}
		if p.leaves, err = p.begin(h); err != nil {
			return err
		}
		p.bar.first = p.leaves.Next() - h.Begin
		return nil
	}
	was, _ := cutNote(p.head.Checkpoint)
	is, _ := cutNote(h.Checkpoint)
	if was != is || h.End != p.head.End {
		return fmt.Errorf("the server can't go on with this export: it was begun on a log %q of %d leaves with another root than now (see `%s`): begin again in another folder", p.head.Origin, p.size, p.c.command("audit status"))
	}
	if len(h.Evidence) > len(p.head.Evidence) {
		// The proof that this was done by right would come too late for a bundle that is begun.
		return errors.New("events were pruned since this export was begun: begin again in another folder")
	}
	return nil
}

func (p *puller) item(m *rotundav1.ExportItem) error {
	if g := m.GetGap(); g != nil {
		gap, err := gapOf(g)
		if err != nil {
			return err
		}
		return p.leaves.Gap(gap)
	}
	r, err := recordOf(p.head.Origin, m.GetRecord())
	if err != nil {
		return err
	}
	p.records++
	return p.leaves.Write(&r)
}
