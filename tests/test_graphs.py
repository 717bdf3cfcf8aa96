"""The layers in graphs: reuse where they run here, plain wherever they go."""

import functools
import gc
import sys
import textwrap

import children
import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import assert_close, assert_same_bits, fresh_twin, plain_twin
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)
from tensorflow.python.framework.ops import gradient_registry

from reuse_tf import IncrementalConv2D, IncrementalDense, Stats, convert
from reuse_tf.benchmark import memory
from reuse_tf.layer_ops import LayerState

SHAPE = (10, 9, 3)
KINDS = ["conv", "dense"]
kinds = pytest.mark.parametrize("kind", KINDS)


def _layer(kind, **kwargs):
    rng = np.random.default_rng(0)
    if kind == "conv":
        layer = IncrementalConv2D(4, 3, activation="elu", **kwargs)
        inputs = rng.normal(size=[2, 8, 7, 2])
    else:
        layer = IncrementalDense(4, activation="elu", **kwargs)
        inputs = rng.normal(size=[2, 70])
    layer.build((None, *inputs.shape[1:]))
    return layer, tf.constant(inputs, tf.float32)


def _model():
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(
                6, 3, padding="same", activation="leaky_relu", name="conv"
            ),
            keras.layers.Conv2D(4, 3, strides=2, use_bias=False),
            keras.layers.Flatten(),
            keras.layers.Dense(5, activation="tanh", name="head"),
        ]
    )


def _frames(count=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=[count, *SHAPE]).astype("float32")


def _ops(graph_def):
    nodes = list(graph_def.node)
    for function in graph_def.library.function:
        nodes += function.node_def
    return {node.op for node in nodes}


def _run_in_a_process(program, folder):
    run = children.run(
        sys.executable, "-c", textwrap.dedent(program), cwd=folder
    )
    assert run.returncode == 0, run.stderr


def _nested(function):
    return tf.function(lambda inputs: function(inputs) + 0)


class TestRun:
    @kinds
    @pytest.mark.parametrize(
        "put",
        {
            "function": lambda layer: tf.function(layer),
            "nested": lambda layer: _nested(tf.function(layer)),
            "while_loop": lambda layer: tf.function(
                lambda x: tf.while_loop(
                    lambda i, _: i < 3,
                    lambda i, _: (i + 1, layer(x)),
                    (0, tf.zeros_like(layer(x))),
                )[1]
            ),
            "cond": lambda layer: tf.function(
                lambda x: tf.cond(
                    tf.reduce_sum(x) < 1e9, lambda: layer(x), lambda: layer(-x)
                )
            ),
            "map_fn": lambda layer: tf.function(
                lambda x: tf.map_fn(layer, x[None])[0]
            ),
            "dataset": lambda layer: (
                lambda x: next(iter(tf.data.Dataset.from_tensors(x).map(layer)))
            ),
            "switch_case": lambda layer: tf.function(
                lambda x: tf.switch_case(
                    tf.size(x) * 0, [lambda: layer(x), lambda: layer(-x)]
                )
            ),
            "recompute_grad": lambda layer: tf.function(
                tf.recompute_grad(layer)
            ),
        }.items(),
        ids=lambda pair: pair[0],
    )
    def test_reuses(self, kind, put):
        """Whatever the layer stands in, its own state is used."""
        layer, inputs = _layer(kind)
        function = put[1](layer)
        want = fresh_twin(layer)(inputs)
        layer(inputs)
        assert layer.stats.recomputed_positions == layer.stats.positions
        for _ in range(3):
            assert_same_bits(function(inputs), want)
        assert layer.stats.frames >= 2 * 4
        # What was computed eagerly was not computed again.
        assert layer.stats.recomputed_positions == (
            layer.stats.positions * 2 // layer.stats.frames
        )

    @kinds
    def test_unknown_shapes(self, kind):
        layer, inputs = _layer(kind)
        shape = [None] * (len(inputs.shape) - 1) + [inputs.shape[-1]]
        function = tf.function(
            layer, input_signature=[tf.TensorSpec(shape, tf.float32)]
        )
        outputs = function.get_concrete_function().outputs[0]
        assert outputs.shape.as_list() == [*shape[:-1], 4]
        assert_same_bits(function(inputs), layer(inputs))
        assert_same_bits(function(inputs[:1]), layer(inputs[:1]))

    @kinds
    def test_a_function_outlives_the_state(self, kind):
        layer, inputs = _layer(kind)
        function = tf.function(layer)
        want = function(inputs)
        layer._state = None
        assert_same_bits(function(inputs), want)
        assert_same_bits(function(2 * inputs), fresh_twin(layer)(2 * inputs))

    def test_numpy_arguments(self):
        layer = IncrementalConv2D(
            np.int64(3),
            (np.int64(2), 3),
            strides=(np.int32(2), 2),
        )
        frames = _frames()
        want = layer(frames)
        assert_same_bits(tf.function(layer)(frames), want)
        assert_close(want, plain_twin(layer)(frames))

    def test_version_1_sessions(self):
        """A graph of TensorFlow 1 keeps a state of its own."""
        program = """
            import numpy as np
            import tensorflow as tf
            from reuse_tf import IncrementalConv2D
            tf.compat.v1.disable_eager_execution()
            layer = IncrementalConv2D(4, 3, activation="elu")
            for shape in [[2, 8, 7, 2], [None, 8, 7, 2]]:
                with tf.Graph().as_default():
                    frames = tf.compat.v1.placeholder(tf.float32, shape)
                    layer = IncrementalConv2D(4, 3, activation="elu")
                    try:
                        layer(frames[:, :2])
                    except Exception:
                        pass  # too small
                    else:
                        raise AssertionError("was not refused")
                    outputs = layer(frames)
                    gradient, = tf.gradients(outputs, frames)
                    with tf.compat.v1.Session() as session:
                        session.run(tf.compat.v1.global_variables_initializer())
                        for weight in layer.weights:
                            session.run(weight.value.initializer)
                        x = np.ones([2, 8, 7, 2], "float32")
                        a, da = session.run([outputs, gradient], {frames: x})
                        b = session.run(outputs, {frames: x})
                        np.testing.assert_array_equal(a, b)
                        kernel, bias = session.run(
                            [weight.value for weight in layer.weights])
                want = tf.nn.elu(tf.nn.conv2d(x, kernel, 1, "VALID") + bias)
                with tf.compat.v1.Session() as session:
                    want = session.run(want)
                np.testing.assert_allclose(a, want, rtol=1e-4, atol=1e-5)
                assert np.any(da)
        """
        _run_in_a_process(program, None)

    @kinds
    @pytest.mark.parametrize("within", ["a function", "a dataset"])
    def test_python_may_write_into_what_it_is_given(self, kind, within):
        layer, inputs = _layer(kind)
        plain = plain_twin(layer)

        def scale(outputs):
            outputs *= 100
            return outputs

        def scaled(x):
            x = tf.reshape(layer(x), [2, -1])
            return tf.numpy_function(scale, [x], tf.float32)

        def from_dataset(x):
            return next(iter(tf.data.Dataset.from_tensors(x).map(scaled)))

        run = tf.function(scaled) if within == "a function" else from_dataset
        for _ in range(3):
            want = plain(inputs)
            assert_close(run(inputs), 100 * tf.reshape(want, [2, -1]))
            assert_close(layer(inputs), want)
            # Assignments come before what comes after them.
            layer.kernel.assign(layer.kernel * 1.25)
            plain.kernel.assign(layer.kernel)

    def test_python_in_another_graph(self):
        """In a process in which no graph has called Python before."""
        result = children.run(
            sys.executable,
            "-c",
            textwrap.dedent("""
                import numpy as np
                import tensorflow as tf
                from reuse_tf import IncrementalConv2D

                def scale(outputs):
                    outputs *= 100
                    return outputs

                def scaled(outputs):
                    return tf.numpy_function(scale, [outputs], tf.float32)

                layer = IncrementalConv2D(2, 3)
                frame = np.ones((1, 5, 5, 1), np.float32)
                outputs = layer(frame)
                want = outputs.numpy()
                spare = layer(2 * frame)
                for _ in range(3):
                    tf.function(scaled)(outputs)
                    outputs = layer(frame)
                    assert np.array_equal(outputs, want)
                frames = tf.data.Dataset.from_tensors(frame).repeat(3)
                for got in frames.map(layer).map(scaled):
                    assert np.allclose(got, 100 * want)
                assert np.array_equal(layer(frame), want)
                print("done")
            """),
        )
        assert result.stdout.endswith("done\n"), result.stderr

    def test_python_does_not_change_the_order_of_assignments(self):
        layer, inputs = _layer("conv")
        plain = plain_twin(layer)

        @tf.function
        def run(x):
            layer.kernel.assign(layer.kernel * 2.0)
            first = layer(x)
            layer.kernel.assign(layer.kernel * 2.0)
            return first, layer(x), tf.numpy_function(np.copy, [x], tf.float32)

        for _ in range(2):
            got = run(inputs)
            for outputs in got[:2]:
                plain.kernel.assign(plain.kernel * 2.0)
                assert_close(outputs, plain(inputs))


class TestSaved:
    """A model goes where this package is not, and comes back to where it is."""

    WAYS = {
        "saved_model.save": lambda model, path: tf.saved_model.save(
            model, path
        ),
        "after it was called": lambda model, path: (
            tf.function(model)(_frames()),
            model.predict(_frames(), verbose=0),
            tf.saved_model.save(model, path),
        ),
        "a traced function": lambda model, path: _save_traced(model, path),
        "export": lambda model, path: model.export(path, verbose=False),
        "ExportArchive": lambda model, path: _archive(model, path),
        "ExportArchive, traced": lambda model, path: _archive_traced(
            model, path
        ),
    }

    @pytest.mark.parametrize("way", WAYS)
    def test_loads_without_the_package(self, way, tmp_path):
        model = convert(_model())
        frames = _frames()
        want = model(frames)
        path = str(tmp_path / "saved")
        self.WAYS[way](model, path)
        saved = tf.saved_model.load(path)
        serve = saved.signatures["serving_default"]
        text = (tmp_path / "saved" / "saved_model.pb").read_bytes()
        assert b"ReuseTF>" not in text
        # Here it reuses: the bits are those of the kernels.
        for _ in range(2):
            (outputs,) = serve(tf.constant(frames)).values()
            assert_same_bits(outputs, want)
        np.savez(tmp_path / "want.npz", frames, want)
        _run_in_a_process(
            """
            import sys
            import numpy as np
            import tensorflow as tf
            frames, want = np.load("want.npz").values()
            model = tf.saved_model.load("saved")
            serve = model.signatures["serving_default"]
            got, = serve(tf.constant(frames)).values()
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
            assert not any(name.startswith("reuse_tf") for name in sys.modules)
            """,
            tmp_path,
        )
        # And the model goes on as before.
        assert_same_bits(model(frames), want)

    def test_a_loaded_model_follows_its_own_weights(self, tmp_path):
        model = convert(_model())
        frames = _frames()
        model.export(tmp_path / "saved", verbose=False)
        loaded = tf.saved_model.load(tmp_path / "saved")
        before = loaded.serve(frames)
        model.set_weights([w + 1 for w in model.get_weights()])
        assert not np.allclose(model(frames), before)
        assert_same_bits(loaded.serve(frames), before)
        for variable in loaded.variables:
            variable.assign_add(tf.ones_like(variable))
        assert_same_bits(loaded.serve(frames), model(frames))

    def test_a_loaded_model_can_be_trained(self, tmp_path):
        model = convert(_model())
        tf.saved_model.save(model, str(tmp_path / "saved"))
        loaded = tf.saved_model.load(str(tmp_path / "saved"))
        serve = loaded.signatures["serving_default"]
        frames = tf.constant(_frames())
        gradients = []
        for function, kernel in [
            (model, model.layers[0].kernel.value),
            (lambda x: list(serve(x).values())[0], serve.variables[0]),
        ]:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(function(frames) ** 2)
            gradients.append(tape.gradient(loss, kernel))
        np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-4)


def _save_traced(model, path):
    module = tf.Module()
    module.model = [weight.value for weight in model.weights]
    module.serve = tf.function(model)
    module.serve(_frames())
    tf.saved_model.save(
        module,
        path,
        signatures=module.serve.get_concrete_function(
            tf.TensorSpec([None, *SHAPE], tf.float32)
        ),
    )


def _archive(model, path):
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda frames: model(frames),
        [keras.InputSpec(shape=(None, *SHAPE), dtype="float32")],
    )
    archive.write_out(path, verbose=False)


def _archive_traced(model, path):
    archive = keras.export.ExportArchive()
    archive.track(model)
    serve = tf.function(model)
    serve(tf.constant(_frames()))
    archive.add_endpoint("serve", serve)
    archive.write_out(path, verbose=False)


class TestFrozen:
    def test_weights_as_constants(self):
        model = convert(_model())
        frames = tf.constant(_frames())
        want = model(frames)
        function = tf.function(model)
        function(frames)
        frozen = convert_variables_to_constants_v2(
            function.get_concrete_function(frames)
        )
        graph = frozen.graph.as_graph_def()
        assert not any(op.startswith("ReuseTF") for op in _ops(graph))
        assert not any("Variable" in op for op in _ops(graph))
        for _ in range(2):
            assert_close(frozen(frames)[0], want)
        model.set_weights([w + 1 for w in model.get_weights()])
        assert_close(frozen(frames)[0], want)

    def test_tensorflow_lite(self):
        model = convert(_model())
        frames = _frames(1)
        want = model(frames)
        flat = tf.lite.TFLiteConverter.from_keras_model(model).convert()
        interpreter = tf.lite.Interpreter(model_content=flat)
        interpreter.allocate_tensors()
        (inputs,) = interpreter.get_input_details()
        (outputs,) = interpreter.get_output_details()
        interpreter.set_tensor(inputs["index"], frames)
        interpreter.invoke()
        assert_close(interpreter.get_tensor(outputs["index"]), want)


class TestXla:
    @kinds
    def test_traced_before_it_is_compiled(self, kind):
        layer, inputs = _layer(kind)
        inner = tf.function(layer)
        want = inner(inputs)
        outer = tf.function(lambda x: inner(x) + 0, jit_compile=True)
        for scale in 1, 2:
            assert_close(
                outer(scale * inputs), plain_twin(layer)(scale * inputs)
            )
        assert_same_bits(inner(inputs), want)
        assert layer.stats.frames == 4

    @kinds
    def test_compiled_within_what_is_not(self, kind):
        layer, inputs = _layer(kind)
        compiled = tf.function(layer, jit_compile=True)
        function = tf.function(lambda x: compiled(x) + layer(x))
        assert_close(function(inputs), 2 * plain_twin(layer)(inputs))
        assert layer.stats.frames == 2

    def test_compiled_model(self):
        plain = _model()
        model = convert(plain)
        model.compile("sgd", "mse", jit_compile=True)
        frames = _frames(4)
        assert_close(
            model.predict(frames, verbose=0), plain.predict(frames, verbose=0)
        )
        assert model.layers[0].stats == Stats()
        model.fit(frames, np.ones([4, 5]), verbose=0)
        plain.set_weights(model.get_weights())
        assert_close(model(frames), plain(frames))


def _eager(function):
    return function


def _traced_within(function):
    """The whole is traced, differentiation included."""
    return tf.function(function)


def test_traces_go_with_their_graphs():
    def registered():
        gc.collect()
        return sum(n.startswith("Custom") for n in gradient_registry.list())

    layer = IncrementalConv2D(4, 3)
    frame = tf.ones((1, 5, 5, 1))
    layer(frame)
    before = registered()
    for _ in range(3):

        @tf.function
        def gradient(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x) ** 2)
            return tape.gradient(loss, layer.kernel.value)

        assert gradient(frame).shape == layer.kernel.shape
    del gradient
    assert registered() == before
    assert layer.stats.frames == 4


def test_layers_that_go_leave_nothing_behind():
    """TensorFlow keeps a kernel for ever for each value of an attribute."""

    def make(count):
        for _ in range(count):
            LayerState()
        gc.collect()

    make(50)
    with memory.Meter() as meter:
        make(400)
    # 13 MB, if they are kept. NaN where the system does not tell.
    assert not meter.end_mb - meter.start_mb > 4


class TestDifferentiated:
    """By every mode that TensorFlow has, against the plain layer."""

    @pytest.mark.parametrize("outside", ["eager", "function", "inner"])
    @pytest.mark.parametrize(
        "how", ["cond", "captured", "switch_case", "while_loop", "map_fn"]
    )
    @kinds
    def test_within_control_flow(self, kind, how, outside):
        layer, inputs = _layer(kind)

        def loss_of(layer, x):
            if how == "map_fn":
                y = tf.map_fn(lambda row: layer(row[None])[0], x)
            elif how == "while_loop":
                _, y = tf.while_loop(
                    lambda i, _: i < 2,
                    lambda i, y: (i + 1, y + tf.reduce_sum(layer(x * y))),
                    (0, 1.5),
                )
            elif how == "switch_case":
                branches = [lambda: layer(x), lambda: 2 * layer(x)]
                y = tf.switch_case(tf.shape(x)[0] - 1, branches)
            else:
                y = tf.cond(
                    tf.reduce_sum(x) > -1e9,
                    (lambda: layer(x))
                    if how == "captured"
                    else lambda: layer(1 * x),
                    lambda: 3 * layer(x),
                )
            return tf.reduce_sum(y**2)

        def gradients(layer):
            loss = functools.partial(loss_of, layer)
            if outside == "inner":
                loss = tf.function(loss, autograph=False)

            def run(x):
                weights = [layer.kernel.value, layer.bias.value]
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    value = loss(x)
                return tape.gradient(value, [x, *weights])

            if outside != "eager":
                run = tf.function(run, autograph=False)
            return run(inputs)

        got, want = gradients(layer), gradients(plain_twin(layer))
        for ours, theirs in zip(got, want, strict=True):
            assert float(tf.reduce_max(tf.abs(theirs))) > 0
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)

    @kinds
    @pytest.mark.parametrize(
        "traced, layer_traced",
        # Traced twice, TensorFlow finds no tangents behind a custom gradient.
        [(_eager, False), (_eager, True), (_traced_within, False)],
    )
    @pytest.mark.parametrize("of", ["inputs", "kernel"])
    def test_forward(self, kind, traced, layer_traced, of):
        layer, inputs = _layer(kind)
        results = []
        for each in layer, plain_twin(layer):
            call = tf.function(each) if layer_traced else each
            source = inputs if of == "inputs" else each.kernel.value
            tangent = tf.random.stateless_normal(source.shape, [1, 2])

            def derive(inputs, source=source, tangent=tangent, call=call):
                primal = inputs if of == "inputs" else source
                with tf.autodiff.ForwardAccumulator(primal, tangent) as acc:
                    outputs = call(inputs)
                return outputs, acc.jvp(outputs)

            derive = traced(derive)
            derive(inputs)
            results.append(derive(inputs))
        (outputs, got), (want_outputs, want) = results
        assert_close(outputs, want_outputs)
        assert np.any(want)
        assert_close(got, want)

    @kinds
    @pytest.mark.parametrize("traced", [_eager, _traced_within])
    def test_forward_over_reverse(self, kind, traced):
        layer, inputs = _layer(kind)
        tangent = tf.random.stateless_normal(inputs.shape, [1, 2])
        results = []
        for each in layer, plain_twin(layer):

            @traced
            def derive(inputs, each=each):
                with tf.autodiff.ForwardAccumulator(inputs, tangent) as acc:
                    with tf.GradientTape() as tape:
                        tape.watch(inputs)
                        loss = tf.reduce_sum(each(inputs) ** 3)
                    gradient = tape.gradient(loss, inputs)
                return gradient, acc.jvp(gradient)

            results.append(derive(inputs))
        for got, want in zip(*results, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)

    @kinds
    @pytest.mark.parametrize("traced", [_eager, _traced_within])
    def test_jacobian(self, kind, traced):
        layer, inputs = _layer(kind)
        results = []
        for each in layer, plain_twin(layer):

            @traced
            def derive(inputs, each=each):
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    outputs = tf.reduce_sum(each(inputs), axis=0)
                return tape.jacobian(outputs, inputs)

            results.append(derive(inputs))
        assert_close(*results)

    @kinds
    def test_gradients_reuse(self, kind):
        layer, inputs = _layer(kind)

        @tf.function
        def step(inputs):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(inputs) ** 2)
            return tape.gradient(loss, layer.kernel.value)

        for _ in range(3):
            step(inputs)
        assert layer.stats.frames == 6
        assert layer.stats.recomputed_positions * 3 == layer.stats.positions
