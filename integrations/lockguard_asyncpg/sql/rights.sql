-- Who may call what; said anew at each install, so that a schema that was restored into another cluster, where the
-- role was not there, has its rights again.

do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'lockguard_app') then
    create role lockguard_app nologin;
    comment on role lockguard_app is 'lockguard: may take part in fencing; cannot write the fence itself';
  end if;
exception
  when duplicate_object or unique_violation then null;  -- another database of this cluster was faster
  when insufficient_privilege then null;  -- not needed: lockguard.allow() grants to any role
end
$$;

create or replace function lockguard.allow(p_role text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('grant usage on schema lockguard to %I', p_role);
  execute format('grant execute on function
    lockguard.bound(integer, integer),
    lockguard.seal(text, bigint, uuid, text, text, integer),
    lockguard.check(text, bigint, uuid, bigint),
    lockguard.check_all(text[], bigint[], uuid[], bigint),
    lockguard.check_first(text, bigint, uuid, text, text, bigint),
    lockguard.check_last(text, bigint, uuid, bigint),
    lockguard.close(text, bigint, uuid, integer),
    lockguard.break_(text, text, integer),
    lockguard.resolve(text, bigint, bigint, integer),
    lockguard.resolve_first(text, bigint, bigint, integer),
    lockguard.prune(integer),
    lockguard.status(text),
    lockguard.version(),
    lockguard.protections(),
    lockguard.findings(),
    lockguard.is_fed(regclass),
    lockguard.note_parts(),
    lockguard.fence_id(),
    lockguard.server(),
    lockguard.known(text, uuid, bigint),
    lockguard.gate(text),
    lockguard.under_way(text),
    lockguard.end_as_owner(text, integer),
    lockguard.evict(text, bigint),
    lockguard.seen_at_the_gate(text),
    lockguard.seen_by_the_owner(text),
    lockguard.at_the_gate(text),
    lockguard.overstayed(text),
    lockguard.end_overstayed_as_owner(text)
    to %I', p_role);
end
$$;
comment on function lockguard.allow(text) is 'lockguard: lets a role take part in fencing, and nothing else';

revoke all on schema lockguard from public;
revoke all on all tables in schema lockguard from public;
revoke all on all functions in schema lockguard from public;

do $$
begin
  if exists (select from pg_catalog.pg_roles where rolname = 'lockguard_app') then
    perform lockguard.allow('lockguard_app');
  end if;
end
$$;

-- A restore with --disable-triggers, and ENABLE TRIGGER ALL, leave these as ordinary ones, which session_replication_role switches off.
do $$
declare
  one record;
begin
  for one in select t.tgrelid::regclass as relation, t.tgname from pg_catalog.pg_trigger t
              where t.tgrelid in ('lockguard.fence'::regclass, 'lockguard.floor'::regclass) and t.tgname like 'keep\_%' and t.tgenabled <> 'A' loop
    execute format('alter table %s enable always trigger %I', one.relation, one.tgname);
  end loop;
end
$$;
