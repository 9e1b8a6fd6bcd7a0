"""From bundles to a model repository of NVIDIA Triton Inference Server: settings, models, files."""
