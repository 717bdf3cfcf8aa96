"""The kernels' own test program, compiled in several ways."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
KERNELS = ROOT / "custom_ops" / "kernels"
COMPILER = shutil.which("c++") or shutil.which("g++")

_CHECKED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
BUILDS = {
    "optimized": ["-O3"],
    "address and undefined": [*_CHECKED, "-fsanitize=address,undefined"],
}


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("build", BUILDS)
def test_program_passes(build, tmp_path):
    if not (KERNELS / "kernels_test.cc").exists():
        pytest.skip("the sources are not beside the tests")
    program = tmp_path / "kernels_test"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread"]
    compiled = subprocess.run(
        [COMPILER, *flags, *BUILDS[build], f"-I{ROOT}"]
        + [str(path) for path in sorted(KERNELS.glob("*.cc"))]
        + ["-o", str(program)],
        capture_output=True,
        text=True,
    )
    assert compiled.returncode == 0, compiled.stderr
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    # It has compared something.
    checks, failed = run.stdout.splitlines()[-1].split(";")[0].split(", ")
    assert int(checks.split()[0]) > 100_000
    assert failed == "0 failed"
