"""ccxt under a lease."""
