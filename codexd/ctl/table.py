"""The verbs of ``codexctl``, in the order of its help text. A new verb is a line here and a module below ``verbs``."""

import importlib
from types import ModuleType
from typing import NamedTuple


class Verb(NamedTuple):
    """``module`` is the name below ``codexd.ctl.verbs``. ``help`` has no capital letter and no full stop."""

    name: str
    module: str
    help: str


VERBS = (
    Verb("login", "login", "sign in to ChatGPT"),
    Verb("logout", "logout", "revoke the sign-in and delete it here"),
    Verb("status", "status", "show the sign-in, the limits and what the daemon does"),
    Verb("health", "health", "say whether codexd answers requests, by the exit code"),
    Verb("refresh", "refresh", "renew the access token now"),
    Verb("usage", "usage", "show how much of the account's limits is used, or what was used by whom"),
    Verb("models", "models", "list the models of the account"),
    Verb("keys", "keys", "manage the keys that clients must present"),
    Verb("top", "top", "show live what codexd does"),
    Verb("log", "log", "show the last lines of codexd's log"),
    Verb("explain", "explain", "say what became of a request"),
    Verb("level", "level", "show or change from which level on codexd logs, without a restart"),
    Verb("prompts", "prompts", "manage the instruction texts that models get"),
    Verb("metrics", "metrics", "print the metrics, as Prometheus gets them"),
    Verb("try", "try_", "ask a model something and see the answer come"),
    Verb("selftest", "selftest", "check codexd against the rules of the API, on a simulated backend"),
    Verb("service", "service", "run codexd as a service of this user, under systemd"),
    Verb("backup", "backup", "save keys, prompts, usage and stored responses to a file, without the sign-in"),
    Verb("restore", "restore", "restore what backup saved; codexd must be stopped"),
    Verb("reload", "reload", "make codexd read its configuration anew"),
    Verb("doctor", "doctor", "check what usually breaks"),
    Verb("completion", "completion", "print the completion script for a shell"),
    Verb("help", "help", "show this summary, or that of a verb"),
)


def load(name: str) -> ModuleType:
    """Imports the module of a verb. Raises StopIteration when there is no such verb."""
    verb = next(verb for verb in VERBS if verb.name == name)
    return importlib.import_module(f"codexd.ctl.verbs.{verb.module}")
