-- What the repository reads and writes; each block is one statement. State is written only inside a fenced
-- transaction, which has presented (token, grant) and keeps the fence's row locked until it ends.

-- name: columns
id, exchange, symbol, side, quantity, status, signal_id, entry_price, entry_order_id, entry_client_id,
stop_loss_percent, stop_price, stop_order_id, stop_client_id, exit_price, exit_order_id, exit_reason,
error_details, opened_at, closed_at, token, to_jsonb(positions) ->> 'market' as market,
(extract(epoch from clock_timestamp() - coalesce(closed_at, opened_at, created_at)) * 1000)::bigint as age_ms

-- name: intent_columns
-- Of an intent i. The last one is by how much the row has grown since: a row has the parts that its entry was filled in
-- as intents of their own.
i.number, i.position_id, i.step, i.client_id, i.side, i.amount, i.trigger_price, i.details,
(extract(epoch from clock_timestamp() - i.recorded_at) * 1000)::bigint as age_ms,
(select coalesce(sum(p.amount), 0) from monitoring.position_intents p
  where p.position_id = i.position_id and p.number > i.number and p.step = 'entry' and p.details = {part}) as entered_since

-- name: open_of_symbol
select {columns} from monitoring.positions
 where exchange = $1 and symbol = $2 and status in {open}
 order by id limit 1

-- name: open_under_other_labels
select {columns} from monitoring.positions
 where symbol = $2 and exchange <> $1 and split_part(exchange, '@', 1) = split_part($1, '@', 1)
   and status in {open}
 order by id

-- name: all_open_of_symbol
select {columns} from monitoring.positions
 where exchange = $1 and symbol = $2 and status in {open}
 order by id

-- name: open_of_exchange
select {columns} from monitoring.positions
 where exchange = $1 and status in {open}
 order by id

-- name: by_id
select {columns} from monitoring.positions where id = $1

-- name: last_under
-- The row that was made last under a token, which one holder at a time writes with.
select {columns} from monitoring.positions
 where exchange = $1 and symbol = $2 and token = $3
 order by id desc limit 1

-- name: last_ended
select {columns} from monitoring.positions
 where exchange = $1 and symbol = $2 and status in ('closed', 'rolled_back', 'canceled')
 order by closed_at desc nulls last, id desc limit 1

-- name: opened_by_signal
select {columns} from monitoring.positions
 where exchange = $1 and symbol = $2 and signal_id = $3
 order by id desc limit 1

-- name: closed_for_reason
select {columns} from monitoring.positions
 where exchange = $1 and symbol = $2 and exit_reason = $3
 order by id desc limit 1

-- name: withdrawn_for_reason
-- The exit was asked for, and not made; looked for among the latest, as it is asked while a signal is carried out.
with latest as (
  select position_id, step, outcome, details from monitoring.position_intents
   where exchange = $1 and symbol = $2
   order by number desc limit 200
)
select position_id from latest where step = 'close' and outcome = 'absent' and details = $3 limit 1

-- name: intent_in_doubt
select {intent_columns} from monitoring.position_intents i
 where position_id = $1 and settled_at is null and step = any($2)
 order by number desc limit 1

-- name: loose_stops
select {intent_columns} from monitoring.position_intents i
 where i.exchange = $1 and i.symbol = $2 and i.step = 'stop' and i.settled_at is null
   and exists (
     select from monitoring.positions p
      where p.id = i.position_id and p.status not in {open})
 order by number

-- name: symbols_with_loose_orders
-- Stops in doubt of positions that have ended, and of active ones, whose stop was being moved; and what is left of an
-- entry that was filled in part. Nothing settles the entry of a row that was ended by hand: it is no reason to look.
select distinct i.symbol from monitoring.position_intents i
 where i.exchange = $1 and i.step in ('entry', 'stop') and i.settled_at is null
   and exists (
     select from monitoring.positions p
      where p.id = i.position_id and p.status not in ('pending_entry', 'entry_placed', 'pending_sl')
        and (i.step = 'stop' or p.status = 'active'))
 order by 1

-- name: attached_stop
select trigger_price from monitoring.position_intents
 where position_id = $1 and step = 'entry' and trigger_price is not null
 order by number desc limit 1

-- name: stops_of
select {intent_columns}, unanswered or outcome = 'executed' as may_stand, unanswered
  from monitoring.position_intents i,
       lateral (select settled_at is null or coalesce(details, '') = {copied}) s (unanswered)
 where position_id = $1 and step = 'stop'

-- name: insert_position
insert into monitoring.positions
  (exchange, symbol, side, quantity, status, signal_id, entry_price, stop_loss_percent, error_details, token,
   opened_at, closed_at, intent, entry_client_id, market)
values ($1, $2, $3, $4, $5::text, $6, $7, $8, $9, $10,
        case when $5 = 'entry_placed' then clock_timestamp() end,
        case when $5 = 'failed' then clock_timestamp() end, $11::bigint, $12::text, $13)
returning {columns}

-- name: insert_position_before_10
-- The same where rows have no column for the unified symbol yet.
insert into monitoring.positions
  (exchange, symbol, side, quantity, status, signal_id, entry_price, stop_loss_percent, error_details, token,
   opened_at, closed_at, intent, entry_client_id)
values ($1, $2, $3, $4, $5::text, $6, $7, $8, $9, $10,
        case when $5 = 'entry_placed' then clock_timestamp() end,
        case when $5 = 'failed' then clock_timestamp() end, $11::bigint, $12::text)
returning {columns}

-- name: intend_entry
-- In one statement with the row that names it. Its price is that of the stop that the entry brings along.
insert into monitoring.position_intents
  (exchange, symbol, number, position_id, step, client_id, side, amount, trigger_price, token)
select exchange, symbol, $11::bigint, id, 'entry', entry_client_id,
       case side when 'long' then 'buy' else 'sell' end, quantity, {last}::numeric, token
  from lockguard_write

-- name: has_market
select exists (
  select from pg_attribute
   where attrelid = 'monitoring.positions'::regclass and attname = 'market' and not attisdropped)

-- name: next_intent
-- Never below the clock: a restored database must not hand a number out again, as the exchange still knows
-- the order of that name.
select greatest(
  (extract(epoch from clock_timestamp()) * 1000000)::bigint,
  (select max(number) + 1 from monitoring.position_intents where exchange = $1 and symbol = $2))

-- name: settle_intent
-- This and the others that settle a stop keep what says that another copy of it may still arrive.
update monitoring.position_intents
   set settled_at = clock_timestamp(), outcome = $4, order_id = coalesce($5, order_id),
       details = case when details = {copied} then details else $6 end
 where exchange = $1 and symbol = $2 and number = $3 and settled_at is null
returning number

-- name: record_entry
with settled as (
  update monitoring.position_intents
     set settled_at = clock_timestamp(), outcome = 'executed', order_id = coalesce($3::text, order_id), details = null
   where position_id = $1 and number = $7::bigint and settled_at is null
)
update monitoring.positions
   set status = 'entry_placed', entry_order_id = $3, entry_price = coalesce($4, entry_price), quantity = $5,
       opened_at = clock_timestamp(), error_details = null, token = $6
 where id = $1 and status = $2
returning {columns}, greatest(
  (extract(epoch from clock_timestamp()) * 1000000)::bigint,
  (select max(i.number) + 1 from monitoring.position_intents i
    where i.exchange = positions.exchange and i.symbol = positions.symbol)) as next_intent

-- name: add_part
-- What an entry has filled that its row does not have yet, as an intent of its own; no row if it has all of it. What is
-- asked for is all that the entry has filled, so that nothing counts twice.
insert into monitoring.position_intents
  (exchange, symbol, number, position_id, step, client_id, side, amount, token, settled_at, outcome, order_id, details)
select p.exchange, p.symbol, $3::bigint, p.id, 'entry', p.entry_client_id, case p.side when 'long' then 'buy' else 'sell' end,
       more.amount, $5::bigint, clock_timestamp(), 'executed', $6::text, {part}
  from monitoring.positions p,
       lateral (select $4::numeric - coalesce(sum(i.amount), 0) from monitoring.position_intents i
                 where i.position_id = p.id and i.step = 'entry' and i.details = {part}) more (amount)
 where p.id = $1 and p.status = $2 and more.amount > 0
returning amount

-- name: enlarge
-- It is as old as its last part, as lists may not show that yet.
update monitoring.positions
   set quantity = $3, entry_price = coalesce($4, entry_price), token = $5,
       opened_at = case when $6::boolean then clock_timestamp() else opened_at end
 where id = $1 and status = $2
returning {columns}

-- name: fills_with_stop
select exists (
  select from monitoring.status_transitions where old_status = 'pending_entry' and new_status = 'pending_sl')

-- name: record_entry_with_stop
-- The fill, what became of the intent to enter, and the intent of the stop: in one statement with the two that follow.
update monitoring.positions
   set status = 'pending_sl', entry_order_id = $3, entry_price = coalesce($4, entry_price), quantity = $5,
       opened_at = clock_timestamp(), error_details = null, token = $6,
       stop_price = $8, stop_client_id = $10, stop_order_id = null, intent = $9
 where id = $1 and status = $2
returning {columns}

-- name: settle_entry
update monitoring.position_intents i
   set settled_at = clock_timestamp(), outcome = 'executed', order_id = coalesce($3::text, order_id), details = null
  from lockguard_write entered
 where i.position_id = entered.id and i.number = $7::bigint and i.settled_at is null

-- name: intend_first_stop
insert into monitoring.position_intents
  (exchange, symbol, number, position_id, step, client_id, side, amount, trigger_price, token)
select exchange, symbol, $9::bigint, id, 'stop', stop_client_id,
       case side when 'long' then 'sell' else 'buy' end, quantity, stop_price, token
  from lockguard_write

-- name: expect_stop
-- This and the others: the intent, and the row that names its order, in one round trip.
with intended as (
  insert into monitoring.position_intents
    (exchange, symbol, number, position_id, step, client_id, side, amount, trigger_price, token)
  select exchange, symbol, $3::bigint, id, 'stop', $4::text, $5::text, quantity, $7::numeric, $6::bigint
    from monitoring.positions where id = $1 and status = $2
)
update monitoring.positions
   set status = 'pending_sl', stop_price = $7, stop_client_id = $4, stop_order_id = null, intent = $3, token = $6
 where id = $1 and status = $2
returning {columns}

-- name: settle_placed_stop
-- In one statement with the row's becoming active.
update monitoring.position_intents i
   set settled_at = clock_timestamp(), outcome = 'executed', order_id = coalesce($3::text, order_id),
       details = case when details = {copied} then details end
  from lockguard_write moved
 where i.position_id = moved.id and i.number = $5::bigint and i.settled_at is null

-- name: activate
update monitoring.positions
   set status = 'active', stop_order_id = $3, error_details = null, token = $4
 where id = $1 and status = $2
returning {columns}

-- name: take_over_stop
-- A stop that stands already becomes the row's. If it was in doubt, another copy of it may still arrive.
with settled as (
  update monitoring.position_intents
     set settled_at = clock_timestamp(), outcome = 'executed', order_id = $3,
         recorded_at = clock_timestamp(), details = {copied}
   where position_id = $1 and step = 'stop' and client_id = $4 and settled_at is null
)
update monitoring.positions
   set status = 'active', stop_order_id = $3, stop_client_id = $4, stop_price = $5, error_details = null, token = $6
 where id = $1 and status = $2
returning {columns}

-- name: on_the_way_to_a_stop
update monitoring.positions set status = 'pending_sl', token = $3
 where id = $1 and status = $2
returning {columns}

-- name: expect_move
-- The row keeps its old stop until the new one stands.
with intended as (
  insert into monitoring.position_intents
    (exchange, symbol, number, position_id, step, client_id, side, amount, trigger_price, token)
  select exchange, symbol, $3::bigint, id, 'stop', $4::text, $5::text, quantity, $7::numeric, $6::bigint
    from monitoring.positions where id = $1 and status = $2
)
update monitoring.positions set intent = $3, token = $6
 where id = $1 and status = $2
returning {columns}

-- name: move_stop
with settled as (
  update monitoring.position_intents
     set settled_at = clock_timestamp(), outcome = 'executed', order_id = coalesce($3::text, order_id),
         details = case when details = {copied} then details end
   where position_id = $1 and number = $7::bigint and settled_at is null
)
update monitoring.positions
   set stop_order_id = $3, stop_client_id = $4, stop_price = $5, error_details = null, token = $6
 where id = $1 and status = $2
returning {columns}

-- name: withdraw_close
update monitoring.positions set exit_client_id = null, exit_reason = null, token = $3
 where id = $1 and status = $2
returning {columns}

-- name: reduce
update monitoring.positions set quantity = $3, token = $4
 where id = $1 and status = $2
returning {columns}

-- name: reduce_by_stop
-- The stop is no longer the position's, so that what it has filled counts once. One that was taken over has no
-- intent: if the row has none yet that says for how much it was entered, one is written that does.
with kept as (
  insert into monitoring.position_intents
    (exchange, symbol, number, position_id, step, client_id, side, amount, trigger_price, token,
     settled_at, outcome, order_id)
  select exchange, symbol, $5::bigint, id, 'stop', coalesce(stop_client_id, ''),
         case side when 'long' then 'sell' else 'buy' end, quantity, stop_price, $4::bigint,
         clock_timestamp(), 'executed', stop_order_id
    from monitoring.positions p
   where id = $1 and status = $2 and not exists (
     select from monitoring.position_intents i where i.position_id = p.id and i.step <> 'entry')
)
update monitoring.positions set quantity = $3, stop_order_id = null, stop_client_id = null, token = $4
 where id = $1 and status = $2
returning {columns}

-- name: expect_close
-- What a person asked for says so in the intent: it is carried on with, and not judged again.
with intended as (
  insert into monitoring.position_intents
    (exchange, symbol, number, position_id, step, client_id, side, amount, trigger_price, token, details)
  select exchange, symbol, $3::bigint, id, 'close', $4::text, $5::text, quantity, null, $6::bigint, $8::text
    from monitoring.positions where id = $1 and status = $2
)
update monitoring.positions set exit_client_id = $4, exit_reason = $7, intent = $3, token = $6
 where id = $1 and status = $2
returning {columns}

-- name: renew_intent
-- Its order was sent a moment ago or is about to be, or was refused for now: from here on it is as old as that order.
update monitoring.position_intents
   set recorded_at = clock_timestamp(), details = $4
 where exchange = $1 and symbol = $2 and number = $3 and settled_at is null
returning number

-- name: note_gone
-- What the exit was to close is gone. Its age stays: a copy of it may still arrive.
update monitoring.position_intents
   set details = $4
 where exchange = $1 and symbol = $2 and number = $3 and settled_at is null
returning number

-- name: finish
-- An open row has what is left of its position, an ended one what was entered: the stops and exits were for that
-- until some of it was filled, and parts of an entry are added up.
update monitoring.positions
   set quantity = greatest(quantity, (
         select max(i.amount) from monitoring.position_intents i
          where i.position_id = positions.id and i.step <> 'entry'), (
         select sum(i.amount) from monitoring.position_intents i
          where i.position_id = positions.id and i.step = 'entry' and i.details = {part})),
       status = $3, exit_reason = coalesce($4, exit_reason), exit_price = $5, exit_order_id = $6,
       error_details = coalesce($7, error_details), closed_at = clock_timestamp(), token = $8
 where id = $1 and status = $2
returning {columns}

-- name: note_error
update monitoring.positions set error_details = $3, token = $4
 where id = $1 and status = $2
returning {columns}

-- name: tick
update monitoring.positions
   set current_price = $2,
       unrealized_pnl = ($2 - entry_price) * quantity * case side when 'long' then 1 else -1 end
 where id = $1 and status = 'active'
returning id
