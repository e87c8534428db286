"""Many bots open the same positions at once, in real processes, and what went wrong is counted."""
