package server

import (
	"context"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

// Places keeps where copies of the trail and of its checkpoints go. It stands for
// the adapters, which only cmd knows: what an address or an option means is theirs
// to judge, with fault.ErrInvalid and the name of the field, before anything is
// stored.
//
// Every change is written in one transaction with its event, and so is refused
// when the trail can't be written. No secret that was given ever comes out again.
// Creating and deleting wake what runs the places, in every replica.
type Places interface {
	CreateSink(ctx context.Context, s NewSink) (Sink, error)
	Sinks(ctx context.Context) ([]Sink, error) // by name
	DeleteSink(ctx context.Context, name string) error

	CreateAnchor(ctx context.Context, a NewAnchor) (Anchor, error)
	Anchors(ctx context.Context) ([]Anchor, error) // by name
	DeleteAnchor(ctx context.Context, name string) error

	// CreateWitness adds a witness whose VKey and URL are given.
	CreateWitness(ctx context.Context, w audit.Witness) (audit.Witness, error)

	// Running returns how the places do that this process runs, from memory: it is
	// asked with each scrape of the metrics.
	Running() Running
}

// Sink is a place that gets a copy of every event.
type Sink struct {
	Name       string
	Kind       string
	Address    string
	Format     string
	CA         string // PEM
	ServerName string
	ClientCert string // PEM
	Options    map[string]string

	HasSecret bool
	CreatedAt time.Time
	Next      int64 // the leaf index that it gets next, as its cursor has it
}

// NewSink is a sink that is to be created.
type NewSink struct {
	Sink
	Secret    secret.Value // zero: none
	ClientKey secret.Value // PEM; zero: none
	Index     int64        // the first leaf index that it gets; -1: the next event
}

// Anchor is a place that gets the newest checkpoints.
type Anchor struct {
	Name       string
	Kind       string
	Address    string
	Prefix     string
	Region     string
	Endpoint   string
	PathStyle  bool
	AccessKey  string // an identifier, not a secret
	RetainDays int
	CA         string // PEM
	NoLatest   bool

	HasSecret bool
	CreatedAt time.Time
}

// NewAnchor is an anchor that is to be created.
type NewAnchor struct {
	Anchor
	Secret secret.Value // zero: none
}

// Running is what this process runs, each by its name.
type Running struct {
	Sinks     map[string]SinkState
	Anchors   map[string]PushState
	Witnesses map[string]PushState
}

// SinkState is how a sink does in this process. Counters begin with the process.
type SinkState struct {
	OK        bool          // what was tried last worked
	LastError string        // "" once something was delivered; holds no secret
	LagEvents int64         // in the trail and not sent
	Lag       time.Duration // age of the oldest of them
	Delivered int64
	Failures  int64
}

// PushState is how an anchor or a witness does in this process.
type PushState struct {
	OK        bool
	LastError string    // holds no secret
	Size      int64     // of the checkpoint that it took last; -1: none since the start
	At        time.Time // when; zero: never
	Pushed    int64
	Failures  int64
}
