package bundle

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// The kinds of findings. They are stable words: programs may compare them.
const (
	Altered    = "altered"                 // a record, or what the manifest says, is not what the tree has
	Missing    = "missing"                 // leaves, or a file, are not there
	Inserted   = "inserted"                // a record or a file that the log does not have
	Reordered  = "reordered"               // a record stands in another place than its own
	Duplicate  = "duplicate"               // a record is there twice
	Truncated  = "truncated"               // it ends before it says
	Root       = "root"                    // the leaves do not give the root that was signed
	Signature  = "signature"               // no trusted key signed the checkpoint
	Key        = "key"                     // the history of keys does not hold
	Fork       = "fork"                    // two checkpoints of which neither extends the other
	Rollback   = "rollback"                // a log, or a checkpoint, is smaller than it was
	Undeclared = "pruned_without_evidence" // leaves are said to be pruned, and no event says so
	Format     = "format"                  // it can't be read
	Contradict = "filter"                  // a record, or an omitted event, contradicts the filter
	Incomplete = "incomplete"              // the export did not end
)

// Finding is a sign of tampering, or of damage.
type Finding struct {
	Kind   string   // one of the kinds
	Index  int64    // of the leaf; -1 when it is about no single one
	ID     string   // of the event, or ""
	Fields []string // that were altered, where that can be told
	Text   string   // a sentence for a person
}

// Error makes a finding an error, for who compares or proves.
func (f Finding) Error() string { return f.Kind + ": " + f.Text }

// Intent is a Started event whose end is not in the range.
type Intent struct {
	Index    int64
	ID       string
	Time     time.Time
	Action   string
	Resource string
}

// Range is a run of leaves that were pruned.
type PrunedRange struct {
	Begin, End int64
	Event      string // the id of the trail.prune event that declares it; "" when none in the bundle does
	Index      int64  // of that event; -1
}

// Report is what a verification found.
type Report struct {
	Origin string
	Size   int64     // of the checkpoint's tree
	Root   tlog.Hash // of that tree
	Begin  int64
	End    int64
	Format string
	Filter map[string]string

	Records     int64
	Omitted     int64 // leaves that the filter left out
	OmittedRuns int64
	Pruned      int64 // leaves that were pruned
	PrunedRuns  int64
	Unseen      int64     // of the omitted: shown by hashes only, so the filter can't be checked
	Undecided   int64     // of the omitted: shown, but the filter is over fields that a leaf hides
	First, Last time.Time // the earliest and the latest record; zero when there is none

	ErasedFields int64
	PrunedRanges []PrunedRange // at most 1000
	OpenIntents  []Intent      // at most 1000; in a filtered bundle their ends may be left out
	MoreIntents  bool          // there are more

	RootVerified bool      // the leaves give the root, and a trusted key signed it
	Findings     []Finding // at most Options.MaxFindings
	More         int64     // findings beyond these
	Others       []string  // files that are none of the bundle's, which nothing vouches for; at most 100
}

// OK reports whether nothing was found.
func (r *Report) OK() bool { return r.RootVerified && len(r.Findings) == 0 && r.More == 0 }

const (
	maxFindings = 100
	maxListed   = 1000
	maxOpen     = 100_000 // intents that are followed at a time
	maxPruned   = 1 << 20 // separate pruned runs that are checked
)

// findings collects a bounded number.
type findings struct {
	list  []Finding
	limit int
	more  int64
}

func (f *findings) add(x Finding) {
	if len(f.list) >= f.limit {
		f.more++
		return
	}
	f.list = append(f.list, x)
}

// about adds a finding about no single event.
func (f *findings) about(kind, format string, args ...any) {
	f.add(Finding{Kind: kind, Index: -1, Text: fmt.Sprintf(format, args...)})
}

// at adds a finding about an event.
func (f *findings) at(kind string, index int64, r *trail.Record, format string, args ...any) {
	x := Finding{Kind: kind, Index: index, Text: fmt.Sprintf(format, args...)}
	if r != nil {
		x.ID = clip(r.ID)
	}
	f.add(x)
}

func (f *findings) join(other *findings) {
	for _, x := range other.list {
		f.add(x)
	}
	f.more += other.more
}

// clip bounds what comes from a record that nothing vouches for.
func clip(s string) string {
	if len(s) > 80 {
		s = strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}

// run names leaves: "event 5", "events 5 to 9".
func run(begin, end int64) string {
	if end == begin+1 {
		return fmt.Sprintf("event %d", begin)
	}
	return fmt.Sprintf("events %d to %d", begin, end-1)
}

// span is the leaves [begin, end).
type span struct{ begin, end int64 }

// merge sorts spans and joins those that touch.
func merge(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int {
		if a.begin < b.begin {
			return -1
		}
		if a.begin > b.begin {
			return 1
		}
		return 0
	})
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && s.begin <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, s.end)
		} else {
			out = append(out, s)
		}
	}
	return out
}
