"""Miniatures of CamVid, PASCAL VOC and COCO in the layouts of their owners.

A second implementation of the layouts, on purpose: it shares no code with ``foveate.datasets``.
Nothing here is real data.

    python tests/make_miniatures/scenes.py FOLDER    makes one of each
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 18, 24

# A part of the official label_colors.txt of CamVid, and the class of 11 that each belongs to.
CAMVID_COLOURS = {
    "Animal": ((64, 128, 64), 9),
    "Archway": ((192, 0, 128), 1),
    "Bicyclist": ((0, 128, 192), 10),
    "Bridge": ((0, 128, 64), 1),
    "Building": ((128, 0, 0), 1),
    "Car": ((64, 0, 128), 8),
    "CartLuggagePram": ((64, 0, 192), 9),
    "Child": ((192, 128, 64), 9),
    "Column_Pole": ((192, 192, 128), 2),
    "Fence": ((64, 64, 128), 7),
    "LaneMkgsDriv": ((128, 0, 192), 3),
    "LaneMkgsNonDriv": ((192, 0, 64), 3),
    "Misc_Text": ((128, 128, 64), 6),
    "MotorcycleScooter": ((192, 0, 192), 10),
    "OtherMoving": ((128, 64, 64), 8),
    "ParkingBlock": ((64, 192, 128), 4),
    "Pedestrian": ((64, 64, 0), 9),
    "Road": ((128, 64, 128), 3),
    "RoadShoulder": ((128, 128, 192), 4),
    "SUVPickupTruck": ((64, 128, 192), 8),
    "Sidewalk": ((0, 0, 192), 4),
    "SignSymbol": ((192, 128, 128), 6),
    "Sky": ((128, 128, 128), 0),
    "TrafficCone": ((0, 0, 64), 2),
    "TrafficLight": ((0, 64, 64), 6),
    "Train": ((192, 64, 128), 8),
    "Tree": ((128, 128, 0), 5),
    "Truck_Bus": ((192, 128, 192), 8),
    "Tunnel": ((64, 0, 64), 1),
    "VegetationMisc": ((192, 192, 0), 5),
    "Void": ((0, 0, 0), 11),
    "Wall": ((64, 192, 0), 1),
}


def photo(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """``(H, W, 3)`` uint8, smooth enough for JPEG."""
    row, column = np.mgrid[0:height, 0:width]
    return np.stack([row * 4, column * 4, np.full_like(row, 20 * number % 256)], -1).astype(
        np.uint8
    )


def label_map(number: int) -> np.ndarray:
    """``(18, 24)`` uint8, CamVid's classes 0 to 11 in stripes."""
    row, column = np.mgrid[0:HEIGHT, 0:WIDTH]
    return ((row // 3 + column // 2 + number) % 12).astype(np.uint8)


def jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=98, subsampling=0)
    return buffer.getvalue()


def save(path: Path, picture: np.ndarray) -> None:
    """PNG or JPEG by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        path.write_bytes(jpeg(picture))
    else:
        Image.fromarray(picture).save(path, "PNG")


def write_camvid_pair(folder: Path, names: Mapping[str, Sequence[str]]) -> None:
    """Zip of JPEG pictures and npz of label maps; frame k has ``photo(k)``, ``label_map(k)``."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(folder / "camvid_240x180_jpg.zip", "w") as archive:
        for split, of_split in names.items():
            for k, name in enumerate(of_split):
                archive.writestr(f"{split}/{name}.jpg", jpeg(photo(k)))
            maps = [label_map(k) for k in range(len(of_split))]
            arrays[f"label_{split}"] = np.stack(maps)
            arrays[f"name_{split}"] = np.array(of_split)
    np.savez_compressed(folder / "camvid_240x180_labels.npz", **arrays)


def write_camvid_segnet(folder: Path, names: Mapping[str, Sequence[str]]) -> None:
    """SegNet's folders: grey label PNGs of the same names."""
    for split, of_split in names.items():
        for k, name in enumerate(of_split):
            save(folder / split / f"{name}.png", photo(k))
            save(folder / f"{split}annot" / f"{name}.png", label_map(k))


def write_camvid_official(folder: Path, names: Sequence[str], label: np.ndarray) -> None:
    """Official folders; every frame has the colour picture `label` ``(H, W, 3)``."""
    for k, name in enumerate(names):
        save(folder / "701_StillsRaw_full" / f"{name}.png", photo(k, *label.shape[:2]))
        save(folder / "LabeledApproved_full" / f"{name}_L.png", label)


def write_voc(
    root: Path,
    objects: Mapping[str, Sequence[tuple[str, tuple[float, float, float, float], int]]],
    year: str = "2012",
    split: str = "train",
) -> Path:
    """One photo per name with (class, (xmin, ymin, xmax, ymax), difficult) objects."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    for k, (name, things) in enumerate(objects.items()):
        save(folder / "JPEGImages" / f"{name}.jpg", photo(k))
        lines = [f"<annotation><filename>{name}.jpg</filename>"]
        for kind, (left, top, right, bottom), difficult in things:
            lines.append(
                f"<object><name>{kind}</name><difficult>{difficult}</difficult><part><name>head"
                "</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"
                f"</part><bndbox><xmax>{right}</xmax><xmin>{left}</xmin><ymax>{bottom}</ymax>"
                f"<ymin>{top}</ymin></bndbox></object>"
            )
        (folder / "Annotations").mkdir(parents=True, exist_ok=True)
        (folder / "Annotations" / f"{name}.xml").write_text("\n".join(lines) + "\n</annotation>\n")
        indices = Image.fromarray((label_map(k) + 10) % 21, "L").convert("P")
        indices.putpalette([(37 * n) % 256 for n in range(768)])  # any colours: only indices count
        indices.putpixel((0, 0), 255)
        path = folder / "SegmentationClass" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        indices.save(path)
    for lists in ("Main", "Segmentation"):
        path = folder / "ImageSets" / lists / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in objects))
    return folder


def coco_annotations() -> dict[str, list[dict[str, object]]]:
    """Two classes, three pictures (one empty), a polygon, two polygons and a crowd."""
    square = [2.0, 3.0, 10.0, 3.0, 10.0, 8.0, 2.0, 8.0]
    triangle = [12.0, 10.0, 20.0, 10.0, 12.0, 17.0]
    runs = [HEIGHT * 4 + 2, 5, HEIGHT - 5, 5]  # rows 2 to 6 of columns 4 and 5
    runs.append(HEIGHT * WIDTH - sum(runs))
    things = [
        (501, 300, 18, [2.0, 3.0, 8.0, 5.0], 0, [square]),
        (502, 300, 1, [2.0, 3.0, 18.0, 14.0], 0, [square, triangle]),
        (503, 100, 1, [4.0, 2.0, 2.0, 5.0], 1, {"size": [HEIGHT, WIDTH], "counts": runs}),
    ]
    return {
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "images": [
            {"id": n, "file_name": f"{n:012d}.jpg", "height": HEIGHT, "width": WIDTH}
            for n in (300, 100, 200)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "iscrowd": crowd,
                "segmentation": shape,
            }
            for number, image, category, box, crowd, shape in things
        ],
    }


def write_coco(folder: Path, content: dict[str, list[dict[str, object]]], split: str) -> None:
    """Annotations and one photo per picture named in them."""
    path = folder / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for k, entry in enumerate(content["images"]):
        save(folder / f"{split}2017" / str(entry["file_name"]), photo(k))


def main(folder: Path) -> None:
    """One of every data set below `folder`."""
    names = {"train": ["0006R0_f00930"], "val": ["0016E5_07959"], "test": ["Seq05VD_f00000"]}
    write_camvid_segnet(folder / "CamVid", names)
    write_voc(folder, {"2008_000001": [("dog", (3, 4, 10, 12), 0)]})
    for split in ("train", "val"):
        write_coco(folder / "COCO", coco_annotations(), split)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
