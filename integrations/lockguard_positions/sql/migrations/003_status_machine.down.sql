drop trigger check_status on monitoring.positions;
drop function monitoring.check_status();
drop table monitoring.status_transitions;
