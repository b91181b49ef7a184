import time

import msgspec
import pytest

from codexd.errors import ApiError
from codexd.protocol.codex.models import BUILT_IN, EFFORTS, Catalogue, Model, decode_catalogue, nearest


def refused(catalogue: Catalogue, name: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        catalogue.resolve(name)
    return caught.value


@pytest.mark.parametrize(
    ("slug", "efforts", "default"),
    [
        ("gpt-5.1", "none low medium high", "none"),
        ("gpt-5.2", "none low medium high xhigh", "none"),
        ("gpt-5.1-codex", "low medium high", "medium"),
        ("gpt-5.1-codex-max", "low medium high xhigh", "high"),
        ("gpt-5.2-codex", "low medium high xhigh", "high"),
        ("gpt-5.1-codex-mini", "medium high", "medium"),
    ],
)
def test_the_built_in_names_have_their_efforts_also_as_a_suffix(slug: str, efforts: str, default: str) -> None:
    catalogue = Catalogue({})
    model = catalogue.resolve(slug).model
    assert (model.efforts, model.default_effort, model.lite) == (tuple(efforts.split()), default, False)
    for effort in EFFORTS:
        if f"{slug}-{effort}" != "gpt-5.1-codex-max":
            assert catalogue.resolve(f"{slug}-{effort}").effort == effort


def test_a_slug_that_ends_like_an_effort_is_the_slug() -> None:
    found = Catalogue({}).resolve("gpt-5.1-codex-max")
    assert (found.model.slug, found.effort) == ("gpt-5.1-codex-max", None)


def test_todays_catalogue_is_built_in_with_its_shapes() -> None:
    shapes = {model.slug: model.lite for model in BUILT_IN}
    assert shapes["gpt-6.1-sol"]
    assert not shapes["gpt-5.5"]
    assert Catalogue({}).resolve("gpt-6-sol-max").effort == "max"


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    error = refused(Catalogue({}), "gpt-5.1-codecs")
    assert (error.status, error.error.code, error.error.param) == (404, "model_not_found", "model")
    assert 'Did you mean "gpt-5.1-codex"' in error.error.message
    assert "gpt-6-sol" in error.error.message
    assert "Did you mean" not in refused(Catalogue({}), "zzz").error.message


def test_an_alias_stands_for_a_model_and_takes_an_effort() -> None:
    catalogue = Catalogue({"fast": "gpt-6-luna-low", "gpt-5.2": "gpt-6-sol", "gpt-5.1-codex": "gpt-6-sol"})
    assert catalogue.resolve("fast").effort == "low"
    assert catalogue.resolve("fast-high").effort == "high"
    assert catalogue.resolve("gpt-5.2").model.slug == "gpt-6-sol"
    assert catalogue.resolve("gpt-5.1-codex-max").model.slug == "gpt-5.1-codex-max"
    assert {"fast", "gpt-5.2"} <= set(catalogue.listed)


@pytest.mark.parametrize("aliases", [{"a": "b", "b": "a"}, {"a": "a-high"}, {"a": "nothing"}])
def test_an_alias_that_leads_nowhere_is_an_unknown_name(aliases: dict[str, str]) -> None:
    error = refused(Catalogue(aliases), "a")
    assert (error.status, error.error.code) == (404, "model_not_found")
    assert f'"a" is an alias in [models.aliases]: its model "{aliases["a"]}" does not exist' in error.error.message
    assert "a" not in Catalogue(aliases).listed
    assert refused(Catalogue(aliases), "a-high").status == 404


def test_the_live_catalogue_wins_and_is_what_is_listed() -> None:
    live = [
        Model(slug="gpt-5.5", efforts=("high",), default_effort="high", lite=True),
        Model(slug="gpt-hidden", efforts=(), default_effort=None, listed=False),
    ]
    catalogue = Catalogue({"mine": "gpt-5.5"}, live)
    assert catalogue.listed == ["gpt-5.5", "mine"]
    assert catalogue.resolve("gpt-5.5").model.lite
    assert catalogue.resolve("gpt-hidden").model.slug == "gpt-hidden"
    assert catalogue.resolve("gpt-hidden-high").effort == "high"  # a model that says nothing of efforts may have any
    assert catalogue.resolve("gpt-5.1").model.slug == "gpt-5.1"


def test_a_catalogue_is_read_leniently_and_in_its_order() -> None:
    answer = {
        "models": [
            {"slug": "b", "priority": 2, "visibility": "none", "minimal_client_version": [0, 1, 2]},
            {"slug": 7},
            "nonsense",
            {
                "slug": "a",
                "priority": 1,
                "supported_reasoning_levels": [{"effort": "low", "description": "…"}],
                "default_reasoning_level": "low",
                "use_responses_lite": True,
                "default_verbosity": "low",
            },
        ]
    }
    first, second = decode_catalogue(msgspec.json.encode(answer))
    assert (first.slug, first.efforts, first.lite, first.verbosity) == ("a", ("low",), True, "low")
    assert (second.slug, second.listed, second.verbosity) == ("b", False, "medium")


def test_a_catalogue_without_a_readable_model_is_none() -> None:
    with pytest.raises(ValueError, match="no readable model"):
        decode_catalogue(b'{"models": [{}]}')


def test_a_model_knows_its_aliases() -> None:
    catalogue = Catalogue({"b": "gpt-6-sol", "a": "gpt-6-sol-high", "c": "gpt-6-luna", "none": "nowhere"})
    assert catalogue.aliases_of("gpt-6-sol") == ["a", "b"]
    assert catalogue.aliases_of("gpt-5.5") == []


# --- names of routers and of other vendors


@pytest.mark.parametrize(
    ("name", "slug", "effort"),
    [
        ("openai/gpt-5.5", "gpt-5.5", None),
        ("openrouter/openai/gpt-5.5", "gpt-5.5", None),
        ("gpt-5.5:latest", "gpt-5.5", None),
        ("GPT-5.5", "gpt-5.5", None),
        ("gpt-5.2(high)", "gpt-5.2", "high"),
        ("gpt-5.2 (High)", "gpt-5.2", "high"),
        ("gpt-5.2:high", "gpt-5.2", "high"),
        ("gpt-5.5[1m]", "gpt-5.5", None),
        (" openai/GPT-5.2-codex(xhigh):free [1m] ", "gpt-5.2-codex", "xhigh"),
        ("openai/gpt-5.1-high", "gpt-5.1", "high"),
        ("claude-opus-4-1-20250805", "gpt-6.1-sol", None),
        ("anthropic/claude-sonnet-4.5", "gpt-6.1-terra", None),
        ("us.anthropic.claude-3-5-haiku-20241022-v1:0", "gpt-6-luna", None),
        ("claude-sonnet-4-5[1m]", "gpt-6.1-terra", None),
        ("claude-next", "gpt-6.1-terra", None),
    ],
)
def test_names_with_more_around_them(name: str, slug: str, effort: str | None) -> None:
    found = Catalogue({}).resolve(name)
    assert (found.model.slug, found.effort) == (slug, effort)


def test_an_alias_may_be_a_pattern() -> None:
    aliases = {"claude-*": "gpt-5.5", "claude-*haiku*": "gpt-6-luna-low", "my-*": "gpt-5.2", "*": "nothing"}
    catalogue = Catalogue(aliases)
    for name, slug, effort in (
        ("claude-3-haiku", "gpt-6-luna", "low"),
        ("anthropic/Claude-3-Haiku", "gpt-6-luna", "low"),
        ("claude-opus-4", "gpt-5.5", None),
        ("my-model", "gpt-5.2", None),
        ("my-model(high)", "gpt-5.2", "high"),
    ):
        found = catalogue.resolve(name)
        assert (found.model.slug, found.effort) == (slug, effort)
    assert not any("*" in name for name in catalogue.listed)
    assert catalogue.aliases_of("gpt-6-luna") == ["claude-*haiku*"]
    assert refused(catalogue, "zzz").status == 404


def test_the_accounts_own_models_stand_for_claudes() -> None:
    one = Catalogue({}, [Model(slug="gpt-x", efforts=(), default_effort=None)])
    assert {one.resolve(f"claude-{size}-9").model.slug for size in ("opus", "sonnet", "haiku")} == {"gpt-x"}
    assert refused(Catalogue({}, []), "claude-opus-9").status == 404


def test_a_suggestion_is_in_the_list() -> None:
    live = [Model(slug="gpt-5.5", efforts=("low", "high"), default_effort="low")]
    message = refused(Catalogue({"gpt-5.7-mine": "gpt-5.5"}, live), "gpt-5.7").error.message
    assert 'Did you mean "gpt-5.5" or "gpt-5.7-mine"?' in message
    assert "gpt-5.2" not in message


def test_efforts_may_be_listed() -> None:
    live = [Model(slug="gpt-5.5", efforts=("low", "high"), default_effort="low")]
    assert Catalogue({"a": "gpt-5.5"}, live, list_efforts=True).listed == [
        "gpt-5.5",
        "gpt-5.5-low",
        "gpt-5.5-high",
        "a",
    ]


@pytest.mark.parametrize(
    ("efforts", "wanted", "found"),
    [
        ("low medium high", "none", "low"),
        ("low medium high", "minimal", "low"),
        ("low medium high", "xhigh", "high"),
        ("low medium high", "ultra", "high"),
        ("none low high", "medium", "high"),
        ("low medium high", "what", None),
        ("", "low", None),
        ("odd", "low", None),
    ],
)
def test_the_nearest_effort(efforts: str, wanted: str, found: str | None) -> None:
    assert nearest(efforts.split(), wanted) == found


def test_a_long_name_is_not_looked_for() -> None:
    begun = time.process_time()
    error = refused(Catalogue({}), "gpt" + ":a" * 100_000)
    assert time.process_time() - begun < 1
    assert (error.status, len(error.error.message) < 2000) == (404, True)
