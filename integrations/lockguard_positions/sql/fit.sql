-- What a fit reads of the catalog, in a read-only transaction. The table's name reaches it as a parameter.

-- name: named
-- By a name as SQL writes it, else by the very text: "My Table" without its quotes, or one with a dot in it.
select c.oid, n.nspname as schema, c.relname as name, c.relkind::text as kind, c.relispartition as is_partition,
       c.relowner::regrole::text as owner, pg_has_role(c.relowner, 'usage') as owned,
       has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as readable,
       current_user::text as role, greatest(c.reltuples, 0)::bigint as rows, pg_table_size(c.oid) as bytes,
       c.relrowsecurity as row_security
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'v', 'm', 'f')
   and case when $1::oid is not null then c.oid = $1
            else c.relname = $2 or n.nspname || '.' || c.relname = $2 end
 order by n.nspname, c.relname

-- name: is_view_of_positions
select exists (
  select from pg_rewrite w join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid
   where w.ev_class = $1 and d.refclassid = 'pg_class'::regclass and d.refobjid = to_regclass('monitoring.positions'))

-- name: columns
select a.attname as name, format_type(a.atttypid, a.atttypmod) as type, coalesce(b.typname, t.typname) as base, t.typtype::text as kind,
       case when t.typname in ('varchar', 'bpchar') and a.atttypmod > 4 then a.atttypmod - 4 end as length,
       case when t.typname = 'numeric' and a.atttypmod > 4 then ((a.atttypmod - 4) >> 16) & 65535 end as digits,
       case when t.typname = 'numeric' and a.atttypmod > 4 then (a.atttypmod - 4) & 2047 end as scale,
       a.attnotnull as not_null, pg_get_expr(d.adbin, d.adrelid) as default, a.attidentity::text as identity,
       a.attgenerated::text as generated,
       coalesce((select array_agg(e.enumlabel::text order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid),
                '{}') as labels,
       coalesce((select array_agg(distinct pg_describe_object(o.classid, o.objid, 0))
          from pg_depend o
         where o.refclassid = 'pg_class'::regclass and o.refobjid = a.attrelid and o.refobjsubid = a.attnum
           and o.classid in ('pg_rewrite'::regclass, 'pg_trigger'::regclass, 'pg_policy'::regclass))
         || (select array_agg('generated column ' || g.attname)
          from pg_depend o
          join pg_attrdef v on v.oid = o.objid
          join pg_attribute g on g.attrelid = v.adrelid and g.attnum = v.adnum
         where o.refclassid = 'pg_class'::regclass and o.refobjid = a.attrelid and o.refobjsubid = a.attnum
           and o.classid = 'pg_attrdef'::regclass and v.adnum <> a.attnum and g.attgenerated <> ''), '{}') as used_by
  from pg_attribute a join pg_type t on t.oid = a.atttypid
  left join pg_type b on b.oid = t.typbasetype
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
 order by a.attnum

-- name: checks
select conname as name, pg_get_expr(conbin, conrelid) as expression, convalidated as validated,
       (select coalesce(array_agg(a.attname::text), '{}') from pg_attribute a where a.attrelid = conrelid and a.attnum = any(conkey))
         as columns
  from pg_constraint
 where conrelid = $1 and contype = 'c'
 order by conname

-- name: indexes
select i.indexrelid::regclass::text as shown, ic.relname as name, n.nspname as schema, i.indisunique as unique,
       i.indisexclusion as exclusion, coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) as nulls_equal,
       i.indisprimary as primary,
       i.indisvalid as valid, pg_get_expr(i.indpred, i.indrelid) as predicate, pg_get_indexdef(i.indexrelid) as definition,
       coalesce((select array_agg(coalesce(a.attname::text, pg_get_indexdef(i.indexrelid, k.place::integer, false)) order by k.place)
          from unnest(i.indkey::smallint[]) with ordinality k(number, place)
          left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
         where k.place <= i.indnkeyatts), '{}') as columns,
       (select conname from pg_constraint c where c.conindid = i.indexrelid and c.conrelid = i.indrelid limit 1) as constraint
  from pg_index i join pg_class ic on ic.oid = i.indexrelid join pg_namespace n on n.oid = ic.relnamespace
 where i.indrelid = $1
 order by ic.relname

-- name: triggers
select tgname as name, pg_get_triggerdef(oid) as definition from pg_trigger
 where tgrelid = $1 and not tgisinternal
 order by tgname

-- name: referencing
select conrelid::regclass::text as name from pg_constraint where confrelid = $1 and contype = 'f' order by 1

-- name: grants
select case when a.grantee = 0 then null else a.grantee::regrole::text end as role, a.privilege_type as privilege
  from pg_class c, aclexplode(c.relacl) a
 where c.oid = $1 and a.grantee <> c.relowner
   and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
 order by 1, 2

-- name: surroundings
select to_regclass('monitoring.positions')::oid as positions,
       to_regclass('monitoring.schema_version') is not null as versioned,
       to_regnamespace('lockguard') is not null as fence,
       coalesce(has_schema_privilege(to_regnamespace('monitoring'), 'create'),
                has_database_privilege(current_database(), 'create')) as may_create,
       current_database()::text as database, current_setting('TimeZone') as time_zone

-- name: rules
select rulename as name, case ev_type when '2' then 'UPDATE' else 'INSERT' end as event from pg_rewrite
 where ev_class = $1 and ev_type in ('2', '3') and ev_enabled <> 'D'
 order by 1

-- name: unlogged
select relpersistence = 'u' from pg_class where oid = $1

-- name: pointing
select c.conname as name, c.confrelid::regclass::text as target,
       (select array_agg(a.attname::text order by k.place) from unnest(c.conkey) with ordinality k(number, place)
          join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.number) as columns,
       (select array_agg(a.attname::text order by k.place) from unnest(c.confkey) with ordinality k(number, place)
          join pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.number) as targets
  from pg_constraint c
 where c.conrelid = $1 and c.contype = 'f'
 order by 1

-- name: numbering
-- The number that the sequence of a column gives next; none of a sequence that the role may not read.
select s.seqrelid::regclass::text as sequence,
       coalesce(pg_sequence_last_value(s.seqrelid) + s.seqincrement, s.seqstart) as next
  from pg_sequence s
 where s.seqincrement > 0 and has_sequence_privilege(s.seqrelid, 'usage, select')
   and s.seqrelid in (
     select d.objid from pg_depend d
      where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = $1
        and d.refobjsubid = (select attnum from pg_attribute where attrelid = $1 and attname = $2) and d.deptype in ('a', 'i')
     union
     select d.refobjid from pg_depend d join pg_attrdef v on v.oid = d.objid
      where d.classid = 'pg_attrdef'::regclass and d.refclassid = 'pg_class'::regclass
        and v.adrelid = $1
        and v.adnum = (select attnum from pg_attribute where attrelid = $1 and attname = $2))
