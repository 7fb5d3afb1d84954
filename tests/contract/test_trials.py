"""The service against thousands of requests that schemathesis makes up from the contract, good ones and bad ones.

tests/clients_generated/install has schemathesis. To try more, with other seeds:
TRIALS=200 TRIALS_SEED=7 python -m pytest tests/contract/test_trials.py
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.requirements import program
from tests.service import ROOT, Service, inherited

FOLDER = ROOT / "tests/contract/trials"
# Of a finding the first lines say what it is; the last ones count.
SHOWN = 20_000
# Thousands of requests in a minute are what these are against; what 429 looks like is tested elsewhere. Service has no
# limit for a user already.
NO_LIMIT = {"WRONG_TOKENS_PER_MINUTE_PER_ADDRESS": "0"}


@pytest.mark.fault("O4")
@pytest.mark.parametrize("claims", [{}, {"role": "admin"}], ids=["user", "admin"])
def test_replies_keep_the_contract(tmp_path: Path, ai_service: Any, claims: dict[str, str]) -> None:
    """Whatever is asked: no 5xx, only replies of the contract, no bad request accepted, no good one refused."""
    tool = program("schemathesis", hint="tests/clients_generated/install FOLDER has it")
    with Service(tmp_path / "data", ai_service.url, **NO_LIMIT) as service:
        (name, token), = service.headers(**claims).items()
        command = [tool, "--no-color", "--config-file", str(FOLDER / "schemathesis.toml")]
        command += ["run", f"{service.url}/openapi.json", "--header", f"{name}: {token}", "--warnings", "off"]
        command += ["--checks", "all", "--seed", os.environ.get("TRIALS_SEED", "1")]
        command += ["--max-examples", os.environ.get("TRIALS", "10")]
        hooks = {"PYTHONPATH": str(FOLDER), "SCHEMATHESIS_HOOKS": "hooks"}
        ran = subprocess.run(command, cwd=tmp_path, env=inherited() | hooks, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout[:SHOWN] + ran.stderr[-SHOWN:]
