"""What was changed on the way of a request, as values: the client reads them in ``x-codexd-adjusted``."""

from typing import NamedTuple


class Adjustment(NamedTuple):
    """One parameter that was not passed on as it came.

    ``how`` is ``dropped``, ``emulated``, or what stands in for it, such as ``developer`` for the role ``system``.
    """

    param: str
    how: str

    def __str__(self) -> str:
        return f"{self.param}={self.how}"


Adjustments = tuple[Adjustment, ...]
NONE: Adjustments = ()
