"""``lockguard fence load``: measures what many concurrent bots cost the server, and what they leave behind.

Processes take leases of many resources, a few of them contended by many and most by few, and write once under
each lease in the documented ways. The same load runs first without the fence, to measure the fence's share.
Finally the tables are searched for a stale commit, as after a race.
"""

from __future__ import annotations
