"""One network for all images: against a naive reading of every point, and as functions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_weights import randomise
from scipy.special import expit
from squares import SquareCNN, as_input, random_squares, squares, to_explainee, trained_squares_state
from torch import Tensor

from saccade.accel.engines import open_engine
from saccade.contracts import MaskQuery, Uint8
from saccade.errors import OutOfMemory, ParityError, UsageError
from saccade.evaluate.scenes import SceneConfig, SceneSource
from saccade.evaluate.scenes_models import IMAGE_SPEC, ScenesViT
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.export.write_bundle import export_trained
from saccade.methods.checkpoint import CheckpointRecord, load_checkpoint, read_record
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.inr.amortized import AmortizedExplainer, Field, build_amortized
from saccade.methods.inr.amortized_config import AmortizedConfig
from saccade.methods.inr.amortized_objective import INR, draw_areas
from saccade.methods.train import train_explainer
from saccade.methods.training.explainer import Batch
from saccade.methods.upsample import interpolation_matrix, sampling_matrix

AREAS = torch.tensor([0.04, 0.11, 0.37])

pytestmark = pytest.mark.xdist_group("amortized")  # one trained network for all


def built(explainee: Explainee, **settings: Any) -> AmortizedExplainer:
    torch.manual_seed(3)
    explainer = build_amortized(explainee, AmortizedConfig(**settings))
    frequencies = explainer.network.frequencies.clone()
    randomise(explainer.network, seed=2)
    explainer.network.frequencies.copy_(frequencies)
    with torch.no_grad():
        explainer.network.last.weight.mul_(20)  # so that pixels differ
    return explainer


@pytest.fixture(scope="module")
def explainee() -> Explainee:
    return random_squares()


@pytest.fixture(scope="module")
def vit() -> Explainee:
    model = randomise(ScenesViT(width=16, depth=3, heads=2)).requires_grad_(False)
    return Explainee(model, IMAGE_SPEC, tuple("abcdefghij"), "python:a:b", "random", fingerprint(model))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return as_input(squares(1, 4)[0])


def centres(count: int) -> Tensor:
    return (2 * torch.arange(count) + 1) / count - 1


# ---- one point at a time


def bilinear(maps: Tensor, x: float, y: float) -> Tensor:
    """A map (C, h, w) at a place in (−1, 1), from the four pixels around it."""
    height, width = maps.shape[1:]
    column = min(max((x + 1) / 2 * width - 0.5, 0), width - 1)
    row = min(max((y + 1) / 2 * height - 0.5, 0), height - 1)
    left, top = min(int(column), width - 2), min(int(row), height - 2)
    across, down = column - left, row - top
    upper = (1 - across) * maps[:, top, left] + across * maps[:, top, left + 1]
    lower = (1 - across) * maps[:, top + 1, left] + across * maps[:, top + 1, left + 1]
    return (1 - down) * upper + down * lower


@pytest.mark.parametrize("conditional", [False, True])
def test_the_logit_of_a_mask_is_what_is_read_at_each_point(
    explainee: Explainee, images: Tensor, conditional: bool
) -> None:
    explainer = built(explainee, class_conditional=conditional, parts=2, grid=8, gain=1.0)
    network: Any = explainer.network
    target = torch.tensor([2, 0, 1, 1])
    model: Any = explainee.model
    with torch.no_grad():
        field = explainer.predict(images, target)
        found = network.at(field.hidden, AREAS, 1)
        coarse, fine = model.late(model.early(images)), model.early(images)
        assert explainer.layers == ("late", "early")
        first, second = (project(maps) for project, maps in zip(network.projections, (coarse, fine), strict=True))
        for index in range(2):
            hidden = (first[index].repeat_interleave(2, 1).repeat_interleave(2, 2) + second[index]).clamp(min=0)
            read = torch.einsum("dc,chw->dhw", network.read.weight[:, :, 0, 0], hidden)
            read = read + network.read.bias[:, None, None]
            if conditional:
                agreement = network.of_class(coarse, target[:, None])[index, 0]
                read = read + network.agreement * agreement.repeat_interleave(2, 0).repeat_interleave(2, 1)
            for row in (0, 3, 7):
                for column in (0, 5):
                    x, y = (2 * column + 1) / 8 - 1, (2 * row + 1) / 8 - 1
                    turned = 2 * math.pi * (network.frequencies @ torch.tensor([x, y]))
                    place = network.of_place(torch.cat([turned.sin(), turned.cos()]))
                    point = torch.relu(bilinear(read, x, y) + place)
                    inner = network.inner.weight[:, :, 0] @ point + network.inner.bias
                    for number, area in enumerate(AREAS.tolist()):
                        code = (math.log(area / (1 - area)) + 2) / 1.5
                        last = torch.relu(inner + code * network.of_area.weight[:, 0] + network.of_part[1])
                        logit = network.last.weight[0, :, 0] @ last + network.last.bias + math.log(area / (1 - area))
                        assert float(found[index, number, 8 * row + column]) == pytest.approx(float(logit), abs=1e-3)
    expected = target if conditional else field.logits.argmax(1)
    assert torch.equal(field.target, expected)


def test_sampling_at_the_centres_of_pixels_is_interpolation() -> None:
    for source, count in ((5, 15), (6, 6), (4, 7)):
        torch.testing.assert_close(
            sampling_matrix(centres(count), source), interpolation_matrix(source, count), rtol=0, atol=1e-5
        )
    weights = sampling_matrix(torch.tensor([-1.0, 0.0, 1.0, 0.3]), 4)
    expected = torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1], [0, 0, 0.9, 0.1]])
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)


# ---- masks as functions


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_masks_have_the_areas_that_are_asked_for(
    name: str, explainee: Explainee, vit: Explainee, images: Tensor
) -> None:
    explainer = built(explainee if name == "cnn" else vit)
    size = explainer.explainee.image_spec.size[0]
    inputs = images if name == "cnn" else torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        field = explainer.predict(inputs)
        masks = explainer.render(field, AREAS, centres(size), centres(size))
    assert float((masks.mean((2, 3)) - AREAS).abs().max()) < 2e-3
    assert float((masks[0] - masks[1]).abs().max()) > 0.05


def test_gain_leaves_fewer_pixels_half_kept_and_neither_their_order_nor_the_area_changes(
    explainee: Explainee, images: Tensor
) -> None:
    plain, sharp = built(explainee, gain=1.0), built(explainee, gain=6.0)
    with torch.no_grad():
        field = plain.predict(images)
        logits = plain.network.at(field.hidden, AREAS).double().numpy()
        soft, hard = (each.masks(each.predict(images), AREAS).numpy() for each in (plain, sharp))
        while_training = sharp.train().network.at(field.hidden, AREAS)
    np.testing.assert_array_equal(while_training.double().numpy(), logits)
    for gain, masks in ((1, soft), (6, hard)):
        for index in range(len(images)):
            for number, area in enumerate(AREAS.tolist()):
                low, high = -1e3, 1e3
                for _ in range(80):  # the shift by which the mean is the area
                    shift = (low + high) / 2
                    found = expit(gain * logits[index, number] - shift)
                    low, high = (shift, high) if found.mean() > area else (low, shift)
                np.testing.assert_allclose(masks[index, number], found, rtol=0, atol=1e-3)
    grey = [float(((masks > 0.1) & (masks < 0.9)).mean()) for masks in (soft, hard)]
    assert grey[1] < 0.5 * grey[0]


def test_finer_masks_have_the_means_of_coarser_ones(explainee: Explainee, images: Tensor) -> None:
    explainer = built(explainee)
    assert explainer.network.grid == (16, 16)
    with torch.no_grad():
        field = explainer.predict(images)
        plain = explainer.render(field, AREAS, centres(32), centres(32))
        for times in (2, 4):
            fine = explainer.render(field, AREAS, centres(32 * times), centres(32 * times))
            torch.testing.assert_close(F.avg_pool2d(fine, times), plain, rtol=0, atol=1e-5)
    small = explainer.masks(field, AREAS).reshape(4, 3, 16, 16)
    expected = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-5)


def test_a_part_of_the_image_is_rendered_as_in_the_whole(explainee: Explainee, images: Tensor) -> None:
    explainer = built(explainee)
    query = MaskQuery(size=(32, 32), box=(0.25, 0.5, 0.75, 1.0))
    rows, columns = (torch.from_numpy(value) for value in query.places((32, 32)))
    with torch.no_grad():
        field = explainer.predict(images)
        fine = explainer.render(field, AREAS, centres(64), centres(64))
        part = explainer.render(field, AREAS, rows, columns)
    torch.testing.assert_close(part, fine[:, :, 32:, 16:48], rtol=0, atol=1e-5)


def test_parts_have_no_pixel_in_common_and_the_area_asked_for(explainee: Explainee, images: Tensor) -> None:
    explainer = built(explainee, parts=3)
    area = torch.tensor([0.1])
    with torch.no_grad():
        field = explainer.predict(images)
        parts = explainer.render_parts(field, area, centres(96), centres(96))
        first = explainer.render(field, area, centres(96), centres(96))
    assert parts.shape == (4, 3, 96, 96)
    assert float(parts.sum(1).max()) <= 1 + 1e-5
    assert int((parts > 0.5).sum(1).max()) == 1
    assert float((parts.mean((2, 3)) - 0.1).abs().max()) < 2e-3
    torch.testing.assert_close(parts[:, :1], first, rtol=0, atol=1e-5)


# ---- the graph


@pytest.fixture(scope="module")
def exported(explainee: Explainee, tmp_path_factory: pytest.TempPathFactory) -> tuple[AmortizedExplainer, Path, Uint8]:
    explainer = built(explainee, class_conditional=True, parts=2)
    images = squares(5, 16)[0]
    record = CheckpointRecord.of(explainer, AmortizedConfig(class_conditional=True, parts=2), "noise", 0)
    path = tmp_path_factory.mktemp("bundles") / "functions"
    export_trained(explainer, record, images, path)
    return explainer, path, images


def test_the_committed_network_passes_the_gate(tmp_path: Path) -> None:
    folder = WEIGHTS / "scenes_resnet_inr"
    explainer, record = load_checkpoint(folder)
    assert isinstance(explainer, AmortizedExplainer)
    scenes = SceneSource("test", SceneConfig()).batch(range(16))
    bundle = export_trained(explainer, record, scenes.images, tmp_path / "bundle")
    assert bundle.manifest.parity.rounding == explainer.network.gain
    assert bundle.manifest.parity.batch_max_abs < 1e-4
    masks = open_engine(bundle).run(scenes.images, None, MaskQuery(areas=(0.05, 0.2))).mask
    np.testing.assert_allclose(masks.mean((2, 3)), np.broadcast_to([0.05, 0.2], (16, 2)), atol=1e-3)
    areas = tuple(np.geomspace(0.02, 0.5, 8))
    scenes = SceneSource("test", SceneConfig()).batch(range(100, 228))
    masks = np.concatenate(
        [open_engine(bundle).run(part, None, MaskQuery(areas=areas)).mask for part in np.split(scenes.images, 8)]
    )
    assert ((masks > 0.1) & (masks < 0.9)).mean() < 0.065
    assert (masks[:, :-1] > masks[:, 1:] + 0.01).mean() < 0.005
    peaks = [np.unravel_index(int(mask.argmax()), mask.shape) for mask in masks.mean(1)]
    hits = [
        left <= x < right and top <= y < bottom
        for (y, x), (left, top, right, bottom) in zip(peaks, scenes.boxes, strict=True)
    ]
    assert np.mean(hits) >= 0.95


@pytest.mark.parametrize("wrong", ["render", "render_parts"])
def test_the_gate_asks_for_what_a_bundle_does_not_give_by_itself(
    explainee: Explainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    explainer = built(explainee, class_conditional=True, parts=2)
    record = CheckpointRecord.of(explainer, AmortizedConfig(class_conditional=True, parts=2), "noise", 0)
    images = squares(5, 16)[0]
    right = getattr(AmortizedExplainer, wrong)

    def other_than_asked(
        self: AmortizedExplainer, field: Field, areas: Tensor, rows: Tensor, columns: Tensor
    ) -> Tensor:
        """In PyTorch another answer than in the graph, but where a bundle's own masks are asked for."""
        found: Tensor = right(self, field, areas, rows, columns)
        return found if torch.compiler.is_exporting() or len(rows) == images.shape[1] else found.flip(2)

    monkeypatch.setattr(AmortizedExplainer, wrong, other_than_asked)
    with pytest.raises(ParityError, match="mask"):
        export_trained(explainer, record, images, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_openvino_gives_the_same_functions(exported: tuple[AmortizedExplainer, Path, Uint8]) -> None:
    _, path, images = exported
    ours, theirs = (open_engine(path, name, threads=1) for name in ("openvino", "onnx"))
    for query in (MaskQuery(areas=(0.1, 0.3), size=(60, 40)), MaskQuery(parts=2)):
        found, wanted = (engine.run(images[:2], None, query).mask for engine in (ours, theirs))
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_masks_that_no_memory_holds_are_refused_before_they_are_made(
    exported: tuple[AmortizedExplainer, Path, Uint8],
) -> None:
    _, path, images = exported
    with pytest.raises(OutOfMemory, match=r"4 masks of 200000×100000 pixels take 596 GiB .*--size.* --box"):
        open_engine(path).run(images[:1], None, MaskQuery(size=(200_000, 100_000)))
    with pytest.raises(OutOfMemory, match=r"12 masks .* --batch-size 1"):
        open_engine(path).run(images[:3], None, MaskQuery(size=(200_000, 100_000)))


def test_where_the_system_does_not_tell_its_memory_masks_are_made_all_the_same(
    exported: tuple[AmortizedExplainer, Path, Uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path, images = exported
    monkeypatch.delattr("os.sysconf")  # as on Windows
    assert open_engine(path).run(images[:1], None, MaskQuery(size=(40, 40))).mask.shape == (1, 4, 40, 40)


def test_the_graph_takes_any_areas_places_and_classes(exported: tuple[AmortizedExplainer, Path, Uint8]) -> None:
    explainer, path, images = exported
    engine = open_engine(path)
    manifest = engine.bundle.manifest
    assert (manifest.method, manifest.areas, manifest.parts) == ("inr", (0.05, 0.1, 0.2, 0.3), 2)
    query = MaskQuery(areas=(0.033, 0.5), size=(70, 41), box=(0.1, 0.2, 0.9, 0.7))
    target = np.array([2, -1, 0])
    answer = engine.run(images[:3], target, query)
    rows, columns = (torch.from_numpy(value) for value in query.places((1, 1)))
    with torch.no_grad():
        field = explainer.predict(as_input(images[:3]), torch.from_numpy(target))
        expected = explainer.render(field, torch.tensor([0.033, 0.5]), rows, columns)
        parts = explainer.render_parts(field, torch.tensor([0.2]), centres(32), centres(32))
    np.testing.assert_allclose(answer.mask, expected.numpy(), rtol=0, atol=1e-4)
    assert answer.target.tolist() == field.target.tolist()
    several = engine.run(images[:3], target, MaskQuery(areas=(0.2,), parts=2))
    np.testing.assert_allclose(several.mask, parts.numpy(), rtol=0, atol=1e-4)
    first = engine.run(images[:3], target, MaskQuery(areas=(0.2, 0.4), parts=1))
    np.testing.assert_allclose(first.mask, parts[:, :1].numpy(), rtol=0, atol=1e-4)
    plain = engine.run(images[:3])
    assert plain.mask.shape == (3, 4, 32, 32)
    both = engine.run(images[:3], np.array([[0, 1]] * 3), MaskQuery(areas=(0.1, 0.3)))
    assert both.mask.shape == (3, 4, 32, 32)
    alone = engine.run(images[:3], 1, MaskQuery(areas=(0.1, 0.3)))
    np.testing.assert_allclose(both.mask[:, 2:], alone.mask, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"areas": (0.1, 1.0)}, "not inside"),
        ({"size": (0, 3)}, "not positive"),
        ({"areas": (0.99999999,)}, "not inside"),  # 1 in float32
        ({"parts": -1}, "cannot be asked for"),
        ({"areas": (0.6,), "parts": 2}, "do not fit side by side"),
        ({"box": (0.5, 0.0, 0.4, 1.0)}, "fractions of the image"),
    ],
)
def test_a_query_without_sense_is_refused(query: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MaskQuery(**query)


def test_a_bundle_refuses_masks_that_it_does_not_hold(
    exported: tuple[AmortizedExplainer, Path, Uint8], tiny_bundle_kept: Path
) -> None:
    _, path, images = exported
    with pytest.raises(UsageError, match=r"trained for 2 masks without a common pixel, not 3; .* --parts 3"):
        open_engine(path).run(images[:1], None, MaskQuery(parts=3))
    with pytest.raises(UsageError, match="saccade train inr"):
        open_engine(tiny_bundle_kept).run(images[:1], None, MaskQuery(areas=(0.1,)))


# ---- training


def test_areas_are_drawn_evenly_on_a_logarithmic_scale() -> None:
    config = AmortizedConfig(smallest=0.02, largest=0.5, drawn=2)
    drawn = torch.stack([draw_areas(config, step) for step in range(400)])
    middle = math.sqrt(0.02 * 0.5)
    assert float(drawn[:, 0].min()) >= 0.02
    assert float(drawn[:, 1].max()) <= 0.5
    assert (drawn[:, 0] <= middle).all()
    assert (drawn[:, 1] >= middle).all()
    assert float(drawn.log().mean()) == pytest.approx(math.log(middle), abs=0.03)
    assert torch.equal(draw_areas(config, 7), drawn[7])


def test_the_losses_are_those_of_the_images_one_by_one(explainee: Explainee) -> None:
    explainer = built(explainee, class_conditional=True, gain=1.0)
    config = AmortizedConfig(class_conditional=True, drawn=3)
    raw, _, where = squares(3, 3)
    pixels = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255
    target = torch.tensor([0, 2, 1])
    elsewhere = torch.from_numpy(where)[:, None].float()
    baseline = torch.full((1, 3, 1, 1), 0.4)
    areas = draw_areas(config, 5)
    model: Any = explainee.model
    with torch.no_grad():
        losses, _ = INR.losses(explainer, Batch(pixels, baseline, target, elsewhere, 5), config)
        field: Field = explainer.predict(as_input(raw), target)
        for index in range(3):
            terms: dict[str, list[float]] = {name: [] for name in losses.terms}
            masks = explainer.masks(field, areas)[index]
            for number, area in enumerate(areas.tolist()):
                small = masks[number].reshape(1, 1, 16, 16)
                mask = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
                image = pixels[index : index + 1]
                kept, left = (
                    model((one * image + (1 - one) * 0.4 - 0.4) / 0.2).softmax(1)[0, target[index]].double()
                    for one in (mask, 1 - mask)
                )
                terms["preserve"].append(-math.log(kept))
                terms["complement"].append(-min(1, area / 0.1) * math.log(1 - left))
                ideal = torch.zeros(256)
                whole = int(256 * area)
                ideal[256 - whole :] = 1
                ideal[255 - whole] = 256 * area - whole
                terms["binary"].append(float((masks[number].sort().values - ideal).square().mean()))
                values = masks[number].reshape(16, 16).double()
                changes = np.abs(np.diff(values, axis=0)).sum() + np.abs(np.diff(values, axis=1)).sum()
                terms["smooth"].append(float(changes) / 256)
                outside = F.avg_pool2d(elsewhere[index : index + 1], 2).flatten()
                wrong = -(outside * (1 - masks[number]).log()).mean()
                terms["elsewhere"].append(float(wrong) if area < 1 - outside.mean() else 0.0)
            over = (masks[:-1] - masks[1:]).clamp(min=0).mean()
            for name in ("preserve", "complement", "binary", "smooth", "elsewhere"):
                assert float(losses.terms[name][index]) == pytest.approx(np.mean(terms[name]), rel=1e-3, abs=1e-5)
            assert float(losses.terms["nested"][index]) == pytest.approx(float(over), abs=1e-6)
    weights = {"preserve": 1.0, "complement": 0.5, "binary": 40.0, "smooth": 1.0, "nested": 1.0, "elsewhere": 2.0}
    total = sum(weight * float(losses.terms[name].mean()) for name, weight in weights.items())
    assert float(losses.total) == pytest.approx(total, rel=1e-5)


def test_a_trained_network_finds_the_evidence_at_every_area(tmp_path: Path) -> None:
    model = SquareCNN()
    model.load_state_dict(trained_squares_state())
    config = AmortizedConfig(steps=120, batch_size=32, parts=2, baseline="mean", learning_rate=5e-3)

    def stream(step: int) -> Uint8:
        return squares(2000 + step, 32)[0]

    explainer = train_explainer(to_explainee(model), stream, config, tmp_path / "run", data="squares")
    assert isinstance(explainer, AmortizedExplainer)
    record = read_record(tmp_path / "run")
    assert (record.method, record.config, record.step) == ("inr", config, 120)
    raw, _, where = squares(9, 40)
    with torch.no_grad():
        field = explainer.predict(as_input(raw))
        masks = explainer.render(field, torch.tensor([0.02, 0.0625, 0.2]), centres(32), centres(32))
    evidence = torch.from_numpy(where).float()[:, None]
    inside = (masks * evidence).sum((2, 3)) / masks.sum((2, 3))
    assert float(inside[:, 0].mean()) > 0.8  # the square is 6.25 % of the image
    assert float(inside[:, 1].mean()) > 0.6
    covered = (masks * evidence).sum((2, 3)) / evidence.sum((2, 3))
    assert float(covered[:, 2].mean()) > 0.9


def test_settings_without_sense_are_refused() -> None:
    for changes, message in (
        ({"areas": (0.0,)}, "not inside"),
        ({"smallest": 0.5, "largest": 0.2}, "in this order"),
        ({"parts": 0}, "at least 1"),
        ({"gain": 0.0}, "gain"),
        ({"preserve": 0.0, "complement": 0.0}, "is positive"),
    ):
        with pytest.raises(UsageError, match=message):
            AmortizedConfig(**changes)  # type: ignore[arg-type]
