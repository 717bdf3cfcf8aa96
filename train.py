"""Trains a policy to play an Atari game by REINFORCE, reusing activations."""

import dataclasses
import os
import time

from absl import flags

import program

_OPTIMIZERS = ["adam", "rmsprop", "sgd"]

flags.DEFINE_integer(
    "episodes",
    None,
    "Episodes to train for. Without --steps, these alone are the bound; with "
    "it, whichever is reached first.",
    lower_bound=1,
)
flags.DEFINE_float("learning_rate", 1e-5, "Learning rate of the optimizer.")
flags.DEFINE_enum("optimizer", "adam", _OPTIMIZERS, "Optimizer.")
flags.DEFINE_float("discount", 0.99, "Discount of rewards per step.", 0.0, 1.0)
flags.DEFINE_integer(
    "batch_episodes",
    None,
    "Episodes per update, no fewer than --num_envs, which is the default.",
    lower_bound=1,
)
flags.DEFINE_float(
    "entropy", 0.0, "Weight of the entropy bonus.", lower_bound=0.0
)
flags.DEFINE_float(
    "clip_norm",
    None,
    "Bound of the gradient's global norm. By default there is none.",
)
flags.DEFINE_float(
    "checkpoint_seconds",
    60.0,
    "Least seconds between two checkpoints.",
    lower_bound=0.0,
)
RUN_DIR = program.define_path(
    "run_dir",
    "Directory of the run: its settings, episodes, checkpoints, learning "
    "curve and a log for TensorBoard. A run that is there is resumed, with its "
    "own settings where no flags are given. By default "
    "runs/<game>-<seed>-<time>.",
)
flags.adopt_module_key_flags(program)


@flags.validator("learning_rate", message="must be positive")
@flags.validator("clip_norm", message="must be positive")
def _is_positive(value):
    return value is None or 0 < value < float("inf")


def main(_):
    """Trains and reports as the flags say."""
    # Here rather than above, as it takes seconds: bad flags fail at once.
    with program.loading():
        from reuse_tf import atari, files
        from reuse_tf.learning import training
        from reuse_tf.learning.settings import Settings, saved_settings
        from reuse_tf.policies import run_directory
    path = RUN_DIR.value
    try:
        values = _values(
            [field.name for field in dataclasses.fields(Settings)],
            saved_settings(path) if path is not None else {},
        )
        values["game"] = atari.short_name(values["game"])
        settings = Settings(**values)
        if path is None:
            now = time.strftime("%Y%m%d-%H%M%S")
            name = f"{values['game']}-{values['seed']}-{now}"
            path = run_directory.make_new(os.path.join("runs", name))
        _, summary = training.train(settings, path)
    except (FloatingPointError, ValueError) as error:
        program.fail(error)
    except OSError as error:
        program.fail(
            f"{files.explain(error)}; to resume from the last checkpoint, "
            f"pass --run_dir={path}"
        )
    except KeyboardInterrupt:
        program.fail(f"interrupted; to resume, pass --run_dir={path}")
    program.finish(
        f"{summary}\nrun directory: {path}",
        {program.SUMMARY_JSON.value: lambda: program.as_json(summary)},
    )


def _values(names, saved):
    """Returns the flags' values; where a flag is not given, the saved one."""
    given = {name for name in names if flags.FLAGS[name].present}
    values = {name: flags.FLAGS[name].value for name in names}
    if "episodes" in given and "steps" not in given:
        values["steps"] = None
    return {**values, **saved, **{name: values[name] for name in given}}


if __name__ == "__main__":
    program.run(main)
