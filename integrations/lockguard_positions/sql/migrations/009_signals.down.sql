drop table monitoring.signals;
drop index monitoring.idx_positions_signal;
