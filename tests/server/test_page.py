"""The chat page: what is served, and what a browser makes of it."""

import json
import re
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from browsing import NO_BROWSER, Visit, Writer, browser, writing
from scripted import ANSWER, CALL, THINKING
from serving import serving

import gptoss.server
from gptoss.errors import Error
from gptoss.server import app as server
from gptoss.server.app import ServerOptions, create_app

if NO_BROWSER is None:
    from playwright.sync_api import expect

in_browser = pytest.mark.skipif(NO_BROWSER is not None, reason=str(NO_BROWSER))
FILES = Path(gptoss.server.__file__).with_name("page")
FINAL = "<|channel|>final<|message|>"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def said(text):
    return f"{FINAL}{text}<|return|>"


# ---- What is served


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


# ---- In a browser


@pytest.fixture(scope="module")
def chromium():
    with browser() as made:
        yield made


@pytest.fixture
def visit(chromium, engine, monkeypatch):
    """visit(*texts of a model, viewport, color_scheme, **options of the server) → Visit, with
    `writer` and `asked`. Nothing may be asked of others, and no script may fail."""
    with ExitStack() as stack:
        made = []

        def visit(*texts, viewport=None, color_scheme="light", app=None, **options):
            writer, asked = Writer(*texts or (ANSWER,)), None
            if app is not None:
                address = stack.enter_context(serving(app))
            else:
                served = writing(engine, monkeypatch, writer, **options)
                address, asked = stack.enter_context(served)
            size = {"width": 1100, "height": 700} if viewport is None else viewport
            context = chromium.new_context(viewport=size, color_scheme=color_scheme)
            stack.callback(context.close)
            context.set_default_timeout(15_000)
            seen = Visit(context.new_page(), address)
            seen.writer, seen.asked = writer, asked
            made.append(seen)
            return seen

        yield visit
        for seen in made:
            assert seen.complaints == [] and seen.elsewhere == []


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@in_browser
def test_an_answer_appears_with_its_thinking_folded(visit):
    seen = visit(THINKING + said("It is ‖**four**."))
    seen.ask()
    expect(seen.answer.locator(".text")).to_have_text("It is")
    expect(seen.answer).to_have_attribute("aria-busy", "true")
    seen.writer.go()
    expect(seen.done.locator(".text strong")).to_have_text("four")
    expect(seen.page.get_by_label("Your message")).to_be_focused()
    thoughts = seen.done.locator(".thoughts")
    expect(thoughts).to_be_hidden()
    expect(seen.done.locator("summary")).to_contain_text("Thought for")
    seen.done.locator("summary").click()
    expect(thoughts).to_have_text("Let me see.")
    expect(seen.done.locator(".stats")).to_contain_text("tokens/s")
    expect(seen.page.get_by_role("status")).to_have_text("The answer is complete.")
    (messages, options) = seen.asked[0]
    assert [m.content for m in messages] == ["Two and two?"] and options.effort == "medium"


@in_browser
def test_thinking_is_shown_while_it_lasts(visit):
    seen = visit("<|channel|>analysis<|message|>Let me‖ see.<|end|><|start|>assistant‖" + ANSWER)
    seen.ask()
    expect(seen.answer.locator("summary")).to_contain_text("Thinking")
    seen.answer.locator("summary").click()
    expect(seen.answer.locator(".thoughts")).to_have_text("Let me")
    seen.writer.go()
    expect(seen.answer.locator(".thoughts")).to_have_text("Let me see.")  # it stays open
    seen.writer.go()
    expect(seen.done.locator(".thoughts")).to_be_visible()


@in_browser
def test_a_call_is_shown_and_answered(visit):
    two = CALL.replace("<|call|>", "<|end|><|start|>assistant") + CALL.replace("2", "3")
    seen = visit(THINKING + two, said("It is five."))
    page = seen.page
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools").fill("[{")
    expect(page.locator("#tools-mistake")).to_contain_text("not JSON")
    page.get_by_label("Tools").fill(json.dumps([TOOL]))
    expect(page.locator("#tools-mistake")).to_be_hidden()
    page.get_by_role("button", name="Done").click()
    seen.ask()
    expect(seen.done.locator(".call h3")).to_have_text(["add", "add"])
    expect(seen.done.locator(".call pre").first).to_have_text('{\n  "a": 2\n}')
    expect(page.get_by_label("Result of add").first).to_be_focused()
    page.keyboard.type("two")
    page.keyboard.press("Enter")  # on to the next
    page.keyboard.type("three")
    page.keyboard.press("Enter")
    expect(seen.done.locator(".text")).to_have_text("It is five.")
    expect(page.locator(".call pre")).to_have_text(
        ['{\n  "a": 2\n}', "two", '{\n  "a": 3\n}', "three"]
    )
    expect(page.locator(".call textarea")).to_have_count(0)
    (messages, options) = seen.asked[1]
    assert [tool.name for tool in options.tools] == ["add"]
    user, call, *results = messages
    assert call.thinking == "Let me see." and [c.arguments for c in call.calls] == [
        '{"a": 2}',
        '{"a": 3}',
    ]
    assert [(m.role, m.content) for m in results] == [("tool", "two"), ("tool", "three")]
    assert [m.call_id for m in results] == [c.id for c in call.calls] and user.role == "user"


@in_browser
def test_a_call_that_was_passed_over_takes_no_result(visit):
    seen = visit(CALL, ANSWER)
    seen.ask()
    expect(seen.page.get_by_label("Result of add")).to_be_visible()
    seen.ask("Never mind.")
    expect(seen.done.locator(".text")).to_have_text("It is four.")
    expect(seen.page.get_by_label("Result of add")).to_have_count(0)


HOSTILE = [
    "<img src=x onerror=\"window.harmed=1\">",
    "<script>window.harmed=1</script>",
    "<svg onload=window.harmed=1><style>*{display:none}</style>",
    "[click](javascript:window.harmed=1) [c](JaVaScRiPt:window.harmed=1) [d](data:text/html,<b>)",
    "[e](java\tscript:window.harmed=1) [f](<javascript:window.harmed=1>)",
    "<javascript:window.harmed=1>",
    "[g](/v1/models) [h](//evil.example) ![i](https://evil.example/pixel.png)",
    "[j](https://evil.example/\"onmouseover=window.harmed=1)",
    "| <img src=x onerror=window.harmed=1> | b |\n|--|--|\n| <script>harmed=1</script> | d |",
    "# <iframe src=\"javascript:window.harmed=1\"></iframe>",
    "`</code><img src=x onerror=window.harmed=1>`",
    "```html\"><img src=x onerror=window.harmed=1>\n</pre><img src=x onerror=window.harmed=1>",
]  # fmt: skip


@in_browser
def test_hostile_words_stay_words(visit):
    thinking = f"<|channel|>analysis<|message|>{HOSTILE[0]}<|end|><|start|>assistant"
    call = (
        f"<|channel|>commentary to=functions.add <|constrain|>json<|message|>{HOSTILE[0]}<|call|>"
    )
    seen = visit(thinking + said("\n\n".join(HOSTILE)), call)
    seen.ask(HOSTILE[0])
    answer = seen.done
    expect(answer.locator(".text pre")).to_contain_text("</pre><img src=x")
    for written in (*HOSTILE[:3], "[click](javascript:window.harmed=1)", "[g](/v1/models)"):
        expect(answer.locator(".text")).to_contain_text(written)
    expect(seen.page.locator(".bubble")).to_have_text(HOSTILE[0])
    expect(answer.locator(".thoughts")).to_have_text(HOSTILE[0])
    found = answer.locator(".text").locator(
        "img, script, iframe, style, svg, object, [onerror], [onload]"
    )
    expect(found).to_have_count(0)
    links = answer.locator("a").evaluate_all(
        "links => links.map((a) => [a.protocol, a.rel, a.host])"
    )
    assert links and {tuple(link) for link in links} == {
        ("https:", "noopener noreferrer nofollow", "evil.example")
    }
    seen.ask()
    expect(seen.done.locator(".call pre")).to_have_text(HOSTILE[0])
    seen.page.get_by_role("button", name="Token probabilities").click()
    seen.page.wait_for_timeout(100)
    assert seen.page.evaluate("window.harmed") is None


@in_browser
@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stopping_stops_the_server(visit, how):
    seen = visit(THINKING + said("It is ‖four."), said("Five."))
    seen.ask()
    expect(seen.answer.locator(".text")).to_have_text("It is")
    if how == "button":
        seen.page.get_by_role("button", name="Stop").click()
    else:
        seen.page.keyboard.press("Escape")
    expect(seen.done.locator(".text")).to_have_text("It is")
    expect(seen.done.locator(".note")).to_have_text("Stopped.")
    until(lambda: seen.writer.cancelled == 1)
    until(lambda: httpx.get(f"{seen.address}/health").json()["running"] == 0)
    seen.ask("And three?")
    expect(seen.done.locator(".text")).to_have_text("Five.")
    assert [m.content for m in seen.asked[1][0]] == ["Two and two?", "It is ", "And three?"]


@in_browser
def test_another_answer(visit):
    seen = visit(said("Four."), said("4."), "✗")
    seen.ask()
    seen.done.get_by_role("button", name="Answer again").click()
    expect(seen.done.locator(".text")).to_have_text("4.")
    expect(seen.page.locator("article")).to_have_count(2)
    assert seen.asked[0][0] == seen.asked[1][0]
    seen.done.get_by_role("button", name="Answer again").click()
    expect(seen.page.get_by_role("alert").filter(has_text="fell over")).to_be_visible()
    expect(seen.done.locator(".text")).to_have_text("4.")  # nothing better came: it is back
    expect(seen.page.locator("article")).to_have_count(2)


@in_browser
def test_a_message_is_edited_and_sent_again(visit):
    seen = visit(said("Four."), said("Six."), said("Ten."))
    seen.ask()
    expect(seen.done.locator(".text")).to_have_text("Four.")
    seen.ask("And two?")
    expect(seen.done.locator(".text")).to_have_text("Six.")
    edit = seen.page.get_by_role("button", name="Edit and send again")
    edit.first.click()
    seen.page.keyboard.press("Escape")
    expect(edit.first).to_be_focused()
    edit.first.click()
    field = seen.page.locator(".editor textarea")
    expect(field).to_be_focused()
    field.fill("Five and five?")
    seen.page.keyboard.press("Enter")
    expect(seen.done.locator(".text")).to_have_text("Ten.")
    expect(seen.page.locator(".bubble")).to_have_text(["Five and five?"])
    assert [m.content for m in seen.asked[2][0]] == ["Five and five?"]


@in_browser
def test_a_key_is_asked_for_and_kept_in_this_tab(visit):
    seen = visit(said("Four."), api_keys=("good",))
    dialog = seen.page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    for key in ("bad", "good"):
        seen.page.get_by_label("API key", exact=True).fill(key)
        seen.page.keyboard.press("Enter")
        if key == "bad":
            expect(dialog.get_by_text("does not know that key")).to_be_visible()
    expect(seen.page.locator("#model")).to_have_text("gpt-oss-20b")
    expect(dialog).to_be_hidden()
    seen.ask()
    expect(seen.done.locator(".text")).to_have_text("Four.")
    seen.page.reload()
    expect(seen.page.locator("#model")).to_have_text("gpt-oss-20b")
    expect(dialog).to_be_hidden()
    assert "good" not in seen.page.evaluate("JSON.stringify(localStorage)")


@in_browser
def test_without_a_key_the_page_says_so(visit):
    seen = visit(api_keys=("good",))
    seen.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    problem = seen.page.get_by_role("alert").filter(has_text="bearer token")
    problem.get_by_role("button", name="Try again").click()
    expect(seen.page.get_by_role("dialog")).to_be_visible()


@in_browser
def test_an_error_in_the_middle_loses_nothing(visit):
    seen = visit(THINKING + said("It is ✗"), said("Four."))
    seen.ask()
    problem = seen.done.get_by_role("alert")
    expect(problem).to_contain_text("The answer broke off: the model fell over")
    expect(seen.done.locator(".text")).to_have_text("It is")
    problem.get_by_role("button", name="Try again").click()
    expect(seen.done.locator(".text")).to_have_text("Four.")
    expect(seen.page.locator("article")).to_have_count(2)


@in_browser
def test_a_connection_that_is_lost_loses_nothing(visit):
    seen = visit()
    choice = {"index": 0, "delta": {"content": "It is"}, "logprobs": None, "finish_reason": None}
    body = f'data: {json.dumps({"choices": [choice]})}\n\ndata: {{"cho'
    kind = "text/event-stream"
    seen.page.route("**/v1/chat/*", lambda route: route.fulfill(body=body, content_type=kind))
    seen.ask()
    expect(seen.done.get_by_role("alert")).to_contain_text("connection was lost")
    expect(seen.done.locator(".text")).to_have_text("It is")
    seen.page.route("**/v1/chat/*", lambda route: route.abort())
    seen.ask("Are you there?")
    expect(seen.done.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(seen.page.locator(".bubble").last).to_have_text("Are you there?")


@in_browser
def test_what_the_server_refuses_is_shown(visit):
    seen = visit(max_requests=0)
    seen.ask()
    expect(seen.done.get_by_role("alert")).to_contain_text("as many as may; come again")
    seen = visit()
    seen.page.get_by_role("button", name="Settings").click()
    seen.page.get_by_label("Top p").fill("7")
    seen.page.keyboard.press("Escape")
    seen.ask()
    expect(seen.done.get_by_role("alert")).to_contain_text("top_p: expected")


@in_browser
def test_settings_are_sent_kept_and_reset(visit):
    seen = visit()
    page = seen.page
    wanted = {"Temperature": "0.5", "Top p": "0.9", "Top k": "40", "Min p": "0.05",
              "Max tokens": "99", "Seed": "7", "System message": "Be brief."}  # fmt: skip
    page.get_by_role("button", name="Settings").click()
    for label, value in wanted.items():
        page.get_by_label(label).fill(value)
    page.get_by_text("High", exact=True).click()
    page.reload()
    expect(page.locator("#model")).to_have_text("gpt-oss-20b")
    seen.ask()
    expect(seen.done.locator(".text")).to_have_text("It is four.")
    params = seen.writer.params[0]
    found = (params.temperature, params.top_p, params.top_k, params.min_p, params.max_tokens)
    assert found == (0.5, 0.9, 40, 0.05, 99) and params.seed == 7 and params.logprobs is None
    (messages, options) = seen.asked[0]
    assert options.effort == "high"
    assert (messages[0].role, messages[0].content) == ("system", "Be brief.")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset").click()
    for label in wanted:
        expect(page.get_by_label(label)).to_have_value("")
    page.get_by_role("button", name="Done").click()
    seen.ask()
    expect(page.locator("article.answer[aria-busy=false]")).to_have_count(2)
    assert seen.writer.params[1].temperature == 1 and seen.asked[1][1].effort == "medium"


@in_browser
def test_token_probabilities(visit):
    seen = visit(THINKING + said("aé四 b🐦"))
    seen.page.get_by_role("button", name="Token probabilities").click()
    seen.ask()
    tokens = seen.done.locator(".token:not(.legend *)")
    expect(tokens).to_have_text(["a", "é", "四", " ", "b", "🐦"], use_inner_text=False)
    assert seen.writer.params[0].logprobs == 5
    tip = seen.page.get_by_role("tooltip")
    expect(tip).to_have_count(0)
    tokens.nth(0).hover()  # "a" is 97: 45 %
    expect(tip.locator("tr")).to_have_count(4)
    expect(tip.locator("tr.chosen")).to_have_text("a45.0%")
    expect(tip.locator("tr").nth(1)).to_have_text("?40.5%")
    expect(tip.locator("tr").nth(2)).to_have_text("↵3.0%")
    expect(tokens.nth(0)).to_have_class(re.compile(r"\bp2\b"))
    tokens.nth(2).hover()  # of three tokens, which are no characters by themselves
    expect(tip.locator("tr.chosen th")).to_have_text(["E5", "9B", "9B"])
    seen.page.get_by_label("Your message").hover()
    expect(tip).to_have_count(0)
    seen.done.locator(".tokens").focus()
    for _ in range(2):
        seen.page.keyboard.press("ArrowRight")
    expect(tip.locator("tr.chosen th")).to_have_text(["C3", "A9"])
    seen.page.get_by_role("button", name="Token probabilities").click()
    expect(seen.done.locator(".text")).to_have_text("aé四 b🐦")
    expect(tip).to_have_count(0)


@in_browser
def test_keys(visit):
    seen = visit(said("Four."))
    field = seen.page.get_by_label("Your message")
    expect(field).to_be_focused()
    expect(seen.page.get_by_role("button", name="Send")).to_be_disabled()
    seen.page.keyboard.press("Enter")  # nothing to send
    low = field.bounding_box()["height"]
    for key in ("a", "Shift+Enter", "b"):
        seen.page.keyboard.press(key)
    expect(field).to_have_value("a\nb")
    assert field.bounding_box()["height"] > low
    expect(seen.page.locator("article")).to_have_count(0)
    seen.page.keyboard.press("Enter")
    expect(seen.done.locator(".text")).to_have_text("Four.")
    expect(seen.page.locator(".bubble")).to_have_text("a\nb", use_inner_text=True)
    assert abs(field.bounding_box()["height"] - low) < 1
    seen.page.keyboard.press("Control+Shift+O")
    expect(seen.page.locator("article")).to_have_count(0)
    expect(field).to_be_focused()
    seen.ask()
    expect(seen.done.locator(".text")).to_have_text("Four.")
    assert [m.content for m in seen.asked[1][0]] == ["Two and two?"]


@in_browser
def test_a_new_chat_ends_the_answer_being_written(visit):
    seen = visit(said("It is ‖"), said("Four."))
    seen.ask()
    expect(seen.answer.locator(".text")).to_have_text("It is")
    seen.page.get_by_role("button", name="New chat").click()
    until(lambda: seen.writer.cancelled == 1)
    seen.ask()
    expect(seen.page.locator("article")).to_have_count(2)
    expect(seen.done.locator(".text")).to_have_text("Four.")


LONG = "\n\n".join(f"Paragraph {i}." for i in range(60))


@in_browser
def test_who_scrolls_up_stays_there(visit):
    seen = visit(said(f"{LONG}\n\n‖more {LONG}\n\n‖end"))
    seen.ask()
    scroller = seen.page.locator("#scroller")
    below = "(e) => e.scrollHeight - e.scrollTop - e.clientHeight"
    expect(seen.answer.locator(".text")).to_contain_text("Paragraph 59.")
    until(lambda: scroller.evaluate(below) < 2)  # it follows
    scroller.hover()
    seen.page.mouse.wheel(0, -900)
    expect(seen.page.get_by_role("button", name="To the newest")).to_be_visible()
    at = scroller.evaluate("(e) => e.scrollTop")
    seen.writer.go()
    expect(seen.answer.locator(".text")).to_contain_text("more")
    assert scroller.evaluate("(e) => e.scrollTop") == at
    seen.page.get_by_role("button", name="To the newest").click()
    seen.writer.go()
    expect(seen.done.locator(".text")).to_contain_text("end")
    until(lambda: scroller.evaluate(below) < 2)


WIDE = f"""{"word" * 60}

| {" | ".join(f"column {i}" for i in range(12))} |
|{"---|" * 12}
| {" | ".join("value" for _ in range(12))} |

```
{"x = 1; " * 40}
```

`{"y" * 200}` https://example.org/{"z" * 200}
"""


@in_browser
def test_a_phone_has_nothing_to_scroll_sideways(visit):
    seen = visit(THINKING + said(WIDE), CALL, viewport={"width": 360, "height": 640})
    over = "Math.max(...[document.documentElement, document.body, document.querySelector('main')]" \
           ".map((e) => e.scrollWidth - e.clientWidth))"  # fmt: skip
    assert seen.page.evaluate(over) == 0
    seen.ask("w" * 300)
    expect(seen.done.locator("td")).to_have_count(12)
    seen.done.locator("summary").click()
    assert seen.page.evaluate(over) == 0
    table = seen.done.locator(".table")
    assert table.evaluate("(e) => e.scrollWidth > e.clientWidth")  # it scrolls by itself
    seen.ask()
    expect(seen.page.get_by_label("Result of add")).to_be_visible()
    seen.page.get_by_role("button", name="Settings").click()
    expect(seen.page.get_by_label("Temperature")).to_be_visible()
    dialog = seen.page.locator("#settings-dialog")
    assert dialog.evaluate("(e) => e.scrollWidth - e.clientWidth") == 0
    assert seen.page.evaluate(over) == 0


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(visit, scheme):
    seen = visit(color_scheme=scheme)
    brightness = "(parseInt(getComputedStyle(document.documentElement).backgroundColor.slice(4)))"
    dark = scheme == "dark"
    assert (seen.page.evaluate(brightness) < 128) == dark
    seen.page.get_by_role("button", name="Light or dark").click()
    assert (seen.page.evaluate(brightness) < 128) != dark
    seen.page.reload()
    assert (seen.page.evaluate(brightness) < 128) != dark


@in_browser
def test_a_conversation_outlives_a_reload_and_is_exported(visit, tmp_path):
    seen = visit(THINKING + ANSWER)
    seen.ask()
    expect(seen.done.locator(".text")).to_have_text("It is four.")
    seen.page.reload()
    expect(seen.done.locator(".text")).to_have_text("It is four.")
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="Export the conversation").click()
    data = json.loads(Path(download.value.path()).read_text())
    assert data["model"] == "gpt-oss-20b" and data["settings"]["reasoning_effort"] == "medium"
    assert data["messages"] == [
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "It is four.", "reasoning_content": "Let me see."},
    ]


@in_browser
def test_a_model_that_was_not_taught_conversations(visit, engine):
    seen = visit(app=create_app(engine, ServerOptions("nano")))
    expect(seen.page.get_by_text("nano was not taught conversations.")).to_be_visible()
    seen.page.get_by_role("button", name="Settings").click()
    expect(seen.page.get_by_label("Tools")).to_be_disabled()
    seen.page.get_by_label("Max tokens").fill("12")
    seen.page.get_by_label("Temperature").fill("0")
    seen.page.keyboard.press("Escape")
    seen.ask("Once upon a time")
    expect(seen.done.locator(".note")).to_have_text("Ended at the limit of tokens.")
    (wanted,) = engine.generate(
        "Once upon a time", gptoss.SamplingParams(max_tokens=12, temperature=0)
    )
    assert seen.done.locator(".text").inner_text().split() == wanted.text.split()


# ---- Modules by themselves


@in_browser
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_events_whose_pieces_end_anywhere(visit, size):
    stream = 'data: {"a": "é四🐦"}\r\n\r\n: ping\n\ndata:one\ndata: two\n\n'
    stream += "id: 3\rdata: three\r\rdata: lost"
    found = visit().page.evaluate(
        """async ([bytes, size]) => {
          const { eventData } = await import("/page/api.js");
          const stream = new ReadableStream({ start(control) {
            for (let i = 0; i < bytes.length; i += size)
              control.enqueue(new Uint8Array(bytes.slice(i, i + size)));
            control.close();
          } });
          const found = [];
          for await (const data of eventData(stream)) found.push(data);
          return found;
        }""",
        [list(stream.encode()), size],
    )
    assert found == ['{"a": "é四🐦"}', "one\ntwo", "three"]


RENDER = """async (texts) => {
  const { render } = await import("/page/markdown.js");
  return texts.map((text) => {
    const root = document.createElement("div");
    root.append(render(text));
    for (const button of root.querySelectorAll("button")) button.remove();
    return root.innerHTML.replaceAll(' rel="noopener noreferrer nofollow" target="_blank"', "");
  });
}"""


def fenced(text, language=""):
    head = f'<div class="code-head"><span>{language}</span></div>'
    return f'<div class="code">{head}<pre tabindex="0"><code>{text}</code></pre></div>'


MARKDOWN = {
    "": "",
    "a\nb\n\nc": "<p>a<br>b</p><p>c</p>",
    "a<br>b<BR/>c": "<p>a<br>b<br>c</p>",
    "# A\n## B ##\n####### C\n#D": "<h1>A</h1><h2>B</h2><p>####### C<br>#D</p>",
    "**a** *b* ***c*** _d_ __e__ ~~f~~":
        "<p><strong>a</strong> <em>b</em> <em><strong>c</strong></em> <em>d</em> <strong>e</strong>"
        " <del>f</del></p>",
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    "2 * 3 * 4, snake_case_name, ~5 ~6": "<p>2 * 3 * 4, snake_case_name, ~5 ~6</p>",
    "**open *and _so": "<p>**open *and _so</p>",
    r"\*a\* \\ \`b\`": r"<p>*a* \ `b`</p>",
    "`a*b*` ``c`d`` ` e": "<p><code>a*b*</code> <code>c`d</code> ` e</p>",
    "`<b>&amp;`": "<p><code>&lt;b&gt;&amp;amp;</code></p>",
    "&lt;b&gt; &amp;amp; &copy;": "<p>&lt;b&gt; &amp;amp; &amp;copy;</p>",
    "```py\nx = '<b>'\n\n  y\n```\nz": fenced("x = '&lt;b&gt;'\n\n  y", "py") + "<p>z</p>",
    "```\nnever closed\n# x": fenced("never closed\n# x"),
    "~~~\n```\n~~~": fenced("```"),
    "````\n```\n````": fenced("```"),
    "- a\n- b\n  - c\n    - d\n- e":
        "<ul><li>a</li><li>b<ul><li>c<ul><li>d</li></ul></li></ul></li><li>e</li></ul>",
    "1. a\n  - b\n2. c": '<ol start="1"><li>a<ul><li>b</li></ul></li><li>c</li></ol>',
    "3) a\n\n4) b": '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>',
    "- a\n  ```\n- x\n\n  ```\n- b":
        f"<ul><li>a{fenced('- x' + chr(10))}</li><li>b</li></ul>",
    "- a\nb\n\nc": "<ul><li>a<br>b</li></ul><p>c</p>",
    "a\n- b": "<p>a</p><ul><li>b</li></ul>",
    "> a\n> > b\n\nc": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>",
    "a\n---\nb\n* * *": "<p>a</p><hr><p>b</p><hr>",
    r"|a|b|" + "\n|:-:|--:|\n|`x`|y\\|z|\n|1|": '<div class="table" tabindex="0"><table><thead><tr>'
        '<th class="center">a</th><th class="right">b</th></tr></thead><tbody><tr>'
        '<td class="center"><code>x</code></td><td class="right">y|z</td></tr><tr>'
        '<td class="center">1</td><td class="right"></td></tr></tbody></table></div>',
    "a | b": "<p>a | b</p>",
    "1945.": "<p>1945.</p>",
    "[a](https://b.org/c_(d)?e=f \"g\")": '<p><a href="https://b.org/c_(d)?e=f">a</a></p>',
    "[**a** https://x.org](mailto:b@c.org)":
        '<p><a href="mailto:b@c.org"><strong>a</strong> https://x.org</a></p>',
    "(see https://a.org/b_c_d.) <https://e.org>":
        '<p>(see <a href="https://a.org/b_c_d">https://a.org/b_c_d</a>.)'
        ' <a href="https://e.org/">https://e.org</a></p>',
    "[a](b) [c](javascript:d) [e] f": "<p>[a](b) [c](javascript:d) [e] f</p>",
    "![a](https://b.org/c.png)": '<p><a href="https://b.org/c.png">a</a></p>',
    r"\(a_1 * b_2\) \[c\] $$d_e_f$$": r'<p><code class="math">\(a_1 * b_2\)</code>'
        r' <code class="math">\[c\]</code> <code class="math">$$d_e_f$$</code></p>',
    "<b onclick=x>hi</b>": "<p>&lt;b onclick=x&gt;hi&lt;/b&gt;</p>",
}  # fmt: skip


@in_browser
def test_markdown(visit):
    found = visit().page.evaluate(RENDER, list(MARKDOWN))
    strip = ' class=""'
    for text, html, wanted in zip(MARKDOWN, found, MARKDOWN.values(), strict=True):
        assert html.replace(strip, "") == wanted, text


@in_browser
def test_markdown_that_grows_ends_as_it_would_at_once(visit):
    text = "\n\n".join(MARKDOWN)
    grown, whole, kept = visit().page.evaluate(
        """async (text) => {
          const { MarkdownView, render } = await import("/page/markdown.js");
          const [grown, whole] = [document.createElement("div"), document.createElement("div")];
          const view = new MarkdownView(grown);
          let first;
          for (let end = 1; end <= text.length; end += 1) {
            view.update(text.slice(0, end));
            if (end === 20) first = grown.firstChild;
          }
          view.update(text);
          whole.append(render(text));
          return [grown.innerHTML, whole.innerHTML, grown.firstChild === first];
        }""",
        text,
    )
    assert grown == whole and kept


@in_browser
def test_markdown_that_would_take_for_ever_does_not(visit):
    n = 20_000
    texts = [piece * n for piece in ("*a ", "*a_ ", "_*", "~", "[", "[a](", "![a](<", "`", "`a``",
                                     ">", "- ", "|", "#", "&", "\\(", "http://a")]  # fmt: skip
    texts += [f"{'|a' * n}\n{'|-' * n}\n" + "|\n" * n]
    texts += ["\n".join(" " * i + "- a" for i in range(400))]
    page = visit().page
    for text in texts:
        begin = time.monotonic()
        page.evaluate(RENDER, [text])
        assert time.monotonic() - begin < 5, text[:20]
