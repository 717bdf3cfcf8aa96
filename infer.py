"""Plays an Atari game with a policy that reuses its activations."""

import json
import os

from absl import flags

import program

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Policy to play: a .keras file, or the directory of a run of train.py, "
    "whose --game and --downsample are then the default. If not given, "
    "--filters describes one, with random weights.",
)
NUM_ENVS = flags.DEFINE_integer(
    "num_envs", 1, "Environments to play at once.", lower_bound=1
)
RECORD = flags.DEFINE_string(
    "record",
    None,
    "File to write a moving picture to, as GIF: the first 300 steps of the "
    "game, beside what was recomputed. The seconds of the environment then "
    "have in them what taking it took.",
)
flags.adopt_module_key_flags(program)
flags.register_validator(
    RECORD, program.is_writable, message="cannot be written"
)


@flags.validator(CHECKPOINT, message="no such file or directory")
def _exists(path):
    return path is None or os.path.exists(path)


def main(_):
    """Plays and reports as the flags say."""
    # Here rather than above, as it takes seconds: bad flags fail at once.
    with program.loading():
        from reuse_tf import play, record, run_directory
    run = {}
    if CHECKPOINT.value is not None:
        run = run_directory.saved_settings(CHECKPOINT.value)
    try:
        env, policy = play.prepare(
            _value(program.GAME, run),
            downsample=_value(program.DOWNSAMPLE, run),
            filters=program.FILTERS.value,
            num_envs=NUM_ENVS.value,
            checkpoint=CHECKPOINT.value,
            seed=program.SEED.value,
        )
        if RECORD.value is not None:
            if NUM_ENVS.value > 1:
                raise ValueError("--record shows one environment, not several")
            env = record.Recorder(env, policy, program.REUSE.value)
        summary = play.play(
            env,
            policy,
            steps=program.STEPS.value,
            reuse=program.REUSE.value,
            seed=program.SEED.value,
        )
    except (FloatingPointError, ValueError) as error:
        program.fail(error)
    print(summary)
    if RECORD.value is not None:
        env.save(RECORD.value)
    if program.SUMMARY_JSON.value is not None:
        with open(program.SUMMARY_JSON.value, "w") as file:
            json.dump(summary.as_dict(), file, indent=2)


def _value(flag, run):
    """Returns a flag's value; if it is not given, that of the run played."""
    return flag.value if flag.present else run.get(flag.name, flag.value)


if __name__ == "__main__":
    program.run(main)
