"""The page's tab for pictures, with a whole tiny AuraFlow."""

import re

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from qtransformers.serve.painters import PainterSpec
from servers import running
from tiny_diffusion.files import write
from tiny_diffusion.pipelines import saved


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    """How it is served."""
    folder = tmp_path_factory.mktemp("aura")
    pipe, base = saved(folder / "base")
    return PainterSpec(str(write(folder / "aura.gguf", "aura", pipe.transformer.state_dict(), "Q4_K")), ("aura",), {"base": str(base)})  # fmt: skip


def test_no_tab_where_nothing_paints(page):
    assert not page.get_by_role("tab", name="Images").is_visible()


def test_a_picture_is_made_step_by_step_kept_and_deleted(visit, demo, painter):
    with running([demo], painters=[painter]) as (url, _):
        page = visit(url)
        page.get_by_role("tab", name="Chat").focus()
        page.keyboard.press("ArrowRight")
        assert page.get_by_role("tab", name="Images").get_attribute("aria-selected") == "true"
        page.get_by_label("What to show").fill("a red fox <img src=x onerror=document.title='hit'>")
        for name, value in (("Width", "32"), ("Height", "32"), ("Steps", "3"), ("Seed", "7")):
            page.locator("#images").get_by_label(name).fill(value)
        with page.expect_request("**/v1/images/generations") as request:
            page.get_by_role("button", name="Make a picture").click()
        sent = request.value.post_data_json
        assert (sent["model"], sent["size"], sent["steps"], sent["seed"]) == ("aura", "32x32", 3, 7)
        image = page.locator(".gallery img")
        image.wait_for(timeout=60_000)
        assert page.evaluate(
            "(() => { const i = document.querySelector('.gallery img'); return i.decode().then(() => [i.naturalWidth, i.naturalHeight]); })()"
        ) == [32, 32]
        assert re.match(r"Made in [\d.]+ s\.", page.locator("#images .note").inner_text())
        assert image.get_attribute("alt").startswith("a red fox <img") and page.title() != "hit"
        assert "seed 7" in page.locator(".gallery figcaption").inner_text()
        page.reload()
        page.get_by_role("tab", name="Images").click()
        image.wait_for()
        page.get_by_role("button", name="Delete the picture").click()
        image.wait_for(state="detached")
        page.get_by_role("button", name="New conversation").click()
        assert page.locator("#input").is_visible() and not page.locator("#images").is_visible()


def test_refusals_and_stopping(visit, demo, painter):
    with running([demo], painters=[painter]) as (url, server):
        page = visit(url)
        page.get_by_role("tab", name="Images").click()
        page.get_by_label("What to show").fill("a red fox")
        page.locator("#images").get_by_label("Width").fill("40")
        page.get_by_label("Height").fill("32")
        page.get_by_label("Steps").fill("3")
        page.get_by_role("button", name="Make a picture").click()
        page.locator("#images .note", has_text=re.compile("width|Width|failed")).wait_for(timeout=60_000)
        page.get_by_label("Width").fill("32")
        page.get_by_label("Steps").fill("200")
        page.get_by_role("button", name="Make a picture").click()
        page.locator("#images .note", has_text="of 200").wait_for(timeout=60_000)
        assert page.get_by_role("progressbar").get_attribute("max") == "1"
        page.get_by_role("button", name="Stop").click()
        page.locator("#images .note", has_text="Stopped.").wait_for()
        for _ in range(100):
            if not server.painters.all[0].waiting:
                break
            page.wait_for_timeout(50)
        assert server.painters.all[0].waiting == 0


def test_a_server_that_only_paints_opens_there(visit, painter):
    with running([], painters=[painter]) as (url, _):
        page = visit(url)
        page.get_by_label("What to show").wait_for()
        assert not page.locator("#chat").is_visible()
