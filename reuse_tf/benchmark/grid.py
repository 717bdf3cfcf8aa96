"""What the commands measure, by flags: games, settings, columns and runs."""

import numpy as np
import tensorflow as tf
from absl import flags

from reuse_tf.benchmark import report

# Those of Khachatourian (2019).
GAMES = (
    *("Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone"),
    *("Boxing", "Breakout", "ChopperCommand", "CrazyClimber", "DemonAttack"),
    *("Freeway", "Gopher", "Hero", "Kangaroo", "Krull", "KungFuMaster"),
    *("MsPacman", "Pong", "PrivateEye", "Qbert", "RoadRunner", "Seaquest"),
    "YarsRevenge",
)
# What a column is, as a kind of reuse; in the order of measuring, as the dense
# ones leave the most memory behind.
COLUMNS = {
    "bare_env": None,
    "content": "auto",
    "temporal": "temporal",
    "dense": "none",
    "dense_gpu": "none",
}
# What tells the rows of a file apart.
KEY = (
    "mode",
    "game",
    "downsample",
    "filters",
    "column",
    "run",
    "steps",
    "seed",
)


class Games:
    """The flags of what is played: games, downsampling, steps and seed.

    Args:
        flag_values: Where the flags are defined.
    """

    def __init__(self, flag_values):
        self._games = flags.DEFINE_list(
            "games",
            ["all"],
            "Short names of games, or all: the 24 of the paper.",
            flag_values=flag_values,
        )
        self._downsample = flags.DEFINE_list(
            "downsample",
            ["2"],
            "Keep every n-th pixel of the screen: several of 1, 2 and 4.",
            flag_values=flag_values,
        )
        self._steps = report.define_count(
            flag_values, "steps", 3000, "Steps of each game."
        )
        self._seed = report.define_seed(
            flag_values, "Decides weights, games and actions.", 2**31 - 1
        )
        flags.register_validator(
            "downsample",
            lambda values: values and set(values) <= {"1", "2", "4"},
            message="must be of 1, 2 and 4",
            flag_values=flag_values,
        )

    @property
    def games(self):
        """Short names. Raises as `report.short_names`."""
        names = self._games.value
        return report.short_names(GAMES if names == ["all"] else names)

    @property
    def downsample(self):
        return [int(value) for value in self._downsample.value]

    @property
    def steps(self):
        return self._steps.value

    @property
    def seed(self):
        return self._seed.value


class Grid(Games):
    """The flags of what is measured in all: also filters, columns and runs.

    Args:
        flag_values: Where the flags are defined.
    """

    def __init__(self, flag_values):
        super().__init__(flag_values)
        self._filters = flags.DEFINE_multi_string(
            "filters",
            ["40,80"],
            "Filters of each layer. Several: --filters=20,40 --filters=40,80.",
            flag_values=flag_values,
        )
        self._runs = report.define_count(
            flag_values, "runs", 1, "How often to measure each column."
        )
        self._columns = flags.DEFINE_list(
            "columns",
            None,
            f"What to measure, of {', '.join(COLUMNS)}. By default all, the "
            "last one where TensorFlow sees a GPU.",
            flag_values=flag_values,
        )
        self._dense_steps = report.define_count(
            flag_values,
            "dense_steps",
            300,
            "The most steps of the dense columns, whose time is proportional "
            "to the steps.",
        )
        self._out = report.define_out(flag_values)
        flags.register_validator(
            "filters",
            lambda values: all(map(_are_filters, values)),
            message="must be positive integers separated by commas",
            flag_values=flag_values,
        )
        flags.register_validator(
            "columns",
            lambda values: (
                values is None or (values and set(values) <= {*COLUMNS})
            ),
            message=f"must be of {', '.join(COLUMNS)}",
            flag_values=flag_values,
        )

    @property
    def settings(self):
        """Pairs of a downsampling and filters."""
        return [
            (downsample, tuple(map(int, filters.split(","))))
            for downsample in self.downsample
            for filters in self._filters.value
        ]

    @property
    def columns(self):
        """Names of columns. Raises a `flags.Error` if there is no such GPU."""
        has_gpu = bool(tf.config.list_physical_devices("GPU"))
        wanted = self._columns.value
        if wanted and "dense_gpu" in wanted and not has_gpu:
            raise flags.Error("dense_gpu: TensorFlow sees no GPU")
        return [
            name
            for name in COLUMNS
            if (name in wanted if wanted else has_gpu or name != "dense_gpu")
        ]

    def measured(self, mode, measure):
        """Measures what the flags describe and the file lacks.

        The columns of a game take turns, run by run. Each row is written when
        it is measured.

        Args:
            mode: `"inference"` or `"training"`.
            measure: A function of `game`, `downsample`, `filters`, `column`,
                `steps` and `seed`, by name, that returns a dict.

        Yields:
            For each setting, a line on it, and an iterator over pairs of a
            game and its `Rows`.
        """
        games, columns = self.games, self.columns
        results = report.Results(self._out.value, KEY)
        environment = report.environment()
        about = ", ".join(f"{name} {v}" for name, v in environment.items())

        def rows_of(game, downsample, filters):
            for run in range(self._runs.value):
                for column in columns:
                    dense = COLUMNS[column] == "none"
                    steps = min(
                        self.steps,
                        self._dense_steps.value if dense else self.steps,
                    )
                    play = {
                        "game": game,
                        "downsample": downsample,
                        "filters": filters,
                        "column": column,
                        "steps": steps,
                        "seed": self.seed,
                    }
                    asked = {"mode": mode, **play, "run": run}
                    asked["filters"] = _label(filters)
                    yield results.row(
                        {name: asked[name] for name in KEY},
                        lambda play=play: {**measure(**play), **environment},
                    )

        for downsample, filters in self.settings:
            yield (
                f"{mode.capitalize()}, {self.steps} steps of random play, "
                f"downsample {downsample}, filters {_label(filters)}; medians "
                f"of {self._runs.value} runs; dense columns: at most "
                f"{self._dense_steps.value} steps. {about}.",
                (
                    (game, Rows(rows_of(game, downsample, filters)))
                    for game in games
                ),
            )


class Rows:
    """The rows of one game and setting, by column and run.

    Args:
        rows: An iterable of dicts of strings, as `Results.row` returns.
    """

    def __init__(self, rows):
        self._rows = list(rows)

    def median(self, column, name, per_step=False):
        """Returns the median over the runs; NaN if there is no such row."""
        if per_step:
            return self.ratio(column, name, "steps")
        return float(np.median(self._values(column, name) or [np.nan]))

    def ratio(self, column, name, other):
        """Returns the median over the runs of a ratio within rows."""
        return float(np.median(self._ratios(column, name, other) or [np.nan]))

    def spread(self, column, name, other):
        """Returns (largest - least) / median of a ratio; NaN for one run."""
        ratios = self._ratios(column, name, other)
        if len(ratios) < 2:
            return np.nan
        return (max(ratios) - min(ratios)) / float(np.median(ratios))

    def _ratios(self, column, name, other):
        return [
            a / b
            for a, b in zip(
                self._values(column, name),
                self._values(column, other),
                strict=True,
            )
        ]

    def _values(self, column, name):
        return [
            float(row[name])
            for row in self._rows
            if row["column"] == column and row[name]
        ]


def device(column):
    """Returns a context in which a column runs on its device."""
    return tf.device("GPU:0" if column == "dense_gpu" else "CPU:0")


def _label(filters):
    return ",".join(map(str, filters))


def _are_filters(text):
    return all(v.isdecimal() and int(v) > 0 for v in text.split(","))
