"""Training by several processes, on the loopback address."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from catch import Catch
from children import LONG, environment, in_threads, run, started

from reuse_tf.learning import environments, workers
from reuse_tf.learning.ppo import PPO
from reuse_tf.learning.settings import Settings, saved_settings
from reuse_tf.policies import Sampler, run_directory

TRAIN = os.path.join(os.path.dirname(__file__), os.pardir, "train.py")
# Small: an update takes some hundredths of a second.
FLAGS = (
    *("--algorithm=ppo", "--game=Pong", "--preprocessing=paper"),
    *("--network=paper", "--filters=4,8", "--downsample=4", "--num_envs=5"),
    *("--num_steps=16", "--minibatches=2", "--epochs=2"),
    "--checkpoint_seconds=0",
)


def free_ports(count):
    """Returns ports that nobody uses now."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("", 0)))
            for _ in range(count)
        ]
        return [server.getsockname()[1] for server in servers]


def config(ports, index, host="localhost"):
    return json.dumps(
        {
            "cluster": {"worker": [f"{host}:{port}" for port in ports]},
            "task": {"type": "worker", "index": index},
        }
    )


@contextlib.contextmanager
def training(count, run_dir, *flags, each=lambda index: ()):
    """Starts so many workers; yields their processes, the chief's first."""
    ports = free_ports(count)
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                started(
                    *(sys.executable, TRAIN, *FLAGS, *flags, *each(index)),
                    *([f"--run_dir={run_dir}"] if index == 0 else []),
                    stderr=-1,
                    stdout=-3,
                    encoding="utf-8",
                    env=environment(TF_CONFIG=config(ports, index)),
                )
            )
            for index in range(count)
        ]


def ends(processes, within=LONG):
    """Returns the exit codes and the last lines of the standard errors."""
    found = []
    for process in processes:
        _, errors = process.communicate(timeout=within)
        lines = [line for line in errors.splitlines() if "train.py" in line]
        found.append((process.returncode, lines))
    return found


def trained(run_dir):
    """Returns the weights of a run, and the rest of its state."""
    policy = run_directory.newest_policy(run_dir)
    state = json.loads((policy.parent / run_directory.STATE).read_bytes())
    counted = {k: state["progress"][k] for k in ("steps", "updates")}
    weights = keras.models.load_model(policy).get_weights()
    return weights, [counted, state["actions"], state["environments"]]


def test_workers_do_what_one_process_does(tmp_path):
    """However many they are, and if a run goes on with another number."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    flags = "--noanneal", "--seed=3"
    done = run(
        *(sys.executable, TRAIN, *FLAGS, *flags, "--steps=800"),
        f"--run_dir={alone}",
    )
    assert done.returncode == 0, done.stderr
    for count, steps in ((3, 480), (2, 800)):
        with training(count, together, *flags, f"--steps={steps}") as processes:
            assert ends(processes) == [(0, [])] * count
        assert trained(together)[1][0]["steps"] == steps
    (a, state_a), (b, state_b) = trained(alone), trained(together)
    # The same actions and games, and the same weights to rounding.
    assert state_a == state_b
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)
    begun = trained_at_first(alone)
    moved = [np.abs(x - y).max() for x, y in zip(a, begun, strict=True)]
    assert max(moved) > 1e-4


def trained_at_first(run_dir):
    """The weights that a run of the seed of another one begins with."""
    ppo = PPO(Settings(**saved_settings(run_dir)))
    with contextlib.closing(ppo):
        ppo.build()
        return ppo.learner.model.get_weights()


@pytest.mark.parametrize(
    ("victim", "number"), [(0, signal.SIGSTOP), (1, signal.SIGKILL)]
)
def test_a_worker_that_dies_ends_the_others(victim, number, tmp_path):
    """Or that does not answer any more, which is what SIGSTOP makes it do."""
    with training(2, tmp_path, "--steps=1000000") as processes:
        wait_for_updates(tmp_path, processes, 2)
        processes[victim].send_signal(number)
        begin = time.monotonic()
        ((code, lines),) = ends([processes[1 - victim]], within=60)
        assert time.monotonic() - begin < 60
    assert code == 1
    assert len(lines) == 1
    assert "another worker has ended" in lines[0]
    if victim == 0:
        return
    # What the chief has kept is whole.
    before = trained(tmp_path)[1][0]["steps"]
    with training(2, tmp_path, f"--steps={before + 160}") as processes:
        assert ends(processes) == [(0, [])] * 2
    assert trained(tmp_path)[1][0]["steps"] == before + 160


def wait_for_updates(run_dir, processes, count):
    end = time.monotonic() + LONG
    while True:
        with contextlib.suppress(ValueError):
            name = run_directory.newest_policy(run_dir).parent.name
            if int(name.split("-")[1]) >= count:
                return
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < end, "It takes too long."
        time.sleep(0.05)


@pytest.mark.parametrize("victim", [0, 1])
def test_ctrl_c_of_one_ends_all_between_updates(victim, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    with training(2, together, "--steps=1000000", "--noanneal") as processes:
        wait_for_updates(together, processes, 2)
        processes[victim].send_signal(signal.SIGINT)
        for code, lines in ends(processes, within=60):
            assert code == 1
            assert len(lines) == 1
            assert "interrupted" in lines[0]
    if victim == 1:
        return
    stopped = trained(together)
    # It goes on as if it had not been stopped.
    flags = f"--steps={stopped[1][0]['steps'] + 160}", "--noanneal"
    with training(2, together, *flags) as processes:
        assert ends(processes) == [(0, [])] * 2
    with training(2, alone, *flags) as processes:
        assert ends(processes) == [(0, [])] * 2
    (a, state_a), (b, state_b) = trained(alone), trained(together)
    assert state_a == state_b
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_other_flags_are_one_line(tmp_path):
    def each(index):
        return () if index == 0 else ("--clip=0.3",)

    with training(2, tmp_path, "--steps=100", each=each) as processes:
        found = ends(processes)
    for code, lines in found:
        assert code == 1
        assert lines == [
            "train.py: Expected --clip=0.1, as the chief has. Received: "
            "--clip=0.3 of worker 1"
        ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "Expecting value"),
        ("{}", "no 'cluster'"),
        (config([1, 2], 2), "there is no worker of index 2"),
        (config([1, 70000], 0), "is no host:port"),
        (config([1, 1], 0), "two tasks have the same address"),
        (config([1, 2], 0).replace("worker", "ps"), "`chief` or `worker`"),
    ],
)
def test_tf_config_that_is_none(text, reason, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="Expected TF_CONFIG") as error:
        workers.connect.__wrapped__()
    assert reason in str(error.value)


@pytest.mark.parametrize("text", ["", config([23456], 0)])
def test_one_worker_is_alone(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    team = workers.connect.__wrapped__()
    assert (team.index, team.count, team.is_chief) == (0, 1, True)
    assert team.share(3) == range(3)
    assert team.gather({"a": 1}) == [{"a": 1}]


@pytest.mark.parametrize(("total", "count"), [(5, 1), (5, 2), (8, 3), (3, 3)])
def test_shares_are_a_partition(total, count):
    shares = []
    for index in range(count):
        team = workers.Alone()
        team.index, team.count = index, count
        shares.append(team.share(total))
    assert [number for share in shares for number in share] == [*range(total)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    team.count = total + 1
    with pytest.raises(ValueError, match=f"num_envs={total}"):
        team.share(total)


def test_a_taken_port(monkeypatch):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("TF_CONFIG", config([port, *free_ports(1)], 0))
        with pytest.raises(ValueError, match=f"Cannot listen at port {port}"):
            workers.connect.__wrapped__()


@pytest.mark.parametrize("index", [0, 1])
def test_others_that_do_not_come(index, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(free_ports(2), index))
    match = "did not come" if index == 0 else "cannot be reached"
    with pytest.raises(workers.WorkerLost, match=match):
        workers.connect.__wrapped__(patience=0.5)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6")
@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1", "localhost"])
def test_they_meet_by_any_address(host):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6")
    addresses = [f"{host}:{port}" for port in free_ports(2)]
    in_threads(
        lambda index: workers._meet(addresses, index, time.monotonic() + 30),
        [0],
        [1],
    )


def test_the_chief_takes_each_worker_once():
    """Also where strangers call, or one twice, or one that has ended."""
    addresses = [f"localhost:{port}" for port in free_ports(3)]
    meet, errors = meeting(addresses, 30)
    chief = threading.Thread(target=meet, args=(0,))
    chief.start()
    address = ("localhost", int(addresses[0].split(":")[1]))
    for said in (b"GET / HTTP/1.1\r\n", b"{}\n", b"7\n"):
        with connected(address) as stranger:
            stranger.sendall(said)
    other = {"magic": "reuse_tf", "versions": "older", "index": 1}
    assert "older" in answer(address, other)
    same = {"magic": "reuse_tf", "versions": workers._versions(), "index": 1}
    with connected(address) as first:
        first.sendall(json.dumps(same).encode() + b"\n")
        meet(1)
        assert len(errors) == 1
        assert "another one" in errors[0]
    # That one has ended: the chief forgets it.
    first = threading.Thread(target=meet, args=(1,))
    first.start()
    meet(2)
    chief.join(30)
    first.join(30)
    assert not chief.is_alive()
    assert not first.is_alive()
    assert len(errors) == 1


def test_a_worker_that_does_not_answer_is_not_waited_for_by_tensorflow():
    addresses = [f"localhost:{port}" for port in free_ports(3)]
    meet, errors = meeting(addresses, 7)
    threads = [threading.Thread(target=meet, args=(i,)) for i in (0, 2)]
    for thread in threads:
        thread.start()
    greeting = {"magic": "reuse_tf", "versions": workers._versions()}
    with connected(("localhost", int(addresses[0].split(":")[1]))) as stopped:
        said = json.dumps({**greeting, "index": 1}) + "\n"
        stopped.sendall(said.encode())
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert sorted(errors) == [
        f"the chief at {addresses[0]} has ended while worker 2 waited for the "
        "others",
        "workers [1] of TF_CONFIG did not come",
    ]


def meeting(addresses, seconds):
    """A function by which one of an index meets the others, and its errors."""
    deadline = time.monotonic() + seconds
    errors = []

    def meet(index):
        try:
            workers._meet(addresses, index, deadline)
        except (ValueError, workers.WorkerLost) as error:
            errors.append(str(error))

    return meet, errors


def connected(address):
    end = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(address, 5)
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


def answer(address, greeting):
    """What the chief answers within half a second, or None."""
    with connected(address) as connection:
        connection.settimeout(0.5)
        connection.sendall(json.dumps(greeting).encode() + b"\n")
        with contextlib.suppress(TimeoutError):
            return connection.recv(1000).decode()


@pytest.mark.parametrize("kind", ["atari", "gathered"])
def test_parts_of_environments_are_as_among_all(kind):
    """Whoever plays them: frames, rewards and states."""
    chosen = Settings(algorithm="ppo", preprocessing="paper", num_envs=5)
    make = None if kind == "atari" else Catch

    def games(share):
        return environments.make_games(chosen, make, share)

    with contextlib.ExitStack() as stack:
        whole, *parts = (
            stack.enter_context(contextlib.closing(games(share)))
            for share in (range(5), range(2), range(2, 5))
        )
        frames = whole.reset(7)
        of_parts = np.concatenate([part.reset(7) for part in parts])
        np.testing.assert_array_equal(frames, of_parts)
        rng = np.random.default_rng(0)
        for _ in range(20):
            actions = rng.integers(whole.num_actions, size=5)
            step = whole.step(actions)
            steps = [parts[0].step(actions[:2]), parts[1].step(actions[2:])]
            for name in ("frames", "rewards", "terminated"):
                np.testing.assert_array_equal(
                    getattr(step, name),
                    np.concatenate([getattr(s, name) for s in steps]),
                )
        state = whole.state()
        states = [part.state() for part in parts]
        assert environments.join_states(states) == state
        for part, share in zip(states, (range(2), range(2, 5)), strict=True):
            assert environments.part_of_state(state, share) == part


def test_what_is_zero_is_not_sent():
    """Sums are those of the tensors, whatever rows and columns are zeros."""
    rng = np.random.default_rng(0)

    class Pair(workers.Workers):
        """A worker whose partner has passed other tensors."""

        def __init__(self, partner):
            self.partner, self.masks = partner, []
            self.index, self.count, self.sent = 0, 2, 0

        def _all_reduce(self, flat):
            tables = [
                t.reshape(-1, t.shape[-1] if t.ndim else 1)
                for t in self.partner
            ]
            if flat.dtype == np.int32:  # where there is something
                for table in tables:
                    if table.size >= workers._LARGE:
                        self.masks += [table.any(1), table.any(0)]
                flat = flat + np.concatenate(self.masks)
                ends = np.cumsum([len(mask) for mask in self.masks])
                self.masks = np.split(flat > 0, ends[:-1])
                return tf.constant(flat)
            masks = iter(self.masks)
            parts = [
                table[next(masks)][:, next(masks)]
                if table.size >= workers._LARGE
                else table
                for table in tables
            ]
            return tf.constant(
                flat + np.concatenate([part.reshape(-1) for part in parts])
            )

    def tensors():
        dense = rng.normal(size=(1200, 64)).astype(np.float32)
        dense[rng.random(1200) < 0.6] = 0
        dense[:, rng.random(64) < 0.5] = 0
        kernel = rng.normal(size=(8, 8, 32, 32)).astype(np.float32)
        kernel[..., 5] = 0
        nothing = np.zeros((700, 100), np.float32)
        single = np.float32(rng.normal())
        return [dense, kernel, nothing, single, np.arange(7, dtype=np.float32)]

    mine, theirs = tensors(), tensors()
    team = Pair(theirs)
    sums = team.sum([tf.constant(t) for t in mine])
    for x, y, z in zip(mine, theirs, sums, strict=True):
        np.testing.assert_array_equal(x + y, z)
    full = 4 * sum(t.size for t in mine)
    assert team.sent < 0.75 * full


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_actions_of_a_share_are_of_its_rows(rows):
    sample = Sampler(np.random.default_rng(0), range(3, 5), 5)
    logits = np.zeros((rows, 4), np.float32)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"Received: {rows} rows"):
            sample(logits)
