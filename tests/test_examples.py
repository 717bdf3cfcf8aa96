"""The examples run, from beginning to end, in a process of their own."""

import pathlib
import re
import sys

import children

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def test_tour():
    # Within a minute where nothing else runs.
    child = children.run(sys.executable, EXAMPLES / "tour.py")
    assert child.returncode == 0, child.stderr
    printed = child.stdout
    assert re.search(r"IncrementalConv2D +reuses", printed)
    assert re.search(r"recomputed \d+\.\d % of its positions", printed)
    assert re.search(r"\d+\.\d % of the multiply-adds", printed)
    assert printed.count("mean reward") == 5
    assert printed.endswith("done\n")


def test_the_tour_has_no_need_of_what_is_not_required():
    text = (EXAMPLES / "tour.py").read_text(encoding="utf-8")
    imported = re.findall(r"^ *(?:import|from) (\S+)", text, re.M)
    assert set(imported) == {"keras", "numpy", "reuse_tf", "tensorflow"}
    assert len(re.findall("^# %% ", text, re.M)) >= 8
