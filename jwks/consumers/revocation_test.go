package consumers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// plans is what `keyset revoke --dry-run -o json` answers.
type plans struct {
	Plans []struct {
		Mode        string
		Possible    bool
		Why         string
		Predictions []prediction
	}
}

type prediction struct {
	Profile           string
	Exposure          string // "61s"
	ExposureUnbounded bool
	Refusal           string
}

// bound is the longest time that a figure of a prediction allows; ok is false
// when there is no bound.
func (p prediction) bound(figure string) (d time.Duration, ok bool, err error) {
	if figure == p.Exposure && p.ExposureUnbounded {
		return 0, false, nil
	}
	if figure == "" {
		return 0, true, nil // proto3 JSON leaves out what is unset
	}
	d, err = time.ParseDuration(figure)
	return d, true, err
}

// revocation is what happened at one consumer after its keyset's active key was
// revoked.
type revocation struct {
	*member
	mode      string
	predicted prediction
	exposed   time.Duration // after the revocation, until the stolen token was last accepted
	evicted   bool          // it was refused before the watch ended
	refused   time.Duration // after the revocation, until a good new token was last refused
	refusals  int
	asked     int
}

// TestRevocationWhenConsumersAreReal is the promise "revoked means revoked":
// how long real verifiers go on accepting a stolen token, beside what was
// predicted before the revocation, in both modes. No verifier may exceed its
// prediction, and after the standby was promoted nobody may refuse a good token.
func TestRevocationWhenConsumersAreReal(t *testing.T) {
	if testing.Short() {
		t.Skip("a standby's lead and the watch after a revocation take three minutes")
	}
	t.Parallel()
	const (
		tokenTTL = 20 * time.Minute
		watch    = 90 * time.Second
		every    = 500 * time.Millisecond
		// Measuring asks twice a second, on a machine that does other things too.
		slack = 10 * time.Second
	)
	r := newRotunda(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()

	modes := []string{"standby", "fresh"}
	fleets, stolen := map[string][]*member{}, map[string]signed{}
	for _, mode := range modes {
		name := "stolen-" + mode
		r.create(t, name, "ES256", 720*time.Hour, tokenTTL)
		s, err := r.sign(ctx, name, tokenTTL)
		if err != nil {
			t.Fatal(err)
		}
		stolen[mode] = s
		fleets[mode] = newFleet(t, r, name, s)
	}
	predictions := map[string]map[string]prediction{}
	for _, mode := range modes {
		wait(t, "a plan to revoke with mode "+mode, 2*time.Minute, func() (bool, error) {
			var err error
			predictions[mode], err = r.plan(ctx, "stolen-"+mode, stolen[mode].kid, mode)
			return err == nil, err
		})
	}

	var revoked []*revocation
	var running sync.WaitGroup
	for _, mode := range modes {
		name := "stolen-" + mode
		if _, err := r.cli(ctx, "keyset", "revoke", name, stolen[mode].kid, "--mode", mode, "--reason", "key_compromise"); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		watching, stop := context.WithTimeout(ctx, watch)
		defer stop()
		good := newPool()
		running.Go(func() {
			each(watching, every, func() {
				s, err := r.sign(watching, name, tokenTTL)
				if watching.Err() != nil {
					return
				}
				if err != nil {
					t.Errorf("a token of %s was not signed after the revocation: %v", name, err)
					return
				}
				if s.kid == stolen[mode].kid {
					t.Errorf("%s still signs with the revoked key", name)
				}
				good.add(s)
			})
		})
		for _, m := range fleets[mode] {
			profile, _ := m.Profile()
			p, ok := predictions[mode][profile]
			if !ok {
				t.Errorf("the plan for mode %s predicts nothing for %s", mode, profile)
			}
			v := &revocation{member: m, mode: mode, predicted: p}
			revoked = append(revoked, v)
			running.Go(func() {
				each(watching, every, func() { v.observe(watching, t, at, stolen[mode], good) })
			})
		}
	}
	running.Wait()

	for _, v := range revoked {
		v.judge(t, slack)
	}
	printRevocations(t, revoked, watch)
}

// plan asks for the predictions of a mode, by profile. It is an error while the
// mode can't be used.
func (r *rotunda) plan(ctx context.Context, name, kid, mode string) (map[string]prediction, error) {
	out, err := r.cli(ctx, "keyset", "revoke", name, kid, "--mode", mode, "--reason", "key_compromise", "--dry-run", "-o", "json")
	if err != nil {
		return nil, err
	}
	var all plans
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("the plan for mode %s: %w: %s", mode, err, out)
	}
	for _, p := range all.Plans {
		if !strings.EqualFold(p.Mode, "REVOKE_MODE_"+mode) {
			continue
		}
		if !p.Possible {
			return nil, errors.New(p.Why)
		}
		predictions := map[string]prediction{}
		for _, q := range p.Predictions {
			predictions[q.Profile] = q
		}
		return predictions, nil
	}
	return nil, fmt.Errorf("no plan for mode %s in %s", mode, out)
}

// observe asks for the newest good token and then for the stolen one: traffic
// of both kinds reaches a verifier after a theft.
func (v *revocation) observe(ctx context.Context, t *testing.T, at time.Time, stolen signed, good *pool) {
	if tokens := good.sample(time.Minute, 0); len(tokens) > 0 {
		ok, _, err := v.Verify(ctx, tokens[0].token)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			t.Errorf("%s could not be asked: %v", v.Name(), err)
			return
		}
		v.asked++
		if !ok {
			v.refusals++
			v.refused = time.Since(at)
		}
	}
	ok, _, err := v.Verify(ctx, stolen.token)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		t.Errorf("%s could not be asked: %v", v.Name(), err)
		return
	}
	v.evicted = !ok
	if ok {
		v.exposed = time.Since(at)
	}
}

// judge compares what happened with what was predicted.
func (v *revocation) judge(t *testing.T, slack time.Duration) {
	if v.asked == 0 {
		t.Errorf("%s, mode %s: was asked for no new token", v.Name(), v.mode)
	}
	exposure, bounded, err := v.predicted.bound(v.predicted.Exposure)
	if err != nil {
		t.Errorf("%s, mode %s: exposure: %v", v.Name(), v.mode, err)
	}
	if bounded && v.exposed > exposure+slack {
		t.Errorf("%s, mode %s: accepted the stolen token for %s, predicted %s", v.Name(), v.mode, v.exposed, exposure)
	}
	refusal, _, err := v.predicted.bound(v.predicted.Refusal)
	if err != nil {
		t.Errorf("%s, mode %s: refusal: %v", v.Name(), v.mode, err)
	}
	if v.mode == "standby" {
		if v.refusals > 0 {
			t.Errorf("%s: refused %d good tokens after the standby was promoted", v.Name(), v.refusals)
		}
	} else if v.refused > refusal+slack {
		t.Errorf("%s, mode %s: refused good tokens for %s, predicted %s", v.Name(), v.mode, v.refused, refusal)
	}
}

func printRevocations(t *testing.T, all []*revocation, watch time.Duration) {
	t.Helper()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "consumer\tmode\tstolen accepted for\tpredicted\tgood refused for\tpredicted\tgood refused\tfetches")
	for _, v := range all {
		exposed, exposure, refusal := v.exposed.Round(100*time.Millisecond).String(), v.predicted.Exposure, v.predicted.Refusal
		if !v.evicted {
			exposed = "> " + watch.String()
		}
		if v.predicted.ExposureUnbounded {
			exposure = "unbounded"
		}
		if refusal == "" {
			refusal = "0s"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t<= %s\t%s\t<= %s\t%d of %d\t%d\n", v.Name(), v.mode, exposed, exposure,
			v.refused.Round(100*time.Millisecond), refusal, v.refusals, v.asked, v.fetches.Load())
	}
	w.Flush()
	t.Logf("consumers after a revocation, watched for %s\n%s", watch, &b)
}
