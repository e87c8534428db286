create unique index idx_unique_active_position on monitoring.positions (symbol, exchange) where status = 'active';
drop index monitoring.idx_unique_open_position;
