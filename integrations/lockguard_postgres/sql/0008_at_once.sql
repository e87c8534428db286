-- What became of a write of a lease that was superseded is known also where its writer goes on under the next one.
--
-- Two leases of one resource in one process share that process's rows in lockguard.writer. Where the later lease wrote
-- last, the row stands below the number that is asked for and above its token. resolve() took that for a writer who has
-- gone on, and answered "nobody knows any more".

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
      if noted.sequence < p_sequence then
        return false;  -- the writer's row carries a later token: a check of this write is refused for good
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
