"""The filter to_toml: a dictionary as TOML."""
from __future__ import annotations

import re
from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

# Keys that need no quotes.
BARE = re.compile(r"\A[A-Za-z0-9_-]+\Z")
ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def string(text):
    """A basic string in quotes."""

    def char(c):
        if c in ESCAPES:
            return ESCAPES[c]
        return f"\\u{ord(c):04x}" if ord(c) < 0x20 or ord(c) == 0x7F else c

    return '"' + "".join(map(char, text)) + '"'


def key(name):
    """A key, in quotes where it needs them."""
    text = str(name)
    return text if BARE.match(text) else string(text)


def value(what, path):
    """A value in one line."""
    # A boolean is an integer in Python, so it comes first.
    if isinstance(what, bool):
        return "true" if what else "false"
    if isinstance(what, (int, float)):
        return repr(what)
    if isinstance(what, str):
        return string(str(what))
    if isinstance(what, (list, tuple)):
        return "[" + ", ".join(value(one, path) for one in what) + "]"
    if isinstance(what, Mapping):
        return "{ " + ", ".join(f"{key(k)} = {value(v, path)}" for k, v in what.items()) + " }"
    shown = "nothing (null)" if what is None else f"of the type {type(what).__name__}"
    raise AnsibleFilterError(
        f"{'.'.join(path)} is {shown}; TOML has strings, numbers, booleans, lists and dictionaries: "
        "leave the key out, or give it one of these"
    )


def is_tables(what):
    """Whether it is written as [[name]]."""
    return isinstance(what, (list, tuple)) and len(what) > 0 and all(isinstance(one, Mapping) for one in what)


def table(what, path, lines):
    """The lines of a table: what is simple first, since all that follows a header belongs to it."""
    below = []
    for name, entry in what.items():
        if isinstance(entry, Mapping) or is_tables(entry):
            below.append((name, entry))
        else:
            lines.append(f"{key(name)} = {value(entry, path + [str(name)])}")
    for name, entry in below:
        inner = path + [str(name)]
        header = ".".join(map(key, inner))
        for one in [entry] if isinstance(entry, Mapping) else entry:
            lines.extend(["", f"[{header}]" if isinstance(entry, Mapping) else f"[[{header}]]"])
            table(one, inner, lines)


def to_toml(what):
    """A dictionary as a TOML document."""
    if not isinstance(what, Mapping):
        raise AnsibleFilterError(f"to_toml takes a dictionary, not one of the type {type(what).__name__}")
    lines = []
    table(what, [], lines)
    return "\n".join(lines).lstrip("\n") + "\n"


class FilterModule:
    """What Ansible asks for."""

    def filters(self):
        """The filters by their names."""
        return {"to_toml": to_toml}
