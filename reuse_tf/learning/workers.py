"""The processes that train together, on one machine or several.

Each of them plays a share of the environments. What they compute is what one
process would that plays them all: gradients are sums over all of them, made by
the all-reduce of `tf.distribute.MultiWorkerMirroredStrategy`, and every one
updates its own copy of the weights by them. Which processes there are is in the
environment variable `TF_CONFIG`, as everywhere in TensorFlow:

    {"cluster": {"worker": ["host:port", "host:port"]},
     "task": {"type": "worker", "index": 0}}

The first of them is the chief, which keeps the run.
"""

import contextlib
import errno
import functools
import json
import os
import select
import socket
import time
import zlib

import numpy as np
import tensorflow as tf

# How long to wait for the others to begin, in seconds.
_PATIENCE = 600.0
_MAGIC = "reuse_tf"
_READY = "ready?"
# Gradients of at least so many numbers are sent without rows and columns of
# zeros.
_LARGE = 1 << 16


class Alone:
    """The only process of a training, in the form of `Workers`.

    Attributes:
        index: Which of the processes this is, from 0.
        count: How many there are.
        sent: Bytes that this process has passed to `sum`, but for zeros.
    """

    index = 0
    count = 1
    sent = 0

    @property
    def is_chief(self):
        """Whether this process keeps the run."""
        return self.index == 0

    def share(self, total):
        """Returns the part of `range(total)` that is this process's.

        Raises:
            ValueError: If it is empty.
        """
        bounds = [total * i // self.count for i in range(self.count + 1)]
        if 0 in np.diff(bounds):
            raise ValueError(
                f"Expected `num_envs` to be at least 1 for each of the "
                f"{self.count} workers. Received: num_envs={total}"
            )
        return range(*bounds[self.index : self.index + 2])

    def gather(self, value):
        """Returns what every process has passed, in their order.

        Args:
            value: What JSON can hold.
        """
        return [value]

    def concatenate(self, array, axis):
        """Returns the arrays of all processes, one after the other.

        Args:
            array: A NumPy array, all of one type and of one shape but for
                `axis`.
            axis: Along which axis.
        """
        return array

    def from_chief(self, arrays):
        """Returns the NumPy arrays of the chief, bit for bit.

        Args:
            arrays: As many of the same shapes and types.
        """
        return arrays

    def sum(self, tensors):
        """Returns the sums over all processes of float32 tensors.

        They are the same in all of them, bit for bit.

        Args:
            tensors: A list, of the same shapes everywhere.
        """
        return tensors


class Workers(Alone):
    """Several processes that train together, of which this is one.

    All methods but `share` are to be called by all of them, in the same order.

    Args:
        strategy: A `tf.distribute.MultiWorkerMirroredStrategy`.
        index: See `Alone`.
        count: Likewise.

    Raises:
        WorkerLost: By all methods but `share`, if another process has ended or
            cannot be reached any more.
    """

    def __init__(self, strategy, index, count):
        self.index = index
        self.count = count
        self.sent = 0

        def sum_of(dtype):
            def all_reduce(flat):
                return tf.distribute.get_replica_context().all_reduce(
                    tf.distribute.ReduceOp.SUM, tf.identity(flat)
                )

            return tf.function(
                lambda flat: strategy.run(all_reduce, (flat,)),
                input_signature=[tf.TensorSpec([None], dtype)],
                autograph=False,
            )

        self._sum = {dtype: sum_of(dtype) for dtype in (tf.int32, tf.float32)}

    def gather(self, value):
        content = json.dumps(value).encode()
        return [json.loads(part) for part in self._gather(content)]

    def concatenate(self, array, axis):
        shape = [*array.shape]
        shape[axis] = -1
        return np.concatenate(
            [
                np.frombuffer(part, array.dtype).reshape(shape)
                for part in self._gather(array.tobytes())
            ],
            axis,
        )

    def from_chief(self, arrays):
        content = b"".join(array.tobytes() for array in arrays)
        # The others add nothing.
        content = self._gather(content if self.is_chief else b"")[0]
        ends = np.cumsum([array.nbytes for array in arrays])
        return [
            np.frombuffer(
                content, array.dtype, array.size, int(end) - array.nbytes
            ).reshape(array.shape)
            for array, end in zip(arrays, ends, strict=True)
        ]

    def sum(self, tensors):
        tables = [
            tensor.numpy().reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
            for tensor in tensors
        ]
        # Units that are off for all frames have gradients of zero, which are
        # most of a dense layer's.
        kept = self._kept([t for t in tables if t.size >= _LARGE])
        places = [next(kept) if t.size >= _LARGE else ... for t in tables]
        parts = [table[at] for table, at in zip(tables, places, strict=True)]
        flat = np.concatenate([part.reshape(-1) for part in parts])
        self.sent += flat.nbytes
        flat = self._all_reduce(flat).numpy()
        sums, begin = [], 0
        for tensor, table, part, at in zip(
            tensors, tables, parts, places, strict=True
        ):
            total = np.zeros(table.shape, np.float32)
            end = begin + part.size
            total[at] = flat[begin:end].reshape(part.shape)
            sums.append(tf.convert_to_tensor(total.reshape(tensor.shape)))
            begin = end
        return sums

    def _kept(self, tables):
        """Yields where tables have what is not zero in any process.

        It is an index of rows and columns, for each table.
        """
        masks = []
        for table in tables:
            shown = table != 0
            masks += [shown.any(1), shown.any(0)]
        if masks:
            flat = np.concatenate(masks).astype(np.int32)
            flat = self._all_reduce(flat).numpy() > 0
            masks = np.split(flat, np.cumsum([len(m) for m in masks])[:-1])
        for rows, columns in zip(masks[::2], masks[1::2], strict=True):
            yield np.ix_(rows, columns)

    def _gather(self, content):
        """Returns the bytes that every process has passed."""
        lengths = np.zeros(self.count, np.int32)
        lengths[self.index] = len(content)
        lengths = self._all_reduce(lengths).numpy().tolist()
        # Of whole numbers, each at its own place.
        sizes = [-(-length // 4) for length in lengths]
        begins = np.cumsum([0, *sizes])
        # One more, as there may be none at all.
        flat = np.zeros(begins[-1] + 1, np.int32)
        mine = flat.view(np.uint8)[4 * begins[self.index] :]
        mine[: len(content)] = np.frombuffer(content, np.uint8)
        everyones = self._all_reduce(flat).numpy().tobytes()
        return [
            everyones[4 * begin : 4 * begin + length]
            for begin, length in zip(begins[:-1].tolist(), lengths, strict=True)
        ]

    def _all_reduce(self, flat):
        flat = tf.convert_to_tensor(flat)
        try:
            return self._sum[flat.dtype](flat)
        except (
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
            tf.errors.FailedPreconditionError,
            tf.errors.InternalError,
            tf.errors.UnavailableError,
        ) as error:
            raise WorkerLost(
                "another worker has ended, or cannot be reached any more"
            ) from error


class WorkerLost(RuntimeError):
    """Another process of the training has ended, or cannot be reached."""


def checksum(model):
    """Returns a number that tells weights which are not the same, to the bit.

    Args:
        model: A Keras model.
    """
    number = 0
    for array in model.get_weights():
        number = zlib.crc32(array.tobytes(), number)
    return number


@functools.cache
def connect(patience=_PATIENCE):
    """Waits for all processes that train together.

    To be called before TensorFlow computes anything. A second call returns
    what the first one has.

    Args:
        patience: How long to wait for the others, in seconds.

    Returns:
        `Alone` if there is no `TF_CONFIG` or one of one task, and else
        `Workers`.

    Raises:
        ValueError: If `TF_CONFIG` is not as above, the port is taken, another
            process has the same index, or is of another version.
        WorkerLost: If the others do not come.
        RuntimeError: If TensorFlow has computed something.
    """
    config = os.environ.get("TF_CONFIG", "")
    if not config.strip():
        return Alone()
    addresses, index = _parse(config)
    if len(addresses) == 1:
        return Alone()
    _meet(addresses, index, time.monotonic() + patience)
    tf.get_logger().setLevel("WARNING")  # It tells how it is done.
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise WorkerLost(
            f"TensorFlow cannot connect the workers of TF_CONFIG: "
            f"{error.message}"
        ) from error
    return Workers(strategy, index, len(addresses))


def _parse(config):
    """Returns the addresses of all tasks, the chief's first, and an index."""
    form = (
        '{"cluster": {"worker": ["host:port", ...]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    try:
        values = json.loads(config)
        cluster, task = values["cluster"], values["task"]
        kind, index = task["type"], int(task["index"])
        if not set(cluster) <= {"chief", "worker"}:
            raise ValueError("tasks are `chief` or `worker`")
        before = 0 if kind == "chief" else len(cluster.get("chief", []))
        if not 0 <= index < len(cluster[kind]):
            raise ValueError(f"there is no {kind} of index {index}")
        addresses = [*cluster.get("chief", []), *cluster.get("worker", [])]
        for address in addresses:
            host, port = address.rsplit(":", 1)
            if not host or not 0 < int(port) < 2**16:
                raise ValueError(f"{address!r} is no host:port")
        if len(set(addresses)) < len(addresses):
            raise ValueError("two tasks have the same address")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"Expected TF_CONFIG of the form {form}. Received: "
            f"{config!r:.200}: {reason}"
        ) from error
    return addresses, before + index


def _meet(addresses, index, deadline):
    """Waits until all processes are there.

    TensorFlow's own wait for them holds the interpreter, and cannot be
    interrupted. So they first meet at the chief's port, before TensorFlow
    listens there.
    """
    name = f"worker {index} of {len(addresses)}"
    greeting = {"magic": _MAGIC, "versions": _versions(), "index": index}
    port = int(addresses[index].rsplit(":", 1)[1])
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_server(port))
        except OSError as error:
            raise ValueError(
                f"Cannot listen at port {port}, that of {name} in TF_CONFIG: "
                f"{error.strerror}"
            ) from error
        if index == 0:
            _receive(stack, server, len(addresses), greeting, deadline)
        else:
            _call(stack, addresses[0], greeting, deadline)


def _server(port):
    """Listens at a port, by IPv6 too where there is such."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True
            )
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    return socket.create_server(("", port))


def _receive(stack, server, count, greeting, deadline):
    """The chief waits for all others and lets them go on."""
    waiting = {}
    while len(waiting) < count - 1 or not _all_answer(waiting):
        sockets = [server, *waiting.values()]
        readable, _, _ = select.select(sockets, [], [], _left(deadline))
        if not readable:
            absent = sorted({*range(1, count)} - waiting.keys())
            raise WorkerLost(f"workers {absent} of TF_CONFIG did not come")
        for index, connection in list(waiting.items()):
            if connection in readable:  # It has nothing to say: it has ended.
                del waiting[index]
        if server not in readable:
            continue
        connection = stack.enter_context(server.accept()[0])
        try:
            connection.settimeout(5)
            with connection.makefile() as file:
                other = json.loads(file.readline())
            if other["magic"] != _MAGIC:
                raise ValueError
        except (KeyError, OSError, TypeError, ValueError):
            continue  # Somebody else has called.
        refused = None
        if other["versions"] != greeting["versions"]:
            refused = (
                f"it has {other['versions']}, the chief {greeting['versions']}"
            )
        elif other["index"] in waiting or not 0 < other["index"] < count:
            refused = "there is another one of this index"
        if refused:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(refused).encode() + b"\n")
            continue
        waiting[other["index"]] = connection
    for connection in waiting.values():
        with contextlib.suppress(OSError):
            connection.sendall(b"null\n")


def _all_answer(waiting):
    """Drops those that do not answer, for which TensorFlow waits for ever."""
    asked = list(waiting.items())
    for index, connection in asked:
        try:
            connection.sendall(json.dumps(_READY).encode() + b"\n")
            if connection.recv(1):
                continue
        except OSError:
            pass
        del waiting[index]
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    return len(waiting) == len(asked)


def _call(stack, address, greeting, deadline):
    """A worker tells the chief that it is there, and waits for the others."""
    host, port = address.rsplit(":", 1)
    while True:
        try:
            connection = socket.create_connection(
                (host.strip("[]"), int(port)), min(5.0, _left(deadline))
            )
            break
        except OSError as error:
            if _left(deadline) <= 0.01:
                raise WorkerLost(
                    f"the chief at {address} cannot be reached: "
                    f"{error.strerror or error}"
                ) from error
            time.sleep(0.1)
    stack.enter_context(connection)
    try:
        connection.settimeout(_left(deadline) + 5)  # The chief tells first.
        connection.sendall(json.dumps(greeting).encode() + b"\n")
        with connection.makefile() as file:
            while (refused := json.loads(file.readline())) == _READY:
                connection.sendall(b".")
    except (OSError, ValueError) as error:
        raise WorkerLost(
            f"the chief at {address} has ended while worker "
            f"{greeting['index']} waited for the others"
        ) from error
    if refused is not None:
        raise ValueError(
            f"The chief at {address} refuses worker {greeting['index']} of "
            f"TF_CONFIG: {refused}"
        )


def _left(deadline):
    return max(0.01, deadline - time.monotonic())


def _versions():
    import reuse_tf  # It has all been imported when this is called.

    return f"reuse_tf {reuse_tf.__version__}, TensorFlow {tf.__version__}"
