delete from monitoring.signal_attempts where sent_at is not null;
alter table monitoring.signal_attempts drop column symbol, drop column sent_at;
