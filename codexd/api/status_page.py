"""The status page: one HTML document without scripts and external resources."""

from collections.abc import Iterable, Sequence
from html import escape
from string import Template
from typing import NamedTuple

from codexd.api.exchange import Document
from codexd.config import clients
from codexd.protocol.codex.rate_limits import Window
from codexd.telemetry.tokens import Hour

HEADERS = (
    ("content-security-policy", "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ("cache-control", "no-store"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
)


class View(NamedTuple):
    """The data of the page. ``who`` is the account; None if signed out, for the reason ``why`` if one is known.

    ``now`` is in Unix seconds. ``lane`` says in words how requests are sent to the backend, and ``websockets`` is the
    number of open ones. ``base`` is the base URL of the API at the address at which the page was requested.
    """

    version: str
    uptime: str
    now: float
    base: str
    key_required: bool
    who: str | None
    why: str | None
    streams: int
    lane: str
    websockets: int
    windows: Iterable[Window]
    models: Sequence[str]
    hours: Sequence[Hour]


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>codexd</title>
<link rel="icon" href="data:,">
<style>
:root { --back: #f6f7f9; --card: #fff; --text: #16191d; --soft: #59616b; --line: #dde1e6; --bar: #2a6fdb;
  --good: #1a7f4b; --warn: #a15c00; --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --back: #101317; --card: #191d23; --text: #eceff3; --soft: #9aa4b0; --line: #2b313a; --bar: #6ea8fe;
    --good: #4cc38a; --warn: #f0b35a; --bad: #ff8b7e; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 1.25rem; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 52rem; margin: 0 auto; display: grid; gap: 1rem; }
header { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1rem; margin: 0 0 .6rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .8rem; padding: 1rem 1.25rem;
  overflow-wrap: anywhere; min-width: 0; }
p { margin: .4rem 0 0; }
.soft { color: var(--soft); }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.limit { display: grid; grid-template-columns: 7rem 1fr 3.5rem; gap: .15rem .75rem; align-items: center; }
.limit + .limit { margin-top: .6rem; }
.limit small { grid-column: 2 / 4; color: var(--soft); }
.track { height: .6rem; border-radius: .3rem; background: var(--line); overflow: hidden; }
.track div { height: 100%; border-radius: .3rem; background: currentColor; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1.25rem; }
svg { display: block; width: 100%; height: 3.5rem; }
svg rect { fill: var(--bar); }
ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .4rem; }
code, pre { font: .9em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
li, .copy { padding: .1em .45em; border: 1px solid var(--line); border-radius: .35em; background: var(--back); }
.copy, pre { user-select: all; -webkit-user-select: all; cursor: copy; }
pre { margin: .5rem 0 0; padding: .75rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--back);
  white-space: pre-wrap; overflow-wrap: anywhere; }
details + details { margin-top: .5rem; }
summary { cursor: pointer; font-weight: 600; }
</style>
</head>
<body>
<main>
<header><h1>codexd</h1><span class="soft">$head</span></header>
<section aria-label="Sign-in">$sign_in</section>
<section><h2>Limits of the account</h2>$limits</section>
<section><h2>The last 24 hours</h2><div class="charts">$charts</div></section>
<section><h2>Use it</h2>$use</section>
<section><h2>Models</h2>$models</section>
</main>
</body>
</html>
""")


def page(view: View) -> Document:
    parts = {
        "head": f"{escape(view.version)}, up {escape(view.uptime)}, {_count(view.streams, 'answer')} in progress",
        "sign_in": _sign_in(view),
        "limits": "".join(_limit(window, view.now) for window in view.windows)
        or '<p class="soft">Unknown until the first answer.</p>',
        "charts": _chart("Requests", [hour.requests for hour in view.hours])
        + _chart("Tokens in and out", [hour.input + hour.output for hour in view.hours]),
        "use": _use(view),
        "models": f"<ul>{''.join(f'<li><code>{escape(name)}</code></li>' for name in view.models)}</ul>"
        '<p class="soft">Append a reasoning effort to a name to choose it, such as <code>NAME-high</code>.</p>',
    }
    return Document(_PAGE.substitute(parts).encode(), HEADERS, content_type="text/html; charset=utf-8")


def _count(number: int, what: str) -> str:
    return f"{_grouped(number)} {what}{'' if number == 1 else 's'}"


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def _sign_in(view: View) -> str:
    if view.who is not None:
        opened = f", {view.websockets} of them open" if view.websockets else ""
        lane = f'<p class="soft">Requests are sent to the backend over {escape(view.lane)}{opened}.</p>'
        return f'<strong class="good">Signed in</strong> as {escape(view.who)}{lane}'
    why = "" if view.why is None else f" {escape(view.why)}."
    return (
        f'<strong class="bad">Signed out.</strong>{why} '
        'Requests get 401. To sign in, run <code class="copy">codexctl login</code> on this machine.'
    )


def _limit(window: Window, now: float) -> str:
    used = min(100.0, max(0.0, window.used_percent))
    style = "bad" if used >= 90 else "warn" if used >= 70 else "good"
    name = window.label if window.limit == "codex" else f"{window.limit}, {window.label}"
    resets = ""
    if window.resets_at is not None:
        minutes = max(0, round((window.resets_at - now) / 60))
        resets = f"<small>resets in {_span(minutes)}</small>"
    return (
        f'<div class="limit"><span>{escape(name)}</span>'
        f'<div class="track {style}" role="img" aria-label="{used:g} % used"><div style="width:{used:g}%"></div></div>'
        f'<span class="number {style}">{used:g} %</span>{resets}</div>'
    )


def _span(minutes: int) -> str:
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def _chart(title: str, values: Sequence[int]) -> str:
    most = max(values, default=0) or 1
    width = 100 / max(len(values), 1)
    bars = "".join(
        f'<rect x="{index * width:.2f}" y="{40 - 38 * value / most:.2f}" width="{width * 0.8:.2f}" '
        f'height="{38 * value / most + (0.6 if value else 0.3):.2f}"><title>{_grouped(value)}, '
        f"{_hours_ago(len(values) - 1 - index)}</title></rect>"
        for index, value in enumerate(values)
    )
    drawn = f'viewBox="0 0 100 41" preserveAspectRatio="none" role="img" aria-label="{title} by hour"'
    return (
        f"<div><svg {drawn}>{bars}</svg>"
        f"<p><strong>{_grouped(sum(values))}</strong> {title[0].lower()}{title[1:]}</p></div>"
    )


def _hours_ago(hours: int) -> str:
    return "this hour" if hours == 0 else f"{hours} h ago"


def _use(view: View) -> str:
    base = escape(view.base)
    key = clients.FILL_IN if view.key_required else clients.NO_KEY
    note = (
        "Each program needs a key. To make one, run <code>codexctl keys add NAME</code>."
        if view.key_required
        else "No key is required. If a program requires one, enter any text."
    )
    model = escape(view.models[0]) if view.models else "MODEL"
    shown = "".join(
        f"<details><summary>{name}</summary><pre>{text}</pre></details>"
        for name, text in (_snippets(base, key, model) | _setups(view, key)).items()
    )
    return f'<p>Base URL <code class="copy">{base}</code></p><p class="soft">{note}</p><p></p>{shown}'


def _snippets(base: str, key: str, model: str) -> dict[str, str]:
    """Returns examples for clients by name, escaped for HTML. One click selects a whole example."""
    return {
        "curl": f"""curl -N {base}/chat/completions \\
  -H "authorization: Bearer {key}" -H "content-type: application/json" \\
  -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'""",
        "Python": f"""from openai import OpenAI

client = OpenAI(base_url="{base}", api_key="{key}")
answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello"}}])
print(answer.choices[0].message.content)""",
        "Node": f"""import OpenAI from "openai";

const client = new OpenAI({{ baseURL: "{base}", apiKey: "{key}" }});
const answer = await client.responses.create({{ model: "{model}", input: "Hello" }});
console.log(answer.output_text);""",
    }


def _setups(view: View, key: str) -> dict[str, str]:
    """Returns what ``codexctl setup`` writes for each client, escaped for HTML."""
    target = clients.Target(view.base, key, view.models)
    return {name: escape(clients.described(make(target))) for name, make in clients.CLIENTS.items()}


def uptime(seconds: float) -> str:
    return _span(int(seconds // 60))
