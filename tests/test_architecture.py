"""The house rules on imports (DESIGN: one direction), read from the source, not from what happens to be loaded."""

import ast
from pathlib import Path

import pytest

import ltrec_jax

PACKAGE = Path(__file__).parent.parent / "ltrec_jax"
# Rooms from the ground up. A room imports rooms of lower rows, of its own row only where that row says so.
ROWS = [
    {"version", "errors", "memory"},
    {"processes", "plain_settings"},
    {"types", "config", "storage", "parallel", "topk", "page", "dropout"},
    {"data"},
    {"text"},
    {"encoder"},
    {"model", "objectives"},
    {"solve"},
    {"baselines", "bundle"},
    {"evaluation"},
    {"train"},
    {"serve", "tuning"},
    {"experiment"},
    {"quickstart"},
    {"commands"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(ROWS) for room in rooms}
# Beyond the row order: the evaluator sees scores and data, the service never a trainer, an objective no model.
ONLY = {
    "evaluation": {"errors", "types", "storage", "topk", "page", "data", "version"},
    "objectives": {"errors", "types"},
}
NEVER = {"serve": {"train"}}
SAME_ROW = {("storage", "types"), ("parallel", "types"), ("topk", "types"), ("dropout", "types")}
# Modules that are about an optional package as a whole, and import it at their top: nobody imports them at the top.
OF_AN_EXTRA = {"ltrec_jax.serve.http", "ltrec_jax.serve.guard", "ltrec_jax.serve.telemetry", "ltrec_jax.serve.messages"}
HEAVY_AND_OPTIONAL = {
    "torch",
    "huggingface_hub",
    "faiss",
    "wandb",
    "tensorboardX",
    "pyspark",
    "fastapi",
    "pydantic",
    "starlette",
    "uvicorn",
    "prometheus_client",
    "flatbuffers",
    "implicit",
    "optuna",
}

FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


def dotted(path: Path) -> str:
    return ".".join(("ltrec_jax", *path.relative_to(PACKAGE).with_suffix("").parts))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> list[tuple[str, str, bool]]:
    """(module, name, at top level) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, "", id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(node.module or "", alias.name, id(node) in top) for alias in node.names]
    return found


def inner_rooms(path: Path) -> set[str]:
    """Rooms of the package that a file imports."""
    rooms = set()
    for module, name, _ in imports(path):
        if module == "ltrec_jax":
            rooms.add(name)
        elif module.startswith("ltrec_jax."):
            rooms.add(module.split(".")[1])
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    here = room(path)
    assert here in LEVEL, f"{here} has no row: add it to ROWS where its imports allow"
    for other in inner_rooms(path) - {here}:
        assert other in LEVEL, f"{path.name} imports the package root or an unknown room: {other!r}"
        below = LEVEL[other] < LEVEL[here]
        beside = (here, other) in SAME_ROW
        assert below or beside, f"{here} imports {other}, which stands on the same row or above it"
    assert inner_rooms(path) - {here} <= ONLY.get(here, set(LEVEL))
    assert not inner_rooms(path) & NEVER.get(here, set())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_star_no_root_no_heavy_optional_import_at_the_top(path):
    for module, name, top in imports(path):
        assert name != "*"
        assert not (module == "ltrec_jax" and name == "")
        if top and dotted(path) not in OF_AN_EXTRA:
            assert module.split(".")[0] not in HEAVY_AND_OPTIONAL, f"{path.name} imports {module} at the top"
            assert not {module, f"{module}.{name}"} & OF_AN_EXTRA, f"{path.name} imports {module} {name} at the top"


def test_no_cycle_between_modules():
    modules = {dotted(p): p for p in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}

    def targets(path):
        for module, name, top in imports(path):
            if top and module.startswith("ltrec_jax"):
                full = f"{module}.{name}"
                yield full if full in modules else module

    graph = {name: {t for t in targets(path) if t in modules and t != name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name, trail):
        assert name not in trail, f"import cycle: {' -> '.join([*trail, name])}"
        if name not in done:
            for target in graph[name]:
                visit(target, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_no_public_name_is_a_room():
    """Importing a room sets it as an attribute of the package, in place of a function of the same name."""
    assert not set(ltrec_jax.__all__) & {room(p) for p in FILES}


def test_every_public_name_is_where_it_is_looked_for_and_typed():
    for name in ltrec_jax.__all__:
        assert getattr(ltrec_jax, name) is not None
    typed = {name for _, name, top in imports(PACKAGE / "__init__.py") if not top} | {"split"}
    # `split` has another name at home.
    assert typed - {"make"} == set(ltrec_jax.__all__) - {"__version__"}


def test_no_room_is_called_utils():
    assert not [p for p in PACKAGE.rglob("*") if "util" in p.stem.lower()]


def test_nothing_unpickles():
    for path in FILES:
        for module, name, _ in imports(path):
            assert module.split(".")[0] not in {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path
            assert name not in {"pickle"}, path
