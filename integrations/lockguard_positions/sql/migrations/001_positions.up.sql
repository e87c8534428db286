-- The table as bots of this design have it, with the index that lets duplicates through: it covers only
-- rows that are active already, so two opens of one symbol meet in it when both have ordered.
create schema if not exists monitoring;

create table monitoring.positions (
  id bigint generated always as identity primary key,
  exchange text not null,
  symbol text not null,
  side text not null,
  quantity numeric not null,
  status text not null,
  signal_id text,
  entry_price numeric,
  entry_order_id text,
  entry_client_id text,
  stop_loss_percent numeric,
  stop_price numeric,
  stop_order_id text,
  stop_client_id text,
  exit_price numeric,
  exit_order_id text,
  exit_client_id text,
  exit_reason text,
  error_details text,
  current_price numeric,
  unrealized_pnl numeric,
  opened_at timestamptz,
  closed_at timestamptz,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  constraint positions_side check (side in ('long', 'short')),
  constraint positions_quantity check (quantity > 0),
  constraint positions_status check (status in (
    'pending_entry', 'entry_placed', 'pending_sl', 'active', 'closed', 'failed', 'rolled_back', 'canceled'))
);
comment on table monitoring.positions is 'one row a position, open and past';
comment on column monitoring.positions.exchange is 'the venue, such as binance';
comment on column monitoring.positions.symbol is 'as in the name of the lock: APTUSDT; dated and other contracts by their full name';
comment on column monitoring.positions.quantity is 'in the base currency; what was filled once that is known';
comment on column monitoring.positions.signal_id is 'what asked for it; null for a position found on the exchange';
comment on column monitoring.positions.entry_price is 'the price asked for, then the average fill';
comment on column monitoring.positions.exit_reason is 'why it was closed, or is being closed';
comment on column monitoring.positions.error_details is 'what went wrong, for people';
comment on column monitoring.positions.current_price is 'a tick: written without the lease';
comment on column monitoring.positions.unrealized_pnl is 'a tick: written without the lease';
comment on column monitoring.positions.opened_at is 'when the entry was known to be filled';
comment on column monitoring.positions.closed_at is 'when it reached one of its last states';

create unique index idx_unique_active_position on monitoring.positions (symbol, exchange) where status = 'active';
create index idx_positions_exchange_symbol on monitoring.positions (exchange, symbol, id);

create function monitoring.touch() returns trigger
language plpgsql
as $$
begin
  new.updated_at := clock_timestamp();
  return new;
end
$$;

create trigger touch before update on monitoring.positions
  for each row execute function monitoring.touch();
