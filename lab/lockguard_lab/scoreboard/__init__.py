"""The same faults for lockguard and its peers: ``lockguard scoreboard``."""
