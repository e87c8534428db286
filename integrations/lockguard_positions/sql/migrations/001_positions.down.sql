drop table monitoring.positions;
drop function monitoring.touch();
