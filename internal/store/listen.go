package store

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// channel is the one PostgreSQL channel of Rotunda; payloads are topics.
const channel = "rotunda"

// relayPause is how long Relay waits before it connects again.
const relayPause = time.Second

// hub wakes those who wait for a topic in this process.
type hub struct {
	mu   sync.Mutex
	subs map[string]map[chan struct{}]struct{}
}

func (h *hub) wake(topic string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.subs[topic] {
		select {
		case ch <- struct{}{}:
		default: // a wake-up is waiting already
		}
	}
}

func (h *hub) wakeAll() {
	h.mu.Lock()
	topics := make([]string, 0, len(h.subs))
	for topic := range h.subs {
		topics = append(topics, topic)
	}
	h.mu.Unlock()
	for _, topic := range topics {
		h.wake(topic)
	}
}

// Listen returns a channel that gets a value some time after a transaction that
// called [Tx.Wake] or [Tx.Announce] for the topic has committed. Several wake-ups
// may become one. It is a hint: a wake-up can be lost with a connection, so who
// waits also looks by himself now and then. Call stop to end it.
func (db *DB) Listen(topic string) (woken <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	db.hub.mu.Lock()
	defer db.hub.mu.Unlock()
	if db.hub.subs == nil {
		db.hub.subs = map[string]map[chan struct{}]struct{}{}
	}
	if db.hub.subs[topic] == nil {
		db.hub.subs[topic] = map[chan struct{}]struct{}{}
	}
	db.hub.subs[topic][ch] = struct{}{}
	return ch, func() {
		db.hub.mu.Lock()
		defer db.hub.mu.Unlock()
		delete(db.hub.subs[topic], ch)
		if len(db.hub.subs[topic]) == 0 {
			delete(db.hub.subs, topic)
		}
	}
}

// Wake wakes the listeners of a topic in this process after the commit.
func (tx *Tx) Wake(topic string) {
	tx.AfterCommit(func() { tx.db.hub.wake(topic) })
}

// Announce wakes the listeners of a topic in every process on this database
// after the commit. On PostgreSQL it is a NOTIFY, whose commits wait for one
// another: it is for what happens a few times a second.
func (tx *Tx) Announce(ctx context.Context, topic string) error {
	tx.Wake(topic)
	if tx.db.dialect.relay == nil {
		return nil
	}
	if _, err := tx.Exec(ctx, `SELECT pg_notify($1, $2)`, channel, topic); err != nil {
		return fmt.Errorf("announce %s: %w", topic, err)
	}
	return nil
}

// Relay hears what other processes announce, and wakes the listeners of this
// one, until ctx ends. Whenever it had to connect anew it wakes all of them. A
// lost connection is reported to failed, and made again.
func (db *DB) Relay(ctx context.Context, failed func(error)) {
	if db.dialect.relay == nil {
		<-ctx.Done()
		return
	}
	for ctx.Err() == nil {
		err := db.dialect.relay(ctx, db.hub.wakeAll, db.hub.wake)
		if ctx.Err() != nil {
			return
		}
		failed(err)
		select {
		case <-ctx.Done():
		case <-time.After(relayPause):
		}
	}
}

// Snapshot makes all statements of this transaction see one state of the
// database: what was committed before the first of them. It must come before
// any of them. A row that another transaction changed meanwhile can then not be
// changed by this one: Update runs it again.
func (tx *Tx) Snapshot(ctx context.Context) error {
	if tx.db.dialect.snapshot == "" {
		return nil
	}
	_, err := tx.Exec(ctx, tx.db.dialect.snapshot)
	return err
}
