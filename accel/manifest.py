"""The bundle's manifest: what is inside, how it was made, and the proof that it explains what the original explains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..contracts import ImageSpec

__all__ = [
    "GOLDEN_FILE",
    "GRAPH_FILE",
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "FileEntry",
    "Manifest",
    "ParityReport",
    "PlanReport",
    "PrecisionReport",
    "Tuning",
]

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
GRAPH_FILE = "explainer.onnx"
GOLDEN_FILE = "golden.npz"
Count = Annotated[int, Field(ge=1, le=1 << 20)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Record):
    """One file of the bundle, by its content."""

    sha256: str
    bytes: int


class ParityReport(_Record):
    """How far the graph's answers are from the PyTorch explainer's, worst image first.

    Attributes:
        images: number of images compared.
        batches: batch sizes that were run.
        mask_max_abs: largest difference of any mask pixel, over all images and batch sizes.
        mask_mean_abs: mean difference of mask pixels.
        mask_cosine: smallest cosine of any image's mask.
        mask_spearman: smallest rank correlation of any image's mask.
        mask_top10_iou: smallest overlap of the top 10 % pixels of any image's mask.
        probabilities_max_abs: largest difference of any probability.
        targets_equal: the class explained is the same for every image.
        batch_max_abs: largest difference between one image's mask alone and in a batch, or beside another class's.
        deterministic: two runs gave the same bits.
        input_dependence: median over images of the largest change of the mask from one image to the next; a graph whose
            map was frozen at export has 0.
        target_dependence: the same, from one target class to another; none where the method is not class-specific.
        mask_bar: what `mask_max_abs` may be.
        probabilities_bar: what `probabilities_max_abs` may be.
        rounding: factor by which the method's last step multiplies rounding, as the gain of masks as functions does.
    """

    images: int
    batches: tuple[int, ...]
    mask_max_abs: float
    mask_mean_abs: float
    mask_cosine: float
    mask_spearman: float
    mask_top10_iou: float
    probabilities_max_abs: float
    targets_equal: bool
    batch_max_abs: float
    deterministic: bool
    input_dependence: float
    target_dependence: float | None = None
    mask_bar: float = 1e-4
    probabilities_bar: float = 1e-5
    rounding: float = 1.0


class PrecisionReport(_Record):
    """What a graph in lower precision loses against PyTorch in single, on the worst image.

    Attributes:
        images: number of images compared.
        mask_max_abs: largest difference of any mask pixel.
        mask_cosine: smallest cosine of any image's mask.
        mask_top10_iou: smallest overlap of the top 10 % pixels of any image's mask.
        probabilities_max_abs: largest difference of any probability.
        classes_equal: share of the images for which the same class is explained.
        faithfulness_change: of int8, the larger difference of the mean insertion and the mean deletion.
        kept: layers that were left in single precision, because the gate did not pass with them.
        weight_bits: of int8, those that weights take. Processors without VNNI add products of uint8 and int8 in pairs,
            in 16 bits, which overflows with weights of 8 bits.
    """

    images: int
    mask_max_abs: float
    mask_cosine: float
    mask_top10_iou: float
    probabilities_max_abs: float
    classes_equal: float
    faithfulness_change: float | None = None
    kept: tuple[str, ...] = ()
    weight_bits: Literal[7, 8] | None = None


class PlanReport(_Record):
    """A TensorRT plan: where it runs, and what of.

    Attributes:
        flavour: ``"tensorrt"``, for data-centre GPUs, or ``"tensorrt_rtx"``.
        version: of the package that built it.
        gpus: architectures on which it runs, such as ``"sm89"``.
        answer: ``"mask"``, ``"parts"`` or ``"probabilities"``: what it gives.
        precision: of the graph it was built from.
        batches: images per call, at least, preferably and at most.
        version_compatible: later versions of the same major version run it as well.
        refit: its weights can be replaced.
        parity: what it loses on the golden samples; None where it was built for a GPU that was not there. It is then
            held against them before it first runs.
    """

    flavour: str
    version: str
    gpus: tuple[Annotated[str, Field(pattern="^sm[0-9]{2,3}[a-z]?$")], ...]
    answer: str
    precision: str
    batches: tuple[int, int, int]
    version_compatible: bool = False
    refit: bool = False
    parity: PrecisionReport | None = None


class Tuning(_Record):
    """Settings of ONNX Runtime on a processor.

    Attributes:
        threads: for one operator; 0 takes all cores.
        graph_optimization: ``"none"``, ``"basic"``, ``"extended"`` or ``"all"``.
        arena: memory is kept for the next call.
        memory_pattern: memory is laid out in advance for shapes seen before.
        spinning: threads that wait keep their core.
        gain: images/s in units of those with the default settings, as measured.
    """

    threads: Annotated[int, Field(ge=0, le=4096)] = 0
    graph_optimization: Literal["none", "basic", "extended", "all"] = "all"
    arena: bool = True
    memory_pattern: bool = True
    spinning: bool = False
    gain: float = 1.0


class Manifest(_Record):
    """`manifest.json`.

    Attributes:
        schema_version: of this file's layout; a reader refuses one newer than its own.
        name: what the bundle explains, for people.
        method: ``"ltx"``, … .
        parameters: every setting of the method.
        class_specific: the mask depends on the target class; if not, it explains the predicted class whatever is asked.
        several_targets: the graph takes targets (N, T) and gives masks (N, T, H, W): the classes of one image share all
            but the last step.
        areas: of a graph whose masks are functions, those taken unless told otherwise; it takes `areas` (A,) and the
            places of `rows` (H,) and `columns` (W,), and gives masks (N, A, H, W). Empty for other graphs.
        parts: of such a graph, how many masks without a common pixel its output `parts` holds.
        image: how an image becomes the model's input.
        any_size: the graph resizes inside and takes images of any size.
        mask_size: (height, width) of the mask that the graph gives.
        class_names: one per class, by index.
        batch: images per call that fit into the memory budget of the export; what callers take unless told otherwise.
        splits: engines take larger batches apart, so that the memory budget holds.
        explainee: model spec, weights and their hash.
        opset: of the ONNX graph.
        versions: of the packages that made the bundle.
        created: time of the export, UTC, ISO 8601.
        files: every other file of the bundle with its hash.
        parity: the gate's report.
        precisions: of each lower precision that the bundle holds another graph in, its report.
        plans: TensorRT plans by file.
        tuning: settings by class of machine and precision, see `machine_class`.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    method: str
    parameters: dict[str, Any]
    class_specific: bool
    several_targets: bool = False
    areas: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    parts: Count = 1
    image: ImageSpec
    any_size: bool = False
    mask_size: tuple[Count, Count]
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    batch: Count = 8
    splits: bool = False
    explainee: dict[str, str]
    opset: int
    versions: dict[str, str]
    created: str
    files: dict[str, FileEntry]
    parity: ParityReport = Field(description="the gate's report")
    precisions: dict[str, PrecisionReport] = {}
    plans: dict[str, PlanReport] = {}
    tuning: dict[str, Tuning] = {}
