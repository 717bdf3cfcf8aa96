"""Atari games as streams of small one-channel frames."""

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


@pytest.mark.parametrize("downsample", [0, 3, -2])
def test_other_downsamples_are_refused(downsample):
    with pytest.raises(ValueError, match=f"downsample={downsample}"):
        atari.make("Pong", downsample=downsample)


def rom_of(game):
    return ale_py.roms.get_rom_path(gym.spec(f"ALE/{game}-v5").kwargs["game"])


# Of screens of two heights.
@pytest.mark.parametrize("game", ["Pong", "Carnival"])
@pytest.mark.parametrize("downsample", [1, 2, 4])
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
        frames, rewards, terminated, truncated, _ = env.step(np.zeros(2, int))
        totals += rewards
        for i in np.flatnonzero(terminated | truncated):
            # The game is over at -21, with the last reward in this step.
            ended.append(totals[i] <= -20)
            # The scores at the top are those of a new game.
            np.testing.assert_array_equal(frames[i, :6], first[i, :6])
            totals[i] = 0
        assert not ended or all(ended)
    env.close()


def test_the_seeds_of_several_environments():
    def play_several(seed):
        env = atari.make_vector("Breakout", 3, downsample=4)
        frames = [env.reset(seed=seed)[0].copy()]
        for action in [1, 2, 3, 0] * 10:
            frames.append(env.step(np.full(3, action))[0].copy())
        env.close()
        return np.stack(frames, 1)

    a, b = play_several(1), play_several(2)
    np.testing.assert_array_equal(a, play_several(1))
    # Seeds that follow each other.
    np.testing.assert_array_equal(a[1:], b[:2])
    assert (a[0] != a[1]).any()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("Pnog", 2), "Pong"),
        (("Pong", 2, 3), "downsample=3"),
    ],
)
def test_bad_arguments_of_several_are_named(arguments, named):
    game, num_envs, *downsample = arguments
    with pytest.raises(ValueError, match=named):
        atari.make_vector(
            game, num_envs, downsample=downsample[0] if downsample else 2
        )
