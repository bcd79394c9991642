package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// exportKinds are the content types of the formats.
var exportKinds = map[string]string{
	"jsonl": "application/jsonl", "csv": "text/csv; charset=utf-8", "cef": typePlain, "ocsf": "application/jsonl",
	"parquet": "application/vnd.apache.parquet", "zip": "application/zip",
}

// exportQuery reads what a download asks for. What it does not know it refuses: a
// mistyped condition must not become an export of everything.
func exportQuery(r *http.Request) (req audit.ExportRequest, formatName string, zipped bool, err error) {
	bad := func(field, form string, args ...any) (audit.ExportRequest, string, bool, error) {
		return req, "", false, fault.Invalid(field, "query_malformed", "export the trail: "+form, args...)
	}
	formatName = "jsonl"
	q := &req.Query
	texts := map[string]*string{
		"actor": &q.Actor, "action": &q.Action, "resource": &q.Resource, "partner": &q.Partner, "outcome": &q.Outcome, "request_id": &q.RequestID, "address": &q.Address,
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return bad("", "the query can't be read")
	}
	for name, list := range values {
		if len(list) != 1 || !storable(list[0]) || len(list[0]) > 512 {
			return bad("", "a parameter is given twice, is no plain text, or is too long")
		}
		value := list[0]
		switch name {
		case "format":
			if formatName = value; !slices.Contains(format.Names, value) {
				return bad(name, "the format %.20q is none of %s", value, strings.Join(format.Names, ", "))
			}
		case "bundle":
			if zipped = true; value != "zip" {
				return bad(name, "the bundle %.20q is not zip", value)
			}
		case "omitted":
			if req.Omitted = true; value != "true" {
				return bad(name, "omitted is %.20q, not true", value)
			}
		case "since", "until":
			at, err := time.Parse(time.RFC3339, value)
			if err != nil {
				return bad(name, "%s %.40q is no time: it has the form 2026-01-31T00:00:00Z", name, value)
			}
			if name == "since" {
				q.Since = at
			} else {
				q.Until = at
			}
		default:
			to := texts[name]
			if to == nil {
				return bad("", "there is no parameter %.40q", name)
			}
			*to = value
		}
	}
	if req.Omitted && !zipped {
		return bad("omitted", "the leaves of events that do not match are in a bundle: give bundle=zip")
	}
	return req, formatName, zipped, nil
}

// export sends an export as a download. Without bundle=zip it is the bare data.
func (s *Server) export(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	began := s.DB.Tick()
	code := "ok"
	defer func() { s.done(ctx, exportPath, code, s.DB.Tick()-began) }()
	d := &download{w: w, c: callerOf(ctx), patience: s.patience}
	err := s.download(ctx, r, d)
	if err == nil {
		return
	}
	if d.begun {
		// Half a file must not look like a whole one: the connection is cut.
		code = connect.CodeOf(s.edge(ctx, exportPath, err)).String()
		s.log.LogAttrs(ctx, slog.LevelWarn, "an export ended early", slog.String("request_id", requestID(ctx)), slog.Any("error", err))
		panic(http.ErrAbortHandler)
	}
	code = connect.CodeOf(s.edge(ctx, exportPath, err)).String()
	s.refuse(ctx, w, r, err)
}

func (s *Server) download(ctx context.Context, r *http.Request, d *download) error {
	req, formatName, zipped, err := exportQuery(r)
	if err != nil {
		return err
	}
	give, err := s.exports.take(d.c.token.ID)
	if err != nil {
		return err
	}
	defer give()
	ctx, end, err := s.long(ctx)
	if err != nil {
		return err
	}
	d.ctx, d.formatName, d.zipped, d.head = ctx, formatName, zipped, r.Method == http.MethodHead
	err = s.Trail.Export(ctx, req, d)
	if errors.Is(err, errHeadOnly) {
		err = nil
	}
	if err == nil {
		err = d.close()
	}
	return end(err)
}

// errHeadOnly ends an export that was only asked for its header.
var errHeadOnly = errors.New("the header is all that was asked for")

// download writes an export as a file. It is an audit.ExportSink, and the
// io.Writer of the format.
type download struct {
	w          http.ResponseWriter
	c          caller
	ctx        context.Context
	patience   time.Duration
	formatName string
	zipped     bool
	head       bool // of a HEAD request

	begun  bool // something may be on its way
	data   format.Writer
	bundle *bundle.Writer
}

// Write sends a part of the file, for no longer than the server's patience.
func (d *download) Write(p []byte) (int, error) {
	if d.ctx.Err() != nil {
		return 0, context.Cause(d.ctx)
	}
	if err := d.c.within(d.patience); err != nil {
		return 0, fmt.Errorf("set the deadline of a part: %w", err)
	}
	d.begun = true
	n, err := d.w.Write(p)
	if err != nil {
		return n, err
	}
	return n, d.c.within(0)
}

// Head implements audit.ExportSink.
func (d *download) Head(h bundle.Head) (err error) {
	header := d.w.Header()
	name, kind := "trail-"+strconv.FormatInt(h.Begin, 10)+"-"+strconv.FormatInt(h.End, 10)+".", exportKinds[d.formatName]
	if d.zipped {
		name, kind = name+"zip", exportKinds["zip"]
	} else {
		name += format.Extension(d.formatName)
	}
	header.Set("Content-Disposition", `attachment; filename="`+name+`"`)
	header.Set("Content-Type", kind)
	header["Cache-Control"], header["X-Content-Type-Options"] = noStore, noSniff
	if d.head {
		return errHeadOnly
	}
	if d.zipped {
		d.bundle, err = bundle.WriteZip(d, h, d.formatName)
	} else {
		d.data, err = format.NewWriter(d.formatName, d)
	}
	return err
}

// Record implements audit.ExportSink.
func (d *download) Record(r *trail.Record) error {
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	if d.zipped {
		return d.bundle.Write(r)
	}
	return d.data.Write(r)
}

// Gap implements audit.ExportSink.
func (d *download) Gap(g bundle.Gap) error {
	if d.zipped {
		return d.bundle.Gap(g)
	}
	return nil
}

func (d *download) close() error {
	switch {
	case d.head:
		return nil
	case d.zipped:
		return d.bundle.Close()
	}
	return d.data.Close()
}
