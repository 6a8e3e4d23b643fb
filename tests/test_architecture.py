"""The house rules of docs/architecture.md, as tests over the source."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "rectiflow"
FLOORS = {
    "base": 0,
    "hub": 1,
    "flow": 1,
    "networks": 1,
    "conditioning": 2,
    "autoencoders": 2,
    "sampling": 2,
    "models": 3,
    "data": 3,
    "request": 3,
    "conditioner": 4,
    "pipeline": 5,
    "continuation": 6,
    "evaluation": 6,
    "serving": 7,
    "training": 7,
    "recipes": 8,
    "workflow": 8,
    "plan": 9,
    "cli": 10,
    "__main__": 11,
    "__init__": 11,
}
TORCH_FREE = ["__init__", "__main__", "cli", "recipes", "*.config", "base.config", "base.errors", "base.files"]
FILES = sorted(ROOT.rglob("*.py"))
MAX_LINES, MAX_BODY, MAX_ARGUMENTS = 350, 60, 8


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room(name: str) -> str:
    return name.split(".")[0]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Our modules that a file imports; with `everywhere`, inside functions too (not for type checking only)."""
    names: set[str] = set()
    stack: list[ast.AST] = [tree(path)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rectiflow."):
            names.add((node.module or "").removeprefix("rectiflow."))
        if everywhere or not isinstance(node, ast.FunctionDef):
            stack.extend(ast.iter_child_nodes(node))
    return names


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]


def test_every_room_has_a_floor():
    assert {room(module(path)) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_down(path):
    mine = room(module(path))
    for name in imports(path):
        other = room(name)
        assert other == mine or FLOORS[other] < FLOORS[mine], f"{module(path)} imports {name}"


def test_no_cycles():
    graph = {module(path): set(imports(path)) for path in FILES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join([*above, name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_command_line_and_settings_never_import_torch():
    """What `rectiflow --help` and reading a configuration import, transitively."""
    by_name = {module(path): path for path in FILES}
    light = {n for n in by_name if room(n) in TORCH_FREE or n in TORCH_FREE or n.endswith(".config")}
    for start in sorted(light):
        stack, seen = [start], set()
        while stack:
            name = stack.pop()
            path = by_name.get(name) or by_name[f"{name}.__init__"]
            if name in seen:
                continue
            seen.add(name)
            heavy = [
                node
                for node in tree(path).body
                if isinstance(node, ast.Import | ast.ImportFrom)
                and any(n.split(".")[0] in ("torch", "numpy", "sklearn", "PIL") for n in _named(node))
            ]
            assert not heavy, f"{start} reaches {name}, which imports something heavy"
            stack.extend(imports(path, everywhere=False))


def _named(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]


@pytest.mark.parametrize("path", FILES, ids=module)
def test_sizes(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    for function in functions(path):
        documented = ast.get_docstring(function) is not None
        first = function.body[1] if documented and len(function.body) > 1 else function.body[0]
        assert (function.end_lineno or 0) - first.lineno + 1 < MAX_BODY, function.name
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        assert len([a for a in arguments if a.arg not in ("self", "cls")]) <= MAX_ARGUMENTS, function.name


@pytest.mark.parametrize("path", FILES, ids=module)
def test_everything_is_annotated_and_documented(path):
    assert ast.get_docstring(tree(path)), "module docstring"
    for function in functions(path):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{function.name}: {bare}"
        assert function.returns is not None, function.name
        assert function.args.kwarg is None, f"{function.name} swallows keywords"


def test_the_mathematics_is_not_in_the_trainer():
    words = (ROOT / "training" / "trainer.py").read_text(encoding="utf-8").lower()
    for word in ("velocity", "noise", "alpha", "guidance", "schedule(", "x_t"):
        assert word not in words


def test_classes_are_abstract_or_final():
    """No concrete class of ours is subclassed."""
    concrete, bases = set(), set()
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                names = {ast.unparse(base).split(".")[-1] for base in node.bases}
                bases |= names
                abstract = any("abstractmethod" in ast.dump(item) for item in node.body)
                if not abstract and node.name != "Config":
                    concrete.add(node.name)
    assert not concrete & bases
