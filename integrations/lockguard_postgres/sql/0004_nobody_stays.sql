-- Nobody stays alone at the gate.
--
--   1. Who seals, closes or breaks has the gate alone until its COMMIT. A session that stops there, or that takes the
--      advisory lock by itself (any role may), kept the resource shut for as long as it lived. Postgres now ends a
--      transaction that idles there for a second, and evict() ends whoever has overstayed.
--   2. at_the_gate() tells who is there, writers or not, with what the caller or the schema's owner may see of it.
--   3. A transaction whose snapshot is older than the first seal is told so. Its lease is the one in force.

create or replace function lockguard.settle_session(p_within_ms integer) returns void
language sql
as $$
  -- For this transaction only: session settings would leak to others through a transaction pooler.
  -- Durable, because a seal lost in a crash would hand its token out again.
  select set_config('lock_timeout', greatest(p_within_ms, 1)::text, true),
         set_config('synchronous_commit',
                    case current_setting('synchronous_commit') when 'off' then 'on' else current_setting('synchronous_commit') end,
                    true),
         set_config('idle_in_transaction_session_timeout',
                    case when current_setting('idle_in_transaction_session_timeout')::interval between '1 ms' and '1 s'
                         then current_setting('idle_in_transaction_session_timeout') else '1s' end,
                    true)
$$;
comment on function lockguard.settle_session(integer) is
  'lockguard: bounds the waits and the idling of this transaction and makes its commit durable';

create function lockguard.seen_at_the_gate(p_resource text)
returns table (
  pid integer, role name, application text, alone boolean, state text, waits_for text, since timestamptz, changed timestamptz,
  transaction text
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- A pid is null for a prepared transaction; the state of a session that one may not see is null too.
  select l.pid, a.usename, a.application_name, l.mode = 'ExclusiveLock', a.state,
         nullif(concat_ws(' ', a.wait_event_type, a.wait_event), ''), a.xact_start, a.state_change, l.virtualtransaction
    from pg_locks l left join pg_stat_activity a on a.pid = l.pid
   where l.locktype = 'advisory' and l.granted and l.objsubid = 1
     and l.database = (select d.oid from pg_database d where d.datname = current_database())
     and l.classid = (((lockguard.gate(p_resource) >> 32) & 4294967295))::oid
     and l.objid = ((lockguard.gate(p_resource) & 4294967295))::oid
$$;
comment on function lockguard.seen_at_the_gate(text) is
  'lockguard: who has the gate of a resource, with what the role that calls may see of it';

create function lockguard.seen_by_the_owner(p_resource text)
returns table (
  pid integer, role name, application text, alone boolean, state text, waits_for text, since timestamptz, changed timestamptz,
  transaction text
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select * from lockguard.seen_at_the_gate(p_resource) $$;
comment on function lockguard.seen_by_the_owner(text) is
  'lockguard: who has the gate of a resource, with what this schema''s owner may see of it';

create function lockguard.at_the_gate(p_resource text)
returns table (
  pid integer, role name, application text, alone boolean, state text, waits_for text, since timestamptz, changed timestamptz,
  transaction text
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select g.pid, g.role, g.application, g.alone, coalesce(g.state, o.state), coalesce(g.waits_for, o.waits_for),
         coalesce(g.since, o.since), coalesce(g.changed, o.changed), g.transaction
    from lockguard.seen_at_the_gate(p_resource) g
    left join lockguard.seen_by_the_owner(p_resource) o using (pid, alone, transaction)
   order by 7, 1
$$;
comment on function lockguard.at_the_gate(text) is
  'lockguard: the sessions that a seal of the resource waits for: writers, and one that has it alone';

create or replace function lockguard.under_way(p_resource text)
returns table (pid integer, role name, state text, waits_for text, since timestamptz)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select g.pid, g.role, g.state, g.waits_for, g.since from lockguard.at_the_gate(p_resource) g where not g.alone
$$;

create function lockguard.overstayed(p_resource text) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  first record;
  pid_ integer;
begin
  -- No more than one session has the gate alone. A seal, a close or a break has it for some milliseconds.
  select g.pid, g.transaction into first from lockguard.at_the_gate(p_resource) g where g.alone and g.pid <> pg_backend_pid();
  if not found then
    return null;
  end if;
  perform pg_sleep(0.1);
  perform pg_stat_clear_snapshot();
  select g.pid into pid_ from lockguard.at_the_gate(p_resource) g
   where g.alone and g.pid = first.pid
     -- Nobody can see what it does; or it has kept the lock beyond its transaction; or it has had its time; or it idles.
     and (g.state is null or g.transaction <> first.transaction or g.since < clock_timestamp() - interval '5 s'
          or ((g.state <> 'active' or g.waits_for like 'Client %')
              and coalesce(g.changed, '-infinity') < clock_timestamp() - interval '100 ms'));
  return pid_;
end
$$;
comment on function lockguard.overstayed(text) is
  'lockguard: the session that has the gate of the resource alone and does nothing there, null if none; takes a tenth of a second';

create function lockguard.end_overstayed_as_owner(p_resource text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(pg_terminate_backend(lockguard.overstayed(p_resource)), false);
exception
  when insufficient_privilege then
    return false;  -- a superuser's session, say; whoever waits is told its name
end
$$;
comment on function lockguard.end_overstayed_as_owner(text) is
  'lockguard: ends the session that has overstayed at the gate of the resource, with the rights of this schema''s owner';

create or replace function lockguard.evict(p_resource text, p_token bigint) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  ended integer := 0;
  one record;
begin
  -- Not by a late sealer, whose successor the writers may be.
  if exists (select from lockguard.status(p_resource) s where s.token >= p_token) then
    return 0;
  end if;
  for one in select u.pid from lockguard.under_way(p_resource) u where u.pid <> pg_backend_pid() loop
    begin
      -- With the caller's rights, which suffice where bots share a role.
      if pg_terminate_backend(one.pid) then
        ended := ended + 1;
      end if;
    exception
      when insufficient_privilege then
        ended := ended + lockguard.end_as_owner(p_resource, one.pid)::integer;
    end;
  end loop;
  begin
    ended := ended + coalesce(pg_terminate_backend(lockguard.overstayed(p_resource)), false)::integer;
  exception
    when insufficient_privilege then
      ended := ended + lockguard.end_overstayed_as_owner(p_resource)::integer;
  end;
  return ended;
end
$$;
comment on function lockguard.evict(text, bigint) is
  'lockguard: ends the sessions that keep a seal of this token waiting (null: a break): those whose open transactions have presented a lease, and one that has overstayed at the gate; returns how many';

create function lockguard.refuse_older_snapshot(p_resource text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') not in ('repeatable read', 'serializable') then
    return;
  end if;
  -- The index knows of a row that the snapshot does not show; nothing is inserted.
  begin
    insert into lockguard.fence (resource, token, grant_id, holder, operation)
    values (p_resource, 1, gen_random_uuid(), '', '') on conflict do nothing;
    raise exception using errcode = 'LG000';
  exception
    when sqlstate 'LG000' or check_violation or not_null_violation then
      return;
    when serialization_failure then
      null;
  end;
  raise exception 'the snapshot of this transaction is older than the lease on %', p_resource
    using errcode = '40001', hint = 'Begin the transaction inside the body of the lease.';
end
$$;
comment on function lockguard.refuse_older_snapshot(text) is
  'lockguard: for a resource that seems never to have been sealed: refuses (40001) if it only does in this snapshot';

create or replace function lockguard.hold(p_resource text, p_token bigint, p_grant uuid) returns lockguard.fence
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  held lockguard.fence;
begin
  perform pg_advisory_xact_lock_shared(lockguard.gate(p_resource));
  select f.* into held from lockguard.fence f where f.resource = p_resource for share;
  if not found then
    perform lockguard.refuse_older_snapshot(p_resource);
    perform lockguard.refuse(p_resource, p_token, p_grant, 'unsealed', held);
  elsif held.token is distinct from p_token or held.grant_id is distinct from p_grant then  -- null is no token
    perform lockguard.refuse(p_resource, p_token, p_grant, 'superseded', held);
  elsif held.released_at is not null then
    perform lockguard.refuse(p_resource, p_token, p_grant, 'closed', held);
  end if;
  return held;
end
$$;
