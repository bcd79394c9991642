package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// The trail over plain HTTP: what C2SP tlog-tiles asks for below /trail, the
// log's keys, and exports.
const (
	checkpointPath = "/trail/checkpoint"
	keysPath       = "/trail/keys"
	tilePath       = "/trail/tile/" // and what is below
	exportPath     = "/trail/export"

	tileWidth    = 256
	maxTileLevel = 5                           // more than any tree of 2^48 leaves has
	maxLeaf      = 1 << 53                     // what JSON and exports hold
	maxTile      = maxLeaf/tileWidth - 1       // the highest number of a tile
	fullTileAge  = "max-age=86400"             // a full tile changes only when the log is restarted before it
	partTileAge  = "max-age=60"                // a partial one neither, but it is soon replaced
	typePlain    = "text/plain; charset=utf-8" // of checkpoints and keys
)

// mountTrail adds the trail's documents. They need a token that may read, unless
// the trail is published; an export always does.
func (s *Server) mountTrail(mux *http.ServeMux, p *public) {
	for path, h := range map[string]documentHandler{checkpointPath: s.checkpoint, keysPath: s.trailKeys, tilePath: s.tile} {
		document := s.document(h)
		if s.PublishTrail {
			mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
				if !p.admit(w, r) {
					return
				}
				h := w.Header()
				h["Access-Control-Allow-Origin"], h["Cross-Origin-Resource-Policy"] = anyOrigin, crossOrigin
				document.ServeHTTP(w, r)
			})
			mux.HandleFunc(path, p.otherMethod)
			continue
		}
		mux.Handle("GET "+path, s.authenticated(s.reading(path, document)))
	}
	mux.Handle("GET "+exportPath, s.authenticated(s.reading(exportPath, http.HandlerFunc(s.export))))
}

// reading lets a request through whose token may read path. A denial is in the trail.
func (s *Server) reading(path string, next http.Handler) http.Handler {
	action := strings.ReplaceAll(strings.Trim(path, "/"), "/", ".")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.authz.allows(callerOf(r.Context()).subject, path, "") {
			s.deny(r.Context(), audit.Event{Action: action, Reason: "role"})
			w.Header()["Cache-Control"] = noStore
			http.Error(w, "this token may not read the trail: use one of role auditor or operator", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// body is what a document handler answers.
type body struct {
	content []byte
	kind    string // Content-Type
	age     string // of Cache-Control; "": ask again each time
}

type documentHandler func(ctx context.Context, r *http.Request) (body, error)

// document answers with a short document, or with its error.
func (s *Server) document(h documentHandler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), rpcTimeout)
		defer cancel()
		b, err := h(ctx, r)
		if err != nil {
			s.refuse(ctx, w, r, err)
			return
		}
		cache := "no-cache"
		if b.age != "" {
			// What needed a token must not be kept for others.
			cache = "private, " + b.age
			if s.PublishTrail {
				cache = "public, " + b.age
			}
		}
		header := w.Header()
		header.Set("Cache-Control", cache)
		header.Set("Content-Type", b.kind)
		header.Set("Content-Length", strconv.Itoa(len(b.content)))
		header["X-Content-Type-Options"] = noSniff
		if r.Method != http.MethodHead {
			_, _ = w.Write(b.content) // a client that went away needs no report
		}
	})
}

// statuses are those of Connect's protocol for unary calls, as far as a plain
// request can come to them.
var statuses = map[connect.Code]int{
	connect.CodeInvalidArgument:    http.StatusBadRequest,
	connect.CodeNotFound:           http.StatusNotFound,
	connect.CodeFailedPrecondition: http.StatusBadRequest,
	connect.CodeAborted:            http.StatusConflict,
	connect.CodePermissionDenied:   http.StatusForbidden,
	connect.CodeResourceExhausted:  http.StatusTooManyRequests,
	connect.CodeUnavailable:        http.StatusServiceUnavailable,
	connect.CodeDeadlineExceeded:   http.StatusServiceUnavailable,
	connect.CodeCanceled:           499,
}

// refuse answers a plain request with an error, as the one table has it.
func (s *Server) refuse(ctx context.Context, w http.ResponseWriter, r *http.Request, err error) {
	ce, ok := errors.AsType[*connect.Error](s.edge(ctx, clipPath(r.URL.Path), err))
	status := http.StatusInternalServerError
	if ok {
		if known := statuses[ce.Code()]; known != 0 {
			status = known
		}
	}
	w.Header()["Cache-Control"] = noStore
	w.Header().Del("Content-Disposition")
	message := "internal error"
	if ok {
		message = ce.Message()
	}
	http.Error(w, message, status)
}

func (s *Server) checkpoint(ctx context.Context, _ *http.Request) (body, error) {
	_, signed, err := s.Trail.Checkpoint(ctx)
	return body{content: []byte(signed), kind: typePlain}, err
}

func (s *Server) trailKeys(ctx context.Context, _ *http.Request) (body, error) {
	keys, _, err := s.Trail.Keys(ctx)
	return body{content: []byte(strings.Join(keys, "\n") + "\n"), kind: typePlain}, err
}

// tileName is a tile or an entry bundle: the part of the path below /trail/tile/.
type tileName struct {
	level int64 // -1: entries
	n     int64
	width int // 1 to 256
}

// parseTile reads the path of a tile, in the one form that C2SP tlog-tiles has for
// it: <L>/<N>[.p/<W>] or entries/<N>[.p/<W>], where N is in groups of three digits,
// all but the last with an x before them: x001/x234/067.
func parseTile(path string) (t tileName, ok bool) {
	level, rest, found := strings.Cut(path, "/")
	if !found || len(path) > 64 {
		return t, false
	}
	if t.level = -1; level != "entries" {
		if len(level) != 1 || level[0] < '0' || level[0] > '0'+maxTileLevel {
			return t, false
		}
		t.level = int64(level[0] - '0')
	}
	t.width = tileWidth
	if number, width, partial := strings.Cut(rest, ".p/"); partial {
		w, err := strconv.Atoi(width)
		if err != nil || w < 1 || w >= tileWidth {
			return t, false
		}
		rest, t.width = number, w
	}
	for i, groups := 0, strings.Split(rest, "/"); i < len(groups); i++ {
		digits := groups[i]
		if i < len(groups)-1 {
			if digits, found = strings.CutPrefix(digits, "x"); !found {
				return t, false
			}
		}
		group, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || len(digits) != 3 || t.n > maxTile/1000 {
			return t, false
		}
		t.n = t.n*1000 + int64(group)
	}
	return t, t.n <= maxTile && t.String() == path
}

// String is the inverse of parseTile.
func (t tileName) String() string {
	path := fmt.Sprintf("%03d", t.n%1000)
	for n := t.n / 1000; n > 0; n /= 1000 {
		path = fmt.Sprintf("x%03d/%s", n%1000, path)
	}
	if t.width < tileWidth {
		path += ".p/" + strconv.Itoa(t.width)
	}
	if t.level < 0 {
		return "entries/" + path
	}
	return strconv.FormatInt(t.level, 10) + "/" + path
}

var errNoTile = fault.New(fault.ErrNotFound, "tile_not_found", "there is no such tile: they are at /trail/tile/<L>/<N>[.p/<W>] and /trail/tile/entries/<N>[.p/<W>]")

func (s *Server) tile(ctx context.Context, r *http.Request) (body, error) {
	t, ok := parseTile(strings.TrimPrefix(r.URL.Path, tilePath))
	if !ok {
		return body{}, errNoTile
	}
	b := body{kind: "application/octet-stream", age: fullTileAge}
	if t.width < tileWidth {
		b.age = partTileAge
	}
	var err error
	if t.level < 0 {
		b.content, err = s.Trail.Entries(ctx, t.n, t.width)
	} else {
		b.content, err = s.Trail.Tile(ctx, t.level, t.n, t.width)
	}
	return b, err
}
