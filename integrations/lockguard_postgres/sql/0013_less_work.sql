-- The same answers for less work.
--
-- What a seal, a check and a close cost is mostly what Postgres does anew in each transaction: each function that is
-- called, each statement in it and each expression is made ready before it is run once. So there are fewer of them.

-- Who is superseded while it is open is told by the trigger, whoever does it, so that a seal need not read the row
-- first. What break_() and recover() tell is the same notification, which Postgres sends once.
create or replace function lockguard.keep_monotone() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op in ('DELETE', 'TRUNCATE') then
    if tg_op = 'DELETE' and old.released_at is not null and old.token <= (select l.token from lockguard.floor l) then
      return old;
    end if;
    raise exception 'a row of lockguard.fence cannot be removed: its token would be forgotten and handed out again'
      using errcode = 'LG003',
            hint = 'To end a holder use lockguard.break_(resource, reason). What is long gone goes by: lockguard fence prune.';
  end if;
  if new.resource <> old.resource
     or new.token < old.token
     or (new.token = old.token and new.grant_id <> old.grant_id)
     or (new.token = old.token and old.released_at is not null and new.released_at is null)
  then
    raise exception 'the fence of % cannot go from token % back to token %', old.resource, old.token, new.token
      using errcode = 'LG003', hint = 'Tokens only grow, and a closed one stays closed. To end a holder use lockguard.break_(resource, reason).';
  end if;
  if new.grant_id <> old.grant_id and old.released_at is null then
    perform lockguard.tell(old, new.token);
  end if;
  return new;
end
$$;

create or replace function lockguard.settle_session(p_within_ms integer) returns void
language plpgsql
as $$
declare
  idle constant text := current_setting('idle_in_transaction_session_timeout');
  ignored text;
begin
  -- For this transaction only: session settings would leak to others through a transaction pooler.
  ignored := set_config('lock_timeout', greatest(p_within_ms, 1)::text, true);
  -- Durable, because a seal lost in a crash would hand its token out again.
  if current_setting('synchronous_commit') = 'off' then
    ignored := set_config('synchronous_commit', 'on', true);
  end if;
  if idle = '0' or idle::interval > '1 s' then
    ignored := set_config('idle_in_transaction_session_timeout', '1s', true);
  end if;
end
$$;

create or replace function lockguard.bound(p_lock_ms integer, p_idle_ms integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  -- A stricter setting that is in force already is kept; 0 means no bound.
  held text := current_setting('lock_timeout');
begin
  if held = '0' or held::interval > make_interval(secs => p_lock_ms / 1000.0) then
    held := set_config('lock_timeout', p_lock_ms::text, true);
  end if;
  held := current_setting('idle_in_transaction_session_timeout');
  if held = '0' or held::interval > make_interval(secs => p_idle_ms / 1000.0) then
    held := set_config('idle_in_transaction_session_timeout', p_idle_ms::text, true);
  end if;
end
$$;

create or replace function lockguard.seal(
  p_resource text, p_token bigint, p_grant uuid, p_holder text, p_operation text, p_within_ms integer,
  out accepted boolean, out token bigint
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  held lockguard.fence;
begin
  if p_token is null or p_token > (extract(epoch from clock_timestamp()) * 1000000)::bigint then
    perform lockguard.refuse_beyond(p_resource, p_token);
  end if;
  perform lockguard.settle_session(p_within_ms);
  if not pg_try_advisory_xact_lock(lockguard.gate(p_resource)) then
    -- Only who supersedes the writers that are in may wait for them: a late sealer must not keep out, or have ended,
    -- those of its successor. Tokens only grow, so a no stays a no.
    select f.* into held from lockguard.fence f where f.resource = p_resource;
    if held.grant_id <> p_grant and held.token >= p_token then
      accepted := false;
      token := held.token;
      return;
    end if;
    perform pg_advisory_xact_lock(lockguard.gate(p_resource));
  end if;
  update lockguard.fence f
     set token = p_token, grant_id = p_grant, holder = left(p_holder, 500), operation = left(p_operation, 500),
         sealed_at = clock_timestamp(), released_at = null
   where f.resource = p_resource and f.token < p_token and f.grant_id <> p_grant;
  if found then
    accepted := true;
    token := p_token;
    return;
  end if;
  perform from lockguard.fence f where f.resource = p_resource;
  if not found then
    -- It may have had a row that was pruned.
    select l.token into token from lockguard.floor l where l.token >= p_token;
    if found then
      accepted := false;
      return;
    end if;
  end if;
  -- By the index, which knows of a row that an older snapshot does not show (40001), and of one that is no more.
  insert into lockguard.fence as f (resource, token, grant_id, holder, operation)
  values (p_resource, p_token, p_grant, left(p_holder, 500), left(p_operation, 500))
  on conflict (resource) do update set token = f.token where false
  returning f.* into held;
  if not found then
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
  if p_token is null or p_token > (extract(epoch from clock_timestamp()) * 1000000)::bigint then
    perform lockguard.refuse_beyond(p_resource, p_token);
  end if;
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

create or replace function lockguard.check(p_resource text, p_token bigint, p_grant uuid, p_sequence bigint default null)
returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  made_for bigint;
  presented text := current_setting('lockguard.leases', true);
begin
  perform pg_advisory_xact_lock_shared(lockguard.gate(p_resource));
  perform from lockguard.fence f
    where f.resource = p_resource and f.token = p_token and f.grant_id = p_grant and f.released_at is null
    for share;
  if not found then
    perform lockguard.hold(p_resource, p_token, p_grant);  -- finds the words for what is wrong
  end if;
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
      perform lockguard.refuse(p_resource, p_token, p_grant, 'voided', lockguard.hold(p_resource, p_token, p_grant));
    end if;
  elsif p_sequence is not null then
    insert into lockguard.outcome (resource, token, sequence) values (p_resource, p_token, p_sequence)
    on conflict do nothing;
    if not found then
      perform lockguard.refuse(p_resource, p_token, p_grant, 'voided', lockguard.hold(p_resource, p_token, p_grant));
    end if;
  end if;
  if presented <> '' then
    presented := (presented::jsonb || jsonb_build_object(p_resource, jsonb_build_array(p_token, p_grant)))::text;
  else
    presented := concat('{', to_json(p_resource), ':[', p_token, ',"', p_grant, '"]}');
  end if;
  presented := set_config('lockguard.leases', presented, true);
  return p_token;
end
$$;
