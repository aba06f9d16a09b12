"""How a process ended, by a service manager's variables, has an error code."""

from __future__ import annotations

import pytest

from tests.support.endings import ENDINGS, Ending
from trio_runner.failure.unreported import cause_of_death


@pytest.mark.parametrize("ending", [*ENDINGS, Ending("exit-code", "exited", "78", None)], ids=str)
def test_a_service_managers_result_has_an_error_code(ending: Ending) -> None:
    failure = cause_of_death(ending.variables())
    assert (failure and failure.code) == ending.code
