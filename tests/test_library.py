"""Which library is loaded, of those that an installation has."""

import pathlib
import re
import sys

import children
import pytest
import tensorflow as tf

from reuse_tf import library

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _folder(path, *names):
    path.mkdir()
    for name in names:
        (path / name).touch()
    return path


def _import(code="", **environment):
    """Imports the package in a process of its own, after some code."""
    return children.run(
        *(sys.executable, "-c", f"{code}\nimport reuse_tf"),
        env=children.environment(**environment),
    )


def test_libraries_are_found_by_their_minor(tmp_path):
    one = _folder(
        tmp_path / "one",
        "libreuse_tf-2.9.so",
        "libreuse_tf-2.10.so",
        # Of a layout that is not ours.
        "libreuse_tf.so",
        "libreuse_tf-2.so",
        "libreuse_tf-2.11.0.so",
        "libreuse_tf-x2.12.so",
        "libreuse_tf-2.13.so.bak",
        "libother-2.14.so",
    )
    two = _folder(tmp_path / "two", "libreuse_tf-2.10.so", "libreuse_tf-2.8.so")
    found = library.installed([one, tmp_path / "none", two])
    assert list(found.items()) == [
        ("2.8", two / "libreuse_tf-2.8.so"),
        ("2.9", one / "libreuse_tf-2.9.so"),
        ("2.10", one / "libreuse_tf-2.10.so"),
    ]


@pytest.mark.parametrize("version", ["2.20.0", "2.20.1", "2.20.0-rc1"])
def test_the_library_of_the_minor_is_chosen(version):
    libraries = {"2.2": "older", "2.20": "this", "2.21": "newer"}
    assert library.choose(libraries, version) == "this"


@pytest.mark.parametrize(
    "minors, named",
    [
        (["2.21"], "for TensorFlow 2.21 here"),
        (["2.19", "2.21"], "for TensorFlow 2.19 or 2.21 here"),
        (["2.18", "2.19", "2.21"], "for TensorFlow 2.18, 2.19 or 2.21 here"),
    ],
)
def test_none_for_this_minor(minors, named):
    with pytest.raises(ImportError, match=re.escape(named)) as error:
        library.choose(dict.fromkeys(minors, "path"), "2.20.3")
    assert "TensorFlow 2.20.3 is installed" in str(error.value)
    assert "pip install 'tensorflow==2.21.*'" in str(error.value)
    assert "pip install --no-build-isolation -e ." in str(error.value)


def test_none_at_all():
    with pytest.raises(ImportError, match=r"libreuse_tf-2\.20\.so is missing"):
        library.choose({}, "2.20.0")


def test_this_installation_has_one_for_its_tensorflow():
    minor = ".".join(tf.__version__.split(".")[:2])
    path = library.installed(library.folders())[minor]
    assert path.name == f"libreuse_tf-{minor}.so"
    assert path.is_file()


def test_import_beside_another_tensorflow():
    result = _import(
        "import tensorflow as tf; tf.__version__ = '2.1.0'", REUSE_TF_LIBRARY=""
    )
    assert result.returncode != 0
    error = result.stderr.splitlines()[-1]
    assert error.startswith("ImportError: reuse_tf is built for TensorFlow")
    for minor in library.installed(library.folders()):
        assert minor in error
    assert "TensorFlow 2.1.0 is installed" in error


def test_import_of_another_build(tmp_path):
    """$REUSE_TF_LIBRARY is loaded, and nothing else."""
    copy = tmp_path / "another.so"
    copy.write_bytes(pathlib.Path(library.path()).read_bytes())
    code = "from reuse_tf import library; print(library.path())"
    result = _import(code, REUSE_TF_LIBRARY=str(copy))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(copy)
    copy.unlink()
    result = _import(REUSE_TF_LIBRARY=str(copy))
    assert result.returncode != 0
    assert str(copy) in result.stderr


def test_import_with_another_backend():
    result = _import(
        "import keras; keras.backend.backend = lambda: 'jax'",
    )
    assert result.returncode != 0
    assert "KERAS_BACKEND=tensorflow" in result.stderr


def test_one_range_of_minors():
    """What pip installs, what it builds with, and what the wheel is for."""
    script = ROOT / "tools" / "build_wheel"
    if not script.exists():
        pytest.skip("the sources are not beside the tests")
    line = r"^\[ \$# -gt 0 \] \|\| set -- (.*)$"
    minors = re.search(line, script.read_text(), re.MULTILINE)[1].split()
    first, last = minors[0], minors[-1].split(".")
    wanted = f"tensorflow>={first},<{last[0]}.{int(last[1]) + 1}"
    text = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r'"(tensorflow[<=>][^"]*)"', text) == [wanted] * 2
