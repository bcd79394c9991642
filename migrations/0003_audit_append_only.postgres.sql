-- +goose Up
-- +goose StatementBegin
CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are append-only';
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION events_no_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM gone WHERE leaf_index >= (SELECT pruned FROM trail WHERE id = 1)) THEN
        RAISE EXCEPTION 'events are append-only';
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE FUNCTION event_queue_no_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM gone WHERE NOT EXISTS (SELECT 1 FROM events WHERE events.id = gone.id)) THEN
        RAISE EXCEPTION 'events are append-only';
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
-- The one change that an event may see: fields are erased.
CREATE TRIGGER events_no_update BEFORE UPDATE ON events FOR EACH ROW
WHEN (NOT (NEW.leaf_index = OLD.leaf_index AND NEW.id = OLD.id AND NEW.occurred_at = OLD.occurred_at AND NEW.action = OLD.action
    AND NEW.resource = OLD.resource AND NEW.outcome = OLD.outcome AND NEW.count = OLD.count AND NEW.intent = OLD.intent AND NEW.checks = OLD.checks
    AND NEW.erased > OLD.erased AND NEW.erased < 64 AND (NEW.erased & OLD.erased) = OLD.erased
    AND (NEW.actor = OLD.actor OR ((NEW.erased & 1) <> 0 AND (OLD.erased & 1) = 0))
    AND (NEW.partner = OLD.partner OR ((NEW.erased & 2) <> 0 AND (OLD.erased & 2) = 0))
    AND (NEW.reason = OLD.reason OR ((NEW.erased & 4) <> 0 AND (OLD.erased & 4) = 0))
    AND (NEW.request_id = OLD.request_id OR ((NEW.erased & 8) <> 0 AND (OLD.erased & 8) = 0))
    AND (NEW.address = OLD.address OR ((NEW.erased & 16) <> 0 AND (OLD.erased & 16) = 0))
    AND (NEW.detail = OLD.detail OR ((NEW.erased & 32) <> 0 AND (OLD.erased & 32) = 0))))
EXECUTE FUNCTION events_append_only();
CREATE TRIGGER events_no_delete AFTER DELETE ON events
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION events_no_delete();
CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION events_append_only();
-- What waits leaves only into events.
CREATE TRIGGER event_queue_no_update BEFORE UPDATE ON event_queue
    FOR EACH ROW EXECUTE FUNCTION events_append_only();
CREATE TRIGGER event_queue_no_delete AFTER DELETE ON event_queue
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION event_queue_no_delete();
CREATE TRIGGER event_queue_no_truncate BEFORE TRUNCATE ON event_queue
    FOR EACH STATEMENT EXECUTE FUNCTION events_append_only();
-- Also while replicating with session_replication_role = replica.
ALTER TABLE events ENABLE ALWAYS TRIGGER events_no_update;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_no_delete;
ALTER TABLE events ENABLE ALWAYS TRIGGER events_no_truncate;
ALTER TABLE event_queue ENABLE ALWAYS TRIGGER event_queue_no_update;
ALTER TABLE event_queue ENABLE ALWAYS TRIGGER event_queue_no_delete;
ALTER TABLE event_queue ENABLE ALWAYS TRIGGER event_queue_no_truncate;
