"""The learning curve of a run."""

import io

import numpy as np

from reuse_tf import files
from reuse_tf.extras import extra
from reuse_tf.learning.progress import RECENT
from reuse_tf.policies.run_directory import CURVE

with extra("atari"):
    import seaborn
    from matplotlib.figure import Figure


def draw(run, settings, path):
    """Draws the learning curve: returns, their running mean, and scores.

    Args:
        run: What has the `rows` and the `evaluations` of a run.
        settings: Its `Settings`.
        path: Its directory, a `pathlib.Path`.
    """
    rows = run.rows
    if not rows:
        return
    returns = np.array([row.return_ for row in rows])
    steps = np.array([row.steps for row in rows])
    sums = np.cumsum(np.concatenate([[0.0], returns]))
    last = np.arange(1, len(sums))
    first = np.maximum(0, last - RECENT)
    with seaborn.axes_style("whitegrid"):
        figure = Figure(figsize=(7, 4))
        axes = figure.subplots()
    seaborn.scatterplot(
        x=steps, y=returns, ax=axes, s=12, alpha=0.4, label="episode"
    )
    seaborn.lineplot(
        x=steps,
        y=(sums[last] - sums[first]) / (last - first),
        ax=axes,
        label=f"mean of the last {RECENT}",
    )
    if run.evaluations:
        axes.errorbar(
            [e.steps for e in run.evaluations],
            [e.mean for e in run.evaluations],
            [e.standard_error for e in run.evaluations],
            color="black",
            capsize=2,
            label="evaluations",
        )
        axes.legend()
    axes.set(
        title=f"{settings.game}, {settings.algorithm}, reuse {settings.reuse}",
        xlabel="steps",
        ylabel="return",
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    files.write(path / CURVE, picture.getvalue())
