"""The kernels' own test programs, compiled in several ways."""

import pathlib
import shutil

import children
import pytest

from reuse_tf import ops

ROOT = pathlib.Path(__file__).resolve().parents[1]
KERNELS = ROOT / "custom_ops" / "kernels"
COMPILER = shutil.which("c++") or shutil.which("g++")
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{ROOT}"]

_CHECKED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
BUILDS = {
    "optimized": ["-O3"],
    "address and undefined": [*_CHECKED, "-fsanitize=address,undefined"],
    "thread": [*_CHECKED, "-fsanitize=thread"],
}
# All, by their folder and name.
PROGRAMS = sorted(
    str(path.relative_to(KERNELS).with_suffix(""))
    for path in KERNELS.glob("*/*_test.cc")
)
# Those that do not try every instruction set by themselves.
UNDER_EVERY_SET = ["graph/structure_test", "graph/network_test"]
# Of one compilation or program, and of a test that waits for all of them.
_SECONDS = 900
pytestmark = pytest.mark.timeout(3600)


def run(*command, **environment):
    result = children.run(
        *command, timeout=_SECONDS, env=children.environment(**environment)
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module", params=BUILDS)
def build(request, tmp_path_factory):
    """A function from a source to its object file, in one kind of build."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    if not KERNELS.exists():
        pytest.skip("the sources are not beside the tests")
    folder = tmp_path_factory.mktemp("build")
    flags = [*FLAGS, *BUILDS[request.param]]

    def compiled(source):
        target = folder / f"{source.parent.name}-{source.stem}.o"
        if not target.exists():
            run(COMPILER, *flags, "-c", source, "-o", target)
        return target

    compiled.kind = request.param
    compiled.link = lambda *objects: run(COMPILER, *flags, *objects)
    return compiled


def instruction_sets(name, kind):
    """Those to run a program under. Threads are the same under each."""
    every = name in UNDER_EVERY_SET and kind != "thread"
    return ops.INSTRUCTION_SETS if every else [ops.INSTRUCTION_SET]


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_passes(build, name, tmp_path):
    sources = [
        path
        for path in sorted(KERNELS.glob("*/*.cc"))
        if not path.stem.endswith("_test")
    ]
    program = tmp_path / "program"
    build.link(*map(build, [*sources, KERNELS / f"{name}.cc"]), "-o", program)
    for isa in instruction_sets(name, build.kind):
        report = run(program, REUSE_TF_ISA=isa)
        counts, what = report.splitlines()[-1].split("; ")
        checks, failed = counts.split(", ")
        # It has compared something.
        assert int(checks.split()[0]) > 1_000
        assert failed == "0 failed"
        assert what == f"instruction set {isa}"


def test_every_folder_has_programs():
    assert {name.split("/")[0] for name in PROGRAMS} == {
        path.name for path in KERNELS.iterdir() if path.name != "testing"
    }
