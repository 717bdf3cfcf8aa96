"""What the README and the guides show is so: examples, commands, links."""

import pathlib
import re

import keras
import numpy as np
import pytest

from reuse_tf import Runner

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def run_blocks(name, capsys):
    """Runs the blocks of a page, one after the other: names and output."""
    names, output = {}, ""
    for block in blocks(name):
        exec(compile(block, name, "exec"), names)
        printed = capsys.readouterr().out
        output += printed
        lines = iter(printed.splitlines())
        for line in re.findall(r"# -> (.+)", block):
            assert line in lines, f"{name}: expected {line!r} in {printed!r}"
    return names, output


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_examples_of_the_readme_run_one_after_the_other(capsys):
    names, printed = run_blocks("README.md", capsys)
    video, model = names["video"], names["model"]
    assert "Stats(" in printed
    assert re.search("conv2d.* IncrementalConv2D +reuses", printed)
    assert re.search("Flatten +plain", printed)
    assert "% of the multiply-adds" in printed
    assert names["camera"].stats.frames == 60
    np.testing.assert_allclose(
        names["logits"], model(video, training=True), rtol=1e-4, atol=1e-5
    )
    assert [gradient.shape for gradient in names["gradients"]] == [
        variable.shape for variable in model.trainable_variables
    ]


GUIDES = [n for n in NAMES if n != "README.md" and blocks(n)]


@pytest.mark.parametrize("name", GUIDES)
def test_the_examples_of_a_guide_run_one_after_the_other(name, capsys):
    run_blocks(name, capsys)


def test_there_are_guides_with_examples():
    assert {"docs/layers.md", "docs/runner.md", "docs/training.md"} < {*GUIDES}
    assert {"docs/cameras.md", "docs/ops.md"} < {*GUIDES}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def targets(page):
    """What a page links to and shows, of this repository."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    return [
        (page.parent / link.partition("#")[0]).resolve()
        for link in links
        if not re.match(r"https?://|#", link)
    ]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_a_page_links_to_is_there(page):
    assert [path for path in targets(page) if not path.exists()] == []


def test_every_figure_is_shown():
    shown = {path for page in PAGES for path in targets(page)}
    figures = {*ROOT.glob("figures/*.png"), *ROOT.glob("figures/*.gif")}
    assert len(figures) > 30
    assert {figure.resolve() for figure in figures} <= shown


def commands():
    """The commands on lines of their own, as (page, program, flags)."""
    for name, page in zip(NAMES, PAGES, strict=True):
        text = page.read_text(encoding="utf-8")
        for line in re.findall(r"^    python (.+)", text, re.M):
            program, *arguments = line.removeprefix("-m ").split()
            flags = [a[2:].split("=")[0] for a in arguments if a[:2] == "--"]
            yield name, program, flags


def test_commands_have_no_unknown_flag():
    ours = [ROOT / f"{name}.py" for name in ("program", "atari_flags")]
    count = 0
    for name, program, flags in commands():
        files = [ROOT / program, *ours]
        if program == "reuse_tf.benchmark":
            files = sorted(ROOT.glob("reuse_tf/benchmark/*.py"))
        sources = "".join(file.read_text(encoding="utf-8") for file in files)
        for flag in flags:
            count += 1
            assert f'"{flag}"' in sources, f"{name}: {program} --{flag}"
    assert count > 30


def test_the_figure_of_how_it_works():
    text = (ROOT / "docs/how_it_works.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    ((?:[.o] )+) +((?:\d ?)+)", text, re.M)
    ball = np.array([[c == "o" for c in left.split()] for left, _ in lines])
    # The middle of frames that are two pixels higher and wider.
    frames = np.pad(ball.reshape(2, 5, 8), [(0, 0), (1, 1), (1, 1)])
    frames = frames.astype(np.uint8)
    ids = np.array([right.split() for _, right in lines], int).reshape(2, 5, 8)

    patches = np.lib.stride_tricks.sliding_window_view(frames, (3, 3), (1, 2))
    numbers = {}
    for place in np.ndindex(ids.shape):
        patch = patches[place].tobytes()
        assert ids[place] == numbers.setdefault(patch, len(numbers))

    runner = Runner(
        keras.Sequential(
            [
                keras.Input((7, 10, 1)),
                keras.layers.Conv2D(2, 3, name="map"),
                keras.layers.Flatten(),
                keras.layers.Dense(1),
            ]
        )
    )
    runner.step(frames[:1, ..., None])
    first = runner.stats.layers["map"]
    runner.step(frames[1:, ..., None])
    both = runner.stats.layers["map"]
    assert f"{first.changed} positions, {first.new_rows} distinct" in text
    assert f"{both.changed - first.changed} positions see a change" in text
    assert both.new_rows == first.new_rows
