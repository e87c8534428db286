"""Redis URLs: what can be read is read, nothing is passed over, and what cannot be read is never shown."""

from __future__ import annotations

import traceback
import warnings
from urllib.parse import quote

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from lockguard import ConfigurationError, LockGuard
from lockguard._nodes.address import Address
from lockguard._nodes.cluster import seeds_of
from lockguard._nodes.sentinel import SentinelUrl

SCHEMES = {
    "redis": "redis://{}h:1/0",
    "rediss": "rediss://{}h:1/0",
    "unix": "unix://{}/run/redis.sock",
    "redis+sentinel": "redis+sentinel://{}h:1,i:2/main/0",
    "redis+cluster": "redis+cluster://{}h:1,i:2",
}


def refusal(url, make=LockGuard.from_url):
    """What the user reads of a URL that cannot work, and what a log of it would show."""
    with pytest.raises(ConfigurationError) as caught:
        make(url)
    line = str(caught.value)
    assert "\n" not in line
    assert line.isprintable()
    return line, "".join(traceback.format_exception(caught.value, chain=True)).split("ConfigurationError", 1)[
        1
    ]


@pytest.mark.parametrize(
    ("url", "told", "remedy"),
    [
        (None, "is None", "see whether the variable"),
        ("", "is empty", "see whether the variable"),
        ("  ", "is empty", "see whether the variable"),
        ("\n", "is empty", "see whether the variable"),
        (b"redis://localhost", "is a bytes", "as text"),
        (6379, "is an int", "as text"),
        (["redis://a", "redis://b"], "takes one URL", "LockGuard.from_urls"),
        ("localhost:6379", "has no scheme", "write redis://"),
        ("redis:/localhost", "has no scheme", "write redis://"),
        ("http://localhost", "begins with http://", "write redis://"),
        ("postgres://localhost/bot", "begins with postgres://", "write redis://"),
        ("valkey://localhost", "begins with valkey://", "write redis://"),
        (" redis://localhost", "blank", "strip it"),
        ("redis://localhost\n", "line end", "strip it"),
        ("redis://local host", "blank", "write %20"),
        ("redis://localhost\u200b", "unprintable", "strip it"),
        ("redis://", "names no host", "write redis://localhost:6379"),
        ("redis://:6379", "names no host", "see whether the variable for it is set"),
        ("redis:///0", "names no host", "write redis://localhost:6379"),
        ("redis://localhost:", None, None),
        ("redis://localhost:port", "port that is no number", "redis://host:port"),
        ("redis://localhost:0", "port that is no number from 1 to 65535", "redis://host:port"),
        ("redis://localhost:70000", "port that is no number from 1 to 65535", "redis://host:port"),
        ("redis://::1:6379", "names no host", "write redis://localhost"),
        ("redis://fe80::1:6379", "port that is no number", "[::1]:port for IPv6"),
        ("redis://[::1", "'[' without its ']'", "[::1]:6379"),
        ("redis://[::1]6379", "'[' without its ']'", "[::1]:6379"),
        ("redis://localhost/prod", "database that is no number", "write /0"),
        ("redis://localhost/-1", "database that is no number", "write /0"),
        ("redis://localhost/0/1", "database that is no number", "write /0"),
        ("redis://localhost/\u0663", "database that is no number", "write /0"),
        ("redis://localhost?db=prod", "database that is no number", "write /0"),
        ("redis://localhost/1?db=2", "names two databases", "leave the option db out"),
        ("redis://localhost?protocl=2", "the option protocl, which is not known", "did you mean protocol?"),
        (
            "redis://localhost?socket_timeout=5",
            "the option socket_timeout, which is not known",
            "leave it out",
        ),
        ("redis://localhost?protocol=4", "protocol that is neither 2 nor 3", "2 nor 3"),
        ("redis://localhost?protocol=2&protocol=3", "the option protocol twice", "leave one out"),
        ("redis://localhost?protocol=", "option protocol without a value", "leave it out"),
        ("redis://localhost?protocol", "something else than option=value", "%3F"),
        ("redis://localhost?ssl_ca_certs=/x", "ssl_ca_certs, which is for TLS", "write rediss://"),
        (
            "rediss://localhost?ssl_ca_certs=/not/there",
            "ssl_ca_certs='/not/there', which is no file",
            "the path",
        ),
        (
            "rediss://localhost?ssl_cert_reqs=nonee",
            "ssl_cert_reqs that is none of",
            "required, optional, none",
        ),
        ("rediss://localhost?ssl_check_hostname=maybe", "ssl_check_hostname that is none of", "true"),
        ("rediss://localhost?ssl_keyfile=/etc/hosts", "ssl_keyfile without an ssl_certfile", "give both"),
        ("rediss://localhost?ssl_ca_certs=/etc/hosts", "TLS files that cannot be read", "TLS"),
        ("unix://run/redis.sock", "names no socket", "with three slashes"),
        ("unix://", "names no socket", "unix:///path/to/socket"),
        ("unix:///", "names no socket", "unix:///path/to/socket"),
        ("unix:///run/a%0ab.sock", "unprintable character in its path", "leave it out"),
        ("redis+sentinel://a:1", "does not say whom the Sentinels watch", "redis+sentinel://host:port"),
        ("redis+sentinel://a:1/main/prod", "database that is no number", "write /0"),
        ("redis+sentinel://a:x/main", "port that is no number", "redis://host:port"),
        ("redis+sentinel://a:1,,b:2/main", "names no host", "write redis://localhost"),
        (
            "redis+sentinel://a:1/main?username=u",
            "the option username, which is not known",
            "sentinel_username",
        ),
        ("redis+cluster://a:1/prod", "is not a cluster's", "without a database"),
        ("redis+cluster://a:1,b:x", "port that is no number", "redis://host:port"),
        ("redis+cluster://a:1?db=1", "the option db, which is not known", "leave it out"),
    ],
)
def test_each_mistake_in_a_url_is_told_in_one_line_with_the_remedy(url, told, remedy):
    if told is None:
        LockGuard.from_url(url)
        return
    line, _ = refusal(url)
    assert told in line
    assert remedy in line


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "raw", ["@", "/", "#", "?", "%", "%zz", " ", "\n", ":", ",", "[", "]", "&", "=", "://"]
)
@pytest.mark.parametrize("user", ["", "bot"])
def test_a_raw_character_in_a_password_is_read_or_refused_and_no_piece_of_it_is_shown(scheme, raw, user):
    password = f"hunter{raw}twelve"
    url = SCHEMES[scheme].format(f"{user}:{password}@")
    address, refused = _read(scheme, url)
    if refused is None:
        assert address.password == password
        return
    shown = "".join(traceback.format_exception(refused))
    assert "hunter" not in shown
    assert "twelve" not in shown
    assert "write %" in shown or "strip it" in shown


def _read(scheme, url):
    """The address that a URL gives, or why it gives none."""
    try:
        return _address(scheme, url), None
    except ConfigurationError as exc:
        return None, exc


def _address(scheme, url):
    if scheme == "redis+sentinel":
        return SentinelUrl.parse(url).master
    return seeds_of(url)[0] if scheme == "redis+cluster" else Address.parse(url)


_SECRET = st.text(
    alphabet=st.characters(exclude_categories=("Cs",)) | st.sampled_from("@/#?%:,[]&=+ \n"), min_size=1
)


@settings(max_examples=300, deadline=None, database=None)
@given(st.sampled_from(sorted(SCHEMES)), _SECRET, _SECRET)
def test_an_encoded_user_and_password_are_read_as_they_are(scheme, user, password):
    url = SCHEMES[scheme].format(f"{quote(user, safe='')}:{quote(password, safe='')}@")
    address = _address(scheme, url)
    assert (address.username, address.password) == (user, password)


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.sampled_from(sorted(SCHEMES)),
    st.text(alphabet="0123456789@/#?%:,[]&=+ h.", max_size=8),
    st.text(alphabet="0123456789@/#?%:,[]&=+ h.", max_size=8),
)
def test_nothing_of_a_password_is_shown_wherever_its_raw_characters_stand(scheme, before, after):
    url = SCHEMES[scheme].format(f"bot:{before}hunter{after}@")
    address, refused = _read(scheme, url)
    shown = f"{address!r} {address.name}" if address else "".join(traceback.format_exception(refused))
    assert "hunter" not in shown


@pytest.mark.parametrize(
    ("url", "host", "port", "db", "user", "password", "protocol"),
    [
        ("redis://h", "h", 6379, 0, None, None, 3),
        ("REDIS://H:1/", "h", 1, 0, None, None, 3),
        ("redis://:pw@h/3", "h", 6379, 3, None, "pw", 3),
        ("redis://bot@h", "h", 6379, 0, "bot", "", 3),
        ("redis://:@h", "h", 6379, 0, None, None, 3),
        ("redis://bot:p%40w@[::1]:7?protocol=2", "::1", 7, 0, "bot", "p@w", 2),
        ("redis://h?db=2&username=u&password=p", "h", 6379, 2, "u", "p", 3),
        ("redis://h/2?db=2", "h", 6379, 2, None, None, 3),
    ],
)
def test_what_a_url_says_is_read(url, host, port, db, user, password, protocol):
    address = Address.parse(url)
    assert (address.host, address.port, address.db) == (host, port, db)
    assert (address.username, address.password, address.protocol) == (user, password, protocol)
    assert "pw" not in repr(address)


def test_a_socket_may_have_an_at_sign_and_credentials():
    assert Address.parse("unix:///run/a@b/redis.sock?db=2").name == "/run/a@b/redis.sock/2"
    address = Address.parse("unix://bot:pw@/run/redis.sock")
    assert (address.path, address.username, address.password) == ("/run/redis.sock", "bot", "pw")


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("h")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hunter2"),
        )
    )
    (tmp_path / "cert.pem").write_bytes(certificate.cert_chain_pems[0].bytes())
    line, _ = refusal(f"rediss://h?ssl_certfile={tmp_path}/cert.pem&ssl_keyfile={tmp_path}/key.pem")
    assert "passphrase" in line


# Several URLs.


@pytest.mark.parametrize(
    ("urls", "told"),
    [
        ("redis://:hunter2@a", "takes a list; for one URL write LockGuard.from_url(url)"),
        (b"redis://:hunter2@a", "takes a list"),
        (None, "takes a list of Redis URLs; got None"),
        (7, "got an int"),
        ([], "got an empty one"),
        (["redis://a", None, "redis://b"], "URL 2 of 3: the Redis URL is None"),
        (
            ["redis://a", "redis://u:hunter2/x@b", "redis://c"],
            "URL 2 of 3: the Redis URL has an '@' behind a '/'",
        ),
        (["redis://a", "redis+cluster://b", "redis://c"], "redis+cluster:// is not one: use redis:// URLs"),
        (["redis://A:6379", "redis://b", "redis://:hunter2@a./2"], "given twice; a server has one vote"),
    ],
)
def test_each_mistake_in_several_urls_is_told_in_one_line(urls, told):
    line, shown = refusal(urls, LockGuard.from_urls)
    assert told in line
    assert "hunter2" not in shown


def test_several_urls_may_come_from_any_iterable_and_an_even_number_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LockGuard.from_urls(f"redis://h{number}" for number in range(3))
    with pytest.warns(UserWarning, match="use an odd number") as caught:
        LockGuard.from_urls(["redis://a", "redis://b"])
    assert caught[0].filename == __file__


@pytest.mark.parametrize("count", [-1, 1.5, True, None, "1"])
def test_min_replicas_is_a_whole_number(count):
    with pytest.raises(ConfigurationError, match=r"min_replicas=.* write a whole number"):
        LockGuard.from_url("redis://h", min_replicas=count)
