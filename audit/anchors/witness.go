package anchors

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Prover makes consistency proofs of the log.
type Prover interface {
	// Consistency proves that the tree of size extends that of old (RFC 6962 §2.1.2),
	// 0 < old < size.
	Consistency(ctx context.Context, old, size int64) ([]tlog.Hash, error)
}

// WitnessConfig describes a witness.
type WitnessConfig struct {
	URL  string         // the submission prefix; /add-checkpoint is added to it
	Key  trail.Witness  // of its vkey: trail.ParseWitness
	CAs  *x509.CertPool // roots that its certificate must chain to; default: the system's
	Name string         // for messages and rows; default: the name in its key
}

// WitnessClient asks one witness for cosignatures (C2SP tlog-witness). Its
// methods are safe for concurrent use.
type WitnessClient struct {
	name   string
	place  string
	url    string
	key    trail.Witness
	client *http.Client
}

// OpenWitness returns a client. It touches nothing yet. Errors: fault.ErrInvalid.
func OpenWitness(c WitnessConfig) (*WitnessClient, error) {
	u, err := parseURL("url", c.URL)
	if err != nil {
		return nil, err
	}
	if u.RawQuery != "" || u.ForceQuery {
		return nil, fault.Invalid("url", "url_malformed", "witness: the address of %s has a query, which a submission prefix has not", u.Host)
	}
	if c.Key.Name() == "" {
		return nil, fault.Invalid("key", "key_required", "witness: the key of the witness at %s is missing: nothing that it says could be verified", u.Host)
	}
	name := c.Name
	if name == "" {
		name = c.Key.Name()
	}
	return &WitnessClient{
		name: name, place: fmt.Sprintf("the witness %s at %s", name, u.Host), key: c.Key,
		url: u.JoinPath("add-checkpoint").String(), client: newClient(c.CAs),
	}, nil
}

// Name returns the witness's name: that of the configuration, or of its key.
func (w *WitnessClient) Name() string { return w.name }

// Key returns what verifies its cosignatures.
func (w *WitnessClient) Key() trail.Witness { return w.key }

// Close releases connections.
func (w *WitnessClient) Close() error {
	w.client.CloseIdleConnections()
	return nil
}

// maxTries bounds how often a witness may name another size than we assume: more
// than one means that somebody else submits to it at the same time.
const maxTries = 4

// Cosign brings a signed checkpoint to the witness and returns its cosignature:
// one signature line that ends in a newline, verified, to be appended to the
// note. lastKnown is the size that it cosigned before; 0 when that is unknown.
// newSize is the size that the witness is known to hold afterwards, whatever the
// error; it is for the next call.
//
// Errors: fault.ErrChanged with reason "witness_fork" (it saw another history of
// this log) or "witness_ahead" (a longer one); fault.ErrRejected (it does not
// know the log or its key, or what it answers does not verify);
// fault.ErrLimited, fault.ErrUnavailable (retry); what the prover returns.
func (w *WitnessClient) Cosign(ctx context.Context, prover Prover, lastKnown int64, cp trail.Checkpoint, signed string) (line string, newSize int64, err error) {
	text, _, ok := strings.Cut(signed, "\n\n")
	if got, err := parseOnly(signed); !ok || err != nil || got != cp || len(signed) > maxBody {
		return "", lastKnown, fault.Invalid("signed", "checkpoint_differs", "%s: the signed note is not of the checkpoint at size %d", w.place, cp.Size)
	}
	old := lastKnown
	if old < 0 || old > cp.Size {
		old = 0 // let the witness say so itself
	}
	for range maxTries {
		proof, err := w.prove(ctx, prover, old, cp)
		if err != nil {
			return "", old, err
		}
		status, kind, body, err := w.post(ctx, requestBody(old, proof, signed))
		if err != nil {
			return "", old, err
		}
		switch status {
		case http.StatusOK:
			line, err := w.accept(text+"\n", body)
			if err != nil {
				return "", old, err
			}
			return line, cp.Size, nil
		case http.StatusConflict:
			size, ok := knownSize(kind, body)
			switch {
			case ok && size > cp.Size:
				return "", size, fault.New(fault.ErrChanged, ReasonWitnessAhead, "%s cosigned %s at size %d, and the log's newest is of size %d: this log went back: was an old backup restored?", w.place, cp.Origin, size, cp.Size)
			case ok && size != old:
				old = size
				continue
			case ok || old == cp.Size:
				return "", old, w.fork(old, cp)
			default:
				return "", old, fault.New(fault.ErrRejected, "witness_garbage", "%s answered 409 without the size that it holds: is it a witness (C2SP tlog-witness)?", w.place)
			}
		case http.StatusUnprocessableEntity:
			return "", old, w.fork(old, cp)
		case http.StatusNotFound:
			return "", old, fault.New(fault.ErrRejected, "witness_unknown_log", "%s answered 404: it does not follow %s, or the address is wrong: give its operator the log's name and public key", w.place, cp.Origin)
		case http.StatusForbidden:
			return "", old, fault.New(fault.ErrRejected, "witness_unknown_key", "%s answered 403: it trusts none of the keys that signed this checkpoint: give its operator the log's public key, after a rotation the new one", w.place)
		default:
			return "", old, refused(w.place, status)
		}
	}
	return "", old, fault.New(fault.ErrUnavailable, "witness_busy", "%s named another size %d times: somebody else submits to it at the same time; it is retried later", w.place, maxTries)
}

func (w *WitnessClient) fork(old int64, cp trail.Checkpoint) error {
	return fault.New(fault.ErrChanged, ReasonWitnessFork, "%s does not accept that %s at size %d, root %v, extends what it cosigned at size %d: it saw another history of this log; keep both, and find out which is true", w.place, cp.Origin, cp.Size, cp.Root, old)
}

// maxProof is how many hashes the protocol allows.
const maxProof = 63

func (w *WitnessClient) prove(ctx context.Context, prover Prover, old int64, cp trail.Checkpoint) ([]tlog.Hash, error) {
	if old == 0 || old == cp.Size {
		return nil, nil
	}
	proof, err := prover.Consistency(ctx, old, cp.Size)
	if err != nil {
		return nil, fmt.Errorf("prove to %s that size %d extends size %d: %w", w.place, cp.Size, old, err)
	}
	if len(proof) > maxProof {
		return nil, fmt.Errorf("prove to %s that size %d extends size %d: the proof has %d hashes, and at most %d are allowed", w.place, cp.Size, old, len(proof), maxProof)
	}
	return proof, nil
}

func requestBody(old int64, proof []tlog.Hash, signed string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "old %d\n", old)
	for _, h := range proof {
		b.WriteString(base64.StdEncoding.EncodeToString(h[:]))
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	b.WriteString(signed)
	return b.String()
}

func (w *WitnessClient) post(ctx context.Context, body string) (status int, kind, reply string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, strings.NewReader(body))
	if err != nil {
		return 0, "", "", fault.Invalid("url", "url_malformed", "%s: its address makes no request", w.place)
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	req.Header.Set("User-Agent", "rotunda")
	res, err := w.client.Do(req)
	if err != nil {
		return 0, "", "", unreached(w.place, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	if err != nil {
		return 0, "", "", unreached(w.place, err)
	}
	return res.StatusCode, res.Header.Get("Content-Type"), string(b), nil
}

// knownSize reads the answer to an old size that is not the witness's.
func knownSize(kind, body string) (int64, bool) {
	if media, _, err := mime.ParseMediaType(kind); err != nil || media != "text/x.tlog.size" {
		return 0, false
	}
	digits, ok := strings.CutSuffix(body, "\n")
	size, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || size < 0 || strconv.FormatInt(size, 10) != digits {
		return 0, false
	}
	return size, true
}

// accept picks the line of the witness's key out of an answer, if it verifies.
func (w *WitnessClient) accept(text, body string) (string, error) {
	garbage := func(err error) error {
		return fault.New(fault.ErrRejected, "witness_garbage", "%s answered 200 without a cosignature that verifies: %w; look at its key and address", w.place, err)
	}
	if len(body) > maxBody {
		return "", garbage(fmt.Errorf("it has over %d bytes", maxBody))
	}
	err := fmt.Errorf("no line is by %s", w.key.Name())
	for line := range strings.Lines(body) {
		if !strings.HasPrefix(line, "— "+w.key.Name()+" ") || !strings.HasSuffix(line, "\n") {
			continue
		}
		// One line at a time: lines of other keys of the same name are passed over.
		if _, e := w.key.Verify(text + "\n" + line); e != nil {
			err = e
			continue
		}
		return line, nil
	}
	return "", garbage(err)
}
