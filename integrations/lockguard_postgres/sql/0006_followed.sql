-- Protection that follows the table's life, and a look that tells where it does not.
--
--   1. A column that changes its type is followed: the plans of a guard hang on the table.
--   2. A column that is renamed, and an exempt one that is dropped, is followed by its number, slowly; one of the template that is
--      dropped is named to whoever writes.
--   3. The guard of a partitioned or inheriting table runs after the row, so that no other trigger changes it behind the guard.
--   4. What ought to be protected is kept in lockguard.declared, by name: a table that took the name of a protected one is noticed.
--   5. findings() tells what no longer holds: `lockguard fence check`.

create table lockguard.declared (
  relation text primary key,
  relid oid not null,
  template text not null,
  exempt text[] not null,
  columns jsonb not null,
  partitions text[] not null
);
comment on table lockguard.declared is 'lockguard: what ought to be protected; that it is, the triggers of the table tell';
comment on column lockguard.declared.relation is 'the table, by name: one that is put in its place ought to be protected too';
comment on column lockguard.declared.relid is 'the table that was protected under this name';
comment on column lockguard.declared.template is 'the resource of a row';
comment on column lockguard.declared.exempt is 'columns that change without a lease';
comment on column lockguard.declared.columns is 'the numbers of the columns that both name';
comment on column lockguard.declared.partitions is 'its partitions when it was protected: one that is detached is protected no more';

create function lockguard.followed(p_table regclass, p_expression text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  -- Plans are kept with the types of a record's fields, and a session whose plan has another type of a column than the
  -- table by now would be refused for as long as it lives. A constant that names the table has each of its changes make
  -- the plan anew. The planner takes it out; by number, so that the table may be renamed.
  select format('case when %L::regclass is not null then %s end', p_table::oid, p_expression)
$$;
comment on function lockguard.followed(regclass, text) is
  'lockguard: the expression, planned anew after each change of the table''s definition';

create function lockguard.claim_of(p_resource text) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  claims constant text := current_setting('lockguard.leases', true);
  named text;
  pair text;
begin
  if octet_length(claims) < 1000 then
    return nullif(claims, '')::jsonb -> p_resource;
  end if;
  -- To read the whole for each row takes a millisecond with 300 leases. Within a string every quote is escaped, so that a
  -- bare one behind a brace or a comma begins a name. By split_part(), which counts no characters.
  named := to_json(p_resource)::text || ': [';
  pair := left(split_part(claims, ', ' || named, 2), 100);
  if pair = '' then
    pair := left(split_part(claims, '{' || named, 2), 100);
  end if;
  return case when pair <> '' then ('[' || split_part(pair, ']', 1) || ']')::jsonb end;
end
$$;
comment on function lockguard.claim_of(text) is 'lockguard: the token and grant that this transaction presented for a resource; null if none';

create function lockguard.under_guard()
returns table (relation regclass, kind "char", shared boolean, early boolean, guard regprocedure, template text, exempt text[])
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- The trigger's arguments are stored with a zero byte behind each.
  select distinct on (t.tgrelid) t.tgrelid::regclass, c.relkind, t.tgname = 'zz_lockguard_row', t.tgtype & 2 <> 0, t.tgfoid::regprocedure,
         convert_from(decode(a.args[1], 'escape'), 'UTF8'), string_to_array(convert_from(decode(a.args[2], 'escape'), 'UTF8'), ',')
    from pg_trigger t
    join pg_class c on c.oid = t.tgrelid
    cross join lateral (select string_to_array(encode(t.tgargs, 'escape'), chr(92) || '000')) as a (args)
   where t.tgname in ('zz_lockguard_row', 'zz_lockguard_insert', 'zz_lockguard_update', 'zz_lockguard_delete') and t.tgparentid = 0
   order by t.tgrelid, t.tgname
$$;
comment on function lockguard.under_guard() is 'lockguard: the tables that have a guard, or some of its triggers, with what it was made from';

create function lockguard.named_columns(p_template text, p_exempt text[]) returns setof text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select m[1] from regexp_matches(p_template, '\{([^{}]+)\}', 'g') m union select x from unnest(p_exempt) x
$$;
comment on function lockguard.named_columns(text, text[]) is 'lockguard: the columns that a protection names';

create function lockguard.declare_(p_table regclass, p_template text, p_exempt text[]) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into lockguard.declared as d (relation, relid, template, exempt, columns, partitions)
  select p_table::text, p_table, p_template, p_exempt,
         (select jsonb_object_agg(a.attname, a.attnum) from pg_attribute a
           where a.attrelid = p_table and a.attname in (select lockguard.named_columns(p_template, p_exempt))),
         array(select t.relid::regclass::text from pg_partition_tree(p_table) t where t.level > 0)
  on conflict (relation) do update
    set relid = excluded.relid, template = excluded.template, exempt = excluded.exempt, columns = excluded.columns,
        partitions = excluded.partitions
$$;
comment on function lockguard.declare_(regclass, text, text[]) is 'lockguard: notes that a table ought to be protected';

create function lockguard.undeclare(p_relation text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from lockguard.declared d where d.relation in (p_relation, 'public.' || p_relation);
  return found;
end
$$;
comment on function lockguard.undeclare(text) is 'lockguard: a table of this name need no longer be protected; answers whether it had to be';

create function lockguard.columns_today(p_table oid, p_template text)
returns table (was text, is_ text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select c.key, coalesce(named.attname, numbered.attname)::text
    from lockguard.declared d
    cross join lateral jsonb_each_text(d.columns) c
    left join pg_attribute named on named.attrelid = p_table and named.attname = c.key and not named.attisdropped
    left join pg_attribute numbered on numbered.attrelid = p_table and numbered.attnum = c.value::smallint and not numbered.attisdropped
   where d.relid = p_table and d.template = p_template
$$;
comment on function lockguard.columns_today(oid, text) is
  'lockguard: what the columns that a protection names are called now; null for one that was dropped';

create function lockguard.template_today(p_table oid, p_template text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  today text := p_template;
  one record;
begin
  for one in select n as was, c.is_ from lockguard.named_columns(p_template, '{}') n
               left join lockguard.columns_today(p_table, p_template) c on c.was = n loop
    if one.is_ is null then
      raise exception 'the resource of a row of % cannot be told: it is %, and % has no column % now',
        p_table::regclass, p_template, p_table::regclass, one.was
        using errcode = 'LG004', hint = format('Protect it anew: lockguard fence protect %s --resource ...', p_table::regclass);
    end if;
    today := replace(today, '{' || one.was || '}', '{' || one.is_ || '}');
  end loop;
  return today;
end
$$;
comment on function lockguard.template_today(oid, text) is
  'lockguard: the template with the names that its columns have now; refuses (LG004) where one was dropped';

create function lockguard.free_today(p_table oid, p_template text, p_exempt text[]) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select array(select c.is_ from lockguard.columns_today(p_table, p_template) c where c.was = any (p_exempt) and c.is_ is not null
               union select a.attname::text from pg_attribute a where a.attrelid = p_table and a.attgenerated <> '')
$$;
comment on function lockguard.free_today(oid, text, text[]) is 'lockguard: the columns that change without a lease, by their names of now';

create function lockguard.touched_today(p_table oid, p_op text, p_template text, p_exempt text[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  key constant text := lockguard.expression(p_table, lockguard.template_today(p_table, p_template), 'row_');
  numbered constant text := format('select row_number() over () as n, (to_jsonb(row_) - %L::text[])::text as rest, %s as key from %%s row_',
                                   lockguard.free_today(p_table, p_template, p_exempt), key);
begin
  return case p_op
    when 'INSERT' then format('select array(select distinct %s from after_rows row_)', key)
    when 'DELETE' then format('select array(select distinct %s from before_rows row_)', key)
    else format('select array(select distinct k from (%s) b join (%s) a using (n) cross join lateral (values (b.key), (a.key)) v (k)'
                ' where b.rest <> a.rest)', format(numbered, 'before_rows'), format(numbered, 'after_rows'))
  end;
end
$$;
comment on function lockguard.touched_today(oid, text, text, text[]) is
  'lockguard: the query for the resources that a statement touched, where a column that the guard names is called otherwise by now';

create function lockguard.row_touched_today(p_table oid, p_relation oid, p_op text, p_template text, p_exempt text[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  template constant text := lockguard.template_today(p_table, p_template);
  -- Names, which a partition shares with its table; numbers it does not.
  free constant text[] := lockguard.free_today(p_table, p_template, p_exempt);
begin
  return case p_op
    when 'INSERT' then format('select array[%s]', lockguard.expression(p_relation, template, '($2)'))
    when 'DELETE' then format('select array[%s]', lockguard.expression(p_relation, template, '($1)'))
    else format('select case when (to_jsonb($1) - %1$L::text[])::text <> (to_jsonb($2) - %1$L::text[])::text then array[%2$s, %3$s] else ''{}'' end',
                free, lockguard.expression(p_relation, template, '($1)'), lockguard.expression(p_relation, template, '($2)'))
  end;
end
$$;
comment on function lockguard.row_touched_today(oid, oid, text, text, text[]) is
  'lockguard: the query for the resources that a change of a row touched, as touched_today() is for a statement';

create or replace function lockguard.expression(p_table regclass, p_template text, p_row text) returns text
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
    if exists (select from pg_attribute a where a.attrelid = p_table and a.attname = part[2] and a.attgenerated <> '') then
      raise exception 'column % of % is generated: a guard may run before it is known; name the columns that it is made from',
        quote_literal(part[2]), p_table using errcode = 'LG004';
    end if;
    pieces := pieces || quote_literal(part[1]) || format('%s.%I::text', p_row, part[2]);
    rest := part[3];
  end loop;
  if cardinality(pieces) = 0 or rest ~ '[{}]' then
    raise exception 'template % cannot be read; write columns in braces, such as {exchange}:{symbol}',
      quote_literal(p_template) using errcode = 'LG004';
  end if;
  return lockguard.followed(p_table, array_to_string(pieces || quote_literal(rest), ' || '));
end
$$;

create or replace function lockguard.blanked(p_table regclass, p_exempt text[], p_to text, p_from text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- Generated columns follow from the others, and a BEFORE trigger does not see them yet.
  select string_agg(format('%2$s.%1$I := %3$s;', a.attname, p_to, lockguard.followed(p_table, format('%s.%I', p_from, a.attname))), e'\n') from pg_attribute a
   where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
     and (a.attname = any (p_exempt) or a.attgenerated <> '')
$$;

create or replace function lockguard.statement_guard(p_table regclass, p_template text, p_exempt text[]) returns text
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
      changed text[];
    begin
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
      exception
        when undefined_column then
          -- One was renamed or dropped. By its number it is found, at the price of a plan for each statement.
          execute lockguard.touched_today(%4$s, tg_op, %5$L, %3$L) into touched;
          changed := '{}';
      end;
      -- In the order in which every transaction locks the fence's rows.
      for first in select r from unnest(touched) r group by 1 order by r collate "C" loop
        -- Only where it will be refused: which columns, for the message.
        if tg_op = 'UPDATE' and changed is null and lockguard.claim_of(first) is null then
          select array_agg(distinct c order by c) into changed
            from (select row_number() over () as n, to_jsonb(b) as row_ from before_rows b) x
            join (select row_number() over () as n, to_jsonb(a) as row_ from after_rows a) y using (n)
            cross join lateral unnest(lockguard.changed(x.row_, y.row_, %3$L)) c;
        end if;
        perform lockguard.require(first, tg_relid, changed);
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
        close others; -- up to Postgres 14 it has a name, and the next statement of the transaction would fail
$skip$, lockguard.expression(p_table, p_template, 'before_'), lockguard.expression(p_table, p_template, 'after_'),
    lockguard.blanked(p_table, p_exempt, 'after_', 'before_')) end, p_exempt, p_table::oid, p_template)
$$;

create or replace function lockguard.row_guard(p_table regclass, p_template text, p_exempt text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format($guard$
    declare
      before_ text;
      after_ text;
      claim jsonb;
      probe record;
      changed text[];
      touched text[];
    begin
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
            changed := lockguard.changed(to_jsonb(old), to_jsonb(new), %4$L);
            perform lockguard.require(least(before_ collate "C", after_), tg_relid, changed);
            perform lockguard.require(greatest(before_ collate "C", after_), tg_relid, changed);
            return new;
          end if;
        end if;
        -- The usual case without a call for each row; whatever is wrong, require() finds the words for it.
        claim := case when octet_length(current_setting('lockguard.leases', true)) < 1000
                      then nullif(current_setting('lockguard.leases', true), '')::jsonb -> coalesce(after_, before_)
                      else lockguard.claim_of(coalesce(after_, before_)) end;
        perform from lockguard.fence f
          where f.resource = coalesce(after_, before_) and f.token = (claim ->> 0)::bigint
            and f.grant_id = (claim ->> 1)::uuid and f.released_at is null
          for share;
        if not found then
          if tg_op = 'UPDATE' then
            changed := lockguard.changed(to_jsonb(old), to_jsonb(new), %4$L);
          end if;
          perform lockguard.require(coalesce(after_, before_), tg_relid, changed);
        end if;
      exception
        when undefined_column then
          execute lockguard.row_touched_today(%5$s, tg_relid, tg_op, %6$L, %4$L) into touched using old, new;
          for before_ in select r from unnest(touched) r group by 1 order by r collate "C" loop
            perform lockguard.require(before_, tg_relid, null);
          end loop;
      end;
      return case when tg_op = 'DELETE' then old else new end;
    end
  $guard$, lockguard.expression(p_table, p_template, 'old'), lockguard.expression(p_table, p_template, 'new'),
  case when cardinality(p_exempt) > 0 then format($skip$
        probe := new;
%s
        if probe operator(pg_catalog.*=) old then
          return new;
        end if;
$skip$, lockguard.blanked(p_table, p_exempt, 'probe', 'old')) else '' end, p_exempt, p_table::oid, p_template)
$$;

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
  elsif not lockguard.in_maintenance() then
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

create or replace function lockguard.unprotect(p_table regclass) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  -- Whatever is left of it.
  guard constant regprocedure := (
    select g.guard from lockguard.under_guard() g where g.relation = p_table);
  name_ name;
begin
  if guard is null then
    return lockguard.undeclare(p_table::text);
  end if;
  for name_ in select t.tgname from pg_trigger t where t.tgrelid = p_table and t.tgname like 'zz\_lockguard\_%' loop
    execute format('drop trigger %I on %s', name_, p_table);
  end loop;
  execute format('drop function %s', guard);
  delete from lockguard.declared d where d.relid = p_table or d.relation = p_table::text;
  insert into lockguard.audit (action, subject, reason) values ('unprotect', p_table::text, '');
  return true;
end
$$;

create or replace function lockguard.protect(p_table regclass, p_template text, p_exempt text[] default '{}') returns void
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

  if exists (select from pg_subscription_rel r where r.srrelid = p_table) then
    raise exception 'a subscription fills %, and its workers present no lease: protect the table on the publisher', p_table
      using errcode = 'LG004';
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
    execute format('create trigger %I %s on %s %s execute function %s(%L, %L)', 'zz_lockguard_' || made.name, made.event, p_table, made.how,
                   made.function, p_template, array_to_string(p_exempt, ','));
    execute format('alter table %s enable always trigger %I', p_table, 'zz_lockguard_' || made.name);
    execute format('comment on trigger %I on %s is %L', 'zz_lockguard_' || made.name, p_table, 'lockguard: ' || made.says);
  end loop;
  perform lockguard.declare_(p_table, p_template, p_exempt);
  insert into lockguard.audit (action, subject, reason) values ('protect', p_table::text, p_template);
end
$body$;

create function lockguard.findings()
returns table (relation text, grave boolean, finding text, remedy text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  with guards as materialized (
    select g.*, format('lockguard fence protect %s --resource %L%s', g.relation, g.template,
                       case when cardinality(g.exempt) > 0 then format(' --exempt %s', array_to_string(g.exempt, ',')) else '' end) as again
      from lockguard.under_guard() g
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
         format('lockguard fence protect %s --resource %L%s', g.relation,
                (select coalesce(string_agg(r.part, '' order by r.place), g.template) from (
                   select coalesce('{' || t.is_ || '}', m[1]) as part, place
                     from regexp_matches(g.template, '(\{[^{}]+\}|[^{}]+)', 'g') with ordinality m (m, place)
                     left join lockguard.columns_today(g.relation, g.template) t on '{' || t.was || '}' = m[1]) r),
                coalesce((select ' --exempt ' || string_agg(t.is_, ',') from lockguard.columns_today(g.relation, g.template) t
                           where t.was = any (g.exempt) and t.is_ is not null), ''))
    from guards g
    cross join lateral lockguard.named_columns(g.template, g.exempt) n
    left join lockguard.columns_today(g.relation, g.template) c on c.was = n
   where n <> '' and not exists (select from pg_attribute a where a.attrelid = g.relation and a.attname = n and not a.attisdropped)
  union all
  -- Logical replication
  select g.relation::text, true, 'a subscription fills it, whose workers present no lease: fence the publisher', format('lockguard fence unprotect %s', g.relation)
    from guards g
   where exists (select from pg_subscription_rel r where r.srrelid = g.relation
                    or g.kind = 'p' and r.srrelid in (select t.relid from pg_partition_tree(g.relation) t))
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
comment on function lockguard.findings() is
  'lockguard: where a protection does not hold (grave), or holds less well than it could, and what to do; none if all is well';

create or replace function lockguard.protections()
returns table (relation text, template text, exempt text[], enabled boolean)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select g.relation::text, g.template, g.exempt,
         not exists (select from lockguard.findings() f where f.grave and f.relation = g.relation::text)
    from lockguard.under_guard() g order by 1
$$;

-- The guards of tables that are protected already, made anew under the same names.
do $$
declare
  one record;
begin
  for one in select g.* from lockguard.under_guard() g loop
    begin
      execute lockguard.writing_of_guard(one.guard::oid::regproc::text, one.relation, one.template, one.exempt, one.shared);
      perform lockguard.declare_(one.relation, one.template, one.exempt);
    exception
      when sqlstate 'LG004' then
        raise exception '% is protected in a way that no longer works: %', one.relation, sqlerrm
          using errcode = 'LG004', hint = format('Remove it first: lockguard fence unprotect %s', one.relation);
    end;
  end loop;
end
$$;
