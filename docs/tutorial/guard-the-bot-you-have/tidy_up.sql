-- The operator's own script: takes away what looks stuck. It knows nothing of leases.
delete from monitoring.positions where status in ('pending_entry', 'entry_placed')
