"""Every check of the doctor by its stable code: what it looks at, and why that matters."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CODES", "Code"]


@dataclass(frozen=True, slots=True)
class Code:
    """One check.

    Attributes:
        subject: what is looked at, for display.
        why: why it matters, in one sentence.
    """

    subject: str
    why: str


CODES = {
    # --- any server ---
    "clock.offset": Code(
        "clock",
        "A clock that is off is set right one day, and a step forward ends the leases that a Redis"
        " keeps; until then the times of histories, audit and exchange do not fit together.",
    ),
    "clock.drift": Code(
        "clock's speed",
        "A lease's deadline allows for a clock that runs 1 % faster than the holder's; beyond that"
        " Redis drops the lock while its holder still trusts it.",
    ),
    "latency": Code(
        "round trips",
        "A lease is renewed from a third of its ttl on, so round trips that take long end leases that"
        " should go on.",
    ),
    # --- Redis ---
    "redis.unreachable": Code(
        "connection",
        "A server that does not answer keeps no locks and cannot be checked.",
    ),
    "redis.login": Code("log-in", "A bot with this URL is refused in the same way and gets no lock."),
    "redis.kind": Code(
        "kind of server",
        "The URL names another kind of server than the one that answers, so a bot refuses it.",
    ),
    "redis.replica": Code("role", "A replica takes no writes, so no lock can be had from it."),
    "redis.version": Code("version", "The scripts and the log-in need Redis 6.2 or newer, or Valkey."),
    "redis.info": Code(
        "INFO",
        "Without INFO a bot cannot tell that a server was restarted with old data, nor that two URLs"
        " are one server.",
    ),
    "redis.config": Code("CONFIG", "What CONFIG GET would say could not be read and was not checked."),
    "redis.eviction": Code(
        "maxmemory-policy",
        "An evicted key ends its lease, and another process gets the lock while the first holder is at work.",
    ),
    "redis.memory": Code("memory", "A server that reaches maxmemory refuses new locks."),
    "redis.persistence": Code(
        "persistence",
        "What a restarted server has forgotten it grants again, although the first holder is still at work.",
    ),
    "redis.writes": Code("writes", "The server refuses writes, so no lock can be acquired."),
    "redis.timeout": Code(
        "timeout",
        "The server hangs up on idle clients, so bots reconnect again and again, and each time a"
        " renewal may be late.",
    ),
    "redis.clients": Code(
        "clients",
        "At maxclients the server refuses the connections of bots that start or reconnect.",
    ),
    "redis.rights": Code(
        "rights",
        "A command that the ACL refuses to the bot fails in the scripts that keep the lock.",
    ),
    "redis.options": Code(
        "optional rights",
        "It works without them, at the cost that the page on least privilege describes.",
    ),
    "redis.scripts": Code(
        "scripts",
        "The scripts that keep the lock fail on this server as they would for a bot.",
    ),
    "redis.keys": Code(
        "keys",
        "A key of another type, or a lock that never expires, makes calls for that resource fail for good.",
    ),
    "redis.protocol": Code(
        "protocol",
        "With RESP2 each bot needs two connections, and is not told when the data are flushed.",
    ),
    "redis.tls": Code(
        "encryption",
        "Without TLS the password and all locks cross the network in clear text.",
    ),
    # --- replication ---
    "replicas.none": Code(
        "replicas",
        "Without a replica there is nothing to fail over to: when this server is gone, so are its locks.",
    ),
    "replicas.link": Code(
        "replicas",
        "A replica that does not follow its master knows no newer grant, and would forget it when promoted.",
    ),
    "replicas.required": Code(
        "min-replicas-to-write",
        "A master that is cut off from its replicas goes on granting locks that the next master knows"
        " nothing of.",
    ),
    "replicas.wanted": Code(
        "min_replicas",
        "A lock counts as granted only when that many replicas have it, so none is granted.",
    ),
    "replicas.unread": Code(
        "replicas",
        "Replicas that the Sentinels do not tell are not looked at, and any of them may be the next master.",
    ),
    "sentinel.unreachable": Code(
        "Sentinel",
        "A failover needs the majority of the Sentinels, and this one does not answer.",
    ),
    "sentinel.number": Code(
        "Sentinels",
        "Sentinels elect a leader by majority; fewer than three cannot lose one, and an unmet quorum"
        " never fails over.",
    ),
    "sentinel.named": Code(
        "Sentinels",
        "A bot that knows only some of the Sentinels finds no master when these are gone.",
    ),
    "sentinel.master": Code(
        "master",
        "Bots that follow different masters get the same lock at the same time.",
    ),
    "sentinel.down_after": Code(
        "down-after-milliseconds",
        "When the master fails, leases end before the Sentinels have promoted a replica.",
    ),
    "cluster.coverage": Code("slots", "A resource whose slot no shard serves cannot be locked."),
    # --- several independent servers ---
    "quorum.named": Code(
        "members",
        "A majority is counted over all servers that decide together; who counts over others may win"
        " a second majority.",
    ),
    "quorum.same_server": Code("members", "A server that counts twice makes a majority out of a minority."),
    "quorum.number": Code(
        "members",
        "An even number of servers survives the loss of no more than one fewer would.",
    ),
    "quorum.quarantine": Code(
        "membership",
        "A server that may have forgotten a lock gives no vote, so fewer failures are survived until"
        " it is back.",
    ),
    "quorum.majority": Code(
        "majority", "Without the votes of a majority of its servers no lock can be acquired."
    ),
    # --- Postgres ---
    "postgres.unreachable": Code(
        "connection",
        "Without the database no lease can be sealed, so no guarded body begins.",
    ),
    "postgres.login": Code("log-in", "A bot with this URL is refused in the same way and can write nothing."),
    "postgres.version": Code("version", "The fence needs PostgreSQL 13 or newer."),
    "postgres.schema": Code(
        "schema",
        "The library calls functions of its own schema version; older ones lack some of them.",
    ),
    "postgres.rights": Code(
        "rights",
        "What the role may not do fails when a bot needs it: to take a lease, or to write under it.",
    ),
    "postgres.protection": Code(
        "protected tables",
        "Where a protection does not hold, a row changes without a lease and nobody is refused.",
    ),
    "postgres.unprotected": Code(
        "tables",
        "Only code that presents its lease is checked there; any other writer, psql included, is not.",
    ),
    "postgres.statement_timeout": Code(
        "statement_timeout",
        "A write stands in line behind a seal, a close or a break, and this timeout cancels it there.",
    ),
    "postgres.idle_timeout": Code(
        "idle_in_transaction_session_timeout",
        "The session of a body that waits for an exchange in its transaction is ended.",
    ),
    "postgres.lock_timeout": Code(
        "lock_timeout",
        "A seal waits for the transactions of the last holder, and this timeout cancels it there.",
    ),
    "postgres.transaction_timeout": Code(
        "transaction_timeout",
        "It ends the transaction of a body that its lease would still allow.",
    ),
    "postgres.read_only": Code(
        "writes",
        "A seal is a write: on a standby, or read only, no lease can be taken.",
    ),
    "postgres.durability": Code(
        "durability",
        "A seal that was answered and is forgotten in a crash lets writes of an older holder pass.",
    ),
    "postgres.standby": Code(
        "synchronous standby",
        "Each COMMIT waits for the standby, so no lease is sealed and no write ends.",
    ),
    "postgres.pooler": Code(
        "pooler",
        "A check and its write are one transaction, and statements may reach another session than the"
        " last one did.",
    ),
    "postgres.growth": Code(
        "table growth",
        "Every write changes a row of the fence; dead rows that stay make each lease and each write slower.",
    ),
    "postgres.connections": Code(
        "connections",
        "At max_connections the server refuses the connections of bots that start or reconnect.",
    ),
    # --- the exchange ---
    "exchange.unreachable": Code(
        "connection",
        "Without the exchange no order can be sent, found or taken back.",
    ),
    "exchange.keys": Code("API key", "A key that may not trade opens nothing and, worse, closes nothing."),
    "exchange.withdrawals": Code(
        "API key",
        "A bot never withdraws; with this permission a stolen key empties the account.",
    ),
    "exchange.permissions": Code(
        "API key",
        "What the key may do could not be looked up for this exchange.",
    ),
    "exchange.clock": Code(
        "clock",
        "The exchange refuses requests whose time is outside of its receive window, stops included.",
    ),
    "exchange.mode": Code(
        "position mode",
        "The flow keeps one position for each symbol; in hedge mode orders and stops are refused.",
    ),
    "exchange.markets": Code(
        "markets",
        "An open position in a market that does not trade cannot be closed by the bot.",
    ),
    "exchange.limits": Code(
        "rate limit",
        "Requests beyond the limit are refused, and a ban stops all orders for minutes to days.",
    ),
    # --- positions ---
    "positions.schema": Code(
        "table",
        "The bot's flow needs its tables in the version that it was written for.",
    ),
    "positions.without_stop": Code(
        "stops",
        "A position without a stop has no bound on its loss while no bot looks after it.",
    ),
    "positions.on_their_way": Code(
        "open rows",
        "A row that stays on its way was left by a process that died; nothing goes on with it but a"
        " recovery.",
    ),
    "positions.wrong": Code(
        "positions",
        "Table and exchange do not agree, so the bot acts on what is not so.",
    ),
    "positions.unread": Code(
        "positions",
        "What could not be read was not compared, so nothing is known of it.",
    ),
}
