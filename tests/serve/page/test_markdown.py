"""What the page makes of a model's text: elements from a short list, the same however the text comes in."""

import random
from html.parser import HTMLParser

import pytest

ALLOWED = "a blockquote br button code del div em figcaption figure h3 h4 h5 h6 hr li ol p pre span strong table tbody td th thead tr ul"
ATTRIBUTES = {"href", "title", "target", "rel", "class", "type", "tabindex", "role", "aria-label", "start"}
RENDER = """async ([pieces, step]) => {
  const { MarkdownStream } = await import("/page/markdown.js");
  const root = document.createElement("div");
  document.body.append(root);
  const stream = new MarkdownStream(root);
  const seen = [];
  for (const p of pieces) { stream.push(p); if (step) seen.push(root.innerHTML); }
  stream.end();
  root.remove();
  return step ? [...seen, root.innerHTML] : root.innerHTML;
}"""
WHOLE = """async (texts) => {
  const { MarkdownStream } = await import("/page/markdown.js");
  return texts.map((t) => { const root = document.createElement("div"); new MarkdownStream(root).end(t); return root.innerHTML; });
}"""
A = 'target="_blank" rel="noopener noreferrer nofollow"'


def link(url, text):
    return f'<a href="{url}" title="{url}" {A}>{text}</a>'


def code(language, text):
    return (
        f'<figure class="code"><figcaption><span>{language or "text"}</span><button type="button" class="copy">Copy</button></figcaption>'
        f'<pre tabindex="0" role="region" aria-label="{(language + " code").strip()}"><code>{text}</code></pre></figure>'
    )


def table(inside):
    return f'<div class="table" tabindex="0" role="region" aria-label="table"><table>{inside}</table></div>'


CASES = {
    "paragraphs": ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
    "headings": ("# A\n## B ##\n####### C", "<h3>A</h3><h4>B</h4><p>####### C</p>"),
    "underlined": ("Title\n=====\nother\n---\n\n---", "<h3>Title</h3><h4>other</h4><hr>"),
    "emphasis": ("**a** *b* __c__ _d_ ***e*** ~~f~~", "<p><strong>a</strong> <em>b</em> <strong>c</strong> <em>d</em> <em><strong>e</strong></em> <del>f</del></p>"),
    "no emphasis": ("2 * 3 * 4, snake_case_name, ** a ** ~x~", "<p>2 * 3 * 4, snake_case_name, ** a ** ~x~</p>"),
    "nested": ("**a *b* c** *d **e***", "<p><strong>a <em>b</em> c</strong> <em>d <strong>e</strong></em></p>"),
    "unclosed": ("**a\n\n*b `c\n\n[d](e", "<p>**a</p><p>*b `c</p><p>[d](e</p>"),
    "code span": ("`` a`b `` `<b>` \\`x\\`", "<p><code>a`b</code> <code>&lt;b&gt;</code> `x`</p>"),
    "escapes": (r"\*a\* \# \[b\] C:\dir", r"<p>*a* # [b] C:\dir</p>"),
    "links": ("[a](https://b.example/c_(d)) <https://e.example> https://f.example/g_h.", f"<p>{link('https://b.example/c_(d)', 'a')} {link('https://e.example/', 'https://e.example')} {link('https://f.example/g_h', 'https://f.example/g_h')}.</p>"),
    "link with title": ('[a](https://b.example "c d")', f"<p>{link('https://b.example/', 'a')}</p>"),
    "link in link": ("[x https://a.example y](https://b.example)", f"<p>{link('https://b.example/', 'x https://a.example y')}</p>"),
    "images are links": ("![alt](https://a.example/b.png)", f"<p>{link('https://a.example/b.png', 'alt')}</p>"),
    "quote": ("> a\n> > b\nc\n\nd", "<blockquote><p>a</p><blockquote><p>b<br>c</p></blockquote></blockquote><p>d</p>"),
    "list": ("- a\n- b\n  - c\n\n    d\n* e", "<ul><li>a</li><li>b<ul><li><p>c</p><p>d</p></li></ul></li></ul><ul><li>e</li></ul>"),
    "numbers": ("3. a\n4. b\n   more\n1) c", '<ol start="3"><li>a</li><li>b<br>more</li></ol><ol><li>c</li></ol>'),
    "no list": ("Born in\n1986. What a year\n-no", "<p>Born in<br>1986. What a year<br>-no</p>"),
    "two spaces are enough": ("1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
    "tasks": ("- [ ] a\n- [x] b", '<ul><li class="task">☐ a</li><li class="task">☑ b</li></ul>'),
    "code in list": ("- a\n  ```\n  x\n    y\n  ```\n- b", f"<ul><li>a{code('', 'x' + chr(10) + '  y')}</li><li>b</li></ul>"),
    "fence": ("```python\nif a < b:\n    c\n```\nafter", code("python", "if a &lt; b:\n    c") + "<p>after</p>"),
    "long fence": ("````\n```\nx\n```\n````", code("", "```\nx\n```")),
    "tilde fence": ("~~~ `js` x\na\n~~~", code("`js`", "a")),
    "open fence": ("```c\nint a;\n", code("c", "int a;\n")),
    "table": ("| a | b |\n|:--|--:|\n| 1 | *2* |\n| 3 \\| 4 |\n\nend", table('<thead><tr><th>a</th><th class="right">b</th></tr></thead><tbody><tr><td>1</td><td class="right"><em>2</em></td></tr><tr><td>3 | 4</td><td class="right"></td></tr></tbody>') + "<p>end</p>"),
    "table without edges": ("a|b\n:-:|-\n1|2", table('<thead><tr><th class="centre">a</th><th>b</th></tr></thead><tbody><tr><td class="centre">1</td><td>2</td></tr></tbody>')),
    "break in a cell": ("|a|\n|-|\n|b<br>c|", table("<thead><tr><th>a</th></tr></thead><tbody><tr><td>b<br>c</td></tr></tbody>")),
    "html is text": ("<img src=x onerror=alert(1)> <script>a</script> &amp; <b>c</b>", "<p>&lt;img src=x onerror=alert(1)&gt; &lt;script&gt;a&lt;/script&gt; &amp;amp; &lt;b&gt;c&lt;/b&gt;</p>"),
}  # fmt: skip

HOSTILE = [
    "[a](javascript:alert(1))", "[a](JaVaScRiPt:alert(1))", "[a](java\nscript:alert(1))", "[a](java\tscript:alert(1))", "[a](&#106;avascript:alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)", "[a](vbscript:x)", "[a](file:///etc/passwd)", "[a](blob:https://x/y)", "[a](//evil.example)",
    "[a](\\javascript:alert(1))", "[a](<javascript:alert(1)>)", "<javascript:alert(1)>", "![a](javascript:alert(1))", "[a]( javascript:alert(1))",
    "[a](\x01javascript:alert(1))", "[![b](https://x.example)](javascript:alert(1))", '[a](https://x.example" onmouseover="alert(1))',
    '```"><img src=x onerror=alert(1)>\nx\n```', "```</code></pre><script>alert(1)</script>\nx\n```", "`<svg onload=alert(1)>`", "|<img src=x onerror=alert(1)>|\n|-|\n|<iframe src=javascript:alert(1)>|",
    "# <style>*{display:none}</style>", "- <a href=javascript:alert(1)>x</a>", "> <form action=https://evil.example>", "<details open ontoggle=alert(1)>", "[x]: javascript:alert(1)\n[x]",
    "<!--><img src=x onerror=alert(1)>-->", "<br onclick=alert(1)>", "https://x.example/<script>alert(1)</script>", "https://x.example/\"onclick=alert(1)", "\u202e[a](https://x.example)",
]  # fmt: skip


@pytest.fixture(scope="module")
def tab(browser, served):
    page = browser.new_page()
    page.goto(served[0])
    yield page
    page.close()


class Elements(HTMLParser):
    """(tag, attributes) of each element of a serialised tree."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, attrs))


@pytest.mark.parametrize("name", CASES)
def test_blocks_and_spans(tab, name):
    source, expected = CASES[name]
    assert tab.evaluate(WHOLE, [source]) == [expected]


def splits(text, random):
    """The text in pieces of one to nine characters."""
    at = 0
    while at < len(text):
        n = random.randint(1, 9)
        yield text[at : at + n]
        at += n


def sources():
    """Each case, all of them in one text, and texts of random pieces of markdown."""
    yield from (source for source, _ in CASES.values())
    yield "\n\n".join(source for source, _ in CASES.values() if "```c" not in source)
    pieces = ["*", "**", "_", "`", "```", "~~~", "\n", "\n\n", "- ", "  - ", "1. ", "> ", "# ", "|", "|-|\n", "[", "](", ")", "https://a.b", "<br>", "<img src=x>", "word ", " ", "\\", "---", "===", "é漢🙂"]  # fmt: skip
    for seed in range(200):
        r = random.Random(seed)
        yield "".join(r.choice(pieces) for _ in range(r.randint(5, 80)))


def test_pieces_give_what_the_whole_gives(tab):
    texts = list(sources())
    wholes = tab.evaluate(WHOLE, texts)
    r = random.Random(1)
    for text, whole in zip(texts, wholes, strict=True):
        assert tab.evaluate(RENDER, [list(splits(text, r)), False]) == whole, text


def test_no_text_makes_other_elements_or_attributes_at_any_time(tab):
    r = random.Random(2)
    texts = [*HOSTILE, *(f"{a} {b}" for a, b in zip(HOSTILE, reversed(HOSTILE), strict=True))]
    for text in texts:
        shown = tab.evaluate(RENDER, [list(splits(text, r)), True])
        for tag, attributes in (e for html in shown for e in Elements(html).found):
            assert tag in ALLOWED.split(), (text, tag)
            for name, value in attributes:
                assert name in ATTRIBUTES, (text, name)
                assert name != "href" or value.startswith(("https://", "http://", "mailto:")), (text, value)


def test_a_link_that_may_not_be_stays_as_it_was_written(tab):
    assert tab.evaluate(WHOLE, ["[a](javascript:alert(1))"]) == ["<p>[a](javascript:alert(1))</p>"]


def test_what_is_finished_stays_the_same_nodes(tab):
    assert tab.evaluate("""async () => {
      const { MarkdownStream } = await import("/page/markdown.js");
      const root = document.createElement("div");
      document.body.append(root);
      const stream = new MarkdownStream(root);
      stream.push("# Title\\n\\nA paragraph with **bold** text.\\n\\n- one\\n- two");
      const bold = root.querySelector("strong").firstChild, one = root.querySelector("li");
      getSelection().setBaseAndExtent(bold, 0, one.firstChild, 3);
      const before = getSelection().toString();
      for (const word of " words\\n- three\\n\\nand more **text** `here`\\n\\n```\\ncode\\n```\\n".match(/.{1,3}|\\n/gs)) stream.push(word);
      stream.end();
      const same = root.querySelector("strong").firstChild === bold && root.querySelector("li") === one && getSelection().toString() === before;
      getSelection().removeAllRanges();
      root.remove();
      return same && before.includes("bold text");
    }""")


@pytest.mark.parametrize(
    "unit",
    ["A sentence of a paragraph. ", "- an item of a list\n", "A paragraph.\n\n", "a line of code\n", "| a | b |\n"],
    ids=["paragraph", "list", "paragraphs", "code", "table"],
)
def test_the_work_is_linear_in_the_text(tab, unit):
    """Nodes that are made and changed, for a text and for one four times as long."""

    def work(n):
        head = {"a line of code\n": "```\n", "| a | b |\n": "| x | y |\n|---|---|\n"}.get(unit, "")
        return tab.evaluate(
            """async ([head, unit, n]) => {
              const { MarkdownStream } = await import("/page/markdown.js");
              const root = document.createElement("div");
              document.body.append(root);
              let made = 0;
              const count = (records) => records.forEach((r) => (made += 1 + r.addedNodes.length + r.removedNodes.length));
              const observer = new MutationObserver(count);
              observer.observe(root, { subtree: true, childList: true, characterData: true });
              const stream = new MarkdownStream(root);
              stream.push(head);
              for (let i = 0; i < n; i++) for (const piece of unit.match(/.{1,5}|\\n/g)) stream.push(piece);
              stream.end();
              count(observer.takeRecords());
              const length = root.textContent.length;
              root.remove();
              return [made, length];
            }""",
            [head, unit, n],
        )

    (few, short), (many, long) = work(50), work(200)
    assert long > 3 * short
    assert few > 50 and many < 5 * few


@pytest.mark.parametrize(
    "text",
    [
        "*a _b " * 20_000, "[" * 50_000, "[a](" * 20_000, "`" * 3 + "a`" * 30_000, ">" * 20_000, "- " * 20_000, "# " + " " * 50_000 + "x",
        "|" * 50_000 + "\n" + "|-" * 25_000, "**" * 40_000, "a" + "\\" * 50_000, "https://" * 10_000, "<" * 50_000, "_a" * 40_000, "`a``" * 20_000,
        "* " * 3 + " " * 50_000 + "x", "\n" * 100_000, "- a\n" * 20_000, "> a\n" * 10_000, "![" * 30_000 + "](x)" * 30_000, "~~a" * 30_000,
    ],
    ids=range(20),
)  # fmt: skip
def test_texts_made_to_be_slow_are_not(tab, text):
    """Each within Playwright's time limit, whole and in pieces."""
    assert isinstance(tab.evaluate(WHOLE, [text])[0], str)
    pieces = [text[i : i + 1 + len(text) // 20] for i in range(0, len(text), 1 + len(text) // 20)]
    assert isinstance(tab.evaluate(RENDER, [pieces, False]), str)
