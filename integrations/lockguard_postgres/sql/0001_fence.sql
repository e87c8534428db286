-- The fence: one row a resource, holding the only (token, grant) whose writes are accepted.
--
-- Three rules keep a stale holder out, whatever it was doing while it was paused.
--
--   1. seal() accepts a grant only if its token is higher than the one in force, or if that very grant is
--      in force and open. So tokens strictly increase in seal order, and a holder that slept between its
--      grant and its seal cannot take the fence from the successor that sealed meanwhile.
--   2. check() takes the row FOR SHARE in the writer's own transaction. seal(), close() and break_() update
--      the row, which waits for such transactions and shuts out later ones: check and write are one.
--      (FOR KEY SHARE would not do: an UPDATE of a non-key column does not conflict with it.)
--   3. A pair that was closed stays closed, and a token only grows, for a superuser too.
--
-- Every function runs with its owner's rights and a pinned search_path, so that an application role needs
-- no right on the tables and cannot slip its own objects in between.

create schema if not exists lockguard;  -- who may call what: rights.sql
comment on schema lockguard is 'lockguard: fencing tokens that the database itself checks';

create table if not exists lockguard.schema_version (
  version integer primary key,
  applied_at timestamptz not null default clock_timestamp(),
  applied_by text not null default session_user
);
comment on table lockguard.schema_version is 'lockguard: which schema steps were applied';
comment on column lockguard.schema_version.version is 'the number that the step''s file starts with';
comment on column lockguard.schema_version.applied_at is 'when it was applied';
comment on column lockguard.schema_version.applied_by is 'by which role';

create table lockguard.fence (
  resource text primary key check (octet_length(resource) between 1 and 200),
  token bigint not null check (token > 0),
  grant_id uuid not null,
  holder text not null,
  operation text not null,
  sealed_at timestamptz not null default clock_timestamp(),
  released_at timestamptz
);
comment on table lockguard.fence is 'lockguard: the one grant of each resource whose writes are accepted';
comment on column lockguard.fence.resource is 'what is locked, such as binance:APTUSDT';
comment on column lockguard.fence.token is 'the fencing token; it only grows';
comment on column lockguard.fence.grant_id is 'the grant in force; authority is the pair (token, grant_id)';
comment on column lockguard.fence.holder is 'who holds it, for people';
comment on column lockguard.fence.operation is 'what for, for people';
comment on column lockguard.fence.sealed_at is 'when the fence was raised to this pair';
comment on column lockguard.fence.released_at is 'since when no write of this pair is accepted; null while it is open';

create table lockguard.outcome (
  resource text not null,
  token bigint not null,
  sequence bigint not null,
  voided boolean not null default false,
  written_at timestamptz not null default clock_timestamp(),
  primary key (resource, token, sequence)
);
comment on table lockguard.outcome is 'lockguard: the writes that committed, so that a lost COMMIT reply can be looked up';
comment on column lockguard.outcome.resource is 'what was written under';
comment on column lockguard.outcome.token is 'the token that the write carried';
comment on column lockguard.outcome.sequence is 'the writer''s own number of the transaction';
comment on column lockguard.outcome.voided is 'it was looked up before it arrived, and must never commit';
comment on column lockguard.outcome.written_at is 'when; rows older than a day go at the next seal or close';

create table lockguard.audit (
  id bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  actor text not null default session_user,
  action text not null,
  subject text not null,
  reason text not null,
  xid xid8 not null default pg_current_xact_id()
);
comment on table lockguard.audit is 'lockguard: what people did past the fence';
comment on column lockguard.audit.id is 'running number';
comment on column lockguard.audit.at is 'when';
comment on column lockguard.audit.actor is 'the role that was logged in';
comment on column lockguard.audit.action is 'break, maintenance, protect or unprotect';
comment on column lockguard.audit.subject is 'the resource or table';
comment on column lockguard.audit.reason is 'why, in their words';
comment on column lockguard.audit.xid is 'the transaction in which it was done';

create function lockguard.keep_monotone() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op in ('DELETE', 'TRUNCATE') then
    raise exception 'a row of lockguard.fence cannot be removed: its token would be forgotten and handed out again'
      using errcode = 'LG003', hint = 'To end a holder use lockguard.break_(resource, reason).';
  end if;
  if new.resource <> old.resource
     or new.token < old.token
     or (new.token = old.token and new.grant_id <> old.grant_id)
     or (new.token = old.token and old.released_at is not null and new.released_at is null)
  then
    raise exception 'the fence of % cannot go from token % back to token %', old.resource, old.token, new.token
      using errcode = 'LG003', hint = 'Tokens only grow, and a closed one stays closed. To end a holder use lockguard.break_(resource, reason).';
  end if;
  return new;
end
$$;
comment on function lockguard.keep_monotone() is 'lockguard: refuses a fence row that goes back, whoever writes it';

create trigger keep_monotone before update or delete on lockguard.fence
  for each row execute function lockguard.keep_monotone();
create trigger keep_rows before truncate on lockguard.fence
  for each statement execute function lockguard.keep_monotone();
-- ALWAYS: session_replication_role = replica would switch an ordinary trigger off.
alter table lockguard.fence enable always trigger keep_monotone;
alter table lockguard.fence enable always trigger keep_rows;
comment on trigger keep_monotone on lockguard.fence is 'lockguard: a token only grows';
comment on trigger keep_rows on lockguard.fence is 'lockguard: a token is never forgotten';

create function lockguard.settle_session(p_within_ms integer) returns void
language sql
as $$
  -- For this transaction only: session settings would leak to others through a transaction pooler.
  -- Durable, because a seal lost in a crash would hand its token out again.
  select set_config('lock_timeout', greatest(p_within_ms, 1)::text, true),
         set_config('synchronous_commit',
                    case current_setting('synchronous_commit') when 'off' then 'on' else current_setting('synchronous_commit') end,
                    true)
$$;
comment on function lockguard.settle_session(integer) is 'lockguard: bounds the waits of this transaction and makes its commit durable';

create function lockguard.bound(p_lock_ms integer, p_idle_ms integer) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  -- A stricter setting that is in force already is kept; 0 means no bound.
  select set_config(w.name, w.ms::text, true)
    from (values ('lock_timeout', p_lock_ms), ('idle_in_transaction_session_timeout', p_idle_ms)) as w (name, ms)
   where current_setting(w.name)::interval = '0'
      or current_setting(w.name)::interval > make_interval(secs => w.ms / 1000.0)
$$;
comment on function lockguard.bound(integer, integer) is
  'lockguard: bounds how long this transaction may wait for a lock and lie idle, so that a frozen holder can be taken over';

create function lockguard.seal(
  p_resource text, p_token bigint, p_grant uuid, p_holder text, p_operation text, p_within_ms integer,
  out accepted boolean, out token bigint
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  held lockguard.fence;
begin
  perform lockguard.settle_session(p_within_ms);
  insert into lockguard.fence as f (resource, token, grant_id, holder, operation)
  values (p_resource, p_token, p_grant, left(p_holder, 500), left(p_operation, 500))
  on conflict (resource) do update
    set token = excluded.token, grant_id = excluded.grant_id, holder = excluded.holder,
        operation = excluded.operation, sealed_at = clock_timestamp(), released_at = null
    where f.token < excluded.token and f.grant_id <> excluded.grant_id
  returning f.* into held;
  if found then
    delete from lockguard.outcome o where o.resource = p_resource and o.written_at < clock_timestamp() - interval '1 day';
  else
    -- The conflict locked the row, so this reads what refused us.
    select f.* into held from lockguard.fence f where f.resource = p_resource;
  end if;
  accepted := held.grant_id = p_grant and held.released_at is null;
  token := held.token;
end
$$;
comment on function lockguard.seal(text, bigint, uuid, text, text, integer) is
  'lockguard: makes a grant the only one whose writes are accepted, if its token is the highest; waits for open transactions of the old one. Answers the token in force.';

create function lockguard.refuse(p_resource text, p_presented bigint, p_reason text, p_held lockguard.fence) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception '%', format(
      case p_reason
        when 'superseded' then 'stale token for %1$s: presented %2$s, current %3$s (%4$s, %5$s)'
        when 'closed' then 'stale token for %1$s: presented %2$s, current %3$s, closed at %6$s'
        when 'unsealed' then 'stale token for %1$s: presented %2$s, but the resource was never sealed'
        else 'stale token for %1$s: presented %2$s, current %3$s; this write was already declared lost'
      end,
      p_resource, p_presented, p_held.token, p_held.holder, p_held.operation, p_held.released_at)
    using errcode = 'LG001',
          detail = json_build_object('resource', p_resource, 'presented', p_presented, 'current', p_held.token,
                                     'reason', p_reason, 'holder', p_held.holder, 'operation', p_held.operation)::text,
          hint = 'Another holder took over, or the lease has ended. Do not retry the write: take a new lease and read the state again.';
end
$$;
comment on function lockguard.refuse(text, bigint, text, lockguard.fence) is 'lockguard: raises LG001 with the facts as JSON in DETAIL';

create function lockguard.hold(p_resource text, p_token bigint, p_grant uuid) returns lockguard.fence
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  held lockguard.fence;
begin
  select f.* into held from lockguard.fence f where f.resource = p_resource for share;
  if not found then
    perform lockguard.refuse(p_resource, p_token, 'unsealed', held);
  elsif held.token is distinct from p_token or held.grant_id is distinct from p_grant then  -- null is no token
    perform lockguard.refuse(p_resource, p_token, 'superseded', held);
  elsif held.released_at is not null then
    perform lockguard.refuse(p_resource, p_token, 'closed', held);
  end if;
  return held;
end
$$;
comment on function lockguard.hold(text, bigint, uuid) is
  'lockguard: refuses (LG001) unless this (token, grant) is in force and open; keeps it so until the transaction ends';

create function lockguard.check(p_resource text, p_token bigint, p_grant uuid, p_sequence bigint default null)
returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  held constant lockguard.fence := lockguard.hold(p_resource, p_token, p_grant);
begin
  if p_sequence is not null then
    insert into lockguard.outcome (resource, token, sequence) values (p_resource, p_token, p_sequence)
    on conflict do nothing;
    if not found then
      perform lockguard.refuse(p_resource, p_token, 'voided', held);
    end if;
  end if;
  perform set_config('lockguard.leases',
    (coalesce(nullif(current_setting('lockguard.leases', true), '')::jsonb, '{}')
      || jsonb_build_object(p_resource, jsonb_build_array(p_token, p_grant)))::text, true);
  return p_token;
end
$$;
comment on function lockguard.check(text, bigint, uuid, bigint) is
  'lockguard: presents a lease for the rest of the transaction, or is refused (LG001). A sequence makes the outcome resolvable. Returns the token.';

create function lockguard.close(p_resource text, p_token bigint, p_grant uuid, p_within_ms integer) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform lockguard.settle_session(p_within_ms);
  -- A seal of this grant may still be on its way (its caller was cancelled). If nobody else is in force,
  -- note the grant as closed, so that the late seal finds it shut. An open row of another grant is left
  -- alone: whoever is on it may be the rightful holder.
  insert into lockguard.fence as f (resource, token, grant_id, holder, operation, released_at)
  values (p_resource, p_token, p_grant, '', 'ended before it was sealed', clock_timestamp())
  on conflict (resource) do update
    set token = greatest(f.token, excluded.token), grant_id = excluded.grant_id, released_at = clock_timestamp(),
        holder = case when f.grant_id = excluded.grant_id then f.holder else '' end,
        operation = case when f.grant_id = excluded.grant_id then f.operation else excluded.operation end
    where (f.grant_id = excluded.grant_id and f.released_at is null)
       or (f.grant_id <> excluded.grant_id and f.token < excluded.token and f.released_at is not null);
  delete from lockguard.outcome o where o.resource = p_resource and o.written_at < clock_timestamp() - interval '1 day';
end
$$;
comment on function lockguard.close(text, bigint, uuid, integer) is
  'lockguard: accepts no more writes of this grant; waits for its open transactions. Nothing happens if a newer grant is in force.';

create function lockguard.break_(p_resource text, p_reason text, p_within_ms integer) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  broken bigint;
  -- Redis hands out microseconds, so this also outruns a grant that has not been sealed yet.
  now_us constant bigint := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
begin
  perform lockguard.settle_session(p_within_ms);
  insert into lockguard.fence as f (resource, token, grant_id, holder, operation, released_at)
  values (p_resource, now_us, gen_random_uuid(), session_user, left('break: ' || p_reason, 500), clock_timestamp())
  on conflict (resource) do update
    set token = greatest(f.token + 1, now_us), grant_id = excluded.grant_id, holder = excluded.holder,
        operation = excluded.operation, sealed_at = clock_timestamp(), released_at = clock_timestamp()
  returning f.token into broken;
  insert into lockguard.audit (action, subject, reason) values ('break', p_resource, p_reason);
  return broken;
end
$$;
comment on function lockguard.break_(text, text, integer) is
  'lockguard: accepts no more writes of whoever holds the resource; returns the token that is in force, closed, from now on';

create function lockguard.resolve(p_resource text, p_token bigint, p_sequence bigint, p_within_ms integer) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  committed boolean;
begin
  perform lockguard.settle_session(p_within_ms);
  -- Waits for a transaction that is still open, and bars one that has not arrived: the answer stays true.
  insert into lockguard.outcome (resource, token, sequence, voided) values (p_resource, p_token, p_sequence, true)
  on conflict do nothing;
  select not o.voided into committed from lockguard.outcome o
   where o.resource = p_resource and o.token = p_token and o.sequence = p_sequence;
  return committed;
end
$$;
comment on function lockguard.resolve(text, bigint, bigint, integer) is
  'lockguard: whether a write whose COMMIT reply was lost has committed; if not, it never will';

create function lockguard.status(p_resource text default null)
returns table (
  resource text, token bigint, grant_id uuid, holder text, operation text, is_open boolean,
  sealed_at timestamptz, released_at timestamptz
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select f.resource, f.token, f.grant_id, f.holder, f.operation, f.released_at is null, f.sealed_at, f.released_at
    from lockguard.fence f
   where p_resource is null or f.resource = p_resource
   order by f.resource
$$;
comment on function lockguard.status(text) is 'lockguard: the fence of one resource, or of all';

create function lockguard.version() returns integer
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select max(version) from lockguard.schema_version $$;
comment on function lockguard.version() is 'lockguard: the version of this schema';
