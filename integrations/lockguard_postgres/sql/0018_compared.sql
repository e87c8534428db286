-- A break that ends the grant which the operator saw, and no other.

create function lockguard.break_grant(
  p_resource text, p_token bigint, p_grant uuid, p_reason text, p_within_ms integer, out broken boolean, out token bigint
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  held lockguard.fence;
  -- The same each time, so that a break whose reply was lost is told from a successor when it is asked for again.
  mark constant uuid := md5('break ' || p_grant)::uuid;
  higher bigint;
begin
  perform lockguard.refuse_beyond(p_resource, p_token);
  perform lockguard.settle_session(p_within_ms);
  broken := true;
  if not pg_try_advisory_xact_lock(lockguard.gate(p_resource)) then
    -- Tokens only grow: what a newer grant has by now, it keeps, and nobody has to wait for its writers.
    select f.* into held from lockguard.fence f where f.resource = p_resource;
    if held.grant_id <> all (array[p_grant, mark]) and held.token >= p_token then
      broken := false;
      token := held.token;
      return;
    end if;
    perform pg_advisory_xact_lock(lockguard.gate(p_resource));
  end if;
  select f.* into held from lockguard.fence f where f.resource = p_resource;
  if held.grant_id = mark then
    token := held.token;
    return;
  elsif held.grant_id <> p_grant and held.token >= p_token then
    broken := false;
    token := held.token;
    return;
  end if;
  -- Redis hands out microseconds, so this also outruns an older grant that has not been sealed yet.
  higher := greatest((extract(epoch from clock_timestamp()) * 1000000)::bigint, held.token + 1, p_token + 1);
  insert into lockguard.fence (resource, token, grant_id, holder, operation, released_at)
  values (p_resource, higher, mark, session_user, left('break: ' || p_reason, 500), clock_timestamp())
  on conflict (resource) do update
    set token = excluded.token, grant_id = excluded.grant_id, holder = excluded.holder, operation = excluded.operation,
        sealed_at = clock_timestamp(), released_at = clock_timestamp();
  insert into lockguard.audit (action, subject, reason) values ('break', p_resource, p_reason);
  token := higher;
end
$$;
comment on function lockguard.break_grant(text, bigint, uuid, text, integer) is
  'lockguard: as break_(), but leaves a grant alone that is newer than this one; a token of 0: than whatever it has. Answers whether it broke it, and the token in force';

create function lockguard.evict_before(p_resource text, p_token bigint, p_grant uuid) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from lockguard.status(p_resource) s where s.grant_id <> p_grant and s.token >= p_token) then
    return 0;
  end if;
  return lockguard.evict(p_resource, null);
end
$$;
comment on function lockguard.evict_before(text, bigint, uuid) is
  'lockguard: as evict(), for a break of this grant: while no newer one is in force';
