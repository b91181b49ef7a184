"""``codexctl try``: a question, and its answer as it comes."""

import re
from pathlib import Path

import pytest

from support.codexctl import Setup

pytestmark = pytest.mark.loopback


async def test_a_question_is_answered(shared: Setup) -> None:
    said = await shared.ctl("try", "why", "is the sky blue?")
    assert said.code == 0
    assert "You wrote: why is the sky blue?" in said.out
    assert re.search(r"\d+ tokens in, \d+ out, first word after \d\.\d s, \d\.\d s in total", said.err)


async def test_a_question_may_come_through_a_pipe(shared: Setup) -> None:
    piped = await shared.ctl("try", "-m", "gpt-5.5", "--effort", "high", "sum up:", "-", stdin=b"a long text")
    assert "sum up:\n\na long text" in piped.out and "gpt-5.5:" in piped.err
    assert "only this" in (await shared.ctl("try", stdin=b"only this")).out


async def test_a_question_with_an_image_as_json(shared: Setup, tmp_path: Path) -> None:
    image = tmp_path / "dot.png"
    image.write_bytes(b"\x89PNG" + bytes(300_000))
    said = await shared.ctl("try", "what is this?", "--image", str(image), "--json")
    assert said.code == 0
    replies = said.json
    assert "".join(reply["text"] for reply in replies if reply["reply"] == "text" and not reply.get("thinking"))
    assert [reply["reply"] for reply in replies[-2:]] == ["try_ended", "done"]


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["x", "-m", "gpt-nix"], 5, 'The model "gpt-nix" does not exist'),
        (["x", "--image", "/nowhere.png"], 2, "Cannot read /nowhere.png"),
        (["x", "--image", "/etc/passwd"], 2, 'Unsupported image type "/etc/passwd"'),
        ([], 2, "Ask something"),
        ([" "], 2, "Ask something"),
    ],
)
async def test_what_cannot_be_asked_is_refused(shared: Setup, words: list[str], code: int, why: str) -> None:
    refused = await shared.ctl("try", *words)
    assert (refused.code, why in refused.err) == (code, True), refused


async def test_a_question_is_counted_as_other_requests_are(shared: Setup) -> None:
    counted = re.compile(
        r'codexd_requests_total\{endpoint="/chat/completions",key="",model="gpt-5.5",status="200"\} (\d+)'
    )

    async def count() -> int:
        found = counted.search((await shared.ctl("metrics")).out)
        return int(found[1]) if found else 0

    before = await count()
    await shared.ctl("try", "-m", "gpt-5.5", "x")
    assert await count() == before + 1


async def test_an_image_is_drawn_and_changed(shared: Setup, tmp_path: Path) -> None:
    image = tmp_path / "dot.png"
    said = await shared.ctl("try", "a red dot", "--draw", str(image))
    assert (said.code, said.out) == (0, f"Saved {image}.\n")
    assert re.fullmatch(r"gpt-image-2: \d+\.\d s in total\.\n", said.err)
    assert image.read_bytes().startswith(b"\x89PNG")
    changed = await shared.ctl("try", "make it blue", "--image", str(image), "--draw", str(image))
    assert changed.code == 0
    said = await shared.ctl("try", "a red dot", "--draw", str(image), "--json")
    assert [reply["reply"] for reply in said.json] == ["image", "try_ended", "done"]
    for words, why in (
        (("--draw", str(tmp_path / "no" / "dot.png")), "Cannot write"),
        (("--draw", "dot.jpg"), 'Unsupported image type "dot.jpg"'),
        (("--draw", str(image), "--search"), "have no effect with --draw"),
    ):
        refused = await shared.ctl("try", "a red dot", *words)
        assert (refused.code, why in refused.err) == (2, True), refused


@pytest.mark.parametrize("model", ["gpt-5.5", "gpt-6-sol"])
async def test_a_question_may_be_searched(shared: Setup, model: str) -> None:
    said = await shared.ctl("try", "search the web for 'weather'", "-m", model, "--search")
    assert said.code == 0 and "https://example.com/weather" in said.out
