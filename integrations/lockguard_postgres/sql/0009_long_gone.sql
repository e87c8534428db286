-- A resource that is long gone leaves its token in one floor.
--
--   1. prune_resources() removes the rows of resources that were closed long ago. The highest of their tokens goes into
--      lockguard.floor first: a row may be removed only once it is closed and its token is not above the floor.
--   2. A resource without a row is sealed above the floor or not at all. seal() answers the floor as it answers a token in force, so
--      that whoever holds the lock settles above it, as after a loss of Redis. A client of before does that too.
--   3. What was written under a resource that was pruned is "nobody knows any more" (LG005), before it is sealed again and after.

create table lockguard.floor (
  one boolean primary key default true check (one),
  token bigint not null
);
comment on table lockguard.floor is 'lockguard: one row, below which tokens of resources that have no row may have been handed out';
comment on column lockguard.floor.one is 'there is no second row';
comment on column lockguard.floor.token is 'the highest token that was forgotten; it only grows';
insert into lockguard.floor (token) values (0);

create function lockguard.keep_floor() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op <> 'UPDATE' or new.token < old.token then
    raise exception 'lockguard.floor cannot go back: tokens of resources that were pruned would be handed out again'
      using errcode = 'LG003';
  end if;
  return new;
end
$$;
comment on function lockguard.keep_floor() is 'lockguard: refuses a floor that goes back, whoever writes it';

create trigger keep_floor before update or delete on lockguard.floor
  for each row execute function lockguard.keep_floor();
create trigger keep_row before truncate on lockguard.floor
  for each statement execute function lockguard.keep_floor();
alter table lockguard.floor enable always trigger keep_floor;
alter table lockguard.floor enable always trigger keep_row;
comment on trigger keep_floor on lockguard.floor is 'lockguard: the floor only grows';
comment on trigger keep_row on lockguard.floor is 'lockguard: the floor is never forgotten';

create or replace function lockguard.keep_monotone() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op in ('DELETE', 'TRUNCATE') then
    if tg_op = 'DELETE' and old.released_at is not null and old.token <= (select l.token from lockguard.floor l) then
      return old;
    end if;
    raise exception 'a row of lockguard.fence cannot be removed: its token would be forgotten and handed out again'
      using errcode = 'LG003',
            hint = 'To end a holder use lockguard.break_(resource, reason). What is long gone goes by: lockguard fence prune.';
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

create function lockguard.keep_above_floor() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  low bigint;
begin
  -- The floor of a snapshot may be an old one. To lock it fails (40001) if it was raised since.
  if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
    select l.token into low from lockguard.floor l for share;
  else
    select l.token into low from lockguard.floor l;
  end if;
  if low = 0 then
    return null;
  end if;
  if new.token <= low then
    if new.released_at is null then
      raise exception 'token % of % is not above %, the highest of resources that were pruned', new.token, new.resource, low
        using errcode = '40001', hint = 'Seal again. The snapshot is older than the pruning, or another resource was pruned just now.';
    end if;
    -- Closed by a close that came late, or by a break while the clock stands behind the floor.
    update lockguard.fence f set token = low where f.resource = new.resource and f.token < low;
  end if;
  -- It may have been there before. What was written under it then is not known any more.
  insert into lockguard.forgotten as f (resource, token, sequence) values (new.resource, low, 9223372036854775807)
  on conflict (resource) do update set token = excluded.token, sequence = excluded.sequence
    where (f.token, f.sequence) < (excluded.token, excluded.sequence);
  return null;
end
$$;
comment on function lockguard.keep_above_floor() is
  'lockguard: refuses a new row with a token that may have been handed out before, whoever writes it';

create or replace function lockguard.refuse_older_snapshot(p_resource text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') not in ('repeatable read', 'serializable') then
    return;
  end if;
  -- The index knows of a row that the snapshot does not show; nothing is inserted. The token is above every floor.
  begin
    insert into lockguard.fence (resource, token, grant_id, holder, operation)
    values (p_resource, 9223372036854775807, gen_random_uuid(), '', '') on conflict do nothing;
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

create or replace function lockguard.refuse(p_resource text, p_presented bigint, p_grant uuid, p_reason text, p_held lockguard.fence)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception '%', format(
      case
        when p_reason = 'superseded' then 'stale token for %1$s: presented %2$s, current %3$s (%4$s, %5$s)'
        when p_reason = 'closed' then 'stale token for %1$s: presented %2$s, current %3$s, closed at %6$s'
        when p_reason = 'unsealed' and exists (select from lockguard.floor l where l.token >= p_presented)
          then 'stale token for %1$s: presented %2$s, and the resource was pruned since, or never sealed in this database'
        when p_reason = 'unsealed' then 'stale token for %1$s: presented %2$s, but the resource was never sealed in this database:'
          ' the guard that gave the lease has no fence=, or its fence is in another database'
        else 'stale token for %1$s: presented %2$s, current %3$s; this write was already declared lost'
      end,
      p_resource, p_presented, p_held.token, p_held.holder, p_held.operation, p_held.released_at)
    using errcode = 'LG001',
          detail = json_build_object('resource', p_resource, 'presented', p_presented, 'current', p_held.token,
                                     'reason', p_reason, 'holder', p_held.holder, 'operation', p_held.operation,
                                     'grant', replace(p_grant::text, '-', ''))::text,
          hint = case p_reason
            when 'unsealed' then 'Give the guard fence=PostgresFence(pool) on this database, or write without the lease: with unfenced().'
            else 'Another holder took over, or the lease has ended. Do not retry the write: take a new lease and read the state again.'
          end;
end
$$;

create or replace function lockguard.seal(
  p_resource text, p_token bigint, p_grant uuid, p_holder text, p_operation text, p_within_ms integer,
  out accepted boolean, out token bigint
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  before lockguard.fence;
  held lockguard.fence;
begin
  perform lockguard.refuse_beyond(p_resource, p_token);
  perform lockguard.settle_session(p_within_ms);
  if not pg_try_advisory_xact_lock(lockguard.gate(p_resource)) then
    -- Only who supersedes the writers that are in may wait for them: a late sealer must not keep out, or have ended,
    -- those of its successor. Tokens only grow, so a no stays a no.
    select f.* into before from lockguard.fence f where f.resource = p_resource;
    if before.grant_id <> p_grant and before.token >= p_token then
      accepted := false;
      token := before.token;
      return;
    end if;
    perform pg_advisory_xact_lock(lockguard.gate(p_resource));
  end if;
  select f.* into before from lockguard.fence f where f.resource = p_resource;
  if before.token is null then
    -- It may have had a row that was pruned.
    select l.token into token from lockguard.floor l where l.token >= p_token;
    if found then
      accepted := false;
      return;
    end if;
  end if;
  insert into lockguard.fence as f (resource, token, grant_id, holder, operation)
  values (p_resource, p_token, p_grant, left(p_holder, 500), left(p_operation, 500))
  on conflict (resource) do update
    set token = excluded.token, grant_id = excluded.grant_id, holder = excluded.holder,
        operation = excluded.operation, sealed_at = clock_timestamp(), released_at = null
    where f.token < excluded.token and f.grant_id <> excluded.grant_id
  returning f.* into held;
  if found then
    if before.token is not null and before.released_at is null then
      perform lockguard.tell(before, p_token);
    end if;
  else
    -- The conflict locked the row, so this reads what refused us.
    select f.* into held from lockguard.fence f where f.resource = p_resource;
  end if;
  accepted := held.grant_id = p_grant and held.released_at is null;
  token := held.token;
end
$$;

create or replace function lockguard.resolve(p_resource text, p_token bigint, p_sequence bigint, p_within_ms integer) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  noted lockguard.writer;
  voided_ boolean;
begin
  perform lockguard.settle_session(p_within_ms);
  -- A lease writes only once it is sealed. Noted all the same, a token from elsewhere would be answered "not committed"
  -- where the write was made in another database, and one of the future would bar the resource when it is pruned.
  -- The lock keeps the row, and with it what is known of its writes, from being pruned meanwhile; no seal waits for it.
  perform from lockguard.fence f where f.resource = p_resource and f.token >= p_token for key share;
  if not found then
    if exists (select from lockguard.floor l where l.token >= p_token)
      and not exists (select from lockguard.fence f where f.resource = p_resource)
    then
      perform lockguard.tell_forgotten(p_resource, p_token, p_sequence);
    end if;
    raise exception 'token % of % was never accepted in this database', p_token, p_resource
      using errcode = 'LG004', hint = 'ask in the database that the write was made in';
  end if;
  -- Each insert waits for a transaction that is still open, and bars one that has not arrived: the answer stays true.
  if p_sequence >= 4611686018427387904 then
    insert into lockguard.writer as w (resource, slot, token, sequence, first, voided)
    values (p_resource, p_sequence >> 10, p_token, p_sequence, p_sequence, true)
    on conflict (resource, slot) do update
      set token = excluded.token, sequence = excluded.sequence, voided = true
      where (w.token, w.sequence) < (excluded.token, excluded.sequence)
    returning w.* into noted;
    if not found then
      -- The conflict locked the row. Past this write it goes only when the writer knew what had become of it.
      select w.* into noted from lockguard.writer w where w.resource = p_resource and w.slot = p_sequence >> 10;
      if noted.token = p_token and noted.sequence = p_sequence then
        return not noted.voided;
      end if;
      if noted.sequence < p_sequence then
        return false;  -- the writer's row carries a later token: a check of this write is refused for good
      end if;
      perform lockguard.tell_forgotten(p_resource, p_token, p_sequence);
    elsif noted.first <> p_sequence then
      return false;  -- the writer's row was there, and had not come to this write
    end if;
  end if;
  -- A library of before, or a write of while this schema was upgraded.
  insert into lockguard.outcome (resource, token, sequence, voided) values (p_resource, p_token, p_sequence, true)
  on conflict do nothing;
  if not found then
    select o.voided into voided_ from lockguard.outcome o
     where o.resource = p_resource and o.token = p_token and o.sequence = p_sequence;
    if found then
      update lockguard.writer w set voided = voided_
       where w.resource = p_resource and w.slot = p_sequence >> 10 and w.token = p_token and w.sequence = p_sequence;
      return not voided_;
    end if;
  elsif not lockguard.may_be_forgotten(p_resource, p_token, p_sequence) then
    return false;
  end if;
  perform lockguard.tell_forgotten(p_resource, p_token, p_sequence);
end
$$;

create function lockguard.is_long_gone(p_fence lockguard.fence, p_cut timestamptz) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- Tokens are microseconds since 1970. One that lies ahead of its time stays, or every new resource would be sealed above it.
  select p_fence.released_at < p_cut and p_fence.sealed_at < p_cut and p_fence.token < (extract(epoch from p_cut) * 1000000)::bigint
$$;
comment on function lockguard.is_long_gone(lockguard.fence, timestamptz) is
  'lockguard: whether a resource has been closed, and its token of the past, since before that time';

create function lockguard.count_long_gone(p_older_than interval, out gone bigint, out resources bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select count(*) filter (where lockguard.is_long_gone(f, clock_timestamp() - p_older_than)), count(*) from lockguard.fence f
$$;
comment on function lockguard.count_long_gone(interval) is 'lockguard: how many resources prune_resources() would remove, of how many';

create function lockguard.prune_resources(p_older_than interval, p_after text, p_limit integer, out last text, out pruned integer)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  cut constant timestamptz := clock_timestamp() - p_older_than;
  gone text[];
  highest bigint;
begin
  if p_older_than < interval '2 days' then
    raise exception 'resources of less than two days ago are not pruned: what became of a write may still be asked for'
      using errcode = 'LG004';
  end if;
  perform lockguard.settle_session(10000);
  -- Nobody waits for another here: who has the gate, or the row, has use for the resource. A part at a time: each gate
  -- takes an entry of the server's lock table.
  with part as materialized (
    select f as fence from lockguard.fence f where f.resource > p_after order by f.resource limit p_limit
  ), old as materialized (
    select (p.fence).resource from part p where lockguard.is_long_gone(p.fence, cut)
  ), alone as materialized (
    select o.resource from old o where pg_try_advisory_xact_lock(lockguard.gate(o.resource))
  ), locked as materialized (
    -- Looked at again, by itself: the row may have changed before the gate was had.
    select f.resource from lockguard.fence f
     where f.resource = any (array(select a.resource from alone a)) and lockguard.is_long_gone(f, cut)
       for update skip locked
  )
  select (select max((p.fence).resource) from part p), array(select l.resource from locked l) into last, gone;
  -- A record of a write goes by prune() first, which notes that it has gone.
  gone := array(select g from unnest(gone) g
                 where not exists (select from lockguard.writer w where w.resource = g)
                   and not exists (select from lockguard.outcome o where o.resource = g));
  pruned := cardinality(gone);
  if pruned > 0 then
    select max(f.token) into highest from lockguard.fence f where f.resource = any (gone);
    update lockguard.floor l set token = highest where l.token < highest;
    delete from lockguard.forgotten f where f.resource = any (gone);
    delete from lockguard.fence f where f.resource = any (gone);
    insert into lockguard.audit (action, subject, reason)
    values ('prune', format('%s resources, up to %s', pruned, last), format('closed for %s', p_older_than));
  end if;
end
$$;
comment on function lockguard.prune_resources(interval, text, integer) is
  'lockguard: removes the resources, of so many behind a name, that were closed longer ago than that; their highest token goes into lockguard.floor. Answers the last name looked at, null at the end, and how many went.';
comment on column lockguard.audit.action is 'break, recover, prune, maintenance, protect or unprotect';

create or replace function lockguard.recover(
  p_reason text, p_before timestamptz, p_after text, p_limit integer,
  out last text, out raised integer, out were_open integer
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  one record;
  before lockguard.fence;
  now_us constant bigint := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
begin
  perform lockguard.settle_session(10000);
  raised := 0;
  were_open := 0;
  if p_after = '' then
    -- For the resources whose first seal this database has lost.
    update lockguard.floor l set token = now_us where l.token < now_us;
  end if;
  -- A part at a time: each gate takes an entry of the server's lock table.
  for one in select f.resource from lockguard.fence f where f.resource > p_after order by f.resource limit p_limit loop
    last := one.resource;
    if not pg_try_advisory_xact_lock(lockguard.gate(one.resource)) then
      perform lockguard.evict(one.resource, null);
      perform pg_advisory_xact_lock(lockguard.gate(one.resource));
    end if;
    select f.* into before from lockguard.fence f where f.resource = one.resource;
    -- What was sealed since recovering began is of a holder that has it from here.
    continue when before.sealed_at >= p_before;
    update lockguard.fence f
       set token = greatest(f.token + 1, now_us), grant_id = gen_random_uuid(), holder = session_user,
           operation = left('recover: ' || p_reason, 500), sealed_at = clock_timestamp(), released_at = clock_timestamp()
     where f.resource = one.resource;
    raised := raised + 1;
    if before.released_at is null then
      were_open := were_open + 1;
      perform lockguard.tell(before, greatest(before.token + 1, now_us));
    end if;
  end loop;
  insert into lockguard.audit (action, subject, reason)
  select 'recover', format('%s to %s', p_after, last), p_reason where raised > 0;
end
$$;

-- Last, as it keeps seals waiting until this transaction is over.
create trigger keep_above_floor after insert on lockguard.fence
  for each row execute function lockguard.keep_above_floor();
alter table lockguard.fence enable always trigger keep_above_floor;
comment on trigger keep_above_floor on lockguard.fence is 'lockguard: a resource without a row begins above the floor';
