package anchors

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

// What a bucket holds is what was pushed first, and nothing replaces it.
func TestBucketKeepsWhatItHolds(t *testing.T) {
	t.Parallel()
	srv, log := newS3(t), newLog(t)
	c := srv.config(t, log, "kept", false)
	a := open(t, c)
	if _, err := a.Newest(t.Context()); !errors.Is(err, fault.ErrNotFound) {
		t.Fatalf("an empty bucket answers %v", err)
	}
	mustPush(t, a, log, 5)
	mustPush(t, a, log, 5)
	mustPush(t, a, log, 9)
	_, five := log.at(5)
	_, nine := log.at(9)
	mustNewest(t, a, nine)
	b := a.(*bucket)
	for key, want := range map[string]string{sizeName(5): five, sizeName(9): nine, latest: nine} {
		if got, err := b.get(t.Context(), key); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %q", key, got, err, want)
		}
	}
	if b.folder != "trail/one/rotunda.example%2Ftrail/" {
		t.Errorf("the folder is %q", b.folder)
	}

	// The server itself refuses a second write of a name.
	if err := b.put(t.Context(), sizeName(5), nine, true); !taken(err) {
		t.Fatalf("writing a name again answers %v", err)
	}
	fork := log.fork(8)
	wantFault(t, push(t, a, fork, 9), fault.ErrChanged, ReasonAnchorFork)
	wantFault(t, push(t, a, log, 7), fault.ErrChanged, ReasonAnchorAhead)
	mustNewest(t, a, nine)

	// Another key's checkpoints raise no alarm of a fork, and are not believed.
	other := newLog(t)
	_, forged := other.at(12)
	if err := b.put(t.Context(), sizeName(12), forged, true); err != nil {
		t.Fatal(err)
	}
	wantFault(t, push(t, a, log, 12), fault.ErrRejected, "anchor_garbage")
	_, err := a.Newest(t.Context())
	wantFault(t, err, fault.ErrRejected, "anchor_garbage")
}

// Of two servers that push different histories at once, one is told.
func TestBucketWhenTwoWriteAtOnce(t *testing.T) {
	t.Parallel()
	srv, log := newS3(t), newLog(t)
	a := open(t, srv.config(t, log, "race", false))
	log.at(4)
	fork := log.fork(3)
	_, first := log.at(4)
	cp, second := fork.at(4)
	// The other one writes between our look and our write.
	proxy := newProxy(t, srv.addr)
	c := a.(*bucket)
	raced := openThrough(t, srv, log, "race", proxy)
	proxy.before(http.MethodPut, func() {
		if err := c.put(context.Background(), sizeName(4), first, true); err != nil {
			t.Error(err)
		}
	})
	wantFault(t, raced.Push(t.Context(), cp, second), fault.ErrChanged, ReasonAnchorFork)
	if got, err := c.get(t.Context(), sizeName(4)); err != nil || got != first {
		t.Fatalf("it holds %q, %v, want the first", got, err)
	}
}

// The newest is found whatever `latest` says, among more objects than one listing holds.
func TestBucketNewestWhenLatestLies(t *testing.T) {
	t.Parallel()
	srv, log := newS3(t), newLog(t)
	a := open(t, srv.config(t, log, "many", false))
	b := a.(*bucket)
	var work sync.WaitGroup
	sizes := make(chan string, 8)
	for range 8 {
		work.Go(func() {
			for name := range sizes {
				if err := b.put(t.Context(), name, "filler", true); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range int64(2*maxKeys + 7) {
		sizes <- sizeName(1000 + 3*i)
	}
	close(sizes)
	work.Wait()
	size := int64(1000 + 3*(2*maxKeys+7))
	_, newest := log.at(size)
	_, old := log.at(10)
	for _, name := range []string{sizeName(10), sizeName(size)} {
		text := newest
		if name == sizeName(10) {
			text = old
		}
		if err := b.put(t.Context(), name, text, true); err != nil {
			t.Fatal(err)
		}
	}
	_, ahead := log.at(size + 1)
	for what, text := range map[string]string{"nothing": "", "an old one": old, "what is not there": ahead, "garbage": "garbage", "the newest": newest} {
		if text != "" {
			if err := b.put(t.Context(), latest, text, false); err != nil {
				t.Fatal(err)
			}
		}
		got, err := a.Newest(t.Context())
		if err != nil || got != newest {
			t.Errorf("latest says %s: the newest is %.60q, %v", what, got, err)
		}
	}
	// The largest size there can be is found too.
	if err := b.put(t.Context(), sizeName(math.MaxInt64), "filler", true); err != nil {
		t.Fatal(err)
	}
	_, err := a.Newest(t.Context())
	wantFault(t, err, fault.ErrRejected, "anchor_garbage")
}

// A locked object can't be removed, by the owner of the bucket either.
func TestBucketLocksWhatItKeeps(t *testing.T) {
	t.Parallel()
	srv, log := newS3(t), newLog(t)
	c := srv.config(t, log, "locked", true)
	now := time.Now()
	c.RetainDays, c.Now = 30, func() time.Time { return now }
	a := open(t, c)
	mustPush(t, a, log, 3)
	mustPush(t, a, log, 4)
	_, four := log.at(4)
	mustNewest(t, a, four)
	key := a.(*bucket).folder + sizeName(3)
	got, err := srv.client.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{Bucket: &c.Address, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	until := aws.ToTime(got.Retention.RetainUntilDate)
	if got.Retention.Mode != types.ObjectLockRetentionModeCompliance || until.Sub(now.AddDate(0, 0, 30)).Abs() > time.Second {
		t.Errorf("it is locked until %v in mode %s", until, got.Retention.Mode)
	}
	head, err := srv.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &c.Address, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := srv.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &c.Address, Key: &key, VersionId: head.VersionId}); err == nil {
		t.Fatal("a locked checkpoint was removed")
	}
}

func TestBucketWhenRefused(t *testing.T) {
	t.Parallel()
	srv, log := newS3(t), newLog(t)
	good := srv.config(t, log, "refused", false)
	wrongKey, noBucket, noLock := good, good, good
	const wrong = "not-the-secret-of-this-server"
	wrongKey.Secret = secret.FromString(wrong)
	noBucket.Address = "nowhere"
	noLock.RetainDays, noLock.Now = 1, time.Now
	for what, c := range map[string]Config{"wrong key": wrongKey, "no bucket": noBucket, "no lock": noLock} {
		a := open(t, c)
		for range 2 {
			err := push(t, a, log, 2)
			if err == nil || strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), s3Secret) {
				t.Fatalf("%s: %v", what, err)
			}
			switch what {
			case "wrong key":
				wantFault(t, err, fault.ErrDenied, "anchor_denied")
			case "no bucket":
				wantFault(t, err, fault.ErrRejected, "anchor_refused")
			case "no lock":
				// This server refuses, and keeps the object all the same: unlocked.
				if !errors.Is(err, fault.ErrRejected) {
					t.Fatalf("%s: %v is not final", what, err)
				}
			}
		}
	}
	mustPush(t, open(t, good), log, 2)
}

// What is no S3 server takes nothing, whatever it answers.
func TestBucketWhenTheServerIsNone(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	release := make(chan struct{})
	defer close(release)
	say := func(kind, body string) string {
		return newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			_, _ = io.WriteString(w, body)
		}).URL
	}
	tls := httptest.NewUnstartedServer(http.NotFoundHandler())
	tls.Config.ErrorLog = quiet()
	tls.StartTLS()
	defer tls.Close()
	for what, tt := range map[string]struct {
		endpoint string
		kind     error
		reason   string
	}{
		"dead":           {"http://" + freePort(t), fault.ErrUnavailable, "anchor_unreachable"},
		"slow":           {newReceiver(t, func(http.ResponseWriter, *http.Request) { <-release }).URL, fault.ErrUnavailable, "anchor_slow"},
		"cuts":           {newReceiver(t, lost).URL, fault.ErrUnavailable, "anchor_unreachable"},
		"says yes":       {newReceiver(t, status(200)).URL, fault.ErrRejected, "anchor_garbage"},
		"a page":         {say("text/html", "<!doctype html><p>hello"), fault.ErrRejected, "anchor_garbage"},
		"endless":        {say("application/xml", "<ListBucketResult><Name>"+strings.Repeat("x", 2*maxReply)), fault.ErrRejected, "anchor_garbage"},
		"broken":         {newReceiver(t, status(500)).URL, fault.ErrUnavailable, "anchor_unavailable"},
		"redirects":      {newReceiver(t, status(307)).URL, fault.ErrRejected, "anchor_redirects"},
		"unknown issuer": {tls.URL, fault.ErrUnavailable, "anchor_unreachable"},
	} {
		a := open(t, Config{Kind: S3, Origin: origin, Check: log.check(), Address: "bucket", Region: "us-east-1", Endpoint: tt.endpoint, PathStyle: true, AccessKey: s3Key, Secret: secret.FromString(s3Secret)})
		timeout := time.Minute
		if what == "slow" {
			timeout = 50 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		cp, signed := log.at(2)
		err := a.Push(ctx, cp, signed)
		cancel()
		t.Run(what, func(t *testing.T) {
			wantFault(t, err, tt.kind, tt.reason)
			if strings.Contains(err.Error(), s3Secret) || strings.Contains(err.Error(), s3Key) {
				t.Errorf("a secret is shown: %v", err)
			}
		})
	}
}

// proxy stands before a real server and breaks what it is told to.
type proxy struct {
	addr  string
	mu    sync.Mutex
	hooks map[string]func()
	cut   atomic.Bool // forward, and drop the reply of a PUT
	puts  atomic.Int64
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	p := &proxy{hooks: map[string]func(){}}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: to})
		r.Out.Host = r.In.Host // it is signed
	}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		hook := p.hooks[r.Method]
		delete(p.hooks, r.Method)
		p.mu.Unlock()
		if hook != nil {
			hook()
		}
		if r.Method == http.MethodPut {
			p.puts.Add(1)
			if p.cut.CompareAndSwap(true, false) {
				forward.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			}
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	p.addr = strings.TrimPrefix(srv.URL, "http://")
	return p
}

func (p *proxy) before(method string, f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hooks[method] = f
}

func openThrough(t *testing.T, srv *s3Server, l *testLog, name string, p *proxy) Anchor {
	t.Helper()
	return open(t, Config{
		Kind: S3, Origin: origin, Check: l.check(), Address: name, Region: "us-east-1", Endpoint: "http://" + p.addr,
		PathStyle: true, AccessKey: s3Key, Secret: secret.FromString(s3Secret), Prefix: "trail/one",
	})
}

// A checkpoint whose reply was lost is there once, and pushing it again succeeds.
func TestBucketWhenTheReplyIsLost(t *testing.T) {
	t.Parallel()
	srv, log := newS3(t), newLog(t)
	srv.config(t, log, "lost", false)
	p := newProxy(t, srv.addr)
	a := openThrough(t, srv, log, "lost", p)
	p.cut.Store(true)
	if err := push(t, a, log, 6); !errors.Is(err, fault.ErrUnavailable) {
		t.Fatalf("a lost reply answers %v", err)
	}
	if n := p.puts.Load(); n != 1 {
		t.Fatalf("it was written %d times", n)
	}
	mustPush(t, a, log, 6)
	if n := p.puts.Load(); n != 2 { // only latest was missing
		t.Fatalf("%d writes in all, want 2", n)
	}
	_, six := log.at(6)
	mustNewest(t, a, six)
}

// Compare finds a log that was rewritten below the sizes that anchors refuse.
func TestCompareWhenTheLogWasRewritten(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	a := open(t, Config{Kind: File, Origin: origin, Check: log.check(), Address: t.TempDir()})
	newest, _ := log.at(9)
	if got, err := Compare(t.Context(), "one", a, newest, log.root); err != nil || got != (trail.Checkpoint{}) {
		t.Fatalf("an empty anchor answers %v, %v", got, err)
	}
	mustPush(t, a, log, 5)
	five, _ := log.at(5)
	if got, err := Compare(t.Context(), "one", a, newest, log.root); err != nil || got != five {
		t.Fatalf("it answers %v, %v", got, err)
	}
	fork := log.fork(3)
	forked, _ := fork.at(20)
	_, err := Compare(t.Context(), "one", a, forked, fork.root)
	wantFault(t, err, fault.ErrChanged, ReasonAnchorFork)
	cut, _ := log.at(4)
	_, err = Compare(t.Context(), "one", a, cut, log.root)
	wantFault(t, err, fault.ErrChanged, ReasonAnchorAhead)
}
