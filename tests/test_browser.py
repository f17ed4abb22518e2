"""The page in a real browser: it works by mouse and by keyboard, and asks for nothing outside."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.report.document import report
from tests.conftest import Recipe
from tests.reports import HOSTILE, IMAGE, hostile_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOW = "no browser: apt-get install -y chromium chromium-driver"
TABLE = "#overview_agreement_predicted table"


class Window:
    """The report, opened."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def until(self, script: str) -> Any:
        """Wait for a condition; the value that fulfils it."""
        return WebDriverWait(self.driver, 20, 0.02).until(lambda d: d.execute_script(script))

    def column(self, index: int, table: str = TABLE) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map("
        return self.js(script + "r => r.cells[arguments[1]].dataset.order)", table, index)

    def question(self) -> str:
        return self.js("return document.querySelector('#example-question').textContent")

    def pixels(self) -> list[str]:
        return self.js(
            "return [...document.querySelectorAll('dialog canvas')].map(c => c.toDataURL())"
        )


@pytest.fixture(scope="module")
def opened(
    recipe: Recipe, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Window]:
    """The report of a run with hostile questions, in one browser for all tests."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip(HOW)
    folder = tmp_path_factory.mktemp("opened")
    page = report(hostile_run(recipe, world, folder), folder / "report", say=lambda text: None).page
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        window.set_window_size(1280, 900)
        window.get(page.as_uri())
        made = Window(window)
        made.until("return document.documentElement.dataset.drawn === 'yes'")
        yield made
    finally:
        window.quit()


@pytest.fixture
def window(opened: Window) -> Window:
    """The page without an open dialog, filter or order."""
    opened.js(
        "document.querySelector('#example').close();"
        "const form = document.querySelector('.filters'); form.reset();"
        "form.dispatchEvent(new Event('input')); document.activeElement.blur(); scrollTo(0, 0)"
    )
    return opened


def test_headers_sort_by_click(window: Window) -> None:
    head = window.all(f"{TABLE} thead button")[1]
    before = window.column(1)
    head.click()
    first = window.column(1)
    head.click()
    second = window.column(1)
    numbers = [float(value) for value in first]
    assert numbers == sorted(numbers, reverse=True)
    assert second == first[::-1]
    assert sorted(first) == sorted(before)
    cell = window.all(f"{TABLE} thead th")[1]
    assert cell.get_attribute("aria-sort") == "ascending"


def test_headers_sort_by_keyboard(window: Window) -> None:
    window.js("arguments[0].focus()", window.all(f"{TABLE} thead button")[0])
    window.press(Keys.ENTER)
    names = window.column(0)
    assert names == sorted(names)
    window.press(Keys.SPACE)
    assert window.column(0) == names[::-1]
    window.press(Keys.TAB, Keys.ENTER)
    assert window.column(0) != names[::-1]
    sorts = [th.get_attribute("aria-sort") for th in window.all(f"{TABLE} thead th")]
    assert [bool(sort) for sort in sorts[:2]] == [False, True]


def test_example_opens_moves_and_closes_by_keyboard(window: Window) -> None:
    thumbs = window.all(".thumbs button")
    window.js("arguments[0].focus()", thumbs[1])
    window.press(Keys.ENTER)
    assert window.js("return document.querySelector('#example').open")
    first = window.question()
    assert first == thumbs[1].find_element(By.CSS_SELECTOR, ".question").text
    window.press(Keys.ARROW_RIGHT)
    assert window.question() == thumbs[2].find_element(By.CSS_SELECTOR, ".question").text
    window.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert window.js("return document.querySelector('.place').textContent") == "Example 1 of 21"
    window.press(Keys.ESCAPE)
    assert not window.js("return document.querySelector('#example').open")
    assert window.js("return document.activeElement === arguments[0]", thumbs[1])


def test_panel_opens_its_own_selection(window: Window) -> None:
    openers = window.all("#overview_extremes button[data-example]")
    openers[1].click()
    place = window.js("return document.querySelector('.place').textContent")
    assert place == f"Example 2 of {len(openers)}"
    assert len(window.all("#overview_extremes .tiles canvas")) >= 3 * len(openers)


def test_scales_change_colours_and_nothing_else(window: Window) -> None:
    window.all(".thumbs button")[2].click()
    window.until("return document.querySelectorAll('dialog canvas').length")
    shared, size = window.pixels(), len(window.all("dialog .tile"))
    drawn = {}
    for scale in ("own", "raw", "shared"):
        button = window.all(f"[data-scale={scale}]")[0]
        window.js("document.querySelector('dialog .tile').className = 'old'")
        button.click()
        window.until("return !document.querySelector('dialog .old')")
        assert button.get_attribute("aria-pressed") == "true"
        drawn[scale] = window.pixels()
    assert drawn["shared"] == shared
    assert len({json.dumps(pixels) for pixels in drawn.values()}) == 3
    assert len(window.all("dialog .tile")) == size
    blank = window.js("return document.createElement('canvas').toDataURL()")
    assert blank not in shared


def test_words_tell_their_numbers_on_focus(window: Window) -> None:
    window.all(".thumbs button")[2].click()
    word = window.all("dialog .word")[0]
    window.js("arguments[0].focus()", word)
    tip = window.all("#tip")[0]
    assert tip.is_displayed()
    assert tip.text == word.get_attribute("data-tip")
    assert tip.text.startswith(f"{word.text}: ")
    assert word.get_attribute("aria-describedby") == "tip"


def test_filters_narrow_the_examples(window: Window) -> None:
    def shown() -> list[str]:
        script = "return [...document.querySelectorAll('.thumbs li:not([hidden]) button')]"
        return window.js(f"{script}.map(b => b.dataset.outcome)")

    everything = shown()
    window.js("document.querySelector('[name=outcome]').focus()")
    window.press("wrong")
    wrong = shown()
    assert set(wrong) == {"wrong"}
    assert len(wrong) == everything.count("wrong")
    window.all("[name=text]")[0].send_keys("no such words")
    assert shown() == []
    assert window.all(".none")[0].is_displayed()
    assert window.all(".filters output")[0].text == "0 shown"


def test_hostile_question_is_shown_as_text(window: Window) -> None:
    window.all("[name=text]")[0].send_keys("</script>")
    thumbs = [b for b in window.all(".thumbs button") if b.is_displayed()]
    assert len(thumbs) == 1
    assert HOSTILE in thumbs[0].text
    thumbs[0].click()
    assert window.question() == HOSTILE
    assert IMAGE in window.all("dialog dl")[0].text
    assert window.driver.title == "run"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, False), (360, True)])
def test_page_fits_and_is_legible(window: Window, width: int, dark: bool) -> None:
    """No sideways scrolling, and every text stands out from what is behind it by WCAG's AA."""
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    command = window.driver.execute_cdp_cmd
    command("Emulation.setEmulatedMedia", {"features": scheme})
    command("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert window.js("return document.documentElement.scrollWidth") <= width
        faint = window.js(CONTRAST)
        assert faint == []
    finally:
        command("Emulation.setEmulatedMedia", {"features": []})
        command("Emulation.clearDeviceMetricsOverride", {})


CONTRAST = """
const parse = (c) => (c.match(/[\\d.]+/g) ?? []).map(Number);
const light = (c) => {
  const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
function behind(element) {
  for (let e = element; e; e = e.parentElement) {
    const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
    if (a > 0.99) return [r, g, b];
  }
  return [255, 255, 255];
}
const faint = [];
for (const element of document.querySelectorAll('main *, nav *')) {
  const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!own || !element.checkVisibility() || element.closest('noscript, script, option')) continue;
  const text = light(parse(getComputedStyle(element).color).slice(0, 3));
  const back = light(behind(element));
  const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
  if (ratio < 4.5) faint.push(`${element.outerHTML.slice(0, 80)} ${ratio.toFixed(2)}`);
}
return faint;
"""


def test_page_prints_on_several_pages(window: Window) -> None:
    printed = window.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") > 1
    assert not window.all("main details.data[open]")


def test_browser_has_nothing_to_complain_of_and_asks_nobody(window: Window) -> None:
    """Last: of all that was done above."""
    assert window.driver.get_log("browser") == []
    asked = set()
    for entry in window.driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in {"Network.requestWillBeSent", "Network.webSocketCreated"}:
            parameters = message["params"]
            asked.add(parameters.get("request", parameters)["url"].split(":")[0])
    assert "file" in asked
    assert asked <= {"file", "data", "blob", "chrome"}  # the last is the empty first tab's
