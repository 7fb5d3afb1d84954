"""The command `plugins new`: creates a working plugin package from the texts in templates/."""

from __future__ import annotations

import keyword
import re
import sys
from importlib import resources
from pathlib import Path
from string import Template

import click

from pipeline.errors import ConfigurationError
from pipeline.hooks.kinds import BUILT_IN_MODULES, NOTIFIER, PROVIDER, STORAGE

NAME = re.compile(r"[a-z][a-z0-9_-]{1,39}")
NEEDS = {"provider": ', "aiohttp"', "notifier": ', "aiohttp"'}
# Kinds whose entry point names an object instead of a module, because the plugin has a state.
OBJECTS = ("observer",)
USES = {
    "provider": f"In use when `{PROVIDER.setting}` names `$name`.",
    "storage": f"In use when `{STORAGE.setting}` is `$name`.",
    "notifier": f"In use when `{NOTIFIER.setting}` names `$name`.",
    "filter": "In use as soon as it is installed; with `FILTERS_REQUIRED=$name` nothing passes while it cannot answer.",
    "observer": "In use as soon as it is installed.",
}
SETTINGS = {
    "provider": (("URL", "", "where the AI service takes photos"), ("API_KEY", "", "our key there")),
    "storage": (("FOLDER", "data/$name", "where images are kept"), ("PUBLIC_URL", "", "where that folder is shown")),
    "notifier": (("URL", "", "where each event is posted"), ("SECONDS", "5", "how long the receiver may take")),
    "filter": (("LEAST_PIXELS", "100", "how wide and high an upload must be"), ("UNNAMED", "", "brands not to name")),
    "observer": (("ENABLED", "true", "whether jobs are counted"),),
}
KINDS = (*USES,)
FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    ".github/workflows/test.yml": "ci.yml",
    "tests/conftest.py": "conftest.py",
}


@click.command("new")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="The kind of plugin.")
@click.option("--into", type=click.Path(path_type=Path), help="A new folder; default: pipeline-NAME.")
def new(name: str, kind: str, into: Path | None) -> None:
    """Create a package for a plugin, with tests that pass."""
    if fault := _name_fault(name):
        raise ConfigurationError(f"{name!r} cannot be the name of a plugin: {fault}")
    folder = into or Path(f"pipeline-{name.replace('_', '-')}")
    try:
        write(folder, name, kind)
    except FileExistsError:
        raise ConfigurationError(f"{folder} exists already; give another folder with --into") from None
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}") from error
    print(f"Made {folder}. Next: cd {folder} && pip install -e '.[test]' && pytest && pipeline plugins verify {name}")


def write(folder: Path, name: str, kind: str) -> None:
    """Write the package into the new folder."""
    values = _template_values(name, kind)
    module = values["module"]
    files = FILES | {f"src/{module}/__init__.py": f"{kind}.py", f"tests/test_{module}.py": f"{kind}_test.py"}
    texts = {path: _template(source).substitute(values) for path, source in files.items()}
    folder.mkdir(parents=True)
    for path, text in {**texts, f"src/{module}/py.typed": ""}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def _template_values(name: str, kind: str) -> dict[str, str]:
    lower = name.replace("-", "_")
    module = f"pipeline_{lower}"
    classname = "".join(part.capitalize() for part in lower.split("_"))
    values = {"name": name, "kind": kind, "module": module, "lower": lower, "classname": classname}
    rows = (f"| `PLUGIN_{lower.upper()}_{field}` | `{default}` | {why} |" for field, default, why in SETTINGS[kind])
    return values | {
        "variable": lower.upper(),
        "distribution": module.replace("_", "-"),
        "target": f"{module}:plugin" if kind in OBJECTS else module,
        "dependencies": NEEDS.get(kind, ""),
        "use": Template(USES[kind]).substitute(values),
        "setting_rows": Template("\n".join(rows)).substitute(values).replace("| `` |", "| |"),
    }


def _template(name: str) -> Template:
    return Template((resources.files(__package__) / "templates" / f"{name}.txt").read_text(encoding="utf-8"))


def _name_fault(name: str) -> str:
    if not NAME.fullmatch(name):
        return "use 2 to 40 characters of a-z, 0-9, - and _, beginning with a letter"
    if name[-1] in "-_" or "--" in name or "__" in name or "-_" in name or "_-" in name:
        return "use no two of - and _ in a row, and none at the end"
    if keyword.iskeyword(name) or name in sys.stdlib_module_names:
        return "it is a keyword or a module of Python"
    built_in = {module.rpartition(".")[2].partition("_")[2] for module in BUILT_IN_MODULES}
    return "a built-in plugin has it" if name in built_in else ""
