"""The house as a whole: what a script says it needs is what it imports, and imports point one way."""

import argparse
import ast
import importlib
import re
import shlex
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import training

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


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_list_of_files_in_the_readme_is_in_this_order():
    """`Imports only ever point down this list.`"""
    rows = re.findall(r"^\| ((?:`\w+\.py`(?:, )?)+) \|", README, re.MULTILINE)
    floor = {name: i for i, row in enumerate(rows) for name in re.findall(r"(\w+)\.py", row)}
    assert set(floor) == set(SCRIPTS)
    for name in SCRIPTS:  # a script and its trial share a row
        assert all(floor[name] <= floor[below] for below in imported(name) & set(SCRIPTS))


def commands():
    """What README and docstrings tell people to type: {"python vp_sde.py --steps 300", ...}."""
    pages = [README, *(ast.get_docstring(tree, clean=False) for tree in TREES.values())]
    found = [re.findall(r"`(python [\w/]+\.py[^`]*)`|^ *(python [\w/]+\.py\b.*?)(?: {2,}.*)?$", page, re.MULTILINE)
             for page in pages]
    return sorted({max(pair).split("#")[0].strip() for pairs in found for pair in pairs})


class Parsed(Exception):
    """The command line was read without complaint."""


@pytest.mark.parametrize("command", commands())
def test_commands_that_people_are_told_to_type_are_understood(command, monkeypatch):
    values = {"N": "7", "B": "0.5", "FILE": "file"}
    path, *argv = [values.get(word, word) for word in shlex.split(command)[1:]]
    assert (ROOT / path).is_file()
    assert all((ROOT / word).exists() for word in argv if word.startswith(("assets/checkpoints", "configs/")))
    script = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    monkeypatch.chdir(ROOT)
    if hasattr(script, "make_parser"):
        training.parse(script.make_parser(), argv)
        return
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser, *words):
        parse(parser, *words)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setattr(sys, "argv", [path, *argv])
    with pytest.raises(Parsed):
        script.main()


def test_the_lines_of_python_in_the_readme_run(monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    errors = [float(line.rsplit(None, 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(errors) == 11 and errors[-1] < 0.03 < errors[0]  # guesses at first, crystals at last


def test_the_judge_shares_no_code_with_the_judged():
    assert "torch" not in needed("reference_gmm_sde")


def test_the_citation_has_the_title_of_the_readme():
    heading = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert f"\ntitle: {heading.removeprefix('# ')}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
