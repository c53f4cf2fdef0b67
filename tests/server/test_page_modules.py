"""The chat page's modules by themselves, in a browser: Markdown, and server-sent events."""

import time

import pytest
from browsing import browser, in_browser, visits
from waiting import PATIENCE


@pytest.fixture(scope="module")
def chromium():
    with browser() as made:
        yield made


@pytest.fixture
def page(chromium, engine, monkeypatch):
    with visits(chromium, engine, monkeypatch) as visit:
        yield visit().page


@in_browser
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_events_whose_pieces_end_anywhere(page, size):
    stream = 'data: {"a": "é四🐦"}\r\n\r\n: ping\n\ndata:one\ndata: two\n\n'
    stream += "id: 3\rdata: three\r\rdata: lost"
    found = page.evaluate(
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


@in_browser
def test_a_stream_that_breaks_gives_what_came_and_says_so(page):
    found = page.evaluate(
        """async () => {
          const { ApiError, eventData } = await import("/page/api.js");
          let turn = 0;
          const stream = new ReadableStream({ pull(control) {
            if (turn++) control.error(new TypeError("network error"));
            else control.enqueue(new TextEncoder().encode("data: one\\n\\ndata: tw"));
          } });
          const found = [];
          try {
            for await (const data of eventData(stream)) found.push(data);
          } catch (error) {
            found.push(error instanceof ApiError, error.message);
          }
          return found;
        }"""
    )
    assert found == ["one", True, "The connection was lost before the answer was complete."]


RENDER = """async (texts) => {
  const { MarkdownView } = await import("/page/markdown.js");
  return texts.map((text) => {
    const root = document.createElement("div");
    new MarkdownView(root).update(text);
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
        ' &lt;<a href="https://e.org/">https://e.org</a>&gt;</p>',
    "[a](b) [c](javascript:d) [e] f": "<p>[a](b) [c](javascript:d) [e] f</p>",
    "![a](https://b.org/c.png)": '<p><a href="https://b.org/c.png">a</a></p>',
    r"\(a_1 * b_2\) \[c\] $$d_e_f$$": r'<p><code class="math">\(a_1 * b_2\)</code>'
        r' <code class="math">\[c\]</code> <code class="math">$$d_e_f$$</code></p>',
    "<b onclick=x>hi</b>": "<p>&lt;b onclick=x&gt;hi&lt;/b&gt;</p>",
}  # fmt: skip


@in_browser
def test_markdown(page):
    found = page.evaluate(RENDER, list(MARKDOWN))
    strip = ' class=""'
    for text, html, wanted in zip(MARKDOWN, found, MARKDOWN.values(), strict=True):
        assert html.replace(strip, "") == wanted, text


@in_browser
def test_markdown_that_grows_ends_as_it_would_at_once(page):
    text = "\n\n".join(MARKDOWN)
    grown, whole, kept = page.evaluate(
        """async (text) => {
          const { MarkdownView } = await import("/page/markdown.js");
          const [grown, whole] = [document.createElement("div"), document.createElement("div")];
          const view = new MarkdownView(grown);
          let first;
          for (let end = 1; end <= text.length; end += 1) {
            view.update(text.slice(0, end));
            if (end === 20) first = grown.firstChild;
          }
          view.update(text);
          new MarkdownView(whole).update(text);
          return [grown.innerHTML, whole.innerHTML, grown.firstChild === first];
        }""",
        text,
    )
    assert grown == whole and kept


@in_browser
def test_markdown_that_would_take_for_ever_does_not(page):
    n = 100_000  # of which a square takes minutes
    texts = [piece * n for piece in ("*a ", "*a_ ", "_*", "~", "[", "[a](", "![a](<", "`", "`a``",
                                     ">", "- ", "|", "#", "&", "\\(", "http://a")]  # fmt: skip
    texts += [f"{'|a' * n}\n{'|-' * n}\n" + "|\n" * n]
    texts += ["\n".join(" " * i + "- a" for i in range(400))]
    for text in texts:
        begin = time.monotonic()
        page.evaluate(RENDER, [text])
        assert time.monotonic() - begin < PATIENCE, text[:20]
