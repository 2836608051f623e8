"""KL controllers: Ziegler's equation, fixed points, bounds, and simulated policies they steer."""

import copy
import json
import math
import random

import numpy as np
import pytest

from hf_align.rewards import (
    CONTROLLERS,
    AdaptiveKL,
    BudgetKL,
    FixedKL,
    ScheduledKL,
    check_horizon,
    make_controller,
)
from hf_align.types import InputError


class Policy:
    """dKL/dt = gain − β·k·KL, solved exactly over each update.

    Unpenalised it reaches `budget` in `time_constant` updates. β takes effect `delay` updates late.
    """

    k = 20.0

    def __init__(self, budget, time_constant, delay=0):
        self.gain = budget / time_constant
        self.settled_beta = 1 / (time_constant * self.k)
        self.delay, self.betas, self.kl = delay, [], 0.0

    def rollout(self, beta):
        self.betas.append(beta)
        rate = self.betas[max(0, len(self.betas) - 1 - self.delay)] * self.k
        limit = self.gain / rate
        self.kl = limit + (self.kl - limit) * math.exp(-rate)
        return self.kl


class Walker(Policy):
    """The same for the distance √(2 KL): unpenalised, KL grows with the square of the updates."""

    def __init__(self, budget, time_constant, delay=0):
        super().__init__(math.sqrt(2 * budget), time_constant, delay)

    def rollout(self, beta):
        return super().rollout(beta) ** 2 / 2


def controlled(controller, policy, updates, noise, seed=0):
    """The true KL of every rollout; the controller sees it with relative noise."""
    rng = random.Random(seed)
    kls = []
    for _ in range(updates):
        kls.append(policy.rollout(controller.value))
        controller.update(kls[-1] * (1 + rng.gauss(0, noise)), 64)
    return kls


@pytest.fixture(
    params=[
        FixedKL(0.1),
        AdaptiveKL(0.1, target=6, horizon=640),
        BudgetKL(6, 0.1),
        ScheduledKL(0.1, 0.01, 7),
        ScheduledKL(0.1, 0.01, 7, "cosine"),
    ],
    ids=["fixed", "adaptive", "budget", "linear", "cosine"],
)
def make(request):
    """Makes fresh controllers of one kind."""
    return lambda: copy.copy(request.param)


def test_adaptive_is_zieglers_equation():
    rng = np.random.default_rng(0)
    target, horizon = 6.0, 10_000
    controller = AdaptiveKL(0.2, target, horizon, floor=1e-9, ceiling=1e9)
    expected = np.float64(0.2)
    for kl, n in zip(rng.uniform(-1, 20, 500), rng.integers(1, 600, 500), strict=True):
        controller.update(float(kl), int(n))
        # lm_human_preferences/train_policy.py, AdaptiveKLController.update
        proportional_error = np.clip(kl / target - 1, -0.2, 0.2)
        expected *= 1 + proportional_error * n / horizon
        assert controller.value == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("make_one", [lambda: AdaptiveKL(0.3, 4, 640), lambda: BudgetKL(4, 0.3)])
def test_on_target_beta_stays_and_above_it_beta_rises_with_kl(make_one):
    def after(*kls):
        controller = make_one()
        for kl in kls:
            controller.update(kl, 64)
        return controller.value

    assert after(4.0, 4.0, 4.0) == 0.3
    assert after(2.0) < 0.3 < after(6.0)
    values = [after(kl) for kl in np.linspace(-1, 30, 60)]
    assert (np.diff(values) >= 0).all()
    values = [after(5.0, kl) for kl in np.linspace(-1, 30, 60)]
    assert (np.diff(values) >= 0).all()


def test_the_budget_steps_worked_by_hand():
    controller = BudgetKL(4, 0.3, proportional=2.0, integral=0.1)
    controller.update(6.0, 1)  # error 0.5, no change yet
    assert controller.value == pytest.approx(0.3 * math.exp(0.05))
    controller.update(3.0, 999)  # error −0.25, change −0.75
    assert controller.value == pytest.approx(0.3 * math.exp(0.05 - 0.025 - 1.5))
    controller.update(400.0, 1)  # error clipped at 2, change 2.25
    assert controller.value == pytest.approx(0.3 * math.exp(0.025 - 1.5 + 0.2 + 4.5))


@pytest.mark.parametrize("make_one", [AdaptiveKL, BudgetKL])
def test_floor_and_ceiling_hold_and_are_left_at_once(make_one):
    settings = {"floor": 0.01, "ceiling": 1.0}
    if make_one is AdaptiveKL:
        controller = AdaptiveKL(0.1, 4, 64, **settings)
    else:
        controller = BudgetKL(4, 0.1, **settings)
    for kl, bound in ((0.0, 0.01), (100.0, 1.0), (-3.0, 0.01)):
        for _ in range(200):
            controller.update(kl, 64)
        assert controller.value == bound
        controller.update(4.0 + (4.0 if kl < 4 else -4.0), 64)
        assert controller.value != bound


def test_fixed_stays_and_schedules_pass_through_known_points():
    fixed = FixedKL(0.05)
    fixed.update(1e6, 64)
    assert fixed.value == 0.05
    linear, cosine = ScheduledKL(0.4, 0.0, 4), ScheduledKL(0.4, 0.0, 4, "cosine")
    seen = []
    for _ in range(6):
        seen.append((linear.value, cosine.value))
        linear.update(1.0, 64)
        cosine.update(1.0, 64)
    quarter = 0.4 * (1 + math.sqrt(0.5)) / 2
    expected = [(0.4, 0.4), (0.3, quarter), (0.2, 0.2), (0.1, 0.4 - quarter), (0, 0), (0, 0)]
    np.testing.assert_allclose(seen, expected, atol=1e-15)


@pytest.mark.parametrize("noise", [0.05, 0.1])
@pytest.mark.parametrize("time_constant", [3, 8, 16])
@pytest.mark.parametrize("off_by", [1, 10, 30])
def test_adaptive_holds_its_target_over_the_last_half(noise, time_constant, off_by):
    policy = Policy(3.0, time_constant)
    controller = AdaptiveKL(off_by * policy.settled_beta, 3.0, horizon=640)
    kls = controlled(controller, policy, 400, noise)
    assert np.mean(kls[200:]) == pytest.approx(3.0, rel=0.2)
    assert np.mean(kls[200:300]) == pytest.approx(3.0, rel=0.2)
    assert np.mean(kls[300:]) == pytest.approx(3.0, rel=0.2)


def test_adaptive_overshoots_from_a_low_beta_and_not_from_a_high_one():
    def peak(off_by):
        policy = Policy(3.0, 8)
        controller = AdaptiveKL(off_by * policy.settled_beta, 3.0, horizon=640)
        return max(controlled(controller, policy, 200, noise=0.0))

    assert peak(1 / 30) > 2 * 3.0
    assert peak(30) < 1.2 * 3.0


@pytest.mark.parametrize("world", [Policy, Walker])
@pytest.mark.parametrize("off_by", [0.03, 0.3, 1, 3, 30])
@pytest.mark.parametrize(
    ("updates", "time_constants"), [(60, (3, 6, 10)), (150, (3, 10, 30)), (300, (5, 20, 50))]
)
def test_a_budget_is_met_at_the_end(world, off_by, updates, time_constants):
    for time_constant in time_constants:
        for delay in (0, 1, 2):
            for noise in (0.05, 0.1):
                policy = world(6.0, time_constant, delay)
                beta = off_by * policy.settled_beta
                controller = BudgetKL(6.0, beta, floor=1e-6, ceiling=1e4)
                kls = controlled(controller, policy, updates, noise)
                last = kls[-updates // 5 :]
                case = f"time constant {time_constant}, delay {delay}, noise {noise}"
                assert np.mean(last) == pytest.approx(6.0, rel=0.1), case


def test_a_budget_damps_what_dual_ascent_alone_lets_swing():
    def swing(proportional):
        policy = Policy(6.0, 30)
        controller = BudgetKL(6.0, policy.settled_beta, proportional=proportional)
        last = controlled(controller, policy, 150, noise=0.0)[-60:]
        return max(last) - min(last)

    assert swing(1.0) < 0.25 * swing(0.0)


def test_a_controller_resumed_from_json_continues_exactly(make):
    kls = np.random.default_rng(1).uniform(0, 15, 9).tolist()
    whole, first, second = make(), make(), make()
    trace = []
    for kl in kls:
        whole.update(kl, 64)
        trace.append(whole.value)
    for cut in (0, 4):
        first, second = make(), make()
        for kl in kls[:cut]:
            first.update(kl, 64)
        for kl in (8.0, 2.0):  # what it held before does not matter
            second.update(kl, 64)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for kl, expected in zip(kls[cut:], trace[cut:], strict=True):
            second.update(kl, 64)
            assert second.value == expected


def test_every_name_makes_its_controller():
    made = [make_controller(kind, 0.2, budget=5.0, num_updates=10) for kind in CONTROLLERS]
    assert [type(one) for one in made] == [FixedKL, AdaptiveKL, BudgetKL, ScheduledKL]
    assert [one.value for one in made] == [0.2] * 4
    assert made[1].target == 6.0 and made[1].horizon == 10_000
    made[3].update(1.0, 64)
    assert made[3].value == pytest.approx(0.18)


@pytest.mark.parametrize(
    ("make_bad", "message"),
    [
        (lambda: FixedKL(-0.1), "beta is -0.1"),
        (lambda: FixedKL(math.nan), "beta is nan"),
        (lambda: AdaptiveKL(0.0, 6, 1000), "beta is 0.0; give a number from floor 0.0001"),
        (lambda: AdaptiveKL(0.1, 0.0, 1000), "target is 0.0"),
        (lambda: AdaptiveKL(0.1, 6, -5), "horizon is -5"),
        (lambda: AdaptiveKL(0.1, 6, 1000, floor=0.0), "floor is 0.0"),
        (lambda: AdaptiveKL(0.1, 6, 1000, floor=0.2), "beta is 0.1"),
        (lambda: AdaptiveKL(0.1, 6, 10).update(1.0, 50), "horizon is 10 .* above 10"),
        (lambda: check_horizon(10_000, 50_000), "horizon is 10000"),
        (lambda: BudgetKL(0.0), "budget is 0.0"),
        (lambda: BudgetKL(5.0, -1.0), "beta is -1.0"),
        (lambda: BudgetKL(5.0, integral=0.0), "integral is 0.0"),
        (lambda: BudgetKL(5.0, proportional=-1.0), "proportional is -1.0"),
        (lambda: ScheduledKL(0.1, -0.1, 5), "end is -0.1"),
        (lambda: ScheduledKL(0.1, 0.0, 0), "num_updates is 0"),
        (lambda: ScheduledKL(0.1, 0.0, 5, "square"), "shape is 'square'; choose one of linear"),
        (lambda: make_controller("pid", 0.1), "'pid'; choose one of fixed, adaptive"),
        (lambda: make_controller("budget", 0.1), "no budget"),
        (lambda: make_controller("scheduled", 0.1), "no num_updates"),
        (lambda: BudgetKL(5.0).load_state_dict({"updates": 3}), "holds updates, expected value"),
    ],
)
def test_bad_settings_are_refused_by_name(make_bad, message):
    with pytest.raises(InputError, match=message):
        make_bad()


def test_a_horizon_just_long_enough_keeps_beta_positive():
    controller = AdaptiveKL(0.1, 6, 10.001, floor=1e-12)
    controller.update(0.0, 50)
    assert 0 < controller.value < 1e-4


def test_a_measurement_that_is_none_stops_every_controller(make):
    for kl, n in ((math.nan, 64), (math.inf, 64), (1.0, 0)):
        controller = make()
        before = controller.value
        with pytest.raises(InputError):
            controller.update(kl, n)
        assert controller.value == before
