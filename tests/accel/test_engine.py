"""The ONNX engine against ONNX Runtime itself, the golden pass, and the checks of a bundle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from saccade.accel import golden
from saccade.accel.bundle import file_sha256, open_bundle
from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE
from saccade.accel.onnx_engine import OnnxEngine
from saccade.accel.verify import verify_engine
from saccade.contracts import Explanation, Uint8
from saccade.errors import BundleError, EngineError, OutOfMemory, ParityError, UsageError


@pytest.fixture
def engine(tiny_bundle_kept: Path) -> OnnxEngine:
    return OnnxEngine(open_bundle(tiny_bundle_kept), threads=1)


@pytest.fixture
def images(rng: np.random.Generator) -> Uint8:
    batch = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    batch[::3] //= 3
    return batch


def rehash(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed."""
    stored = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    stored["files"][name] = {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
    (folder / MANIFEST_FILE).write_text(json.dumps(stored), encoding="utf-8")


def change_golden(folder: Path, **change: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(folder / GOLDEN_FILE) as stored:
        arrays = {name: change.get(name, lambda value: value)(stored[name]) for name in stored.files}
    np.savez_compressed(folder / GOLDEN_FILE, **arrays)
    rehash(folder, GOLDEN_FILE)


# ---- several at once


def test_streams_share_the_threads_and_are_no_more_than_those(
    tiny_bundle_kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.accel.onnx_engine.core_count", lambda: 8)
    bundle = open_bundle(tiny_bundle_kept)

    def of_a_call(**settings: Any) -> tuple[int, int]:
        engine = OnnxEngine(bundle, **settings)
        engine.run(np.zeros((1, 32, 32, 3), np.uint8))
        pool = engine._sessions["mask"].get_session_options().intra_op_num_threads
        return engine.streams, pool

    # callers and the pool's own threads, one fewer than its size, are as many as there may be
    assert of_a_call(streams=4) == (4, 5)
    assert of_a_call(streams=4, threads=4) == (4, 1)
    assert of_a_call(streams=4, threads=3) == (3, 1)
    assert of_a_call(streams=4, threads=1) == (1, 1)
    assert of_a_call(threads=3) == (1, 3)


def test_calls_side_by_side_make_one_session_and_each_gets_its_own_answer(
    tiny_bundle_kept: Path, images: Uint8, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OnnxEngine(open_bundle(tiny_bundle_kept), threads=2, streams=2)
    alone = OnnxEngine(open_bundle(tiny_bundle_kept), threads=1)
    made, make = [], ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda *given, **named: made.append(1) or make(*given, **named))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda index: engine.run(images[index % 8][None]), range(64)))
    assert len(made) == 1
    for index, answer in enumerate(answers[:8] + answers[-8:]):
        np.testing.assert_allclose(answer.mask, alone.run(images[index % 8][None]).mask, rtol=0, atol=1e-6)


# ---- answers


def test_run_gives_what_onnxruntime_gives(engine: OnnxEngine, images: Uint8) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(engine.bundle.graph), options, providers=["CPUExecutionProvider"])
    target = np.array([0, 1, 2, 3, 4, -1, -1, 0])
    by_name = dict(
        zip(
            [o.name for o in session.get_outputs()], session.run(None, {"image": images, "target": target}), strict=True
        )
    )
    answer = engine.run(images, target)
    np.testing.assert_allclose(answer.probabilities, by_name["probabilities"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(answer.mask, by_name["mask"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(answer.target, by_name["target_class"])


def test_answers_have_the_promised_shapes_types_and_ranges(engine: OnnxEngine, images: Uint8) -> None:
    answer = engine.run(images)
    assert len(answer) == 8
    assert answer.probabilities.shape == (8, 5)
    assert answer.mask.shape == (8, 1, 32, 32)
    assert answer.probabilities.dtype == answer.mask.dtype == np.float32
    assert answer.target.dtype == np.int64
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, atol=1e-5)
    assert answer.mask.min() >= 0
    assert answer.mask.max() <= 1


def test_probabilities_alone_are_those_of_run(engine: OnnxEngine, images: Uint8) -> None:
    alone = engine.probabilities(images)
    assert alone.shape == (8, 5)
    np.testing.assert_allclose(alone, engine.run(images).probabilities, rtol=0, atol=1e-6)


def test_a_batch_of_eight_equals_eight_of_one(engine: OnnxEngine, images: Uint8) -> None:
    together = engine.run(images)
    for i in range(8):
        alone = engine.run(images[i : i + 1])
        np.testing.assert_allclose(alone.mask[0], together.mask[i], rtol=0, atol=1e-6)
        np.testing.assert_allclose(alone.probabilities[0], together.probabilities[i], rtol=0, atol=1e-6)
        assert alone.target[0] == together.target[i]


def test_images_need_not_be_contiguous(engine: OnnxEngine, images: Uint8) -> None:
    turned = images[:, ::-1, ::-1]
    np.testing.assert_array_equal(engine.run(turned).mask, engine.run(turned.copy()).mask)


# ---- target


@pytest.mark.parametrize("target", [None, -1, np.full(64, -1)], ids=["none", "minus one", "array"])
def test_without_a_target_the_predicted_class_is_explained(
    engine: OnnxEngine, rng: np.random.Generator, target: Any
) -> None:
    colours = rng.integers(
        0, 32, (64, 1, 1, 3), dtype=np.uint8
    )  # dark: their classes differ more than those of bright ones
    answer = engine.run(np.broadcast_to(colours, (64, 32, 32, 3)), target)
    np.testing.assert_array_equal(answer.target, answer.probabilities.argmax(1))


def test_one_target_holds_for_all_images(engine: OnnxEngine, images: Uint8) -> None:
    assert engine.run(images, 3).target.tolist() == [3] * 8
    assert engine.run(images, np.int32(3)).target.tolist() == [3] * 8


def test_each_image_can_have_its_own_target(engine: OnnxEngine, images: Uint8) -> None:
    answer = engine.run(images[:4], np.array([4, -1, 0, 2], dtype=np.int32))
    assert answer.target.tolist() == [4, int(answer.probabilities[1].argmax()), 0, 2]


@pytest.mark.parametrize(
    "target",
    [
        np.zeros(7, np.int64),
        np.zeros(9, np.int64),
        np.zeros((7, 2), np.int64),
        np.zeros((8, 0), np.int64),
        np.zeros(8),
        1.0,
        True,
        "cat",
        np.array([]),
    ],
    ids=["too short", "too long", "several for too few", "none for each", "floats", "float", "bool", "name", "empty"],
)
def test_a_target_of_another_kind_is_refused(engine: OnnxEngine, images: Uint8, target: Any) -> None:
    with pytest.raises(UsageError, match="one for each of the 8 images"):
        engine.run(images, target)


def test_several_targets_are_refused_by_a_bundle_that_explains_the_prediction(
    engine: OnnxEngine, images: Uint8
) -> None:
    with pytest.raises(UsageError, match="predicted class only"):
        engine.run(images, np.zeros((8, 2), np.int64))


@pytest.mark.parametrize("target", [5, -2, np.array([0, 1, 2, 3, 4, 5, 0, 0])], ids=["five", "minus two", "array"])
def test_a_target_out_of_range_is_refused_with_the_range(engine: OnnxEngine, images: Uint8, target: Any) -> None:
    with pytest.raises(UsageError, match=r"from 0 to 4, or -1"):
        engine.run(images, target)


# ---- images that do not fit


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((2, 32, 32, 3), np.int64),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((2, 32, 32, 4), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_images_of_another_dtype_or_shape_are_refused_with_what_they_are(engine: OnnxEngine, wrong: Any) -> None:
    for call in (engine.run, engine.probabilities):
        with pytest.raises(UsageError) as caught:
            call(wrong)
        assert str(wrong.dtype) in str(caught.value)
        assert str(wrong.shape) in str(caught.value)


@pytest.mark.parametrize("size", [(31, 32), (32, 33), (64, 64)])
def test_images_of_another_size_are_refused_with_the_way_out(engine: OnnxEngine, size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=rf"32×32.*{size[0]}×{size[1]}.*resize_image"):
        engine.run(np.zeros((1, *size, 3), np.uint8))


# ---- opening


def test_an_unknown_engine_is_refused_with_those_there_are(tiny_bundle_kept: Path) -> None:
    with pytest.raises(EngineError, match=r"no engine 'abacus'; there are: onnx"):
        open_engine(tiny_bundle_kept, "abacus")


def test_an_unknown_provider_is_refused_with_those_there_are(tiny_bundle_kept: Path) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine(tiny_bundle_kept, providers=["abacus"])
    assert "'abacus'" in str(caught.value)
    for name in ort.get_available_providers():
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_a_provider_may_be_called_by_its_short_name(tiny_bundle_kept: Path, name: str, images: Uint8) -> None:
    opened = open_engine(tiny_bundle_kept, providers=[name], threads=1)
    assert opened.providers == ["CPUExecutionProvider"]
    assert len(opened.run(images)) == 8


def test_an_engine_can_be_opened_from_a_bundle_that_is_open(tiny_bundle_kept: Path) -> None:
    bundle = open_bundle(tiny_bundle_kept)
    assert open_engine(bundle, threads=1).bundle is bundle


def test_a_graph_that_is_none_is_an_engine_error(tiny_bundle: Path, images: Uint8) -> None:
    (tiny_bundle / GRAPH_FILE).write_bytes(b"\x08\x0a" + b"\x12\x04junk" * 3)
    rehash(tiny_bundle, GRAPH_FILE)
    broken = OnnxEngine(open_bundle(tiny_bundle), threads=1)
    with pytest.raises(EngineError, match=GRAPH_FILE):
        broken.run(images)
    with pytest.raises(BundleError, match="damaged"):
        broken.probabilities(images)


class Failing:
    """In place of a session."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_outputs(self) -> list[Any]:
        return []

    def run(self, outputs: list[str], feeds: dict[str, Any]) -> list[Any]:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("Failed to allocate memory for requested buffer"), RuntimeError("std::bad_alloc")],
)
def test_a_batch_that_does_not_fit_says_which_batch_might(
    engine: OnnxEngine, images: Uint8, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine._sessions, "mask", Failing(error))
    with pytest.raises(OutOfMemory, match=r"batch of 8 images.*--batch-size 2"):
        engine.run(images)
    with pytest.raises(OutOfMemory, match=r"batch of 1 images(?!.*--batch-size)"):
        engine.run(images[:1])


def test_another_failure_of_onnxruntime_is_an_engine_error_of_one_line(
    engine: OnnxEngine, images: Uint8, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine._sessions, "mask", Failing(RuntimeError("something odd\nwith a stack")))
    with pytest.raises(EngineError, match=r"batch of 8 images: something odd$"):
        engine.run(images)


# ---- the golden pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if os.name != "posix" or os.uname().sysname == "Darwin":
        pytest.skip("the cache is told by XDG_CACHE_HOME on Linux only")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """Each golden comparison that is made."""
    made: list[Engine] = []
    compare = golden.compare_golden

    def counted(engine: Engine) -> tuple[float, float]:
        made.append(engine)
        return compare(engine)

    monkeypatch.setattr(golden, "compare_golden", counted)
    return made


def test_a_golden_pass_is_remembered(tiny_bundle: Path, cache: Path, comparisons: list[Engine]) -> None:
    open_engine(tiny_bundle, threads=1)
    assert len(comparisons) == 1
    assert any(path.is_file() for path in cache.rglob("*"))
    open_engine(tiny_bundle, threads=1)
    assert len(comparisons) == 1


def test_another_bundle_or_engine_is_compared_anew(tiny_bundle: Path, cache: Path, comparisons: list[Engine]) -> None:
    opened = open_engine(tiny_bundle, threads=1)
    golden.ensure_golden(opened, "another engine")
    assert len(comparisons) == 2
    change_golden(tiny_bundle)  # the same arrays, packed anew
    stored = json.loads((tiny_bundle / MANIFEST_FILE).read_text(encoding="utf-8"))
    (tiny_bundle / MANIFEST_FILE).write_text(json.dumps({**stored, "name": "another"}), encoding="utf-8")
    open_engine(tiny_bundle, threads=1)
    assert len(comparisons) == 3


def test_without_a_writable_cache_each_opening_compares(
    tiny_bundle: Path, tmp_path: Path, comparisons: list[Engine], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    open_engine(tiny_bundle, threads=1)
    open_engine(tiny_bundle, threads=1)
    assert len(comparisons) == 2


def test_a_check_that_is_not_wanted_is_not_made(tiny_bundle: Path, cache: Path, comparisons: list[Engine]) -> None:
    open_engine(tiny_bundle, threads=1, check=False)
    assert comparisons == []


def nudge(mask: np.ndarray) -> np.ndarray:
    mask = mask.copy()
    mask[-1, 0, 3, 5] += 0.01
    return mask


def poison(mask: np.ndarray) -> np.ndarray:
    mask = mask.copy()
    mask[0, 0, 0, 0] = np.nan
    return mask


@pytest.mark.parametrize(
    ("name", "change"),
    [("mask", nudge), ("mask", poison), ("probabilities", lambda value: value[:, ::-1])],
    ids=["one pixel", "nan", "probabilities"],
)
def test_an_engine_that_does_not_give_the_golden_answers_is_refused_every_time(
    tiny_bundle: Path, cache: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    change_golden(tiny_bundle, **{name: change})
    for _ in range(2):
        with pytest.raises(ParityError, match=r"onnxruntime .* does not compute what the original explainer computes"):
            open_engine(tiny_bundle, threads=1)


def test_compare_golden_gives_the_largest_differences(tiny_bundle: Path) -> None:
    change_golden(tiny_bundle, mask=nudge, probabilities=lambda value: value - np.float32(0.25))
    mask, probabilities = golden.compare_golden(OnnxEngine(open_bundle(tiny_bundle), threads=1))
    assert mask == pytest.approx(0.01, abs=1e-4)
    assert probabilities == pytest.approx(0.25, abs=1e-4)


# ---- verify


class Doctored:
    """An engine whose answers are changed."""

    name, precision = "doctored", "fp32"

    def __init__(self, engine: Engine) -> None:
        self.engine, self.bundle, self.calls = engine, engine.bundle, 0

    def change(self, answer: Explanation) -> Explanation:
        return answer

    def run(self, images: Uint8, target: Any = None, query: Any = None) -> Explanation:
        self.calls += 1
        return self.change(self.engine.run(images, target))

    def probabilities(self, images: Uint8) -> np.ndarray:
        return self.engine.probabilities(images)


class ConstantMask(Doctored):
    def change(self, answer: Explanation) -> Explanation:
        return replace(answer, mask=np.broadcast_to(self.bundle.golden.mask[:1], answer.mask.shape))


class BatchDependent(Doctored):
    def change(self, answer: Explanation) -> Explanation:
        return replace(
            answer, mask=answer.mask * np.float32(1 - 0.001 * (len(self.bundle.golden.images) - len(answer)))
        )


class MixedUp(Doctored):
    def change(self, answer: Explanation) -> Explanation:
        return replace(answer, mask=np.roll(answer.mask, 1, axis=0))


class NotANumber(Doctored):
    def change(self, answer: Explanation) -> Explanation:
        return replace(answer, mask=np.full_like(answer.mask, np.nan))


class OutOfRange(Doctored):
    def change(self, answer: Explanation) -> Explanation:
        return replace(answer, mask=answer.mask * 3 - 1)


class Fickle(Doctored):
    def change(self, answer: Explanation) -> Explanation:
        return replace(answer, mask=answer.mask * np.float32(1 - 4e-6 * (self.calls % 2)))


class OtherPrediction(Doctored):
    def probabilities(self, images: Uint8) -> np.ndarray:
        return self.engine.probabilities(images)[:, ::-1]


class OtherProbabilities(Doctored):
    def change(self, answer: Explanation) -> Explanation:
        return replace(answer, probabilities=answer.probabilities[:, ::-1])


def failed(engine: Engine) -> set[str]:
    return {check.name for check in verify_engine(engine) if not check.passed}


def test_every_check_passes_on_a_sound_bundle(engine: OnnxEngine) -> None:
    checks = verify_engine(engine)
    assert len(checks) >= 6
    assert all(check.passed for check in checks)
    assert all(check.name and check.measured and check.bar for check in checks)
    assert failed(Doctored(engine)) == set()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ConstantMask, {"masks equal PyTorch's", "mask depends on the image"}),
        (BatchDependent, {"batch of 8 equals 8 of 1"}),
        (MixedUp, {"masks equal PyTorch's", "batch of 8 equals 8 of 1"}),
        (OutOfRange, {"masks equal PyTorch's", "mask is finite and in [0, 1]"}),
        (Fickle, {"two runs are the same"}),
        (OtherPrediction, {"prediction alone is the same"}),
        (OtherProbabilities, {"probabilities equal PyTorch's", "prediction alone is the same"}),
    ],
)
def test_a_doctored_engine_fails_just_the_checks_that_it_should(
    engine: OnnxEngine, kind: type[Doctored], expected: set[str]
) -> None:
    assert failed(kind(engine)) == expected


def test_masks_that_are_not_numbers_fail(engine: OnnxEngine) -> None:
    assert {"masks equal PyTorch's", "mask is finite and in [0, 1]"} <= failed(NotANumber(engine))


def test_a_batch_that_would_break_the_memory_budget_is_taken_apart(
    engine: OnnxEngine, images: Uint8, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = engine.bundle.manifest.model_copy(update={"splits": True, "batch": 3})
    careful = OnnxEngine(replace(engine.bundle, manifest=manifest))
    sizes = []
    answers = OnnxEngine._answers

    def note(self: OnnxEngine, what: Any, feeds: dict[str, Any]) -> dict[str, Any]:
        sizes.append(len(feeds["image"]))
        return answers(self, what, feeds)

    monkeypatch.setattr(OnnxEngine, "_answers", note)
    answer = careful.run(images, 2)
    assert sizes == [3, 3, 2]
    whole = engine.run(images, 2)
    np.testing.assert_allclose(answer.mask, whole.mask, atol=1e-6)
    np.testing.assert_allclose(answer.probabilities, whole.probabilities, atol=1e-6)
    assert answer.target.tolist() == [2] * 8
