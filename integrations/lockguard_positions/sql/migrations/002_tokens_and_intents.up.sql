-- Which grant wrote a row last, and what is about to be done on the exchange: an order is never sent before
-- the row that names it is committed, so whoever holds the lease next knows what to look for.
alter table monitoring.positions
  add column if not exists token bigint,
  add column if not exists intent bigint;
comment on column monitoring.positions.token is 'the fencing token under which the state was written last';
comment on column monitoring.positions.intent is 'the number of the last intent; see monitoring.position_intents';

create table monitoring.position_intents (
  exchange text not null,
  symbol text not null,
  number bigint not null,
  position_id bigint not null references monitoring.positions (id) on delete cascade,
  step text not null,
  client_id text not null,
  side text not null,
  amount numeric not null,
  trigger_price numeric,
  token bigint not null,
  recorded_at timestamptz not null default clock_timestamp(),
  settled_at timestamptz,
  outcome text,
  order_id text,
  details text,
  primary key (exchange, symbol, number),
  constraint position_intents_step check (step in ('entry', 'stop', 'close')),
  constraint position_intents_side check (side in ('buy', 'sell')),
  constraint position_intents_outcome check (outcome in ('executed', 'refused', 'absent', 'canceled')),
  constraint position_intents_settled check ((settled_at is null) = (outcome is null))
);
comment on table monitoring.position_intents is 'what was about to be ordered, written before each order, and what became of it';
comment on column monitoring.position_intents.number is
  'grows per symbol and is never used again, even by a database restored from a backup: microseconds since 1970, or one more than the last';
comment on column monitoring.position_intents.client_id is 'the client order id that follows from resource, number and step';
comment on column monitoring.position_intents.token is 'the fencing token under which it was written';
comment on column monitoring.position_intents.settled_at is 'when the outcome became known; null while it is in doubt';
comment on column monitoring.position_intents.outcome is
  'executed, refused, absent (certainly never placed) or canceled (it was placed and taken back)';

create index idx_position_intents_position on monitoring.position_intents (position_id, number);
create index idx_position_intents_in_doubt on monitoring.position_intents (exchange, symbol) where settled_at is null;
