"""`benchmark learners`: learners take turns. Times are not looked at."""

import csv
import importlib.util
import itertools

import pytest

from reuse_tf.benchmark import __main__ as program
from reuse_tf.benchmark import learners
from reuse_tf.learning.settings import Settings
from reuse_tf.policies import evaluators

COMMAND = [
    *("benchmark", "learners", "--games=Pong", "--num_envs=1"),
    "--updates=2",
]
# Answers as the program does which needs Stable-Baselines3.
RIVAL = """
import json, sys
settings = json.loads(sys.stdin.readline())
assert settings["env"] == "ALE/Breakout-v5" and settings["num_envs"] == 2
assert settings["clip"] == 0.1 and settings["threads"] == 1
for i, _ in enumerate(sys.stdin):
    if i == 3:
        sys.exit("no more")
    reply = {"steps": 256, "returns": [i], "processor_seconds": 2.5 * i}
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture(autouse=True)
def _flags_as_at_the_start():
    yield
    learners.FLAGS.unparse_flags()


def settings(**values):
    return Settings(algorithm="ppo", steps=10**12, anneal=False, **values)


def test_they_are_measured_and_kept(capsys, tmp_path):
    path = tmp_path / "learners.csv"
    command = [*COMMAND, "--learners=reuse,plain,emulator", f"--out={path}"]
    program.main(command)
    printed = capsys.readouterr().out
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert [row["learner"] for row in rows] == ["reuse", "plain", "emulator"]
    for row in rows:
        assert row["algorithm"] == "ppo" and row["game"] == "Pong"
        assert row["settings"] == "default" and row["num_envs"] == "1"
        assert row["steps"] == "256" and int(row["threads"]) >= 1
        assert float(row["seconds"]) > 0 < float(row["processor_seconds"])
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if line.startswith("| ")
    ][2:]
    assert [line[:2] for line in cells] == [
        ["Pong", row["learner"]] for row in rows
    ]
    assert cells[0][5] == "1.00" and cells[2][3] == "1.00"
    # What is there is not measured again.
    before = path.read_bytes()
    learners.FLAGS.unparse_flags()
    program.main(command)
    assert path.read_bytes() == before


def test_rows_on_the_way_are_written_as_they_come(monkeypatch, tmp_path):
    path = tmp_path / "learners.csv"
    rows = {
        number: {
            "steps": 10 * number,
            "seconds": number,
            "processor_seconds": number,
            "episodes": 0,
            "mean_return": "",
        }
        for number in (2, 4, 5)
    }

    def measure(settings, chosen, updates, threads):
        assert updates == [2, 4, 5]
        for number in updates:
            if number == 5 and not path.with_name("go on").exists():
                raise RuntimeError("killed")
            yield number, dict.fromkeys(chosen, rows[number])

    monkeypatch.setattr(learners, "measure", measure)
    command = [
        *("benchmark", "learners", "--games=Pong", "--learners=reuse,plain"),
        *("--updates=5", "--every=2", f"--out={path}"),
    ]

    def written():
        with path.open(encoding="utf-8") as file:
            return [
                (row["updates"], row["learner"], row["steps"])
                for row in csv.DictReader(file)
            ]

    with pytest.raises(RuntimeError, match="killed"):
        program.main(command)
    first = [
        (number, learner, steps)
        for number, steps in (("2", "20"), ("4", "40"))
        for learner in ("reuse", "plain")
    ]
    assert written() == first
    path.with_name("go on").touch()
    learners.FLAGS.unparse_flags()
    program.main(command)
    assert written() == [*first, ("5", "reuse", "50"), ("5", "plain", "50")]


def test_settings(monkeypatch, tmp_path):
    asked = []

    def measure(settings, chosen, updates, threads):
        asked.append(settings)
        row = {"seconds": 1, "processor_seconds": 1, "steps": 1}
        yield 3, {"reuse": {**row, "mean_return": 1}}

    monkeypatch.setattr(learners, "measure", measure)
    path = tmp_path / "learners.csv"
    for more in [], ["--settings=lunch"], ["--algorithm=reinforce"]:
        command = ["--games=Pong", "--learners=reuse", "--updates=3", *more]
        program.main(["benchmark", "learners", *command, f"--out={path}"])
        learners.FLAGS.unparse_flags()
    default, lunch, reinforce = asked
    assert default == settings(num_envs=8)
    assert lunch == Settings(
        algorithm="ppo",
        num_envs=16,
        minibatches=8,
        epochs=3,
        clip=0.2,
        learning_rate=5e-4,
        repeat_action_probability=0.0,
        steps=3_000_000,
    )
    assert lunch.anneal and reinforce.num_envs == 8
    with path.open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [row["settings"] for row in rows] == ["default", "lunch", "default"]


def test_one_reuses_and_the_other_does_not():
    kinds = {"reuse": evaluators.Reusing, "plain": evaluators.Plain}
    for name, kind in kinds.items():
        one = learners.make(name, settings(num_envs=2), 1)
        assert isinstance(one._algorithm.learner.evaluator, kind)
        assert one.update() == (256, [])  # no game ends so soon
        one.close()


def test_reinforce_learns_to_the_end_of_its_episodes():
    one = learners.make(
        "reuse",
        Settings(game="Breakout", downsample=4, filters=(1,), steps=10**12),
        1,
    )
    for _ in range(2):
        steps, (_,) = one.update()
        assert steps > 100
    one.close()


def test_another_process_takes_its_turns(monkeypatch, tmp_path):
    path = tmp_path / "rival.py"
    path.write_text(RIVAL, encoding="utf-8")
    monkeypatch.setattr(learners, "_STABLE_BASELINES", path)
    of_two = settings(game="Breakout", num_envs=2)
    measured = list(learners.measure(of_two, ["sb3"], [1, 2], 1))
    for number, (steps, seconds, episodes, mean) in zip(
        (1, 2), ((256, 2.5, 1, 1.0), (512, 5.0, 2, 1.5)), strict=True
    ):
        (row,) = dict(measured)[number].values()
        assert row == {
            "steps": steps,
            "seconds": row["seconds"],
            "processor_seconds": seconds,
            "episodes": episodes,
            "mean_return": mean,
        }
    with pytest.raises(RuntimeError, match="has ended"):
        list(learners.measure(of_two, ["sb3"], [3], 1))


def test_stable_baselines_learns():
    pytest.importorskip("cv2")
    if importlib.util.find_spec("stable_baselines3") is None:
        pytest.skip("it is not installed")
    # Annealed: it is to come to the end.
    annealed = Settings(algorithm="ppo", game="Breakout", num_envs=2, steps=768)
    one = learners.make("sb3", annealed, 1)
    seconds = [one.processor_seconds()]
    returns = []
    for _ in range(3):
        steps, of_turn = one.update()
        assert steps == 256
        returns += of_turn
        seconds.append(one.processor_seconds())
    one.close()
    assert all(a < b for a, b in itertools.pairwise(seconds))
    assert returns and all(one >= 0 for one in returns)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--learners=reuse,dense"], "dense"),
        (["--learners="], "learners"),
        (["--learners=reuse,reuse"], "learners"),
        (["--learners=sb3", "--algorithm=a2c"], "ppo"),
        (["--games=Pnog"], "Pong"),
        (["--games="], "games"),
        (["--updates=0"], "updates"),
        (["--every=0"], "every"),
        (["--num_envs=0"], "num_envs"),
        (["--algorithm=dqn"], "algorithm"),
        (["--settings=dinner"], "lunch"),
        (["--settings=lunch", "--algorithm=a2c"], "ppo"),
        (["--settings=lunch", "--updates=1464"], "1463"),
    ],
)
def test_a_bad_argument_is_one_clear_line(arguments, named):
    with pytest.raises(SystemExit) as failure:
        program.main(["benchmark", "learners", *arguments])
    message = failure.value.code
    assert message.startswith("reuse_tf.benchmark: ") and "\n" not in message
    assert named in message


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as failure:
        program.main(["benchmark", "learners", "--learners=sb3"])
    assert "pip install 'reuse-tf[baselines]'" in failure.value.code
