"""``lockguard fence load``: what many bots at once cost the server, and what they leave behind.

Processes take leases of many resources, some wanted by many at once and most by few, and write once under
each in the documented ways. The same is done before without the fence, so that its share can be told. In the
end the tables are looked through for a stale commit, as after a race.
"""

from __future__ import annotations
