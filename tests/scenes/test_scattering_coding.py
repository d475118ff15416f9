"""The coding against a scalar reference, the authors' sample, and its inverse.

Lines of the specification's checklist: "phi" (places, layout, one channel), "exact inverse".
"""

from __future__ import annotations

import cmath

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.scenes.scattering_coding import PolarimetricScatteringCoding, psc_decode, psc_encode

NUMBERS = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1e-38, -1e-38])
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


def reference(m: np.ndarray) -> np.ndarray:
    """Pixel by pixel and entry by entry, in plain Python: (H, W, k, k) -> (2k H, 2k W)."""
    height, width, k, _ = m.shape
    picture = np.zeros((2 * k * height, 2 * k * width), np.float32)
    for h in range(height):
        for w in range(width):
            for i in range(k):
                for j in range(k):
                    top, left = 2 * (h * k + i), 2 * (w * k + j)
                    z = m[h, w, i, j]
                    for column, value in enumerate((float(z.real), float(z.imag))):
                        row = 0 if value > 0 else 1  # as the authors' code
                        picture[top + row, left + column] = abs(value)
    return picture


@st.composite
def scenes(draw):
    """Complex (H, W, k, k) with zeros, pure real and pure imaginary entries among them."""
    height, width, k = draw(SHAPES)
    n = height * width * k * k
    real, imag = (np.array(draw(st.lists(NUMBERS, min_size=n, max_size=n))) for _ in range(2))
    keep = np.array(draw(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=n, max_size=n)))
    z = np.where(keep & 1, real, 0) + 1j * np.where(keep & 2, imag, 0)
    return z.reshape(height, width, k, k).astype(np.complex64)


@pytest.mark.parametrize(
    ("z", "block"),
    [
        (0.1873 + 0.1622j, [[0.1873, 0.1622], [0, 0]]),
        (-1.9330 + 0.3112j, [[0, 0.3112], [1.9330, 0]]),
        (0, [[0, 0], [0, 0]]),
    ],
)
def test_phi_of_the_authors_sample(z, block):
    """Checklist: real in column 1, imaginary in 2, positive in row 1, |negative| in row 2."""
    assert torch.equal(psc_encode(torch.tensor([[z]], dtype=torch.complex64)), torch.tensor(block))


def test_four_quadrants_keep_the_layout_of_the_matrix():
    """Checklist: matrix layout kept; HH > 0 > ..., the authors' second sample."""
    a, b, c, d, e, f, g, h = 1.0, 2.0, -3.0, -4.0, 5.0, -6.0, -7.0, 8.0
    s = torch.tensor([[complex(a, b), complex(c, d)], [complex(e, f), complex(g, h)]])
    assert psc_encode(s).tolist() == [
        [a, b, 0, 0],
        [0, 0, 3, 4],
        [e, 0, 0, h],
        [0, 6, 7, 0],
    ]


@given(scenes())
@settings(deadline=None, max_examples=60)
def test_encoding_is_the_scalar_reference_and_decodes_exactly(m):
    """Checklist: exact inverse on random complex input, incl. zeros and pure real/imaginary."""
    height, width, k, _ = m.shape
    x = torch.from_numpy(m)
    picture = psc_encode(x)
    assert picture.shape == (2 * k * height, 2 * k * width)
    assert np.array_equal(picture.numpy(), reference(m))
    assert float(picture.min()) >= 0
    assert int((picture == 0).sum()) * 2 >= picture.numel(), "half of it is zero"
    for layout in ("image", "channels"):
        assert torch.equal(psc_decode(psc_encode(x, layout), k, layout), x)
    channels = psc_encode(x, "channels")
    for h, w in np.ndindex(height, width):
        block = picture[2 * k * h : 2 * k * (h + 1), 2 * k * w : 2 * k * (w + 1)]
        assert torch.equal(channels[:, h, w], block.flatten())


def test_a_scene_becomes_one_picture_and_batches_stay_apart():
    """Checklist: output a 4H x 4W single-channel image, not 16 channels."""
    m = torch.randn(2, 3, 5, 7, 2, 2, dtype=torch.complex64)
    assert psc_encode(m).shape == (2, 3, 20, 28)
    assert psc_encode(m, "channels").shape == (2, 3, 16, 5, 7)
    for at in np.ndindex(2, 3):
        assert torch.equal(psc_encode(m)[at], psc_encode(m[at]))
        assert torch.equal(psc_encode(m, "channels")[at], psc_encode(m[at], "channels"))
    layer = PolarimetricScatteringCoding()
    assert not list(layer.parameters())
    assert layer(m[0]).shape == (3, 1, 20, 28)
    assert torch.equal(layer(m[0])[:, 0], psc_encode(m[0]))
    assert PolarimetricScatteringCoding("channels")(m[0]).shape == (3, 16, 5, 7)
    assert psc_encode(torch.randn(4, 6, 3, 3, dtype=torch.complex64)).shape == (24, 36)
    assert "channels" in repr(PolarimetricScatteringCoding("channels"))


def test_double_precision_and_gradients_pass():
    m = torch.randn(2, 2, 2, 2, dtype=torch.complex128, requires_grad=True)
    assert psc_encode(m).dtype == torch.float64
    assert torch.autograd.gradcheck(psc_encode, (m,))
    assert torch.autograd.gradcheck(lambda x: torch.view_as_real(psc_decode(psc_encode(x))), (m,))


def test_phase_is_kept():
    angles = torch.arange(16) * (cmath.pi / 8) + 0.1
    s = torch.polar(torch.ones(16), angles).reshape(2, 2, 2, 2)
    assert torch.allclose(psc_decode(psc_encode(s)).angle(), s.angle())


def test_bad_input_is_named():
    good = torch.randn(3, 3, 2, 2, dtype=torch.complex64)
    for bad, word in (
        (good.real, "complex"),
        (good[0], r"\(3, 2, 2\)"),
        (good[..., :1], r"\(3, 3, 2, 1\)"),
        (good[:0], "empty"),
        (good / 0, "NaN"),
    ):
        with pytest.raises(FoveateError, match=word) as error:
            psc_encode(bad)
        assert "\n" not in str(error.value)
    for call, word in (
        (lambda: psc_encode(good, "rows"), "image or channels"),
        (lambda: PolarimetricScatteringCoding("rows"), "image or channels"),
        (lambda: PolarimetricScatteringCoding()(good), r"\(B, H, W, k, k\)"),
        (lambda: psc_decode(torch.zeros(4, 6), 2), "4 H"),
        (lambda: psc_decode(torch.zeros(8, 3, 3), 2, "channels"), "16"),
        (lambda: psc_decode(torch.zeros(0, 4), 2), "not empty"),
        (lambda: psc_decode(good), "real"),
        (lambda: psc_decode(torch.zeros(4, 4), 0), "at least 1"),
    ):
        with pytest.raises(FoveateError, match=word):
            call()
