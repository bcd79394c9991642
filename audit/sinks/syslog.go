package sinks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// syslog sends RFC 5424 messages, each behind its length, over TLS (RFC 5425).
//
// The protocol acknowledges nothing: bytes that a write accepted may never be
// read. So each batch ends its connection, and the end is the acknowledgement:
//
//  1. all messages, then close_notify;
//  2. the receiver answers with its own close_notify (RFC 5425, section 4.4, says
//     it must), which it does once it has read ours, thus everything before it;
//  3. it closes its side with FIN, not RST: nothing was left unread in its kernel;
//  4. the kernel here has no byte unacknowledged: nothing was under way when it closed.
//
// Then every message was read by the receiver's process. What that process does
// with it is out of sight: rsyslog writes it before it reads on when its queue is
// "direct", and holds it in memory otherwise, where a crash loses it. For the second
// kind there is Hold: the next connection is opened at once and kept idle, and while
// it lives the receiver has not restarted since; the cursor follows that much later.
type syslog struct {
	parsed
	address  string
	facility int
	dialer   net.Dialer
	next     *link // idle, for the next batch; nil: none yet
	lost     error // why there is no idle connection after a delivered batch
}

// facility 13 is "log audit" (RFC 5424, section 6.2.1).
const auditFacility = 13

func (p *parsed) parseSyslog() error {
	p.hold = 10 * time.Second
	if text, ok := p.Options["hold"]; ok {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d > 10*time.Minute {
			return fault.Invalid("options.hold", "out_of_range", "option hold is a duration from 0s to 10m")
		}
		p.hold = d
	}
	if id, ok := p.Options["sd_id"]; ok && !isSDName(id) {
		return fault.Invalid("options.sd_id", "bad_option", "option sd_id has the form name@number, of at most 32 characters, without spaces, =, ] and quotes")
	}
	if h, ok := p.Options["hostname"]; ok && (h == "" || strings.Contains(h, " ")) {
		return fault.Invalid("options.hostname", "bad_option", "option hostname is a name without spaces")
	}
	if a := p.Options["ack"]; a != "" && a != "tls" && a != "tcp" {
		return fault.Invalid("options.ack", "bad_option", "option ack is tls or tcp")
	}
	if !p.Secret.IsZero() {
		return fault.Invalid("secret", "unused_secret", "a syslog sink has no use for a secret: give it a client certificate")
	}
	return nil
}

// isSDName reports whether a text is an SD-ID with an enterprise number (RFC 5424,
// section 6.3.2).
func isSDName(s string) bool {
	name, number, ok := strings.Cut(s, "@")
	return ok && name != "" && number != "" && len(s) <= 32 && !strings.ContainsAny(s, " =]\"") && !strings.Contains(number, "@")
}

func openSyslog(p *parsed) *syslog {
	port := p.url.Port()
	if port == "" {
		port = "6514" // RFC 5425, section 4.1
	}
	return &syslog{
		parsed: *p, address: net.JoinHostPort(p.url.Hostname(), port), facility: auditFacility,
		// A receiver whose machine is gone, or started again, is noticed in about 5 s.
		dialer: net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3}},
	}
}

// link is a connection to the receiver. Its reader is the only one that reads:
// a receiver has nothing to say before the end.
type link struct {
	tcp  *net.TCPConn
	conn net.Conn // tcp itself, or TLS over it
	done chan struct{}
	err  error // after done: how it ended; io.EOF: in order
}

func (s *syslog) dial(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, s.DialTimeout)
	defer cancel()
	conn, err := s.dialer.DialContext(ctx, "tcp", s.address)
	if err != nil {
		return nil, s.unavailable("unreachable", reasonOf(err))
	}
	l := &link{tcp: conn.(*net.TCPConn), conn: conn, done: make(chan struct{})}
	if s.url.Scheme == "tls" {
		c := tls.Client(conn, s.tls)
		if err := c.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, s.unavailable("unreachable", "the TLS handshake fails: "+reasonOf(err))
		}
		l.conn = c
	}
	go l.read()
	return l, nil
}

func (l *link) read() {
	defer close(l.done)
	if l.err = drain(l.conn); l.err == nil {
		l.err = io.EOF
	}
}

// drain reads to the end of a stream.
func drain(r io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(r, maxReply))
	if err == nil && n == maxReply {
		err = errors.New("the receiver talks without end, which no syslog receiver does: check the address")
	}
	return err
}

// ended reports whether the receiver has ended the connection.
func (l *link) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (s *syslog) Hold() time.Duration { return s.hold }

func (s *syslog) Alive() error {
	switch {
	case s.lost != nil:
		return s.lost
	case s.next == nil || s.next.ended():
		return s.unavailable("connection_lost", "the connection broke after the last batch: the receiver may have restarted, so what was held is sent again")
	}
	return nil
}

func (s *syslog) Send(ctx context.Context, records []trail.Record) error {
	var frames []byte
	for i := range records {
		var err error
		if frames, err = s.appendFrame(frames, &records[i]); err != nil {
			return fault.New(fault.ErrRejected, "encoding", "write record %d for %s: %w", records[i].Index, s.Kind, err)
		}
	}
	if s.next != nil && s.next.ended() {
		s.drop()
	}
	l, err := s.next, error(nil)
	s.next, s.lost = nil, nil
	if l == nil {
		if l, err = s.dial(ctx); err != nil {
			return err
		}
	}
	if err := s.deliver(ctx, l, frames); err != nil {
		return err
	}
	if s.hold > 0 {
		// Not reaching the receiver is as good as losing the connection to it.
		s.next, s.lost = s.dial(ctx)
	}
	return nil
}

// deliver writes frames, ends the connection and waits for the receiver's end.
func (s *syslog) deliver(ctx context.Context, l *link, frames []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	defer func() { _ = l.tcp.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = l.tcp.SetDeadline(time.Unix(1, 0)) }) // now: every call returns
	defer stop()
	broken := func(doing string, err error) error {
		if ctx.Err() != nil {
			err = errors.New("no progress in time")
		}
		return s.unavailable("connection_lost", doing+": "+reasonOf(err))
	}
	if _, err := l.conn.Write(frames); err != nil {
		return broken("writing a batch", err)
	}
	if l.ended() {
		return broken("writing a batch", errors.New("the receiver ended the connection meanwhile"))
	}
	weak := s.Options["ack"] == "tcp"
	c, overTLS := l.conn.(*tls.Conn)
	if overTLS {
		if err := c.CloseWrite(); err != nil {
			return broken("ending the connection", err)
		}
	}
	if !overTLS || weak {
		if err := l.tcp.CloseWrite(); err != nil {
			return broken("ending the connection", err)
		}
	}
	<-l.done
	if !errors.Is(l.err, io.EOF) && (!weak || !errors.Is(l.err, io.ErrUnexpectedEOF)) {
		return broken("waiting for the receiver to end the connection", l.err)
	}
	if overTLS {
		if !weak {
			_ = l.tcp.CloseWrite() // fails when the receiver is already gone, in order or not
		}
		if err := drain(l.tcp); err != nil {
			return broken("waiting for the receiver to close the connection", err)
		}
	}
	// The receiver's FIN acknowledges all that had reached its kernel, and had it left
	// any of that unread, a reset would have come in its place.
	n, err := unacknowledged(l.tcp)
	if err != nil {
		return broken("asking for what the receiver acknowledged", err)
	}
	if n > 1 { // our FIN counts as one
		return broken("ending the connection", fmt.Errorf("the receiver closed it before the last %d bytes reached it", n-1))
	}
	return nil
}

func (s *syslog) drop() {
	if s.next != nil {
		_ = s.next.conn.Close() // with close_notify, over TLS
		<-s.next.done
		s.next = nil
	}
}

// Close ends the idle connection.
func (s *syslog) Close() error {
	s.drop()
	return nil
}

// appendFrame appends a message with its length before it (RFC 5425, section 4.3).
func (s *syslog) appendFrame(dst []byte, r *trail.Record) ([]byte, error) {
	msg, err := s.appendMessage(make([]byte, 0, 1024), r)
	if err != nil {
		return nil, err
	}
	dst = strconv.AppendInt(dst, int64(len(msg)), 10)
	return append(append(dst, ' '), msg...), nil
}

// appendMessage appends an RFC 5424 message: MSGID is the action, MSG is the record
// in UTF-8 behind a byte order mark.
func (s *syslog) appendMessage(dst []byte, r *trail.Record) ([]byte, error) {
	host, id := s.Options["hostname"], s.Options["sd_id"]
	if host == "" {
		host = "-"
	}
	if id == "" {
		id = "rotunda@32473"
	}
	dst = fmt.Appendf(dst, "<%d>1 %s %s rotunda - %s [%s", s.facility*8+severityOf(r.Outcome).syslog,
		r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), host, header(r.Action, 32), id)
	for _, p := range []struct{ name, value string }{{"origin", r.Origin}, {"index", strconv.FormatInt(r.Index, 10)}, {"hash", hash(r)}, {"id", r.ID}} {
		dst = append(append(append(dst, ' '), p.name...), `="`...)
		dst = append(appendParam(dst, p.value), '"')
	}
	dst = append(dst, "] \xEF\xBB\xBF"...)
	return s.encode(dst, r)
}

// header makes a text fit for a header field: printable ASCII without spaces.
func header(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	if s == "" {
		return "-"
	}
	return s[:min(len(s), limit)]
}

// appendParam escapes a PARAM-VALUE (RFC 5424, section 6.3.3). Control characters,
// which the syntax allows and receivers mangle each in its way, become spaces.
func appendParam(dst []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\' || c == ']':
			dst = append(dst, '\\', c)
		case c < ' ' || c == 0x7f:
			dst = append(dst, ' ')
		default:
			dst = append(dst, c)
		}
	}
	return dst
}
