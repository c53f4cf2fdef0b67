"""The files of the chat page: what is served, with which headers, and to whom."""

import re
from pathlib import Path

import httpx
import pytest
from browsing import Writer, writing
from scripted import ANSWER
from serving import serving

import gptoss.server
from gptoss.errors import Error
from gptoss.server.api import app as server
from gptoss.server.api.app import ServerOptions, create_app

FILES = Path(gptoss.server.__file__).with_name("page")


@pytest.fixture(scope="module")
def address(engine):
    with serving(create_app(engine, ServerOptions("nano", api_keys=("good",)))) as address:
        yield address


def test_every_file_is_served_with_its_type(address):
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg"}
    names = {path.name for path in FILES.iterdir()}
    assert {"index.html", "style.css", "main.js"} <= names
    for name in names:
        path = "/" if name == "index.html" else f"/page/{name}"
        answer = httpx.get(address + path)
        assert answer.status_code == 200 and answer.content == (FILES / name).read_bytes()
        assert answer.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])


def test_everything_that_files_name_is_there():
    for path in FILES.iterdir():
        text = path.read_text()
        named = re.findall(r'from "\./([^"]+)"', text)
        if path.suffix == ".html":
            named += re.findall(r'(?:src|href)="page/([^"]+)"', text)
            assert len(named) >= 4
        for name in named:
            assert (FILES / name).is_file(), f"{path.name} names {name}"


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
def test_headers_keep_strangers_out(address, path):
    headers = httpx.get(address + path).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path", ["/page/", "/page/none.js", "/page/../app.py", "/page/%2e%2e/app.py"]
)
def test_nothing_else_is(address, path):
    assert httpx.get(address + path).status_code == 404


def test_the_page_needs_no_key_and_what_it_asks_for_does(address):
    assert httpx.get(address).status_code == 200
    assert httpx.get(f"{address}/v1/models").status_code == 401


def test_models_say_how_they_take_a_conversation(address, engine, monkeypatch):
    def model(address):
        answer = httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer good"})
        return answer.json()["data"][0]

    assert model(address)["format"] == "plain"
    with writing(engine, monkeypatch, Writer(ANSWER)) as (harmony, _):
        assert model(harmony)["format"] == "harmony"

    def cannot(tokenizer):
        raise Error("no vocabulary")

    monkeypatch.setattr(server, "load_chat", cannot)
    with serving(create_app(engine, ServerOptions("mute"))) as mute:
        assert model(mute)["format"] is None
