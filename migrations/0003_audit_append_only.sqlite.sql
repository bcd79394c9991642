-- +goose Up
-- The one change that an event may see: fields are erased.
-- +goose StatementBegin
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
WHEN NOT (NEW.leaf_index = OLD.leaf_index AND NEW.id = OLD.id AND NEW.occurred_at = OLD.occurred_at AND NEW.action = OLD.action
    AND NEW.resource = OLD.resource AND NEW.outcome = OLD.outcome AND NEW.count = OLD.count AND NEW.intent = OLD.intent AND NEW.checks = OLD.checks
    AND NEW.erased > OLD.erased AND NEW.erased < 64 AND (NEW.erased & OLD.erased) = OLD.erased
    AND (NEW.actor = OLD.actor OR ((NEW.erased & 1) <> 0 AND (OLD.erased & 1) = 0))
    AND (NEW.partner = OLD.partner OR ((NEW.erased & 2) <> 0 AND (OLD.erased & 2) = 0))
    AND (NEW.reason = OLD.reason OR ((NEW.erased & 4) <> 0 AND (OLD.erased & 4) = 0))
    AND (NEW.request_id = OLD.request_id OR ((NEW.erased & 8) <> 0 AND (OLD.erased & 8) = 0))
    AND (NEW.address = OLD.address OR ((NEW.erased & 16) <> 0 AND (OLD.erased & 16) = 0))
    AND (NEW.detail = OLD.detail OR ((NEW.erased & 32) <> 0 AND (OLD.erased & 32) = 0)))
BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER events_no_delete BEFORE DELETE ON events
WHEN OLD.leaf_index >= (SELECT pruned FROM trail WHERE id = 1) BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;
-- +goose StatementEnd
-- INSERT OR REPLACE deletes without firing the delete trigger, so it is refused on its own.
-- +goose StatementBegin
CREATE TRIGGER events_no_replace BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM events WHERE leaf_index = NEW.leaf_index OR id = NEW.id) BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;
-- +goose StatementEnd
-- What waits leaves only into events.
-- +goose StatementBegin
CREATE TRIGGER event_queue_no_update BEFORE UPDATE ON event_queue BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER event_queue_no_delete BEFORE DELETE ON event_queue
WHEN NOT EXISTS (SELECT 1 FROM events WHERE id = OLD.id) BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER event_queue_no_replace BEFORE INSERT ON event_queue
WHEN EXISTS (SELECT 1 FROM event_queue WHERE seq = NEW.seq) BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;
-- +goose StatementEnd
