package anchors

import (
	"context"
	"errors"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Compare tells whether the log, whose newest checkpoint is given, still extends
// what an anchor holds: the check to make when the server starts. rootAt returns
// the root of the log's tree at a size up to the newest.
//
// It returns what the anchor holds, and the zero Checkpoint with no error when it
// is empty or can't be read. Errors are those of [Anchor.Push].
func Compare(ctx context.Context, name string, a Anchor, newest trail.Checkpoint, rootAt func(ctx context.Context, size int64) (tlog.Hash, error)) (trail.Checkpoint, error) {
	signed, err := a.Newest(ctx)
	if errors.Is(err, fault.ErrNotFound) {
		return trail.Checkpoint{}, nil
	}
	if err != nil {
		return trail.Checkpoint{}, err
	}
	k := keeper{place: "the anchor " + name, origin: newest.Origin, check: parseOnly}
	held, err := k.read("its newest checkpoint", signed)
	switch {
	case err != nil:
		return held, err
	case held.Size > newest.Size:
		return held, k.ahead(held.Size, newest)
	}
	ours := newest
	if held.Size < newest.Size {
		ours.Size = held.Size
		if ours.Root, err = rootAt(ctx, held.Size); err != nil {
			return held, err
		}
	}
	return held, k.compare("its newest checkpoint", signed, ours)
}
