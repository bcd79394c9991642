package vault_test

import (
	"fmt"
	"testing"

	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/vault"
)

// What a Publish costs beside the bare write that it is made of: it also reads, to
// know what it replaces, and marks.
func BenchmarkKV(b *testing.B) {
	v := bedtest.Vault(b)
	mount := newKV(b, v)
	s := openStore(b, config(b, v, vault.KVKind().Settings, v.Token, "mount", mount))
	b.Run("Publish", func(b *testing.B) {
		path, prior := bedtest.Fresh("p"), ""
		for i := range b.N {
			name, err := s.Publish(b.Context(), path, providers.Version{Rotation: rotationA, Generation: int64(i), Fields: providers.Fields{}.Set("password", fmt.Sprint(i))}, prior)
			if err != nil {
				b.Fatal(err)
			}
			prior = name
		}
	})
	b.Run("BareWrite", func(b *testing.B) {
		client := newClient(b, config(b, v, vault.Settings(), v.Token))
		path := mount + "/data/" + bedtest.Fresh("p")
		for i := range b.N {
			if err := client.Write(b.Context(), path, map[string]any{"data": map[string]string{"password": fmt.Sprint(i)}}, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
