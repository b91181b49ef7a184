import pytest

from codexd.state import instructions


@pytest.mark.parametrize(
    ("slug", "family"),
    [
        ("gpt-5.1", "gpt-5-1"),
        ("gpt-5.1-codex", "gpt-5-1-codex"),
        ("gpt-5.1-codex-max", "gpt-5-1-codex-max"),
        ("gpt-5.1-codex-mini", "gpt-5-1-codex-mini"),
        ("gpt-5.2-codex", "gpt-5-2-codex"),
        ("gpt-5.2", "gpt-5-2"),
        ("gpt-6-sol", "gpt-5-2"),
        ("codex-auto-review", "gpt-5-2-codex"),
        ("gpt-7.1-codex", "gpt-5-2-codex"),
    ],
)
def test_each_model_has_a_family(slug: str, family: str) -> None:
    assert instructions.family_of(slug) == family


@pytest.mark.parametrize("family", instructions.FAMILIES)
def test_each_family_has_a_short_text_of_its_own(family: str) -> None:
    text = instructions.built_in(family)
    assert 100 < len(text) < 4000
    assert len(text.splitlines()) < 60
    assert [other for other in instructions.FAMILIES if instructions.built_in(other) == text] == [family]
