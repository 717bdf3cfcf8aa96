"""The benchmark of cameras, on a tiny video. Times are not looked at."""

import csv

import keras
import numpy as np
import pytest
from test_figures import drawn, labels

from reuse_tf import relative_error
from reuse_tf.benchmark import __main__ as program
from reuse_tf.benchmark import cameras, models
from reuse_tf.playing import video

pytest.importorskip("av")
SIZE, FRAMES, FPS = 32, 20, 10


@pytest.fixture(autouse=True)
def _flags_as_at_the_start():
    yield
    for name in cameras.FLAGS:
        cameras.FLAGS[name].unparse()


@pytest.fixture(scope="module")
def clip():
    """A square that moves over a background, uint8 `[FRAMES, 32, 32, 3]`."""
    background = np.random.default_rng(0).integers(60, 120, (SIZE, SIZE, 3))
    frames = np.repeat(background[np.newaxis], FRAMES, 0).astype(np.uint8)
    for t, frame in enumerate(frames):
        frame[8:16, t : t + 4] = 250
    return frames


@pytest.fixture(scope="module")
def path(clip, tmp_path_factory):
    """A file that shows each frame twice as often as it is looked at."""
    writer = video.Writer(".mp4", 2 * FPS)
    for frame in np.repeat(clip, 2, 0):
        writer.add(frame)
    path = tmp_path_factory.mktemp("videos") / "square.mp4"
    path.write_bytes(writer.finish())
    return path


def small_network(frames):
    x = keras.layers.Rescaling(1 / 255)(frames)
    x = keras.layers.Conv2D(4, 3, 8, padding="same", activation="relu")(x)
    return [x, keras.layers.MaxPooling2D()(x)]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(models.CAMERA_NETWORKS, "vgg", small_network)


def test_frames_are_read_evenly(clip, path):
    frames = cameras.read(path, SIZE, FPS, 100)
    assert frames.shape == clip.shape and frames.dtype == np.uint8
    # The square is where it is in these frames, and in no other.
    for t, frame in enumerate(frames):
        is_square = (frame > 190).all(-1)
        columns = np.flatnonzero(is_square[10:14].all(0))
        assert abs(columns[0] - t) <= 1 and 2 <= len(columns) <= 6
    assert len(cameras.read(path, SIZE, FPS, 12)) == 12
    # Never more than there are.
    assert len(cameras.read(path, SIZE, 1000, 100)) == 2 * FRAMES
    with pytest.raises(ValueError, match="square.mp4 to have 10 frames at 2"):
        cameras.read(path, SIZE, 2, 100)


def test_noise_is_of_its_strength_and_seed(clip):
    frames = np.full((4, 64, 64, 3), 128, np.uint8)
    noisy = cameras.with_noise(frames, 2, seed=3)
    assert noisy.dtype == np.uint8
    # Rounding adds a twelfth to the variance.
    assert noisy.std() == pytest.approx(np.sqrt(4 + 1 / 12), rel=0.02)
    assert np.any(noisy[0] != noisy[1])
    np.testing.assert_array_equal(noisy, cameras.with_noise(frames, 2, seed=3))
    assert np.any(noisy != cameras.with_noise(frames, 2, seed=4))
    np.testing.assert_array_equal(clip, cameras.with_noise(clip, 0))


def test_targets_are_parts_of_cells_that_cover_the_background(clip):
    (fine, coarse) = cameras.targets(clip, [(8, 8), (1, 1)])
    assert fine.shape == (FRAMES, 8, 8, 1) and fine.dtype == np.float32
    # At first columns 0 to 3 of rows 8 to 15, and then one further each time.
    want = np.zeros((8, 8))
    want[2:4, 0] = 1
    np.testing.assert_array_equal(fine[0, ..., 0], want)
    want[2:4, :2] = 0.5
    np.testing.assert_array_equal(fine[2, ..., 0], want)
    np.testing.assert_allclose(coarse[:, 0, 0, 0], 32 / SIZE**2)


def test_frames_are_held():
    outputs = [np.arange(5.0), np.arange(10.0).reshape(5, 2)]
    second = cameras.held(outputs, 2)
    np.testing.assert_array_equal(second[0], [0, 0, 2, 2, 4])
    np.testing.assert_array_equal(second[1][:, 1], [1, 1, 5, 5, 9])
    np.testing.assert_array_equal(cameras.held(outputs, 4)[0], [0] * 4 + [4])


@pytest.mark.parametrize(
    ("network", "grids"),
    {
        "vgg": [(8, 8)],
        "mobilenet": [(1, 1)],
        "resnet": [(1, 1)],
        "yolo": [(4, 4), (2, 2), (1, 1)],
    }.items(),
)
def test_networks_give_logits_of_grids(network, grids):
    model = models.of_camera(network, SIZE)
    (inputs,) = model.inputs
    assert inputs.dtype == "uint8"
    assert [tensor.shape for tensor in model.outputs] == [
        (None, *grid, 1) for grid in grids
    ]
    momenta = {
        layer.momentum
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    assert momenta == (set() if network == "vgg" else {0.9})


def test_a_network_learns_and_is_kept(small, clip, tmp_path):
    path = tmp_path / "vgg.keras"
    versions = [clip, cameras.with_noise(clip, 2)]
    arguments = "vgg", [clip], [versions], SIZE, 30, 0, path
    model, losses = cameras.trained(*arguments)
    assert losses["loss_after"] < losses["loss_before"]
    assert losses["loss_constant"] > 0
    before = path.read_bytes()
    again, same = cameras.trained(*arguments)
    assert path.read_bytes() == before and same == pytest.approx(losses)
    assert [file.name for file in tmp_path.iterdir()] == ["vgg.keras"]
    for got, want in zip(again(clip), model(clip), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_what_is_measured_is_not_known_before(small, clip, monkeypatch):
    model, seen = models.of_camera("vgg", SIZE), []
    clip = cameras.with_noise(clip, 2)
    find = cameras.find_thresholds

    def find_thresholds(model, frames, *given, **named):
        seen.append(frames)
        return find(model, frames, *given, **named)

    monkeypatch.setattr(cameras, "find_thresholds", find_thresholds)
    rows = cameras.measure(model, clip, [0.05, 0.5], trials=1, runs=2)
    known, measured = cameras.split(clip)
    assert len(known) == 12 and len(measured) == 8
    for frames in seen:
        np.testing.assert_array_equal(frames, known)
    for frame in measured:
        assert not (known == frame).all((1, 2, 3)).any()
    assert list(rows) == [
        *("dense", "exact", "threshold 0.05", "threshold 0.5"),
        *("every 2nd", "every 4th"),
    ]
    # By the definition, of the measured frames alone.
    outputs = [tensor.numpy() for tensor in model(measured)]
    before = [tensor.numpy() for tensor in model(known)]
    for name, n in (("every 2nd", 2), ("every 4th", 4)):
        off = [np.repeat(of[::n], n, 0) for of in outputs]
        assert rows[name]["error"] == pytest.approx(
            relative_error(outputs, off, before), rel=1e-4
        )
        assert rows[name]["work"] == 1 / n
        for column in ("ms", "cpu_ms"):
            dense = rows["dense"][column]
            assert rows[name][column] == pytest.approx(dense / n)
        assert rows[name]["time_over_dense"] == pytest.approx(1 / n)
    assert rows["dense"]["error"] == 0 and rows["dense"]["work"] == 1
    assert rows["exact"]["error"] < 1e-4 and rows["exact"]["work"] > 0.9
    for tolerance in (0.05, 0.5):
        row = rows[f"threshold {tolerance}"]
        assert row["is_within"] == (row["error"] <= tolerance)
        assert row["found_within"] in (0, 1)
        assert row["calibration_seconds"] > 0
        assert row["work"] <= rows["exact"]["work"]
    loose = rows["threshold 0.5"]
    assert loose["work"] < 0.9 and loose["error"] > rows["exact"]["error"]


def test_results_that_differ_are_an_error(small, clip, monkeypatch):
    step = cameras.Runner.step
    monkeypatch.setattr(
        cameras.Runner,
        "step",
        lambda self, frame: [2 * of for of in step(self, frame)],
    )
    with pytest.raises(RuntimeError, match="exact is off by"):
        cameras.measure(models.of_camera("vgg", SIZE), clip, [])


def test_the_command(small, path, tmp_path, capsys, monkeypatch):
    out = tmp_path / "cameras.csv"
    command = [
        *("benchmark", "cameras", f"--videos={path}", "--networks=vgg"),
        *("--tolerances=0.5", f"--size={SIZE}", "--frames=15", "--noise=0,2"),
        *("--train_steps=2", "--trials=1", "--runs=1"),
        *(f"--out={out}", f"--models={tmp_path / 'models'}"),
    ]
    program.main(command)
    output = capsys.readouterr().out
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("clip", "noise", "network", "what", "size", "fps", "frames"),
        *("train_steps", "learned_of", "trials", "runs", "seed", "threads"),
        *("ms", "cpu_ms", "time_over_dense", "cpu_over_dense", "work"),
        *("error", "is_within", "found_within", "calibration_seconds"),
        *("loss_before", "loss_after", "loss_constant"),
        *("tensorflow", "keras", "reuse_tf", "processor", "instruction_set"),
    ]
    assert {row["learned_of"] for row in rows} == {"square 0 2"}
    names = "dense", "exact", "every 2nd", "every 4th", "threshold 0.5"
    assert [(row["clip"], row["noise"], row["what"]) for row in rows] == [
        ("square", noise, name) for noise in "02" for name in names
    ]
    assert output.count("|                       square |") == len(rows)
    assert f"vgg {float(rows[0]['loss_before']):.3f}, " in output
    (kept,) = (tmp_path / "models").iterdir()
    assert kept.name.startswith("vgg-") and kept.suffix == ".keras"
    # All is there.
    monkeypatch.delattr(cameras, "measure")
    monkeypatch.delattr(cameras, "trained")
    for name in cameras.FLAGS:
        cameras.FLAGS[name].unparse()
    program.main(command)
    assert capsys.readouterr().out == output


@pytest.mark.parametrize(
    ("argument", "named"),
    {
        "--videos=": "videos",
        "--videos=a/x.mp4,b/x.mp4": "videos",
        "--videos=missing.mp4": "missing.mp4",
        "--networks=vgg16": "networks",
        "--tolerances=0": "tolerances",
        "--tolerances=small": "tolerances",
        "--noise=-1": "noise",
        "--size=100": "size",
        "--frames=9": "frames",
    }.items(),
)
def test_a_bad_argument_is_one_clear_line(argument, named):
    with pytest.raises(SystemExit) as failure:
        program.main(["benchmark", "cameras", "--videos=x.mp4", argument])
    message = failure.value.code
    assert message.startswith("reuse_tf.benchmark: ") and "\n" not in message
    assert named in message


def test_the_figure(tmp_path):
    times = {
        "dense": (1, 0),
        "exact": (0.9, 1e-6),
        "threshold 0.1": (0.3, 0.08),
        "threshold 0.05": (0.6, 0.04),
        "every 2nd": (0.5, 0.4),
        "every 4th": (0.25, "inf"),
    }
    rows = [
        {
            "clip": clip,
            "noise": noise,
            "network": network,
            "what": what,
            "cpu_over_dense": time,
            "error": error,
        }
        for network in ("vgg", "resnet", "yolo")
        for clip in ("door", "road")
        for noise in (0, 2)
        for what, (time, error) in times.items()
    ]
    figure = drawn(tmp_path, rows)["cameras"]
    assert [axes.get_title() for axes in figure.axes] == [
        *("vgg", "resnet", "yolo")
    ]
    for axes in figure.axes:
        lines = [
            list(zip(line.get_xdata(), line.get_ydata(), strict=True))
            for line in axes.get_lines()
        ]
        assert lines.count([(0.9, 1e-6), (0.6, 0.04), (0.3, 0.08)]) == 4
        (crosses,) = axes.collections
        assert crosses.get_offsets().tolist() == [[0.5, 0.4]] * 4
    (legend,) = figure.legends
    assert labels(legend.get_texts()) == [
        *("clip", "door", "road", "noise", "0", "2")
    ]
