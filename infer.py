"""Plays an Atari game with a policy that reuses its activations."""

import os

from absl import flags

import atari_flags
import program

CHECKPOINT = program.define_path(
    "checkpoint",
    "Policy to play: the directory of a run of train.py, or a .keras file, in "
    "one or not. The --game and the frames of the run are the default. If not "
    "given, --network and --filters describe one, with random weights.",
)
GREEDY = flags.DEFINE_boolean(
    "greedy",
    False,
    "Whether to do the likeliest action rather than to draw one.",
)
RECORD = program.define_picture(
    "record",
    "File to write a moving picture to, .gif or .mp4: the first 300 steps of "
    "the game, beside what was recomputed. The seconds of the environment then "
    "have in them what taking it took.",
)
SHARD = program.define_shard("the environments and their steps")
flags.adopt_module_key_flags(atari_flags)
flags.adopt_module_key_flags(program)


@flags.validator(CHECKPOINT, message="no such file or directory")
def _exists(path):
    return path is None or os.path.exists(path)


@flags.multi_flags_validator(
    ["checkpoint", "network", "filters"],
    "--network and --filters describe a new policy: that of --checkpoint has "
    "its own",
)
def _is_one_policy(values):
    return values["checkpoint"] is None or not (
        values["network"] or values["filters"]
    )


program.keep_apart(["checkpoint"], ["record", "summary_json"])


def main(_):
    """Plays and reports as the flags say."""
    # Here rather than above, as it takes seconds: bad flags fail at once.
    with atari_flags.loading():
        from reuse_tf import files, process
        from reuse_tf.learning.settings import saved_settings
        from reuse_tf.playing import play, record
        from reuse_tf.policies import run_directory
    try:
        run = {}
        if CHECKPOINT.value is not None:
            run = _run_of(CHECKPOINT.value, saved_settings)
            run_directory.check_outputs(
                CHECKPOINT.value, RECORD.value, program.SUMMARY_JSON.value
            )
        num_envs = atari_flags.NUM_ENVS.value or 1
        share = None
        if SHARD.value is not None:
            share = SHARD.value.of(range(num_envs))
        env, policy = play.prepare(
            _value(atari_flags.GAME, run),
            preprocessing=_value(atari_flags.PREPROCESSING, run) or "paper",
            downsample=_value(atari_flags.DOWNSAMPLE, run),
            repeat_action_probability=_value(
                atari_flags.REPEAT_ACTION_PROBABILITY, run
            ),
            network=atari_flags.NETWORK.value or "paper",
            filters=atari_flags.FILTERS.value,
            num_envs=num_envs,
            share=share,
            checkpoint=CHECKPOINT.value,
            seed=atari_flags.SEED.value,
        )
        if RECORD.value is not None:
            if len(range(num_envs) if share is None else share) > 1:
                raise ValueError("--record shows one environment, not several")
            env = record.Recorder(
                env,
                policy,
                atari_flags.REUSE.value,
                program.ending(RECORD.value),
            )
        # What was played is reported however often Ctrl-C is pressed.
        with process.Stop():
            summary = play.play(
                env,
                policy,
                steps=atari_flags.STEPS.value or 3000,
                reuse=atari_flags.REUSE.value,
                seed=atari_flags.SEED.value,
                greedy=GREEDY.value,
                share=share,
                total=num_envs,
            )
            program.finish(
                summary,
                {
                    program.SUMMARY_JSON.value: lambda: program.as_json(
                        summary
                    ),
                    RECORD.value: lambda: env.finish(),
                },
            )
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        program.fail(files.explain(error))


def _run_of(checkpoint, saved_settings):
    """Returns the settings of the run that a policy is of, if there are any."""
    if os.path.isdir(checkpoint):
        return saved_settings(checkpoint)
    folder = os.path.dirname(os.path.realpath(checkpoint))
    if os.path.basename(folder).startswith("checkpoint-"):
        folder = os.path.dirname(folder)
    try:
        return saved_settings(folder)
    except ValueError as error:
        if atari_flags.GAME.present:
            return {}
        raise ValueError(
            f"{error} To play the policy all the same, give --game and all "
            "else that its frames depend on."
        ) from error


def _value(flag, run):
    """Returns a flag's value; if it is not given, that of the run played."""
    return flag.value if flag.present else run.get(flag.name, flag.value)


if __name__ == "__main__":
    program.run(main)
