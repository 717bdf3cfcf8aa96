"""Runs pytest over its arguments, as the main program of a Bazel test."""

import os
import sys

import pytest

if __name__ == "__main__":
    # Bazel gives the path from the folder it starts the test in, and tests
    # may leave that folder.
    library = os.path.abspath(os.environ["REUSE_TF_LIBRARY"])
    os.environ["REUSE_TF_LIBRARY"] = library
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
