-- A protected table that a subscription fills: its workers write, and nobody else without a lease.
--
-- protect(..., true) marks the guard's triggers with a third argument, which a dump and each partition keep. A worker is recognised by its process:
-- the server lists those that it has started for a subscription, and no session can put itself among them.
-- session_replication_role is no proof.

create function lockguard.is_fed(p_table regclass) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_trigger t
                  where t.tgrelid = p_table and t.tgname in ('zz_lockguard_row', 'zz_lockguard_insert') and t.tgnargs = 3)
$$;
comment on function lockguard.is_fed(regclass) is 'lockguard: whether the workers of a subscription may write the rows of a protected table';

create function lockguard.subscriptions(p_table regclass) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select count(distinct r.srsubid) from pg_subscription_rel r
   where r.srrelid = p_table or r.srrelid in (select t.relid from pg_partition_tree(p_table) t)
      or r.srrelid in (select a.relid from pg_partition_ancestors(p_table) a)
$$;
comment on function lockguard.subscriptions(regclass) is 'lockguard: how many subscriptions fill a table, or a part of it';

create function lockguard.is_feeding(p_table regclass) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- Not what a trigger of yours does in such a worker.
  select current_setting('session_replication_role') = 'replica' and pg_trigger_depth() = 1 and lockguard.is_fed(p_table)
     and exists (select from pg_stat_get_subscription(null) w join pg_subscription_rel r on r.srsubid = w.subid
                  where w.pid = pg_backend_pid()
                    and (r.srrelid = p_table or r.srrelid in (select a.relid from pg_partition_ancestors(p_table) a)))
$$;
comment on function lockguard.is_feeding(regclass) is
  'lockguard: whether this is a worker of a subscription that fills the table, and it may';

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
                                       'columns', p_columns)::text,
            hint = 'Write it inside a guarded body. A person may first run: select lockguard.maintenance(''why'').';
  end if;
end
$$;

create or replace function lockguard.keep_table() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not lockguard.in_maintenance() and not lockguard.is_feeding(tg_relid) then
    raise exception 'TRUNCATE of %, whose rows are protected, would remove them without their leases', tg_relid::regclass
      using errcode = 'LG002',
            detail = json_build_object('resource', '', 'presented', null, 'current', null, 'reason', 'truncate')::text,
            hint = 'Delete rows inside a guarded body. A person may first run: select lockguard.maintenance(''why'').';
  end if;
  return null;
end
$$;

create function lockguard.protect(p_table regclass, p_template text, p_exempt text[], p_subscriber boolean) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $body$
declare
  relation constant pg_class := (select c from pg_class c where c.oid = p_table);
  guard constant text := format('lockguard.%I', left('guard_' || relation.relname, 50) || '_' || substr(md5(gen_random_uuid()::text), 1, 8));
  shared constant boolean := relation.relkind = 'p' or exists (select from pg_inherits i where i.inhrelid = p_table);
  wrong text;
  made record;
begin
  if relation.relkind not in ('r', 'p') then
    raise exception '% is not a table; protect the table under it', p_table using errcode = 'LG004';
  end if;
  perform lockguard.expression(p_table, p_template, 'new');  -- says first what is wrong with the template
  select string_agg(x, ', ') into wrong from unnest(p_exempt) x
   where position('{' || x || '}' in p_template) > 0 or not exists (
     select from pg_attribute a
      where a.attrelid = p_table and a.attname = x and a.attnum > 0 and not a.attisdropped);
  if wrong is not null then
    raise exception 'cannot exempt % of %: name columns that it has and that are not part of the resource', wrong, p_table
      using errcode = 'LG004';
  end if;
  select string_agg(i.inhrelid::regclass::text, ', ') into wrong from pg_inherits i
   where i.inhparent = p_table and relation.relkind = 'r' and not exists (
     select from pg_trigger t where t.tgrelid = i.inhrelid and t.tgname = 'zz_lockguard_row');
  if wrong is not null then
    raise exception '% is inherited by %, where rows can be written past it: protect that first, in the same way', p_table, wrong
      using errcode = 'LG004';
  end if;

  if not p_subscriber and lockguard.subscriptions(p_table) > 0 then
    raise exception 'a subscription fills %, and its workers present no lease: protect the table on the publisher, or here with'
      ' --subscriber, which lets them write', p_table using errcode = 'LG004';
  end if;

  perform lockguard.unprotect(p_table);
  execute lockguard.writing_of_guard(guard, p_table, p_template, p_exempt, shared);
  execute format('revoke all on function %s() from public', guard);
  execute format('comment on function %s() is %L', guard, format('lockguard: guards the rows of %s as %s', p_table, p_template));
  for made in
    select * from (values
      ('row', true, 'after insert or update or delete', 'for each row', guard, 'no change of a row without the lease of its resource'),
      ('insert', false, 'after insert', 'referencing new table as after_rows', guard, 'no row comes without the lease of its resource'),
      ('update', false, 'after update', 'referencing old table as before_rows new table as after_rows', guard, 'no row changes without the lease of its resource'),
      ('delete', false, 'after delete', 'referencing old table as before_rows', guard, 'no row goes without the lease of its resource'),
      -- Postgres lets no table that has such a trigger become another one's child, where the three would not see all.
      ('alone', false, 'after delete', 'referencing old table as before_rows for each row when (false)', guard,
       'keeps the table from becoming a partition or a child: unprotect it before, and protect it after'),
      ('table', shared, 'before truncate', 'for each statement', 'lockguard.keep_table', 'no TRUNCATE without maintenance')
    ) as t (name, on_shared, event, how, function, says)
    where t.on_shared = shared or t.name = 'table'
  loop
    -- After the row, so that none sees less than what was made of it; ALWAYS, see 0001.
    execute format('create trigger %I %s on %s %s execute function %s(%L, %L%s)', 'zz_lockguard_' || made.name, made.event, p_table, made.how,
                   made.function, p_template, array_to_string(p_exempt, ','), case when p_subscriber then ', ''subscriber''' else '' end);
    execute format('alter table %s enable always trigger %I', p_table, 'zz_lockguard_' || made.name);
    execute format('comment on trigger %I on %s is %L', 'zz_lockguard_' || made.name, p_table, 'lockguard: ' || made.says);
  end loop;
  perform lockguard.declare_(p_table, p_template, p_exempt);
  insert into lockguard.audit (action, subject, reason) values ('protect', p_table::text, p_template || case when p_subscriber then ', fed by a subscription' else '' end);
end
$body$;
comment on function lockguard.protect(regclass, text, text[], boolean) is
  'lockguard: refuses changes of the table''s rows without the lease of the resource that the template makes of them; true: but for the workers of a subscription';

create or replace function lockguard.protect(p_table regclass, p_template text, p_exempt text[] default '{}') returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  select lockguard.protect(p_table, p_template, p_exempt, false)
$$;
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
  select 'lockguard.fence', true, format('its trigger %s is %s: a token could go back', v.n,
                                         case when t.tgname is null then 'gone' when t.tgenabled = 'D' then 'disabled' else 'not enabled ALWAYS' end),
         'lockguard fence install'
    from (values ('keep_monotone'), ('keep_rows')) v (n)
    left join pg_trigger t on t.tgrelid = 'lockguard.fence'::regclass and t.tgname = v.n
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
  select p, true, format('it was a partition of %s and is a table of its own now, which nothing guards', d.relation), d.again
    from (select d.relation, format('lockguard fence protect %s --resource %L', p, d.template) as again, p
            from lockguard.declared d cross join lateral unnest(d.partitions) p) d
   where to_regclass(p) is not null and not exists (select from pg_inherits i where i.inhrelid = to_regclass(p))
     and not exists (select from guards g where g.relation = to_regclass(p))
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
