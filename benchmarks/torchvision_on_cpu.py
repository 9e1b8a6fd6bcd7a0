"""Make torchvision's Python part importable beside a CPU build of torch, for tests and benchmarks.

The wheel of torchvision on PyPI is built for CUDA; beside a CPU build of torch its compiled operators do not load,
and the import fails when it registers fakes for them. Classifiers use none of them, so empty declarations are enough.
"""

import importlib.util

import torch

_OPERATORS = ("nms", "qnms", "roi_align", "qroi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_BACKWARD = (
    "_roi_align_backward",
    "_roi_pool_backward",
    "_ps_roi_align_backward",
    "_ps_roi_pool_backward",
    "_deform_conv2d_backward",
)


def declare_operators() -> None:
    """Declare torchvision's operators if this torch has no CUDA and nobody has declared them."""
    if (
        torch.version.cuda is not None
        or importlib.util.find_spec("torchvision") is None
        or hasattr(torch.ops.torchvision, "nms")
    ):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in (*_OPERATORS, *_BACKWARD):
        library.define(f"{name}(Tensor x) -> Tensor")
    _kept.append(library)  # the declarations live as long as the library object


_kept: list[torch.library.Library] = []
declare_operators()
