"""The command line: arguments -> apps or recipes; nothing else.

Heavy modules are imported inside the commands, so that ``foveate --help`` answers at once.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Group, Parameter

from foveate.errors import FoveateError

__all__ = ["app", "main"]

_SYSTEM_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EFBIG", "ENAMETOOLONG", "EACCES", "EPERM")
    if hasattr(errno, name)
)

_PERCEIVE = Group("Perceive", sort_key=1)
_SMALL = Group("Make small", sort_key=2)
_LESS = Group("Label and share less", sort_key=2.5)
_RESEARCH = Group("Research", sort_key=3)
_MACHINE = Group("This machine", sort_key=4)

app = App(
    name="foveate",
    help="Visual perception on a budget: a pulse and a page from any face video.",
    help_format="plaintext",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)


@app.command(group=_PERCEIVE)
def watch(
    source: str | None = None,
    *,
    demo: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    pulse: Literal["pos", "chrom", "green", "pbv", "lgi", "ica", "mar"] = "pos",
    band: Literal["default", "benchmark"] = "default",
    roi: str | None = None,
    max_people: int = 4,
    every_frame: Annotated[bool, Parameter(negative="")] = False,
    video: bool = True,
    fps: float | None = None,
    seconds: float | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Watch people: who is in view, their pulse, and a page that shows it.

    Writes signals.parquet, summary.json, annotated.mp4 and report.html.

    Parameters
    ----------
    source
        A video file, a folder of videos or of pictures, or a camera (camera:0).
    demo
        Watch the built-in example: a public-domain photograph with a simulated pulse.
    out
        Folder for the results (default: foveate-out/NAME).
    pulse
        How the pulse is read from skin colour.
    band
        Heart rates looked for: default 36-198 bpm, benchmark 45-150 bpm.
    roi
        Face box x,y,width,height in pixels instead of face detection.
    max_people
        The most faces looked for in a frame.
    every_frame
        Look for faces in every frame, not only in key frames.
    video
        Make annotated.mp4.
    fps
        Frame rate of a folder of pictures.
    seconds
        Stop after this many seconds of the stream.
    jobs
        Processes for a folder of videos (default: number of cores).
    ray
        Work on the Ray cluster at this address (local: start one here).
    force
        Compute again even when a finished result is there.
    """
    from foveate.apps.watch import WatchSettings
    from foveate.report import terminal

    settings = WatchSettings(pulse, band, _box(roi), max_people, every_frame, video, fps, seconds)
    settings.check()
    if demo and source:
        raise FoveateError(f"--demo brings its own video; leave out {source}, or --demo")
    if demo:
        from foveate.apps.demo import demo_video

        with terminal.one_video("making the example video") as tell:
            source = str(demo_video(tell))
    elif not source:
        raise FoveateError("nothing to watch; give a video, a folder or camera:0, or use --demo")
    folder = Path(source)
    if folder.is_dir():
        from foveate.apps.watch_many import videos_in, watch_many

        if videos := videos_in(folder):
            target = out or Path("foveate-out") / folder.resolve().name
            with terminal.many_videos(len(videos)) as report:
                outcomes = watch_many(
                    videos,
                    target,
                    settings=settings,
                    force=force,
                    jobs=jobs,
                    ray=ray,
                    progress=report,
                )
            terminal.print_outcomes(target, outcomes)
            if failed := sum(outcome.result is None for outcome in outcomes):
                raise FoveateError(
                    f"{failed} of {len(outcomes)} videos in {folder} could not be read; "
                    f"the reasons are in {target / 'heart_rates.csv'}"
                )
            return
    from foveate.apps.watch import watch as watch_one

    with terminal.one_video(source) as tell:
        result = watch_one(source, out, settings=settings, force=force, progress=tell)
    terminal.print_watch_result(result)


@app.command(name="map", group=_PERCEIVE)
def map_(
    scene: Path,
    *,
    labels: Path | None = None,
    method: str = "auto",
    train: str | None = None,
    block: int | None = None,
    out: Path | None = None,
    format: Literal["auto", "tif", "png", "envi"] = "auto",
    seed: int = 0,
    tile: int = 256,
    threads: int = 0,
    estimate: bool = True,
    jobs: int | None = None,
    ray: str | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Label every pixel of a scene from some labelled pixels, with an honest accuracy.

    Writes the class map, its confidence, classes.csv, summary.json and report.html.

    Parameters
    ----------
    scene
        ENVI, .mat, GeoTIFF, .npz, a picture, a PolSARpro folder (T3, C3, S2), or a .csv with the
        columns scene,labels for many.
    labels
        A raster of class codes, a CSV of points or a GeoJSON of polygons (default: those inside
        the scene's file).
    method
        auto, dag-rnn, pcn, complex-gan, lateral-inhibition, cnn, svm, forest, lda or wishart.
    train
        Learn from so many labels of each class (100) or such a share (10%); default: all.
    block
        Side in pixels of the blocks that the estimate keeps apart (default: by the geometry).
    out
        Folder for the results (default: foveate-out/NAME).
    format
        Of the map (default: GeoTIFF where rasterio is installed, else ENVI).
    seed
        Of the draws and the weights.
    tile
        Side of a tile in pixels; changes memory and nothing else.
    threads
        Tiles at a time (default: number of cores).
    estimate
        Estimate the accuracy on blocks that are kept apart.
    jobs
        Processes for a table of scenes (default: number of cores).
    ray
        Work on the Ray cluster at this address (local: start one here).
    force
        Compute again even when a finished result is there.
    """
    from foveate.apps.map import MapSettings, map_scene
    from foveate.report import terminal
    from foveate.report.map import result_lines

    settings = MapSettings(method, train, block, seed, tile, threads, format, estimate)
    settings.check()
    if scene.suffix.lower() == ".csv":
        from foveate.apps.map_many import INDEX, map_many, scenes_in

        if labels is not None:
            raise FoveateError(
                f"the table {scene} names the labels of each scene; leave out --labels {labels}"
            )
        pairs = scenes_in(scene)
        target = out or Path("foveate-out") / scene.stem
        with terminal.many_scenes(len(pairs)) as report:
            outcomes = map_many(
                pairs,
                target,
                settings=settings,
                force=force,
                jobs=jobs,
                ray=ray,
                progress=report,
            )
        print(f"maps: {target / INDEX}")
        if failed := sum(outcome.result is None for outcome in outcomes):
            raise FoveateError(
                f"{failed} of {len(outcomes)} scenes in {scene} could not be mapped; "
                f"the reasons are in {target / INDEX}"
            )
        return
    if jobs is not None or ray is not None:
        raise FoveateError(
            f"--jobs and --ray share out the scenes of a table, and {scene} is one scene; leave "
            "them out (--threads is for tiles)"
        )
    with terminal.stages(scene.name) as tell:
        result = map_scene(scene, labels, out, settings=settings, force=force, progress=tell)
    print("\n".join(result_lines(result.summary)))
    print(f"report: {result.folder / 'report.html'}" + (" (already done)" if result.reused else ""))


def _box(text: str | None) -> tuple[float, float, float, float] | None:
    if text is None:
        return None
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise FoveateError(
            f"--roi {text} is not a box; expected four numbers x,y,width,height in pixels, "
            "for instance --roi 120,80,200,220"
        ) from None
    return x, y, width, height


@app.command(group=_SMALL)
def shrink(
    model: str,
    *,
    data: Path,
    weights: Path | None = None,
    out: Path | None = None,
    bits: str | None = None,
    method: Literal["qat", "mbn", "real-to-binary", "post-training"] = "qat",
    epochs: int = 5,
    keep: str = "first,last,downsample,depthwise",
    mean: str | None = None,
    std: str | None = None,
    size: int | None = None,
    augment: Literal["none", "shift", "mirror"] = "shift",
    batch: int = 64,
    lr: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    tolerance: float = 3.0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    force: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Make a trained image classifier small: 1 to 8 bits, measured beside what it replaces.

    Writes NAME-w2a2.fvt and so on, summary.json and report.html.

    Parameters
    ----------
    model
        module:function that makes the network (foveate.nn.resnet:resnet20, or of your own), or the
        .safetensors checkpoint of a recipe.
    data
        Labelled pictures: a folder of class folders (or with train/ and val/), an .npz file with x
        and y, or CIFAR or MNIST as published.
    weights
        Its weights: .safetensors, or a state dict saved by torch.
    out
        Folder for the results (default: foveate-out/NAME).
    bits
        Widths, separated by commas: 4, or weights x activations such as 1x2 (default: 8,4,2,1).
    method
        qat trains with learned steps, mbn on multi-branch binary grids from high to low,
        real-to-binary gated 1-bit layers in stages, post-training not at all.
    epochs
        Passes over the training pictures, for each width.
    keep
        What stays float: first, last, downsample, depthwise, or patterns of module paths; none to
        quantise everything.
    mean
        What inputs are normalised by, per channel, pixels being 0 to 1: 0.485,0.456,0.406.
    std
        Likewise: 0.229,0.224,0.225.
    size
        Bring the pictures of class folders to this many pixels a side.
    augment
        Variation of training pictures: shift, mirror (and shift), none.
    batch
        Pictures in a training step.
    lr
        Learning rate (default: 1e-3 for 1 and 2 bits, 3e-4 for more).
    seed
        Of the split, the order and the variations.
    threads
        Threads to train with and to measure beside one (default: all cores).
    tolerance
        Points of accuracy that the advised file may lose.
    device
        Where to train.
    force
        Make every width anew.
    """
    from foveate.apps.shrink import ShrinkSettings
    from foveate.apps.shrink import shrink as shrink_one
    from foveate.report import terminal

    settings = ShrinkSettings(
        bits=bits,
        method=method,
        epochs=epochs,
        keep=() if keep == "none" else tuple(part for part in keep.split(",") if part),
        mean=_numbers("mean", mean),
        std=_numbers("std", std),
        size=size,
        augment=augment,
        batch=batch,
        lr=lr,
        seed=seed,
        threads=threads,
        tolerance=tolerance,
        device=device,
    )
    settings.check()
    with terminal.stages(model.rpartition(":")[2]) as tell:
        result = shrink_one(
            model, out, data=data, weights=weights, settings=settings, force=force, progress=tell
        )
    terminal.print_shrink_result(result)


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise FoveateError(
            f"--{name} {text} is no list of numbers; expected one per channel, pixels being 0 to "
            "1, for instance 0.5,0.5,0.5"
        ) from None


@app.command(group=_LESS)
def label(
    pool: Path,
    *,
    budget: int | None = None,
    classes: str | None = None,
    out: Path | None = None,
    labels: Path | None = None,
    features: Path | None = None,
    id: str | None = None,
    columns: str | None = None,
    terminal: Annotated[bool, Parameter(negative="")] = False,
    answers: Path | None = None,
    ask: int | None = None,
    tell: Path | None = None,
    export: Path | None = None,
    experts: str | None = None,
    gamma: float | None = None,
    restart: int | None = None,
    reward: Literal["iwa", "iwa_gain", "cem"] | None = None,
    candidates: int | None = None,
    seed: int | None = None,
    port: int = 0,
    browser: bool = True,
) -> None:
    """Label the items that help most: an ensemble of criteria chooses, you answer.

    Opens a page (or asks in the terminal); every answer is saved as it is given, and the same
    command goes on where it stopped. Writes label.sqlite and labels.csv.

    Parameters
    ----------
    pool
        A folder of pictures, a table (.csv, .tsv, .parquet) or an .npz file with x.
    budget
        Answers you are willing to give (default: 50); can be changed later.
    classes
        All classes, separated by commas; without them any word is one.
    out
        Folder of the session (default: foveate-out/NAME).
    labels
        Table with the columns id and label: labels that exist already.
    features
        An .npz file with x (and ids): embeddings to choose by.
    id
        Column of a table that names its items (default: id; row numbers them).
    columns
        Columns of a table to choose by, separated by commas (default: all of numbers).
    terminal
        Ask here instead of on a page.
    answers
        Table with the columns id and label that answers instead of a person.
    ask
        Write the next so many ids as CSV to stdout, and stop.
    tell
        Take labels from a table with the columns id and label.
    export
        Write all labels to this CSV file.
    experts
        Criteria, separated by commas: US, DENS, DFF, RAND (default), QUIRE, QBC, US*DENS.
    gamma
        Share of pure chance in every draw (default: 0.1; 0.3 from five experts on).
    restart
        Answers after which all experts start anew (default: 10, above 60 a fifth of the budget).
    reward
        What experts are rewarded for: iwa (default), iwa_gain or cem.
    candidates
        The most items that the experts look at for a draw (default: 2000).
    seed
        Of all draws.
    port
        Of the page (default: a free one).
    browser
        Open the page in a browser.
    """
    from foveate.apps.label import label as label_pool
    from foveate.report import terminal as screen

    label_pool(
        pool,
        out,
        budget=budget,
        classes=_words(classes),
        labels=labels,
        features=features,
        id_column=id,
        columns=_words(columns),
        terminal=terminal,
        answers=answers,
        ask=ask,
        tell=tell,
        export=export,
        experts=_words(experts) or None,
        gamma=gamma,
        restart=restart,
        reward=reward,
        candidates=candidates,
        seed=seed,
        port=port,
        browser=browser,
        bar=lambda: screen.recipe("label"),
    )


@app.command(group=_LESS)
def condense(
    data: Path,
    *,
    per_class: int = 10,
    iterations: int | None = None,
    nets: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    privacy: bool = True,
    init: Literal["noise", "real"] = "noise",
    image: bool | None = None,
    quick: Annotated[bool, Parameter(negative="")] = False,
    lr: float | None = None,
    selection: Literal["best_val", "last"] = "best_val",
    noise: float | None = None,
    delta: float | None = None,
    public_statistics: Annotated[bool, Parameter(negative="")] = False,
    threads: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    force: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Make a few synthetic rows of many real ones to share, with evidence on privacy.

    Writes condensed.safetensors, summary.json and report.html.

    Parameters
    ----------
    data
        An .npz file with x and y (series or pictures), or a folder of PhysioNet 2012.
    per_class
        Synthetic rows of every class.
    iterations
        Steps of the condensation (default: 1500 for series, 400 for pictures).
    nets
        Networks that condense, separated by commas (default: tcn,lstm,vit; convnet for pictures).
    out
        Folder for the results (default: foveate-out/NAME).
    seed
        Of everything that is random.
    privacy
        Make the privacy report.
    init
        Start from noise, or from copies of real rows (never for a set that is to be shared).
    image
        Take the rows for pictures or for series (default: what is there decides).
    quick
        A first look: short condensation, fewer and shorter trainings.
    lr
        Adam's rate (default: 0.01).
    selection
        What chooses the epoch of a training: real validation rows, or nothing (last).
    noise
        Noise multiplier for a formal guarantee; needs --public-statistics.
    delta
        Of (epsilon, delta) (default: a tenth of 1 / training rows).
    public_statistics
        You confirm that class counts and normaliser may be public.
    threads
        Threads of PyTorch.
    device
        Where to compute.
    force
        Compute again even when a finished result is there.
    """
    from foveate.apps.condense import CondenseSettings
    from foveate.apps.condense import condense as condense_one
    from foveate.report import terminal
    from foveate.report.condense import result_lines

    settings = CondenseSettings(
        per_class=per_class,
        iterations=iterations,
        nets=nets,
        seed=seed,
        privacy=privacy,
        init=init,
        image=image,
        quick=quick,
        lr=lr,
        selection=selection,
        noise=noise,
        delta=delta,
        public_statistics=public_statistics,
        threads=threads,
        device=device,
    )
    settings.check()
    with terminal.stages(data.name) as tell:
        result = condense_one(data, out, settings=settings, force=force, progress=tell)
    print("\n".join(result_lines(result.summary)))
    print(f"report: {result.folder / 'report.html'}" + (" (already done)" if result.reused else ""))


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


@app.command(group=_RESEARCH)
def recipes() -> None:
    """List the recipes: each reruns a paper's claim beside its ablation."""
    from foveate import recipes as room
    from foveate.report import terminal

    terminal.print_recipes([(name, room.load(name)) for name in room.names()])


@app.command(group=_RESEARCH)
def run(
    recipe: str,
    *,
    scale: str = "desk",
    seeds: int | None = None,
    set: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    devices: int | None = None,
    nodes: int | None = None,
    accelerator: str | None = None,
    out: Path = Path("evidence"),
) -> None:
    """Run a recipe and write its evidence; interrupted runs go on where they stopped.

    Parameters
    ----------
    recipe
        A name that `foveate recipes` lists.
    scale
        smoke (seconds), desk (two cores, minutes) or paper (the published setting, a GPU).
    seeds
        Number of seeds (default: the scale's).
    set
        key=value, changes one setting; may be given several times.
    devices
        Devices (or CPU processes) on each machine.
    nodes
        Machines; start the command on each through torchrun.
    accelerator
        cpu, cuda, mps or auto.
    out
        Folder for the evidence file.
    """
    from foveate import recipes as room
    from foveate.files import writable_dir
    from foveate.report import terminal

    module = room.load(recipe)
    overrides: dict[str, str] = {}
    for item in set:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise FoveateError(f"--set {item}: expected key=value")
        overrides[key.replace("-", "_")] = value
    config = room.configure(
        module, scale, seeds, overrides, devices=devices, nodes=nodes, accelerator=accelerator
    )
    writable_dir(out)
    with terminal.recipe(recipe) as tell:
        evidence = module.run(config, progress=tell)
    if evidence is None:
        return  # another process of the same run writes
    evidence.write(out)
    terminal.print_evidence([evidence])


@app.command(group=_RESEARCH)
def evidence(folder: Path = Path("evidence"), /, *, markdown: bool = False) -> None:
    """Print what was claimed, what was measured here, and the verdicts.

    Parameters
    ----------
    folder
        Folder with the evidence files.
    markdown
        Print Markdown tables of all arms and metrics.
    """
    from foveate.report import terminal
    from foveate.report.evidence import read_all

    terminal.print_evidence(read_all(folder), markdown=markdown)


@app.command(group=_MACHINE)
def data(name: str | None = None, /) -> None:
    """List the data sets and what is present here; with a NAME, its card.

    Parameters
    ----------
    name
        Show everything about this data set: source, licence, layout, splits, citation.
    """
    from foveate.datasets import catalogue
    from foveate.report import terminal

    if name is None:
        terminal.print_data(catalogue.rows(), catalogue.data_root())
    else:
        known = catalogue.card(name).name
        terminal.print_card(next(row for row in catalogue.rows() if row["name"] == known))


models = App(
    name="models",
    help="Model files: what they are, where they come from, fetch them.",
    help_format="plaintext",
    group=_MACHINE,
)
app.command(models)


@models.default
def models_list() -> None:
    """List the model files and whether they are present."""
    from foveate.nn import model_files
    from foveate.report import terminal

    terminal.print_models(model_files.rows())


@models.command(name="fetch")
def models_fetch(
    name: str = "face_landmarker", /, *, force: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Fetch a model file and verify its hash.

    Parameters
    ----------
    name
        A name that `foveate models` lists.
    force
        Fetch it even when a file is there.
    """
    from foveate.nn import model_files

    path = model_files.fetch(name, force=force)
    print(f"{name}: {path}")


@app.command(group=_MACHINE)
def doctor() -> None:
    """Say what this machine can do, and what is missing."""
    from foveate.apps.doctor import examine
    from foveate.report import terminal

    if not terminal.print_doctor(examine()):
        sys.exit(1)


bench = App(
    name="bench",
    help="Speed against peers, and accuracy on simulated faces, measured in one run.",
    help_format="plaintext",
    group=_MACHINE,
)
app.command(bench)


@bench.command(name="watch")
def bench_watch(
    *, seconds: float = 60.0, peer_python: Path | None = None, out: Path | None = None
) -> None:
    """Time `foveate watch` beside MediaPipe alone and open-rppg on the same video.

    Parameters
    ----------
    seconds
        Length of the test video (640x480, 30 frames/s, simulated pulse).
    peer_python
        Interpreter of an environment in which open-rppg is installed.
    out
        Write the figures to this JSON file as well.
    """
    from foveate.apps.bench import time_watch
    from foveate.report import terminal

    terminal.print_bench(time_watch(seconds, peer_python, out))


@bench.command(name="pulse")
def bench_pulse(*, clips: int = 20, seconds: float = 20.0, out: Path | None = None) -> None:
    """Heart-rate error and false acceptance on simulated faces with and without a pulse.

    Parameters
    ----------
    clips
        Clips for each preset, with and without a pulse.
    seconds
        Length of a clip.
    out
        Write the figures to this JSON file as well.
    """
    from foveate.apps.bench import pulse_accuracy
    from foveate.report import terminal

    terminal.print_accuracy(pulse_accuracy(clips, seconds, out))


@bench.command(name="engine")
def bench_engine(
    *,
    rounds: int = 30,
    threads: str = "1,2",
    isa: Literal["", "avx512", "avx2", "portable"] = "",
    out: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Time the packed-bit engine beside torch, ONNX Runtime, OpenVINO and LiteRT, where installed.

    3x3 convolutions of 64 to 512 channels and a whole ResNet-18, all in one run, in turns; and
    switching bit widths.

    Parameters
    ----------
    rounds
        Turns of every contender; a low percentile counts.
    threads
        Numbers of threads, separated by commas.
    isa
        Hold this engine to one instruction set.
    out
        Write the figures to this JSON file as well.
    plot
        Draw the figures into this HTML file.
    """
    from dataclasses import asdict

    from foveate.apps.bench_engine import time_engine
    from foveate.errors import FoveateError
    from foveate.report import engine_bench, terminal

    try:
        numbers = [int(part) for part in threads.split(",")]
    except ValueError:
        raise FoveateError(f"--threads is {threads!r}; expected numbers such as 1,2") from None
    with terminal.recipe("bench engine") as progress:
        rows = [asdict(row) for row in time_engine(rounds, numbers, out, isa, progress)]
    terminal.print_engine(rows)
    if plot is not None:
        engine_bench.write_plot(rows, plot)


@bench.command(name="shrink")
def bench_shrink(
    data: Path | None = None,
    /,
    *,
    work: Path = Path("foveate-out/bench-shrink"),
    epochs: int = 16,
    rounds: int = 40,
    threads: int = 1,
    out: Path | None = None,
) -> None:
    """Train a ResNet-8 on CIFAR-10, make it small, and time every width beside ONNX Runtime.

    Parameters
    ----------
    data
        Folder or .npz of CIFAR-10 (default: foveate's data folder).
    work
        Folder for the network and the result of foveate shrink; finished work is reused.
    epochs
        Of the training.
    rounds
        Turns of every contender when times are taken.
    threads
        Threads of PyTorch.
    out
        Write the figures to this JSON file as well.
    """
    from dataclasses import asdict

    from foveate.apps.bench_shrink import shrink_resnet8
    from foveate.datasets.catalogue import data_root
    from foveate.report import terminal

    with terminal.recipe("bench shrink") as progress:
        rows = shrink_resnet8(
            data or data_root(),
            work,
            epochs=epochs,
            rounds=rounds,
            threads=threads,
            out=out,
            progress=progress,
        )
    columns = {
        "what": "",
        "accuracy": "accuracy",
        "points": "points",
        "ms": "ms",
        "speed": "times ORT int8",
        "kilobytes": "kB",
    }
    terminal.print_ratios("ResNet-8, one picture", [asdict(row) for row in rows], columns)


@bench.command(name="optimizers")
def bench_optimizers(
    *,
    parameters: int = 10_000_000,
    rounds: int = 30,
    threads: int = 1,
    out: Path | None = None,
) -> None:
    """Time one step of signADAM and its relatives beside torch's Adam.

    Parameters
    ----------
    parameters
        Weights of the network.
    rounds
        Turns of every optimizer; a low percentile counts.
    threads
        Threads of torch.
    out
        Write the figures to this JSON file as well.
    """
    from foveate.apps.bench_optimizers import time_steps
    from foveate.report import terminal

    rows = time_steps(parameters, rounds, threads, out)
    columns = {"name": "", "ms": "ms", "ratio": "of Adam's time"}
    terminal.print_ratios(f"One step of {parameters:,} weights", rows, columns)


@bench.command(name="modular")
def bench_modular(
    *, width: int = 256, rounds: int = 10, threads: int = 1, out: Path | None = None
) -> None:
    """Time training steps in which only a share of the modules is back-propagated through.

    Parameters
    ----------
    width
        Width of the vision transformer's tokens.
    rounds
        Turns of every share; a low percentile counts.
    threads
        Threads of torch.
    out
        Write the figures to this JSON file as well.
    """
    from dataclasses import asdict

    from foveate.apps.bench_modular import time_backward
    from foveate.report import terminal

    with terminal.recipe("bench modular") as progress:
        rows = time_backward(
            width=width, rounds=rounds, threads=threads, out=out, progress=progress
        )
    columns = {
        "fraction": "active",
        "forward_ms": "forward, ms",
        "backward_ms": "backward, ms",
        "measuring_ms": "eigenvalues, ms",
        "backward_ratio": "backward, of full",
        "bill_ratio": "all, of full",
        "flops_ratio": "FLOPs, of full",
    }
    terminal.print_ratios(f"One step, width {width}", [asdict(row) for row in rows], columns)


@bench.command(name="map")
def bench_map(
    *,
    side: int = 96,
    hidden: int = 32,
    patch: int = 9,
    channels: int = 30,
    rounds: int = 5,
    threads: int = 1,
    out: Path | None = None,
) -> None:
    """Time the Pixel DAG-RNN over a scene: patch by patch, in batches, as a whole.

    Parameters
    ----------
    side
        Of the block that is labelled, in pixels.
    hidden, patch, channels
        Width of the states; side of a patch; channels of a pixel.
    rounds
        Turns of every way; the median counts.
    threads
        Threads of torch.
    out
        Write the figures to this JSON file as well.
    """
    from dataclasses import asdict

    from foveate.apps.bench_map import time_maps
    from foveate.report import terminal

    with terminal.recipe("bench map") as progress:
        rows = time_maps(
            side,
            rounds,
            hidden=hidden,
            patch=patch,
            channels=channels,
            threads=threads,
            out=out,
            progress=progress,
        )
    columns = {
        "method": "way",
        "microseconds": "us a pixel",
        "times_naive": "times naive",
        "times_patches": "times patches",
    }
    title = f"Pixel DAG-RNN, width {hidden}, patches of {patch} x {patch}, {channels} channels"
    terminal.print_ratios(title, [asdict(row) for row in rows], columns)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command; bad input is one sentence on stderr and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except FoveateError as error:
        if debug:
            raise
        _complain(str(error))
        sys.exit(error.exit_code)
    except CycloptsError as error:
        if debug:
            raise
        _complain(" ".join(str(error).split()))
        sys.exit(2)
    except OSError as error:
        if debug or error.errno not in _SYSTEM_ERRORS or isinstance(error, BrokenPipeError):
            raise
        where = f" at {error.filename}" if error.filename else ""
        _complain(
            f"the system refused{where}: {error.strerror}; "
            "check the path and the free space, or choose another folder with --out"
        )
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("interrupted; nothing half-written is left, and finished results are kept")
        sys.exit(130)


def _complain(sentence: str) -> None:
    # A file's name may hold what steers a terminal.
    sentence = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence)
    print(f"foveate: {sentence}", file=sys.stderr)
    print("         (--debug shows the traceback, --help the options)", file=sys.stderr)
