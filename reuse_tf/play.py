"""Playing a game with a policy, and measuring it."""

import dataclasses
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from reuse_tf import atari
from reuse_tf.layers import IncrementalConv2D, IncrementalDense
from reuse_tf.policy import build_policy, load_policy, sample

# Seconds between two updates of the progress bar.
_INTERVAL = 0.2


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was played, and the time it took.

    Attributes:
        game: Short name of the game.
        steps: Steps of the environment.
        environment_seconds: Time spent in the environment's steps and resets.
        policy_seconds: Time spent in evaluating the policy and drawing
            actions.
        total_seconds: Time from the beginning of the first step to the end of
            the last.
        returns: The return of each episode that has ended, in order.
        recomputed: For each convolution and dense layer, by name, the
            fraction of its positions that was computed rather than reused. A
            layer without reuse has 1.
    """

    game: str
    steps: int
    environment_seconds: float
    policy_seconds: float
    total_seconds: float
    returns: tuple[float, ...]
    recomputed: dict[str, float]

    def as_dict(self):
        """Returns the summary as values that JSON can hold."""
        return {
            "game": self.game,
            "steps": self.steps,
            "seconds": {
                "total": self.total_seconds,
                "environment": self.environment_seconds,
                "policy": self.policy_seconds,
            },
            "steps_per_second": (
                self.steps / self.total_seconds if self.steps else 0.0
            ),
            "episodes": len(self.returns),
            "mean_return": float(np.mean(self.returns))
            if self.returns
            else None,
            "std_return": float(np.std(self.returns)) if self.returns else None,
            "recomputed": self.recomputed,
        }

    def __str__(self):
        values = self.as_dict()
        seconds = values["seconds"]
        returns = (
            f"{values['mean_return']:.2f} ± {values['std_return']:.2f}"
            if self.returns
            else "no episode ended"
        )
        lines = {
            "game": self.game,
            "steps": self.steps,
            "seconds": f"{seconds['total']:.3f} (environment "
            f"{seconds['environment']:.3f}, policy {seconds['policy']:.3f})",
            "steps per second": f"{values['steps_per_second']:.0f}",
            "episodes": values["episodes"],
            "return": returns,
            "recomputed": ", ".join(
                f"{name} {fraction:.2%}"
                for name, fraction in self.recomputed.items()
            ),
        }
        width = max(map(len, lines)) + 2
        return "\n".join(
            f"{name + ':':{width}}{value}" for name, value in lines.items()
        )


def prepare(
    game="Pong",
    *,
    downsample=2,
    filters=(40, 80),
    reuse="temporal",
    checkpoint=None,
    seed=None,
):
    """Makes a game and a policy for it.

    Args:
        game: See `atari.make`.
        downsample: See `atari.make`.
        filters: See `build_policy`. Not used with a checkpoint.
        reuse: `"temporal"` or `"none"`: whether the policy's layers reuse
            activations from frame to frame.
        checkpoint: A saved policy to load. If none, the weights are random.
        seed: An integer that decides the random weights.

    Returns:
        A pair of a `gymnasium.Env` and a Keras model.

    Raises:
        ValueError: If there is no such game, or the checkpoint holds no
            policy for it.
    """
    env = atari.make(game, downsample=downsample)
    input_shape = env.observation_space.shape
    num_actions = int(env.action_space.n)
    incremental = reuse != "none"
    if checkpoint is not None:
        policy = load_policy(checkpoint, input_shape, num_actions, incremental)
    else:
        if seed is not None:
            keras.utils.set_random_seed(seed)
        policy = build_policy(
            input_shape, num_actions, filters, incremental=incremental
        )
    return env, policy


def play(env, policy, *, steps, seed=None):
    """Plays a game, drawing each action from the policy's softmax.

    A seed decides the actions and the returns. Whether the policy reuses
    activations makes no difference to them but for the rounding of the
    probabilities. Shows a progress bar if the standard output is a terminal,
    and a line at the end if not. Ctrl-C ends the play early.

    Args:
        env: An environment as `atari.make` makes it.
        policy: A Keras model, frames `[1, height, width, channels]` to logits
            `[1, num_actions]`.
        steps: Steps to play, over as many episodes as it takes.
        seed: An integer.

    Returns:
        A `Summary` of the steps that were played.

    Raises:
        FloatingPointError: If the policy's logits are not finite.
    """
    step_policy = _compile(policy)
    rng = np.random.default_rng(seed)
    bar = keras.utils.Progbar(
        steps, verbose=1 if sys.stdout.isatty() else 2, interval=0
    )
    returns = []
    played, in_policy, in_environment = 0, 0.0, 0.0
    before = _positions(policy)
    frame, _ = env.reset(seed=seed)
    start = end = next_update = time.perf_counter()
    try:
        while played < steps:
            begin = time.perf_counter()
            logits = step_policy(frame[np.newaxis])[0]
            action = sample(logits, rng.random())
            chosen = time.perf_counter()
            frame, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                returns.append(float(info["episode"]["r"]))
                frame, _ = env.reset()
            end = time.perf_counter()
            in_policy += chosen - begin
            in_environment += end - chosen
            played += 1
            if end >= next_update:
                bar.update(played, finalize=False)
                next_update = end + _INTERVAL
    except KeyboardInterrupt:
        pass
    bar.update(played, finalize=True)
    return Summary(
        game=atari.short_name(env.spec.id),
        steps=played,
        environment_seconds=in_environment,
        policy_seconds=in_policy,
        total_seconds=end - start,
        returns=tuple(returns),
        recomputed=_recomputed(before, _positions(policy)),
    )


def _compile(policy):
    """Returns a function from uint8 frames to logits, both NumPy arrays."""
    shape = (1, *policy.input_shape[1:])
    # Calling the concrete function saves half the time of the call itself,
    # 200 microseconds, which matching its arguments to a trace would take.
    call = tf.function(
        lambda frames: policy(frames, training=False)
    ).get_concrete_function(tf.TensorSpec(shape, tf.uint8))
    # The first call is slow, as TensorFlow optimises the graph.
    call(tf.zeros(shape, tf.uint8))
    return lambda frames: call(tf.constant(frames)).numpy()


def _positions(policy):
    """Returns, by layer name, the pair of computed and all positions so far.

    Plain layers, which do not count and reuse nothing, have None.
    """
    positions = {}
    for layer in policy.layers:
        if isinstance(layer, (IncrementalConv2D, IncrementalDense)):
            stats = layer.stats
            positions[layer.name] = np.array(
                [stats.recomputed_positions, stats.positions]
            )
        elif isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            positions[layer.name] = None
    return positions


def _recomputed(before, after):
    """Returns, by layer name, the fraction computed between two counts."""
    fractions = {}
    for name, counts in after.items():
        if counts is None:
            fractions[name] = 1.0
        else:
            computed, total = (counts - before[name]).tolist()
            fractions[name] = computed / max(1, total)
    return fractions
