"""The rules of the house: short files with air, imports that only point down, and pages that tell the truth."""

import argparse
import ast
import dataclasses
import importlib
import json
import re
import shlex
import sys
import tomllib
from functools import cache
from pathlib import Path

from common import cli, runs
from walk import reached

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# From the ground up.  A script imports those to its left; a new one needs its place here.
LECTURES = (
    *("make_gif", "data", "reference_gmm_sde", "vp_sde", "vp_sde_2d", "dddm", "dddm_dit"),
    *("vae", "vae_gan", "latent_prior", "audit", "gallery"),
)
GROUND = {
    *("claims", "cli", "contact_sheet", "distances", "figures", "files", "folders", "frames"),
    *("numerics", "progress", "shapes"),
}
BELOW_COMMON = {"data", "make_gif"}  # of the lectures, all that common/ may import
TORCH_FREE = ["reference_gmm_sde", "audits.reference", "exercises.check"]
HEAVY = {"matplotlib", "imageio", "pooch", "onnx", "onnxscript"}  # imported inside the functions that need them
OPTIONAL = {"torchmetrics", "wandb"}  # imported only when their flag is given


def ours():
    """Every .py file of the repository, {path from its root: text}; environments and outputs are none of it."""
    skipped = {"outputs", "__pycache__", "node_modules"}
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        folders = path.relative_to(ROOT).parts[:-1]
        hidden = any(name.startswith(".") or name in skipped for name in folders)
        if not hidden and not any(Path(ROOT, *folders[: i + 1], "pyvenv.cfg").exists() for i in range(len(folders))):
            found[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    return found


FILES = ours()
TREES = {path.removesuffix(".py").replace("/", "."): ast.parse(text) for path, text in FILES.items()}
SCRIPTS = [name for name in TREES if "." not in name]
PROJECT = [name for name in TREES if not name.startswith("tests.")]


# ------------------------------------------------------------------------------------------------ one sitting


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_read_in_one_sitting(path):
    lines = FILES[path].splitlines()
    widest = max(map(len, lines), default=0)
    assert len(lines) <= 400, f"{path} has {len(lines)} lines"
    assert widest <= (120 if path.startswith("tests/") else 100), f"{path} has a line of {widest} columns"


def function_bodies(tree):
    """The first and last line of the body of every function, without its docstring; what is inside counts once."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from function_bodies(node)
            continue
        body = node.body[ast.get_docstring(node) is not None :]
        if body:
            yield body[0].lineno, body[-1].end_lineno


def air(path):
    """Blank lines per 100 lines of code inside functions."""
    lines = FILES[path].splitlines()
    inside = [line for a, b in function_bodies(ast.parse(FILES[path])) for line in lines[a - 1 : b]]
    blank = sum(not line.strip() for line in inside)
    return 100 * blank / max(1, len(inside) - blank)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_lecture_has_paragraphs(name):
    found = air(f"{name}.py")
    assert found >= 6, f"{name}.py has {found:.1f} blank lines per 100 lines of code in its functions"


# ------------------------------------------------------------------------------------------------ imports


@cache
def imported(name, nested=True):
    """The modules that a file imports, ours with their dots; nested: inside functions as well."""
    found = set()
    todo = list(TREES[name].body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & set(TREES)) or {node.module}
        elif nested or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            todo += ast.iter_child_nodes(node)
    return found


def siblings(name):
    """The modules of this repository that a file imports, but for the __init__ of a package."""
    return {module for module in imported(name) & set(TREES) if f"{module}.__init__" not in TREES}


def foreign(name, nested=True):
    """The packages of other people that a file imports."""
    packages = {module.partition(".")[0] for module in imported(name, nested)}
    return packages - set(sys.stdlib_module_names) - {module.partition(".")[0] for module in TREES}


def test_every_script_has_its_floor():
    assert set(SCRIPTS) <= set(LECTURES)


@pytest.mark.parametrize("name", PROJECT)
def test_imports_point_down(name):
    below = siblings(name)
    assert not any(name in reached(module, siblings) for module in below), "it imports what imports it"
    lectures = below & set(LECTURES)
    floor, _, part = name.partition(".")
    if floor == "common" and part in GROUND:
        assert below <= {f"common.{other}" for other in GROUND} and "torch" not in foreign(name)
    elif floor == "common":
        assert lectures <= BELOW_COMMON
    elif floor in ("audits", "exercises"):
        assert lectures <= set(LECTURES[: LECTURES.index("audit")])
    elif name in LECTURES:
        assert lectures <= set(LECTURES[: LECTURES.index(name)])
        assert name in ("audit", "gallery") or not any(module.startswith("audits.") for module in below)
    above = {"tests.", "web.", "exercises."} - {f"{floor}."}
    assert not any(module.startswith(tuple(above)) for module in below)


@pytest.mark.parametrize("name", TORCH_FREE)
def test_the_reference_shares_no_code_with_what_it_checks(name):
    for module in reached(name, siblings):
        assert "torch" not in foreign(module), module


@pytest.mark.parametrize("name", PROJECT)
def test_what_is_seldom_needed_is_imported_where_it_is_needed(name):
    assert not HEAVY & foreign(name, nested=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_our_own_imports_come_before_torch(name):
    """common/__init__.py decides how torch's threads wait."""
    lines = {"ours": 10**9, "torch": 10**9}
    for node in TREES[name].body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or node.names[0].name
            which = "torch" if module.partition(".")[0] == "torch" else "ours" if module in TREES else None
            which = "ours" if module.startswith("common") else which
            if which:
                lines[which] = min(lines[which], node.lineno)
    assert lines["ours"] < lines["torch"] or lines["torch"] == 10**9


def test_the_main_job_needs_few_names_of_the_plumbing():
    modules, found = {}, set()
    for node in ast.walk(TREES["vp_sde"]):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "common":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in TREES:
                    modules[alias.asname or alias.name] = whole
                else:
                    found.add(whole)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.add(f"{modules[node.value.id]}.{node.attr}")
    assert len(found) <= 20, sorted(found)


# ------------------------------------------------------------------------------------------------ requirements


def requirements(file="requirements.txt"):
    """The lines of a list of requirements, by name."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    lines = [line.strip() for line in lines if line.strip() and not line.startswith(("#", "-r "))]
    return {re.split(r"[^\w-]", line)[0]: line for line in lines}


def test_the_requirements_are_those_of_the_project_and_what_is_imported():
    assert sorted(requirements().values()) == sorted(PYPROJECT["project"]["dependencies"])
    needed = set().union(*map(foreign, PROJECT)) - OPTIONAL - set(requirements("requirements-web.txt"))
    needed = {"pillow" if package == "PIL" else package for package in needed}
    needed |= {"pillow"} if "imageio" in needed else set()  # by which imageio writes
    assert needed == set(requirements())


def test_only_the_page_needs_what_the_page_needs():
    only = set(requirements("requirements-web.txt")) - set(requirements())
    assert not [name for name in PROJECT if not name.startswith("web.") and foreign(name) & only]


def test_the_lock_file_of_the_page_names_versions_and_no_addresses():
    lock = json.loads((ROOT / "web/package-lock.json").read_text(encoding="utf-8"))["packages"]
    wanted = json.loads((ROOT / "web/package.json").read_text(encoding="utf-8"))["dependencies"]
    assert lock[""]["dependencies"] == wanted and all(re.fullmatch(r"[\d.]+", version) for version in wanted.values())
    for path, package in lock.items():
        assert path == "" or ("version" in package and "integrity" in package and "resolved" not in package)


def test_the_page_is_read_in_one_sitting_and_asks_nobody():
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "web").glob("*.*")}
    scripts = [texts["page.js"], texts["worker.js"]]
    assert sum(len(script.splitlines()) for script in scripts) <= 400
    for script in scripts:
        assert not re.search(r"https?:|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", script)
        assert not re.search(r"\b(alpha|sigma|beta|snr|exp|expm1)\b", script, re.IGNORECASE), "a formula of diffusion"
    assert "http" not in texts["page.css"] + texts["page.html"]


def test_no_script_lists_requirements_of_its_own():
    assert not [path for path, text in FILES.items() if re.search(r"^# /// script$", text, re.MULTILINE)]


# ------------------------------------------------------------------------------------------------ commands

VALUES = {
    "NAME": "hero",
    "N": "7",
    "B": "0.5",
    "FILE": "file",
    "FILE.pt": "file.pt",
    "RUN": "outputs/run",
    "DIR": "outputs/run",
}


def pages():
    """Whatever tells people what to type."""
    found = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*.md"))]
    for folder in ("exercises", "web"):
        found += [path.read_text(encoding="utf-8") for path in sorted((ROOT / folder).rglob("*.md"))]
    return found + [ast.get_docstring(TREES[name], clean=False) or "" for name in PROJECT]


def commands():
    """What the pages tell people to type, such as {"python vp_sde.py --steps 300", ...}."""
    program = r"(?:\.venv/bin/)?(?:python|torchrun|uv run) [^`\n]*\.py\b[^`\n]*|python -m common[^`\n]*"
    found = set()
    for page in pages():
        whole = re.findall(rf"`({program})`", page)
        lines = re.findall(rf"^ *({program})$", page, re.MULTILINE)
        chains = re.findall(rf"&& ({program})", page)
        found |= {re.split(r" {2,}| #", text)[0].strip() for text in whole + lines + chains}
    return sorted(found)


class Parsed(Exception):
    """The command line was read without complaint."""


def understood(script, argv, monkeypatch):
    """Raise whatever the script has against these words, as far as it can be known without files that are not there."""
    Config = getattr(script, "Config", None)
    if Config is None:
        parse = argparse.ArgumentParser.parse_args

        def only_parse(parser, *words):
            parse(parser, *words)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        monkeypatch.setattr(sys, "argv", [script.__name__, *argv])
        with pytest.raises(Parsed):
            script.main()
        return

    typed = cli.typed(Config, argv)
    fields = {field.name: field.metadata["parse"] for field in dataclasses.fields(Config)}
    paths = []
    for key, value in typed.items():
        if fields[key] is cli.path and key != "out":
            paths += value if isinstance(value, list) else [value]
    if typed.get("resume") or typed.get("epochs") or not all((ROOT / path).exists() for path in paths):
        return
    if typed.get("mode") == "full" and not (runs.SHIPPED / "vp_sde_full.pt").exists() and not typed.get("train"):
        pytest.skip("vp_sde_full.pt is yet to be trained")
    if "train" in cli.names(Config):
        runs.start(Config, argv)
    else:
        cli.parse(Config, argv)


@pytest.mark.parametrize("command", commands())
def test_commands_that_people_are_told_to_type_are_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = [VALUES.get(word, word) for word in shlex.split(command.replace("uv run", "python"))]
    for word in words:
        assert (ROOT / word).exists() or not word.startswith(("assets/checkpoints", "configs/", "tests/")), word
    if words[0] == "-m":
        assert words[1] == "pytest" or (words[1] == "common.runs" and len(words) == 4 and words[3].endswith(".pt"))
        return
    if program.endswith("torchrun"):
        assert "--" in words, "torchrun takes --n and --m for flags of its own: write -- before the script"
        words = words[words.index("--") + 1 :]
    path, *argv = words
    assert path in FILES
    if path.startswith(("tests/", "exercises/", "web/")):
        return  # each has a command line of its own, and its own test
    understood(importlib.import_module(path.removesuffix(".py").replace("/", ".")), argv, monkeypatch)


# ------------------------------------------------------------------------------------------------ the README


def test_the_list_of_files_in_the_readme_is_in_the_order_of_imports():
    """`Imports only ever point down this list.`"""
    rows = re.findall(r"^\| ((?:`\w+\.py`(?:, )?)+) \|", README, re.MULTILINE)
    place = {name: i for i, row in enumerate(rows) for name in re.findall(r"(\w+)\.py", row)}
    assert set(place) == set(SCRIPTS)
    for name in SCRIPTS:
        assert all(place[name] <= place[below] for below in siblings(name) & set(SCRIPTS))


def test_the_lines_of_python_in_the_readme_run(monkeypatch, capsys):
    code, *_ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    last = capsys.readouterr().out.splitlines()[-1]
    x, y, *spread = map(float, re.findall(r"-?\d\.\d+", last.split("mean")[1]))
    assert abs(x - 3) < 0.05 and abs(y + 1) < 0.05 and len(spread) == 2
    assert all(abs(s - 0.5) < 0.05 for s in spread)


def test_every_picture_of_the_readme_is_there():
    pictures = re.findall(r'<img src="([^"]+)"', README)
    assert len(pictures) > 10 and not [path for path in pictures if not (ROOT / path).is_file()]


def test_every_number_of_the_readme_about_results_stands_among_the_results():
    """Of the columns crystal error and variety, as RESULTS.md has it: to four digits behind the point."""
    table = README.split("| method |")[1].split("\n\n")[0]
    said = re.findall(r"\b0\.\d{4}\b", table)
    measured = re.findall(r"\b0\.\d+(?:e-\d+)?\b", (ROOT / "RESULTS.md").read_text(encoding="utf-8"))
    measured = {f"{float(number):.4f}" for number in measured}
    assert len(said) >= 8 and not set(said) - measured


def test_the_citation_is_of_this_project():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\ntitle: {README.splitlines()[0].removeprefix('# ')}\n" in citation
