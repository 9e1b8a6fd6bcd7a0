"""Method to graph to ONNX to parity gate to bundle."""

if not __name__.startswith("saccade."):
    raise ImportError("this folder is the package saccade.export; import it as 'saccade.export'")
