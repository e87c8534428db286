-- One open position per symbol and exchange, whatever its state. Existing duplicates have to be settled by a
-- person or by the clean-up first: which of two rows is the true one cannot be seen from here.

-- Nobody writes between the check and the index.
lock table monitoring.positions in share row exclusive mode;

do $$
declare
  violations text;
  symbols integer;
begin
  select string_agg(format('%s %s: rows %s', d.exchange, d.symbol, d.rows), '; ' order by d.exchange, d.symbol), count(*)
    into violations, symbols
    from (
      select p.exchange, p.symbol, string_agg(format('%s (%s)', p.id, p.status), ', ' order by p.id) as rows
        from monitoring.positions p
       where p.status in ('pending_entry', 'entry_placed', 'pending_sl', 'active')
       group by p.exchange, p.symbol
      having count(*) > 1
    ) d;
  if violations is not null then
    raise exception 'more than one open position for % symbol(s): %', symbols, violations
      using errcode = 'LG101',
            hint = 'Leave one open row a symbol, the one that matches the exchange, and set the others to rolled_back or closed; then migrate again.';
  end if;
end
$$;

create unique index if not exists idx_unique_open_position on monitoring.positions (symbol, exchange)
  where status in ('pending_entry', 'entry_placed', 'pending_sl', 'active');
drop index if exists monitoring.idx_unique_active_position;
