-- The bot's table, as it was before this guide.
create schema monitoring;

create table monitoring.positions (
    id bigint generated always as identity primary key,
    exchange text not null,
    symbol text not null,
    side text not null,
    quantity numeric not null,
    entry_price numeric,
    current_price numeric,
    status text not null,  -- pending_entry, entry_placed, active; closed, rolled_back
    created_at timestamptz not null default now()
);

create unique index idx_unique_active_position on monitoring.positions (symbol, exchange) where status = 'active';
