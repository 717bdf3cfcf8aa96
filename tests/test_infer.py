"""The program infer.py, and the loop under it."""

import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys

import children
import gymnasium as gym
import keras
import numpy as np
import pytest
from PIL import Image

from reuse_tf import atari
from reuse_tf.play import Summary, play, prepare
from reuse_tf.policy import build_policy

INFER = pathlib.Path(__file__).parents[1] / "infer.py"
SMALL = ["--filters=4,8", "--downsample=4"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def infer(*arguments, **options):
    return children.run(sys.executable, INFER, *arguments, **options)


def actions_of(env, policy, **arguments):
    """Plays, and returns the actions taken and the summary."""
    actions = []
    step = env.step
    env.step = lambda action: actions.append(action) or step(action)
    return actions, play(env, policy, **arguments)


BAD_ARGUMENTS = {
    "--game=Pnog": "Pong",
    "--filters=40,x": "filters",
    "--filters=": "filters",
    "--filters=40,0": "filters",
    "--steps=0": "steps",
    "--steps=many": "steps",
    "--downsample=3": "downsample",
    "--reuse=all": "reuse",
    "--num_envs=0": "num_envs",
    "--seed=-1": "seed",
    "--checkpoint=missing.keras": "checkpoint",
    "--summary_json=missing/summary.json": "summary_json",
    "--summary_json=.": "summary_json",
    "--record=missing/agent.gif": "record",
    "--frames=3": "frames",
    "stray": "stray",
}


@pytest.mark.parametrize(("argument", "named"), BAD_ARGUMENTS.items())
def test_a_bad_argument_is_one_clear_line(argument, named):
    result = infer(argument)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("infer.py: ")
    assert named in line


def test_a_checkpoint_that_does_not_fit_is_one_clear_line():
    env = atari.make("Pong", downsample=4)
    policy = build_policy(
        env.observation_space.shape, int(env.action_space.n), (2,)
    )
    policy.save("policy.keras")
    result = infer("--checkpoint=policy.keras", "--downsample=2")
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "policy.keras" in line
    assert "(None, 105, 80, 1)" in line
    assert "(None, 53, 40, 1)" in line


def test_the_summary_is_printed_and_written():
    # Long enough for one episode of Pong at least.
    result = infer(*SMALL, "--steps=1500", "--summary_json=summary.json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    summary = json.loads(pathlib.Path("summary.json").read_text())
    assert set(summary) == {
        "game",
        "steps",
        "seconds",
        "steps_per_second",
        "environment_steps_per_second",
        "episodes",
        "mean_return",
        "std_return",
        "recomputed",
    }
    assert summary["game"] == "Pong"
    assert summary["steps"] == 1500
    seconds = summary["seconds"]
    assert set(seconds) == {"total", "environment", "policy"}
    assert 0 < seconds["environment"] and 0 < seconds["policy"]
    assert seconds["environment"] + seconds["policy"] <= seconds["total"]
    assert summary["steps_per_second"] == pytest.approx(1500 / seconds["total"])
    assert summary["environment_steps_per_second"] == pytest.approx(
        1500 / seconds["environment"]
    )
    assert summary["episodes"] >= 1
    assert -21 <= summary["mean_return"] < 0
    assert summary["std_return"] >= 0
    assert list(summary["recomputed"]) == ["conv1", "conv2", "logits"]
    assert all(0 < part < 0.5 for part in summary["recomputed"].values())
    assert re.search(r"game: +Pong\n", result.stdout)
    assert re.search(r"steps: +1500\n", result.stdout)
    assert f"policy {seconds['policy']:.3f}" in result.stdout
    assert f"conv2 {summary['recomputed']['conv2']:.2%}" in result.stdout


def test_a_moving_picture_is_recorded():
    arguments = [*SMALL, "--game=Breakout", "--steps=50"]
    result = infer(*arguments, "--record=agent.gif")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    with Image.open("agent.gif") as picture:
        assert picture.format == "GIF"
        assert 20 <= picture.n_frames <= 26
    result = infer(*arguments, "--record=agent.gif", "--num_envs=2")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "--record" in line


def test_interrupting_prints_the_summary_of_what_was_played():
    # On a terminal, as the progress bar tells when the game has begun.
    terminal, stdout = pty.openpty()
    with children.started(
        *(sys.executable, INFER, *SMALL),
        *("--steps=100000000", "--summary_json=summary.json"),
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        os.close(stdout)
        output = data = b""
        while b"/100000000" not in output:
            data = children.read(terminal)
            assert data, process.communicate(timeout=children.LONG)
            output += data
        process.send_signal(signal.SIGINT)
        while data := children.read(terminal):
            output += data
        _, errors = process.communicate(timeout=children.LONG)
    os.close(terminal)
    assert process.returncode == 0
    assert errors == ""
    summary = json.loads(pathlib.Path("summary.json").read_text())
    assert 0 < summary["steps"] < 100000000
    assert re.search(rf"steps: +{summary['steps']}\s", output.decode())


@pytest.mark.parametrize("game", ["Breakout", "Pong"])
def test_a_seed_decides_the_actions_with_and_without_reuse(game):
    played = []
    for reuse, seed in (
        ("content", 5),
        ("content", 5),
        ("temporal", 5),
        ("none", 5),
        ("content", 6),
    ):
        env, policy = prepare(game, downsample=4, filters=(4, 8), seed=seed)
        actions, summary = actions_of(
            env, policy, steps=400, reuse=reuse, seed=seed
        )
        assert len(actions) == 400
        played.append((actions, summary.returns))
    assert played[0] == played[1] == played[2] == played[3]
    assert played[0][0] != played[4][0]


def test_a_checkpoint_plays_as_the_policy_it_holds():
    arguments = {"downsample": 4, "filters": (4, 8), "seed": 1}
    env, policy = prepare("Breakout", **arguments)
    # Far from the uniform policy that random weights make.
    policy.set_weights([20 * weight for weight in policy.get_weights()])
    policy.save("policy.keras")
    expected, _ = actions_of(env, policy, steps=200, seed=2)
    for reuse in ("content", "temporal", "none"):
        env, loaded = prepare(
            "Breakout", downsample=4, checkpoint="policy.keras", seed=9
        )
        actions, summary = actions_of(
            env, loaded, steps=200, reuse=reuse, seed=2
        )
        assert actions == expected
        if reuse == "none":
            assert set(summary.recomputed.values()) == {1}
    env, other = prepare("Breakout", **arguments)
    assert actions_of(env, other, steps=200, seed=2)[0] != expected


def test_counts_are_of_this_play_only():
    env, policy = prepare("Pong", downsample=4, filters=(4,), seed=0)
    first = play(env, policy, steps=50, seed=0)
    second = play(env, policy, steps=50, seed=0)
    assert first.steps == second.steps == 50
    assert first.recomputed == second.recomputed


def test_a_play_without_an_ended_episode_has_no_return():
    env, policy = prepare("Pong", downsample=4, filters=(4,), seed=0)
    summary = play(env, policy, steps=1, seed=0)
    values = summary.as_dict()
    assert values["episodes"] == 0
    assert values["mean_return"] is values["std_return"] is None
    assert "no episode ended" in str(summary)


def test_summary_statistics():
    summary = Summary(
        game="Pong",
        steps=30,
        environment_seconds=1.0,
        policy_seconds=2.0,
        total_seconds=4.0,
        returns=(1.0, 5.0),
        recomputed={"conv1": 0.125},
    )
    assert summary.as_dict() == {
        "game": "Pong",
        "steps": 30,
        "seconds": {"total": 4.0, "environment": 1.0, "policy": 2.0},
        "steps_per_second": 7.5,
        "environment_steps_per_second": 30.0,
        "episodes": 2,
        "mean_return": 3.0,
        "std_return": 2.0,
        "recomputed": {"conv1": 0.125},
    }


def test_logits_that_are_not_finite_end_the_play():
    env, policy = prepare("Pong", downsample=4, filters=(4,))
    policy.set_weights([np.nan * weight for weight in policy.get_weights()])
    for reuse in ("content", "temporal", "none"):
        with pytest.raises(FloatingPointError, match="not finite"):
            play(env, policy, steps=3, reuse=reuse, seed=0)
    policy.save("policy.keras")
    result = infer("--checkpoint=policy.keras", "--downsample=4")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "not finite" in line


def other_policy(env, *layers):
    """A functional model that is none of `build_policy`."""
    inputs = outputs = keras.Input(env.observation_space.shape, dtype="uint8")
    for layer in (keras.layers.Rescaling(1 / 255), *layers):
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("reuse", ["content", "temporal", "none"])
def test_any_chain_of_the_right_shapes_can_play(reuse):
    env = atari.make("Pong", downsample=4)
    policy = other_policy(
        env,
        keras.layers.AveragePooling2D(8, name="pool"),
        keras.layers.Flatten(),
        keras.layers.Dense(8, activation="relu", name="hidden"),
        keras.layers.Dense(6, name="logits"),
    )
    recomputed = play(env, policy, steps=20, reuse=reuse, seed=0).recomputed
    if reuse == "none":
        assert recomputed == {"hidden": 1, "logits": 1}
    else:
        assert list(recomputed) == ["pool", "hidden"]
        assert all(0 < part < 0.5 for part in recomputed.values())


def test_what_cannot_be_reused_is_one_clear_line():
    env = atari.make("Pong", downsample=4)
    policy = other_policy(
        env,
        keras.layers.GlobalMaxPooling2D(name="top"),
        keras.layers.Dense(6),
    )
    policy.save("policy.keras")
    arguments = ["--checkpoint=policy.keras", "--downsample=4", "--steps=5"]
    result = infer(*arguments)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "'top'" in line and "--reuse=none" in line
    assert infer(*arguments, "--reuse=none").returncode == 0


# -- Several environments ----------------------------------------------------


class FakeEnvs(gym.vector.VectorEnv):
    """Two games: each reward is the action; episodes of 3 and of 5 steps."""

    num_envs = 2
    spec = gym.spec("ALE/Pong-v5")

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        self.time = np.zeros(2, int)
        self.actions = []
        return self.frames(), {}

    def frames(self):
        return np.full([2, 8, 6, 1], self.time[:, None, None, None], np.uint8)

    def step(self, actions):
        assert actions.shape == (2,)
        self.actions.append(actions)
        self.time += 1
        terminated = self.time == np.array([3, 99])
        truncated = self.time == np.array([99, 5])
        self.time[terminated | truncated] = 0
        return self.frames(), actions.copy(), terminated, truncated, {}


@pytest.mark.parametrize("reuse", ["content", "temporal", "none"])
def test_returns_of_several_environments(reuse):
    env = FakeEnvs()
    policy = build_policy((8, 6, 1), 4, (3,))
    summary = play(env, policy, steps=21, reuse=reuse, seed=7)
    assert env.seed == 7
    # A whole number of rounds.
    assert summary.steps == 22
    actions = np.array(env.actions)
    assert actions.shape == (11, 2)
    assert len(np.unique(actions)) > 1
    first, second = actions.T
    assert summary.returns == (
        first[0:3].sum(),
        second[0:5].sum(),
        first[3:6].sum(),
        first[6:9].sum(),
        second[5:10].sum(),
    )


def test_several_environments_play_as_one_would():
    policy = build_policy((53, 40, 1), 6, (4, 8))
    played = []
    for reuse in ("content", "temporal", "none"):
        env = atari.make_vector("Pong", 3, downsample=4)
        actions, summary = actions_of(
            env, policy, steps=600, reuse=reuse, seed=1
        )
        env.close()
        assert summary.steps == 600
        played.append(np.array(actions).tolist())
        if reuse != "none":
            assert all(0 < f < 0.5 for f in summary.recomputed.values())
    assert played[0] == played[1] == played[2]


def test_the_program_plays_several_environments():
    result = infer(
        *SMALL, "--steps=100", "--num_envs=8", "--summary_json=summary.json"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    summary = json.loads(pathlib.Path("summary.json").read_text())
    assert summary["steps"] == 104
    rate = summary["environment_steps_per_second"]
    assert rate > summary["steps_per_second"] > 0
    assert f"(environment alone {rate:.0f})" in result.stdout
