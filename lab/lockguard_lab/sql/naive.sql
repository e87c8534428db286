-- The statements of the unguarded bot that lockguard_lab.naive stands for. Not for use.

-- name: active
select id from monitoring.positions where symbol = $1 and exchange = $2 and status = 'active'

-- name: active_symbols
select symbol from monitoring.positions where exchange = $1 and status = 'active'

-- name: incomplete
select id, symbol, side, quantity from monitoring.positions
 where exchange = $1 and status in ('pending_entry', 'entry_placed', 'pending_sl')
   and created_at < clock_timestamp() - $2::interval

-- name: insert
insert into monitoring.positions (exchange, symbol, side, quantity, status, signal_id, entry_price, opened_at)
values ($1, $2, $3, $4, $5, $6, $7, clock_timestamp())
returning id

-- name: set_status
update monitoring.positions
   set status = $2, entry_order_id = coalesce($3, entry_order_id), stop_order_id = coalesce($4, stop_order_id),
       stop_price = coalesce($5, stop_price), error_details = coalesce($6, error_details),
       closed_at = case when $2 in ('closed', 'failed', 'rolled_back', 'canceled') then clock_timestamp() end
 where id = $1

-- name: close_phantom
update monitoring.positions set status = 'closed', exit_reason = 'phantom', closed_at = clock_timestamp()
 where exchange = $1 and symbol = $2 and status = 'active'
returning id
