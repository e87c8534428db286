"""Values: names, times, arithmetic, errors."""

from __future__ import annotations

import inspect
import re
from datetime import timedelta

import pytest

import lockguard
from lockguard import ConfigurationError, LeaseLost, LeaseNotHeld, LeaseState, LockGuard, LossReason, errors
from lockguard._lease import Grant, GrantId, Lease, Token, parse_resource
from lockguard._nodes.address import Address
from lockguard._quorum import drift_ms, majority, trusted_s
from lockguard.testing import FakeClock


@pytest.mark.parametrize(
    "name", ["binance:APTUSDT", "binance:APT/USDT:USDT", "bybit:BTC/USDT:USDT-250926", "é" * 100]
)
def test_a_reasonable_name_is_a_resource(name):
    assert parse_resource(name) == name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "needs a name"),
        ("{A}}x", "brace"),
        ("{}", "brace"),
        ("a\nb", "control"),
        ("a\x00b", "control"),
        ("x" * 300, "300 bytes"),
        ("é" * 101, "202 bytes"),
        ("\ud800", "Unicode"),
    ],
)
def test_a_name_that_would_break_the_keys_is_refused_by_name(name, told):
    with pytest.raises(ConfigurationError, match=told):
        parse_resource(name)


@pytest.mark.parametrize(("nodes", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 4)])
def test_two_majorities_share_a_node(nodes, needed):
    assert majority(nodes) == needed
    assert 2 * majority(nodes) > nodes


def test_a_lease_is_trusted_for_less_than_its_ttl():
    assert drift_ms(10_000) == 102
    assert trusted_s(10_000) == pytest.approx(9.898)


@pytest.fixture
def clock():
    return FakeClock()


def lease_until(clock, seconds):
    grant = Grant(parse_resource("r"), GrantId("0" * 32), Token(41), "h", "o", 10_000)
    return Lease(grant, deadline=clock.now() + seconds, clock=clock)


def test_a_lease_ends_at_its_deadline_and_no_renewal_brings_it_back(clock):
    lease = lease_until(clock, 10)
    assert lease.state is LeaseState.HELD
    assert lease.remaining == timedelta(seconds=10)
    clock.advance(timedelta(seconds=10))
    assert lease.state is LeaseState.LOST
    assert lease.loss is LossReason.EXPIRED
    lease.mark_renewed(clock.now() + 100)
    assert lease.state is LeaseState.LOST
    with pytest.raises(LeaseLost, match="token 41"):
        lease.ensure()


def test_a_renewal_never_shortens_a_lease(clock):
    lease = lease_until(clock, 10)
    lease.mark_unanswered()
    assert lease.state is LeaseState.UNKNOWN
    lease.mark_renewed(clock.now() + 5)
    lease.mark_wanted()
    assert lease.remaining == timedelta(seconds=10)
    assert lease.state is LeaseState.HELD
    assert lease.wanted


def test_a_released_lease_is_the_callers_bug(clock):
    lease = lease_until(clock, 10)
    lease.mark_released()
    assert lease.remaining == timedelta(0)
    with pytest.raises(LeaseNotHeld, match="'r' was released"):
        lease.ensure()


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    drawn = re.findall(r"^[ │├└]*([A-Z]\w+)", errors.__doc__, re.MULTILINE)
    classes = {
        n for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, errors.LockguardError)
    }
    assert classes == set(drawn) - {"Every", "Errors"}
    assert classes <= set(errors.__all__)
    assert classes <= set(lockguard.__all__)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ttl": timedelta(milliseconds=5)}, r"ttl=0\.005 s .*drift"),
        ({"ttl": timedelta(days=2)}, "ttl=172800 s"),
        ({"ttl": timedelta(seconds=-1)}, "ttl=-1 s"),
        ({"ttl": 10}, "ttl=10 has no unit"),
        ({"wait": timedelta(seconds=-1)}, "wait=-1 s"),
    ],
)
def test_a_guard_with_impossible_times_is_refused(options, told):
    with pytest.raises(ConfigurationError, match=told):
        LockGuard.from_url("redis://localhost", **options)


@pytest.mark.parametrize(
    "url", ["http://localhost", "localhost:6379", "redis://localhost:notaport", "redis://localhost/?db=x", ""]
)
def test_a_url_that_is_none_is_named_with_the_forms_that_work(url):
    with pytest.raises(ConfigurationError, match="redis://"):
        LockGuard.from_url(url)


def test_no_password_is_shown():
    with pytest.raises(ConfigurationError) as caught:
        LockGuard.from_url("http://bot:hunter2@localhost")
    assert "hunter2" not in str(caught.value)
    address = Address.parse("redis://bot:hunter2@localhost:6380/3")
    assert "hunter2" not in repr(address)
    assert address.name == "localhost:6380/3"
    assert (address.username, address.password) == ("bot", "hunter2")
    assert "hunter2" not in repr(LockGuard.from_url("redis://bot:hunter2@localhost"))


def test_addresses_of_each_kind_are_read():
    assert Address.parse("unix:///run/redis.sock?db=2").name == "/run/redis.sock/2"
    assert Address.parse("rediss://h:1").tls is not None
    assert Address.parse("redis://h").port == 6379


def test_a_guard_without_nodes_is_refused():
    with pytest.raises(ConfigurationError, match="at least one"):
        LockGuard([])
