"""ONNX Runtime as a Triton back end in Python, where NVIDIA's own is not at hand: BACKENDS/onnxruntime/model.py.

``nvidia-pytriton`` brings a Triton server with no back end but Python's. With this one it serves a repository of
``semseal export --triton`` as it stands: Triton reads the configuration, checks requests against it and batches them; this
joins the requests of a batch and runs the graph. It is for checking a repository (docs/triton.md), not for serving.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """What Triton's Python back end asks for."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        file = config["default_model_filename"] or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / file
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._output = self._session.get_outputs()[0].name

    def execute(self, requests: list[Any]) -> list[Any]:
        given = [
            {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs} for request in requests
        ]
        ends = np.cumsum([len(feeds[self._inputs[0]]) for feeds in given])[:-1]
        try:
            joined = {name: np.concatenate([feeds[name] for feeds in given]) for name in self._inputs}
            parts = np.split(self._session.run([self._output], joined)[0], ends)
        except Exception as error:  # whatever it is, the server goes on
            return [triton.InferenceResponse(error=triton.TritonError(str(error))) for _ in requests]
        return [triton.InferenceResponse([triton.Tensor(self._output, np.ascontiguousarray(part))]) for part in parts]
