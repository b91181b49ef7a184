"""The verbs of ``codexctl``, in the order of its help text. A new verb is a line here and a module below ``verbs``."""

import importlib
from types import ModuleType
from typing import NamedTuple


class Verb(NamedTuple):
    """``module`` is the name below ``codexd.ctl.verbs``. ``help`` has no capital letter and no full stop.

    ``hidden``: not in the list of verbs; it is there for users who guess its name.
    """

    name: str
    module: str
    help: str
    hidden: bool = False


VERBS = (
    Verb("login", "login", "sign in to ChatGPT"),
    Verb("logout", "logout", "sign out: revoke the sign-in and delete its file"),
    Verb("status", "status", "show the sign-in, the limits and the state of the daemon"),
    Verb("health", "health", "health check; exits 0 if codexd is responding"),
    Verb("refresh", "refresh", "refresh the access token now"),
    Verb("usage", "usage", "show the account's limits, or usage by day, model and key"),
    Verb("models", "models", "list the models of the account"),
    Verb("keys", "keys", "manage client keys"),
    Verb("setup", "setup", "configure a coding agent or another client for codexd"),
    Verb("top", "top", "show the requests in progress, live"),
    Verb("log", "log", "show the last lines of codexd's log"),
    Verb("explain", "explain", "show what happened to a request"),
    Verb("level", "level", "show or change the log level, without a restart"),
    Verb("prompts", "prompts", "manage the prompts of models"),
    Verb("metrics", "metrics", "print the metrics in Prometheus text format"),
    Verb("try", "try_", "ask a model a question and print the answer as it arrives"),
    Verb("selftest", "selftest", "check that codexd conforms to the API, on a simulated backend"),
    Verb("service", "service", "run codexd as a systemd service of this user"),
    Verb("backup", "backup", "save the state to a file, without the sign-in"),
    Verb("restore", "restore", "restore a backup; codexd must be stopped"),
    Verb("config", "config", "show the configuration in effect, or edit its file"),
    Verb("reload", "reload", "reload the configuration"),
    Verb("instances", "instances", "list the instances of codexd on this machine"),
    Verb("doctor", "doctor", "check for common problems"),
    Verb("completion", "completion", "print the completion script for a shell"),
    Verb("version", "version", "show the versions of codexctl and of the running codexd"),
    Verb("help", "help", "show this help, or the help of a verb"),
    Verb("start", "unit", "show how to start codexd", hidden=True),
    Verb("stop", "unit", "show how to stop codexd", hidden=True),
    Verb("restart", "unit", "show how to restart codexd", hidden=True),
    Verb("logs", "log", "show the last lines of codexd's log", hidden=True),
)


def load(name: str) -> ModuleType:
    """Imports the module of a verb. Raises StopIteration for an unknown verb."""
    verb = next(verb for verb in VERBS if verb.name == name)
    return importlib.import_module(f"codexd.ctl.verbs.{verb.module}")
