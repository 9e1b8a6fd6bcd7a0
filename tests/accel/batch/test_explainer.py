"""Encoded images to rows: against the plain pipeline and the engine, PNG against Pillow, failures in their place."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from batch_material import encoded
from PIL import Image

from saccade.accel.batch.explainer import BatchConfig, BatchExplainer
from saccade.accel.batch.sources import Failing, InMemory, Item
from saccade.accel.batch.table import encode_mask, png_bytes
from saccade.accel.bundle import Bundle, file_sha256, open_bundle
from saccade.accel.image import load_image, load_resized, resize_image
from saccade.accel.pipeline import PipelineConfig, explain_images
from saccade.accel.results import Failure
from saccade.contracts import Explanation, Floats, ImageSpec, MaskQuery, Uint8
from saccade.errors import BundleError, ImageError, OutputError, UsageError


def items_of(numbers: range, *, shard: int = 0) -> list[Item]:
    return [Item(shard, f"{number}.png", None, InMemory(encoded(number))) for number in numbers]


def table_of(explainer: BatchExplainer, items: list[Item]) -> pa.Table:
    return pa.Table.from_batches([answered.rows for answered in explainer.stream(items)], explainer.schema)


def mask_of(row: dict[str, Any]) -> np.ndarray:
    with Image.open(io.BytesIO(row["mask"])) as picture:
        assert picture.mode == "L"
        assert picture.size == (row["mask_width"], row["mask_height"])
        return np.asarray(picture)


def test_rows_say_what_explain_says(explainer: BatchExplainer) -> None:
    rows = table_of(explainer, items_of(range(19))).to_pylist()
    expected = list(explain_images(explainer.engine, [encoded(number) for number in range(19)]))
    assert [row["key"] for row in rows] == [f"{number}.png" for number in range(19)]
    for number, (row, result) in enumerate(zip(rows, expected, strict=True)):
        assert not isinstance(result, Failure)
        assert row["error"] is None
        assert row["sha256"] == hashlib.sha256(encoded(number)).hexdigest()
        assert (row["image_height"], row["image_width"]) == result.image.shape[:2]
        assert (row["target"], row["target_name"]) == (result.target, result.class_name)
        assert (row["predicted"], row["explains"]) == (result.predicted, result.predicted)
        assert row["probability"] == pytest.approx(result.probability, abs=1e-6)
        assert list(zip(row["top_names"], row["top_probabilities"], strict=True)) == [
            (name, pytest.approx(value, abs=1e-6)) for name, value in result.top()
        ]
        assert [explainer.manifest.class_names[index] for index in row["top_classes"]] == row["top_names"]
        assert np.abs(mask_of(row) / 255 - result.mask).max() <= 0.5 / 255 + 1e-5
        assert row["mask_area"] == pytest.approx(result.mask.mean(), abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (32, 32), (33, 57)])
def test_masks_come_back_from_a_png_as_they_were(shape: tuple[int, int], rng: np.random.Generator) -> None:
    for grey in (rng.integers(0, 256, shape, dtype=np.uint8), np.full(shape, 255, np.uint8)):
        with Image.open(io.BytesIO(png_bytes(grey))) as picture:
            np.testing.assert_array_equal(np.asarray(picture), grey)


def test_masks_as_bytes_are_the_values_row_after_row(
    explainer: BatchExplainer, tiny_bundle_kept: Path, rng: np.random.Generator
) -> None:
    mask = rng.random((5, 9)).astype(np.float32)
    grey = encode_mask(mask, "uint8")
    assert grey is not None
    assert np.abs(np.frombuffer(grey, np.uint8).reshape(5, 9) / 255 - mask).max() <= 0.5 / 255 + 1e-6
    half = encode_mask(mask, "float16")
    assert half is not None
    np.testing.assert_allclose(np.frombuffer(half, "<f2").reshape(5, 9), mask, atol=5e-4)
    for encoding, size in (("uint8", 1024), ("float16", 2048)):
        other = BatchExplainer(explainer.engine, BatchConfig(mask=encoding))  # type: ignore[arg-type]
        assert other.schema.field("mask").type == pa.binary(size)
        assert other.schema.metadata[b"saccade.mask_encoding"] == encoding.encode()
        assert {len(row["mask"]) for row in table_of(other, items_of(range(3))).to_pylist()} == {size}


def test_the_schema_says_what_it_was_made_with(explainer: BatchExplainer, tiny_bundle_kept: Path) -> None:
    about = explainer.schema.metadata
    assert about[b"saccade.manifest_sha256"].decode() == file_sha256(tiny_bundle_kept / "manifest.json")
    assert about[b"saccade.graph_sha256"].decode() == file_sha256(tiny_bundle_kept / "explainer.onnx")
    assert about[b"saccade.bundle"].decode() == explainer.manifest.name


def test_without_masks_none_is_computed(explainer: BatchExplainer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = table_of(explainer, items_of(range(5))).to_pylist()

    def run(*arguments: Any) -> Explanation:
        raise AssertionError("the mask was computed")

    monkeypatch.setattr(explainer.engine, "run", run)
    pipeline = PipelineConfig(targets=(-1, 2))
    rows = table_of(BatchExplainer(explainer.engine, BatchConfig(mask="none", pipeline=pipeline)), items_of(range(5)))
    assert rows.num_rows == 10
    for one, row in zip(expected, rows.to_pylist()[::2], strict=True):
        assert (row["mask"], row["mask_height"], row["explains"]) == (None, None, None)
        assert (row["target"], row["key"]) == (one["target"], one["key"])
        assert row["probability"] == pytest.approx(one["probability"], abs=1e-6)
    assert {row["target_name"] for row in rows.to_pylist()[1::2]} == {"cat"}


class Functions:
    """An engine of masks as functions of the area: each is a tenth of its class, plus its area."""

    name, precision, concurrent, streams = "functions", "fp32", False, 1

    def __init__(self, bundle: Bundle) -> None:
        change = {"areas": (0.1, 0.3), "class_specific": True, "several_targets": True}
        self.bundle = Bundle(bundle.path, bundle.manifest.model_copy(update=change))

    def run(self, images: Uint8, target: Any = None, query: MaskQuery | None = None) -> Explanation:
        assert query is not None
        assert query.size is not None
        value = target[:, :, None] / 10 + np.array(query.areas)
        mask = np.broadcast_to(value.reshape(len(images), -1, 1, 1), (len(images), value[0].size, *query.size))
        return Explanation(np.full((len(images), 5), 0.2, np.float32), target, mask.astype(np.float32))

    def probabilities(self, images: Uint8) -> Floats:
        raise NotImplementedError


def test_classes_and_areas_are_rows_of_their_own(explainer: BatchExplainer) -> None:
    pipeline = PipelineConfig(targets=(1, 3), query=MaskQuery(areas=(0.2, 0.4), size=(20, 24)), batch_size=2)
    engine = Functions(explainer.engine.bundle)
    rows = table_of(BatchExplainer(engine, BatchConfig(pipeline=pipeline)), items_of(range(3))).to_pylist()
    assert [(row["key"], row["target_name"], round(row["asked_area"], 3)) for row in rows] == [
        (f"{number}.png", name, area) for number in range(3) for name in ("bee", "dog") for area in (0.2, 0.4)
    ]
    for row in rows:
        mask = mask_of(row)
        assert mask.shape == (20, 24)
        assert row["explains"] == row["target"]
        assert mask.mean() / 255 == pytest.approx(row["target"] / 10 + row["asked_area"], abs=0.003)


def test_a_batch_of_ray_or_arrow_gives_a_table(explainer: BatchExplainer) -> None:
    contents = [encoded(number) for number in range(11)]
    names = [f"p/{number}" for number in range(11)]
    as_numpy = explainer({"path": np.array(names, dtype=object), "bytes": np.array(contents, dtype=object)})
    as_table = explainer(pa.table({"key": names, "bytes": contents, "label": range(11)}))
    assert as_numpy.equals(as_table)
    assert as_numpy.schema.equals(explainer.schema)
    assert as_numpy["key"].to_pylist() == names
    with pytest.raises(UsageError, match="the columns 'bytes' and 'key' or 'path', not: image"):
        explainer({"image": [1]})


def test_what_cannot_be_read_is_a_row_in_its_place(explainer: BatchExplainer) -> None:
    items = items_of(range(10))
    items[3] = Item(0, "three", "3", InMemory(encoded(3)[:60]))
    items[4] = Item(0, "four", None, Failing("the disk is gone"))
    items[9] = Item(0, "nine", None, InMemory(b""))
    answers = list(explainer.stream(items))
    rows = pa.Table.from_batches([answered.rows for answered in answers]).to_pylist()
    assert [row["key"] for row in rows] == [item.key for item in items]
    assert [index for index, row in enumerate(rows) if row["error"]] == [3, 4, 9]
    assert rows[3]["sha256"] == hashlib.sha256(encoded(3)[:60]).hexdigest()
    assert (rows[4]["error"], rows[4]["sha256"]) == ("the disk is gone", None)
    assert "'nine' is empty" in rows[9]["error"]
    assert [rows[3][name] for name in ("mask", "target", "probability", "image_height")] == [None] * 4
    assert [key for answered in answers for key, _ in answered.failures] == ["three", "four", "nine"]
    whole = table_of(explainer, items_of(range(10))).to_pylist()
    for index in (0, 2, 5, 8):
        assert rows[index]["probability"] == pytest.approx(whole[index]["probability"], abs=1e-6)


def test_batches_may_span_shards_and_rows_do_not(explainer: BatchExplainer) -> None:
    items = [*items_of(range(5), shard=4), *items_of(range(5, 8), shard=7)]
    answers = list(explainer.stream(items))
    by_shard = {shard: [a for a in answers if a.shard == shard] for shard in (4, 7)}
    assert sum(answered.images for answered in by_shard[4]) == 5
    keys = [key for answered in by_shard[7] for key in answered.rows["key"].to_pylist()]
    assert keys == ["5.png", "6.png", "7.png"]


def test_overlays_are_drawn_under_their_keys_and_never_outside(explainer: BatchExplainer, tmp_path: Path) -> None:
    keys = ["a/b.png", "../../up.png", "/root.png", "x" * 300 + ".png", "a/b.jpg", "a/../a/b.png", "a\\b.png"]
    items = [Item(0, key, None, InMemory(encoded(number))) for number, key in enumerate(keys)]
    config = BatchConfig(overlays=tmp_path / "pictures")
    table_of(BatchExplainer(explainer.engine, config), items)
    drawn = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(drawn) == len(keys)
    assert {"pictures/a/b.png.overlay.png", "pictures/a/b.jpg.overlay.png"} < drawn
    assert {path[: len("pictures/up.png-")] for path in drawn} > {"pictures/up.png-", "pictures/root.pn"}
    (expected,) = explain_images(explainer.engine, [encoded(0)])
    assert not isinstance(expected, Failure)
    with Image.open(tmp_path / "pictures/a/b.png.overlay.png") as picture:
        assert picture.size == expected.overlay().size
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        table_of(BatchExplainer(explainer.engine, BatchConfig(overlays=tmp_path / "file")), items)


def test_each_row_has_a_picture_of_its_own(explainer: BatchExplainer, tmp_path: Path) -> None:
    engine = Functions(explainer.engine.bundle)
    names = ("ant", "b " * 150, "cat", "d " * 150, "emu")
    engine.bundle = Bundle(engine.bundle.path, engine.bundle.manifest.model_copy(update={"class_names": names}))
    pipeline = PipelineConfig(targets=(1, 3), query=MaskQuery(areas=(0.1001, 0.1002), size=(20, 24)))
    config = BatchConfig(pipeline=pipeline, overlays=tmp_path / "pictures")
    rows = table_of(BatchExplainer(engine, config), items_of(range(1)))
    assert rows.num_rows == 4
    assert len(list((tmp_path / "pictures").iterdir())) == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mask": "jpeg"}, "unknown encoding of masks 'jpeg'; there are: png, uint8, float16, none"),
        ({"top": 0}, "at least one class"),
        ({"mask": "none", "overlays": Path("x")}, "need masks"),
        ({"pipeline": PipelineConfig(query=MaskQuery(areas=(0.1,), parts=2))}, "one mask a row"),
    ],
)
def test_what_cannot_be_asked_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BatchConfig(**wrong)


def test_an_error_of_the_engine_or_the_source_ends_the_stream_and_its_threads(
    explainer: BatchExplainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        yield from items_of(range(30))
        raise RuntimeError("the list is torn")

    with pytest.raises(RuntimeError, match="the list is torn"):
        list(explainer.stream(broken()))
    taken = explainer.stream(items_of(range(50)))
    next(taken)
    taken.close()
    monkeypatch.setattr(explainer.engine, "run", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(explainer.stream(items_of(range(30))))

    def at_work() -> list[str]:
        """Threads of batches; servers of other tests have some as well."""
        names = [thread.name for thread in threading.enumerate()]
        return [name for name in names if name.startswith("saccade-") and not name.startswith("saccade-serve")]

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and at_work():
        time.sleep(0.01)
    assert not at_work()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "I;16", "LA"])
@pytest.mark.parametrize(
    "spec",
    [ImageSpec(size=(32, 32)), ImageSpec(size=(20, 30), resize="crop", interpolation="bicubic")],
    ids=["squash", "crop"],
)
def test_the_short_way_to_the_models_size_gives_the_same_pixels(
    mode: str, spec: ImageSpec, rng: np.random.Generator
) -> None:
    for shape in ((47, 61), (32, 32), (20, 30), (3, 90)):
        stream = io.BytesIO()
        if mode == "I;16":
            Image.fromarray(rng.integers(0, 65536, shape, dtype=np.uint16)).save(stream, "PNG")
        else:
            picture = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).convert(mode)
            exif = Image.Exif()
            exif[274] = 6  # lies on its side
            picture.save(stream, "TIFF" if mode == "CMYK" else "PNG", exif=exif)
        content = stream.getvalue()
        image = load_image(content)
        pixels, size = load_resized(content, spec)
        np.testing.assert_array_equal(pixels, resize_image(image, spec))
        assert size == image.shape[:2]
        np.testing.assert_array_equal(load_resized(image, spec)[0], pixels)
    with pytest.raises(ImageError, match=r"'a\.png' is empty"):
        load_resized(b"", spec, name="a.png")


def test_a_bundle_that_is_gone_is_said(tiny_bundle: Path) -> None:
    explainer = BatchExplainer(tiny_bundle, check=False)
    (tiny_bundle / "explainer.onnx").unlink()
    with pytest.raises(BundleError, match=r"explainer\.onnx' cannot be read: No such file"):
        table_of(explainer, items_of(range(2)))


# ---- batches side by side


class Slow:
    """Answers two batches at once, one of them later than the other; remembers how many it had at once."""

    def __init__(self, explainer: BatchExplainer) -> None:
        self.engine, self.streams = explainer.engine, 2
        self.now, self.most, self.turn = 0, 0, threading.Lock()
        self.together = threading.Barrier(2, timeout=30)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def run(self, images: Uint8, target: Any = None, query: MaskQuery | None = None) -> Explanation:
        with self.turn:
            self.now += 1
            self.most = max(self.most, self.now)
        place = self.together.wait()  # none goes on alone
        time.sleep(0.02 * place)
        with self.turn:
            self.now -= 1
        return self.engine.run(images, target, query)


def test_as_many_batches_run_as_the_engine_has_streams_and_rows_keep_their_order(explainer: BatchExplainer) -> None:
    slow = Slow(explainer)
    items = items_of(range(24))
    rows = table_of(BatchExplainer(slow, BatchConfig(pipeline=PipelineConfig(batch_size=2))), items)
    assert slow.most == 2
    assert rows.equals(table_of(explainer, items))


def test_batches_side_by_side_give_the_rows_of_one_after_the_other(
    explainer: BatchExplainer, tiny_bundle_kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.accel.onnx_engine.core_count", lambda: 3)
    config = BatchConfig(pipeline=PipelineConfig(batch_size=2))
    several = BatchExplainer(tiny_bundle_kept, config)
    assert (several.engine.streams, explainer.engine.streams) == (3, 1)
    expected, rows = (table_of(one, items_of(range(40))).to_pylist() for one in (explainer, several))
    for one, row in zip(expected, rows, strict=True):
        assert (row["key"], row["predicted"]) == (one["key"], one["predicted"])
        assert row["probability"] == pytest.approx(one["probability"], abs=1e-6)
        assert np.abs(mask_of(row).astype(int) - mask_of(one)).max() <= 1


@pytest.mark.parametrize("change", [{"any_size": True}, {"splits": True}])
def test_where_one_batch_may_fill_the_memory_there_is_one_at_a_time(
    tiny_bundle_kept: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, bool]
) -> None:
    monkeypatch.setattr("saccade.accel.onnx_engine.core_count", lambda: 8)
    bundle = open_bundle(tiny_bundle_kept)
    assert BatchExplainer(bundle, check=False).engine.streams == 4
    large = Bundle(bundle.path, bundle.manifest.model_copy(update=change))
    assert BatchExplainer(large, check=False).engine.streams == 1
    assert BatchExplainer(large, check=False, streams=2).engine.streams == 2
