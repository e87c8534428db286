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
    select t.tgfoid::regprocedure from pg_trigger t where t.tgrelid = p_table and t.tgname = 'zz_lockguard_row');
begin
  if guard is null then
    return false;
  end if;
  execute format('drop trigger zz_lockguard_row on %s', p_table);
  execute format('drop trigger zz_lockguard_table on %s', p_table);
  execute format('drop function %s', guard);
  insert into lockguard.audit (action, subject, reason) values ('unprotect', p_table::text, '');
  return true;
end
$$;
comment on function lockguard.unprotect(regclass) is 'lockguard: removes the protection of a table; answers whether there was one';

create function lockguard.protect(p_table regclass, p_template text, p_exempt text[] default '{}') returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $body$
declare
  relation constant pg_class := (select c from pg_class c where c.oid = p_table);
  guard constant text := format('lockguard.%I', left('guard_' || relation.relname, 50) || '_' || substr(md5(gen_random_uuid()::text), 1, 8));
  before constant text := lockguard.expression(p_table, p_template, 'old');
  after constant text := lockguard.expression(p_table, p_template, 'new');
  wrong text;
  blanked text;
begin
  if relation.relkind not in ('r', 'p') then
    raise exception '% is not a table; protect the table under it', p_table using errcode = 'LG004';
  end if;
  select string_agg(x, ', ') into wrong from unnest(p_exempt) x
   where position('{' || x || '}' in p_template) > 0 or not exists (
     select from pg_attribute a
      where a.attrelid = p_table and a.attname = x and a.attnum > 0 and not a.attisdropped);
  if wrong is not null then
    raise exception 'cannot exempt % of %: name columns that it has and that are not part of the resource', wrong, p_table
      using errcode = 'LG004';
  end if;
  -- Generated columns are not computed yet in a BEFORE trigger; they follow from the others.
  select string_agg(format('        probe.%1$I := old.%1$I;', a.attname), e'\n') into blanked from pg_attribute a
   where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
     and (a.attname = any (p_exempt) or a.attgenerated <> '');

  perform lockguard.unprotect(p_table);
  execute format($make$
    create function %1$s() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $guard$
    declare
      before_ text;
      after_ text;
      claim jsonb;
      probe record;
    begin
      if tg_op <> 'INSERT' then
        before_ := %2$s;
      end if;
      if tg_op <> 'DELETE' then
        after_ := %3$s;
      end if;
      if tg_op = 'UPDATE' then
%4$s
        if before_ is distinct from after_ then
          -- In the order in which every transaction locks the fence's rows.
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
    $guard$
  $make$, guard, before, after, case when cardinality(p_exempt) > 0 then format($skip$
        probe := new;
%s
        if probe operator(pg_catalog.*=) old then
          return new;
        end if;
$skip$, blanked) else '' end);
  execute format('revoke all on function %s() from public', guard);
  execute format('comment on function %s() is %L', guard, format('lockguard: guards the rows of %s as %s', p_table, p_template));
  -- Named to come last, so that it sees what the other triggers made of the row; ALWAYS, see 0001.
  execute format('create trigger zz_lockguard_row before insert or update or delete on %s for each row execute function %s(%L, %L)',
                 p_table, guard, p_template, array_to_string(p_exempt, ','));
  execute format('create trigger zz_lockguard_table before truncate on %s for each statement execute function lockguard.keep_table()', p_table);
  execute format('alter table %s enable always trigger zz_lockguard_row', p_table);
  execute format('alter table %s enable always trigger zz_lockguard_table', p_table);
  execute format('comment on trigger zz_lockguard_row on %s is %L', p_table, 'lockguard: no change of a row without the lease of its resource');
  execute format('comment on trigger zz_lockguard_table on %s is %L', p_table, 'lockguard: no TRUNCATE without maintenance');
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
         t.tgenabled = 'A'
    from pg_trigger t
    cross join lateral (select string_to_array(encode(t.tgargs, 'escape'), chr(92) || '000')) as a (args)
   where t.tgname = 'zz_lockguard_row' and t.tgparentid = 0
   order by 1
$$;
comment on function lockguard.protections() is 'lockguard: the protected tables of this database';

revoke all on all functions in schema lockguard from public;
grant execute on function lockguard.protections() to lockguard_app;
