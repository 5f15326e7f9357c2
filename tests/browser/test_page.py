"""The chat page in a real browser, against a real server with a tiny random model."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server, Window, server_environment
from tests.helpers.serving import serving

Open = Callable[..., Window]

READABLE = 4.5
"""WCAG AA: contrast of text and what is behind it."""

FAINTEST = """() => {
  const rgb = (colour) => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d");
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb(colour).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    while (one && rgb(getComputedStyle(one).backgroundColor)[3] < 255) one = one.parentElement;
    return one ? getComputedStyle(one).backgroundColor : "white";
  };
  const found = [];
  for (const one of document.body.querySelectorAll("*")) {
    const isText = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!isText || !one.checkVisibility({ visibilityProperty: true })) continue;
    if (one.closest("noscript, :disabled, label:has(:disabled)")) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.textContent.slice(0, 40)]);
  }
  return found.sort((one, other) => one[0] - other[0])[0];
}"""

NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea")]
  .filter((one) => !(one.ariaLabel || one.textContent.trim()))
  .filter((one) => !one.labels?.[0]?.textContent.trim())
  .map((one) => one.outerHTML)"""


def turn(page: Page, text: str):
    return page.locator("#turns li", has_text=text)


def chip(page: Page, name: str):
    return page.locator("#switch .chip", has=page.get_by_text(name, exact=True))


def asked(window: Window) -> list[dict]:
    """Bodies of all chat requests of a window."""
    sent = [one for one in window.requests if one.url.endswith("/v1/chat/completions")]
    return [json.loads(one.post_data) for one in sent]


def test_what_is_said_is_answered_stored_and_encoded(window: Open, server: Server) -> None:
    ana = window().open()
    expect(ana.page.get_by_text("Who is talking?")).to_be_visible()
    ana.page.get_by_label("Name of a person").fill("ana")
    ana.page.keyboard.press("Enter")
    ana.say("My dog is called Biscuit.")
    expect(ana.page.locator("#log .bubble.user")).to_have_text("My dog is called Biscuit.")
    expect(ana.page.locator("#log .bubble.assistant footer")).to_contain_text("prompt tokens")
    expect(turn(ana.page, "Biscuit").locator(".badge")).to_have_text("encoded", timeout=30_000)
    ana.page.get_by_role("tab", name="Turns").press("ArrowRight")
    expect(ana.page.locator("#versions li").first).to_contain_text("in use")
    assert server.texts("ana")[0] == "My dog is called Biscuit."

    ana.page.reload()  # person and session are in the address
    expect(ana.page.locator("#log .bubble.user")).to_have_text("My dog is called Biscuit.")
    ana.page.get_by_role("button", name="New session").click()
    expect(ana.page.locator("#log .bubble")).to_have_count(0)
    ana.say("What is my dog called?")
    expect(ana.page.locator("#log footer")).to_contain_text("memory version")
    sessions = {one["memory"]["session"] for one in asked(ana)}
    assert len(sessions) == 2
    assert all(len(one["messages"]) == 1 for one in asked(ana))  # no history is replayed


def test_turns_are_seen_waiting_and_then_encoded(window: Open, server: Server) -> None:
    server.append_each("ann", *(f"Fact {number} of many." for number in range(400)))
    ann = window().open(user="ann")
    waiting = ann.page.locator("#turns .badge.pending")
    expect(waiting.first).to_be_visible()
    expect(ann.page.locator("#memory-badge")).to_contain_text("encoding")
    expect(waiting).to_have_count(0, timeout=60_000)
    expect(ann.page.locator("#turns .badge.encoded")).to_have_count(50)
    ann.page.get_by_role("button", name="Earlier turns").click()
    expect(ann.page.locator("#turns .badge.encoded")).to_have_count(100)
    ann.page.get_by_label("Something to remember").fill("I was added by hand.")
    ann.page.keyboard.press("Enter")
    expect(turn(ann.page, "added by hand").locator(".badge.encoded")).to_be_visible(timeout=30_000)


def test_how_full_the_memory_is_and_what_it_knows(window: Open, server: Server) -> None:
    server.append("flo", "My dog is called Rex.")
    flo = window().open(user="flo")
    expect(turn(flo.page, "Rex").locator(".badge.encoded")).to_be_visible(timeout=30_000)
    meter = flo.page.get_by_role("meter")
    expect(meter).to_be_visible(timeout=30_000)
    assert 0 < float(meter.get_attribute("value") or 0) <= 1
    flo.page.get_by_role("tab", name="Knows").click()
    ask = flo.page.get_by_role("button", name="Ask the memory")
    ask.click()
    lines = flo.page.locator("#profile li")
    expect(lines).to_have_text("Nothing that a turn could be shown for.", timeout=60_000)

    said = {"text": "My dog is called <b>Rex</b>.", "session": "monday"}
    line = {"topic": "dog", "answer": "Your dog is called Rex.", "confidence": 0.914, "turn": said}
    flo.page.route("**/flo/profile", lambda route: route.fulfill(json={"lines": [line]}))
    ask.click()
    expect(lines).to_contain_text("Your dog is called Rex.")
    expect(lines).to_contain_text("because of “My dog is called <b>Rex</b>.” (monday)")
    expect(lines.locator(".badge")).to_have_text("91%")
    window().open(user="nobody yet")  # of whom there is nothing


def test_the_switch_compares_without_storing(window: Open, server: Server) -> None:
    server.append("bea", "My cat is called Tiger.", "I live in Oslo.")
    server.append("bob", "My cat is called Lion.")
    bea = window().open(user="bea")
    expect(turn(bea.page, "Tiger").locator(".badge.encoded")).to_be_visible(timeout=30_000)
    for name in ("No memory", "Another's", "Whole history"):
        chip(bea.page, name).click()
    bea.page.get_by_label("Whose memory").select_option("bob")
    bea.say("What is my cat called?")
    cards = bea.page.locator(".card")
    expect(cards).to_have_count(4)
    titles = ["Memory", "No memory", "Memory of bob", "Whole history"]
    expect(cards.locator("h4")).to_have_text(titles)
    expect(cards.locator("dt", has_text="first token")).to_have_count(4)
    told = cards.locator("div", has=bea.page.locator("dt", has_text="prompt tokens")).locator("dd")
    own, none, other, whole = (int(text.replace(",", "")) for text in told.all_inner_texts())
    assert own == none == other < whole

    users = [(one.get("user"), one["memory"]["mode"]) for one in asked(bea)]
    assert users == [("bea", "read"), (None, "off"), ("bob", "read"), (None, "off")]
    said = [message["content"] for message in asked(bea)[3]["messages"]]
    assert said[0] == "My cat is called Tiger.\nI live in Oslo."
    assert len(server.texts("bea")) == 2
    assert len(server.texts("bob")) == 1

    cards.first.get_by_role("button", name="Why?").click()
    reasons = cards.first.locator(".reasons li")
    expect(reasons).to_have_count(2, timeout=60_000)
    expect(reasons.filter(has_text="My cat is called Tiger.")).to_contain_text("without it")
    expect(cards.get_by_role("button", name="Why?")).to_have_count(0)  # nobody else's answers

    for name in [*titles[:2], "Another's", "Whole history"]:
        chip(bea.page, name).click()
    expect(chip(bea.page, "Memory").locator("input")).to_be_checked()  # one is always chosen


def test_forgetting_shows_what_goes_and_a_receipt(window: Open, server: Server) -> None:
    server.append("cid", "My PIN is 1234.", "I like tea.", "I like chess.")
    cid = window().open(user="cid", session="monday")
    page, dialog = cid.page, cid.page.get_by_role("dialog")
    expect(turn(page, "PIN").locator(".badge.encoded")).to_be_visible(timeout=30_000)
    expect(page.locator("#log")).to_contain_text("My PIN is 1234.")
    page.get_by_role("button", name="Forget: My PIN").click()
    expect(dialog).to_contain_text("My PIN is 1234.")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    assert "My PIN is 1234." in server.texts("cid")

    page.get_by_role("button", name="Forget: My PIN").click()
    dialog.get_by_role("button", name="Forget").click()
    expect(dialog).to_contain_text("exact to the last bit")
    expect(dialog.locator("dt", has_text="version now")).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(page.locator("body")).not_to_contain_text("1234")
    assert server.texts("cid") == ["I like tea.", "I like chess."]

    page.get_by_label("Find turns by words").fill("like ch*")
    page.keyboard.press("Enter")
    expect(page.locator("#found-count")).to_have_text("1 turn found.")
    page.get_by_role("button", name="Forget all of them").click()
    dialog.get_by_role("button", name="Forget").click()
    dialog.get_by_role("button", name="Close").click()
    assert server.texts("cid") == ["I like tea."]

    page.get_by_role("button", name="Delete everything").click()
    dialog.get_by_role("button", name="Delete everything").click()
    expect(dialog).to_contain_text("Deleted")
    dialog.get_by_role("button", name="Close").click()
    expect(page.get_by_text("Who is talking?")).to_be_visible()
    assert server.texts("cid") == []


def test_going_back_to_a_version_sets_later_turns_aside(window: Open, server: Server) -> None:
    server.append("dan", "I live in Rome.")
    dan = window().open(user="dan")
    expect(turn(dan.page, "Rome").locator(".badge.encoded")).to_be_visible(timeout=30_000)
    server.append("dan", "I live in Bergen.")
    expect(turn(dan.page, "Bergen").locator(".badge.encoded")).to_be_visible(timeout=30_000)
    dan.page.get_by_role("tab", name="Versions").click()
    dan.page.get_by_role("button", name="Go back to version 1").click()
    expect(dan.page.get_by_role("status").filter(has_text="version 3 now")).to_be_visible()
    expect(dan.page.locator("#versions li").first).to_contain_text("Version 3")
    dan.page.get_by_role("tab", name="Turns").click()
    expect(turn(dan.page, "Bergen").locator(".badge")).to_have_text("set aside")


def test_two_windows_see_only_their_own(window: Open) -> None:
    eva, fay = window().open(user="eva"), window().open(user="fay")
    eva.say("My secret is a sapphire.")
    fay.say("My secret is a rhubarb.")
    eva.say("And I live in Turin.")
    for own, other, secret in ((eva, "fay", "sapphire"), (fay, "eva", "rhubarb")):
        expect(turn(own.page, f"secret is a {secret}")).to_be_visible(timeout=30_000)
        both = {"sapphire", "rhubarb"}
        (hidden,) = both - {secret}
        expect(own.page.locator("body")).not_to_contain_text(hidden)
        assert not [one.url for one in own.requests if f"/users/{other}" in one.url]
        assert not [one for one in asked(own) if one["user"] == other]


def test_what_is_said_is_never_markup(window: Open, server: Server) -> None:
    attack = '<img src=x onerror="window.broken = 1"><script>window.broken = 1</script>'
    server.append("mallory", attack, session=attack)
    server.append("<b>eve<%2Fb>".replace("%2F", "-"), "Hi.")
    mallory = window().open(user="mallory", session=attack)
    page = mallory.page
    expect(page.locator("#log .text")).to_have_text(attack)
    expect(turn(page, "onerror")).to_be_visible()
    expect(page.locator("#sessions")).to_contain_text(attack)
    expect(page.locator("#users")).to_contain_text("<b>eve<-b>")
    mallory.say(attack)
    chip(page, "No memory").click()
    mallory.say(attack)
    page.get_by_role("button", name="Forget: <img").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("onerror")
    assert page.evaluate("window.broken") is None
    assert page.locator("img[src=x], #log script, #users b").count() == 0

    inline = "s = document.createElement('script'); s.textContent = 'window.broken = 1'"
    page.evaluate(f"() => {{ let {inline}; document.head.append(s); }}")
    assert page.evaluate("window.broken") is None  # refused by the page's policy
    refused, mallory.complaints[:] = mallory.complaints[:], []
    assert any("Content Security Policy" in one for one in refused)


def test_it_works_on_a_phone(window: Open) -> None:
    size = {"width": 390, "height": 844}
    gil = window(viewport=size, is_mobile=True, has_touch=True).open(user="gil")
    page = gil.page
    expect(page.get_by_text("Hello, gil")).to_be_visible()
    for name in ("No memory", "Whole history"):
        chip(page, name).tap()
    gil.say("A long word: " + "x" * 300)
    for name in ("No memory", "Whole history"):
        chip(page, name).tap()
    gil.say("I like sailing.")
    for opened, closed, button in (
        ("#memory", "#people", page.locator("#toggle-memory")),
        ("#people", "#memory", page.get_by_role("button", name="People and sessions").first),
    ):
        button.tap()
        expect(page.locator(opened)).to_be_in_viewport()
        expect(page.locator(closed)).not_to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
        page.locator(f"{opened} [data-close]").tap()
        expect(page.locator(opened)).not_to_be_in_viewport()
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_are_readable(
    window: Open, server: Server, scheme: str
) -> None:
    user, other = f"hal-{scheme}", {"light": "dark", "dark": "light"}[scheme]
    server.append(user, "I like tea.")
    hal = window(color_scheme=scheme).open(user=user)
    page = hal.page
    expect(turn(page, "tea")).to_be_visible()
    hal.say("Hello!")
    chip(page, "No memory").click()
    hal.say("Compare this.")
    assert page.evaluate(NAMELESS) == []
    seen = {}
    for name in (scheme, other):
        page.wait_for_timeout(300)  # colours change in 0.15 s
        ratio, text = page.evaluate(FAINTEST)
        assert ratio >= READABLE, f"{name}: {text}"
        seen[name] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.get_by_role("button", name="Dark colours").click()
    assert seen["light"] == "rgb(244, 245, 244)"
    assert seen["dark"] == "rgb(17, 21, 20)"

    page.get_by_role("button", name="Dark colours").click()
    page.reload()  # what was chosen is kept
    kept = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert kept == seen[other]


def test_what_goes_wrong_is_said(window: Open, server: Server) -> None:
    ida = window().open(user="ida")
    ida.expects_refusals = True
    ida.say("Hello.")
    alert = ida.page.get_by_role("alert")
    ida.page.context.set_offline(True)
    message = ida.page.get_by_label("Message", exact=True)
    message.fill("Can you hear me?")
    ida.page.keyboard.press("Enter")
    expect(alert).to_contain_text("Is `memory serve` still running?")
    expect(message).to_have_value("Can you hear me?")  # nothing typed is lost
    ida.page.context.set_offline(False)
    ida.page.get_by_role("button", name="Close").click()
    ida.page.get_by_label("Name of a person").fill("x" * 200)
    ida.page.keyboard.press("Enter")
    ida.page.get_by_label("Something to remember").fill("a\x00b")
    ida.page.get_by_role("button", name="Add", exact=True).click()
    expect(alert).to_contain_text("must")


def test_a_key_is_asked_for_and_kept_by_this_tab_only(
    window: Open, tiny_model_folder: Path, sqlite_template: Path, tmp_path: Path
) -> None:
    environment = server_environment(tiny_model_folder, sqlite_template, tmp_path)
    made = Server("", environment)
    keys = {
        scope: json.loads(made.memory("keys", "create", "acme", "--scope", scope, "--json"))["key"]
        for scope in ("read", "read,write,admin")
    }
    with serving(env=environment, cwd=tmp_path) as (_, address):
        made.address = address
        jim = window(made).open(user="jim")
        jim.expects_refusals = True
        dialog, field = jim.page.get_by_role("dialog"), jim.page.locator("#key-value")
        expect(dialog).to_contain_text("is missing")
        field.fill("wrong")
        jim.page.keyboard.press("Enter")
        expect(field).to_have_value("")
        expect(dialog).to_be_visible()
        field.fill(keys["read"])
        dialog.get_by_role("button", name="Use this key").click()
        jim.say("I may only read.")
        expect(jim.page.get_by_role("alert")).to_contain_text("write")

        jim.page.get_by_role("button", name="API key").click()
        field.fill(keys["read,write,admin"])
        dialog.get_by_role("button", name="Use this key").click()
        expect(dialog).to_be_hidden()
        jim.say("Now I may write.")
        expect(turn(jim.page, "Now I may write.")).to_be_visible(timeout=30_000)
        stored = jim.page.evaluate("[JSON.stringify(localStorage), location.href, document.cookie]")
        assert not any(key in one for key in keys.values() for one in stored)
        second = jim.page.context.new_page()
        second.goto(f"{address}/")
        expect(second.get_by_role("dialog")).to_contain_text("is missing")


def test_the_page_is_served_with_a_strict_policy(server: Server) -> None:
    for path in ("/", "/page/main.js", "/page/style.css"):
        answer = httpx.get(server.address + path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["Cache-Control"] == "no-cache"
    assert "<script>" not in httpx.get(server.address).text
    for path in ("/page/", "/page/nothing.js", "/page/..%2fapp.py", "/page/%2e%2e/app.py"):
        answer = httpx.get(server.address + path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "/page" not in str(httpx.get(f"{server.address}/openapi.json").json()["paths"])
