package trail

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"
)

// The outcomes of an event.
const (
	OK      = "ok"
	Denied  = "denied"
	Started = "started" // an intent: an external effect is about to be tried
	Failed  = "failed"  // the end of an intent that did not succeed
)

var outcomes = [...]string{1: OK, 2: Denied, 3: Started, 4: Failed}

// Bounds of an event, in bytes. Larger ones are not leaves.
const (
	MaxText   = 1024
	MaxDetail = 16 << 10
)

// Field is one of the committed fields: those that may be erased. Its value is
// its number in the encoding.
type Field byte

// The committed fields, in the order of the leaf.
const (
	Actor Field = iota
	Partner
	Reason
	RequestID
	Address
	Detail
	NumFields
)

var fieldNames = [NumFields]string{"actor", "partner", "reason", "request_id", "address", "detail"}

// String returns the field's name in exports and messages: "request_id".
func (f Field) String() string {
	if f >= NumFields {
		return fmt.Sprintf("field %d", byte(f))
	}
	return fieldNames[f]
}

// ParseField is the inverse of String.
func ParseField(name string) (Field, bool) {
	for f, n := range fieldNames {
		if n == name {
			return Field(f), true
		}
	}
	return 0, false
}

// Sizes of what hides a committed field. An event's salt has SeedSize bytes, or
// SaltsSize once a field was erased.
const (
	SeedSize  = 16
	SaltsSize = int(NumFields) * SeedSize
)

// Event is one entry of the trail, with what opens its commitments.
type Event struct {
	ID        string    // a UUID in lower-case text form
	Time      time.Time // whole microseconds
	Actor     string    // a token's id, "anonymous", or "rotunda" for the scheduler
	Action    string    // "keyset.create"
	Resource  string    // "keysets/payments"; names no person
	Partner   string
	Outcome   string // OK, Denied, Started or Failed
	Reason    string
	RequestID string
	Address   string
	Detail    string // a JSON object, as text; "{}" when empty
	Count     int64  // equal attempts that this event stands for; at least 1
	Intent    string // the id of the Started event that this one ends, or ""

	Salt   []byte               // SeedSize or SaltsSize bytes
	Erased [NumFields]tlog.Hash // the commitment of each erased field, whose value is ""; zero: not erased
	Checks []byte               // ChecksSize bytes, or nil: tells which field an alteration hit
}

// NewSeed returns the salt of a new event.
func NewSeed() []byte {
	b := make([]byte, SeedSize)
	_, _ = rand.Read(b) // never fails: it crashes the program instead
	return b
}

// Value returns the value of a committed field.
func (e *Event) Value(f Field) string { return *e.value(f) }

func (e *Event) value(f Field) *string {
	return [NumFields]*string{&e.Actor, &e.Partner, &e.Reason, &e.RequestID, &e.Address, &e.Detail}[f]
}

// IsErased reports whether a field was erased.
func (e *Event) IsErased(f Field) bool { return e.Erased[f] != tlog.Hash{} }

// Erase removes the values of fields and what opens their commitments. The
// event's leaf stays as it is. Empty and erased fields are left alone.
func (e *Event) Erase(fields ...Field) error {
	if err := e.checkSalt(); err != nil {
		return err
	}
	salts := make([]byte, SaltsSize)
	for f := range NumFields {
		if !e.IsErased(f) {
			s := e.salt(f)
			copy(salts[int(f)*SeedSize:], s[:])
		}
	}
	for _, f := range fields {
		if f >= NumFields {
			return fmt.Errorf("erase %v: there is no such field", f)
		}
		v := e.value(f)
		if *v == "" || e.IsErased(f) || f == Detail && *v == "{}" {
			continue
		}
		e.Erased[f] = e.commitment(f)
		*v = ""
		clear(salts[int(f)*SeedSize : (int(f)+1)*SeedSize])
	}
	e.Salt = salts
	return nil
}

// salt returns the salt of one field.
func (e *Event) salt(f Field) (s [SeedSize]byte) {
	if len(e.Salt) == SaltsSize {
		copy(s[:], e.Salt[int(f)*SeedSize:])
		return s
	}
	var in [2 + SeedSize]byte
	in[0], in[1] = 0x03, byte(f)
	copy(in[2:], e.Salt)
	sum := sha256.Sum256(in[:])
	copy(s[:], sum[:])
	return s
}

// commitment returns what stands for a field in the leaf: zero for an empty
// field, SHA-256(0x02 ‖ field ‖ salt ‖ value) for others.
func (e *Event) commitment(f Field) tlog.Hash {
	if e.IsErased(f) {
		return e.Erased[f]
	}
	v := *e.value(f)
	if v == "" || f == Detail && v == "{}" {
		return tlog.Hash{}
	}
	s := e.salt(f)
	var small [128]byte
	b := append(small[:0], 0x02, byte(f))
	b = append(b, s[:]...)
	b = append(b, v...)
	return sha256.Sum256(b)
}

func (e *Event) checkSalt() error {
	if len(e.Salt) != SeedSize && len(e.Salt) != SaltsSize {
		return fmt.Errorf("its salt has %d bytes, want %d or %d", len(e.Salt), SeedSize, SaltsSize)
	}
	return nil
}

// Leaf is what the tree holds of an event: the clear fields, and a commitment
// for each of the others (zero: the field is empty).
type Leaf struct {
	ID          string
	Time        time.Time
	Action      string
	Resource    string
	Outcome     string
	Count       int64
	Intent      string
	Commitments [NumFields]tlog.Hash
}

const leafVersion = 1

// Leaf returns the event's leaf. It fails for an event that is out of bounds.
func (e *Event) Leaf() (Leaf, error) {
	l := Leaf{ID: e.ID, Time: e.Time, Action: e.Action, Resource: e.Resource, Outcome: e.Outcome, Count: e.Count, Intent: e.Intent}
	if err := e.checkSalt(); err != nil {
		return l, err
	}
	for f := range NumFields {
		v := *e.value(f)
		limit := MaxText
		if f == Detail {
			limit = MaxDetail
		}
		switch {
		case e.IsErased(f) && v != "":
			return l, fmt.Errorf("%v is erased, and has a value all the same", f)
		case len(v) > limit || !utf8.ValidString(v):
			return l, fmt.Errorf("%v is not UTF-8 of at most %d bytes", f, limit)
		case v == "" && f == Detail && !e.IsErased(f):
			return l, errors.New("detail is no JSON object")
		}
		l.Commitments[f] = e.commitment(f)
	}
	return l, nil
}

// Encode returns the canonical bytes of a leaf: what the tree's record hash is
// taken of, and what an entry bundle holds. Numbers are big-endian.
//
//	1   version: 0x01
//	16  id: the UUID's bytes
//	8   time: microseconds since 1970, signed
//	1   outcome: 1 ok, 2 denied, 3 started, 4 failed
//	8   count, unsigned, at least 1
//	16  intent: the UUID's bytes; all zero when it ends no intent
//	2+n action: its length, then UTF-8
//	2+n resource: likewise
//	192 the commitments of actor, partner, reason, request_id, address, detail
func (l *Leaf) Encode() ([]byte, error) {
	b := make([]byte, 0, 320)
	b = append(b, leafVersion)
	b, err := appendUUID(b, l.ID)
	if err != nil {
		return nil, fmt.Errorf("id: %w", err)
	}
	us := l.Time.UnixMicro()
	if !time.UnixMicro(us).Equal(l.Time) {
		return nil, errors.New("time has a fraction of a microsecond")
	}
	b = binary.BigEndian.AppendUint64(b, uint64(us))
	o := outcomeNumber(l.Outcome)
	if o == 0 {
		return nil, fmt.Errorf("outcome %.20q is none of ok, denied, started and failed", l.Outcome)
	}
	b = append(b, o)
	if l.Count < 1 {
		return nil, fmt.Errorf("count %d is less than 1", l.Count)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(l.Count))
	if l.Intent == "" {
		b = append(b, make([]byte, 16)...)
	} else if b, err = appendUUID(b, l.Intent); err != nil || l.Intent == nilUUID {
		return nil, errors.New("intent is no UUID")
	}
	if l.Action == "" {
		return nil, errors.New("action is empty")
	}
	for _, t := range []struct{ name, text string }{{"action", l.Action}, {"resource", l.Resource}} {
		if len(t.text) > MaxText || !utf8.ValidString(t.text) {
			return nil, fmt.Errorf("%s is not UTF-8 of at most %d bytes", t.name, MaxText)
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(t.text)))
		b = append(b, t.text...)
	}
	for _, c := range l.Commitments {
		b = append(b, c[:]...)
	}
	return b, nil
}

// ParseLeaf reads what Encode wrote, and nothing else: there is one encoding of
// each leaf.
func ParseLeaf(b []byte) (Leaf, error) {
	var l Leaf
	errCut := errors.New("the leaf is cut short")
	if len(b) < 1+16+8+1+8+16 {
		return l, errCut
	}
	if b[0] != leafVersion {
		return l, fmt.Errorf("the leaf has version %d, and this program knows %d: a newer one may have written it", b[0], leafVersion)
	}
	l.ID, b = uuidText(b[1:17]), b[17:]
	l.Time, b = time.UnixMicro(int64(binary.BigEndian.Uint64(b))).UTC(), b[8:]
	if int(b[0]) >= len(outcomes) || outcomes[b[0]] == "" {
		return l, fmt.Errorf("the leaf has an unknown outcome %d", b[0])
	}
	l.Outcome, b = outcomes[b[0]], b[1:]
	count := binary.BigEndian.Uint64(b)
	if count < 1 || count > 1<<63-1 {
		return l, fmt.Errorf("the leaf has count %d", count)
	}
	l.Count, b = int64(count), b[8:]
	if l.Intent, b = uuidText(b[:16]), b[16:]; l.Intent == nilUUID {
		l.Intent = ""
	}
	for _, to := range []*string{&l.Action, &l.Resource} {
		if len(b) < 2 {
			return l, errCut
		}
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; len(b) < n {
			return l, errCut
		}
		*to, b = string(b[:n]), b[n:]
		if n > MaxText || !utf8.ValidString(*to) {
			return l, errors.New("the leaf has a text that is no UTF-8, or too long")
		}
	}
	if l.Action == "" {
		return l, errors.New("the leaf has no action")
	}
	if len(b) != int(NumFields)*tlog.HashSize {
		return l, errors.New("the leaf is cut short, or has something behind its end")
	}
	for f := range l.Commitments {
		copy(l.Commitments[f][:], b[f*tlog.HashSize:])
	}
	return l, nil
}

// Hash returns the event's leaf hash in the tree (RFC 6962, section 2.1).
func (e *Event) Hash() (tlog.Hash, error) {
	l, err := e.Leaf()
	if err != nil {
		return tlog.Hash{}, err
	}
	b, err := l.Encode()
	if err != nil {
		return tlog.Hash{}, err
	}
	return tlog.RecordHash(b), nil
}

// Commit returns the event's leaf hash and its checks. It is Hash and MakeChecks,
// with each commitment made once.
func (e *Event) Commit() (hash tlog.Hash, checks []byte, err error) {
	l, err := e.Leaf()
	if err != nil {
		return hash, nil, err
	}
	b, err := l.Encode()
	if err != nil {
		return hash, nil, err
	}
	return tlog.RecordHash(b), e.makeChecks(&l.Commitments), nil
}

// ChecksSize is the length of an event's checks: four bytes for each clear field
// (id, time, action, resource, outcome, count, intent), then for each committed one.
const ChecksSize = 4 * (numClear + int(NumFields))

const numClear = 7

var clearNames = [numClear]string{"id", "time", "action", "resource", "outcome", "count", "intent"}

// MakeChecks returns the event's checks: the CRC-32C of each clear field, and the
// first four bytes of each commitment. They prove nothing; they let a verifier
// say which field differs once the leaf hash has shown that one does.
func (e *Event) MakeChecks() []byte {
	var commitments [NumFields]tlog.Hash
	for f := range NumFields {
		commitments[f] = e.commitment(f)
	}
	return e.makeChecks(&commitments)
}

func (e *Event) makeChecks(commitments *[NumFields]tlog.Hash) []byte {
	b := make([]byte, 0, ChecksSize)
	var n [8]byte
	number := func(v int64) []byte {
		binary.BigEndian.PutUint64(n[:], uint64(v))
		return n[:]
	}
	crc := func(v []byte) { b = binary.BigEndian.AppendUint32(b, crc32.Checksum(v, castagnoli)) }
	crc([]byte(e.ID))
	crc(number(e.Time.UnixMicro()))
	crc([]byte(e.Action))
	crc([]byte(e.Resource))
	crc([]byte(e.Outcome))
	crc(number(e.Count))
	crc([]byte(e.Intent))
	for _, c := range commitments {
		b = append(b, c[:4]...)
	}
	return b
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Differs names the fields that are not what the checks say: "address". Empty
// when the checks are missing, or were altered with the fields.
func (e *Event) Differs() []string {
	if len(e.Checks) != ChecksSize || e.checkSalt() != nil {
		return nil
	}
	var names []string
	now := e.MakeChecks()
	for i := 0; i < ChecksSize; i += 4 {
		if string(now[i:i+4]) != string(e.Checks[i:i+4]) {
			if f := i / 4; f < numClear {
				names = append(names, clearNames[f])
			} else {
				names = append(names, Field(f-numClear).String())
			}
		}
	}
	return names
}

// Record is an event at its place in a log.
type Record struct {
	Event
	Origin string    // the log's name: the first line of its checkpoints
	Index  int64     // its leaf index
	Hash   tlog.Hash // its leaf hash, as the tree has it
}

const nilUUID = "00000000-0000-0000-0000-000000000000"

func appendUUID(b []byte, id string) ([]byte, error) {
	if len(id) != 36 || id[8] != '-' || id[13] != '-' || id[18] != '-' || id[23] != '-' || strings.ToLower(id) != id {
		return nil, fmt.Errorf("%.40q is no UUID in lower case", id)
	}
	raw, err := hex.DecodeString(id[:8] + id[9:13] + id[14:18] + id[19:23] + id[24:])
	if err != nil {
		return nil, fmt.Errorf("%.40q is no UUID", id)
	}
	return append(b, raw...), nil
}

func uuidText(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func outcomeNumber(name string) byte {
	for n, o := range outcomes {
		if o == name && n > 0 {
			return byte(n)
		}
	}
	return 0
}
