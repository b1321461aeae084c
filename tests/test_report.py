"""The report is one page that loads nothing, and whatever a cell contains is text."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustclf.cli import report
from robustclf.cli.audit import Settings, audit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ATTACK = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror="document.title=1">'
COLUMN = "</style><b>x"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
]


class Page(HTMLParser):
    """Tags with their attributes, and the text in them."""

    VOID = ("meta", "input", "br", "img", "link")

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def hostile(wrong):
    rng = np.random.default_rng(0)
    n = 240
    true = rng.integers(2, size=n)
    flipped = rng.random(n) < wrong
    return pd.DataFrame(
        {
            "id": [f"{IMAGE}{i}" for i in range(n)],
            COLUMN: 4 * true + rng.normal(size=n),
            "b": -4 * true + rng.normal(size=n),
            "y{{ 7 * 7 }}": np.array([ATTACK, "$x_{2"])[true ^ flipped],
        }
    )


def render(folder, wrong):
    path = folder / f"{COLUMN.replace('/', '')}.csv"
    hostile(wrong).to_csv(path, index=False)
    settings = Settings(row_id="id", max_epochs=10, quiet=True, device="cpu")
    return report.render(audit(path, "y{{ 7 * 7 }}", settings))


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return render(tmp_path_factory.mktemp("noisy"), 0.25)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    return render(tmp_path_factory.mktemp("calm"), 0)


def test_nothing_is_loaded(html):
    page = Page(html)
    [policy] = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; ")
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]
    assert "http" not in policy
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"link", "iframe", "object", "embed", "base", "form", "img", "video"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                assert value.startswith(("#", "data:image/png;base64,")), (name, value)
            assert not name.startswith("on")
    styles = " ".join(re.findall(r"<style.*?</style>", html, re.DOTALL))
    assert "@import" not in styles
    assert not re.search(r"url\((?!#)", html)


@pytest.mark.parametrize("cell", [ATTACK, IMAGE, COLUMN])
def test_cells_are_text(html, calm, cell):
    for text in (html, calm):
        assert cell not in text
        assert cell in Page(text).text
        assert len(Page(text).all("script")) == 1
    assert "y{{ 7 * 7 }}" in Page(html).text


def test_the_first_lines_answer(html, calm):
    text = " ".join(Page(html).text.split())
    assert re.search(r"About \d+ % of the labels are wrong \d labels in 10|One label in", text)
    assert text.index("Which ones?") < text.index("Suspicious rows")
    text = " ".join(Page(calm).text.split())
    assert "Nothing needs cleaning" in text
    assert "Suspicious rows" not in text
    assert "Worth a look, though not called wrong" in text


def test_structure(html, calm):
    for text in (html, calm):
        page = Page(text)
        assert page.open == []
        headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert headings[0] == 1
        assert headings.count(1) == 1
        assert (np.diff(headings) <= 1).all()
        assert all("scope" in attributes for attributes in page.all("th"))
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        known = {f"#{name}" for name in ids}
        used = re.findall(r'(?:xlink:href|href)="(#[^"]+)"|url\((#[^)]+)\)', text)
        assert {a or b for a, b in used} <= known
        labelled = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
        assert {f"#{name}" for name in labelled} <= known


def test_rows(html, calm, monkeypatch, tmp_path):
    assert html.count('<th scope="row">') > 20
    assert calm.count('<th scope="row">') == report.WORTH_A_LOOK
    assert html.count("<svg") == 3
    assert calm.count("<svg") == 1
    monkeypatch.setattr(report, "MOST_ROWS", 5)
    few = render(tmp_path, 0.25)
    assert few.count('<th scope="row">') == 5
    assert re.search(r"The first 5 of\s+\d+; <code>issues.csv</code> has them all", few)


def contrast(a, b):
    """WCAG's ratio of the luminances of two colours."""

    def luminance(color):
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def test_contrast(html):
    themes = re.findall(r":root \{(.*?)\}", html, re.DOTALL)
    assert len(themes) == 2  # light and dark
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for theme in themes:
        color = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        for ground in ("ground", "panel"):
            assert contrast(color["ink"], color[ground]) > 7
            assert contrast(color["soft"], color[ground]) > 4.5
        assert contrast(color["orange"], color["ground"]) > 4.5
        assert contrast(color["blue"], color["ground"]) > 3  # graphics


def chromium(folder, page, *flags):
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    profile = folder / "profile"
    argv = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, f"file://{path}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    shutil.rmtree(profile)
    return done.stdout


WRAPPER = """<!doctype html><body><iframe style="border:0;width:{width}px;height:900px"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const heads = page.querySelectorAll("#rows thead th");
  const column = (i) => [...page.querySelectorAll("#rows tbody tr")]
    .filter((row) => !row.hidden).map((row) => row.cells[i].textContent.trim());
  heads[0].querySelector("button").click();
  const up = column(0).length && heads[0].getAttribute("aria-sort");
  const first = column(3)[0];
  heads[3].querySelector("button").click();
  const sorted = column(3).map(Number), inOrder = sorted.every((v, i) => !i || sorted[i - 1] <= v);
  const search = page.querySelector("#search"), all = sorted.length;
  search.value = "alert(1"; search.dispatchEvent(new Event("input"));
  const matching = column(0).length;
  search.value = "no such cell"; search.dispatchEvent(new Event("input"));
  document.body.textContent = "RESULT" + JSON.stringify({{
    wide: root.scrollWidth, up, inOrder, all, matching, none: column(0).length,
    title: page.title, small: [...page.querySelectorAll("th, td, p, dd, li")]
      .filter((e) => parseFloat(frame.contentWindow.getComputedStyle(e).fontSize) < 11).length,
  }});
}};
frame.srcdoc = {page};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(html, tmp_path, width):
    import json

    page = json.dumps(html).replace("</", "<\\/").replace("<!--", "<\\!--")
    out = chromium(tmp_path, WRAPPER.format(width=width, page=page), "--dump-dom")
    found = json.loads(re.search(r"RESULT(\{.*?\})", out)[1].replace("&lt;", "<"))
    assert found["wide"] == width  # nothing sticks out
    assert found["up"] == "ascending"
    assert found["inOrder"]
    assert found["all"] == found["matching"] > 20  # one of the classes is in every row
    assert found["none"] == 0
    assert found["title"].startswith("About")
    assert found["small"] == 0


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_no_injected_script_runs(html, tmp_path):
    """Even if a cell were not escaped, the policy would stop it; our own script runs."""
    marker = "document.documentElement.dataset.injected = 1"
    broken = html.replace(
        "</main>", f"<script>{marker}</script><img src=x onerror='{marker}'></main>"
    )
    assert broken != html
    dom = chromium(tmp_path, broken, "--dump-dom")
    assert "data-injected" not in dom
    assert dom.count("<button") == 4
    assert "<button" not in html  # without a script there is nothing that does not work
    assert not Path(tmp_path / "profile").exists()
