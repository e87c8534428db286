create table candles (symbol text, candle bigint, primary key (symbol, candle));
create table beats (id bigint generated always as identity, process int);
create table entries (
    id bigint generated always as identity primary key,
    signal text unique,
    deliveries int default 1
);
create table positions (symbol text primary key, status text);
