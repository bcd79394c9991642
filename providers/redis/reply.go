package redis

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"syscall"

	"github.com/rotunda-dev/rotunda/providers"
)

// Bounds of one answer. The driver takes memory for what a length says before anything
// has come, so a node could end the process with one line.
const (
	maxText  = providers.MaxAnswer
	maxItems = 1 << 16
	maxLine  = 64 << 10
)

// errAnswer quotes nothing: the answer may be what we sent.
var errAnswer = errors.New("the answer is longer than any that is expected")

// dial connects to a node, by TLS unless config is nil, and looks at its answers.
func dial(config *tls.Config) func(ctx context.Context, network, address string) (net.Conn, error) {
	plain := providers.DialBound(&net.Dialer{Timeout: nodeTimeout})
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := plain(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if config == nil {
			r := &replies{Conn: conn}
			if socket, ok := conn.(syscall.Conn); ok {
				return plainReplies{r, socket}, nil
			}
			return r, nil
		}
		ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
		defer cancel()
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, err //nolint:wrapcheck // the driver expects it as it is
		}
		return &replies{Conn: secure}, nil
	}
}

// replies is a connection whose answers are followed as they are read.
type replies struct {
	net.Conn
	scan scanner
}

func (r *replies) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	if !r.scan.take(p[:n]) {
		return 0, errAnswer
	}
	return n, err //nolint:wrapcheck // io.EOF has to stay what it is
}

func (r *replies) Write(p []byte) (int, error) {
	r.scan.items = 0
	return r.Conn.Write(p) //nolint:wrapcheck // as above
}

// plainReplies shows the driver its socket, by which it sees whether an idle connection is
// still there. With TLS what waits there may be TLS's own.
type plainReplies struct {
	*replies
	syscall.Conn
}

// scanner follows RESP (versions 2 and 3) as far as lengths go.
type scanner struct {
	line   []byte // the beginning of the line that is being read
	length int    // of the whole of it
	skip   int    // bytes of a text that are still to come
	items  int    // that were announced since the last question
	bad    bool
}

// take is false when an answer announces, or is, more than is expected.
func (s *scanner) take(p []byte) bool {
	const enough = 24 // a type, and a number of 64 bits
	for len(p) > 0 && !s.bad {
		if s.skip > 0 {
			n := min(s.skip, len(p))
			s.skip, p = s.skip-n, p[n:]
			continue
		}
		i := bytes.IndexByte(p, '\n')
		part := p[:i+1]
		if i < 0 {
			part = p
		}
		s.length += len(part)
		s.line = append(s.line, part[:min(len(part), enough-len(s.line))]...)
		p = p[len(part):]
		switch {
		case s.length > maxLine:
			s.bad = true
		case i >= 0:
			s.head(bytes.TrimRight(s.line, "\r\n"))
			s.line, s.length = s.line[:0], 0
		}
	}
	return !s.bad
}

// head looks at a line: a length is bad unless it is one that we would take.
func (s *scanner) head(line []byte) {
	if len(line) == 0 {
		return
	}
	most := 0
	switch line[0] {
	case '$', '=', '!':
		most = maxText
	case '*', '~', '>', '%', '|':
		most = maxItems
	default:
		return
	}
	n, err := strconv.Atoi(string(line[1:]))
	switch {
	case err != nil || n < -1 || n > most:
		s.bad = true
	case most == maxText && n >= 0:
		s.skip = n + len("\r\n")
	case most == maxItems:
		s.items += max(n, 1)
		s.bad = s.items > maxItems
	}
}
