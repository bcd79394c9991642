package trail_test

import (
	"fmt"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// An auditor demands that the log signed a checkpoint and a witness saw it.
func ExampleCountWitnesses() {
	const note = `rotunda.example/trail
42
SBNJTRN+FjG7owHVrKtue7eqdM4RhdRWVl71HXN2d7I=

— rotunda.example/trail MCzcPoaBK/ZlAWma+qVe7eXYKnjub5s5+/IbynVucSOFxMPTB02s+AdpI7vQlGW/QkttObsCKIXNfCFdVymq2a8Xegc=
— witness.example/w1 8ciXPgAAAABrAoaz53Abpi9phmPDtn5TKZP2UerlbIdOCisNeNdf9FrE0WaKxIaV75hwFyug7QHFMBtJoJgUBda53GFe6AP8WxRpCQ==
`
	keys, err := trail.ParseKeys("rotunda.example/trail+302cdc3e+AXwB/IUypxB0wYn5W+knUp+qrRs6qQ+M2lx0LQAhrmXw")
	if err != nil {
		fmt.Println(err)
		return
	}
	w, err := trail.ParseWitness("witness.example/w1+f1c8973e+BBazfmX0tysA5SxDNA+xkC0YCyMDLhwuHS/QWlxekq6z")
	if err != nil {
		fmt.Println(err)
		return
	}
	cp, err := keys.Open(note)
	fmt.Println(cp.Size, err)
	at, err := w.Verify(note)
	fmt.Println(at, err)
	n, missing := trail.CountWitnesses(note, []trail.Witness{w})
	fmt.Println(n, missing)
	// Output:
	// 42 <nil>
	// 2026-11-22 06:07:47 +0000 UTC <nil>
	// 1 <nil>
}
