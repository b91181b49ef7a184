"""Adjustments as a client reads them."""

from collections.abc import Iterable

from codexd.protocol import parameters
from codexd.protocol.adjustments import Adjustment
from codexd.protocol.raw import RawObject


def told(adjusted: Iterable[Adjustment]) -> list[str]:
    return list(map(str, adjusted))


def rules_applied(members: RawObject, rules: dict[str, parameters.Rule]) -> list[str]:
    return told(parameters.apply_rules(members, rules))
