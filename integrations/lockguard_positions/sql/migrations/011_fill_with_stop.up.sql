-- A fill and the intent of its stop are one statement, and so the row goes from the one to the other at once.
insert into monitoring.status_transitions (old_status, new_status) values ('pending_entry', 'pending_sl');
