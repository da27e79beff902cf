"""EXACTILE_CHECK on a SYCL device: the host checks page numbers in its memory."""

from checked_pages import check_outcomes, outcomes
from sycl_device import needs_device

pytestmark = needs_device


def test_numbers_of_no_page_are_refused():
    """Of a table as it is when the queue has come to the run."""
    check_outcomes(outcomes("sycl", "1"), 2)


def test_they_are_not_checked_by_default():
    for case, number, error, written in outcomes("sycl", "0"):
        assert (error, written) == ("", True), (case, number)
