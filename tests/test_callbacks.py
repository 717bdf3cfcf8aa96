"""`StatsLogger`: what is read back from its files is what `stats` tell."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from reuse_tf import Runner, StatsLogger, convert

L = keras.layers


@pytest.fixture
def model():
    return keras.Sequential(
        [
            keras.Input((12, 16, 1)),
            L.Conv2D(4, 3, activation="relu", name="first"),
            L.MaxPooling2D(name="pool"),
            L.Flatten(),
            L.Dense(3, name="dense"),
        ]
    )


def video(frames=40):
    """A dot on its way, slower and slower."""
    video = np.zeros((frames, 12, 16, 1), np.uint8)
    for t, frame in enumerate(video):
        frame[5, int(t**0.5 * 2) % 16] = 9
    return video


def logged(path):
    """What was written: by name, a dict of values by step."""
    (file,) = path.iterdir()
    values = {}
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            values.setdefault(value.tag, {})[event.step] = float(
                tf.make_ndarray(value.tensor)
            )
    return values


def parts(layer):
    return {
        "changed": layer.changed / layer.positions,
        "new_rows": layer.new_rows / layer.positions,
        "multiply_adds": layer.multiply_adds / layer.dense_multiply_adds,
    }


class TestRunner:
    def test_a_prediction(self, model, tmp_path):
        runner, frames = Runner(model), video()
        runner.step(frames[:7])  # is not of the prediction
        logger = StatsLogger(tmp_path, runner)
        for _ in range(2):
            runner.predict(frames, verbose=0, callbacks=[logger])
        values = logged(tmp_path)
        assert set(values) == {
            *(
                f"runner/{layer}/{part}"
                for layer in ("first", "dense")
                for part in ("changed", "new_rows", "multiply_adds")
            ),
            *("runner/pool/changed", "runner/pool/new_rows"),
            *(f"runner/seconds/{n}" for n in ("structure", "rows", "dense")),
            *(f"runner/rows/{n}" for n in ("frames", "first", "pool")),
            *("runner/multiply_adds", "runner/clears", "runner/switches"),
        }
        # An entry for each batch: of the first 32 frames, and of the others.
        for name, of_name in values.items():
            assert list(of_name) == [1, 2, 3, 4], name
        whole, part = Runner(model), Runner(model)
        whole.predict(frames, verbose=0)
        part.predict(frames[:32], verbose=0)
        for step in (1, 3):
            want = parts(part.stats.layers["first"])
            for name, value in want.items():
                got = values[f"runner/first/{name}"]
                assert got[step] == pytest.approx(value)
                both = (32 * got[step] + 8 * got[step + 1]) / 40
                end = parts(whole.stats.layers["first"])[name]
                assert both == pytest.approx(end)
                assert got[step + 1] < got[step]
        assert values["runner/rows/first"][4] == whole.stats.rows["first"]
        made, dense = part.stats.multiply_adds
        assert values["runner/multiply_adds"][1] == pytest.approx(made / dense)

    def test_every_few_batches(self, model, tmp_path):
        runner, frames = Runner(model), video(70)
        logger = StatsLogger(tmp_path, runner, update_freq=3)
        runner.predict(frames, 10, verbose=0, callbacks=[logger])
        assert list(logged(tmp_path)["runner/multiply_adds"]) == [3, 6, 7]


class TestLayers:
    def test_a_prediction(self, model, tmp_path):
        model, frames = convert(model), video()
        model.predict(
            frames,
            batch_size=1,
            verbose=0,
            callbacks=[StatsLogger(tmp_path, update_freq=40)],
        )
        values = logged(tmp_path)
        assert set(values) == {
            f"{layer}/{part}"
            for layer in ("first", "dense")
            for part in ("recomputed_positions", "multiply_adds")
        }
        stats = model.layers[0].stats
        assert stats.frames == 40
        assert values["first/recomputed_positions"] == {
            40: pytest.approx(stats.recomputed_positions / stats.positions)
        }
        assert values["first/multiply_adds"] == {
            40: pytest.approx(stats.multiply_adds / stats.dense_multiply_adds)
        }

    def test_an_evaluation(self, model, tmp_path):
        model, frames = convert(model), video(12)
        model.compile("sgd", "mse")
        logger = StatsLogger(tmp_path)
        arguments = {"batch_size": 4, "verbose": 0, "callbacks": [logger]}
        model.evaluate(frames, np.zeros([12, 3]), **arguments)
        model.layers[0].reset_state()
        model.evaluate(frames, np.zeros([12, 3]), **arguments)
        values = logged(tmp_path)["first/recomputed_positions"]
        assert list(values) == [1, 2, 3, 4, 5, 6]
        assert values[1] == values[4] == 1  # everything, at first
        assert 0 < values[2] < 1

    def test_the_validation_of_a_fit(self, model, tmp_path):
        model, frames = convert(model), video(12)
        model.compile("sgd", "mse")
        labels = np.zeros([12, 3])
        model.fit(
            frames,
            labels,
            batch_size=4,
            validation_data=(frames, labels),
            epochs=2,
            verbose=0,
            callbacks=[StatsLogger(tmp_path)],
        )
        # Three batches of training are behind the first of each validation.
        values = logged(tmp_path)["first/recomputed_positions"]
        assert list(values) == [4, 5, 6, 10, 11, 12]

    def test_of_a_model_within_a_model(self, model, tmp_path):
        outer = keras.Sequential(
            [keras.Input((12, 16, 1)), model, L.Dense(2, name="dense")]
        )
        convert(outer).predict(
            video(3), verbose=0, callbacks=[StatsLogger(tmp_path)]
        )
        names = {name.rpartition("/")[0] for name in logged(tmp_path)}
        inner = model.name
        assert names == {f"{inner}/first", f"{inner}/dense", "dense"}


class TestErrors:
    def test_a_runner(self, tmp_path, model):
        with pytest.raises(ValueError, match="Expected `runner` .*runner=3"):
            StatsLogger(tmp_path, runner=3)
        with pytest.raises(ValueError, match="`update_freq` .*update_freq=0"):
            StatsLogger(tmp_path, update_freq=0)

    def test_nothing_to_log(self, tmp_path, model):
        for predict in (model.predict, Runner(model).predict):
            with pytest.raises(ValueError, match="incremental layers"):
                predict(video(2), verbose=0, callbacks=[StatsLogger(tmp_path)])
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_cannot_be_made(self, tmp_path, model):
        (tmp_path / "file").touch()
        runner = Runner(model)
        logger = StatsLogger(tmp_path / "file", runner)
        with pytest.raises(OSError, match="cannot write"):
            runner.predict(video(2), verbose=0, callbacks=[logger])
