"""Images in, results out: order, failures, look-ahead, threads; and the files that are written."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.accel import pipeline
from saccade.accel.bundle import Bundle, open_bundle
from saccade.accel.image import load_image
from saccade.accel.onnx_engine import OnnxEngine
from saccade.accel.pipeline import PipelineConfig, explain_images
from saccade.accel.results import Failure, ImageExplanation, ResultWriter
from saccade.contracts import Explanation, ImageSpec, Uint8
from saccade.errors import OutputError, UsageError


@pytest.fixture
def engine(tiny_bundle_kept: Path) -> OnnxEngine:
    return OnnxEngine(open_bundle(tiny_bundle_kept), threads=1)


class Spy:
    """An engine that remembers the batches it was given."""

    name = "spy"

    def __init__(self, engine: OnnxEngine) -> None:
        self.engine, self.bundle = engine, engine.bundle
        self.batches: list[tuple[int, ...]] = []

    def run(self, images: Uint8, target: Any = None, query: Any = None) -> Explanation:
        self.batches.append(images.shape)
        return self.engine.run(images, target)

    def probabilities(self, images: Uint8) -> np.ndarray:
        return self.engine.probabilities(images)


class AnySize:
    """An engine for images of any size, whose mask tells which image it was given."""

    name = "any-size"

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = Bundle(bundle.path, bundle.manifest.model_copy(update={"any_size": True}))
        self.batches: list[tuple[int, ...]] = []

    def run(self, images: Uint8, target: Any = None, query: Any = None) -> Explanation:
        self.batches.append(images.shape)
        mask = np.broadcast_to(images[:, 0, 0, 0].reshape(-1, 1, 1, 1) / np.float32(255), (len(images), 1, 4, 4))
        return Explanation(
            np.full((len(images), 5), 0.2, np.float32), np.zeros(len(images), np.int64), mask.astype(np.float32)
        )

    def probabilities(self, images: Uint8) -> np.ndarray:
        return self.run(images).probabilities


def numbered(number: int, height: int = 32, width: int = 32) -> Uint8:
    """An image that tells its number and differs from the others."""
    image = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[0, 0] = number
    return image


def number_of(result: ImageExplanation | Failure) -> int:
    assert isinstance(result, ImageExplanation)
    return int(result.image[0, 0, 0])


def loading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("saccade-load")]


def all_threads_end() -> bool:
    deadline = time.monotonic() + 5
    while loading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not loading_threads()


# ---- order and failures


def test_slow_images_do_not_change_the_order(engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = []

    def slow_load(source: Uint8, **options: Any) -> Uint8:
        number = int(source[0, 0, 0])
        time.sleep(0.06 if number % 4 == 0 else 0.002)
        finished.append(number)
        return load_image(source, **options)

    monkeypatch.setattr(pipeline, "load_image", slow_load)
    config = PipelineConfig(batch_size=3, decode_threads=3)
    results = list(explain_images(engine, [numbered(i) for i in range(10)], config))
    assert [number_of(result) for result in results] == list(range(10))
    assert finished != sorted(finished)  # they did overtake one another


def test_results_are_those_of_the_engine_on_the_resized_image(engine: OnnxEngine) -> None:
    images = [numbered(i, 32, 32) for i in range(3)]
    answer = engine.run(np.stack(images))
    for i, result in enumerate(explain_images(engine, images)):
        assert isinstance(result, ImageExplanation)
        np.testing.assert_array_equal(result.image, images[i])
        np.testing.assert_allclose(result.mask, answer.mask[i, 0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(result.probabilities, answer.probabilities[i], rtol=0, atol=1e-6)
        assert result.target == answer.target[i]
        assert result.class_names == engine.bundle.manifest.class_names
        assert result.milliseconds > 0


def test_the_target_of_the_configuration_is_explained(engine: OnnxEngine) -> None:
    results = list(explain_images(engine, [numbered(i) for i in range(3)], PipelineConfig(targets=(2,))))
    assert [result.target for result in results if isinstance(result, ImageExplanation)] == [2, 2, 2]


def test_sources_of_every_kind_may_be_mixed(engine: OnnxEngine, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(numbered(7)).save(path)
    sources = [path, str(path), path.read_bytes(), Image.fromarray(numbered(7)), numbered(7)]
    results = list(explain_images(engine, sources))
    assert [number_of(result) for result in results] == [7] * 5
    assert [result.source for result in results] == [str(path), str(path), "bytes", "Image", "ndarray"]


def test_no_images_give_no_results(engine: OnnxEngine) -> None:
    assert list(explain_images(engine, [])) == []


def test_a_bad_file_becomes_a_failure_in_its_place(engine: OnnxEngine, tmp_path: Path) -> None:
    sources: list[Any] = [numbered(i) for i in range(7)]
    sources[3] = tmp_path / "missing.png"
    results = list(explain_images(engine, sources, PipelineConfig(batch_size=2)))
    assert isinstance(results[3], Failure)
    assert results[3].source == str(tmp_path / "missing.png")
    assert "there is no file" in results[3].reason
    assert [number_of(result) for result in results[:3] + results[4:]] == [0, 1, 2, 4, 5, 6]


def test_every_image_may_be_bad(engine: OnnxEngine, tmp_path: Path) -> None:
    results = list(explain_images(engine, [tmp_path / f"{i}.png" for i in range(9)], PipelineConfig(batch_size=4)))
    assert [result.source for result in results] == [str(tmp_path / f"{i}.png") for i in range(9)]
    assert all(isinstance(result, Failure) for result in results)


def test_an_image_with_too_many_pixels_is_a_failure(engine: OnnxEngine, tmp_path: Path) -> None:
    Image.fromarray(numbered(1, 40, 40)).save(tmp_path / "large.png")
    Image.fromarray(numbered(2, 30, 30)).save(tmp_path / "small.png")
    config = PipelineConfig(max_pixels=1000)
    large, small = explain_images(engine, [tmp_path / "large.png", tmp_path / "small.png"], config)
    assert isinstance(large, Failure)
    assert "limit" in large.reason
    assert number_of(small) == 2


# ---- batches


@pytest.mark.parametrize(
    ("images", "batch", "expected"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (3, 1, [1, 1, 1])]
)
def test_batches_are_full_but_the_last(engine: OnnxEngine, images: int, batch: int, expected: list[int]) -> None:
    spy = Spy(engine)
    results = list(explain_images(spy, [numbered(i) for i in range(images)], PipelineConfig(batch_size=batch)))
    assert [shape[0] for shape in spy.batches] == expected
    assert [number_of(result) for result in results] == list(range(images))


def test_results_do_not_depend_on_the_batch_size(engine: OnnxEngine) -> None:
    sources = [numbered(i, 20 + i, 40 - i) for i in range(6)]
    for one, four in zip(
        explain_images(engine, sources, PipelineConfig(batch_size=1)),
        explain_images(engine, sources, PipelineConfig(batch_size=4)),
        strict=True,
    ):
        assert isinstance(one, ImageExplanation)
        assert isinstance(four, ImageExplanation)
        np.testing.assert_array_equal(one.image, four.image)
        np.testing.assert_allclose(one.mask, four.mask, rtol=0, atol=1e-6)
        np.testing.assert_allclose(one.probabilities, four.probabilities, rtol=0, atol=1e-6)
        assert (one.target, one.source) == (four.target, four.source)


def test_images_of_different_sizes_go_through_an_any_size_bundle_in_batches_of_one_size(tiny_bundle_kept: Path) -> None:
    engine = AnySize(open_bundle(tiny_bundle_kept))
    sizes = [(8, 8), (8, 8), (8, 8), (9, 7), (9, 7), (8, 8), (5, 5)]
    sources = [numbered(i, *size) for i, size in enumerate(sizes)]
    results = list(explain_images(engine, sources, PipelineConfig(batch_size=2)))
    assert [number_of(result) for result in results] == list(range(7))
    for i, result in enumerate(results):
        assert isinstance(result, ImageExplanation)
        assert result.mask[0, 0] == pytest.approx(i / 255)
    assert [shape[:3] for shape in engine.batches] == [(2, 8, 8), (1, 8, 8), (2, 9, 7), (1, 8, 8), (1, 5, 5)]


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"decode_threads": 0}, {"batch_size": -1}])
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        PipelineConfig(**wrong)


# ---- look-ahead and threads


def test_an_endless_source_is_read_a_few_images_ahead(engine: OnnxEngine) -> None:
    drawn = []

    def endless() -> Iterator[Uint8]:
        for number in count():
            drawn.append(number)
            yield numbered(number)

    config = PipelineConfig(batch_size=2, decode_threads=2)
    results = explain_images(engine, endless(), config)
    first = list(islice(results, 5))
    assert [number_of(result) for result in first] == [0, 1, 2, 3, 4]
    assert len(drawn) <= 5 + 2 * config.batch_size + 2 * config.decode_threads
    results.close()
    assert all_threads_end()


def test_nothing_is_drawn_before_the_first_result_is_asked_for(engine: OnnxEngine) -> None:
    drawn = []

    def source() -> Iterator[Uint8]:
        drawn.append(0)
        yield numbered(0)

    results = explain_images(engine, source())
    assert drawn == []
    assert len(list(results)) == 1


def test_no_thread_is_left_and_nothing_more_is_loaded_when_the_results_are_not_taken_to_the_end(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def slow_load(source: Uint8, **options: Any) -> Uint8:
        loaded.append(0)
        time.sleep(0.02)
        return load_image(source, **options)

    monkeypatch.setattr(pipeline, "load_image", slow_load)
    config = PipelineConfig(batch_size=8, decode_threads=2)
    results = explain_images(engine, [numbered(i) for i in range(100)], config)
    next(results)
    assert loading_threads()
    results.close()
    before = len(loaded)
    assert all_threads_end()
    assert len(loaded) <= before + config.decode_threads


def test_no_thread_is_left_after_the_last_result(engine: OnnxEngine) -> None:
    list(explain_images(engine, [numbered(i) for i in range(5)]))
    assert all_threads_end()


def test_an_error_of_the_source_is_raised_and_no_thread_is_left(engine: OnnxEngine) -> None:
    def broken() -> Iterator[Uint8]:
        yield from (numbered(i) for i in range(30))
        raise RuntimeError("the camera is gone")

    with pytest.raises(RuntimeError, match="the camera is gone"):
        list(explain_images(engine, broken(), PipelineConfig(batch_size=2)))
    assert all_threads_end()


# ---- one image's explanation


def explanation(source: str = "cat.jpg", height: int = 40, width: int = 60, **change: Any) -> ImageExplanation:
    rng = np.random.default_rng(height * width)
    plain = ImageExplanation(
        source=source,
        image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        probabilities=np.array([0.1, 0.2, 0.05, 0.6, 0.05], np.float32),
        target=1,
        class_names=("ant", "bee", "cat", "dog", "emu"),
        mask=rng.random((8, 8)).astype(np.float32),
        spec=ImageSpec(size=(32, 32)),
        class_specific=True,
        milliseconds=1.5,
    )
    return replace(plain, **change)


CROP = ImageSpec(size=(32, 32), resize="crop", crop=0.75)


def test_the_mask_on_the_image_is_zero_where_the_model_did_not_look() -> None:
    result = explanation(height=40, width=100, mask=np.full((8, 8), 0.7, np.float32), spec=CROP)
    placed = result.mask_on_image()
    assert placed.shape == (40, 100)
    assert placed.dtype == np.float32
    left, top, right, bottom = CROP.box(40, 100)
    seen = np.zeros((40, 100), bool)
    seen[top:bottom, left:right] = True
    assert (placed[~seen] == 0).all()
    np.testing.assert_allclose(placed[seen], 0.7, rtol=1e-6)
    assert 0 < seen.mean() < 1


def test_the_mask_of_a_squashed_image_covers_all_of_it() -> None:
    result = explanation(height=33, width=47, mask=np.full((8, 8), 0.3, np.float32))
    np.testing.assert_allclose(result.mask_on_image(), 0.3, rtol=1e-6)


def test_a_mask_of_the_images_size_is_not_changed(rng: np.random.Generator) -> None:
    mask = rng.random((40, 60)).astype(np.float32)
    np.testing.assert_array_equal(explanation(mask=mask).mask_on_image(), mask)


@pytest.mark.parametrize("spec", [ImageSpec(size=(32, 32)), CROP], ids=["squash", "crop"])
@pytest.mark.parametrize("cell", [(0, 0), (2, 6), (7, 7), (5, 1)])
def test_the_peak_is_at_the_place_of_the_highest_cell(spec: ImageSpec, cell: tuple[int, int]) -> None:
    mask = np.zeros((8, 8), np.float32)
    mask[cell] = 1
    x, y = explanation(height=64, width=96, mask=mask, spec=spec).peak()
    left, top, right, bottom = spec.box(64, 96)
    assert left + (right - left) * cell[1] / 8 - 1 <= x <= left + (right - left) * (cell[1] + 1) / 8
    assert top + (bottom - top) * cell[0] / 8 - 1 <= y <= top + (bottom - top) * (cell[0] + 1) / 8


def test_names_probabilities_and_the_best_classes() -> None:
    result = explanation()
    assert result.class_name == "bee"
    assert result.probability == pytest.approx(0.2)
    assert result.predicted == 3
    assert [name for name, _ in result.top()] == ["dog", "bee", "ant", "cat", "emu"]
    assert result.top(2) == [("dog", pytest.approx(0.6)), ("bee", pytest.approx(0.2))]


@pytest.mark.parametrize(("class_specific", "explained"), [(True, "bee"), (False, "dog")])
def test_a_record_says_what_is_explained_and_survives_json(class_specific: bool, explained: str) -> None:
    result = explanation(class_specific=class_specific)
    record = json.loads(json.dumps(result.record()))
    assert record["image"] == "cat.jpg"
    assert record["class"] == "bee"
    assert record["predicted"] == "dog"
    assert record["explains"] == explained
    assert record["area"] == pytest.approx(result.mask.astype(float).mean(), abs=1e-4)
    assert tuple(record["peak"]) == result.peak()


def test_an_overlay_is_at_least_large_enough_to_look_at_and_may_have_a_legend() -> None:
    result = explanation(height=40, width=60)
    plain, whole = result.overlay(legend=False), result.overlay()
    assert plain.width / plain.height == 60 / 40
    assert min(plain.size) >= 320
    assert whole.width == plain.width
    assert whole.height > plain.height
    np.testing.assert_array_equal(np.asarray(whole)[: plain.height], np.asarray(plain))


# ---- writing


@contextmanager
def writing(folder: Path, *formats: str) -> Iterator[ResultWriter]:
    writer = ResultWriter(folder, formats)
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise
    writer.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_format_is_written_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    result = explanation("pictures/cat.jpg")
    with writing(folder, "overlay", "mask", "npz") as writer:
        record = writer.write(result)
        assert not (folder / "results.jsonl").exists()
    assert record["files"].keys() == {"overlay", "mask", "npz"}
    assert {path.name for path in folder.iterdir()} == {*record["files"].values(), "results.jsonl"}
    assert all(name.startswith("cat.") for name in record["files"].values())
    assert lines(folder) == [json.loads(json.dumps(record))]
    with Image.open(folder / record["files"]["overlay"]) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(result.overlay()))
    with Image.open(folder / record["files"]["mask"]) as image:
        assert image.mode == "L"
        assert np.abs(np.asarray(image) / 255 - result.mask_on_image()).max() <= 0.51 / 255


def test_the_npz_holds_the_result_itself(tmp_path: Path) -> None:
    result = explanation()
    with writing(tmp_path, "npz") as writer:
        name = writer.write(result)["files"]["npz"]
    with np.load(tmp_path / name) as stored:
        assert set(stored.files) == {"mask", "probabilities", "target"}
        np.testing.assert_array_equal(stored["mask"], result.mask)
        np.testing.assert_array_equal(stored["probabilities"], result.probabilities)
        assert stored["mask"].dtype == np.float32
        assert stored["target"] == result.target


def test_only_the_formats_that_are_asked_for_are_written(tmp_path: Path) -> None:
    with writing(tmp_path, "mask") as writer:
        writer.write(explanation())
    assert {path.name for path in tmp_path.iterdir()} == {"cat.mask.png", "results.jsonl"}


def test_failures_have_a_line_and_no_files(tmp_path: Path) -> None:
    with writing(tmp_path, "mask") as writer:
        writer.write(explanation("a.jpg"))
        writer.write(Failure("b.jpg", "there is no file 'b.jpg'"))
        writer.write(explanation("c.jpg"))
    assert [line["image"] for line in lines(tmp_path)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert lines(tmp_path)[1] == {"image": "b.jpg", "error": "there is no file 'b.jpg'"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.mask.png", "c.mask.png", "results.jsonl"}


def test_images_of_the_same_name_get_a_number(tmp_path: Path) -> None:
    with writing(tmp_path, "npz") as writer:
        names = [writer.write(explanation(source))["files"]["npz"] for source in ("x/cat.jpg", "y/cat.jpg", "cat.png")]
    assert names == ["cat.npz", "cat-2.npz", "cat-3.npz"]
    assert all((tmp_path / name).is_file() for name in names)


@pytest.mark.parametrize(
    "sources",
    [
        ("x/a.jpg", "y/a-2.jpg", "z/a.jpg"),
        ("x/a-2.jpg", "x/a.jpg", "y/a.jpg"),
        ("a.jpg", "b/a.jpg", "a-2.jpg", "b/a-2.jpg"),
    ],
)
def test_a_numbered_name_does_not_overwrite_an_image_that_is_called_so(
    tmp_path: Path, sources: tuple[str, ...]
) -> None:
    with writing(tmp_path, "npz") as writer:
        names = [
            writer.write(explanation(source, mask=np.full((8, 8), i / 10, np.float32)))["files"]["npz"]
            for i, source in enumerate(sources)
        ]
    assert len(set(names)) == len(sources)
    for i, name in enumerate(names):
        with np.load(tmp_path / name) as stored:
            assert stored["mask"][0, 0] == np.float32(i / 10)


@pytest.mark.parametrize(
    "source",
    ["two\nlines.jpg", "not \udcff text.jpg", "日本.jpg", "x" * 245 + ".jpg", "日" * 80 + ".jpg", ""],
    ids=["two lines", "not UTF-8", "Japanese", "long", "long in bytes", "none"],
)
def test_any_name_of_a_file_can_be_written(tmp_path: Path, source: str) -> None:
    with writing(tmp_path, "overlay", "npz") as writer:
        record = writer.write(explanation(source))
    assert lines(tmp_path)[0]["image"] == source
    assert all((tmp_path / name).is_file() for name in record["files"].values())


def test_long_names_that_begin_alike_are_kept_apart(tmp_path: Path) -> None:
    with writing(tmp_path, "npz") as writer:
        names = {writer.write(explanation("x" * 240 + ending))["files"]["npz"] for ending in ("a.jpg", "b.jpg")}
    assert len(names) == 2


def test_an_unknown_format_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'poster'.*overlay, mask, npz"):
        ResultWriter(tmp_path / "out", ("mask", "poster"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "out", tmp_path / "file"):
        with pytest.raises(OutputError, match="cannot write into the folder"):
            ResultWriter(folder)


def test_a_file_that_cannot_be_written_is_an_output_error_and_leaves_no_rest(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path, ("npz",))
    (tmp_path / "cat.npz").mkdir()
    with pytest.raises(OutputError, match="cannot write into"):
        writer.write(explanation())
    writer.discard()
    assert {path.name for path in tmp_path.iterdir()} == {"cat.npz"}


def test_results_that_cannot_be_put_in_place_are_an_output_error(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path)
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"results\.jsonl"):
        writer.close()


def test_discard_leaves_the_pictures_and_no_list(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path, ("mask",))
    writer.write(explanation())
    writer.discard()
    assert {path.name for path in tmp_path.iterdir()} == {"cat.mask.png"}


def test_discard_keeps_an_older_list(tmp_path: Path) -> None:
    with writing(tmp_path, "mask") as writer:
        writer.write(explanation("old.jpg"))
    newer = ResultWriter(tmp_path, ("mask",))
    newer.write(explanation("new.jpg"))
    newer.discard()
    assert [line["image"] for line in lines(tmp_path)] == ["old.jpg"]


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    for mask in (0.0, 1.0):
        with writing(tmp_path, "npz") as writer:
            writer.write(explanation(mask=np.full((8, 8), mask, np.float32)))
    assert len(lines(tmp_path)) == 1
    with np.load(tmp_path / "cat.npz") as stored:
        assert stored["mask"][0, 0] == 1


def test_a_writer_in_a_with_block_puts_its_lines_in_place_only_if_no_error_ends_it(tmp_path: Path) -> None:
    with ResultWriter(tmp_path / "whole") as writer:
        writer.write(Failure("a.png", "it is not an image"))
    assert json.loads((tmp_path / "whole" / "results.jsonl").read_text())["image"] == "a.png"

    def fails() -> None:
        with ResultWriter(tmp_path / "broken") as writer:
            writer.write(Failure("a.png", "it is not an image"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert list((tmp_path / "broken").iterdir()) == []


def test_two_writers_at_once_in_one_folder_do_not_break_each_other_and_the_later_one_stays(tmp_path: Path) -> None:
    with writing(tmp_path, "mask") as later:
        with writing(tmp_path, "mask") as earlier:
            earlier.write(explanation("earlier.jpg"))
            later.write(explanation("later.jpg"))
        assert [line["image"] for line in lines(tmp_path)] == ["earlier.jpg"]
    assert [line["image"] for line in lines(tmp_path)] == ["later.jpg"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"earlier.mask.png", "later.mask.png", "results.jsonl"}
