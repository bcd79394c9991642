package vault

import (
	"context"
	"errors"
	"fmt"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

var _ providers.Eraser = (*kv)(nil)

// Erase deletes a path with its metadata and all versions: see [providers.Eraser].
func (s *kv) Erase(ctx context.Context, path string) error {
	err := s.call(ctx, remove, s.mount+"/metadata/"+path, nil, nil)
	if err != nil && !errors.Is(err, fault.ErrNotFound) {
		return fmt.Errorf("delete %s with all its versions: %w", path, err)
	}
	return nil
}
