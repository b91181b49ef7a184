"""The two pages that a browser shows at the end of a sign-in. They load no external resources."""

HEADERS = [
    ("content-type", "text/html; charset=utf-8"),
    ("content-security-policy", "default-src 'none'; img-src data:; style-src 'unsafe-inline'"),
    ("cache-control", "no-store"),
    # The address of this page contains the code.
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("connection", "close"),
]

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} – codexd</title>
<link rel="icon" href="data:,">
<style>
:root {{ --back: #f6f7f9; --card: #ffffff; --text: #16191d; --soft: #59616b; --line: #dde1e6; --mark: {light}; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --back: #101317; --card: #191d23; --text: #eceff3; --soft: #9aa4b0; --line: #2b313a; --mark: {dark}; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.25rem; background: var(--back);
  color: var(--text); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
main {{ width: 100%; max-width: 30rem; padding: 2rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .9rem; overflow-wrap: anywhere; }}
.mark {{ width: 2.75rem; height: 2.75rem; border-radius: 50%; display: grid; place-items: center; font-size: 1.4rem;
  font-weight: 700; color: #fff; background: var(--mark); }}
h1 {{ font-size: 1.4rem; line-height: 1.25; margin: 1.1rem 0 .5rem; }}
p {{ margin: .5rem 0 0; }}
.soft {{ color: var(--soft); }}
code {{ font: .95em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; padding: .1em .35em; border-radius: .3em;
  background: var(--back); border: 1px solid var(--line); }}
</style>
</head>
<body>
<main>
<div class="mark" aria-hidden="true">{sign}</div>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


def success(who: str | None) -> bytes:
    """Returns the success page. ``who`` is the account's e-mail address."""
    from html import escape  # here: its tables of entities are a megabyte

    account = f" as <strong>{escape(who)}</strong>" if who else ""
    body = (
        f"<p>codexd is signed in{account}.</p>"
        '<p class="soft">You can close this page. Your tools can use codexd now, without a restart.</p>'
    )
    return _PAGE.format(title="Signed in", body=body, sign="✓", light="#1a7f4b", dark="#2fa36a").encode()


def failure(title: str, why: str) -> bytes:
    """Returns the failure page. ``why`` is a sentence that says what to do next; backquotes mark commands."""
    from html import escape

    body = f"<p>{marked(why)}</p>"
    return _PAGE.format(title=escape(title), body=body, sign="!", light="#b3261e", dark="#d9534a").encode()


def marked(text: str) -> str:
    """Returns a message as HTML; what is in backquotes is code."""
    from html import escape

    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces))
