"""Puts together summaries of `infer.py` or `watch.py` with `--shard`.

Shares of a game that were played at the same time: steps, episodes and seconds
of environments and policies are sums, the total is that of the longest, and
returns are those of all episodes. Of videos it is a list.
"""

import json
import math
import os

from absl import flags

from reuse_tf import files

FLAGS = flags.FlagValues()
SUMMARIES = flags.DEFINE_list(
    "summaries",
    None,
    "Files of --summary_json, separated by commas.",
    flag_values=FLAGS,
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "File to write theirs to, as JSON. By default it is printed.",
    flag_values=FLAGS,
)


_NUMBER = (int, float)
# What is looked at, and its types.
_GAME = {"game": str, "steps": int, "episodes": int, "recomputed": dict}
_SECONDS = dict.fromkeys(["total", "environment", "policy"], _NUMBER)
_RETURNS = dict.fromkeys(["mean_return", "std_return"], _NUMBER)
_VIDEO = {"video": str, "frames": int}


def merge(summaries):
    """Returns the summary of several shares.

    Args:
        summaries: Dicts that `infer.py` or `watch.py` have written.

    Returns:
        A dict of the same form, but for `recomputed` of a game, which is by
        layer a mean over steps.

    Raises:
        ValueError: If one is no such dict, or they are of different kinds,
            games or networks.
    """
    kinds = {kind(one) for one in summaries}
    if kinds == {"videos"}:
        parts = [one.get("videos", [one]) for one in summaries]
        return {"videos": [video for part in parts for video in part]}
    if kinds != {"a game"}:
        raise ValueError("some summaries are of a game, and some of videos")
    for what, names in (
        ("games", {one["game"] for one in summaries}),
        ("networks", {", ".join(one["recomputed"]) for one in summaries}),
    ):
        if len(names) > 1:
            raise ValueError(
                f"the summaries are of several {what}: "
                f"{'; '.join(sorted(names))}"
            )
    return _merged(summaries[0]["game"], summaries)


def kind(summary):
    """Returns what a summary is of: `"a game"` or `"videos"`.

    Raises:
        ValueError: If it is none of `infer.py` or `watch.py`.
    """
    if (
        _has(summary, _GAME)
        and _has(summary.get("seconds"), _SECONDS)
        and "update" not in summary["seconds"]  # as of train.py
        and (not summary["episodes"] or _has(summary, _RETURNS))
        and _has(
            summary["recomputed"],
            dict.fromkeys(summary["recomputed"], _NUMBER),
        )
    ):
        return "a game"
    videos = [summary]
    if _has(summary, {"videos": list}):
        videos = summary["videos"]
    if all(_has(video, _VIDEO) for video in videos):
        return "videos"
    raise ValueError("it has not what infer.py or watch.py write")


def _has(values, types):
    """Whether this is a dict that has values of these types."""
    return isinstance(values, dict) and all(
        isinstance(values.get(name), type_) for name, type_ in types.items()
    )


def _merged(game, summaries):
    steps = sum(one["steps"] for one in summaries)
    seconds = {
        name: sum(one["seconds"][name] for one in summaries)
        for name in ("environment", "policy")
    }
    total = max(one["seconds"]["total"] for one in summaries)
    ended = [one for one in summaries if one["episodes"]]
    episodes = sum(one["episodes"] for one in ended)
    mean = deviation = None
    if ended:
        sum_ = math.fsum(one["episodes"] * one["mean_return"] for one in ended)
        mean = sum_ / episodes
        # The variance within shares and that of their means.
        squares = math.fsum(
            one["episodes"]
            * (one["std_return"] ** 2 + (one["mean_return"] - mean) ** 2)
            for one in ended
        )
        deviation = math.sqrt(squares / episodes)
    return {
        "game": game,
        "steps": steps,
        "seconds": {"total": total, **seconds},
        "steps_per_second": steps / total if total else 0.0,
        "environment_steps_per_second": steps / seconds["environment"]
        if seconds["environment"]
        else 0.0,
        "episodes": episodes,
        "mean_return": mean,
        "std_return": deviation,
        "recomputed": {
            name: math.fsum(
                one["steps"] * one["recomputed"][name] for one in summaries
            )
            / max(1, steps)
            for name in summaries[0]["recomputed"]
        },
    }


def main():
    """Merges the files of the flags; writes what they make, or prints it."""
    if not SUMMARIES.value:
        raise flags.Error("--summaries must be files, separated by commas")
    paths = [*SUMMARIES.value, *([OUT.value] if OUT.value else [])]
    if len({*map(os.path.realpath, paths)}) < len(paths):
        raise flags.Error("--summaries and --out must be different files")
    summaries = []
    for path in SUMMARIES.value:
        with open(path, encoding="utf-8") as file:
            try:
                summaries.append(json.load(file))
                kind(summaries[-1])
            except ValueError as error:
                raise ValueError(f"{path!r} is no summary: {error}") from error
    merged = merge(summaries)
    text = json.dumps(merged, indent=2) + "\n"
    if OUT.value is None:
        print(text, end="")
        return
    files.write(OUT.value, text.encode())
    if "videos" in merged:
        what = f"{len(merged['videos'])} videos"
    else:
        what = "{game}, {steps} steps, {episodes} episodes".format(**merged)
    print(f"{len(summaries)} summaries: {what}")
