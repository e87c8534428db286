-- A blind write under a resource that this database knows nothing of any more is not told to go past the fence.

create or replace function lockguard.refuse(p_resource text, p_presented bigint, p_grant uuid, p_reason text, p_held lockguard.fence)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  -- Pruned, or its seal was lost before recover(), which raises the floor too.
  forgotten constant boolean := p_reason = 'unsealed' and exists (select from lockguard.floor l where l.token >= p_presented);
begin
  raise exception '%', format(
      case
        when p_reason = 'superseded' then 'stale token for %1$s: presented %2$s, current %3$s (%4$s, %5$s)'
        when p_reason = 'closed' then 'stale token for %1$s: presented %2$s, current %3$s, closed at %6$s'
        when forgotten then 'stale token for %1$s: presented %2$s, and the resource was pruned since, or its seal was lost before a recovery,'
          ' or it was never sealed in this database'
        when p_reason = 'unsealed' then 'stale token for %1$s: presented %2$s, but the resource was never sealed in this database:'
          ' the guard that gave the lease has no fence=, or its fence is in another database'
        else 'stale token for %1$s: presented %2$s, current %3$s; this write was already declared lost'
      end,
      p_resource, p_presented, p_held.token, p_held.holder, p_held.operation, p_held.released_at)
    using errcode = 'LG001',
          detail = json_build_object('resource', p_resource, 'presented', p_presented, 'current', p_held.token,
                                     'reason', p_reason, 'holder', p_held.holder, 'operation', p_held.operation,
                                     'grant', replace(p_grant::text, '-', ''))::text,
          hint = case
            when forgotten then 'The lease has ended. Do not retry the write: take a new lease, of a guard with fence=PostgresFence(pool)'
              ' on this database, and read the state again.'
            when p_reason = 'unsealed' then 'Give the guard fence=PostgresFence(pool) on this database, or write without the lease: with unfenced().'
            else 'Another holder took over, or the lease has ended. Do not retry the write: take a new lease and read the state again.'
          end;
end
$$;
