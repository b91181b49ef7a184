"""The pages at the end of a sign-in, in a real browser: at a phone's width, light and dark."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from codexd.auth import store
from codexd.config.clients import CLIENTS
from codexd.demo.issuer import EMAIL
from support.daemon import PATIENCE, ROOT, environment, hello, running
from support.simulated import simulated

pytestmark = pytest.mark.loopback

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WIDTHS = {"phone": (390, 844), "desktop": (1280, 800)}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    if CHROMIUM is None or DRIVER is None:
        if os.environ.get("CI"):
            pytest.fail("the packages chromium and chromium-driver are missing")
        pytest.skip("the packages chromium and chromium-driver are not here")
    options = Options()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}/profile",
    ):  # fmt: skip
        options.add_argument(argument)
    home = environment(tmp_path)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER, env=home))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


class Page:
    """What is on the screen, measured."""

    def __init__(self, driver: webdriver.Chrome, shots: Path) -> None:
        self.driver = driver
        self.shots = shots

    def look(self, name: str, *, places: Sequence[str] = ("h1", "p", "p:last-of-type"), card: str = "main") -> None:
        """At both widths and in both schemes: nothing sticks out, everything can be read, nothing was fetched."""
        for width, (columns, rows) in WIDTHS.items():
            for scheme in ("light", "dark"):
                self._emulate(columns, rows, scheme)
                assert self.run("return document.documentElement.scrollWidth <= window.innerWidth")
                back, behind = self.colour("body", "backgroundColor"), self.colour(card, "backgroundColor")
                assert (luminance(back) > 0.5) == (scheme == "light")
                for place in places:
                    assert contrast(self.colour(place, "color"), behind) >= 4.5, (width, scheme, place)
                if card == "main":
                    mark = contrast(self.colour(".mark", "color"), self.colour(".mark", "backgroundColor"))
                    assert mark >= 3, (width, scheme)
                size = self.run("return parseFloat(getComputedStyle(document.querySelector('p')).fontSize)")
                assert size >= 16
                self.driver.save_screenshot(str(self.shots / f"{name}-{width}-{scheme}.png"))
        self.axe(name)
        self.zoomed(name)
        fetched = self.run("return performance.getEntriesByType('resource').map(each => each.name)")
        assert set(fetched) <= {self.run("return location.href")}  # its own refresh
        # A page with an error's status is noted by the browser; nothing else may be.
        noted = [entry["message"] for entry in self.driver.get_log("browser")]
        assert [message for message in noted if "with a status of 400" not in message] == []

    def axe(self, name: str) -> None:
        """axe-core has nothing against the page, light or dark."""
        source = ROOT / "tests" / "clients" / "node_modules" / "axe-core" / "axe.min.js"
        if not source.exists():
            return
        for scheme in ("light", "dark"):
            self._emulate(*WIDTHS["phone"], scheme)
            # Through the debugger: the page's own policy allows no other script.
            self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": source.read_text()})
            found = self.driver.execute_cdp_cmd(
                "Runtime.evaluate",
                {
                    "expression": "axe.run().then(found => JSON.stringify(found.violations.map(each => "
                    "[each.id, each.nodes.map(node => node.html)])))",
                    "awaitPromise": True,
                },
            )
            assert found["result"]["value"] == "[]", (name, scheme, found)

    def zoomed(self, name: str) -> None:
        """At twice the size, a window of 640 columns shows what one of 320 does."""
        self._emulate(320, 800, "light")
        assert self.run("return document.documentElement.scrollWidth <= window.innerWidth"), name

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def colour(self, place: str, kind: str) -> tuple[float, ...]:
        text = self.run(f"return getComputedStyle(document.querySelector('{place}')).{kind}")
        return tuple(int(number) / 255 for number in re.findall(r"\d+", text)[:3])

    def _emulate(self, width: int, height: int, scheme: str) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance, by WCAG."""
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


async def test_a_person_signs_in_and_another_one_declines(
    tmp_path: Path, logs: Path, browser: webdriver.Chrome
) -> None:
    shots = tmp_path / "shots"
    shots.mkdir()
    page = Page(browser, shots)
    async with (
        simulated() as chatgpt,
        running(tmp_path, logs, chatgpt, signed_in=False, oauth={"local_server_port": 0}) as daemon,
        httpx.AsyncClient(base_url=daemon.base, trust_env=False) as client,
    ):

        async def decide(link: str) -> None:
            started = (await client.post("/auth/login", json={"method": "browser"})).json()
            await trio.to_thread.run_sync(browser.get, started["authorization_url"])
            await trio.to_thread.run_sync(lambda: browser.find_element(By.ID, link).click())

        await decide("no")
        assert browser.title == "Not signed in – codexd"
        text = browser.find_element(By.TAG_NAME, "main").text
        assert "The user declined (access_denied)" in text
        assert browser.find_element(By.TAG_NAME, "code").text == "codexctl login"
        await trio.to_thread.run_sync(page.look, "declined")
        assert (await client.get("/auth/login")).json()["state"] == "failed"

        await decide("yes")
        assert browser.title == "Signed in – codexd"
        assert EMAIL in browser.find_element(By.TAG_NAME, "main").text
        await trio.to_thread.run_sync(page.look, "signed-in")
        assert (await client.get("/auth/login")).json()["state"] == "succeeded"
        assert (await client.get("/health?ready=1")).status_code == 200


async def test_the_status_page_is_for_everybody_and_its_snippets_work(
    tmp_path: Path, logs: Path, browser: webdriver.Chrome
) -> None:
    shots = tmp_path / "shots"
    shots.mkdir()
    async with simulated() as chatgpt:
        state = tmp_path / "state"
        state.mkdir()
        store.save(state / "tokens.json", chatgpt.issuer.sign_in())
        async with running(tmp_path, logs, chatgpt, signed_in=False) as daemon:
            await trio.to_thread.run_sync(browser.get, daemon.base)
            snippets = dict(
                browser.execute_script(
                    "return [...document.querySelectorAll('details')].map("
                    "one => [one.querySelector('summary').textContent, one.querySelector('pre').textContent])"
                )
            )
            assert list(snippets) == ["curl", "Python", "Node", *CLIENTS]
            for command in (["bash", "-c", snippets["curl"]], [sys.executable, "-c", snippets["Python"]]):
                ran = await trio.run_process(command, capture_stdout=True, env=environment(tmp_path))
                assert ran.stdout, command
            await trio.to_thread.run_sync(browser.refresh)
            text = browser.find_element(By.TAG_NAME, "main").text
            assert f"Signed in as {EMAIL}" in text and "2 requests" in text and f"{daemon.base}/v1" in text
            page = Page(browser, shots)
            browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
            await trio.to_thread.run_sync(partial(page.look, "status", places=("h1", "p", ".soft"), card="section"))
            # It brings itself up to date, and what is open stays open.
            async with httpx.AsyncClient(base_url=daemon.base, trust_env=False) as client:
                failed = await client.post("/v1/chat/completions", json=hello(model="gpt-nix"))
            seen = browser.execute_async_script(
                "const done = arguments[0]; refresh().then(() => done([document.querySelector('#live').innerText, "
                "document.querySelectorAll('details[open]').length]))"
            )
            assert f"codexctl explain {failed.headers['x-request-id']}" in seen[0] and seen[1] == len(snippets)
            # The buttons copy.
            browser.execute_cdp_cmd(
                "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
            )
            button = browser.find_element(By.CSS_SELECTOR, "pre + button")
            button.click()
            await trio.to_thread.run_sync(
                lambda: WebDriverWait(browser, PATIENCE).until(lambda _: button.text == "Copied")
            )
            # One click takes the whole of what is to be copied.
            browser.find_element(By.CSS_SELECTOR, "#live + section .copy").click()
            assert browser.execute_script("return getSelection().toString()") == f"{daemon.base}/v1"


async def test_the_documentation_is_served_and_can_be_read(
    tmp_path: Path, logs: Path, browser: webdriver.Chrome
) -> None:
    shots = tmp_path / "shots"
    shots.mkdir()
    async with simulated() as chatgpt, running(tmp_path, logs, chatgpt) as daemon:
        await trio.to_thread.run_sync(browser.get, daemon.base)
        browser.find_element(By.LINK_TEXT, "Documentation").click()
        assert browser.current_url == f"{daemon.base}/docs/index.md"
        page = Page(browser, shots)
        await trio.to_thread.run_sync(partial(page.look, "docs", places=("h1", "p", "a"), card="article"))
