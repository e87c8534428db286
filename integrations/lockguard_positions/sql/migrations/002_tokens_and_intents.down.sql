drop table monitoring.position_intents;
alter table monitoring.positions
  drop column token,
  drop column intent;
