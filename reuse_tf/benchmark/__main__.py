"""The program `python -m reuse_tf.benchmark COMMAND [flags]`.

A command is a module of this package that defines `FLAGS`, its own flags, and
`main()`, which runs once they are parsed.
"""

import sys

from absl import flags

from reuse_tf import process
from reuse_tf.benchmark import infer, layer, statistics, train

COMMANDS = {
    "infer": infer,
    "train": train,
    "layer": layer,
    "statistics": statistics,
}


def main(argv):
    """Runs one command.

    Args:
        argv: The program, the command, and the command's flags.
    """
    name, *arguments = argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print("python -m reuse_tf.benchmark COMMAND [--help] [flags]\n")
        for command, module in COMMANDS.items():
            print(f"  {command}: {module.__doc__.splitlines()[0]}")
        return
    if name not in COMMANDS:
        _fail(f"expected a command ({', '.join(COMMANDS)}), got {name!r}")
    command = COMMANDS[name]
    if "--help" in arguments or "-h" in arguments:
        print(f"{command.__doc__}\n{command.FLAGS.get_help()}")
        return
    try:
        _, *stray = command.FLAGS([name, *arguments])
    except flags.Error as error:
        _fail(error)
    if stray:
        _fail(f"unexpected argument {stray[0]!r}")
    process.settle()
    try:
        command.main()
    except flags.Error as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail("interrupted")


def _fail(error):
    """Ends the program with one line on the standard error, exit code 1."""
    sys.exit(f"reuse_tf.benchmark: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main(sys.argv)
