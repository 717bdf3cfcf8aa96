"""Trains a policy to play an Atari game, reusing activations."""

import dataclasses
import os
import time

from absl import flags

import atari_flags
import program

_OPTIMIZERS = ["adam", "rmsprop", "sgd"]

flags.DEFINE_enum(
    "algorithm",
    "reinforce",
    ["reinforce", "ppo", "a2c"],
    "How to learn. reinforce: an update after one or more episodes. ppo: "
    "several, with a critic, after some steps of each environment. a2c: one "
    "then; it takes the flags of ppo.",
)
flags.DEFINE_integer(
    "episodes",
    None,
    "Episodes to train for. Without --steps, these alone are the bound; with "
    "it, whichever is reached first.",
    lower_bound=1,
)
flags.DEFINE_float(
    "learning_rate",
    None,
    "Learning rate of the optimizer. By default 1e-5, 2.5e-4 for ppo, and 7e-4 "
    "for a2c.",
)
flags.DEFINE_boolean(
    "anneal",
    None,
    "ppo: whether the learning rate falls to zero at the last step. By "
    "default it does, if --steps are the bound.",
)
flags.DEFINE_enum(
    "optimizer",
    None,
    _OPTIMIZERS,
    "Optimizer. By default adam, and rmsprop for a2c.",
)
flags.DEFINE_float("discount", 0.99, "Discount of rewards per step.", 0.0, 1.0)
flags.DEFINE_float(
    "gae_lambda",
    None,
    "ppo: how far advantages look ahead, from 0 to 1. By default 0.95, and 1 "
    "for a2c.",
    0.0,
    1.0,
)
flags.DEFINE_boolean(
    "clip_rewards",
    None,
    "ppo: whether rewards are cut to their sign. By default they are.",
)
flags.DEFINE_integer(
    "batch_episodes",
    None,
    "reinforce: episodes per update, or more if they end in the same step. By "
    "default --num_envs. Where that is above 1 other episodes go on under the "
    "new weights.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "num_steps",
    None,
    "ppo: steps of each environment per update. By default 128, and 5 for a2c.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "epochs",
    None,
    "ppo: how often an update uses each step. By default 4, and 1 for a2c.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "minibatches",
    None,
    "ppo: in how many parts. By default 4, and 1 for a2c.",
    lower_bound=1,
)
flags.DEFINE_float(
    "clip",
    None,
    "ppo: by how much an action may become more or less likely. By default "
    "0.1.",
)
flags.DEFINE_float(
    "value_weight",
    None,
    "ppo: weight of the critic's loss. By default 0.5, and 0.25 for a2c.",
    lower_bound=0.0,
)
flags.DEFINE_float(
    "value_clip",
    None,
    "ppo: by how much a value may change. By default by any.",
)
flags.DEFINE_float(
    "entropy",
    None,
    "Weight of the entropy bonus. By default 0, and 0.01 for ppo and a2c.",
    lower_bound=0.0,
)
flags.DEFINE_float(
    "clip_norm",
    None,
    "Bound of the gradient's global norm. By default there is none, and 0.5 "
    "for ppo and a2c.",
)
flags.DEFINE_integer(
    "eval_every",
    None,
    "Steps after which the policy plays whole games for its score. By default "
    "it never does.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "eval_episodes", 10, "Games of each evaluation.", lower_bound=1
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
flags.adopt_module_key_flags(atari_flags)
flags.adopt_module_key_flags(program)


@flags.validator("learning_rate", message="must be positive")
@flags.validator("clip", message="must be positive")
@flags.validator("value_clip", message="must be positive")
@flags.validator("clip_norm", message="must be positive")
def _is_positive(value):
    return value is None or 0 < value < float("inf")


def main(_):
    """Trains and reports as the flags say."""
    # Here rather than above, as it takes seconds: bad flags fail at once.
    with atari_flags.loading():
        from reuse_tf import atari, files
        from reuse_tf.learning import training, workers
        from reuse_tf.learning.settings import Settings, saved_settings
        from reuse_tf.policies import run_directory
    path = RUN_DIR.value
    try:
        team = workers.connect()
        saved = {}
        if path is not None and team.is_chief:
            saved = saved_settings(path)
        names = [field.name for field in dataclasses.fields(Settings)]
        values = _values(names, saved, atari.short_name)
        # The flags of the chief are those of all workers.
        of_chief = team.gather(values)[0]
        values = _values(names, of_chief, atari.short_name)
        settings = Settings(**values)
        if path is None and team.is_chief:
            now = time.strftime("%Y%m%d-%H%M%S")
            name = f"{values['game']}-{values['seed']}-{now}"
            path = run_directory.make_new(os.path.join("runs", name))
        if team.is_chief:
            run_directory.check_outputs(path, program.SUMMARY_JSON.value)
        _, summary = training.train(settings, path)
    except (FloatingPointError, ValueError) as error:
        program.fail(error)
    except OSError as error:
        advice = "; to resume from the last checkpoint, pass --run_dir="
        program.fail(
            f"{files.explain(error)}{advice + path if path is not None else ''}"
        )
    except workers.WorkerLost as error:
        advice = "to resume, begin all workers again"
        if path is not None:
            advice += f", the chief with --run_dir={path}"
        program.fail(f"{error}; {advice}")
    except KeyboardInterrupt:
        advice = "" if path is None else f"; to resume, pass --run_dir={path}"
        program.fail(f"interrupted{advice}")
    if not team.is_chief:
        return
    program.finish(
        f"{summary}\nrun directory: {path}",
        {program.SUMMARY_JSON.value: lambda: program.as_json(summary)},
    )


def _values(names, saved, short_name):
    """Returns the flags' values; where a flag is not given, the saved one."""
    given = {name for name in names if flags.FLAGS[name].present}
    values = {name: flags.FLAGS[name].value for name in names}
    values["game"] = short_name(values["game"])
    if saved and short_name(saved["game"]) == values["game"]:
        given.discard("game")  # A run may have its full id.
    if "algorithm" in given and saved.get("algorithm") != values["algorithm"]:
        saved = {}  # Those of another one do not fit. The run refuses it.
    # A bound that is given alone is the only one, but for the end that a
    # learning rate falls to.
    if "episodes" in given and not values["anneal"] and not saved.get("anneal"):
        saved = {**saved, "steps": None}
    elif "steps" in given:
        saved = {**saved, "episodes": None}
    return {**values, **saved, **{name: values[name] for name in given}}


if __name__ == "__main__":
    program.run(main)
