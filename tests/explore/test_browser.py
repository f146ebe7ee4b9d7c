"""Notebook 10 in a real browser: its widget answers the keyboard, a menu, clicks and drags."""

import importlib.util

import pytest
from browser import CHROMIUM, copy_notebook, open_explorer, slider_handle

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


def drag(page, image) -> None:
    """Draw a new box over the lower right of the picture."""
    image.scroll_into_view_if_needed()
    frame = image.bounding_box()
    page.mouse.move(frame["x"] + 0.02 * frame["width"], frame["y"] + 0.02 * frame["height"])
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.5 * frame["width"], frame["y"] + 0.6 * frame["height"], steps=4)
    page.mouse.up()
