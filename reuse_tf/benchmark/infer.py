"""Acting: a policy's steps with and without reuse, against the bare emulator.

A policy with random weights plays each game, as `infer.py` does; in turns, in
one process, by plain Keras in a `tf.function` (dense), with temporal and with
content reuse, and, as the limit, the emulator alone (bare_env). All do the
same random actions and see the same frames: the actions that a policy draws
are timed, compared and thrown away. Results in `--out` are kept: only what is
missing is measured.
"""

import contextlib
import io

from absl import flags

from reuse_tf.benchmark import grid, memory, replay, report
from reuse_tf.playing import play

FLAGS = flags.FlagValues()
GRID = grid.Grid(FLAGS)

# Columns round differently, so that a draw may fall just beside. The part of
# all actions in which two of them may differ.
_ROUNDING = 1e-3


def measure(
    game, *, downsample, filters, column, steps, seed, idle_mb, chosen=None
):
    """Measures a column of one game.

    Args:
        game: Its short name.
        downsample: See `atari.make`.
        filters: See `build_policy`.
        column: A key of `grid.COLUMNS`.
        steps: Steps to play.
        seed: Decides weights, game and actions.
        idle_mb: Resident memory of the process when it began.
        chosen: A list of the actions that the policy of another column drew,
            which must be those of this one; if empty, it is filled.

    Returns:
        A dict. Seconds of all steps: `total_seconds`; of these, in the
        emulator, `environment_seconds`; and all else, which is reading the
        frame, the network, softmax, sampling and the loop, `policy_seconds`,
        also at the end of each tenth of the steps, separated by spaces, in
        `policy_tenths`. `bare_seconds`: of the bare emulator, which does the
        same steps, in turns of 50, and is not in the above. With reuse, for a
        step, `changed_positions` of the last convolution and `new_rows` of all
        of them; at the end, `rows` of the last table, `clears` of the tables
        and `switches` of the kind of reuse. In MB, `idle_mb` and those of
        `memory.Meter`.

    Raises:
        RuntimeError: If the columns' policies draw different actions.
    """
    reuse = grid.COLUMNS[column]
    row = dict.fromkeys(
        [
            *("total_seconds", "environment_seconds", "policy_seconds"),
            *(
                "bare_seconds",
                "policy_tenths",
                "changed_positions",
                "new_rows",
                "rows",
            ),
            *("clears", "switches"),
        ],
        "",
    )
    with memory.Meter() as meter:
        bare = replay.Bare(game, steps, seed)
        if reuse is None:
            bare.play(steps)
            total = seconds = bare.seconds
        else:
            with grid.device(column):
                env, policy = play.prepare(
                    game, downsample=downsample, filters=filters, seed=seed
                )
                replayed = replay.Replay(env, steps, seed, bare)
                # It shows its progress.
                with contextlib.redirect_stdout(io.StringIO()):
                    summary = play.play(
                        env, policy, steps=steps, reuse=reuse, seed=seed
                    )
            if summary.steps < steps:
                raise KeyboardInterrupt
            total = summary.total_seconds - replayed.beside_seconds
            seconds = replayed.emulator_seconds
            row["policy_tenths"] = " ".join(
                f"{t:.4f}" for t in replayed.other_seconds
            )
            _check_same(replayed.chosen, chosen if chosen is not None else [])
            if summary.stats is not None:
                row.update(_counts(summary.stats, len(filters)))
    row["total_seconds"] = round(total, 6)
    row["environment_seconds"] = round(seconds, 6)
    row["policy_seconds"] = round(total - seconds, 6)
    row["bare_seconds"] = round(bare.seconds, 6)
    return {**row, "idle_mb": idle_mb, **meter.as_dict()}


def _check_same(actions, others):
    if not others:
        others += actions
    pairs = list(zip(actions, others, strict=False))
    different = sum(a != b for a, b in pairs)
    if different > 1 + _ROUNDING * len(pairs):
        raise RuntimeError(
            f"The columns' policies drew different actions in {different} of "
            f"{len(pairs)} steps."
        )


def _counts(stats, num_convolutions):
    convolutions = list(stats.layers.values())[:num_convolutions]
    return {
        "changed_positions": round(convolutions[-1].changed / stats.frames, 3),
        "new_rows": round(
            sum(layer.new_rows for layer in convolutions) / stats.frames, 3
        ),
        "rows": list(stats.rows.values())[-1],
        "clears": stats.clears,
        "switches": stats.switches,
    }


def main():
    """Measures what the flags describe; prints and writes the results."""
    idle_mb = memory.idle_mb()
    chosen = {}

    def measure_and_compare(**asked):
        same = tuple(asked[n] for n in ("game", "downsample", "filters"))
        return measure(
            **asked, idle_mb=idle_mb, chosen=chosen.setdefault(same, [])
        )

    for about, games in GRID.measured("inference", measure_and_compare):
        print(about + "\n")
        table = report.NumberTable(
            "game",
            {
                "E µs": ".0f",
                "P µs": ".0f",
                "(E+P)/E": ".2f",
                "total/E": ".2f",
                "spread": ".0%",
                "T µs": ".0f",
                "D µs": ".0f",
                "D/P": ".1f",
                "new rows": ".1f",
                "changed": ".0f",
                "rows": ".0f",
                "MB before": ".0f",
                "MB after": ".0f",
            },
        )
        for game, rows in games:
            table.print_row(game, _numbers(rows))
        table.print_summary()
        print(
            "\nMeans for a step. E: the bare emulator; in ratios, in turns "
            "with the play. P: what playing with content reuse adds: reading "
            "the frame, the network, softmax and sampling. Total: of a play, "
            "which is E as slow as it is beside P, and P; spread: of total/E "
            "over the runs, (largest - least) / median. T and D: as P, with "
            "temporal reuse and by dense Keras. New rows: of all convolutions. "
            "Changed: positions of the last one. Rows: of its table, at the "
            "end. MB: resident.\n"
        )


def _numbers(rows):
    def micros(column, name):
        return 1e6 * rows.median(column, name, per_step=True)

    bare = micros("bare_env", "total_seconds")
    policy, temporal, dense = (
        micros(column, "policy_seconds")
        for column in ("content", "temporal", "dense")
    )
    return [
        bare,
        policy,
        1 + rows.ratio("content", "policy_seconds", "bare_seconds"),
        rows.ratio("content", "total_seconds", "bare_seconds"),
        rows.spread("content", "total_seconds", "bare_seconds"),
        temporal,
        dense,
        dense / policy,
        *(
            rows.median("content", name)
            for name in (
                *("new_rows", "changed_positions", "rows"),
                *("start_mb", "end_mb"),
            )
        ),
    ]
