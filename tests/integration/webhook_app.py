"""The application of the page, for processes that live for seconds: with one exchange of ccxt only.

Each answer names its process. With WITHOUT_GUARD it runs as it would if nobody had thought of a guard.
"""

from __future__ import annotations

import os
import sys

from lockguard_ccxt.lean_import import import_lean

if import_lean("binanceusdm"):
    from ccxt.base import errors

    vars(sys.modules["ccxt.async_support"]).update({name: getattr(errors, name) for name in errors.__all__})

import fastapi_app
from fastapi_app import app

__all__ = ["app"]

if os.environ.get("WITHOUT_GUARD"):

    class Unchecked:
        def ensure(self, needed):
            """No lease, and nothing to ask."""

    fastapi_app.open_position = fastapi_app.open_position.__wrapped__
    fastapi_app.current_lease = Unchecked


@app.middleware("http")
async def name_process(request, call_next):
    """BaseHTTPMiddleware, in which the endpoint runs in another task."""
    response = await call_next(request)
    response.headers["X-Process"] = str(os.getpid())
    return response
