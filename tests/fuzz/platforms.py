"""How twenty and more platforms name their markets: samples of each kind, as ccxt lists them.

In a form, ``{b}`` is the coin as the exchange calls it. The unified symbol has the coin as ccxt calls it,
which may be another: Bitmex's ``XBT`` is ``BTC``, Bitget's ``OMNI`` is ``omni``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["PLATFORMS", "Listed", "coins_of", "listed"]

SPOT, SWAP, USDC, COIN, DATED, COIN_DATED, OPTION, USD = (
    "{c}/USDT",
    "{c}/USDT:USDT",
    "{c}/USDC:USDC",
    "{c}/USD:{c}",
    "{c}/USDT:USDT-261225",
    "{c}/USD:{c}-261225",
    "{c}/USD:{c}-261225-100-C",
    "{c}/USD:USD",
)
PLATFORMS: dict[str, tuple[tuple[str, str], ...]] = {
    "binance": (
        *(("{b}USDT", SPOT), ("{b}USDT", SWAP), ("{b}USDC", USDC), ("{b}USD_PERP", COIN)),
        *(("{b}USDT_261225", DATED), ("{b}USD_261225", COIN_DATED), ("{b}-261225-100-C", OPTION)),
    ),
    "bybit": (
        *(("{b}USDT", SPOT), ("{b}USDC", "{c}/USDC"), ("{b}USDT", SWAP), ("{b}PERP", USDC), ("{b}USD", COIN)),
        *(("{b}USDT-25DEC26", DATED), ("{b}USDZ26", COIN_DATED), ("{b}-25DEC26-100-C", OPTION)),
    ),
    "okx": (
        *(("{b}-USDT", SPOT), ("{b}-USDT-SWAP", SWAP), ("{b}-USDC-SWAP", USDC), ("{b}-USD-SWAP", COIN)),
        *(("{b}-USDT-261225", DATED), ("{b}-USD-261225", COIN_DATED), ("{b}-USD-261225-100-C", OPTION)),
    ),
    "bitget": (
        ("{b}USDT", SPOT),
        ("{b}USDT", SWAP),
        ("{b}PERP", USDC),
        ("{b}USD", COIN),
        ("{b}USDZ26", COIN_DATED),
    ),
    "gate": (
        *(("{b}_USDT", SPOT), ("{b}_USDT", SWAP), ("{b}_USD", COIN), ("{b}_USDT_20261225", DATED)),
        ("{b}_USDT-20261225-100-C", "{c}/USDT:USDT-261225-100-C"),
    ),
    "mexc": (("{b}USDT", SPOT), ("{b}_USDT", SWAP), ("{b}_USD", COIN)),
    "kucoin": (("{b}-USDT", SPOT), ("{b}USDTM", SWAP), ("{b}USDM", COIN), ("{b}MZ26", COIN_DATED)),
    "htx": (
        ("{b}usdt", SPOT),
        ("{b}-USDT", SWAP),
        ("{b}-USD", COIN),
        ("{b}-USDT-261225", DATED),
        ("{b}261225", COIN_DATED),
    ),
    "kraken": (("{b}USDT", SPOT), ("X{b}ZUSD", "{c}/USD")),
    "krakenfutures": (
        ("PF_{b}USD", USD),
        ("PI_{b}USD", COIN),
        ("FI_{b}USD_261225", COIN_DATED),
        ("FF_{b}USD_261225", "{c}/USD:USD-261225"),
    ),
    "bitmex": (
        ("{b}_USDT", SPOT),
        ("{b}USDT", SWAP),
        ("{b}USD", COIN),
        ("{b}Z26", COIN_DATED),
        ("{b}USDTZ26", DATED),
    ),
    "deribit": (
        *(("{b}_USDC", "{c}/USDC"), ("{b}-PERPETUAL", COIN), ("{b}_USDC-PERPETUAL", USDC)),
        *(("{b}-25DEC26", COIN_DATED), ("{b}-25DEC26-100-C", OPTION)),
    ),
    "phemex": (("s{b}USDT", SPOT), ("{b}USDT", SWAP), ("{b}USD", COIN), ("c{b}USD", "{c}/USD:USD")),
    "bitfinex": (("t{b}UST", SPOT), ("t{b}F0:USTF0", SWAP)),
    "hyperliquid": (("{n}", USDC), ("@{n}", "{c}/USDC"), ("{b}/USDC", "U{c}/USDC")),
    "coinbase": (("{b}-USD", "{c}/USD"), ("{b}-PERP-INTX", USDC), ("{b}-25DEC26-CDE", "{c}/USD:USD-261225")),
    "bingx": (("{b}-USDT", SPOT), ("{b}-USDT", SWAP), ("{b}-USD", COIN)),
    "bitmart": (("{b}_USDT", SPOT), ("{b}USDT", SWAP)),
    "coinex": (("{b}USDT", SPOT), ("{b}USDT", SWAP), ("{b}USD", COIN)),
    "woo": (("SPOT_{b}_USDT", SPOT), ("PERP_{b}_USDT", SWAP)),
    "dydx": (("{b}-USD", "{c}/USD:USDC"),),
    "cryptocom": (("{b}_USDT", SPOT), ("{b}USD-PERP", USD), ("{b}USD-261225", "{c}/USD:USD-261225")),
    "delta": (
        ("{b}_USDT", SPOT),
        ("{b}USD", USD),
        ("{b}USDT", SWAP),
        ("C-{b}-100-261225", "{c}/USD:USD-261225-100-C"),
    ),
    "ascendex": (("{b}/USDT", SPOT), ("{b}-PERP", SWAP)),
    "digifinex": (("{b}_USDT", SPOT), ("{b}USDTPERP", SWAP)),
}
_COINS = (
    *(
        ("BTC", "BTC"),
        ("XBT", "BTC"),
        ("ETH", "ETH"),
        ("1000PEPE", "1000PEPE"),
        ("kPEPE", "kPEPE"),
        ("PEPE", "PEPE"),
    ),
    *(
        ("OMNI", "omni"),
        ("DEGEN", "DegenReborn"),
        ("JADE", "Jade Protocol"),
        ("LUNA", "LUNC"),
        ("LUNA2", "LUNA"),
    ),
    *(
        ("A", "A"),
        ("AB", "AB"),
        ("USD", "USD"),
        ("USDC", "USDC"),
        ("XUSD", "XUSD"),
        ("B", "B"),
        ("BUSD", "BUSD"),
    ),
    *(("FLUX1", "FLUX"), ("FLUX", "FLUX1"), ("4", "4"), ("1INCH", "1INCH"), ("s", "s"), ("S", "S")),
    *(
        ("\u5e01\u5b89", "\u5e01\u5b89"),
        ("\u0131", "\u0131"),
        ("$", "$"),
        ("FUD", "FTX Users' Debt"),
        ("A-B", "A-B"),
    ),
)


def coins_of(venue: str) -> tuple[tuple[str, str], ...]:
    """Coins as an exchange and as ccxt call them; one coin has one name in each."""
    return _COINS if venue not in ("mexc", "okx") else tuple(one for one in _COINS if one[0] != "XBT")


@dataclass(eq=False)
class Listed:
    """What the functions for names need of a ccxt exchange with its markets loaded."""

    id: str
    markets: dict[str, dict[str, Any]] = field(default_factory=dict)
    markets_by_id: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def listed(venue: str, coins: list[tuple[str, str]]) -> Listed:
    """An exchange that lists these coins in every kind of market that it has."""
    found = Listed(venue)
    for number, (coin, unified) in enumerate(coins):
        for name, symbol in PLATFORMS[venue]:
            market = _market(name.format(b=coin, n=number), symbol.format(c=unified))
            if market["symbol"] not in found.markets:
                found.markets[market["symbol"]] = market
                found.markets_by_id.setdefault(market["id"], []).append(market)
    return found


def _market(name: str, symbol: str) -> dict[str, Any]:
    pair, _, rest = symbol.partition(":")
    settle, dated, _ = rest.partition("-")
    quote = pair.rpartition("/")[2]
    kind = "spot" if not rest else "swap" if not dated else "option" if rest.endswith("-C") else "future"
    return {
        "id": name,
        "symbol": symbol,
        "quote": quote,
        "settle": settle or None,
        "type": kind,
        kind: True,
        "contract": kind != "spot",
        "linear": settle == quote if rest else None,
        "inverse": settle != quote if rest else None,
    }
