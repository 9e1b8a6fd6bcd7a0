"""ONNX Runtime's backend for a Triton server that has only the Python backend: runs any model's ``model.onnx`` on the
processor. `triton_server.install` puts it where the server looks for the backend of this name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        return config

    def initialize(self, arguments: dict[str, str]) -> None:
        config = json.loads(arguments["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "1"))
        options.log_severity_level = 3
        folder = Path(arguments["model_repository"]) / arguments["model_version"]
        file = folder / (config.get("default_model_filename") or "model.onnx")
        self.session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.batches = config["max_batch_size"] > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        if self.batches and len(requests) > 1:
            sizes = [len(feed[self.inputs[0]]) for feed in feeds]
            joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
            answers = self._run([joined])[0]
            if isinstance(answers, list):
                places = np.cumsum(sizes)[:-1]
                parts = zip(*(np.split(answer, places) for answer in answers), strict=True)
                return [self._response(list(part)) for part in parts]
            return [answers for _ in requests]
        return [self._response(answer) if isinstance(answer, list) else answer for answer in self._run(feeds)]

    def _run(self, feeds: list[dict[str, Any]]) -> list[Any]:
        found: list[Any] = []
        for feed in feeds:
            try:
                found.append(self.session.run(self.outputs, feed))
            except Exception as error:
                found.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
        return found

    def _response(self, answers: list[Any]) -> Any:
        tensors = [
            pb_utils.Tensor(name, np.ascontiguousarray(answer))
            for name, answer in zip(self.outputs, answers, strict=True)
        ]
        return pb_utils.InferenceResponse(tensors)
