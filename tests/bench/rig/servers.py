"""The servers that are measured: how each is built or installed, signed in, started and stopped."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
WORK = ROOT / "build" / "bench"
OUT, RUN = WORK / "out", WORK / "run"
BINARIES = WORK / "rig"
CERTIFICATE = RUN / "nginx" / "cert.pem"

BACKEND, NGINX, NGINX_TLS, CHATMOCK, CODEX_API_PROXY, FLOOR = 18000, 18010, 18443, 18030, 18050, 18070
CODEXD = {"websocket": 18090, "http": 18091}
"""By the lane to the backend."""
BASE = f"http://127.0.0.1:{BACKEND}/backend-api/codex"
KEY = "sk-5f1d7c0a9be24c6f8d3e1a7b90c2d4e6f81a3b5c7d9e0f12"
ACCOUNT = "acct-fake-0001"
PEERS = {"chatmock": "chatmock==1.40", "codex-api-proxy": "codex-api-proxy==0.1.6"}

PACKAGES = {
    "rustc": "rustc",
    "valgrind": "valgrind",
    "callgrind_control": "valgrind",
    "nginx": "nginx-light",
    "openssl": "openssl",
}
"""The Debian package of each tool."""

API = {"chat": "/v1/chat/completions", "resp": "/v1/responses"}


@dataclass(frozen=True)
class Server:
    port: int
    command: list[str]
    paths: dict[str, str]
    """By kind of request: ``chat``, ``resp`` (Responses), ``ws`` (Responses over a websocket)."""
    environment: dict[str, str] = field(default_factory=dict)


def _peer(name: str, port: int) -> Server:
    return Server(port, [str(WORK / "peers" / name / "bin" / "python"), str(RUN / f"run-{name}.py")], API)


def _codexd_by(lane: str) -> Server:
    """codexd, which sends requests to the backend by that lane."""
    command = [str(ROOT / ".venv" / "bin" / "python"), "-m", "codexd", "--config", str(RUN / f"codexd-{lane}.toml")]
    environment = {"STATE_DIRECTORY": str(RUN / f"state-{lane}"), "PYTHONPATH": str(ROOT)}
    return Server(CODEXD[lane], command, {**API, "ws": "/v1/responses"}, environment)


SERVERS = {
    "backend": Server(
        BACKEND,
        [str(BINARIES / "backend"), "--port", str(BACKEND), "--models", str(RUN / "models.json")],
        {"resp": "/backend-api/codex/responses", "ws": "/backend-api/codex/responses"},
    ),
    "nginx": Server(
        NGINX,
        ["nginx", "-p", str(RUN / "nginx"), "-c", str(RUN / "nginx" / "nginx.conf")],
        {"resp": "/v1/responses"},
    ),
    "chatmock": _peer("chatmock", CHATMOCK),
    "floor": Server(
        FLOOR,
        [str(ROOT / ".venv" / "bin" / "python"), str(Path(__file__).with_name("floor.py")), str(FLOOR), str(BACKEND)],
        {"chat": API["chat"]},
    ),
    "codex-api-proxy": _peer("codex-api-proxy", CODEX_API_PROXY),
    "codexd": _codexd_by("websocket"),
    "codexd-http": _codexd_by("http"),
}


def named(words: str) -> tuple[str, Server, str]:
    """``codexd:resp``: the server's name, the server, the kind of request. Without one: the first that it has."""
    name, _, kind = words.partition(":")
    server = SERVERS[name]
    return name, server, kind or next(iter(server.paths))


# --- what is needed


def missing(*tools: str) -> str | None:
    """What is not there of what is needed, and where it is from."""
    packages = dict.fromkeys(PACKAGES[tool] for tool in tools if shutil.which(tool) is None)
    return f"apt-get install {' '.join(packages)} first" if packages else None


def build() -> None:
    subprocess.run(["make", "--silent", "--no-print-directory", "rig"], cwd=ROOT, check=True)


def prepare(*beside: str) -> None:
    """Build the rig and sign codexd in; and the same for the servers that it stands beside."""
    build()
    for folder in (OUT, RUN / "home"):
        folder.mkdir(parents=True, exist_ok=True)
    _models()
    _codexd()
    if "nginx" in beside:
        _nginx()
    if peers := [name for name in beside if name in PEERS]:
        _peers(peers)


def _token() -> str:
    """An access token as the backend's issuer makes them, for nobody."""
    claims = {
        "iss": "https://auth.openai.com",
        "sub": "user-fake",
        "aud": ["https://api.openai.com/v1"],
        "iat": 1700000000,
        "exp": 4102444800,
        "email": "fake@example.com",
        "client_id": "app_EMoamEEZ73f0CkXaXp7hrann",
        "https://api.openai.com/profile": {"email": "fake@example.com", "email_verified": True},
        "https://api.openai.com/auth": {
            "chatgpt_account_id": ACCOUNT,
            "chatgpt_plan_type": "pro",
            "chatgpt_user_id": "user-fake",
            "user_id": "user-fake",
        },
    }
    parts = (json.dumps({"alg": "RS256", "typ": "JWT"}), json.dumps(claims), "a signature of nobody")
    return ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts)


def _model(slug: str) -> dict[str, Any]:
    return {
        "slug": slug,
        "display_name": slug,
        "description": slug,
        "priority": 1,
        "visibility": "list",
        "supported_in_api": True,
        "supported_reasoning_levels": [{"effort": each, "description": each} for each in ("low", "medium", "high")],
        "default_reasoning_level": "medium",
        "context_window": 272000,
        "max_context_window": 272000,
        "effective_context_window_percent": 95,
        "auto_compact_token_limit": None,
        "input_modalities": ["text", "image"],
        "service_tiers": [],
        "default_service_tier": None,
        "support_verbosity": True,
        "default_verbosity": "medium",
        "supports_parallel_tool_calls": True,
        "supports_reasoning_summaries": True,
        "apply_patch_tool_type": "freeform",
        "base_instructions": "You are Codex.",
        "shell_type": "shell_command",
        "truncation_policy": {"mode": "tokens", "limit": 10000},
        "experimental_supported_tools": [],
        "minimal_client_version": "0.1.0",
        "prefer_websockets": False,
        "availability_nux": None,
        "upgrade": None,
        "available_in_plans": ["plus", "pro", "team", "business", "enterprise", "edu", "free"],
    }


def _models() -> None:
    models = {"models": [_model("gpt-5.1-codex"), _model("gpt-5.4")]}
    (RUN / "models.json").write_text(json.dumps(models))


CODEXD_TOML = f"""
[server]
max_connections = 20000
max_requests = 20000
bind = ["127.0.0.1:%d"]
client_keys = {{ bench = "{KEY}" }}
[oauth]
issuer = "http://127.0.0.1:{BACKEND}"
[backend]
url = "http://127.0.0.1:{BACKEND}/backend-api"
transport = "%s"
max_connections = 1000
"""


def _codexd() -> None:
    document = {"access_token": _token(), "refresh_token": "rt_fake", "account_id": ACCOUNT}
    document |= {"expires_at": 4102444800, "updated_at": int(time.time())}
    for lane, port in CODEXD.items():
        (RUN / f"codexd-{lane}.toml").write_text(CODEXD_TOML % (port, lane))
        tokens = RUN / f"state-{lane}" / "tokens.json"
        tokens.parent.mkdir(mode=0o700, exist_ok=True)
        tokens.write_text(json.dumps(document))
        tokens.chmod(0o600)


PASS_ON = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 300s;'
NGINX_CONF = f"""
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log warn;
worker_rlimit_nofile 20000;
events {{ worker_connections 15000; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_buffer_size 256k;
    client_max_body_size 64m;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream backend {{ server 127.0.0.1:{BACKEND}; keepalive 256; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{NGINX} backlog=4096;
        location /v1/ {{ proxy_pass http://backend/backend-api/codex/; {PASS_ON} }}
    }}
    server {{
        listen 127.0.0.1:{NGINX_TLS} ssl backlog=4096;
        ssl_certificate {CERTIFICATE};
        ssl_certificate_key {CERTIFICATE.with_name("key.pem")};
        location / {{ proxy_pass http://backend; {PASS_ON} }}
    }}
}}
"""


def _nginx() -> None:
    folder = CERTIFICATE.parent
    folder.mkdir(exist_ok=True)
    (folder / "nginx.conf").write_text(NGINX_CONF)
    made = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 365 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    where = ["-keyout", folder / "key.pem", "-out", CERTIFICATE]
    subprocess.run(["openssl", *made.split(), *names, *where], check=True, capture_output=True)


# Neither peer has an option for the backend's address: these put it where it is a constant.
LAUNCHERS = {
    "chatmock": f"""
import sys

import chatmock.cli

for name, module in list(sys.modules.items()):
    if name.startswith("chatmock."):
        for constant, value in (
            ("CHATGPT_CODEX_BASE_URL", "{BASE}"),
            ("CHATGPT_RESPONSES_URL", "{BASE}/responses"),
            ("OAUTH_TOKEN_URL", "http://127.0.0.1:{BACKEND}/oauth/token"),
        ):
            if hasattr(module, constant):
                setattr(module, constant, value)
sys.argv = ["chatmock", "serve", "--port", "{CHATMOCK}"]
chatmock.cli.main()
""",
    "codex-api-proxy": f"""
import codex_api_proxy.auth as auth

real = "https://chatgpt.com/backend-api/codex"
for each in list(vars(auth).values()):
    defaults = getattr(each, "__defaults__", None)
    if defaults and real in defaults:
        each.__defaults__ = tuple("{BASE}" if value == real else value for value in defaults)
auth.CHATGPT_CODEX_BASE_URL = "{BASE}"

import codex_api_proxy.main as main
import codex_api_proxy.models as models
import uvicorn

for module in (main, models):
    if hasattr(module, "CHATGPT_CODEX_BASE_URL"):
        module.CHATGPT_CODEX_BASE_URL = "{BASE}"
uvicorn.run(main.create_app(), host="127.0.0.1", port={CODEX_API_PROXY}, log_level="info")
""",
}


def _peers(names: list[str]) -> None:
    for name in names:
        venv = WORK / "peers" / name
        if not (venv / "done").exists():
            print(f"installing {PEERS[name]} ...", flush=True)
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            subprocess.run([venv / "bin" / "pip", "install", "-qq", PEERS[name]], check=True)
            (venv / "done").touch()
        (RUN / f"run-{name}.py").write_text(LAUNCHERS[name])
    token = _token()
    tokens = {"id_token": token, "access_token": token, "refresh_token": "rt_fake", "account_id": ACCOUNT}
    refreshed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    document = {"OPENAI_API_KEY": None, "auth_mode": "chatgpt", "tokens": tokens, "last_refresh": refreshed}
    (RUN / "home" / "auth.json").write_text(json.dumps(document))


# --- processes

running: dict[str, subprocess.Popen[bytes]] = {}


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.3).close()
    except OSError:
        return False
    return True


def start(name: str, under: tuple[str, ...] = (), patience: float = 30) -> int:
    """The process id of a server that listens; it is started when it is not there. ``under``: words before its command."""
    if name in running and running[name].poll() is None:
        return running[name].pid
    server = SERVERS[name]
    if _listens(server.port):
        sys.exit(f"bench: something else listens on port {server.port}, which {name} needs")
    home = str(RUN / "home")
    environment = {"HOME": home, "CODEX_HOME": home, "CHATGPT_LOCAL_HOME": home, "PATH": os.environ["PATH"]}
    environment |= {"LANG": "C.UTF-8", "NO_PROXY": "*", "PYTHONDONTWRITEBYTECODE": "0"} | server.environment
    log = OUT / f"{name}.log"
    with log.open("ab") as written:
        running[name] = process = subprocess.Popen(
            [*under, *server.command], env=environment, cwd=RUN, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=written, stderr=written)  # fmt: skip
    deadline = time.monotonic() + patience
    while not _listens(server.port):
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"bench: {name} did not start, and {log} says why")
        time.sleep(0.05)
    return process.pid


def pids(name: str) -> list[int]:
    """The process of a server and all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [running[name].pid]
    for each in found:
        found += [pid for pid, parent in parents.items() if parent == each]
    return found


def stop(*names: str) -> None:
    """Stops these servers, or all of them."""
    processes = [running.pop(name) for name in names or list(running) if name in running]
    for process in processes:
        _signal(process, signal.SIGTERM)
    for process in processes:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait(5)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)
