"""Bundle to engine to results: image I/O, engines, pipeline, overlay. Imports no torch but in `torch_engine`."""

if not __name__.startswith("saccade."):
    raise ImportError("this folder is the package saccade.accel; import it as 'saccade.accel'")
