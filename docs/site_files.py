"""Puts into the site what is linked to and lies beside docs/.

Links in the pages are those of the repository, where they can be followed too.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_BESIDE = ("README.md", "CONTRIBUTING.md", "LICENSE", "figures/*.png")
_HOME = "index.md"


def on_files(files, config):
    """Adds the files."""
    for pattern in (*_BESIDE, "figures/*.gif"):
        for path in sorted(_ROOT.glob(pattern)):
            name = _in_site(path.relative_to(_ROOT).as_posix())
            files.append(File.generated(config, name, abs_src_path=str(path)))


def on_page_markdown(markdown, page, config, files):
    """Has links lead to where their targets are in the site."""
    here = page.file.src_uri
    repository = "" if here in (_HOME, "CONTRIBUTING.md") else "docs/"
    folder = posixpath.dirname(repository + here)

    def link(match):
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        if not (_ROOT / path).exists():
            return match[0]  # for the warning of MkDocs
        name = posixpath.relpath(_in_site(path), posixpath.dirname(here) or ".")
        return f"]({name}"

    return re.sub(r"\]\(([^)#:\s]+)(?=[)#])", link, markdown)


def _in_site(path):
    """The name in the site of a path of the repository."""
    return _HOME if path == "README.md" else path.removeprefix("docs/")
