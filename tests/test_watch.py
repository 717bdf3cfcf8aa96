"""The program watch.py, and the loop under it."""

import dataclasses
import json
import pathlib
import re
import sys

import children
import keras
import numpy as np
import pytest
from PIL import Image

import reuse_tf
from reuse_tf.playing import watch

av = pytest.importorskip("av")
WATCH = pathlib.Path(__file__).parents[1] / "watch.py"
L = keras.layers
SIZE = (48, 64)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def scene(count, size=SIZE):
    """Frames of a still scene with noise, and something on its way."""
    rng = np.random.default_rng(0)
    still = rng.uniform(60, 180, (size[0] // 8, size[1] // 8, 3))
    still = still.repeat(8, 0).repeat(8, 1)
    for t in range(count):
        frame = still + rng.integers(-1, 2, still.shape)
        frame[8:16, 2 * t % 40 : 2 * t % 40 + 8] = 250
        yield frame.astype(np.uint8)


def write(path, frames, rate=10):
    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate)
                stream.height, stream.width, _ = frame.shape
                stream.options = {"crf": "5"}
            picture = av.VideoFrame.from_ndarray(frame, "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def small_model(shape=(*SIZE, 3), dtype="uint8"):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input(shape, dtype=dtype),
            L.Rescaling(1 / 255),
            L.Conv2D(8, 3, strides=2, activation="relu", name="first"),
            L.Conv2D(8, 3, strides=2, activation="relu"),
            L.GlobalAveragePooling2D(),
            L.Dense(4),
        ]
    )


def run(*arguments):
    return children.run(sys.executable, WATCH, *arguments)


class TestWatch:
    """`watch`, on frames as they are."""

    def test_an_error_that_is_unknown_says_so(self):
        summary = watch.watch(small_model(), scene(3))
        unknown = dataclasses.replace(summary, error=np.inf)
        assert "error:   unknown" in str(unknown)
        assert unknown.as_dict()["error"] is None

    def test_without_a_tolerance_it_is_exact(self):
        model = small_model()
        summary = watch.watch(model, scene(30), compare_every=1, name="still")
        assert (summary.video, summary.frames) == ("still", 30)
        assert summary.error < 1e-4
        assert summary.found is None
        assert 0 < summary.work < 1
        assert summary.milliseconds > 0 and summary.dense_milliseconds > 0
        assert set(summary.recomputed) >= {"first"}
        assert json.loads(json.dumps(summary.as_dict()))["frames"] == 30

    def test_a_tolerance_saves_work_and_is_measured(self):
        model = small_model()
        frames = list(scene(60))
        video = iter(frames)
        summary = watch.watch(
            model,
            video,
            found=watch.calibrate(model, video, 0.1, 40),
            compare_every=2,
        )
        assert summary.frames == 20
        found = reuse_tf.find_thresholds(
            model, np.stack(frames[:40]), 0.1, verbose=False
        )
        assert summary.found == found
        runner = reuse_tf.Runner(model, threshold=found.thresholds)
        got, want = [], []
        for t, frame in enumerate(frames[40:]):
            output = runner.step(frame[None])
            if t % 2 == 0:
                got.append(output)
                want.append(model(frame[None]).numpy())
        error = reuse_tf.relative_error(
            [np.concatenate(want)], [np.concatenate(got)]
        )
        assert summary.error == pytest.approx(error, rel=1e-3)
        assert "multiply-adds" in str(summary)

    def test_frames_are_what_the_model_takes(self):
        frames = list(scene(4))
        luma = [np.round(f @ [0.299, 0.587, 0.114])[..., None] for f in frames]
        for shape, dtype, given in (
            ((*SIZE, 1), "uint8", luma),
            ((*SIZE, 3), "float32", frames),
            ((None, None, 3), "uint8", frames),
        ):
            model = small_model(shape, dtype)
            seen = []
            watch.watch(
                model,
                iter(frames),
                recorder=lambda frame, *_, seen=seen: seen.append(frame),
            )
            assert all(frame.dtype == dtype for frame in seen)
            np.testing.assert_array_equal(np.stack(seen), np.stack(given))

    def test_what_cannot_be_watched(self):
        with pytest.raises(ValueError, match="no frame"):
            watch.watch(small_model(), iter([]))
        with pytest.raises(ValueError, match="still has too few"):
            watch.calibrate(small_model(), scene(3), 0.1, name="still")
        flat = keras.Sequential([keras.Input((5,)), L.Dense(1)])
        for look in watch.watch, lambda *given: watch.calibrate(*given, 0.1):
            with pytest.raises(ValueError, match=r"one input \[N, H, W"):
                look(flat, scene(3))


@pytest.mark.parametrize(
    "name", ["MobileNetV2", "ResNet50", "DenseNet121", "EfficientNetB0"]
)
def test_preprocessing_is_that_of_the_application(name):
    # Of each of the kinds: tf, caffe, torch, and none.
    import importlib

    build = getattr(keras.applications, name)
    module = importlib.import_module(build.__module__)
    inputs = keras.Input((32, 32, 3))
    identity = keras.Model(inputs, L.Identity()(inputs))
    model = watch._with_preprocessing(identity, module.preprocess_input)
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
    want = module.preprocess_input(frames.astype("float32"))
    np.testing.assert_allclose(
        model(frames.astype("uint8")), want, rtol=1e-4, atol=1e-4
    )
    runner = reuse_tf.Runner(model)
    np.testing.assert_allclose(
        runner.step(frames.astype("uint8")), want, rtol=1e-4, atol=1e-4
    )


class TestDrawing:
    def test_what_moved_is_lit(self):
        drawing = watch.Drawing(".gif", 5)
        frame = np.full((60, 40, 3), 100, np.uint8)
        for moved in (0, 3, 9):
            frame = frame.copy()
            frame[10:20, 10:20] += np.uint8(moved)
            drawing(frame, 4.0, 0.5, 0.5)
        pathlib.Path("drawing.gif").write_bytes(drawing.finish())
        with Image.open("drawing.gif") as picture:
            assert picture.n_frames == 3
            shares = []
            for i in range(3):
                picture.seek(i)
                pixels = np.asarray(picture.convert("RGB"))[18:, 160:]
                orange = np.abs(pixels.astype(int) - (255, 140, 0)).sum(-1) < 40
                shares.append(orange.mean())
        # All at first; nothing within the threshold; the square beyond it.
        np.testing.assert_allclose(shares, [1, 0, 100 / 2400], atol=0.005)


def played(video, *flags):
    """What is printed when a small model plays a video."""
    small_model().save("model.keras")
    result = run(f"--video={video}", "--model=model.keras", *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


class TestProgram:
    @pytest.fixture
    def video(self):
        write("video.mp4", scene(50))
        return "video.mp4"

    def test_it_plays_reports_and_draws(self, video):
        small_model().save("model.keras")
        result = run(
            f"--video={video}",
            "--model=model.keras",
            "--tolerance=0.2",
            "--calibrate_seconds=3",
            "--record=out.mp4",
            "--summary_json=summary.json",
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        assert "plain Keras" in result.stdout
        assert "on held-out frames" in result.stdout
        summary = json.loads(pathlib.Path("summary.json").read_text())
        assert summary["frames"] == 20
        assert 0 <= summary["found"]["work"] <= 1
        with av.open("out.mp4") as container:
            count = sum(1 for _ in container.decode(video=0))
            stream = container.streams.video[0]
            assert count == 20
            assert stream.average_rate == 10
            assert stream.width == 2 * 64 * 5

    def test_one_frame_that_is_compared_tells_no_error(self, video):
        printed = played(
            video, "--compare_every=1000", "--summary_json=summary.json"
        )
        # Outputs that did not vary are no measure of an error, unless there is
        # none, as on some processors.
        assert re.search("error:   (unknown|0 of)", printed), printed
        times = re.search(r"([0-9.]+) times as fast", printed)
        # The time in which TensorFlow compiles is some thousands.
        assert float(times[1]) < 500
        summary = json.loads(pathlib.Path("summary.json").read_text())
        assert summary["error"] == (None if "unknown" in printed else 0)

    def test_every_and_max_frames(self, video):
        small_model().save("model.keras")
        result = run(f"--video={video}", "--model=model.keras", "--every=4")
        assert "frames:  13 " in result.stdout
        result = run(
            f"--video={video}", "--model=model.keras", "--max_frames=5"
        )
        assert "frames:  5 " in result.stdout

    def test_as_few_frames_as_can_be_find_thresholds(self, video):
        printed = played(video, "--tolerance=0.2", "--calibrate_seconds=0")
        assert "frames:     46 " in printed
        assert "error inf" not in printed

    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
    def test_it_can_be_interrupted_while_thresholds_are_found(
        self, video, name
    ):
        """Those of the second video: what was played before is kept."""
        small_model().save("model.keras")
        program = (
            "import runpy, signal, sys\n"
            "from reuse_tf.playing import watch\n"
            "real, calls = watch.find_thresholds, []\n"
            "def find(*given, **arguments):\n"
            "    calls.append(given)\n"
            "    if len(calls) == 2:\n"
            f"        signal.raise_signal(signal.{name})\n"
            "    return real(*given, **arguments)\n"
            "watch.find_thresholds = find\n"
            "sys.argv[0] = sys.argv[1]\n"
            "sys.path.insert(0, sys.argv[2])\n"
            "del sys.argv[2]\n"
            "runpy.run_path(sys.argv.pop(0), run_name='__main__')"
        )
        result = children.run(
            *(sys.executable, "-c", program, WATCH, WATCH.parent),
            *(f"--video={video}", f"--video={video}", "--model=model.keras"),
            *("--tolerance=0.2", "--calibrate_seconds=0"),
            "--summary_json=s.json",
        )
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1] == "watch.py: interrupted"
        assert result.stdout.count("multiply-adds (without") == 1
        (summary,) = json.loads(pathlib.Path("s.json").read_text())["videos"]
        assert summary["frames"] == 46

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ([], "--video"),
            (["--video=missing.mp4"], "missing.mp4"),
            (["--video={}", "--model=missing.keras"], "missing.keras"),
            (["--video={}", "--model=NoNet"], "MobileNetV2"),
            (["--video={}", "--tolerance=0"], "tolerance"),
            (["--video={}", "--every=0"], "every"),
            (["--video={}", "--record=x.avi"], ".gif or .mp4"),
            (["--video={}", "--game=Pong"], "game"),
            (["--video="], "--video"),
            (["--video={}", "--calibrate_seconds=nan"], "calibrate_seconds"),
            (["--video={}", "--record=./{}"], "another file than all"),
            (["--video=file:{}", "--record={}"], "another file"),
            (["--video={}", "--calibrate_seconds=3"], "with --tolerance"),
            (["--video={}", "--model=x.keras", "--weights=random"], "weights"),
            (["--video={}", "--summary_json={}"], "another file"),
        ],
    )
    def test_bad_arguments_are_one_line(self, video, arguments, named):
        result = run(*(a.format(video) for a in arguments))
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("watch.py: ")
        assert named in result.stderr


def test_several_videos_are_shared(tmp_path):
    small_model().save("small.keras")
    names = [f"{letter}.mp4" for letter in "abc"]
    for name in (names[0], names[2]):
        write(name, scene(8))
    videos = [f"--video={name}" for name in names]
    done = run(
        *(*videos, "--model=small.keras", "--summary_json=s"),
        *("--compare_every=4", "--max_frames=8"),
    )
    # One that is missing takes nothing from the others.
    assert done.returncode == 1
    assert "b.mp4" in done.stderr.splitlines()[-1]
    # Each is reported when it was played: the second one's bar is behind.
    a, c = (done.stdout.index(f" {name}\n") for name in ("a.mp4", "c.mp4"))
    assert done.stdout.rindex("8/8", 0, c) > a
    found = json.loads(pathlib.Path("s").read_text())["videos"]
    assert [(one["video"], one["frames"]) for one in found] == [
        ("a.mp4", 8),
        ("c.mp4", 8),
    ]
    done = run(
        *(*videos, "--model=small.keras", "--summary_json=s", "--shard=2/3"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(pathlib.Path("s").read_text())["videos"]
    assert [one["video"] for one in found] == ["c.mp4"]
    # Whatever fails is one line, once.
    done = run(*videos, "--model=small.keras", "--summary_json=/dev/full")
    assert done.returncode == 1
    missing, full = done.stderr.splitlines()
    assert "b.mp4" in missing and "/dev/full" in full
    # No video is played without the model.
    others = [videos[1], videos[0], "--video=d.mp4"]
    done = run(*others, "--model=missing.keras")
    missing, model = done.stderr.splitlines()
    assert "b.mp4" in missing and "missing.keras" in model
    done = run(*videos, "--record=r.gif")
    assert done.returncode == 1
    assert "one video" in done.stderr.splitlines()[-1]
