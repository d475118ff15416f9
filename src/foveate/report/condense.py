"""The page of ``foveate condense``: what the few rows are good for, and what they give away.

:class:`CondenseReport` turns the run's summary (the content of ``summary.json``) into what the
template shows; :func:`write_condense_page` writes the file. On privacy the page speaks of evidence:
a test that found nothing is said to have found nothing, and no more.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate.report.page import number, write_page
from foveate.report.shrink_plots import OwnPanel

__all__ = ["CondenseReport", "python_snippet", "result_lines", "write_condense_page"]

Figure = dict[str, Any]

ARM_COLOURS = {"condensed": "accent", "random": "p2", "kmeans": "p3", "all": "muted"}
LEVEL, POWER = 0.05, 0.6  # of the controls: below the one, above the other
_SYMBOLS = {"condensed": "circle", "random": "square", "kmeans": "diamond", "all": "circle-open"}
_SIZES = {"condensed": 14, "random": 10, "kmeans": 11, "all": 12}
_WORDS = {
    "none": "no sign found",
    "sign": "a sign was found",
    "unclear": "could not tell",
    "number": "a number, no verdict",
    "none claimed": "none claimed",
    "formal": "stated",
}


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of the table: texts per network, and whether it is the condensed set."""

    name: str
    what: str
    rows: str
    size: str
    scores: list[tuple[str, str]]
    mean: str
    colour: str


@dataclass(frozen=True, slots=True)
class Card:
    """One privacy item: question, number, meaning, what stands beside it, the word for it."""

    question: str
    value: str
    unit: str
    text: str
    beside: list[tuple[str, str]]
    word: str
    sign: str


@dataclass(frozen=True, slots=True)
class CondenseReport:
    """What the template of the page shows; all strings are plain text."""

    name: str
    headline: str
    lead: str
    facts: list[str]
    state: str
    verdict: str
    reason: str
    file: str
    tiles: list[tuple[str, str, str, str]]
    metric: str
    nets: list[tuple[str, bool]]
    arms: list[Arm]
    scores: OwnPanel
    cards: list[Card]
    is_what: list[str]
    is_not: list[str]
    curves: list[OwnPanel]
    classes: list[tuple[str, str]]
    pictures: list[Mapping[str, Any]]
    python: str
    plain: str
    how: list[tuple[str, str]]
    notes: list[str]
    settings_rows: list[tuple[str, str]]
    machine_rows: list[tuple[str, str]]
    version: str

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> CondenseReport:
        """Read a run's summary."""
        data, few = summary["data"], summary["set"]
        counts = {part: sum(values) for part, values in data["counts"].items()}
        arms = {arm["name"]: arm for arm in summary["arms"]}
        metric = "AUC" if summary["metric"] == "auc" else "accuracy"
        headline, lead = _sentences(summary, arms, metric, counts)
        state, verdict, reason = _verdict(summary)
        shape = " × ".join(map(str, data["shape"]))
        unit = "steps × features" if data["kind"] == "series" else "channels, height, width"
        return cls(
            name=str(data["source"]),
            headline=headline,
            lead=lead,
            facts=[
                str(data["source"]),
                f"{number(counts['train'], 0)} training, {number(counts['val'], 0)} validation and "
                f"{number(counts['test'], 0)} test rows",
                f"a row has {shape} ({unit})",
                f"{len(data['classes'])} classes",
            ],
            state=state,
            verdict=verdict,
            reason=reason,
            file=str(few["file"]),
            tiles=_tiles(summary, arms, metric),
            metric=metric,
            nets=[(str(net["name"]), bool(net["pool"])) for net in summary["nets"]],
            arms=[_arm(arm, summary["nets"]) for arm in summary["arms"]],
            scores=score_panel(summary["arms"], summary["nets"], metric),
            cards=[] if summary["privacy"] is None else _cards(summary["privacy"]),
            is_what=_is_what(summary),
            is_not=_is_not(summary),
            curves=[curve_panel(curve) for curve in summary["curves"]],
            classes=[
                (str(one["name"]), f"p{i}")
                for i, one in enumerate(
                    summary["curves"][0]["classes"] if summary["curves"] else []
                )
            ],
            pictures=summary["pictures"],
            python=python_snippet(summary),
            plain=_plain_snippet(str(few["file"])),
            how=_how(summary, metric, counts),
            notes=[str(note) for note in summary["notes"]],
            settings_rows=_table(summary["settings"]),
            machine_rows=_table(
                {**summary["machine"], "seconds since the last start": summary["seconds"]}
            ),
            version=str(summary["foveate"]),
        )


def write_condense_page(path: Path, summary: Mapping[str, Any]) -> Path:
    """Write the report of one run as a single HTML file.

    Parameters
    ----------
    path
        The page; written whole or not at all.
    summary
        Content of ``summary.json``.
    """
    report = CondenseReport.of(summary)
    panels = [report.scores, *report.curves]
    return write_page(
        Path(path),
        "condense.html.j2",
        {
            "page_title": f"{report.name} · foveate condense",
            "command": "condense",
            "version": report.version,
            "medical": "synthetic rows are no patients",
            "report": report,
            "panel_number": {id(panel): i for i, panel in enumerate(panels)},
            "identity": id,
        },
        styles=["shrink.css", "condense.css"],  # the same verdict, table and columns
        scripts=["shrink.js"],
        data={
            "panels": [
                {key: value for key, value in asdict(panel).items() if key in _DRAWN}
                for panel in panels
            ]
        },
    )


_DRAWN = {"figure", "height", "own_axes"}


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    """The result as lines for a terminal."""
    metric = "AUC" if summary["metric"] == "auc" else "accuracy"
    lines = [
        f"{arm['what']:<34} {arm['rows']:>7,} rows  {metric} {_percent(arm['mean'])} %"
        for arm in summary["arms"]
    ]
    if summary["privacy"] is None:
        lines.append("privacy: not measured (--privacy)")
    else:
        lines += summary["privacy"]["lines"]
    return lines


# ------------------------------------------------------------------------------ code to copy


def python_snippet(summary: Mapping[str, Any]) -> str:
    """Python that trains on the set."""
    data, few = summary["data"], summary["set"]
    shape = ", ".join(map(str, (few["rows"], *data["shape"])))
    own = "(N, T, F)" if data["kind"] == "series" else "(N, C, H, W), 0 to 1"
    return f"""from foveate.learning.condensation import CondensedSet
from torch.utils.data import DataLoader

few = CondensedSet.load({few["file"]!r})
print(few.meta["class_names"])  # what label 0, 1, ... means
loader = DataLoader(few.to_dataset(), batch_size=64, shuffle=True)  # x ({shape}), y

# ... train any network on it; before it sees rows of your own {own}:
x = few.normalizer(own_rows)"""


def _plain_snippet(file: str) -> str:
    return f"""from safetensors.torch import load_file

few = load_file({file!r})
x, y = few["x"], few["y"]  # x is normalised
own = (own_rows - few["mean"]) / (few["std"] + 1e-9)
own = own.clamp(-10, 10)"""


# ------------------------------------------------------------------------------ words


def _percent(share: float | None, digits: int = 1) -> str:
    return number(None if share is None else 100 * share, digits)


def _sentences(
    summary: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    metric: str,
    counts: Mapping[str, int],
) -> tuple[str, str]:
    few, every = arms["condensed"], arms["all"]
    headline = (
        f"{number(few['rows'], 0)} synthetic rows in place of {number(every['rows'], 0)}: "
        f"{metric} {_percent(few['mean'])} % where all real rows give {_percent(every['mean'])} %"
    )
    others = sum(not net["pool"] for net in summary["nets"])
    lead = (
        f"As many real rows, drawn at random, give {_percent(arms['random']['mean'])} %. Means "
        f"over {len(summary['nets'])} kinds of network, {others or 'none'} of which took no part "
        f"in condensing, on {number(counts['test'], 0)} test rows."
    )
    if None not in (few["mean"], arms["random"]["mean"]) and few["mean"] <= arms["random"]["mean"]:
        lead += " So condensing has gained nothing yet: give it more iterations or rows per class."
    return headline, lead


def _verdict(summary: Mapping[str, Any]) -> tuple[str, str, str]:
    """State (``good``, ``bad``, ``open``), heading and reason."""
    if summary["settings"]["init"] == "real":
        return "bad", "Not for sharing", "It began as copies of real rows (--init real)."
    privacy = summary["privacy"]
    if privacy is None:
        return "open", "Privacy was not looked at", "Run it with --privacy before you share it."
    signs = privacy["signs"]
    tests = {"proximity": "distance to training rows", "attack": "guessing who was in"}
    found = [words for key, words in tests.items() if signs[key] == "sign"]
    unsure = [words for key, words in tests.items() if signs[key] == "unclear"]
    if found:
        return (
            "bad",
            "Think before you share it",
            f"A sign of the rows it was made from was found: {' and '.join(found)}.",
        )
    if unsure:
        return (
            "open",
            "Privacy is not settled",
            f"A test was too weak here to find anything: {' and '.join(unsure)}.",
        )
    return (
        "good",
        "No trace of single rows found",
        "Two tests looked for traces of the rows it was made from and found none. That is "
        "evidence, not a guarantee.",
    )


def _tiles(
    summary: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]], metric: str
) -> list[tuple[str, str, str, str]]:
    """``(name, number, unit, remark)``."""
    few, privacy = summary["set"], summary["privacy"]
    attack = None if privacy is None else privacy["attacks"]["condensed"]
    label = "AUC" if metric == "AUC" else "Accuracy"
    return [
        (
            f"{label} with the set",
            _percent(arms["condensed"]["mean"]),
            "%",
            f"all real rows {_percent(arms['all']['mean'])} %",
        ),
        (
            "As many real rows",
            _percent(arms["random"]["mean"]),
            "%",
            f"chosen by k-means {_percent(arms['kmeans']['mean'])} %",
        ),
        (
            "File",
            *_bytes(few["bytes"]),
            f"{' '.join(_bytes(few['real_bytes']))} of training rows as float32",
        ),
        (
            "Guessing who was in",
            "–" if attack is None else number(attack["auc"], 2),
            "AUC" if attack is not None else "",
            "not measured" if attack is None else "0.50 is a coin toss",
        ),
    ]


def _arm(arm: Mapping[str, Any], nets: Sequence[Mapping[str, Any]]) -> Arm:
    scores = []
    for net in nets:
        found = arm["nets"][net["name"]]
        several = len(found["scores"]) > 1 and found["std"] is not None
        spread = f"± {_percent(found['std'])}" if several else ""
        scores.append((_percent(found["mean"]), spread))
    return Arm(
        name=str(arm["name"]),
        what=str(arm["what"]),
        rows=number(arm["rows"], 0),
        size=" ".join(_bytes(arm["bytes"])),
        scores=scores,
        mean=_percent(arm["mean"]),
        colour=ARM_COLOURS[arm["name"]],
    )


def _cards(privacy: Mapping[str, Any]) -> list[Card]:
    signs = privacy["signs"]
    cards = (
        ("proximity", _proximity(privacy["proximity"])),
        ("attack", _attack(privacy["attacks"])),
        ("one_row_less", _less(privacy["one_row_less"])),
        ("formal", _formal(privacy["formal"])),
    )
    return [Card(*content, word=_WORDS[signs[key]], sign=signs[key]) for key, content in cards]


Content = tuple[str, str, str, str, list[tuple[str, str]]]


def _proximity(near: Mapping[str, Any]) -> Content:
    count, nearer = len(near["to_train"]), near["nearer_to_train"] * len(near["to_train"])
    weak = "" if near["control_p"] <= LEVEL else " Here it would not have noticed real rows either."
    return (
        "Are synthetic rows nearer to the rows they were made from?",
        _p(near["p_value"]),
        "p",
        f"{number(nearer, 0 if nearer == round(nearer) else 1)} of {count} are nearer to a "
        f"training row than to any of {number(near['rows'], 0)} rows that were never used. Drawing "
        "lots which real rows are called training rows gives the like in "
        f"{_percent(near['p_value'], 0 if near['p_value'] >= LEVEL else 1)} % of draws; next to "
        f"none would mean that training rows were remembered.{weak}",
        [("synthetic rows", _p(near["p_value"])), ("copies of real rows", _p(near["control_p"]))],
    )


def _p(value: float) -> str:
    return number(value, 3 if value < 0.1 else 2)


def _attack(attacks: Mapping[str, Mapping[str, Any] | None]) -> Content:
    ours, power = attacks["condensed"], attacks["power"]
    question = "Can somebody tell who was in?"
    if ours is None:
        return question, "–", "", "No network could be attacked: its training diverged.", []
    weak = "" if power is None or power["auc"] > POWER else " Here it did not, so nothing follows."
    beside = [("networks trained on the set", ours), ("on all training rows", attacks["all"]),
              ("on as many real rows", attacks["random"]),
              ("where it must succeed", power)]  # fmt: skip
    return (
        question,
        number(ours["auc"], 2),
        "AUC",
        "Somebody trains a network on the set and guesses by its loss which of "
        f"{number(ours['members'], 0)} training and {number(ours['nonmembers'], 0)} test rows were "
        "condensed, equally many of each class; 0.50 is a coin toss. With 1 % false alarms "
        f"{_percent(ours['tpr_at_1_fpr'])} % are found. The attack must exceed {POWER:.2f} on few "
        f"rows trained for long.{weak}",
        [(words, number(attack["auc"], 2)) for words, attack in beside if attack is not None],
    )


def _less(less: Mapping[str, Any] | None) -> Content:
    question = "What does a single row change?"
    if less is None:
        return question, "–", "", "No class has enough rows to leave one out.", []
    change, other = (_three(100 * v) for v in (max(less["change"]), less["other_seed"]))
    tried = "One row was" if less["rows"] == 1 else f"{less['rows']} rows were"
    return (
        question,
        change,
        "% of the set",
        f"{tried} left out, one at a time, with the same random numbers; the largest change of "
        f"{number(less['iterations'], 0)} iterations counts. Predictions move by "
        f"{number(100 * max(less['prediction_change']), 2)} points of probability. How little is "
        "little enough, nobody knows.",
        [("one row less", f"{change} %"), ("another seed", f"{other} %")],
    )


def _three(value: float) -> str:
    """About two significant digits, never in powers of ten."""
    return number(value, 0 if value >= 10 else 1 if value >= 1 else 2 if value >= 0.1 else 3)


def _formal(formal: Mapping[str, Any] | None) -> Content:
    question = "Is there a formal guarantee?"
    if formal is None:
        return (
            question,
            "none",
            "",
            "No noise was added, so nothing is proven about any attack but those on this page. "
            "--noise adds it, at a price in accuracy.",
            [],
        )
    return (
        question,
        f"{formal['epsilon']:.3g}",
        "ε",
        "Differential privacy for one row more or less, if class counts and normaliser are public. "
        "It covers the set alone and not this page, which shows means of real rows. A research "
        "implementation.",
        [("δ", f"{formal['delta']:.2g}"), ("noise multiplier", f"{formal['noise_multiplier']:g}")],
    )


def _is_what(summary: Mapping[str, Any]) -> list[str]:
    data, few = summary["data"], summary["set"]
    per_class = summary["settings"]["per_class"]
    return [
        f"{number(few['rows'], 0)} synthetic rows, {number(per_class, 0)} for each of "
        f"{len(data['classes'])} classes, on which classifiers of such rows can be trained.",
        "Made so that networks with random weights answer to them, class by class, as they answer "
        "to the real rows.",
        "One file with rows, labels, and the mean and deviation that make new rows comparable.",
    ]


def _is_not(summary: Mapping[str, Any]) -> list[str]:
    found = [
        "Not patients, persons or records: no row is a plausible case; never read one as such.",
        "Not anonymised data, and no proof of privacy: what is said below is evidence from the "
        "tests that were run.",
        "Not a description of the population: shares of classes, correlations and rare cases are "
        "gone.",
    ]
    if summary["curves"] or summary["pictures"]:
        found.append(
            "This page is not the set: it shows means of real rows. Share it only where those may "
            "be seen."
        )
    return found


def _how(
    summary: Mapping[str, Any], metric: str, counts: Mapping[str, int]
) -> list[tuple[str, str]]:
    plan, settings = summary["plan"], summary["settings"]
    validated = int(summary["validated_on"])
    chosen = (
        f"The epoch with the best AUC on {number(validated, 0)} real validation rows counts, so "
        "more is used than the rows of the arm; --selection last is the strict form."
        if validated
        else "The last epoch counts, so nothing but the rows of the arm is used."
    )
    area = (
        "Area under the ROC curve: the chance that a row of the second class gets a higher score "
        "than one of the first; 50 % is guessing."
        if metric == "AUC"
        else f"Share of test rows that are classified right; guessing gives about "
        f"{number(100 / len(summary['data']['classes']), 0)} %."
    )
    return [
        (metric[0].upper() + metric[1:], area),
        (
            "Condensing",
            f"{number(plan['iterations'], 0)} iterations, each with a network of new random "
            f"weights ({', '.join(n['name'] for n in summary['nets'] if n['pool'])}) and up to "
            f"{settings['real_batch']} real rows of every class.",
        ),
        (
            "Training",
            f"Every network {_times(plan['inits'])} for {plan['epochs']} epochs on few rows, once "
            f"for {plan['full_epochs']} on all, from the same first weights in every line. "
            f"{chosen}",
        ),
        (
            "Test rows",
            f"{number(counts['test'], 0)} real rows that nothing was chosen by.",
        ),
    ]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _bytes(size: float) -> tuple[str, str]:
    """Number and unit, decimal."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return number(size / limit, 1 if size < 100 * limit else 0), unit
    return number(size, 0), "B"


def _table(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(key).replace("_", " "), _value(value)) for key, value in values.items()]


def _value(value: object) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


# ------------------------------------------------------------------------------ figures


def score_panel(
    arms: Sequence[Mapping[str, Any]], nets: Sequence[Mapping[str, Any]], metric: str
) -> OwnPanel:
    """Score of every arm, one line per network; single trainings as small dots.

    Parameters
    ----------
    arms
        ``name``, ``what``, ``nets`` (network -> ``mean`` and ``scores``, 0 to 1 or None).
    nets
        ``name``, ``pool``; in this order from above.
    """
    traces: list[Figure] = []
    place = {net["name"]: i for i, net in enumerate(nets)}
    for i, _ in enumerate(nets):
        means = [arm["nets"][nets[i]["name"]]["mean"] for arm in arms]
        known = [100 * mean for mean in means if mean is not None]
        if known:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [round(min(known), 3), round(max(known), 3)],
                    "y": [i, i],
                    "line": {"color": "@line", "width": 2},
                    "hoverinfo": "skip",
                }
            )
    values: list[float] = []
    for arm in arms:
        name, colour = str(arm["name"]), ARM_COLOURS[arm["name"]]
        dots = [
            (round(100 * score, 3), place[net])
            for net, found in arm["nets"].items()
            for score in found["scores"]
            if score is not None and len(found["scores"]) > 1
        ]
        if dots:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [x for x, _ in dots],
                    "y": [y for _, y in dots],
                    "marker": {"color": f"@{colour}/0.45", "size": 4},
                    "hoverinfo": "skip",
                }
            )
        known_nets = [net for net, found in arm["nets"].items() if found["mean"] is not None]
        x = [round(100 * arm["nets"][net]["mean"], 3) for net in known_nets]
        values += [*x, *(x for x, _ in dots)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": str(arm["what"]),
                "x": x,
                "y": [place[net] for net in known_nets],
                "marker": {
                    "color": f"@{colour}",
                    "symbol": _SYMBOLS[name],
                    "size": _SIZES[name],
                    "line": {"color": f"@{colour}", "width": 2 if name == "all" else 0},
                },
                "customdata": [html.escape(f"{arm['what']}, {net}") for net in known_nets],
                "hovertemplate": "%{customdata}<br>%{x:.1f} %<extra></extra>",
                "cliponaxis": False,
            }
        )
    low, high = min(values, default=0.0), max(values, default=100.0)
    air = max(0.06 * (high - low), 1.0)
    layout = {
        "margin": {"l": 118, "r": 18, "t": 6, "b": 42},
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": {
            "range": [round(low - air, 3), round(min(high + air, 102.0), 3)],
            "ticksuffix": " %",
            "nticks": 7,
            "title": {
                "text": f"{metric} on real test rows",
                "standoff": 8,
                "font": {"size": 12, "color": "@muted"},
            },
            "zeroline": False,
            "fixedrange": True,
        },
        "yaxis": {
            "range": [len(nets) - 0.4, -0.6],
            "tickvals": list(range(len(nets))),
            "ticktext": [
                html.escape(net["name"]) + ("" if net["pool"] else "<br><i>outsider</i>")
                for net in nets
            ],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    }
    said = "; ".join(
        f"{arm['what']}: "
        + ", ".join(f"{net} {_percent(found['mean'])} %" for net, found in arm["nets"].items())
        for arm in arms
    )
    return OwnPanel(
        title=f"{metric[0].upper() + metric[1:]} by network",
        note="An outsider took no part in condensing. Small dots are single trainings.",
        description=f"{said}.",
        figure={"data": traces, "layout": layout},
        height=60 + 54 * len(nets),
    )


def curve_panel(curve: Mapping[str, Any]) -> OwnPanel:
    """Course of one feature: real class means with their spread, and synthetic rows, thin.

    Parameters
    ----------
    curve
        ``feature``, ``steps`` (S), ``classes``: ``name``, ``mean`` and ``std`` (S) of real rows,
        ``synthetic``: rows of S values; all in the units of the data.
    """
    steps = [int(step) for step in curve["steps"]]
    lone = len(steps) == 1
    traces: list[Figure] = []
    for i, one in enumerate(curve["classes"]):
        name = html.escape(str(one["name"]))
        for k, row in enumerate(one["synthetic"]):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers" if lone else "lines",
                    "x": [i - 0.25 + 0.5 * (k + 0.5) / len(one["synthetic"])] if lone else steps,
                    "y": row,
                    "line": {"color": f"@p{i}/0.32", "width": 1},
                    "marker": {"color": f"@p{i}/0.5", "size": 6},
                    "hoverinfo": "skip",
                }
            )
        if not lone:
            upper = [m + s for m, s in zip(one["mean"], one["std"], strict=True)]
            lower = [m - s for m, s in zip(one["mean"], one["std"], strict=True)]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": steps + steps[::-1],
                    "y": [float(f"{v:.5g}") for v in upper + lower[::-1]],
                    "fill": "toself",
                    "fillcolor": f"@p{i}/0.13",
                    "line": {"width": 0},
                    "hoverinfo": "skip",
                }
            )
    for i, one in enumerate(curve["classes"]):
        name = html.escape(str(one["name"]))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers" if lone else "lines",
                "x": [i] if lone else steps,
                "y": one["mean"],
                "line": {"color": f"@p{i}", "width": 2.6},
                "marker": {
                    "color": f"@p{i}",
                    "symbol": "line-ew",
                    "size": 60,
                    "line": {"color": f"@p{i}", "width": 3},
                },
                "hovertemplate": f"{name}, mean of real rows<br>%{{y:.4g}}<extra></extra>",
            }
        )
    names = [html.escape(str(one["name"])) for one in curve["classes"]]
    layout: Figure = {
        "margin": {"l": 50, "r": 12, "t": 6, "b": 24},
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": {
            "range": [-0.6, len(names) - 0.4] if lone else [steps[0], steps[-1]],
            "showgrid": False,
            "zeroline": False,
            "showline": True,
            "fixedrange": True,
            **({"tickvals": list(range(len(names))), "ticktext": names} if lone else {"nticks": 6}),
        },
        "yaxis": {"nticks": 5, "zeroline": False, "fixedrange": True},
    }
    feature = str(curve["feature"])
    said = "; ".join(
        f"{one['name']}: mean of real rows from {one['mean'][0]:.4g} to {one['mean'][-1]:.4g}, "
        f"{len(one['synthetic'])} synthetic rows"
        for one in curve["classes"]
    )
    return OwnPanel(
        title=feature,
        note="",
        description=f"{feature}: {said}.",
        figure={"data": traces, "layout": layout},
        height=200,
        size="small",
    )
