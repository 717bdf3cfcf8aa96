"""Frames: how much of them changes in each game, and how much of it is new.

Of the frames that `infer` and `train` play: in per cent of the frame, means
over all frames but the first. Results in `--out` are kept: only what is
missing is computed.
"""

import numpy as np
from absl import flags

from reuse_tf.benchmark import grid, replay, report
from reuse_tf.playing.changes import Changes, same

# The columns, and what they are.
PARTS = {
    "pixels": "pixels that changed",
    "box": "the bounding box of these pixels",
    "positions": "positions that see one of them, by two 3x3 convolutions",
    "new": "such positions whose receptive field was never seen before",
}
KEY = ("game", "downsample", "steps", "seed")

FLAGS = flags.FlagValues()
GAMES = grid.Games(FLAGS)
OUT = report.define_out(FLAGS)


def measure(game, *, downsample, steps, seed):
    """Measures the frames of one game.

    Args:
        game: Its short name.
        downsample: See `atari.make`.
        steps: The number of frames.
        seed: See `Replay`.

    Returns:
        A dict of the keys of `PARTS`, each in per cent of the frame.
    """
    changes = None
    sums = np.zeros(len(PARTS))
    frames = replay.frames(game, downsample=downsample, steps=steps, seed=seed)
    for i, frame in enumerate(frames):
        # Two 3x3 windows see what one of 5x5 sees.
        changes = changes or Changes([same(frame.shape, 5)])
        pixels, positions, new = changes.update(frame)
        if i > 0:
            sums += [pixels.sum(), _box(pixels), positions.sum(), new.sum()]
    per_cent = 100 * sums / (max(1, steps - 1) * pixels.size)
    return dict(zip(PARTS, per_cent.round(4).tolist(), strict=True))


def _box(pixels):
    """The area of the bounding box of the pixels that are set."""
    if not pixels.any():
        return 0
    sides = (np.flatnonzero(pixels.any(axis)) for axis in (0, 1))
    return np.prod([side[-1] - side[0] + 1 for side in sides])


def main():
    """Measures what the flags describe; prints and writes the results."""
    games = GAMES.games
    results = report.Results(OUT.value, KEY, PARTS)
    for downsample in GAMES.downsample:
        print(
            f"{GAMES.steps} frames of random play, downsample {downsample}, in "
            "per cent of a frame.\n"
        )
        table = report.NumberTable("game", dict.fromkeys(PARTS, ".3f"))
        for game in games:
            asked = {
                "game": game,
                "downsample": downsample,
                "steps": GAMES.steps,
                "seed": GAMES.seed,
            }
            row = results.row(asked, lambda asked=asked: measure(**asked))
            table.print_row(game, [float(row[name]) for name in PARTS])
        table.print_summary()
        parts = "; ".join(f"{name}: {text}" for name, text in PARTS.items())
        print(f"\n{parts[0].upper()}{parts[1:]}.\n")
