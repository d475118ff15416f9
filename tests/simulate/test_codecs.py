"""Codecs keep shape and order; what they lose grows with the quality number."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.simulate.codecs import Codec, encode, parse_codec, round_trip


def gradient(frames: int, height: int, width: int) -> np.ndarray:
    t, y, x = np.mgrid[0:frames, 0:height, 0:width]
    picture = np.stack([x * 255 // width, y * 255 // height, (x + 3 * y + 5 * t) % 256], -1)
    return picture.astype(np.uint8)


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 5), st.integers(8, 24), st.integers(8, 24))
def test_ffv1_is_lossless(frames: int, height: int, width: int) -> None:
    video = gradient(frames, height, width)
    np.testing.assert_array_equal(round_trip(video, 30, Codec("ffv1")), video)


@pytest.mark.parametrize("name", ["libx264", "mpeg4", "proxy"])
def test_loss_grows_with_the_quality_number(name: str) -> None:
    video = gradient(6, 48, 64)
    losses = []
    for quality in (2, 12, 30):
        back = round_trip(video, 30, Codec(name, quality))  # type: ignore[arg-type]
        assert back.shape == video.shape
        losses.append(float(((back.astype(float) - video) ** 2).mean()))
    assert losses[0] < losses[1] < losses[2]


@settings(deadline=None, max_examples=8)
@given(st.integers(9, 40), st.integers(9, 40))
def test_the_proxy_takes_any_size_and_keeps_a_flat_picture(height: int, width: int) -> None:
    flat = np.full((1, height, width, 3), 120, np.uint8)
    assert abs(round_trip(flat, 30, Codec("proxy", 2)).astype(int) - 120).max() <= 3


def test_metadata_and_time_stamps_reach_the_file() -> None:
    file = io.BytesIO()
    metadata = {"simulated_pulse": "true"}
    encode(iter(gradient(5, 16, 16)), 25, Codec("ffv1"), file, metadata=metadata)
    file.seek(0)
    with av.open(file) as video:
        tags = {key.lower(): value for key, value in video.metadata.items()}
        assert tags["simulated_pulse"] == "true"
        times = [frame.time for frame in video.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(5) / 25, atol=1e-3)


def test_text_form() -> None:
    assert parse_codec("libx264:28") == Codec("libx264", 28)
    assert parse_codec("ffv1").name == "ffv1"
    for bad in ("h266", "libx264:best", ""):
        with pytest.raises(FoveateError, match="codec"):
            parse_codec(bad)


def test_impossible_pictures_are_named() -> None:
    with pytest.raises(FoveateError, match="even"):
        round_trip(gradient(1, 15, 16), 30, Codec("libx264"))
    with pytest.raises(FoveateError, match="no frame"):
        round_trip(gradient(0, 16, 16), 30, Codec("ffv1"))
