"""The program train.py, and the training under it."""

import contextlib
import csv
import dataclasses
import errno
import functools
import itertools
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings

import children
import gymnasium as gym
import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from absl import flags
from catch import Catch
from test_files import full_disk

import infer
import train as program_train
from reuse_tf import atari, policies
from reuse_tf.learning import (
    environments,
    evaluation,
    ppo,
    reinforce,
    training,
)
from reuse_tf.learning.optimizer import Adam, Optimizer
from reuse_tf.learning.progress import Progress
from reuse_tf.learning.settings import OPTIMIZERS, Settings
from reuse_tf.learning.training import train
from reuse_tf.policies import evaluators, policy, run_directory
from reuse_tf.policies.policy import load_policy
from reuse_tf.policies.run_directory import RunDirectory, newest_policy

ROOT = pathlib.Path(__file__).parents[1]
SMALL = ["--game=Breakout", "--filters=2", "--downsample=4"]
SMALL_PPO = [
    *("--algorithm=ppo", "--preprocessing=paper", "--network=paper"),
    *("--num_envs=2", "--num_steps=25", "--epochs=1", "--minibatches=2"),
    *("--eval_every=900", "--eval_episodes=1"),
]
SEVERAL = [
    *("--num_envs=3", "--batch_episodes=2"),
    *("--preprocessing=standard", "--downsample=2"),
]
CHECKPOINT = ["optimizer.npz", "policy.keras", "state.json"]
REUSES = ["content", "temporal", "none"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory):
    """A run of `settings()` that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(settings(), path, Catch)
    return path


@pytest.fixture(name="run")
def _run(whole, tmp_path):
    """A copy of `whole`."""
    return shutil.copytree(whole, tmp_path / "run")


def settings(**changes):
    """Settings for a few updates of Catch, with a checkpoint after each."""
    return Settings(
        **{
            "game": "Catch",
            "filters": (4,),
            "reuse": "none",
            "steps": None,
            "episodes": 12,
            "learning_rate": 0.01,
            "batch_episodes": 2,
            "entropy": 0.1,
            "num_envs": 2,
            "checkpoint_seconds": 0,
        }
        | changes
    )


def ppo_settings(**changes):
    """Settings for a few updates of Catch by PPO, of episodes across them."""
    return Settings(
        **{
            "algorithm": "ppo",
            "game": "Catch",
            "preprocessing": "paper",
            "network": "paper",
            "filters": (4,),
            "steps": 12 * 40,
            "learning_rate": 0.003,
            "num_envs": 4,
            "num_steps": 10,
            "epochs": 2,
            "minibatches": 2,
            "checkpoint_seconds": 0,
        }
        | changes
    )


def run_alone(name, *arguments):
    """Runs a program in a process of its own."""
    return children.run(sys.executable, ROOT / name, *arguments)


def weights_of(run_dir):
    """The weights and the optimizer's state of the newest checkpoint."""
    model = keras.models.load_model(newest_policy(run_dir))
    with np.load(newest_policy(run_dir).parent / "optimizer.npz") as store:
        return [*model.get_weights(), *(store[name] for name in store)]


def assert_same_run(got, want):
    """The same weights, optimizer, counters and rows, but for the seconds."""
    for a, b in zip(weights_of(got), weights_of(want), strict=True):
        np.testing.assert_array_equal(a, b)
    states = []
    for path in got, want:
        state = json.loads(
            (newest_policy(path).parent / "state.json").read_text()
        )
        for name in list(state["progress"]):
            if "seconds" in name:
                del state["progress"][name]
        states.append(state)
    assert states[0] == states[1]
    assert rows_of(got) == rows_of(want)


def rows_of(run_dir):
    return [
        {name: value for name, value in row.items() if "seconds" not in name}
        for row in read_csv(pathlib.Path(run_dir) / "episodes.csv")
    ]


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def of_lengths(*balls, make=Catch):
    """Makes environments in turn, whose episodes are of different lengths."""
    lengths = itertools.cycle(balls)
    return lambda: make(balls=next(lengths))


def drawn(logits, rng):
    """Actions by softmax of logits."""
    logits = np.float64(logits)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    bounds = np.cumsum(powers / powers.sum(1, keepdims=True), axis=1)
    return [
        int(np.searchsorted(row, uniform, "right"))
        for row, uniform in zip(bounds, rng.random(len(bounds)), strict=True)
    ]


def files_of(run_dir):
    return sorted(path.name for path in pathlib.Path(run_dir).iterdir())


# Learning.


@pytest.mark.parametrize(
    ("reuse", "seed"),
    [("content", 0), ("content", 1), ("none", 0), ("none", 2), ("temporal", 3)],
)
def test_it_learns_to_catch_a_ball_from_pixels(reuse, seed):
    _, summary = train(
        settings(
            filters=(8,),
            reuse=reuse,
            episodes=2400,
            learning_rate=0.005,
            optimizer="rmsprop",
            discount=0.95,
            entropy=0.02,
            num_envs=32,
            batch_episodes=32,
            seed=seed,
            checkpoint_seconds=60,
        ),
        "run",
        Catch,
    )
    # Chance is -5/7, and the optimum 1.
    assert np.mean(summary.returns[:100]) < -0.2
    assert np.mean(summary.returns[-300:]) > 0.85


def test_ppo_learns_to_catch_a_ball_from_pixels():
    _, summary = train(
        ppo_settings(
            filters=(8,),
            steps=24_000,
            num_envs=8,
            num_steps=32,
            epochs=4,
            minibatches=4,
            checkpoint_seconds=60,
            eval_every=24_000,
            eval_episodes=100,
        ),
        "run",
        Catch,
    )
    assert np.mean(summary.returns[:100]) < -0.2
    assert np.mean(summary.returns[-300:]) > 0.85
    (scored,) = read_csv("run/evaluations.csv")
    assert float(scored["mean"]) > 0.85


def test_the_first_updates_of_ppo_are_those_of_a_plain_loop():
    """Written out with plain Keras, losses of `ppo` aside, for 3 updates."""
    chosen = ppo_settings(steps=3 * 40, reuse="auto", clip_rewards=False)
    model, _ = train(chosen, "run", lambda: Catch(balls=3))

    # The same seeds.
    seeds = np.random.SeedSequence(chosen.seed).generate_state(2)
    rng = np.random.default_rng(seeds[0])
    envs = [Catch(balls=3) for _ in range(4)]
    of_envs = np.random.SeedSequence(int(seeds[1])).generate_state(4)
    for env, seed in zip(envs, of_envs.tolist(), strict=True):
        env.reset(seed=seed)
    frames = np.stack([env.reset()[0] for env in envs])
    keras.utils.set_random_seed(chosen.seed)
    plain = policies.build_network(
        "paper", frames.shape[1:], 3, filters=(4,), value=True
    )
    adam, count = keras.optimizers.Adam(), 0
    for update in range(3):
        adam.learning_rate = 0.003 * (1 - update / 3)
        seen, actions, log_probs, values, rewards, ends = ([] for _ in range(6))
        for _ in range(10):
            outputs = plain(frames)
            logits = np.float64(outputs["logits"])
            seen.append(frames)
            values.append(np.float64(outputs["value"])[:, 0])
            probabilities = np.exp(logits - logits.max(1, keepdims=True))
            probabilities /= probabilities.sum(1, keepdims=True)
            actions.append(drawn(logits, rng))
            rows = range(4), actions[-1]
            log_probs.append(np.log(probabilities[rows]))
            steps = [e.step(a) for e, a in zip(envs, actions[-1], strict=True)]
            rewards.append([step[1] for step in steps])
            ends.append([step[2] for step in steps])
            frames = np.stack(
                [
                    env.reset()[0] if step[2] else step[0]
                    for env, step in zip(envs, steps, strict=True)
                ]
            )
        values.append(np.float64(plain(frames)["value"])[:, 0])
        advantages, later = np.zeros((10, 4)), np.zeros(4)
        for t in reversed(range(10)):
            goes_on = 1 - np.array(ends[t], float)
            error = rewards[t] + 0.99 * goes_on * values[t + 1] - values[t]
            advantages[t] = later = error + 0.99 * 0.95 * goes_on * later
        targets = advantages + values[:10]
        flat = [
            np.concatenate(part)
            for part in (seen, actions, log_probs, advantages, targets)
        ]
        for _ in range(2):
            for numbers in np.array_split(rng.permutation(40), 2):
                seen_, actions_, old, advantage, target = (
                    part[numbers] for part in flat
                )
                advantage = (advantage - advantage.mean()) / advantage.std()
                with tf.GradientTape() as tape:
                    outputs = plain(seen_)
                    log_all = tf.nn.log_softmax(outputs["logits"])
                    log_prob = tf.gather(log_all, actions_, batch_dims=1)
                    ratio = tf.exp(log_prob - np.float32(old))
                    advantage = np.float32(advantage)
                    gain = tf.minimum(
                        ratio * advantage,
                        tf.clip_by_value(ratio, 0.9, 1.1) * advantage,
                    )
                    error = outputs["value"][:, 0] - np.float32(target)
                    entropy = -tf.reduce_sum(tf.exp(log_all) * log_all, 1)
                    loss = tf.reduce_mean(
                        -gain + 0.5 * error**2 - 0.01 * entropy
                    )
                gradients = tape.gradient(loss, plain.trainable_variables)
                gradients, _ = tf.clip_by_global_norm(gradients, 0.5)
                count += 1
                adam.epsilon = 1e-5 * math.sqrt(1 - 0.999**count)
                adam.apply(gradients, plain.trainable_variables)
    for got, want in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_an_update_of_a2c_is_that_of_plain_formulas():
    chosen = Settings(
        **{"algorithm": "a2c", "game": "Catch", "network": "paper"},
        **{"filters": (4,), "num_envs": 3, "num_steps": 8, "steps": 24},
        clip_norm=0.2,
    )
    model, _ = train(chosen, "run", of_lengths(1, 2, 3))

    # The same seeds.
    seeds = np.random.SeedSequence(chosen.seed).generate_state(2)
    rng = np.random.default_rng(seeds[0])
    games = environments.make_games(chosen, of_lengths(1, 2, 3))
    frames = games.reset(int(seeds[1]))
    keras.utils.set_random_seed(chosen.seed)
    plain = policies.build_network(
        "paper", frames.shape[1:], 3, filters=(4,), value=True
    )
    before = [np.copy(weight) for weight in plain.get_weights()]
    seen, actions, rewards, ends = [], [], [], []
    for _ in range(8):
        seen.append(frames)
        actions.append(drawn(plain(frames)["logits"], rng))
        step = games.step(actions[-1])
        rewards.append(step.rewards)
        ends.append(step.terminated)
        frames = step.frames
    assert 0 < np.sum(ends) < 8
    targets, later = [], plain(frames)["value"][:, 0]
    for reward, end in zip(rewards[::-1], ends[::-1], strict=True):
        later = reward + 0.99 * np.where(end, 0, later)
        targets.insert(0, later)
    with tf.GradientTape() as tape:
        outputs = plain(np.concatenate(seen))
        log_all = tf.nn.log_softmax(outputs["logits"])
        log_prob = tf.gather(log_all, np.concatenate(actions), batch_dims=1)
        error = np.float32(np.concatenate(targets)) - outputs["value"][:, 0]
        entropy = -tf.reduce_sum(tf.exp(log_all) * log_all, 1)
        loss = tf.reduce_mean(
            -tf.stop_gradient(error) * log_prob
            + 0.25 * error**2
            - 0.01 * entropy
        )
    gradients = tape.gradient(loss, plain.trainable_variables)
    gradients, norm = tf.clip_by_global_norm(gradients, 0.2)
    assert norm > 0.2
    # Of a first step, by hand.
    for got, weight, gradient in zip(
        model.get_weights(), before, gradients, strict=True
    ):
        change = gradient / tf.sqrt(0.99 + 0.01 * gradient**2 + 1e-5)
        np.testing.assert_allclose(
            got, weight - 7e-4 * change, rtol=1e-4, atol=1e-6
        )


def test_a_truncated_episode_is_worth_what_was_to_come():
    """As PPO sees it: its last frame is valued, not that of the next one."""

    class Short(gym.Wrapper):
        def reset(self, **arguments):
            self.steps = 0
            return self.env.reset(**arguments)

        def step(self, action):
            frame, reward, terminated, _, info = self.env.step(action)
            self.steps += 1
            return frame, reward, terminated, self.steps == 4, info

    chosen = ppo_settings(num_envs=1, num_steps=9, minibatches=1)
    algorithm = ppo.PPO(chosen, lambda: Short(Catch(balls=9)))
    algorithm.build()
    rollout = algorithm._play(Progress(), Nothing(), Nothing())
    assert [(*episode[::2],) for *_, episode in rollout.episodes] == [
        (4, "truncated")
    ] * 2
    goes_on = [True] * 3 + [False] + [True] * 3 + [False] + [True]
    assert rollout.continues[:, 0].tolist() == goes_on
    np.testing.assert_array_equal(
        rollout.next_values[:-1][goes_on[:-1]],
        rollout.values[1:][goes_on[:-1]],
    )
    for t in 3, 7:
        # A ball falls on: no first frame of an episode.
        assert rollout.next_values[t] != rollout.values[t + 1]
        assert rollout.next_values[t] != 0


class Nothing:
    """A bar that shows nothing, and a stop that is not requested."""

    requested = False

    def update(self, *_):
        pass


def test_ppo_learns_the_same_with_reuse_and_without():
    models = []
    for path, chosen in ("a", "auto"), ("b", "none"):
        settings_ = ppo_settings(reuse=chosen, steps=20 * 40)
        model, _ = train(settings_, path, lambda: Catch(balls=3))
        models.append(model)
    assert rows_of("a") == rows_of("b")
    for got, want in zip(*(m.weights for m in models), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("reuse", ["auto", "none"])
def test_an_evaluation_disturbs_nothing(reuse):
    for make in settings, ppo_settings:
        plain, scored = f"{make.__name__}1", f"{make.__name__}2"
        bounds = {"steps": 80, "episodes": None, "reuse": reuse}
        train(make(**bounds), plain, Catch)
        train(make(**bounds, eval_every=30, eval_episodes=5), scored, Catch)
        for a, b in zip(weights_of(plain), weights_of(scored), strict=True):
            np.testing.assert_array_equal(a, b)
        assert rows_of(plain) == rows_of(scored)


def test_evaluations_are_of_whole_games_and_the_best_is_kept():
    scores = iter([3, 1, 5, 2, 4])

    class Scored(Catch):
        """A game of a step, of one score after the other."""

        def step(self, action):
            frame, *_, info = super().step(action)
            return frame, next(scores), True, False, info

    training_games = []

    def make_env():
        training_games.append(1)
        # The first environments are those to learn from.
        return Catch() if len(training_games) <= 4 else Scored()

    chosen = ppo_settings(steps=5 * 40, eval_every=40, eval_episodes=1)
    saved = []
    original = RunDirectory.write_best
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            RunDirectory,
            "write_best",
            lambda self, model: (
                saved.append(model.get_weights()),
                original(self, model),
            ),
        )
        train(chosen, "run", make_env)
    rows = read_csv("run/evaluations.csv")
    assert [float(row["mean"]) for row in rows] == [3, 1, 5, 2, 4]
    assert [int(row["steps"]) for row in rows] == [40, 80, 120, 160, 200]
    assert len(saved) == 2
    best = keras.models.load_model("run/best.keras")
    for got, want in zip(best.get_weights(), saved[-1], strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("reuse", REUSES)
def test_the_first_update_is_that_of_a_dense_tape(reuse):
    """With plain SGD, weights move by the gradient of Keras's own loss."""
    seen = []

    class Seen(gym.Wrapper):
        def reset(self, **arguments):
            self.frame, info = super().reset(**arguments)
            return self.frame, info

        def step(self, action):
            result = super().step(action)
            seen.append((self.frame, action, result[1], result[2]))
            self.frame = result[0]
            return result

    arguments = {"num_envs": 1, "batch_episodes": 3, "reuse": reuse, "seed": 3}
    arguments |= {"optimizer": "sgd", "learning_rate": 1.0, "discount": 0.9}
    arguments["entropy"] = 0
    model, _ = train(
        settings(episodes=3, **arguments), "run", lambda: Seen(Catch(balls=2))
    )
    keras.utils.set_random_seed(3)
    twin = policy.build_policy(model.input_shape[1:], 3, (4,), incremental=True)
    returns, after = [], 0.0
    for _, _, reward, ended in reversed(seen):
        after = reward + (0.0 if ended else 0.9 * after)
        returns.insert(0, after)
    returns = (np.array(returns) - np.mean(returns)) / np.std(returns)
    twin.compile(
        keras.optimizers.SGD(1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    twin.train_on_batch(
        np.stack([frame for frame, *_ in seen]),
        np.array([action for _, action, *_ in seen]),
        sample_weight=returns,
    )
    for got, want in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["recorded", "searched", "none"])
def test_updates_in_several_environments_are_those_of_a_plain_loop(
    how, monkeypatch
):
    """Whole episodes at the present weights, whichever chose their steps."""
    monkeypatch.setattr(evaluators, "_VIDEO_BYTES", 20 * 21 * 21)
    if how == "searched":  # as if tables had been full
        monkeypatch.setattr(evaluators.Reusing, "end", lambda self: None)
    steps, balls = 4 * 45 + 2, (1, 2, 4, 5)
    chosen = settings(
        **{"reuse": "none" if how == "none" else "auto", "num_envs": 4},
        **{"steps": steps, "episodes": None, "batch_episodes": 2},
        **{"optimizer": "sgd", "learning_rate": 0.3},
    )
    model, summary = train(chosen, "run", of_lengths(*balls))

    # The same seeds.
    seeds = np.random.SeedSequence(chosen.seed).generate_state(2)
    rng = np.random.default_rng(seeds[0])
    envs = [Catch(balls=count) for count in balls]
    of_envs = np.random.SeedSequence(int(seeds[1])).generate_state(4)
    for env, seed in zip(envs, of_envs.tolist(), strict=True):
        env.reset(seed=seed)
    frames = np.stack([env.reset()[0] for env in envs])
    keras.utils.set_random_seed(chosen.seed)
    plain = policy.build_policy((21, 21, 1), 3, (4,), incremental=False)
    sgd = keras.optimizers.SGD(0.3)
    running, ended, rows = [[] for _ in envs], [], []
    updates = played = of_older_weights = 0
    while played < steps:
        actions = drawn(plain(frames), rng)
        following = []
        for i, (env, action) in enumerate(zip(envs, actions, strict=True)):
            frame, reward, is_over, *_ = env.step(action)
            if played < steps:
                played += 1
                running[i].append((frames[i], action, reward, updates))
                if is_over:
                    ended.append((running[i], "terminated"))
                    running[i] = []
            following.append(env.reset()[0] if is_over else frame)
        frames = np.stack(following)
        if played == steps:
            ended += [(episode, "cut") for episode in running if episode]
        elif len(ended) < 2:
            continue
        updates += 1
        returns = []
        for episode, end in ended:
            rewards = [reward for *_, reward, _ in episode]
            later, of_episode = 0.0, []
            for reward in reversed(rewards):
                later = reward + 0.99 * later
                of_episode.insert(0, later)
            returns += of_episode
            rows.append((len(episode), sum(rewards), end, updates))
            of_older_weights += episode[0][-1] < updates - 1
        returns = (returns - np.mean(returns)) / np.std(returns)
        all_steps = [step for episode, _ in ended for step in episode]
        ended = []
        with tf.GradientTape() as tape:
            logits = plain(np.stack([frame for frame, *_ in all_steps]))
            log_all = tf.nn.log_softmax(logits)
            chosen_ones = [action for _, action, *_ in all_steps]
            log_prob = tf.gather(log_all, chosen_ones, batch_dims=1)
            entropy = -tf.reduce_sum(tf.exp(log_all) * log_all, 1)
            loss = tf.reduce_mean(
                -np.float32(returns) * log_prob - 0.1 * entropy
            )
        gradients = tape.gradient(loss, plain.trainable_variables)
        sgd.apply(gradients, plain.trainable_variables)
    assert updates >= 5 and of_older_weights >= 3
    assert summary.steps == steps
    assert rows == [
        (
            *(int(row["length"]), float(row["return"])),
            *(row["end"], int(row["update"])),
        )
        for row in rows_of("run")
    ]
    for got, want in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_one_environment_plays_an_episode_with_the_weights_it_began_with(
    monkeypatch,
):
    updates, versions = 0, []
    apply = Optimizer.apply

    def spy(self, gradients):
        nonlocal updates
        updates += 1
        return apply(self, gradients)

    class Versions(Catch):
        def reset(self, **arguments):
            self.version = None
            return super().reset(**arguments)

        def step(self, action):
            if self.version is None:
                self.version = updates
            versions.append((self.version, updates))
            return super().step(action)

    monkeypatch.setattr(Optimizer, "apply", spy)
    train(settings(num_envs=1, batch_episodes=4, episodes=10), "run", Versions)
    assert updates == 3
    assert all(began == now for began, now in versions)


# Bounds.


@pytest.mark.parametrize(("num_envs", "played"), [(1, 7), (3, 9)])
def test_episodes_are_played_to_their_end(num_envs, played):
    _, summary = train(
        settings(episodes=7, num_envs=num_envs, batch_episodes=3), "run", Catch
    )
    assert summary.steps == played * 6
    assert len(summary.returns) == 7
    rows = rows_of("run")
    assert [row["update"] for row in rows] == ["1"] * 3 + ["2"] * 3 + ["3"]
    assert [row["episode"] for row in rows] == [*"1234567"]
    assert {row["end"] for row in rows} == {"terminated"}
    assert {row["return"] for row in rows} <= {"1.0", "-1.0"}


@pytest.mark.parametrize("num_envs", [1, 3])
def test_episodes_are_cut_at_the_last_step(num_envs):
    chosen = settings(
        episodes=None, steps=19, num_envs=num_envs, batch_episodes=num_envs
    )
    _, summary = train(chosen, "run", Catch)
    assert summary.steps == 19
    rows = rows_of("run")
    assert sum(int(row["length"]) for row in rows) == 19
    assert sum(row["end"] == "cut" for row in rows) >= 1
    assert len(summary.returns) == sum(row["end"] != "cut" for row in rows)
    assert rows[-1]["steps"] == "19"
    # Those that come when it goes on are new ones.
    train(dataclasses.replace(chosen, steps=40), "run", Catch)
    rows = rows_of("run")
    assert sum(int(row["length"]) for row in rows) == 40
    for row in rows:
        assert (row["length"] == "6") == (row["end"] == "terminated")


def test_truncated_episodes_are_told_apart():
    train(
        settings(episodes=2),
        "run",
        lambda: gym.wrappers.TimeLimit(Catch(), 4),
    )
    assert [(r["length"], r["end"]) for r in rows_of("run")] == [
        ("4", "truncated")
    ] * 2


def test_a_seed_decides_everything(whole):
    for run, seed in (("same", 0), ("other", 1)):
        train(settings(seed=seed), run, Catch)
    assert_same_run("same", whole)
    with pytest.raises(AssertionError):
        assert_same_run("other", whole)


# Files.


def test_a_run_leaves_these_files_and_nothing_else():
    model, _ = train(settings(), "runs/one", Catch)
    assert files_of("runs/one") == [
        "checkpoint-000005",
        "checkpoint-000006",
        "episodes.csv",
        "flags.json",
        "learning_curve.png",
        "tensorboard",
    ]
    for number in (5, 6):
        assert files_of(f"runs/one/checkpoint-00000{number}") == CHECKPOINT
    saved = run_directory.saved_settings("runs/one")
    assert Settings(**saved) == settings()
    curve = pathlib.Path("runs/one/learning_curve.png").read_bytes()
    assert curve.startswith(b"\x89PNG")
    loaded = load_policy("runs/one", (21, 21, 1), 3, incremental=False)
    for got, want in zip(
        loaded.get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_updates_are_logged_for_tensorboard(whole):
    (file,) = (whole / "tensorboard").iterdir()
    logged = {}
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            logged.setdefault(value.tag, {})[event.step] = tf.make_ndarray(
                value.tensor
            )
    assert set(logged) == {
        *("return", "length", "steps_per_second"),
        *("loss", "entropy", "gradient_norm"),
    }
    returns = {}
    for row in rows_of(whole):
        returns.setdefault(int(row["steps"]), []).append(float(row["return"]))
    assert len(returns) == 6
    means = {steps: np.mean(values) for steps, values in returns.items()}
    assert logged["return"] == means
    assert logged["length"] == dict.fromkeys(means, 6)
    for values in logged.values():
        assert list(values) == list(means)
    assert all(0 < nats <= np.log(3) for nats in logged["entropy"].values())


def test_the_summary_covers_the_whole_run(run):
    _, summary = train(settings(episodes=20), run, Catch)
    values = summary.as_dict()
    seconds = values["seconds"]
    assert seconds.pop("evaluation") == 0
    assert set(seconds) == {"total", "environment", "policy", "update"}
    parts = seconds["environment"] + seconds["policy"] + seconds["update"]
    assert 0 < min(seconds.values())
    assert parts <= seconds["total"]
    assert values["episodes"] == 20
    assert values["steps"] == 120
    assert values["mean_return"] == np.mean(
        [float(row["return"]) for row in rows_of(run)]
    )
    assert values["recomputed"] == {"conv1": 1.0, "logits": 1.0}


# Resuming.


@pytest.mark.parametrize("reuse", REUSES)
def test_a_resumed_run_is_the_same_to_the_bit(reuse):
    train(settings(reuse=reuse, episodes=6), "whole", Catch)
    for episodes in (2, 4, 6):
        train(settings(reuse=reuse, episodes=episodes), "parts", Catch)
    assert_same_run("parts", "whole")


@pytest.mark.parametrize("reuse", ["auto", "none"])
def test_episodes_that_run_when_it_is_killed_are_the_same_to_the_bit(reuse):
    chosen = settings(
        **{"num_envs": 3, "batch_episodes": 2, "reuse": reuse},
        **{"episodes": None, "steps": 241},
    )
    balls = 1, 3, 8
    train(chosen, "whole", of_lengths(*balls))
    for left in 40, 5, 100, 60, 100:  # steps, those that are repeated too

        class Killed(Catch):
            def step(self, action):
                nonlocal left
                left -= 1
                if left < 0:
                    raise Stopped
                return super().step(action)

        with pytest.raises(Stopped):
            train(chosen, "parts", of_lengths(*balls, make=Killed))
    train(chosen, "parts", of_lengths(*balls))
    assert_same_run("parts", "whole")


@pytest.mark.parametrize("reuse", ["auto", "none"])
def test_a_resumed_run_of_ppo_is_the_same_to_the_bit(reuse):
    """Its episodes go on from update to update."""

    def run(path, steps):
        chosen = ppo_settings(
            reuse=reuse, steps=steps, anneal=False, eval_every=70
        )
        train(chosen, path, lambda: Catch(balls=3))

    run("whole", 240)
    for steps in (80, 120, 240):
        run("parts", steps)
    assert_same_run("parts", "whole")
    assert scores_of("parts") == scores_of("whole")


@pytest.mark.parametrize("make", [settings, ppo_settings])
def test_a_stop_in_the_last_update_is_no_end(make, monkeypatch):
    """Though its steps were all counted."""
    chosen = make(steps=80, episodes=None)
    train(chosen, "whole", Catch)
    played = []

    class Counted(Catch):
        def step(self, action):
            played.append(action)
            if len(played) == 80:
                signal.raise_signal(signal.SIGTERM)
            return super().step(action)

    with pytest.raises(KeyboardInterrupt):
        train(chosen, "parts", Counted)
    assert len(played) == 80
    train(chosen, "parts", Catch)
    assert_same_run("parts", "whole")


def test_an_evaluation_that_was_stopped_comes_when_the_run_goes_on(monkeypatch):
    chosen = ppo_settings(steps=80, eval_every=40)
    train(chosen, "whole", Catch)
    counts = iter(range(3))
    original = evaluation.play

    def play(model, settings, make_env, stop):
        if next(counts) == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(model, settings, make_env, stop)

    monkeypatch.setattr(evaluation, "play", play)
    with pytest.raises(KeyboardInterrupt):
        train(chosen, "parts", Catch)
    assert len(scores_of("parts")) == 1
    train(chosen, "parts", Catch)
    assert_same_run("parts", "whole")
    assert scores_of("parts") == scores_of("whole")
    train(chosen, "parts", Catch)  # and no more


def test_damaged_evaluations_are_one_clear_line():
    chosen = ppo_settings(steps=40, eval_every=40, eval_episodes=1)
    train(chosen, "run", Catch)
    whole = pathlib.Path("run/evaluations.csv").read_text()
    for damaged in "", whole + "1,2,3\n", whole.replace("40", "x"):
        pathlib.Path("run/evaluations.csv").write_text(damaged)
        with pytest.raises(ValueError, match=r"evaluations\.csv' is damaged"):
            train(chosen, "run", Catch)


def test_evaluations_can_be_asked_for_when_a_run_is_over():
    train(ppo_settings(steps=80), "run", Catch)
    for _ in range(2):
        train(ppo_settings(steps=80, eval_every=50), "run", Catch)
        assert [row["steps"] for row in scores_of("run")] == ["80"]


@pytest.mark.parametrize("make", [settings, ppo_settings])
def test_an_environment_may_use_one_array_for_all_frames(make):
    class Short(gym.Wrapper):
        """Truncates, so that last frames count."""

        def reset(self, **arguments):
            self.steps = 0
            return self.env.reset(**arguments)

        def step(self, action):
            self.steps += 1
            frame, reward, terminated, _, info = self.env.step(action)
            return frame, reward, terminated, self.steps == 4, info

    class OneArray(Short):
        frames = None

        def observation(self, frame):
            if self.frames is None:
                self.frames = np.empty_like(frame)
            self.frames[:] = frame
            return self.frames

        def reset(self, **arguments):
            frame, info = super().reset(**arguments)
            return self.observation(frame), info

        def step(self, action):
            frame, *others = super().step(action)
            return self.observation(frame), *others

    chosen = make(steps=120, episodes=None, reuse="none")
    train(chosen, "a", lambda: Short(Catch(balls=3)))
    train(chosen, "b", lambda: OneArray(Catch(balls=3)))
    assert_same_run("a", "b")


@pytest.mark.parametrize("make", [settings, ppo_settings])
def test_a_network_of_ones_own(make):
    def network(frame_shape, num_actions):
        inputs = keras.Input(frame_shape, dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.SeparableConv2D(4, 3, strides=2)(x)
        x = keras.layers.GlobalMaxPooling2D()(x)
        outputs = {"logits": keras.layers.Dense(num_actions)(x)}
        outputs["value"] = keras.layers.Dense(1)(x)
        outputs["other"] = x
        return keras.Model(inputs, outputs)

    if make is ppo_settings:
        lengths = [{"steps": steps, "anneal": False} for steps in (40, 80)]
    else:
        lengths = [{"episodes": episodes} for episodes in (4, 8)]
    for path, bounds in ("whole", lengths[1:]), ("parts", lengths):
        for bound in bounds:
            chosen = make(reuse="auto", **bound)
            model, _ = train(chosen, path, Catch, network)
    assert any("separable" in layer.name for layer in model.layers)
    assert_same_run("parts", "whole")
    for bad in (
        lambda *_: network(chosen.filters * 3, 3),
        lambda frame_shape, _: network(frame_shape, 5),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            train(chosen, "bad", Catch, bad)


def test_a_network_within_a_network_without_reuse():
    """Of which a layer gives several outputs."""

    def network(frame_shape, num_actions):
        x = inner = keras.Input((2,))
        heads = [keras.layers.Dense(num_actions)(x), keras.layers.Dense(1)(x)]
        inner = keras.Model(inner, heads)
        inputs = keras.Input(frame_shape, dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.Conv2D(2, 3)(x)
        logits, value = inner(keras.layers.GlobalAveragePooling2D()(x))
        return keras.Model(inputs, {"logits": logits, "value": value})

    for make in settings, ppo_settings:
        chosen = make(steps=40, reuse="none")
        train(chosen, chosen.algorithm, Catch, network)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"kernel_regularizer": "l2"}, "'regular' with a `kernel_regularizer`"),
        ({"activity_regularizer": "l1"}, "with a `activity_regularizer`"),
    ],
)
def test_losses_of_a_networks_own_are_refused(layer, words):
    def network(frame_shape, num_actions):
        inputs = keras.Input(frame_shape, dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.Conv2D(2, 3, name="regular", **layer)(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(num_actions)(x))

    with pytest.raises(ValueError, match=words):
        train(settings(), "run", Catch, network)


@keras.saving.register_keras_serializable()
class Penalty(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(keras.ops.mean(inputs))
        return inputs


def test_losses_that_a_networks_layers_add_are_refused():
    def network(frame_shape, num_actions):
        inputs = keras.Input(frame_shape, dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = Penalty()(keras.layers.Flatten()(x))
        return keras.Model(inputs, keras.layers.Dense(num_actions)(x))

    with pytest.raises(ValueError, match="without losses.* one with 1"):
        train(settings(reuse="none"), "run", Catch, network)


@pytest.mark.parametrize(
    ("body", "head"),
    [("float64", "float64"), ("float32", "float64"), ("float16", "float16")],
)
def test_networks_of_other_dtypes_are_refused(body, head):
    def network(frame_shape, num_actions):
        inputs = keras.Input(frame_shape, dtype="uint8")
        x = keras.layers.Conv2D(2, 3, dtype=body)(inputs)
        x = keras.layers.Flatten(dtype=body)(x)
        x = keras.layers.Dense(num_actions, dtype=head)(x)
        return keras.Model(inputs, x)

    with pytest.raises(ValueError, match=f"`network` .*float32.* of {head}"):
        train(settings(reuse="none"), "run", Catch, network)


def test_games_whose_state_cannot_be_saved_are_refused():
    with pytest.raises(ValueError, match="state can be saved"):
        train(
            ppo_settings(network="nature", filters=(2, 2, 2)),
            "run",
            lambda: atari.make("Pong", preprocessing="standard"),
        )


def test_settings_that_cannot_be_built_leave_the_directory_to_others():
    for filters in (4, 4), (4,):
        chosen = ppo_settings(network="nature", filters=filters)
        with pytest.raises(ValueError, match="three integers"):
            train(chosen, "run", Catch)
    train(ppo_settings(), "run", Catch)


def test_a_run_of_episodes_may_be_bounded_by_steps_later():
    run = ["--algorithm=ppo", "--preprocessing=paper", "--network=paper"]
    run += ["--num_steps=8", "--num_envs=2", "--run_dir=run"]
    assert run_here(*SMALL, *run, "--episodes=1") is None
    assert run_here(*SMALL, *run, "--steps=16") is None
    assert_one_line(
        run_here("--algorithm=reinforce", "--run_dir=run"),
        "has --algorithm=ppo. Received: --algorithm=reinforce",
    )


def test_the_bound_that_is_given_is_that_of_a_run_that_goes_on():
    def bounds():
        saved = json.loads(pathlib.Path("run/flags.json").read_text())
        return saved["steps"], saved["episodes"]

    run = [*SMALL, "--run_dir=run"]
    assert run_here(*run, "--steps=20") is None
    assert bounds() == (20, None)
    assert run_here(*run, "--episodes=2") is None
    assert bounds() == (None, 2)
    assert len(read_csv("run/episodes.csv")) >= 2
    assert run_here(*run, "--steps=3000") is None
    assert bounds() == (3000, None)


def scores_of(run_dir):
    rows = read_csv(pathlib.Path(run_dir) / "evaluations.csv")
    return [
        {name: value for name, value in row.items() if "seconds" not in name}
        for row in rows
    ]


def test_a_finished_run_is_left_as_it_is(run):
    checkpoint = newest_policy(run).read_bytes()
    logs = set((run / "tensorboard").iterdir())
    _, summary = train(settings(), run, Catch)
    assert newest_policy(run).read_bytes() == checkpoint
    assert set((run / "tensorboard").iterdir()) == logs
    assert len(summary.returns) == len(rows_of(run)) == 12


class Stopped(BaseException):
    """Stands for a kill, after which nothing is tidied up."""


def test_a_run_that_was_stopped_before_its_first_update_goes_on(
    whole, monkeypatch
):
    def stop(*arguments, **options):
        raise Stopped

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(reinforce, "policy_gradient", stop)
            with pytest.raises(Stopped):
                train(settings(), "run", Catch)
        assert files_of("run/checkpoint-000000") == CHECKPOINT
    train(settings(), "run", Catch)
    assert_same_run("run", whole)


def stop_in(patch, owner, name, saves):
    """Lets a function of `owner` stop the run in a save, after some saves.

    Returns a list of the numbers of the saves that were not stopped.
    """
    original, save = getattr(owner, name), RunDirectory.save
    saved = []

    def counted(directory, number, *arguments):
        save(directory, number, *arguments)
        saved.append(number)

    def stop(*arguments, **options):
        removed = pathlib.Path(arguments[0]) if name == "rmtree" else None
        if len(saved) < saves or (removed and not removed.exists()):
            return original(*arguments, **options)
        if removed:  # By half.
            next(removed.iterdir()).unlink()
        raise Stopped

    patch.setattr(RunDirectory, "save", counted)
    patch.setattr(owner, name, stop)
    return saved


@pytest.mark.parametrize("saves", [0, 1, 3])
@pytest.mark.parametrize(
    "place",
    [
        (np, "save"),
        (json, "dumps"),
        (os, "fsync"),
        (pathlib.Path, "rename"),
        (shutil, "rmtree"),
    ],
    ids=lambda place: place[1],
)
def test_a_stop_within_a_save_leaves_a_whole_checkpoint(
    place, saves, monkeypatch
):
    """A run that is nothing but a number, which each save writes."""

    def open_run():
        return RunDirectory("run", {"a": 1}, may_change=(), columns=["number"])

    def go_on(directory):
        """Restores, and saves up to 5. Returns the number that was restored.

        That is -1 if there was none. As a run does it saves before any rows.
        """
        restored = []

        def read(path, state):
            assert state == {"number": np.load(path / "number.npy")}
            restored.append(state["number"])
            return state["number"]

        rows = directory.restore(read)
        first = restored[0] if restored else -1
        assert rows == [[str(number)] for number in range(1, first + 1)]
        for number in range(first + 1, 6):
            if number > 0:
                directory.append([[number]])
            directory.save(
                number,
                {"number": number},
                lambda path, number=number: np.save(path / "number", number),
            )
        return first

    with monkeypatch.context() as patch, open_run() as directory:
        saved = stop_in(patch, *place, saves)
        with pytest.raises(Stopped):
            go_on(directory)
    with open_run() as directory:
        # That of the save that was stopped, if it had come far enough.
        renamed = place[1] == "rmtree"
        assert go_on(directory) == len(saved) + renamed - 1
    with open_run() as directory:
        assert go_on(directory) == 5
    assert files_of("run") == [
        "checkpoint-000004",
        "checkpoint-000005",
        "episodes.csv",
        "flags.json",
    ]


def test_what_a_killed_run_left_is_cleared_away(whole, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in(patch, np, "savez", 3)
        with pytest.raises(Stopped):
            train(settings(), "run", Catch)
    run = pathlib.Path("run")
    assert files_of(run / "checkpoint-000002") == CHECKPOINT
    assert (run / "checkpoint-000003.tmp").exists()
    # Older than the newest, and rows that no checkpoint counts on.
    (run / "checkpoint-000000.tmp").mkdir()
    (run / "flags.json.0a.tmp").write_text("{")
    (run / "learning_curve.png.0a.tmp").touch()
    with (run / "episodes.csv").open("a") as file:
        file.write("7,4,6,1.0,terminated,42,0.1\n8,4,6,1")
    train(settings(), "run", Catch)
    assert_same_run("run", whole)
    assert files_of("run") == files_of(whole)


# Damage.


def damaged_settings(run):
    """Each way of damaging a run's settings, and what is said of it."""
    file = run / "flags.json"
    whole = json.loads(file.read_text())
    for content, named in (
        (b"", "line 1"),
        (b"{", "line 1"),
        (b'{"a": "\xff"}', "'utf-8'"),
        (b"[1]", "expected an object, got [1]"),
        (b"null", "expected an object, got None"),
        (whole | {"colour": 1}, "it has an unknown 'colour'"),
        ({**whole, "seed": None}, "`seed`"),
        ({k: v for k, v in whole.items() if k != "seed"}, "it has no 'seed'"),
        (whole | {"filters": 5}, "`filters`"),
        (whole | {"filters": ["4"]}, "`filters`"),
        (whole | {"game": 3}, "`game`"),
        (whole | {"steps": "many"}, "`steps`"),
        (whole | {"learning_rate": "fast"}, "`learning_rate`"),
    ):
        if isinstance(content, dict):
            content = json.dumps(content).encode()
        file.write_bytes(content)
        yield named
    file.unlink()
    file.mkdir()
    yield "Is a directory"


def test_damaged_settings_are_one_clear_line(run):
    files = sorted(run.rglob("*"))
    for named in damaged_settings(run):
        for arguments in (
            ("train.py", program_train.main, f"--run_dir={run}"),
            ("infer.py", infer.main, f"--checkpoint={run}"),
        ):
            message = programs.run_here(*arguments)
            assert message.startswith(f"{arguments[0]}: '{run}/flags.json'")
            assert named in message
            assert "Restore it" in message and "--run_dir" in message
            assert len(message.splitlines()) == 1
        with pytest.raises(ValueError, match="flags.json"):
            train(settings(), run, Catch)
    assert sorted(run.rglob("*")) == files


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_state(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGES = {
    "optimizer.npz": {
        "cut": cut,
        "empty": lambda file: file.write_bytes(b""),
        "missing": lambda file: file.unlink(),
        "of others": lambda file: np.savez(file, np.zeros(3)),
        "not arrays": lambda file: file.write_text("hello"),
    },
    "state.json": {
        "cut": cut,
        "empty": lambda file: file.write_bytes(b""),
        "missing": lambda file: file.unlink(),
        "a list": lambda file: file.write_text("[]"),
        "of others": lambda file: file.write_text("{}"),
        "progress": lambda file: change_state(file, progress={"days": 1}),
        "words": lambda file: change_state(file, progress={"steps": "1"}),
        "actions": lambda file: change_state(file, actions={"state": 1}),
        "environments": lambda file: change_state(file, environments=[]),
    },
    "policy.keras": {
        "cut": cut,
        "missing": lambda file: file.unlink(),
        "of others": lambda file: policy.build_policy((5, 5, 1), 3, (1,)).save(
            file
        ),
    },
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name, kinds in DAMAGES.items() for damage in kinds],
)
def test_a_damaged_checkpoint_and_how_to_go_on(name, damage, run):
    newest, older = run / "checkpoint-000006", run / "checkpoint-000005"
    DAMAGES[name][damage](newest / name)
    # Warnings are lines, too.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError) as failure:
            train(settings(episodes=20), run, Catch)
    message = str(failure.value)
    assert message.startswith(f"Checkpoint '{newest}' is damaged: {name}: ")
    assert f"'{older}' before it is whole" in message
    assert message.endswith(f"delete '{newest}'.")
    shutil.rmtree(older)
    with pytest.raises(ValueError, match="no older one.*begin another run"):
        train(settings(episodes=20), run, Catch)


def test_going_on_from_the_checkpoint_before_is_the_same_to_the_bit(run, whole):
    shutil.rmtree(run / "checkpoint-000006")
    train(settings(), run, Catch)
    assert_same_run(run, whole)
    assert files_of(run) == files_of(whole)


def test_a_file_with_the_name_of_a_checkpoint_is_refused(run):
    (run / "checkpoint-000009").touch()
    for call in (
        lambda: train(settings(episodes=20), run, Catch),
        lambda: load_policy(run, (21, 21, 1), 3),
    ):
        with pytest.raises(ValueError, match=r"checkpoint-000009' .*Delete"):
            call()
    (run / "checkpoint-000009").unlink()
    (run / "checkpoint-000009.tmp").touch()
    (run / "checkpoint-old").touch()
    train(settings(), run, Catch)
    assert not (run / "checkpoint-000009.tmp").exists()


def test_a_damaged_policy_cannot_be_played(run):
    cut(run / "checkpoint-000006" / "policy.keras")
    with pytest.raises(
        ValueError,
        match="-000006/policy.keras'.* before it is '.*-000005/policy.keras'",
    ):
        load_policy(run, (21, 21, 1), 3)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n"])
def test_rows_may_end_in_any_way(end, run, whole):
    file = run / "episodes.csv"
    lines = file.read_text().split()
    file.write_bytes("".join(line + end for line in lines).encode())
    shutil.rmtree(run / "checkpoint-000006")
    train(settings(), run, Catch)
    assert_same_run(run, whole)
    assert file.read_bytes().count(b"\n") == 13


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda lines: lines[:-1], "rows are missing, 1 of 12"),
        (lambda lines: [], "is damaged: not enough values"),
        (lambda lines: ["episode", *lines[1:]], "expected columns"),
        (lambda lines: [*lines[:5], "5,3", *lines[6:]], "row 5 is '5,3'"),
        (lambda lines: [*lines[:5], "a,b,c,d,e,f,g", *lines[6:]], "row 5"),
        (lambda lines: [*lines[:5], "\0", *lines[6:]], "row 5|NUL"),
    ],
)
def test_damaged_rows_are_one_clear_line(damage, named, run):
    file = run / "episodes.csv"
    file.write_text("".join(f"{x}\n" for x in damage(file.read_text().split())))
    with pytest.raises(ValueError, match=named) as failure:
        train(settings(episodes=20), run, Catch)
    assert str(failure.value).startswith(f"'{file}' is damaged: ")
    assert "Restore it" in str(failure.value)


# A full disk.


@pytest.mark.parametrize("size", [100, 10_000])
def test_a_full_disk_leaves_the_last_checkpoints(size, run, whole):
    with full_disk(size), pytest.raises(OSError) as failure:
        train(settings(episodes=20), run, Catch)
    assert "File too large" in str(failure.value)
    names = [name for name in files_of(run) if name != "tensorboard"]
    assert names == [name for name in files_of(whole) if name != "tensorboard"]
    train(settings(), run, Catch)
    assert_same_run(run, whole)


def test_a_log_that_is_a_file_is_named(run):
    shutil.rmtree(run / "tensorboard")
    (run / "tensorboard").touch()
    with pytest.raises(OSError) as failure:
        train(settings(episodes=20), run, Catch)
    path = str(run / "tensorboard")
    assert str(failure.value) == f"cannot write to {path!r}: Not a directory"


def test_a_full_disk_is_one_clear_line(monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/x")

    monkeypatch.setattr(training, "train", full)
    assert_one_line(
        run_here("--run_dir=run"), "'run/x': No space left", "--run_dir=run"
    )


def test_runs_of_the_same_second_get_directories_of_their_own(monkeypatch):
    paths = []

    def record(settings, path):
        assert os.listdir(path) == []
        paths.append(path)
        raise ValueError("enough")

    monkeypatch.setattr(training, "train", record)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    for _ in range(3):
        assert_one_line(run_here("--seed=7"), "enough")
    assert paths == [f"runs/Pong-7-now{end}" for end in ("", "-2", "-3")]


# Signals.


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
)
def test_a_signal_saves_the_last_update(number, times, whole, request):
    default = signal.default_int_handler
    if number != signal.SIGINT:
        default = signal.SIG_DFL
    old = signal.signal(number, default)
    request.addfinalizer(lambda: signal.signal(number, old))

    class Asking(Catch):
        steps = 0

        def step(self, action):
            Asking.steps += 1
            if Asking.steps == 40:
                for _ in range(times):
                    signal.raise_signal(number)
            return super().step(action)

    with pytest.raises(KeyboardInterrupt):
        train(settings(checkpoint_seconds=1e6), "run", Asking)
    assert signal.getsignal(number) is default
    assert Asking.steps == 40 or Asking.steps == 41
    assert newest_policy("run").parent.name == "checkpoint-000003"
    assert len(rows_of("run")) == 6
    train(settings(), "run", Catch)
    assert_same_run("run", whole)


def test_a_directory_is_used_by_one_process_at_a_time():
    with RunDirectory("run", {"a": 1}, may_change=(), columns=["a"]):
        with pytest.raises(ValueError, match="Another process"):
            RunDirectory("run", {"a": 1}, may_change=(), columns=["a"])
    RunDirectory("run", {"a": 1}, may_change=(), columns=["a"]).__exit__()


def test_a_process_that_was_forked_does_not_keep_the_directory():
    open_run = functools.partial(
        RunDirectory, "run", {"a": 1}, may_change=(), columns=["a"]
    )
    there, begun = os.pipe()
    until, ended = os.pipe()
    with open_run() as directory:
        child = os.fork()
        if child == 0:
            os.close(ended)
            os.write(begun, b".")
            os.read(until, 1)  # while the parent has it open
            directory.__exit__()
            os._exit(0)
        os.read(there, 1)
    try:
        open_run().__exit__()
    finally:
        os.close(ended)
        _, status = os.waitpid(child, 0)
        for descriptor in there, begun, until:
            os.close(descriptor)
    assert status == 0


@pytest.mark.parametrize(
    "left", ["episodes.csv", "evaluations.csv", "best.keras"]
)
def test_results_without_a_checkpoint_are_not_written_over(left):
    settings_ = settings(eval_every=30, eval_episodes=1)
    train(settings_, "run", Catch)
    content = pathlib.Path("run", left).read_bytes()
    for path in pathlib.Path("run").iterdir():
        if path.name.startswith("checkpoint-"):
            shutil.rmtree(path)
        elif path.name not in (left, "tensorboard", "flags.json"):
            path.unlink()
    with pytest.raises(ValueError, match=f"has its {left}, but no checkpoint"):
        train(settings_, "run", Catch)
    assert pathlib.Path("run", left).read_bytes() == content


@pytest.mark.parametrize("another", [False, True])
def test_a_directory_that_was_moved_is_not_written_to(another):
    def open_run(settings):
        return RunDirectory("run", settings, may_change=(), columns=["a"])

    def write(path):
        np.save(path / "number", 0)

    with open_run({"a": 1}) as one, contextlib.ExitStack() as opened:
        one.restore(None)
        one.append([[1]])
        one.save(10, {}, write)
        os.rename("run", "moved")
        if another:
            other = opened.enter_context(open_run({"a": 2}))
            other.restore(None)
            other.save(1, {}, write)
        before = files_of("run") if another else None
        for call in (
            lambda: one.append([[2]]),
            lambda: one.save(11, {}, write),
            lambda: one.write_evaluations(["a"], []),
            lambda: one.write_best(None),
        ):
            with pytest.raises(ValueError, match="'run' was moved"):
                call()
        assert not another or files_of("run") == before
    with RunDirectory("moved", {"a": 1}, may_change=(), columns=["a"]) as one:
        assert one.restore(lambda *_: 1) == [["1"]]


# What goes wrong.


def test_a_directory_of_something_else_is_refused():
    pathlib.Path("other").mkdir()
    pathlib.Path("other/thesis.tex").touch()
    with pytest.raises(ValueError, match=r"`run_dir` 'other'.*'thesis.tex'"):
        train(settings(), "other", Catch)
    assert files_of("other") == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"'other/thesis.tex' as `run_dir`"):
        train(settings(), "other/thesis.tex", Catch)


@pytest.mark.parametrize("where", ["loss", "gradient", "weights"])
def test_what_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    where, run, monkeypatch
):
    before = weights_of(run)
    with monkeypatch.context() as patch:
        if where == "loss":
            patch.setattr(reinforce, "entropy_bonus", nan_of)
        elif where == "gradient":
            patch.setattr(tf.linalg, "global_norm", nan_of)
        else:
            patch.setattr(
                Adam,
                "update_step",
                lambda self, gradient, weight, rate: weight.assign_add(
                    tf.fill(weight.shape, math.inf)
                ),
            )
        with pytest.raises(
            FloatingPointError,
            match=r"Update 7.*not finite.*of update 6, .*run'",
        ):
            train(settings(episodes=20), run, Catch)
    for got, want in zip(weights_of(run), before, strict=True):
        np.testing.assert_array_equal(got, want)


def nan_of(_):
    return tf.constant(np.nan, tf.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"reuse": "all"},
        {"optimizer": "adamw"},
        {"steps": 0},
        {"episodes": -1},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"discount": 1.5},
        {"batch_episodes": 0},
        {"entropy": -1},
        {"clip_norm": 0},
        {"num_envs": 0},
        {"checkpoint_seconds": -1},
        {"algorithm": "dqn"},
        {"preprocessing": "color"},
        {"network": "resnet"},
        {"epochs": 3},
        {"clip": 0.2},
        {"value_clip": 0.2},
        {"anneal": True},
        {"eval_every": 0},
        {"eval_episodes": 0},
        {"downsample": 4, "preprocessing": "standard"},
        {"steps": True},
        {"seed": -1},
        {"seed": 2**32},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(changes):
    with pytest.raises(ValueError, match=f"`{next(iter(changes))}`"):
        settings(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 0},
        {"epochs": 0},
        {"minibatches": 0},
        {"minibatches": 21},
        {"gae_lambda": 1.1},
        {"clip": 0},
        {"value_clip": 0},
        {"value_weight": -1},
        {"clip_norm": 0},
        {"anneal": 1},
        {"clip_rewards": "yes"},
        {"preprocessing": "color"},
        {"batch_episodes": 4},
        {"anneal": True, "steps": None, "episodes": 5},
    ],
    ids=str,
)
def test_wrong_settings_of_ppo_are_refused(changes):
    with pytest.raises(ValueError, match=f"`{next(iter(changes))}`"):
        ppo_settings(**changes)


def test_numbers_of_numpy_are_python_s():
    """As they are saved as JSON."""
    chosen = settings(
        steps=np.int64(30),
        learning_rate=np.float32(0.5),
        filters=(np.int32(4), 8),
        seed=np.uint8(3),
    )
    assert json.loads(json.dumps(dataclasses.asdict(chosen)))["steps"] == 30
    assert chosen == settings(
        steps=30, learning_rate=0.5, filters=(4, 8), seed=3
    )


def test_settings_are_those_that_are_usual_for_each_algorithm():
    assert Settings().steps == 3000
    assert Settings(episodes=5).steps is None
    assert Settings().filters == (40, 80)
    usual = Settings(algorithm="ppo")
    assert (usual.network, usual.filters) == ("nature", (32, 64, 64))
    assert (usual.num_envs, usual.num_steps, usual.anneal) == (8, 128, True)
    usual = Settings(algorithm="a2c")
    assert (usual.num_envs, usual.num_steps, usual.epochs) == (16, 5, 1)
    assert (usual.optimizer, usual.learning_rate) == ("rmsprop", 7e-4)
    assert (usual.gae_lambda, usual.value_weight) == (1, 0.25)
    assert (usual.entropy, usual.clip_norm) == (0.01, 0.5)
    without = Settings(algorithm="ppo", episodes=5)
    assert (without.steps, without.anneal) == (None, False)
    assert Settings(algorithm="ppo", anneal=False).anneal is False


@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        (lambda: gym.make("CartPole-v1"), "uint8 frames"),
        (lambda: gym.make("ALE/Pong-v5", obs_type="ram"), "uint8 frames"),
        (
            lambda: gym.make("ALE/Pong-v5", continuous=True),
            "discrete actions",
        ),
    ],
)
def test_other_environments_are_refused(make_env, message):
    with pytest.raises(ValueError, match=message):
        train(settings(), "run", make_env)
    assert not pathlib.Path("run").exists()


class Other(Catch):
    """The game, but for what it is given."""

    def __init__(self, action_space=None, change=lambda frame: frame, reward=0):
        super().__init__()
        self.action_space = action_space or Catch.action_space
        self._change, self._reward = change, reward

    def reset(self, **arguments):
        frame, more = super().reset(**arguments)
        return self._change(frame), more

    def step(self, action):
        frame, reward, *more = super().step(action)
        return self._change(frame), reward + self._reward, *more


@pytest.mark.parametrize("make_settings", [settings, ppo_settings])
@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        (lambda: Other(gym.spaces.Discrete(3, start=1)), "from 0 on"),
        (lambda: Other(gym.spaces.MultiBinary(3)), "discrete actions"),
        (lambda: Other(change=lambda frame: frame / 255), "float64"),
        (lambda: Other(change=lambda frame: frame[1:]), r"\[20, 21, 1\]"),
        (lambda: Other(change=lambda frame: frame.tolist()), "int64"),
        (lambda: Other(reward=np.inf), "reward of inf"),
        (lambda: None, "`make_env`.*NoneType"),
        (Other(), "`make_env`.*Other"),
    ],
)
@pytest.mark.parametrize("num_envs", [1, 2])
def test_other_frames_and_actions_are_refused(
    make_settings, make_env, message, num_envs
):
    chosen = make_settings(num_envs=num_envs)
    with pytest.raises((ValueError, FloatingPointError), match=message):
        train(chosen, "run", make_env)


@pytest.mark.parametrize("make_settings", [settings, ppo_settings])
@pytest.mark.parametrize(
    "bounds", [{"num_envs": 2}, {"eval_every": 8, "eval_episodes": 1}]
)
def test_environments_have_to_be_several(make_settings, bounds):
    one = Catch()
    chosen = make_settings(**{"num_envs": 1, "steps": 40, **bounds})
    for again in (lambda: one, lambda: gym.wrappers.TimeLimit(one, 5)):
        with pytest.raises(ValueError, match="`make_env`.*same one again"):
            train(chosen, "run", again)


def test_environments_have_to_be_alike():
    actions = iter([3, 3, 2, 3])
    with pytest.raises(ValueError, match="the same frames and actions"):
        train(
            ppo_settings(num_envs=4),
            "run",
            lambda: Other(gym.spaces.Discrete(next(actions))),
        )


class Old(Catch):
    """The game as gym had it, or with what no environment gives."""

    def __init__(self, reset=lambda pair: pair, step=lambda five: five):
        super().__init__()
        self._reset, self._step = reset, step

    def reset(self, **arguments):
        return self._reset(super().reset(**arguments))

    def step(self, action):
        return self._step(super().step(action))


@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        (lambda: Old(reset=lambda pair: pair[0]), "`reset`.*ndarray"),
        (lambda: Old(step=lambda five: five[:4]), "`step`.*tuple of 4"),
        (
            lambda: Old(step=lambda five: (five[0], None, *five[2:])),
            "`reward` to be a number. Received: None",
        ),
        (
            lambda: Old(step=lambda five: (five[0], "1", *five[2:])),
            "`reward` to be a number. Received: '1'",
        ),
        (
            lambda: Old(step=lambda five: (*five[:2], {}, *five[3:])),
            "`terminated` to be a number. Received: {}",
        ),
    ],
)
def test_what_gymnasium_has_otherwise_is_refused(make_env, message):
    with pytest.raises(ValueError, match=message):
        train(settings(), "run", make_env)


def test_any_generator_of_an_environment_goes_on():
    class Mersenne(Catch):
        def reset(self, *, seed=None, options=None):
            result = super().reset(seed=seed, options=options)
            if seed is not None:
                bits = np.random.MT19937(seed)
                self.np_random = np.random.Generator(bits)
            return result

    chosen = ppo_settings(steps=40)
    train(chosen, "whole", Mersenne)
    train(dataclasses.replace(chosen, steps=20), "parts", Mersenne)
    train(chosen, "parts", Mersenne)
    for a, b in zip(weights_of("whole"), weights_of("parts"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_arguments_of_other_types():
    with pytest.raises(ValueError, match="`settings`.*dict"):
        train({"game": "Pong"}, "run", Catch)
    with pytest.raises(ValueError, match="`run_dir`.*None"):
        train(settings(), None, Catch)


def network(activation="relu", layer=None, trainable=True):
    def build(frame_shape, num_actions):
        frames = keras.Input(frame_shape, dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(frames)
        x = keras.layers.Conv2D(2, 5, 4, activation=activation)(x)
        x = layer(x) if layer else x
        logits = keras.layers.Dense(num_actions)(keras.layers.Flatten()(x))
        model = keras.Model(frames, logits)
        model.trainable = trainable
        return model

    return build


def residual(join, **dense):
    """Networks of the same layers and weights."""

    def build(frame_shape, num_actions):
        frames = keras.Input(frame_shape, dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(frames)
        a = keras.layers.Conv2D(2, 5, 4)(x)
        b = keras.layers.ReLU()(a)
        x = keras.layers.Flatten()(keras.layers.Subtract()(join(a, b)))
        return keras.Model(frames, keras.layers.Dense(num_actions, **dense)(x))

    return build


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (residual(lambda a, b: [b, a]), "it computes something else"),
        (
            residual(lambda a, b: [a, b], kernel_constraint="max_norm"),
            "MaxNorm",
        ),
        (residual(lambda a, b: [a, b], trainable=False), "frozen Dense"),
    ],
)
def test_a_run_goes_on_with_its_own_network_alone(other, reason):
    own = residual(lambda a, b: [a, b])
    train(settings(episodes=4), "run", Catch, own)
    before = weights_of("run")
    with pytest.raises(ValueError, match="is another one than") as failure:
        train(settings(episodes=8), "run", Catch, other)
    assert reason in str(failure.value)
    for one, same in zip(weights_of("run"), before, strict=True):
        np.testing.assert_array_equal(one, same)
    train(settings(episodes=8), "run", Catch, own)


@keras.saving.register_keras_serializable("tests")
class AlwaysNoise(keras.layers.Layer):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, inputs):
        noise = keras.random.normal(keras.ops.shape(inputs), seed=self.seeds)
        return inputs + noise


def test_a_run_goes_on_with_a_network_that_draws_numbers():
    for episodes in (4, 8):
        own = network(layer=AlwaysNoise())
        train(settings(episodes=episodes), "run", Catch, own)
    assert len(rows_of("run")) == 8


def test_trainings_in_threads_are_as_alone():
    def run(seed):
        train(settings(seed=seed, episodes=4), f"threads/{seed}", Catch)

    for seed in range(3):
        train(settings(seed=seed, episodes=4), f"alone/{seed}", Catch)
    children.in_threads(run, *[[seed] for seed in range(3)])
    for seed in range(3):
        assert_same_run(f"threads/{seed}", f"alone/{seed}")


class Unregistered(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs


@keras.saving.register_keras_serializable("tests")
class WithMore(keras.layers.Layer):
    def build(self, shape):
        self.more = self.add_weight(shape=(3,))

    def call(self, inputs):
        return 2 * inputs


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (network(trainable=False), "without trainable weights"),
        (network(layer=Unregistered()), "Keras can save and load"),
    ],
)
def test_networks_that_no_run_could_go_on_with(build, message):
    with pytest.raises(ValueError, match=message):
        train(settings(reuse="none"), "run", Catch, build)


def test_weights_that_no_output_uses_stay():
    chosen = settings(reuse="none", steps=40, episodes=None)
    train(chosen, "run", Catch, network(layer=WithMore()))


def test_a_run_goes_on_with_the_same_network_alone():
    chosen = settings(steps=40, episodes=None)
    train(chosen, "run", Catch, network())
    more = dataclasses.replace(chosen, steps=60)
    for build in network("tanh"), None:
        with pytest.raises(ValueError, match="network is another one") as error:
            train(more, "run", Catch, build)
        assert "damaged" not in str(error.value)
    train(more, "run", Catch, network())
    assert read_csv("run/episodes.csv")[-1]["steps"] == "60"


def test_what_was_scored_behind_the_checkpoint_is_dropped():
    """The best policy is one of the run, whatever was before a kill."""
    chosen = ppo_settings(steps=200, eval_every=40, eval_episodes=4)
    train(chosen, "run", Catch)
    rows = read_csv("run/evaluations.csv")
    path = pathlib.Path("run/evaluations.csv")
    text = path.read_text()
    best = pathlib.Path("run/best.keras")

    def with_row(update, mean):
        path.write_text(f"{text}{update},1000,4,{mean},0,1,1\n")

    # The best one is still to come.
    with_row(10**6, 100)
    train(chosen, "run", Catch)
    assert read_csv("run/evaluations.csv") == rows
    assert not best.exists()
    # A row behind it that is not the best changes nothing.
    best.write_text("kept")
    with_row(10**6, -100)
    train(chosen, "run", Catch)
    assert best.read_text() == "kept"
    # Where it is gone, the next one is.
    best.unlink()
    train(dataclasses.replace(chosen, steps=280), "run", Catch)
    assert best.exists()


def test_the_best_policy_outlives_a_kill():
    """Whatever evaluations are asked for when the run goes on."""

    class Killed(BaseException):
        pass

    def make_env(scores):
        """A game of a step, of one score after the other, to be scored by."""
        made = []

        class Scored(Catch):
            def step(self, action):
                frame, *_, info = super().step(action)
                return frame, next(scores), True, False, info

        def make():
            made.append(1)
            return Catch() if len(made) <= 4 else Scored()

        return make

    def log(self, progress, scalars):
        if scalars.get("score") == 5:
            raise Killed

    chosen = ppo_settings(
        steps=5 * 40, eval_every=40, eval_episodes=1, checkpoint_seconds=10**6
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.TensorBoard, "log", log)
        with pytest.raises(Killed):
            train(chosen, "run", make_env(iter([3, 5])))
    best = pathlib.Path("run/best.keras").read_bytes()
    later = dataclasses.replace(chosen, eval_every=160)
    train(later, "run", make_env(iter([4, 2])))
    assert pathlib.Path("run/best.keras").read_bytes() == best
    rows = read_csv("run/evaluations.csv")
    assert [float(row["mean"]) for row in rows] == [3, 5, 4]


def test_the_time_of_the_last_evaluation_is_kept():
    chosen = ppo_settings(steps=40, eval_every=40, eval_episodes=2)
    _, first = train(chosen, "run", Catch)
    _, again = train(chosen, "run", Catch)
    assert again.evaluation_seconds == first.evaluation_seconds > 0


# The program.


def test_the_defaults_of_the_flags_are_those_of_the_settings():
    names = [field.name for field in dataclasses.fields(Settings)]
    defaults = {name: flags.FLAGS[name].default for name in names}
    assert Settings(**defaults) == Settings()
    assert sorted(program_train._OPTIMIZERS) == sorted(OPTIMIZERS)


BAD_ARGUMENTS = {
    "--game=Pnog": "Pong",
    "--filters=40,x": "filters",
    "--steps=0": "steps",
    "--episodes=0": "episodes",
    "--downsample=3": "downsample",
    "--repeat_action_probability=2": "repeat_action_probability",
    "--reuse=all": "reuse",
    "--seed=-1": "seed",
    "--learning_rate=0": "learning_rate",
    "--learning_rate=nan": "learning_rate",
    "--optimizer=newton": "optimizer",
    "--discount=2": "discount",
    "--batch_episodes=0": "batch_episodes",
    "--entropy=-1": "entropy",
    "--clip_norm=-1": "clip_norm",
    "--num_envs=0": "num_envs",
    "--algorithm=dqn": "algorithm",
    "--preprocessing=none": "preprocessing",
    "--network=resnet": "network",
    "--epochs=2": "epochs",
    "--clip=0": "clip",
    "--value_clip=0": "value_clip",
    "--anneal": "anneal",
    "--gae_lambda=2": "gae_lambda",
    "--eval_every=0": "eval_every",
    "--eval_episodes=0": "eval_episodes",
    "--checkpoint_seconds=-1": "checkpoint_seconds",
    "--summary_json=missing/summary.json": "summary_json",
    "--summary_json=": "summary_json",
    "--run_dir=": "run_dir",
    f"--run_dir={'x' * 300}": "x' as `run_dir`: File name too long",
    "--frames=3": "frames",
    "stray": "stray",
}


@pytest.mark.parametrize(("argument", "named"), BAD_ARGUMENTS.items())
def test_a_bad_argument_is_one_clear_line(argument, named):
    assert_one_line(run_here(argument), named)
    assert not any(pathlib.Path().iterdir())


def run_here(*arguments):
    return programs.run_here("train.py", program_train.main, *arguments)


def assert_one_line(message, *named):
    assert message.startswith("train.py: ")
    assert len(message.splitlines()) == 1
    for name in named:
        assert name in message


def test_a_bad_argument_is_all_that_is_said():
    result = run_alone("train.py", "--seed=-1")
    assert result.returncode == 1
    assert result.stdout == ""
    assert_one_line(result.stderr, "seed")


def test_the_program_trains_resumes_and_refuses_other_settings(monkeypatch):
    result = run_alone(
        "train.py",
        *(*SMALL, "--reuse=none", "--num_envs=2", "--steps=600"),
        *("--run_dir=run", "--summary_json=summary.json"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    summary = json.loads(pathlib.Path("summary.json").read_text())
    assert summary["game"] == "Breakout"
    assert summary["steps"] == 600
    assert summary["seconds"]["update"] > 0
    # Those of the run, where no flags are given.
    monkeypatch.setenv("HOME", str(pathlib.Path.cwd()))
    assert run_here("--run_dir=~/run", "--steps=700") is None
    assert not pathlib.Path("~").exists()
    assert rows_of("run")[-1]["steps"] == "700"
    assert_one_line(
        run_here("--run_dir=run", "--filters=3,4"),
        "--filters=2",
        "--filters=3,4",
    )
    # Python may have begun it by the game's full id.
    flags = pathlib.Path("run/flags.json")
    flags.write_text(flags.read_text().replace("Breakout", "ALE/Breakout-v5"))
    for game in ([], ["--game=Breakout"], ["--game=ALE/Breakout-v5"]):
        assert run_here("--run_dir=run", "--steps=701", *game) is None
    assert_one_line(
        run_here("--run_dir=new", "--summary_json=new"), "the run itself"
    )
    # The game and the frames of the run, too.
    result = run_alone("infer.py", "--checkpoint=run", "--steps=20")
    assert result.returncode == 0, result.stderr
    assert "Breakout" in result.stdout


@pytest.mark.parametrize(
    "kind",
    [["--reuse=none"], SEVERAL, SMALL_PPO],
    ids=["reinforce", "several", "ppo"],
)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(kind):
    arguments = [*SMALL, *kind, "--steps=2000", "--checkpoint_seconds=0"]
    assert run_here(*arguments, "--run_dir=whole") is None
    wait = random.Random(0).uniform
    for signals, seconds in (
        ([signal.SIGKILL], 0),
        ([signal.SIGTERM, signal.SIGINT], 1000),
    ):
        with children.started(
            *(sys.executable, ROOT / "train.py", *arguments, "--run_dir=run"),
            f"--checkpoint_seconds={seconds}",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as process:
            # Once it plays, at some moment of an update or a save.
            children.wait_until(lambda: len(episodes_of("run")) >= 2, process)
            more = len(episodes_of("run")) + 1
            children.wait_until(
                lambda more=more: len(episodes_of("run")) >= more, process
            )
            time.sleep(wait(0, 0.1))
            for number in signals:
                process.send_signal(number)
            _, errors = process.communicate(timeout=children.LONG)
    # The last one has saved the last update.
    assert process.returncode == 1
    assert_one_line(errors, "interrupted; to resume, pass --run_dir=run")
    last = int(rows_of("run")[-1]["update"])
    saved = int(newest_policy("run").parent.name.removeprefix("checkpoint-"))
    # An update of PPO need not end an episode.
    assert saved == last or (saved > last and kind is SMALL_PPO)
    assert run_here(*arguments, "--run_dir=run") is None
    assert_same_run("run", "whole")
    assert files_of("run") == files_of("whole")


def episodes_of(run_dir):
    with contextlib.suppress(FileNotFoundError):
        return rows_of(run_dir)
    return []
