"""Plays a video through a network that computes only what changed."""

import functools
import signal

from absl import flags

import program

VIDEO = flags.DEFINE_multi_string(
    "video",
    None,
    "What to play: a file, the number of a camera, or a URL. If it is given "
    "several times, one after the other.",
)
MODEL = flags.DEFINE_string(
    "model",
    "MobileNetV2",
    "A .keras file, or the name of a model of keras.applications. A .keras "
    "file is given pictures as they are, 0 to 255.",
)
WEIGHTS = flags.DEFINE_enum(
    "weights",
    "imagenet",
    ["imagenet", "random"],
    "Of a model of keras.applications. imagenet is downloaded once. random is "
    "good for times alone: the outputs hardly vary.",
)
TOLERANCE = flags.DEFINE_float(
    "tolerance",
    None,
    "How far outputs may be off, as a part of how much they vary. Thresholds "
    "are found for it at first, and what moves less is not computed. If not "
    "given, outputs are exact.",
)
CALIBRATE_SECONDS = flags.DEFINE_float(
    "calibrate_seconds",
    5.0,
    "How much of the video, at its beginning, to find thresholds with.",
)
EVERY = flags.DEFINE_integer(
    "every", 1, "Play every n-th frame only.", lower_bound=1
)
MAX_FRAMES = flags.DEFINE_integer(
    "max_frames",
    None,
    "The most frames to play. By default all, up to Ctrl-C.",
    lower_bound=1,
)
COMPARE_EVERY = flags.DEFINE_integer(
    "compare_every",
    10,
    "Compare every n-th frame with plain Keras, by time and error.",
    lower_bound=1,
)
RECORD = program.define_picture(
    "record",
    "File to write a moving picture to, .gif or .mp4: the video, beside what "
    "of its pixels was handed on to the network.",
)
SHARD = program.define_shard("the videos")
flags.adopt_module_key_flags(program)


@flags.multi_flags_validator(
    ["video", "record"], "--record shows one video, not several"
)
def _is_of_one(values):
    return values["record"] is None or len(values["video"] or ()) < 2


program.keep_apart(["video", "model"], ["record", "summary_json"])


@flags.validator(TOLERANCE, message="must be above 0")
def _is_positive(value):
    return value is None or 0 < value < float("inf")


@flags.validator(CALIBRATE_SECONDS, message="must be a number from 0 on")
def _is_number(value):
    return 0 <= value < float("inf")


def main(_):
    """Plays and reports as the flags say."""
    if not VIDEO.value or "" in VIDEO.value:
        program.fail("--video must be a file, the number of a camera, or a URL")
    if WEIGHTS.present and MODEL.value.endswith(".keras"):
        program.fail("--weights are of models of keras.applications")
    if CALIBRATE_SECONDS.present and TOLERANCE.value is None:
        program.fail("--calibrate_seconds goes with --tolerance")
    # Here rather than above, as it takes seconds: bad flags fail at once.
    with program.loading():
        from reuse_tf import files, process
        from reuse_tf.playing import video, watch

    try:
        names = VIDEO.value
        if SHARD.value is not None:
            names = SHARD.value.of(names)
    except ValueError as error:
        program.fail(error)
    summaries, errors = [], []

    @functools.cache
    def model():
        """The model. Without it, no other video can be played either."""
        try:
            return watch.load_model(
                MODEL.value, None if WEIGHTS.value == "random" else "imagenet"
            )
        except (ImportError, OSError, ValueError) as error:
            program.fail(*errors, files.explain(error))

    def play(name):
        """Plays and reports a video; returns whether it is to be the last."""
        with video.Frames(name, every=EVERY.value) as frames:
            frames.size = watch.frame_size(model())
            if summaries:
                print()
            rate = frames.rate / EVERY.value
            drawing = RECORD.value and watch.Drawing(
                program.ending(RECORD.value), rate
            )
            found = TOLERANCE.value and watch.calibrate(
                model(),
                frames,
                TOLERANCE.value,
                max(4, round(min(CALIBRATE_SECONDS.value * rate, 2**31))),
                name=name,
            )
            # What was played is reported however often Ctrl-C is pressed.
            with process.Stop() as stop:
                summary = watch.watch(
                    model(),
                    frames,
                    name=name,
                    found=found,
                    max_frames=MAX_FRAMES.value,
                    compare_every=COMPARE_EVERY.value,
                    recorder=drawing,
                )
                summaries.append(summary)
                print(summary, flush=True)
                errors.extend(
                    program.write({RECORD.value: lambda: drawing.finish()})
                )
            return stop.requested

    # They end it as Ctrl-C does: what was played before is kept.
    for number in signal.SIGTERM, signal.SIGHUP:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        for name in names:
            try:
                if play(name):
                    break
            except (ImportError, OSError, ValueError) as error:
                errors.append(files.explain(error))
    except KeyboardInterrupt:
        errors.append("interrupted")
    finally:
        if summaries:
            with process.Stop():
                errors += program.write(
                    {program.SUMMARY_JSON.value: lambda: _json(summaries)}
                )
    if errors:
        # What a model does not take is the same of all videos.
        program.fail(*dict.fromkeys(errors))


def _json(summaries):
    """One summary, or, if several videos are asked for, all in a list."""
    if len(VIDEO.value) == 1:
        return program.as_json(summaries[0])
    return program.as_json({"videos": [one.as_dict() for one in summaries]})


if __name__ == "__main__":
    program.run(main)
