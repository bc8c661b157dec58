"""The mutants of a file: what can be changed in its code, one token at a time."""

import ast
import contextlib
import io
import keyword
import tokenize
from typing import NamedTuple

SWAPS = {
    **{"+": "-", "-": "+", "*": "/", "/": "*", "**": "*", "//": "*", "%": "*", "@": "*"},
    **{"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="},
    **{"+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=", "|=": "&=", "|": "&", "&": "|"},
}
PAIRS = (
    *("min max", "sin cos", "alpha sigma", "exp expm1", "mean sum", "argmin argmax", "and or", "True False"),
    *("beta_min beta_max", "sqrt square", "log log1p", "alpha_s sigma_s", "alpha_t sigma_t", "ceil floor"),
    *("clamp_min clamp_max", "eps_u eps_c", "minimum maximum", "ones zeros", "any all", "first last"),
)
NAMES = {}
for pair in PAIRS:
    a, b = pair.split()
    NAMES |= {a: b, b: a}
NAMES |= {"x0_hat": "x", "logsumexp": "amax", "inf": "pi", "not": "", "abs": "square", "rho": "eta"}


class Mutant(NamedTuple):
    function: str  # the outermost function or method around it: "draw", "VP.at"
    line: int
    column: int
    was: str
    new: str


def functions(tree, prefix=""):
    """The functions and methods of a file that compute, (name, node): no network and no figure."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            if not any("Module" in ast.unparse(base) for base in node.bases):
                yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            figure = any("house_style" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not figure:
                yield prefix + node.name, node


def passed_over(function):
    """Lines inside a function whose tokens say nothing about what it does: signatures, messages, docstrings."""
    lines = set()
    for node in ast.walk(function):
        words = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        printed = isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        if words or printed or isinstance(node, (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)):
            lines |= set(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.FunctionDef):
            lines |= set(range(node.lineno - len(node.decorator_list), node.body[0].lineno))
    return lines


def other(token, before):
    """What to write instead of a token, given the one before it; None to leave it alone."""
    if token.type == tokenize.NUMBER:
        if "." in token.string or "e" in token.string:
            value = float(token.string)
            return repr(value / 2) if value else "1.0"
        return str(int(token.string.replace("_", ""), 0) + 1)
    if token.type == tokenize.NAME:
        return NAMES.get(token.string)
    if token.type == tokenize.OP and token.string in SWAPS:
        ends = before.string in (")", "]") or before.type in (tokenize.NAME, tokenize.NUMBER)
        if ends and not keyword.iskeyword(before.string):
            return SWAPS[token.string]
        return "+" if token.string == "-" else None  # stars of arguments stay
    return None


def change(text, mutant):
    """A text with the mutant's token in it."""
    lines = text.splitlines(keepends=True)
    row = lines[mutant.line - 1]
    end = mutant.column + len(mutant.was)
    lines[mutant.line - 1] = row[: mutant.column] + mutant.new + row[end:]
    return "".join(lines)


def is_python(text):
    with contextlib.suppress(SyntaxError):
        return bool(ast.parse(text))
    return False


def of(text):
    """Every single-token mutant of a file; a few are no Python."""
    owner = {}
    for name, node in functions(ast.parse(text)):
        inside = set(range(node.lineno, node.end_lineno + 1)) - passed_over(node)
        owner |= dict.fromkeys(inside, name)

    found = []
    lines = text.splitlines()
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type != tokenize.COMMENT]
    for before, token in zip(tokens, tokens[1:], strict=False):
        line, column = token.start
        if line not in owner or lines[line - 1].endswith("strict=", 0, column):  # a habit, zip(strict=True)
            continue
        new = other(token, before)
        if new is None:
            continue
        found.append(Mutant(owner[line], line, column, token.string, new))
    return found
