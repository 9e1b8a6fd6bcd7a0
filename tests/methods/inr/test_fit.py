"""Masks of a classifier whose evidence is known: two squares, either of which would do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.contracts import ImageSpec
from saccade.errors import ModelError, UsageError
from saccade.evaluate.scenes import SceneConfig, SceneSource
from saccade.methods.explainee import Explainee, fingerprint, load_explainee
from saccade.methods.fold import fast_for_input_gradients
from saccade.methods.inr import extremal as extremal_module
from saccade.methods.inr import several as several_module
from saccade.methods.inr.config import INRConfig, grid_of
from saccade.methods.inr.extremal import ExtremalConfig, SmoothMaximum, extremal_masks
from saccade.methods.inr.fit import fit_masks
from saccade.methods.inr.network import CoordinateNetworks, grid_of_points
from saccade.methods.inr.several import SeveralConfig, several_masks
from saccade.methods.perturb import make_baseline
from saccade.methods.upsample import sample_maps

SIZE = 32
SPEC = ImageSpec(size=(SIZE, SIZE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
STRONG, WEAK = (slice(2, 12), slice(11, 21)), (slice(20, 30), slice(11, 21))  # the same when flipped
QUICK: dict[str, Any] = {"steps": 120, "width": 32, "layers": 2, "features": 16, "baselines": ("mean",), "patience": 0}


class Squares(nn.Module):
    """The first class where either of two squares is bright, the strong one more so; else the second."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([12.0, 6.0]))

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(1)
        seen = torch.stack([grey[:, *STRONG].mean((1, 2)), grey[:, *WEAK].mean((1, 2))], 1)
        evidence = (self.gain * seen).logsumexp(1) - 2
        return torch.stack([evidence, torch.zeros_like(evidence), -evidence], 1)


@pytest.fixture(scope="module")
def squares() -> Explainee:
    model = Squares()
    return Explainee(model, SPEC, ("squares", "none", "never"), "python:a:b", "random", fingerprint(model))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    images = torch.full((3, 3, SIZE, SIZE), 0.5)
    images += 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for index, (strong, weak) in enumerate([(True, True), (True, False), (False, True)]):
        if strong:
            images[index, :, *STRONG] = 0.95
        if weak:
            images[index, :, *WEAK] = 0.95
    return images.clamp(0, 1)


def inside(mask: Tensor, square: tuple[slice, slice]) -> float:
    return float(mask[square].sum() / mask.sum())


def test_networks_compute_what_their_formula_says() -> None:
    config = INRConfig(width=5, layers=2, features=3)
    networks = CoordinateNetworks(2, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in networks.parameters():
            value.normal_(0, 0.5, generator=generator)
        points, areas = grid_of_points(3, 4), torch.tensor([0.05, 0.4])
        found = networks((3, 4), areas)
    assert found.shape == (2, 2, 12)
    networks.requires_grad_(False)
    for image in range(2):
        for place, area in enumerate(areas.tolist()):
            for spot in range(12):
                row, column = divmod(spot, 4)
                x, y = (2 * column + 1) / 4 - 1, (2 * row + 1) / 3 - 1
                assert points[spot].tolist() == pytest.approx([x, y])
                angles = [2 * math.pi * (float(b[0]) * x + float(b[1]) * y) for b in networks.frequencies.tolist()]
                values = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
                code = (math.log(area / (1 - area)) + 2) / 1.5
                hidden = values @ networks.first[image] + networks.shift[image, 0]
                hidden = F.silu(hidden + code * networks.of_area[image, 0])
                hidden = F.silu(hidden @ networks.weights[image, 0] + networks.shift[image, 1])
                expected = hidden @ networks.last[image] + networks.offset[image, 0]
                expected = float(expected) + math.log(area / (1 - area))
                assert float(found[image, place, spot]) == pytest.approx(expected, abs=1e-4)


def test_a_gain_makes_masks_less_grey_and_keeps_their_area_and_the_order_of_their_pixels(
    squares: Explainee, pixels: Tensor
) -> None:
    fitted = fit_masks(squares, pixels, INRConfig(areas=(0.05, 0.2), gain=1.0, **QUICK))  # type: ignore[arg-type]
    plain, steep = fitted.render(*fitted.grid), replace(fitted, gain=3.0).render(*fitted.grid)
    grey = [((masks > 0.1) & (masks < 0.9)).float().mean() for masks in (plain, steep)]
    assert float(grey[1]) < 0.8 * float(grey[0])
    torch.testing.assert_close(steep.mean((2, 3)), plain.mean((2, 3)), atol=1e-5, rtol=0)
    for one, other in zip(plain.flatten(0, 1).flatten(1), steep.flatten(0, 1).flatten(1), strict=True):
        rising = other[one.argsort(stable=True)]
        assert float((rising[:-1] - rising[1:]).max()) <= 1e-6


@pytest.mark.parametrize("objective", ["preserve", "delete", "dual"])
def test_a_mask_lies_on_the_evidence_and_has_its_area(squares: Explainee, pixels: Tensor, objective: str) -> None:
    config = INRConfig(areas=(0.05, 0.1), objective=objective, **QUICK | {"steps": 200})  # type: ignore[arg-type]
    fitted = fit_masks(squares, pixels, config)
    masks = fitted.render(SIZE, SIZE)
    assert masks.shape == (3, 2, SIZE, SIZE)
    for place, area in enumerate(config.areas):
        assert masks[:, place].mean((1, 2)).tolist() == pytest.approx([area] * 3, abs=1e-3)
    assert inside(masks[1, 1], STRONG) > 0.6
    assert inside(masks[2, 1], WEAK) > 0.6
    grey = ((masks > 0.1) & (masks < 0.9)).float().mean()
    assert float(grey) < 0.1
    nested = (masks[:, 0] <= masks[:, 1] + 0.05).float().mean()
    assert float(nested) > 0.99


def test_an_image_gets_alone_what_it_gets_in_a_batch(squares: Explainee, pixels: Tensor) -> None:
    config = INRConfig(areas=(0.1, 0.2), **QUICK | {"steps": 150, "patience": 3})
    together = fit_masks(squares, pixels, config)
    for index in range(3):
        alone = fit_masks(squares, pixels[index : index + 1], config)
        assert int(alone.steps[0]) == int(together.steps[index])
        difference = alone.render(SIZE, SIZE)[0] - together.render(SIZE, SIZE)[index]
        assert float(difference.abs().max()) <= 1e-3
    assert len(set(together.steps.tolist())) > 1  # so some had gone on without the others


def test_a_network_with_kinks_gives_an_image_the_same_in_any_batch_too() -> None:
    explainee = fast_for_input_gradients(load_explainee("python:saccade.evaluate.scenes_models:resnet"))
    scenes = torch.from_numpy(SceneSource("test").batch(range(20_000, 20_008)).images).permute(0, 3, 1, 2).float() / 255
    config, index = INRConfig(steps=60), 3  # of which a batch of sixteen masks makes another one
    together = fit_masks(explainee, scenes, config).render(*explainee.image_spec.size)
    alone = fit_masks(explainee, scenes[index : index + 1], config).render(*explainee.image_spec.size)
    assert float((alone[0] - together[index]).abs().max()) <= 1e-4


def test_rendered_finer_and_averaged_a_mask_is_the_same(squares: Explainee, pixels: Tensor) -> None:
    fitted = fit_masks(squares, pixels, INRConfig(areas=(0.1, 0.3), **QUICK))
    plain = fitted.render(SIZE, SIZE)
    for times in (2, 4):
        finer = F.avg_pool2d(fitted.render(SIZE * times, SIZE * times).flatten(0, 1)[:, None], times)
        assert float((finer.reshape(plain.shape) - plain).abs().max()) <= 1e-4


def test_the_class_that_is_asked_for_is_explained_and_what_was_kept_is_said(squares: Explainee, pixels: Tensor) -> None:
    config = INRConfig(areas=(0.1,), **QUICK)
    fitted = fit_masks(squares, pixels, config, target=torch.tensor([1, -1, 0]))
    assert fitted.target.tolist() == [1, 0, 0]
    masks = fitted.render(SIZE, SIZE)
    shown = masks * pixels + (1 - masks) * 0.5
    expected = squares.model(squares.normalise(shown)).softmax(1).detach()
    assert fitted.kept[:, 0].tolist() == pytest.approx(
        [float(row[t]) for row, t in zip(expected, [1, 0, 0], strict=True)], abs=1e-4
    )
    assert fitted.forwards.tolist() == [2 + 120] * 3


def test_a_small_mask_finds_evidence_that_it_does_not_begin_at() -> None:
    """A digit of a scene that a mask of its final area from the first step on never found."""
    explainee = load_explainee("python:saccade.evaluate.scenes_models:resnet")
    scene = SceneSource("test", SceneConfig(variant="context")).scene(3)
    pixels = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None].float() / 255
    fitted = fit_masks(explainee, pixels, INRConfig(areas=(0.08,)))
    assert float(fitted.kept[0, 0]) > 0.9


def test_the_classifier_is_left_as_found(squares: Explainee, pixels: Tensor) -> None:
    model = squares.model
    model.train()
    fit_masks(squares, pixels[:1], INRConfig(areas=(0.1,), **QUICK | {"steps": 2}))
    assert model.training
    assert all(value.requires_grad and value.grad is None for value in model.parameters())
    model.eval()


@pytest.mark.parametrize("find", [fit_masks, several_masks, extremal_masks])
@pytest.mark.parametrize(
    ("target", "words"), [([0, 3], "no class 3: the model has 3, counted from 0"), ([1], "2 images have one target")]
)
def test_a_class_that_is_not_there_is_refused(
    squares: Explainee, pixels: Tensor, find: Any, target: list[int], words: str
) -> None:
    settings: dict[Any, Any] = {
        fit_masks: (INRConfig(),),
        several_masks: (SeveralConfig(), INRConfig()),
        extremal_masks: (ExtremalConfig(),),
    }
    with pytest.raises(UsageError, match=words):
        find(squares, pixels[:2], *settings[find], target=torch.tensor(target))


def test_a_last_step_that_breaks_an_image_is_seen(
    squares: Explainee, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.Adam.step

    def breaking(self: Any, *arguments: Any) -> Any:
        result = step(self, *arguments)
        weights = self.param_groups[0]["params"][0]
        if self.state[weights]["step"] == 3:
            with torch.no_grad():
                weights[1] = math.nan
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", breaking)
    with pytest.raises(ModelError, match=r"image 1 of the batch diverges at step 3"):
        fit_masks(squares, pixels[:3], INRConfig(areas=(0.1,), **QUICK | {"steps": 3}))


@pytest.mark.parametrize("find", ["fit", "several", "extremal"])
def test_pixels_may_be_blurred_as_much_as_the_mask_lacks(find: str) -> None:
    explainee = fast_for_input_gradients(load_explainee("python:saccade.evaluate.scenes_models:resnet"))
    scene = SceneSource("test", SceneConfig()).scene(5)
    pixels = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None].float() / 255
    config = INRConfig(areas=(0.05,), steps=150, baselines=("pyramid",))
    if find == "fit":
        mask = fit_masks(explainee, pixels, config).render(96, 96)[0, 0]
    elif find == "several":
        mask = several_masks(explainee, pixels, SeveralConfig(most=1, area=0.05), config).masks[0, 0]
    else:
        mask = extremal_masks(explainee, pixels, ExtremalConfig(areas=(0.05,), steps=300, baseline="pyramid"))[0, 0]
    left, top, right, bottom = scene.box
    inside = float(mask[top:bottom, left:right].sum() / mask.sum())
    by_chance = (right - left) * (bottom - top) / 96**2
    assert inside > 3 * by_chance, (inside, by_chance)


def test_an_optimisation_that_diverges_is_said_with_what_to_change(pixels: Tensor) -> None:
    model = Squares()
    with torch.no_grad():
        model.gain.fill_(math.nan)
    broken = Explainee(model, SPEC, ("a", "b", "c"), "python:a:b", "random", fingerprint(model))
    with pytest.raises(ModelError, match=r"image 0 .* diverges at step 1; lower the learning rate"):
        fit_masks(broken, pixels, INRConfig(areas=(0.1,), **QUICK))


def test_several_masks_do_not_overlap_and_stop_where_the_evidence_ends(squares: Explainee, pixels: Tensor) -> None:
    several, target = SeveralConfig(most=3, area=0.1, least=0.5), torch.tensor([0, 0, 0])
    found = several_masks(squares, pixels, several, INRConfig(**QUICK), target=target)
    assert found.masks.unique().tolist() == [0, 1]
    assert float(found.masks.sum(1).max()) == 1  # no pixel twice
    assert found.found.tolist()[0] >= 2
    assert found.found.tolist()[1:] == [1, 1]  # only one square is bright in these
    longer = several_masks(squares, pixels[:1], several, INRConfig(**QUICK | {"steps": 200}), target=target[:1])
    shares = [(inside(mask, STRONG), inside(mask, WEAK)) for mask in longer.masks[0, :2]]
    assert max(shares[0][0] * shares[1][1], shares[0][1] * shares[1][0]) > 0.2  # one square each, in either order
    for image in range(3):
        for place in range(3):
            if place >= int(found.found[image]):
                assert float(found.masks[image, place].sum()) == 0 == float(found.retention[image, place])
            else:
                assert float(found.retention[image, place]) >= 0.5
                assert float(found.masks[image, place].mean()) == pytest.approx(0.1, abs=1e-3)


def test_a_margin_keeps_the_next_mask_off_the_rest_of_the_same_evidence(squares: Explainee, pixels: Tensor) -> None:
    config = INRConfig(**QUICK)
    target = torch.zeros(1, dtype=torch.int64)

    def masks(margin: float) -> Tensor:
        several = SeveralConfig(most=2, area=0.04, least=0, margin=margin)
        return several_masks(squares, pixels[1:2], several, config, target=target).masks[0].bool()

    def gap(first: Tensor, second: Tensor) -> int:
        near = (first.nonzero()[:, None] - second.nonzero()[None]).abs().amax(2)  # of every pair of pixels
        return int(near.min()) - 1

    assert gap(*masks(0)) < 3  # a part of a square is enough, and so is the part beside it
    assert gap(*masks(0.1)) >= round(0.1 * SIZE)


def test_a_mask_that_holds_too_little_is_looked_for_again_from_other_weights(
    squares: Explainee, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def watched(explainee: Explainee, images: Tensor, config: INRConfig, **others: Any) -> Any:
        seen.append((len(images), config.seed))
        # the first try gets no time to find anything
        return fit_masks(explainee, images, replace(config, steps=1) if config.seed == 0 else config, **others)

    monkeypatch.setattr(several_module, "fit_masks", watched)
    target = torch.zeros(2, dtype=torch.int64)
    once, twice = (
        several_masks(
            squares, pixels[:2], SeveralConfig(most=1, least=0.9, tries=tries), INRConfig(**QUICK), target=target
        )
        for tries in (1, 3)
    )
    assert once.found.tolist() == [0, 0]
    assert twice.found.tolist() == [1, 1]
    assert seen[:3] == [(2, 0), (2, 0), (2, 1)]
    assert len(seen) == 3  # nobody is looked for a third time


@pytest.mark.parametrize("margin", [-0.1, 0.5, math.nan])
def test_a_margin_is_a_fraction_of_the_side(margin: float) -> None:
    with pytest.raises(UsageError, match="fraction of the image's side"):
        SeveralConfig(margin=margin)


def test_an_image_that_adds_nothing_over_what_removes_it_has_no_mask(squares: Explainee, pixels: Tensor) -> None:
    # nothing is bright, so the class that is predicted is what grey already says
    flat = torch.full_like(pixels[:1], 0.5)
    found = several_masks(squares, flat, SeveralConfig(most=2, area=0.1), INRConfig(**QUICK | {"steps": 5}))
    assert found.found.tolist() == [0]
    assert float(found.union) == pytest.approx(1, abs=1e-5)
    assert abs(float(found.room)) < 1e-5


def test_no_mask_is_looked_for_where_there_is_nothing_to_find(
    squares: Explainee, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(explainee: Explainee, images: Tensor, config: INRConfig, **others: Any) -> Any:
        seen.append(len(images))
        return fit_masks(explainee, images, config, **others)

    monkeypatch.setattr(several_module, "fit_masks", watched)
    images = torch.cat([torch.full_like(pixels[:1], 0.5), pixels[:1]])
    several_masks(squares, images, SeveralConfig(most=1, tries=1), INRConfig(**QUICK | {"steps": 2}))
    assert seen == [1]
    several_masks(squares, images[:1], SeveralConfig(most=1), INRConfig(**QUICK | {"steps": 2}))
    assert seen == [1]


@pytest.mark.parametrize("objective", ["preserve", "delete", "dual"])
@pytest.mark.parametrize("baseline", ["mean", "blur", "pyramid"])
def test_the_classifier_never_sees_what_masks_before_have_taken(
    squares: Explainee, pixels: Tensor, objective: str, baseline: str
) -> None:
    free = torch.ones(1, 1, SIZE, SIZE)
    free[0, 0, STRONG[0], STRONG[1]] = 0
    seen: list[Tensor] = []
    hook = squares.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        settings = QUICK | {"steps": 3, "baselines": (baseline,)}
        config = INRConfig(areas=(0.1,), objective=objective, **settings)  # type: ignore[arg-type]
        fit_masks(squares, pixels[:1], config, free=free)
    finally:
        hook.remove()
    first, *masked = seen  # the image itself, then what the masks keep and leave
    assert len(masked) >= 3
    removed = make_baseline(pixels[:1], "mean" if baseline == "mean" else "blur", squares.image_spec.mean)
    expected = squares.normalise(removed).expand_as(first)[..., STRONG[0], STRONG[1]]
    assert float((first[..., STRONG[0], STRONG[1]] - expected).abs().max()) > 0.3
    for shown in masked:
        torch.testing.assert_close(
            shown[..., STRONG[0], STRONG[1]], expected.expand(len(shown), -1, -1, -1), atol=1e-5, rtol=0
        )


def test_baselines_are_taken_in_turn_and_the_least_of_what_a_mask_keeps_counts(
    squares: Explainee, pixels: Tensor
) -> None:
    colours = {"#000000": 0.0, "#ffffff": 1.0}
    seen: list[float] = []
    hook = squares.model.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].detach().mean())))
    try:
        config = INRConfig(areas=(0.2,), **QUICK | {"steps": 4, "baselines": tuple(colours)})
        fitted = fit_masks(squares, pixels[:1], config)
    finally:
        hook.remove()
    image, *shown = seen
    assert [value > image for value in shown] == [False, True] * 3  # four steps, and what is kept at the end
    assert int(fitted.forwards[0]) == 1 + 4 + 2
    mask, kept = fitted.render(SIZE, SIZE), []
    for value in colours.values():
        inputs = squares.normalise(mask * pixels[:1] + (1 - mask) * value)
        with torch.no_grad():
            kept.append(squares.model(inputs).softmax(1)[0, fitted.target])
    assert float((kept[0] - kept[1]).abs()) > 1e-3
    torch.testing.assert_close(fitted.kept[:, 0], torch.minimum(*kept), atol=1e-5, rtol=0)


@pytest.mark.parametrize("area", [0.99999999, 1e-50])
def test_an_area_lies_inside_zero_and_one_as_a_graph_counts(area: float) -> None:
    with pytest.raises(UsageError, match="not inside"):
        INRConfig(areas=(area,))


def test_masks_are_rendered_of_areas_in_any_precision(squares: Explainee, pixels: Tensor) -> None:
    fitted = fit_masks(squares, pixels[:1], INRConfig(areas=(0.1,), **QUICK | {"steps": 2}))
    asked = torch.tensor([0.1, 0.3], dtype=torch.float64)
    torch.testing.assert_close(fitted.render(SIZE, SIZE, asked), fitted.render(SIZE, SIZE, asked.float()))


def test_wide_masks_are_nothing_that_narrow_ones_are_compared_with() -> None:
    explainee = load_explainee("python:saccade.evaluate.scenes_models:resnet")
    image = torch.from_numpy(SceneSource("test").batch([20_000]).images).permute(0, 3, 1, 2).float() / 255
    config = INRConfig(areas=(0.02,), steps=200, patience=40)
    stopped, whole = (fit_masks(explainee, image, replace(config, patience=patience)) for patience in (40, 0))
    assert int(stopped.steps) > 0.4 * config.steps + config.patience  # it still gets better when the mask is narrow
    assert float(stopped.kept) > float(whole.kept) - 0.02


@pytest.mark.parametrize(
    ("size", "grid"), [(96, 48), (224, 56), (256, 32), (384, 48), (240, 40), (288, 48), (299, 56), (32, 16), (7, 4)]
)
def test_a_cell_has_an_even_number_of_pixels_where_it_can(size: int, grid: int) -> None:
    assert grid_of((size, size), 0) == (grid, grid)
    asked = min(20, size)
    assert grid_of((size, size), asked) == (asked, asked)


@pytest.mark.parametrize("size", [256, 384])
def test_a_mask_averages_to_itself_whatever_the_image_s_size(size: int) -> None:
    grid = grid_of((size, size), 0)
    values = torch.rand(1, 1, *grid, generator=torch.Generator().manual_seed(0)).round()

    def rendered(times: int) -> Tensor:
        places = grid_of_points(times * size, 1)[:, 1]
        return (
            F.avg_pool2d(sample_maps(values, places, places), times)
            if times > 1
            else sample_maps(values, places, places)
        )

    for times in (2, 4):
        assert torch.allclose(rendered(times), rendered(1), atol=1e-5)


def test_more_masks_than_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="do not fit side by side"):
        SeveralConfig(most=5, area=0.2)


def test_a_lattice_s_smooth_maximum_and_its_derivative_are_those_of_its_formula() -> None:
    lattice = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lattice.requires_grad_()
    found = SmoothMaximum((64, 96), torch.device("cpu"))(lattice)
    assert found.shape == (2, 64, 96)
    for row, column in [(0, 0), (31, 40), (63, 95), (20, 1)]:
        above, below = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        home_row, home_column = row // 2, column // 3
        for i in range(home_row - 6, home_row + 7):
            for j in range(home_column - 6, home_column + 7):
                distance = math.hypot(i + 0.5 - (row + 0.5) / 2, j + 0.5 - (column + 0.5) / 3) / 3
                kernel = math.exp(-2 * max(0.0, distance - 0.5) ** 2)
                value = kernel * lattice[1, min(31, max(0, i)), min(31, max(0, j))]
                above, below = above + value * (20 * value).exp(), below + (20 * value).exp()
        expected = (above / below).clamp(max=1.0)
        torch.testing.assert_close(found[1, row, column], expected, atol=1e-6, rtol=0)
        (derivative,) = torch.autograd.grad(found[1, row, column], lattice, retain_graph=True)
        (by_formula,) = torch.autograd.grad(expected, lattice)
        torch.testing.assert_close(derivative, by_formula, atol=1e-6, rtol=0)


def test_extremal_masks_are_the_same_however_many_are_held_at_once(
    squares: Explainee, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExtremalConfig(areas=(0.1, 0.2, 0.3), baseline="#404040", steps=20)
    expected = extremal_masks(squares, pixels, config)
    monkeypatch.setattr(extremal_module, "_PIXELS", 2 * SIZE * SIZE)
    torch.testing.assert_close(extremal_masks(squares, pixels, config), expected, atol=1e-5, rtol=0)


def test_extremal_perturbations_lie_on_the_evidence(squares: Explainee, pixels: Tensor) -> None:
    masks = extremal_masks(squares, pixels[:2], ExtremalConfig(areas=(0.1,), baseline="mean", steps=800))
    assert masks.shape == (2, 1, SIZE, SIZE)
    assert masks.mean((1, 2, 3)).tolist() == pytest.approx([0.1] * 2, abs=0.02)
    assert inside(masks[1, 0], STRONG) > 0.5
    alone = extremal_masks(squares, pixels[1:2], ExtremalConfig(areas=(0.1,), baseline="mean", steps=800))
    torch.testing.assert_close(alone[0], masks[1], atol=1e-3, rtol=0)
    with pytest.raises(UsageError, match="divisible by 32"):
        SmoothMaximum((50, 64), torch.device("cpu"))
