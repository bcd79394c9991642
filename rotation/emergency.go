package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// streamPage is how many rows are read in one transaction by what reads them all.
const streamPage = 1000

// EmergencyItem is one credential of an emergency's plan.
type EmergencyItem struct {
	Credential string
	Target     string
	Stores     []Placement
	Skip       string        // why it will be passed over, in lower_snake; empty: it is rotated
	Why        string        // Skip in words, and what to do
	Starts     time.Duration // after the beginning, by the quotas
}

// EmergencyLoad is what an emergency asks of one store or target.
type EmergencyLoad struct {
	Sort      Sort
	Name      string
	Rotations int64
	PerSecond float64       // how many its quota has room for; 0: no quota is known
	Takes     time.Duration // Rotations at that pace; 0: not known
}

// EmergencyPlan says what an emergency would do. Making it changes nothing.
type EmergencyPlan struct {
	Selector Selector
	Grace    time.Duration
	Count    int64            // credentials selected
	Rotate   int64            // of which are rotated
	Skip     map[string]int64 // of which are passed over, by reason
	Loads    []EmergencyLoad  // the slowest first
	Takes    time.Duration    // the longest of Loads: no less than this
	Hash     string           // of the selection, its order and Grace
	Items    []EmergencyItem  // one page, in the order of the runs
	NextPage string
}

// selectedCredential is a credential with what may keep it from being rotated.
type selectedCredential struct {
	*Credential
	failed  string // a run that waits for a person
	unended int64
}

// skip says why a credential is passed over.
func (s *selectedCredential) skip() (reason, why string) {
	switch {
	case s.tampered:
		return "tampered", "its row is not as Rotunda wrote it: restore it from a backup"
	case s.failed != "":
		return "rotation_failed", "rotation " + s.failed + " failed and waits for a person: retry it, roll it back or abandon it"
	case s.unended > 1:
		return "is_queued", "a rotation of it waits already for the one under way"
	case s.Generation == 0 && !s.Adopt:
		return "no_value", "it was never rotated: there is no value of ours that could be in the wrong hands"
	}
	return "", ""
}

// selected returns up to limit credentials of a selection by name, after a name.
func (in *Incidents) selected(ctx context.Context, tx *store.Tx, s Selector, after string, limit int) (list []*selectedCredential, err error) {
	where, args := ListCredentials{Store: s.Store, Target: s.Target, Labels: s.Labels, Page: after}.where()
	if len(s.Credentials) > 0 {
		at, _ := slices.BinarySearch(s.Credentials, after+"\x00")
		names := s.Credentials[at:]
		if len(names) == 0 {
			return nil, nil
		}
		marks := make([]string, len(names))
		for i, name := range names {
			args = append(args, name)
			marks[i] = fmt.Sprintf("$%d", len(args))
		}
		where += ` AND c.name IN (` + strings.Join(marks, ", ") + `)`
	}
	columns := "c." + strings.Join(strings.Fields(credentialColumns), " c.")
	rows, err := tx.Query(ctx, `SELECT `+columns+`,
			COALESCE((SELECT MIN(r.id) FROM rotations r WHERE r.credential = c.name AND r.ended_at = 0 AND r.step = 'failed'), ''),
			(SELECT COUNT(*) FROM rotations r WHERE r.credential = c.name AND r.ended_at = 0)
		FROM credentials c WHERE `+where+fmt.Sprintf(` ORDER BY c.name LIMIT %d`, limit), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		s := &selectedCredential{}
		s.Credential, err = in.creds.systems.scanCredential(withMore{rows, []any{&s.failed, &s.unended}})
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, rows.Err()
}

// withMore scans columns after those that its caller asks for.
type withMore struct {
	row  interface{ Scan(...any) error }
	more []any
}

func (w withMore) Scan(into ...any) error { return w.row.Scan(append(into, w.more...)...) }

// PlanEmergency says what StartEmergency would do, with the page of up to limit (1 to 1,000)
// items after a credential's name. Credentials that are named and not there are fault.ErrNotFound.
func (in *Incidents) PlanEmergency(ctx context.Context, s Selector, grace time.Duration, page string, limit int) (*EmergencyPlan, error) {
	s, err := s.checked()
	if err == nil {
		err = checkPage(page, limit)
	}
	if err == nil && (grace < 0 || grace > maxGrace) {
		err = fault.Invalid("grace", "grace_range", "the grace %s is outside 0 to %s", grace, maxGrace)
	}
	if err != nil {
		return nil, fmt.Errorf("plan an emergency: %w", err)
	}
	grace = grace.Truncate(time.Microsecond)
	p := &EmergencyPlan{Selector: s, Grace: grace, Skip: map[string]int64{}}
	selector, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "rotunda emergency plan 1\n%s\n%d\n", selector, grace.Microseconds())
	rates, err := in.creds.systems.rates(ctx)
	if err != nil {
		return nil, fmt.Errorf("plan an emergency: %w", err)
	}
	counts := map[systemName]int64{}
	for after := ""; ; {
		var batch []*selectedCredential
		err := in.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
			batch, err = in.selected(ctx, tx, s, after, streamPage)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("plan an emergency: %w", err)
		}
		for _, c := range batch {
			item := EmergencyItem{Credential: c.Name, Target: c.Target, Stores: c.Stores}
			item.Skip, item.Why = c.skip()
			fmt.Fprintf(hash, "%s %s %s\n", c.Name, c.Target, item.Skip)
			p.Count++
			if item.Skip != "" {
				p.Skip[item.Skip]++
			} else {
				p.Rotate++
				for _, name := range c.systems() {
					if rate := rates[name]; rate > 0 {
						item.Starts = max(item.Starts, seconds(float64(counts[name])/rate))
					}
					counts[name]++
				}
			}
			switch {
			case c.Name <= page:
			case len(p.Items) < limit:
				p.Items = append(p.Items, item)
			default:
				p.NextPage = p.Items[limit-1].Credential
			}
			after = c.Name
		}
		if len(batch) < streamPage {
			break
		}
	}
	if n := len(s.Credentials); n > 0 && p.Count < int64(n) {
		return nil, fault.New(fault.ErrNotFound, "credential_not_found", "plan an emergency: %d of the %d credentials that are named do not exist: see `rotunda credential list`", int64(n)-p.Count, n).On("selector.credentials")
	}
	for name, n := range counts {
		load := EmergencyLoad{Sort: name.sort, Name: name.name, Rotations: n, PerSecond: rates[name]}
		if load.PerSecond > 0 {
			load.Takes = seconds(float64(n) / load.PerSecond)
		}
		p.Takes = max(p.Takes, load.Takes)
		p.Loads = append(p.Loads, load)
	}
	slices.SortFunc(p.Loads, func(a, b EmergencyLoad) int {
		if d := compareMost(int64(a.Takes), int64(b.Takes)); d != 0 {
			return d
		}
		if d := compareMost(a.Rotations, b.Rotations); d != 0 {
			return d
		}
		return strings.Compare(string(a.Sort)+a.Name, string(b.Sort)+b.Name)
	})
	p.Hash = hex.EncodeToString(hash.Sum(nil))
	return p, nil
}

// compareMost sorts the larger one first.
func compareMost(a, b int64) int {
	switch {
	case a > b:
		return -1
	case a < b:
		return 1
	}
	return 0
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

type systemName struct {
	sort Sort
	name string
}

// systems are the target and the stores of a credential, each once.
func (c *Credential) systems() []systemName {
	list := []systemName{{TargetSort, c.Target}}
	for _, p := range c.Stores {
		if n := (systemName{StoreSort, p.Store}); !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}

// rates are the rotations a second that the quotas of stores have room for; those without a quota
// are not there.
func (s *Systems) rates(ctx context.Context) (map[systemName]float64, error) {
	rates := map[systemName]float64{}
	for page := ""; ; {
		list, next, err := s.List(ctx, StoreSort, page, streamPage)
		if err != nil {
			return nil, err
		}
		for _, st := range list {
			kind, err := s.storeKind(st.Kind)
			if err != nil {
				continue // of a release that had it
			}
			if q := kind.Traits.Quota; q > 0 {
				rates[systemName{StoreSort, st.Name}] = q / float64(max(1, kind.Traits.WritesPerRotation))
			}
		}
		if page = next; page == "" {
			return rates, nil
		}
	}
}
