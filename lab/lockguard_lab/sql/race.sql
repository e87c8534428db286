-- What the race kit asks the database when a round is over.

-- name: overlapping
-- Symbols for which two rows were open at the same time.
select distinct a.symbol
  from monitoring.positions a
  join monitoring.positions b on b.exchange = a.exchange and b.symbol = a.symbol and b.id > a.id
 where a.status <> 'failed' and b.status <> 'failed'
   and coalesce(a.closed_at, 'infinity') > b.created_at
   and coalesce(b.closed_at, 'infinity') > a.created_at

-- name: stale_committed
-- Writes that carry a lower token than one written before them.
select (select count(*)
          from monitoring.position_intents late
         where exists (
           select from monitoring.position_intents early
            where early.exchange = late.exchange and early.symbol = late.symbol
              and early.number < late.number and early.token > late.token))
     + (select count(*)
          from monitoring.positions p
         where p.token < (select max(i.token) from monitoring.position_intents i where i.position_id = p.id))

-- name: rolled_back
select count(distinct symbol) from monitoring.positions where status = 'rolled_back'

-- name: forget
truncate monitoring.positions cascade
