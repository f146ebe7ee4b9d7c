"""Notebook 10 and the page of the explorers in a real browser: they answer keyboard, menus, mouse."""

import importlib.util

import cv2
import numpy as np
import pytest
import torch
from browser import (
    CHROMIUM,
    PATIENCE_S,
    copy_notebook,
    explorers_page,
    open_explorer,
    slider_handle,
)

from hrnetpp_lib.data.layout import load_stage_data, prepare_data
from hrnetpp_lib.model.weights import load_checkpoint, save_checkpoint
from hrnetpp_lib.recipe import HRNET, SMOKE, three_stages
from hrnetpp_lib.train.loop import train_stage

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs a browser: apt-get install chromium, pip install playwright",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with notebook 10 and the finished runs of profile smoke."""
    root = tmp_path_factory.mktemp("lab")
    copy_notebook(root, "smoke")
    paths = prepare_data(SMOKE, root / "data")
    for run in (*three_stages(SMOKE), *three_stages(SMOKE, HRNET)[:2]):
        data = load_stage_data(run.stage.dataset, SMOKE, paths)
        path = train_stage(run, data, root / "runs" / "smoke", paths.root)
        # Seconds of training leave flat maps; steeper ones answer to alpha.
        model, card = load_checkpoint(path)
        model.final_layer.weight.data *= 50
        save_checkpoint(model, card, path)
    return root


def test_the_explorer_answers_in_a_real_browser(project):
    with open_explorer(project) as page:
        table = page.locator("table.positions").last
        images = page.locator(".jp-OutputArea-child:has(.noUi-handle) img")
        table.wait_for()

        def shown() -> tuple[str, list[str]]:
            return table.inner_text(), [image.get_attribute("src") for image in images.all()]

        assert images.count() == 5  # people, picture, crop, heatmap, marginals
        assert all(source.startswith("blob:") for source in shown()[1])
        slider_handle(page, "alpha").focus()
        menu = page.locator(".widget-dropdown:has(.widget-label:text-is('keypoint')) select").first

        def lower_alpha():
            for _ in range(12):
                page.keyboard.press("ArrowLeft")

        changes = {
            "alpha slider": lower_alpha,
            "keypoint menu": lambda: menu.select_option("right ankle"),
            "box dragged": lambda: drag(page, images.nth(1)),
        }
        for what, action in changes.items():
            before = now = shown()
            action()
            for _ in range(300):
                if all(new != old for new, old in zip(now, before, strict=True)):
                    break
                page.wait_for_timeout(100)
                now = shown()
            assert all(new != old for new, old in zip(now, before, strict=True)), (
                f"{what}: table or pictures stay"
            )
        assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0


@pytest.mark.skipif(importlib.util.find_spec("voila") is None, reason="needs the extra explore: voila")
def test_the_page_shows_both_explorers_and_takes_pictures_and_networks(project, networks):
    from playwright.sync_api import sync_playwright

    (project / "mine").mkdir()
    cv2.imwrite(
        str(project / "mine" / "me.png"), np.random.default_rng(0).integers(0, 255, (90, 60, 3), np.uint8)
    )
    torch.save(networks["one"][0].state_dict(), theirs := project / "theirs_96x64.pth")
    with explorers_page(project, "--profile", "smoke") as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 1500})
        page.set_default_timeout(1000 * PATIENCE_S)
        page.goto(address)
        whole = page.get_by_alt_text("the picture with box and pose", exact=False)
        whole.wait_for()
        network = page.locator(".widget-dropdown:has(.widget-label:text-is('network')) select")
        names = ["regression", "heatmap", "plain\xa0HRNet"]  # menus have hard spaces
        sync(page, lambda: network.locator("option").all_text_contents() == names)
        fields = {"picture or folder": (project / "mine", "picture"), "network": (theirs, "network")}
        for words, (path, menu) in fields.items():
            before = whole.get_attribute("src")
            field = page.get_by_placeholder(f"path of a {words}", exact=False)
            field.fill(str(path))
            field.press("Enter")
            chosen = page.locator(f".widget-dropdown:has(.widget-label:text-is('{menu}')) select").first
            name = "me.png" if menu == "picture" else theirs.name
            sync(page, lambda c=chosen, n=name: n in c.locator("option:checked").all_text_contents())
            sync(page, lambda b=before: whole.get_attribute("src") != b)
        page.get_by_role("tab", name="training data").click()
        samples = page.get_by_alt_text("six random crops of the person")
        samples.wait_for()
        before = samples.get_attribute("src")
        page.get_by_role("button", name="reroll").click()
        sync(page, lambda: samples.get_attribute("src") != before)
        chromium.close()


def sync(page, true) -> None:
    """Wait until something has become true."""
    for _ in range(10 * PATIENCE_S):
        if true():
            return
        page.wait_for_timeout(100)
    raise AssertionError("nothing changes")


def drag(page, image) -> None:
    """Draw a new box over the lower right of the picture."""
    image.scroll_into_view_if_needed()
    frame = image.bounding_box()
    page.mouse.move(frame["x"] + 0.02 * frame["width"], frame["y"] + 0.02 * frame["height"])
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.5 * frame["width"], frame["y"] + 0.6 * frame["height"], steps=4)
    page.mouse.up()
