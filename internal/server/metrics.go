package server

import (
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/jwks"
	"github.com/rotunda-dev/rotunda/rotation"
)

// meters are the server's Prometheus metrics. No label holds what a stranger
// can choose.
type meters struct {
	registry *prometheus.Registry

	requests     *prometheus.CounterVec
	durations    *prometheus.HistogramVec
	documents200 prometheus.Counter
	documents304 prometheus.Counter
	documents404 prometheus.Counter
	documents429 prometheus.Counter
	signed       *prometheus.CounterVec
	passes       *prometheus.CounterVec
	passSeconds  *prometheus.HistogramVec
	clockSteps   prometheus.Counter
	decisions    map[apikeys.Kind][]prometheus.Counter // by reason
	known        map[string]*procedureMeters           // of every procedure
	rotation     rotationMeters
}

// procedureMeters are those of calls that were answered: to find them by their labels
// costs more than to count.
type procedureMeters struct {
	once sync.Once // what was never called is not shown
	ok   prometheus.Counter
	took prometheus.Observer
}

func newMeters(s *Server) *meters {
	documents := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rotunda_documents_total", Help: "JWKS documents asked for, by status: 200, 304, 404, 429."}, []string{"status"})
	m := &meters{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotunda_requests_total", Help: "RPCs by procedure and Connect code."}, []string{"procedure", "code"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rotunda_request_seconds", Help: "Time that RPCs took.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9)}, []string{"procedure"}),
		documents200: documents.WithLabelValues("200"),
		documents304: documents.WithLabelValues("304"),
		documents404: documents.WithLabelValues("404"),
		documents429: documents.WithLabelValues("429"),
		signed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotunda_tokens_signed_total", Help: "Tokens signed, by keyset and whether the standby stood in."}, []string{"keyset", "fallback"}),
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotunda_passes_total", Help: "Runs of scheduled passes, by outcome: ok, failed, overdue."}, []string{"pass", "outcome"}),
		passSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rotunda_pass_seconds", Help: "Time that passes took.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9)}, []string{"pass"}),
		clockSteps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rotunda_clock_steps_total", Help: "Times that the wall clock was seen to jump."}),
	}
	m.known = map[string]*procedureMeters{}
	for procedure := range groups {
		m.known[procedure] = &procedureMeters{}
	}
	verifications := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rotunda_verifications_total", Help: "API keys and signed requests that were verified, by outcome: ok, or why denied."}, []string{"kind", "reason"})
	m.decisions = map[apikeys.Kind][]prometheus.Counter{}
	for _, kind := range []apikeys.Kind{apikeys.APIKey, apikeys.RequestSecret} {
		for r := range apikeys.ReasonDigest + 1 {
			reason := r.String()
			if r == 0 {
				reason = "unavailable" // nobody knew
			}
			m.decisions[kind] = append(m.decisions[kind], verifications.WithLabelValues(string(kind), reason))
		}
	}
	m.rotation = newRotationMeters()
	m.registry.MustRegister(documents, verifications, verifierCollector{s}, rotationCollector{s}, m.rotation.effects, m.rotation.took, m.requests, m.durations, m.signed, m.passes, m.passSeconds, m.clockSteps,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), keysetCollector{s}, trailCollector{s})
	return m
}

func (m *meters) request(procedure, code string, took time.Duration) {
	if known, ok := m.known[procedure]; ok && code == "ok" {
		known.once.Do(func() {
			known.ok, known.took = m.requests.WithLabelValues(procedure, code), m.durations.WithLabelValues(procedure)
		})
		known.ok.Inc()
		known.took.Observe(took.Seconds())
		return
	}
	procedure = clipPath(procedure)
	m.requests.WithLabelValues(procedure, code).Inc()
	m.durations.WithLabelValues(procedure).Observe(took.Seconds())
}

// decided counts the decision about a key, or with an error that there is none.
func (m *meters) decided(kind apikeys.Kind, r apikeys.Reason, err error) {
	if err != nil {
		r = 0
	}
	m.decisions[kind][min(int(r), len(m.decisions[kind])-1)].Inc()
}

// verifierCollector reads what this process knows of keys, at the moment it is asked.
type verifierCollector struct{ s *Server }

var (
	verifierEntries = prometheus.NewDesc("rotunda_verifier_keys", "API keys and request secrets in memory.", nil, nil)
	verifierHits    = prometheus.NewDesc("rotunda_verifier_hits_total", "Verifications that were answered from memory.", nil, nil)
	verifierLoads   = prometheus.NewDesc("rotunda_verifier_loads_total", "Keys that were read from the database to be verified.", nil, nil)
	verifierShed    = prometheus.NewDesc("rotunda_verifier_shed_total", "Unknown keys that were denied without a look into the database, because there were too many.", nil, nil)
	verifierBehind  = prometheus.NewDesc("rotunda_verifier_behind_seconds", "How long ago this replica last heard of changes of keys.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c verifierCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{verifierEntries, verifierHits, verifierLoads, verifierShed, verifierBehind} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c verifierCollector) Collect(ch chan<- prometheus.Metric) {
	st := c.s.Verifier.Stats()
	ch <- prometheus.MustNewConstMetric(verifierEntries, prometheus.GaugeValue, float64(st.Entries))
	ch <- prometheus.MustNewConstMetric(verifierHits, prometheus.CounterValue, float64(st.Hits))
	ch <- prometheus.MustNewConstMetric(verifierLoads, prometheus.CounterValue, float64(st.Loads))
	ch <- prometheus.MustNewConstMetric(verifierShed, prometheus.CounterValue, float64(st.Shed))
	ch <- prometheus.MustNewConstMetric(verifierBehind, prometheus.GaugeValue, st.Behind.Seconds())
}

// Observe counts one run of a pass. It is the scheduler's Observe.
func (s *Server) Observe(o rotation.Outcome) {
	if o.Running {
		s.metrics.passes.WithLabelValues(o.Pass, "overdue").Inc()
		return
	}
	outcome := "ok"
	if o.Err != nil {
		outcome = "failed"
	}
	s.metrics.passes.WithLabelValues(o.Pass, outcome).Inc()
	s.metrics.passSeconds.WithLabelValues(o.Pass).Observe(o.Took.Seconds())
	if o.Step != 0 {
		s.metrics.clockSteps.Inc()
	}
}

// keysetCollector reads what this process publishes, at the moment it is asked.
type keysetCollector struct{ s *Server }

var (
	keyAge = prometheus.NewDesc("rotunda_signing_key_age_seconds",
		"Age of each published key in its state.", []string{"keyset", "kid", "state"}, nil)
	nextMove = prometheus.NewDesc("rotunda_keyset_next_move_seconds",
		"Time until the next planned move of a key; negative when it is late.", []string{"keyset"}, nil)
	standbys = prometheus.NewDesc("rotunda_keyset_standby",
		"Whether a standby is published: 1 or 0.", []string{"keyset"}, nil)
	versions = prometheus.NewDesc("rotunda_keyset_version",
		"Version of the published document.", []string{"keyset"}, nil)
	fallbacks = prometheus.NewDesc("rotunda_keyset_fallback_seconds",
		"How long the standby has been signing because the active key's signer is out of reach; 0 when it is not.", []string{"keyset"}, nil)
	tampered = prometheus.NewDesc("rotunda_keyset_tampered_keys",
		"Keys that are not published because somebody else changed their rows in the database.", []string{"keyset"}, nil)
	staleness = prometheus.NewDesc("rotunda_staleness_seconds",
		"How long ago this replica last heard from the database.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c keysetCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{keyAge, nextMove, standbys, versions, fallbacks, tampered, staleness} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c keysetCollector) Collect(ch chan<- prometheus.Metric) {
	now := c.s.DB.Now()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(staleness, c.s.Keysets.Staleness().Seconds())
	c.s.Keysets.Published(func(set *jwks.Keyset) bool {
		for _, k := range set.Keys {
			gauge(keyAge, now.Sub(k.Since).Seconds(), set.Name, k.Kid, string(k.State))
		}
		gauge(nextMove, set.NextAt.Sub(now).Seconds(), set.Name)
		standby := 0.0
		if set.Standby() != nil {
			standby = 1
		}
		gauge(standbys, standby, set.Name)
		gauge(versions, float64(set.Version), set.Name)
		fallback := 0.0
		if !set.FallbackSince.IsZero() {
			fallback = now.Sub(set.FallbackSince).Seconds()
		}
		gauge(fallbacks, fallback, set.Name)
		gauge(tampered, float64(len(set.Tampered)), set.Name)
		return true
	})
}

func (s *Server) metricsHandler() http.Handler {
	h := promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.authz.allows(callerOf(r.Context()).subject, metricsPath, "") {
			s.deny(r.Context(), audit.Event{Action: "metrics", Reason: "role"})
			http.Error(w, "this token may not read metrics: use one of role auditor or operator", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// healthz says that the process runs, and what it can't do: a restart would not help.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header()["Cache-Control"] = noStore
	text := "ok\n"
	if s.trailStopped() {
		text = "ok, degraded: the trail is stopped, and changes are refused; documents are served, and tokens verified, as before\n"
	}
	_, _ = w.Write([]byte(text))
}

// unreadyAfter is how long a replica may be without its database before load
// balancers should leave it out: what it serves may be old.
const unreadyAfter = 15 * time.Second

func (s *Server) ready() (bool, string) {
	switch {
	case !s.Keysets.Loaded():
		return false, "documents are not loaded yet"
	case s.Keysets.Staleness() > unreadyAfter:
		return false, "the database has not answered for " + s.Keysets.Staleness().Truncate(time.Second).String() + "; documents are served from memory"
	}
	return true, "ok"
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	w.Header()["Cache-Control"] = noStore
	ok, why := s.ready()
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write([]byte(why + "\n"))
}
