-- Watching a table before it is protected: nothing is refused, and each write that would be is recorded.
--
--   1. The triggers of a watched table are those of a protected one, with a fourth argument. Their function has the same text as a guard's, but for its end:
--      a guard calls require(), which refuses; a watch asks verdict(), which answers what require() would do, and notes it.
--   2. What decides is in one place: needs_lease() for who presents nothing, fault() for a token and grant.
--   3. A record is one row for each kind of write and slot. No transaction waits for the row of another: a slot belongs to one transaction at a time,
--      and the next one is taken where it is in use. Rows are written by INSERT ... ON CONFLICT, which reads nothing that a serializable
--      transaction could be failed for. See docs/adr/0027.
--   4. Whatever goes wrong with a record, the write goes on.

alter table lockguard.declared add column watch_id bigint, add column watched_since timestamptz;
comment on column lockguard.declared.watch_id is 'which records of lockguard.watched are of this table; null: it is protected';
comment on column lockguard.declared.watched_since is 'since when it is watched; null: it is protected';
comment on table lockguard.declared is 'lockguard: what ought to be protected or watched; that it is, the triggers of the table tell';

create table lockguard.watched (
  kind uuid not null,
  slot integer not null,
  watch_id bigint not null,
  operation text not null,
  columns text[],
  verdict text not null,
  role text not null,
  application text not null,
  address text,
  backend integer not null,
  statement text not null default '',
  times bigint not null,
  refused bigint not null,
  first_at timestamptz not null default clock_timestamp(),
  at timestamptz not null default clock_timestamp(),
  settling boolean not null,
  primary key (kind, slot)
) with (fillfactor = 70);
comment on table lockguard.watched is 'lockguard: the writes of watched tables, one row for each kind and slot; lockguard.watched_writes() adds them up';
comment on column lockguard.watched.kind is 'made of the watch, operation, columns, verdict, role and application';
comment on column lockguard.watched.slot is 'below 1024: of one transaction at a time; from 1024 on: of one transaction; -1: of all that was folded';
comment on column lockguard.watched.watch_id is 'as in lockguard.declared';
comment on column lockguard.watched.operation is 'INSERT, UPDATE, DELETE or TRUNCATE';
comment on column lockguard.watched.columns is 'the columns that an UPDATE changed, but for the exempt ones; else null';
comment on column lockguard.watched.verdict is 'leased or excused: it would pass; unguarded, truncate, superseded, closed, unsealed, or error and an SQLSTATE: it would be refused';
comment on column lockguard.watched.role is 'the role that was logged in';
comment on column lockguard.watched.application is 'the application_name of the session';
comment on column lockguard.watched.address is 'from where the last one came; null for a socket of the same machine';
comment on column lockguard.watched.backend is 'the process of the server that made the last one';
comment on column lockguard.watched.statement is 'the first one as the client sent it, cut to 300 characters, with ? for every literal';
comment on column lockguard.watched.times is 'how many statements of clients made such a write';
comment on column lockguard.watched.refused is 'how many of them would have been refused for it';
comment on column lockguard.watched.first_at is 'when the first one was made';
comment on column lockguard.watched.at is 'when the last one was made';
comment on column lockguard.watched.settling is 'whether the rest of its transaction is added at COMMIT';

-- The decision

create function lockguard.needs_lease(p_relation regclass) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Tables are looked at only where a setting asks for it, so that a write of a serializable transaction depends on none.
  if coalesce(current_setting('lockguard.maintenance', true), '') <> '' and lockguard.in_maintenance() then
    return false;
  end if;
  return current_setting('session_replication_role') <> 'replica' or not lockguard.is_feeding(p_relation);
end
$$;
comment on function lockguard.needs_lease(regclass) is
  'lockguard: whether a write of the table needs a lease: not in maintenance(), and not by a worker of a subscription that may write it';

create function lockguard.fault(p_resource text, p_held lockguard.fence, p_token bigint, p_grant uuid) returns text
language plpgsql
as $$
begin
  if p_held.resource is null then
    return 'unsealed';
  elsif p_held.token is distinct from p_token or p_held.grant_id is distinct from p_grant then  -- null is no token
    return 'superseded';
  elsif p_held.released_at is not null and not exists (
    select from lockguard.fence f where f.resource = p_resource and f.xmin = pg_current_xact_id()::xid)
  then
    return 'closed';
  end if;
  return null;
end
$$;
comment on function lockguard.fault(text, lockguard.fence, bigint, uuid) is
  'lockguard: why a token and grant are refused, given the fence''s row of the resource; null if they are in force';

create or replace function lockguard.hold(p_resource text, p_token bigint, p_grant uuid) returns lockguard.fence
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  held lockguard.fence;
  fault text;
begin
  perform pg_advisory_xact_lock_shared(lockguard.gate(p_resource));
  select f.* into held from lockguard.fence f where f.resource = p_resource for share;
  fault := lockguard.fault(p_resource, held, p_token, p_grant);
  if fault is not null then
    if fault = 'unsealed' then
      perform lockguard.refuse_older_snapshot(p_resource);
    end if;
    perform lockguard.refuse(p_resource, p_token, p_grant, fault, held);
  end if;
  return held;
end
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
  elsif lockguard.needs_lease(p_relation) then
    select f.* into held from lockguard.fence f where f.resource = p_resource;
    raise exception '%', format(
        'no token for %s: a row of %s belongs to it%s and this transaction presented no lease, current %s',
        coalesce(p_resource, 'a row whose resource is null'), p_relation,
        ' (changed: ' || array_to_string(p_columns, ', ') || ')', coalesce(held.token::text, 'none'))
      using errcode = 'LG002',
            detail = json_build_object('resource', p_resource, 'presented', null, 'current', held.token,
                                       'reason', 'unguarded', 'holder', held.holder, 'operation', held.operation,
                                       'columns', p_columns, 'fence', lockguard.fence_id())::text,
            hint = 'Write it inside a guarded body. A person may first run: select lockguard.maintenance(''why'').';
  end if;
end
$$;

create or replace function lockguard.keep_table() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if lockguard.needs_lease(tg_relid) then
    raise exception 'TRUNCATE of %, whose rows are protected, would remove them without their leases', tg_relid::regclass
      using errcode = 'LG002',
            detail = json_build_object('resource', '', 'presented', null, 'current', null, 'reason', 'truncate')::text,
            hint = 'Delete rows inside a guarded body. A person may first run: select lockguard.maintenance(''why'').';
  end if;
  return null;
end
$$;

create function lockguard.verdict(p_resource text, p_relation regclass) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  claim constant jsonb := lockguard.claim_of(p_resource);
  held lockguard.fence;
begin
  if claim is null then
    return case when lockguard.needs_lease(p_relation) then 'unguarded' else 'excused' end;
  end if;
  -- Without a lock: check() has locked the row already, and who claims by hand is not to wait.
  select f.* into held from lockguard.fence f where f.resource = p_resource;
  return coalesce(lockguard.fault(p_resource, held, (claim ->> 0)::bigint, (claim ->> 1)::uuid), 'leased');
end
$$;
comment on function lockguard.verdict(text, regclass) is
  'lockguard: what require() would do: leased or excused, or why it would refuse';

-- The record

create function lockguard.without_literals(p_statement text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $body$
declare
  escaped constant text := '(?:[^''\\]|\\.|'''')*(?:\\?$|'')';
  plain constant text := case when current_setting('standard_conforming_strings') = 'on' then '(?:[^'']|'''')*(?:''|$)' else escaped end;
  shown text;
begin
  -- First what is kept: words, parameters, quoted names, and single characters. Then comments. Then numbers, strings, and what is cut off.
  -- The longest alternative wins, and what is not closed goes to the end.
  select string_agg(coalesce(m[1], case when m[2] is null then '?' else '' end), '' order by n) into shown
    from regexp_matches(
      left(p_statement, 2000),
      '([a-zA-Z_][a-zA-Z_0-9$]*|\$[0-9]+|"(?:[^"]|"")*"|[^''"$0-9a-zA-Z_])'
      || '|(--[^\n]*|/\*(?:[^*]|\*+[^*/])*(?:\*+/|\**$))'
      || '|[0-9][0-9a-zA-Z_.]*|[eE]''' || escaped || '|''' || plain || '|"(?:[^"]|"")*$|\$[^0-9].*|\$$', 'g') with ordinality x (m, n);
  -- What ends a comment here was in another one.
  shown := trim(regexp_replace(regexp_replace(shown, '^.*\*/', ''), '\s+', ' ', 'g'));
  return case when length(shown) > 300 then left(shown, 299) || '…' else coalesce(shown, '') end;
end
$body$;
comment on function lockguard.without_literals(text) is
  'lockguard: a statement for people, cut to 300 characters, with ? for every string and number, and without comments';

create function lockguard.add_watched(
  p_watch bigint, p_kind uuid, p_operation text, p_columns text[], p_verdict text, p_role text, p_application text,
  p_times bigint, p_refused bigint, p_settling boolean
) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  slots constant integer := 1024;
  ours constant integer := 'lockguard.watched'::regclass::oid::bigint::bit(32)::integer;
  own integer;
  fresh boolean;
begin
  for i in 0..7 loop
    own := (pg_backend_pid() + i) % slots;
    exit when pg_try_advisory_xact_lock(ours, own);
    own := null;
  end loop;
  loop
    begin
      insert into lockguard.watched as w
        (kind, slot, watch_id, operation, columns, verdict, role, application, address, backend, times, refused, settling)
      values (p_kind, coalesce(own, slots + floor(random() * 2000000000)::integer), p_watch, p_operation, p_columns, p_verdict, p_role, p_application,
              host(inet_client_addr()), pg_backend_pid(), p_times, p_refused, p_settling)
      on conflict (kind, slot) do update
        set times = w.times + excluded.times, refused = w.refused + excluded.refused, at = excluded.at, address = excluded.address,
            backend = excluded.backend, settling = excluded.settling
      returning w.xmax = 0, w.slot into fresh, own;
      exit;
    exception
      when serialization_failure then
        -- The slot was last used after the snapshot of this transaction was taken. A row of its own is in nobody's way.
        if own is null then
          return;
        end if;
        own := null;
    end;
  end loop;
  if fresh then
    insert into lockguard.watched as w (kind, slot, watch_id, operation, verdict, role, application, backend, times, refused, settling)
    values (p_kind, own, p_watch, '', '', '', '', 0, 0, 0, false)
    on conflict (kind, slot) do update set statement = lockguard.without_literals(current_query());
  end if;
end
$$;
comment on function lockguard.add_watched(bigint, uuid, text, text[], text, text, text, bigint, bigint, boolean) is
  'lockguard: adds so many writes to the record of their kind, in a slot that no other transaction uses';

create function lockguard.note_watched(p_watch bigint, p_operation text, p_columns text[], p_verdict text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  declare  -- in here, so that what fails in it is caught too
    -- Each message of a client has a time of its own.
    now_ constant text := (extract(epoch from statement_timestamp()) * 1000000)::bigint::text;
    -- Names that never repeat shall not fill the disk.
    application constant text :=
      case when pg_relation_size('lockguard.watched') < 67108864 then current_setting('application_name') else '(others)' end;
    kind constant uuid := md5(jsonb_build_array(p_watch, p_operation, p_columns, p_verdict, session_user, application)::text)::uuid;
    -- What this transaction has noted so far. Rolled back with a savepoint, as the record is.
    noted jsonb := coalesce(nullif(current_setting('lockguard.watched', true), ''), '{}')::jsonb;
    mine constant jsonb := noted -> kind::text;
    refused integer := 0;
  begin
    if mine ->> 0 = now_ then
      return;  -- the same statement: another row of it, or another table's cascade
    end if;
    if p_verdict not in ('leased', 'excused') and noted ->> 'refused' is distinct from now_ then
      refused := 1;
      noted := noted || jsonb_build_object('refused', now_);
    end if;
    if mine ->> 1 is not null then
      -- From the third on they are added at COMMIT: many versions of a row in one transaction would be read again and again.
      noted := noted || jsonb_build_object(kind, jsonb_build_array(now_, (mine ->> 1)::bigint + 1, (mine ->> 2)::bigint + refused));
      perform set_config('lockguard.watched', noted::text, true);
    else
      -- First the setting: after SET CONSTRAINTS it is settled within the next call.
      noted := noted || jsonb_build_object(kind, jsonb_build_array(now_, case when mine is null then null else 0 end, 0));
      perform set_config('lockguard.watched', noted::text, true);
      perform lockguard.add_watched(p_watch, kind, p_operation, p_columns, p_verdict, session_user, application, 1, refused, mine is not null);
    end if;
  end;
exception
  when others then
    null;  -- what cannot be recorded is written all the same
end
$$;
comment on function lockguard.note_watched(bigint, text, text[], text) is
  'lockguard: records a write of a watched table; never fails';

create function lockguard.settle_watched() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  declare
    noted constant jsonb := coalesce(nullif(current_setting('lockguard.watched', true), ''), '{}')::jsonb;
    mine constant jsonb := noted -> new.kind::text;
  begin
    -- After SET CONSTRAINTS the transaction goes on: what it writes then begins anew.
    perform set_config('lockguard.watched', (noted || jsonb_build_object(new.kind, jsonb_build_array(mine ->> 0, null, 0)))::text, true);
    if (mine ->> 1)::bigint > 0 then
      perform lockguard.add_watched(new.watch_id, new.kind, new.operation, new.columns, new.verdict, new.role, new.application,
                                    (mine ->> 1)::bigint, (mine ->> 2)::bigint, false);
    end if;
  end;
  return null;
exception
  when others then
    return null;
end
$$;
comment on function lockguard.settle_watched() is 'lockguard: adds the rest of a transaction''s writes of a kind, at COMMIT';

create constraint trigger settle after insert or update on lockguard.watched deferrable initially deferred
  for each row when (new.settling) execute function lockguard.settle_watched();
alter table lockguard.watched enable always trigger settle;
comment on trigger settle on lockguard.watched is 'lockguard: adds the rest of a transaction''s writes of a kind, at COMMIT';

create function lockguard.fold_watched() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- No transaction comes back to these rows, so nobody can be waiting for them.
  if current_setting('transaction_read_only') = 'on'
     or not exists (select from lockguard.watched w
                     where w.slot >= 1024 or not exists (select from lockguard.declared d where d.watch_id = w.watch_id))
     or not pg_try_advisory_xact_lock('lockguard.watched'::regclass::oid::bigint::bit(32)::integer, -1)
  then
    return;
  end if;
  delete from lockguard.watched w where not exists (select from lockguard.declared d where d.watch_id = w.watch_id);
  with gone as (delete from lockguard.watched w where w.slot >= 1024 returning w.*)
  insert into lockguard.watched as w
    (kind, slot, watch_id, operation, columns, verdict, role, application, address, backend, statement, times, refused, first_at, at, settling)
  select g.kind, -1, g.watch_id, g.operation, g.columns, g.verdict, g.role, g.application, (array_agg(g.address order by g.at desc))[1],
         (array_agg(g.backend order by g.at desc))[1], (array_agg(g.statement order by g.first_at))[1],
         sum(g.times), sum(g.refused), min(g.first_at), max(g.at), false
    from gone g group by g.kind, g.watch_id, g.operation, g.columns, g.verdict, g.role, g.application
  on conflict (kind, slot) do update
    set times = w.times + excluded.times, refused = w.refused + excluded.refused, first_at = least(w.first_at, excluded.first_at),
        at = greatest(w.at, excluded.at), address = excluded.address, backend = excluded.backend;
end
$$;
comment on function lockguard.fold_watched() is
  'lockguard: adds up the records that no transaction writes any more, and removes those of tables that are not watched now';

create or replace function lockguard.prune(p_limit integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform lockguard.note_parts();
  perform lockguard.fold_watched();
  return lockguard.prune_records(p_limit);
end
$$;
comment on function lockguard.prune(integer) is
  'lockguard: forgets what became of writes of more than 36 hours ago, so many at a time; returns how many. Those who hold leases call it now and then. Notes which partitions protected tables have, and adds up records of watched ones.';

-- The triggers

create or replace function lockguard.is_fed(p_table regclass) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_trigger t
                  where t.tgrelid = p_table and t.tgname in ('zz_lockguard_row', 'zz_lockguard_insert')
                    and (string_to_array(encode(t.tgargs, 'escape'), chr(92) || '000'))[3] = 'subscriber')
$$;

create function lockguard.is_watched(p_table regclass) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_trigger t where t.tgrelid = p_table and t.tgname like 'zz\_lockguard\_%' and t.tgnargs = 4)
$$;
comment on function lockguard.is_watched(regclass) is 'lockguard: whether the triggers of a table only record what they would refuse';

-- What a watch has where a guard refuses

create function lockguard.truncating(p_watch bigint) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select format($watch$
        if tg_op = 'TRUNCATE' then
          perform lockguard.note_watched(%s, tg_op, null, case when lockguard.needs_lease(tg_relid) then 'truncate' else 'excused' end);
          return null;
        end if;
$watch$, p_watch)
$$;
comment on function lockguard.truncating(bigint) is 'lockguard: the part of a watch that records a TRUNCATE, which keep_table() would refuse';

create function lockguard.noting(p_watch bigint) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  -- In the order of a guard, which refuses at the first.
  select format($watch$
        for first in select r from unnest(touched) r group by 1 order by r collate "C" loop
          said := lockguard.verdict(first, tg_relid);
          if verdict is null or said <> 'leased' then
            verdict := said;
          end if;
          exit when said not in ('leased', 'excused');
        end loop;
        -- The same again, for the next row of the same statement, need not be looked up.
        said := concat_ws(' ', %1$s, tg_op, verdict, changed, statement_timestamp());
        if current_setting('lockguard.noted', true) is distinct from said then
          perform lockguard.note_watched(%1$s, tg_op, changed, verdict);
          perform set_config('lockguard.noted', said, true);
        end if;
$watch$, p_watch)
$$;
comment on function lockguard.noting(bigint) is 'lockguard: the part of a watch that records what a guard would do';

create function lockguard.unfailing(p_watch bigint) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  -- What fails a guard fails the write there, and is recorded here.
  select format($watch$
    exception
      when others then
        perform lockguard.note_watched(%s, tg_op, null, 'error ' || sqlstate);
        return null;
$watch$, p_watch)
$$;
comment on function lockguard.unfailing(bigint) is 'lockguard: the end of a watch, which lets no error out';

create function lockguard.statement_guard(p_table regclass, p_template text, p_exempt text[], p_watch bigint) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format($guard$
    declare
%8$s      first text;
      last text;
      complete boolean;
      touched text[];
      before_ record;
      after_ record;
      others no scroll cursor for select * from after_rows;
      changed text[];
      said text;
      verdict text;
    begin
      begin
%6$s        if tg_op = 'INSERT' then
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
%7$s    end
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
            touched := touched || (%1$s);  -- one by one: so they are appended in place, and else copied each time
            touched := touched || last;
          end if;
        end loop;
        close others; -- up to Postgres 14 it has a name, and the next statement of the transaction would fail
$skip$, lockguard.expression(p_table, p_template, 'before_'), lockguard.expression(p_table, p_template, 'after_'),
    lockguard.blanked(p_table, p_exempt, 'after_', 'before_')) end, p_exempt, p_table::oid, p_template,
  case when p_watch is null then format($fast$        -- The usual case is one resource, whose lease was presented; whatever is wrong, require() finds the words for it.
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
$fast$, lockguard.expression(p_table, p_template, 'row_')) else lockguard.truncating(p_watch) end,
  case when p_watch is null then format($refusing$      -- In the order in which every transaction locks the fence's rows.
      for first in select r from unnest(touched) r group by 1 order by r collate "C" loop
        -- Only where it will be refused: which columns, for the message.
        if tg_op = 'UPDATE' and changed is null and lockguard.claim_of(first) is null then
%1$s        end if;
        perform lockguard.require(first, tg_relid, changed);
      end loop;
      return null;
$refusing$, c.changed) else format($recording$
      if cardinality(touched) > 0 then
        if tg_op = 'UPDATE' and changed is null then
%1$s        end if;
%2$s
      end if;
      return null;
%3$s
$recording$, c.changed, lockguard.noting(p_watch), lockguard.unfailing(p_watch)) end,
  case when p_watch is null then e'      claims constant jsonb := nullif(current_setting(''lockguard.leases'', true), '''')::jsonb;\n' else '' end)
  from (select format($changed$          -- Side by side as they are listed: a join would be planned for the few rows of the first statement.
          select array_agg(distinct e.key order by e.key) into changed
            from rows from (unnest(array(select to_jsonb(b) from before_rows b)), unnest(array(select to_jsonb(a) from after_rows a))) x (b, a)
            cross join lateral jsonb_each(x.a) e
           where x.a <> x.b and e.value is distinct from x.b -> e.key and e.key <> all (%1$L::text[]);
$changed$, p_exempt) as changed) c
$$;
comment on function lockguard.statement_guard(regclass, text, text[], bigint) is
  'lockguard: the body of the trigger function of an ordinary table: a guard, or a watch of this number';

create function lockguard.row_guard(p_table regclass, p_template text, p_exempt text[], p_watch bigint) returns text
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
      first text;
      said text;
      verdict text;
    begin
      begin
%7$s        if tg_op <> 'INSERT' then
          before_ := %1$s;
        end if;
        if tg_op <> 'DELETE' then
          after_ := %2$s;
        end if;
        if tg_op = 'UPDATE' then
%3$s
%8$s        end if;
%9$s      exception
        when undefined_column then
          execute lockguard.row_touched_today(%5$s, tg_relid, tg_op, %6$L, %4$L) into touched using old, new;
%10$s      end;
%11$s    end
  $guard$, lockguard.expression(p_table, p_template, 'old'), lockguard.expression(p_table, p_template, 'new'),
  case when cardinality(p_exempt) > 0 then format($skip$
        probe := new;
%s
        if probe operator(pg_catalog.*=) old then
          return new;
        end if;
$skip$, lockguard.blanked(p_table, p_exempt, 'probe', 'old')) else '' end, p_exempt, p_table::oid, p_template,
  case when p_watch is null then '' else lockguard.truncating(p_watch) end,
  case when p_watch is null then format($moved$          if before_ is distinct from after_ then
            changed := lockguard.changed(to_jsonb(old), to_jsonb(new), %1$L);
            perform lockguard.require(least(before_ collate "C", after_), tg_relid, changed);
            perform lockguard.require(greatest(before_ collate "C", after_), tg_relid, changed);
            return new;
          end if;
$moved$, p_exempt) else '' end,
  case when p_watch is null then format($usual$        -- The usual case without a call for each row; whatever is wrong, require() finds the words for it.
        claim := case when octet_length(current_setting('lockguard.leases', true)) < 1000
                      then nullif(current_setting('lockguard.leases', true), '')::jsonb -> coalesce(after_, before_)
                      else lockguard.claim_of(coalesce(after_, before_)) end;
        perform from lockguard.fence f
          where f.resource = coalesce(after_, before_) and f.token = (claim ->> 0)::bigint
            and f.grant_id = (claim ->> 1)::uuid and f.released_at is null
          for share;
        if not found then
          if tg_op = 'UPDATE' then
            changed := lockguard.changed(to_jsonb(old), to_jsonb(new), %1$L);
          end if;
          perform lockguard.require(coalesce(after_, before_), tg_relid, changed);
        end if;
$usual$, p_exempt) else format($recording$
        if tg_op = 'UPDATE' then
          changed := lockguard.changed(to_jsonb(old), to_jsonb(new), %1$L);
        end if;
        touched := array[least(before_ collate "C", after_), greatest(before_ collate "C", after_)];
$recording$, p_exempt) end,
  case when p_watch is null then $refusing$          for before_ in select r from unnest(touched) r group by 1 order by r collate "C" loop
            perform lockguard.require(before_, tg_relid, null);
          end loop;
$refusing$ else '' end,
  case when p_watch is null then $refusing$      return case when tg_op = 'DELETE' then old else new end;
$refusing$ else format($recording$
      if cardinality(touched) > 0 then
%1$s
      end if;
      return null;
%2$s
$recording$, lockguard.noting(p_watch), lockguard.unfailing(p_watch)) end)
$$;
comment on function lockguard.row_guard(regclass, text, text[], bigint) is
  'lockguard: the body of the trigger function of a partitioned or inheriting table: a guard, or a watch of this number';

create or replace function lockguard.statement_guard(p_table regclass, p_template text, p_exempt text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select lockguard.statement_guard(p_table, p_template, p_exempt, null) $$;

create or replace function lockguard.row_guard(p_table regclass, p_template text, p_exempt text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select lockguard.row_guard(p_table, p_template, p_exempt, null) $$;

create function lockguard.writing_of_guard(p_guard text, p_table regclass, p_template text, p_exempt text[], p_shared boolean, p_watch bigint)
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
    case when p_shared then lockguard.row_guard(p_table, p_template, p_exempt, p_watch)
         else lockguard.statement_guard(p_table, p_template, p_exempt, p_watch) end)
$$;
comment on function lockguard.writing_of_guard(text, regclass, text, text[], boolean, bigint) is
  'lockguard: the statement that makes the trigger function of a table: a guard, or a watch of this number';

create or replace function lockguard.writing_of_guard(p_guard text, p_table regclass, p_template text, p_exempt text[], p_shared boolean)
returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select lockguard.writing_of_guard(p_guard, p_table, p_template, p_exempt, p_shared, null) $$;

create function lockguard.set_guard(p_table regclass, p_template text, p_exempt text[], p_subscriber boolean, p_watch boolean, p_anew boolean)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $body$
declare
  relation constant pg_class := (select c from pg_class c where c.oid = p_table);
  guard constant text := format('lockguard.%I', left('guard_' || relation.relname, 50) || '_' || substr(md5(gen_random_uuid()::text), 1, 8));
  shared constant boolean := relation.relkind = 'p' or exists (select from pg_inherits i where i.inhrelid = p_table);
  wrong text;
  watch bigint;
  since timestamptz;
  watched record;
  made record;
begin
  if relation.relkind not in ('r', 'p') then
    raise exception '% is not a table; protect the table under it', p_table using errcode = 'LG004';
  end if;
  -- What is not given is as it is watched.
  select w.* into watched from lockguard.watches() w where w.relid = p_table;
  p_template := coalesce(p_template, watched.template);
  p_exempt := coalesce(p_exempt, watched.exempt, '{}');
  p_subscriber := p_subscriber or coalesce(watched.subscriber, false);
  if p_template is null then
    raise exception '% is not watched, so tell of which columns a row''s resource is made: --resource ''{exchange}:{symbol}''', p_table
      using errcode = 'LG004';
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
     select from pg_trigger t where t.tgrelid = i.inhrelid and t.tgname = 'zz_lockguard_row' and (p_watch or t.tgnargs < 4));
  if wrong is not null then
    raise exception '% is inherited by %, where rows can be written past it: protect that first, in the same way', p_table, wrong
      using errcode = 'LG004';
  end if;

  if not p_subscriber and lockguard.subscriptions(p_table) > 0 then
    raise exception 'a subscription fills %, and its workers present no lease: protect the table on the publisher, or here with'
      ' --subscriber, which lets them write', p_table using errcode = 'LG004';
  end if;

  if p_watch then
    -- Before the look, so that nobody protects it in between.
    execute format('lock table only %s in access exclusive mode', p_table);
    if exists (select from lockguard.under_guard() g where g.relation = p_table and not lockguard.is_watched(p_table))
       or exists (select from pg_trigger t where t.tgrelid = p_table and t.tgname = 'zz_lockguard_row' and t.tgparentid <> 0)
       or exists (select from lockguard.declared d where (d.relid = p_table or d.relation = p_table::text) and d.watch_id is null)
    then
      raise exception '% is protected, and to watch it would let every write through; to do that all the same, first run: lockguard fence unprotect %',
        p_table, p_table using errcode = 'LG004';
    end if;
    if not p_anew and (watched.template, watched.exempt, watched.subscriber) = (p_template, p_exempt, p_subscriber) then
      watch := watched.watch_id;
      since := watched.since;
    else
      since := clock_timestamp();
      watch := (extract(epoch from since) * 1000000)::bigint;
    end if;
  end if;

  perform lockguard.unprotect(p_table);
  execute lockguard.writing_of_guard(guard, p_table, p_template, p_exempt, shared, watch);
  execute format('revoke all on function %s() from public', guard);
  execute format('comment on function %s() is %L', guard, format(case when p_watch then 'lockguard: records which changes of the rows of %s, as %s, would be refused'
    else 'lockguard: guards the rows of %s as %s' end, p_table, p_template));
  for made in
    select * from (values
      ('row', true, 'after insert or update or delete', 'for each row', guard, 'no change of a row without the lease of its resource'),
      ('insert', false, 'after insert', 'referencing new table as after_rows', guard, 'no row comes without the lease of its resource'),
      ('update', false, 'after update', 'referencing old table as before_rows new table as after_rows', guard, 'no row changes without the lease of its resource'),
      ('delete', false, 'after delete', 'referencing old table as before_rows', guard, 'no row goes without the lease of its resource'),
      -- Postgres lets no table that has such a trigger become another one's child, where the three would not see all.
      ('alone', false, 'after delete', 'referencing old table as before_rows for each row when (false)', guard,
       'keeps the table from becoming a partition or a child: unprotect it before, and protect it after'),
      ('table', shared, 'before truncate', 'for each statement', case when p_watch then guard else 'lockguard.keep_table' end, 'no TRUNCATE without maintenance')
    ) as t (name, on_shared, event, how, function, says)
    where t.on_shared = shared or t.name = 'table'
  loop
    -- After the row, so that none sees less than what was made of it; ALWAYS, see 0001.
    execute format('create trigger %I %s on %s %s execute function %s(%L, %L%s)', 'zz_lockguard_' || made.name, made.event, p_table, made.how,
                   made.function, p_template, array_to_string(p_exempt, ','), case when p_subscriber then ', ''subscriber''' when p_watch then ', ''''' else '' end || case when p_watch then ', ''watch''' else '' end);
    execute format('alter table %s enable always trigger %I', p_table, 'zz_lockguard_' || made.name);
    execute format('comment on trigger %I on %s is %L', 'zz_lockguard_' || made.name, p_table, 'lockguard: ' || case when p_watch then 'records what would break this: ' else '' end || made.says);
  end loop;
  perform lockguard.declare_(p_table, p_template, p_exempt);
  update lockguard.declared d set watch_id = watch, watched_since = since where d.relation = p_table::text;
  insert into lockguard.audit (action, subject, reason) values (case when p_watch then 'watch' else 'protect' end, p_table::text, p_template || case when p_subscriber then ', fed by a subscription' else '' end);
end
$body$;
comment on function lockguard.set_guard(regclass, text, text[], boolean, boolean, boolean) is
  'lockguard: protects a table, or watches it (anew: with no record of before); from the one to the other in the caller''s transaction';

create or replace function lockguard.protect(p_table regclass, p_template text, p_exempt text[], p_subscriber boolean) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  select lockguard.set_guard(p_table, p_template, p_exempt, p_subscriber, false, false)
$$;

create function lockguard.watch(
  p_table regclass, p_template text, p_exempt text[] default '{}', p_subscriber boolean default false, p_anew boolean default false
) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  select lockguard.set_guard(p_table, p_template, p_exempt, p_subscriber, true, p_anew)
$$;
comment on function lockguard.watch(regclass, text, text[], boolean, boolean) is
  'lockguard: records which changes of the table''s rows protect() would refuse, and refuses none; true, true: fed by a subscription, and with no record of before';

create or replace function lockguard.findings()
returns table (relation text, grave boolean, finding text, remedy text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  with guards as materialized (
    select g.*, f.fed, w.watched, case when w.watched then 'its writes are not recorded' else 'rows change without a lease' end as open_,
           format('lockguard fence protect %s --resource %L%s%s%s', g.relation, g.template,
                  case when cardinality(g.exempt) > 0 then format(' --exempt %s', array_to_string(g.exempt, ',')) else '' end,
                  case when f.fed then ' --subscriber' else '' end, case when w.watched then ' --watch' else '' end) as again
      from lockguard.under_guard() g cross join lateral lockguard.is_fed(g.relation) f (fed)
      cross join lateral lockguard.is_watched(g.relation) w (watched)
  ), expected as (
    select g.relation as guarded, g.relation as place, g.again, g.open_, 'zz_lockguard_' || n as name from guards g
     cross join lateral unnest(case when g.shared then array['row', 'table'] else array['insert', 'update', 'delete', 'alone', 'table'] end) n
    union all
    select g.relation, p.relid::regclass, g.again, g.open_, 'zz_lockguard_row' from guards g
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
  select e.guarded::text, true, format('%s has its trigger %s %s: %s', e.place, e.name,
           case when t.tgname is null then 'no more' when t.tgenabled = 'D' then 'disabled'
                else 'enabled as an ordinary one: session_replication_role = replica passes it' end, e.open_), e.again
    from expected e
    left join pg_trigger t on t.tgrelid = e.place and t.tgname = e.name
   where t.tgenabled is distinct from 'A'
  union all
  -- What ought to be protected
  select d.relation, true,
         format(case when to_regclass(d.relation) is null then 'it ought to be %s, and there is no such table'
                     else 'it ought to be %s, and the table that has this name is not' end, case when d.watch_id is null then 'protected' else 'watched' end)
         || coalesce((select format('; the guard is on %s', g.relation) from guards g where g.relation = d.relid), ''),
         case when to_regclass(d.relation) is null then format('lockguard fence unprotect %s', d.relation)
              else format('lockguard fence protect %s --resource %L%s%s', d.relation, d.template,
                          case when cardinality(d.exempt) > 0 then format(' --exempt %s', array_to_string(d.exempt, ',')) else '' end,
                          case when d.watch_id is not null then ' --watch' else '' end) end
    from lockguard.declared d
   where not exists (select from guards g where g.relation = to_regclass(d.relation))
  union all
  select g.relation::text, false, 'it is protected under another name than it had: one that takes the old name is not missed', g.again
    from guards g where not exists (select from lockguard.declared d where to_regclass(d.relation) = g.relation)
  union all
  -- What was part of one
  select p.part::text, true, format('it was part of %s and is not any more: nothing guards it', p.relation),
         format('lockguard fence protect %s --resource %L%s', p.part, p.template, case when p.watch_id is not null then ' --watch' else '' end)
    from (select distinct d.relation, d.template, d.watch_id, coalesce(c.oid, to_regclass(n.name))::regclass as part
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
         format('lockguard fence protect %s --resource %L%s', i.inhrelid::regclass, g.template, case when g.watched then ' --watch' else '' end)
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
                           where t.was = any (g.exempt) and t.is_ is not null), ''),
                case when g.fed then ' --subscriber' else '' end || case when g.watched then ' --watch' else '' end)
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
  -- Watched only
  select g.relation::text, false, 'it is only watched: no write of it is refused', format('lockguard fence watch %s', g.relation)
    from guards g where g.watched
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

create or replace function lockguard.protections()
returns table (relation text, template text, exempt text[], enabled boolean)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select g.relation::text, g.template, g.exempt,
         not lockguard.is_watched(g.relation) and not exists (select from lockguard.findings() f where f.grave and f.relation = g.relation::text)
    from lockguard.under_guard() g order by 1
$$;
comment on function lockguard.protections() is 'lockguard: the protected tables of this database, and the watched ones, which are not enabled';

-- For people

create function lockguard.watches()
returns table (relation text, relid oid, template text, exempt text[], subscriber boolean, since timestamptz, watch_id bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select g.relation::text, g.relation::oid, g.template, g.exempt, lockguard.is_fed(g.relation), d.watched_since, d.watch_id
    from lockguard.under_guard() g
    left join lateral (
      select d.* from lockguard.declared d
       where d.watch_id is not null and (d.relid = g.relation or to_regclass(d.relation) = g.relation)
       order by d.relid = g.relation desc limit 1) d on true
   where lockguard.is_watched(g.relation)
   order by 1
$$;
comment on function lockguard.watches() is 'lockguard: the watched tables, and since when they are';

create function lockguard.watched_writes()
returns table (
  relation text, operation text, columns text[], verdict text, role text, application text, times bigint, refused bigint,
  first_at timestamptz, at timestamptz, address text, backend integer, statement text
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.relation, w.operation, w.columns, w.verdict, w.role, w.application, sum(w.times)::bigint, sum(w.refused)::bigint,
         min(w.first_at), max(w.at), (array_agg(w.address order by w.at desc))[1], (array_agg(w.backend order by w.at desc))[1],
         coalesce((array_agg(w.statement order by w.first_at) filter (where w.statement <> ''))[1], '')
    from lockguard.watched w
    join lockguard.watches() d on d.watch_id = w.watch_id
   group by d.relation, w.kind, w.operation, w.columns, w.verdict, w.role, w.application
   order by 1, 8 desc, 7 desc, 2
$$;
comment on function lockguard.watched_writes() is
  'lockguard: the writes of watched tables by kind: how often, how many would have been refused, the first and last time, and the first statement without its literals';
