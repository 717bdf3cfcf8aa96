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
import programs
import pytest
from PIL import Image
from test_files import full_disk

import infer as program_infer
from reuse_tf import atari
from reuse_tf.learning import training
from reuse_tf.learning.settings import Settings
from reuse_tf.playing.play import Summary, play, prepare
from reuse_tf.policies.policy import build_policy, likeliest

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
    "--shard=2/2": "shard",
    "--shard=-1/2": "shard",
    "--shard=half": "shard",
    "--shard=1/3": "--shard=1/3 is empty: there are 1 to share",
    "--seed=-1": "seed",
    "--checkpoint=missing.keras": "checkpoint",
    "--checkpoint=": "checkpoint",
    "--summary_json=missing/summary.json": "No such file or directory",
    "--summary_json=.": "summary_json",
    "--summary_json=": "summary_json",
    "--summary_json=there/": "Is a directory",
    f"--summary_json={'x' * 250}": "File name too long",
    "--record=missing/agent.gif": "record",
    "--record=": "record",
    "--record=agent.avi": "must end in .gif or .mp4",
    "--record=gif": "must end in .gif or .mp4",
    "--frames=3": "frames",
    "stray": "stray",
}


@pytest.mark.parametrize(("argument", "named"), BAD_ARGUMENTS.items())
def test_a_bad_argument_is_one_clear_line(argument, named, capsys):
    assert_one_line(infer_here(argument), named)
    assert capsys.readouterr().out == ""
    assert os.listdir() == []


def infer_here(*arguments):
    return programs.run_here("infer.py", program_infer.main, *arguments)


def assert_one_line(message, *named):
    assert message.startswith("infer.py: ")
    assert len(message.splitlines()) == 1
    for name in named:
        assert name in message


@pytest.mark.parametrize("flag", ["--filters=4", "--network=nature"])
def test_flags_of_another_policy_are_refused(flag):
    assert_one_line(infer_here("--checkpoint=.", flag), "--checkpoint")


def test_a_bad_argument_is_all_that_is_said():
    result = infer("--seed=-1")
    assert result.returncode == 1
    assert result.stdout == ""
    assert_one_line(result.stderr, "seed")


def test_a_folder_that_cannot_be_written_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    named = f"'{os.getcwd()}': Permission denied"
    assert_one_line(infer_here("--summary_json=new.json"), "new.json", named)
    pathlib.Path("old.gif").touch()
    assert_one_line(infer_here("--record=old.gif"), "Permission denied")


def test_one_file_cannot_be_two():
    for other in "x.gif", "./x.gif":
        message = infer_here("--record=x.gif", f"--summary_json={other}")
        assert_one_line(message, "--record", "--summary_json")


def test_nothing_that_was_read_is_written_over():
    chosen = Settings(filters=(2, 2), downsample=4, steps=20)
    training.train(chosen, "run")
    (policy,) = pathlib.Path("run").glob("checkpoint-*1/policy.keras")
    before = policy.read_bytes()
    for checkpoint, output in (
        (policy, policy),
        ("run", policy),
        ("run", "run/flags.json"),
        ("run/../run", "run/episodes.csv"),
    ):
        message = infer_here(
            f"--checkpoint={checkpoint}", f"--summary_json={output}"
        )
        assert_one_line(message, pathlib.Path(output).name)
    assert policy.read_bytes() == before
    assert (
        infer_here(
            *("--checkpoint=run", "--steps=5", "--summary_json=run/played.json")
        )
        is None
    )


def test_a_policy_of_damaged_settings_plays_no_other_game():
    chosen = Settings(
        game="SpaceInvaders", filters=(2, 2), downsample=4, steps=20
    )
    training.train(chosen, "run")
    (policy,) = pathlib.Path("run").glob("checkpoint-*1/policy.keras")
    file = pathlib.Path("run/flags.json")
    file.write_text(file.read_text().replace('"seed"', '"sead"'))
    os.symlink(policy, "here.keras")
    for path in policy, "here.keras":
        message = infer_here(f"--checkpoint={path}", "--steps=5")
        assert_one_line(message, "flags.json", "--game")
    arguments = ["--game=SpaceInvaders", "--downsample=4", "--steps=5"]
    assert infer_here(f"--checkpoint={policy}", *arguments) is None


def test_downsampling_of_standard_frames_is_refused():
    message = infer_here("--preprocessing=standard", "--downsample=4")
    assert_one_line(message, "downsample=4")


def test_a_checkpoint_that_does_not_fit_is_one_clear_line():
    env = atari.make("Pong", downsample=4)
    policy = build_policy(
        env.observation_space.shape, int(env.action_space.n), (2,)
    )
    policy.save("policy.keras")
    assert_one_line(
        infer_here("--checkpoint=policy.keras", "--downsample=2"),
        "policy.keras",
        "(None, 105, 80, 1)",
        "(None, 53, 40, 1)",
    )


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
    message = infer_here(*arguments, "--record=agent.gif", "--num_envs=2")
    assert_one_line(message, "--record")


def test_a_video_is_recorded_of_any_frames():
    av = pytest.importorskip("av", reason="videos need the package av")
    assert (
        infer_here(
            *("--preprocessing=standard", "--network=nature"),
            *("--filters=2,2,2", "--steps=20", "--record=agent.MP4"),
        )
        is None
    )
    with av.open("agent.MP4") as container:
        frames = list(container.decode(video=0))
    assert {(frame.height, frame.width) for frame in frames} == {(438, 640)}
    assert len(frames) == 11
    assert os.listdir() == ["agent.MP4"]


def test_a_video_without_its_package_is_one_clear_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    message = infer_here(*SMALL, "--steps=20", "--record=agent.mp4")
    assert_one_line(message, "pip install 'reuse-tf[video]'")
    assert capsys.readouterr().out == ""  # Nothing was played.
    assert os.listdir() == []


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


# -- What is written, and where ------------------------------------------------

OUTPUTS = [*SMALL, "--steps=40", "--record=a.gif", "--summary_json=s.json"]


def assert_outputs():
    """The files of `OUTPUTS` are whole."""
    assert json.loads(pathlib.Path("s.json").read_text())["steps"] == 40
    with Image.open("a.gif") as picture:
        assert picture.n_frames == 21
        picture.seek(20)
        picture.load()
    assert set(os.listdir()) <= {"s.json", "a.gif", "out.txt"}


def infer_to(stream, monkeypatch):
    """Plays, with a standard output that is this file."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        return infer_here(*OUTPUTS)


def test_a_full_output_is_one_clear_line_and_the_files_are_whole(monkeypatch):
    with open("/dev/full", "w") as full:
        message = infer_to(full, monkeypatch)
    assert_one_line(message, "standard output: No space left on device")
    assert_outputs()


def test_an_output_that_nobody_reads_is_one_clear_line(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        message = infer_to(pipe, monkeypatch)
    assert_one_line(message, "standard output: Broken pipe")
    assert_outputs()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_is_not_unicode(encoding, monkeypatch):
    with open("out.txt", "w", encoding=encoding) as file:
        file.isatty = lambda: True  # A bar has other characters than a line.
        assert infer_to(file, monkeypatch) is None
    text = pathlib.Path("out.txt").read_text(encoding)
    assert re.search(r"steps: +40\n", text)
    assert_outputs()


def test_a_deviation_is_shown_in_any_encoding(monkeypatch):
    summary = Summary("Pong", 2, 1.0, 1.0, 2.0, (1.0, 2.0), {})
    str(summary).encode("ascii")


def test_a_closed_output_is_one_clear_line_and_the_files_are_whole():
    result = children.run(
        *("sh", "-c", 'exec "$0" "$@" >&-', sys.executable, INFER, *OUTPUTS)
    )
    assert result.returncode == 1
    assert_one_line(result.stderr, "standard output: it is closed")
    assert_outputs()


def test_help_to_a_full_output_is_one_clear_line():
    with open("/dev/full", "w") as full:
        result = infer("--help", stdout=full)
    assert_one_line(result.stderr, "standard output: No space left on device")


def test_the_summary_goes_to_the_standard_output():
    """To a file here, of which nothing else is overwritten."""
    with open("out.txt", "wb") as file:
        result = infer(
            *(*SMALL, "--steps=40", "--summary_json=/dev/stdout"), stdout=file
        )
    assert result.stderr == ""
    assert result.returncode == 0
    text = pathlib.Path("out.txt").read_text()
    assert text.startswith("40/40")
    begin, end = text.index("{"), text.rindex("}") + 1
    assert json.loads(text[begin:end])["steps"] == 40
    assert re.match(r"\s+game: +Pong\nsteps: +40\n", text[end:])


def test_a_full_disk_keeps_what_was_there(monkeypatch):
    for name in ("a.gif", "s.json"):
        pathlib.Path(name).write_text("old")
    with full_disk(300):
        message = infer_here(*OUTPUTS)
    assert_one_line(message, "'a.gif': File too large", "'s.json': File too")
    for name in ("a.gif", "s.json"):
        assert pathlib.Path(name).read_text() == "old"
    # One of them fits.
    with full_disk(3000):
        assert_one_line(infer_here(*OUTPUTS), "'a.gif': File too large")
    assert json.loads(pathlib.Path("s.json").read_text())["steps"] == 40
    assert pathlib.Path("a.gif").read_text() == "old"


def test_a_tilde_is_the_home_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    arguments = [*SMALL, "--steps=2", "--summary_json=~/s.json"]
    assert infer_here(*arguments) is None
    assert os.listdir(tmp_path / "home") == ["s.json"]
    assert_one_line(infer_here("--checkpoint=~/x.keras"), "no such file")


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


def test_a_run_of_ppo_plays_whichever_way(capsys, monkeypatch):
    """Its newest policy or its best, drawing actions or the likeliest."""
    probabilities = []

    def spied(make):
        def call(*arguments, **keywords):
            probabilities.append(keywords["repeat_action_probability"])
            return make(*arguments, **keywords)

        return call

    for name in ("make", "make_vector", "ResumableGames"):
        monkeypatch.setattr(atari, name, spied(getattr(atari, name)))
    settings = Settings(
        algorithm="ppo",
        game="Breakout",
        filters=(2, 2, 2),
        steps=32,
        num_envs=2,
        num_steps=8,
        minibatches=1,
        eval_every=32,
        eval_episodes=1,
        repeat_action_probability=0.5,
    )
    training.train(settings, "run")
    capsys.readouterr()
    for flags in (
        ["--checkpoint=run"],
        ["--checkpoint=run", "--greedy", "--reuse=none"],
        ["--checkpoint=run/best.keras", "--num_envs=2"],
        ["--checkpoint=run", "--record=game.gif"],
        ["--checkpoint=run/checkpoint-000002/policy.keras", "--greedy"],
    ):
        assert infer_here("--steps=20", *flags) is None
        printed = capsys.readouterr().out
        assert re.search(r"game: +Breakout", printed)
        assert re.search(r"steps: +20\n", printed)
    # To train, to evaluate, and each time to play.
    assert probabilities == 7 * [0.5]
    assert pathlib.Path("game.gif").read_bytes().startswith(b"GIF89a")
    assert_one_line(
        infer_here("--checkpoint=run", "--preprocessing=paper"), "input shape"
    )


def test_the_likeliest_action_is_done():
    logits = np.float32([[1, 3, 2], [np.inf, 0, 1], [-np.inf, -1, -2]])
    assert likeliest(logits) == [1, 0, 1]
    logits[1, 2] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        likeliest(logits)


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
    message = infer_here("--checkpoint=policy.keras", "--downsample=4")
    assert_one_line(message, "not finite")


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
        # The last one is of a vector: whole, whenever that changed.
        assert 0 < recomputed.pop("logits") <= 1
        assert list(recomputed) == ["pool", "hidden"]
        assert all(0 < part < 0.5 for part in recomputed.values())


def test_what_cannot_be_reused_is_one_clear_line():
    env = atari.make("Pong", downsample=4)
    policy = other_policy(
        env,
        keras.layers.UnitNormalization(name="top"),
        keras.layers.Flatten(),
        keras.layers.Dense(6),
    )
    policy.save("policy.keras")
    arguments = ["--checkpoint=policy.keras", "--downsample=4", "--steps=5"]
    assert_one_line(infer_here(*arguments), "'top'", "--reuse=none")
    assert infer_here(*arguments, "--reuse=none") is None


# -- Several environments ----------------------------------------------------


class FakeEnvs(gym.vector.VectorEnv):
    """Two games: each reward is the action; episodes of 3 and of 5 steps."""

    num_envs = 2
    spec = gym.spec("ALE/Pong-v5")
    observation_space = gym.spaces.Box(0, 255, (2, 8, 6, 1), np.uint8)

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


def test_standard_frames_are_played_one_by_one_and_side_by_side():
    frames = {"preprocessing": "standard", "filters": (4,), "seed": 0}
    env, policy = prepare("Breakout", **frames)
    assert policy.input_shape == (None, 84, 84, 4)
    actions, _ = actions_of(env, policy, steps=40, seed=1)
    assert len(set(actions)) > 1
    env = atari.make_vector("Breakout", 1, preprocessing="standard")
    others, _ = actions_of(env, policy, steps=40, seed=1)
    assert actions == np.ravel(others).tolist()
    env, policy = prepare("Breakout", num_envs=2, **frames)
    assert play(env, policy, steps=10, seed=1).steps == 10


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


def test_shares_play_what_all_play_together():
    """The same actions and episodes, of whichever number of processes."""
    arguments = {"downsample": 4, "filters": [4, 8], "num_envs": 5, "seed": 3}

    def played(share):
        env, policy = prepare("Breakout", **arguments, share=share)
        taken = {} if share is None else {"share": share, "total": 5}
        actions, summary = actions_of(env, policy, steps=1100, seed=3, **taken)
        env.close()
        return np.reshape(actions, (220, -1)), summary

    whole, summary = played(None)
    # A share of one environment is played otherwise than one of several.
    shares = [played(share) for share in (range(1), range(1, 2), range(2, 5))]
    np.testing.assert_array_equal(
        whole, np.concatenate([actions for actions, _ in shares], 1)
    )
    assert summary.steps == sum(of_share.steps for _, of_share in shares)
    returns = [value for _, of_share in shares for value in of_share.returns]
    assert sorted(summary.returns) == sorted(returns)
    assert len(returns) > 2  # Games have ended, and others begun.


def test_a_share_of_one_environment_is_recorded():
    arguments = [*SMALL, "--game=Breakout", "--steps=90", "--record=a.gif"]
    for shard, done in (("1/3", None), ("1/2", "--record")):
        pathlib.Path("a.gif").unlink(missing_ok=True)
        message = infer_here(*arguments, "--num_envs=3", f"--shard={shard}")
        if done is None:
            assert message is None
            with Image.open("a.gif") as picture:
                assert picture.n_frames > 10
        else:
            assert_one_line(message, done)
            assert os.listdir() == []
