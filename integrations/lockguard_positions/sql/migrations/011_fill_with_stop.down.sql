delete from monitoring.status_transitions where old_status = 'pending_entry' and new_status = 'pending_sl';
