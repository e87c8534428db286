alter table monitoring.signals drop constraint signals_outcome;
update monitoring.signals set outcome = 'refused', details = 'set aside: ' || details where outcome = 'set aside';
alter table monitoring.signals add constraint signals_outcome check (
  outcome in ('opened', 'already open', 'closed', 'nothing open', 'overtaken', 'refused'));
drop table monitoring.signal_attempts;
alter table monitoring.positions drop column market;
