"""The processes of the local AI provider: what they load, that they open no connection, and their time limit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from pipeline.errors import SandboxLimit
from pipeline.hooks import Analysis, AnalyzeRequest
from pipeline.sandbox.sandbox import Sandbox
from pipeline.plugins.ai_local import work
from pipeline.plugins.ai_local.provider import LocalProvider
from tests.integration.demo_photos import EXPECTED, PHOTOS
from tests.requirements import require


def run_with_photo(program: str) -> None:
    """Run the program in a new process with the path of a photo: it must succeed and print nothing."""
    require(find_spec("rapidocr") is not None, "the extra [local] is not installed")
    done = subprocess.run(
        [sys.executable, "-c", program, str(PHOTOS["camera"])], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_service_process_loads_no_models() -> None:
    """Only the child processes load OpenCV, numpy and the models.

    The process that builds and uses the provider prints nothing and leaves no child process running.
    """
    program = """
import asyncio, sys
from pipeline.hooks import AnalyzeRequest
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.kinds import PROVIDER
from pipeline.settings import Settings

async def main():
    catalogue = Catalogue(Settings())
    provider = catalogue.make(PROVIDER, "local")
    await provider.check()
    request = AnalyzeRequest("", "camera", "", "", "", 1, 90.0, open(sys.argv[1], "rb").read())
    analysis = await provider.analyze(request)
    await catalogue.sandbox.close()
    assert analysis.brand.value == "Canon"
    assert not {"numpy", "cv2", "onnxruntime", "rapidocr", "rapidfuzz"} & set(sys.modules), "heavy"

asyncio.run(main())
"""
    run_with_photo(program)


def test_reading_does_not_use_the_network() -> None:
    """The work of a child process, also loading the models, opens no network connection."""
    program = """
import io, socket, sys
def refuse(*args, **kwargs): raise SystemExit("network used")
socket.socket.connect = socket.getaddrinfo = refuse
from PIL import Image, ImageOps
from pipeline.plugins.ai_local import work
photo = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
assert work.read(*photo.size, photo.tobytes(), "camera", 9.0)["brand"][0] == "Canon"
"""
    run_with_photo(program)


class NoTimeToCutOut(Sandbox):
    """A sandbox in which cutting out the product reaches its time limit at once."""

    async def run(self, function: Any, *args: Any, **limits: Any) -> Any:
        """Raise the error of the time limit when the function cuts out."""
        if function is work.finish and args[-1]:
            raise SandboxLimit("Reading the photo takes too long", "cpu")
        return await super().run(function, *args, **limits)


def test_picture_that_cannot_be_cut_out_gets_names() -> None:
    """When cutting out reaches its limit, the photo gets brand and model but no processed image."""
    short = NoTimeToCutOut()
    provider = LocalProvider(short, 1)

    async def analyze_and_close() -> Analysis:
        request = AnalyzeRequest("", "lego", "", "", "", 1, 90.0, PHOTOS["lego"].read_bytes())
        analysis = await provider.analyze(request)
        await short.close()
        return analysis

    analysis = asyncio.run(analyze_and_close())
    assert (analysis.brand.value, analysis.model.value) == EXPECTED["lego"][:2]
    assert analysis.processed_image is None
