-- +goose Up
CREATE TABLE events (
    id          TEXT   PRIMARY KEY,
    occurred_at BIGINT NOT NULL,
    actor       TEXT   NOT NULL,
    action      TEXT   NOT NULL,
    resource    TEXT   NOT NULL,
    partner     TEXT   NOT NULL,
    outcome     TEXT   NOT NULL CHECK (outcome IN ('ok', 'denied')),
    reason      TEXT   NOT NULL,
    request_id  TEXT   NOT NULL,
    address     TEXT   NOT NULL,
    detail      TEXT   NOT NULL,
    count       BIGINT NOT NULL CHECK (count >= 1)
);
CREATE INDEX events_occurred_at ON events (occurred_at);
CREATE INDEX events_actor ON events (actor, id);
CREATE INDEX events_action ON events (action, id);
CREATE INDEX events_resource ON events (resource, id);
CREATE INDEX events_partner ON events (partner, id) WHERE partner <> '';
CREATE INDEX events_request_id ON events (request_id) WHERE request_id <> '';
