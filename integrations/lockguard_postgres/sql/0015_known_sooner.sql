-- A seal that is known is answered by one look at the row: the rest is for the refusal.

alter function lockguard.known(text, uuid, bigint) rename to refuse_unknown;
comment on function lockguard.refuse_unknown(text, uuid, bigint) is
  'lockguard: refuses (LG007) a resource whose seal with this token, in this fence, is not known here; otherwise gives it back';

create function lockguard.known(p_resource text, p_fence uuid, p_token bigint) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  current_ bigint;
begin
  select f.token into current_ from lockguard.fence f where f.resource = p_resource;
  if current_ >= p_token then
    return p_resource;
  end if;
  return lockguard.refuse_unknown(p_resource, p_fence, p_token);
end
$$;
comment on function lockguard.known(text, uuid, bigint) is
  'lockguard: the resource, if its seal with this token, in this fence, is known here; otherwise LG007';
