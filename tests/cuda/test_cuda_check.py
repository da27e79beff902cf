"""EXACTILE_CHECK on a GPU: the host checks page numbers in its memory."""

from checked_pages import check_outcomes, outcomes
from cuda_device import needs_gpu

pytestmark = needs_gpu


def test_numbers_of_no_page_are_refused(family):
    """With lengths on the host, with lengths on the GPU; and no run is captured."""
    check_outcomes(outcomes("cuda", "1"), 3)


def test_they_are_not_checked_by_default(family):
    for case, number, error, written in outcomes("cuda", "0"):
        assert (error, written) == ("", case != "captured"), (case, number)
