"""DEAL: does an ensemble of query criteria that learns whom to trust label better?

Paper: Pang, Dong, Wu, Hospedales, "Dynamic Ensemble Active Learning: A Non-Stationary Bandit with
Expert Advice", ICPR 2018 (arXiv 1810.07778). Abstract and introduction were read, not the
experiments: their 13 data sets, criteria, budgets and figures are not known here. Advice, reward
and constants come from a public re-implementation (`foveate.learning.active` says which).

Eight ways of spending the same labels, with the same splits and first labels:

    us, dens, dff, rand    one criterion alone
    uniform                all four, equal trust for ever              <- the ablation
    exp4                   trust learned, never forgotten
    albl                   one proposal for each criterion, EXP4.P (the method before this one)
    rexp4                  DEAL: trust learned, forgotten every ten labels     <- the method

on 13 public tables (not the paper's 13). Half of a table is the test set, one label per class is
given, 60 are bought, and the classifier is fitted afresh after each. The metric is the area under
the learning curve (ALC): the mean test accuracy over the 60 steps, in percent. One seed is one
repetition: a split, first labels and draws. No setting is tuned.

Beside them, two arms of another kind. ``simulation``: a *simulated* bandit whose good expert
changes seven times; only there is it known when the best expert changes, so only there the worth of
restarting is judged. ``vision``: T-shirt or shirt (Fashion-MNIST), 50 principal components of 2000
pictures, 100 labels; reported without a verdict.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import config_context
from sklearn import datasets as bundled
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from foveate.datasets import catalogue, keel
from foveate.datasets.images import FashionMNIST, balanced_subset
from foveate.errors import FoveateError
from foveate.learning.active import (
    ALBL,
    DEAL,
    LearningCurve,
    SingleExpert,
    Strategy,
    Task,
    UniformMixture,
    pool_task,
    simulate,
)
from foveate.learning.bandits import EXP4, REXP4, restart_schedule, static_gamma
from foveate.report.evidence import (
    Claim,
    Evidence,
    Finding,
    Items,
    Ledger,
    Metrics,
    Result,
    Verdict,
    mean,
)

__all__ = ["ARMS", "CLAIM", "PRESETS", "Config", "run"]

SINGLES = {"us": "US", "dens": "DENS", "dff": "DFF", "rand": "RAND"}
STRATEGIES = (*SINGLES, "uniform", "exp4", "albl", "rexp4")
ARMS = {
    "us": "uncertainty alone: the smallest gap between the two likeliest classes",
    "dens": "density alone: the largest mean similarity to the pool",
    "dff": "diversity alone: the farthest from all labels",
    "rand": "random",
    "uniform": "the four criteria mixed with equal weights",
    "exp4": "DEAL without restarts",
    "albl": "active learning by learning: EXP4.P over one proposal for each criterion",
    "rexp4": "DEAL: the four criteria mixed by REXP4",
    "simulation": "simulated bandit, 4 experts, 8 arms, no data; regret against the best expert",
    "vision": "T-shirt or shirt (Fashion-MNIST), all eight strategies; no verdict",
}
REGRETS = (
    *("rexp4-switching", "exp4-switching", "exp4-same-gamma-switching"),
    *("rexp4-still", "exp4-still"),
)

MIN_REPETITIONS, MIN_SETS = 20, 8
P_VALUE = 0.05
BOUND = 4.0  # points of ALC below the best single criterion
MISSES = 3  # of the four single criteria that must break that bound somewhere
LESS_REGRET = 0.05
CLEAR = 2.0  # standard errors by which a change of the best criterion counts

CLAIM = Claim(
    text=(
        "An ensemble of query criteria that learns whom to trust, and forgets, labels better than "
        "the same ensemble with equal trust, is never the worst choice and stays near the best "
        "single criterion whatever the data"
    ),
    metric="alc",
    direction="higher",
    method="rexp4",
    ablation="uniform",
    rule=(
        f"with at least {MIN_REPETITIONS} repetitions and {MIN_SETS} sets: (i) mean ALC over sets "
        f"above the uniform mixture, one-sided Wilcoxon over sets p < {P_VALUE} (right sign alone: "
        "inconclusive); (ii) on no set the lowest of the eight arms by more than one standard "
        f"error; (iii) within {BOUND:g} points of the best single criterion on every set, while at "
        f"least {MISSES} of the 4 single criteria miss that bound somewhere"
    ),
)

KEEL = (
    *("australian", "bupa", "crx", "german", "heart", "ionosphere", "mammographic"),
    *("phoneme", "pima", "saheart", "sonar", "spambase", "wdbc"),
)
BUNDLED = (
    *("breast_cancer", "wine", "digits-1-7", "digits-2-3"),
    *("digits-3-8", "digits-4-9", "digits-5-6", "digits-8-9"),
)
PAIR = (0, 6)  # T-shirt and shirt

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
Measured = tuple[Metrics, Items]
Sessions = Callable[[Sequence["Job"]], list[LearningCurve]]


@dataclass(frozen=True)
class Config:
    """Every setting.

    Attributes
    ----------
    data
        ``KEEL``: 13 binary tables below `data_root`; ``scikit-learn``: eight sets of its own,
        always at hand.
    data_root
        Folder of data sets (default: foveate's data folder).
    sets
        Which of them; None: all.
    rows
        Of larger tables, a fixed random draw of so many rows.
    budget
        Labels that are bought, T.
    gamma, restart
        Exploration of the mixtures, and labels between two restarts of ``rexp4``.
    estimator
        ``logistic`` regression or linear ``svm``, both with C = 1.
    rounds
        Of the simulated bandit; 0: none.
    vision_repetitions
        The first so many seeds also run ``vision``; 0: none.
    vision_pool, vision_budget, vision_restart
        Pictures of its pool, half of each class; its labels; labels between restarts.
    workers
        Processes that share the sets of a repetition; the result is the same for any number.
    """

    scale: str
    data: Literal["KEEL", "scikit-learn"] = "KEEL"
    data_root: Path | None = None
    sets: tuple[str, ...] | None = None
    rows: int = 1000
    budget: int = 60
    gamma: float = 0.1
    restart: int = 10
    estimator: Literal["logistic", "svm"] = "logistic"
    rounds: int = 2000
    vision_repetitions: int = 5
    vision_pool: int = 2000
    vision_budget: int = 100
    vision_restart: int = 20
    workers: int = 1
    seeds: tuple[int, ...] = tuple(range(20))

    def __post_init__(self) -> None:
        known = KEEL if self.data == "KEEL" else BUNDLED
        if self.sets is not None and not (self.sets and set(self.sets) <= set(known)):
            raise FoveateError(f"sets of {self.data} are {', '.join(known)}; got {self.sets}")
        if min(self.budget, self.vision_budget) < 3 or self.workers < 1:
            raise FoveateError(
                "budget and vision_budget are at least 3 and workers at least 1, got "
                f"{self.budget}, {self.vision_budget} and {self.workers}"
            )
        if self.rounds < 16 and self.rounds != 0:
            raise FoveateError(f"rounds are 0 or at least 16, got {self.rounds}")


PRESETS = {
    "smoke": Config(
        scale="smoke",
        data="scikit-learn",
        sets=("breast_cancer", "wine"),
        budget=3,
        rounds=160,
        vision_repetitions=0,
        seeds=(0,),
    ),
    "desk": Config(scale="desk"),
    # The published settings are not known: a longer session with the usual classifier of its time.
    "paper": Config(scale="paper", budget=100, restart=20, estimator="svm", seeds=tuple(range(50))),
}


def run(config: Config, progress: Progress | None = None) -> Evidence:
    """Let every strategy label every set under every seed; finished work is reused.

    Raises
    ------
    FoveateError
        The tables are not there, are damaged, or are smaller than the budget.
    """
    started = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    tables = load_tables(config)
    pictures = load_pictures(config)
    # the number of workers changes no number
    ledger = Ledger(
        "dynamic-ensemble-active-learning", dataclasses.replace(config, workers=1), __file__
    )
    jobs = []
    for repetition, seed in enumerate(config.seeds):
        jobs += [(arm, seed) for arm in STRATEGIES]
        if config.rounds:
            jobs.append(("simulation", seed))
        if pictures is not None and repetition < config.vision_repetitions:
            jobs.append(("vision", seed))

    results = []
    with sessions(config.workers) as play:
        for done, (arm, seed) in enumerate(jobs):
            tell(f"{arm}, repetition {seed}", done, len(jobs))

            def compute(arm: str = arm, seed: int = seed) -> Metrics | Measured:
                if arm == "simulation":
                    return simulated_bandit(config.rounds, seed)
                if arm == "vision":
                    assert pictures is not None
                    return vision(pictures, seed, config, play)
                return on_tables(arm, seed, tables, config, play)

            results.append(ledger.result(arm, seed, compute))
    notes = remarks(results, tuple(tables))
    if pictures is None and config.vision_repetitions:
        notes.append("Fashion-MNIST is not at hand: no vision arm.")
    what = "UCI tables, not the paper's 13" if config.data == "KEEL" else "sets of scikit-learn"
    return Evidence(
        recipe="dynamic-ensemble-active-learning",
        claim=CLAIM,
        verdict=verdict(results, tuple(tables)),
        arms=ARMS,
        results=results,
        data=f"{len(tables)} {what}, {config.budget} labels each (arm simulation: simulated)",
        simulated=False,
        scale=config.scale,
        config=dataclasses.asdict(config),
        findings=findings(results, tuple(tables)),
        notes=notes,
        seconds=round(time.perf_counter() - started, 1),
    )


# ------------------------------------------------------------------------------ sessions


@dataclass(frozen=True, eq=False)
class Job:
    """One strategy on one pool; `seed` is that of its draws."""

    arm: str
    task: Task
    budget: int
    gamma: float
    restart: int
    estimator: str
    seed: int


def session(job: Job) -> LearningCurve:
    """Play one job."""
    # the strategies check what they are given; scikit-learn need not do it 125,000 times more
    with config_context(assume_finite=True, skip_parameter_validation=True):
        return simulate(strategy(job), job.task, job.budget)


def strategy(job: Job) -> Strategy:
    """The strategy that an arm names, with its own classifier and generator."""
    # Newton's method reaches the optimum of these small fits soonest
    estimator: Any = (
        SVC(kernel="linear")
        if job.estimator == "svm"
        else LogisticRegression(solver="newton-cholesky")
    )
    draws = np.random.default_rng([job.seed, 2])
    if job.arm in SINGLES:
        return SingleExpert(SINGLES[job.arm], estimator, job.budget, draws)
    if job.arm == "albl":
        return ALBL(None, estimator, job.budget, random_state=draws)
    if job.arm == "uniform":
        return UniformMixture(None, estimator, job.budget, gamma=job.gamma, random_state=draws)
    restart = job.restart if job.arm == "rexp4" else None
    return DEAL(None, estimator, job.budget, job.gamma, restart, random_state=draws)


@contextlib.contextmanager
def sessions(workers: int) -> Iterator[Sessions]:
    """A function that plays many jobs, in their order, in this process or in several.

    One thread each: more cost more than they give on pools this small.
    """
    if workers == 1:
        with threadpool_limits(1):
            yield lambda jobs: [session(job) for job in jobs]
        return
    fresh = get_context("spawn")  # a fork would copy the threads' locks
    with ProcessPoolExecutor(workers, fresh, initializer=threadpool_limits, initargs=(1,)) as pool:
        yield lambda jobs: list(pool.map(session, jobs))


def on_tables(
    arm: str, seed: int, tables: dict[str, tuple[Array, Labels]], config: Config, play: Sessions
) -> Measured:
    """ALC of every table in percent, and the accuracy after each third of the budget."""
    rest = (config.budget, config.gamma, config.restart, config.estimator, seed)
    jobs = [Job(arm, pool_task(x, y, seed), *rest) for x, y in tables.values()]
    curves = dict(zip(tables, play(jobs), strict=True))
    by_set = {name: 100 * curve.alc for name, curve in curves.items()}
    thirds = [round(config.budget * part / 3) for part in range(4)]
    items = {f"thirds-{n}": (100 * c.accuracy[thirds]).round(4).tolist() for n, c in curves.items()}
    if arm == "rexp4":
        trust = np.mean([curve.weights for curve in curves.values()], axis=0).round(4)
        experts = next(iter(curves.values())).experts
        items |= {f"trust-{e}": trust[:, m].tolist() for m, e in enumerate(experts)}
        items["restarts"] = [float(t) for t in next(iter(curves.values())).restarts]
    return {"alc": float(np.mean(list(by_set.values()))), **by_set}, items


def vision(pictures: Pictures, seed: int, config: Config, play: Sessions) -> Metrics:
    """ALC in percent of all strategies on one pool of pictures."""
    task = picture_task(pictures, config.vision_pool, seed)
    rest = (config.vision_budget, config.gamma, config.vision_restart, config.estimator, seed)
    curves = zip(STRATEGIES, play([Job(arm, task, *rest) for arm in STRATEGIES]), strict=True)
    return {f"vision-{arm}": 100 * curve.alc for arm, curve in curves}


# ------------------------------------------------------------------------------ simulation


def simulated_bandit(rounds: int, seed: int) -> Metrics:
    """Regret against the best expert of each round, summed, of all five players.

    Eight arms that pay 1 with probability 0.8 (the good one) or 0.2; four experts, each with 0.9
    on an arm of its own. ``switching``: another expert's arm is the good one after every eighth of
    the rounds; ``still``: it is the same throughout. gamma and restart follow their formulas.
    """
    n_experts, n_arms, blocks = 4, 8, 8
    advice = np.full((n_experts, n_arms), 0.1 / (n_arms - 1))
    advice[np.arange(n_experts), np.arange(n_experts)] = 0.9
    draw = np.random.default_rng([seed, 3])
    good = [int(draw.integers(n_experts))]
    while len(good) < blocks:
        good.append(int((good[-1] + draw.integers(1, n_experts)) % n_experts))
    restart, gamma = restart_schedule(n_arms, n_experts, rounds, (blocks - 1) * 0.6)
    own = static_gamma(n_arms, n_experts, rounds)
    regrets = {}
    for scene, at in (("switching", np.arange(rounds) * blocks // rounds), ("still", None)):
        means = np.full((rounds, n_arms), 0.2)
        means[np.arange(rounds), np.take(good, at) if at is not None else good[0]] = 0.8
        pays = (draw.random((rounds, n_arms)) < means).astype(float)  # the same for every player
        players = {
            "rexp4": REXP4(n_experts, gamma, restart),
            "exp4": EXP4(n_experts, own),
            "exp4-same-gamma": EXP4(n_experts, gamma),
        }
        for name, bandit in players.items():
            if f"{name}-{scene}" in REGRETS:
                chance = np.random.default_rng([seed, 4]).random(rounds)
                regrets[f"{name}-{scene}"] = regret(bandit, advice, means, pays, chance)
    return regrets


def regret(bandit: REXP4, advice: Array, means: Array, pays: Array, chance: Array) -> float:
    """Sum over rounds of max_m xi_m . mu_t - mu_t[drawn]."""
    best = (means @ advice.T).max(axis=1)
    total = 0.0
    for t in range(len(means)):
        p = bandit.probabilities(advice)
        arm = min(int(np.searchsorted(np.cumsum(p), chance[t], side="right")), len(p) - 1)
        bandit.update(arm, pays[t, arm])
        total += best[t] - means[t, arm]
    return float(total)


# ------------------------------------------------------------------------------ verdicts


def table_of(results: Sequence[Result], metric: str) -> Array:
    """``(8, R)``: a metric of all strategies under the seeds that all of them have."""
    by_arm = {
        arm: {r.seed: r.metrics.get(metric, math.nan) for r in results if r.arm == arm}
        for arm in STRATEGIES
    }
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in by_arm.values())))
    return np.array([[by_arm[arm][seed] for seed in seeds] for arm in STRATEGIES])


def error_of(differences: Array) -> float:
    """Standard error of the mean of paired differences ``(R,)``."""
    return float(differences.std(ddof=1) / math.sqrt(len(differences)))


def enough(results: Sequence[Result], sets: Sequence[str]) -> bool:
    """As many repetitions and sets as the rule asks for, none of them NaN."""
    tables = [table_of(results, name) for name in sets]
    return len(sets) >= MIN_SETS and all(
        table.shape[1] >= MIN_REPETITIONS and not np.isnan(table).any() for table in tables
    )


def against_uniform(results: Sequence[Result], sets: Sequence[str]) -> tuple[float, float, int]:
    """(i): mean gain over sets in points, one-sided p, sets with a gain."""
    means = np.array([table_of(results, name).mean(axis=1) for name in sets])
    gains = means[:, STRATEGIES.index("rexp4")] - means[:, STRATEGIES.index("uniform")]
    p = float(stats.wilcoxon(gains, alternative="greater").pvalue) if gains.any() else math.nan
    return float(gains.mean()), p, int((gains > 0).sum())


def worst_on(results: Sequence[Result], sets: Sequence[str]) -> list[str]:
    """(ii): sets on which DEAL is the lowest of all by more than one standard error."""
    ours, found = STRATEGIES.index("rexp4"), []
    for name in sets:
        table = table_of(results, name)
        next_lowest = min(
            (a for a in range(len(table)) if a != ours), key=lambda a: table[a].mean()
        )
        gap = table[next_lowest] - table[ours]
        if gap.mean() > error_of(gap):
            found.append(name)
    return found


def behind_best(results: Sequence[Result], sets: Sequence[str]) -> dict[str, float]:
    """(iii): arm -> most points that it loses on any set against the best single criterion."""
    means = np.array([table_of(results, name).mean(axis=1) for name in sets])
    lost = means[:, : len(SINGLES)].max(axis=1, keepdims=True) - means
    return dict(zip(STRATEGIES, lost.max(axis=0).tolist(), strict=True))


def first_rule(gain: float, p: float) -> Verdict:
    """(i)."""
    if not gain > 0:
        return "not reproduced"
    return "reproduced" if p < P_VALUE else "inconclusive"


def third_rule(behind: dict[str, float]) -> Verdict:
    """(iii)."""
    missing = sum(behind[arm] > BOUND for arm in SINGLES)
    return _said(behind["rexp4"] <= BOUND and missing >= MISSES)


def verdict(results: Sequence[Result], sets: Sequence[str]) -> Verdict:
    """The rule (`CLAIM.rule`): not reproduced where a part fails, inconclusive where (i) is."""
    if not enough(results, sets):
        return "inconclusive"
    parts = [
        first_rule(*against_uniform(results, sets)[:2]),
        _said(not worst_on(results, sets)),
        third_rule(behind_best(results, sets)),
    ]
    if "not reproduced" in parts:
        return "not reproduced"
    return "inconclusive" if "inconclusive" in parts else "reproduced"


def changes(results: Sequence[Result], sets: Sequence[str]) -> tuple[dict[str, list[str]], int]:
    """(iv): the single criterion that gains most in each third of the session, set by set.

    Returns
    -------
    winners, clear
        Set -> three arms. Number of sets where two thirds have different winners and each of the
        two leads the other in its own third by more than `CLEAR` standard errors (paired).
    """
    winners, clear = {}, 0
    for name in sets:
        of = {arm: [r.items[f"thirds-{name}"] for r in results if r.arm == arm] for arm in SINGLES}
        gains = np.diff(np.array(list(of.values())), axis=2)  # (4, R, 3)
        best = gains.mean(axis=1).argmax(axis=0)
        winners[name] = [list(SINGLES)[a] for a in best]
        # in third u: the lead of its own winner over the winner of third v
        gaps = [[gains[best[u], :, u] - gains[best[v], :, u] for v in range(3)] for u in range(3)]
        leads = [[gap.mean() > CLEAR * error_of(gap) for gap in row] for row in gaps]
        clear += any(leads[u][v] and leads[v][u] for u in range(3) for v in range(u))
    return winners, clear


def findings(results: Sequence[Result], sets: Sequence[str]) -> list[Finding]:
    """The three parts of the rule, the premise, and the simulation."""
    found = []
    if all(table_of(results, name).shape[1] >= 2 for name in sets):
        sure = enough(results, sets)
        gain, p, wins = against_uniform(results, sets)
        worst = worst_on(results, sets)
        behind = behind_best(results, sets)
        single = ", ".join(f"{arm} {behind[arm]:.1f}" for arm in SINGLES)
        winners, clear = changes(results, sets)
        several = sum(len(set(three)) > 1 for three in winners.values())
        found = [
            Finding(
                f"(i) DEAL has a higher mean ALC than the uniform mixture: {gain:+.2f} points over "
                f"{len(sets)} sets, {wins} of them up, Wilcoxon p = {p:.3f}.",
                first_rule(gain, p) if sure else "inconclusive",
            ),
            Finding(
                "(ii) DEAL is nowhere the worst of the eight by more than one standard error; sets "
                f"where it is: {', '.join(worst) or 'none'}.",
                _said(not worst) if sure else "inconclusive",
            ),
            Finding(
                f"(iii) DEAL stays within {BOUND:g} points of the best single criterion (it loses "
                f"{behind['rexp4']:.1f} at most) and at least {MISSES} of the single criteria do "
                f"not ({single}).",
                third_rule(behind) if sure else "inconclusive",
            ),
            Finding(
                "(iv) On most sets the best criterion changes within the session: another single "
                f"criterion gains most in another third on {several} of {len(sets)} sets, by more "
                f"than {CLEAR:g} standard errors both ways on {clear}.",
                _said(clear > len(sets) / 2) if sure else "inconclusive",
            ),
        ]
    if any(r.arm == "simulation" for r in results):
        found += simulation_findings(results)
    return found


def simulation_findings(results: Sequence[Result]) -> list[Finding]:
    """Restarts pay when the best expert changes, and cost when it does not."""
    at = {name: mean(results, "simulation", name) for name in REGRETS}
    sure = sum(r.arm == "simulation" for r in results) >= MIN_REPETITIONS
    rivals = (at["exp4-switching"], at["exp4-same-gamma-switching"])
    ours = at["rexp4-switching"]
    return [
        Finding(
            f"Simulated: with seven changes of the best expert, REXP4's regret is at least "
            f"{100 * LESS_REGRET:g} % below EXP4's: {ours:.0f} against {rivals[0]:.0f} (EXP4's own "
            f"gamma) and {rivals[1]:.0f} (REXP4's gamma).",
            _said(ours <= (1 - LESS_REGRET) * min(rivals)) if sure else "inconclusive",
        ),
        Finding(
            "Simulated: without any change EXP4 has less regret, which is what restarts cost: "
            f"{at['exp4-still']:.0f} against {at['rexp4-still']:.0f}.",
            _said(at["exp4-still"] < at["rexp4-still"]) if sure else "inconclusive",
        ),
    ]


def remarks(results: Sequence[Result], sets: Sequence[str]) -> list[str]:
    """What has no verdict: restarts on real sets, ranks, wins, winners of the thirds, vision."""
    notes = []
    tables = {name: table_of(results, name) for name in sets}
    repetitions = min(table.shape[1] for table in tables.values())
    if repetitions >= 2:
        ours, other = STRATEGIES.index("rexp4"), STRATEGIES.index("exp4")
        total = np.mean(list(tables.values()), axis=0)
        gap = total[ours] - total[other]
        p = float(stats.ttest_rel(total[ours], total[other]).pvalue)
        notes.append(
            f"Restarts on real sets: DEAL minus EXP4 {gap.mean():+.2f} points of ALC, paired "
            f"t-test over {repetitions} repetitions p = {p:.2f}; no sign is claimed."
        )
        ranks = np.mean([stats.rankdata(-t.mean(axis=1)) for t in tables.values()], axis=0)
        notes.append(
            "Mean rank over sets (1 best): "
            + ", ".join(f"{a} {r:.1f}" for a, r in zip(STRATEGIES, ranks, strict=True))
            + "."
        )
        notes.append(
            "DEAL's wins/ties/losses over sets (paired t-test, p < 0.05): " + duels(tables)
        )
        winners, _ = changes(results, sets)
        notes.append(
            "Single criterion that gains most in each third of the session: "
            + "; ".join(f"{name} {', '.join(three)}" for name, three in winners.items())
            + "."
        )
    if seen := [r for r in results if r.arm == "vision"]:
        listed = (f"{a} {mean(results, 'vision', f'vision-{a}'):.1f}" for a in STRATEGIES)
        notes.append(f"T-shirt or shirt, ALC over {len(seen)} repetitions: {', '.join(listed)}.")
    return notes


def duels(tables: dict[str, Array]) -> str:
    """``us 5/6/2, ...``: DEAL against every other strategy."""
    ours, listed = STRATEGIES.index("rexp4"), []
    for other, arm in enumerate(STRATEGIES):
        if other == ours:
            continue
        score = [0, 0, 0]
        for table in tables.values():
            gap = table[ours] - table[other]
            sure = gap.any() and stats.ttest_rel(table[ours], table[other]).pvalue < P_VALUE
            score[1 if not sure else 0 if gap.mean() > 0 else 2] += 1
        listed.append(f"{arm} {'/'.join(map(str, score))}")
    return ", ".join(listed) + "."


def _said(true: bool) -> Verdict:
    return "reproduced" if true else "not reproduced"


# ------------------------------------------------------------------------------ data


def load_tables(config: Config) -> dict[str, tuple[Array, Labels]]:
    """Name -> features ``(N, D)`` and classes ``(N,)`` of the sets that `config` names."""
    root = config.data_root or catalogue.data_root()
    tables = {}
    for name in config.sets or (KEEL if config.data == "KEEL" else BUNDLED):
        if config.data == "KEEL":
            try:
                table = keel.load(name, root, config.rows)
            except FoveateError as error:
                raise FoveateError(
                    f"{error}; name its folder with --set data_root=FOLDER, or take the sets of "
                    "scikit-learn with --set data=scikit-learn"
                ) from error
            tables[name] = table.x, table.y
        else:
            tables[name] = bundled_set(name)
        classes, count = len(np.unique(tables[name][1])), len(tables[name][1])
        if count // 2 - classes < config.budget:
            raise FoveateError(
                f"the set {name} has {count} rows, too few for a test half, {classes} first labels "
                f"and a budget of {config.budget}; lower the budget or leave it out of --set sets"
            )
    return tables


def bundled_set(name: str) -> tuple[Array, Labels]:
    """One of `BUNDLED`; ``digits-3-8`` are scikit-learn's 8x8 digits 3 and 8."""
    if not name.startswith("digits-"):
        load = bundled.load_wine if name == "wine" else bundled.load_breast_cancer
        x, y = load(return_X_y=True)
        return x, y.astype(np.int64)
    x, y = bundled.load_digits(return_X_y=True)
    pair = [int(digit) for digit in name.split("-")[1:]]
    kept = np.isin(y, pair)
    return x[kept], (y[kept] == pair[1]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Pictures:
    """T-shirts and shirts: pixels ``(N, 784)`` in [0, 1], classes 0 and 1; official split."""

    x_train: Array
    y_train: Labels
    x_test: Array
    y_test: Labels


def load_pictures(config: Config) -> Pictures | None:
    """The pair of Fashion-MNIST; None when it is not wanted or not at hand."""
    place = FashionMNIST.card.locate(config.data_root or catalogue.data_root())
    if place is None or not config.vision_repetitions:
        return None
    parts: list[Any] = []
    for split in ("train", "test"):
        images, labels = FashionMNIST(place, split).arrays()
        kept = np.isin(labels, PAIR)
        parts.append(images[kept].reshape(int(kept.sum()), -1) / 255)
        parts.append((labels[kept] == PAIR[1]).astype(np.int64))
    return Pictures(*parts)


def picture_task(pictures: Pictures, size: int, seed: int) -> Task:
    """A class-balanced pool in 50 principal components, fitted on the pool and z-scored."""
    chosen = balanced_subset(pictures.y_train, size // 2, seed)
    pool, y = pictures.x_train[chosen], pictures.y_train[chosen]
    components = PCA(min(50, *pool.shape), svd_solver="full", whiten=True).fit(pool)
    x, x_test = components.transform(pool), components.transform(pictures.x_test)
    draw = np.random.default_rng([seed, 1])
    start = np.array([draw.choice(np.flatnonzero(y == label)) for label in (0, 1)])
    left = np.setdiff1d(np.arange(len(y)), start)
    return Task(x[left], y[left], x_test, pictures.y_test, x[start], y[start], seed)
