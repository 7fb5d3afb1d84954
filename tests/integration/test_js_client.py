"""The JavaScript client (clients/js) in a real Node and a real Chromium, against the real service; and its package."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.contract.contracts import check_event
from tests.factories import make_image, make_noise_image, make_token
from tests.fake_service import FakeService
from tests.integration.js_scripts import in_node_and_chromium, start_script
from tests.requirements import require
from tests.scripts import CLIENT, NODE, WAIT_SECONDS, photo
from tests.service import AiService, Service


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_operators_get_the_overview(kind: str, tmp_path: Path) -> None:
    """With `operators` and an operator's token the frame `overview` comes at once, also while Redis is away."""
    async with FakeService() as page:
        with Service(tmp_path, ALLOWED_ORIGINS=page.url, ROLE="web", REDIS_URL="redis://127.0.0.1:9/0") as service:
            async with page.script(kind) as script:
                token = json.dumps(make_token(role="operator-read"))
                listen = "client.on('overview', (frame) => say('overview', frame));"
                await script.run(start_script(service.url, token, operators=True, progress=True) + listen)
                shown = await script.received("overview")
                assert (shown["event"], shown["store"]["isUp"], shown["redis"]["isUp"]) == ("overview", True, False)


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_upload_is_followed_to_its_event(kind: str, tmp_path: Path, ai_service: AiService) -> None:
    """A client of another origin connects, uploads, gets one event and reads the asset; a refusal says why."""
    image = make_noise_image(600_000)
    async with FakeService() as page:
        with Service(tmp_path, ai_service.url, ALLOWED_ORIGINS=page.url) as service:
            async with page.script(kind) as script:
                got = await script.run(
                    f"""
                    const room = await start({{ url: "{service.url}", token: async () => "{make_token()}" }});
                    const steps = [];
                    const onProgress = (...step) => steps.push(step);
                    const receipt = await client.upload({photo(image)}, {{ category: "lego", onProgress }});
                    const event = await received("asset_processed");
                    const refusal = await failure(client.upload(new Blob(["no photo"]), {{ category: "car" }}));
                    const [asset, page] = [await client.asset(receipt.assetId), await client.assets({{ limit: 1 }})];
                    return {{ room, steps, receipt, event, refusal, asset, page, since: client.since }};
                    """
                )
                assert await script.all("asset_processed") == [got["event"]]
                assert await script.all("error") == []
    check_event(got["event"])
    assert got["room"] == "user:user-1"
    assert got["receipt"]["status"] == "processing"
    assert got["event"]["assetId"] == got["receipt"]["assetId"] == got["asset"]["id"]
    assert (got["page"]["items"], got["page"]["nextCursor"]) == ([got["asset"]], None)
    assert got["since"] == got["event"]["timestamp"]
    assert got["asset"]["images"]["original"]["bytes"] == len(image)
    assert got["steps"] == sorted(got["steps"])
    assert got["steps"][-1][0] == got["steps"][-1][1] > len(image)
    assert {key: got["refusal"][key] for key in ("name", "code", "status")} == {
        "name": "PipelineError",
        "code": "VALIDATION_ERROR",
        "status": 400,
    }
    assert "category" in {detail["field"] for detail in got["refusal"]["details"]}


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_failed_photo_is_retried_and_removed(kind: str, tmp_path: Path, ai_service: AiService) -> None:
    """retry starts a new job for a failed photo and gets 409 for a good one; remove may be called twice."""
    ai_service.configure(replies=[{"status": 422}])
    async with FakeService() as page:
        with Service(tmp_path, ai_service.url, ALLOWED_ORIGINS=page.url) as service:
            async with page.script(kind) as script:
                got = await script.run(
                    f"""
                    await start({{ url: "{service.url}", token: "{make_token()}" }});
                    const {{ assetId }} = await client.upload({photo(make_image())}, {{ category: "lego", tries: 1 }});
                    const first = await received("asset_processed");
                    const receipt = await client.retry(assetId);
                    const second = await received("asset_processed", 2);
                    const refusal = await failure(client.retry(assetId));
                    await client.remove(assetId);
                    await client.remove(assetId, {{ keepalive: true }});
                    const missing = await failure(client.asset(assetId));
                    return {{ first, receipt, second, refusal, missing }};
                    """
                )
    assert (got["first"]["status"], got["second"]["status"]) == ("failed", "active")
    assert got["receipt"]["status"] == "processing" and got["refusal"]["status"] == 409
    assert got["missing"]["status"] == 404


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_event_of_an_outage_arrives_once(kind: str, tmp_path: Path) -> None:
    """The service is killed and starts at its old address; the event of the outage and a new event arrive once."""
    async with FakeService() as page:
        with AiService(paused=True) as ai, Service(tmp_path, ai.url, ALLOWED_ORIGINS=page.url) as service:
            port = service.url.rpartition(":")[2]
            async with page.script(kind) as script:
                code = f"return (await client.upload({photo(make_image())}, {{ category: 'lego' }})).assetId"
                first = await script.run(f"await {start_script(service.url, json.dumps(make_token()))} {code}")
                service.kill()
                await script.received("disconnected")
                # The job ends while the service has another port, so that the client is not connected.
                ai.configure(paused=False)
                service.start()
                service.wait_log("job_completed")
                service.stop()
                service.environment["PORT"] = port
                service.start()
                await script.received("connected", 2)
                second = await script.run(code)
                await script.received("asset_processed", 2)
                events = await script.all("asset_processed")
    assert [event["assetId"] for event in events] == [first, second]


def test_readme_runs_in_node(tmp_path: Path, ai_service: AiService) -> None:
    """The README's lines for Node work unchanged: they print the event, and the process ends by itself."""
    require(NODE is not None, "needs Node 22 or newer")
    (code,) = re.findall(r"## In Node\n+```js\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "photo.jpg").write_bytes(make_image())
    with Service(tmp_path / "data", ai_service.url) as service:
        code = code.replace("http://127.0.0.1:8080", service.url).replace("photo.jpg", str(tmp_path / "photo.jpg"))
        command = [str(NODE), "--no-warnings", "--input-type=module", "--eval", code]
        done = subprocess.run(
            command,
            cwd=CLIENT,
            env={"PIPELINE_TOKEN": make_token()},
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "event: 'asset_processed'" in done.stdout and "Nike" in done.stdout


def test_package_has_no_dependencies() -> None:
    """The modules import only each other, and the package names no dependencies."""
    package = json.loads((CLIENT / "package.json").read_text())
    assert not [name for name in package if "ependencies" in name]
    files = {path.relative_to(CLIENT) for path in CLIENT.rglob("*.js") if "node_modules" not in path.parts}
    named = {Path(name) for name in package["files"] if not name.endswith(".d.ts")}
    assert named == {path if path.parent == Path() else path.parent for path in files}
    served = {each["default"] for each in package["exports"].values() if "default" in each}
    assert served == {"./pipeline-client.js", "./photo-queue.js"}
    for path in files:
        code = re.sub(r"/\*.*?\*/|^ *//.*?$", "", (CLIENT / path).read_text(), flags=re.DOTALL | re.MULTILINE)
        for imported in re.findall(r'\b(?:from |^import |await import\()"(.*?)"', code, re.MULTILINE):
            assert (CLIENT / path.parent / imported).resolve().relative_to(CLIENT.resolve()) in files
