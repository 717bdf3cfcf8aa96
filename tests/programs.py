"""Runs train.py and infer.py in the process of the tests."""

import gc
import sys

import pytest
from absl.testing import flagsaver

import program


def run_here(name, main, *arguments):
    """Runs a program: its exit code, or what it exits with."""
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as exit_:
            program.run(main)
    gc.unfreeze()  # What other tests have made is not to stay.
    return exit_.value.code
