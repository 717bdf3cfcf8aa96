"""Playing a game with a policy, and measuring it."""

import dataclasses
import sys
import time

import keras
import numpy as np

from reuse_tf import atari, process
from reuse_tf.extras import extra
from reuse_tf.policies import Sampler, build_network, likeliest, load_policy
from reuse_tf.policies.evaluators import evaluator
from reuse_tf.runner import RunnerStats

with extra("atari"):
    import gymnasium as gym

# Seconds between two updates of the progress bar.
_INTERVAL = 0.2


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was played, and the time it took.

    Attributes:
        game: Short name of the game.
        steps: Steps of all environments together.
        environment_seconds: Time spent in the environments' steps and resets.
        policy_seconds: Time spent in evaluating the policy and drawing
            actions.
        total_seconds: Time from the beginning of the first step to the end of
            the last.
        returns: The return of each episode that has ended, in order.
        recomputed: For each layer over positions (convolutions, poolings and
            the first dense layer), by name, the fraction of them that was
            computed rather than reused. Without reuse it is 1.
        stats: The runner's `RunnerStats`; None without reuse.
    """

    game: str
    steps: int
    environment_seconds: float
    policy_seconds: float
    total_seconds: float
    returns: tuple[float, ...]
    recomputed: dict[str, float]
    stats: RunnerStats | None = None

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
            "steps_per_second": _rate(self.steps, self.total_seconds),
            "environment_steps_per_second": _rate(
                self.steps, self.environment_seconds
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
            f"{values['mean_return']:.2f} +- {values['std_return']:.2f}"
            if self.returns
            else "no episode ended"
        )
        lines = {
            "game": self.game,
            "steps": self.steps,
            "seconds": f"{seconds['total']:.3f} (environment "
            f"{seconds['environment']:.3f}, policy {seconds['policy']:.3f})",
            "steps per second": f"{values['steps_per_second']:.0f} "
            "(environment alone "
            f"{values['environment_steps_per_second']:.0f})",
            "episodes": values["episodes"],
            "return": returns,
            "recomputed": ", ".join(
                f"{name} {fraction:.2%}"
                for name, fraction in self.recomputed.items()
            )
            or "nothing was played",
        }
        width = max(map(len, lines)) + 2
        return "\n".join(
            f"{name + ':':{width}}{value}" for name, value in lines.items()
        )


def prepare(
    game="Pong",
    *,
    preprocessing="paper",
    downsample=2,
    repeat_action_probability=0.25,
    network="paper",
    filters=None,
    num_envs=1,
    share=None,
    checkpoint=None,
    seed=None,
):
    """Makes a game and a policy for it.

    Args:
        game: See `atari.make`.
        preprocessing: See `atari.make`.
        downsample: See `atari.make`.
        repeat_action_probability: See `atari.make`.
        network: See `build_network`. Not used with a checkpoint.
        filters: Likewise.
        num_envs: Number of environments to play at once.
        share: A range of their numbers, if others play the rest.
        checkpoint: A saved policy to load. If none, the weights are random.
        seed: An integer that decides the random weights.

    Returns:
        A pair of a `gymnasium.Env`, or a `gymnasium.vector.VectorEnv` if
        it is to play several environments, and a Keras model.

    Raises:
        ValueError: If there is no such game, or the checkpoint holds no
            policy for it.
    """
    if preprocessing == "standard" and downsample != 2:
        raise ValueError(
            "`downsample` is for preprocessing='paper'. Received: "
            f"downsample={downsample}, preprocessing='standard'"
        )
    how = {
        "preprocessing": preprocessing,
        "downsample": downsample,
        "repeat_action_probability": repeat_action_probability,
    }
    count = num_envs if share is None else len(share)
    if count == 1:
        make = atari.make if num_envs == 1 else atari.make_only
        env = make(game, **how)
        input_shape = env.observation_space.shape
        num_actions = int(env.action_space.n)
    else:
        env = atari.make_vector(game, count, **how)
        input_shape = env.single_observation_space.shape
        num_actions = int(env.single_action_space.n)
    if checkpoint is not None:
        policy = load_policy(
            checkpoint, input_shape, num_actions, incremental=False
        )
    else:
        if seed is not None:
            keras.utils.set_random_seed(seed)
        policy = build_network(
            network, input_shape, num_actions, filters=filters
        )
    return env, policy


def play(
    env,
    policy,
    *,
    steps,
    reuse="auto",
    seed=None,
    greedy=False,
    share=None,
    total=None,
):
    """Plays a game, drawing each action from the policy's softmax.

    A seed decides the actions and the returns. Whether the policy reuses
    activations makes no difference to them but for the rounding of the
    probabilities. Shows a progress bar if the standard output is a terminal,
    and a line at the end if not. Ctrl-C and SIGTERM end the play early.

    Args:
        env: An environment as `atari.make` or `atari.make_vector` makes it.
        policy: A Keras model, frames `[N, height, width, channels]` to logits
            `[N, num_actions]`.
        steps: Steps to play, over as many episodes as it takes. Several
            environments share them, and all do the same number.
        reuse: That of `Runner`, or `"none"`: plain
            Keras.
        seed: An integer.
        greedy: Whether to do the likeliest action instead.
        share: A range of numbers, if the environments are these among more, of
            which each does what it does among all. Needs a seed.
        total: How many there are in all then. `steps` are those of all.

    Returns:
        A `Summary` of the steps that were played.

    Raises:
        FloatingPointError: If the policy's logits are not finite.
        ValueError: If `reuse` is none of these, or `Runner` does not support
            the policy.
    """
    games = (
        _Several(env) if isinstance(env, gym.vector.VectorEnv) else _One(env)
    )
    try:
        evaluate = evaluator(policy, reuse)
    except ValueError as error:
        if reuse == "none":
            raise
        raise ValueError(f"{error} Or play with --reuse=none.") from error
    rng = np.random.default_rng(seed)
    choose = likeliest if greedy else Sampler(rng, share, total)
    if share is not None:
        # Each environment has the steps and the seed that it has among all.
        steps = -(-steps // total) * games.num_envs
        seed += share.start
    bar = keras.utils.Progbar(
        steps, verbose=1 if sys.stdout.isatty() else 2, interval=0
    )
    played, in_policy, in_environment = 0, 0.0, 0.0
    games.reset(seed)
    start = end = next_update = time.perf_counter()
    with process.Stop() as stop:
        while played < steps and not stop.requested:
            begin = time.perf_counter()
            actions = choose(evaluate.act(games.frames))
            chosen = time.perf_counter()
            games.step(actions)
            end = time.perf_counter()
            in_policy += chosen - begin
            in_environment += end - chosen
            played += games.num_envs
            if end >= next_update:
                bar.update(min(played, steps), finalize=False)
                next_update = end + _INTERVAL
    bar.update(min(played, steps), finalize=True)
    stats = evaluate.stats
    return Summary(
        game=atari.short_name(env.spec.id),
        steps=played,
        environment_seconds=in_environment,
        policy_seconds=in_policy,
        total_seconds=end - start,
        returns=tuple(games.returns),
        recomputed=recomputed(policy, stats),
        stats=stats,
    )


class _One:
    """One environment, as a batch of one. Begins new episodes by itself.

    Attributes:
        num_envs: 1.
        frames: What is seen, always in the same array.
        returns: Of the episodes that have ended.
    """

    num_envs = 1

    def __init__(self, env):
        self._env = env
        self.frames = np.empty((1, *env.observation_space.shape), np.uint8)
        self.returns = []

    def reset(self, seed=None):
        self.frames[0], _ = self._env.reset(seed=seed)

    def step(self, actions):
        frame, _, terminated, truncated, info = self._env.step(actions[0])
        if terminated or truncated:
            self.returns.append(float(info["episode"]["r"]))
            self.reset()
        else:
            self.frames[0] = frame


class _Several:
    """Several environments that begin new episodes in the same step.

    Attributes: as of `_One`.
    """

    def __init__(self, env):
        self._env = env
        self.num_envs = env.num_envs
        self.frames = np.empty(env.observation_space.shape, np.uint8)
        self.returns = []
        self._rewards = np.zeros(env.num_envs)  # of the present ones, so far

    def reset(self, seed):
        self.frames[:], _ = self._env.reset(seed=seed)
        self._rewards[:] = 0

    def step(self, actions):
        self.frames[:], rewards, terminated, truncated, _ = self._env.step(
            np.array(actions)
        )
        self._rewards += rewards
        ended = terminated | truncated
        if ended.any():
            self.returns += self._rewards[ended].tolist()
            self._rewards[ended] = 0


def recomputed(model, stats):
    """Returns what fraction of the positions was computed, by layer name.

    Args:
        model: A Keras model.
        stats: The `RunnerStats` of a runner of it, or None if there was none.

    Returns:
        A dict. See `Summary`. Empty if the runner has stepped nothing.
    """
    if stats is not None and not stats.frames:
        return {}
    if stats is not None:
        return {
            name: layer.new_rows / max(1, layer.positions)
            for name, layer in stats.layers.items()
        }
    return {
        layer.name: 1.0
        for layer in model.layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
    }


def _rate(steps, seconds):
    return steps / seconds if steps else 0.0
