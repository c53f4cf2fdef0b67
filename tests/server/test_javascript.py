"""OpenAI's JavaScript client: the same server, another language's ideas of the same API."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_engine import settle
from serving import serving
from test_structured import BundledHarmony, likely_ends

from gptoss import SamplingParams
from gptoss.server.api import app as server

HERE = Path(__file__).parent / "javascript"


@pytest.fixture(scope="module")
def node_script(request):
    """client.mjs beside the package that it imports; skips where that is not to be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not there")
    folder = Path(request.config.cache.mkdir("javascript"))
    for name in ("package.json", "client.mjs"):
        shutil.copy(HERE / name, folder / name)
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]["openai"]
    package = folder / "node_modules" / "openai" / "package.json"
    if not package.exists() or json.loads(package.read_text())["version"] != wanted:
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"npm cannot install the client: {done.stderr.strip()[-200:]}")
    return [node, str(folder / "client.mjs")]


@pytest.fixture(scope="module")
def found(node_script, engine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "load_chat", BundledHarmony)
        app = server.create_app(engine, server.ServerOptions("nano"))
    options = json.dumps({"logit_bias": likely_ends(engine)})
    with serving(app) as address:
        done = subprocess.run(
            [*node_script, address, options], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        settle(engine)
    return json.loads(done.stdout)


def test_models_and_completions(found, engine):
    assert found["models"] == ["nano"]
    (wanted,) = engine.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=12))
    assert found["completion"] == wanted.text


def test_chat_whole_and_streamed(found):
    message = found["chat"]["message"]
    assert message["role"] == "assistant"
    assert message["content"] in ("Rain in Oslo.", "Sun in Rome.")
    assert found["chat"]["finish_reason"] == "stop"
    assert found["streamed"] == message["content"]
    assert found["thoughts"] == message.get("reasoning_content", "")
    assert found["usage"]["total_tokens"] > found["usage"]["prompt_tokens"] > 0


def test_structured_answers_and_calls(found):
    cities = ({"city": "Oslo"}, {"city": "Rome"})
    assert found["parsed"] in cities
    assert json.loads(found["response"]) in cities
    for call in (found["call"], found["streamedCall"]):
        assert call["name"] == "weather" and json.loads(call["arguments"]) in cities


def test_events_of_a_response(found):
    events = found["events"]
    assert events[0] == "response.created"
    assert events[-1] == "response.completed"
    assert "response.output_text.delta" in events and "response.output_text.done" in events


def test_errors(found):
    assert found["error"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found"}
