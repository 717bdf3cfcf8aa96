"""Learning as people choose it: PPO, or others, against those without reuse.

A policy learns each game with reuse, as `train.py` does, and with plain Keras
and a plain tape; PPO also as Stable-Baselines3 has it, where that is installed,
with the same settings and network; and, as the limit, the emulator alone plays
as many environments at random, on all processors. All take turns, an update
each, or as many steps. Results in `--out` are kept: only what is missing is
measured.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import keras
import numpy as np
from absl import flags

from reuse_tf import atari, process
from reuse_tf.atari.games import full_id
from reuse_tf.benchmark import report, timing
from reuse_tf.learning.progress import RECENT, Bar, Progress
from reuse_tf.learning.settings import Settings
from reuse_tf.learning.training import ALGORITHMS

LEARNERS = ("reuse", "plain", "sb3", "emulator")
_RIVAL = "stable_baselines3"
_STABLE_BASELINES = pathlib.Path(__file__).with_name("stable_baselines.py")
# Steps that are never reached, so that nothing is cut there.
_NO_END = 10**12
KEY = (
    *("algorithm", "game", "learner", "settings", "num_envs", "updates"),
    *("seed", "threads"),
)
# What differs from the default settings of train.py. Of these the learning rate
# would fall over a number of steps that nobody says.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"num_envs": 8, "steps": _NO_END, "anneal": False},
    "lunch": {
        "num_envs": 16,
        "minibatches": 8,
        "epochs": 3,
        "clip": 0.2,
        "learning_rate": 5e-4,
        "repeat_action_probability": 0.0,
        "steps": 3_000_000,
    },
}

FLAGS = flags.FlagValues()
ALGORITHM = flags.DEFINE_enum(
    "algorithm",
    "ppo",
    [*ALGORITHMS],
    "How to learn.",
    flag_values=FLAGS,
)
CHOSEN_SETTINGS = flags.DEFINE_enum(
    "settings",
    "default",
    [*SETTINGS],
    "The default settings of train.py, with a learning rate that stays as it "
    "is, or, for ppo, those that learn Pong over lunch: "
    + ", ".join(f"{name} {value}" for name, value in SETTINGS["lunch"].items())
    + ".",
    flag_values=FLAGS,
)
GAMES = flags.DEFINE_list(
    "games",
    ["Pong", "Breakout", "SpaceInvaders"],
    "What to learn.",
    flag_values=FLAGS,
)
CHOSEN = flags.DEFINE_list(
    "learners",
    None,
    f"Of {', '.join(LEARNERS)}. By default all, but for sb3 where "
    "Stable-Baselines3 is not installed, or the algorithm is another one.",
    flag_values=FLAGS,
)
UPDATES = report.define_count(FLAGS, "updates", 20, "Updates of each learner.")
EVERY = report.define_count(
    FLAGS,
    "every",
    None,
    "Updates after each of which there is a row too, for curves. By default "
    "there is one at the end.",
)
NUM_ENVS = report.define_count(
    FLAGS,
    "num_envs",
    None,
    "Environments that are played at once. By default 8, or as the settings "
    "have it.",
)
THREADS = report.define_threads(FLAGS)
SEED = report.define_seed(
    FLAGS, "Decides weights, games and actions.", 2**31 - 1
)
OUT = report.define_out(FLAGS)


class Learner:
    """One that learns by this package, or plays: its `update()` is a turn."""

    def update(self):
        """Plays, and updates the weights once.

        Returns:
            The number of steps, and the returns of the games that ended.
        """
        raise NotImplementedError

    def processor_seconds(self):
        """The time of all processors, so far."""
        return time.process_time()

    def close(self):
        """Closes the environments."""
        raise NotImplementedError


class Ours(Learner):
    """A policy that learns by this package.

    Args:
        settings: `Settings`.
    """

    def __init__(self, settings):
        self._progress = Progress()
        self._bar = Bar(settings, [], show=False)
        self._algorithm = ALGORITHMS[settings.algorithm](settings)
        self._algorithm.build()

    def update(self):
        progress = self._progress
        before = progress.steps
        with process.Stop() as stop:
            iteration = self._algorithm.iterate(progress, self._bar, stop)
        if iteration is None:
            raise KeyboardInterrupt
        progress.updates += 1
        episodes, _ = iteration
        return progress.steps - before, [return_ for _, return_, _ in episodes]

    def close(self):
        self._algorithm.close()


class StableBaselines(Learner):
    """PPO of Stable-Baselines3, in a process of its own.

    Args:
        settings: `Settings` of PPO.
        threads: Threads that it computes with.
    """

    def __init__(self, settings, threads):
        self._process = subprocess.Popen(
            [sys.executable, _STABLE_BASELINES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._seconds = 0.0
        self._say(
            {
                **dataclasses.asdict(settings),
                "env": full_id(settings.game),
                "threads": threads,
            }
        )

    def _say(self, what):
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def update(self):
        self._say("update")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                "The process of Stable-Baselines3 has ended: see above"
            )
        reply = json.loads(line)
        self._seconds = reply["processor_seconds"]
        return reply["steps"], reply["returns"]

    def processor_seconds(self):
        return self._seconds

    def close(self):
        self._process.kill()
        self._process.communicate()


class Emulator(Learner):
    """The emulator alone, on all processors, at random.

    Args:
        settings: `Settings`.
        steps: Steps of a turn, of all environments together.
    """

    def __init__(self, settings, steps):
        self._steps = -(-steps // settings.num_envs)
        self._env = atari.make_vector(
            settings.game,
            settings.num_envs,
            preprocessing=settings.preprocessing,
            downsample=settings.downsample,
            repeat_action_probability=settings.repeat_action_probability,
        )
        self._env.reset(seed=settings.seed)
        self._rng = np.random.default_rng(settings.seed)

    def update(self):
        num_envs = self._env.num_envs
        num_actions = self._env.single_action_space.n
        for actions in self._rng.integers(
            num_actions, size=(self._steps, num_envs)
        ):
            self._env.step(actions)
        return self._steps * num_envs, []

    def close(self):
        self._env.close()


def make(name, settings, threads):
    """Makes a `Learner`, which takes seconds.

    Args:
        name: One of `LEARNERS`.
        settings: `Settings`, with reuse.
        threads: Threads that it computes with.
    """
    match name:
        case "reuse":
            return Ours(settings)
        case "plain":
            return Ours(dataclasses.replace(settings, reuse="none"))
        case "sb3":
            return StableBaselines(settings, threads)
        case _:
            # As many steps as an update of PPO has; those of REINFORCE have
            # as many as its episodes.
            return Emulator(settings, 128 * settings.num_envs)


def measure(settings, learners, updates, threads):
    """Measures learners in turns.

    Args:
        settings: `Settings`.
        learners: Some of `LEARNERS`.
        updates: A list of numbers that grow: how many updates of each are
            timed, after a first one that is not, as it compiles what the others
            use.
        threads: Threads that each computes with.

    Yields:
        For each number, it and a dict by learner of dicts, of all updates so
        far: `steps`; their `seconds` and `processor_seconds`; the number of
        `episodes` that ended meanwhile, and the `mean_return` of the last 100
        of these.
    """
    with contextlib.ExitStack() as stack:
        playing = {}
        for learner in learners:
            one = playing[learner] = make(learner, settings, threads)
            stack.callback(one.close)
            one.update()
        turns = {learner: [] for learner in learners}
        for i in range(updates[-1]):
            # As `timing.alternate` does; but the garbage collector may run, as
            # where people learn.
            for learner in timing.rotated(learners, i):
                one = playing[learner]
                processor, wall = one.processor_seconds(), time.perf_counter()
                steps, returns = one.update()
                turns[learner].append(
                    (
                        steps,
                        time.perf_counter() - wall,
                        one.processor_seconds() - processor,
                        returns,
                    )
                )
            if i + 1 in updates:
                yield i + 1, {name: _row(turns[name]) for name in learners}


def _row(turns):
    steps, seconds, processor_seconds, returns = zip(*turns, strict=True)
    ended = [one for of in returns for one in of]
    return {
        "steps": sum(steps),
        "seconds": round(sum(seconds), 6),
        "processor_seconds": round(sum(processor_seconds), 6),
        "episodes": len(ended),
        "mean_return": round(float(np.mean(ended[-RECENT:])), 3)
        if ended
        else "",
    }


def _learners():
    """Those that the flags ask for."""
    chosen = CHOSEN.value
    if chosen is None:
        is_there = ALGORITHM.value == "ppo" and report.version_of_rival(_RIVAL)
        return [name for name in LEARNERS if name != "sb3" or is_there]
    for name in chosen:
        if name not in LEARNERS:
            raise flags.Error(
                f"expected --learners to be of {', '.join(LEARNERS)}, got "
                f"{name!r}"
            )
    if not chosen or len(set(chosen)) < len(chosen):
        raise flags.Error(
            "expected --learners to be one or more, each once, got "
            f"{','.join(chosen)!r}"
        )
    if "sb3" in chosen:
        if ALGORITHM.value != "ppo":
            raise flags.Error("--learners=sb3 is for --algorithm=ppo")
        if not report.version_of_rival(_RIVAL):
            raise flags.Error(
                "--learners=sb3 needs Stable-Baselines3: pip install "
                "'reuse-tf[baselines]'"
            )
    return chosen


def _settings(game):
    """The `Settings` that the flags ask for."""
    algorithm, name = ALGORITHM.value, CHOSEN_SETTINGS.value
    values = dict(SETTINGS[name])
    if algorithm == "reinforce":
        values.pop("anneal", None)
    if algorithm != "ppo" and name != "default":
        raise flags.Error(f"--settings={name} is for --algorithm=ppo")
    if NUM_ENVS.value is not None:
        values["num_envs"] = NUM_ENVS.value
    settings = Settings(
        algorithm=algorithm, game=game, seed=SEED.value, **values
    )
    if settings.anneal:
        # One more than is timed.
        most = settings.steps // (settings.num_envs * settings.num_steps) - 1
        if UPDATES.value > most:
            raise flags.Error(
                f"expected --updates to be at most {most}, where the learning "
                f"rate of --settings={name} comes to 0, got {UPDATES.value}"
            )
    return settings


def main():
    """Measures what the flags describe; prints and writes the results."""
    learners = _learners()
    games = report.short_names(GAMES.value)
    report.use_threads(THREADS.value)
    results = report.Results(OUT.value, KEY)
    environment = report.environment()
    environment[_RIVAL] = report.version_of_rival(_RIVAL)
    of_each = {game: _settings(game) for game in games}
    every = EVERY.value or UPDATES.value
    updates = [*range(every, UPDATES.value, every), UPDATES.value]
    print(
        f"Learning by {ALGORITHM.value}, settings {CHOSEN_SETTINGS.value}, in "
        f"turns of an update, {UPDATES.value} of each. "
        + ", ".join(f"{name} {v or 'none'}" for name, v in environment.items())
        + "\n"
    )
    table = report.Table(
        [("game", 14), ("learner", 8), ("steps/s", 7)]
        + [("of the emulator's", 6), ("steps/processor s", 7)]
        + [("reuse is times as fast", 6), ("return", 8)]
    )
    for game, settings in of_each.items():
        rows = _rows(results, settings, learners, updates, environment)
        for learner in learners:
            _print(table, game, learner, rows)
        keras.backend.clear_session()
    print(
        "\nSteps of all environments together, by the clock and by the time of "
        "all processors. Reuse is times as fast as this learner by the latter. "
        f"Return: the mean of the last {RECENT} games that ended, of "
        "environments that play on."
    )


def _rows(results, settings, learners, updates, environment):
    """Measures what is missing in a file, and writes it as it comes.

    Args:
        results: `report.Results`.
        settings: See `measure`, as of the next two.
        learners: Likewise.
        updates: Likewise.
        environment: What `main` adds to each row.

    Returns:
        By learner, its row of the last number of updates.
    """
    threads = environment["threads"]
    rows, measured = {}, {}

    def one(learner, number):
        while number not in measured:
            measured.update([next(measuring)])
        return {**measured[number][learner], **environment}

    with contextlib.closing(
        measure(settings, learners, updates, threads)
    ) as measuring:
        for number in updates:
            for learner in learners:
                asked = {
                    "algorithm": settings.algorithm,
                    "game": settings.game,
                    "learner": learner,
                    "settings": CHOSEN_SETTINGS.value,
                    "num_envs": settings.num_envs,
                    "updates": number,
                    "seed": settings.seed,
                    "threads": threads,
                }
                rows[learner] = results.row(
                    asked, functools.partial(one, learner, number)
                )
    return rows


def _print(table, game, learner, rows):
    def speed(name, clock):
        if name not in rows:
            return np.nan
        return float(rows[name]["steps"]) / float(rows[name][clock])

    cells = (
        (speed(learner, "seconds"), ".0f"),
        (speed(learner, "seconds") / speed("emulator", "seconds"), ".2f"),
        (speed(learner, "processor_seconds"), ".0f"),
        (
            speed("reuse", "processor_seconds")
            / speed(learner, "processor_seconds"),
            ".2f",
        ),
        (float(rows[learner]["mean_return"] or "nan"), ".1f"),
    )
    table.print_row(
        game,
        learner,
        *("-" if np.isnan(n) else format(n, form) for n, form in cells),
    )
