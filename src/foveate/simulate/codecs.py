"""What a codec does to a clip, without a file: compress to memory and read back.

``libx264`` and ``mpeg4`` go through PyAV in YUV 4:2:0, as phones and webcams deliver; ``ffv1`` is
lossless RGB. ``proxy`` needs no codec at all: chroma at half resolution and 8x8 DCT quantisation of
every frame alone, the two steps that cost a pulse most.

A small picture loses more than a large one at the same quality: an encoder spends nothing on a
swing of half a code, and 64 pixels leave nothing to average. At 64 pixels crf 0-16 spans the way
from harmless to hopeless that crf 18-30 spans in a phone's full picture.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any, Literal

import av
import cv2
import numpy as np
import numpy.typing as npt
from scipy.fft import dctn, idctn

from foveate.errors import FoveateError

__all__ = ["Codec", "encode", "parse_codec", "round_trip"]

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Codec:
    """A compression.

    Attributes
    ----------
    name
        ``libx264``, ``mpeg4``, ``ffv1`` or ``proxy``.
    quality
        x264: crf 0-51; mpeg4: quantiser 2-31; proxy: luma step in codes; unused by ffv1.
    """

    name: Literal["libx264", "mpeg4", "ffv1", "proxy"]
    quality: float = 23.0


def parse_codec(text: str | Codec) -> Codec:
    """Read ``"libx264:28"``, ``"mpeg4:5"``, ``"ffv1"`` or ``"proxy:8"``."""
    if isinstance(text, Codec):
        return text
    name, _, quality = text.partition(":")
    defaults = {"libx264": 23.0, "mpeg4": 5.0, "ffv1": 0.0, "proxy": 6.0}
    try:
        return Codec(name, float(quality) if quality else defaults[name])  # type: ignore[arg-type]
    except (KeyError, ValueError):
        raise FoveateError(
            f"codec {text!r} is not known; write one of {sorted(defaults)}, with ':quality' if any"
        ) from None


def encode(
    frames: Iterable[Frames],
    fps: float,
    codec: Codec,
    file: Any,
    container: str = "matroska",
    metadata: dict[str, str] | None = None,
) -> None:
    """Write RGB frames ``(H, W, 3)`` to a path or file object with even time stamps.

    Raises
    ------
    FoveateError
        There is no frame, or the picture has an odd side and the codec halves the chroma.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise FoveateError("there is no frame to encode")
    height, width = first.shape[:2]
    if codec.name != "ffv1" and (height % 2 or width % 2):
        raise FoveateError(f"{codec.name} needs even picture sides, got {width} x {height}")
    with av.open(file, "w", format=container) as out:
        out.metadata.update(metadata or {})
        rate = Fraction(fps).limit_denominator(1001)
        options = {"threads": "1"}
        if codec.name == "libx264":
            # The preset nearest to encoders in hardware: no rate-distortion tricks that decide,
            # macroblock by macroblock, whether half a code of pulse is worth a bit.
            options |= {"crf": str(codec.quality), "preset": "ultrafast"}
        stream: Any = out.add_stream(codec.name, rate=rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "bgr0" if codec.name == "ffv1" else "yuv420p"
        if codec.name == "mpeg4":
            stream.codec_context.qmin = stream.codec_context.qmax = round(codec.quality)
        for index, picture in enumerate(chain([first], frames)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = index
            frame.time_base = 1 / rate
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def round_trip(frames: Frames, fps: float, codec: Codec) -> Frames:
    """Compress and decompress ``(T, H, W, 3)`` RGB frames in memory; same shape."""
    if codec.name == "proxy":
        return np.stack([_proxy(frame, codec.quality) for frame in frames])
    file = io.BytesIO()
    encode(frames, fps, codec, file)
    file.seek(0)
    with av.open(file) as source:
        decoded = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    if len(decoded) != len(frames):
        raise FoveateError(f"{codec.name} returned {len(decoded)} of {len(frames)} frames")
    return np.stack(decoded)


def _proxy(frame: Frames, step: float) -> Frames:
    height, width = frame.shape[:2]
    planes = cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb).astype(np.float32)
    for channel in range(3):
        plane = planes[..., channel]
        if channel:
            plane = cv2.resize(plane, ((width + 1) // 2, (height + 1) // 2), None, 0, 0, 3)
        h, w = plane.shape
        padded = np.pad(plane, ((0, -h % 8), (0, -w % 8)), mode="edge")
        blocks = padded.reshape(padded.shape[0] // 8, 8, -1, 8).swapaxes(1, 2)
        # Coarser for higher frequencies, as in the JPEG tables.
        steps = (
            step * (1 + 0.6 * np.add.outer(np.arange(8), np.arange(8))) * (1.5 if channel else 1)
        )
        spectrum = dctn(blocks, axes=(2, 3), norm="ortho")
        blocks = idctn(np.round(spectrum / steps) * steps, axes=(2, 3), norm="ortho")
        plane = blocks.swapaxes(1, 2).reshape(padded.shape)[:h, :w].astype(np.float32)
        planes[..., channel] = plane if not channel else cv2.resize(plane, (width, height))
    return np.asarray(
        cv2.cvtColor(planes.round().clip(0, 255).astype(np.uint8), cv2.COLOR_YCrCb2RGB)
    )
