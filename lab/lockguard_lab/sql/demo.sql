-- What the demo notes and asks in its own database.

-- name: watch
-- Every committed write of a position, with its instant and its token: by the database, for whoever writes.
create schema demo;
create table demo.writes (
  number bigint generated always as identity primary key,
  position_id bigint not null,
  symbol text not null,
  status text not null,
  token bigint,
  application text not null,
  at timestamptz not null
);
create function demo.note_write() returns trigger
language plpgsql
as $$
begin
  insert into demo.writes (position_id, symbol, status, token, application, at)
  values (new.id, new.symbol, new.status, new.token, current_setting('application_name'), clock_timestamp());
  return null;
end
$$;
create trigger note_write after insert or update on monitoring.positions
  for each row execute function demo.note_write();

-- name: writes
select symbol, status, token, application, (extract(epoch from at) * 1000)::float8 as at_ms
  from demo.writes order by number

-- name: stale_committed
-- Writes that carry a lower token than one committed before them.
select count(*) from demo.writes late
 where exists (
   select from demo.writes early
    where early.position_id = late.position_id and early.number < late.number and early.token > late.token)

-- name: row
select status, token from monitoring.positions where id = $1

-- name: rows
-- How many rows a symbol has, open or ended.
select count(*) from monitoring.positions where symbol = $1
