"""What decides a training run."""

import dataclasses
import math
import numbers

from reuse_tf.policies import run_directory

OPTIMIZERS = ("adam", "rmsprop", "sgd")
_REUSE = ("auto", "content", "temporal", "none")
# What may differ when a run is resumed, as the weights at any step do not
# depend on it.
MAY_CHANGE = ("steps", "episodes", "checkpoint_seconds")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a training run.

    Training ends when `steps` or `episodes` are reached, whichever is first.
    Episodes that run when `steps` are reached are cut there, and take part in
    the last update as if they had ended. Nothing else depends on these two,
    which may be raised to continue a finished run.

    Attributes:
        game: See `atari.make`.
        downsample: See `atari.make`.
        filters: See `build_policy`.
        reuse: That of `Runner`, `"auto"` by default, or `"none"`: plain
            Keras.
        steps: Steps of the environments to train for, or None.
        episodes: Episodes to train for, or None.
        learning_rate: Of the optimizer. One step of Adam moves a logit by up
            to this times the sum of the last convolution's activations, which
            at a downsample of 2 are 672,000: at 1e-4 the policy settles on an
            action or two within ten episodes of Pong or of Breakout.
        optimizer: One of `OPTIMIZERS`.
        discount: See `reinforce.discounted_returns`.
        batch_episodes: Episodes per update. None stands for `num_envs`.
        entropy: Weight of the entropy bonus.
        clip_norm: Bound of the gradient's global norm, or None.
        num_envs: Environments that are played at once, of which there can be
            no more than episodes per update: an episode is played to its end
            with the weights it began with.
        seed: Decides the initial weights, the environments and the actions.
        checkpoint_seconds: Least seconds between two checkpoints.
    """

    game: str = "Pong"
    downsample: int = 2
    filters: tuple[int, ...] = (40, 80)
    reuse: str = "auto"
    steps: int | None = 3000
    episodes: int | None = None
    learning_rate: float = 1e-5
    optimizer: str = "adam"
    discount: float = 0.99
    batch_episodes: int | None = None
    entropy: float = 0.0
    clip_norm: float | None = None
    num_envs: int = 1
    seed: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self):
        if isinstance(self.filters, (list, tuple)):
            object.__setattr__(self, "filters", tuple(self.filters))
        if self.batch_episodes is None:
            object.__setattr__(self, "batch_episodes", self.num_envs)
        for name, expected, is_right in (
            ("game", "a string", lambda v: isinstance(v, str)),
            ("downsample", "1, 2 or 4", lambda v: v in (1, 2, 4)),
            ("filters", "positive integers", _are_filters),
            ("reuse", "auto, content, temporal or none", _REUSE.__contains__),
            ("optimizer", ", ".join(OPTIMIZERS), OPTIMIZERS.__contains__),
            ("steps", "positive", lambda v: v is None or _is_count(v)),
            ("episodes", "positive", lambda v: v is None or _is_count(v)),
            ("learning_rate", "positive", lambda v: is_finite(v) and v > 0),
            ("discount", "in [0, 1]", lambda v: is_finite(v) and 0 <= v <= 1),
            ("batch_episodes", "positive", _is_count),
            ("entropy", "not negative", lambda v: is_finite(v) and v >= 0),
            (
                "clip_norm",
                "positive",
                lambda v: v is None or (is_finite(v) and v > 0),
            ),
            ("num_envs", "positive", _is_count),
            (
                "seed",
                "an integer that is not negative",
                lambda v: _is_count(v) or (is_finite(v) and v == 0),
            ),
            (
                "checkpoint_seconds",
                "not negative",
                lambda v: isinstance(v, numbers.Real) and v >= 0,
            ),
        ):
            value = getattr(self, name)
            if not is_right(value):
                raise ValueError(
                    f"Expected `{name}` to be {expected}. "
                    f"Received: {name}={value}"
                )
        if self.steps is None and self.episodes is None:
            raise ValueError("Expected `steps` or `episodes`, to end at.")
        if self.num_envs > self.batch_episodes:
            raise ValueError(
                "Expected `num_envs` to be at most `batch_episodes`. Received: "
                f"num_envs={self.num_envs}, "
                f"batch_episodes={self.batch_episodes}"
            )


def saved_settings(run_dir):
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
    return isinstance(value, numbers.Real) and -math.inf < value < math.inf


def _is_count(value):
    return isinstance(value, numbers.Integral) and value > 0


def _are_filters(value):
    return isinstance(value, tuple) and value and all(map(_is_count, value))
