-- What the fence has refused is kept, though a refused transaction rolls back with all that it wrote.
--
-- The process whose write was refused tells it here afterwards, in a transaction of its own (docs/adr/0019). Operators
-- read it, the fence and the audit through functions that change nothing.

create table lockguard.refusal (
  slot integer primary key,
  resource text not null,
  presented bigint,
  current bigint,
  sqlstate text not null,
  reason text not null,
  holder text not null,
  operation text not null,
  role text not null,
  application text not null,
  times bigint not null,
  first_at timestamptz not null,
  at timestamptz not null
);
comment on table lockguard.refusal is 'lockguard: the last writes that were refused, up to 4000 lines and 40 of one resource';
comment on column lockguard.refusal.slot is 'the place of the line; the oldest line gives its place to a new one';
comment on column lockguard.refusal.resource is 'under which resource it was to be written; empty if the row had none';
comment on column lockguard.refusal.presented is 'the token that the write presented; null for none';
comment on column lockguard.refusal.current is 'the token that was in force; null for none';
comment on column lockguard.refusal.sqlstate is 'LG001: a stale token; LG002: no token for a row of a protected table';
comment on column lockguard.refusal.reason is 'superseded, closed, unsealed, voided, outrun or unguarded';
comment on column lockguard.refusal.holder is 'whose write it was, for people; empty if that is not known';
comment on column lockguard.refusal.operation is 'what its lease was for, for people';
comment on column lockguard.refusal.role is 'the role that was logged in where it was recorded';
comment on column lockguard.refusal.application is 'the application_name of the session that recorded it';
comment on column lockguard.refusal.times is 'how often it was refused from first_at to at';
comment on column lockguard.refusal.first_at is 'when it was refused for the first time';
comment on column lockguard.refusal.at is 'when it was refused for the last time';
create index refusal_of_resource on lockguard.refusal (resource, at);
create index refusal_by_age on lockguard.refusal (at);

create index audit_of_subject on lockguard.audit (subject, id);
create index audit_of_many on lockguard.audit (id) where action in ('recover', 'prune');

create function lockguard.note_refusal(
  p_resource text, p_presented bigint, p_current bigint, p_sqlstate text, p_reason text, p_holder text, p_operation text,
  p_times bigint, p_first_ms_ago bigint, p_last_ms_ago bigint
) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  lines_max constant integer := 4000;
  of_one_max constant bigint := 40;
  -- Whatever a role sends: no line is of the future, none is older than an hour, and none is long.
  now_ constant timestamptz := clock_timestamp();
  at constant timestamptz := now_ - make_interval(secs => least(greatest(p_last_ms_ago, 0), 3600000) / 1000.0);
  first_at constant timestamptz :=
    least(at, now_ - make_interval(secs => least(greatest(p_first_ms_ago, 0), 3600000) / 1000.0));
  times constant bigint := least(greatest(p_times, 1), 1000000000);
  resource constant text := left(coalesce(p_resource, ''), 200);
  sqlstate_ constant text := left(coalesce(p_sqlstate, ''), 5);
  reason constant text := left(coalesce(p_reason, ''), 20);
  holder constant text := left(coalesce(p_holder, ''), 500);
  operation constant text := left(coalesce(p_operation, ''), 500);
  application constant text := left(current_setting('application_name'), 100);
  slot integer;
  known bigint;
  ignored text;
begin
  -- Lines are made one after the other, which also bounds how many there are. Nothing waits for the disk or for long.
  ignored := set_config('synchronous_commit', 'off', true);
  ignored := set_config('lock_timeout', '1s', true);
  perform pg_advisory_xact_lock('lockguard.refusal'::regclass::oid::bigint::bit(32)::integer, 17);
  -- A writer that tries again and again is one line.
  update lockguard.refusal r set times = least(r.times + times, 1000000000000), at = greatest(r.at, at)
   where r.slot = (select n.slot from lockguard.refusal n where n.resource = resource order by n.at desc limit 1)
     and (r.presented, r.current) is not distinct from (p_presented, p_current)
     and (r.sqlstate, r.reason, r.holder, r.operation, r.role, r.application)
       = (sqlstate_, reason, holder, operation, session_user::text, application);
  if found then
    return;
  end if;
  select count(*) into known from lockguard.refusal r where r.resource = resource;
  if known >= of_one_max then
    select r.slot into slot from lockguard.refusal r where r.resource = resource order by r.at limit 1;
  else
    select coalesce(max(r.slot), 0) + 1 into slot from lockguard.refusal r;
    if slot > lines_max then
      select r.slot into slot from lockguard.refusal r order by r.at limit 1;
    end if;
  end if;
  insert into lockguard.refusal as r
    (slot, resource, presented, current, sqlstate, reason, holder, operation, role, application, times, first_at, at)
  values (slot, resource, p_presented, p_current, sqlstate_, reason, holder, operation, session_user, application, times, first_at, at)
  on conflict on constraint refusal_pkey do update
    set resource = excluded.resource, presented = excluded.presented, current = excluded.current,
        sqlstate = excluded.sqlstate, reason = excluded.reason, holder = excluded.holder, operation = excluded.operation,
        role = excluded.role, application = excluded.application, times = excluded.times,
        first_at = excluded.first_at, at = excluded.at;
end
$$;
comment on function lockguard.note_refusal(text, bigint, bigint, text, text, text, text, bigint, bigint, bigint) is
  'lockguard: records that a write was refused so many times, the first and the last so many milliseconds ago';

-- What a refusal says now tells also which fence it is of, so that the process knows where to record it.
create or replace function lockguard.refuse(p_resource text, p_presented bigint, p_grant uuid, p_reason text, p_held lockguard.fence)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  -- Pruned, or its seal was lost before recover(), which raises the floor too.
  forgotten constant boolean := p_reason = 'unsealed' and exists (select from lockguard.floor l where l.token >= p_presented);
begin
  raise exception '%', format(
      case
        when p_reason = 'superseded' then 'stale token for %1$s: presented %2$s, current %3$s (%4$s, %5$s)'
        when p_reason = 'closed' then 'stale token for %1$s: presented %2$s, current %3$s, closed at %6$s'
        when forgotten then 'stale token for %1$s: presented %2$s, and the resource was pruned since, or its seal was lost before a recovery,'
          ' or it was never sealed in this database'
        when p_reason = 'unsealed' then 'stale token for %1$s: presented %2$s, but the resource was never sealed in this database:'
          ' the guard that gave the lease has no fence=, or its fence is in another database'
        else 'stale token for %1$s: presented %2$s, current %3$s; this write was already declared lost'
      end,
      p_resource, p_presented, p_held.token, p_held.holder, p_held.operation, p_held.released_at)
    using errcode = 'LG001',
          detail = json_build_object('resource', p_resource, 'presented', p_presented, 'current', p_held.token,
                                     'reason', p_reason, 'holder', p_held.holder, 'operation', p_held.operation,
                                     'grant', replace(p_grant::text, '-', ''), 'fence', lockguard.fence_id())::text,
          hint = case
            when forgotten then 'The lease has ended. Do not retry the write: take a new lease, of a guard with fence=PostgresFence(pool)'
              ' on this database, and read the state again.'
            when p_reason = 'unsealed' then 'Give the guard fence=PostgresFence(pool) on this database, or write without the lease: with unfenced().'
            else 'Another holder took over, or the lease has ended. Do not retry the write: take a new lease and read the state again.'
          end;
end
$$;

create or replace function lockguard.require(p_resource text, p_relation regclass, p_columns text[]) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  claim constant jsonb := lockguard.claim_of(p_resource);
  held lockguard.fence;
begin
  if claim is not null then
    perform lockguard.hold(p_resource, (claim ->> 0)::bigint, (claim ->> 1)::uuid);
  elsif not lockguard.in_maintenance() and not lockguard.is_feeding(p_relation) then
    select f.* into held from lockguard.fence f where f.resource = p_resource;
    raise exception '%', format(
        'no token for %s: a row of %s belongs to it%s and this transaction presented no lease, current %s',
        coalesce(p_resource, 'a row whose resource is null'), p_relation,
        ' (changed: ' || array_to_string(p_columns, ', ') || ')', coalesce(held.token::text, 'none'))
      using errcode = 'LG002',
            detail = json_build_object('resource', p_resource, 'presented', null, 'current', held.token,
                                       'reason', 'unguarded', 'holder', held.holder, 'operation', held.operation,
                                       'columns', p_columns, 'fence', lockguard.fence_id())::text,
            hint = 'Write it inside a guarded body. A person may first run: select lockguard.maintenance(''why'').';
  end if;
end
$$;

create function lockguard.states(p_resources text[], p_only_open boolean)
returns table (
  resource text, token bigint, grant_id uuid, holder text, operation text, is_open boolean,
  sealed_at timestamptz, released_at timestamptz
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_resources is null then
    return query
    select f.resource, f.token, f.grant_id, f.holder, f.operation, f.released_at is null, f.sealed_at, f.released_at
      from lockguard.fence f
     where not p_only_open or f.released_at is null
     order by f.resource;
  else
    return query
    select f.resource, f.token, f.grant_id, f.holder, f.operation, f.released_at is null, f.sealed_at, f.released_at
      from lockguard.fence f
     where f.resource = any (p_resources) and (not p_only_open or f.released_at is null)
     order by f.resource;
  end if;
end
$$;
comment on function lockguard.states(text[], boolean) is 'lockguard: the fence of these resources, or of all; perhaps only those that are open';

create function lockguard.audit_lines(p_resource text, p_limit integer)
returns table (id bigint, at timestamptz, actor text, action text, subject text, reason text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_resource is null then
    return query
    select a.id, a.at, a.actor, a.action, a.subject, a.reason from lockguard.audit a order by a.id desc limit p_limit;
  else
    -- A recovery and a prune write one line for many resources, named by the last of a part.
    return query
    select l.* from (
      (select a.id, a.at, a.actor, a.action, a.subject, a.reason from lockguard.audit a
        where a.subject = p_resource order by a.id desc limit p_limit)
      union all
      (select a.id, a.at, a.actor, a.action, a.subject, a.reason from lockguard.audit a
        where a.action in ('recover', 'prune') and a.subject <> p_resource
          and p_resource <= regexp_replace(a.subject, '^.*? (to|up to) ', '')
          and (a.action = 'prune' or p_resource > regexp_replace(a.subject, ' to .*$', ''))
        order by a.id desc limit p_limit)
    ) l
    order by l.id desc limit p_limit;
  end if;
end
$$;
comment on function lockguard.audit_lines(text, integer) is
  'lockguard: the last lines of the audit, newest first: of one resource, with the recoveries and prunes that may have reached it, or all';

create function lockguard.refusals(p_resource text, p_since timestamptz, p_limit integer)
returns table (
  resource text, presented bigint, current bigint, sqlstate text, reason text, holder text, operation text,
  role text, application text, times bigint, first_at timestamptz, at timestamptz
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select r.resource, r.presented, r.current, r.sqlstate, r.reason, r.holder, r.operation,
         r.role, r.application, r.times, r.first_at, r.at
    from lockguard.refusal r
   where (p_resource is null or r.resource = p_resource) and (p_since is null or r.at >= p_since)
   order by r.at desc limit p_limit;
end
$$;
comment on function lockguard.refusals(text, timestamptz, integer) is
  'lockguard: the last refused writes, newest first: of one resource or of all, since a time or all that are kept';
