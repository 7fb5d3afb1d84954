import pytest

# Before the import of the suites: a failed assertion in them then shows the compared values.
pytest.register_assert_rewrite("pipeline.testing")
