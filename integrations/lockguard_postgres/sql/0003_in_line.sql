-- In line, and within bounds.
--
--   1. Locks of rows are no queue: a FOR SHARE overtakes an UPDATE that waits, so a holder that writes in parallel
--      kept seal() and break_() out. Each now stands in line at the resource's gate, an advisory lock until the end of
--      the transaction: check() takes it shared, seal(), close() and break_() exclusively, all before the row. From the
--      moment one of them asks, nothing new of the old grant gets in.
--   2. The gate also tells who is in: under_way() lists the transactions that a seal waits for, and evict() ends those
--      that are still there after a while, whatever their backends wait for.
--   3. A token far beyond the present would leave nobody a higher one: it is refused.
--   4. Whoever is superseded while it is open is told, by NOTIFY lockguard_superseded.

create function lockguard.gate(p_resource text) returns bigint
language sql immutable parallel safe
as $$
  select pg_catalog.hashtextextended(('lockguard:'::text operator(pg_catalog.||) p_resource) collate pg_catalog."C", 0)
$$;
comment on function lockguard.gate(text) is
  'lockguard: the key of the advisory lock at which writers and sealers of a resource stand in line';

create function lockguard.refuse_beyond(p_resource text, p_token bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Redis hands out microseconds since 1970. Ten years leave room for a clock that was once set wrong.
  if p_token is null or p_token > (extract(epoch from clock_timestamp()) * 1000000)::bigint + 315360000000000 then
    raise exception 'token % for % is not one that a lock hands out: it lies more than ten years ahead', p_token, p_resource
      using errcode = 'LG004', hint = 'Tokens are microseconds since 1970. Look at the floor in Redis, and at the clocks of both servers.';
  end if;
end
$$;
comment on function lockguard.refuse_beyond(text, bigint) is
  'lockguard: refuses (LG004) a token so high that nobody could ever be given a higher one';

create function lockguard.tell(p_old lockguard.fence, p_new bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_notify('lockguard_superseded', json_build_object(
    'resource', p_old.resource, 'token', p_old.token, 'grant', replace(p_old.grant_id::text, '-', ''), 'current', p_new)::text);
end
$$;
comment on function lockguard.tell(lockguard.fence, bigint) is
  'lockguard: tells whoever listens that an open grant was superseded';

create or replace function lockguard.seal(
  p_resource text, p_token bigint, p_grant uuid, p_holder text, p_operation text, p_within_ms integer,
  out accepted boolean, out token bigint
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  before lockguard.fence;
  held lockguard.fence;
begin
  perform lockguard.refuse_beyond(p_resource, p_token);
  perform lockguard.settle_session(p_within_ms);
  if not pg_try_advisory_xact_lock(lockguard.gate(p_resource)) then
    -- Only who supersedes the writers that are in may wait for them: a late sealer must not keep out, or have ended,
    -- those of its successor. Tokens only grow, so a no stays a no.
    select f.* into before from lockguard.fence f where f.resource = p_resource;
    if before.grant_id <> p_grant and before.token >= p_token then
      accepted := false;
      token := before.token;
      return;
    end if;
    perform pg_advisory_xact_lock(lockguard.gate(p_resource));
  end if;
  select f.* into before from lockguard.fence f where f.resource = p_resource;
  insert into lockguard.fence as f (resource, token, grant_id, holder, operation)
  values (p_resource, p_token, p_grant, left(p_holder, 500), left(p_operation, 500))
  on conflict (resource) do update
    set token = excluded.token, grant_id = excluded.grant_id, holder = excluded.holder,
        operation = excluded.operation, sealed_at = clock_timestamp(), released_at = null
    where f.token < excluded.token and f.grant_id <> excluded.grant_id
  returning f.* into held;
  if found then
    delete from lockguard.outcome o where o.resource = p_resource and o.written_at < clock_timestamp() - interval '1 day';
    if before.token is not null and before.released_at is null then
      perform lockguard.tell(before, p_token);
    end if;
  else
    -- The conflict locked the row, so this reads what refused us.
    select f.* into held from lockguard.fence f where f.resource = p_resource;
  end if;
  accepted := held.grant_id = p_grant and held.released_at is null;
  token := held.token;
end
$$;

create or replace function lockguard.close(p_resource text, p_token bigint, p_grant uuid, p_within_ms integer) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  held lockguard.fence;
begin
  perform lockguard.refuse_beyond(p_resource, p_token);
  perform lockguard.settle_session(p_within_ms);
  if not pg_try_advisory_xact_lock(lockguard.gate(p_resource)) then
    -- Those who are in may be the successor's: nothing would change then, and nobody has to wait for them.
    select f.* into held from lockguard.fence f where f.resource = p_resource;
    if held.grant_id <> p_grant and (held.token >= p_token or held.released_at is null) then
      return;
    end if;
    perform pg_advisory_xact_lock(lockguard.gate(p_resource));
  end if;
  -- A seal of this grant may still be on its way (its caller was cancelled). If nobody else is in force,
  -- note the grant as closed, so that the late seal finds it shut. An open row of another grant is left
  -- alone: whoever is on it may be the rightful holder.
  insert into lockguard.fence as f (resource, token, grant_id, holder, operation, released_at)
  values (p_resource, p_token, p_grant, '', 'ended before it was sealed', clock_timestamp())
  on conflict (resource) do update
    set token = greatest(f.token, excluded.token), grant_id = excluded.grant_id, released_at = clock_timestamp(),
        holder = case when f.grant_id = excluded.grant_id then f.holder else '' end,
        operation = case when f.grant_id = excluded.grant_id then f.operation else excluded.operation end
    where (f.grant_id = excluded.grant_id and f.released_at is null)
       or (f.grant_id <> excluded.grant_id and f.token < excluded.token and f.released_at is not null);
  delete from lockguard.outcome o where o.resource = p_resource and o.written_at < clock_timestamp() - interval '1 day';
end
$$;

create or replace function lockguard.break_(p_resource text, p_reason text, p_within_ms integer) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  before lockguard.fence;
  broken bigint;
  -- Redis hands out microseconds, so this also outruns a grant that has not been sealed yet.
  now_us constant bigint := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
begin
  perform lockguard.settle_session(p_within_ms);
  perform pg_advisory_xact_lock(lockguard.gate(p_resource));
  select f.* into before from lockguard.fence f where f.resource = p_resource;
  insert into lockguard.fence as f (resource, token, grant_id, holder, operation, released_at)
  values (p_resource, now_us, gen_random_uuid(), session_user, left('break: ' || p_reason, 500), clock_timestamp())
  on conflict (resource) do update
    set token = greatest(f.token + 1, now_us), grant_id = excluded.grant_id, holder = excluded.holder,
        operation = excluded.operation, sealed_at = clock_timestamp(), released_at = clock_timestamp()
  returning f.token into broken;
  insert into lockguard.audit (action, subject, reason) values ('break', p_resource, p_reason);
  if before.token is not null and before.released_at is null then
    perform lockguard.tell(before, broken);
  end if;
  return broken;
end
$$;

create function lockguard.refuse(p_resource text, p_presented bigint, p_grant uuid, p_reason text, p_held lockguard.fence)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception '%', format(
      case p_reason
        when 'superseded' then 'stale token for %1$s: presented %2$s, current %3$s (%4$s, %5$s)'
        when 'closed' then 'stale token for %1$s: presented %2$s, current %3$s, closed at %6$s'
        when 'unsealed' then 'stale token for %1$s: presented %2$s, but the resource was never sealed in this database:'
          ' the guard that gave the lease has no fence=, or its fence is in another database'
        else 'stale token for %1$s: presented %2$s, current %3$s; this write was already declared lost'
      end,
      p_resource, p_presented, p_held.token, p_held.holder, p_held.operation, p_held.released_at)
    using errcode = 'LG001',
          detail = json_build_object('resource', p_resource, 'presented', p_presented, 'current', p_held.token,
                                     'reason', p_reason, 'holder', p_held.holder, 'operation', p_held.operation,
                                     'grant', replace(p_grant::text, '-', ''))::text,
          hint = case p_reason
            when 'unsealed' then 'Give the guard fence=PostgresFence(pool) on this database, or write without the lease: with unfenced().'
            else 'Another holder took over, or the lease has ended. Do not retry the write: take a new lease and read the state again.'
          end;
end
$$;
comment on function lockguard.refuse(text, bigint, uuid, text, lockguard.fence) is
  'lockguard: raises LG001 with the facts as JSON in DETAIL';

create or replace function lockguard.hold(p_resource text, p_token bigint, p_grant uuid) returns lockguard.fence
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  held lockguard.fence;
begin
  perform pg_advisory_xact_lock_shared(lockguard.gate(p_resource));
  select f.* into held from lockguard.fence f where f.resource = p_resource for share;
  if not found then
    perform lockguard.refuse(p_resource, p_token, p_grant, 'unsealed', held);
  elsif held.token is distinct from p_token or held.grant_id is distinct from p_grant then  -- null is no token
    perform lockguard.refuse(p_resource, p_token, p_grant, 'superseded', held);
  elsif held.released_at is not null then
    perform lockguard.refuse(p_resource, p_token, p_grant, 'closed', held);
  end if;
  return held;
end
$$;

create or replace function lockguard.check(p_resource text, p_token bigint, p_grant uuid, p_sequence bigint default null)
returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  held constant lockguard.fence := lockguard.hold(p_resource, p_token, p_grant);
begin
  if p_sequence is not null then
    insert into lockguard.outcome (resource, token, sequence) values (p_resource, p_token, p_sequence)
    on conflict do nothing;
    if not found then
      perform lockguard.refuse(p_resource, p_token, p_grant, 'voided', held);
    end if;
  end if;
  perform set_config('lockguard.leases',
    (coalesce(nullif(current_setting('lockguard.leases', true), '')::jsonb, '{}')
      || jsonb_build_object(p_resource, jsonb_build_array(p_token, p_grant)))::text, true);
  return p_token;
end
$$;

drop function lockguard.refuse(text, bigint, text, lockguard.fence);

-- Who is in

create function lockguard.under_way(p_resource text)
returns table (pid integer, role name, state text, waits_for text, since timestamptz)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- With the caller's rights: of sessions of other roles it sees that they are there. A pid is null for a prepared
  -- transaction.
  select l.pid, a.usename, a.state, nullif(concat_ws(' ', a.wait_event_type, a.wait_event), ''), a.xact_start
    from pg_locks l left join pg_stat_activity a on a.pid = l.pid
   where l.locktype = 'advisory' and l.granted and l.mode = 'ShareLock' and l.objsubid = 1
     and l.database = (select d.oid from pg_database d where d.datname = current_database())
     and l.classid = (((lockguard.gate(p_resource) >> 32) & 4294967295))::oid
     and l.objid = ((lockguard.gate(p_resource) & 4294967295))::oid
   order by a.xact_start, l.pid
$$;
comment on function lockguard.under_way(text) is
  'lockguard: the open transactions that have presented a lease of the resource, which a seal waits for';

create function lockguard.end_as_owner(p_resource text, p_pid integer) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (select from lockguard.under_way(p_resource) u where u.pid = p_pid) and pg_terminate_backend(p_pid);
exception
  when insufficient_privilege then
    return false;  -- the owner of this schema may not either; see evict()
end
$$;
comment on function lockguard.end_as_owner(text, integer) is
  'lockguard: ends a session in the middle of a transaction under a lease of the resource, with the rights of this schema''s owner';

create function lockguard.evict(p_resource text, p_token bigint) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  ended integer := 0;
  one record;
begin
  -- Not by a late sealer, whose successor the writers may be.
  if exists (select from lockguard.status(p_resource) s where s.token >= p_token) then
    return 0;
  end if;
  for one in select u.pid from lockguard.under_way(p_resource) u where u.pid <> pg_backend_pid() loop
    begin
      -- With the caller's rights, which suffice where bots share a role.
      if pg_terminate_backend(one.pid) then
        ended := ended + 1;
      end if;
    exception
      when insufficient_privilege then
        ended := ended + lockguard.end_as_owner(p_resource, one.pid)::integer;
    end;
  end loop;
  return ended;
end
$$;
comment on function lockguard.evict(text, bigint) is
  'lockguard: ends the sessions whose open transactions keep a seal of this token waiting (null: a break); returns how many';

-- Protected tables

create function lockguard.changed(p_before jsonb, p_after jsonb, p_exempt text[]) returns text[]
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(e.key order by e.key) from jsonb_each(p_after) e
   where e.value is distinct from p_before -> e.key and e.key <> all (p_exempt)
$$;
comment on function lockguard.changed(jsonb, jsonb, text[]) is 'lockguard: which columns of a row an update changed, but for the exempt ones';

create function lockguard.require(p_resource text, p_relation regclass, p_columns text[]) returns void
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
comment on function lockguard.require(text, regclass, text[]) is
  'lockguard: refuses (LG002) unless this transaction presented a lease of the resource that is still in force';

create or replace function lockguard.require(p_resource text, p_relation regclass) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$ select lockguard.require(p_resource, p_relation, null) $$;

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
  return array_to_string(pieces || quote_literal(rest), ' || ');
end
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
        -- Only where it will be refused: which columns, for the message.
        if tg_op = 'UPDATE' and changed is null and claims -> first is null then
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
$skip$, lockguard.expression(p_table, p_template, 'before_'), lockguard.expression(p_table, p_template, 'after_'),
    lockguard.blanked(p_table, p_exempt, 'after_', 'before_')) end, p_exempt)
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
      claim := nullif(current_setting('lockguard.leases', true), '')::jsonb -> coalesce(after_, before_);
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
      return case when tg_op = 'DELETE' then old else new end;
    end
  $guard$, lockguard.expression(p_table, p_template, 'old'), lockguard.expression(p_table, p_template, 'new'),
  case when cardinality(p_exempt) > 0 then format($skip$
        probe := new;
%s
        if probe operator(pg_catalog.*=) old then
          return new;
        end if;
$skip$, lockguard.blanked(p_table, p_exempt, 'probe', 'old')) else '' end, p_exempt)
$$;

create function lockguard.writing_of_guard(p_guard text, p_table regclass, p_template text, p_exempt text[], p_shared boolean)
returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- The text of a value may follow settings of the session, and the resource of a row must not: a lease of one
  -- resource would reach rows of another. Setting them costs each call some microseconds, so it is done where a
  -- column's type asks for it; those listed have one text.
  select format('create or replace function %s() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp %s as %L',
    p_guard,
    case when exists (
      select from pg_attribute a join pg_type t on t.oid = a.atttypid
       where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and position('{' || a.attname || '}' in p_template) > 0
         and t.typtype <> 'e'
         and t.oid <> all (array['text', 'varchar', 'bpchar', '"char"', 'name', 'int2', 'int4', 'int8', 'numeric', 'uuid', 'bool']::regtype[]))
    then 'set datestyle = ''ISO, MDY'' set intervalstyle = ''postgres'' set timezone = ''UTC'' set extra_float_digits = ''1'''
         ' set bytea_output = ''hex'' set lc_monetary = ''C'''
    else '' end,
    case when p_shared then lockguard.row_guard(p_table, p_template, p_exempt)
         else lockguard.statement_guard(p_table, p_template, p_exempt) end)
$$;
comment on function lockguard.writing_of_guard(text, regclass, text, text[], boolean) is
  'lockguard: the statement that makes the trigger function of a table';

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

  perform lockguard.unprotect(p_table);
  execute lockguard.writing_of_guard(guard, p_table, p_template, p_exempt, shared);
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


-- The guards of tables that are protected already, made anew under the same names.
do $$
declare
  one record;
begin
  for one in
    select t.tgrelid::regclass as relation, t.tgfoid::regproc::text as guard, t.tgname = 'zz_lockguard_row' as shared,
           convert_from(decode(a.args[1], 'escape'), 'UTF8') as template,
           string_to_array(convert_from(decode(a.args[2], 'escape'), 'UTF8'), ',') as exempt
      from pg_catalog.pg_trigger t
      cross join lateral (select string_to_array(encode(t.tgargs, 'escape'), chr(92) || '000')) as a (args)
     where t.tgname in ('zz_lockguard_row', 'zz_lockguard_delete') and t.tgparentid = 0
  loop
    begin
      execute lockguard.writing_of_guard(one.guard, one.relation, one.template, one.exempt, one.shared);
    exception
      when sqlstate 'LG004' then
        raise exception '% is protected in a way that no longer works: %', one.relation, sqlerrm
          using errcode = 'LG004', hint = format('Remove it first: lockguard fence unprotect %s', one.relation);
    end;
  end loop;
end
$$;
