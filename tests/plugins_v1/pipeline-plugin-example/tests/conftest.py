import pytest

# Before the suites are imported: a failed assertion of theirs then says what was there instead.
pytest.register_assert_rewrite("pipeline.testing")
