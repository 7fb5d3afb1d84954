"""The TypeScript declarations of clients/js: correct uses compile in strict mode, wrong uses do not.

The declarations agree with the JavaScript and the contracts. The AsyncAPI document is valid.
tests/clients_generated/install installs the compiler.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from jsonschema import Draft7Validator
from jsonschema import ValidationError as JsonSchemaError

from pipeline.handlers.contracts import asyncapi
from pipeline.settings import DEFAULT_CATEGORIES
from tests.contract.contracts import API
from tests.integration.foreign_programs import run, tool
from tests.requirements import program
from tests.scripts import CLIENT
from tests.service import ROOT

SOURCES = ROOT / "tests/clients_generated/types"
LIBRARY = {"target": "es2022", "lib": ["es2024", "dom", "dom.iterable"]}
STRICT = {"strict": True, "noEmit": True, "types": ["node"]} | LIBRARY
DECLARED = {"pipeline-client.d.ts", "photo-queue.d.ts", "react.d.ts", "types.d.ts"}


def compile_all(folder: Path, files: list[str], **options: object) -> None:
    """Let tsc check the files, including the declarations of our package."""
    project = {"compilerOptions": STRICT | options, "files": files}
    (folder / "tsconfig.json").write_text(json.dumps(project))
    run(folder, tool("tsc"), "--project", ".")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has installed the package, as `npm pack` makes it."""
    folder = tmp_path_factory.mktemp("app")
    modules = tool("tsc").parents[2]
    (packed,) = json.loads(run(folder, program("npm"), "pack", CLIENT, "--json"))
    with tarfile.open(folder / packed["filename"]) as tar:
        tar.extractall(folder, filter="data")
    (folder / "node_modules").mkdir()
    for module in modules.iterdir():
        (folder / "node_modules" / module.name).symlink_to(module)
    (folder / "package").rename(folder / "node_modules/ai-queue-pipeline-client")
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True)
    return folder


@pytest.mark.fault("O5")
@pytest.mark.parametrize("resolution", ["bundler", "nodenext"])
def test_app_compiles_and_wrong_uses_do_not(app: Path, resolution: str) -> None:
    """The app uses all events, payloads and the element in DOM and JSX; each wrong use is marked `@ts-expect-error`."""
    is_bundler = resolution == "bundler"
    (app / "package.json").write_text('{"type": "module"}')
    options = {"module": "esnext" if is_bundler else "nodenext", "moduleResolution": resolution, "jsx": "react-jsx"}
    # The declarations themselves are checked in one of the two runs.
    compile_all(app, ["app.ts", "app.tsx"], **options | {"types": [], "skipLibCheck": not is_bundler})


@pytest.mark.fault("O5")
def test_declarations_are_those_of_the_javascript_and_the_contracts(app: Path) -> None:
    """tsc finds no error in the JavaScript; its types of the JavaScript and of the contracts equal the declarations."""
    source = app / "source"
    shutil.copytree(CLIENT, source, ignore=shutil.ignore_patterns("node_modules"))
    for name in DECLARED - {"types.d.ts"}:
        (source / name).unlink()
    (source / "node_modules").symlink_to(app / "node_modules")
    emit = {"allowJs": True, "checkJs": True, "declaration": True, "noEmit": False, "emitDeclarationOnly": True}
    paths = {"outDir": "../emitted", "module": "nodenext", "moduleResolution": "nodenext", "skipLibCheck": True}
    compile_all(source, ["pipeline-client.js", "photo-queue.js"], **emit | paths)
    shutil.copy(CLIENT / "types.d.ts", app / "emitted")

    frames = json.loads(asyncapi(DEFAULT_CATEGORIES, "http://127.0.0.1"))["components"]["schemas"]
    components = {**API["components"], "schemas": frames | API["components"]["schemas"]}
    (app / "contract.json").write_text(json.dumps({**API, "components": components}))
    run(app, tool("openapi-typescript"), "contract.json", "--output", "contract.ts")
    compile_all(app, ["drift.ts"], module="esnext", moduleResolution="bundler", skipLibCheck=True)


@pytest.mark.fault("O20")
def test_rooms_are_valid_asyncapi() -> None:
    """The document /asyncapi.json is valid by AsyncAPI's schema of its version."""
    document = json.loads(asyncapi(DEFAULT_CATEGORIES, "https://photos.example.com/service"))
    schemas = tool("tsc").parents[2] / "@asyncapi/specs/schemas"
    schema = json.loads((schemas / f"{document['asyncapi']}-without-$id.json").read_text())
    assert [error.message for error in Draft7Validator(schema).iter_errors(document)] == []
    with pytest.raises(JsonSchemaError):
        Draft7Validator(schema).validate({**document, "channels": []})


@pytest.mark.fault("O5")
def test_package_is_published_with_its_declarations(app: Path) -> None:
    """The package has each module and declaration; publint finds no fault; only the element has a side effect."""
    installed = app / "node_modules/ai-queue-pipeline-client"
    shipped = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    modules = {str(path.relative_to(CLIENT)) for path in CLIENT.rglob("*.js") if "node_modules" not in path.parts}
    assert shipped == modules | DECLARED | {"package.json", "README.md"}
    package = json.loads((installed / "package.json").read_text())
    assert package["sideEffects"] == ["./photo-queue.js"]
    run(installed, tool("publint"), "--strict")
