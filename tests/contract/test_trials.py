"""Thousands of requests, valid and invalid, that schemathesis generates from the contract, to a running service.

tests/clients_generated/install installs schemathesis. To send more requests, with another seed:
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
# The first lines of the output describe a finding; the last lines only count.
SHOWN_CHARACTERS = 20_000
# The limits would refuse thousands of requests in a minute; other tests check the reply 429. Service has already turned
# off the limit for a user.
NO_LIMIT = {"WRONG_TOKENS_PER_MINUTE_PER_ADDRESS": "0"}


@pytest.mark.fault("O4")
@pytest.mark.parametrize("claims", [{}, {"role": "admin"}], ids=["user", "admin"])
def test_replies_keep_the_contract(tmp_path: Path, ai_service: Any, claims: dict[str, str]) -> None:
    """Each reply is in the contract and none is a 5xx; invalid requests are refused and valid ones accepted."""
    tool = program("schemathesis", hint="tests/clients_generated/install FOLDER installs it")
    with Service(tmp_path / "data", ai_service.url, **NO_LIMIT) as service:
        (name, token), = service.headers(**claims).items()
        command = [tool, "--no-color", "--config-file", str(FOLDER / "schemathesis.toml")]
        command += ["run", f"{service.url}/openapi.json", "--header", f"{name}: {token}", "--warnings", "off"]
        command += ["--checks", "all", "--seed", os.environ.get("TRIALS_SEED", "1")]
        command += ["--max-examples", os.environ.get("TRIALS", "10")]
        hooks = {"PYTHONPATH": str(FOLDER), "SCHEMATHESIS_HOOKS": "hooks"}
        ran = subprocess.run(command, cwd=tmp_path, env=inherited() | hooks, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout[:SHOWN_CHARACTERS] + ran.stderr[-SHOWN_CHARACTERS:]
