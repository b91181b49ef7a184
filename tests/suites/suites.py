"""``make suites``: third-party checks of the three APIs, against the daemon over the simulated ChatGPT.

llm-comply with its checks of Open Responses, Chat Completions and Messages, each with a model of each request shape, and
LangChain's standard tests. Exits with 1 if one of them fails.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.daemon import ROOT, environment
from support.demo import base_url, demo

COMPLY = ROOT / "build" / "suites" / "bin" / "llm-comply"
LANGCHAIN = ROOT / "tests" / "clients" / "python"
FORMATS = {"open-responses": "Open Responses", "openai-chat": "Chat Completions", "anthropic": "Messages"}
MODELS = ("gpt-5.5", "gpt-6-sol")
IGNORED = "response.reasoning_summary_text"
"""OpenAI's name of an event, for which the Open Responses specification has another one."""


def comply(base: str, form: str, model: str, home: Path) -> dict[str, Any]:
    command = [str(COMPLY), "-u", base, "-k", "any", "-m", model, "--format", form, "--json", "-i", IGNORED]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(home), timeout=300, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def langchain(base: str, home: Path) -> tuple[bool, str]:
    command = [str(LANGCHAIN / ".venv" / "bin" / "python"), "-m", "pytest", "-q", "-n", "4", "-o", "asyncio_mode=auto",
               "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(LANGCHAIN), "--noconftest",
               str(LANGCHAIN / "langchain_standard.py")]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(home) | {"BASE_URL": base}, cwd=LANGCHAIN, timeout=900,
        check=False,
    )  # fmt: skip
    counts = re.findall(r"\d+ (?:passed|failed|skipped|xfailed|error)", done.stdout.splitlines()[-1])
    return done.returncode == 0, ", ".join(counts)


def main() -> int:
    failed = False
    with tempfile.TemporaryDirectory(prefix="codexd-suites-") as name:
        home = Path(name)
        (home / "demo").mkdir()
        with demo(home / "demo", home / "log") as said:
            base = base_url(said)
            for form, words in FORMATS.items():
                for model in MODELS:
                    found = comply(base, form, model, home)
                    bad = [each["name"] for each in found["results"] if each["status"] == "failed"]
                    failed |= bool(bad)
                    counts = ", ".join(f"{found['summary'][key]} {key}" for key in ("passed", "failed", "skipped"))
                    print(f"llm-comply, {words}, {model}: {counts}{': ' if bad else ''}{', '.join(bad)}")
            good, counts = langchain(base, home)
            print(f"LangChain's standard tests: {counts}")
    return int(failed or not good)


if __name__ == "__main__":
    sys.exit(main())
