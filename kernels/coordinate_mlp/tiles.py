"""Parts of the fused coordinate networks that forward and backward pass share: tiles of points by values."""

import triton
import triton.language as tl

__all__ = ["activate", "bottom_of", "climb", "corner", "encode", "matrix", "product", "row", "slope_of", "wave"]


@triton.jit
def activate(state, SMOOTH: tl.constexpr):
    """SiLU or ReLU."""
    if SMOOTH:
        return state * tl.sigmoid(state)
    return tl.maximum(state, 0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def slope_of(state, SMOOTH: tl.constexpr):
    """The derivative of `activate`."""
    if SMOOTH:
        part = tl.sigmoid(state)
        return part * (1 + state * (1 - part))
    return (state > 0).to(tl.float32)


@triton.jit
def product(left, right, EXACT: tl.constexpr):
    """On tensor cores, in the precision of the right factor, summed in single."""
    if EXACT:
        return tl.dot(left, right, input_precision="ieee")
    return tl.dot(left.to(right.dtype), right)


@triton.jit
def row(p_values, SIZE, BLOCK: tl.constexpr):
    """A vector of so many values, zeros behind them."""
    o_value = tl.arange(0, BLOCK)
    return tl.load(p_values + o_value, o_value < SIZE, 0).to(tl.float32)


@triton.jit
def matrix(p_values, ROWS, COLUMNS, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """A row-major matrix of so many values, zeros beside them."""
    o_row, o_column = tl.arange(0, BLOCK_R)[:, None], tl.arange(0, BLOCK_C)[None, :]
    return tl.load(p_values + o_row * COLUMNS + o_column, (o_row < ROWS) & (o_column < COLUMNS), 0)


@triton.jit
def encode(p_frequencies, o_point, height, width, FREQUENCIES, BLOCK_F: tl.constexpr):
    """Coordinates made in registers: x and y of the points (P,), sines and cosines of their turns (P, F)."""
    x = (2 * (o_point % width) + 1).to(tl.float32) / width - 1
    y = (2 * (o_point // width) + 1).to(tl.float32) / height - 1
    o_frequency = tl.arange(0, BLOCK_F)
    inside = o_frequency < FREQUENCIES
    of_x = tl.load(p_frequencies + 2 * o_frequency, inside, 0).to(tl.float32)
    of_y = tl.load(p_frequencies + 2 * o_frequency + 1, inside, 0).to(tl.float32)
    sine, cosine = wave(x[:, None] * of_x[None, :] + y[:, None] * of_y[None, :])
    return x, y, sine, cosine


@triton.jit
def wave(turns):
    """Sine and cosine of 2π × turns. Whole and quarter turns are taken away exactly, and on the eighth that is left
    both are polynomials (Taylor, to 1e-8); the library's need memory for angles of any size.
    """
    quarters = tl.floor(4 * turns + 0.5)
    angle = 6.283185307179586 * (turns - 0.25 * quarters)
    square = angle * angle
    sine = -1.9841269841269841e-4 + square * 2.7557319223985893e-6
    sine = 8.333333333333333e-3 + square * sine
    sine = angle + angle * square * (-0.16666666666666666 + square * sine)
    cosine = -1.388888888888889e-3 + square * (2.48015873015873e-5 - square * 2.755731922398589e-7)
    cosine = 1 - 0.5 * square + square * square * (0.041666666666666664 + square * cosine)
    quadrant = quarters - 4 * tl.floor(quarters / 4)
    turned = (quadrant == 1) | (quadrant == 3)
    swapped, kept = tl.where(turned, cosine, sine), tl.where(turned, sine, cosine)
    return tl.where(quadrant >= 2, -swapped, swapped), tl.where((quadrant == 1) | (quadrant == 2), -kept, kept)


@triton.jit
def corner(x, y, rows, columns, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    """One of the four places of a feature map next to the points, by its number, and how much it counts there."""
    across = tl.minimum(tl.maximum((x + 1) * columns / 2 - 0.5, 0), columns - 1)
    along = tl.minimum(tl.maximum((y + 1) * rows / 2 - 0.5, 0), rows - 1)
    left, top = tl.floor(across), tl.floor(along)
    part = (across - left if RIGHT else 1 - across + left) * (along - top if DOWN else 1 - along + top)
    column = tl.minimum(left.to(tl.int32) + RIGHT, columns - 1)
    line = tl.minimum(top.to(tl.int32) + DOWN, rows - 1)
    return line * columns + column, part


@triton.jit
def bottom_of(
    sine, cosine, x, y, p_first, p_shift, p_features, inside, rows, columns, FREQUENCIES, VALUES, LOCAL: tl.constexpr,
    EXACT: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The state of the first layer (P, D), without what is added for an area."""
    b_first = matrix(p_first, FREQUENCIES, VALUES, BLOCK_F, BLOCK_D)
    state = product(sine, b_first, EXACT)
    b_first = matrix(p_first + FREQUENCIES * VALUES, FREQUENCIES, VALUES, BLOCK_F, BLOCK_D)
    state += product(cosine, b_first, EXACT) + row(p_shift, VALUES, BLOCK_D)[None, :]
    if LOCAL:
        for which in tl.static_range(4):
            place, share = corner(x, y, rows, columns, which // 2, which % 2)
            at = place[:, None] * VALUES + tl.arange(0, BLOCK_D)[None, :]
            state += share[:, None] * tl.load(p_features + at, inside, 0).to(tl.float32)
    return state


@triton.jit
def climb(
    state, p_weights, p_shift, VALUES, FROM: tl.constexpr, TO: tl.constexpr, SMOOTH: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """From the state of one layer to that of another one, without what is added for an area."""
    for layer in tl.static_range(FROM, TO):
        b_weights = matrix(p_weights + layer * VALUES * VALUES, VALUES, VALUES, BLOCK_D, BLOCK_D)
        state = product(activate(state, SMOOTH), b_weights, EXACT)
        state += row(p_shift + (layer + 1) * VALUES, VALUES, BLOCK_D)[None, :]
    return state
