// Package format writes the records of Rotunda's trail in the five formats of
// exports, and reads them back. It uses no server, no network and no database.
//
// # Model
//
// Every format holds every field of a [trail.Record], so that the record which
// is read is, byte for byte, the one that was written, and its leaf hash can be
// computed again. There is one way to write a record in a format. The readers
// of text decode a line, write the record again and compare: whatever was
// altered in a line is noticed, in the parts that are there for people and
// other programs as well (the severity of cef, the message of ocsf), and the
// error names the member, the column or the key. In parquet each column is a
// field; what was altered there shows when the leaf hash is compared, which is
// left to who verifies.
//
// Nothing is cut, replaced or left out to make a record fit. A record that does
// not fit (text that is not UTF-8 or longer than [trail.MaxText], a detail that
// is no JSON object, a time with nanoseconds) is refused by the writer.
//
// # Fields
//
// The names are those of the columns of csv and parquet, and of the members of
// jsonl.
//
//	origin      the log's name
//	index       leaf index in the log
//	hash        leaf hash, 32 bytes
//	id          the event's UUID
//	time        to the microsecond
//	action      "keyset.create"
//	resource    "keysets/payments"
//	outcome     ok, denied, started or failed
//	count       equal attempts that the event stands for
//	actor, partner, reason, request_id, address, detail
//	            what may be erased; detail is a JSON object
//	intent      the id of the started event that this one ends
//	salt        what opens the commitments, 16 or 96 bytes
//	checks      what tells which field was altered, 52 bytes, or nothing
//	erased_…    the commitment of an erased field, 32 bytes
//
// # jsonl
//
// One JSON object a line, in compact form, its members in the order above.
// Always there: origin to count. Left out when empty: the others. Bytes are
// base64, time is RFC 3339 with six digits and Z, detail is the object itself,
// erased is an object of the erased fields. Control characters, DEL, U+2028 and
// U+2029 are escaped.
//
// # csv
//
// RFC 4180 with a first line of names and all 24 columns; lines end with CR LF.
// Bytes and times are written as in jsonl. A cell that a spreadsheet may take
// for a formula (it begins with = + - @ or their full-width forms, also behind
// white space, or with a tab, CR or LF) gets an apostrophe before it, and so
// does one that begins with an apostrophe: to undo it, take one apostrophe off.
//
// # cef
//
// ArcSight's Common Event Format, version 0:
//
//	CEF:0|Rotunda|Rotunda|1|<action>|<name>|<severity>|<extension>
//
//	rt              time in milliseconds since 1970
//	rotundaTime     time in microseconds since 1970
//	externalId      id
//	outcome, reason outcome, reason
//	cnt             count
//	suid            actor
//	src             address, when it is an IPv4 address
//	c6a2            address, when it is an IPv6 address
//	rotundaAddress  address, when it is neither
//	cn1             index (leafIndex)
//	cs1 … cs6       origin, partner, resource, request_id, detail, hash
//	rotundaIntent, rotundaSalt, rotundaChecks, rotundaErasedActor …
//
// Keys with a label carry it in the key with "Label" behind. Escapes are those
// of CEF; characters that may end a line or turn a terminal (C0, DEL, C1,
// U+2028, U+2029, bidirectional controls, byte order mark) are written \uXXXX.
//
// # ocsf
//
// One event of the Open Cybersecurity Schema Framework 1.7.0 a line: Entity
// Management (3004) for what was done to keysets, signing keys, tokens and other
// things, API Activity (6003) for denied attempts and all else.
//
//	metadata.uid, .log_name, .sequence, .correlation_uid
//	                 id, origin, index, request_id
//	actor.user.uid   actor
//	src_endpoint.ip  address, when it is an IP address
//	count            count
//	comment (3004), status_detail (6003)
//	                 reason
//	unmapped         hash, time, action, resource, outcome, partner, address (when
//	                 it is no IP address), detail, intent, salt, checks, erased: as
//	                 in jsonl
//
// Everything else (activity, severity, status, message, entity, api) is derived
// from these.
//
// # parquet
//
// One column for each field: index, count INT64; time TIMESTAMP in microseconds
// of UTC; hash and erased_… FIXED_LEN_BYTE_ARRAY(32); salt and checks
// BYTE_ARRAY; detail JSON; the others UTF-8 strings. What jsonl leaves out is
// null (for detail, the JSON value null). Row groups of at most 65,536 rows or 32 MiB, zstd.
//
// # Failure
//
// After an error of the io.Writer or of a reader, every later call returns the
// same error. A line is read up to 512 KiB. A reader that also is an io.Closer
// (parquet's is) should be closed when it is not read to its end: it may keep a
// temporary file.
package format

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// Names are the formats.
var Names = []string{"jsonl", "csv", "cef", "ocsf", "parquet"}

// Extension returns how the names of files in a format end, without the dot:
// "jsonl", "ocsf.jsonl". It is "" for a format that does not exist.
func Extension(name string) string {
	switch name {
	case "jsonl", "csv", "cef", "parquet":
		return name
	case "ocsf":
		return "ocsf.jsonl"
	}
	return ""
}

// Writer writes the records of one file.
type Writer interface {
	// Write writes a record. It keeps nothing of it. When a record is refused
	// the file stays as it was, and the next one may be written.
	Write(*trail.Record) error
	// Close writes what is left of the file. It does not close the io.Writer.
	Close() error
}

// NewWriter returns a writer of a format. Without Close the file is not whole.
func NewWriter(name string, w io.Writer) (Writer, error) {
	switch name {
	case "jsonl":
		return &lineWriter{w: w, encode: AppendJSON, end: "\n"}, nil
	case "csv":
		return &lineWriter{w: w, encode: appendCSV, end: csvEnd, head: csvHead + csvEnd}, nil
	case "cef":
		return &lineWriter{w: w, encode: AppendCEF, end: "\n"}, nil
	case "ocsf":
		return &lineWriter{w: w, encode: AppendOCSF, end: "\n"}, nil
	case "parquet":
		return newParquetWriter(w), nil
	}
	return nil, unknown(name)
}

// Reader reads the records of one file.
type Reader interface {
	// Read reads the next record into r, which shares nothing with others. At
	// the end it returns io.EOF. Errors name the line (from 1) or the row.
	Read(r *trail.Record) error
}

// NewReader returns a reader of a format. Parquet is read at any offset: what
// is no file, and has no ReadAt and Size, is copied to a temporary file first.
func NewReader(name string, r io.Reader) (Reader, error) {
	in := &lineReader{in: bufio.NewReaderSize(r, flushAt), end: "\n"}
	switch name {
	case "jsonl":
		in.encode, in.decode, in.place = AppendJSON, decodeJSON, memberAt
	case "csv":
		in.encode, in.decode, in.place = appendCSV, decodeCSV, columnAt
		in.end, in.head, in.quotes = csvEnd, csvHead+csvEnd, true
	case "cef":
		in.encode, in.decode, in.place = AppendCEF, decodeCEF, keyAt
	case "ocsf":
		in.encode, in.decode, in.place = AppendOCSF, decodeOCSF, memberAt
	case "parquet":
		p, err := newParquetReader(r)
		if err != nil {
			return nil, err
		}
		return p, nil
	default:
		return nil, unknown(name)
	}
	return in, nil
}

func unknown(name string) error {
	return fmt.Errorf("there is no format %.40q: it is one of %s", name, strings.Join(Names, ", "))
}
