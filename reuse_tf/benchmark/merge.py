"""Puts together summaries of `infer.py` or `watch.py` with `--shard`.

Shares of a game that were played at the same time: steps, episodes and seconds
of environments and policies are sums, the total is that of the longest, and
returns are those of all episodes. Of videos it is a list.
"""

import json
import math

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
    "out", None, "File to write theirs to, as JSON.", flag_values=FLAGS
)


def merge(summaries):
    """Returns the summary of several shares.

    Args:
        summaries: Dicts that `infer.py` or `watch.py` have written.

    Returns:
        A dict of the same form, but for `recomputed` of a game, which is by
        layer a mean over steps.

    Raises:
        ValueError: If they are of different kinds or games.
    """
    if all("frames" in one or "videos" in one for one in summaries):
        parts = [one.get("videos", [one]) for one in summaries]
        return {"videos": [video for part in parts for video in part]}
    try:
        games = sorted({one["game"] for one in summaries})
        if len(games) > 1:
            raise ValueError(f"they are of several games: {', '.join(games)}")
        return _merged(games[0], summaries)
    except (KeyError, TypeError) as error:
        raise ValueError(
            "expected summaries of infer.py, or of watch.py: there is no "
            f"{error}"
        ) from error


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
    """Merges the files of the flags; prints and writes what they make."""
    if not SUMMARIES.value:
        raise flags.Error("--summaries must be files, separated by commas")
    summaries = []
    for path in SUMMARIES.value:
        with open(path, encoding="utf-8") as file:
            try:
                summary = json.load(file)
            except ValueError as error:
                raise ValueError(f"{path!r} is no summary: {error}") from error
        if not isinstance(summary, dict):
            raise ValueError(f"{path!r} is no summary")
        summaries.append(summary)
    text = json.dumps(merge(summaries), indent=2) + "\n"
    print(text, end="")
    if OUT.value is not None:
        files.write(OUT.value, text.encode())
