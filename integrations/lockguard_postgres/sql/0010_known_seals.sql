-- A database that has lost seals, or is an old primary, is noticed by the next seal.
--
-- The lock remembers with each resource the last seal that this fence has confirmed, and gives it with the next grant.
-- Whoever is asked to seal has to know it. A standby that was promoted too early, an old primary that is still reached
-- and a restored backup do not; they are copies, and so have the same id.

create table lockguard.identity (
  single boolean primary key default true check (single),
  id uuid not null default gen_random_uuid()
);
comment on table lockguard.identity is 'lockguard: one row; which fence this is';
comment on column lockguard.identity.single is 'there is no second row';
comment on column lockguard.identity.id is 'made at install; copies of the database have it too, a new database does not';
insert into lockguard.identity default values;

create function lockguard.fence_id() returns uuid
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select i.id from lockguard.identity i
$$;
comment on function lockguard.fence_id() is 'lockguard: which fence this is, the same in all copies of the database';

create function lockguard.server() returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return format('system %s, timeline %s', (select c.system_identifier from pg_control_system() c),
    case when pg_is_in_recovery() then 'of a standby'
         else ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer::text end);
exception
  when others then
    return 'a server that does not tell its timeline';
end
$$;
comment on function lockguard.server() is
  'lockguard: which server this is; a promoted standby has the same system and a higher timeline. Some hosted servers do not tell.';

create function lockguard.known(p_resource text, p_fence uuid, p_token bigint) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  current_ bigint;
begin
  -- Whoever presents it was told so before this statement began, so its snapshot shows the seal, or none ever will.
  select f.token into current_ from lockguard.fence f where f.resource = p_resource;
  if not found then
    -- Pruned, or never sealed here. recover() raises the floor.
    select nullif(l.token, 0) into current_ from lockguard.floor l;
  end if;
  if p_token > coalesce(current_, 0) and exists (select from lockguard.identity i where i.id = p_fence) then
    raise exception 'this database does not know the seal of % with token %, which it has confirmed (current %; %): it is an old primary,'
      ' or has lost commits in a failover or a restore', p_resource, p_token, coalesce(current_::text, 'none'), lockguard.server()
      using errcode = 'LG007',
            detail = json_build_object('resource', p_resource, 'presented', p_token, 'current', current_, 'reason', 'unknown')::text,
            hint = 'Is there another primary? Compare the timelines that `lockguard fence status` shows, and keep the bots from the lower one.'
                   ' If this is the one that goes on: lockguard fence recover --reason ... --confirm';
  end if;
  return p_resource;
end
$$;
comment on function lockguard.known(text, uuid, bigint) is
  'lockguard: the resource, if its seal with this token, in this fence, is known here; otherwise LG007';
