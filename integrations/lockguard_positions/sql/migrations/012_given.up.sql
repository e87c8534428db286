-- When a signal that has begun was given: who carries out an earlier signal of its symbol must know of it, also
-- where its bot was killed after the order and before the decision was written down.
alter table monitoring.signal_attempts add column symbol text, add column sent_at timestamptz;
comment on column monitoring.signal_attempts.sent_at is
  'when a signal was given that has begun; in a row of its own, given:ID, which stays until the signal is decided';
