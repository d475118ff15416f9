"""Loaders of UBFC-rPPG, PURE and MMPD against miniatures written by a second implementation."""

from __future__ import annotations

import json
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foveate.datasets import matlab, rppg
from foveate.datasets.rppg import MMPD, PURE, UBFCrPPG
from foveate.errors import FoveateError
from make_miniatures import rppg as mini

EPOCH = mini.PURE_EPOCH_NS
TIMES = np.arange(60) / 30

# The 42 subject numbers of DATASET_2, as users of the set list them.
UBFC_NUMBERS = [1, 3, 4, 5, *range(8, 19), 20, *range(22, 28), *range(30, 50)]


def fft_bpm(wave: np.ndarray, rate: float) -> float:
    """Independent estimator: highest line of the zero-padded spectrum."""
    size = 1 << 14
    power = np.abs(np.fft.rfft((wave - wave.mean()) * np.hanning(wave.size), size)) ** 2
    bpm = np.fft.rfftfreq(size, 1 / rate) * 60
    band = (bpm > 40) & (bpm < 180)
    return float(bpm[band][np.argmax(power[band])])


def stamps(times_s: np.ndarray, offset_s: float = 0.0) -> list[int]:
    return [EPOCH + round((float(t) + offset_s) * 1e9) for t in times_s]


# ------------------------------------------------------------------------------ UBFC-rPPG


def ubfc_2(root: Path, subject: int = 1, **kwargs: object) -> Path:
    folder = root / f"subject{subject}"
    mini.write_ubfc_2(folder, mini.pulse(TIMES, 72), TIMES, **kwargs)  # type: ignore[arg-type]
    return folder


def test_ubfc_reads_the_three_lines_in_scientific_notation(tmp_path: Path) -> None:
    folder = tmp_path / "subject3"
    mini.write_avi(folder / "vid.avi", 3)
    (folder / "ground_truth.txt").write_text(
        "  -1.2500000e+00   3.0000000e+00  2.5e-1\n 7.1e+01 7.1e+01 7.1e+01\n"
        "  0.0000000e+00   3.4000000e-02   6.9000000e-02\n"
    )
    clip = UBFCrPPG(tmp_path, zscore=False)[0]
    np.testing.assert_array_equal(clip.bvp, np.float32([-1.25, 3.0, 0.25]))
    np.testing.assert_array_equal(clip.times_s, [0.0, 0.034, 0.069])
    assert clip.fps == pytest.approx(2 / 0.069)
    assert clip.meta["subject"] == 3
    assert clip.meta["part"] == 2


def test_ubfc_pictures_are_exact_and_in_order(tmp_path: Path) -> None:
    ubfc_2(tmp_path)
    dataset = UBFCrPPG(tmp_path)
    frames = dataset[0].frames
    assert frames.shape == (60, mini.HEIGHT, mini.WIDTH, 3)
    assert frames.dtype == np.uint8
    for number, image in enumerate(frames):
        np.testing.assert_array_equal(image, mini.picture(number))
    streamed = list(dataset.frames(0))
    assert [mini.number_of(frame.image) for frame in streamed] == list(range(60))
    np.testing.assert_allclose([frame.time_s for frame in streamed], TIMES, atol=1e-6)


@settings(deadline=None, max_examples=6)
@given(
    subjects=st.lists(st.sampled_from(UBFC_NUMBERS), min_size=1, max_size=3, unique=True),
    period_ms=st.integers(20, 70),
    nested=st.booleans(),
)
def test_ubfc_time_base_is_the_labels_not_the_containers(
    subjects: list[int], period_ms: int, nested: bool
) -> None:
    times = np.arange(12) * period_ms / 1000
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for subject in subjects:
            part = root / "DATASET_2" if nested else root
            mini.write_ubfc_2(part / f"subject{subject}", np.arange(12.0), times)
        dataset = UBFCrPPG(root, zscore=False)
        assert dataset.subjects == tuple(sorted(subjects))
        for clip in dataset:
            assert clip.fps == pytest.approx(1000 / period_ms, rel=1e-5)
            np.testing.assert_allclose(clip.times_s, times, atol=1e-6)
            np.testing.assert_array_equal(clip.bvp, np.arange(12, dtype=np.float32))


@settings(deadline=None, max_examples=6)
@given(
    fps=st.sampled_from([Fraction(15), Fraction(25), Fraction(30), Fraction(60)]),
    start_ms=st.integers(0, 680),  # 45 frames at 60 fps end at 733 ms
    label_rate=st.integers(50, 70),
)
def test_ubfc_dataset_1_is_interpolated_to_frame_times(
    fps: Fraction, start_ms: int, label_rate: int
) -> None:
    label_ms = start_ms + np.arange(label_rate + 1) * 1000 / label_rate
    frame_ms = np.arange(45) * 1000 / float(fps)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        # A label that grows with time in a straight line is interpolated without error.
        mini.write_ubfc_1(root / "after-exercise", 3 * label_ms, label_ms, 45, fps, "vid-12.avi")
        clip = UBFCrPPG(root, zscore=False)[0]
        numbers = [mini.number_of(frame.image) for frame in clip]
    slack = 1000 / float(fps)
    covered = [
        number
        for number, ms in enumerate(frame_ms)
        if label_ms[0] - slack - 1e-3 <= ms <= label_ms[-1] + slack + 1e-3
    ]
    assert set(numbers) <= set(covered)
    assert len(covered) - len(numbers) <= 2  # a frame on the very edge may fall either way
    inside = [n for n in numbers if label_ms[0] <= frame_ms[n] <= label_ms[-1]]
    expected = {n: 3 * frame_ms[n] for n in inside}
    found = dict(zip(numbers, clip.bvp.tolist(), strict=True))
    for number, value in expected.items():
        assert found[number] == pytest.approx(value, rel=1e-4, abs=0.05)
    assert clip.meta["subject"] == "after-exercise"
    assert clip.meta["part"] == 1


def test_ubfc_split_is_30_and_12_and_shares_no_subject(tmp_path: Path) -> None:
    for number in UBFC_NUMBERS:
        folder = tmp_path / "DATASET_2" / f"subject{number}"
        folder.mkdir(parents=True)
        (folder / "vid.avi").touch()
        (folder / "ground_truth.txt").touch()
    folder = tmp_path / "DATASET_1" / "5-gt"
    folder.mkdir(parents=True)
    (folder / "vid.avi").touch()
    (folder / "gtdump.xmp").touch()
    train, test = UBFCrPPG(tmp_path, "train"), UBFCrPPG(tmp_path, "test")
    assert (len(train), len(test)) == (30, 12)
    assert sorted(train.subjects + test.subjects) == UBFC_NUMBERS  # and nothing of DATASET_1
    assert len(UBFCrPPG(tmp_path)) == 43


def test_ubfc_tells_what_it_skipped(tmp_path: Path) -> None:
    ubfc_2(tmp_path / "DATASET_2", 1)
    (tmp_path / "DATASET_1" / "10-gt").mkdir(parents=True)
    (tmp_path / "DATASET_1" / "10-gt" / "gtdump.xmp").touch()
    (tmp_path / "copy of one").mkdir()
    (tmp_path / "copy of one" / "ground_truth.txt").touch()
    ubfc_2(tmp_path, 1)
    dataset = UBFCrPPG(tmp_path)
    assert len(dataset) == 1
    assert len(dataset.skipped) == 3
    assert any("10-gt has 0 videos" in sentence for sentence in dataset.skipped)
    assert any("copy of one is not called subject" in sentence for sentence in dataset.skipped)
    assert any("repeats subject 1" in sentence for sentence in dataset.skipped)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 2 3\n70 70 70\n", r"has 2 lines where 3"),
        ("", r"has 1 lines where 3"),
        ("1 2 x3\n70 70 70\n0 1 2\n", r"line 1 of .*ground_truth.txt, value 3: 'x3'"),
        ("1 2 3\n70 nan 70\n0 1 2\n", r"line 2 of .*value 2: 'nan'"),
        ("1 2 3\n70 70 70\n0 1\n", r"line 3 of .* has 2 times for 3 pulse values"),
        ("1 2 3\n70 70 70\n0 2 1\n", r"time runs backwards .* line 3, value 3"),
        ("1 2 1e999\n70 70 70\n0 1 2\n", r"line 1 .*'1e999'"),
        ("5 5 5\n70 70 70\n0 1 2\n", r"constant \(sensor off\)"),
        ("1\n70\n0\n", r"covers no two frames"),
    ],
)
def test_ubfc_damaged_label_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    folder = tmp_path / "subject1"
    mini.write_avi(folder / "vid.avi", 3)
    (folder / "ground_truth.txt").write_text(text)
    with pytest.raises(FoveateError, match=sentence) as caught:
        UBFCrPPG(tmp_path)[0]
    assert "\n" not in str(caught.value)


def test_ubfc_dataset_1_damaged_rows_name_the_line(tmp_path: Path) -> None:
    mini.write_ubfc_1(tmp_path / "5-gt", [1, 2, 3], [0, 16, 32], 3)
    label = tmp_path / "5-gt" / "gtdump.xmp"
    label.write_text("0,70,98,1\n16,70,98\n")
    with pytest.raises(FoveateError, match=r"line 2 of .*gtdump\.xmp has 3 columns"):
        UBFCrPPG(tmp_path)[0]
    label.write_text("0,70,98,1\n\n16,70,98,red\n")
    with pytest.raises(FoveateError, match=r"line 3 of .*value 4: 'red'"):
        UBFCrPPG(tmp_path)[0]
    label.write_text("")
    with pytest.raises(FoveateError, match="covers no two frames"):
        UBFCrPPG(tmp_path)[0]


def test_ubfc_video_that_does_not_fit_its_label(tmp_path: Path) -> None:
    folder = ubfc_2(tmp_path, frames=20)  # 60 values: more than a second apart
    with pytest.raises(FoveateError, match=r"has 20 frames but .* has 60 values"):
        UBFCrPPG(tmp_path)[0]
    mini.write_avi(folder / "vid.avi", 57)
    clip = UBFCrPPG(tmp_path)[0]
    assert clip.frames.shape[0] == len(clip) == 57


def test_ubfc_faces_that_may_not_be_shown_stay_out_of_plots(tmp_path: Path) -> None:
    ubfc_2(tmp_path, 21)
    ubfc_2(tmp_path, 22)
    dataset = UBFCrPPG(tmp_path)
    kinds = [[trace.type for trace in dataset.plot(index).data] for index in range(2)]
    assert kinds == [["scatter"], ["image", "scatter"]]
    assert dataset[0].meta["may_be_shown"] is False


@settings(deadline=None, max_examples=40)
@given(data=st.binary(max_size=300))
def test_ubfc_hostile_bytes_are_an_error_or_numbers(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "label"
        path.write_bytes(data)
        for read in (rppg._ubfc_lines, rppg._ubfc_rows, rppg._pure_json):
            try:
                times, values = read(path)
            except FoveateError as error:
                sentence, times, values = str(error), np.empty(0), np.empty(0)
            else:
                sentence = str(path)
            assert str(path) in sentence
            assert np.isfinite(values).all()
            assert len(times) == len(values)


def test_label_larger_than_any_label_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ubfc_2(tmp_path)
    monkeypatch.setattr(rppg, "MAX_LABEL_BYTES", 100)
    with pytest.raises(FoveateError, match="label of at most 100"):
        UBFCrPPG(tmp_path)[0]


# ------------------------------------------------------------------------------------ PURE


@pytest.mark.parametrize("json_inside", [True, False])
@pytest.mark.parametrize("pictures_nested", [True, False])
def test_pure_60_hz_label_at_30_hz_pictures(
    tmp_path: Path, json_inside: bool, pictures_nested: bool
) -> None:
    label_s = np.arange(120) / 60
    mini.write_pure(
        tmp_path,
        "02-03",
        stamps(TIMES),
        stamps(label_s),
        list(range(0, 1200, 10)),
        json_inside,
        pictures_nested,
    )
    clip = PURE(tmp_path, zscore=False)[0]
    np.testing.assert_allclose(clip.bvp, np.arange(0, 1200, 20), atol=1e-3)  # every second value
    np.testing.assert_allclose(clip.times_s, TIMES, atol=1e-9)
    assert clip.fps == pytest.approx(30)
    assert [mini.number_of(frame.image) for frame in clip] == list(range(60))
    assert clip.meta["condition"] == "slow translation"
    assert (clip.meta["subject"], clip.meta["setup"]) == (2, 3)


@settings(deadline=None, max_examples=20)
@given(
    subject=st.integers(1, 99),
    setup=st.integers(1, 6),
    offset_ms=st.integers(-700, 700),
    periods_ms=st.lists(st.integers(20, 60), min_size=12, max_size=20),
    label_rate=st.integers(40, 80),
)
def test_pure_any_clock_offset_and_uneven_frames(
    subject: int, setup: int, offset_ms: int, periods_ms: list[int], label_rate: int
) -> None:
    image_ms = offset_ms + np.cumsum([0, *periods_ms])
    label_ms = np.arange(label_rate) * 1000 / label_rate
    name = f"{subject:02d}-{setup:02d}"
    slack = float(np.median(np.diff(image_ms)))
    covered = [
        number
        for number, ms in enumerate(image_ms)
        if -slack - 1e-6 <= ms <= label_ms[-1] + slack + 1e-6
    ]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        mini.write_pure(
            root, name, stamps(image_ms / 1000), stamps(label_ms / 1000), (2 * label_ms).tolist()
        )
        dataset = PURE(root, zscore=False)
        if len(covered) < 2:
            with pytest.raises(FoveateError, match="covers no two frames"):
                dataset[0]
            return
        clip = dataset[0]
        numbers = [mini.number_of(frame.image) for frame in clip]
    assert numbers == covered
    straight = 2 * np.clip(image_ms[covered], 0, label_ms[-1])  # closed form of the label
    np.testing.assert_allclose(clip.bvp, straight, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(
        clip.times_s, (image_ms[covered] - image_ms[covered[0]]) / 1000, atol=1e-9
    )
    assert clip.meta["subject"] == subject


@settings(deadline=None, max_examples=10)
@given(present=st.sets(st.integers(1, 10), min_size=1))
def test_pure_splits_are_six_to_four_and_disjoint(present: set[int]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for subject in present:
            for setup in (1, 6):
                (root / f"{subject:02d}-{setup:02d}").mkdir()
                (root / f"{subject:02d}-{setup:02d}.json").touch()
        found: dict[str, set[int | str]] = {}
        for split in ("train", "test"):
            try:
                found[split] = set(PURE(root, split).subjects)
            except FoveateError:
                found[split] = set()
    assert found["train"] == {s for s in present if s <= 6}
    assert found["test"] == {s for s in present if s > 6}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", r"line 1 of .*01-01\.json is not JSON"),
        ('{\n"/FullPackage":\n[,]}', r"line 3 of .* is not JSON"),
        ("[]", "no list '/FullPackage'"),
        ('{"/FullPackage": []}', "at least two readings"),
        ('{"/FullPackage": {"a": 1}}', "no list '/FullPackage'"),
        ('{"/FullPackage": [{"Timestamp": 1, "Value": {"waveform": 3}}, 7]}', "reading 1 of"),
        (
            '{"/FullPackage": [{"Timestamp": 1.5, "Value": {"waveform": 3}},'
            ' {"Timestamp": 2, "Value": {"waveform": 3}}]}',
            "reading 0 of",
        ),
        (
            '{"/FullPackage": [{"Timestamp": 1, "Value": {"waveform": NaN}},'
            ' {"Timestamp": 2, "Value": {"waveform": 3}}]}',
            "reading 0 of",
        ),
        (
            f'{{"/FullPackage": [{{"Timestamp": {10**30}, "Value": {{"waveform": 1}}}},'
            ' {"Timestamp": 2, "Value": {"waveform": 3}}]}',
            "reading 0 of",
        ),
        ("[" * 100_000, "is not JSON"),
        ('{"/FullPackage": [' + "9" * 5000 + "]}", "is not JSON|at least two"),
    ],
)
def test_pure_damaged_json_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    path = mini.write_pure(tmp_path, "01-01", stamps(TIMES[:3]), stamps(TIMES[:3]), [1, 2, 3])
    path.write_text(content)
    with pytest.raises(FoveateError, match=sentence) as caught:
        PURE(tmp_path)[0]
    assert "\n" not in str(caught.value)


def test_pure_label_of_another_recording(tmp_path: Path) -> None:
    mini.write_pure(tmp_path, "01-01", stamps(TIMES[:9]), stamps(TIMES[:9], 60.0), list(range(9)))
    with pytest.raises(FoveateError, match="belong to different recordings"):
        PURE(tmp_path)[0]


def test_pure_pictures_are_read_only_when_used(tmp_path: Path) -> None:
    mini.write_pure(tmp_path, "01-01", stamps(TIMES), stamps(TIMES), list(range(60)))
    pictures = sorted((tmp_path / "01-01" / "01-01").iterdir())
    whole = pictures[30].read_bytes()
    pictures[30].write_bytes(whole[:-30])  # cut short
    dataset = PURE(tmp_path)
    assert dataset[0].bvp.shape == (60,)  # label only: no picture was touched
    frames = dataset.frames(0)
    assert [next(frames).index for _ in range(30)] == list(range(30))
    with pytest.raises(FoveateError, match=f"{pictures[30].name}: it is cut short or damaged"):
        next(frames)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not a PNG"),
        (b"GIF89a" + bytes(40), "not a PNG"),
        (
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\x7f\xff\xff\xff" * 2 + b"IEND\xaeB`\x82",
            "claims 2147483647x2147483647 pixels",
        ),
    ],
)
def test_pure_hostile_picture(tmp_path: Path, data: bytes, sentence: str) -> None:
    mini.write_pure(tmp_path, "01-01", stamps(TIMES[:4]), stamps(TIMES[:4]), [1, 2, 3, 4])
    sorted((tmp_path / "01-01" / "01-01").iterdir())[2].write_bytes(data)
    with pytest.raises(FoveateError, match=sentence):
        _ = PURE(tmp_path)[0].frames


def test_pure_picture_of_another_size(tmp_path: Path) -> None:
    mini.write_pure(tmp_path, "01-01", stamps(TIMES[:4]), stamps(TIMES[:4]), [1, 2, 3, 4])
    odd = sorted((tmp_path / "01-01" / "01-01").iterdir())[2]
    mini.write_png(odd, mini.picture(2)[:10, :12])
    with pytest.raises(FoveateError, match=r"frame 2 of .* is 12x10 after frames of 32x24"):
        _ = PURE(tmp_path)[0].frames


# ------------------------------------------------------------------------------------ MMPD


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_mmpd_video_label_and_conditions(tmp_path: Path, compressed: bool, dtype: type) -> None:
    mini.write_mmpd(
        tmp_path,
        7,
        13,
        list(range(31)),
        16,
        compressed,
        dtype,
        motion="Watching Videos",
        light="Nature",
        skin_color=np.array([[6]]),
        gender="male",
        glasser="True",
        makeup="True",
    )
    clip = MMPD(tmp_path, zscore=False)[0]
    np.testing.assert_array_equal(clip.frames, [mini.picture(n) for n in range(16)])
    np.testing.assert_allclose(clip.bvp, np.arange(16) * 2, atol=1e-5)  # 31 stretched over 16
    np.testing.assert_allclose(clip.times_s, np.arange(16) / 30)
    assert clip.fps == pytest.approx(30)
    assert clip.meta["motion"] == "Walking"
    assert clip.meta["light"] == "Nature"
    assert clip.meta["skin_type"] == 6
    assert clip.meta["gender"] == "male"
    assert clip.meta["glasses"] is True
    assert clip.meta["makeup"] is True
    assert clip.meta["exercise"] is False
    assert clip.meta["hair_cover"] is False
    assert [frame.index for frame in MMPD(tmp_path).frames(0)] == list(range(16))


def test_mmpd_split_is_seven_one_two_and_disjoint(tmp_path: Path) -> None:
    for subject in range(1, 34):
        (tmp_path / f"subject{subject}").mkdir()
        for clip in range(20):
            (tmp_path / f"subject{subject}" / f"p{subject}_{clip}.mat").touch()
    parts = {split: MMPD(tmp_path, split) for split in ("train", "val", "test")}
    assert {split: len(part.subjects) for split, part in parts.items()} == {
        "train": 23,
        "val": 3,
        "test": 7,
    }
    everyone = [subject for part in parts.values() for subject in part.subjects]
    assert sorted(everyone) == list(range(1, 34))
    assert sum(len(part) for part in parts.values()) == 660


def test_mmpd_clips_come_in_order_of_number(tmp_path: Path) -> None:
    for clip in (10, 2, 0):
        mini.write_mmpd(tmp_path, 1, clip, np.arange(9.0) * (clip + 1), 9)
    (tmp_path / "subject1" / "p2_0.mat").touch()
    dataset = MMPD(tmp_path, zscore=False)
    assert [clip.bvp[-1] for clip in dataset] == [8.0, 24.0, 88.0]
    assert dataset.skipped == (
        f"{tmp_path / 'subject1' / 'p2_0.mat'} is not called subjectK/pK_N.mat with one K",
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"light": "Candle"}, "light in .*p1_0.mat is 'Candle' where one of LED-low"),
        ({"motion": "Dancing"}, "motion in .* is 'Dancing'"),
        ({"skin_color": np.array([[9]])}, "skin_color in .* is '9'"),
        ({"makeup": np.array([[1.0, 2.0]])}, "makeup in"),
        ({"GT_ppg": np.array([[1.0, np.nan, 2.0]])}, "GT_ppg in .* finite"),
        ({"GT_ppg": "none"}, "GT_ppg in .* finite"),
        ({"gender": {"a": 1}}, "no usable variable gender .*other"),
        ({"video": np.zeros((4, 5, 0, 3))}, "no variable video"),
        ({"video": np.zeros((4, 5, 6))}, r"no variable video .*\(4, 5, 6\)"),
        ({"video": np.zeros((4, 5, 6, 3), np.uint8)}, "found uint8"),
    ],
)
def test_mmpd_damaged_field_is_one_sentence(
    tmp_path: Path, fields: dict[str, object], sentence: str
) -> None:
    mini.write_mmpd(tmp_path, 1, 0, list(range(8)), 8, **fields)
    with pytest.raises(FoveateError, match=sentence):
        MMPD(tmp_path)[0]


def test_mmpd_video_out_of_range(tmp_path: Path) -> None:
    video = np.zeros((4, 5, 6, 3))
    video[2] = 200.0
    mini.write_mmpd(tmp_path, 1, 0, list(range(8)), 4, video=video)
    with pytest.raises(FoveateError, match=r"frame 2 of video .* 0 to 1 was expected"):
        _ = MMPD(tmp_path)[0].frames


def test_mmpd_video_larger_than_allowed_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini.write_mmpd(tmp_path, 1, 0, list(range(8)), 8)
    monkeypatch.setattr(rppg, "MAX_CLIP_BYTES", 1000)
    with pytest.raises(FoveateError, match="claims"):
        MMPD(tmp_path)[0]


def test_mmpd_type_code_that_ends_scipys_process_is_refused_before(tmp_path: Path) -> None:
    path = mini.write_mmpd(tmp_path, 1, 0, list(range(8)), 2, compressed=False)
    data = bytearray(path.read_bytes())
    name = data.find(b"gender")
    assert data[name + 8 : name + 16] == b"\x10\0\0\0\x06\0\0\0"  # UTF-8, six bytes follow
    data[name + 9] = 128
    path.write_bytes(data)
    with pytest.raises(FoveateError, match=r"'gender' of shape \(1, 6\) claims 6 bytes of type"):
        MMPD(tmp_path)[0]


def test_mmpd_file_of_a_later_matlab(tmp_path: Path) -> None:
    path = mini.write_mmpd(tmp_path, 1, 0, list(range(8)), 2)
    data = bytearray(path.read_bytes())
    data[124:126] = b"\0\x02"
    path.write_bytes(data)
    with pytest.raises(FoveateError, match="save it as version 7"):
        MMPD(tmp_path)[0]


def test_mat_headers_agree_with_scipy_on_files_that_matlab_wrote() -> None:
    import scipy.io

    folder = Path(scipy.io.__file__).parent / "matlab" / "tests" / "data"
    if not folder.is_dir():
        pytest.skip("this scipy comes without its test files")
    compared = 0
    for path in sorted(folder.glob("test*_[67].*.mat")):  # MATLAB 6.1 to 7.4, both byte orders
        if "hdf5" in path.name:
            continue
        headers = matlab.mat_headers(path)
        for name, shape, kind in scipy.io.whosmat(path):
            found_shape, found_kind = headers[name]
            if found_kind == "char":  # scipy joins letters to words
                assert (kind, found_shape[:-1]) == ("char", shape)
            elif found_kind != "other":
                assert (found_kind, found_shape) == (kind, shape)
            compared += 1
    assert compared > 50


@settings(deadline=None, max_examples=60)
@example(flips=[(163, 128)])  # a negative number of frames
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
def test_mmpd_flipped_bytes_never_escape_as_another_error(flips: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        path = mini.write_mmpd(root, 1, 0, list(range(8)), 2, compressed=False)
        data = bytearray(path.read_bytes())
        for position, value in flips:
            data[position % len(data)] = value
        path.write_bytes(data)
        try:
            sentence = f"{path}: {MMPD(root)[0].frames.dtype}"
        except FoveateError as error:
            sentence = str(error)
    assert str(path) in sentence


# ---------------------------------------------------------------------- what all three share


@pytest.fixture
def three(tmp_path: Path) -> Path:
    mini.main(tmp_path)
    return tmp_path


ALL = [(UBFCrPPG, "UBFC-rPPG", 3), (PURE, "PURE", 2), (MMPD, "MMPD", 2)]


@pytest.mark.parametrize(("kind", "folder", "count"), ALL)
def test_every_sample_is_frames_zscored_pulse_rate_and_times(
    three: Path, kind: type[rppg.PulseDataset], folder: str, count: int
) -> None:
    dataset = kind(three / folder)
    assert len(dataset) == count
    clips = list(dataset)  # ends by itself: indexing past the end is an IndexError
    assert len(clips) == count
    for clip in clips:
        assert clip.bvp.dtype == np.float32
        assert float(clip.bvp.mean()) == pytest.approx(0, abs=1e-5)
        assert float(clip.bvp.std()) == pytest.approx(1, abs=1e-5)
        assert clip.frames.shape[0] == len(clip) == len(clip.times_s) == 60
        assert clip.meta["dataset"] == dataset.card.name
        assert (np.diff(clip.times_s) > 0).all()


@pytest.mark.parametrize(("kind", "folder", "count"), ALL)
def test_heart_rate_of_the_label_is_the_callers_estimate(
    three: Path, kind: type[rppg.PulseDataset], folder: str, count: int
) -> None:
    clips = list(kind(three / folder))
    found = [clip.heart_rate(fft_bpm) for clip in clips]
    # The miniatures' pulses by construction; two seconds resolve to within a few bpm.
    assert found == pytest.approx([66.0, 84.0, 72.0][:count], abs=4)
    seen: list[tuple[int, float]] = []

    def estimate(wave: np.ndarray, rate: float) -> float:
        seen.append((wave.size, rate))
        return 61.5

    assert clips[0].heart_rate(estimate) == 61.5
    assert seen == [(60, pytest.approx(30, rel=1e-6))]


def test_heart_rate_resamples_uneven_times(tmp_path: Path) -> None:
    steps = np.where(np.arange(400) % 2, 0.020, 0.0467)  # frames come in pairs
    times = np.cumsum(steps) - steps[0]
    mini.write_ubfc_2(tmp_path / "subject1", np.sin(2 * np.pi * 1.5 * times), times)
    clip = UBFCrPPG(tmp_path)[0]
    assert clip.heart_rate(fft_bpm) == pytest.approx(90.0, abs=0.3)


@pytest.mark.parametrize(("kind", "folder", "count"), ALL)
def test_plot_shows_a_picture_and_the_pulse(
    three: Path, kind: type[rppg.PulseDataset], folder: str, count: int
) -> None:
    dataset = kind(three / folder)
    image, wave = dataset.plot(0).data
    assert np.asarray(image.z).shape == (mini.HEIGHT, mini.WIDTH, 3)
    np.testing.assert_allclose(wave.y, dataset[0].bvp)


def test_torch_loader_collates_what_transform_returns(three: Path) -> None:
    import torch
    from torch.utils.data import DataLoader

    def tensors(clip: rppg.PulseClip) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(clip.frames).permute(3, 0, 1, 2), torch.from_numpy(clip.bvp)

    batches = list(DataLoader(PURE(three / "PURE", transform=tensors), batch_size=2))
    assert len(batches) == 1
    frames, bvp = batches[0]
    assert frames.shape == (2, 3, 60, mini.HEIGHT, mini.WIDTH)
    assert bvp.shape == (2, 60)


def test_a_clip_travels_between_processes_without_its_pictures(three: Path) -> None:
    from torch.utils.data import DataLoader

    loader = DataLoader(PURE(three / "PURE"), batch_size=None, num_workers=1)
    clips = list(loader)
    assert [mini.number_of(next(iter(clip)).image) for clip in clips] == [0, 0]


def test_whole_clip_is_bounded_but_iterating_is_not(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rppg, "MAX_CLIP_BYTES", 60 * 24 * 32 * 3 - 1)
    dataset = PURE(three / "PURE")
    with pytest.raises(FoveateError, match="iterate over the clip"):
        _ = dataset[0].frames
    assert sum(1 for _ in dataset.frames(0)) == 60


@pytest.mark.parametrize(("kind", "folder", "count"), ALL)
def test_nothing_there_and_unknown_split_are_sentences(
    three: Path, kind: type[rppg.PulseDataset], folder: str, count: int
) -> None:
    with pytest.raises(FoveateError, match=r"no clip of .*; expected .*; see https://"):
        kind(three / "nowhere")
    with pytest.raises(FoveateError, match="has no split 'dev'; choose one of train"):
        kind(three / folder, "dev")


def test_pure_json_order_does_not_matter(tmp_path: Path) -> None:
    path = mini.write_pure(tmp_path, "01-01", stamps(TIMES), stamps(TIMES), list(range(60)))
    before = PURE(tmp_path)[0].bvp
    content = json.loads(path.read_text())
    content["/FullPackage"].reverse()
    path.write_text(json.dumps(content))
    np.testing.assert_array_equal(PURE(tmp_path)[0].bvp, before)
