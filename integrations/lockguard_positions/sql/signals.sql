-- What was decided about signals; see migration 009.

-- name: decided
select outcome, details, position_id, action, symbol from monitoring.signals where exchange = $1 and signal_id = $2

-- name: place
-- How old a signal is by the one clock that all bots share, and a later one of its symbol that came first: by its
-- decision or, where that was not written down, by its row. And a later one whose row does not tell yet: that of an
-- adopted position names no signal.
with begun as (
  select given.signal_id, a.sent_at,
         p.status = 'closed' or (p.status = 'active' and p.signal_id is not distinct from given.signal_id) as done
    from monitoring.signal_attempts a,
         lateral (select substr(a.signal_id, length($4::text) + 1)) given (signal_id),
         monitoring.positions p
   where a.exchange = $1 and a.symbol = $2 and a.sent_at > $3
     and p.exchange = $1 and p.symbol = $2 and p.status not in ('failed', 'rolled_back', 'canceled')
     and (p.signal_id = given.signal_id or p.exit_reason = $5::text || given.signal_id)
), came as (
  select s.signal_id, s.sent_at from monitoring.signals s
   where s.exchange = $1 and s.symbol = $2 and s.sent_at > $3
     and s.outcome in ('opened', 'already open', 'closed', 'nothing open')
  union all
  select signal_id, sent_at from begun where done
)
select (extract(epoch from clock_timestamp() - $3::timestamptz))::float8 as age_s,
       (select signal_id from came order by sent_at desc limit 1) as overtaken_by,
       (select signal_id from begun where not done order by sent_at desc limit 1) as under_way

-- name: record
-- Only the first decision counts. An instant that has not come yet would overtake all signals until it comes.
insert into monitoring.signals (exchange, signal_id, symbol, action, sent_at, outcome, position_id, details, token)
values ($1, $2, $3, $4, case when $5::timestamptz <= clock_timestamp() + interval '1 minute' then $5 end, $6, $7, $8, $9)
on conflict (exchange, signal_id) do nothing

-- name: begin_attempt
-- Asked under the lease of the symbol: whoever else is found here does not carry the signal out any more. When the
-- signal was given is kept until it is decided, as the attempt may end before that.
with mine as (
  insert into monitoring.signal_attempts (exchange, signal_id, bot) values ($1, $2, $3)
  on conflict (exchange, signal_id, bot) do nothing
), given as (
  insert into monitoring.signal_attempts (exchange, signal_id, bot, symbol, sent_at)
  select $1, $4::text || $2, '', $5::text, $6::timestamptz
   where $6::timestamptz <= clock_timestamp() + interval '1 minute'
  on conflict (exchange, signal_id, bot) do nothing
)
select bot from monitoring.signal_attempts where exchange = $1 and signal_id = $2 and bot not in ($3, '')
 order by begun_at

-- name: begin_reading
-- A line of a file has no symbol yet, so no lease keeps others from it: only who began long ago has ended.
with mine as (
  insert into monitoring.signal_attempts (exchange, signal_id, bot) values ($1, $2, $3)
  on conflict (exchange, signal_id, bot) do update set begun_at = clock_timestamp()
)
select count(*) from monitoring.signal_attempts
 where exchange = $1 and signal_id = $2 and bot <> $3
   and begun_at < clock_timestamp() - make_interval(secs => $4)

-- name: end_attempt
delete from monitoring.signal_attempts where exchange = $1 and signal_id = $2 and bot = $3

-- name: end_decided
delete from monitoring.signal_attempts
 where exchange = $1 and ((signal_id = $2 and bot <> '') or (signal_id = $3::text || $2 and bot = ''))

-- name: end_all_attempts
delete from monitoring.signal_attempts where exchange = $1 and signal_id = $2
