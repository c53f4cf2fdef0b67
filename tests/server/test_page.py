"""The chat page: what a browser makes of it."""

import json
import re
from pathlib import Path

import pytest
from browsing import NO_BROWSER, browser, in_browser, visits
from scripted import ANSWER, CALL, THINKING
from serving import until_none_run
from waiting import until

import gptoss.server
from gptoss.server.api.app import ServerOptions, create_app

if NO_BROWSER is None:
    from playwright.sync_api import expect

FINAL = "<|channel|>final<|message|>"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def said(text):
    return f"{FINAL}{text}<|return|>"


# ---- In a browser


@pytest.fixture(scope="module")
def chromium():
    with browser() as made:
        yield made


@pytest.fixture
def visit(chromium, engine, monkeypatch):
    with visits(chromium, engine, monkeypatch) as visit:
        yield visit


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
    asked = seen.asked[0]
    assert [m.content for m in asked.messages] == ["Two and two?"] and asked.effort == "medium"


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
def test_what_is_sent_before_the_model_is_known_is_not_lost(visit):
    seen, held = visit(ANSWER), []
    seen.page.route("**/v1/models", lambda route: held.append(route))
    with seen.page.expect_request("**/v1/models"):
        seen.page.reload()
    seen.ask()
    expect(seen.page.get_by_label("Your message")).to_have_value("Two and two?")
    held.pop().continue_()
    expect(seen.done.locator(".text")).to_have_text("It is four.")
    assert len(seen.asked) == 1


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
    asked = seen.asked[1]
    assert [tool.name for tool in asked.tools] == ["add"]
    user, thinking, first, second, *results = asked.messages
    assert user.role == "user" and (thinking.channel, thinking.content) == (
        "analysis",
        "Let me see.",
    )
    assert [first.content, second.content] == ['{"a": 2}', '{"a": 3}']
    assert [(m.author, m.content) for m in results] == [
        ("functions.add", "two"),
        ("functions.add", "three"),
    ]
    assert [m.call_id for m in results] == [first.call_id, second.call_id]


def declare(page):
    """Fill in a tool: without one, a call would be text like any other."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools").fill(json.dumps([TOOL]))
    page.get_by_role("button", name="Done").click()


@in_browser
def test_a_call_that_was_passed_over_takes_no_result(visit):
    seen = visit(CALL, ANSWER)
    declare(seen.page)
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
    declare(seen.page)
    seen.ask()
    expect(seen.done.locator(".call pre")).to_have_text(HOSTILE[0])
    seen.page.get_by_role("button", name="Token probabilities").click()
    # An image that does not load, made after theirs, is told of after theirs.
    seen.page.evaluate(
        "() => new Promise((told) => Object.assign(new Image(), { onerror: told, src: 'x' }))"
    )
    assert seen.page.evaluate("window.harmed") is None


@in_browser
def test_what_slipped_through_could_still_do_nothing(visit):
    seen = visit()
    tries = ["document.body.innerHTML = '<b>'", "fetch('http://127.0.0.1:9/')"]
    for script in tries:
        failed = seen.page.evaluate(
            f"async () => {{ try {{ await ({script}); }} catch (error) {{ return error.name; }} }}"
        )
        assert failed == "TypeError", script
    said = " ".join(seen.complaints)
    assert "requires 'TrustedHTML' assignment" in said
    assert "violates the document's Content Security Policy" in said
    seen.complaints.clear()


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
    until(lambda: seen.writer.cancelled == 1, "the end of the stream")
    until_none_run(seen.address)
    seen.ask("And three?")
    expect(seen.done.locator(".text")).to_have_text("Five.")
    assert [(m.channel, m.content) for m in seen.asked[1].messages] == [
        (None, "Two and two?"), ("analysis", "Let me see."), ("final", "It is "),
        (None, "And three?"),
    ]  # fmt: skip


@in_browser
def test_another_answer(visit):
    seen = visit(said("Four."), said("4."), "✗")
    seen.ask()
    seen.done.get_by_role("button", name="Answer again").click()
    expect(seen.done.locator(".text")).to_have_text("4.")
    expect(seen.page.locator("article")).to_have_count(2)
    assert seen.asked[0].messages == seen.asked[1].messages
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
    seen.page.locator("#input").fill("a draft")
    field.fill("Five and five?")
    field.press("Enter")
    expect(seen.done.locator(".text")).to_have_text("Ten.")
    expect(seen.page.locator(".bubble")).to_have_text(["Five and five?"])
    assert [m.content for m in seen.asked[2].messages] == ["Five and five?"]
    expect(seen.page.locator("#input")).to_have_value("a draft")


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
    seen = visit(max_sequences=0)
    seen.ask()
    expect(seen.done.get_by_role("alert")).to_contain_text("expected at most 0 texts")
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
    asked = seen.asked[0]
    assert asked.effort == "high"
    assert (asked.messages[0].role, asked.messages[0].content) == ("system", "Be brief.")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset").click()
    for label in wanted:
        expect(page.get_by_label(label)).to_have_value("")
    page.get_by_role("button", name="Done").click()
    seen.ask()
    expect(page.locator("article.answer[aria-busy=false]")).to_have_count(2)
    assert seen.writer.params[1].temperature == 1 and seen.asked[1].effort == "medium"


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
    tokens.nth(2).hover()  # of three tokens, none of which is a character by itself
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
    assert [m.content for m in seen.asked[1].messages] == ["Two and two?"]


@in_browser
def test_a_new_chat_ends_the_answer_being_written(visit):
    seen = visit(said("It is ‖"), said("Four."))
    seen.ask()
    expect(seen.answer.locator(".text")).to_have_text("It is")
    seen.page.get_by_role("button", name="New chat").click()
    until(lambda: seen.writer.cancelled == 1, "the end of the stream")
    expect(seen.page.get_by_role("button", name="Send")).to_be_visible()
    seen.ask()
    expect(seen.page.locator("article")).to_have_count(2)
    expect(seen.done.locator(".text")).to_have_text("Four.")


@in_browser
def test_the_way_back_from_a_new_chat(visit):
    seen = visit(said("Four."))
    back = seen.page.get_by_role("button", name="Back to the last conversation")
    expect(back).to_be_hidden()
    seen.ask()
    expect(seen.done.locator(".text")).to_have_text("Four.")
    seen.page.get_by_role("button", name="New chat").click()
    expect(seen.page.locator("article")).to_have_count(0)
    back.click()
    expect(seen.done.locator(".text")).to_have_text("Four.")
    seen.ask("And two?")
    expect(seen.page.locator("article.answer[aria-busy=false]")).to_have_count(2)
    assert [m.content for m in seen.asked[1].messages] == ["Two and two?", "Four.", "And two?"]


LONG = "\n\n".join(f"Paragraph {i}." for i in range(60))


@in_browser
def test_who_scrolls_up_stays_there(visit):
    seen = visit(said(f"{LONG}\n\n‖more {LONG}\n\n‖end"))
    seen.ask()
    scroller = seen.page.locator("#scroller")
    below = "(e) => e.scrollHeight - e.scrollTop - e.clientHeight"
    expect(seen.answer.locator(".text")).to_contain_text("Paragraph 59.")
    until(lambda: scroller.evaluate(below) < 2, "the page, which follows")
    scroller.hover()
    seen.page.mouse.wheel(0, -900)
    expect(seen.page.get_by_role("button", name="To the newest")).to_be_visible()
    at = scroller.evaluate("(e) => e.scrollTop")
    seen.writer.go()
    expect(seen.answer.locator(".text")).to_contain_text("more")
    # Where a wheel that still turns has brought it, but not further down.
    assert scroller.evaluate("(e) => e.scrollTop") <= at
    seen.page.get_by_role("button", name="To the newest").click()
    seen.writer.go()
    expect(seen.done.locator(".text")).to_contain_text("end")
    until(lambda: scroller.evaluate(below) < 2, "the page, which follows")


@in_browser
def test_what_is_done_with_is_not_drawn_again(visit):
    seen = visit(said("One."), said(f"{LONG}\n\nbefore‖{' word' * 200}"))
    seen.ask()
    expect(seen.done.locator(".text")).to_have_text("One.")
    seen.ask()
    expect(seen.answer.locator(".text")).to_contain_text("before")
    seen.page.evaluate(
        """() => {
          window.changed = new Set();
          const watch = new MutationObserver((found) =>
            found.forEach(({ target }) => changed.add(target)));
          watch.observe(document.getElementById("log"),
            { subtree: true, childList: true, characterData: true });
        }"""
    )
    seen.writer.go()
    expect(seen.done.locator(".text")).to_contain_text("before word word")
    changed = "[...changed].map((e) => e.className).sort().join(', ')"
    assert seen.page.evaluate(changed) == "foot, text"  # the answer's own blocks are kept


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
    seen = visit(THINKING + said(WIDE), CALL, viewport=(360, 640))
    over = "Math.max(...[document.documentElement, document.body, document.querySelector('main')]" \
           ".map((e) => e.scrollWidth - e.clientWidth))"  # fmt: skip
    assert seen.page.evaluate(over) == 0
    seen.ask("w" * 300)
    expect(seen.done.locator("td")).to_have_count(12)
    seen.done.locator("summary").click()
    assert seen.page.evaluate(over) == 0
    table = seen.done.locator(".table")
    assert table.evaluate("(e) => e.scrollWidth > e.clientWidth")  # it scrolls by itself
    declare(seen.page)
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
def test_a_conversation_too_long_to_be_kept_is_kept_without_its_probabilities(visit):
    seen = visit(said("Four."))
    seen.page.get_by_role("button", name="Token probabilities").click()
    seen.page.evaluate(
        """() => {
          for (const size of [100_000, 1_000])
            try {
              for (let i = 0; ; i++) sessionStorage[`${size} ${i}`] = "x".repeat(size);
            } catch {} // full; room for a thousand
          delete sessionStorage["1000 0"];
        }"""
    )
    seen.ask()
    expect(seen.done.locator(".token").first).to_be_visible()
    expect(seen.page.get_by_role("status")).to_have_text("The answer is complete.")
    seen.page.reload()
    expect(seen.done.locator(".text")).to_have_text("Four.")
    expect(seen.page.locator(".token")).to_have_count(0)


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
    greedy = gptoss.SamplingParams(max_tokens=12, temperature=0)
    (wanted,) = engine.generate("Once upon a time", greedy)
    assert seen.done.locator(".text").inner_text().split() == wanted.text.split()
