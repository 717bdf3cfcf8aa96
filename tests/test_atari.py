"""Atari games as streams of small one-channel frames."""

import contextlib
import json
import sys
import types

import ale_py
import gymnasium as gym
import numpy as np
import pytest

from reuse_tf import atari


def play(env, steps, seed):
    """Returns the frames and rewards of random play."""
    rng = np.random.default_rng(seed)
    frames, rewards = [env.reset(seed=seed)[0]], []
    for action in rng.integers(env.action_space.n, size=steps):
        frame, reward, terminated, truncated, _ = env.step(action)
        frames.append(frame)
        rewards.append(reward)
        if terminated or truncated:
            frames.append(env.reset()[0])
    return np.stack(frames), rewards


@pytest.mark.parametrize(
    ("downsample", "shape"), [(1, (210, 160)), (2, (105, 80)), (4, (53, 40))]
)
def test_frames_are_every_dth_pixel(downsample, shape):
    env = atari.make("Pong", downsample=downsample)
    frame, _ = env.reset(seed=0)
    assert frame.shape == env.observation_space.shape == (*shape, 1)
    assert frame.dtype == env.observation_space.dtype == np.uint8
    assert frame in env.observation_space


# Two screens of other heights, and one whose colours come and go.
@pytest.mark.parametrize("game", ["Pong", "Alien", "YarsRevenge", "Carnival"])
def test_frames_are_the_emulators_luminance(game):
    frames, rewards = play(atari.make(game, downsample=2), 150, seed=3)
    oracle = gym.make(f"ALE/{game}-v5", obs_type="grayscale")
    whole, expected_rewards = play(oracle, 150, seed=3)
    np.testing.assert_array_equal(frames[..., 0], whole[:, ::2, ::2])
    assert rewards == expected_rewards
    assert len(np.unique(frames)) > 2


def test_a_frame_outlives_the_next_step():
    env = atari.make("Breakout")
    first, _ = env.reset(seed=0)
    copy = first.copy()
    for action in [1, 2, 3] * 10:
        last = env.step(action)[0]
    np.testing.assert_array_equal(first, copy)
    assert (last != first).any()


def test_a_seed_decides_the_frames():
    env = atari.make("Breakout")
    frames, rewards = play(env, 200, seed=1)
    again, rewards_again = play(env, 200, seed=1)
    np.testing.assert_array_equal(frames, again)
    assert rewards == rewards_again
    other, _ = play(env, 200, seed=2)
    assert frames.shape != other.shape or (frames != other).any()


def test_an_episodes_return_is_reported():
    env = atari.make("Pong")
    env.reset(seed=0)
    total, done = 0.0, False
    while not done:
        _, reward, terminated, truncated, info = env.step(0)
        total += reward
        done = terminated or truncated
    assert info["episode"]["r"] == total < 0


def test_short_names_and_full_ids():
    assert atari.short_name("Pong") == atari.short_name("ALE/Pong-v5") == "Pong"
    assert atari.make("ALE/Pong-v5").spec.id == "ALE/Pong-v5"
    assert {"Pong", "Breakout", "YarsRevenge"} <= set(atari.games())


@pytest.mark.parametrize(
    ("game", "closest"),
    [
        ("Pnog", "Pong"),
        ("pong", "Pong"),
        ("ALE/Brekout-v5", "Breakout"),
        ("Yars Revenge", "YarsRevenge"),
        ("", ""),
    ],
)
def test_an_unknown_game_names_the_closest(game, closest):
    with pytest.raises(ValueError, match=f"Unknown game .*Closest.*{closest}"):
        atari.make(game)


def test_a_game_that_is_no_string_is_refused():
    with pytest.raises(ValueError, match="must be a string. Received: game="):
        atari.make(None)


def test_frames_of_a_vector_are_not_waited_for_without_actions():
    with contextlib.closing(atari.make_vector("Pong", 2)) as env:
        env.reset(seed=0)
        with pytest.raises(RuntimeError, match="before `send`"):
            env.recv()
        env.step([0, 1])
        with pytest.raises(RuntimeError, match="before `send`"):
            env.recv()


def test_seeds_of_a_vector_are_modulo_2_to_the_31():
    with contextlib.closing(atari.make_vector("Breakout", 2)) as env:
        want = env.reset(seed=[3, 1])[0]
        for seed in ([3, 1], np.array([3 + 2**31, 1 + 2**32])):
            np.testing.assert_array_equal(env.reset(seed=seed)[0], want)


@pytest.mark.parametrize("downsample", [0, 3, -2])
def test_other_downsamples_are_refused(downsample):
    with pytest.raises(ValueError, match=f"downsample={downsample}"):
        atari.make("Pong", downsample=downsample)


def rom_of(game):
    return ale_py.roms.get_rom_path(gym.spec(f"ALE/{game}-v5").kwargs["game"])


# Of screens of two heights.
@pytest.mark.parametrize(
    ("game", "downsample"), [("Pong", 1), ("Carnival", 2), ("Pong", 4)]
)
def test_several_environments_have_the_same_frames(game, downsample):
    several = atari.make_vector(game, 3, downsample=downsample)
    one = atari.make(game, downsample=downsample)
    assert several.num_envs == 3
    assert several.single_observation_space == one.observation_space
    assert several.single_action_space.n == one.action_space.n
    assert several.observation_space.shape == (3, *one.observation_space.shape)
    assert several.spec.id == one.spec.id
    frames, _ = several.reset(seed=5)
    assert frames.dtype == np.uint8
    # One alone, with the emulator's seed of the second.
    ale = one.unwrapped.ale
    ale.setInt("random_seed", 6)
    ale.loadROM(rom_of(game))
    ale.reset_game()
    rng = np.random.default_rng(0)
    for actions in rng.integers(several.single_action_space.n, size=(60, 3)):
        frames, reward, terminated, truncated, _ = several.step(actions)
        assert frames.shape == several.observation_space.shape
        expected = one.unwrapped.step(int(actions[1]))
        grey = ale.getScreenGrayscale()[::downsample, ::downsample]
        np.testing.assert_array_equal(frames[1, ..., 0], grey)
        assert (reward[1], terminated[1], truncated[1]) == expected[1:4]
    several.close()


def test_environments_that_end_are_reset_in_the_same_step():
    env = atari.make_vector("Pong", 2, downsample=4)
    first, _ = env.reset(seed=0)
    totals, ended = np.zeros(2), []
    while len(ended) < 2:
        frames, rewards, terminated, truncated, info = env.step([0, 0])
        totals += rewards
        for i in np.flatnonzero(terminated | truncated):
            # The game is over at -21, with the last reward in this step.
            ended.append(totals[i] <= -20)
            # The scores at the top are those of a new game.
            np.testing.assert_array_equal(frames[i, :6], first[i, :6])
            assert info["final_obs"].shape == frames.shape
            assert (info["final_obs"][i, :6] != first[i, :6]).any()
            totals[i] = 0
        assert not ended or all(ended)
    env.close()


def test_the_seeds_of_several_environments():
    env = atari.make_vector("Breakout", 2, downsample=4)

    def play_several(seed):
        frames = [env.reset(seed=seed)[0]]
        for action in [1, 2, 3, 0] * 10:
            frames.append(env.step(np.full(2, action))[0])
        return np.stack(frames, 1)

    a, b = play_several(1), play_several(2)
    np.testing.assert_array_equal(a, play_several(1))
    # Seeds that follow each other.
    np.testing.assert_array_equal(a[1], b[0])
    assert (a[0] != a[1]).any()
    env.close()


def test_seeds_beyond_those_of_the_emulator():
    env = atari.make_vector("Freeway", 2, preprocessing="standard")
    # They differ by how long a game waits. The cars are on their way.
    first, _ = env.reset(seed=2**32 - 1)
    assert (first[0] != first[1]).any()
    for seed in (np.array([0]), 2**31):
        env.step([1, 1])
        options = {"reset_mask": np.array([False, True])}
        frames, _ = env.reset(seed=seed, options=options)
        np.testing.assert_array_equal(frames[1], first[1])
    env.close()


def test_what_is_no_action_is_refused():
    env = atari.make_vector("Pong", 2, downsample=4)
    env.reset(seed=0)
    for actions in ([0, 6], [-1, 0], [0], [[0, 0]], [0.0, 1.0], 0):
        with pytest.raises(ValueError, match="2 integers from 0 to 5. Rec"):
            env.step(actions)
    env.step([0, 5])
    env.close()


@pytest.mark.parametrize("make", [atari.make_vector, atari.ResumableGames])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"game": "Pnog"}, "Pong"),
        ({"downsample": 3}, "downsample=3"),
        ({"preprocessing": "gray"}, "'standard'. Received: .*'gray'"),
        ({"num_envs": 0}, "num_envs=0"),
        ({"num_envs": 1.0}, "num_envs=1.0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"num_threads": -1}, "num_threads=-1"),
        ({"repeat_action_probability": 1.5}, "probability=1.5"),
    ],
)
def test_bad_arguments_of_several_are_named(make, arguments, named):
    with pytest.raises(ValueError, match=named):
        make(**arguments)


def test_another_preprocessing_is_refused():
    with pytest.raises(ValueError, match="preprocessing='gray'"):
        atari.make("Pong", preprocessing="gray")


def test_another_probability_is_refused():
    for value in (-0.1, float("nan"), "0", None, True):
        with pytest.raises(ValueError, match="from 0 to 1. Received: rep"):
            atari.make("Pong", repeat_action_probability=value)


# What a seed decides in the course of a game, besides its first frames, is
# which actions are repeated.
@pytest.mark.parametrize("probability", [0, 0.25])
def test_how_likely_actions_are_repeated(probability):
    how = {"downsample": 4, "repeat_action_probability": probability}
    paper = {**how, "preprocessing": "paper"}
    actions = np.random.default_rng(0).integers(6, size=300)
    one = atari.make("Pong", **how)
    several = atari.make_vector("Pong", 2, **how)
    resumable = atari.ResumableGames("Pong", 2, **paper)
    single = []
    for seed in (1, 2):
        one.reset(seed=seed)
        single.append([one.step(action)[0] for action in actions])
    several.reset(seed=3)
    resumable.reset(seed=4)
    pairs = [
        zip(*single, strict=True),
        (several.step([action, action])[0] for action in actions),
        (resumable.step([action, action]).frames for action in actions),
    ]
    for frames in pairs:
        equal = all(np.array_equal(*pair) for pair in frames)
        assert equal == (probability == 0)
    with pytest.raises(ValueError, match="repeat_action_probability"):
        atari.ResumableGames(
            "Pong", 2, **{**paper, "repeat_action_probability": 0.5}
        ).restore(resumable.state())


def weights_of_areas(size, smaller):
    """What part of each of the smaller ones is which of the others."""
    i, j = np.ogrid[:smaller, :size]
    scale = size / smaller
    overlap = np.minimum(j + 1, (i + 1) * scale) - np.maximum(j, i * scale)
    return np.maximum(overlap, 0) / scale


class Begun(gym.Wrapper):
    """A game as the emulators of a vector environment begin it."""

    def __init__(self, env, seed, frames):
        super().__init__(env)
        self.seed, self.frames = seed, frames

    def reset(self, **arguments):
        reset = super().reset(**arguments)
        ale = self.env.unwrapped.ale
        ale.setInt("random_seed", self.seed)
        ale.loadROM(rom_of(self.spec.name.removeprefix("ALE/")))
        ale.reset_game()
        meanings = self.env.unwrapped.get_action_meanings()
        for i in range(self.frames):
            fires = i == 0 and "FIRE" in meanings
            ale.act(ale_py.Action.FIRE if fires else ale_py.Action.NOOP)
        return reset


# With FIRE and rewards of more than 1, and without them.
@pytest.mark.parametrize("game", ["Qbert", "Freeway"])
def test_standard_frames_are_those_of_gymnasiums_wrappers(game, monkeypatch):
    several = atari.make_vector(game, 1, preprocessing="standard")
    frames, info = several.reset(seed=6)
    means = []

    def resize(screen, size, interpolation):
        assert (size, interpolation) == ((84, 84), "area")
        rows, columns = (weights_of_areas(n, 84) for n in screen.shape)
        means.append(rows @ screen.astype(float) @ columns.T)
        return np.round(means[-1]).astype(np.uint8)

    # The only part that gymnasium does not bring along.
    opencv = types.SimpleNamespace(resize=resize, INTER_AREA="area")
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    env = gym.make(f"ALE/{game}-v5", obs_type="grayscale", frameskip=1)
    env = Begun(env, 6, info["episode_frame_number"][0])
    env = gym.wrappers.AtariPreprocessing(env, noop_max=0)
    env = gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")
    expected, _ = env.reset()
    rng, most = np.random.default_rng(0), 0
    for action in rng.integers(several.single_action_space.n, size=50):
        frame = frames[0].astype(int)
        np.testing.assert_allclose(frame[..., 3], means[-1], atol=0.5001)
        # Halves are rounded up or down.
        np.testing.assert_allclose(frame, np.moveaxis(expected, 0, 2), atol=1)
        frames, rewards, *_ = several.step([action])
        expected, reward, *_ = env.step(action)
        assert rewards[0] == reward
        most = max(most, reward)
    assert most == (25 if game == "Qbert" else 0)
    assert frames.shape == several.observation_space.shape == (1, 84, 84, 4)
    assert frames.dtype == np.uint8 and frames.flags.c_contiguous
    several.close()


def test_a_standard_environment_is_the_only_one_of_several():
    one = atari.make("Breakout", preprocessing="standard")
    several = atari.make_vector("Breakout", 1, preprocessing="standard")
    assert one.spec.id == several.spec.id
    assert one.action_space == several.single_action_space
    assert one.observation_space == several.single_observation_space
    expected, _ = several.reset(seed=3)
    frame, info = one.reset(seed=3)
    assert info["lives"] == 5
    rng = np.random.default_rng(0)
    total = left = 0
    # Through the first game and some of the second.
    while left != 1:
        left = max(0, left - 1)
        assert frame in one.observation_space
        np.testing.assert_array_equal(frame, expected[0])
        action = rng.integers(4)
        expected, *others, final = several.step([action])
        frame, *own, info = one.step(action)
        assert own == [value[0] for value in others]
        total += own[0]
        if own[1]:
            np.testing.assert_array_equal(frame, final["final_obs"][0])
            assert info["episode"]["r"] == total
            frame, _ = one.reset()
            left = 20
    one.close()
    several.close()


def assert_same_steps(a, b):
    for name, x, y in zip(a._fields, a[:-1], b[:-1], strict=False):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, err_msg=name)
    for x, y in zip(a.episodes, b.episodes, strict=True):
        assert x[:3] == y[:3]
        np.testing.assert_array_equal(x.last_frame, y.last_frame)


def test_steps_of_games_are_those_of_games_alone(monkeypatch):
    reset, seeds = ale_py.vector_env.AtariVectorEnv.reset, [[], []]

    def spy(self, *, seed, options):
        for i, s in zip(
            np.flatnonzero(options["reset_mask"]), seed, strict=True
        ):
            seeds[i].append(s)
        return reset(self, seed=seed, options=options)

    # Every game begins from a seed, and some are cut off.
    games = atari.ResumableGames("Breakout", 2, max_steps=145, max_log=1)
    with monkeypatch.context() as patch:
        patch.setattr(ale_py.vector_env.AtariVectorEnv, "reset", spy)
        frames = [games.reset(seed=1)]
        assert games.state()["lives"] == [5, 5]
        rng = np.random.default_rng(0)
        actions = rng.integers(games.num_actions, size=(165, 2))
        played = [games.step(row) for row in actions]
    games.close()
    frames += [step.frames for step in played]
    alone = ale_py.vector_env.AtariVectorEnv(
        "breakout",
        1,
        max_num_frames_per_episode=4 * 145,
        repeat_action_probability=0.25,
        reward_clipping=False,
        life_loss_info=True,
    )
    ended, lost = [], 0
    for i in range(2):
        total, length, begins = 0, 0, iter(seeds[i])
        frame, _ = alone.reset(seed=np.array([next(begins)]))
        for t, step in enumerate(played):
            np.testing.assert_array_equal(
                frames[t][i], np.moveaxis(frame[0], 0, -1)
            )
            frame, reward, terminated, truncated, info = alone.step(
                actions[t, i : i + 1]
            )
            total, length = total + reward[0], length + 1
            assert step.rewards[i] == reward[0]
            assert step.truncated[i] == truncated[0]
            assert step.life_lost[i] | step.terminated[i] == terminated[0]
            lost += step.life_lost[i]
            of_this = [e for e in step.episodes if e.environment == i]
            assert bool(of_this) == (step.terminated[i] | step.truncated[i])
            if of_this:
                assert not step.terminated[i] or info["lives"][0] == 0
                assert of_this[0][:3] == (i, total, length)
                np.testing.assert_array_equal(
                    of_this[0].last_frame, np.moveaxis(frame[0], 0, -1)
                )
                ended.append((total, length))
                total, length = 0, 0
                frame, _ = alone.reset(seed=np.array([next(begins)]))
        assert next(begins, None) is None
    (lower, length), (higher, longest) = sorted(ended)
    assert lower < higher and length < longest == 145 and lost >= 6
    assert len(set(sum(seeds, []))) == len(ended) + 2


# Of several games, of which some begin without a seed.
@pytest.mark.parametrize(
    ("game", "steps", "arguments"),
    [
        ("Breakout", 330, {"preprocessing": "standard", "max_log": 170}),
        (
            "Qbert",
            150,
            {"preprocessing": "paper", "max_log": 60, "max_steps": 40},
        ),
    ],
)
def test_restored_games_go_on_as_if_nothing_had_happened(
    game, steps, arguments
):
    games = atari.ResumableGames(game, 2, **arguments)
    games.reset(seed=1)
    rng = np.random.default_rng(2)
    actions = rng.integers(games.num_actions, size=(steps, 2))
    stops = steps - 20, rng.integers(steps - 60, steps - 30)
    saved, played, longest, episodes = {}, [], 0, 0
    totals, lengths = np.zeros((2, 2))
    for t, row in enumerate(actions):
        if t in stops:
            saved[t] = json.dumps(games.state())
        played.append(games.step(row))
        totals += played[-1].rewards
        lengths += 1
        for i, *of_episode, _ in played[-1].episodes:
            assert of_episode == [totals[i], lengths[i]]
            longest = max(longest, lengths[i])
            totals[i] = lengths[i] = 0
            episodes += 1
    end = games.state()
    assert episodes > sum(end["restarts"]) > 0
    # At first one that is new, then one that has a past.
    restored = atari.ResumableGames(game, 2, **arguments)
    for t, text in saved.items():
        state, watched = json.loads(text), [[], []]
        logs = [len(log) * 3 / 4 for log in state["actions"]]
        assert max(logs) < 3 + arguments["max_log"] + longest
        assert game == "Qbert" or abs(logs[0] - logs[1]) > 3
        frames = restored.restore(
            state, lambda i, *step, to=watched: to[i].append(step)
        )
        np.testing.assert_array_equal(frames, played[t - 1].frames)
        for i, steps_ in enumerate(watched):
            assert len(steps_) == state["lengths"][i]
            for ago, (frame, action, reward) in enumerate(reversed(steps_), 1):
                assert action == actions[t - ago, i]
                assert reward == played[t - ago].rewards[i]
                # Of a first step, that of a beginning.
                np.testing.assert_array_equal(
                    frame, played[t - ago - 1].frames[i]
                )
        assert json.dumps(restored.state()) == text
        for row, step in zip(actions[t:], played[t:], strict=True):
            assert_same_steps(restored.step(row), step)
        assert restored.state() == end
    games.close()
    restored.close()


def test_a_step_of_games_can_be_begun_and_ended():
    games, others = (
        atari.ResumableGames("Pong", 1, preprocessing="paper", downsample=4)
        for _ in range(2)
    )
    assert games.frame_shape == (53, 40, 1) and games.num_actions == 6
    for call in (lambda: games.step([0]), games.state):
        with pytest.raises(RuntimeError, match="`reset` or `restore`"):
            call()
    first = games.reset(seed=0)
    assert first.shape == (1, 53, 40, 1) and first.flags.c_contiguous
    others.reset(seed=0)
    with pytest.raises(RuntimeError, match="before `send`"):
        games.recv()
    with pytest.raises(ValueError, match="from 0 to 5"):
        games.send([6])
    for actions in np.random.default_rng(0).integers(6, size=(50, 1)):
        games.send(actions)
        expected = others.step(actions)
        for call in (lambda: games.send([0]), games.state):
            with pytest.raises(RuntimeError, match="`recv` must be called"):
                call()
        actions[:] = 0
        assert_same_steps(games.recv(), expected)
    assert games.state() == others.state()
    # What was begun is forgotten.
    games.send([1])
    np.testing.assert_array_equal(games.reset(seed=0), first)
    assert games.state()["actions"] == [""]
    for seed in (-1, None, 1.5):
        with pytest.raises(ValueError, match=f"seed={seed}"):
            games.reset(seed)


def test_games_can_be_left_for_others():
    games, restored = (
        atari.ResumableGames("Pong", 2, preprocessing="paper", downsample=4)
        for _ in range(2)
    )
    with pytest.raises(RuntimeError, match="`reset` or `restore`"):
        games.begin()
    games.reset(seed=0)
    for actions in np.random.default_rng(0).integers(6, size=(30, 2)):
        games.step(actions)
    first = games.begin()
    state = games.state()
    assert state["restarts"] == [1, 1] and state["lengths"] == [0, 0]
    np.testing.assert_array_equal(restored.restore(state), first)
    for _ in range(30):
        step = games.step([2, 3])
        assert_same_steps(restored.step([2, 3]), step)
    assert games.state()["lengths"] == [30, 30]
    assert restored.state() == games.state() != state


def test_what_is_no_state_of_games_is_refused():
    games = atari.ResumableGames("Pong", 1, preprocessing="paper", max_steps=9)
    games.reset(seed=0)
    for _ in range(3):
        games.step([2])
    state = games.state()
    for change, named in (
        ({"game": "Breakout"}, "games of {'game': 'Pong'.*'Breakout'"),
        ({"max_steps": 8}, "'max_steps': 9.*'max_steps': 8"),
        ({"actions": ["????"]}, "Received: Error"),
        ({"actions": ["AgIG"]}, r"below 6 .*\[3\] actions, the greatest 6"),
        ({"actions": ["AgIC", "AgIC"]}, r"Received: \[3, 3\]"),
        ({"actions": []}, r"Received: \[\]"),
        ({"actions": None}, "Received: TypeError"),
        ({"restarts": [-1]}, "restarts=-1"),
        ({"lengths": ["long"]}, "Received: ValueError"),
        ({"lengths": [3, 3]}, "for each of 1 environments"),
        ({"seed": None}, "seed=None"),
        ({"actions": ["AgI="]}, r"'lengths': \[3\].*'lengths': \[2\]"),
        ({"total_rewards": [1.0]}, r"'total_rewards': \[1.0\].*\[0.0\]"),
    ):
        with pytest.raises(ValueError, match=named):
            games.restore({**state, **change})
    for nothing in ({}, None, []):
        with pytest.raises(ValueError, match="Expected `state`"):
            games.restore(nothing)
    with pytest.raises(RuntimeError, match="`reset` or `restore`"):
        games.step([0])
    games.restore(state)
    games.step([0])
