"""Requests of many clients in one call of a real engine: everyone gets the answer to what they asked."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running_server import running

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.serve.config import ServeConfig
from saccade.contracts import MaskQuery

pytestmark = pytest.mark.xdist_group("served")  # one process makes the bundles


class Waiting:
    """An engine whose first call takes long, so that requests gather."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def run(self, images: Any, *arguments: Any, **settings: Any) -> object:
        self.sizes.append(len(images))
        time.sleep(0.05)
        return self._engine.run(images, *arguments, **settings)


def png(image: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def test_requests_that_go_together_do_and_get_their_own_answers(served_bundles: dict[str, Path]) -> None:
    engines = {name: open_engine(folder, threads=1) for name, folder in served_bundles.items()}
    made: dict[Path, Waiting] = {}

    def opened(folder: Path) -> Engine:
        made[folder] = Waiting(open_engine(folder, threads=1))
        return made[folder]  # type: ignore[return-value]

    config = ServeConfig(port=0, grpc_port=None, batch=8, workers=6, queue=100)
    failures: list[object] = []
    with running(served_bundles, config, opened) as server:
        for engine in made.values():
            engine.sizes.clear()

        def client(seed: int) -> None:
            rng = np.random.default_rng(seed)
            images = rng.integers(0, 256, (1 + seed % 2, 32, 32, 3), dtype=np.uint8)
            model = ("tiny", "classes", "areas")[seed % 3]
            target, query, inputs, parameters = None, None, [], {}
            if model == "classes":
                target = rng.integers(-1, 5, (len(images), 1 + seed % 2))
                inputs.append(tensor("target", "INT64", target))
            if model == "areas" and seed % 2:
                query, parameters = (
                    MaskQuery(areas=engines[model].bundle.manifest.areas, size=(16, 24)),
                    {"size": "16x24"},
                )
            document: dict[str, Any] = {"inputs": inputs, "parameters": parameters}
            if seed % 4 == 0:
                import base64

                files = [base64.b64encode(png(image)).decode() for image in images]
                shape = {"name": "encoded_image", "datatype": "BYTES", "shape": [len(images)]}
                document["inputs"] = [*inputs, shape | {"data": files}]
            else:
                document["inputs"] = [*inputs, tensor("image", "UINT8", images)]
            status, answer = server.infer(document, model)
            if status != 200:
                failures.append(answer)
                return
            found = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer["outputs"]}
            expected = engines[model].run(images, target, query)
            if not (
                np.allclose(found["mask"], expected.mask, atol=1e-4)
                and np.allclose(found["probabilities"], expected.probabilities, atol=1e-5)
                and np.array_equal(found["target_class"].ravel(), expected.target.ravel())
            ):
                failures.append((seed, model))

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(48)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures, json.dumps(failures, default=str)[:2000]
        sizes = [size for engine in made.values() for size in engine.sizes]
        assert sum(sizes) == sum(1 + seed % 2 for seed in range(48))
        assert 1 < max(sizes) <= 8
        assert len(sizes) < 40, "hardly any requests went together"


def tensor(name: str, datatype: str, values: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.ravel().tolist()}
