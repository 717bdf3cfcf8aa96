"""What programs that play Atari games share: their flags, and a quiet start."""

import contextlib

from absl import flags

import program


class _FiltersParser(flags.ArgumentParser):
    """Parses positive integers separated by commas."""

    syntactic_help = "positive integers separated by commas"

    def parse(self, argument):
        try:
            filters = [int(count) for count in str(argument).split(",")]
        except ValueError:
            filters = []
        if not filters or min(filters) <= 0:
            raise ValueError(f"expected {self.syntactic_help}, as in 40,80")
        return filters

    def flag_type(self):
        return "list of integers"


GAME = flags.DEFINE_string(
    "game", "Pong", "Atari game, by short name (Pong) or id (ALE/Pong-v5)."
)
NETWORK = flags.DEFINE_enum(
    "network",
    None,
    ["paper", "nature", "impala"],
    "Network of the policy. paper: convolutions and a dense layer. nature: "
    "that of DQN. impala: a residual network.",
)
FILTERS = flags.DEFINE(
    _FiltersParser(),
    "filters",
    None,
    "Filters of each convolution of the network. By default 40,80 for paper, "
    "32,64,64 for nature, and 16,32,32 for the parts of impala.",
    serializer=flags.CsvListSerializer(","),
)
PREPROCESSING = flags.DEFINE_enum(
    "preprocessing",
    None,
    ["paper", "standard"],
    "What of the screen is seen. paper: every n-th pixel in one channel. "
    "standard: four frames of 84 x 84, as channels.",
)
DOWNSAMPLE = flags.DEFINE_integer(
    "downsample",
    2,
    "Keep every n-th pixel of the screen: 1, 2 or 4. For "
    "--preprocessing=paper.",
)
REPEAT_ACTION_PROBABILITY = flags.DEFINE_float(
    "repeat_action_probability",
    0.25,
    "How likely the game does the action before in place of the new one, in "
    "each of the 4 frames of a step. 0: never, as in older results.",
    0.0,
    1.0,
)
STEPS = flags.DEFINE_integer(
    "steps",
    None,
    "Steps of the environments in all. By default 3000, and 1000000 for "
    "train.py --algorithm=ppo and a2c.",
    lower_bound=1,
)
NUM_ENVS = flags.DEFINE_integer(
    "num_envs",
    None,
    "Environments to play at once. By default 1; for train.py 8 with "
    "--algorithm=ppo, and 16 with a2c.",
    lower_bound=1,
)
REUSE = flags.DEFINE_enum(
    "reuse",
    "auto",
    ["auto", "content", "temporal", "none"],
    "What is reused. content: an activation whose inputs were seen before, "
    "anywhere. temporal: one whose inputs are those of the last frame. auto: "
    "content, and temporal while that does not pay. none: nothing, by plain "
    "Keras layers.",
)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Decides the initial weights, the game and the actions.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)


@flags.validator(DOWNSAMPLE, message="must be 1, 2 or 4")
def _is_downsample(value):
    return value in (1, 2, 4)


@contextlib.contextmanager
def loading():
    """`program.loading`, in which the emulator is told to be silent too."""
    with program.loading() as quiet:
        yield
        if quiet:
            import ale_py

            ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
