// Fill creates keysets in a running Rotunda, through its API:
//
//	fill --server http://127.0.0.1:8470 --token-file data/admin.token --keysets 1000
//	fill --server … --token-file … --name rs256 --algorithm RS256
//
// Without a name they are called bench-0001, bench-0002 and so on.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

func main() {
	server := flag.String("server", "", "Rotunda's URL")
	tokenFile := flag.String("token-file", "", "file with an admin's token")
	keysets := flag.Int("keysets", 1, "how many to create")
	name := flag.String("name", "", "name of a single keyset")
	algorithm := flag.String("algorithm", "ES256", "of its keys")
	flag.Parse()
	if err := run(*server, *tokenFile, *name, *algorithm, *keysets); err != nil {
		fmt.Fprintln(os.Stderr, "fill:", err)
		os.Exit(1)
	}
}

func run(server, tokenFile, name, algorithm string, keysets int) error {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return err
	}
	client := rotundav1connect.NewKeysetServiceClient(http.DefaultClient, server)
	group, ctx := errgroup.WithContext(context.Background())
	group.SetLimit(8)
	for i := range keysets {
		group.Go(func() error {
			n := name
			if n == "" {
				n = fmt.Sprintf("bench-%04d", i+1)
			}
			req := connect.NewRequest(&rotundav1.CreateKeysetRequest{
				Name: n, Issuer: "https://auth.example.com/" + n, Algorithm: algorithm,
				Policy: &rotundav1.Policy{Rotate: &rotundav1.Schedule{Every: durationpb.New(30 * 24 * time.Hour)}, TokenTtl: durationpb.New(time.Hour)},
			})
			req.Header().Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
			_, err := client.CreateKeyset(ctx, req)
			return err
		})
	}
	return group.Wait()
}
