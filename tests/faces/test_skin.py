"""Which pixels count as skin."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from foveate.faces.skin import FACE_OVAL, HOLES, REGIONS, mean_skin_rgb, regions
from foveate.faces.track import Track

SKIN, EYE, WALL = (200, 140, 110), (20, 40, 60), (0, 255, 0)


def mesh(centre: tuple[float, float], radius: float) -> np.ndarray:
    """478 points: oval on a circle, each hole on a small circle of its own, the rest in between."""
    points = np.tile(np.array([*centre, 0.0], dtype=np.float32), (478, 1))

    def ring(indices: tuple[int, ...], x: float, y: float, r: float) -> None:
        angle = np.linspace(0, 2 * np.pi, len(indices), endpoint=False)
        points[list(indices), 0] = centre[0] + radius * (x + r * np.sin(angle))
        points[list(indices), 1] = centre[1] + radius * (y - r * np.cos(angle))

    ring(FACE_OVAL, 0, 0, 1)
    for hole, (x, y) in zip(
        HOLES, [(-0.4, -0.2), (0.4, -0.2), (-0.4, -0.5), (0.4, -0.5), (0, 0.5)], strict=True
    ):
        ring(hole, x, y, 0.14)
    return points


def picture(points: np.ndarray, size: tuple[int, int] = (640, 480), grow: float = 0) -> np.ndarray:
    """The mesh painted by Pillow: wall, skin within the oval, another colour in the holes."""
    image = Image.new("RGB", size, WALL)
    draw = ImageDraw.Draw(image)
    draw.polygon([tuple(p) for p in points[list(FACE_OVAL), :2]], fill=SKIN)
    for hole in HOLES:
        polygon = [tuple(p) for p in points[list(hole), :2]]
        draw.polygon(polygon, fill=EYE)
        if grow:
            draw.line([*polygon, polygon[0]], fill=EYE, width=int(grow))
    return np.asarray(image)


def box_of(points: np.ndarray) -> tuple[float, float, float, float]:
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    return (float(low[0]), float(low[1]), *(float(v) for v in high - low))


@pytest.mark.parametrize("radius", [20, 60, 125, 230])
def test_the_mean_is_of_skin_without_eyes_brows_mouth_and_wall(radius: float) -> None:
    points = mesh((320, 240), radius)
    got = mean_skin_rgb(picture(points), Track(0, box_of(points), points))
    edge = 4 / radius * 255  # the contours of two rasterisers differ by up to a pixel
    np.testing.assert_allclose(got, SKIN, atol=edge)
    # With the holes in, the mean would be further off than the contour explains.
    share = 5 * 0.14**2
    plain = np.array(SKIN) * (1 - share) + np.array(EYE) * share
    assert np.abs(got - SKIN).max() < np.abs(plain - SKIN).max()


def test_a_large_face_gives_the_same_mean_with_a_stride() -> None:
    points = mesh((320, 240), 230)
    image = picture(points)
    track = Track(0, box_of(points), points)
    np.testing.assert_allclose(
        mean_skin_rgb(image, track), mean_skin_rgb(image, track, max_side=999), atol=1
    )


def test_a_detected_box_gives_its_ellipse_and_a_given_box_all_of_it() -> None:
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    y, x = np.mgrid[:100, :200] + 0.5
    inside = ((x - 80) / 60) ** 2 + ((y - 50) / 40) ** 2 <= 1
    image[inside] = SKIN
    box = (20.0, 10.0, 120.0, 80.0)
    detected = mean_skin_rgb(image, Track(0, box, source="detected"))
    given_box = mean_skin_rgb(image, Track(0, box, source="given"))
    np.testing.assert_allclose(detected, SKIN, rtol=0.03)
    np.testing.assert_allclose(given_box, np.array(SKIN) * math.pi / 4, rtol=0.01)
    np.testing.assert_allclose(given_box, image[10:90, 20:140].reshape(-1, 3).mean(axis=0))


def test_a_face_that_reaches_over_the_edge_counts_with_what_is_visible() -> None:
    points = mesh((10, 470), 100)  # lower left corner
    got = mean_skin_rgb(picture(points), Track(0, box_of(points), points))
    np.testing.assert_allclose(got, SKIN, atol=10)


@pytest.mark.parametrize(
    "box",
    [
        (-300.0, 0.0, 100.0, 100.0),
        (700.0, 500.0, 100.0, 100.0),
        (10.0, 10.0, 0.0, 50.0),
        (10.0, 10.0, -20.0, 50.0),
        (10.0, 10.0, 3.0, 3.0),
        (math.nan, 0.0, 10.0, 10.0),
        (0.0, 0.0, math.inf, 10.0),
    ],
)
@pytest.mark.parametrize("source", ["detected", "given"])
def test_no_skin_in_view_is_nan(box: tuple[float, float, float, float], source: str) -> None:
    image = np.full((480, 640, 3), 99, dtype=np.uint8)
    assert np.isnan(mean_skin_rgb(image, Track(0, box, source=source))).all()  # type: ignore[arg-type]


def test_a_mesh_outside_or_of_no_numbers_is_nan() -> None:
    image = np.full((480, 640, 3), 99, dtype=np.uint8)
    far = mesh((5000, 5000), 100)
    assert np.isnan(mean_skin_rgb(image, Track(0, (0, 0, 1, 1), far))).all()
    broken = np.full((478, 3), np.nan, dtype=np.float32)
    assert np.isnan(mean_skin_rgb(image, Track(0, (0, 0, 1, 1), broken))).all()


@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1.0, 50.0, 500.0, 1e5, 1e9]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
@settings(deadline=None, max_examples=60)
def test_whatever_the_landmarks_the_mean_is_a_colour_or_nan(
    seed: int, scale: float, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    points = (rng.standard_normal((478, 3)) * scale).astype(np.float32)
    box = tuple(rng.standard_normal(4) * scale)
    for track in (Track(0, box, points), Track(0, box), Track(0, box, source="given")):
        got = mean_skin_rgb(image, track)
        assert got.shape == (3,)
        assert np.isnan(got).all() or ((got >= 0) & (got <= 255)).all()


def test_regions_are_outlines_of_forehead_and_cheeks() -> None:
    points = mesh((320, 240), 100)
    found = regions(Track(0, box_of(points), points))
    assert set(found) == {"forehead", "left_cheek", "right_cheek"}
    for name, outline in found.items():
        np.testing.assert_array_equal(outline, points[list(REGIONS[name]), :2])
    assert regions(Track(0, (0, 0, 10, 10))) == {}


def test_index_lists_are_those_of_the_mediapipe_mesh() -> None:
    vision = pytest.importorskip("mediapipe.tasks.python.vision")
    known = vision.FaceLandmarksConnections

    def points(edges: list) -> set[int]:
        return {v for e in edges for v in (e.start, e.end)}

    oval = {frozenset((e.start, e.end)) for e in known.FACE_LANDMARKS_FACE_OVAL}
    ours = {frozenset(pair) for pair in zip(FACE_OVAL, FACE_OVAL[1:] + FACE_OVAL[:1], strict=True)}
    assert ours == oval  # the same contour, in order
    names = ("RIGHT_EYE", "LEFT_EYE", "RIGHT_EYEBROW", "LEFT_EYEBROW")
    for hole, name in zip(HOLES[:4], names, strict=True):
        assert set(hole) == points(getattr(known, f"FACE_LANDMARKS_{name}"))
    assert set(HOLES[4]) < points(known.FACE_LANDMARKS_LIPS)


def test_forehead_and_cheeks_lie_where_they_should(shared_data: Path) -> None:
    pytest.importorskip("mediapipe")
    from mediapipe import Image as MediaPipeImage
    from mediapipe import ImageFormat
    from mediapipe.tasks.python import BaseOptions, vision

    picture_file = shared_data / "faces" / "pyfeat" / "single_face.jpg"
    image = np.ascontiguousarray(np.asarray(Image.open(picture_file).convert("RGB")))
    model = str(shared_data / "models" / "face_landmarker.task")
    options = vision.FaceLandmarkerOptions(base_options=BaseOptions(model_asset_path=model))
    with vision.FaceLandmarker.create_from_options(options) as landmarker:
        found = landmarker.detect(MediaPipeImage(image_format=ImageFormat.SRGB, data=image))
    scale = (image.shape[1], image.shape[0])
    points = np.array([(p.x * scale[0], p.y * scale[1], 0) for p in found.face_landmarks[0]])
    outlines = regions(Track(0, box_of(points), points.astype(np.float32)))
    centres = {name: outline.mean(axis=0) for name, outline in outlines.items()}
    eyes = points[[33, 133, 362, 263], 1].mean()
    mouth = points[[13, 14], 1].mean()
    assert centres["forehead"][1] < eyes
    assert eyes < centres["left_cheek"][1] < mouth
    assert eyes < centres["right_cheek"][1] < mouth
    assert centres["right_cheek"][0] < points[4, 0] < centres["left_cheek"][0]  # the nose between
    got = mean_skin_rgb(image, Track(0, box_of(points), points.astype(np.float32)))
    assert got[0] > got[1] > got[2] > 0  # skin is reddish
