-- What a row's symbol stands for, in full: a name such as BTCUSDC is a perpetual here and a spot market there.
-- And which bots are carrying out a signal, so that one that ends them can be set aside.

-- In place: a generated column fills the rows that are there without an update, which would fire the triggers
-- that judge changes of state, and touch each row's time. Then it becomes an ordinary column.
alter table monitoring.positions add column if not exists market text generated always as (
  case
    when symbol ~ '/' then symbol
    when symbol ~ '^[A-Z0-9]+(USDT|USDC|FDUSD|BUSD)$'
      then regexp_replace(symbol, '^([A-Z0-9]+?)(USDT|USDC|FDUSD|BUSD)$', '\1/\2:\2')
  end) stored;
alter table monitoring.positions alter column market drop expression if exists;
comment on column monitoring.positions.market is
  'the unified symbol, such as BTC/USDT:USDT; null where it cannot be told from the name of a row of before';

create table monitoring.signal_attempts (
  exchange text not null,
  signal_id text not null,
  bot text not null,
  begun_at timestamptz not null default clock_timestamp(),
  primary key (exchange, signal_id, bot)
);
comment on table monitoring.signal_attempts is
  'who is carrying out which signal; what is found under the lease of its symbol was left by a bot that ended in the middle';

alter table monitoring.signals drop constraint signals_outcome;
alter table monitoring.signals add constraint signals_outcome check (
  outcome in ('opened', 'already open', 'closed', 'nothing open', 'overtaken', 'refused', 'set aside'));
