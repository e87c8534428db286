-- A seal that travels with the first write, and a close that travels with the last one.

-- What the transaction that closes a grant writes under it is accepted until its end, and commits with the close or not
-- at all. The row's own mark tells which transaction closed it; nobody can set that by hand.
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
  elsif held.released_at is not null and not exists (
    select from lockguard.fence f where f.resource = p_resource and f.xmin = pg_current_xact_id()::xid)
  then
    perform lockguard.refuse(p_resource, p_token, p_grant, 'closed', held);
  end if;
  return held;
end
$$;

create function lockguard.check_last(p_resource text, p_token bigint, p_grant uuid, p_sequence bigint default null)
returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- To itself before check() shares it: two that close would otherwise wait for each other.
  perform pg_advisory_xact_lock(lockguard.gate(p_resource));
  perform lockguard.check(p_resource, p_token, p_grant, p_sequence);
  update lockguard.fence f set released_at = clock_timestamp() where f.resource = p_resource and f.released_at is null;
  return p_token;
end
$$;
comment on function lockguard.check_last(text, bigint, uuid, bigint) is
  'lockguard: as check(), for the last transaction under a lease: its COMMIT also closes the grant; waits for the others';

create function lockguard.check_first(
  p_resource text, p_token bigint, p_grant uuid, p_holder text, p_operation text, p_sequence bigint default null
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  ignored text;
begin
  -- Whatever is not plain goes the long way: a seal of its own, which stands in line, has those ended that stay, and may
  -- be outrun. At the other levels the snapshot is older than this seal, and at SERIALIZABLE neighbours would disturb each other.
  if current_setting('transaction_isolation') <> 'read committed' or not pg_try_advisory_xact_lock(lockguard.gate(p_resource)) then
    raise exception 'the lease on % is sealed by itself', p_resource using errcode = 'LG006';
  end if;
  if p_token is null or p_token > (extract(epoch from clock_timestamp()) * 1000000)::bigint then
    perform lockguard.refuse_beyond(p_resource, p_token);
  end if;
  if current_setting('synchronous_commit') = 'off' then
    ignored := set_config('synchronous_commit', 'on', true);
  end if;
  update lockguard.fence f
     set token = p_token, grant_id = p_grant, holder = left(p_holder, 500), operation = left(p_operation, 500),
         sealed_at = clock_timestamp(), released_at = null
   where f.resource = p_resource and f.token < p_token and f.grant_id <> p_grant;
  if not found then
    -- It is sealed already, and the reply was lost; or the resource is a new one.
    perform from lockguard.fence f
      where f.resource = p_resource and f.token = p_token and f.grant_id = p_grant and f.released_at is null;
    if not found then
      insert into lockguard.fence (resource, token, grant_id, holder, operation)
      select p_resource, p_token, p_grant, left(p_holder, 500), left(p_operation, 500)
       where not exists (select from lockguard.floor l where l.token >= p_token)
      on conflict do nothing;
      if not found then
        raise exception 'the lease on % is sealed by itself', p_resource using errcode = 'LG006';
      end if;
    end if;
  end if;
  return lockguard.check(p_resource, p_token, p_grant, p_sequence);
end
$$;
comment on function lockguard.check_first(text, bigint, uuid, text, text, bigint) is
  'lockguard: seal() and check() in the transaction of the first write; refuses (LG006) where the seal has to be made by itself';

create function lockguard.resolve_first(p_resource text, p_token bigint, p_sequence bigint, p_within_ms integer) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  noted lockguard.writer;
begin
  -- Where the write has not committed, nothing here knows of its token. It may be under way: this waits for it, and bars it.
  -- Where the resource may have been pruned since, resolve() says so.
  if not exists (select from lockguard.fence f where f.resource = p_resource and f.token >= p_token)
    and (exists (select from lockguard.fence f where f.resource = p_resource)
         or not exists (select from lockguard.floor l where l.token >= p_token))
  then
    perform lockguard.refuse_beyond(p_resource, p_token);
    perform lockguard.settle_session(p_within_ms);
    insert into lockguard.writer as w (resource, slot, token, sequence, first, voided)
    values (p_resource, p_sequence >> 10, p_token, p_sequence, p_sequence, true)
    on conflict (resource, slot) do update
      set token = excluded.token, sequence = excluded.sequence, voided = true
      where (w.token, w.sequence) < (excluded.token, excluded.sequence);
    if found then
      return false;
    end if;
    select w.* into noted from lockguard.writer w where w.resource = p_resource and w.slot = p_sequence >> 10;
    if noted.token = p_token and noted.sequence = p_sequence then
      return not noted.voided;
    end if;
  end if;
  return lockguard.resolve(p_resource, p_token, p_sequence, p_within_ms);
end
$$;
comment on function lockguard.resolve_first(text, bigint, bigint, integer) is
  'lockguard: as resolve(), for a write that carried the seal of its lease; in a database that never heard of it the answer is no';
