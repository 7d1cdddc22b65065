"""The report page in a headless Chromium: sorting, keyboard, phone width, contrast, no errors and no network.

Skipped where there is neither Playwright nor a browser; MAE_TRANSFER_CHROMIUM names one that is not on the path.
"""

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
BROWSER = os.environ.get("MAE_TRANSFER_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium (apt-get install chromium)")

CONTRAST = """
() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const part = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const behind = (e) => {
    for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] !== 0) return c; }
    throw new Error("no background");
  };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest(".hidden, .skip, script, style")) continue;
    const style = getComputedStyle(e), svg = e.closest("svg");
    const [a, b] = [light(parse(svg ? style.fill : style.color)), light(behind(svg ? svg.parentElement : e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push([e.tagName, e.textContent.trim().slice(0, 40), ratio]);
  }
  return bad;
}
"""


@pytest.fixture(scope="module")
def address(page: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("browser") / "index.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])  # CI runs as root
        yield running
        running.close()


class Visit:
    def __init__(self, browser: Any, address: str, width: int = 1280, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def column(self, number: int) -> list[str]:
        return self.page.locator(f"table.all tbody tr > :nth-child({number})").all_inner_texts()


def test_no_errors_no_network_and_no_code_of_a_record(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    visit.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    visit.page.wait_for_timeout(100)
    assert visit.messages == []
    assert [url for url in visit.requests if url != address and not url.startswith("data:")] == []
    assert visit.page.evaluate("window.hacked") is None


def test_sorting_by_click_and_by_keyboard(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    head = visit.page.locator("table.all thead th").nth(8)
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    values = visit.column(9)
    numbers = [float(value) for value in values if value != "-"]
    assert numbers == sorted(numbers)
    assert values[-1] == "-", "a missing value stands last"
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").focus()
    visit.page.keyboard.press("Enter")
    values = visit.column(9)
    numbers = [float(value) for value in values if value != "-"]
    assert numbers == sorted(numbers, reverse=True)
    assert values[-1] == "-"
    assert head.get_attribute("aria-sort") == "descending"
    visit.page.locator("table.all thead th").nth(1).locator("button").press("Space")
    assert head.get_attribute("aria-sort") == "none"
    blocks = [text for text in visit.column(2) if "partial" in text]
    assert blocks == [f"Classification partial {n} blocks" for n in ("0.5", "1", "4", "12") for _ in range(2)], (
        "as numbers"
    )
    assert "sorted by task" in visit.page.locator("#said").inner_text()


def test_keyboard_reaches_the_skip_link_first_and_links_open_runs(browser: Any, address: str) -> None:
    page = Visit(browser, address).page
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.className")
    assert focused == "skip"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.locator("table.all tbody a").first.press("Enter")
    page.wait_for_function("document.querySelector('#run-1').open")
    assert page.evaluate("document.activeElement.parentElement.id") == "run-1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_and_contrast(browser: Any, address: str, scheme: str) -> None:
    page = Visit(browser, address, 375, scheme).page
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.evaluate(CONTRAST) == []


def test_headings_names_and_images(browser: Any, address: str) -> None:
    page = Visit(browser, address).page
    assert page.locator("h1").all_inner_texts() == ["Transfer results"]
    assert page.locator("h2").all_inner_texts() == ["Tables", "Plots", "All runs", "Runs one by one", "Left out"]
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
    assert all(after <= before + 1 for before, after in pairwise(levels))
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.locator("img").count() == 2
    for image in page.locator("img").all():
        assert image.get_attribute("alt")
        image.scroll_into_view_if_needed()
        page.wait_for_function("(i) => i.complete && i.naturalWidth === 400", arg=image.element_handle())
    assert page.locator("svg.plot").count() > 10
    assert page.locator("svg.plot:not([aria-label])").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_prints_light_and_within_the_page(browser: Any, address: str, tmp_path: Path) -> None:
    page = Visit(browser, address, scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 33, 39)"
    assert page.pdf().startswith(b"%PDF")


def test_search_and_choices_narrow_the_runs(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    page, rows, cards = visit.page, "table.all tbody tr:visible", "details.run:visible"
    total = page.locator(rows).count()
    assert page.locator("form.filter output").inner_text() == f"{total} of {total} runs"
    page.get_by_label("search").fill("PARTIAL mae_vit_b")
    assert page.locator(rows).count() == page.locator(cards).count() == 8
    assert page.locator("h3.task:visible").all_inner_texts() == ["Classification"]
    page.get_by_label("search").fill("")
    page.get_by_label("task").select_option("COCO")
    page.get_by_label("initialisation").select_option("MAE")
    assert page.locator(rows).count() == page.locator(cards).count() == 6
    assert page.locator("form.filter output").inner_text() == f"6 of {total} runs"
    page.evaluate("location.hash = document.querySelector('details.run[hidden]').id")
    page.wait_for_function("document.querySelector('details.run[open]')")
    assert page.locator(rows).count() == total, "a link to a hidden run shows it"
    heads = [card.inner_text() for card in page.locator("details.run > summary").all()]
    assert len(set(heads)) == total, "no two cards have one head"
    assert visit.messages == []
