"""What all strategies share, and a criterion alone."""

from __future__ import annotations

import numpy as np

from active_pools import CHEAP, LOGISTIC, TASK
from foveate.learning.active import SingleExpert, simulate


def test_single_expert_takes_the_best_and_draws_among_equals():
    right = SingleExpert({"right": CHEAP["right"]}, LOGISTIC, 5, random_state=0)
    curve = simulate(right, TASK, 5)
    assert curve.queried.tolist() == np.argsort(-TASK.x_pool[:, 0], kind="stable")[:5].tolist()
    firsts = {simulate(SingleExpert("RAND", LOGISTIC, 1, seed), TASK, 1).queried[0]
              for seed in range(12)}  # fmt: skip
    assert len(firsts) > 6
