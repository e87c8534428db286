-- Who may call what; said anew at each install, so that a schema that was restored into another cluster, where the
-- roles were not there, has its rights again.

do $$
declare
  made record;
begin
  for made in
    select m.role, m.may from (values
      ('lockguard_app', 'may take part in fencing; cannot write the fence itself'),
      ('lockguard_viewer', 'may see the fence, its audit and its refusals; changes nothing'),
      ('lockguard_operator', 'may see what lockguard_viewer sees, and break a lock')) as m (role, may)
     where not exists (select from pg_catalog.pg_roles r where r.rolname = m.role)
  loop
    begin
      execute format('create role %I nologin', made.role);
      execute format('comment on role %I is %L', made.role, 'lockguard: ' || made.may);
    exception
      when duplicate_object or unique_violation then null;  -- another database of this cluster was faster
      when insufficient_privilege then null;  -- not needed: the functions below grant to any role
    end;
  end loop;
end
$$;

create or replace function lockguard.allow_to_view(p_role text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('grant usage on schema lockguard to %I', p_role);
  execute format('grant execute on function
    lockguard.status(text),
    lockguard.states(text[], boolean),
    lockguard.audit_lines(text, integer),
    lockguard.refusals(text, timestamptz, integer),
    lockguard.version(),
    lockguard.server(),
    lockguard.fence_id(),
    lockguard.protections(),
    lockguard.findings(),
    lockguard.is_fed(regclass),
    lockguard.is_watched(regclass),
    lockguard.watches(),
    lockguard.watched_writes(),
    lockguard.gate(text),
    lockguard.under_way(text),
    lockguard.at_the_gate(text),
    lockguard.seen_at_the_gate(text),
    lockguard.seen_by_the_owner(text)
    to %I', p_role);
end
$$;
comment on function lockguard.allow_to_view(text) is 'lockguard: lets a role see the fence, its audit and its refusals, and nothing else';

create or replace function lockguard.allow_to_operate(p_role text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform lockguard.allow_to_view(p_role);
  execute format('grant execute on function
    lockguard.break_(text, text, integer),
    lockguard.break_grant(text, bigint, uuid, text, integer),
    lockguard.evict_before(text, bigint, uuid),
    lockguard.close(text, bigint, uuid, integer),
    lockguard.bound(integer, integer),
    lockguard.evict(text, bigint),
    lockguard.overstayed(text),
    lockguard.end_as_owner(text, integer),
    lockguard.end_overstayed_as_owner(text)
    to %I', p_role);
end
$$;
comment on function lockguard.allow_to_operate(text) is 'lockguard: lets a role see what allow_to_view() lets it see, and break a lock';

create or replace function lockguard.allow(p_role text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform lockguard.allow_to_view(p_role);
  execute format('grant execute on function
    lockguard.bound(integer, integer),
    lockguard.seal(text, bigint, uuid, text, text, integer),
    lockguard.check(text, bigint, uuid, bigint),
    lockguard.check_all(text[], bigint[], uuid[], bigint),
    lockguard.check_first(text, bigint, uuid, text, text, bigint),
    lockguard.check_last(text, bigint, uuid, bigint),
    lockguard.close(text, bigint, uuid, integer),
    lockguard.break_(text, text, integer),
    lockguard.break_grant(text, bigint, uuid, text, integer),
    lockguard.evict_before(text, bigint, uuid),
    lockguard.resolve(text, bigint, bigint, integer),
    lockguard.resolve_first(text, bigint, bigint, integer),
    lockguard.prune(integer),
    lockguard.note_refusal(text, bigint, bigint, text, text, text, text, bigint, bigint, bigint),
    lockguard.note_parts(),
    lockguard.known(text, uuid, bigint),
    lockguard.end_as_owner(text, integer),
    lockguard.evict(text, bigint),
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
  if exists (select from pg_catalog.pg_roles where rolname = 'lockguard_viewer') then
    perform lockguard.allow_to_view('lockguard_viewer');
  end if;
  if exists (select from pg_catalog.pg_roles where rolname = 'lockguard_operator') then
    perform lockguard.allow_to_operate('lockguard_operator');
  end if;
end
$$;

-- A trigger that is gone, or calls another function, is made again: until then a token could go back.
do $$
declare
  one record;
begin
  for one in
    select * from (values
      ('fence', 'keep_monotone', 'keep_monotone', 'before update or delete', 'row'),
      ('fence', 'keep_rows', 'keep_monotone', 'before truncate', 'statement'),
      ('fence', 'keep_above_floor', 'keep_above_floor', 'after insert', 'row'),
      ('floor', 'keep_floor', 'keep_floor', 'before update or delete', 'row'),
      ('floor', 'keep_row', 'keep_floor', 'before truncate', 'statement')) v (relation, name, call, at, each)
     where not exists (select from pg_catalog.pg_trigger t
                        where t.tgrelid = format('lockguard.%I', v.relation)::regclass and t.tgname = v.name
                          and t.tgfoid = format('lockguard.%I()', v.call)::regprocedure)
  loop
    execute format('drop trigger if exists %I on lockguard.%I', one.name, one.relation);
    execute format('create trigger %I %s on lockguard.%I for each %s execute function lockguard.%I()',
                   one.name, one.at, one.relation, one.each, one.call);
  end loop;
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
