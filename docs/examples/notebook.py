# %% One guard for all cells: they share the kernel's event loop.
from datetime import timedelta

from lockguard import LockGuard

guard = LockGuard.from_env()

# %% What belongs together stands in one cell. The lease ends with it, also when it is interrupted.
async with guard.hold("binance:APTUSDT", operation="notebook", wait=timedelta(seconds=2)) as lease:
    print("held, token", lease.token)

# %% A lease over several cells: the guard for synchronous code, which has a thread of its own to renew it.
from lockguard.sync import LockGuard as BlockingGuard

blocking = BlockingGuard.from_env(max_hold=timedelta(hours=1))  # in case it is never released
lease = blocking.acquire("binance:APTUSDT", operation="notebook")

# %% Before each step that cannot be undone: LeaseLost if the lease ended between the cells.
lease.confirm_now()
print("still held, token", lease.token)

# %%
lease.release()
