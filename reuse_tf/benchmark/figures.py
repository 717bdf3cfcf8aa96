"""Draws what was measured: `--csv=infer.csv ...`.

The figures are made of the CSV files of the other commands alone, and of the
seconds published with Khachatourian (2019), arXiv 1909.05632, which are in
`paper_seconds.csv`: means for 3000 steps, on a CPU.
"""

import io
import os
import pathlib

import numpy as np
from absl import flags

from reuse_tf import files
from reuse_tf.extras import extra

with extra("figures"):
    import pandas
    import seaborn
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

# Seconds are shown for this many steps. What ran fewer is scaled, and marked.
STEPS = 3000
# In the order of the heatmaps' columns.
COLUMNS = ("bare_env", "dense", "dense_gpu", "temporal", "content")
STATISTICS = {
    "pixels": "pixels\nthat changed",
    "box": "bounding box\nof the changes",
    "positions": "positions\nthat see a change",
    "new": "patches\nnever seen before",
}
# A column by which files of each kind are known, and those that are numbers, or
# texts, in every row.
_KINDS = {
    "plays": "mode",
    "layer": "target",
    "statistics": "box",
    "cameras": "clip",
    "networks": "network",
    "learners": "mean_return",
}
_NUMBERS = {
    "plays": ("downsample", "steps", "total_seconds", "policy_seconds"),
    "layer": ("changed", "eager_speed_up", "eager_net"),
    "statistics": ("downsample", "steps", *STATISTICS),
    "cameras": ("noise", "cpu_over_dense", "error"),
    "networks": ("streams", "threads", "speed_up"),
    "learners": (
        *("num_envs", "updates", "seed", "threads"),
        *("steps", "processor_seconds"),
    ),
}
_TEXTS = {
    "plays": ("game", "filters", "column"),
    "layer": ("change",),
    "statistics": ("game",),
    "cameras": ("clip", "network", "what"),
    "networks": ("network", "frames", "what", "reuse"),
    "learners": ("algorithm", "game", "learner", "settings"),
}
_CHANGES = {
    "none": "nothing changes",
    "block": "a block",
    "all": "everything",
}
_LEARNERS = {
    "reuse": "reuse",
    "plain": "plain Keras",
    "sb3": "Stable-Baselines3",
}
_PAPER = pathlib.Path(__file__).with_name("paper_seconds.csv")
_PAPER_COLUMN = "the paper, reuse"
_SETTING = ["mode", "downsample", "filters"]
# Of the figures: inches, and pixels an inch, so that they are 830 pixels wide.
_WIDTH, _DPI = 8.3, 100
_COLORS = dict(
    zip(
        ("dense", "temporal", "content", _PAPER_COLUMN, "dense_gpu"),
        seaborn.color_palette("deep"),
        strict=False,
    )
)

FLAGS = flags.FlagValues()
CSV = flags.DEFINE_multi_string(
    "csv",
    [],
    "Files of measurements, of any commands of the benchmark: --csv=infer.csv "
    "--csv=train.csv",
    flag_values=FLAGS,
)
OUT = flags.DEFINE_string(
    "out", "figures", "Folder of the figures.", flag_values=FLAGS
)


def read(paths):
    """Reads measurements.

    Args:
        paths: CSV files, as the benchmark's commands write them.

    Returns:
        A dict of tables: `"plays"` of the commands infer and train, `"layer"`,
        `"statistics"`, `"cameras"`, `"networks"` and `"learners"`, as far as
        there are such files.

    Raises:
        ValueError: If a file cannot be read, or is of no such kind.
    """
    tables = {}
    for path in paths:
        try:
            # Filters of one layer look like a number.
            texts = dict.fromkeys(("filters", "policy_tenths"), str)
            table = pandas.read_csv(path, dtype=texts)
        except (OSError, ValueError) as error:
            raise ValueError(f"Cannot read {path}: {error}") from error
        kinds = [kind for kind, name in _KINDS.items() if name in table]
        if not kinds:
            raise ValueError(
                f"Expected {path} to be a file of the benchmark. Received: "
                f"columns {', '.join(table.columns)}"
            )
        _check(table, kinds[0], path)
        tables.setdefault(kinds[0], []).append(table)
    return {kind: pandas.concat(parts) for kind, parts in tables.items()}


def _check(table, kind, path):
    """Raises a `ValueError` unless a file has what its kind is drawn of."""
    for name in (*_TEXTS[kind], *_NUMBERS[kind]):
        if name not in table:
            raise ValueError(f"Expected {path} to have a column {name}")
        column = table[name]
        if name in _NUMBERS[kind]:
            column = pandas.to_numeric(column, errors="coerce")
        for line in np.flatnonzero(column.isna()):
            raise ValueError(
                f"Expected {path} to have a {name} in line {line + 2}. "
                f"Received: {table[name].iloc[line]}"
            )


def draw(tables):
    """Draws every figure that the measurements allow.

    Args:
        tables: What `read` returns.

    Yields:
        Pairs of a name and a `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there are plays without the bare emulator.
    """
    if "plays" in tables:
        plays = _medians(tables["plays"])
        for setting, rows in plays.groupby(_SETTING):
            yield f"heatmap_{_slug(setting)}", heatmap(rows, setting)
        paper = pandas.read_csv(_PAPER)
        for setting, rows in plays.groupby(_SETTING):
            columns = set(rows["column"])
            if "dense" in columns and columns & {"content", "temporal"}:
                yield (
                    f"speed_up_{_slug(setting)}",
                    speed_up(rows, _of(paper, setting), setting),
                )
        inference = plays[plays["mode"] == "inference"]
        for downsample, rows in inference.groupby("downsample"):
            if rows["filters"].nunique() > 1:
                yield f"cost_filters_d{downsample}", cost(rows, downsample)
        played = tables["plays"]
        if "policy_tenths" in played:
            played = played.dropna(subset="policy_tenths")
            for setting, rows in played.groupby(_SETTING):
                yield f"cost_frames_{_slug(setting)}", over_time(rows, setting)
    if "statistics" in tables:
        for downsample, rows in tables["statistics"].groupby("downsample"):
            yield f"statistics_d{downsample}", statistics(rows, downsample)
    if "layer" in tables:
        yield "layer", layer(tables["layer"])
    if len(tables.get("networks", ())):
        yield "networks", networks(tables["networks"])
    if "learners" in tables:
        for algorithm, rows in tables["learners"].groupby("algorithm"):
            curves = _curves(rows)
            if len(curves):
                yield f"learners_{algorithm}", learners(curves, algorithm)
    if len(tables.get("cameras", ())):
        yield "cameras", cameras(tables["cameras"])


def heatmap(rows, setting):
    """Draws the seconds of games and columns, coloured by times bare_env.

    Args:
        rows: One row for a game and a column, of one setting.
        setting: A mode, a downsampling and filters.

    Returns:
        A figure whose axes hold one row per game and one of their means.
    """
    seconds = _by_column(rows, "seconds")
    if "bare_env" not in seconds or seconds["bare_env"].isna().any():
        raise ValueError(
            f"{_title(setting)}: expected a row of the column bare_env for "
            "each game, to compare with"
        )
    scaled = _by_column(rows, "steps") < STEPS
    seconds.loc["mean"] = seconds.mean()
    scaled.loc["mean"] = scaled.any()
    marks = scaled.map(lambda is_scaled: "*" * is_scaled)
    texts = seconds.map(_seconds) + marks
    texts = texts.where(seconds.notna(), "")
    ratios = seconds.div(seconds["bare_env"], axis=0)
    figure, axes = _figure(height=0.26 * len(seconds) + 1.5)
    seaborn.heatmap(
        np.log10(ratios),
        annot=texts,
        fmt="",
        annot_kws={"size": 10},
        cmap="YlOrRd",
        vmin=0,
        vmax=max(1.0, float(np.log10(ratios.max().max()))),
        linewidths=1,
        ax=axes,
        cbar_kws={"label": "times the bare emulator", "pad": 0.02},
    )
    bar = axes.collections[0].colorbar
    limit = ratios.max().max()
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500) if t <= limit]
    bar.set_ticks(np.log10(ticks), labels=[f"{tick}×" for tick in ticks])
    axes.hlines(len(seconds) - 1, *axes.get_xlim(), color="black", linewidth=1)
    fewer = sorted({int(n) for n in rows["steps"] if n < STEPS})
    axes.set(
        title=f"{_title(setting)}: seconds for {STEPS} steps",
        xlabel=f"* scaled, from {', '.join(map(str, fewer))} steps"
        if fewer
        else "",
        ylabel="",
    )
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False)
    axes.tick_params(axis="x", labelbottom=False)
    axes.tick_params(axis="y", rotation=0)
    return figure


def speed_up(rows, paper, setting):
    """Draws how many times faster than dense reuse is, here and in the paper.

    Args:
        rows: One row for a game and a column, of one setting.
        paper: Rows of the paper's seconds, of the same setting.
        setting: A mode, a downsampling and filters.

    Returns:
        A figure whose axes hold a group of bars per game and one of medians.
    """
    seconds = _by_column(rows, "seconds")
    table = pandas.DataFrame(
        {
            column: seconds["dense"] / seconds[column]
            for column in ("content", "temporal")
            if column in seconds
        }
    )
    if len(paper):
        published = paper.set_index("game")
        table[_PAPER_COLUMN] = published["base_cpu"] / published["reuse_cpu"]
    table.loc["median"] = table.median()
    long = table.rename_axis("game").reset_index()
    long = long.melt("game", var_name="column", value_name="times")
    figure, axes = _figure(height=0.42 * len(table) + 1.2)
    seaborn.barplot(
        long, y="game", x="times", hue="column", palette=_COLORS, ax=axes
    )
    for bars in axes.containers:
        axes.bar_label(bars, fmt=_times, padding=2, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(0.5, 1.6 * np.nanmax(table))
    axes.set(
        title=f"{_title(setting)}: times as fast as dense",
        xlabel="seconds of one's own dense network / seconds with reuse, "
        "emulator included",
        ylabel="",
    )
    _number_axis(axes.xaxis)
    axes.get_legend().remove()
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=3
    )
    return figure


def cost(rows, downsample):
    """Draws what a step of the policy costs, by filters and by changes.

    Args:
        rows: One row for a game, a column and filters, of inference.
        downsample: Of these.

    Returns:
        A figure of two axes: by filters, a line per column through the
        medians of the games; by changed positions, a point per game.
    """
    rows = rows[rows["column"] != "bare_env"].copy()
    rows["filters"] = pandas.Categorical(
        rows["filters"], sorted(rows["filters"].unique(), key=_counts), True
    )
    rows = rows.sort_values("filters")
    rows = rows.rename(columns={"new_rows": "new rows"})
    figure, (by_filters, by_changes) = _figure(height=4, columns=2)
    _medians_of_games(rows, "filters", by_filters)
    by_filters.set(
        title="median and middle half of the games",
        ylabel="policy, µs a step",
        yscale="log",
    )
    seaborn.scatterplot(
        rows[rows["column"] == "content"],
        x="changed_positions",
        y="micros",
        hue="filters",
        size="new rows",
        palette="crest",
        ax=by_changes,
    )
    by_changes.set(
        title="content reuse, a point per game",
        xlabel="changed positions a frame",
        ylabel="",
        xscale="log",
        yscale="log",
    )
    for axes in (by_filters, by_changes):
        _number_axis(axes.yaxis)
        axes.legend(fontsize=8)
    _number_axis(by_changes.xaxis)
    figure.suptitle(f"Cost of acting, downsample {downsample}")
    return figure


def over_time(rows, setting):
    """Draws what a step of the policy costs as frames go by.

    Args:
        rows: Rows of the benchmark, of one setting of inference, without the
            bare emulator's.
        setting: A mode, a downsampling and filters.

    Returns:
        A figure whose axes hold a line per column through the medians of the
        games, over the tenths of a play.
    """
    parts = []
    for row in rows.itertuples():
        ends = np.array([float(t) for t in row.policy_tenths.split()])
        steps = np.unique(-(-row.steps * np.arange(11) // 10))
        parts.append(
            pandas.DataFrame(
                {
                    "column": row.column,
                    "game": row.game,
                    "step": steps[1:],
                    "micros": 1e6 * np.diff(ends, prepend=0) / np.diff(steps),
                }
            )
        )
    figure, axes = _figure(height=4)
    _medians_of_games(pandas.concat(parts), "step", axes)
    axes.legend(title=None)
    axes.set(
        title=f"{_title(setting)}: cost as frames go by",
        xlabel="step",
        ylabel="policy, µs a step: median and middle half",
        yscale="log",
    )
    _number_axis(axes.yaxis)
    return figure


def statistics(rows, downsample):
    """Draws how much of the frames changes and is new, for each game.

    Args:
        rows: Rows of the benchmark of statistics. Of a game the medians of
            those of most steps are drawn.
        downsample: Of these.

    Returns:
        A figure of one axes for each of `STATISTICS`, with a bar per game.
    """
    games = _of_most_steps(rows, "game").groupby("game", sort=False)
    rows = games[list(STATISTICS)].median().reset_index()
    figure, panels = _figure(
        height=0.24 * len(rows) + 1.2, columns=len(STATISTICS), sharey=True
    )
    for axes, (name, title) in zip(panels, STATISTICS.items(), strict=True):
        seaborn.barplot(rows, y="game", x=name, color=_COLORS["dense"], ax=axes)
        axes.bar_label(axes.containers[0], fmt="%.3g", padding=2, fontsize=8)
        axes.set(xlabel="% of the frame", ylabel="")
        axes.set_xlim(0, 1.3 * max(rows[name].max(), 1e-3))
        axes.set_title(title, fontsize=10)
    figure.suptitle(
        f"What changes from frame to frame, downsample {downsample}"
    )
    return figure


def layer(rows):
    """Draws the speed-up of one layer against the part that changed.

    Args:
        rows: Rows of the benchmark of a layer.

    Returns:
        A figure whose axes hold a line for each kind of change and measure.
    """
    names = {"eager_speed_up": "whole call", "eager_net": "net of the call"}
    long = rows.melt(
        ["change", "changed"], list(names), "measure", "speed_up"
    ).replace([np.inf], np.nan)
    # What is left of a call in which nothing changed is the clock's noise.
    net = long["measure"] == "eager_net"
    long.loc[net & (long["changed"] == 0), "speed_up"] = np.nan
    long["changed"] *= 100
    long["measure"] = long["measure"].map(names)
    figure, axes = _figure(height=4)
    seaborn.lineplot(
        long.dropna(),
        x="changed",
        y="speed_up",
        hue="change",
        style="measure",
        markers=True,
        ax=axes,
    )
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(
        title="One layer: times as fast as keras.layers.Conv2D",
        xlabel="% of positions changed",
        ylabel="times as fast",
        yscale="log",
        xlim=(-0.1, 110),
    )
    ticks = [0, 1, 5, 10, 25, 50, 100]
    axes.set_xticks(ticks, labels=ticks, minor=False)
    axes.set_xticks([], minor=True)
    _number_axis(axes.yaxis)
    return figure


def networks(rows):
    """Draws how many times as fast as plain Keras whole networks are.

    Args:
        rows: Rows of the benchmark of networks.

    Returns:
        A figure of one axes for each network of games, which holds a group of
        bars per game, and one for all models of keras.applications.

    Raises:
        ValueError: If rows are of several kinds of reuse, or threads.
    """
    for name in ("reuse", "threads"):
        if rows[name].nunique() > 1:
            raise ValueError(
                f"Expected rows of networks of one value of {name}. Received: "
                f"{', '.join(map(str, pandas.unique(rows[name])))}"
            )
    kind = "step of " + rows["streams"].astype(str)
    rows = rows.assign(kind=rows["what"].where(rows["what"] != "step", kind))
    of_pixels = rows["frames"].isin(_CHANGES)
    panels = [
        (network, games, "frames", "kind")
        for network, games in rows[~of_pixels].groupby("network", sort=False)
    ]
    if of_pixels.any():
        pixels = rows[of_pixels].replace({"frames": _CHANGES})
        panels.append(("keras.applications", pixels, "network", "frames"))
    kinds = pandas.unique(
        pandas.concat([part[hue] for _, part, _, hue in panels])
    )
    palette = dict(zip(kinds, seaborn.color_palette("deep"), strict=False))
    most = max(len(part.groupby([y, hue])) for _, part, y, hue in panels)
    figure, ((*axes,),) = _figure(
        height=0.2 * most + 1.2, columns=len(panels), squeeze=False
    )
    handles, shown = {}, None
    for panel, (title, part, y, hue) in zip(axes, panels, strict=True):
        seaborn.barplot(
            part,
            y=y,
            x="speed_up",
            hue=hue,
            palette=palette,
            estimator="median",
            errorbar=None,
            ax=panel,
        )
        for bars in panel.containers:
            panel.bar_label(bars, fmt=_times, padding=2, fontsize=8)
        panel.axvline(1, color="black", linewidth=1)
        panel.set_xscale("log")
        least, most = part["speed_up"].min(), part["speed_up"].max()
        panel.set_xlim(min(0.5, 0.8 * least), 5 * max(1, most))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_title(title, fontsize=10)
        panel.set(xlabel="", ylabel="")
        # Panels beside each other that play the same games share their names.
        names = list(pandas.unique(part[y]))
        panel.tick_params(labelleft=names != shown)
        shown = names
        new, labels = panel.get_legend_handles_labels()
        handles |= dict(zip(labels, new, strict=True))
        panel.get_legend().remove()
    figure.supxlabel("times as fast as plain Keras", fontsize=10)
    figure.legend(
        handles.values(),
        handles,
        loc="outside upper center",
        ncols=len(handles),
        fontsize=8,
        columnspacing=1,
    )
    return figure


def _curves(rows):
    """The rows of runs that have several, and the number of each one's run."""
    rows = rows.dropna(subset="mean_return")
    runs = rows.groupby(
        ["game", "settings", "learner", "num_envs", "seed", "threads"]
    )
    rows = rows.assign(run=runs.ngroup())
    return rows[runs["updates"].transform("nunique") > 1]


def learners(rows, algorithm):
    """Draws what learners come to, by steps and by processor time.

    Args:
        rows: Rows of the benchmark of learners, of one algorithm, each with the
            number of its `run`.
        algorithm: Its name.

    Returns:
        A figure of two axes for each game and settings, with a line for each
        run of a learner: the mean return of the last 100 games.
    """
    others = rows["settings"] != "default"
    rows = rows.assign(
        game=rows["game"].mask(others, rows["game"] + ", " + rows["settings"]),
        thousands=rows["steps"] / 1000,
        minutes=rows["processor_seconds"] / 60,
    ).replace({"learner": _LEARNERS})
    games = pandas.unique(rows["game"])
    figure, axes = _figure(
        height=2.6 * len(games) + 0.6, columns=2, rows=len(games), squeeze=False
    )
    colors = seaborn.color_palette("deep")
    palette = dict(zip(_LEARNERS.values(), colors, strict=False))
    handles = {}
    for game, (by_steps, by_time) in zip(games, axes, strict=True):
        for panel, x in ((by_steps, "thousands"), (by_time, "minutes")):
            seaborn.lineplot(
                rows[rows["game"] == game],
                x=x,
                y="mean_return",
                hue="learner",
                palette=palette,
                units="run",
                estimator=None,
                ax=panel,
            )
            panel.set(xlabel="", ylabel="")
            lines, names = panel.get_legend_handles_labels()
            handles |= dict(zip(names, lines, strict=True))
            panel.get_legend().remove()
        by_time.tick_params(labelleft=False)
        by_time.set_ylim(by_steps.get_ylim())
        by_steps.set_ylabel(game)
    axes[-1][0].set_xlabel("thousands of steps")
    axes[-1][1].set_xlabel("minutes of processor time")
    figure.legend(
        handles.values(),
        handles,
        title=f"{algorithm}: mean return of the last 100 games",
        loc="outside upper center",
        ncols=len(handles),
    )
    return figure


def cameras(rows):
    """Draws how far outputs are off against the time that they take.

    Args:
        rows: Rows of the benchmark of cameras.

    Returns:
        A figure of one axes for each network: of each clip and noise a line
        through exact results and thresholds, and a cross for each way to look
        at fewer frames. Errors that are infinite are left out.
    """
    rows = rows[(rows["what"] != "dense") & np.isfinite(rows["error"])]
    panels = rows.groupby("network", sort=False)
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = _figure(3.2 * lines + 1, columns, lines, squeeze=False)
    look = {
        "x": "cpu_over_dense",
        "y": "error",
        "hue": "clip",
        "hue_order": pandas.unique(rows["clip"]),
        "style": "noise",
        "style_order": sorted(pandas.unique(rows["noise"])),
    }
    for panel in axes.flat[len(panels) :]:
        panel.remove()
    for panel, (network, part) in zip(axes.flat, panels, strict=False):
        skips = part["what"].str.startswith("every")
        seaborn.lineplot(
            part[~skips].sort_values("error"),
            **look,
            estimator=None,
            sort=False,
            marker="o",
            ax=panel,
        )
        handles, labels = panel.get_legend_handles_labels()
        seaborn.scatterplot(
            part[skips],
            **{**look, "style": None, "style_order": None},
            marker="x",
            linewidth=1.5,
            ax=panel,
        )
        panel.axvline(1, color="black", linewidth=1)
        panel.set_xscale("log")
        # Those of rounding, which have no place on a logarithmic axis.
        panel.set_yscale("symlog", linthresh=1e-3)
        panel.set_ylim(-1e-4, max(2, 1.5 * rows["error"].max()))
        least = min(0.2, 0.8 * rows["cpu_over_dense"].min())
        panel.set_xlim(least, max(2, 1.2 * rows["cpu_over_dense"].max()))
        panel.set_title(network, fontsize=10)
        panel.set(xlabel="", ylabel="")
        _number_axis(panel.xaxis)
        panel.get_legend().remove()
    figure.supxlabel("processor time over that of plain Keras", fontsize=10)
    figure.supylabel("error (crosses: every 2nd, 4th frame)", fontsize=10)
    figure.legend(
        handles, labels, loc="outside upper center", ncols=4, fontsize=8
    )
    return figure


def _medians_of_games(rows, x, axes):
    """Draws a line for each column, and the middle half of the games."""
    seaborn.lineplot(
        rows,
        x=x,
        y="micros",
        hue="column",
        palette=_COLORS,
        estimator="median",
        errorbar=("pi", 50),
        marker="o",
        ax=axes,
    )


def _medians(plays):
    """One row for a setting, a game and a column: medians over the runs."""
    plays = plays.copy()
    plays["seconds"] = plays["total_seconds"] / plays["steps"] * STEPS
    plays["micros"] = 1e6 * plays["policy_seconds"] / plays["steps"]
    key = [*_SETTING, "game", "column"]
    runs = _of_most_steps(plays, key).groupby(key)
    return runs.median(numeric_only=True).reset_index()


def _of_most_steps(rows, key):
    """Those rows of a key that are of as many steps as any of it."""
    return rows[rows["steps"] == rows.groupby(key)["steps"].transform("max")]


def _by_column(rows, name):
    table = rows.pivot(index="game", columns="column", values=name)
    return table[[column for column in COLUMNS if column in table]]


def _of(table, setting):
    return table[(table[_SETTING] == list(setting)).all(axis=1)]


def _figure(height, columns=1, rows=1, **arguments):
    with seaborn.axes_style("whitegrid"):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **arguments)


def _number_axis(axis):
    """Shows plain numbers on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _seconds(value):
    """Three digits, as far as they fit."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def _times(value):
    return "" if np.isnan(value) else f"{value:.{int(value < 10)}f}×"


def _counts(filters):
    return [int(count) for count in filters.split(",")]


def _title(setting):
    mode, downsample, filters = setting
    return (
        f"{mode.capitalize()}, downsample {downsample}, filters "
        f"{filters.replace(',', ', ')}"
    )


def _slug(setting):
    mode, downsample, filters = setting
    return f"{mode}_d{downsample}_{filters.replace(',', '-')}"


def main():
    """Draws what the flags describe."""
    if not CSV.value:
        raise flags.Error("expected --csv, a file of measurements")
    if not OUT.value:
        raise flags.Error("expected --out to be a folder, got ''")
    tables = read([os.path.expanduser(path) for path in CSV.value])
    folder = pathlib.Path(OUT.value).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in draw(tables):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=_DPI)
        paths.append(folder / f"{name}.png")
        files.write(paths[-1], picture.getvalue())
    if not paths:
        raise ValueError("there is nothing to draw in the files")
    # Last, as they may be read by nobody.
    print(*paths, sep="\n")
