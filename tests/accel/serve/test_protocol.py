"""The Open Inference Protocol against its official clients, and answers against the local engine's, bit for bit."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from PIL import Image
from running_server import RunningServer
from tritonclient.utils import InferenceServerException

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.results import ImageExplanation
from saccade.accel.serve.request import InferenceRequest
from saccade.accel.serve.work import make_work
from saccade.contracts import MaskQuery, Uint8

pytestmark = pytest.mark.xdist_group("served")  # one process makes the bundles

CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
STATUS = {"http": {"invalid": "400", "unknown": "404"}, "grpc": {"invalid": "INVALID_ARGUMENT", "unknown": "NOT_FOUND"}}


def noise(count: int, seed: int = 1) -> Uint8:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def encoded(image: Uint8, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form)
    return stream.getvalue()


@pytest.fixture(scope="module")
def engines(served_bundles: dict[str, Path]) -> dict[str, Engine]:
    return {name: open_engine(folder, threads=1) for name, folder in served_bundles.items()}


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Client:
    """An official client, asked with arrays."""

    def __init__(self, protocol: str, server: RunningServer) -> None:
        self.module: Any = CLIENTS[protocol]
        self.client: Any = self.module.InferenceServerClient(server.url if protocol == "http" else server.grpc_url)

    def input(self, name: str, values: NDArray[Any], **how: Any) -> Any:
        kinds = {"u": "UINT8", "i": "INT64", "f": "FP32", "O": "BYTES"}
        tensor = self.module.InferInput(name, list(values.shape), kinds[values.dtype.kind])
        tensor.set_data_from_numpy(values, **how)
        return tensor

    def infer(self, model: str, outputs: list[Any] | None = None, /, **settings: Any) -> Any:
        inputs = {name: value for name, value in settings.items() if isinstance(value, np.ndarray)}
        rest = {name: value for name, value in settings.items() if name not in inputs}
        tensors = [self.input(name, value) for name, value in inputs.items()]
        return self.client.infer(model, tensors, outputs=outputs, **rest)

    def files(self, *files: bytes) -> NDArray[Any]:
        values = np.empty(len(files), dtype=np.object_)
        values[:] = files
        return values


@pytest.fixture
def client(protocol: str, server: RunningServer) -> Iterator[Client]:
    made = Client(protocol, server)
    yield made
    made.client.close()


def same(answer: Any, expected: Any) -> None:
    np.testing.assert_array_equal(answer.as_numpy("mask"), expected.mask)
    np.testing.assert_array_equal(answer.as_numpy("probabilities"), expected.probabilities)
    np.testing.assert_array_equal(answer.as_numpy("target_class"), expected.target)


def test_answers_are_those_of_the_local_engine_to_the_bit(client: Client, engines: dict[str, Engine]) -> None:
    images = noise(3)
    same(client.infer("tiny", image=images), engines["tiny"].run(images))
    target = np.array([2, -1, 4])
    asked = target[:, None]
    same(client.infer("classes", image=images, target=asked), engines["classes"].run(images, asked))
    several = np.array([[0, 1], [2, -1], [3, 4]])
    answer = client.infer("classes", image=images, target=several)
    same(answer, engines["classes"].run(images, several))
    assert answer.as_numpy("mask").shape == (3, 2, 32, 32)


def test_requests_with_the_same_json_get_their_own_answers(client: Client, engines: dict[str, Engine]) -> None:
    for seed, asked in ((1, 0), (2, 0), (3, 4), (1, 4)):
        image, target = noise(1, seed), np.array([[asked]])
        same(client.infer("classes", image=image, target=target), engines["classes"].run(image, target))
        same(client.infer("tiny", image=image), engines["tiny"].run(image))


def test_masks_as_functions_are_asked_for_by_area_place_and_size(client: Client, engines: dict[str, Engine]) -> None:
    images, engine = noise(2), engines["areas"]
    same(client.infer("areas", image=images), engine.run(images))
    areas = np.array([0.07, 0.2, 0.4], dtype=np.float32)
    query = MaskQuery(areas=tuple(areas.tolist()), size=(24, 40), box=(0.25, 0.0, 0.75, 0.5))
    expected = engine.run(images, query=query)
    by_size = client.infer("areas", image=images, areas=areas, parameters={"size": "24x40", "box": "0.25,0,0.75,0.5"})
    same(by_size, expected)
    rows, columns = query.places((32, 32))
    same(client.infer("areas", image=images, areas=areas, rows=rows, columns=columns), expected)
    apart = client.infer("areas", image=images, areas=areas[:1], parameters={"parts": 2})
    same(apart, engine.run(images, query=MaskQuery(areas=(float(areas[0]),), parts=2)))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG", "BMP", "GIF"])
def test_files_are_read_as_the_library_reads_them(
    client: Client, engines: dict[str, Engine], form: str, served_bundles: dict[str, Path]
) -> None:
    import saccade

    large = np.random.default_rng(4).integers(0, 256, (57, 41, 3), dtype=np.uint8)
    file = encoded(large, form)
    (expected,) = saccade.Explainer(engines["tiny"]).explain(file)
    answer = client.infer("tiny", encoded_image=client.files(file))
    np.testing.assert_array_equal(answer.as_numpy("mask")[0, 0], expected.mask)
    np.testing.assert_array_equal(answer.as_numpy("probabilities")[0], expected.probabilities)


def test_pictures_are_those_of_the_library(client: Client, engines: dict[str, Engine]) -> None:
    import saccade

    large = np.random.default_rng(5).integers(0, 256, (50, 64, 3), dtype=np.uint8)
    (expected,) = saccade.Explainer(engines["tiny"]).explain(large)
    module = client.module
    outputs = [module.InferRequestedOutput(name) for name in ("mask_png", "overlay_png")]
    answer = client.infer("tiny", outputs, encoded_image=client.files(encoded(large)))
    mask, overlay = (
        np.asarray(Image.open(io.BytesIO(answer.as_numpy(name)[0, 0]))) for name in ("mask_png", "overlay_png")
    )
    np.testing.assert_array_equal(mask, np.floor(expected.mask * 255 + 0.5).astype(np.uint8))
    np.testing.assert_array_equal(overlay, np.asarray(expected.overlay(legend=False)))
    assert isinstance(expected, ImageExplanation)


def test_without_a_mask_the_classifier_alone_runs(
    client: Client, engines: dict[str, Engine], server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = noise(2)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a mask was computed")

    monkeypatch.setattr(server.service.models.get("tiny").engine, "run", refuse)
    output = client.module.InferRequestedOutput("probabilities")
    answer = client.infer("tiny", [output], image=images)
    np.testing.assert_array_equal(answer.as_numpy("probabilities"), engines["tiny"].probabilities(images))
    assert answer.as_numpy("mask") is None
    answer = client.infer("tiny", image=images, parameters={"explain": False})
    np.testing.assert_array_equal(answer.as_numpy("target_class"), engines["tiny"].probabilities(images).argmax(1))
    assert answer.as_numpy("mask") is None


def test_only_unsure_predictions_are_explained_when_asked(client: Client, engines: dict[str, Engine]) -> None:
    images, engine = noise(8, seed=3), engines["tiny"]
    sure = engine.probabilities(images).max(1)
    border = float(np.median(sure))
    answer = client.infer("tiny", image=images, parameters={"explain_below": border})
    unsure = sure < border
    assert 0 < unsure.sum() < 8
    np.testing.assert_array_equal(answer.as_numpy("explained"), unsure)
    np.testing.assert_array_equal(answer.as_numpy("mask"), engine.run(images[unsure]).mask)
    np.testing.assert_array_equal(answer.as_numpy("probabilities"), engine.probabilities(images))
    none = client.infer("areas", image=images[:2], parameters={"explain_below": 0.0})
    assert none.as_numpy("mask").shape == (0, 2, 32, 32)
    assert not none.as_numpy("explained").any()


def test_the_most_probable_classes_are_named(client: Client, engines: dict[str, Engine]) -> None:
    images, engine = noise(2), engines["tiny"]
    output = client.module.InferRequestedOutput("probabilities", class_count=3)
    best = client.infer("tiny", [output], image=images).as_numpy("probabilities")
    for row, probabilities in zip(best, engine.probabilities(images), strict=True):
        order = sorted(range(5), key=lambda index: -probabilities[index])[:3]
        names = engine.bundle.manifest.class_names
        assert [entry.decode().split(":")[1:] for entry in row] == [[str(index), names[index]] for index in order]
        np.testing.assert_allclose([float(entry.split(b":")[0]) for entry in row], probabilities[order], atol=1e-6)


def test_metadata_describe_what_goes_in_and_comes_out(
    client: Client, protocol: str, server: RunningServer, engines: dict[str, Engine]
) -> None:
    def plain(message: Any) -> Any:
        if isinstance(message, dict):
            return message
        from google.protobuf import json_format

        return json_format.MessageToDict(message, preserving_proto_field_name=True)

    assert client.client.is_server_live()
    assert client.client.is_server_ready()
    assert client.client.is_model_ready("tiny")
    about = plain(client.client.get_server_metadata())
    assert (about["name"], "binary_tensor_data" in about["extensions"]) == ("saccade", True)
    metadata = plain(client.client.get_model_metadata("classes"))
    assert metadata["versions"] == ["1"]
    images = noise(2)
    answer = client.infer("classes", image=images, target=np.array([[0, 1], [1, 2]]))
    for tensor in metadata["outputs"]:
        found = answer.as_numpy(tensor["name"])
        if found is None:
            continue
        shape = [int(side) for side in tensor["shape"]]
        assert len(shape) == found.ndim
        if tensor["name"] != "mask":  # one for each class that was asked for
            assert all(side in (-1, have) for side, have in zip(shape, found.shape, strict=True))
    assert [int(side) for side in metadata["inputs"][0]["shape"]] == [-1, 32, 32, 3]
    config = plain(client.client.get_model_config("areas"))
    config = config.get("config", config)
    assert {"areas", "rows", "columns"} <= {tensor["name"] for tensor in config["input"]}
    stats = plain(client.client.get_inference_statistics("classes"))["model_stats"][0]
    assert int(stats["inference_count"]) >= 2
    assert {model["name"] for model in _index(client, protocol)} == {"tiny", "classes", "areas"}


def _index(client: Client, protocol: str) -> list[dict[str, Any]]:
    found = client.client.get_model_repository_index()
    return list(found) if protocol == "http" else [{"name": model.name} for model in found.models]


@pytest.mark.parametrize(
    ("model", "settings", "kind", "said"),
    [
        ("nobody", {"image": noise(1)}, "unknown", "there is no model 'nobody'; there are: tiny, classes, areas"),
        ("tiny", {"image": noise(1), "model_version": "7"}, "unknown", "has no version '7'"),
        ("tiny", {"target": np.array([0])}, "invalid", "the request has no image"),
        ("tiny", {"image": noise(1)[:, :31]}, "invalid", r"'image' has the shape \[N, 32, 32, 3\]"),
        ("tiny", {"image": noise(1)[0]}, "invalid", r"not \[32, 32, 3\]"),
        ("tiny", {"image": noise(1).astype(np.float32)}, "invalid", "'image' is UINT8, not FP32"),
        ("tiny", {"image": noise(1), "pixels": noise(1)}, "invalid", "no input 'pixels'; it takes image"),
        ("tiny", {"image": noise(1), "target": np.array([2])}, "invalid", "the predicted class only"),
        ("classes", {"image": noise(1), "target": np.array([5])}, "invalid", "go from 0 to 4"),
        ("classes", {"image": noise(1), "target": np.array([0, 1])}, "invalid", "one class for each of the 1 images"),
        ("tiny", {"image": noise(1), "parameters": {"size": 64}}, "invalid", "it takes no size"),
        ("tiny", {"image": noise(1), "parameters": {"sise": 64}}, "invalid", "there is no parameter 'sise'"),
        ("tiny", {"image": noise(1), "parameters": {"explain": "no"}}, "invalid", "'explain' is true or false"),
        ("areas", {"image": noise(1), "parameters": {"parts": 3}}, "invalid", "at most 2 masks"),
        ("areas", {"image": noise(1), "parameters": {"box": "1,0,0,1"}}, "invalid", "box"),
        ("areas", {"image": noise(1), "areas": np.array([1.5], np.float32)}, "invalid", "the area 1.5"),
        ("areas", {"image": noise(1), "parameters": {"size": "99999"}}, "too large", "the limit is"),
        ("tiny", {"image": noise(65)}, "too large", "has 65 images and the limit is 64"),
    ],
)
def test_what_does_not_fit_is_said_as_the_protocol_says_it(
    client: Client, protocol: str, model: str, settings: dict[str, Any], kind: str, said: str
) -> None:
    with pytest.raises(InferenceServerException, match=said) as caught:
        client.infer(model, **settings)
    status = {"too large": {"http": "413", "grpc": "RESOURCE_EXHAUSTED"}[protocol]} | STATUS[protocol]
    assert status[kind] in str(caught.value.status())


def test_files_that_are_no_images_are_refused_by_their_place(client: Client) -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    tiff = io.BytesIO()
    Image.fromarray(noise(1)[0]).save(tiff, "TIFF")
    for bad in (b"", b"no image", postscript, tiff.getvalue(), encoded(noise(1)[0])[:200]):
        with pytest.raises(InferenceServerException, match="image 1: "):
            client.infer("tiny", encoded_image=client.files(encoded(noise(1)[0]), bad))


def test_json_holds_the_same_numbers_as_bytes(server: RunningServer, engines: dict[str, Engine]) -> None:
    images = noise(2)
    expected = engines["tiny"].run(images)
    pixels = {"name": "image", "datatype": "UINT8", "shape": [2, 32, 32, 3]}
    for data in (images.tolist(), images.ravel().tolist()):
        status, answer = server.infer({"id": "7", "inputs": [pixels | {"data": data}]})
        assert status == 200, answer
        assert (answer["id"], answer["model_name"]) == ("7", "tiny")
        found = {tensor["name"]: tensor for tensor in answer["outputs"]}
        mask = np.array(found["mask"]["data"], dtype=np.float32).reshape(found["mask"]["shape"])
        np.testing.assert_array_equal(mask, expected.mask)
        np.testing.assert_array_equal(
            np.array(found["probabilities"]["data"], np.float32).reshape(2, 5), expected.probabilities
        )
    file = {"name": "encoded_image", "datatype": "BYTES", "shape": [1]}
    text = base64.b64encode(encoded(images[0])).decode()
    status, answer = server.infer(
        {"inputs": [file | {"data": [text]}], "outputs": [{"name": "probabilities"}, {"name": "mask_png"}]}
    )
    assert status == 200, answer
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["outputs"][1]["data"][0]))))
    np.testing.assert_array_equal(picture, np.floor(expected.mask[0, 0] * 255 + 0.5).astype(np.uint8))


PIXELS = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "a JSON object with a list of 'inputs'"),
        ({"inputs": {}}, "no 'inputs'"),
        ({"inputs": [3]}, "every input is a JSON object with a 'name'"),
        ({"inputs": [PIXELS, PIXELS]}, "'image' is there twice"),
        ({"inputs": [PIXELS | {"datatype": "UINT9"}]}, "no datatype that is known"),
        ({"inputs": [PIXELS | {"shape": [1, 32, 32, -3]}]}, "the shape of input 'image'"),
        ({"inputs": [PIXELS | {"shape": [1, 32, 32, 3.0]}]}, "the shape of input 'image'"),
        ({"inputs": [PIXELS | {"shape": [True, 32, 32, 3]}]}, "the shape of input 'image'"),
        ({"inputs": [PIXELS | {"shape": [2**39, 2**39, 3, 3]}]}, "the shape of input 'image'"),
        ({"inputs": [PIXELS | {"data": [0] * 3071}]}, "has 3071 values"),
        ({"inputs": [PIXELS | {"data": [256] * 3072}]}, "is not all UINT8: 0 to 255"),
        ({"inputs": [PIXELS | {"data": [-1] * 3072}]}, "is not all UINT8: 0 to 255"),
        ({"inputs": [PIXELS | {"data": [0.5] * 3072}]}, "is not all UINT8"),
        ({"inputs": [PIXELS | {"data": [True] * 3072}]}, "is not all UINT8"),
        ({"inputs": [PIXELS | {"data": ["0"] * 3072}]}, "is not all UINT8"),
        ({"inputs": [PIXELS | {"data": [[0] * 3071, [0]]}]}, "not a regular list"),
        ({"inputs": [PIXELS | {"data": 0}]}, "is a list, not int"),
        ({"inputs": [PIXELS], "outputs": [{"name": "heat"}]}, "no output 'heat'; it gives probabilities"),
        ({"inputs": [PIXELS], "outputs": [{"name": "mask"}, {"name": "mask"}]}, "asked for twice"),
        ({"inputs": [PIXELS], "outputs": [{"name": "mask", "parameters": {"classification": 2}}]}, "probabilities"),
        (
            {"inputs": [PIXELS], "outputs": [{"name": "mask"}], "parameters": {"explain": False}},
            "leave one of them out",
        ),
        ({"inputs": [PIXELS], "parameters": {"explain_below": 2}}, "a number from 0 to 1"),
        ({"inputs": [PIXELS], "parameters": [1]}, "the parameters of the request"),
        ({"inputs": [PIXELS], "id": 7}, "'id' is a string"),
        (
            {"inputs": [{"name": "encoded_image", "datatype": "BYTES", "shape": [1], "data": ["§§"]}]},
            "is not base64",
        ),
    ],
)
def test_json_that_is_none_of_the_protocol_is_refused_in_words(server: RunningServer, document: Any, said: str) -> None:
    status, answer = server.infer(document)
    assert (status, list(answer)) == (400, ["error"])
    assert said in answer["error"]


def test_addresses_that_are_not_there_are_said(server: RunningServer) -> None:
    for method, path, expected in (
        ("GET", "/v3", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/tiny/versions/2", 404),
        ("DELETE", "/v2", 405),
        ("GET", "/v2/models/tiny/infer", 405),
    ):
        status, headers, body = server.ask(method, path)
        assert status == expected, path
        assert headers["content-type"] == "application/json"
        assert isinstance(json.loads(body)["error"], str)
    assert server.ask("GET", "/v2/models/tiny/versions/1")[0] == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests_are_unpacked(server: RunningServer, engines: dict[str, Engine], coding: str) -> None:
    client = tritonclient.http.InferenceServerClient(server.url)
    images = noise(1)
    tensor = tritonclient.http.InferInput("image", [1, 32, 32, 3], "UINT8")
    tensor.set_data_from_numpy(images)
    answer = client.infer("tiny", [tensor], request_compression_algorithm=coding, response_compression_algorithm=coding)
    same(answer, engines["tiny"].run(images))
    client.close()


def test_a_stream_answers_in_order_and_an_error_does_not_end_it(
    server: RunningServer, engines: dict[str, Engine]
) -> None:
    client = Client("grpc", server)
    found: list[tuple[Any, Any]] = []
    client.client.start_stream(lambda result, error: found.append((result, error)))
    for seed in range(3):
        client.client.async_stream_infer("tiny", [client.input("image", noise(1, seed))], request_id=str(seed))
    client.client.async_stream_infer("tiny", [client.input("target", np.array([0]))], request_id="bad")
    client.client.async_stream_infer("tiny", [client.input("image", noise(1, 9))], request_id="9")
    client.client.stop_stream()
    assert [error is None for _, error in found] == [True, True, True, False, True]
    for seed, (result, _) in zip((0, 1, 2, None, 9), found, strict=True):
        if seed is not None:
            same(result, engines["tiny"].run(noise(1, seed)))


def test_grpc_takes_typed_contents_too(server: RunningServer, engines: dict[str, Engine]) -> None:
    from tritonclient.grpc import service_pb2

    client = Client("grpc", server)
    images = noise(1)
    request = service_pb2.ModelInferRequest(model_name="classes")
    pixels = request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    pixels.contents.uint_contents.extend(images.ravel().tolist())
    target = request.inputs.add(name="target", datatype="INT64", shape=[1, 1])
    target.contents.int64_contents.append(3)
    answer = client.client._client_stub.ModelInfer(request)
    raw = dict(zip((output.name for output in answer.outputs), answer.raw_output_contents, strict=True))
    expected = engines["classes"].run(images, np.array([[3]]))
    assert raw["mask"] == expected.mask.tobytes()


def test_statistics_of_all_models_and_of_one(client: Client, protocol: str) -> None:
    found = client.client.get_inference_statistics()
    models = found["model_stats"] if protocol == "http" else found.model_stats
    assert len(models) == 3
    found = client.client.get_inference_statistics("tiny")
    assert len(found["model_stats"] if protocol == "http" else found.model_stats) == 1


def test_shared_memory_is_refused_in_words(client: Client) -> None:
    tensor = client.module.InferInput("image", [1, 32, 32, 3], "UINT8")
    tensor.set_shared_memory("region", 3072)
    with pytest.raises(InferenceServerException, match="in shared memory, which this server has not"):
        client.client.infer("tiny", [tensor])
    output = client.module.InferRequestedOutput("mask")
    output.set_shared_memory("region", 4096)
    with pytest.raises(InferenceServerException, match="in shared memory, which this server has not"):
        client.infer("tiny", [output], image=noise(1))


def test_models_are_not_exchanged_by_clients_unless_the_server_allows_it(client: Client, protocol: str) -> None:
    for change in (client.client.load_model, client.client.unload_model):
        with pytest.raises(InferenceServerException, match="--model-control") as caught:
            change("tiny")
        assert {"http": "403", "grpc": "PERMISSION_DENIED"}[protocol] in str(caught.value.status())
    assert client.client.is_model_ready("tiny")


def test_pages_of_other_sites_are_refused(server: RunningServer) -> None:
    body = {"inputs": [PIXELS]}
    assert server.infer(body, headers={"Sec-Fetch-Site": "same-origin"})[0] == 200
    status, answer = server.infer(body, headers={"Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"})
    assert (status, "pages of other sites" in answer["error"]) == (403, True)


def test_a_client_s_own_deadline_holds_while_it_waits(protocol: str, served_bundles: dict[str, Path]) -> None:
    import time

    from running_server import running

    from saccade.accel.serve.config import ServeConfig

    with running(served_bundles, ServeConfig(port=0, grpc_port=0, workers=1)) as busy:
        model = busy.service.models.get("tiny")
        client = Client(protocol, busy)
        taken = client.client.get_server_metadata()
        assert taken is not None
        with model_held(busy):
            began = time.monotonic()
            with pytest.raises(InferenceServerException, match="which is all it may") as caught:
                client.infer("tiny", image=noise(1), timeout=50_000)
            assert time.monotonic() - began < 20  # and not when a thread comes by
        assert {"http": "408", "grpc": "DEADLINE_EXCEEDED"}[protocol] in str(caught.value.status())
        assert model is busy.service.models.get("tiny")
        same(client.infer("tiny", image=noise(1)), model.engine.run(noise(1)))
        client.client.close()


@contextlib.contextmanager
def model_held(server: RunningServer) -> Iterator[None]:
    """Every thread of the server is busy until the block ends."""
    import threading

    from saccade.accel.serve.dispatcher import Job

    release, started = threading.Event(), threading.Event()

    class Stuck:
        name, batch, lock = "stuck", 1, contextlib.nullcontext()

        def decode(self, *arguments: object) -> list[Any]:
            started.set()
            assert release.wait(60)
            raise RuntimeError("it was only in the way")

    work = make_work(
        InferenceRequest(inputs={"image": noise(1)}),
        server.service.models.get("tiny").manifest,
        server.service.models.get("tiny").outputs,
        server.service.config,
    )
    future = server.service.dispatcher.submit(Job(Stuck(), work))  # type: ignore[arg-type]
    assert started.wait(60)
    try:
        yield
    finally:
        release.set()
        with pytest.raises(RuntimeError):
            future.result(60)


def test_metrics_count_what_happened(server: RunningServer) -> None:
    def counted() -> dict[str, float]:
        text = server.ask("GET", "/metrics")[2].decode()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    before = counted()
    server.infer({"inputs": [PIXELS]})
    server.infer({"inputs": [PIXELS], "parameters": {"explain": False}})
    server.infer({"inputs": []})
    after = counted()
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    answered = 'saccade_requests_total{model="tiny",outcome="answered",protocol="http"}'
    assert grown[answered] == 2
    assert grown['saccade_requests_total{model="tiny",outcome="invalid",protocol="http"}'] == 1
    assert grown['saccade_images_total{model="tiny"}'] == 2
    assert grown['saccade_explained_images_total{model="tiny"}'] == 1
    assert grown['saccade_compute_seconds_count{model="tiny"}'] == 2
    assert after['saccade_forwards{model="tiny"}'] > 0
