"""The other instruction sets of this processor, by the tests of exactness.

A process computes with one set: the fastest, or the one that REUSE_TF_ISA
names. The bits of results are the same within a set.
"""

import pathlib
import re
import sys

import children
import pytest

from reuse_tf import ops

FOLDER = pathlib.Path(__file__).resolve().parent
# Layers, networks, gradients: all that is promised bit for bit.
FILES = ["activations", "conv2d", "dense", "gradient", "runner"]
FILES += ["runner_graphs"]
OTHERS = [s for s in ops.INSTRUCTION_SETS if s != ops.INSTRUCTION_SET]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", OTHERS)
def test_exact_under_another_set(name):
    result = children.run(
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *(FOLDER / f"test_{file}.py" for file in FILES),
        env=children.environment(REUSE_TF_ISA=name, REUSE_TF_EXAMPLES="16"),
        timeout=1400,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 400


def test_the_set_is_the_one_that_is_named():
    code = "from reuse_tf import ops; print(ops.INSTRUCTION_SET)"
    for name in ops.INSTRUCTION_SETS:
        result = children.run(
            *(sys.executable, "-c", code),
            env=children.environment(REUSE_TF_ISA=name),
        )
        assert result.stdout.split()[-1] == name


def test_an_unknown_set_is_refused():
    result = children.run(
        *(sys.executable, "-c", "import reuse_tf"),
        env=children.environment(REUSE_TF_ISA="mmx"),
    )
    assert result.returncode != 0
    assert "one of " + ", ".join(ops.INSTRUCTION_SETS) in result.stderr
    assert "Received: 'mmx'" in result.stderr
