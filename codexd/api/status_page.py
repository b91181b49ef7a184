"""The status page: one HTML document without external resources.

Its only script adds buttons that copy, and refreshes the page. Where it is forbidden, everything else works.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import NamedTuple

from codexd.api.exchange import Document
from codexd.auth.pages import marked
from codexd.config import clients
from codexd.protocol.codex.rate_limits import Window
from codexd.telemetry.tokens import Amount, Hour
from codexd.telemetry.trace import Trace

_SCRIPT = """
const LIVE = "live", EVERY = 10000;
function buttons(root) {
  if (!navigator.clipboard) return;
  for (const text of root.querySelectorAll("pre, code.copy")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy " + text.textContent.trim().slice(0, 40));
    button.onclick = async () => {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
    text.after(button);
  }
}
async function refresh() {
  const live = document.getElementById(LIVE);
  const reading = live.contains(document.activeElement) || !getSelection().isCollapsed;
  if (document.hidden || reading) return;
  try {
    const answer = await fetch(location.pathname);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(LIVE);
    if (!answer.ok || !fresh) return;
    live.replaceWith(fresh);
    buttons(fresh);
  } catch { }
}
buttons(document);
setInterval(refresh, EVERY);
"""
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()

HEADERS = (
    (
        "content-security-policy",
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; "
        "connect-src 'self'; frame-ancestors 'none'",
    ),
    ("cache-control", "no-store"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
)


class View(NamedTuple):
    """The data of the page. ``who`` is the account; None if signed out, for the reason ``why`` if one is known.

    ``now`` is in Unix seconds. ``lane`` says in words how requests are sent to the backend, and ``websockets`` is the
    number of open ones. ``base`` is the base URL of the API at the address at which the page was requested.
    ``in_progress`` are the requests that are not answered yet, ``failures`` the last failed ones, the newest last.
    ``keys`` is what each client key has used in the last seven days.
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
    in_progress: Sequence[Trace] = ()
    failures: Sequence[Trace] = ()
    keys: Mapping[str, Amount] = {}


HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
"""

_PAGE = Template(f"""{HEAD}<title>codexd</title>
<noscript><meta http-equiv="refresh" content="60"></noscript>
<style>
$style
</style>
</head>
<body>
<main>
<header><h1>codexd</h1><span class="soft">$version</span></header>
<div id="live">
<section aria-label="Sign-in">$sign_in</section>
$limits
<section><h2>In progress</h2>$in_progress</section>
$failures
<section><h2>Last 24 hours</h2>$charts</section>
$keys
</div>
<section><h2>Connect a client</h2>$use</section>
<section><h2>Models</h2>$models</section>
<footer class="soft"><a href="docs/index.md">Documentation</a> <a href="openapi.json">OpenAPI document</a></footer>
</main>
<script>$script</script>
</body>
</html>
""")

STYLE = """:root { --back: #f6f7f9; --card: #fff; --text: #16191d; --soft: #59616b; --line: #dde1e6; --bar: #2160c4;
  --good: #1a7f4b; --warn: #955500; --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --back: #101317; --card: #191d23; --text: #eceff3; --soft: #9aa4b0; --line: #2b313a; --bar: #6ea8fe;
    --good: #4cc38a; --warn: #f0b35a; --bad: #ff8b7e; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 1.25rem; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, #live { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem; }
main { max-width: 52rem; margin: 0 auto; }
header, footer { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1rem; margin: 0 0 .6rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .8rem; padding: 1rem 1.25rem;
  overflow-wrap: anywhere; min-width: 0; }
p { margin: .4rem 0 0; }
a { color: var(--bar); }
.soft { color: var(--soft); }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.limit { display: grid; grid-template-columns: 7rem 1fr 3.5rem; gap: .15rem .75rem; align-items: center; }
.limit + .limit { margin-top: .6rem; }
.limit small { grid-column: 2 / 4; color: var(--soft); }
.track { height: .6rem; border-radius: .3rem; background: var(--line); overflow: hidden; }
.track div { height: 100%; border-radius: .3rem; background: currentColor; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1.25rem; }
figure { margin: 0; }
svg { display: block; width: 100%; height: 3.5rem; border-bottom: 1px solid var(--line); }
svg rect { fill: var(--bar); }
.scale { display: flex; justify-content: space-between; font-size: .8rem; color: var(--soft); }
ul { list-style: none; margin: 0; padding: 0; }
.tags { display: flex; flex-wrap: wrap; gap: .4rem; }
.rows li { padding: .5rem 0; border-top: 1px solid var(--line); }
.rows li:first-child { border-top: 0; padding-top: 0; }
.rows span { margin-right: .75rem; }
code, pre { font: .9em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.tags li, .copy { padding: .1em .45em; border: 1px solid var(--line); border-radius: .35em; background: var(--back); }
.copy, pre { user-select: all; -webkit-user-select: all; cursor: copy; }
pre { margin: .5rem 0 0; padding: .75rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--back);
  white-space: pre-wrap; overflow-wrap: anywhere; }
button { font: inherit; font-size: .8rem; margin: .25rem .4rem; padding: .05rem .5rem; color: var(--text);
  background: var(--card); border: 1px solid var(--line); border-radius: .35em; cursor: pointer; }
details + details { margin-top: .5rem; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 30rem) {
  body { padding: .75rem; }
  section { padding: .8rem; }
  .limit { grid-template-columns: 1fr auto; }
  .limit .track { grid-column: 1 / 3; grid-row: 2; }
  .limit small { grid-column: 1 / 3; }
}"""


def page(view: View) -> Document:
    limits = "".join(_limit(window, view.now) for window in view.windows)
    if view.who is not None and not limits:
        limits = '<p class="soft">Unknown until the first answer.</p>'
    parts = {
        "style": STYLE,
        "script": _SCRIPT,
        "version": f"{escape(view.version)}, up {escape(view.uptime)}",
        "sign_in": _sign_in(view),
        "limits": _section("Account limits", limits if view.who is not None else ""),
        "in_progress": _in_progress(view),
        "failures": _section("Recent failures", _failures(view)),
        "charts": _charts(view.hours),
        "keys": _section("Usage by key, last 7 days", _keys(view.keys)),
        "use": _use(view),
        "models": f'<ul class="tags">{"".join(f"<li><code>{escape(name)}</code></li>" for name in view.models)}</ul>'
        '<p class="soft">Append a reasoning effort to choose it, such as <code>NAME-high</code>.</p>',
    }
    return Document(_PAGE.substitute(parts).encode(), HEADERS, content_type="text/html; charset=utf-8")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _count(number: int, what: str) -> str:
    return f"{_grouped(number)} {what}{'' if number == 1 else 's'}"


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def _name(text: str) -> str:
    """Returns a name from elsewhere; one in Arabic or Hebrew does not turn the text around it."""
    return f"<bdi>{escape(text)}</bdi>"


def _sign_in(view: View) -> str:
    if view.who is not None:
        opened = f", {view.websockets} open" if view.websockets else ""
        lane = f'<p class="soft">Requests reach the backend over {escape(view.lane)}{opened}.</p>'
        return f'<strong class="good">Signed in</strong> as {_name(view.who)}{lane}'
    return (
        f'<strong class="bad">{escape(view.why or "Signed out")}.</strong> '
        'Requests fail with status 401. To sign in, run <code class="copy">codexctl login</code> on this machine.'
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


def _ago(seconds: float) -> str:
    return f"{int(max(seconds, 0))} s" if seconds < 60 else _span(int(seconds // 60))


def _in_progress(view: View) -> str:
    shown = [trace for trace in view.in_progress if trace.model]
    if not shown:
        return f'<p class="soft">{_count(view.streams, "request")}.</p>'
    rows = []
    for trace in shown:
        said = "waiting for the first token" if trace.spans.first is None else _count(trace.events, "event")
        key = f'<span class="soft">key {_name(trace.key)}</span>' if trace.key else ""
        rows.append(
            f"<li><span>{_name(trace.model or '')}</span>{key}"
            f'<span class="soft">{_ago(view.now - trace.at)}, {said}</span></li>'
        )
    return f'<ul class="rows">{"".join(rows)}</ul>'


def _failures(view: View) -> str:
    rows = []
    for trace in reversed(view.failures):
        model = f"<span>{_name(trace.model)}</span>" if trace.model else ""
        rows.append(
            f'<li><span class="soft">{_ago(view.now - trace.at)} ago</span>{model}'
            f'<span class="bad">{trace.status}</span>{marked(trace.message or trace.error or "")}'
            f'<p>Details: <code class="copy">codexctl explain {escape(trace.id)}</code></p></li>'
        )
    return f'<ul class="rows">{"".join(rows)}</ul>' if rows else ""


def _charts(hours: Sequence[Hour]) -> str:
    tokens, cached = sum(hour.input for hour in hours), sum(hour.cached for hour in hours)
    share = f'<p class="soft">{cached / tokens:.0%} of the input tokens came from the cache.</p>' if tokens else ""
    charts = _chart("requests", [hour.requests for hour in hours])
    charts += _chart("tokens in and out", [hour.input + hour.output for hour in hours])
    return f'<div class="charts">{charts}</div>{share}'


def _chart(title: str, values: Sequence[int]) -> str:
    most = max(values, default=0)
    width, unit = 100 / max(len(values), 1), most or 1
    bars = "".join(
        f'<rect x="{index * width:.2f}" y="{40 - 38 * value / unit:.2f}" width="{width * 0.8:.2f}" '
        f'height="{38 * value / unit + (0.6 if value else 0.3):.2f}"><title>{_grouped(value)}, '
        f"{_hours_ago(len(values) - 1 - index)}</title></rect>"
        for index, value in enumerate(values)
    )
    shown = f'role="img" aria-label="{title} by hour, peak {_grouped(most)}"'
    return (
        f"<figure><figcaption><strong>{_grouped(sum(values))}</strong> {title}</figcaption>"
        f'<div class="scale"><span>hourly peak: {_grouped(most)}</span></div>'
        f'<svg viewBox="0 0 100 41" preserveAspectRatio="none" {shown}>{bars}</svg>'
        '<div class="scale"><span>24 h ago</span><span>12 h</span><span>now</span></div></figure>'
    )


def _hours_ago(hours: int) -> str:
    return "this hour" if hours == 0 else f"{hours} h ago"


def _keys(keys: Mapping[str, Amount]) -> str:
    if not any(keys):  # only requests without a key
        return ""
    rows = []
    for name, amount in sorted(keys.items(), key=lambda each: -(each[1].input + each[1].output)):
        failed = f", {_grouped(amount.failed)} failed" if amount.failed else ""
        shown = _name(name) if name else '<span class="soft">(no key)</span>'
        rows.append(
            f'<li><span>{shown}</span><span class="soft">{_count(amount.requests, "request")}{failed}, '
            f"{_grouped(amount.input)} tokens in, {_grouped(amount.output)} out</span></li>"
        )
    return f'<ul class="rows">{"".join(rows)}</ul>'


def _use(view: View) -> str:
    base = escape(view.base)
    key = clients.FILL_IN if view.key_required else clients.NO_KEY
    note = (
        "Each client needs a key. To create one, run <code>codexctl keys add NAME</code>."
        if view.key_required
        else "No key is required. If a client asks for one, enter any text."
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
    return _ago(seconds)
