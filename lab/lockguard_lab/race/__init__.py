"""Has many bots open the same positions at once, in real processes, and counts what goes wrong."""
