"""The program `python -m reuse_tf.benchmark COMMAND [flags]`.

A command is a module of this package that defines `FLAGS`, its own flags, and
`main()`, which runs once they are parsed.
"""

import contextlib
import os
import sys

from absl import flags

from reuse_tf import files, process
from reuse_tf.extras import extra


def main(argv):
    """Runs one command.

    Args:
        argv: The program, the command, and the command's flags.
    """
    _run("reuse_tf.benchmark", lambda: _main(argv[1:]))


def commands():
    """Returns the commands' modules by name.

    Raises:
        ImportError: If a package that they need is not installed.
    """
    with extra("benchmark"):
        from reuse_tf.benchmark import (
            cameras,
            figures,
            infer,
            layer,
            learners,
            merge,
            networks,
            statistics,
            train,
        )
    return {
        "infer": infer,
        "train": train,
        "layer": layer,
        "networks": networks,
        "learners": learners,
        "cameras": cameras,
        "statistics": statistics,
        "figures": figures,
        "merge": merge,
    }


def _main(arguments):
    known = commands()
    name, *arguments = arguments or ["--help"]
    if name in ("--help", "-h"):
        print("python -m reuse_tf.benchmark COMMAND [--help] [flags]\n")
        for command, module in known.items():
            # python -OO takes all of them away.
            first, *_ = (module.__doc__ or "").splitlines() or [""]
            print(f"  {command}: {first}")
        return
    if name not in known:
        raise flags.Error(
            f"expected a command ({', '.join(known)}), got {name!r}"
        )
    command = known[name]
    if "--help" in arguments or "-h" in arguments:
        print(f"{command.__doc__}\n{command.FLAGS.get_help()}")
        return
    _, *stray = command.FLAGS([name, *arguments])
    if stray:
        raise flags.Error(f"unexpected argument {stray[0]!r}")
    process.settle()
    command.main()


def _run(name, main):
    """Runs a program, and ends it in one line if something goes wrong.

    Args:
        name: The program, which the line begins with.
        main: A function without arguments.
    """
    if sys.stdout is not None:
        # The units of a table are no reason to fail.
        with contextlib.suppress(AttributeError):
            sys.stdout.reconfigure(errors="replace")
    try:
        try:
            main()
        finally:
            _write_out()
    except KeyboardInterrupt:
        text = "interrupted"
    except flags.Error as error:
        text = " ".join(str(error).split())
    except (ImportError, OSError, ValueError) as error:
        text = files.explain(error)
        # Errors of files name them; that of a print, which may not be
        # buffered, does not.
        if isinstance(error, OSError) and error.errno and not error.filename:
            text = f"cannot write to the standard output: {text}"
    else:
        return
    sys.exit(f"{name}: {text}")


def _write_out():
    """Writes what was printed; raises an `OSError` if that is impossible."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        # Python tries again at its end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise


if __name__ == "__main__":
    main(sys.argv)
