"""What is installed, what is built, and what the house's commands do."""

import ast
import configparser
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import zoo

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {".git", ".venv", "runs", "build", "dist", "__pycache__"}
# These tests are themselves run by `make test`: a make they call must not take after that one.
MAKE_VARIABLES = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
OUTSIDE_MAKE = {k: v for k, v in os.environ.items() if k not in MAKE_VARIABLES}
SAFE = {**OUTSIDE_MAKE, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
# Distributions that are imported under another name.
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml"}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def entries(section: str, key: str) -> list[str]:
    return [line.strip() for line in setup_cfg()[section][key].splitlines() if line.strip()]


def package_folders() -> dict[str, str]:
    """Import name -> folder, as setup.cfg maps them."""
    return dict(re.split(r"\s*=\s*", line) for line in entries("options", "package_dir"))


def modules() -> dict[str, Path]:
    """Path inside the installed package -> source file, read off the tree."""
    found = {}
    for name, folder in package_folders().items():
        for path in python_files(ROOT / folder):
            inside = path.relative_to(ROOT / folder).as_posix()
            found[f"{name.replace('.', '/')}/{inside}"] = path
    return found


def python_files(folder: Path) -> Iterator[Path]:
    # os.walk does not follow the links inside zoo/, which is the point of using it.
    for base, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in SKIPPED]
        yield from (Path(base) / n for n in names if n.endswith(".py"))


def run(*command: str | Path, **options) -> str:
    options = {"env": OUTSIDE_MAKE, "text": True, "capture_output": True, "timeout": 300} | options
    done = subprocess.run([str(c) for c in command], **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- the package map -----------------------------------------------------------------------------


def test_the_package_list_is_the_tree():
    in_tree = {name.rpartition("/")[0].replace("/", ".") for name in modules()}
    assert sorted(entries("options", "packages")) == sorted(in_tree)


def test_every_package_has_an_init_file():
    names = modules()
    missing = {n.rpartition("/")[0] for n in names} - {
        n.rpartition("/")[0] for n in names if n.endswith("/__init__.py")
    }
    assert not missing


def test_the_links_for_type_checkers_are_relative():
    for name, folder in package_folders().items():
        if "." in name:
            link = ROOT / name.replace(".", "/")
            if not link.is_symlink():
                pytest.skip("this checkout has no links (Windows)")
            assert os.readlink(link) == f"../{folder}"


@pytest.mark.parametrize("name", ["models", "datasets", "tools"])
def test_our_folders_are_not_importable_by_their_bare_names(name):
    code = f"from importlib.util import find_spec; s = find_spec({name!r}); print(s and s.origin)"
    origin = run(sys.executable, "-c", code, cwd=ROOT, env=SAFE).strip()
    assert not origin.startswith(str(ROOT / name)), origin


def test_console_scripts_are_functions():
    lines = entries("options.entry_points", "console_scripts")
    assert lines
    for line in lines:
        command, module, function = re.fullmatch(r"([\w-]+) = ([\w.]+):(\w+)", line).groups()
        assert command.startswith("zoo-")
        assert callable(getattr(importlib.import_module(module), function))


def imported_names(path: Path) -> Iterator[tuple[str, bool]]:
    """Names of imported packages, and whether the import stands inside a function."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0], inside
        inside = inside or isinstance(node, ast.FunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def declared(section: str, key: str) -> set[str]:
    names = [re.match(r"[\w-]+", line).group() for line in entries(section, key)]
    return {IMPORTED_AS.get(n, n.replace("-", "_")) for n in names}


def test_what_is_imported_is_declared():
    """What an extra brings is imported where it is used, and nowhere else."""
    known = declared("options", "install_requires") | sys.stdlib_module_names | {"zoo"}
    extra = declared("options.extras_require", "onnx")
    undeclared = {
        (name, str(path.relative_to(ROOT)))
        for path in modules().values()
        for name, inside in imported_names(path)
        if name not in known and not (inside and name in extra)
    }
    assert not undeclared


def test_importing_everything_does_not_import_the_reference_implementations():
    names = [n.removesuffix(".py").replace("/", ".") for n in modules()]
    names = [n.removesuffix(".__init__") for n in names]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(sorted({'transformers', 'timm', 'datasets'} & set(sys.modules)))"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT, env=SAFE).strip() == "[]"


# -- what is built -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The source archive, and the wheel that is built from it, of a copy of the tree."""
    folder = tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns(*SKIPPED, "*.egg-info", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=ignored)
    out = folder / "out"
    run(sys.executable, "-m", "build", "--no-isolation", "-o", out, folder / "source", env=SAFE)
    return {"wheel": next(out.glob("*.whl")), "archive": next(out.glob("*.tar.gz"))}


def test_the_wheel_holds_the_tree_once(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = [n for n in wheel.namelist() if ".dist-info/" not in n]
    shipped = [p for p in (ROOT / "zoo/assets").rglob("*") if p.is_file()]
    assets = {p.relative_to(ROOT).as_posix() for p in shipped}
    expected = set(modules()) | {f"zoo/recipes/{p.name}" for p in recipes()} | assets
    assert len(recipes()) > 0
    assert len(names) == len(set(names))
    assert set(names) == expected


def recipes() -> list[Path]:
    return sorted((ROOT / "zoo/recipes").glob("*.yaml"))


def test_the_source_archive_holds_nothing_under_two_names(built):
    with tarfile.open(built["archive"]) as archive:
        names = [m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()]
    assert len(names) == len(set(names))
    assert not [n for n in names if re.match(r"zoo/(models|datasets|tools)/", n)]
    assert {"tests/conftest.py", "Makefile", "LICENSE", "zoo/recipes/__init__.py"} <= set(names)


def test_versions_agree(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = wheel.read(name).decode()
    assert f"\nVersion: {zoo.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert zoo.__version__ in re.findall(r"^## \[([^\]]+)\]", changes, re.MULTILINE)


def test_the_wheel_works_away_from_the_tree(built, tmp_path):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(tmp_path / "site")
    code = (
        "import zoo, zoo.models.detr, zoo.config\n"
        "print(zoo.__file__, zoo.models.detr.__file__)\n"
        "print(*zoo.list_models())\n"
        f"print(zoo.config.find_recipe({recipes()[0].stem!r}))"
    )
    env = {**SAFE, "PYTHONPATH": str(tmp_path / "site")}
    files, models, recipe = run(sys.executable, "-P", "-c", code, cwd=tmp_path, env=env).split(
        "\n"
    )[:3]
    assert all(f.startswith(str(tmp_path)) for f in [*files.split(), recipe])
    assert models.split() == zoo.list_models()
    code = "import zoo; print(*zoo.load_model('doc_nano', device='cpu').tokenizer.words(['a']))"
    assert run(sys.executable, "-P", "-c", code, cwd=tmp_path, env=env).strip() == "[1037] [0]"


# -- commands ------------------------------------------------------------------------------------


@pytest.fixture
def make() -> str:
    found = shutil.which("make")
    if found is None:
        pytest.skip("make is not installed")
    return found


def test_every_target_is_listed(make):
    listed = re.findall(r"^  make (\w+)", run(make, cwd=ROOT), re.MULTILINE)
    assert listed == ["help", "setup", "demo", "lint", "test", "bench", "dist", "clean"]


def test_make_test_lints_first_and_ends_with_the_tests(make):
    lines = run(make, "-n", "test", cwd=ROOT).splitlines()
    steps = [re.sub(r"^\S+python -m ", "", line) for line in lines]
    assert steps == [
        "sh scripts/setup.sh dev",
        "ruff check .",
        "ruff format --check .",
        "mypy -p zoo",
        "pytest",
    ]


@pytest.mark.parametrize(
    ("target", "script"), [("demo", "tools/demo.py"), ("bench", "benchmarks/run.py")]
)
def test_make_runs_scripts_that_exist(make, target, script):
    assert run(make, "-n", target, cwd=ROOT).split()[-1] == script
    assert (ROOT / script).is_file()


def test_continuous_integration_calls_make_test(tmp_path):
    stub = tmp_path / "make"
    stub.write_text('#!/bin/sh\necho "$@" "$PYTHONSAFEPATH" "$PWD"\n')
    stub.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    env.pop("PYTHONSAFEPATH", None)
    assert run(ROOT / ".ci/run", cwd=tmp_path, env=env).split() == ["test", "1", str(ROOT)]


# -- what the tree must not hold -----------------------------------------------------------------


def tracked_files() -> list[Path]:
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = run(
            "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT
        )
        return [ROOT / name for name in listed.split("\0") if name]
    return [p for p in ROOT.rglob("*") if not SKIPPED & set(p.relative_to(ROOT).parts)]


def test_no_file_names_a_path_of_somebodys_machine():
    path = re.compile(rb"(?<![\w.:/<-])/(?:work|home|root|Users)/\w")
    texts = [p for p in tracked_files() if p.is_file() and p.suffix not in {".png", ".jpg"}]
    assert len(texts) > 20
    found = [str(p.relative_to(ROOT)) for p in texts if path.search(p.read_bytes())]
    assert not found
