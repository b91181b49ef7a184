"""Changes that codexd made to a request, as values. Clients read them in the header ``x-codexd-adjusted``."""

from typing import NamedTuple


class Adjustment(NamedTuple):
    """A parameter that was not passed on unchanged.

    ``how`` is ``dropped``, ``emulated``, or the replacement, such as ``developer`` for the role ``system``.
    """

    param: str
    how: str

    def __str__(self) -> str:
        return f"{self.param}={self.how}"


Adjustments = tuple[Adjustment, ...]
NONE: Adjustments = ()
