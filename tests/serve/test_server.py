"""Real servers: what they promise when they are killed, stopped, shared or asked nonsense; the page in a browser."""

import http.client
import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import pytest

pytestmark = pytest.mark.slow


def test_a_soak_of_writes_and_kills_loses_nothing_acknowledged(start_server):
    """Readers, writers and kill -9 at random moments: every acknowledged rating and item is there after a restart."""
    rng = random.Random(0)
    rated: dict[tuple[str, str], float] = {}
    items: dict[str, str] = {}
    removed: dict[str, bool] = {}
    for life in range(6):
        server = start_server()
        stop = threading.Event()

        def write(life=life, server=server, stop=stop):
            number = 0
            while not stop.is_set():
                number += 1
                user, item, rating = f"visitor{number % 5}", f"i{rng.randrange(90)}", float(rng.randint(1, 5))
                name, text = f"new{life}-{number}", f"the comet {number % 3}"
                try:
                    if server.ask("POST", "/v1/feedback", {"user": user, "item": item, "rating": rating})[0] == 200:
                        rated[user, item] = rating
                    if server.ask("PUT", f"/v1/items/{name}", {"text": text})[0] == 200:
                        items[name] = text
                    if number % 7 == 0:
                        # Killed before the answer, the server may have removed it or not: both are right.
                        items.pop(name, None)
                        removed[name] = False
                        removed[name] = server.ask("DELETE", f"/v1/items/{name}")[0] == 200
                except (OSError, http.client.HTTPException):
                    return

        def read(server=server, stop=stop):
            while not stop.is_set():
                try:
                    assert server.ask("POST", "/v1/recommend", {"user": "u7", "k": 5})[0] == 200
                except (OSError, http.client.HTTPException):
                    return

        threads = [threading.Thread(target=work) for work in (write, read)]
        for thread in threads:
            thread.start()
        threads[0].join(timeout=0.5 + rng.random())
        server.stop(signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join()
    assert len(rated) > 20
    assert len(items) > 20
    server = start_server()
    for name in items:
        status, answer = server.ask("POST", "/v1/recommend", {"user": "u7", "k": 1, "allow": [name]})
        assert status == 200
        assert [one["item_id"] for one in answer["items"]] == [name]
    for name in (name for name, acknowledged in removed.items() if acknowledged):
        answer = server.ask("POST", "/v1/recommend", {"user": "u7", "k": 90, "allow": [name]})[1]
        assert not answer.get("items")
    for user in {user for user, _ in rated}:
        shown = server.ask("POST", "/v1/recommend", {"user": user, "k": 1000})[1]["items"]
        seen = {item for who, item in rated if who == user}
        assert not seen & {one["item_id"] for one in shown}
    assert server.stop() == 0


def test_a_stop_lets_requests_finish_and_one_log_has_one_writer(start_server, run_directory, tmp_path):
    server = start_server()
    command = [sys.executable, "-m", "ltrec_jax.cli", "serve", str(run_directory), "--port", "1"]
    second = subprocess.Popen([*command, "--log", str(tmp_path / "log.sqlite")], stderr=subprocess.PIPE, text=True)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 2
    assert "Another server writes" in said
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(
            server.ask("POST", "/v1/recommend/batch", {"requests": [{"user": "u7", "k": 50, "diversity": 0.5}] * 200})
        )
    )
    asking.start()
    assert server.ask("GET", "/v1/health")[0] == 200
    assert server.stop() == 0
    asking.join()
    assert answers[0][0] == 200
    assert len(answers[0][1]["answers"]) == 200


def test_a_hangup_swaps_the_bundle_while_requests_go_on(start_server):
    server = start_server()
    assert server.ask("POST", "/v1/feedback", {"user": "visitor", "item": "i3", "rating": 5.0})[0] == 200
    os.kill(server.process.pid, signal.SIGHUP)
    statuses = [server.ask("POST", "/v1/recommend", {"user": "visitor", "k": 90})[0] for _ in range(200)]
    assert set(statuses) == {200}
    assert server.stop() == 0


def test_every_answer_keeps_to_the_description(start_server):
    """Schemathesis makes requests from the description, good and bad, and holds the answers against it."""
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    server = start_server()
    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    checked = 0
    for operation in schema.get_all_operations():
        case_strategy = operation.ok().as_strategy()
        checked += 1

        @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=case_strategy)
        def holds(case):
            response = case.call(base_url=server.address)
            assert response.status_code < 500, response.text
            # "exactly one of user, liked/rated, text" and a catalogue's attributes are beyond what a schema says.
            case.validate_response(response, excluded_checks=[positive_data_acceptance])
            if response.status_code >= 400:
                assert response.json()["error"]

        holds()
    assert checked >= 10


def browser():
    found = os.environ.get("LTREC_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium on this machine: install the package of that name, or set LTREC_CHROMIUM")
    return found


@pytest.mark.parametrize("width", [1200, 380])
def test_the_page_works_with_the_keyboard_and_on_a_phone(start_server, width):
    from playwright.sync_api import expect, sync_playwright

    path, server = browser(), start_server()
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": width, "height": 800})
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.address)
        expect(page.locator("#about")).to_contain_text("90 items")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

        page.locator("#user").focus()
        page.keyboard.type("u7")
        page.keyboard.press("Tab")
        expect(page.locator(".result")).to_have_count(10)
        best = page.locator(".result").first.get_attribute("data-item")
        assert page.locator(".result .badge").first.inner_text() in ("head", "mid", "tail", "new")
        page.locator("#tail").focus()
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        expect(page.locator("#tail-value")).to_have_text("1.0")
        expect(page.locator(".result").first).not_to_have_attribute("data-item", best)

        page.locator("#user").fill("")
        page.locator("#find").focus()
        page.keyboard.type("the comet")
        expect(page.locator("#choices button")).to_have_count(6)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#liked button")).to_have_count(1)
        expect(page.locator(".result")).to_have_count(10)

        page.locator("#new-text").fill("the <b>comet</b> orbit")
        page.locator("#new-id").fill("fresh")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("Added.")
        expect(page.locator(".result", has_text="<b>comet</b>")).to_be_visible()
        page.locator("#liked button").first.click()
        page.locator("#user").fill("u8")
        page.locator("#tail").focus()
        page.keyboard.press("Home")
        expect(page.locator(".result")).to_have_count(10)
        server.ask("DELETE", "/v1/items/fresh")

        page.locator("#user").fill("nobody")
        page.locator("#user").press("Tab")
        expect(page.locator("#problem")).to_contain_text("Unknown user")
        assert all(url.startswith(server.address) for url in asked)
        assert [one for one in problems if "404" not in one] == []
        chromium.close()
