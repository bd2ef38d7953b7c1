"""What is installed is what is here: no package folder is left out of the wheel, and its commands run from there."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(name for name in ("kernels", "spanbert", "pretrain", "finetune", "web") if (ROOT / name).is_dir())
TEXT = "The bridge was built in 1894. It crosses the river Thames near the Tower of London."

#: Runs the command line from the folder argv[1], with other packages from argv[2:4], and then says what it has run. Python's
#: own options -I and -S keep out the current folder, the environment and what a development installation adds to the path.
PROGRAM = """
import sys
installed, *others = sys.argv[1:4]
sys.path[:0] = [installed]
sys.path += others
from spanbert.cli import main
status = main(sys.argv[4:])
ours = {n: m.__file__ for n, m in sys.modules.items() if n.split(".")[0] in %r and getattr(m, "__file__", None)}
elsewhere = {n: f for n, f in ours.items() if not f.startswith(installed)}
sys.exit(status or (f"not from the wheel: {elsewhere}" if elsewhere or "spanbert.cli" not in ours else 0))
"""


def package_folders(root: Path) -> set[str]:
    """Dotted names of the folders with modules in them, below the packages that are installed."""
    files = [path.relative_to(root) for name in PACKAGES for path in (root / name).rglob("*.py")]
    return {".".join(path.parent.parts) for path in files}


def found_packages(root: Path, include: list[str]) -> set[str]:
    """What setuptools puts into the wheel, by the table ``tool.setuptools.packages.find`` of pyproject.toml."""
    return set(setuptools.find_namespace_packages(str(root), include=include))


def test_the_configuration_finds_every_package_folder():
    """A list of packages written by hand, as there was one, loses each new folder without a word."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    find = configuration["tool"]["setuptools"]["packages"]["find"]
    assert find.keys() == {"include"}, "another key changes what is found: look at this test again"
    assert package_folders(ROOT) - found_packages(ROOT, find["include"]) == set()


def test_every_package_folder_has_a_face():
    """Without ``__init__.py`` a folder is a namespace that any other installed package can add to."""
    faceless = [name for name in package_folders(ROOT) if not (ROOT / name.replace(".", "/") / "__init__.py").is_file()]
    assert faceless == []


def test_a_forgotten_folder_is_seen(tmp_path):
    (tmp_path / "spanbert" / "new").mkdir(parents=True)
    for folder in (tmp_path / "spanbert", tmp_path / "spanbert" / "new"):
        (folder / "__init__.py").touch()
    assert package_folders(tmp_path) - found_packages(tmp_path, ["spanbert", "kernels"]) == {"spanbert.new"}
    assert package_folders(tmp_path) - found_packages(tmp_path, ["spanbert*", "kernels*"]) == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network from a copy, so that what an earlier build left beside the sources cannot get into it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source))
    (path,) = built.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", str(folder), str(wheel))
    return folder


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run([*command, "--no-index"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_wheel_holds_every_module_and_the_weights(wheel):
    ours = {path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    ours = {path.relative_to(ROOT).as_posix() for path in ours if "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        stored = set(archive.namelist())
    assert {name for name in stored if ".dist-info/" not in name} == ours
    assert {f"spanbert/weights/{kind}/model.safetensors" for kind in ("encoder", "scratch", "reader")} <= stored


@pytest.mark.parametrize(
    "arguments, shown",
    [
        (["ask", "--context", "text.txt", "When was the bridge built?"], "1894"),
        (["masks", TEXT], "Thames"),
        (["--help"], "usage: spanbert COMMAND"),
    ],
)
def test_commands_run_from_the_wheel(installed, tmp_path, arguments, shown):
    """In an empty folder, with nothing of the checkout on the path; the dependencies are this environment's."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    others = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    command = [sys.executable, "-I", "-S", "-c", PROGRAM % (PACKAGES,), str(installed), *others, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert shown in done.stdout
