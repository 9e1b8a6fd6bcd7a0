from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from saccade.contracts import ImageSpec
from saccade.errors import ModelError
from saccade.evaluate.scenes_models import ScenesViT
from saccade.methods.attention import AttentionTap, attention_layout, block_input, rollout
from saccade.methods.explainee import Explainee
from saccade.methods.last_block import last_block
from saccade.methods.sources import LogitsOnly

Made = tuple[nn.Module, int, int, tuple[int, int], int]  # model, heads, blocks, grid, extra tokens
SIZE = 32


def scenes() -> Made:
    return ScenesViT(width=32, depth=3, heads=2).eval(), 2, 3, (12, 12), 1


def from_torchvision() -> Made:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=7
    )
    return model.eval(), 4, 2, (4, 4), 1


def from_timm(name: str = "vit_tiny_patch16_224", size: tuple[int, int] = (SIZE, SIZE), extra: int = 1) -> Made:
    import timm

    model = timm.create_model(name, img_size=size, patch_size=8, depth=2, embed_dim=32, num_heads=2, num_classes=7)
    return model.eval(), 2, 2, (size[0] // 8, size[1] // 8), extra


def from_transformers() -> Made:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=SIZE,
        patch_size=8,
        num_labels=7,
    )
    return LogitsOnly(ViTForImageClassification(config)).eval(), 4, 2, (4, 4), 1


BUILDERS: dict[str, Callable[[], Made]] = {
    "scenes": scenes,
    "torchvision": from_torchvision,
    "timm": from_timm,
    "timm with registers": lambda: from_timm("vit_base_patch16_dinov3", extra=5),
    "timm not square": lambda: from_timm(size=(32, 48)),
    "transformers": from_transformers,
}


@pytest.fixture(params=list(BUILDERS))
def made(request: pytest.FixtureRequest) -> Made:
    """A small transformer whose logits differ from image to image."""
    torch.manual_seed(0)
    found = BUILDERS[request.param]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in found[0].named_parameters():
            if "gamma" in name:  # a layer scale of 1e-5, as before training, hides the attention
                parameter.fill_(1)
            elif parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return found


def spec_of(made: Made) -> ImageSpec:
    cell = 8  # of every model here
    return ImageSpec(size=(made[3][0] * cell, made[3][1] * cell))


def images_of(made: Made, count: int = 3) -> Tensor:
    return torch.randn(count, 3, *spec_of(made).size, generator=torch.Generator().manual_seed(2))


def test_logits_with_attention_spelled_out_are_those_of_the_plain_model(made: Made) -> None:
    model, images = made[0], images_of(made)
    with torch.no_grad():
        expected = model(images)
        with AttentionTap():
            found = model(images)
        after = model(images)
        exact = model.double()(images.double())
        with AttentionTap():
            found_exactly = model(images.double())
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-6 * scale)  # weights are large here
    torch.testing.assert_close(found_exactly, exact, rtol=0, atol=1e-12 * scale)
    assert torch.equal(after, expected)
    assert not torch.allclose(expected[0], expected[1], rtol=1e-2, atol=1e-3)


def test_matrices_come_in_order_with_a_row_per_token_that_sums_to_one(made: Made) -> None:
    model, heads, blocks, (rows, columns), extra = made
    with torch.no_grad(), AttentionTap() as tap:
        model(images_of(made))
    tokens = extra + rows * columns
    assert [tuple(matrix.shape) for matrix in tap.matrices] == [(3, heads, tokens, tokens)] * blocks
    for matrix in tap.matrices:
        assert float(matrix.min()) >= 0
        torch.testing.assert_close(matrix.sum(-1), torch.ones(3, heads, tokens), rtol=0, atol=1e-5)
    assert not torch.allclose(tap.matrices[0], tap.matrices[-1], atol=1e-3)


def test_a_matrix_replaced_by_itself_changes_nothing_and_by_another_changes_the_logits(made: Made) -> None:
    model, _, blocks, _, _ = made
    images = images_of(made)
    with torch.no_grad():
        with AttentionTap() as tap:
            expected = model(images)
        for block in range(blocks):
            with AttentionTap({block: tap.matrices[block]}) as same:
                assert torch.equal(model(images), expected)
            assert torch.equal(same.matrices[block], tap.matrices[block])
            other = torch.rand(tap.matrices[block].shape, generator=torch.Generator().manual_seed(3))
            with AttentionTap({block: other}) as changed:
                assert not torch.allclose(model(images), expected, rtol=1e-3, atol=1e-4)
            assert changed.matrices[block] is other


def test_gradients_reach_every_matrix_and_fit_finite_differences(made: Made) -> None:
    model, images = made[0].double(), images_of(made, 1).double()
    with AttentionTap() as tap:
        logit = model(images)[0, 1]
    gradients = torch.autograd.grad(logit, tap.matrices)
    for block, (matrix, gradient) in enumerate(zip(tap.matrices, gradients, strict=True)):
        direction = torch.randn(matrix.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        ends = []
        for sign in (1, -1):
            with torch.no_grad(), AttentionTap({block: matrix.detach() + sign * 1e-5 * direction}):
                ends.append(float(model(images)[0, 1]))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-8)


def test_blocks_grid_and_tokens_before_the_patches_are_found(made: Made) -> None:
    layout = attention_layout(made[0], spec_of(made))
    assert (len(layout), layout.grid, layout.extra) == made[2:]


def test_each_attention_has_a_block_whose_input_is_all_that_follows_needs(made: Made) -> None:
    model, spec = made[0], spec_of(made)
    layout = attention_layout(model, spec)
    assert all(layout.blocks)
    assert len(set(layout.blocks)) == len(layout)
    images = images_of(made)
    with torch.no_grad():
        expected = model(images)
        for name in layout.blocks:
            with block_input(model, name) as taken:
                model(images)
            with block_input(model, name, taken[0]):
                assert torch.allclose(model(torch.zeros_like(images)), expected, rtol=1e-4, atol=1e-5)


def test_a_model_whose_attention_lies_in_no_block_of_its_own_has_none() -> None:
    class Skipping(nn.Module):
        """The image goes past the attention, so that its input is not all that follows needs."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = Attention()

        def forward(self, x: Tensor) -> Tensor:
            tokens = nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
            tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
            return self.inner(tokens)[:, 0] + x.mean((2, 3))

    class Attention(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None])[:, 0]

    assert attention_layout(Skipping(), ImageSpec(size=(16, 16))).blocks == ("",)


def test_a_cnn_has_no_attention_layout(tiny_explainee: Explainee) -> None:
    with pytest.raises(ModelError, match="calls no attention"):
        attention_layout(tiny_explainee.model, tiny_explainee.image_spec)


def test_a_pass_whose_last_block_is_shortened_says_the_same(made: Made) -> None:
    model, heads, depth, grid, extra = made
    spec = ImageSpec(size=(grid[0] * 8, grid[1] * 8))
    found = last_block(model, spec, attention_layout(model, spec))
    if type(model).__name__ == "Eva":  # DINOv3, whose rotation wants all tokens
        assert found is None
        return
    assert found is not None
    assert found.tokens == extra
    images = torch.randn(3, 3, *spec.size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        with AttentionTap() as whole:
            expected = model(images)
        with AttentionTap(only={depth - 1}) as tap, found.shortened(model, tap):
            logits = model(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    (rows,) = tap.matrices
    assert rows.shape == (3, heads, extra, extra + grid[0] * grid[1])
    torch.testing.assert_close(rows, whole.matrices[-1][:, :, :extra], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [2, 3])
def test_tokens_that_are_no_grid_of_patches_are_refused(tokens: int) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values = x.flatten(2)[:, :, : tokens * 2].reshape(len(x), 3, tokens, 2)
            return nn.functional.scaled_dot_product_attention(values, values, values).mean((1, 2))

    with pytest.raises(ModelError, match=f"{tokens} tokens are no class token and a grid"):
        attention_layout(Odd(), ImageSpec(size=(16, 48)))


def test_windowed_attention_is_refused() -> None:
    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values = x.reshape(-1, 3, 17, 2)
            return nn.functional.scaled_dot_product_attention(values, values, values).mean((1, 2))

    with pytest.raises(ModelError, match="not between all patches"):
        attention_layout(Windows(), ImageSpec(size=(34, 34)))


# fails: `attention_layout` takes patches for up to 15 registers: 16 tokens for 7 and a grid of 3×3
@pytest.mark.parametrize("side", [4, 7, 8])
def test_a_transformer_without_a_class_token_is_refused(side: int) -> None:
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=side * 8,
        patch_size=8,
        depth=1,
        embed_dim=32,
        num_heads=2,
        class_token=False,
        global_pool="avg",
    ).eval()
    with pytest.raises(ModelError):
        attention_layout(model, ImageSpec(size=(side * 8, side * 8)))


class Pooled(nn.Module):
    """One learned query reads all tokens, as the pooling head of SigLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.query = nn.Parameter(torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0)))
        self.read = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.read(self.query.expand(len(x), -1, -1), tokens, tokens, need_weights=False)[0][:, 0]
        return logits


class Masked(nn.Module):
    """Self-attention in which no token sees the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.read = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        hidden = torch.zeros(16, 16, dtype=torch.bool)
        hidden[:, -1] = True
        logits: Tensor = self.read(tokens, tokens, tokens, attn_mask=hidden, need_weights=False)[0][:, 0]
        return logits


# fails: `_multi_head` ignores key, value and attn_mask
@pytest.mark.parametrize("build", [Pooled, Masked])
def test_attention_that_is_not_plain_self_attention_is_right_or_refused(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        try:
            with AttentionTap():
                found = model(images)
        except ModelError:
            return
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_fast_path_of_an_encoder_layer_is_tapped_as_well() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval().requires_grad_(False)
    tokens = torch.randn(2, 5, 16)
    expected = layer(tokens)
    with torch.no_grad(), AttentionTap() as tap:
        found = layer(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(tap.matrices) == 1


@pytest.mark.parametrize("boolean", [True, False])
def test_a_mask_and_a_scale_are_heeded(boolean: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    mask = torch.rand(5, 5, generator=generator) > 0.3 if boolean else torch.randn(5, 5, generator=generator)
    if boolean:
        mask = mask | torch.eye(5, dtype=torch.bool)
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(query, key, value, attn_mask=mask, scale=0.7)
    with AttentionTap():
        found = attend(query, key, value, attn_mask=mask, scale=0.7)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_causal_attention_is_refused() -> None:
    values = torch.randn(1, 1, 4, 2)
    with pytest.raises(ModelError, match="causal"), AttentionTap():
        torch.nn.functional.scaled_dot_product_attention(values, values, values, is_causal=True)


@pytest.mark.parametrize(("grid", "extra"), [((3, 3), 1), ((2, 5), 1), ((4, 2), 5)])
def test_rollout_is_the_class_row_of_the_product_of_row_normalised_matrices(grid: tuple[int, int], extra: int) -> None:
    tokens = extra + grid[0] * grid[1]
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(2, tokens, tokens, dtype=torch.float64, generator=generator) for _ in range(4)]
    expected = torch.zeros(2, *grid, dtype=torch.float64)
    for image in range(2):
        product = torch.eye(tokens, dtype=torch.float64)
        for layer in layers:
            with_identity = layer[image] + torch.eye(tokens, dtype=torch.float64)
            product = (with_identity / with_identity.sum(-1, keepdim=True)) @ product
        expected[image] = product[0, extra:].reshape(grid)
    found = rollout(layers, grid, extra)
    assert found.shape == (2, *grid)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
