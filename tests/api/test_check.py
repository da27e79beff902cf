"""EXACTILE_CHECK on the CPU, which checks page numbers always."""

import pytest

from checked_pages import check_outcomes, outcomes


@pytest.mark.parametrize("check", ["", "0", "1"])
def test_page_numbers_are_checked(check):
    check_outcomes(outcomes("cpu", check), 1)


def test_another_value():
    for case, number, error, written in outcomes("cpu", "yes"):
        assert error == "EXACTILE_CHECK: expected 0 or 1, got 'yes'", (case, number)
        assert not written
