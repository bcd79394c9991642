package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	sumnote "golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/proto"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// testLog is a log with real hashes and signatures.
type testLog struct {
	origin    string
	records   []trail.Record
	stored    []tlog.Hash
	signer    sumnote.Signer
	keys      []string
	handovers []string
	pruned    int64    // events below it are gone
	late      []string // evidence of what was pruned since the export began
	batch     int      // records in a message
	// fail is called before each record is sent; its error ends the stream.
	fail func(index int64) error
	mu   sync.Mutex // of fail, once the server runs: the end of a client is not the end of its stream
}

// heal ends failures.
func (l *testLog) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = nil
}

func (l *testLog) failing() func(int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fail
}

const sampleOrigin = "trail.example.com/rotunda"

// testSigner returns the key that a seed gives, as signer and vkey.
func testSigner(name, seed string) (sumnote.Signer, string) {
	sum := sha256.Sum256([]byte(seed))
	private := ed25519.NewKeyFromSeed(sum[:])
	vkey, err := sumnote.NewEd25519VerifierKey(name, private.Public().(ed25519.PublicKey))
	if err != nil {
		panic(err)
	}
	hash := strings.Split(vkey, "+")[1]
	s, err := sumnote.NewSigner("PRIVATE+KEY+" + name + "+" + hash + "+" + base64.StdEncoding.EncodeToString(append([]byte{1}, sum[:]...)))
	if err != nil {
		panic(err)
	}
	return s, vkey
}

// sampleLog is a log of n events that are the same in each run.
func sampleLog(n int) *testLog {
	l := &testLog{origin: sampleOrigin, batch: 3}
	var vkey string
	l.signer, vkey = testSigner(l.origin, "one")
	l.keys = []string{vkey}
	for range n {
		l.grow(l.sample(l.size()))
	}
	return l
}

func eventID(i int64) string { return fmt.Sprintf("0191f3c2-7a64-7c0e-8a55-%012x", i) }

func (l *testLog) sample(i int64) trail.Event {
	salt := sha256.Sum256([]byte(strconv.FormatInt(i, 10)))
	e := trail.Event{
		ID: eventID(i), Time: testNow.Add(time.Duration(i-9) * time.Hour), Actor: "4fKq3w2xYd5sRt9u", Action: "keyset.create", Resource: "keysets/payments",
		Outcome: "ok", Address: "203.0.113.9", RequestID: "req-" + strconv.FormatInt(i, 10), Detail: `{"algorithm":"ES256"}`, Count: 1, Salt: salt[:trail.SeedSize],
	}
	switch i % 9 {
	case 1:
		e.Actor, e.Action, e.Resource, e.Address, e.RequestID, e.Detail = "rotunda", "signing_key.active", "keysets/payments/keys/k1", "", "", "{}"
	case 2:
		e.Action, e.Outcome, e.Reason, e.Count = "keyset.rotate", "denied", "role", 3
	case 3, 5:
		e.Action, e.Resource, e.Outcome, e.Partner = "store.write", "credentials/db", "started", "acme"
	case 4:
		e.Action, e.Resource, e.Intent, e.Partner = "store.write", "credentials/db", eventID(i-1), "acme"
	case 6:
		e.Action, e.Resource, e.Partner = "token.create", "tokens/4fKq3w2xYd5sRt9u", "acme"
	}
	return e
}

func (l *testLog) size() int64 { return int64(len(l.records)) }

func (l *testLog) reader() tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, n := range indexes {
			if n >= int64(len(l.stored)) {
				return nil, errors.New("no such hash")
			}
			out[i] = l.stored[n]
		}
		return out, nil
	})
}

// grow adds an event to the log.
func (l *testLog) grow(e trail.Event) {
	e.Checks = e.MakeChecks()
	h, err := e.Hash()
	if err != nil {
		panic(err)
	}
	hashes, err := tlog.StoredHashesForRecordHash(l.size(), h, l.reader())
	if err != nil {
		panic(err)
	}
	l.records = append(l.records, trail.Record{Event: e, Origin: l.origin, Index: l.size(), Hash: h})
	l.stored = append(l.stored, hashes...)
}

func (l *testLog) root(size int64) tlog.Hash {
	h, err := tlog.TreeHash(size, l.reader())
	if err != nil {
		panic(err)
	}
	return h
}

func (l *testLog) checkpoint(size int64) string {
	signed, err := sumnote.Sign(&sumnote.Note{Text: trail.Checkpoint{Origin: l.origin, Size: size, Root: l.root(size)}.Text()}, l.signer)
	if err != nil {
		panic(err)
	}
	return string(signed)
}

// handOver goes on with another key, and under another name when that differs.
func (l *testLog) handOver(origin, seed string) {
	next, vkey := testSigner(origin, seed)
	h := trail.Handover{Origin: origin, From: l.keys[len(l.keys)-1], To: vkey, Size: l.size()}
	signed, err := sumnote.Sign(&sumnote.Note{Text: h.Text()}, l.signer, next)
	if err != nil {
		panic(err)
	}
	l.signer, l.keys, l.handovers, l.origin = next, append(l.keys, vkey), append(l.handovers, string(signed)), origin
	for i := range l.records {
		l.records[i].Origin = origin
	}
}

func (l *testLog) nodes(begin, end int64) (out [][]byte) {
	for _, n := range trail.RangeNodes(begin, end) {
		h := l.stored[tlog.StoredHashIndex(n.Level, n.Index)]
		out = append(out, h[:])
	}
	return out
}

func (l *testLog) consistency(old, size int64) (out [][]byte) {
	if old == 0 || old == size {
		return nil
	}
	proof, err := tlog.ProveTree(size, old, l.reader())
	if err != nil {
		panic(err)
	}
	for _, h := range proof {
		out = append(out, h[:])
	}
	return out
}

func (l *testLog) prove(i int64) string {
	extra, err := format.AppendJSON(nil, &l.records[i])
	if err != nil {
		panic(err)
	}
	hashes, err := tlog.ProveRecord(l.size(), i, l.reader())
	if err != nil {
		panic(err)
	}
	text, err := trail.FormatProof(trail.Proof{Extra: extra, Index: i, Hashes: hashes, Checkpoint: l.checkpoint(l.size())})
	if err != nil {
		panic(err)
	}
	return text
}

func (l *testLog) event(i int64) *v1.Event { return l.record(i).GetEvent() }

func (l *testLog) record(i int64) *v1.Record {
	r := &l.records[i]
	m := &v1.Record{Hash: r.Hash[:], Detail: r.Detail, Salt: r.Salt, Checks: r.Checks, TimeMicros: r.Time.UnixMicro(), Event: &v1.Event{
		Id: r.ID, Time: at(r.Time.Sub(testNow)), Actor: r.Actor, Action: r.Action, Resource: r.Resource, Partner: r.Partner, Outcome: r.Outcome, Reason: r.Reason,
		RequestId: r.RequestID, Address: r.Address, Detail: r.Detail, Count: r.Count, Index: r.Index, Intent: r.Intent,
	}}
	for f := range trail.NumFields {
		if r.IsErased(f) {
			if m.Erased == nil {
				m.Erased = map[string][]byte{}
			}
			m.Erased[f.String()] = r.Erased[f][:]
			m.Event.Erased = append(m.Event.Erased, f.String())
		}
	}
	return m
}

// matches is what a server's filter does.
func (l *testLog) matches(f *v1.Filter, r *trail.Record) bool {
	part := func(want, is, sep string) bool {
		return want == "" || want == is || strings.HasSuffix(want, sep) && strings.HasPrefix(is, want)
	}
	return part(f.GetAction(), r.Action, ".") && part(f.GetResource(), r.Resource, "/") && part(f.GetPartner(), r.Partner, "\x00") && part(f.GetOutcome(), r.Outcome, "\x00") &&
		part(f.GetActor(), r.Actor, "\x00") && (f.GetSince() == nil || !r.Time.Before(f.GetSince().AsTime())) && (f.GetUntil() == nil || r.Time.Before(f.GetUntil().AsTime()))
}

// export is what the server's ExportEvents does.
func (l *testLog) export(req *v1.ExportEventsRequest, stream *connect.ServerStream[v1.ExportEventsResponse]) error {
	size := l.size()
	if req.GetSize() > 0 {
		size = req.GetSize()
	}
	begin, end := int64(0), size
	for end > 0 && req.GetFilter().GetUntil() != nil && !l.records[end-1].Time.Before(req.GetFilter().GetUntil().AsTime()) {
		end--
	}
	for begin < end && req.GetFilter().GetSince() != nil && l.records[begin].Time.Before(req.GetFilter().GetSince().AsTime()) {
		begin++
	}
	head := &v1.ExportHead{
		Origin: l.origin, Checkpoint: l.checkpoint(size), Keys: l.keys, Handovers: l.handovers, Begin: begin, End: end,
		Left: l.nodes(0, begin), Right: l.nodes(end, size), Filter: conditions(req.GetFilter()),
	}
	for i := end; i < size; i++ {
		if l.records[i].Action == bundle.PruneAction {
			head.Evidence = append(head.Evidence, l.prove(i))
		}
	}
	head.Evidence = append(head.Evidence, l.late...)
	if err := stream.Send(&v1.ExportEventsResponse{Item: &v1.ExportEventsResponse_Head{Head: head}}); err != nil {
		return err
	}
	var items []*v1.ExportItem
	flush := func() error {
		if len(items) == 0 {
			return nil
		}
		err := stream.Send(&v1.ExportEventsResponse{Item: &v1.ExportEventsResponse_Items{Items: &v1.ExportItems{Items: items}}})
		items = nil
		return err
	}
	gone := func(i int64) string {
		switch {
		case i < l.pruned:
			return bundle.Pruned
		case !l.matches(req.GetFilter(), &l.records[i]):
			return bundle.Filtered
		}
		return ""
	}
	for i := max(begin, req.GetIndex()); i < end; {
		if fail := l.failing(); fail != nil {
			if err := fail(i); err != nil {
				return errors.Join(flush(), err)
			}
		}
		why, to := gone(i), i+1
		if why == "" {
			items = append(items, &v1.ExportItem{Item: &v1.ExportItem_Record{Record: l.record(i)}})
		} else {
			for to < end && gone(to) == why {
				to++
			}
			g := &v1.Gap{Begin: i, End: to, Why: why}
			if req.GetOmitted() && why == bundle.Filtered {
				for n := i; n < to; n++ {
					leaf, err := l.records[n].Leaf()
					if err != nil {
						return err
					}
					raw, err := leaf.Encode()
					if err != nil {
						return err
					}
					g.Entries = append(g.Entries, raw)
				}
			} else {
				g.Hashes = l.nodes(i, to)
			}
			items = append(items, &v1.ExportItem{Item: &v1.ExportItem_Gap{Gap: g}})
		}
		if i = to; len(items) >= l.batch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// reply is what the server's other calls do.
func (l *testLog) reply(_ context.Context, req proto.Message) (proto.Message, error) {
	switch req := req.(type) {
	case *v1.GetCheckpointRequest:
		return &v1.GetCheckpointResponse{Checkpoint: l.checkpoint(l.size())}, nil
	case *v1.ProveConsistencyRequest:
		return &v1.ProveConsistencyResponse{Hashes: l.consistency(req.GetOldSize(), req.GetNewSize()), Checkpoint: l.checkpoint(req.GetNewSize())}, nil
	case *v1.ListTrailKeysRequest:
		return &v1.ListTrailKeysResponse{Keys: l.keys, Handovers: l.handovers}, nil
	case *v1.ListEventsRequest:
		res := &v1.ListEventsResponse{}
		f := &v1.Filter{Action: req.GetAction(), Outcome: req.GetOutcome()}
		for i := l.size() - 1; i >= l.pruned; i-- {
			if l.matches(f, &l.records[i]) {
				res.Events = append(res.Events, l.event(i))
			}
		}
		return res, nil
	case *v1.ProveEventRequest:
		for i := range l.records {
			if l.records[i].ID == req.GetId() {
				return &v1.ProveEventResponse{Proof: l.prove(int64(i))}, nil
			}
		}
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such event"))
	}
	return nil, nil
}
