"""GPU operators of ours, one folder each: what it computes in plain PyTorch, and the same fused in Triton."""

if not __name__.startswith("saccade."):
    raise ImportError("this folder is the package saccade.kernels; import it as 'saccade.kernels'")
