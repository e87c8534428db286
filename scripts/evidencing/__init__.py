"""The parts of scripts/evidence: what a run leaves, the code that it tried, the pages, what is run again."""
