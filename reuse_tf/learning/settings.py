"""What decides a training run."""

import dataclasses
import math
import numbers
import os
from typing import Any

import numpy as np

from reuse_tf.policies import NETWORKS, default_filters, run_directory

OPTIMIZERS = ("adam", "rmsprop", "sgd")
# What may differ when a run is resumed, as the weights at any step do not
# depend on it, but for an annealed learning rate on the steps to come.
MAY_CHANGE = (
    *("steps", "episodes", "checkpoint_seconds"),
    *("eval_every", "eval_episodes"),
)
_REUSE = ("auto", "content", "temporal", "none")
# What stands for None, by algorithm. What one has no value for is not for it.
DEFAULTS = {
    "reinforce": {
        "steps": 3000,
        "preprocessing": "paper",
        "network": "paper",
        "num_envs": 1,
        "optimizer": "adam",
        "learning_rate": 1e-5,
        "entropy": 0.0,
    },
    "ppo": {
        "steps": 1_000_000,
        "preprocessing": "standard",
        "network": "nature",
        "num_envs": 8,
        "optimizer": "adam",
        "learning_rate": 2.5e-4,
        "entropy": 0.01,
        "clip_norm": 0.5,
        "num_steps": 128,
        "epochs": 4,
        "minibatches": 4,
        "gae_lambda": 0.95,
        "clip": 0.1,
        "value_weight": 0.5,
        "anneal": True,
        "clip_rewards": True,
    },
}
# PPO that uses each step once, in one part, so that nothing is ever clipped:
# Huang et al. (2022), https://arxiv.org/abs/2205.09123. It does not normalise
# advantages. The settings are those of RL Baselines3 Zoo for Atari, and the
# annealing that of OpenAI Baselines.
DEFAULTS["a2c"] = {
    **DEFAULTS["ppo"],
    "num_envs": 16,
    "optimizer": "rmsprop",
    "learning_rate": 7e-4,
    "num_steps": 5,
    "epochs": 1,
    "minibatches": 1,
    "gae_lambda": 1.0,
    "value_weight": 0.25,
}
# What may stay None, by algorithm, as there is no bound or a number of another
# setting stands for it.
_OPTIONAL = {
    "reinforce": ("clip_norm", "batch_episodes"),
    "ppo": ("value_clip",),
    "a2c": ("value_clip",),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a training run.

    Training ends when `steps` or `episodes` are reached, whichever is first.
    With REINFORCE, episodes that run when `steps` are reached are cut there,
    and take part in the last update as if they had ended, and there are never
    more than `episodes`; with PPO, the update in which it ends is a whole one.
    Nothing else depends on these two, which may be raised to continue a
    finished run, but for an annealed learning rate.

    Where None is given, a value of `DEFAULTS` for the algorithm stands for it.

    Attributes:
        algorithm: `"reinforce"`, `"ppo"`, or `"a2c"`, which is PPO with other
            defaults and advantages as they are.
        game: See `atari.make`.
        preprocessing: See `atari.make`.
        downsample: See `atari.make`.
        repeat_action_probability: See `atari.make`.
        network: A key of `policies.NETWORKS`.
        filters: See `policies.build_network`. None stands for those of the
            network's paper.
        reuse: That of `Runner`, `"auto"` by default, or `"none"`: plain
            Keras.
        steps: Steps of the environments to train for. By default, where no
            `episodes` are given, that of the algorithm.
        episodes: Episodes to train for, or None.
        learning_rate: Of the optimizer. One step of Adam moves a logit by up
            to this times the sum of the last layer's activations, which in the
            paper's network at a downsample of 2 are 672,000: at 1e-4 it
            settles on an action or two within ten episodes of Pong or of
            Breakout.
        anneal: Whether the learning rate falls by the same amount with each
            step, to zero at the last one. Needs `steps`. (PPO)
        optimizer: One of `OPTIMIZERS`.
        discount: See `reinforce.discounted_returns`.
        gae_lambda: See `ppo.generalized_advantages`. (PPO)
        clip_rewards: Whether rewards are cut to their sign. (PPO)
        num_envs: Environments that are played at once. REINFORCE with several
            updates the weights while episodes go on: see `Reinforce`.
        batch_episodes: Episodes per update, or more if they end in the same
            step. None stands for `num_envs`. (REINFORCE)
        num_steps: Steps of each environment per update. (PPO)
        epochs: How often an update uses each step. (PPO)
        minibatches: In how many parts, for each of which the weights are
            changed. (PPO)
        clip: See `ppo.clipped_policy_loss`. (PPO)
        value_weight: Weight of `ppo.value_loss`. (PPO)
        value_clip: See `ppo.value_loss`, or None. (PPO)
        entropy: Weight of the entropy bonus.
        clip_norm: Bound of the gradient's global norm, or None.
        seed: Decides the initial weights, the environments and the actions:
            an integer in [0, 2^32).
        checkpoint_seconds: Least seconds between two checkpoints.
        eval_every: Steps between two evaluations, or None.
        eval_episodes: Games of each evaluation.
    """

    algorithm: str = "reinforce"
    game: str = "Pong"
    preprocessing: str | None = None
    downsample: int = 2
    repeat_action_probability: float = 0.25
    network: str | None = None
    filters: tuple[int, ...] | None = None
    reuse: str = "auto"
    steps: int | None = None
    episodes: int | None = None
    learning_rate: float | None = None
    anneal: bool | None = None
    optimizer: str | None = None
    discount: float = 0.99
    gae_lambda: float | None = None
    clip_rewards: bool | None = None
    num_envs: int | None = None
    batch_episodes: int | None = None
    num_steps: int | None = None
    epochs: int | None = None
    minibatches: int | None = None
    clip: float | None = None
    value_weight: float | None = None
    value_clip: float | None = None
    entropy: float | None = None
    clip_norm: float | None = None
    seed: int = 0
    checkpoint_seconds: float = 60.0
    eval_every: int | None = None
    eval_episodes: int = 10

    def __post_init__(self):
        _check(self, "algorithm", *_one_of(*DEFAULTS))
        if isinstance(self.filters, list):
            object.__setattr__(self, "filters", tuple(self.filters))
        defaults = dict(DEFAULTS[self.algorithm])
        if self.episodes is not None:
            del defaults["steps"]
            if self.steps is None and "anneal" in defaults:
                # There is nothing to measure it by.
                defaults["anneal"] = False
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        self._check_each()
        for field in dataclasses.fields(self):
            # Of NumPy's numbers only Python's can be saved.
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, field.name, value.item())
        filters = self.filters or default_filters(self.network)
        object.__setattr__(self, "filters", tuple(map(int, filters)))
        if self.preprocessing == "standard" and self.downsample != 2:
            raise ValueError(
                "`downsample` is for preprocessing='paper'. Received: "
                f"downsample={self.downsample}, preprocessing='standard'"
            )
        if self.anneal and self.steps is None:
            raise ValueError("Expected `steps` with `anneal`, to end at.")
        if self.algorithm != "reinforce":
            self._check_ppo()
        elif self.batch_episodes is None:
            object.__setattr__(self, "batch_episodes", self.num_envs)

    def _check_each(self):
        of_any = {n for defaults in DEFAULTS.values() for n in defaults}
        of_any |= {name for names in _OPTIONAL.values() for name in names}
        of_this = {*DEFAULTS[self.algorithm], *_OPTIONAL[self.algorithm]}
        for name in sorted(of_any - of_this):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` is not for {self.algorithm}. Received: "
                    f"{name}={getattr(self, name)}"
                )
        positive = ("positive", lambda v: is_finite(v) and v > 0)
        not_negative = ("not negative", lambda v: is_finite(v) and v >= 0)
        count = ("a positive integer", _is_count)
        fraction = ("in [0, 1]", lambda v: is_finite(v) and 0 <= v <= 1)
        switch = ("True or False", lambda v: isinstance(v, bool))
        for name, (expected, is_right) in {
            "game": ("a string", lambda v: isinstance(v, str)),
            "preprocessing": _one_of("paper", "standard"),
            "downsample": (
                "1, 2 or 4",
                lambda v: _is_integer(v) and v in (1, 2, 4),
            ),
            "repeat_action_probability": fraction,
            "network": _one_of(*NETWORKS),
            "filters": ("positive integers", _are_filters),
            "reuse": _one_of(*_REUSE),
            "steps": count,
            "episodes": count,
            "learning_rate": positive,
            "anneal": switch,
            "optimizer": _one_of(*OPTIMIZERS),
            "discount": fraction,
            "gae_lambda": fraction,
            "clip_rewards": switch,
            "num_envs": count,
            "batch_episodes": count,
            "num_steps": count,
            "epochs": count,
            "minibatches": count,
            "clip": positive,
            "value_weight": not_negative,
            "value_clip": positive,
            "entropy": not_negative,
            "clip_norm": positive,
            "seed": (
                "an integer in [0, 2^32)",
                lambda v: _is_integer(v) and 0 <= v < 2**32,
            ),
            "checkpoint_seconds": (
                "not negative",
                lambda v: isinstance(v, numbers.Real) and v >= 0,
            ),
            "eval_every": count,
            "eval_episodes": count,
        }.items():
            is_optional = name in (
                *("filters", "steps", "episodes", "eval_every"),
                *(n for n in of_any if n not in DEFAULTS[self.algorithm]),
            )
            if not (is_optional and getattr(self, name) is None):
                _check(self, name, expected, is_right)

    def _check_ppo(self):
        # The advantages of a minibatch are normalised: that of a single step
        # would be 0.
        least = 1 if self.algorithm == "a2c" else 2
        if least * self.minibatches > self.num_envs * self.num_steps:
            raise ValueError(
                f"Expected `minibatches` of {least} or more of the `num_envs * "
                f"num_steps` steps. Received: minibatches={self.minibatches}, "
                f"num_envs={self.num_envs}, num_steps={self.num_steps}"
            )


def _check(settings, name, expected, is_right):
    value = getattr(settings, name)
    if not is_right(value):
        raise ValueError(
            f"Expected `{name}` to be {expected}. Received: {name}={value}"
        )


def _one_of(*values):
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}", values.__contains__


def saved_settings(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the settings of a run.

    Args:
        run_dir: A run directory, which need not exist.

    Returns:
        A dict of what `Settings` takes, which is empty if there is no run.

    Raises:
        ValueError: If the file of the settings is damaged.
    """
    saved = run_directory.saved_settings(run_dir)
    if saved is None:
        return {}
    try:
        names = {field.name for field in dataclasses.fields(Settings)}
        for what, some in (
            ("has no", names - saved.keys()),
            ("has an unknown", saved.keys() - names),
        ):
            if some:
                raise ValueError(f"it {what} {min(some)!r}")
        Settings(**saved)
    except ValueError as error:
        raise run_directory.damaged_settings(run_dir, error) from error
    return saved


def is_finite(value):
    """Returns whether a value is a number, and a finite one."""
    return (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and -math.inf < value < math.inf
    )


def _is_integer(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_count(value):
    return _is_integer(value) and value > 0


def _are_filters(value):
    return isinstance(value, tuple) and value and all(map(_is_count, value))
