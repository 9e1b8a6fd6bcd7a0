"""The model repository in NVIDIA's own server, against the engine here."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_server
from PIL import Image
from plan_files import add_plans

from saccade.accel.bundle import open_bundle
from saccade.accel.engines import open_engine
from saccade.accel.image import load_image, resize_image
from saccade.contracts import Explanation, MaskQuery, Uint8
from saccade.export.triton_server.repository import deploy
from saccade.export.triton_server.settings import TritonSettings

pytestmark = [
    pytest.mark.xdist_group("served"),  # bundles and a server for all
    pytest.mark.skipif(triton_server.unsupported() is not None, reason=str(triton_server.unsupported())),
]

Command = Callable[..., tuple[int, str, str]]
SAME = 1e-6  # the same ONNX Runtime on the same processor; what is left is the number of threads


@dataclass(frozen=True)
class Running:
    """The server, its repository, and the bundles by name."""

    server: triton_server.Server
    client: Any
    repository: Path
    bundles: dict[str, Path]

    def ask(self, model: str, outputs: tuple[str, ...] = (), **values: np.ndarray[Any, Any]) -> dict[str, Any]:
        import tritonclient.http as http

        wanted = [http.InferRequestedOutput(name) for name in outputs] or None
        answer = self.client.infer(model, [tensor(http, name, value) for name, value in values.items()], outputs=wanted)
        return {output["name"]: answer.as_numpy(output["name"]) for output in answer.get_response()["outputs"]}


def tensor(module: Any, name: str, value: np.ndarray[Any, Any]) -> Any:
    kinds = {"u1": "UINT8", "i8": "INT64", "f4": "FP32", "O": "BYTES"}
    made = module.InferInput(name, list(value.shape), kinds[value.dtype.str.lstrip("<>|")])
    made.set_data_from_numpy(value)
    return made


@pytest.fixture(scope="module")
def pictures() -> Uint8:
    images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    images[::2] //= 3
    return images


@pytest.fixture(scope="module")
def bundles(served_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One mask per image, several classes at once, masks as functions, and another way to cut images."""
    cropped = Path(shutil.copytree(served_bundles["tiny"], tmp_path_factory.mktemp("bundles") / "cropped"))
    manifest = json.loads((cropped / "manifest.json").read_text())
    manifest["image"] |= {"resize": "crop", "crop": 0.8, "interpolation": "bicubic"}
    (cropped / "manifest.json").write_text(json.dumps(manifest))
    return {**served_bundles, "cropped": cropped}


@pytest.fixture(scope="module")
def running(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    import tritonclient.http as http

    if not triton_server.installed():
        pytest.fail("the server is not installed; install it with: make .venv/triton-installed")
    folder = tmp_path_factory.mktemp("triton")
    repository = folder / "models"
    opened = [open_bundle(path) for path in bundles.values()]
    deploy(opened, repository, TritonSettings(instances=1, decoders=1, max_pixels=10_000))
    gpu = TritonSettings(
        target="gpu", instances=1, accelerator=True, engine_cache="/engines", images=False, name="batched"
    )
    deploy([opened[0]], repository, gpu)
    deploy(
        [open_bundle(bundles["areas"])],
        repository,
        TritonSettings(instances=1, queue_size=2, images=False, name="narrow"),
    )
    arguments = ["--model-control-mode=explicit", "--load-model=*"]
    with triton_server.running_server(repository, folder / "log.txt", arguments=arguments) as server:
        with http.InferenceServerClient(server.url.removeprefix("http://"), concurrency=32) as client:
            yield Running(server, client, repository, bundles)


def local(path: Path, images: Uint8, target: Any = None, query: MaskQuery | None = None) -> Explanation:
    return open_engine(path, threads=1).run(images, target, query)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def as_bytes(*contents: bytes) -> np.ndarray[Any, Any]:
    return np.array(contents, dtype=object)[:, None]


# ---- pixels


@pytest.mark.parametrize("model", ["tiny", "batched"])
def test_answers_are_those_of_the_engine_here(running: Running, pictures: Uint8, model: str) -> None:
    target = np.array([-1, 3, 0, -1])
    found = running.ask(model, image=pictures, target=target[:, None])
    expected = local(running.bundles["tiny"], pictures, target)
    np.testing.assert_allclose(found["mask"], expected.mask, rtol=0, atol=SAME)
    np.testing.assert_allclose(found["probabilities"], expected.probabilities, rtol=0, atol=SAME)
    np.testing.assert_array_equal(found["target_class"][:, 0], expected.target)
    assert np.abs(expected.mask[0] - expected.mask[1]).max() > 0.1


def test_grpc_gives_the_same(running: Running, pictures: Uint8) -> None:
    import tritonclient.grpc as grpc

    with grpc.InferenceServerClient(running.server.grpc) as client:
        values = {"image": pictures, "target": np.full((4, 1), -1)}
        answer = client.infer("tiny", [tensor(grpc, name, value) for name, value in values.items()])
    np.testing.assert_array_equal(
        answer.as_numpy("mask"), running.ask("tiny", image=pictures, target=np.full((4, 1), -1))["mask"]
    )


def test_several_classes_of_one_image(running: Running, pictures: Uint8) -> None:
    target = np.array([[0, 4, -1], [1, 2, 3], [4, 4, 0], [-1, 0, 1]])
    found = running.ask("classes", image=pictures, target=target)
    expected = local(running.bundles["classes"], pictures, target)
    assert found["mask"].shape == (4, 3, 32, 32)
    np.testing.assert_allclose(found["mask"], expected.mask, rtol=0, atol=SAME)
    np.testing.assert_array_equal(found["target_class"], expected.target)


def test_masks_as_functions(running: Running, pictures: Uint8) -> None:
    query = MaskQuery(areas=(0.07, 0.3), size=(20, 48), box=(0.25, 0, 0.75, 0.5))
    rows, columns = query.places((32, 32))
    asked = {"target": np.array([1, -1, 2, 0]), "rows": rows, "columns": columns}
    areas = np.array(query.areas, np.float32)
    found = running.ask("areas", image=pictures, areas=areas, **asked)
    expected = local(running.bundles["areas"], pictures, asked["target"], query)
    assert found["mask"].shape == (4, 2, 20, 48)
    np.testing.assert_allclose(found["mask"], expected.mask, rtol=0, atol=1e-5)
    rows, columns = MaskQuery().places((32, 32))
    parts = running.ask(
        "areas_parts", image=pictures, areas=areas[:1], target=asked["target"], rows=rows, columns=columns
    )["parts"]
    own = local(running.bundles["areas"], pictures, asked["target"], MaskQuery(areas=(0.07,), parts=2))
    np.testing.assert_allclose(parts, own.mask, rtol=0, atol=1e-5)


def test_the_classifier_alone_and_the_names_of_classes(running: Running, pictures: Uint8) -> None:
    import tritonclient.http as http

    expected = local(running.bundles["tiny"], pictures).probabilities
    assert set(running.ask("tiny_classifier", image=pictures)) == {"probabilities"}
    np.testing.assert_allclose(
        running.ask("tiny_classifier", image=pictures)["probabilities"], expected, rtol=0, atol=SAME
    )
    named = http.InferRequestedOutput("probabilities", class_count=2)
    answer = running.client.infer("tiny_classifier", [tensor(http, "image", pictures)], outputs=[named])
    for row, values in zip(answer.as_numpy("probabilities"), expected, strict=True):
        best = np.argsort(-values)[:2]
        assert [entry.decode().split(":")[1:] for entry in row] == [
            [str(index), ("ant", "bee", "cat", "dog", "emu")[index]] for index in best
        ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": np.zeros((1, 31, 32, 3), np.uint8), "target": np.zeros((1, 1), np.int64)}, "unexpected shape"),
        ({"image": np.zeros((1, 32, 32, 3), np.float32), "target": np.zeros((1, 1), np.int64)}, "expects 'UINT8'"),
        ({"image": np.zeros((1, 32, 32, 3), np.uint8)}, "missing required input"),
        ({"image": np.zeros((9, 32, 32, 3), np.uint8), "target": np.zeros((9, 1), np.int64)}, "must be <= 8"),
    ],
    ids=["shape", "dtype", "no target", "too many"],
)
def test_the_server_refuses_what_the_graph_does_not_take(
    running: Running, values: dict[str, np.ndarray[Any, Any]], message: str
) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=re.escape(message)):
        running.ask("tiny", **values)


# ---- encoded images


def ugly_images() -> dict[str, bytes]:
    rng = np.random.default_rng(8)
    rgb = rng.integers(0, 256, (47, 71, 3), dtype=np.uint8)
    picture = Image.fromarray(rgb)
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = picture.quantize(7)
    wide = Image.fromarray(rng.integers(0, 65536, (40, 30), dtype=np.uint16))
    return {
        "jpeg": encoded(picture, "JPEG", quality=80),
        "turned jpeg": encoded(picture, "JPEG", exif=turned),
        "cmyk jpeg": encoded(picture.convert("CMYK"), "JPEG"),
        "grey jpeg": encoded(picture.convert("L"), "JPEG"),
        "png": encoded(picture, "PNG"),
        "alpha": encoded(Image.fromarray(np.dstack([rgb, rgb[..., 0]])), "PNG"),
        "grey alpha": encoded(picture.convert("LA"), "PNG"),
        "palette": encoded(palette, "PNG", transparency=bytes([0, 128, 255])),
        "16 bit": encoded(wide, "PNG"),
        "bits": encoded(picture.convert("1"), "PNG"),
        "webp": encoded(picture, "WEBP", quality=70),
        "animated": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        "bmp": encoded(picture, "BMP"),
        "one pixel": encoded(Image.fromarray(rgb[:1, :1]), "PNG"),
        "thin": encoded(Image.fromarray(rgb[:2]), "PNG"),
        "model's size": encoded(Image.fromarray(rgb[:32, :32]), "PNG"),
    }


@pytest.mark.parametrize("model", ["tiny", "cropped"])
def test_images_of_every_kind_become_the_pixels_that_they_become_here(running: Running, model: str) -> None:
    spec = open_bundle(running.bundles[model]).manifest.image
    images = ugly_images()
    expected = {name: resize_image(load_image(content), spec) for name, content in images.items()}
    found = {
        name: running.ask(f"{model}_from_bytes", ("pixels", "mask"), image=as_bytes(content))
        for name, content in images.items()
    }
    assert {name: int((found[name]["pixels"][0] != expected[name]).sum()) for name in images} == dict.fromkeys(
        images, 0
    )
    masks = local(running.bundles[model], np.stack(list(expected.values()))).mask
    np.testing.assert_allclose(np.concatenate([one["mask"] for one in found.values()]), masks, rtol=0, atol=SAME)


def test_what_is_left_out_is_filled_in(running: Running) -> None:
    contents = [ugly_images()[name] for name in ("jpeg", "webp")]
    spec = open_bundle(running.bundles["classes"]).manifest.image
    pixels = np.stack([resize_image(load_image(content), spec) for content in contents])
    found = running.ask("classes_from_bytes", image=as_bytes(*contents))
    np.testing.assert_allclose(
        found["mask"], local(running.bundles["classes"], pixels, np.full((2, 1), -1)).mask, rtol=0, atol=SAME
    )
    target = np.array([[2, 0], [1, 4]])
    found = running.ask("classes_from_bytes", image=as_bytes(*contents), target=target)
    np.testing.assert_allclose(found["mask"], local(running.bundles["classes"], pixels, target).mask, rtol=0, atol=SAME)
    functions = running.bundles["areas"]
    found = running.ask("areas_from_bytes", image=as_bytes(*contents)[:, 0])
    np.testing.assert_allclose(found["mask"], local(functions, pixels).mask, rtol=0, atol=1e-5)
    areas = np.array([0.11], np.float32)
    found = running.ask("areas_from_bytes", image=as_bytes(*contents)[:, 0], areas=areas)
    expected = local(functions, pixels, None, MaskQuery(areas=(0.11,))).mask
    np.testing.assert_allclose(found["mask"], expected, rtol=0, atol=1e-5)


def test_a_bad_image_is_the_request_s_own_trouble(running: Running) -> None:
    from tritonclient.utils import InferenceServerException

    good = ugly_images()["jpeg"]
    before = running.ask("tiny_from_bytes", image=as_bytes(good))
    large = encoded(Image.new("RGB", (200, 60)), "PNG")
    nearly, one_pixel = encoded(Image.new("RGB", (99, 99)), "PNG"), ugly_images()["one pixel"]
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n"
    tiff = encoded(Image.new("RGB", (32, 32)), "TIFF")
    for contents, values, message in (
        ([b"no image"], {}, "is not an image that can be read"),
        ([b""], {}, "0 bytes"),
        ([good[:100]], {}, "damaged or incomplete"),
        ([good, b"no image"], {}, "image 2 of 2: "),
        ([large], {}, "the limit is 0"),
        ([script], {}, "is not an image that can be read .*; JPEG, PNG, WEBP, GIF, BMP are read"),
        ([tiff], {}, "is not an image that can be read .*; JPEG, PNG, WEBP, GIF, BMP are read"),
        ([nearly] * 3, {}, r"more than 0\.02 megapixels together; send fewer"),
        ([good], {"target": np.array([[5]])}, "target classes go from 0 to 4"),
    ):
        with pytest.raises(InferenceServerException, match=message) as refused:
            running.ask("tiny_from_bytes", image=as_bytes(*contents), **values)
        assert refused.value.status() == "400"
    with pytest.raises(InferenceServerException, match="inside"):
        running.ask("areas_from_bytes", image=as_bytes(good)[:, 0], areas=np.array([1.5], np.float32))
    with pytest.raises(
        InferenceServerException, match=r"more than 0\.02 megapixels together"
    ):  # where they are resized
        running.ask("areas_from_bytes", image=as_bytes(*[one_pixel] * 20)[:, 0])
    two = running.ask("tiny_from_bytes", ("probabilities",), image=as_bytes(nearly, nearly))
    assert two["probabilities"].shape == (2, 5)
    after = running.ask("tiny_from_bytes", image=as_bytes(good))
    np.testing.assert_array_equal(before["mask"], after["mask"])


# ---- load


def test_requests_are_batched_for_a_gpu_and_not_for_a_processor(running: Running, pictures: Uint8) -> None:
    import tritonclient.http as http

    expected = local(running.bundles["tiny"], pictures).mask

    def counted(model: str) -> tuple[int, int]:
        (statistics,) = running.client.get_inference_statistics(model)["model_stats"]
        return int(statistics["inference_count"]), int(statistics["execution_count"])

    def executions(model: str) -> int:
        inferences, before = counted(model)
        client = running.client
        waiting = [
            client.async_infer(
                model, [tensor(http, "image", pictures[[i % 4]]), tensor(http, "target", -np.ones((1, 1), int))]
            )
            for i in range(96)
        ]
        for place, request in enumerate(waiting):
            mask = request.get_result().as_numpy("mask")
            np.testing.assert_allclose(mask[0], expected[place % 4], rtol=0, atol=1e-5)
        end = time.monotonic() + 30
        while counted(model)[0] < inferences + 96:  # the server answers before it counts
            assert time.monotonic() < end
            time.sleep(0.01)
        return counted(model)[1] - before

    assert executions("batched") < 96
    assert executions("tiny") == 96


def test_a_full_queue_refuses_at_once_and_the_others_are_answered(running: Running, pictures: Uint8) -> None:
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    rows, columns = MaskQuery(size=(1024, 1024)).places((32, 32))  # so that an answer takes much longer than to ask
    areas = np.linspace(0.1, 0.6, 6, dtype=np.float32)
    values = {"image": pictures[:1], "target": np.array([0]), "areas": areas, "rows": rows, "columns": columns}
    inputs = [tensor(http, name, value) for name, value in values.items()]
    outputs = [http.InferRequestedOutput("mask")]
    at_once = threading.Barrier(12)

    def ask(_: int) -> np.ndarray[Any, Any] | str:
        with http.InferenceServerClient(running.server.url.removeprefix("http://")) as client:
            at_once.wait(30)
            try:
                found: np.ndarray[Any, Any] = client.infer("narrow", inputs, outputs=outputs).as_numpy("mask")
                return found
            except InferenceServerException as error:
                return f"{error.status()} {error.message().rpartition('] ')[2]}"

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, range(12)))
    expected = running.ask("narrow", ("mask",), **values)["mask"]
    answered = [answer for answer in answers if not isinstance(answer, str)]
    assert 2 <= len(answered) < 12  # the queue takes two, whether or not an instance has taken one before
    assert {answer for answer in answers if isinstance(answer, str)} == {"503 Exceeds maximum queue size"}
    for mask in answered:
        np.testing.assert_array_equal(mask, expected)


# ---- what is around the models


def test_golden_samples_are_held_against_the_server(saccade_command: Command, running: Running) -> None:
    for name in ("tiny", "classes", "areas"):
        code, out, err = saccade_command(
            "verify", running.bundles[name], "--server", running.server.url, "--model", name
        )
        assert code == 0, out + err
        assert "The server answers what was proven" in out
        assert f"Asked: {name}, {name}_classifier.\n" in out
        beside = {"areas": "areas_parts, areas_from_bytes"}.get(name, f"{name}_from_bytes")
        assert f"Ready too, and not asked: {beside}.\n" in out
    code, out, _ = saccade_command(
        "verify", running.bundles["tiny"], "--server", running.server.url, "--model", "batched", "--json"
    )
    report = json.loads(out)
    assert code == 0
    assert report["server"] == running.server.url
    assert (report["asked"], report["not_asked"]) == (["batched", "batched_classifier"], [])
    running.client.unload_model("batched_classifier")
    code, out, _ = saccade_command(
        "verify", running.bundles["tiny"], "--server", running.server.url, "--model", "batched"
    )
    running.client.load_model("batched_classifier")
    assert code == 0
    assert "No model 'batched_classifier' is ready there: the prediction alone was asked of 'batched' itself." in out
    assert "Asked: batched.\n" in out
    assert {check["name"] for check in report["checks"]} >= {"masks equal PyTorch's", "prediction alone is the same"}

    code, out, _ = saccade_command(
        "verify", running.bundles["tiny"], "--server", running.server.url, "--model", "classes"
    )
    assert code == 1, "another explainer of the same classifier"
    assert re.search(r"masks equal PyTorch's .*FAIL", out)
    for model, message in (
        ("areas", "is not of the bundle"),
        ("tiny_from_bytes", "such as tiny"),
        ("tiny_decode", "no explainer of Saccade's"),
        ("missing", "is not found (HTTP 404)"),
    ):
        code, _, err = saccade_command(
            "verify", running.bundles["tiny"], "--server", running.server.url, "--model", model
        )
        assert code == 1
        assert message in err
        assert err.count("\n") == 1
    code, _, err = saccade_command("verify", running.bundles["tiny"], "--server", running.server.grpc)
    assert code == 1
    assert "does not answer in HTTP" in err


def test_the_client_writes_pictures(running: Running, tmp_path: Path) -> None:
    content = ugly_images()["turned jpeg"]
    (tmp_path / "photo.jpg").write_bytes(content)
    (tmp_path / "broken.jpg").write_bytes(content[:60])
    command = [
        sys.executable,
        running.repository / "client.py",
        "photo.jpg",
        "broken.jpg",
        "--model",
        "tiny_from_bytes",
    ]
    url = running.server.url.removeprefix("http://")
    done = subprocess.run(
        [*map(str, command), "--url", url, "--target", "3"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "broken.jpg: [400]" in done.stderr
    assert "mask of class 3" in done.stdout
    pixels = resize_image(load_image(content), open_bundle(running.bundles["tiny"]).manifest.image)[None]
    expected = local(running.bundles["tiny"], pixels, 3)
    best = int(expected.probabilities[0].argmax())
    assert f"{('ant', 'bee', 'cat', 'dog', 'emu')[best]} {expected.probabilities[0, best]:.1%}" in done.stdout
    mask = np.asarray(Image.open(tmp_path / "explained" / "photo.mask.png"))
    assert np.abs(mask / 255 - expected.mask[0, 0]).max() <= 0.5 / 255 + 1e-6
    assert np.asarray(Image.open(tmp_path / "explained" / "photo.overlay.png")).shape == (32, 32, 3)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_readme_s_request_without_a_client(running: Running, tmp_path: Path) -> None:
    readme = (running.repository / "README.md").read_text()
    (script,) = re.findall(r"```console\n(image=.*?)```", readme, re.DOTALL)
    (model,) = re.findall(r"models/(\w+)_from_bytes/infer", script)
    content = ugly_images()["jpeg"]
    (tmp_path / "photo.jpg").write_bytes(content)
    script = script.replace("http://localhost:8000", running.server.url).replace("python3", sys.executable)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=True, timeout=60)
    (output,) = json.loads(done.stdout)["outputs"]
    bundle = running.bundles[model]
    opened = open_bundle(bundle)
    probabilities = local(bundle, resize_image(load_image(content), opened.manifest.image)[None]).probabilities[0]
    best = np.argsort(-probabilities)[:2]
    assert [entry.split(":")[1] for entry in output["data"]] == [str(index) for index in best]


# ---- what changes while it runs


def test_a_new_version_takes_over(saccade_command: Command, running: Running, tiny_own_bundle_kept: Path) -> None:
    other = open_bundle(tiny_own_bundle_kept)
    settings = TritonSettings(instances=1, decoders=1, max_pixels=10_000, version=2, name="tiny")
    deploy([other], running.repository, settings, new_version=True)
    before = running.client.get_model_metadata("tiny")
    try:
        for model in ("tiny", "tiny_classifier"):
            running.client.load_model(model)
        assert (before["versions"], running.client.get_model_metadata("tiny")["versions"]) == (["1"], ["2"])
        asked = ("--server", running.server.url, "--model", "tiny")
        assert saccade_command("verify", tiny_own_bundle_kept, *asked)[0] == 0
        assert saccade_command("verify", running.bundles["tiny"], *asked)[0] == 1
    finally:
        for model in ("tiny", "tiny_classifier", "tiny_decode", "tiny_from_bytes"):
            shutil.rmtree(running.repository / model / "2")
        for model in ("tiny", "tiny_classifier"):
            running.client.load_model(model)
    assert running.client.get_model_metadata("tiny")["versions"] == ["1"]


def test_a_server_without_tensorrt_refuses_plans_by_name(running: Running, tiny_bundle: Path) -> None:
    from tritonclient.utils import InferenceServerException

    add_plans(tiny_bundle, gpus=("sm89",))
    deploy([open_bundle(tiny_bundle)], running.repository, TritonSettings(target="gpu", format="tensorrt", name="plan"))
    try:
        with pytest.raises(InferenceServerException, match="unable to find backend library for backend 'tensorrt'"):
            running.client.load_model("plan")
    finally:
        for folder in running.repository.glob("plan*"):
            shutil.rmtree(folder)
