"""Putting the summaries of shares together."""

import json
import sys

import children
import numpy as np
import pytest

from reuse_tf.benchmark.merge import kind, merge
from reuse_tf.playing.play import Summary


def summary(returns, steps, total=2.0):
    return Summary(
        game="Pong",
        steps=steps,
        environment_seconds=1.0,
        policy_seconds=0.5,
        total_seconds=total,
        returns=tuple(returns),
        recomputed={"conv1": 0.5 * steps / 1000},
    )


@pytest.mark.parametrize("parts", [[3, 2], [4, 0, 1], [0, 0]])
def test_games_are_merged_as_if_one_process_had_played_them(parts):
    returns = np.random.default_rng(0).normal(size=sum(parts)).tolist()
    bounds = np.cumsum([0, *parts])
    shares = [
        summary(returns[begin:end], 1000, total=1.0 + end)
        for begin, end in zip(bounds, bounds[1:], strict=False)
    ]
    merged = merge([share.as_dict() for share in shares])
    count = len(parts)
    expected = summary(returns, 1000 * count, total=1.0 + bounds[-1]).as_dict()
    assert merged["seconds"] == {
        "total": 1.0 + bounds[-1],
        "environment": 1.0 * count,
        "policy": 0.5 * count,
    }
    assert merged["recomputed"] == {"conv1": 0.5}
    assert merged["environment_steps_per_second"] == 1000
    for name in ("steps", "steps_per_second", "episodes"):
        assert merged[name] == expected[name]
    for name in ("mean_return", "std_return"):
        assert merged[name] == pytest.approx(expected[name])
    assert merged.keys() == expected.keys()


def test_videos_are_listed():
    one, two, three = ({"video": v, "frames": 3} for v in "abc")
    assert merge([{"videos": [one, two]}, three]) == {
        "videos": [one, two, three]
    }


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({**summary([], 10).as_dict(), "game": "Qbert"}, "Pong; Qbert"),
        (
            {**summary([], 10).as_dict(), "recomputed": {"conv1": 1, "top": 1}},
            "networks: conv1; conv1, top",
        ),
        ({"videos": []}, "some of videos"),
        ({"video": "a", "frames": 3}, "some of videos"),
        ({}, "write"),
    ],
)
def test_what_does_not_belong_together(others, named):
    both = [summary([1.0], 10).as_dict(), others]
    for summaries in both, both[::-1]:
        with pytest.raises(ValueError, match=named):
            merge(summaries)


@pytest.mark.parametrize(
    "others",
    [
        {"steps": "10"},
        {"game": ["Pong"]},
        {"seconds": 3},
        {"seconds": {**summary([1.0], 10).as_dict()["seconds"], "update": 1.0}},
        {"seconds": {"total": 1.0}},
        {"mean_return": None},
        {"recomputed": {"conv1": None}},
    ],
)
def test_what_is_no_summary_of_a_game(others):
    kind(summary([1.0], 10).as_dict())
    with pytest.raises(ValueError, match="write"):
        kind({**summary([1.0], 10).as_dict(), **others})


@pytest.mark.parametrize(
    "other", [[], 3, None, {"videos": 3}, {"videos": [1]}, {"frames": 3}]
)
def test_what_is_no_summary_of_videos(other):
    with pytest.raises(ValueError, match="write"):
        kind(other)


def test_the_command(tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        file.write_text(json.dumps(summary([1.0], 10).as_dict()))

    def command(*paths):
        return children.run(
            *(sys.executable, "-m", "reuse_tf.benchmark", "merge"),
            f"--summaries={','.join(map(str, paths))}",
            f"--out={tmp_path / 'all.json'}",
        )

    done = command(*files)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 summaries: Pong, 20 steps, 2 episodes\n"
    assert json.loads((tmp_path / "all.json").read_text())["episodes"] == 2
    for paths in (files[0], files[0]), (files[0], tmp_path / "all.json"):
        done = command(*paths)
        assert done.returncode == 1
        assert "must be different files" in done.stderr
    files[1].write_text("[]")
    done = command(*files)
    assert done.returncode == 1
    assert "b.json' is no summary" in done.stderr.splitlines()[-1]
    assert json.loads((tmp_path / "all.json").read_text())["episodes"] == 2
