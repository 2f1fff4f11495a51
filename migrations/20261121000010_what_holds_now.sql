-- A statement that waits for a row's lock goes on with the snapshot of before the wait. These are asked once the lock is
-- held, and say what is so then: only a volatile function looks with a snapshot of its own.
alter function is_frozen(text, text, text, text) volatile;
alter function task_is_live(uuid, text, text, timestamptz) volatile;
alter function has_its_approvals(uuid, smallint) volatile;
