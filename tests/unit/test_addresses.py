"""Which addresses of Redis, MongoDB and web services are valid; an invalid one is refused before a client connects."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from pipeline.addresses import RedisServers, mongodb_fault, redis_fault, redis_servers, web_fault

PASSWORD = "s3cretWord"

VALID_REDIS = [
    ("redis://localhost", "the shortest address"),
    ("redis://localhost:6379", "with a port"),
    ("REDIS://localhost", "a scheme in capital letters"),
    ("redis://localhost:6379/", "an empty path is database 0"),
    ("redis://localhost/15", "with a database"),
    ("redis://localhost?db=3", "the database in the query"),
    ("redis://:pw@localhost", "a password without a user"),
    ("redis://user:p%40ss%2Fw@localhost:1/0", "an encoded password"),
    ("redis://:p@ss@localhost", "a bare @ in the password: the last @ ends it"),
    ("redis://[::1]:6379/0", "IPv6"),
    ("rediss://redis.example:6380?ssl_cert_reqs=required&ssl_ca_certs=/etc/ca.pem", "TLS with its options"),
    ("redis://h?client_name=photos&socket_connect_timeout=1.5", "allowed options"),
    ("unix:///run/redis.sock", "a socket in the file system"),
    ("unix://user:pw@/run/redis.sock?db=2", "a socket with a user and a database"),
]
SEVERAL_REDIS = [
    ("redis://h", RedisServers("redis://h"), "the address of one server stays as it is"),
    (
        "rediss://u:p%40@a,[::1]:7000/0?ssl_cert_reqs=none",
        RedisServers("rediss://u:p%40@a/0?ssl_cert_reqs=none", (("a", 6379), ("::1", 7000))),
        "nodes of a cluster, with TLS and a user",
    ),
    (
        "redis+sentinel://u:p@a,b:1/photos/3?sentinel_username=s&sentinel_password=t%26",
        RedisServers(
            "redis://u:p@a/3?", (("a", 26379), ("b", 1)), "redis://a?username=s&password=t%26", "photos"
        ),
        "Sentinels with a login of their own; they have no databases",
    ),
    (
        "rediss+sentinel://a/photos?ssl_ca_certs=/ca.pem&db=2",
        RedisServers(
            "rediss://a/?ssl_ca_certs=%2Fca.pem&db=2",
            (("a", 26379),),
            "rediss://a?ssl_ca_certs=%2Fca.pem",
            "photos",
        ),
        "one Sentinel, TLS to it and to the servers",
    ),
    (
        "redis+sentinel://u:p@a/photos",
        RedisServers("redis://u:p@a/?", (("a", 26379),), "redis://a?", "photos", "redis://u:p@a?"),
        "Sentinels that may require the login of the servers",
    ),
]
BAD_REDIS = [
    ("redis://a,b/1", "a cluster has one database", "only database 0"),
    ("redis://a,", "a host missing", "needs a host"),
    ("redis://a,b:x", "the second port", "the port must be"),
    ("redis+sentinel://a,b", "no name of a master", "name of the master"),
    ("redis+sentinel://a/0/photos", "database and name in the wrong order", "number of a database"),
    ("redis://h?sentinel_password=x", "a login for Sentinels without Sentinels", "may be db"),
    ("localhost:6379", "no scheme", "must look like redis://"),
    ("localhost", "a bare host", "must look like redis://"),
    ("http://localhost", "another scheme", "must look like redis://"),
    ("redis:localhost", "no slashes", "must look like redis://"),
    ("redis://", "nothing after the scheme", "needs a host"),
    ("redis://:6379", "a port only", "needs a host"),
    (f"redis://:{PASSWORD}@", "a password only", "needs a host"),
    ("redis://h:", "an empty port", "the port must be"),
    ("redis://h:0", "port 0", "the port must be"),
    ("redis://h:65536", "a port too high", "the port must be"),
    ("redis://h:" + "9" * 5000, "more digits than Python converts", "the port must be"),
    ("redis://h:six", "a port in words", "the port must be"),
    ("redis://h:६३", "digits of another script", "the port must be"),
    (f"redis://user:{PASSWORD}/x@h", "a bare slash in the password", "%2F"),
    (f"redis://user:{PASSWORD}?x@h", "a bare question mark in the password", "%3F"),
    (f"redis://user:{PASSWORD}#x@h", "a bare # in the password", "contains a #"),
    (f"redis://user:{PASSWORD}%zz@h", "a bare % in the password", "hexadecimal"),
    (f"redis://user:{PASSWORD}%ff@h", "bytes that are not UTF-8", "UTF-8"),
    (f"redis://user:{PASSWORD} x@h", "a blank", "a blank"),
    (f"redis://user:{PASSWORD}\n@h", "a line end, as at the end of a file", "cannot be printed"),
    ("redis://::1:6379", "IPv6 without brackets", "brackets"),
    ("redis://[::1", "a bracket that does not close", "brackets"),
    ("redis://[nonsense]", "no IPv6 in brackets", "no IPv6"),
    ("redis://h/staging", "redis-py would take database 0", "number of a database"),
    ("redis://h/1/2", "a longer path", "number of a database"),
    ("redis://h/-1", "a negative number", "number of a database"),
    ("redis://h/1?db=2", "two databases", "named twice"),
    ("redis://h?db=x", "redis-py would take database 0", "db has no valid value"),
    ("redis://h?db=1&db=2", "an option twice", "given twice"),
    ("redis://h?db", "an option without a value", "NAME=VALUE"),
    ("redis://h?protocol=3", "an option that would override one of the service", "may be db"),
    ("redis://h?ssl_cert_reqs=none", "TLS options without TLS", "may be db"),
    ("rediss://h?ssl_cert_reqs=perhaps", "a value redis-py does not know", "ssl_cert_reqs has no valid value"),
    ("rediss://h?ssl_check_hostname=1", "redis-py would take any text for true", "ssl_check_hostname"),
    ("redis://h?socket_connect_timeout=0", "a timeout of zero", "socket_connect_timeout"),
    ("unix://run/redis.sock", "two slashes, so a host", "unix:///PATH"),
    ("unix://", "no path", "unix:///PATH"),
]
VALID_MONGODB = [
    ("mongodb://localhost", "the shortest address"),
    ("mongodb://user:p%40ss@a:27017,b:27018/photos?replicaSet=rs0", "a replica set"),
    ("mongodb://[::1]:27017/photos", "IPv6"),
    ("mongodb://%2Ftmp%2Fmongodb.sock/photos", "a socket in the file system"),
    ("mongodb+srv://user:pw@cluster.example/photos?retryWrites=true", "hosts from DNS"),
]
BAD_MONGODB = [
    ("postgres://h/photos", "another database", "must look like mongodb://"),
    ("localhost:27017", "no scheme", "must look like mongodb://"),
    ("MONGODB://h", "the driver accepts the scheme in small letters only", "must look like mongodb://"),
    ("mongodb://", "no host", "needs a host"),
    ("mongodb://a,", "a host missing", "needs a host"),
    ("mongodb://a:0", "port 0", "the port must be"),
    ("mongodb://a:27017,b:x", "the second port", "the port must be"),
    (f"mongodb://user:{PASSWORD}/x@h", "a bare slash in the password", "%2F"),
    (f"mongodb://user:{PASSWORD}@x@h", "a bare @, which the driver refuses", "bare @"),
    (f"mongodb://user:{PASSWORD}%@h", "a bare %", "hexadecimal"),
    ("mongodb://h/photos.staging", "the driver would take the database photos", "name of a database"),
    ("mongodb://h/photos/staging", "a longer path", "name of a database"),
    ("mongodb+srv://a,b", "a list of hosts, which DNS provides", "one host name"),
    ("mongodb+srv://a:27017", "a port, which DNS provides", "one host name"),
]
BAD_WEB = [
    ("ai.example.com", "no scheme", "must be an http://"),
    ("ftp://ai.example.com", "another scheme", "must be an http://"),
    ("http://", "no host", "needs a host"),
    ("http://:80", "a port only", "needs a host"),
    ("http://h:x", "a port in words", "the port must be"),
    ("http://[::", "a bracket that does not close", "brackets"),
    ("http://h/a b", "a blank", "a blank"),
    ("http://h/%", "a broken escape", "hexadecimal"),
    (f"http://user:{PASSWORD}/x@h", "a bare slash in the password", "the port must be"),
]


@pytest.mark.fault("E23")
@pytest.mark.parametrize("url", [url for url, _ in VALID_REDIS], ids=[remark for _, remark in VALID_REDIS])
def test_valid_redis_address_is_accepted_also_by_redis_py(url: str) -> None:
    """The driver can read each address that the check accepts."""
    assert redis_fault(url) == ""
    Redis.from_url(url)


@pytest.mark.fault("R2")
@pytest.mark.parametrize(("url", "servers"), [(u, s) for u, s, _ in SEVERAL_REDIS], ids=[r for *_, r in SEVERAL_REDIS])
def test_address_of_several_servers_is_split(url: str, servers: RedisServers) -> None:
    """The address is split into addresses of a server and of a Sentinel that the driver can read."""
    assert redis_fault(url) == ""
    assert redis_servers(url) == servers
    for each in filter(None, (servers.url, servers.sentinel_url, servers.shared_url)):
        Redis.from_url(each)


@pytest.mark.fault("E23")
@pytest.mark.fault("E28")
@pytest.mark.parametrize(("url", "part"), [(u, p) for u, _, p in BAD_REDIS], ids=[r for _, r, _ in BAD_REDIS])
def test_bad_redis_address_is_refused_without_its_password(url: str, part: str) -> None:
    """The message says what is wrong and how to write a password; it does not contain the password."""
    fault = redis_fault(url)
    assert part in fault and PASSWORD not in fault


@pytest.mark.fault("E28")
@pytest.mark.parametrize("uri", [uri for uri, _ in VALID_MONGODB], ids=[remark for _, remark in VALID_MONGODB])
def test_valid_mongodb_uri_is_accepted(uri: str) -> None:
    """The check accepts an address that the driver can read."""
    assert mongodb_fault(uri) == ""


@pytest.mark.fault("E28")
@pytest.mark.parametrize(("uri", "part"), [(u, p) for u, _, p in BAD_MONGODB], ids=[r for _, r, _ in BAD_MONGODB])
def test_bad_mongodb_uri_is_refused_without_its_password(uri: str, part: str) -> None:
    """The message says what is wrong; it does not contain the password."""
    fault = mongodb_fault(uri)
    assert part in fault and PASSWORD not in fault


@pytest.mark.fault("E28")
@pytest.mark.parametrize(("url", "part"), [(u, p) for u, _, p in BAD_WEB], ids=[r for _, r, _ in BAD_WEB])
def test_bad_web_address_is_refused(url: str, part: str) -> None:
    """The message says what is wrong, also where urlsplit raises an exception."""
    fault = web_fault(url)
    assert part in fault and PASSWORD not in fault


@pytest.mark.fault("E28")
@pytest.mark.parametrize("url", ["http://h", "https://user:pw@h:8443/a?b=c#d", "http://[::1]:8080/"])
def test_valid_web_address_is_accepted(url: str) -> None:
    """An address may have a user, a port, a path, a query and a fragment."""
    assert web_fault(url) == ""
