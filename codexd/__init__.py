"""codexd: an OpenAI-compatible API for one person's own tools, over that person's ChatGPT account."""

try:
    # Written by the build (packaging/version.py), which takes it from the git tag.
    from codexd._version import __version__ as __version__
except ImportError:
    __version__ = "0.0.0+checkout"
