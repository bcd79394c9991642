package main

import (
	"testing"

	"github.com/rotunda-dev/rotunda/audit/anchors"
)

// Only what is shown, and signed by the log, stops the trail; what an outsider
// merely says is an alarm.
func TestTrailStopsOnlyWhenItIsProven(t *testing.T) {
	shows := map[string]bool{"share": true, "hook": false}
	for _, tc := range []struct {
		name string
		stat anchors.Stat
		want bool
	}{
		{"a share shows another history", anchors.Stat{Name: "share", Alarm: true, Error: "anchor_fork"}, true},
		{"a share is away", anchors.Stat{Name: "share", Error: "timeout"}, false},
		{"a webhook says so", anchors.Stat{Name: "hook", Alarm: true, Error: "409"}, false},
		{"a witness says so", anchors.Stat{Name: "share", Witness: true, Alarm: true, Error: "409"}, false},
	} {
		if got := proven([]anchors.Stat{{Name: "share"}, tc.stat}, shows); (got != nil) != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
