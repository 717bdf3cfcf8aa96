"""What the README shows is so: its examples, and its figure in text."""

import pathlib
import re

import keras
import numpy as np

from reuse_tf import Runner

README = pathlib.Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_the_examples_run_one_after_the_other(capsys):
    examples = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    assert len(examples) == 8
    names = {}
    for example in examples:
        exec(compile(example, README, "exec"), names)
    video, model = names["video"], names["model"]
    printed = capsys.readouterr().out
    assert "Stats(" in printed
    assert re.search("IncrementalConv2D +reuses", printed)
    assert re.search("Flatten +plain", printed)
    assert "% of the multiply-adds" in printed
    assert names["camera"].stats.frames == 60
    # Of the recording, and as plain Keras has it.
    np.testing.assert_allclose(
        names["logits"], model(video, training=True), rtol=1e-4, atol=1e-5
    )
    assert [gradient.shape for gradient in names["gradients"]] == [
        variable.shape for variable in model.trainable_variables
    ]
    # The ball is 4 pixels high and leaves column 0 for column 4.
    assert len(names["positions"]) == (4 + 2) * (2 + 3)


def test_the_figure_of_how_it_works():
    lines = re.findall(r"^    ((?:[.o] )+) +((?:\d ?)+)", TEXT, re.M)
    ball = np.array([[c == "o" for c in left.split()] for left, _ in lines])
    # The middle of frames that are two pixels higher and wider.
    frames = np.pad(ball.reshape(2, 5, 8), [(0, 0), (1, 1), (1, 1)])
    frames = frames.astype(np.uint8)
    ids = np.array([right.split() for _, right in lines], int).reshape(2, 5, 8)

    patches = np.lib.stride_tricks.sliding_window_view(frames, (3, 3), (1, 2))
    numbers = {}
    for place in np.ndindex(ids.shape):
        patch = patches[place].tobytes()
        assert ids[place] == numbers.setdefault(patch, len(numbers))

    runner = Runner(
        keras.Sequential(
            [
                keras.Input((7, 10, 1)),
                keras.layers.Conv2D(2, 3, name="map"),
                keras.layers.Flatten(),
                keras.layers.Dense(1),
            ]
        )
    )
    runner.step(frames[:1, ..., None])
    first = runner.stats.layers["map"]
    runner.step(frames[1:, ..., None])
    both = runner.stats.layers["map"]
    assert f"{first.changed} positions, {first.new_rows} distinct" in TEXT
    assert f"{both.changed - first.changed} positions see a change" in TEXT
    assert both.new_rows == first.new_rows
