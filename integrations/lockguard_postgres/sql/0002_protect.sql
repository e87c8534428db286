-- Protection of a user's own table: the database refuses a row's change unless the transaction has
-- presented the lease of that row's resource, also one typed by hand or sent by code nobody converted.
--
-- protect() writes a trigger function for the table, because reading columns by name at run time would
-- cost several times as much per row. The trigger's arguments say what it was made from; nothing else is
-- kept, so a dump, a rename or a restore cannot leave a register that is wrong.

create function lockguard.in_maintenance() returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The setting alone is no proof, anybody can set it: the audit row of this very transaction is.
  select exists (
    select from lockguard.audit a
     where a.id = nullif(current_setting('lockguard.maintenance', true), '')::bigint
       and a.xid = pg_current_xact_id_if_assigned() and a.action = 'maintenance')
$$;
comment on function lockguard.in_maintenance() is 'lockguard: whether this transaction called maintenance()';

create function lockguard.maintenance(p_reason text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  entry bigint;
begin
  if coalesce(trim(p_reason), '') = '' then
    raise exception 'maintenance needs a reason: it is kept in lockguard.audit' using errcode = 'LG004';
  end if;
  insert into lockguard.audit (action, subject, reason) values ('maintenance', '*', p_reason) returning id into entry;
  perform set_config('lockguard.maintenance', entry::text, true);
end
$$;
comment on function lockguard.maintenance(text) is
  'lockguard: lets a person change protected rows without a lease until this transaction ends; kept in lockguard.audit';

create function lockguard.require(p_resource text, p_relation regclass) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  claim constant jsonb := nullif(current_setting('lockguard.leases', true), '')::jsonb -> p_resource;
  held lockguard.fence;
begin
  if claim is not null then
    perform lockguard.hold(p_resource, (claim ->> 0)::bigint, (claim ->> 1)::uuid);
  elsif not lockguard.in_maintenance() then
    select f.* into held from lockguard.fence f where f.resource = p_resource;
    raise exception '%', format(
        'no token for %s: a row of %s belongs to it and this transaction presented no lease, current %s',
        coalesce(p_resource, 'a row whose resource is null'), p_relation, coalesce(held.token::text, 'none'))
      using errcode = 'LG002',
            detail = json_build_object('resource', p_resource, 'presented', null, 'current', held.token,
                                       'reason', 'unguarded', 'holder', held.holder, 'operation', held.operation)::text,
            hint = 'Write it inside a guarded body. A person may first run: select lockguard.maintenance(''why'').';
  end if;
end
$$;
comment on function lockguard.require(text, regclass) is
  'lockguard: refuses (LG002) unless this transaction presented a lease of the resource that is still in force';

create function lockguard.keep_table() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not lockguard.in_maintenance() then
    raise exception 'TRUNCATE of %, whose rows are protected, would remove them without their leases', tg_relid::regclass
      using errcode = 'LG002',
            detail = json_build_object('resource', '', 'presented', null, 'current', null, 'reason', 'truncate')::text,
            hint = 'Delete rows inside a guarded body. A person may first run: select lockguard.maintenance(''why'').';
  end if;
  return null;
end
$$;
comment on function lockguard.keep_table() is 'lockguard: refuses TRUNCATE of a protected table';

create function lockguard.expression(p_table regclass, p_template text, p_row text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  part text[];
  pieces text[] := '{}';
  rest text := p_template;
begin
  loop
    part := regexp_match(rest, '^([^{}]*)\{([^{}]+)\}(.*)$');
    exit when part is null;
    if not exists (select from pg_attribute a
                    where a.attrelid = p_table and a.attname = part[2] and a.attnum > 0 and not a.attisdropped) then
      raise exception 'template % names a column %, which % does not have; it has: %', quote_literal(p_template),
        quote_literal(part[2]), p_table,
        (select string_agg(a.attname, ', ' order by a.attnum) from pg_attribute a
          where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped)
        using errcode = 'LG004';
    end if;
    pieces := pieces || quote_literal(part[1]) || format('%s.%I::text', p_row, part[2]);
    rest := part[3];
  end loop;
  if cardinality(pieces) = 0 or rest ~ '[{}]' then
    raise exception 'template % cannot be read; write columns in braces, such as {exchange}:{symbol}',
      quote_literal(p_template) using errcode = 'LG004';
  end if;
  return array_to_string(pieces || quote_literal(rest), ' || ');
end
$$;
comment on function lockguard.expression(regclass, text, text) is
  'lockguard: a resource template as an SQL expression over a row of the table';

create function lockguard.unprotect(p_table regclass) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  guard constant regprocedure := (
    select t.tgfoid::regprocedure from pg_trigger t
     where t.tgrelid = p_table and t.tgname in ('zz_lockguard_row', 'zz_lockguard_delete') and t.tgparentid = 0);
  name_ name;
begin
  if guard is null then
    return false;
  end if;
  for name_ in select t.tgname from pg_trigger t where t.tgrelid = p_table and t.tgname like 'zz\_lockguard\_%' loop
    execute format('drop trigger %I on %s', name_, p_table);
  end loop;
  execute format('drop function %s', guard);
  insert into lockguard.audit (action, subject, reason) values ('unprotect', p_table::text, '');
  return true;
end
$$;
comment on function lockguard.unprotect(regclass) is 'lockguard: removes the protection of a table; answers whether there was one';

create function lockguard.blanked(p_table regclass, p_exempt text[], p_to text, p_from text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- Generated columns follow from the others, and a BEFORE trigger does not see them yet.
  select string_agg(format('%2$s.%1$I := %3$s.%1$I;', a.attname, p_to, p_from), e'\n') from pg_attribute a
   where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
     and (a.attname = any (p_exempt) or a.attgenerated <> '')
$$;
comment on function lockguard.blanked(regclass, text[], text, text) is 'lockguard: statements that make the exempt columns of two rows equal';

-- The body of a guard that runs once for a statement, over the transition tables: where many rows change, a
-- row then costs a tenth of what a row trigger costs. It runs after the rows were written, which is as good:
-- either it fails the statement, or it holds the fence's rows until the commit.
create function lockguard.statement_guard(p_table regclass, p_template text, p_exempt text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format($guard$
    declare
      claims constant jsonb := nullif(current_setting('lockguard.leases', true), '')::jsonb;
      first text;
      last text;
      complete boolean;
      touched text[];
      before_ record;
      after_ record;
      others no scroll cursor for select * from after_rows;
    begin
      -- The usual case is one resource, whose lease was presented; whatever is wrong, require() finds the words for it.
      if claims is not null then
        if tg_op = 'INSERT' then
          select min(r), max(r), count(*) = count(r) into first, last, complete from (select (%1$s) collate "C" as r from after_rows row_) x;
        elsif tg_op = 'DELETE' then
          select min(r), max(r), count(*) = count(r) into first, last, complete from (select (%1$s) collate "C" as r from before_rows row_) x;
        else
          select min(r), max(r), count(*) = count(r) into first, last, complete from (
            select (%1$s) collate "C" as r from before_rows row_ union all select (%1$s) collate "C" from after_rows row_) x;
        end if;
        if first = last and complete then
          perform from lockguard.fence f
            where f.resource = first and f.token = (claims -> first ->> 0)::bigint
              and f.grant_id = (claims -> first ->> 1)::uuid and f.released_at is null
            for share;
          if found then
            return null;
          end if;
        end if;
      end if;
      if tg_op = 'INSERT' then
        touched := array(select distinct %1$s from after_rows row_);
      elsif tg_op = 'DELETE' then
        touched := array(select distinct %1$s from before_rows row_);
      else
%2$s
      end if;
      -- In the order in which every transaction locks the fence's rows.
      for first in select r from unnest(touched) r group by 1 order by r collate "C" loop
        perform lockguard.require(first, tg_relid);
      end loop;
      return null;
    end
  $guard$, lockguard.expression(p_table, p_template, 'row_'),
  case when cardinality(p_exempt) = 0 then
    format('        touched := array(select %1$s from before_rows row_ union select %1$s from after_rows row_);',
           lockguard.expression(p_table, p_template, 'row_'))
  -- Both tables list the rows in the same order. If they did not, rows would differ that do not, and be refused.
  else format($skip$
        open others;
        for before_ in select * from before_rows loop
          fetch others into after_;
          last := %2$s;
%3$s
          if not after_ operator(pg_catalog.*=) before_ then
            touched := touched || (%1$s) || last;
          end if;
        end loop;
$skip$, lockguard.expression(p_table, p_template, 'before_'), lockguard.expression(p_table, p_template, 'after_'),
    lockguard.blanked(p_table, p_exempt, 'after_', 'before_')) end)
$$;
comment on function lockguard.statement_guard(regclass, text, text[]) is 'lockguard: the body of the trigger function of an ordinary table';

-- The body of a guard that runs for each row, for partitioned tables and for children of other tables: their
-- rows change through the other table too, where no trigger of theirs runs but those for each row.
create function lockguard.row_guard(p_table regclass, p_template text, p_exempt text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format($guard$
    declare
      before_ text;
      after_ text;
      claim jsonb;
      probe record;
    begin
      if tg_op <> 'INSERT' then
        before_ := %1$s;
      end if;
      if tg_op <> 'DELETE' then
        after_ := %2$s;
      end if;
      if tg_op = 'UPDATE' then
%3$s
        if before_ is distinct from after_ then
          perform lockguard.require(least(before_ collate "C", after_), tg_relid);
          perform lockguard.require(greatest(before_ collate "C", after_), tg_relid);
          return new;
        end if;
      end if;
      -- The usual case without a call for each row; whatever is wrong, require() finds the words for it.
      claim := nullif(current_setting('lockguard.leases', true), '')::jsonb -> coalesce(after_, before_);
      perform from lockguard.fence f
        where f.resource = coalesce(after_, before_) and f.token = (claim ->> 0)::bigint
          and f.grant_id = (claim ->> 1)::uuid and f.released_at is null
        for share;
      if not found then
        perform lockguard.require(coalesce(after_, before_), tg_relid);
      end if;
      return case when tg_op = 'DELETE' then old else new end;
    end
  $guard$, lockguard.expression(p_table, p_template, 'old'), lockguard.expression(p_table, p_template, 'new'),
  case when cardinality(p_exempt) > 0 then format($skip$
        probe := new;
%s
        if probe operator(pg_catalog.*=) old then
          return new;
        end if;
$skip$, lockguard.blanked(p_table, p_exempt, 'probe', 'old')) else '' end)
$$;
comment on function lockguard.row_guard(regclass, text, text[]) is 'lockguard: the body of the trigger function of a partitioned or inheriting table';

create function lockguard.protect(p_table regclass, p_template text, p_exempt text[] default '{}') returns void
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

  perform lockguard.unprotect(p_table);
  execute format('create function %s() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as %L',
                 guard, case when shared then lockguard.row_guard(p_table, p_template, p_exempt)
                             else lockguard.statement_guard(p_table, p_template, p_exempt) end);
  execute format('revoke all on function %s() from public', guard);
  execute format('comment on function %s() is %L', guard, format('lockguard: guards the rows of %s as %s', p_table, p_template));
  for made in
    select * from (values
      ('row', true, 'before insert or update or delete', 'for each row', guard, 'no change of a row without the lease of its resource'),
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
    -- Named to come last, so that a row trigger sees what the others made of the row; ALWAYS, see 0001.
    execute format('create trigger %I %s on %s %s execute function %s(%L, %L)', 'zz_lockguard_' || made.name, made.event, p_table, made.how,
                   made.function, p_template, array_to_string(p_exempt, ','));
    execute format('alter table %s enable always trigger %I', p_table, 'zz_lockguard_' || made.name);
    execute format('comment on trigger %I on %s is %L', 'zz_lockguard_' || made.name, p_table, 'lockguard: ' || made.says);
  end loop;
  insert into lockguard.audit (action, subject, reason) values ('protect', p_table::text, p_template);
end
$body$;
comment on function lockguard.protect(regclass, text, text[]) is
  'lockguard: from now on no row of the table changes without the lease of its resource, but for exempt columns';

create function lockguard.protections()
returns table (relation text, template text, exempt text[], enabled boolean)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The trigger's arguments are stored with a zero byte behind each.
  select t.tgrelid::regclass::text,
         convert_from(decode(a.args[1], 'escape'), 'UTF8'),
         string_to_array(convert_from(decode(a.args[2], 'escape'), 'UTF8'), ','),
         (select bool_and(o.tgenabled = 'A') from pg_trigger o where o.tgrelid = t.tgrelid and o.tgname like 'zz\_lockguard\_%')
    from pg_trigger t
    cross join lateral (select string_to_array(encode(t.tgargs, 'escape'), chr(92) || '000')) as a (args)
   where t.tgname in ('zz_lockguard_row', 'zz_lockguard_delete') and t.tgparentid = 0
   order by 1
$$;
comment on function lockguard.protections() is 'lockguard: the protected tables of this database';
