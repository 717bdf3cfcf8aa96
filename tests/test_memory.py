"""Out of memory, and sizes that none has: an error, and nothing lost by it.

Where memory matters it is limited, in a process of its own: what fails is
refused by `ResourceExhaustedError`, and what comes after is right.
"""

import os
import pathlib
import sys
import textwrap

import children
import numpy as np
import pytest
import tensorflow as tf

from reuse_tf import changed_positions, ops

PRELUDE = """
    import resource
    import keras
    import numpy as np
    import tensorflow as tf
    from reuse_tf import Runner, ops

    L = keras.layers
    MB = 1 << 20

    def refused(f, extra=128 * MB):
        "Calls f, which has so much more memory, and returns its error."
        pages = int(open("/proc/self/statm").read().split()[0])
        used = pages * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + extra, hard))
        try:
            f()
        except tf.errors.ResourceExhaustedError as error:
            return str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        raise AssertionError("Nothing was refused.")

    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
"""

limited = pytest.mark.skipif(
    not pathlib.Path("/proc/self/statm").exists(),
    reason="memory can be limited on Linux only",
)


def run(code):
    code = textwrap.dedent(PRELUDE) + textwrap.dedent(code)
    # With oneDNN, on some processors, TensorFlow's allocator ends the process
    # where there is no memory for what it would log.
    env = children.environment(TF_ENABLE_ONEDNN_OPTS="0")
    result = children.run(sys.executable, "-c", code, timeout=240, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("done\n")


@limited
class TestLimitedMemory:
    @pytest.mark.parametrize("reuse", ["content", "temporal"])
    @pytest.mark.parametrize("kind", ["np.asarray", "tf.constant"])
    def test_step(self, reuse, kind):
        run(f"""
            model = keras.Sequential(
                [
                    keras.Input((8, 8, 1)),
                    L.Conv2D(3, 3, activation="relu"),
                    L.Flatten(),
                    L.Dense(512),
                ]
            )
            runner = Runner(model, "{reuse}")
            few = {kind}(rng.integers(0, 256, (3, 8, 8, 1), np.uint8))
            want = np.array(runner.step(few))
            # Room for the outputs, but not for what the network remembers.
            for count, room in (3000, 64), (30_000, 320), (200_000, 2500):
                many = {kind}(rng.integers(0, 256, (count, 8, 8, 1), np.uint8))
                error = refused(lambda: runner.step(many), room * MB)
                assert "RunnerStep of uint8 [" + str(count) in error, error
                # Of what was half done, and of what was before, nothing lasts.
                for frames in few, many[:7], few:
                    got = np.array(runner.step(frames))
                    fresh = np.array(Runner(model, "{reuse}").step(frames))
                    assert np.array_equal(got, fresh)
                assert np.array_equal(got, want)
            # With the memory it needs, the same is right.
            some = {kind}(rng.integers(0, 256, (3000, 8, 8, 1), np.uint8))
            got = np.array(runner.step(some))
            np.testing.assert_allclose(
                got,
                model(np.asarray(some, np.float32)),
                rtol=1e-4,
                atol=1e-2,
            )
            print("done")
        """)

    def test_recordings(self):
        run("""
            model = keras.Sequential(
                [keras.Input((8, 8, 1)), L.Flatten(), L.Dense(512)]
            )
            runner = Runner(model)
            few = rng.integers(0, 256, (3, 8, 8, 1), np.uint8)
            many = rng.integers(0, 256, (20_000, 8, 8, 1), np.uint8)
            runner.record()
            runner.step(few)
            refused(lambda: runner.step(many))
            # Half a step is no part of a recording.
            assert runner.recorded() is None
            runner.record()
            runner.step(few)
            want = Runner(model)(few)
            np.testing.assert_allclose(runner(runner.recorded()), want, 1e-5)
            print("done")
        """)

    def test_making_a_runner(self):
        run("""
            model = keras.Sequential(
                [
                    keras.Input((8, 8, 1)),
                    L.Conv2D(30, 3),
                    L.Flatten(),
                    L.Dense(2),
                ]
            )
            error = refused(lambda: Runner(model, max_rows=10**7))
            assert "no memory for ReuseTF>RunnerState" in error, error
            frames = rng.integers(0, 256, (3, 8, 8, 1), np.uint8)
            runner = Runner(model, max_rows=10**7)
            got = runner.step(frames)
            assert np.array_equal(got, Runner(model).step(frames))
            print("done")
        """)

    def test_videos(self):
        run("""
            model = keras.Sequential(
                [
                    keras.Input((8, 8, 3)),
                    L.Conv2D(2, 3),
                    L.Flatten(),
                    L.Dense(2),
                ]
            )
            runner = Runner(model)
            video = rng.integers(0, 256, (20_000, 8, 8, 3), np.uint8)
            error = refused(lambda: runner(video))
            assert "VideoStructure of uint8 [20000,8,8,3]" in error, error
            np.testing.assert_allclose(
                runner(video[:50]), model(video[:50]), rtol=1e-4, atol=1e-2
            )
            print("done")
        """)

    def test_ending_a_recording(self):
        """What is read ahead of weights is forgotten with them."""
        run("""
            inputs = keras.Input((64, 64, 2))
            model = keras.Model(
                inputs, L.PReLU()(L.Conv2D(8, 3, padding="same")(inputs))
            )
            runner = Runner(model)
            frame = np.ones((1, 64, 64, 2), np.uint8)

            def noise():
                return rng.integers(0, 255, frame.shape, np.uint8)

            for _ in range(70):
                runner.step(noise())
            runner.record()
            runner.step(frame)
            # Which drops the recording, and noise makes the maps temporal.
            model.variables[0].assign(2 * model.variables[0])
            for _ in range(70):
                runner.step(noise())
            refused(runner.recorded, 0)
            np.testing.assert_allclose(
                runner.step(frame), model(frame), rtol=1e-4, atol=1e-2
            )
            print("done")
        """)

    def test_layers(self):
        """A state that lost half a call starts afresh."""
        run("""
            state, dense = (ops.incremental_state(id=i) for i in (1, 2))
            window = dict(strides=[1, 1], dilations=[1, 1], padding="SAME")
            kernel = tf.constant(rng.normal(size=(3, 3, 2, 64)), tf.float32)
            matrix = tf.constant(rng.normal(size=(64, 256)), tf.float32)
            zeros = tf.zeros([64]), tf.zeros([256])

            def convolve(inputs, kernel):
                return ops.incremental_conv2d(
                    state, inputs, kernel, zeros[0], **window
                )

            def multiply(rows, matrix):
                return ops.incremental_dense(dense, rows, matrix, zeros[1])

            for call, plain, weights, small, large in [
                (
                    convolve,
                    lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"),
                    kernel,
                    (1, 9, 9, 2),
                    (40, 128, 128, 2),
                ),
                (multiply, tf.matmul, matrix, (2, 64), (200_000, 64)),
            ]:
                few = tf.constant(rng.normal(size=small), tf.float32)
                many = tf.random.normal(large)
                want = call(few, weights)
                np.testing.assert_allclose(
                    want, plain(few, weights), rtol=1e-4, atol=1e-4
                )
                for inputs, kernel in (many, weights), (many, 2 * weights):
                    refused(lambda: call(inputs, kernel), 64 * MB)
                    assert np.array_equal(call(few, weights), want)
            print("done")
        """)

    def test_the_other_ops(self):
        """Each is refused, and goes on afterwards."""
        run("""
            raw = ops._ops
            rows = tf.random.normal([1000, 64])
            ids = tf.random.uniform([4000, 1000], 0, 1000, tf.int32)
            far = tf.cast(ids, tf.int64)
            images = tf.zeros([1, 8000, 8000, 1])
            window = dict(
                kernel_size=[1, 1],
                strides=[1, 1],
                dilations=[1, 1],
                padding="SAME",
            )
            kernel = tf.random.normal([1000, 1, 64, 1])
            positions = tf.zeros([1, 64, 20_000])
            pairs = tf.range(2000) % 1000
            pairs = tf.stack([tf.zeros_like(pairs), pairs], 1)
            runs = tf.constant([[0, 0, 0, 4_000_000]])
            long = tf.zeros([4_000_000], tf.int32)
            values = tf.zeros([1, 64])
            calls = dict(
                gather=lambda: raw.reuse_tf_sparse_gather(rows, ids),
                gather_far=lambda: raw.reuse_tf_sparse_gather(rows, far),
                gather_grad=lambda: raw.reuse_tf_sparse_gather_grad(
                    rows[:, :1], ids[:1000, :1], 2**40
                ),
                scatter=lambda: raw.reuse_tf_sparse_scatter(
                    images[0, :, :, 0], [0], images[0, :1, :, 0]
                ),
                changed=lambda: raw.reuse_tf_changed_positions(
                    images, images, **window
                ),
                product=lambda: raw.reuse_tf_patch_product(
                    rows, ids, tf.tile(kernel, [1, 1, 1, 9000]), []
                ),
                pool=lambda: raw.reuse_tf_patch_pool(
                    tf.zeros([1, 2_000_000]),
                    tf.zeros([100, 1], tf.int32),
                    kind="max",
                ),
                content=lambda: raw.reuse_tf_content_product(
                    rows, pairs, tf.zeros([5, 16], tf.int32), positions
                ),
                runs=lambda: raw.reuse_tf_run_sum(values, runs, long),
            )
            for name, call in calls.items():
                refused(call, 64 * MB)
            got = raw.reuse_tf_sparse_gather(rows, ids[:2, :3])
            want = tf.reshape(tf.gather(rows, ids[:2, :3]), [2, -1])
            assert np.array_equal(got, want)
            print("done")
        """)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("reuse", ["content", "temporal"])
def test_steps_after_fork(reuse):
    """TensorFlow's threads are gone, and are not waited for."""
    run(f"""
        import os
        import signal

        model = keras.Sequential(
            [
                keras.Input((60, 60, 1)),
                L.Conv2D(40, 3, activation="relu"),
                L.Conv2D(40, 3, activation="relu"),
                L.Flatten(),
                L.Dense(64),
            ]
        )
        frames = rng.integers(0, 256, (3, 4, 60, 60, 1), np.uint8)
        want = [Runner(model, "{reuse}").step(f) for f in frames]
        warm, cold = Runner(model, "{reuse}"), Runner(model, "{reuse}")
        assert np.array_equal(warm.step(frames[0]), want[0])
        child = os.fork()
        if child == 0:
            signal.alarm(100)
            right = np.array_equal(warm.step(frames[1]), want[1])
            right &= np.array_equal(cold.step(frames[2]), want[2])
            os._exit(0 if right else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        assert np.array_equal(warm.step(frames[2]), want[2])
        print("done")
    """)


class TestSizes:
    """What none can have is refused at once, and takes no memory."""

    @pytest.mark.parametrize(
        "frames, line, what",
        [
            ("2147483647 2147483647 1 uint8", None, "height \\* width"),
            ("1 2147483647 1 uint8", None, "height \\* width"),
            ("8192 8192 2147483647 float", None, "channels"),
            (
                "8 8 1 uint8",
                "pool 0 max 2147483647 2147483647 1 1 1 1 1 1 SAME",
                "taps",
            ),
            (
                "8 8 1 float",
                "pool 0 max 2147483647 1 1 1 1 1 1 1 SAME",
                "taps",
            ),
            (
                "8 8 1 float",
                "pool 0 sum 1 1 1 1 1 1 2147483647 1 SAME",
                "up \\* height \\* width",
            ),
            (
                "8 8 1 float",
                "pool 0 sum 1 1 1 1 1 1 1 1 0,67108863,0,0",
                "height \\* width",
            ),
            (
                "8 8 1 float",
                "conv 0 3 3 1 1 1 1 1 1 SAME 2147483647 1 0 0",
                "height \\* width \\* channels",
            ),
            (
                "4096 4096 1 float",
                "conv 0 12 12 1 1 1 1 1 1 SAME 1 1 0 0",
                "taps \\* positions",
            ),
            (
                "4 4 67108864 float",
                "conv 0 4 4 4 4 1 1 1 1 VALID 2147483647 1 0 0",
                "taps \\* channels \\* filters",
            ),
            ("512 512 8000 float", "dense 0 2147483647 0", "inputs \\* units"),
        ],
    )
    def test_nodes(self, frames, line, what):
        refused = pytest.raises(
            tf.errors.InvalidArgumentError,
            match=f"nodes: cannot read .*: .*{what} must be at most",
        )
        lines = [f"frames {frames}", *([line] if line else [])]
        for finished in lines, [*lines, f"output {len(lines) - 1}"]:
            with refused:
                ops.new_runner_state(finished, [], "content", 0)
            with refused:
                ops.video_structure(
                    tf.zeros([0, 8, 8, 1]),
                    nodes=finished,
                    num_patches=1,
                    num_shown=1,
                    num_states=0,
                )

    @pytest.mark.parametrize("padding", ["same", "valid"])
    @pytest.mark.parametrize(
        "name", ["kernel_size", "strides", "dilation_rate"]
    )
    def test_windows(self, name, padding):
        """The work is that of the images, whatever the window is."""
        now, seen = (
            np.ones((2, 9, 70, 1), "uint8"),
            np.zeros((2, 9, 70, 1), "uint8"),
        )
        for others in {}, {"kernel_size": 2**31 - 1}, {"kernel_size": 3}:
            for huge in 2**31 - 1, (2**31 - 1, 1), (2, 2**31 - 1):
                positions, _ = changed_positions(
                    now, seen, padding=padding, **{**others, name: huge}
                )
                count = len(positions)
                assert np.array_equal(positions, np.arange(count))

    @pytest.mark.parametrize(
        "call",
        [
            lambda n: ops.sparse_gather(
                tf.zeros([0, n]), tf.zeros([0, n], tf.int32)
            ),
            lambda n: ops._ops.reuse_tf_sparse_gather_grad(
                tf.zeros([1, 2]), [[0]], 2**62
            ),
            lambda n: ops.patch_pool(
                tf.zeros([0, n]), tf.zeros([n, 0], tf.int32), kind="max"
            ),
            lambda n: ops._ops.reuse_tf_patch_pool_grad(
                tf.zeros([0, n]),
                tf.zeros([n, 0], tf.int32),
                tf.zeros([0, 0]),
                kind="max",
            ),
            lambda n: ops.content_product(
                tf.zeros([1, 0]),
                tf.zeros([0, 2], tf.int32),
                tf.zeros([n, 0], tf.int32),
                tf.zeros([1, 0, n]),
            ),
            lambda n: ops.incremental_dense(
                ops.incremental_state(id=1),
                tf.zeros([n, 0]),
                tf.zeros([0, n]),
                tf.zeros([0]),
                use_bias=False,
            ),
            lambda n: ops.patch_product(
                tf.zeros([1, 2]),
                [[0]],
                tf.zeros([1, 1, 2, 3]),
                [],
                groups=2**62 + 1,
            ),
            lambda n: ops.run_sum(
                [[1.0]], tf.zeros([0, 4], tf.int32), 2**31 - 1
            ),
            lambda n: ops.run_sum(
                tf.zeros([0, n]), tf.zeros([0, 4], tf.int32), [0]
            ),
        ],
    )
    def test_shapes(self, call):
        with pytest.raises(
            (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError)
        ):
            call(2**40)
