"""MediaPipe on real faces, and the 68-point table against human annotation."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.faces.landmarks import IBUG68, FaceLandmarker, ibug68
from foveate.nn import model_files


@pytest.fixture(scope="module")
def model():
    path = model_files.find("face_landmarker")
    if path is None:
        pytest.skip("face_landmarker.task is not here; run `foveate models fetch`")
    return path


def test_68_points_agree_with_the_annotation_of_helen(model, shared_data):
    import cv2

    helen = np.load(shared_data / "faces/helen68_96.npz")
    crops, truth = helen["x_test"][::6], helen["lm_test"][::6]  # 55 held-out faces
    errors = []
    with FaceLandmarker(model, max_people=1, mode="image") as landmarker:
        for crop, points in zip(crops, truth, strict=True):
            big = cv2.resize(crop.transpose(1, 2, 0), (288, 288), interpolation=cv2.INTER_CUBIC)
            big = cv2.copyMakeBorder(big, 60, 60, 60, 60, cv2.BORDER_REPLICATE)
            (face,) = landmarker.detect(big)
            found = (ibug68(face.landmarks) - 60) / 3
            eyes = np.linalg.norm(points[36] - points[45])
            errors.append(np.linalg.norm(found - points, axis=1).mean() / eyes)
    assert len(errors) == 55
    assert np.mean(errors) < 0.05


def test_the_table_is_left_right_symmetric_like_the_ibug_scheme(model, shared_data):
    """Mirroring the picture must swap left and right points, up to the landmarker's noise."""
    import cv2

    image = cv2.imread(str(shared_data / "faces/pyfeat/single_face.jpg"))[:, :, ::-1].copy()
    mirror = [
        *(*range(16, -1, -1), *range(26, 16, -1)),
        *(27, 28, 29, 30, 35, 34, 33, 32, 31),
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
        *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),
        *(64, 63, 62, 61, 60, 67, 66, 65),
    ]
    with FaceLandmarker(model, mode="image") as landmarker:
        plain = ibug68(landmarker.detect(image)[0].landmarks)
        flipped = ibug68(landmarker.detect(image[:, ::-1].copy())[0].landmarks)
    flipped[:, 0] = image.shape[1] - 1 - flipped[:, 0]
    eyes = np.linalg.norm(plain[36] - plain[45])
    assert np.linalg.norm(plain - flipped[mirror], axis=1).mean() < 0.04 * eyes


def test_counts_of_faces_in_real_pictures(model, shared_data):
    import cv2

    with FaceLandmarker(model, max_people=8, mode="image", blendshapes=True) as landmarker:
        many = cv2.imread(str(shared_data / "faces/pyfeat/multi_face.jpg"))[:, :, ::-1].copy()
        faces = landmarker.detect(many)
        # Five people by eye; MediaPipe's short-range detector misses faces below a tenth of the
        # picture's width, so fewer may be found, but each must be one of the five and once only.
        people = np.array([(260, 125), (368, 310), (476, 275), (584, 370), (736, 365)])
        centres = np.array([f.landmarks[:, :2].mean(axis=0) for f in faces])
        gaps = np.linalg.norm(centres[:, None] - people, axis=-1)
        assert len(faces) >= 2
        assert (gaps.min(axis=1) < 45).all()
        assert len(set(gaps.argmin(axis=1))) == len(faces)
        assert all(f.landmarks.shape == (478, 3) and f.blendshapes.shape == (52,) for f in faces)
        assert landmarker.detect(np.full((120, 160, 3), 90, np.uint8)) == []
        large = cv2.resize(many, None, fx=3, fy=3)  # reduced inside, answered in its own pixels
        again = np.array([f.landmarks[:, :2].mean(axis=0) for f in landmarker.detect(large)]) / 3
        assert (np.linalg.norm(again[:, None] - people, axis=-1).min(axis=1) < 45).all()


def test_a_file_that_is_no_model_is_one_sentence(tmp_path):
    bad = tmp_path / "face_landmarker.task"
    bad.write_bytes(b"not a model" * 100)
    with pytest.raises(FoveateError, match=r"not a usable face landmarker model.*models fetch"):
        FaceLandmarker(bad)


def test_meshes_of_the_wrong_shape_are_refused():
    assert len(IBUG68) == len(set(IBUG68)) == 68
    with pytest.raises(FoveateError, match=r"\(68, 2\).*expected a mesh of \(478, 3\)"):
        ibug68(np.zeros((68, 2), np.float32))
