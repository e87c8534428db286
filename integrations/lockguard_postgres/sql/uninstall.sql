-- Each thing by name and without CASCADE, so that a table still protected stops it.
do $$
declare
  f record;
begin
  for f in
    select p.oid::regprocedure as signature from pg_catalog.pg_proc p
     where p.pronamespace = 'lockguard'::regnamespace and p.prorettype = 'trigger'::regtype
       and not exists (
         select from pg_catalog.pg_trigger t join pg_catalog.pg_class c on c.oid = t.tgrelid
          where t.tgfoid = p.oid and c.relnamespace = 'lockguard'::regnamespace)
  loop
    execute format('drop function %s', f.signature);
  end loop;
end
$$;
drop schema lockguard cascade;
