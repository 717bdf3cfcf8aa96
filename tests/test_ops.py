"""The public ops, against plain TensorFlow: eagerly, and in graphs whose
shapes are known or not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st

from reuse_tf import changed_positions, ops, sparse_gather, sparse_scatter

DTYPES = ["float16", "bfloat16", "float32", "float64", "uint8", "int32"]
# What TensorFlow raises while tracing, and what the kernels raise.
REFUSED = (tf.errors.InvalidArgumentError, ValueError, TypeError)


def _eager(function, *tensors):
    return function(*tensors)


def _graph(function, *tensors):
    return tf.function(function, autograph=False)(*tensors)


def _graph_of_unknown_shapes(function, *tensors):
    signature = [tf.TensorSpec(None, tensor.dtype) for tensor in tensors]
    return tf.function(function, input_signature=signature, autograph=False)(
        *tensors
    )


RUNS = [_eager, _graph, _graph_of_unknown_shapes]
runs = pytest.mark.parametrize(
    "run", RUNS, ids=["eager", "graph", "unknown shapes"]
)


def _random(shape, dtype="float32", seed=0):
    values = np.random.default_rng(seed).integers(0, 50, shape)
    return tf.cast(tf.constant(values), dtype)


def plain_gather(rows, patches):
    zero = tf.zeros_like(rows[:1]) if rows.shape[0] else 0 * rows
    if rows.shape[0] == 0:
        zero = tf.zeros([1, rows.shape[1]], rows.dtype)
    gathered = tf.gather(tf.concat([zero, rows], 0), patches + 1)
    return tf.reshape(
        gathered, [patches.shape[0], patches.shape[1] * rows.shape[1]]
    )


def plain_scatter(table, ids, rows):
    """Of equal ids the last one holds: those before are not scattered."""
    last = {int(id_): index for index, id_ in enumerate(ids.numpy())}
    order = tf.constant(list(last.values()), tf.int32)
    return tf.tensor_scatter_nd_update(
        table, tf.gather(ids, order)[:, None], tf.gather(rows, order)
    )


class TestSparseGather:
    @runs
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_equals_plain(self, run, dtype):
        rows = _random([5, 3], dtype)
        patches = tf.constant([[0, 4, -1], [-1, -1, -1], [2, 2, 1], [3, 0, 4]])
        got = run(sparse_gather, rows, patches)
        assert got.dtype == rows.dtype
        np.testing.assert_array_equal(
            tf.cast(got, "float64"),
            tf.cast(plain_gather(rows, patches), "float64"),
        )

    @given(st.data())
    def test_equals_plain_for_any_shape(self, data):
        count, width, patches, taps = (
            data.draw(st.integers(0, 5)) for _ in range(4)
        )
        rows = _random([count, width])
        ids = tf.constant(
            data.draw(
                st.lists(
                    st.integers(-1, count - 1),
                    min_size=patches * taps,
                    max_size=patches * taps,
                )
            ),
            tf.int32,
            [patches, taps],
        )
        want = plain_gather(rows, ids)
        for run in RUNS:
            got = run(sparse_gather, rows, ids)
            assert got.shape == want.shape
            np.testing.assert_array_equal(got, want)

    def test_large_enough_for_threads(self):
        rows = _random([3000, 37])
        ids = tf.constant(
            np.random.default_rng(1).integers(-1, 3000, [20000, 9]), tf.int32
        )
        np.testing.assert_array_equal(
            sparse_gather(rows, ids), plain_gather(rows, ids)
        )

    @runs
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_gradient(self, run, dtype):
        # Row 1 is in three patches, twice in one; row 3 is in none.
        patches = tf.constant([[0, 1, -1], [1, 1, 2]])
        rows = _random([4, 2], dtype) / 10

        def gradients(gather):
            def function(rows):
                with tf.GradientTape() as outer:
                    outer.watch(rows)
                    with tf.GradientTape() as tape:
                        tape.watch(rows)
                        loss = tf.reduce_sum(gather(rows, patches) ** 3)
                    # Plain TensorFlow's is sparse.
                    first = tf.convert_to_tensor(tape.gradient(loss, rows))
                    mixed = tf.reduce_sum(first * tf.sin(rows))
                return first, tf.convert_to_tensor(outer.gradient(mixed, rows))

            return function

        got = run(gradients(sparse_gather), rows)
        want = gradients(plain_gather)(rows)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
        np.testing.assert_allclose(got[1], want[1], rtol=1e-5)
        assert np.all(got[0][3] == 0)
        theory, numeric = tf.test.compute_gradient(
            lambda rows: sparse_gather(rows, patches),
            [tf.cast(rows, tf.float64)],
        )
        np.testing.assert_allclose(theory, numeric, rtol=1e-6, atol=1e-6)

    @runs
    @pytest.mark.parametrize(
        "rows, patches",
        [
            (tf.zeros([3, 2]), tf.constant([[3]])),
            (tf.zeros([3, 2]), tf.constant([[0, -2]])),
            (tf.zeros([3, 2]), tf.constant([[2**31 - 1]])),
            (tf.zeros([0, 2]), tf.constant([[0]])),
            (tf.zeros([3]), tf.constant([[0]])),
            (tf.zeros([3, 2, 1]), tf.constant([[0]])),
            (tf.zeros([3, 2]), tf.constant([0])),
            (tf.zeros([3, 2]), tf.constant(0)),
            (tf.zeros([3, 2]), tf.constant([[0.0]])),
            (tf.zeros([3, 2], tf.complex64), tf.constant([[0]])),
        ],
    )
    def test_refuses(self, run, rows, patches):
        with pytest.raises(REFUSED):
            run(sparse_gather, rows, patches)

    def test_gradient_op_refuses(self):
        grad = ops._ops.reuse_tf_sparse_gather_grad
        for args in [
            (tf.zeros([1, 2]), [[3]], 3),
            (tf.zeros([1, 2]), [[-2]], 3),
            (tf.zeros([1, 2]), [[0]], -1),
            (tf.zeros([1, 2]), [[0]], [3]),
            (tf.zeros([2, 2]), [[0]], 3),
            (tf.zeros([1, 3]), [[0, 0]], 3),
            (tf.zeros([1, 3]), tf.zeros([1, 0], tf.int32), 3),
            (tf.zeros([2]), [[0]], 3),
            (tf.zeros([1, 2]), [0], 3),
        ]:
            with pytest.raises(tf.errors.InvalidArgumentError):
                grad(*args)

    @pytest.mark.parametrize(
        "rows, patches, want",
        [
            (None, None, [None, None]),
            ([None, None], [None, None], [None, None]),
            ([None, 4], [None, 9], [None, 36]),
            ([7, None], [5, 9], [5, None]),
            ([7, 4], [5, 9], [5, 36]),
        ],
    )
    def test_static_shape(self, rows, patches, want):
        traced = tf.function(sparse_gather).get_concrete_function(
            tf.TensorSpec(rows, tf.float32), tf.TensorSpec(patches, tf.int32)
        )
        assert traced.outputs[0].shape.as_list() == want


class TestSparseScatter:
    @runs
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_equals_plain(self, run, dtype):
        table, rows = _random([5, 3], dtype), _random([4, 3], dtype, 1)
        ids = tf.constant([4, 0, 2, 0])
        got = run(sparse_scatter, table, ids, rows)
        assert got.dtype == table.dtype
        np.testing.assert_array_equal(
            tf.cast(got, "float64"),
            tf.cast(plain_scatter(table, ids, rows), "float64"),
        )

    @given(st.data())
    def test_equals_plain_for_any_shape(self, data):
        count, width = (data.draw(st.integers(1, 5)) for _ in range(2))
        ids = data.draw(st.lists(st.integers(0, count - 1), max_size=6))
        ids = tf.constant(ids, tf.int32)
        table = _random([count, width])
        rows = _random([ids.shape[0], width], seed=1)
        for run in RUNS:
            np.testing.assert_array_equal(
                run(sparse_scatter, table, ids, rows),
                plain_scatter(table, ids, rows),
            )

    @runs
    def test_gradient(self, run):
        table, rows = _random([5, 2]) / 10, _random([4, 2], seed=1) / 10
        ids = tf.constant([4, 0, 2, 0])  # one that is overwritten

        def gradients(scatter):
            def function(table, rows):
                with tf.GradientTape() as tape:
                    tape.watch([table, rows])
                    loss = tf.reduce_sum(scatter(table, ids, rows) ** 3)
                gradients = tape.gradient(loss, [table, rows])
                return [tf.convert_to_tensor(g) for g in gradients]

            return function

        got = run(gradients(sparse_scatter), table, rows)
        want = gradients(plain_scatter)(table, rows)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
        np.testing.assert_allclose(got[1], want[1], rtol=1e-6)
        theory, numeric = tf.test.compute_gradient(
            lambda table, rows: sparse_scatter(table, ids, rows),
            [tf.cast(table, tf.float64), tf.cast(rows, tf.float64)],
        )
        for a, b in zip(theory, numeric, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)

    def test_in_place_when_nobody_else_holds_the_table(self):
        def address(tensor):
            return tf.py_function(
                lambda t: np.asarray(t).ctypes.data, [tensor], tf.int64
            )

        @tf.function(autograph=False)
        def function(rows):
            table = tf.fill([1000, 16], tf.reduce_sum(rows))
            before = address(table)
            with tf.control_dependencies([before]):
                updated = sparse_scatter(table, tf.constant([3]), rows)
            return before, address(updated), updated

        before, after, updated = function(tf.ones([1, 16]))
        assert before == after
        want = np.full([1000, 16], 16)
        want[3] = 1
        np.testing.assert_array_equal(updated, want)

    @runs
    def test_a_table_that_is_held_is_not_written_to(self, run):
        ids, rows = tf.constant([1]), tf.ones([1, 16])
        table = tf.zeros([100, 16])

        def function(table, rows):
            own = table + 1
            updated = sparse_scatter(own, ids, rows * 5)
            with tf.control_dependencies([updated]):
                own = tf.identity(own)
            return sparse_scatter(table, ids, rows), updated, own

        first, second, own = run(function, table, rows)
        assert np.all(table == 0)
        assert np.all(own == 1)
        assert np.sum(first) == 16
        assert np.all(second[1] == 5)

    def test_neither_arrays_nor_variables_are_written_to(self):
        ids, rows = tf.constant([1]), np.ones([1, 16], "float32")
        array = np.zeros([1000, 16], "float32")
        sparse_scatter(array, ids, rows)
        assert np.all(array == 0)
        variable = tf.Variable(array)
        sparse_scatter(variable, ids, rows)
        tf.function(lambda: sparse_scatter(variable, ids, rows))()
        assert np.all(variable.numpy() == 0)

    @runs
    @pytest.mark.parametrize(
        "table, ids, rows",
        [
            (tf.zeros([3, 2]), tf.constant([3]), tf.zeros([1, 2])),
            (tf.zeros([3, 2]), tf.constant([-1]), tf.zeros([1, 2])),
            (tf.zeros([0, 2]), tf.constant([0]), tf.zeros([1, 2])),
            (tf.zeros([3, 2]), tf.constant([0, 1]), tf.zeros([1, 2])),
            (tf.zeros([3, 2]), tf.constant([0]), tf.zeros([2, 2])),
            (tf.zeros([3, 2]), tf.constant([0]), tf.zeros([1, 3])),
            (tf.zeros([3]), tf.constant([0]), tf.zeros([1])),
            (tf.zeros([3, 2, 1]), tf.constant([0]), tf.zeros([1, 2, 1])),
            (tf.zeros([3, 2]), tf.constant([[0]]), tf.zeros([1, 2])),
            (tf.zeros([3, 2]), tf.constant(0), tf.zeros([1, 2])),
            (tf.zeros([3, 2]), tf.constant([0]), tf.zeros([1, 2], tf.float64)),
            (tf.zeros([3, 2]), tf.constant([0.0]), tf.zeros([1, 2])),
        ],
    )
    def test_refuses(self, run, table, ids, rows):
        with pytest.raises(REFUSED):
            run(sparse_scatter, table, ids, rows)

    @pytest.mark.parametrize(
        "table, ids, rows, want",
        [
            (None, None, None, [None, None]),
            ([None, None], [None], [None, None], [None, None]),
            ([None, None], [None], [None, 4], [None, 4]),
            ([7, None], [3], [None, 4], [7, 4]),
            ([7, 4], [3], [3, 4], [7, 4]),
        ],
    )
    def test_static_shape(self, table, ids, rows, want):
        traced = tf.function(sparse_scatter).get_concrete_function(
            tf.TensorSpec(table, tf.float32),
            tf.TensorSpec(ids, tf.int32),
            tf.TensorSpec(rows, tf.float32),
        )
        assert traced.outputs[0].shape.as_list() == want


def _windows(changed, geometry):
    """The positions with a changed pixel in their patch, by TensorFlow's own
    patch extraction."""
    patches = tf.image.extract_patches(
        tf.cast(changed, tf.float32)[..., None],
        sizes=[1, *geometry["kernel_size"], 1],
        strides=[1, *geometry["strides"], 1],
        rates=[1, *geometry["dilation_rate"], 1],
        padding=geometry["padding"].upper(),
    )
    return np.flatnonzero(tf.reduce_any(patches > 0, -1))


def _bits(array):
    array = np.asarray(array)
    return array.view(np.uint32) if array.dtype == np.float32 else array


@st.composite
def windows(draw):
    """A geometry, and the height and width of an input."""
    pair = st.tuples(st.integers(1, 5), st.integers(1, 5))
    small = st.tuples(st.integers(1, 3), st.integers(1, 3))
    geometry = {
        "kernel_size": draw(pair),
        "strides": draw(small),
        "dilation_rate": draw(small),
        "padding": draw(st.sampled_from(["same", "valid"])),
    }
    height = draw(st.integers(1, 12))
    width = draw(st.one_of(st.integers(1, 12), st.integers(60, 70)))
    if geometry["padding"] == "valid":
        for size, kernel, rate in zip(
            (height, width),
            geometry["kernel_size"],
            geometry["dilation_rate"],
            strict=True,
        ):
            assume(size >= (kernel - 1) * rate + 1)
    return geometry, height, width


class TestChangedPositions:
    @given(
        windows(),
        st.integers(1, 3),
        st.integers(1, 3),
        st.sampled_from(["float32", "uint8"]),
        st.sampled_from([0.0, 0.0, 2.5]),
        st.integers(0, 2**32),
    )
    def test_equals_plain(self, window, images, channels, dtype, limit, seed):
        geometry, height, width = window
        rng = np.random.default_rng(seed)
        shape = [images, height, width, channels]
        seen = rng.integers(0, 9, shape).astype(dtype)
        inputs = seen.copy()
        few = rng.random(shape) < rng.choice([0, 0.002, 0.02, 0.5])
        inputs[few] = rng.integers(0, 9, shape).astype(dtype)[few]
        if dtype == "float32" and rng.random() < 0.5:
            inputs[rng.random(shape) < 0.01] = np.nan
            seen[rng.random(shape) < 0.01] = np.inf
        if rng.random() < 0.5:
            inputs[0, -1, -1, -1] = 11
        if limit == 0:
            changed = np.any(_bits(inputs) != _bits(seen), -1)
        else:
            a, b = inputs.astype("float64"), seen.astype("float64")
            with np.errstate(invalid="ignore"):
                changed = np.any((a != b) & ~(abs(a - b) <= limit), -1)
        want_seen = np.where(changed[..., None], inputs, seen)
        want = _windows(changed, geometry)
        for run in RUNS:
            got, got_seen = run(
                lambda *args: changed_positions(
                    *args, threshold=limit, **geometry
                ),
                tf.constant(inputs),
                tf.constant(seen),
            )
            assert got.dtype == tf.int32
            np.testing.assert_array_equal(got, want)
            np.testing.assert_array_equal(_bits(got_seen), _bits(want_seen))

    def test_compares_bits(self):
        other_nan = np.uint32(0x7FC00001).view(np.float32)
        seen = np.array([np.nan, np.nan, 0.0, np.inf, 1.0], "float32")
        inputs = np.array([np.nan, other_nan, -0.0, np.inf, 1.0], "float32")
        inputs, seen = inputs.reshape(1, 1, 5, 1), seen.reshape(1, 1, 5, 1)
        positions, _ = changed_positions(inputs, seen, kernel_size=1)
        assert positions.numpy().tolist() == [1, 2]

    @pytest.mark.parametrize("others", [0, 1])
    def test_nan_always_changes_under_a_threshold(self, others):
        seen = np.zeros([1, 1, 8, 1], "float32")
        seen[0, 0, :3, 0] = np.nan, np.nan, np.inf
        inputs = seen.copy()
        inputs[0, 0, 1:, 0] = [0, np.inf, -0.0, 0.5, 0.6, 0, 0]
        # Whether or not something else changed nearby.
        inputs[0, 0, 7] = others
        positions, now = changed_positions(
            inputs, seen, kernel_size=1, threshold=0.5
        )
        want = [0, 1, 5] + [7] * others
        assert positions.numpy().tolist() == want
        assert now[0, 0, 4] == 0
        assert now[0, 0, 5] == np.float32(0.6)
        # Not even if nothing else changed at all.
        seen = np.full([1, 1, 70, 1], np.nan, "float32")
        positions, _ = changed_positions(
            seen, seen, kernel_size=1, threshold=0.5
        )
        assert positions.numpy().tolist() == list(range(70))

    @given(st.sampled_from([0.1, 0.5]), st.integers(0, 2**32))
    def test_what_is_remembered_stays_within_the_threshold(self, limit, seed):
        rng = np.random.default_rng(seed)
        inputs = rng.random([2, 5, 6, 2]).astype("float32")
        seen = tf.constant(inputs)
        moved = 0
        for _ in range(60):
            inputs = inputs + rng.uniform(0, limit / 4, inputs.shape)
            inputs = inputs.astype("float32")
            positions, seen = changed_positions(
                inputs, seen, kernel_size=1, threshold=limit
            )
            moved += positions.shape[0]
            assert np.max(np.abs(seen - inputs)) <= limit
        assert 0 < moved < 60 * 60  # neither all nor none

    def test_seen_is_not_written_to(self):
        seen = tf.zeros([1, 8, 8, 1])
        array = np.zeros([1, 8, 8, 1], "float32")
        changed_positions(tf.ones([1, 8, 8, 1]), seen)
        changed_positions(np.ones([1, 8, 8, 1], "float32"), array)
        assert np.all(seen == 0)
        assert np.all(array == 0)

    def test_empty_inputs(self):
        for shape in [0, 4, 4, 1], [1, 0, 4, 1], [1, 4, 0, 1], [1, 4, 4, 0]:
            positions, seen = changed_positions(tf.ones(shape), tf.zeros(shape))
            assert positions.shape == [0]
            assert seen.shape == shape

    @runs
    @pytest.mark.parametrize(
        "inputs, seen, arguments",
        [
            (tf.zeros([4, 4, 1]), tf.zeros([4, 4, 1]), {}),
            (tf.zeros([1, 4, 4, 1]), tf.zeros([1, 4, 4, 2]), {}),
            (tf.zeros([1, 4, 4, 1]), tf.zeros([2, 4, 4, 1]), {}),
            (tf.zeros([1, 4, 4, 1]), tf.zeros([4, 4, 1]), {}),
            (tf.zeros([1, 4, 4, 1]), tf.zeros([1, 4, 4, 1], tf.uint8), {}),
            (*[tf.zeros([1, 4, 4, 1], tf.float64)] * 2, {}),
            (*[tf.zeros([1, 4, 4, 1])] * 2, {"kernel_size": 0}),
            (*[tf.zeros([1, 4, 4, 1])] * 2, {"kernel_size": (3, -1)}),
            (*[tf.zeros([1, 4, 4, 1])] * 2, {"kernel_size": (3, 3, 3)}),
            (*[tf.zeros([1, 4, 4, 1])] * 2, {"strides": 0}),
            (*[tf.zeros([1, 4, 4, 1])] * 2, {"strides": (1, 1.5)}),
            (*[tf.zeros([1, 4, 4, 1])] * 2, {"dilation_rate": ()}),
            (*[tf.zeros([1, 4, 4, 1])] * 2, {"padding": "causal"}),
            (*[tf.zeros([1, 4, 4, 1])] * 2, {"threshold": -1.0}),
            (*[tf.zeros([1, 4, 4, 1])] * 2, {"threshold": float("nan")}),
            (*[tf.zeros([1, 4, 4, 1])] * 2, {"threshold": float("inf")}),
        ],
    )
    def test_refuses(self, run, inputs, seen, arguments):
        with pytest.raises(REFUSED):
            run(
                lambda *args: changed_positions(*args, **arguments),
                inputs,
                seen,
            )

    def test_arrays_are_not_cut_off(self):
        frames = np.zeros([1, 4, 4, 1], np.uint8)
        with pytest.raises(ValueError, match="`seen` to be uint8.*float32"):
            changed_positions(frames, np.full(frames.shape, 0.5, np.float32))
        table = np.zeros([2, 1], np.uint8)
        for run in lambda f: f, tf.function:
            for rows in np.int32([[300]]), [[1.7]], [[300]]:
                with pytest.raises(ValueError, match="`rows` to be uint8"):
                    run(sparse_scatter)(table, [0], rows)
            got = run(lambda: sparse_scatter(table, [0], [[200]]))()
            np.testing.assert_array_equal(got, [[200], [0]])
        scattered = sparse_scatter(np.zeros([2, 1], "f"), [0], np.ones([1, 1]))
        assert scattered.dtype == tf.float32

    def test_no_gradient(self):
        frames = tf.ones([1, 4, 4, 1])
        with tf.GradientTape() as tape:
            tape.watch(frames)
            _, seen = changed_positions(frames, tf.zeros_like(frames))
        assert tape.gradient(seen, frames) is None

    @pytest.mark.parametrize(
        "inputs, seen, want",
        [
            (None, None, None),
            ([None] * 4, None, [None] * 4),
            ([None, 5, None, 1], [2, None, None, None], [2, 5, None, 1]),
            ([2, 5, 6, 1], [2, 5, 6, 1], [2, 5, 6, 1]),
        ],
    )
    def test_static_shape(self, inputs, seen, want):
        traced = tf.function(changed_positions).get_concrete_function(
            tf.TensorSpec(inputs, tf.float32), tf.TensorSpec(seen, tf.float32)
        )
        positions, seen_now = traced.outputs
        assert positions.shape.as_list() == [None]
        assert seen_now.shape.as_list() == (want or [None] * 4)


class TestIds:
    """Ids of any integer type are the numbers that they are, or refused."""

    TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"]
    FAR = [2**31, 2**32, 2**32 + 1, 2**63 - 1, -(2**32), -(2**32) + 1, -(2**63)]

    @runs
    @pytest.mark.parametrize("dtype", TYPES)
    def test_of_every_type(self, run, dtype):
        rows, new = _random([5, 3]), _random([2, 3], seed=1)
        patches, ids = np.array([[0, 4], [2, 2]]), np.array([3, 0])
        np.testing.assert_array_equal(
            run(sparse_gather, rows, tf.constant(patches, dtype)),
            plain_gather(rows, tf.constant(patches, tf.int32)),
        )
        np.testing.assert_array_equal(
            run(sparse_scatter, rows, tf.constant(ids, dtype), new),
            plain_scatter(rows, tf.constant(ids, tf.int32), new),
        )

    @pytest.mark.parametrize("dtype", TYPES)
    def test_arrays_and_lists(self, dtype):
        rows, new = _random([5, 3]), _random([2, 3], seed=1)
        array = np.array([3, 0], dtype)
        want = plain_scatter(rows, tf.constant([3, 0]), new)
        for ids in array, list(array), array.tolist(), tuple(array):
            np.testing.assert_array_equal(sparse_scatter(rows, ids, new), want)
            np.testing.assert_array_equal(
                sparse_gather(rows, [ids]),
                plain_gather(rows, tf.constant([[3, 0]])),
            )

    def test_none_at_all(self):
        rows = _random([5, 3])
        empty = np.zeros([0, 3], "float32")
        np.testing.assert_array_equal(sparse_scatter(rows, [], empty), rows)
        assert sparse_gather(rows, [[], []]).shape == [2, 0]

    @runs
    def test_of_a_graph_in_a_list(self, run):
        def gather(rows, row):
            return sparse_gather(rows, [[row, -1]])

        np.testing.assert_array_equal(
            run(gather, _random([5, 3]), tf.constant(4)),
            plain_gather(_random([5, 3]), tf.constant([[4, -1]])),
        )

    @runs
    @pytest.mark.parametrize("far", FAR)
    def test_far_ones_are_refused(self, run, far):
        rows = tf.zeros([5, 3])
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            run(sparse_gather, rows, tf.constant([[0, far]], tf.int64))
        assert f"patches must lie in [-1, 5), got {far}" in str(error.value)
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            run(
                sparse_scatter,
                rows,
                tf.constant([0, far], tf.int64),
                tf.zeros([2, 3]),
            )
        assert f"ids must lie in [0, 5), got {far}" in str(error.value)

    @pytest.mark.parametrize("far", [*FAR, 2**63, 2**64, 2**64 - 1, -(2**64)])
    def test_far_integers_are_refused(self, far):
        rows = tf.zeros([5, 3])
        with pytest.raises(REFUSED, match="patches"):
            sparse_gather(rows, [[0, far]])
        with pytest.raises(REFUSED, match="ids"):
            sparse_scatter(rows, [far], tf.zeros([1, 3]))

    @pytest.mark.parametrize(
        "ids",
        [
            [True],
            [1.0],
            ["a"],
            None,
            np.array([2**64 - 1], "uint64"),
            np.array([1], "uint64"),
            np.array([1.0]),
            np.array([True]),
        ],
    )
    def test_what_is_no_integer_is_refused(self, ids):
        with pytest.raises(ValueError, match="`patches` to be integers"):
            sparse_gather(tf.zeros([5, 3]), ids)
        with pytest.raises(ValueError, match="`ids` to be integers"):
            sparse_scatter(tf.zeros([5, 3]), ids, tf.zeros([1, 3]))

    @runs
    def test_gradients_through_int64(self, run):
        rows, new = _random([4, 2]) / 10, _random([3, 2], seed=1) / 10
        patches = np.array([[0, 1, -1], [1, 1, 2]])
        ids = np.array([2, 0, 2])

        def gradients(dtype):
            def function(rows, new):
                with tf.GradientTape() as outer:
                    outer.watch([rows, new])
                    with tf.GradientTape() as tape:
                        tape.watch([rows, new])
                        table = sparse_scatter(
                            rows, tf.constant(ids, dtype), new
                        )
                        gathered = sparse_gather(
                            table, tf.constant(patches, dtype)
                        )
                        loss = tf.reduce_sum(gathered**3)
                    first = tape.gradient(loss, [rows, new])
                    mixed = tf.add_n([tf.reduce_sum(g**2) for g in first])
                return *first, *outer.gradient(mixed, [rows, new])

            return function

        got = run(gradients(tf.int64), rows, new)
        want = gradients(tf.int32)(rows, new)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.any(a != 0)


class TestIntegers:
    """Integers of NumPy are integers; bools are none."""

    ARGUMENTS = ["kernel_size", "strides", "dilation_rate"]

    @pytest.mark.parametrize("name", ARGUMENTS)
    @pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8, np.array])
    def test_of_numpy(self, name, kind):
        inputs, seen = _random([1, 6, 7, 1]), _random([1, 6, 7, 1], seed=1)
        for value in kind(2), (kind(2), kind(1)), [2, kind(2)]:
            want = np.broadcast_to(np.array(value, int), 2).tolist()
            np.testing.assert_array_equal(
                changed_positions(inputs, seen, **{name: value})[0],
                changed_positions(inputs, seen, **{name: want})[0],
            )
        np.testing.assert_array_equal(
            changed_positions(inputs, seen, **{name: np.array([2, 1])})[0],
            changed_positions(inputs, seen, **{name: (2, 1)})[0],
        )

    @pytest.mark.parametrize("name", ARGUMENTS)
    @pytest.mark.parametrize(
        "value",
        [
            True,
            np.True_,
            (1, True),
            [np.True_, 2],
            np.array([True, True]),
            1.0,
            np.float32(1),
            (1, 1.0),
            "1",
            "11",
            None,
            {},
            0,
            -1,
            np.int64(0),
            2**31,
            np.int64(2**32 + 1),
            (1, 2, 3),
            [[1, 2]],
        ],
    )
    def test_others_are_named(self, name, value):
        inputs = tf.zeros([1, 4, 4, 1])
        with pytest.raises(ValueError, match=f"`{name}`.*Received: {name}="):
            changed_positions(inputs, inputs, **{name: value})


CONV = {
    "strides": [1, 1],
    "dilations": [1, 1],
    "padding": "SAME",
}


class TestLayerOps:
    """The ops under the layers; what they compute is tested with these."""

    @runs
    @pytest.mark.parametrize(
        "shapes, attributes",
        [
            (([4, 4, 2], [3, 3, 2, 5], [5]), {}),
            (([1, 4, 4, 2], [3, 2, 5], [5]), {}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [5, 1]), {}),
            (([1, 4, 4, 2], [3, 3, 2, 5], []), {}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [4]), {}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [0]), {}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [5]), {"use_bias": False}),
            (([1, 4, 4, 3], [3, 3, 2, 5], [5]), {}),
            (([1, 4, 4, 2], [0, 3, 2, 5], [5]), {}),
            (([1, 4, 4, 4], [3, 3, 2, 5], [5]), {"groups": 2}),
            (([1, 4, 4, 3], [3, 3, 2, 4], [4]), {"groups": 2}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [5]), {"groups": 0}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [5]), {"strides": [1, 0]}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [5]), {"strides": [1, 1, 1]}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [5]), {"strides": [1]}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [5]), {"dilations": [-1, 1]}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [5]), {"padding": "same"}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [5]), {"activation": "sparsemax"}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [5]), {"threshold": -0.5}),
            (([1, 4, 4, 2], [3, 3, 2, 5], [5]), {"threshold": float("nan")}),
        ],
    )
    def test_conv2d_refuses(self, run, shapes, attributes):
        state = ops.incremental_state(id=1)

        def function(*tensors):
            return ops.incremental_conv2d(
                state, *tensors, **{**CONV, **attributes}
            )

        with pytest.raises(REFUSED):
            run(function, *[tf.zeros(shape) for shape in shapes])
        # The state is as good as new.
        inputs = tf.ones([1, 4, 4, 2])
        outputs = ops.incremental_conv2d(
            state, inputs, tf.ones([1, 1, 2, 3]), tf.zeros([3]), **CONV
        )
        assert np.all(outputs == 2)

    @runs
    @pytest.mark.parametrize(
        "shapes, attributes",
        [
            (([4], [4, 5], [5]), {}),
            (([2, 3, 4], [4, 5], [5]), {}),
            (([2, 4], [4, 5, 1], [5]), {}),
            (([2, 4], [5, 5], [5]), {}),
            (([2, 4], [4, 5], [4]), {}),
            (([2, 4], [4, 5], [1, 5]), {}),
            (([2, 4], [4, 5], [5]), {"use_bias": False}),
            (([2, 4], [4, 5], [5]), {"activation": "swish"}),
        ],
    )
    def test_dense_refuses(self, run, shapes, attributes):
        state = ops.incremental_state(id=1)

        def function(*tensors):
            return ops.incremental_dense(state, *tensors, **attributes)

        with pytest.raises(REFUSED):
            run(function, *[tf.zeros(shape) for shape in shapes])

    def test_only_floats(self):
        state = ops.incremental_state(id=1)
        for dtype in "float64", "uint8", "float16":
            with pytest.raises(REFUSED):
                ops.incremental_dense(
                    state,
                    tf.zeros([2, 4], dtype),
                    tf.zeros([4, 5], dtype),
                    tf.zeros([5], dtype),
                )

    def test_other_resources_are_refused(self):
        handle = tf.Variable(1.0).handle
        weights = tf.zeros([4, 5]), tf.zeros([5])
        for call in [
            lambda: ops.incremental_dense(handle, tf.zeros([2, 4]), *weights),
            lambda: ops.reset_state(handle),
            lambda: ops.state_stats(handle),
        ]:
            with pytest.raises(REFUSED):
                call()

    def test_one_state_used_for_everything_is_still_right(self):
        """Sharing a state costs speed, never correctness."""
        state = ops.incremental_state(id=1)
        rng = np.random.default_rng(0)
        image = rng.normal(size=[1, 6, 6, 4]).astype("float32")
        kernel = rng.normal(size=[2, 2, 4, 4]).astype("float32")
        matrix = rng.normal(size=[4, 4]).astype("float32")
        zeros = tf.zeros([4])
        for _ in range(2):
            for strides in [1, 1], [2, 1], [2, 2]:
                for activation in "linear", "relu":
                    got = ops.incremental_conv2d(
                        state,
                        image,
                        kernel,
                        zeros,
                        **{**CONV, "strides": strides},
                        activation=activation,
                    )
                    want = tf.nn.conv2d(image, kernel, strides, "SAME")
                    want = keras.activations.get(activation)(want)
                    np.testing.assert_allclose(got, want, atol=1e-5)
            got = ops.incremental_dense(state, image[0, 0], matrix, zeros)
            np.testing.assert_allclose(got, image[0, 0] @ matrix, atol=1e-5)

    @pytest.mark.parametrize(
        "inputs, kernel, want",
        [
            (None, None, [None] * 4),
            ([None] * 4, [3, 3, 2, 5], [None, None, None, 5]),
            ([2, None, 9, 2], [3, 3, 2, 5], [2, None, 4, 5]),
            ([2, 8, 9, 2], [None, 3, 2, 5], [2, None, 4, 5]),
            ([2, 8, 9, None], [3, 3, None, None], [2, 6, 4, None]),
            ([2, 8, 9, 2], [3, 3, 2, 5], [2, 6, 4, 5]),
        ],
    )
    def test_conv2d_static_shape(self, inputs, kernel, want):
        state = ops.incremental_state(id=1)
        traced = tf.function(
            lambda *args: ops.incremental_conv2d(
                state,
                *args,
                strides=[1, 2],
                dilations=[1, 1],
                padding="VALID",
            )
        ).get_concrete_function(
            tf.TensorSpec(inputs, tf.float32),
            tf.TensorSpec(kernel, tf.float32),
            tf.TensorSpec(None, tf.float32),
        )
        assert traced.outputs[0].shape.as_list() == want

    @pytest.mark.parametrize(
        "inputs, kernel, want",
        [
            (None, None, [None, None]),
            ([None, None], [None, 5], [None, 5]),
            ([2, None], [4, None], [2, None]),
            ([2, 4], [4, 5], [2, 5]),
        ],
    )
    def test_dense_static_shape(self, inputs, kernel, want):
        state = ops.incremental_state(id=1)
        traced = tf.function(
            lambda *args: ops.incremental_dense(state, *args)
        ).get_concrete_function(
            tf.TensorSpec(inputs, tf.float32),
            tf.TensorSpec(kernel, tf.float32),
            tf.TensorSpec(None, tf.float32),
        )
        assert traced.outputs[0].shape.as_list() == want

    def test_states_are_freed_with_their_handles(self):
        state = ops.incremental_state(id=1)
        ops.incremental_dense(
            state, tf.ones([2, 4]), tf.ones([4, 5]), tf.zeros([5])
        )
        assert ops.state_stats(state).numpy()[0] == 2
        ops.reset_state(state)
        assert ops.state_stats(state).numpy().tolist() == [0] * 5
