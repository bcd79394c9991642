package server

import (
	"context"
	"strconv"
	"testing"

	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/builtin"
)

// shelves is the built-in store of the bed, as a kind and as the server asks it.
func (b *bed) shelves(t testing.TB) (providers.StoreKind, Secrets) {
	t.Helper()
	own := builtin.New(builtin.Config{DB: b.db, Sealer: b.sealer})
	return own.Kind(), shelfReader{own}
}

type shelfReader struct{ own *builtin.Store }

func (s shelfReader) ReadSecret(ctx context.Context, path, version string) (Secret, error) {
	var which builtin.Which
	if n, err := strconv.ParseInt(version, 10, 64); err == nil {
		which.Number = n
	} else {
		which.Label = builtin.Label(version)
	}
	v, err := s.own.Get(ctx, path, which)
	if err != nil {
		return Secret{}, err
	}
	return Secret{Fields: v.Fields, Version: strconv.FormatInt(v.Number, 10), Label: string(v.Label), CreatedAt: v.Time}, nil
}
