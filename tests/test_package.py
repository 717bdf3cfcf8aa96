"""What the package needs, what its extras add, and the version it states."""

import json
import pathlib
import re
import sys

import children
import pytest

import reuse_tf

ROOT = pathlib.Path(__file__).parent.parent
# Modules that `pip install reuse-tf` does not install. Keras imports some of
# them where they are.
EXTRAS = {
    *("PIL", "ale_py", "av", "gymnasium", "matplotlib", "pandas", "seaborn"),
    "torch",
}


@pytest.fixture(scope="module")
def project():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]


# -- Extras ------------------------------------------------------------------

# A program's arguments, the modules that are not there, and what it ends with.
PROGRAMS = [
    (["train.py"], EXTRAS, "pip install 'reuse-tf[atari]'"),
    (["infer.py"], EXTRAS, "pip install 'reuse-tf[atari]'"),
    (["watch.py", "--video=a.mp4"], EXTRAS, "pip install 'reuse-tf[video]'"),
    (["-m", "layer"], EXTRAS, "pip install 'reuse-tf[benchmark]'"),
    # A part of an extra: told before anything is trained or loaded.
    (["train.py"], {"seaborn"}, "seaborn is not installed: pip install"),
    (["infer.py"], {"PIL"}, "PIL is not installed: pip install"),
    (["watch.py", "--video=a.mp4"], {"av"}, "av is not installed: pip install"),
    # With its own extra alone a program goes on to what it is told.
    (["train.py", "--game=Pogn"], {"av", "torch"}, "Unknown game 'Pogn'"),
    (["infer.py", "--game=Pogn"], {"av", "torch"}, "Unknown game 'Pogn'"),
    (["watch.py", "--video=a.mp4"], EXTRAS - {"PIL", "av"}, "'a.mp4': No such"),
    (["-m", "statistics", "--games=Pogn"], {"torch"}, "Unknown game 'Pogn'"),
]

# One process imports TensorFlow, and is forked for each program. That is before
# TensorFlow does anything, as its threads are missing in the new process.
_CHILD = r"""
import importlib.abc, importlib.metadata, json, os, pathlib, runpy
import signal, sys

root, missing, programs = json.loads(sys.argv[1])
asked = []

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in missing:
            asked.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def run(argv, modules):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(120)
        os.dup2(writer, 2)
        sys.argv, missing[:] = argv, modules
        if argv[0] == "-m":
            runpy.run_module(
                "reuse_tf.benchmark", run_name="__main__", alter_sys=True
            )
        else:
            runpy.run_path(os.path.join(root, argv[0]), run_name="__main__")
        sys.exit()
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        text = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text

def message_of(module):
    try:
        importlib.import_module(module)
    except ImportError as error:
        return str(error)

sys.meta_path.insert(0, Missing())
import keras, numpy, tensorflow
asked.clear()
import reuse_tf
found = {"programs": [run(argv, modules) for argv, modules in programs]}
model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)])
outputs = reuse_tf.Runner(model).step(numpy.zeros([1, 8, 8, 1], "float32"))
found["shape"] = outputs.shape
found["asked"] = asked.copy()
package = pathlib.Path(reuse_tf.__file__).parent
found["modules"] = {
    name: message_of(name)
    for path in package.rglob("*.py")
    for name in [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        .removesuffix(".__init__")
    ]
}

def version(name):
    raise importlib.metadata.PackageNotFoundError(name)

importlib.metadata.version = version
found["version"] = importlib.reload(reuse_tf).__version__
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process without the extras finds."""
    arguments = [
        str(ROOT),
        sorted(EXTRAS),
        [(argv, sorted(modules)) for argv, modules, _ in PROGRAMS],
    ]
    path = tmp_path_factory.mktemp("package") / "child.py"
    path.write_text(_CHILD, encoding="utf-8")
    result = children.run(
        sys.executable,
        path,
        json.dumps(arguments),
        cwd=path.parent,
        # TensorFlow, imported before, looks for GPUs in app.run and says so.
        env=children.environment(
            PYTHONPATH=str(ROOT), TF_CPP_MIN_LOG_LEVEL="3"
        ),
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_package_itself_asks_for_no_extra(found):
    assert found["asked"] == []
    assert found["shape"] == [1, 6, 6, 2]


def test_a_module_without_its_extra_is_one_clear_line(found):
    lacking = {}
    for name, message in found["modules"].items():
        if message is not None:
            match = re.fullmatch(
                r"The package (\w+) is not installed: "
                r"pip install 'reuse-tf\[(\w+)\]'",
                message,
            )
            assert match and match[1] in EXTRAS, (name, message)
            lacking[name] = match[2]
    assert lacking["reuse_tf.atari"] == "atari"
    assert lacking["reuse_tf.learning.training"] == "atari"
    assert lacking["reuse_tf.learning.curve"] == "atari"
    assert lacking["reuse_tf.playing.record"] == "atari"
    assert lacking["reuse_tf.playing.watch"] == "video"
    assert lacking["reuse_tf.benchmark.figures"] == "figures"
    assert lacking["reuse_tf.benchmark.pytorch"] == "benchmark"
    for name in found["modules"].keys() - lacking:
        assert not name.startswith("reuse_tf.atari")
    assert not lacking.keys() & {
        *("reuse_tf", "reuse_tf.runner", "reuse_tf.policies"),
        *("reuse_tf.learning.settings", "reuse_tf.policies.run_directory"),
    }


@pytest.mark.parametrize("index", range(len(PROGRAMS)))
def test_a_program_without_its_extra_is_one_clear_line(found, index):
    (name, *_), _, end = PROGRAMS[index]
    code, text = found["programs"][index]
    name = "reuse_tf.benchmark" if name == "-m" else name
    assert re.fullmatch(rf"{name}: .*\n", text) and end in text
    assert code == 1


def expanded(extras, name):
    """The requirements of an extra, and of those that it names."""
    requirements = set()
    for requirement in extras[name]:
        match = re.fullmatch(r"reuse-tf\[(.*)\]", requirement)
        for other in match[1].split(",") if match else []:
            requirements |= expanded(extras, other)
        if not match:
            requirements.add(requirement)
    return requirements


def test_all_is_the_union_of_what_users_may_want(project):
    extras = project["optional-dependencies"]
    wanted = extras.keys() - {"all", "docs", "test"}
    assert wanted >= {"atari", "benchmark", "figures", "video"}
    assert expanded(extras, "all") == set().union(
        *(expanded(extras, name) for name in wanted)
    )


def test_the_package_needs_three_others(project):
    names = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert names == {"keras", "numpy", "tensorflow"}


# -- The version ---------------------------------------------------------------


def test_one_version_is_stated_everywhere(project):
    version = project["version"]
    assert reuse_tf.__version__ in (version, "0+unknown")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.M) == [version]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = re.findall(r"^## \[(\d.*?)\] - (.*)$", changelog, re.M)
    assert entries[0][0] == version
    assert f"date-released: {entries[0][1]}\n" in citation


def test_a_version_where_nothing_is_installed(found):
    assert found["version"] == "0+unknown"
