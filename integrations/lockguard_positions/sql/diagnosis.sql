-- What a diagnosis reads: works on every version of the schema, the bot's first one included.

-- name: columns
p.id, p.exchange, p.symbol, p.side, p.quantity, p.status, p.signal_id, p.entry_price, p.entry_order_id,
p.entry_client_id, p.stop_loss_percent, p.stop_price, p.stop_order_id, p.stop_client_id, p.exit_price,
p.exit_order_id, p.exit_reason, p.error_details, p.opened_at, p.closed_at,
(to_jsonb(p) ->> 'token')::bigint as token, to_jsonb(p) ->> 'market' as market,
(extract(epoch from clock_timestamp() - coalesce(p.closed_at, p.opened_at, p.created_at)) * 1000)::bigint as age_ms

-- name: open_rows
select {columns} from monitoring.positions p
 where p.exchange = $1 and p.status in {open}
 order by p.symbol, p.id

-- name: exchanges
select distinct exchange from monitoring.positions
 where status in {open}
 order by 1

-- name: statistics
-- An ended row lasted until it ended, an open one until now.
select status, count(*) as count,
       (avg(extract(epoch from coalesce(closed_at, clock_timestamp()) - created_at)) * 1000)::bigint as duration_ms_average,
       (max(extract(epoch from coalesce(closed_at, clock_timestamp()) - created_at)) * 1000)::bigint as duration_ms_max
  from monitoring.positions
 where $1::text is null or exchange = $1
 group by status
 order by status

-- name: snapshot
-- The rows of a symbol that a clean-up may change, whole, each with its intents.
select to_jsonb(p)::text as position,
       (select coalesce(jsonb_agg(to_jsonb(i) order by i.number), '[]')::text
          from monitoring.position_intents i where i.position_id = p.id) as intents
  from monitoring.positions p
 where p.exchange = $1 and p.symbol = $2
   and (p.status in {open}
        or exists (select from monitoring.position_intents i where i.position_id = p.id and i.settled_at is null))
 order by p.id
