"""The test of `check`, which providers, notifiers, filters and observers may have."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from pipeline.testing.findings import describe, expect, fail_test
from pipeline.testing.suite import Call, PluginSuite, api_version_of

# Exceptions that a service out of reach cannot cause.
MISTAKES = (AttributeError, NameError, TypeError, LookupError)


class CheckTests(PluginSuite):
    """Part of all suites except that of storages, which must have a `check`. It may fail: a service may be down."""

    def test_check_returns_nothing_or_raises(self, request: pytest.FixtureRequest, call: Call) -> None:
        """The service ignores the result of `check`, so that False would count as success."""
        check = getattr(under_test(request), "check", None)
        if not callable(check) or api_version_of(under_test(request)) < 2:
            pytest.skip("the plugin has no check, which is optional")
        answer: Any = None
        try:
            answer = call(check)
        except MISTAKES as error:
            fail_test(f"check raised {describe(error)}: return nothing, raise in words when it is not usable")
        except Exception:
            return  # the plugin is not usable, and says so correctly
        expect(answer is None, f"check returns {answer!r}: return nothing, raise when it is not usable")


def under_test(request: pytest.FixtureRequest) -> Any:
    """Return the plugin under test."""
    for name in ("provider", "storage", "notifier", "plugin"):
        with suppress(pytest.FixtureLookupError):
            return request.getfixturevalue(name)
    raise LookupError("the suite has no plugin")
