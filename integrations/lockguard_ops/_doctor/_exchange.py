"""The account at the exchange: its clock, what the key may do, the position mode, limits. It only reads."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lockguard.text import first_line
from lockguard_ccxt import GuardedExchange
from lockguard_ccxt._classify import ccxt_errors
from lockguard_ccxt._venues import venue_of
from lockguard_ops._doctor._findings import Report, Severity, advice
from lockguard_ops._doctor._timing import apart, measure

if TYPE_CHECKING:
    from lockguard_positions._exchange_options import ExchangeSettings

__all__ = ["check_exchange"]

_AHEAD_MAX_S = 1.0
"""By how much a request may be ahead of Binance's clock."""


async def check_exchange(client: Any, settings: ExchangeSettings, report: Report) -> GuardedExchange | None:
    """Look at the account.

    Args:
        client: the ccxt exchange.
        settings: the account's label and ccxt's options.
        report: gets the findings.

    Returns:
        The exchange with its markets, to compare rows with; ``None`` where that cannot work.

    Raises:
        ConfigurationError: the exchange cannot be used at all, see :class:`GuardedExchange`.
    """
    guarded = GuardedExchange(client, account=settings.account)  # refuses every call that changes something
    server = f"Exchange {guarded.name}"
    try:
        await _check_clock(client, server, report)
        await client.load_markets()
        usable = await _check_mode(client, server, report)
        await _check_key(client, server, report)
    except (ccxt_errors().BaseError, TypeError, LookupError, AttributeError) as exc:
        _tell_failure(exc, settings, server, report)  # the last three: an answer that ccxt did not expect
        return None
    real = "://" not in (settings.name or "")
    if real and not client.enableRateLimit:
        remedy = advice("leave --option enableRateLimit=false out")
        report.add("exchange.limits", Severity.WARNING, server, "ccxt does not slow requests down", remedy)
    elif (closed := guarded.closed_for) > timedelta(0):
        seconds = closed.total_seconds()
        report.add(
            "exchange.limits", Severity.ERROR, server, f"closed for {seconds:.0f} s", f"sleep {seconds:.0f}"
        )
    return guarded if usable else None


def _tell_failure(exc: Exception, settings: ExchangeSettings, server: str, report: Report) -> None:
    errors = ccxt_errors()
    told = f"{type(exc).__name__}: {first_line(exc)[:200]}"
    if isinstance(exc, errors.InvalidNonce):
        if not report.has("exchange.clock", server):
            report.add("exchange.clock", Severity.ERROR, server, told, advice("timedatectl set-ntp true"))
    elif isinstance(exc, errors.DDoSProtection | errors.RateLimitExceeded):
        remedy = advice("stop what sends too many requests, and wait; a ban grows with each further one")
        report.add("exchange.limits", Severity.ERROR, server, told, remedy)
    elif isinstance(exc, errors.AuthenticationError):
        remedy = advice(
            "check LOCKGUARD_EXCHANGE_API_KEY and LOCKGUARD_EXCHANGE_SECRET, and the key's list of IPs"
        )
        report.add("exchange.keys", Severity.ERROR, server, told, remedy)
    else:
        remedy = advice(f"see the status page of {settings.shown}, and whether this machine reaches it")
        report.add("exchange.unreachable", Severity.ERROR, server, told, remedy, unread=True)


async def _check_clock(client: Any, server: str, report: Report) -> None:
    if not client.has.get("fetchTime"):
        return

    async def ask() -> float:
        return float(await client.fetch_time()) / 1000

    ahead, give = (await measure(server, ask, timedelta(0))).ahead
    window_s = venue_of(client).window.total_seconds()
    behind = -ahead - give  # how far this machine's clock is certainly ahead of the exchange's
    late = ahead - give
    found = f"{apart(ahead)} this machine's, recvWindow {window_s:g} s"
    severity = Severity.OK
    if behind > _AHEAD_MAX_S or late > window_s:
        severity = Severity.ERROR
    elif behind > _AHEAD_MAX_S / 2 or late > window_s / 2:
        severity = Severity.WARNING
    if client.options.get("adjustForTimeDifference") and severity is not Severity.OK:
        severity, found = Severity.NOTE, f"{found}; adjustForTimeDifference is on"
    remedy = "" if severity is Severity.OK else "timedatectl set-ntp true"
    report.add("exchange.clock", severity, server, found, remedy)


async def _check_mode(client: Any, server: str, report: Report) -> bool:
    """Whether the account is in the mode that the flow needs, as far as the exchange tells."""
    if not (client.has.get("fetchPositionMode") and client.apiKey):
        return True
    hedged = bool((await client.fetch_position_mode()).get("hedged"))
    if hedged:
        remedy = advice(
            "close all positions and orders, then choose the one-way mode in the account's settings"
        )
        report.add("exchange.mode", Severity.ERROR, server, "hedge mode", remedy)
    else:
        report.add("exchange.mode", Severity.OK, server, "one-way mode")
    return not hedged


async def _check_key(client: Any, server: str, report: Report) -> None:
    try:
        told = await _permissions(client)
    except ccxt_errors().AuthenticationError:
        raise
    except ccxt_errors().BaseError as exc:
        told, why = None, f"{type(exc).__name__}"
    else:
        why = "ccxt has no call for it"
    if told is None:
        remedy = advice("look at the page of API keys: trading on, withdrawals off, and a list of IPs")
        report.add("exchange.permissions", Severity.NOTE, server, f"not known ({why})", remedy)
        return
    trades, withdraws, anywhere = told
    if not trades:
        remedy = advice("on the page of API keys: allow trading of futures, and check the list of IPs")
        report.add("exchange.keys", Severity.ERROR, server, "it may not trade futures", remedy)
    else:
        where = ", from any IP address" if anywhere else ""
        report.add("exchange.keys", Severity.OK, server, f"it may trade{where}")
    if withdraws:
        remedy = advice("on the page of API keys: switch withdrawals off")
        report.add("exchange.withdrawals", Severity.WARNING, server, "it may withdraw", remedy)


async def _permissions(client: Any) -> tuple[bool, bool, bool] | None:
    """Whether the key may trade, may withdraw, and works from any address; ``None`` if there is no call."""
    if str(client.id).startswith("binance"):
        told = await client.sapi_get_account_apirestrictions()
        return told["enableFutures"], told["enableWithdrawals"], not told.get("ipRestrict", True)
    if client.id == "bybit":
        told = (await client.private_get_v5_user_query_api())["result"]
        rights = told.get("permissions", {})
        trades = str(told.get("readOnly")) == "0" and "Order" in rights.get("ContractTrade", [])
        return trades, "Withdraw" in rights.get("Wallet", []), "*" in told.get("ips", [])
    return None
