"""The playground in a real browser, against the local engine's answers."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from random_weights import randomise
from running_server import RunningServer, running
from torch import Tensor, nn

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.image import resize_image
from saccade.accel.overlay import draw_overlay
from saccade.accel.results import ImageExplanation
from saccade.accel.serve.config import ServeConfig
from saccade.contracts import Floats, ImageSpec, MaskQuery, Uint8

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.xdist_group("served"),  # one process makes the bundles and starts the browser
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH, as Debian's package has it"),
]
Page = Any
CROPPED = ImageSpec(size=(32, 48), resize="crop", crop=0.8)


class ManyClasses(nn.Module):
    """A classifier of 1,000 classes that sees the middle of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 1000)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.late(x)).flatten(1))
        return logits


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from saccade.export.write_bundle import export_gradient
    from saccade.methods.explainee import Explainee, fingerprint
    from saccade.methods.gradient.config import GradientConfig

    model = randomise(ManyClasses())
    names = tuple(f"kind {index}" for index in range(1000))
    explainee = Explainee(model, CROPPED, names, "python:many:build", "pretrained", fingerprint(model))
    images = np.random.default_rng(0).integers(0, 256, (16, *CROPPED.size, 3), dtype=np.uint8)
    images[::2] //= 4
    out = tmp_path_factory.mktemp("bundles") / "many"
    export_gradient(explainee, GradientConfig(method="gradcam"), images, out)
    return out


@pytest.fixture(scope="module")
def bundles(served_bundles: dict[str, Path], many_classes: Path) -> dict[str, Path]:
    return {name: served_bundles[name] for name in ("classes", "areas", "tiny")} | {"many": many_classes}


@pytest.fixture(scope="module")
def served(bundles: dict[str, Path]) -> Iterator[RunningServer]:
    with running(bundles) as started:
        yield started


@pytest.fixture(scope="module")
def engines(bundles: dict[str, Path]) -> dict[str, Engine]:
    return {name: open_engine(folder, threads=1) for name, folder in bundles.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if root else [])
        yield started
        started.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Any, served: RunningServer) -> Iterator[Open]:
    """Opens the page; afterwards nothing may have been thrown, logged or asked of another server."""
    contexts, wrong = [], []

    def opened(url: str = "", *, ready: bool = True, errors: tuple[str, ...] = (), **settings: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if not _expected(message, errors) else None)
        origin = f"http://{url or served.url}/"
        page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith((origin, "blob:")) else 0)
        page.goto(origin)
        if ready:
            page.wait_for_selector(".panel")
            settled(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def _expected(message: Any, errors: tuple[str, ...]) -> bool:
    return message.type not in ("error", "warning") or any(error in message.text for error in errors)


def photograph(height: int = 60, width: int = 90, seed: int = 5) -> Uint8:
    """Smooth, so that it can be compared after a resize."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def png(image: Uint8) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def choose(page: Page, image: Uint8, name: str = "photo.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": png(image)})
    until(page, "name => document.getElementById('image-name').textContent.startsWith(name)", name)
    settled(page)


def until(page: Page, condition: str, *values: Any) -> None:
    """Until something is so; in words of JavaScript, which the page's policy does not let be waited for inside."""
    end = time.monotonic() + 15
    function = condition if "=>" in condition.partition("(")[0] else f"() => {condition}"
    while not page.evaluate(function, *values):
        assert time.monotonic() < end, f"it never came to be that {condition} {values}"
        page.wait_for_timeout(10)


def settled(page: Page) -> None:
    """Until every panel shows an answer."""
    until(
        page,
        "[...document.querySelectorAll('.panel')].every(p => p.querySelector('button').disabled === false "
        "&& p.querySelector('.veil').hidden)",
    )


def tick(page: Page, *models: str) -> None:
    """Tick these models and no others."""
    for box in page.locator("#models input").all():
        box.set_checked(box.input_value() in models)
    until(page, "count => document.querySelectorAll('.panel').length >= count", len(models))
    settled(page)


def downloaded(page: Page, kind: str, panel: int = 0) -> bytes:
    with page.expect_download() as waiting:
        page.locator(".panel").nth(panel).locator(f"[data-download={kind}]").click()
    return Path(waiting.value.path()).read_bytes()


def answer(page: Page, panel: int = 0) -> dict[str, Any]:
    """What a panel shows, as JSON."""
    record: dict[str, Any] = json.loads(downloaded(page, "json", panel))
    return record


def mask_of(record: dict[str, Any]) -> Floats:
    return np.array(record["mask"]["values"], dtype=np.float32).reshape(record["mask"]["shape"])


def pixels(page: Page, panel: int = 0) -> Uint8:
    """What is on a panel's canvas."""
    url = page.locator(".panel canvas").nth(panel).evaluate("canvas => canvas.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def press(page: Page, key: str, times: int = 1) -> None:
    for _ in range(times):
        page.keyboard.press(key)


def test_a_visitor_sees_a_sample_explained_at_once(open_page: Open, engines: dict[str, Engine]) -> None:
    page = open_page()
    golden = engines["classes"].bundle.golden.images[:1]
    predicted = int(engines["classes"].run(golden).probabilities.argmax())
    assert page.locator("#predicted").inner_text() == engines["classes"].bundle.manifest.class_names[predicted]
    assert page.locator("#samples button").count() == 8
    assert page.locator(".panel h3").all_inner_texts() == ["classes", "areas", "tiny"]  # one list of classes
    until(page, "document.getElementById('live').textContent.startsWith('Predicted: ')")


def test_a_chosen_image_is_answered_as_the_engine_answers(open_page: Open, engines: dict[str, Engine]) -> None:
    page, image = open_page(), photograph(32, 32)
    tick(page, "classes")
    choose(page, image)
    names = engines["classes"].bundle.manifest.class_names
    local = engines["classes"].run(image[None], np.array([[-1]]))
    best = int(local.probabilities[0].argmax())
    assert page.locator("#predicted").inner_text() == names[best]
    shown = page.locator("#probability").inner_text()
    assert shown == f"{100 * local.probabilities[0, best]:.1f} %"
    record = answer(page)
    assert record["model"] == "classes"
    assert record["predicted"]["index"] == record["target"]["index"] == best
    order = np.argsort(-local.probabilities[0], kind="stable")[:5]
    assert [found["index"] for found in record["top"]] == order.tolist()
    assert [np.float32(found["probability"]) for found in record["top"]] == local.probabilities[0, order].tolist()
    np.testing.assert_array_equal(mask_of(record), local.mask[0, 0])
    np.testing.assert_array_equal(np.load(io.BytesIO(downloaded(page, "npy"))), local.mask[0, 0])
    grey = Image.open(io.BytesIO(downloaded(page, "png")))
    assert grey.mode == "L"
    np.testing.assert_array_equal(np.asarray(grey), (local.mask[0, 0] * 255 + 0.5).astype(np.uint8))
    bars = page.locator("#bars .name").all_inner_texts()
    assert bars == [names[index] for index in order]


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(open_page: Open, engines: dict[str, Engine], way: str) -> None:
    page, image = open_page(), photograph(32, 32, seed=8)
    tick(page, "tiny")
    page.evaluate(
        """([way, data]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "given.png", { type: "image/png" }));
            const about = { bubbles: true, cancelable: true };
            const paste = new ClipboardEvent("paste", { ...about, clipboardData: transfer });
            if (way === "paste") document.body.dispatchEvent(paste);
            else for (const kind of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(kind, { ...about, dataTransfer: transfer }));
        }""",
        [way, base64.b64encode(png(image)).decode()],
    )  # fmt: skip
    until(page, "document.getElementById('image-name').textContent.startsWith('given.png')")
    settled(page)
    np.testing.assert_array_equal(mask_of(answer(page)), engines["tiny"].run(image[None]).mask[0, 0])


def test_another_class_gives_another_picture_and_two_stand_side_by_side(
    open_page: Open, engines: dict[str, Engine]
) -> None:
    page, image = open_page(), photograph(32, 32)
    tick(page, "classes")
    choose(page, image)
    before = pixels(page)
    page.locator("#bars .bar").nth(2).click()
    until(page, "document.querySelector('.panel .about').textContent.includes('predicted')")
    assert (pixels(page) != before).mean() > 0.01
    third = answer(page)["target"]["index"]
    with page.expect_request("**/infer") as asked:
        page.locator("#bars .beside").nth(3).click()
    until(page, "document.querySelectorAll('.panel').length === 2")
    settled(page)
    assert asked.value.url.endswith("/classes/infer")  # one request for both
    fourth = answer(page, 1)["target"]["index"]
    order = np.argsort(-engines["classes"].run(image[None], np.array([[-1]])).probabilities[0], kind="stable")
    assert [third, fourth] == order[2:4].tolist()
    local = engines["classes"].run(image[None], np.array([[third, fourth]]))
    for panel in range(2):
        np.testing.assert_array_equal(mask_of(answer(page, panel)), local.mask[0, panel])
    page.locator("#bars .beside").nth(2).click()  # the third no longer
    until(page, "document.querySelectorAll('.panel').length === 1")
    settled(page)
    until(page, "name => document.querySelector('.about b').textContent === name", name_of_bar(page, 3))
    tick(page, "classes", "tiny")  # which is about the predicted class only
    page.locator("#bars .beside").nth(0).click()
    until(page, "document.querySelectorAll('.panel').length === 3")
    settled(page)
    assert [answer(page, panel)["target"]["index"] for panel in range(3)] == [fourth, order[0], order[0]]
    assert page.locator(".panel h3").all_inner_texts() == ["classes", "tiny", "classes"]  # a row for each class
    assert "explains the predicted class only" in page.locator(".about").nth(1).inner_text()


def name_of_bar(page: Page, place: int) -> str:
    name: str = page.locator("#bars .name").nth(place).inner_text()
    return name


def test_area_and_resolution_are_what_the_sliders_say(open_page: Open, engines: dict[str, Engine]) -> None:
    page, image = open_page(), photograph(32, 32)
    tick(page, "areas")
    choose(page, image)
    page.check("[value=mask]")
    for place, longest in ((40, 32), (160, 96)):
        page.locator("#resolution").fill(str([32, 48, 64, 96].index(longest)))
        page.locator("#area").fill(str(place))
        asked = page.locator("#area-value").inner_text()
        until(page, "area => document.querySelector('[data-number=area]').textContent === area", asked)
        page.wait_for_timeout(300)  # the slider rests
        settled(page)
        record = answer(page)
        mask = mask_of(record)
        assert mask.shape == (longest, longest)
        local = engines["areas"].run(image[None], None, MaskQuery(areas=(record["area"],), size=(longest, longest)))
        np.testing.assert_array_equal(mask, local.mask[0, 0])
        assert mask.mean() == pytest.approx(record["area"], abs=0.01)
        # what is drawn: the mask's own mean, read back from the colours
        table = np.frombuffer(page.request.get(page.url + "playground/colours").body(), np.uint8).reshape(256, 3)
        drawn = pixels(page)[::7, ::7].reshape(-1, 3).astype(int)
        levels = np.abs(drawn[:, None] - table[None].astype(int)).sum(2).argmin(1)
        assert levels.mean() / 255 == pytest.approx(record["area"], abs=0.02)
    page.locator("#parts").fill("2")
    page.wait_for_selector(".part-legend")
    settled(page)
    parts = mask_of(answer(page))
    assert parts.shape == (2, 96, 96)
    np.testing.assert_allclose(parts.mean((1, 2)), answer(page)["area"], atol=0.01)


def test_of_many_moves_the_last_one_counts(open_page: Open) -> None:
    page = open_page()
    tick(page, "areas")
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/infer") else None)
    page.evaluate(
        """async () => {
            const slider = document.getElementById("area");
            for (let place = 0; place <= 200; place++) {
                slider.value = place;
                slider.dispatchEvent(new Event("input", { bubbles: true }));
                if (place % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
            }
        }"""
    )
    final = page.locator("#area-value").inner_text()
    until(page, "area => document.querySelector('[data-number=area]').textContent === area", final)
    assert 1 <= len(asked) < 60  # not each of the 201


def test_the_overlay_is_the_command_lines(open_page: Open) -> None:
    page, image = open_page(), photograph(90, 130)
    mask = np.random.default_rng(3).random((12, 16), dtype=np.float32)
    table = """async ([data, values]) => {
        const { Photo, draw } = await import("/playground/drawing.js");
        const colours = new Uint8Array(await (await fetch("/playground/colours")).arrayBuffer());
        const photo = await Photo.read(new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))]));
        const canvas = Object.assign(document.createElement("canvas"), { width: 130, height: 90 });
        const masks = { values: Float32Array.from(values), shape: [1, 12, 16] };
        const box = { left: 0, top: 0, right: 130, bottom: 90 };
        draw(canvas, photo, masks, box, { view: "overlay", strength: 1, line: 1, colours });
        return Array.from(canvas.getContext("2d").getImageData(0, 0, 130, 90).data);
    }"""
    drawn = page.evaluate(table, [base64.b64encode(png(image)).decode(), mask.ravel().tolist()])
    found = np.array(drawn, dtype=np.int16).reshape(90, 130, 4)[..., :3]
    placed = np.asarray(Image.fromarray(mask).resize((130, 90), Image.Resampling.BILINEAR))
    expected = draw_overlay(image, placed).astype(np.int16)
    assert (np.abs(found - expected).max(2) > 2).mean() < 0.002  # the outline may differ by a pixel


def test_the_mask_lies_where_the_model_looked(open_page: Open) -> None:
    page = open_page()
    tick(page, "many")
    image = photograph(150, 300)
    choose(page, image)
    page.check("[value=mask]")
    page.wait_for_timeout(50)
    lit = pixels(page).any(2)
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    scale = lit.shape[1] / 300
    left, top, right, bottom = CROPPED.box(150, 300)
    assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == pytest.approx(
        [scale * edge for edge in (left, top, right, bottom)], abs=1
    )
    assert lit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert answer(page)["mask"]["box"] == [left, top, right, bottom]


def test_a_photograph_larger_than_what_the_model_sees_is_sent_once(open_page: Open, served: RunningServer) -> None:
    page = open_page()
    tick(page, "areas")
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    page.evaluate(
        """() => {
            const send = window.fetch;
            window.sent = [];
            window.fetch = (url, how) => (window.sent.push(how?.body?.size ?? 0), send(url, how));
        }"""
    )
    choose(page, image)
    before = page.locator("[data-number=area]").inner_text()
    page.locator("#area").fill("180")
    until(page, "area => document.querySelector('[data-number=area]').textContent !== area", before)
    page.wait_for_timeout(300)
    settled(page)
    record = answer(page)
    first, *later = page.evaluate("window.sent")
    assert first > len(png(image)) > 1e5
    assert later
    assert max(later) < 32 * 32 * 3 + 2000
    inputs = [
        {"name": "encoded_image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(png(image)).decode()]},
        {"name": "areas", "datatype": "FP32", "shape": [1], "data": [record["area"]]},
    ]
    height, width = record["mask"]["shape"]
    status, whole = served.infer({"inputs": inputs, "parameters": {"size": f"{height}x{width}"}}, "areas")
    assert status == 200
    (mask,) = (output["data"] for output in whole["outputs"] if output["name"] == "mask")
    np.testing.assert_array_equal(mask_of(record).ravel(), np.array(mask, dtype=np.float32))


def test_one_of_a_thousand_classes_is_found(open_page: Open) -> None:
    page = open_page()
    tick(page, "many")
    predicted = page.locator(".about b").inner_text()
    page.focus("#search")
    page.keyboard.type("kind 77")
    assert page.locator("#found [role=option]").count() == 11  # 77, 770 … 779
    press(page, "ArrowDown", 3)
    active = page.get_attribute("#search", "aria-activedescendant")
    assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"
    wanted = page.locator(f"#{active}").evaluate("option => option.firstChild.textContent")
    page.keyboard.press("Enter")
    until(page, "name => document.querySelector('.about b').textContent === name", wanted)
    assert wanted != predicted
    page.locator("#bars .beside").nth(0).click()  # the most probable one beside it: a request for each
    until(page, "document.querySelectorAll('.panel').length === 2")
    settled(page)
    assert [answer(page, panel)["target"]["class"] for panel in range(2)] == [wanted, predicted]
    page.focus("#search")
    page.keyboard.type("kind")
    assert "and 950 more" in page.locator("#found").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#found").is_hidden()
    assert page.get_attribute("#search", "aria-expanded") == "false"
    page.fill("#search", "no such")
    assert "no class is called so" in page.locator("#found").inner_text()


def test_everything_is_done_from_the_keyboard(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    page.on("filechooser", lambda _: None)  # the browser is told early to hand over its dialogue
    press(page, "Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the explanations"
    press(page, "Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    outline = "getComputedStyle(document.querySelector('.drop')).outlineStyle"
    assert page.evaluate(outline) == "solid"  # where the focus is can be seen
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    file = tmp_path / "typed.png"
    file.write_bytes(png(photograph(32, 32)))
    chooser.value.set_files(file)
    until(page, "document.getElementById('image-name').textContent.startsWith('typed.png')")
    settled(page)
    press(page, "Tab", 8 + 1)  # past the samples, to the first bar
    assert page.evaluate("document.activeElement.className") == "bar"
    press(page, "Tab")  # to the second: the first needs no button to be explained beside itself
    second = page.evaluate("document.activeElement.querySelector('.name').textContent")
    page.keyboard.press("Enter")
    until(page, "name => document.querySelector('.about b').textContent === name", second)
    reached = set()
    for _ in range(60):
        press(page, "Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        name = "(({ id, dataset, value }) => id || dataset.download || value)(document.activeElement)"
        reached.add(page.evaluate(name))
        if page.evaluate("document.activeElement.id") == "area":
            before = page.locator("#area-value").inner_text()
            press(page, "ArrowRight", 5)
            assert page.locator("#area-value").inner_text() != before
        if page.evaluate("document.activeElement.name") == "view":
            press(page, "ArrowRight", 2)
            assert page.evaluate("document.activeElement.value") == "kept"
    assert {"classes", "areas", "strength", "area", "resolution", "parts", "png", "npy", "json"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page: Open, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = open_page(color_scheme=scheme)
    page.locator("#bars .beside").nth(1).click()
    page.locator("#parts").fill("2")
    page.wait_for_selector(".part-legend")
    page.focus("#search")
    page.keyboard.type("e")
    page.wait_for_timeout(300)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["passes"]) > 20


def test_it_fits_a_small_screen_and_nothing_jumps(open_page: Open) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, reduced_motion="reduce")
    choose(page, photograph(32, 32))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shift = page.evaluate(
        """() => new Promise((resolve) => {
            new PerformanceObserver((list) => resolve(list.getEntries().reduce((sum, { value }) => sum + value, 0)))
                .observe({ type: "layout-shift", buffered: true });
            setTimeout(() => resolve(0), 200);
        })"""
    )
    assert shift < 0.1
    assert page.evaluate("getComputedStyle(document.querySelector('#classes')).transitionDuration") == "0s"


def test_errors_are_told_in_place(open_page: Open) -> None:
    page = open_page(errors=("503", "400"))
    tick(page, "areas")
    page.set_input_files("#file", {"name": "note.txt", "mimeType": "text/plain", "buffer": b"no image"})
    page.wait_for_selector("#trouble:visible")
    assert "“note.txt” is not an image" in page.locator("#trouble").inner_text()
    stream = io.BytesIO()
    Image.fromarray(photograph(32, 32)).save(stream, "ICO")  # which the browser reads, and the server does not
    page.set_input_files("#file", {"name": "old.ico", "mimeType": "image/x-icon", "buffer": stream.getvalue()})
    page.wait_for_selector(".veil:visible")
    assert "JPEG, PNG" in page.locator(".veil").inner_text()
    assert page.locator("#predicted").inner_text() == "–"
    choose(page, photograph(32, 32))
    assert page.locator("#trouble").is_hidden()
    refused = []

    def refuse_twice(route: Any) -> None:
        if len(refused) == 2:
            route.continue_()
            return
        refused.append(route.request.url)
        route.fulfill(status=503, headers={"retry-after": "0.2"}, json={"error": "the server is at its limit"})

    page.route("**/infer", refuse_twice)
    before = page.locator("[data-number=area]").inner_text()
    page.locator("#area").fill("180")
    page.wait_for_selector(".veil:visible")
    assert "the server is at its limit; trying again" in page.locator(".veil").inner_text()
    until(page, "area => document.querySelector('[data-number=area]').textContent !== area", before)
    settled(page)
    assert len(refused) == 2
    page.unroute("**/infer")
    page.locator("#area").fill("200")  # 60 % of the image
    page.locator("#parts").fill("2")
    page.wait_for_selector(".veil:visible")
    assert "do not fit side by side" in page.locator(".veil").inner_text()  # the server's own words


def test_a_key_is_asked_for_and_kept(bundles: dict[str, Path], open_page: Open) -> None:
    with running({"tiny": bundles["tiny"]}, ServeConfig(port=0, grpc_port=None, api_key="open sesame")) as locked:
        page = open_page(locked.url, ready=False, errors=("401",))
        page.wait_for_selector("#key-form:visible")
        assert page.evaluate("document.activeElement.id") == "key"
        for wrong in ("wrong", "ключ"):  # HTTP can send the one, and not the other
            page.fill("#key", wrong)
            page.keyboard.press("Enter")
            until(page, "!document.getElementById('key-form').hidden")
            assert "does not accept" in page.locator("#key-note").inner_text()
            assert page.locator("#trouble").is_hidden()
            page.evaluate("document.getElementById('key-note').textContent = ''")
        page.fill("#key", "open sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector(".panel button:enabled")
        assert page.locator("#key-form").is_hidden()
        page.reload()
        page.wait_for_selector(".panel button:enabled")
        assert locked.ask("GET", "/v2/models/tiny/samples/0")[0] == 401


def test_the_page_may_load_nothing_from_elsewhere(served: RunningServer) -> None:
    for path in ("/", "/playground/main.js", "/playground/style.css"):
        status, headers, _ = served.ask("GET", path)
        assert status == 200
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    assert served.ask("GET", "/playground/../page.py")[0] == 404
    assert served.ask("GET", "/v2/models/tiny/samples/99")[0] == 404


@pytest.mark.parametrize("model", ["tiny", "many"])
def test_the_image_as_the_model_sees_it_can_be_sent_in_the_files_place(
    served: RunningServer, engines: dict[str, Engine], model: str
) -> None:
    image = photograph(150, 200)
    inputs = [
        {"name": "encoded_image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(png(image)).decode()]}
    ]
    outputs = [{"name": name} for name in ("model_image", "probabilities", "mask")]
    status, first = served.infer({"inputs": inputs, "outputs": outputs}, model)
    assert status == 200
    seen, *found = first["outputs"]
    spec = engines[model].bundle.manifest.image
    expected = resize_image(image, spec)
    assert seen["datatype"] == "UINT8"
    np.testing.assert_array_equal(np.array(seen["data"], np.uint8).reshape(seen["shape"])[0], expected)
    local = engines[model].run(expected[None])
    np.testing.assert_array_equal(np.array(found[0]["data"], np.float32), local.probabilities[0])
    np.testing.assert_array_equal(np.array(found[1]["data"], np.float32), local.mask.ravel())
    status, again = served.infer({"inputs": [seen | {"name": "image"}], "outputs": outputs[1:]}, model)
    assert status == 200
    assert again["outputs"] == found
    status, alone = served.infer({"inputs": inputs, "outputs": outputs[:1], "parameters": {"explain": False}}, model)
    assert status == 200  # it needs no mask
    assert alone["outputs"] == [seen]


@pytest.mark.parametrize("form", ["pixels", "file"])
def test_an_image_is_cropped_once_also_for_its_picture(
    served: RunningServer, engines: dict[str, Engine], form: str
) -> None:
    image = photograph(150, 200) if form == "file" else photograph(*CROPPED.size)
    sent = {"name": "image", "datatype": "UINT8", "shape": [1, *image.shape], "data": image.ravel().tolist()}
    spec = replace(CROPPED, resize="squash")
    if form == "file":
        spec, data = CROPPED, base64.b64encode(png(image)).decode()
        sent = {"name": "encoded_image", "datatype": "BYTES", "shape": [1], "data": [data]}
    outputs = [{"name": name} for name in ("probabilities", "mask", "overlay_png")]
    status, answered = served.infer({"inputs": [sent], "outputs": outputs}, "many")
    assert status == 200
    probabilities, mask, overlay = (output["data"] for output in answered["outputs"])
    local = engines["many"].run(resize_image(image, spec)[None])
    np.testing.assert_array_equal(np.array(probabilities, np.float32), local.probabilities[0])
    np.testing.assert_array_equal(np.array(mask, np.float32), local.mask.ravel())
    expected = ImageExplanation(
        source="",
        image=image,
        probabilities=local.probabilities[0],
        target=int(local.target[0]),
        class_names=engines["many"].bundle.manifest.class_names,
        mask=local.mask[0, 0],
        spec=spec,
        class_specific=True,
        milliseconds=None,
    ).overlay(legend=False)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(overlay[0])))), np.asarray(expected)
    )


def test_samples_are_the_bundles_first_golden_images(served: RunningServer, engines: dict[str, Engine]) -> None:
    card = json.loads(served.ask("GET", "/v2/models/classes/card")[2])
    golden = engines["classes"].bundle.golden.images
    assert card["samples"] == min(8, len(golden))
    for index in (0, card["samples"] - 1):
        status, headers, body = served.ask("GET", f"/v2/models/classes/samples/{index}")
        assert (status, headers["content-type"]) == (200, "image/png")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), golden[index])
