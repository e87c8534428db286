-- What was decided about each signal: one that is delivered twice, or again after the bot that had it was
-- killed, is carried out once. Written under the lease of its symbol, through the fence.
create table monitoring.signals (
  exchange text not null,
  signal_id text not null,
  symbol text not null,
  action text not null,
  sent_at timestamptz,
  outcome text not null,
  position_id bigint references monitoring.positions (id) on delete set null,
  details text not null,
  token bigint not null,
  decided_at timestamptz not null default clock_timestamp(),
  primary key (exchange, signal_id),
  constraint signals_action check (action in ('open', 'close')),
  constraint signals_outcome check (outcome in ('opened', 'already open', 'closed', 'nothing open', 'overtaken', 'refused'))
);
comment on table monitoring.signals is 'one row a signal: what was decided about it, once and for all';
comment on column monitoring.signals.sent_at is 'when it was given; null when the signal does not say';
comment on column monitoring.signals.position_id is 'what it opened, closed or met';
comment on column monitoring.signals.details is 'for people, above all why it was refused';
comment on column monitoring.signals.token is 'the fencing token under which it was decided';

create index idx_signals_sent on monitoring.signals (exchange, symbol, sent_at) where sent_at is not null;
create index if not exists idx_positions_signal on monitoring.positions (exchange, symbol, signal_id) where signal_id is not null;
