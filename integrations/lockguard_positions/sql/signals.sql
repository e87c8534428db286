-- What was decided about signals; see migration 009.

-- name: decided
select outcome, details, position_id, action, symbol from monitoring.signals where exchange = $1 and signal_id = $2

-- name: place
-- How old a signal is by the one clock that all bots share, and a later one of its symbol that came first.
select (extract(epoch from clock_timestamp() - $3::timestamptz))::float8 as age_s,
       (select s.signal_id from monitoring.signals s
         where s.exchange = $1 and s.symbol = $2 and s.sent_at > $3
           and s.outcome in ('opened', 'already open', 'closed', 'nothing open')
         order by s.sent_at desc limit 1) as overtaken_by

-- name: record
-- Only the first decision counts.
insert into monitoring.signals (exchange, signal_id, symbol, action, sent_at, outcome, position_id, details, token)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (exchange, signal_id) do nothing
