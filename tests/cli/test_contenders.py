"""Grad-CAM of a transformer by Captum, as `--against grad-cam` takes it, beside Saccade's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saccade.cli.contenders import explainee_contender
from saccade.evaluate.baselines import stretch
from saccade.evaluate.scenes import SceneSource
from saccade.methods.explainee import Explainee, load_explainee
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer

IMAGES = SceneSource("val").batch(range(3)).images


@pytest.fixture(scope="module")
def vit() -> Explainee:
    return load_explainee("python:saccade.evaluate.scenes_models:vit")


def test_captum_s_grad_cam_of_tokens_is_ours(vit: Explainee) -> None:
    pytest.importorskip("captum")
    before = [name for name, _ in vit.model.named_modules()]
    contender = explainee_contender("grad-cam", vit)
    pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255
    _, chosen, mask, _ = GradientExplainer(vit, GradientConfig(method="gradcam"))(
        vit.normalise(pixels), torch.full((3,), -1)
    )
    found = contender.explain(IMAGES, chosen.numpy())
    np.testing.assert_allclose(found, stretch(mask[:, 0].numpy()), atol=1e-4)
    assert [name for name, _ in vit.model.named_modules()] == before
    shuffled = contender.randomised()(IMAGES, chosen.numpy())
    assert float(np.abs(shuffled - found).max()) > 0.1
