-- +goose Up
-- The key that seals rows: see rotation/seal.go.
CREATE TABLE rotation_key (
    id       BIGINT PRIMARY KEY CHECK (id = 1),
    seal_key BYTEA  NOT NULL -- sealed
);

-- Stores and targets: the systems that credentials are put into and are accepted by.
CREATE TABLE systems (
    sort             TEXT   NOT NULL CHECK (sort IN ('store', 'target')),
    name             TEXT   NOT NULL,
    kind             TEXT   NOT NULL,
    settings         TEXT   NOT NULL, -- JSON object
    login            BYTEA,           -- sealed; NULL: none, or that of login_credential
    login_credential TEXT   NOT NULL, -- the credential whose current value is the login; else empty
    created_at       BIGINT NOT NULL,
    since            BIGINT NOT NULL,
    version          BIGINT NOT NULL,
    seal             BYTEA  NOT NULL, -- see rotation/seal.go
    PRIMARY KEY (sort, name)
);

CREATE TABLE credentials (
    name        TEXT   PRIMARY KEY,
    target      TEXT   NOT NULL,
    spec        TEXT   NOT NULL, -- JSON: see rotation.Spec
    state       TEXT   NOT NULL CHECK (state IN ('active', 'paused')),
    reason      TEXT   NOT NULL,
    generation  BIGINT NOT NULL, -- of the newest version
    current     BIGINT NOT NULL, -- generation that consumers read; 0: none yet
    next_at     BIGINT NOT NULL, -- when the schedule has to be looked at; 0: never
    due_at      BIGINT NOT NULL, -- the firing that next_at stands for
    rotated_at  BIGINT NOT NULL,
    drift       TEXT   NOT NULL, -- '', 'store', 'target', 'both', 'label', 'marker'
    drift_note  TEXT   NOT NULL,
    drift_since BIGINT NOT NULL,
    probe_at    BIGINT NOT NULL, -- when it is probed next; 0: never
    probed_at   BIGINT NOT NULL, -- last answer; 0: none
    created_at  BIGINT NOT NULL,
    since       BIGINT NOT NULL,
    version     BIGINT NOT NULL,
    seal        BYTEA  NOT NULL
);
CREATE INDEX credentials_next_at ON credentials (next_at) WHERE next_at > 0;
CREATE INDEX credentials_probe_at ON credentials (probe_at) WHERE probe_at > 0;
CREATE INDEX credentials_target ON credentials (target, name);
CREATE INDEX credentials_drift ON credentials (name) WHERE drift <> '';

-- Where consumers read a credential, and what we last put there.
CREATE TABLE credential_stores (
    credential TEXT   NOT NULL REFERENCES credentials (name),
    store      TEXT   NOT NULL,
    path       TEXT   NOT NULL,
    version    TEXT   NOT NULL, -- the store's own name of it; empty: nothing of ours yet
    generation BIGINT NOT NULL,
    seal       BYTEA  NOT NULL,
    PRIMARY KEY (credential, store, path)
);
CREATE UNIQUE INDEX credential_stores_path ON credential_stores (store, path);

CREATE TABLE credential_labels (
    label      TEXT NOT NULL,
    value      TEXT NOT NULL,
    credential TEXT NOT NULL REFERENCES credentials (name),
    PRIMARY KEY (label, value, credential)
);
CREATE INDEX credential_labels_credential ON credential_labels (credential);

CREATE TABLE credential_versions (
    credential    TEXT   NOT NULL REFERENCES credentials (name),
    generation    BIGINT NOT NULL,
    rotation      TEXT   NOT NULL, -- id of the run that made it
    state         TEXT   NOT NULL CHECK (state IN ('staged', 'current', 'previous', 'retired')),
    account       TEXT   NOT NULL,
    target_id     TEXT   NOT NULL, -- what the target calls it
    sealed        BYTEA,           -- NULL once it is retired, or where no value comes out
    created_at    BIGINT NOT NULL,
    since         BIGINT NOT NULL,
    grace_ends_at BIGINT NOT NULL,
    seal          BYTEA  NOT NULL,
    PRIMARY KEY (credential, generation),
    CHECK (state <> 'retired' OR sealed IS NULL)
);
CREATE UNIQUE INDEX credential_versions_one_current ON credential_versions (credential) WHERE state = 'current';
CREATE UNIQUE INDEX credential_versions_one_staged ON credential_versions (credential) WHERE state = 'staged';

-- One run each. The rows that have not ended are the queue of the workers.
CREATE TABLE rotations (
    id            TEXT   PRIMARY KEY,
    credential    TEXT   NOT NULL REFERENCES credentials (name),
    target        TEXT   NOT NULL,
    generation    BIGINT NOT NULL, -- of the version it makes; of the one it takes back, when back
    back          BOOLEAN NOT NULL, -- it is being rolled back
    cause         TEXT   NOT NULL CHECK (cause IN ('scheduled', 'manual', 'emergency')),
    incident      TEXT   NOT NULL,
    priority      BIGINT NOT NULL, -- higher first
    step          TEXT   NOT NULL CHECK (step IN ('plan', 'issue', 'verify', 'publish', 'grace', 'revoke', 'done', 'failed')),
    failed_step   TEXT   NOT NULL, -- the step at which it failed; else empty
    outcome       TEXT   NOT NULL CHECK (outcome IN ('', 'rotated', 'rolled_back', 'abandoned')),
    work          BYTEA,           -- sealed: see rotation/work.go; NULL after its end
    intent        TEXT   NOT NULL, -- the trail's event of its start
    effect        TEXT   NOT NULL, -- the trail's event of the effect that is under way; else empty
    attempt       BIGINT NOT NULL, -- tries of this step
    rejections    BIGINT NOT NULL, -- values that the target has refused
    error         TEXT   NOT NULL, -- of the last try
    error_reason  TEXT   NOT NULL,
    holder        TEXT   NOT NULL, -- the worker process that is at it
    epoch         BIGINT NOT NULL, -- grows with each claim
    next_at       BIGINT NOT NULL, -- when somebody has to go on with it; 0: waits for a person
    grace         BIGINT NOT NULL, -- microseconds
    grace_ends_at BIGINT NOT NULL,
    quiet_since   BIGINT NOT NULL,
    evidence      TEXT   NOT NULL, -- JSON: last evidence on the old value
    actor         TEXT   NOT NULL,
    reason        TEXT   NOT NULL,
    started_at    BIGINT NOT NULL,
    since         BIGINT NOT NULL, -- of its step
    ended_at      BIGINT NOT NULL,
    version       BIGINT NOT NULL,
    CHECK ((ended_at = 0) = (outcome = ''))
);
CREATE INDEX rotations_queue ON rotations (priority, next_at, id) WHERE ended_at = 0 AND next_at > 0;
CREATE INDEX rotations_held ON rotations (target, holder) WHERE holder <> '';
CREATE INDEX rotations_credential ON rotations (credential, id);
CREATE INDEX rotations_unended ON rotations (credential, id) WHERE ended_at = 0;
CREATE INDEX rotations_open ON rotations (target) WHERE ended_at = 0;
CREATE INDEX rotations_incident ON rotations (incident, id) WHERE incident <> '';
CREATE INDEX rotations_incident_open ON rotations (incident, step) WHERE incident <> '' AND ended_at = 0;
CREATE INDEX rotations_failed ON rotations (id) WHERE step = 'failed';

-- The processes that work on runs, by their heartbeat.
CREATE TABLE rotation_workers (
    holder     TEXT   PRIMARY KEY,
    expires_at BIGINT NOT NULL
);

-- Emergency rotations of many credentials.
CREATE TABLE incidents (
    id         TEXT   PRIMARY KEY,
    selector   TEXT   NOT NULL, -- JSON
    plan_hash  TEXT   NOT NULL,
    grace      BIGINT NOT NULL, -- microseconds
    actor      TEXT   NOT NULL,
    reason     TEXT   NOT NULL,
    state      TEXT   NOT NULL CHECK (state IN ('open', 'stopped', 'closed')),
    total      BIGINT NOT NULL,
    begun      BIGINT NOT NULL,
    skipped    BIGINT NOT NULL, -- credentials that were passed over
    after      TEXT   NOT NULL, -- the last credential that was looked at
    created_at BIGINT NOT NULL,
    ended_at   BIGINT NOT NULL,
    seal       BYTEA  NOT NULL
);
CREATE INDEX incidents_open ON incidents (id) WHERE ended_at = 0;

-- Where consumers are told of new versions.
CREATE TABLE endpoints (
    name       TEXT   PRIMARY KEY,
    url        TEXT   NOT NULL,
    partner    TEXT   NOT NULL, -- whose request secret signs
    secret     TEXT   NOT NULL, -- name of that request secret
    state      TEXT   NOT NULL CHECK (state IN ('active', 'disabled')),
    reason     TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    since      BIGINT NOT NULL,
    version    BIGINT NOT NULL,
    seal       BYTEA  NOT NULL
);

CREATE TABLE deliveries (
    id           TEXT   PRIMARY KEY, -- the webhook-id: the same with every try
    endpoint     TEXT   NOT NULL REFERENCES endpoints (name),
    type         TEXT   NOT NULL, -- 'credential.rotated', …
    body         TEXT   NOT NULL, -- JSON; holds no secret
    state        TEXT   NOT NULL CHECK (state IN ('waiting', 'delivered', 'dead')),
    attempts     BIGINT NOT NULL,
    next_at      BIGINT NOT NULL, -- 0 unless waiting
    created_at   BIGINT NOT NULL,
    delivered_at BIGINT NOT NULL,
    last_status  BIGINT NOT NULL,
    last_error   TEXT   NOT NULL,
    seal         BYTEA  NOT NULL  -- of what is sent: it is signed
);
CREATE INDEX deliveries_queue ON deliveries (next_at) WHERE next_at > 0;
CREATE INDEX deliveries_due ON deliveries (endpoint, next_at, id) WHERE next_at > 0;
CREATE INDEX deliveries_dead ON deliveries (id) WHERE state = 'dead';
CREATE INDEX deliveries_endpoint ON deliveries (endpoint, id);

-- Access tokens of one role more, and the paths of the built-in store that it may
-- read. The table is made anew because SQLite can't change a CHECK.
ALTER TABLE access_tokens RENAME TO access_tokens_0005;
CREATE TABLE access_tokens (
    id           TEXT   PRIMARY KEY,
    name         TEXT   NOT NULL,
    role         TEXT   NOT NULL CHECK (role IN ('admin', 'operator', 'auditor', 'gateway', 'signer', 'partner', 'reader')),
    partner      TEXT   NOT NULL, -- of a partner's token; else empty
    keysets      TEXT   NOT NULL, -- JSON array; empty: all
    cidrs        TEXT   NOT NULL, -- JSON array; empty: any
    hash         BYTEA  NOT NULL, -- HMAC-SHA-256 of the secret under the pepper of pepper_gen
    seal         BYTEA  NOT NULL, -- see apikeys/seal.go
    pepper_gen   BIGINT NOT NULL,
    state        TEXT   NOT NULL CHECK (state IN ('active', 'revoked')),
    reason       TEXT   NOT NULL,
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL, -- 0: no end
    revoked_at   BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL,
    paths        TEXT   NOT NULL -- of a reader's token: JSON array
);
INSERT INTO access_tokens (id, name, role, partner, keysets, cidrs, hash, seal, pepper_gen, state, reason, created_at, expires_at, revoked_at, last_used_at, paths)
SELECT id, name, role, partner, keysets, cidrs, hash, seal, pepper_gen, state, reason, created_at, expires_at, revoked_at, last_used_at, '[]' FROM access_tokens_0005;
DROP TABLE access_tokens_0005;
