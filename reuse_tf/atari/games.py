"""The names of Atari games."""

import difflib

from reuse_tf.extras import extra

with extra("atari"):
    import ale_py
    import gymnasium as gym

gym.register_envs(ale_py)

_PREFIX, _SUFFIX = "ALE/", "-v5"


def games() -> list[str]:
    """Returns the short names of all games, sorted: `["Adventure", ...]`."""
    return sorted(
        name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        for name in gym.registry
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX)
    )


def short_name(game: str) -> str:
    """Returns the short name of a game, such as `"Pong"`.

    Args:
        game: A short name (`"Pong"`) or a full id (`"ALE/Pong-v5"`).

    Raises:
        ValueError: If there is no such game. The message names the closest.
    """
    if not isinstance(game, str):
        raise ValueError(f"`game` must be a string. Received: game={game!r}")
    name = game.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    by_lower_case = {known.lower(): known for known in games()}
    if by_lower_case.get(name.lower()) == name:
        return name
    closest = difflib.get_close_matches(
        name.lower(), by_lower_case, n=3, cutoff=0.0
    )
    raise ValueError(
        f"Unknown game {game!r}. Closest: "
        f"{', '.join(by_lower_case[match] for match in closest)}."
    )


def full_id(game: str) -> str:
    """Returns the full id of a game, such as `"ALE/Pong-v5"`."""
    return f"{_PREFIX}{short_name(game)}{_SUFFIX}"
