"""Privacy numbers against pair counting, closed forms and sets that do give their rows away."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.errors import FoveateError
from foveate.learning.condensation import DistributionMatching
from foveate.learning.privacy import (
    GaussianRelease,
    PrivacyReport,
    attack_report,
    leave_one_out,
    likelihood_ratio,
    matched_rows,
    membership_inference,
    nearest_real_report,
    row_losses,
    shadow_masks,
)
from foveate.nn.timeseries import LSTMClassifier, MultiBranchTCN

# --- 1 proximity ---------------------------------------------------------------------------


def test_distances_are_to_the_nearest_row_of_each_side():
    rng = np.random.default_rng(0)
    s, train, holdout = (rng.normal(size=(n, 4, 3)).astype(np.float32) for n in (5, 30, 30))
    found = nearest_real_report(s, train, holdout, relabellings=9)
    for side, distances in ((train, found.to_train), (holdout, found.to_holdout)):
        expected = [min(math.dist(a.ravel(), b.ravel()) for b in side) for a in s]
        np.testing.assert_allclose(distances, expected, rtol=1e-5)
    textbook = scipy.stats.mannwhitneyu(found.to_train, found.to_holdout, alternative="less")
    assert found.p_textbook == pytest.approx(textbook.pvalue)
    assert found.rows == 30
    share = np.mean(found.to_train < found.to_holdout)
    assert found.nearer_to_train == pytest.approx(share)


def test_p_value_is_the_share_of_relabellings_that_are_as_extreme():
    """Four rows have six labellings: the p-value of a copy is one of two or three in six."""
    train, holdout = np.array([[0.0], [1.0]]), np.array([[5.0], [9.0]])
    found = nearest_real_report([[0.1], [0.9]], train, holdout, relabellings=4000)
    statistics = []
    for pair in ((0, 1), (0, 5), (0, 9), (1, 5), (1, 9), (5, 9)):
        rest = {0, 1, 5, 9} - set(pair)
        near = [[min(abs(s - r) for r in side) for s in (0.1, 0.9)] for side in (pair, rest)]
        statistics.append(scipy.stats.mannwhitneyu(*near).statistic)
    expected = np.mean(np.array(statistics) <= statistics[0])
    assert found.p_value == pytest.approx(expected, abs=0.03)


def test_copies_are_caught_and_noise_is_not():
    """The test has power, and a false alarm at its level; the textbook's has far more of them."""
    rng = np.random.default_rng(1)
    textbook = alarms = 0
    for _ in range(40):
        real = rng.normal(size=(60, 100))
        real[rng.integers(60)] = 0  # the most central row is nearest to everything
        found = nearest_real_report(rng.normal(size=(15, 100)), real[:30], real[30:], 0, 99)
        textbook, alarms = textbook + (found.p_textbook <= 0.05), alarms + (not found.passed)
    assert alarms <= 6  # binomial of 40 and 0.05
    assert textbook > 10
    train, holdout = rng.normal(size=(2, 50, 30))
    leak = nearest_real_report(train[:15] + 0.01, train, holdout)
    assert leak.p_value == 0.001  # the smallest of 999 relabellings
    assert not leak.passed
    assert leak.nearer_to_train == 1
    assert nearest_real_report(train[:3], train, holdout).to_train.tolist() == [0, 0, 0]


def test_the_larger_side_is_cut_to_the_smaller():
    rng = np.random.default_rng(2)
    train, holdout = rng.normal(size=(2000, 2)), rng.normal(size=(20, 2))
    found = nearest_real_report(rng.normal(size=(30, 2)), train, holdout, 0, 199)
    assert found.rows == 20
    assert found.passed  # 2000 rows are nearer than 20, which would be no leak
    same = nearest_real_report(train[:5], train[:5], train[:5], 0, 19)
    assert (same.passed, same.p_textbook, same.nearer_to_train) == (True, 1.0, 0.5)


# --- 2 membership --------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    members=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    others=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
)
def test_attack_numbers_by_trying_every_threshold(members, others):
    found = attack_report(members, others)
    wins = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    assert found.auc == pytest.approx(np.mean(wins))
    best, caught = 0.5, 0.0
    for cut in range(-3, 5):
        tpr = np.mean([a >= cut for a in members])
        fpr = np.mean([b >= cut for b in others])
        best = max(best, (1 + tpr - fpr) / 2)
        caught = max(caught, tpr if fpr <= 0.01 else 0.0)
    assert found.balanced_accuracy == pytest.approx(best)
    assert found.tpr_at_1_fpr == pytest.approx(caught)
    assert (found.members, found.nonmembers) == (len(members), len(others))


def test_one_percent_false_alarms_are_one_percent():
    """Of 200 others two may be taken for members: the members between the second and third."""
    others = np.arange(200.0)
    members = [300.0, 198.5, 197.5, 197.0, 196.5, 3.0]
    assert attack_report(members, others).tpr_at_1_fpr == pytest.approx(3 / 6)


def test_error_is_that_of_a_blind_attack():
    rng = np.random.default_rng(0)
    found = [attack_report(rng.normal(size=40), rng.normal(size=60)) for _ in range(400)]
    assert np.std([f.auc for f in found]) == pytest.approx(found[0].auc_error, rel=0.2)
    assert dataclasses.replace(found[0], auc=0.529).blind
    assert not dataclasses.replace(found[0], auc=0.469).blind


def test_losses_are_the_log_loss_of_every_row():
    x = torch.randn(700, 3, generator=torch.Generator().manual_seed(0))  # more than one batch
    y = torch.arange(700) % 2
    net = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)).train()
    p = net.eval()(x).sigmoid().flatten().detach()
    net.train()
    expected = -torch.where(y == 1, p, 1 - p).log()
    torch.testing.assert_close(row_losses(net, x, y), expected, rtol=1e-4, atol=1e-5)
    assert net.training  # as it was
    three = nn.Linear(3, 3)
    q = three(x).softmax(1).detach()
    expected = -q[torch.arange(700), torch.arange(700) % 3].log()
    torch.testing.assert_close(row_losses(three, x, torch.arange(700) % 3), expected, rtol=1e-4,
                               atol=1e-5)  # fmt: skip


def test_a_network_that_memorises_is_caught_and_an_untrained_one_is_not():
    """The attack proves its power where it must: random labels learned by heart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 40, generator=generator)
    y = torch.randint(2, (200,), generator=generator)
    net = nn.Linear(40, 1)
    with torch.no_grad():
        before = membership_inference(net, (x[:20], y[:20]), (x[20:], y[20:]))
        signs = (2.0 * y[:20] - 1)[:, None]
        net.weight.copy_(torch.linalg.lstsq(x[:20], signs, driver="gelsd").solution.T)
        net.bias.zero_()
    after = membership_inference(net, (x[:20], y[:20]), (x[20:], y[20:]))
    assert abs(before.auc - 0.5) < 4 * before.auc_error
    # All margins inside are 1, those outside normal of mean 0 and a deviation of about 1.
    assert after.auc == pytest.approx(scipy.stats.norm.cdf(1), abs=0.1)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 9999), ours=st.integers(3, 40), theirs=st.integers(3, 40),
       data=st.data())  # fmt: skip
def test_matched_rows_have_equal_class_counts(seed, ours, theirs, data):
    rng = np.random.default_rng(seed)
    train, holdout = rng.integers(0, 3, ours), rng.integers(0, 3, theirs)
    count = data.draw(st.integers(1, theirs))
    inside, outside = matched_rows(train, holdout, count, seed)
    assert len(set(inside.tolist())) == len(set(outside.tolist())) == len(inside)
    assert len(inside) == len(outside) <= count
    assert sorted(train[inside]) == sorted(holdout[outside])
    if all((train == c).sum() >= theirs for c in range(3)):
        assert len(inside) == count


# --- LiRA ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shadows", [8, 64])
def test_likelihood_ratio_by_scipys_normal_densities(shadows):
    rng = np.random.default_rng(0)
    inside = shadow_masks(5, shadows, 0)
    c, target = rng.normal(size=(shadows, 5)), rng.normal(size=5)
    found = likelihood_ratio(target, c, inside)
    for mask, sign in ((inside, 1), (~inside, -1)):
        spread = [c[mask[:, i], i].std(ddof=1) for i in range(5)]
        if shadows < 64:  # one variance for all
            spread = [math.sqrt(np.mean(np.square(spread)))] * 5
        for i in range(5):
            density = scipy.stats.norm(c[mask[:, i], i].mean(), spread[i]).logpdf(target[i])
            found[i] -= sign * density
    np.testing.assert_allclose(found, 0, atol=1e-9)


def test_likelihood_ratio_tells_members_where_confidence_rises():
    rng = np.random.default_rng(0)
    level, inside = rng.normal(0, 5, 300), shadow_masks(300, 16)
    c = level + 2 * inside + rng.normal(size=inside.shape)
    member = np.arange(300) < 150
    score = likelihood_ratio(level + 2 * member + rng.normal(size=300), c, inside)
    ours = attack_report(score[member], score[~member]).auc
    plain = attack_report((level + 2 * member)[member], (level + 2 * member)[~member]).auc
    # Two normals 2 deviations apart; 8 runs per side blur the means a little.
    assert ours == pytest.approx(scipy.stats.norm.cdf(2 / math.sqrt(2)), abs=0.05)
    assert plain < 0.7


def test_every_candidate_is_in_half_of_the_shadow_runs():
    masks = shadow_masks(50, 16, 3)
    assert masks.shape == (16, 50)
    assert (masks.sum(0) == 8).all()
    assert len({mask.tobytes() for mask in masks}) == 16


# --- 3 one row less ------------------------------------------------------------------------


class RowMean(nn.Module):
    """The same score in every iteration, so that one row's share can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.w * x.flatten(1).mean(1, keepdim=True)


def test_leave_one_out_by_two_runs_of_ones_own():
    x = torch.randn(30, 4, 3, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 2
    m = DistributionMatching([RowMean], 2, (4, 3), lr=0.05, iterations=20, real_batch=8, seed=3)
    seen = []
    found = leave_one_out(m, x, y, [3, 8], lambda few: few.x.mean((1, 2)).sigmoid(),
                          lambda *step: seen.append(step))  # fmt: skip
    whole = m.fit(x, y).x
    for k, row in enumerate((3, 8)):
        less = m.fit(x, y, leave_out=row).x
        assert found.change[k] == pytest.approx(float((whole - less).norm() / whole.norm()))
        apart = whole.mean((1, 2)).sigmoid() - less.mean((1, 2)).sigmoid()
        assert found.prediction_change[k] == pytest.approx(float(apart.abs().mean()), abs=1e-6)
        assert 0 < found.change[k] < found.other_seed / 5
    other = dataclasses.replace(m, seed=4).fit(x, y).x
    assert found.other_seed == pytest.approx(float((whole - other).norm() / whole.norm()))
    assert [step[1] for step in seen] == [0, 1, 2, 3]
    with pytest.raises(FoveateError, match="needs a seed"):
        leave_one_out(dataclasses.replace(m, seed=None), x, y, [1])
    with pytest.raises(FoveateError, match="at least one row"):
        leave_one_out(m, x, y, [])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), rows=st.integers(2, 8), size=st.floats(0.1, 1000))
def test_one_row_moves_a_class_mean_by_at_most_its_share(seed, rows, size):
    """The elementary bound 1/B of the specification, for nets that score each row alone."""
    torch.manual_seed(seed)
    x = torch.randn(rows, 5, 3)
    other = torch.cat([size * torch.randn(1, 5, 3), x[1:]])
    for net in (LSTMClassifier(3, 6), MultiBranchTCN(3, 16, norm="group", dropout=0.0)):
        with torch.no_grad():
            gap = net(x).sigmoid().mean() - net(other).sigmoid().mean()
        assert abs(float(gap)) <= 1 / rows + 1e-6


def test_batch_statistics_break_the_bound():
    """Why the bound is not quoted for BN: one row moves the scores of all the others."""
    torch.manual_seed(0)
    net = MultiBranchTCN(3, 8, dropout=0.0).train()
    x = torch.randn(8, 5, 3)
    other = torch.cat([1000 * torch.ones(1, 5, 3), x[1:]])
    with torch.no_grad():
        moved = (net(x) - net(other)).abs()[1:]
    assert float(moved.min()) > 1e-3


# --- 4 formal ------------------------------------------------------------------------------


def exact_epsilon(mu: float, delta: float) -> float:
    """Of the Gaussian mechanism with sensitivity / sigma = mu (Balle & Wang, 2018, theorem 8)."""

    def gap(eps: float) -> float:
        normal = scipy.stats.norm.cdf
        return normal(mu / 2 - eps / mu) - math.exp(eps) * normal(-mu / 2 - eps / mu) - delta

    return scipy.optimize.brentq(gap, 1e-9, 200)


@pytest.mark.parametrize(("z", "steps"), [(4.0, 1), (20.0, 100), (50.0, 1000)])
def test_epsilon_without_sampling_lies_between_the_exact_and_the_classic_bound(z, steps):
    pytest.importorskip("dp_accounting")
    found = GaussianRelease(z, 1e-5, True).epsilon(1.0, steps)
    rho = steps / (2 * z * z)  # zero-concentrated privacy adds up
    assert exact_epsilon(math.sqrt(steps) / z, 1e-5) <= found * (1 + 1e-6)
    assert found <= rho + 2 * math.sqrt(rho * math.log(1e5)) + 1e-6


def test_sampling_and_noise_help_and_steps_cost():
    pytest.importorskip("dp_accounting")
    base = GaussianRelease(4.0, 1e-5, True)
    assert base.epsilon(0.05, 1000) < base.epsilon(0.5, 1000) < base.epsilon(1.0, 1000)
    assert base.epsilon(0.05, 1000) < base.epsilon(0.05, 24_000)
    assert GaussianRelease(8.0, 1e-5, True).epsilon(0.05, 1000) < base.epsilon(0.05, 1000)


def test_a_release_asks_what_is_public_and_needs_the_accountant(monkeypatch):
    with pytest.raises(FoveateError, match="class counts and normaliser must be public"):
        GaussianRelease(1.0, 1e-5)
    for z, delta in ((0, 1e-5), (math.inf, 1e-5), (1, 0), (1, 1)):
        with pytest.raises(FoveateError, match="noise_multiplier above 0"):
            GaussianRelease(z, delta, True)
    release = GaussianRelease(1.0, 1e-5, True)
    for rate, steps in ((0, 1), (1.1, 1), (0.5, 0)):
        with pytest.raises(FoveateError, match="sampling_rate above 0"):
            release.epsilon(rate, steps)
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(FoveateError, match=r"without the accountant.*foveate\[privacy\]"):
        release.epsilon(0.5, 10)


# --- the report ----------------------------------------------------------------------------


def test_checklist_11_four_items_called_evidence_and_no_unfounded_claim():
    rng = np.random.default_rng(0)
    near = nearest_real_report(rng.normal(size=(5, 3)), rng.normal(size=(9, 3)),
                               rng.normal(size=(9, 3)), 0, 9)  # fmt: skip
    attack = attack_report(rng.normal(size=9), rng.normal(size=9))
    x, y = torch.randn(12, 4, 3), torch.arange(12) % 2
    m = DistributionMatching([RowMean], 1, (4, 3), iterations=2, seed=0)
    report = PrivacyReport(near, {"loss": attack}, leave_one_out(m, x, y, [1]))
    lines = report.lines()
    assert len(lines) == 4
    assert all("evidence" in line for line in lines[:3])
    text = " ".join(lines).lower()
    for word in ("guarantee", "differential", "epsilon", "proof", "safe", "anonym"):
        assert word not in text
    assert "none claimed" in lines[3]
    json.dumps(report.to_dict(), allow_nan=False)
    assert report.to_dict()["attacks"]["loss"]["auc"] == attack.auc
    empty = PrivacyReport().lines()
    assert [line.split(":")[1].strip() for line in empty[:3]] == ["not measured."] * 3
    formal = {"epsilon": 2.5, "delta": 1e-5}
    assert "(2.5, 1e-05)-differential privacy" in PrivacyReport(formal=formal).lines()[3]


def test_bad_input_is_one_sentence():
    good, y = np.ones((3, 2)), [0, 1, 1]
    for call, sentence in (
        (lambda: nearest_real_report(good[:0], good, good), r"\(synthetic\) expects finite rows"),
        (lambda: nearest_real_report(good, good * np.nan, good), r"\(train\) expects finite rows"),
        (lambda: nearest_real_report(good, good, np.ones((3, 4))), "rows of one size"),
        (lambda: attack_report([], [1.0]), "at least one of each"),
        (lambda: attack_report([math.nan], [1.0]), "has the training diverged"),
        (lambda: matched_rows(y, y, 4), "a count from 1 to 3"),
        (lambda: shadow_masks(3, 5), "an even number of at least 4"),
        (lambda: likelihood_ratio([1], [[1], [2]], [[1, 0]]), r"inside \(K, N\)"),
        (lambda: likelihood_ratio([1], np.ones((4, 1)), np.ones((4, 1))), "out of two"),
    ):
        with pytest.raises(FoveateError, match=sentence):
            call()
