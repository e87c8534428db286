-- The bot's table, as it has been for a year.
create schema monitoring;

create table monitoring.positions (
    id bigint generated always as identity primary key,
    exchange text not null,
    symbol text not null,
    side text not null,
    quantity numeric not null,
    entry_price numeric,
    current_price numeric,
    pnl numeric,
    stop_price numeric,
    stop_order_id text,
    status text not null,  -- pending_entry, entry_placed, pending_sl, active; closed, canceled, failed, rolled_back
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create unique index idx_unique_active_position on monitoring.positions (symbol, exchange) where status = 'active';

create function monitoring.touch() returns trigger language plpgsql as $$
begin
    new.updated_at := now();
    return new;
end $$;

create trigger touch before update on monitoring.positions for each row execute function monitoring.touch();
