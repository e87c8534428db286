-- The table of lockguard_positions.status, enforced for every writer. An old status of '' is a new row.
create table monitoring.status_transitions (
  old_status text not null,
  new_status text not null,
  primary key (old_status, new_status)
);
comment on table monitoring.status_transitions is 'the changes of status that a position may make; an empty old one is a new row';

insert into monitoring.status_transitions (old_status, new_status) values
  ('', 'pending_entry'), ('', 'entry_placed'), ('', 'failed'),
  ('pending_entry', 'entry_placed'), ('pending_entry', 'failed'), ('pending_entry', 'canceled'), ('pending_entry', 'rolled_back'),
  ('entry_placed', 'pending_sl'), ('entry_placed', 'rolled_back'), ('entry_placed', 'closed'),
  ('pending_sl', 'active'), ('pending_sl', 'rolled_back'), ('pending_sl', 'closed'),
  ('active', 'pending_sl'), ('active', 'closed');

create function monitoring.check_status() returns trigger
language plpgsql
as $$
declare
  was constant text := case when tg_op = 'INSERT' then '' else old.status end;
begin
  if new.status <> was
     and not exists (
       select from monitoring.status_transitions t where t.old_status = was and t.new_status = new.status)
  then
    raise exception 'a position cannot go from % to %', coalesce(nullif(was, ''), 'nothing'), new.status
      using errcode = 'LG102',
            detail = format('position %s, %s %s', new.id, new.exchange, new.symbol),
            hint = 'The legal changes are in monitoring.status_transitions.';
  end if;
  return new;
end
$$;

create trigger check_status before insert or update of status on monitoring.positions
  for each row execute function monitoring.check_status();
