-- What was part of a protected table and is not any more is noticed, whenever it came.
--
--   1. A partition that is attached is guarded from then on, and not any more once it is detached. The partitions and the inheriting tables of
--      protected tables are noted in lockguard.part, at protect, by each `lockguard fence check`, and once a minute by prune().
--   2. By number and by name: one that was renamed, or moved to another schema, before it was detached is found all the same.
--   3. unprotect() lets go of one that is meant to be a table of its own.

create table lockguard.part (
  relation text not null,
  relid oid not null,
  name text not null,
  primary key (relation, relid)
);
comment on table lockguard.part is 'lockguard: what was seen to be a partition or a child of a protected table';
comment on column lockguard.part.relation is 'that table, as in lockguard.declared';
comment on column lockguard.part.relid is 'the partition or child';
comment on column lockguard.part.name is 'its name when it was last seen; after a restore it has another number';

insert into lockguard.part (relation, relid, name)
select d.relation, coalesce(to_regclass(p)::oid, 0), p from lockguard.declared d cross join lateral unnest(d.partitions) p
on conflict do nothing;
alter table lockguard.declared drop column partitions;

create function lockguard.descendants(p_table oid) returns setof regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- pg_partition_tree() would wait for whoever changes a partition's definition.
  with recursive below (relid) as (
    select i.inhrelid from pg_inherits i where i.inhparent = p_table
    union
    select i.inhrelid from pg_inherits i join below b on i.inhparent = b.relid
  )
  select b.relid::regclass from below b
$$;
comment on function lockguard.descendants(oid) is 'lockguard: the partitions and inheriting tables of a table, at all levels';

create function lockguard.note_parts() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_read_only') = 'on' then
    return;  -- on a standby, say
  end if;
  insert into lockguard.part as p (relation, relid, name)
  select d.relation, x::oid, x::text
    from lockguard.declared d
    join lockguard.under_guard() g on g.relation = d.relid or g.relation = to_regclass(d.relation)
    cross join lateral lockguard.descendants(g.relation) x
   where not exists (select from lockguard.part n where n.relation = d.relation and n.relid = x::oid and n.name = x::text)
  on conflict (relation, relid) do update set name = excluded.name;
  delete from lockguard.part n
   where not exists (select from lockguard.declared d where d.relation = n.relation)
      or to_regclass(n.name) is null and not exists (select from pg_class c where c.oid = n.relid);
end
$$;
comment on function lockguard.note_parts() is 'lockguard: notes the partitions and children that protected tables have now';

create or replace function lockguard.declare_(p_table regclass, p_template text, p_exempt text[]) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into lockguard.declared as d (relation, relid, template, exempt, columns)
  select p_table::text, p_table, p_template, p_exempt,
         (select jsonb_object_agg(a.attname, a.attnum) from pg_attribute a
           where a.attrelid = p_table and a.attname in (select lockguard.named_columns(p_template, p_exempt)))
  on conflict (relation) do update
    set relid = excluded.relid, template = excluded.template, exempt = excluded.exempt, columns = excluded.columns;
  select lockguard.note_parts();
$$;

create or replace function lockguard.undeclare(p_relation text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  let_go boolean;
begin
  delete from lockguard.part n
   where n.name in (p_relation, 'public.' || p_relation) or n.relid = to_regclass(p_relation)::oid;
  let_go := found;
  delete from lockguard.declared d where d.relation in (p_relation, 'public.' || p_relation);
  return let_go or found;
end
$$;

alter function lockguard.prune(integer) rename to prune_records;
comment on function lockguard.prune_records(integer) is
  'lockguard: forgets what became of writes of more than 36 hours ago, so many at a time; returns how many';

create function lockguard.prune(p_limit integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform lockguard.note_parts();
  return lockguard.prune_records(p_limit);
end
$$;
comment on function lockguard.prune(integer) is
  'lockguard: forgets what became of writes of more than 36 hours ago, so many at a time; returns how many. Those who hold leases call it now and then. Notes which partitions protected tables have.';

create or replace function lockguard.findings()
returns table (relation text, grave boolean, finding text, remedy text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  with guards as materialized (
    select g.*, f.fed, format('lockguard fence protect %s --resource %L%s%s', g.relation, g.template,
                              case when cardinality(g.exempt) > 0 then format(' --exempt %s', array_to_string(g.exempt, ',')) else '' end,
                              case when f.fed then ' --subscriber' else '' end) as again
      from lockguard.under_guard() g cross join lateral lockguard.is_fed(g.relation) f (fed)
  ), expected as (
    select g.relation as guarded, g.relation as place, g.again, 'zz_lockguard_' || n as name from guards g
     cross join lateral unnest(case when g.shared then array['row', 'table'] else array['insert', 'update', 'delete', 'alone', 'table'] end) n
    union all
    select g.relation, p.relid::regclass, g.again, 'zz_lockguard_row' from guards g
     cross join lateral pg_partition_tree(g.relation) p where g.kind = 'p' and p.relid <> g.relation
  )
  -- The fence's own
  select v.r, true, format('its trigger %s is %s: a token could go back', v.n,
                           case when t.tgname is null then 'gone' when t.tgenabled = 'D' then 'disabled' else 'not enabled ALWAYS' end),
         'lockguard fence install'
    from (values ('lockguard.fence', 'keep_monotone'), ('lockguard.fence', 'keep_rows'), ('lockguard.fence', 'keep_above_floor'),
                 ('lockguard.floor', 'keep_floor'), ('lockguard.floor', 'keep_row')) v (r, n)
    left join pg_trigger t on t.tgrelid = v.r::regclass and t.tgname = v.n
   where t.tgenabled is distinct from 'A'
  union all
  -- Triggers that are off or gone, on the table and on its partitions
  select e.guarded::text, true, format('%s has its trigger %s %s: rows change without a lease', e.place, e.name,
           case when t.tgname is null then 'no more' when t.tgenabled = 'D' then 'disabled'
                else 'enabled as an ordinary one: session_replication_role = replica passes it' end), e.again
    from expected e
    left join pg_trigger t on t.tgrelid = e.place and t.tgname = e.name
   where t.tgenabled is distinct from 'A'
  union all
  -- What ought to be protected
  select d.relation, true,
         case when to_regclass(d.relation) is null then 'it ought to be protected, and there is no such table'
              else 'it ought to be protected, and the table that has this name is not' end
         || coalesce((select format('; the guard is on %s', g.relation) from guards g where g.relation = d.relid), ''),
         case when to_regclass(d.relation) is null then format('lockguard fence unprotect %s', d.relation)
              else format('lockguard fence protect %s --resource %L%s', d.relation, d.template,
                          case when cardinality(d.exempt) > 0 then format(' --exempt %s', array_to_string(d.exempt, ',')) else '' end) end
    from lockguard.declared d
   where not exists (select from guards g where g.relation = to_regclass(d.relation))
  union all
  select g.relation::text, false, 'it is protected under another name than it had: one that takes the old name is not missed', g.again
    from guards g where not exists (select from lockguard.declared d where to_regclass(d.relation) = g.relation)
  union all
  -- What was part of one
  select p.part::text, true, format('it was part of %s and is not any more: nothing guards it', p.relation),
         format('lockguard fence protect %s --resource %L', p.part, p.template)
    from (select distinct d.relation, d.template, coalesce(c.oid, to_regclass(n.name))::regclass as part
            from lockguard.declared d
            join lockguard.part n on n.relation = d.relation
            left join pg_class c on c.oid = n.relid) p
   where p.part is not null
     and not exists (select from guards g where g.relation = p.part)
     and not exists (select from guards g cross join lateral lockguard.descendants(g.relation) x where x = p.part)
     -- After a restore another table may have the number.
     and not exists (select from lockguard.named_columns(p.template, '{}') n
                      where n not in (select a.attname from pg_attribute a where a.attrelid = p.part and not a.attisdropped))
  union all
  select g.relation::text, true, format('%s inherits from it, and what is written there directly is not guarded', i.inhrelid::regclass),
         format('lockguard fence protect %s --resource %L', i.inhrelid::regclass, g.template)
    from guards g join pg_inherits i on i.inhparent = g.relation
   where g.kind <> 'p' and not exists (select from guards o where o.relation = i.inhrelid)
  union all
  -- Columns
  select g.relation::text, c.is_ is null and position('{' || n || '}' in g.template) > 0,
         case when c.is_ is not null then format('its column %s is called %s now: the guard finds it by its number, slowly', n, c.is_)
              when position('{' || n || '}' in g.template) > 0 then format('its column %s, which the resource is made of, is gone: every write fails', n)
              else format('its exempt column %s is gone: the guard is slower for it', n) end,
         format('lockguard fence protect %s --resource %L%s%s', g.relation,
                (select coalesce(string_agg(r.part, '' order by r.place), g.template) from (
                   select coalesce('{' || t.is_ || '}', m[1]) as part, place
                     from regexp_matches(g.template, '(\{[^{}]+\}|[^{}]+)', 'g') with ordinality m (m, place)
                     left join lockguard.columns_today(g.relation, g.template) t on '{' || t.was || '}' = m[1]) r),
                coalesce((select ' --exempt ' || string_agg(t.is_, ',') from lockguard.columns_today(g.relation, g.template) t
                           where t.was = any (g.exempt) and t.is_ is not null), ''), case when g.fed then ' --subscriber' else '' end)
    from guards g
    cross join lateral lockguard.named_columns(g.template, g.exempt) n
    left join lockguard.columns_today(g.relation, g.template) c on c.was = n
   where n <> '' and not exists (select from pg_attribute a where a.attrelid = g.relation and a.attname = n and not a.attisdropped)
  union all
  -- Logical replication
  select g.relation::text, true, 'a subscription fills it, whose workers present no lease: fence the publisher, or let them write',
         format('lockguard fence unprotect %s, or: %s --subscriber', g.relation, g.again)
    from guards g where not g.fed and lockguard.subscriptions(g.relation) > 0
  union all
  select g.relation::text, false, 'the workers of a subscription may write it, and none fills it', format('after CREATE SUBSCRIPTION it is well; without one: %s', replace(g.again, ' --subscriber', ''))
    from guards g where g.fed and lockguard.subscriptions(g.relation) = 0
  union all
  -- Guards of before
  select g.relation::text, true, format('its trigger %s runs after the guard and may change the resource of a row', t.tgname), g.again
    from guards g join pg_trigger t on t.tgrelid = g.relation
   where g.shared and g.early and not t.tgisinternal and t.tgtype & 3 = 3 and t.tgname > 'zz_lockguard_row' collate "C" and t.tgname not like 'zz\_lockguard\_%'
  union all
  select g.relation::text, false, 'its guard was made for another database, and does not follow a change of a column''s type', g.again
    from guards g join pg_proc p on p.oid = g.guard where position(quote_literal(g.relation::oid::text) || '::regclass' in p.prosrc) = 0
  order by 2 desc, 1, 3
$$;
