"""The house as a whole: what a script says it needs is what it imports, and imports point one way."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {path.stem: path for path in sorted(ROOT.glob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SCRIPTS.items()}

OPTIONAL = {"torchmetrics", "wandb"}  # imported only when their flag is given

PLUMBING = {"data", "metrics", "pictures", "training", "make_gif"}
MAY_IMPORT = {  # of this repository, from the top floor to the cellar; a new file needs a line here
    "gallery": {"audit", "latent_prior", "vae_gan", "vae", "dddm", "vp_sde", "reference_gmm_sde"} | PLUMBING,
    "audit": {"latent_prior", "vae_gan", "vae", "dddm", "vp_sde", "reference_gmm_sde"} | PLUMBING,
    "latent_prior": {"vae"} | PLUMBING,
    "dddm": {"vae_gan", "reference_gmm_sde"} | PLUMBING,
    "vae_gan": {"vae"} | PLUMBING,
    "vae": PLUMBING,
    "vp_sde": {"reference_gmm_sde"} | PLUMBING,
    "metrics": {"data", "reference_gmm_sde"},
    "reference_audit": {"reference_gmm_sde", "make_gif"},
    "reference_gmm_sde": {"make_gif"},
    "training": {"data", "pictures", "make_gif"},
    "pictures": {"make_gif"},
    "data": {"make_gif"},
    "make_gif": set(),
}


@cache
def imported(name, nested=True):
    """Top-level names of the modules that a script imports; nested: inside functions as well."""
    found, tree = set(), TREES[name]
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def needed(name):
    """Foreign packages that a script and the siblings it imports, and theirs, import: names of PyPI."""
    seen, todo = set(), [name]
    while todo:
        if (at := todo.pop()) not in seen:
            seen.add(at)
            todo += imported(at) & set(SCRIPTS)
    foreign = set().union(*(imported(at) for at in seen)) - set(SCRIPTS) - set(sys.stdlib_module_names)
    foreign = foreign - OPTIONAL
    foreign |= {"pillow"} if "imageio" in foreign else set()  # by which imageio writes
    return {"pillow" if package == "PIL" else package for package in foreign}


def requirements():
    """The lines of requirements.txt by name."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n")
    return {re.split(r"[^\w-]", line)[0]: line.strip() for line in lines if line.strip() and not line.startswith("#")}


def is_command(tree):
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if is_command(tree)])
def test_a_script_brings_the_requirements_of_all_it_imports(name):
    """`uv run NAME.py` reads this block (PEP 723) and needs nothing installed."""
    text = SCRIPTS[name].read_text(encoding="utf-8")
    blocks = re.findall(r"^# /// script$\n((?:^#(?:| .*)$\n)+?)^# ///$", text, re.MULTILINE)
    listed = {package: line for package, line in requirements().items() if package in needed(name)}
    expected = "# /// script\n# dependencies = " + str(list(listed.values())).replace("'", '"') + "\n# ///"
    assert len(blocks) == 1, f"{name}.py needs, below its docstring,\n{expected}"
    block = tomllib.loads(re.sub(r"^# ?", "", blocks[0], flags=re.MULTILINE))
    assert sorted(block["dependencies"]) == sorted(listed.values()), f"expected {expected}"
    assert block["requires-python"] == ">=3.11"


def test_the_requirements_are_what_is_imported():
    assert set().union(*map(needed, SCRIPTS)) == set(requirements())


def test_every_file_has_its_floor():
    assert set(SCRIPTS) <= set(MAY_IMPORT)


@pytest.mark.parametrize("name", SCRIPTS)
def test_imports_point_down(name):
    ours = imported(name) & set(SCRIPTS)
    if name == "reference_gmm_sde":  # its trial stands in a file of its own, and is sent for when --audit asks
        assert "reference_audit" not in imported(name, nested=False)
        ours -= {"reference_audit"}
    assert ours <= MAY_IMPORT[name]
    floors = list(MAY_IMPORT)
    assert all(floors.index(name) < floors.index(below) for below in MAY_IMPORT[name])


def test_the_judge_shares_no_code_with_the_judged():
    assert "torch" not in needed("reference_gmm_sde")


def test_the_citation_has_the_title_of_the_readme():
    heading = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert f"\ntitle: {heading.removeprefix('# ')}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
