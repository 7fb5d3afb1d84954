"""The provider passes the suite, and names colours."""

import asyncio
import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from PIL import Image
from structlog.testing import capture_logs

from pipeline.hooks import AIProvider, AnalyzeRequest, JobEvent
from pipeline.settings import Settings
from pipeline.testing import AIProviderSuite
from pipeline_plugin_example import ExampleProvider, ExampleSettings, job_finished


class TestExampleProvider(AIProviderSuite):
    """The tests for every provider, and those of this one."""

    @pytest.fixture
    def provider(self) -> AIProvider:
        return ExampleProvider(center_percent=60)

    @pytest.mark.parametrize("color", ["navy", "red", "white"])
    def test_colorway_is_the_color_in_the_middle(self, analyze_request: AnalyzeRequest, color: str) -> None:
        """The border does not count."""
        image = Image.new("RGB", (300, 200), "yellow")
        image.paste(color, (50, 35, 250, 165))
        file = io.BytesIO()
        image.save(file, "PNG")
        analysis = ExampleProvider(center_percent=60).analyze(replace(analyze_request, image=file.getvalue()))
        assert analysis.colorway is not None and analysis.colorway.value == color


def test_finished_jobs_are_logged_without_their_user() -> None:
    """The same user has the same pseudonym; neither the user nor the key shows, and without a key nothing is logged."""
    settings = Settings().with_plugin_variables({"PLUGIN_EXAMPLE_PSEUDONYM_KEY": "any text"})
    event = JobEvent("ai-processing:1", "1", "user-1", "lego", "request-1", datetime.now(UTC), outcome="completed")
    with capture_logs() as logged:
        for user_id in ("user-1", "user-1", "user-2"):
            asyncio.run(job_finished(replace(event, user_id=user_id), settings))
    first, second, other = (line["user"] for line in logged)
    assert first == second != other
    assert "user-1" not in str(logged) and "any text" not in str(logged)
    assert not ExampleSettings().is_active and settings.plugin("example", ExampleSettings).is_active
