"""How heavily a reward pays for KL: β of reward = shaped score − β · KL, update by update.

A controller is told the measured sequence KL(policy ‖ reference) of every rollout: nats, summed
over the completion including EOS, mean over completions. Per-token KL would be off by the length.
No control makes a biased reward right: at equal KL a penalty, adaptive or not, buys the same gold
reward as stopping there (Gao et al. 2022, section 3.6, https://arxiv.org/abs/2210.10760).
"""

from __future__ import annotations

import math
from typing import Protocol

from hf_align.types import InputError

CONTROLLERS = ("fixed", "adaptive", "budget", "scheduled")
"""The names that `make_controller` knows."""

SHAPES = ("linear", "cosine")
"""The ways from start to end that `ScheduledKL` knows."""

MAX_ERROR = 0.2
"""Where Ziegler et al. clip the relative error."""

FLOOR, CEILING = 1e-4, 100.0
"""Bounds of a β that moves by itself, for scores whose standard deviation is about 1."""


class KLController(Protocol):
    """β now, and what it becomes once a rollout's KL is known.

    The value before the first `update` holds for the first rollout. On several processes every one
    passes the same global mean, so all hold the same β.
    """

    @property
    def value(self) -> float:
        """β, at least 0, in units of shaped score per nat."""
        ...

    def update(self, kl: float, num_completions: int) -> None:
        """Takes a rollout's mean sequence KL in nats, and over how many completions it was."""
        ...

    def state_dict(self) -> dict[str, float]:
        """What `load_state_dict` needs to continue exactly, as plain numbers."""
        ...

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continues from a `state_dict`."""
        ...


class FixedKL:
    """The same β throughout; 0 is no penalty.

    What KL it leads to depends on scores, learning rate and length of training: β is comparable
    between runs only where those are the same.

    Raises:
        InputError: β is negative or no number.
    """

    def __init__(self, beta: float) -> None:
        _check("beta", beta, beta >= 0, "a number of at least 0")
        self.value = float(beta)

    def update(self, kl: float, num_completions: int) -> None:
        """Changes nothing; refuses what no controller can use."""
        _check_measurement(kl, num_completions)

    def state_dict(self) -> dict[str, float]:
        """`{"value": β}`."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes β from the state."""
        (self.value,) = _entries(state, "value")


class AdaptiveKL:
    """Ziegler's controller: e = clip(KL / target − 1, ±0.2), then β ← β · (1 + e · n / horizon).

    n counts completions, so one horizon of completions changes β by at most about 20 %. Ziegler et
    al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2,
    https://arxiv.org/abs/1909.08593

    It integrates and does nothing else: while KL is still below the target it *lowers* β, whatever
    KL is about to do, and the clip makes it slow to recover. Started low it overshoots far (KL 45
    on a target of 3 has been seen). So start β high, where KL approaches the target from below
    without passing it, and keep the floor. A horizon many times what a run generates never acts.

    Args:
        beta: Of the first rollout, within floor and ceiling.
        target: Sequence KL to hold, nats.
        horizon: In completions; 10 000 in the paper. Above a fifth of a rollout (`check_horizon`).
        floor: β never falls below.
        ceiling: β never rises above.

    Raises:
        InputError: β is not within floor and ceiling, or target, horizon or floor is not positive.
    """

    def __init__(
        self,
        beta: float,
        target: float,
        horizon: float,
        floor: float = FLOOR,
        ceiling: float = CEILING,
    ) -> None:
        _check_range(beta, floor, ceiling)
        _check("target", target, target > 0, "a positive KL in nats")
        _check("horizon", horizon, horizon > 0, "a positive number of completions")
        self.value = float(beta)
        self.target, self.horizon = target, horizon
        self.floor, self.ceiling = floor, ceiling

    def update(self, kl: float, num_completions: int) -> None:
        """One step of the equation above, within floor and ceiling.

        Raises:
            InputError: The KL is no number, or the horizon is too short for so many completions.
        """
        _check_measurement(kl, num_completions)
        check_horizon(self.horizon, num_completions)
        error = _clip(kl / self.target - 1, -MAX_ERROR, MAX_ERROR)
        factor = 1 + error * num_completions / self.horizon
        self.value = _clip(self.value * factor, self.floor, self.ceiling)

    def state_dict(self) -> dict[str, float]:
        """`{"value": β}`."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes β from the state; target, horizon and bounds stay those of this controller."""
        (self.value,) = _entries(state, "value")


class BudgetKL:
    """A multiplier that makes the policy spend a KL budget: E[sequence KL] = budget.

    β is the multiplier of max E[score] subject to that constraint. Dual ascent in log β, which is
    exponentiated gradient and keeps β positive, settles too slowly or oscillates, because KL
    follows β with a lag; a proportional part damps it (Stooke, Achiam and Abbeel 2020, "Responsive
    Safety in Reinforcement Learning by PID Lagrangian Methods", https://arxiv.org/abs/2007.03964):

        e_t = clip(KL_t / budget − 1, −1, 2)
        log β ← log β + integral · e_t + proportional · (e_t − e_{t−1})

    The clip at 2 keeps one wild rollout from freezing the policy. Clamping β itself, rather than a
    sum of errors, leaves nothing to unwind when KL returns from floor or ceiling.

    One update is one rollout, whatever its size. In simulations with 5 to 10 % noise, and β up to
    two updates late, the last fifth of a run is within 10 % of the budget where the unpenalised
    policy would spend it in 3 to 50 rollouts and the run is at least six times as long. Shorter
    runs do not arrive; policies faster than that ring.

    The budget is met at the end, not obeyed throughout: KL peaks at 1.05 to 2.2 times the budget
    where β starts at its final value or above, most for slow policies, and at up to 4 times where
    it starts 30 times too low. Where β ends at the floor the policy had no use for the budget.

    Args:
        budget: Sequence KL to end at, nats.
        beta: Of the first rollout, within floor and ceiling; rather high than low.
        proportional: Damping, ≥ 0.
        integral: Rate per update, > 0.
        floor: β never falls below.
        ceiling: β never rises above.

    Raises:
        InputError: β is not within floor and ceiling, the budget, the integral gain or the floor is
            not positive, or the proportional gain is negative.
    """

    def __init__(
        self,
        budget: float,
        beta: float = 0.1,
        proportional: float = 1.0,
        integral: float = 0.2,
        floor: float = FLOOR,
        ceiling: float = CEILING,
    ) -> None:
        _check_range(beta, floor, ceiling)
        _check("budget", budget, budget > 0, "a positive KL in nats")
        _check("proportional", proportional, proportional >= 0, "a number of at least 0")
        _check("integral", integral, integral > 0, "a positive number")
        self.value = float(beta)
        self.budget = budget
        self.proportional, self.integral = proportional, integral
        self.floor, self.ceiling = floor, ceiling
        self._error: float | None = None  # of the update before; the first has no change to damp

    def update(self, kl: float, num_completions: int) -> None:
        """One step of the equations above, within floor and ceiling.

        Raises:
            InputError: The KL is no number.
        """
        _check_measurement(kl, num_completions)
        error = _clip(kl / self.budget - 1, -1.0, 2.0)
        change = 0.0 if self._error is None else error - self._error
        step = self.integral * error + self.proportional * change
        self.value = _clip(self.value * math.exp(step), self.floor, self.ceiling)
        self._error = error

    def state_dict(self) -> dict[str, float]:
        """`{"value": β, "error": e_t}`, without the error before the first update."""
        state = {"value": self.value}
        return state if self._error is None else {**state, "error": self._error}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes β and the last error from the state; budget, gains and bounds stay."""
        if "error" in state:
            self.value, self._error = _entries(state, "value", "error")
        else:
            (self.value,), self._error = _entries(state, "value"), None


class ScheduledKL:
    """β from start to end over a number of updates, whatever KL does, and the end thereafter.

    With f = min(updates / num_updates, 1): linear is start + f · (end − start), cosine replaces f
    by (1 − cos πf) / 2, which is flat at both ends. Falling schedules hold the policy while critic
    and score scale settle; rising ones explore first. Nothing reacts when KL runs away.

    Raises:
        InputError: Start or end is negative, num_updates is below 1, or the shape is unknown.
    """

    def __init__(self, start: float, end: float, num_updates: int, shape: str = "linear") -> None:
        _check("start", start, start >= 0, "a number of at least 0")
        _check("end", end, end >= 0, "a number of at least 0")
        _check("num_updates", num_updates, num_updates >= 1, "at least 1")
        if shape not in SHAPES:
            raise InputError(f"shape is {shape!r}; choose one of {', '.join(SHAPES)}")
        self.start, self.end, self.num_updates, self.shape = start, end, num_updates, shape
        self._updates = 0

    @property
    def value(self) -> float:
        """β after the updates so far."""
        fraction = min(self._updates / self.num_updates, 1.0)
        if self.shape == "cosine":
            fraction = (1 - math.cos(math.pi * fraction)) / 2
        # Weights of both ends, so that f = 1 gives the end exactly.
        return (1 - fraction) * self.start + fraction * self.end

    def update(self, kl: float, num_completions: int) -> None:
        """Counts; refuses what no controller can use."""
        _check_measurement(kl, num_completions)
        self._updates += 1

    def state_dict(self) -> dict[str, float]:
        """`{"updates": how many so far}`."""
        return {"updates": self._updates}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes the number of updates from the state."""
        (updates,) = _entries(state, "updates")
        self._updates = int(updates)


def make_controller(
    kind: str,
    beta: float,
    *,
    target: float = 6.0,
    horizon: float = 10_000,
    budget: float | None = None,
    end: float = 0.0,
    num_updates: int | None = None,
    shape: str = "linear",
) -> KLController:
    """The controller that `kind` names, starting from `beta`.

    Args:
        kind: One of `CONTROLLERS`.
        beta: Of the first rollout.
        target: Of "adaptive"; the others ignore it.
        horizon: Of "adaptive"; the others ignore it.
        budget: Of "budget", which needs it; the others ignore it.
        end: Of "scheduled"; the others ignore it.
        num_updates: Of "scheduled", which needs it: the rollouts of the run; the others ignore it.
        shape: Of "scheduled"; the others ignore it.

    Raises:
        InputError: An unknown name, a missing argument, or what the controller itself refuses.
    """
    if kind == "fixed":
        return FixedKL(beta)
    if kind == "adaptive":
        return AdaptiveKL(beta, target, horizon)
    if kind == "budget":
        if budget is None:
            raise InputError("the budget controller has no budget; give the KL to end at, in nats")
        return BudgetKL(budget, beta)
    if kind == "scheduled":
        if num_updates is None:
            raise InputError("the scheduled controller has no num_updates; give the run's rollouts")
        return ScheduledKL(beta, end, num_updates, shape)
    raise InputError(f"KL controller is {kind!r}; choose one of {', '.join(CONTROLLERS)}")


def check_horizon(horizon: float, num_completions: int) -> None:
    """Refuses a horizon of `AdaptiveKL` at which one update could make β zero or negative.

    The smallest factor is 1 − 0.2 · n / horizon. Known before training: n is the rollout's size.

    Raises:
        InputError: The horizon is not above 0.2 · num_completions.
    """
    if MAX_ERROR * num_completions >= horizon:
        raise InputError(
            f"horizon is {horizon:g} completions, but one update brings {num_completions} and "
            f"could turn beta negative; give a horizon above {MAX_ERROR * num_completions:g}, "
            "best of several rollouts"
        )


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _check(name: str, value: float, good: bool, remedy: str) -> None:
    if not (good and math.isfinite(value)):
        raise InputError(f"{name} is {value}; give {remedy}")


def _check_range(beta: float, floor: float, ceiling: float) -> None:
    # From β = 0 no factor leads away, so a β that moves by factors starts above it.
    _check("floor", floor, floor > 0, "a positive number")
    remedy = f"a number from floor {floor:g} to ceiling {ceiling:g}"
    _check("beta", beta, floor <= beta <= ceiling, remedy)


def _check_measurement(kl: float, num_completions: int) -> None:
    if not math.isfinite(kl):
        raise InputError(
            f"the measured KL is {kl}: the policy has diverged; lower the learning rate or start "
            "with a higher beta"
        )
    if num_completions < 1:
        raise InputError(f"num_completions is {num_completions}; a KL comes from at least 1")


def _entries(state: dict[str, float], *names: str) -> tuple[float, ...]:
    if state.keys() != set(names):
        raise InputError(
            f"the saved KL controller holds {', '.join(sorted(state)) or 'nothing'}, expected "
            f"{', '.join(names)}; resume with the controller that the run was started with"
        )
    return tuple(float(state[name]) for name in names)
