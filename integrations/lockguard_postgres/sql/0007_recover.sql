-- After a failover that lost commits, or a restore: no grant of before is accepted any more.
--
-- Such a database may call a grant open that was given back or superseded since, and does not know the seals that
-- came after. recover() raises every row above whatever was handed out until now, closed: whoever holds a lease is
-- refused and takes a new one, and a seal of before that arrives late is outrun.

create function lockguard.recover(
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
comment on function lockguard.recover(text, timestamptz, text, integer) is
  'lockguard: accepts no more writes of whoever sealed before, one part of all resources at a time; for after a failover or a restore';
comment on column lockguard.audit.action is 'break, recover, maintenance, protect or unprotect';
