package store

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
)

// ID returns a new id for a row: a UUID of version 7 (RFC 9562, section 5.7),
// as text. Ids sort by the instant of their transaction, to the microsecond
// (section 6.2, method 3), and within one transaction by the order of the
// calls, as long as there are fewer than 16,384 of them.
func (tx *Tx) ID() string {
	us := tx.Now.UnixMicro()
	var b [16]byte
	_, _ = rand.Read(b[10:])                               // never fails (Go 1.24 and later)
	binary.BigEndian.PutUint64(b[:8], uint64(us/1000)<<16) // 48 bits of milliseconds
	fraction := uint16(us % 1000 * 4096 / 1000)
	binary.BigEndian.PutUint16(b[6:8], 7<<12|fraction)
	binary.BigEndian.PutUint16(b[8:10], 2<<14|tx.ids&(1<<14-1))
	tx.ids++
	var out [36]byte
	hex.Encode(out[:8], b[:4])
	hex.Encode(out[9:13], b[4:6])
	hex.Encode(out[14:18], b[6:8])
	hex.Encode(out[19:23], b[8:10])
	hex.Encode(out[24:], b[10:])
	out[8], out[13], out[18], out[23] = '-', '-', '-', '-'
	return string(out[:])
}
