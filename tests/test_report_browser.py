"""The page in a real headless Chromium: counts, filter, order, search, pages, links, console, and no request off it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.test_compare_runs import run_of
from tests.test_report import HOSTILE, image_row, report
from util.compare_page import write_comparison
from util.compare_runs import compare
from util.report import link_to, save_thumbnail, write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
if not BINARY or not DRIVER:
    pytest.skip("no chromium with its chromedriver", allow_module_level=True)

COUNT = 130
FLAGS = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"


def rows():
    found = [image_row(f"{i}.png", i, smear="images/a.webp", predicted_mask="images/m.png", overlay="images/a.webp")
             for i in range(COUNT)]  # fmt: skip
    for index, row in enumerate(found):
        row.prob = {"tier1": 0.5, "global": round(0.5 + 0.4 * index / COUNT, 6)}  # all called Anemic: even ones wrongly
    found[77].prob["tier1"] = 0.5000004
    for row, name in zip(found, HOSTILE, strict=False):
        row.name = row.group = name
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    save_thumbnail(folder / "images/a.webp", np.full((30, 40, 3), 180, np.uint8))
    save_thumbnail(folder / "images/m.png", np.eye(30, 40) > 0)
    history = [{"epoch": n, "train": {"loss_cls": 1 / n, "accuracy": {"tier1": 0.8}}} for n in (1, 2, 3)]
    gate_log = [{"tier": 1, "epoch": n, "decision": said, "train": 0.8} for n, said in ((1, "stay"), (2, "open"))]
    return write_report(folder, report(images=rows(), history=history, gate_log=gate_log))


@pytest.fixture(scope="module")
def browser(page):
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BINARY
    for flag in (*FLAGS.split(), "disable-component-update", "window-size=390,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(DRIVER))
    opened.get(page.as_uri())
    yield opened
    opened.quit()


def run(browser, script, *arguments):
    return browser.execute_script(script, *arguments)


def shown(browser):
    return run(browser, "return [...document.querySelectorAll('article.image h3')].map(e => e.textContent)")


def where(browser):
    return run(browser, "return document.querySelector('#images .where').textContent")


def enter(browser, key, value, event):
    found = "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
    run(browser, f"{found} field.dispatchEvent(new Event(arguments[2]))", key, value, event)
    settle(browser)


def press(browser, selector):
    run(browser, "document.querySelector(arguments[0]).click()", selector)
    settle(browser)


def settle(browser):
    busy = "document.querySelector('#image-list[aria-busy=true]')"
    browser.execute_async_script(f"const wait = (d) => {busy} ? setTimeout(wait, 5, d) : d(); wait(arguments[0])")


@pytest.fixture(autouse=True)
def as_opened(browser):
    enter(browser, "image-search", "", "input")
    enter(browser, "image-sort", "data", "change")
    press(browser, "[data-show=all]")


def test_the_filters_count_what_the_rows_say(browser):
    assert where(browser) == f"1 to 50 of {COUNT} images, page 1 of 3"
    for choice, count in (("wrong", 65), ("healthy", 65), ("anemic", 65), ("all", COUNT)):
        press(browser, f"[data-show={choice}]")
        assert f"of {count} images" in where(browser)
        pressed = run(browser, "return document.querySelector('[aria-pressed=true]').dataset.show")
        assert pressed == choice
    press(browser, "[data-show=wrong]")
    assert set(
        run(browser, "return [...document.querySelectorAll('article.image .verdict')].map(e => e.textContent)")
    ) == {"✗ wrong"}


def test_a_screenful_comes_at_once_and_a_later_choice_ends_what_still_comes(browser):
    cards = "[...document.querySelectorAll('article.image h3')].map(e => e.textContent)"
    click = "document.querySelector('[data-show={}]').click();"
    at_once = run(browser, f"{click.format('wrong')} {click.format('all')} return {cards}")
    settle(browser)
    assert len(at_once) == 8 and at_once == shown(browser)[:8]
    assert len(shown(browser)) == 50 and shown(browser)[10:] == [f"{i}.png" for i in range(10, 50)]
    begun = "const d = arguments[0];"
    later = f"setTimeout(() => {{ {click.format('wrong')} setTimeout(() => d({cards}), 1500); }}, 45);"
    found = browser.execute_async_script(f"{begun} {click.format('all')} {later}")  # while the rest is being added
    assert len(found) == len(set(found)) == 50
    settle(browser)
    assert run(browser, "return [...document.querySelectorAll('.image .verdict')].every(e => e.textContent[0] == '✗')")
    printed = f"{click.format('all')} dispatchEvent(new Event('beforeprint')); return {cards}.length"
    assert run(browser, printed) == 50


def test_the_orders(browser):
    enter(browser, "image-sort", "highest", "change")
    assert shown(browser)[:2] == ["129.png", "128.png"]
    enter(browser, "image-sort", "wrong", "change")
    assert shown(browser)[:3] == ["128.png", "126.png", "124.png"]
    enter(browser, "image-sort", "lowest", "change")
    assert shown(browser)[10] == "10.png"
    enter(browser, "image-sort", "name", "change")
    plain = [name for name in shown(browser) if name[:-4].isdigit()]
    assert plain[:3] == ["10.png", "11.png", "12.png"]  # by number, not 10, 100, 101


def test_search_finds_names_that_look_like_markup(browser):
    for name in ("</script>", "it's", "100% #1?&amp;", "تجربة", "=SUM"):
        enter(browser, "image-search", name, "input")
        assert [name in one for one in shown(browser)] == [True] * len(shown(browser)) and shown(browser)
    enter(browser, "image-search", "no such image", "input")
    assert "0 to 0 of 0 images" in where(browser)
    assert "No image fits" in run(browser, "return document.getElementById('image-list').textContent")


def test_pages(browser):
    press(browser, "#images [data-step='1']")
    assert where(browser) == f"51 to 100 of {COUNT} images, page 2 of 3"
    assert shown(browser)[0] == "50.png"
    enter(browser, "image-page", "1", "change")
    assert "page 1 of 3" in where(browser)
    run(browser, "document.querySelector(\"#images [data-step='1']\").focus()")
    for _ in range(2):  # the second leads to the last page and disables the button
        press(browser, "#images [data-step='1']")
    assert run(browser, "return document.activeElement === document.querySelector('#images h2')")
    enter(browser, "image-page", "3", "change")
    assert where(browser) == f"101 to {COUNT} of {COUNT} images, page 3 of 3" and len(shown(browser)) == 30
    assert run(browser, "return document.querySelector(\"#images [data-step='1']\").disabled")
    enter(browser, "image-page", "999", "change")
    assert "page 3 of 3" in where(browser)


def test_links_lead_to_the_files_and_to_the_sections(browser, page):
    links = run(browser, "return [...document.querySelectorAll('#image-list a')].map(e => e.href)")
    assert len(links) == 150 and set(links) == {
        (page.parent / link_to(f)).as_uri() for f in ("images/a.webp", "images/m.png")
    }
    missing = "return [...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.hash)).length"
    assert run(browser, missing) == 0


def test_nothing_is_wider_than_a_phone_and_pictures_are_loaded_when_they_come_into_view(browser):
    assert run(browser, "return document.documentElement.scrollWidth <= window.innerWidth")
    run(browser, "document.querySelector('article.image img').scrollIntoView()")
    loaded = "const d = arguments[0], i = document.querySelector('article.image img'); " \
        "i.complete ? d(i.naturalWidth) : i.addEventListener('load', () => d(i.naturalWidth))"  # fmt: skip
    assert browser.execute_async_script(loaded) == 40
    assert run(browser, "return [...document.querySelectorAll('#image-list img')].every(e => e.loading === 'lazy')")


def test_captions_and_legends_stay_in_sight_on_a_phone(browser):
    scrolled = "document.querySelectorAll('.scroll').forEach(e => e.scrollLeft = arguments[0]);"
    places = f"{scrolled} return [...document.querySelectorAll('caption span, .legend.narrow li')].map(e => {{"
    places += " const r = e.getBoundingClientRect(); return [r.left, r.right, r.height]; })"
    size = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": False}  # a window is 500 at least
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for far in (0, 300):
        found = run(browser, places, far)
        assert len(found) > 8 and all(left >= 0 and right <= 390 and height > 0 for left, right, height in found)
    names = run(browser, "return [...document.querySelectorAll('#curves .legend.narrow li')].map(e => e.textContent)")
    assert names == ["train cls", "Tier-I training"], "as in the drawing"
    signs = "return [...document.querySelectorAll('#gate .legend.narrow li')].map(e => e.textContent)"
    assert "Yes: gate opens" in " ".join(run(browser, signs))
    run(browser, scrolled, 0)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_probability_just_above_the_threshold_is_called_anemic(browser):
    enter(browser, "image-search", "77.png", "input")
    tiers = run(browser, "return [...document.querySelectorAll('#image-list .tiers li')].map(e => e.textContent)")
    assert tiers[0] == "Tier-I0.500 Anemic ✓", "77.png's is 0.5000004"


def test_paper_shows_what_the_screen_keeps_closed(browser):
    seen = "getComputedStyle(document.querySelector('#gate details'), '::details-content').contentVisibility"
    assert run(browser, f"return {seen}") == "hidden", "all decisions of the gate"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert run(browser, f"return {seen}") == "visible"
        cards = "return [...document.querySelectorAll('.card')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert run(browser, cards) == 0
        kept = "return getComputedStyle(document.querySelector('.lead')).breakInside"
        assert run(browser, kept) == "avoid"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_table_of_texts_is_scrolled_on_a_phone_and_breaks_no_word(browser, tmp_path):
    runs = [run_of(tmp_path, name, seed, [f"folder_{i}/image_{i}.png" for i in range(60)])
            for name, seed in (("A", 1), ("B", 2))]  # fmt: skip
    opened, page = browser.current_url, write_comparison(tmp_path / "out", compare(runs, resamples=5))
    size = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    try:
        heads = run(
            browser, "return [...document.querySelectorAll('.texts th')].map(e => [e.textContent, e.offsetHeight])"
        )
        lines = {name: height for name, height in heads if name in ("Group", "Truth", "Epoch", "Commit")}
        assert len(lines) == 4 and max(lines.values()) < 70, "one line of a word each"
        assert run(browser, "return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.get(opened)


def test_the_console_is_silent_and_nothing_leaves_the_machine(browser):
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file://", "data:")) for url in asked)
    assert run(browser, "return window.alerted === undefined")
