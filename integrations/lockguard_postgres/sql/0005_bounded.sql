-- What a write leaves behind is bounded, and nothing that a holder waits for depends on how much there was.
--
--   1. seal() and close() delete nothing. What is too old to be asked for goes by prune(), a bounded number of rows
--      at a time, outside of every transaction that anybody waits for.
--   2. A write no longer leaves a row of its own. Its number has two parts: a slot, which one writer has to itself while
--      its transaction is under way, and a count within the slot, which goes on only once the end of the
--      transaction before is known. So a slot has one row for each resource, with the last transaction that committed
--      in it, and that row tells of every transaction whose end somebody may still have to ask for.
--   3. resolve() never guesses: where the record has gone it says so (LG005).
--
-- Numbers below 2^62 come from a library of before: they are kept in lockguard.outcome, one row each, as ever.

create table lockguard.writer (
  resource text not null,
  slot bigint not null,
  token bigint not null,
  sequence bigint not null,
  first bigint not null,
  voided boolean not null default false,
  begun_at timestamptz not null default clock_timestamp(),
  primary key (resource, slot)
) with (fillfactor = 60);  -- room for the next version of a row beside it: then no index is written
create index writer_begun_at on lockguard.writer (begun_at);
comment on table lockguard.writer is 'lockguard: the last transaction of each writer that committed, so that a lost COMMIT reply can be looked up';
comment on column lockguard.writer.resource is 'what was written under';
comment on column lockguard.writer.slot is 'the writer: all of the sequence but its last ten bits';
comment on column lockguard.writer.token is 'the token that the last write carried';
comment on column lockguard.writer.sequence is 'the writer''s own number of the last transaction; with the token it only grows';
comment on column lockguard.writer.first is 'the number that the row was made for';
comment on column lockguard.writer.voided is 'the transaction was looked up before it arrived, and must never commit';
comment on column lockguard.writer.begun_at is 'when the row was made; a writer leaves it for another after 12 hours, and 36 hours after this it goes';

create table lockguard.forgotten (
  resource text primary key,
  token bigint not null,
  sequence bigint not null
);
comment on table lockguard.forgotten is 'lockguard: up to where the records of a resource''s writes may have gone, so that none is taken for one that never was';
comment on column lockguard.forgotten.resource is 'what was written under';
comment on column lockguard.forgotten.token is 'the highest token of a record that went';
comment on column lockguard.forgotten.sequence is 'the highest number of such a record under that token';

create table lockguard.sweep (
  resource text not null,
  token bigint not null,
  sequence bigint not null
);
comment on table lockguard.sweep is 'lockguard: one row, where prune() goes on through lockguard.outcome; who prunes has it locked';
comment on column lockguard.sweep.resource is 'of the last record that was looked at';
comment on column lockguard.sweep.token is 'its token';
comment on column lockguard.sweep.sequence is 'its number';
insert into lockguard.sweep values ('', 0, 0);

comment on column lockguard.outcome.written_at is 'when; goes 36 hours later, see lockguard.prune()';

-- The next version of a row beside it. Takes no lock that a writer or a seal waits for.
alter table lockguard.fence set (fillfactor = 60);

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
end
$$;

create function lockguard.may_be_forgotten(p_resource text, p_token bigint, p_sequence bigint) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from lockguard.forgotten f
                  where f.resource = p_resource and (f.token, f.sequence) >= (p_token, p_sequence))
$$;
comment on function lockguard.may_be_forgotten(text, bigint, bigint) is
  'lockguard: whether a record of this write that is not there may have gone, or never was for certain';

create or replace function lockguard.check(p_resource text, p_token bigint, p_grant uuid, p_sequence bigint default null)
returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  held constant lockguard.fence := lockguard.hold(p_resource, p_token, p_grant);
  made_for bigint;
begin
  if p_sequence >= 4611686018427387904 then
    -- By ON CONFLICT, which reads past the snapshot: a lookup would have independent transactions at SERIALIZABLE
    -- fail for the sake of neighbours in the index.
    insert into lockguard.writer as w (resource, slot, token, sequence, first)
    values (p_resource, p_sequence >> 10, p_token, p_sequence, p_sequence)
    on conflict (resource, slot) do update
      set token = excluded.token, sequence = excluded.sequence, voided = false
      where (w.token, w.sequence) < (excluded.token, excluded.sequence)
    returning w.first into made_for;
    -- A new row: was the write declared lost where its record is no more, or before this version of the schema?
    if not found or made_for = p_sequence and (
      lockguard.may_be_forgotten(p_resource, p_token, p_sequence)
      or exists (select from lockguard.outcome o where o.resource = p_resource and o.token = p_token and o.sequence = p_sequence))
    then
      perform lockguard.refuse(p_resource, p_token, p_grant, 'voided', held);
    end if;
  elsif p_sequence is not null then
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

create function lockguard.check_all(p_resources text[], p_tokens bigint[], p_grants uuid[], p_sequence bigint default null) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform lockguard.check(p_resources[1], p_tokens[1], p_grants[1], p_sequence);
  for n in 2 .. cardinality(p_resources) loop
    perform lockguard.hold(p_resources[n], p_tokens[n], p_grants[n]);
  end loop;
  -- Noted once for all: to read and write the whole for each of a thousand leases takes seconds.
  perform set_config('lockguard.leases', (current_setting('lockguard.leases')::jsonb || (
    select jsonb_object_agg(c.resource, jsonb_build_array(c.token, c.grant_id))
      from unnest(p_resources, p_tokens, p_grants) c (resource, token, grant_id)))::text, true);
end
$$;
comment on function lockguard.check_all(text[], bigint[], uuid[], bigint) is
  'lockguard: presents many leases, as check() does each, in the order given; the sequence goes with the first';

create or replace function lockguard.resolve(p_resource text, p_token bigint, p_sequence bigint, p_within_ms integer) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  noted lockguard.writer;
  voided_ boolean;
begin
  -- A lease writes only once it is sealed. Noted all the same, a token from elsewhere would be answered "not committed"
  -- where the write was made in another database, and one of the future would bar the resource when it is pruned.
  if not exists (select from lockguard.fence f where f.resource = p_resource and f.token >= p_token) then
    raise exception 'token % of % was never accepted in this database', p_token, p_resource
      using errcode = 'LG004', hint = 'ask in the database that the write was made in';
  end if;
  perform lockguard.settle_session(p_within_ms);
  -- Each insert waits for a transaction that is still open, and bars one that has not arrived: the answer stays true.
  if p_sequence >= 4611686018427387904 then
    insert into lockguard.writer as w (resource, slot, token, sequence, first, voided)
    values (p_resource, p_sequence >> 10, p_token, p_sequence, p_sequence, true)
    on conflict (resource, slot) do update
      set token = excluded.token, sequence = excluded.sequence, voided = true
      where (w.token, w.sequence) < (excluded.token, excluded.sequence)
    returning w.* into noted;
    if not found then
      -- The conflict locked the row. Past this write it goes only when the writer knew what had become of it.
      select w.* into noted from lockguard.writer w where w.resource = p_resource and w.slot = p_sequence >> 10;
      if noted.token = p_token and noted.sequence = p_sequence then
        return not noted.voided;
      end if;
      perform lockguard.tell_forgotten(p_resource, p_token, p_sequence);
    elsif noted.first <> p_sequence then
      return false;  -- the writer's row was there, and had not come to this write
    end if;
  end if;
  -- A library of before, or a write of while this schema was upgraded.
  insert into lockguard.outcome (resource, token, sequence, voided) values (p_resource, p_token, p_sequence, true)
  on conflict do nothing;
  if not found then
    select o.voided into voided_ from lockguard.outcome o
     where o.resource = p_resource and o.token = p_token and o.sequence = p_sequence;
    if found then
      update lockguard.writer w set voided = voided_
       where w.resource = p_resource and w.slot = p_sequence >> 10 and w.token = p_token and w.sequence = p_sequence;
      return not voided_;
    end if;
  elsif not lockguard.may_be_forgotten(p_resource, p_token, p_sequence) then
    return false;
  end if;
  perform lockguard.tell_forgotten(p_resource, p_token, p_sequence);
end
$$;

create function lockguard.tell_forgotten(p_resource text, p_token bigint, p_sequence bigint) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'nobody knows any more whether transaction % under token % of % has committed', p_sequence, p_token, p_resource
    using errcode = 'LG005',
          hint = 'What became of a write is kept for a day, and while its writer does not know it. Look at what was written.';
end
$$;
comment on function lockguard.tell_forgotten(text, bigint, bigint) is
  'lockguard: raises LG005, and so takes back what asking had noted';

create function lockguard.prune(p_limit integer default 1000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set plan_cache_mode = force_custom_plan
as $$
declare
  cut constant timestamptz := clock_timestamp() - interval '36 hours';
  at lockguard.sweep;
  looked integer;
  gone integer;
  swept integer;
begin
  perform set_config('synchronous_commit', 'off', true);  -- what a crash brings back goes the next time
  -- One at a time, and nobody waits: not for another who prunes, and not for a row that somebody writes.
  select s.* into at from lockguard.sweep s for update skip locked;
  if not found then
    return 0;
  end if;
  with old as materialized (
    select w.ctid as place from lockguard.writer w where w.begun_at < cut
     order by w.begun_at limit p_limit for update skip locked
  ), deleted as (
    delete from lockguard.writer w where w.ctid = any (array(select place from old))
    returning w.resource, w.token, w.sequence
  ), marked as (
    insert into lockguard.forgotten as f (resource, token, sequence)
    select distinct on (d.resource) d.resource, d.token, d.sequence from deleted d
     order by d.resource, d.token desc, d.sequence desc
    on conflict (resource) do update set token = excluded.token, sequence = excluded.sequence
      where (f.token, f.sequence) < (excluded.token, excluded.sequence)
  )
  select count(*) into gone from deleted;
  -- The records of a library of before have no index by time: they are gone through in the order of their key.
  with part as materialized (
    select o.ctid as place, o.resource, o.token, o.sequence, o.written_at < cut as old from lockguard.outcome o
     where (o.resource, o.token, o.sequence) > (at.resource, at.token, at.sequence)
     order by o.resource, o.token, o.sequence limit p_limit
  ), deleted as (
    delete from lockguard.outcome o where o.ctid = any (array(select p.place from part p where p.old))
    returning o.resource, o.token, o.sequence
  ), marked as (
    insert into lockguard.forgotten as f (resource, token, sequence)
    select distinct on (d.resource) d.resource, d.token, d.sequence from deleted d
     order by d.resource, d.token desc, d.sequence desc
    on conflict (resource) do update set token = excluded.token, sequence = excluded.sequence
      where (f.token, f.sequence) < (excluded.token, excluded.sequence)
  ), moved as (
    update lockguard.sweep s set resource = l.resource, token = l.token, sequence = l.sequence
      from (select p.resource, p.token, p.sequence from part p
             order by p.resource desc, p.token desc, p.sequence desc limit 1) l
  )
  select (select count(*) from part), (select count(*) from deleted) into looked, swept;
  if looked < p_limit then
    update lockguard.sweep s set resource = '', token = 0, sequence = 0 where s.resource <> '';
  end if;
  return gone + swept;
end
$$;
comment on function lockguard.prune(integer) is
  'lockguard: forgets what became of writes of more than 36 hours ago, so many at a time; returns how many. Those who hold leases call it now and then.';
