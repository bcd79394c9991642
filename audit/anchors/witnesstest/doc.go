// Package witnesstest pins the witness that the tests of package anchors run as
// a child process: litewitness of filippo.io/torchwood, a C2SP tlog-witness that
// is not Rotunda's. It is a module of its own, so that the witness's choices of
// versions can't move Rotunda's.
//
// The blank imports are what litewitness is built from. It is not named by a
// `tool` line, because `go mod tidy` would then fetch what its own tests need.
package witnesstest

import (
	_ "filippo.io/torchwood"
	_ "golang.org/x/crypto/ssh/agent"
	_ "golang.org/x/net/http2"
	_ "zombiezen.com/go/sqlite/sqlitex"
)
