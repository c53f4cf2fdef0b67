"""Who may ask: names, origins, kinds of bodies, keys; and what clients can do to each other."""

import asyncio
import json

import httpx
import pytest
from serving import asking, connection, serving

from gptoss import Error
from gptoss.cli import main
from gptoss.server.api.app import ServerOptions, create_app
from gptoss.server.connections import Connections
from gptoss.server.front.app import FrontOptions, Unreached, create_front
from gptoss.server.front.router import Router, survey
from gptoss.server.who import Hosts, check_keys, is_loopback, network_of

LOOPBACK = Hosts.of("127.0.0.1", (), keyed=False)


def app_of(engine, **given):
    return create_app(engine, ServerOptions("nano", **{"hosts": LOOPBACK, **given}))


def ask(app, method="GET", path="/v1/models", headers=(), **given):
    """An answer of an application; headers as they are, none added but what httpx needs."""

    async def asked():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=dict(headers), **given)

    return asyncio.run(asked())


# Names.


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.0.0.1:1"),
        *("[::1]:8000", "[0::1]"),
    ],
)
def test_names_of_loopback(host):
    assert LOOPBACK.allow(host)


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", "[::1]x"),
        *("127.0.0.2", "[::2]", "192.168.1.5", "mybox", "mybox.local", "evil.example:127.0.0.1"),
        *("2130706433", "0x7f.1", "localhost@evil.example", "localhost, evil.example", "a b"),
    ],
)
def test_other_names_on_loopback(host):
    assert not LOOPBACK.allow(host)


@pytest.mark.parametrize(
    ("address", "allowed", "host", "fits"),
    [
        ("127.0.0.1", ["box.example"], "box.example:8000", True),
        ("127.0.0.1", ["Box.Example:8000"], "box.example", True),
        ("127.0.0.1", ["*"], "anything.example", True),
        ("127.0.0.2", [], "127.0.0.2:8000", True),
        ("::1", [], "[::1]:8000", True),
        ("0.0.0.0", [], "192.168.1.5:8000", True),
        ("0.0.0.0", [], "[fe80::1]:8000", True),
        ("0.0.0.0", [], "mybox", True),
        ("0.0.0.0", [], "mybox.local:8000", True),
        ("0.0.0.0", [], "mybox.local.evil.example", False),
        ("0.0.0.0", [], "evil.example", False),
        ("::", [], "evil.example:8000", False),
        ("box.example", [], "box.example", True),
    ],
)
def test_names_elsewhere(address, allowed, host, fits):
    assert Hosts.of(address, allowed, keyed=False).allow(host) is fits


def test_no_name_of_a_request_is_looked_up(monkeypatch):
    """A name server that is slow would hold up everybody, for anybody's asking."""
    hosts = Hosts.of("0.0.0.0", (), keyed=False)
    looked = []
    for name in ("getfqdn", "gethostname", "gethostbyname", "getaddrinfo"):
        monkeypatch.setattr(f"gptoss.server.who.socket.{name}", lambda *a, **k: looked.append(a))
    for host in ("evil.example", "mybox", "mybox.local", "10.0.0.1"):
        hosts.allow(host)
    assert not looked


@pytest.mark.parametrize("name", ["", " ", "http://page.example", "page.example/", "a b", "*.lan"])
def test_allowed_hosts_that_are_none(name):
    with pytest.raises(Error, match="--allowed-host"):
        Hosts.of("127.0.0.1", (name,), keyed=False)


def test_with_keys_any_name_will_do_unless_some_are_given():
    assert Hosts.of("0.0.0.0", (), keyed=True) is None
    named = Hosts.of("0.0.0.0", ("box.example",), keyed=True)
    assert named.allow("box.example")
    assert not named.allow("localhost")


@pytest.mark.parametrize(("host", "fits"), [
    ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True),
    ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("box.example", False),
])  # fmt: skip
def test_what_is_loopback(host, fits):
    assert is_loopback(host) is fits


ROUTES = [
    ("GET", "/"), ("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models"),
    ("GET", "/nowhere"), ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"), ("POST", "/tokenize"), ("OPTIONS", "/v1/completions"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_foreign_name_is_refused_everywhere(engine, method, path):
    for app in (app_of(engine), front()):
        answer = ask(app, method, path, {"Host": "evil.example"})
        assert answer.status_code == 403
        assert "--allowed-host" in answer.json()["error"]["message"]


def test_no_name_is_a_foreign_one(engine):
    with serving(app_of(engine)) as address, connection(address) as client:
        client.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 403")


def front(**given):
    options = FrontOptions("inner", **{"hosts": LOOPBACK, **given})
    return create_front([], Router(0, 1), options)


# Origins.

WORK = {"prompt": "Once", "max_tokens": 1}


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        (None, "127.0.0.1:8000", 200),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", 200),
        ("http://localhost", "localhost:80", 200),
        ("https://localhost", "localhost", 200),  # a proxy has the certificate
        ("http://[::1]:8000", "[::1]:8000", 200),
        ("http://evil.example", "127.0.0.1:8000", 403),
        ("http://127.0.0.1:9000", "127.0.0.1:8000", 403),
        ("http://localhost:8000", "127.0.0.1:8000", 403),
        ("http://127.0.0.1:8000.evil.example", "127.0.0.1:8000", 403),
        ("null", "127.0.0.1:8000", 403),
        ("", "127.0.0.1:8000", 403),
        ("file://", "127.0.0.1:8000", 403),
        ("http://page.example", "127.0.0.1:8000", 200),
    ],
)
def test_pages_of_other_sites(engine, origin, host, status):
    app = app_of(engine, origins=("http://page.example",))
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    work = ("POST", "/v1/completions", {"json": WORK})
    for method, path, given in (work, ("GET", "/metrics", {})):
        answer = ask(app, method, path, headers, **given)
        assert answer.status_code == status, answer.text
    assert status == 200 or "--origin" in answer.json()["error"]["message"]


def test_what_pages_load_without_saying_who_they_are(engine):
    app = app_of(engine)
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert ask(app, headers=image).status_code == 403
    assert ask(app, path="/", headers=link).status_code == 200
    assert ask(app, headers=own).status_code == 200


@pytest.mark.parametrize("named", ["http://page.example", "HTTP://Page.example/"])
def test_named_pages_are_answered_as_browsers_want_it(engine, named):
    app = app_of(engine, origins=(named,))
    asked = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "content-type"}  # fmt: skip
    answer = ask(app, "OPTIONS", "/v1/completions", asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://page.example"
    assert ask(app, "OPTIONS", "/v1/completions", {**asked, "Origin": "http://other.example"}
               ).status_code == 403  # fmt: skip


def test_a_client_with_a_key_is_no_page(engine):
    app = app_of(engine, api_keys=("right",), hosts=Hosts.of("0.0.0.0", (), keyed=True))
    headers = {**bearer("right"), "Origin": "vscode-file://app", "Host": "any.example"}
    assert ask(app, headers=headers).status_code == 200


# Bodies.


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("text/plain; application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=application/json", 415),
        ("application/jsonp", 415),
        (None, 415),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_bodies_are_said_to_be_json(engine, kind, status, path):
    headers = {} if kind is None else {"Content-Type": kind}
    for app in (app_of(engine), app_of(engine, hosts=None)):
        answer = ask(app, "POST", path, headers, content=json.dumps(WORK))
        assert answer.status_code == status
    assert status == 200 or "application/json" in answer.json()["error"]["message"]


def test_what_is_refused_is_counted(engine):
    app = app_of(engine)
    ask(app, headers={"Host": "evil.example"})
    wanted = 'gptoss_requests_total{route="refused",status="403"} 1.0'
    assert wanted in ask(app, path="/metrics").text


# Keys.


@pytest.mark.parametrize("key", ["", " ", "a b", "key\n", "\tkey", "schlüssel", "k\x00", None, 5])
def test_keys_that_are_none(engine, key):
    for make in (
        lambda: check_keys([key]),
        lambda: ServerOptions("nano", api_keys=("right", key)),
        lambda: FrontOptions("inner", api_keys=(key,)),
    ):
        with pytest.raises(Error, match="expected a key of visible ASCII"):
            make()


@pytest.mark.parametrize("given", [["--api-key", ""], ["--api-key", "good", "--api-key", ""]])
def test_an_unset_variable_as_key_ends_the_command(given, capsys):
    assert main(["serve", "--port", "0", *given]) == 1
    assert "--api-key: expected a key" in capsys.readouterr().err


def test_an_empty_key_in_the_environment_ends_the_command(monkeypatch, capsys):
    monkeypatch.setenv("GPTOSS_API_KEY", "")
    assert main(["serve", "--port", "0"]) == 1
    assert "unset it to serve without a key" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        *("", "Bearer", "Bearer ", "Bearer wrong", "Bearer righ", "Bearer rightt"),
        *("Basic right", "right", "Bearer Right", "Bearer right,wrong", "Bearer \xff"),
    ],
)
def test_wrong_keys(engine, given):
    headers = {"Authorization": given.encode("latin-1")}
    assert ask(app_of(engine, api_keys=("right",)), headers=headers).status_code == 401


@pytest.mark.parametrize("given", ["Bearer right", "bearer other"])
def test_right_keys(engine, given):
    app = app_of(engine, api_keys=("right", "other"), hosts=None)
    assert ask(app, headers={"Authorization": given}).status_code == 200


def test_one_key_is_one_client_however_it_is_written(engine):
    """Otherwise `bearer`, `Bearer`, `bEarer` have a share, and a cache, each."""
    app = app_of(engine, api_keys=("right",), cache_isolation=True, hosts=None)
    body = {"prompt": SECRET + " written", "max_tokens": 1}
    found = [
        ask(app, "POST", "/v1/completions", {"Authorization": f"{kind} right"}, json=body).json()
        for kind in ("Bearer", "bEaReR")
    ]
    assert found[1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    told = []

    class Upstream:
        async def ask(self, call):
            told.append(call.headers["x-gptoss-caller"])
            raise Unreached("gone")

    app = create_front([Upstream()], Router(1, 1), FrontOptions("inner", ("right", "other")))
    for given in ("Bearer right", "BEARER right", "Bearer other"):
        ask(app, "POST", "/v1/completions", {"Authorization": given}, json=WORK)
    assert told[0] == told[1] != told[2]
    assert "right" not in told[0]


# Clients among themselves.


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("allowed", "priority", "status"),
    [
        ((-1000, 1000), -1000, 200),
        ((0, 1000), -1, 400),
        ((0, 1000), 5, 200),
        ((0, 0), 5, 400),
        ((0, 0), 0, 200),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_who_goes_first_is_the_operators_to_say(engine, allowed, priority, status, path):
    app = app_of(engine, priorities=allowed)
    given = {
        "/v1/completions": {"prompt": "Once", "max_tokens": 1},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 1},
    }
    answer = ask(app, "POST", path, json={**given[path], "priority": priority})
    assert answer.status_code == status, answer.text
    if status == 400:
        assert answer.json()["error"]["param"] == "priority"
        assert "--priority" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("given", "priority"),
    [
        ([], "any"),
        (["--api-key", "one"], "any"),
        (["--api-key", "one", "--api-key", "two"], "lower"),
        (["--host", "0.0.0.0"], "lower"),
        (["--host", "0.0.0.0", "--api-key", "one"], "any"),
        (["--api-key", "one", "--api-key", "two", "--priority", "any"], "any"),
        (["--priority", "none"], "none"),
    ],
)
def test_the_priorities_that_clients_have_by_default(given, priority, monkeypatch):
    import gptoss.cli.serve as serve

    seen = []
    monkeypatch.setattr(serve, "_serve_replicas", lambda a, listening: seen.append(a) or 0)
    main(["serve", "--port", "0", "--replicas", "2", *given])
    assert seen[0].priority == priority


SECRET = "The password of the harbour master's cat is " + "swordfish " * 12


@pytest.mark.parametrize("isolated", [False, True])
def test_the_cache_tells_what_others_asked_unless_it_is_kept_apart(engine, isolated):
    """bob guesses what alice asked: the oracle that docs/security.md describes, and its end."""
    app = app_of(engine, api_keys=("alice", "bob"), cache_isolation=isolated, hosts=None)

    def cached(key, text, **more):
        body = {"prompt": text, "max_tokens": 1, **more}
        answer = ask(app, "POST", "/v1/completions", bearer(key), json=body)
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    text = f"{SECRET} {isolated}"
    cached("alice", text)
    assert (cached("bob", text) > 0) is not isolated
    assert cached("alice", text) > 0
    salted = f"salted {text}"
    cached("alice", salted, cache_salt="of alice")
    assert cached("bob", salted) == 0
    assert (cached("bob", salted, cache_salt="of alice") > 0) is not isolated


def test_what_a_front_remembers_is_kept_apart_too():
    """Which replica read a text before is no secret of its own, but of no use to another client."""
    data = json.dumps({"prompt": SECRET * 8}).encode()
    salted = json.dumps({"prompt": SECRET * 8, "cache_salt": "mine"}).encode()
    alike = [survey("/v1/completions", data)[0] for _ in range(2)]
    assert alike[0] == alike[1] != []
    apart = [
        *(survey("/v1/completions", data, owner)[0] for owner in ("alice", "bob")),
        *(survey("/v1/completions", salted, owner)[0] for owner in ("", "alice")),
    ]
    keys = [key for each in (alike[0], *apart) for key in each]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("isolated", [False, True])
def test_a_front_sends_clients_apart_where_caches_are(isolated):
    options = FrontOptions("inner", ("alice", "bob"), cache_isolation=isolated)
    router, seen = Router(1, 1), []
    real = router.take
    router.take = lambda keys, *more: seen.append(keys) or real(keys, *more)

    class Upstream:
        async def ask(self, call):
            raise Unreached("gone")

    app = create_front([Upstream()], router, options)
    for who in ("alice", "bob"):
        ask(app, "POST", "/v1/completions", bearer(who), json={"prompt": SECRET * 8})
    alice, bob = seen[::2]  # each is tried once more, when the replica was not reached
    assert (alice == bob) is not isolated


@pytest.mark.parametrize("salt", ["", 5, "x" * 257, ["a"]])
def test_salts_that_are_none(engine, salt):
    answer = ask(app_of(engine), "POST", "/v1/completions", json={**WORK, "cache_salt": salt})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "cache_salt"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.168.1.5", "192.168.1.5"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::9", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_whose_address_an_address_is(address, network):
    assert network_of(address) == network


# Behind a proxy.


@pytest.mark.parametrize(
    ("proxies", "told"),
    [(["127.0.0.1"], "203.0.113.7"), (["10.0.0.1"], "127.0.0.1"), ([], "127.0.0.1")],
)
def test_who_asks_is_a_trusted_proxys_to_say(engine, caplog, proxies, told):
    caplog.set_level("INFO", "gptoss.access")
    connections = Connections()
    app = create_app(engine, ServerOptions("nano"), connections)
    with serving(app, connections=connections, proxies=proxies) as address:
        # What a client itself has written stands before what the proxy adds.
        headers = {"X-Forwarded-For": "127.0.0.1, 198.51.100.1, 203.0.113.7"}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 200
    (line,) = [json.loads(r.message) for r in caplog.records if r.name == "gptoss.access"]
    assert line["client"] == told


def test_one_client_behind_a_proxy_does_not_take_the_others_places(engine):
    app = create_app(engine, ServerOptions("nano", max_sequences=16))
    long = {"prompt": "Once", "n": 16, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with serving(app, proxies=["127.0.0.1"]) as address:
        greedy = {"X-Forwarded-For": "203.0.113.7"}
        with asking(address, "/v1/completions", long, **greedy) as client:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            body = {"prompt": "Once", "max_tokens": 1}
            for who, status in (("203.0.113.7", 429), ("203.0.113.8", 200)):
                headers = {"X-Forwarded-For": who}
                answer = httpx.post(f"{address}/v1/completions", json=body, headers=headers)
                assert answer.status_code == status


def test_a_client_cannot_pose_as_another(engine, caplog):
    """Only what a front says counts, and a front says it itself."""
    caplog.set_level("INFO", "gptoss.access")
    forged = {"X-Gptoss-Client": "10.9.9.9", "X-Gptoss-Caller": "alice"}
    with serving(app_of(engine, hosts=None)) as address:
        httpx.get(f"{address}/v1/models", headers=forged)
    (line,) = [json.loads(r.message) for r in caplog.records if r.name == "gptoss.access"]
    assert line["client"] == "127.0.0.1"
    told = []

    class Upstream:
        async def ask(self, call):
            told.append(call.headers)
            raise Unreached("gone")

    app = create_front([Upstream()], Router(1, 1), FrontOptions("inner"))
    with serving(app) as address:
        httpx.post(f"{address}/v1/completions", json=WORK, headers=forged)
    assert told[0]["x-gptoss-client"] == told[0]["x-gptoss-caller"] == "127.0.0.1"
    assert told[0]["authorization"] == "Bearer inner"
