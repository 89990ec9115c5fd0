"""Filters for what `agent migrate` prints."""
from __future__ import annotations

import re
import shlex

# A command among the steps that are comments.
COMMAND = re.compile(r"^#\s+agent set (.+)$", re.M)
# Stands for a node that the files do not name.
PLACEHOLDER = re.compile(r"NODE\d*\Z")
SERVICE = re.compile(r"^\[\[service\]\]\n", re.M)
# The page, and where load balancers ask, up to the next table.
PAGES = re.compile(r"^\[(?:web|health)\]\n(?:(?!\[|# ====).*\n)*", re.M)
KUBE_API = re.compile(r'^name = "kube-api"', re.M)


def is_list(key):
    """Whether what several nodes say of a key is true together."""
    return key == "vip" or key.rsplit(".", 1)[-1] in ("candidates", "listen-on", "offer")


def migrated_settings(texts):
    """The settings that the outputs of several nodes ask for, as one dictionary."""
    settings = {}
    for text in texts:
        for command in COMMAND.findall(text):
            for pair in shlex.split(command):
                key, equals, value = pair.partition("=")
                if not equals:
                    continue
                if is_list(key):
                    names = settings.get(key, "").split(",") + value.split(",")
                    named = [name for name in names if name and not PLACEHOLDER.match(name)]
                    value = ",".join(dict.fromkeys(named))
                settings[key] = value
    return settings


def beside_haproxy(text):
    """A configuration with which each service shares its port, and what can't be shared is left to haproxy."""
    shared = SERVICE.sub("[[service]]\nshare-port = true\n", PAGES.sub("", text))
    if not KUBE_API.search(text):
        shared += '\n[[service]]\nname = "kube-api"\nshare-port = true\n'
    return shared + "\n[web]\nlisten = []\n"


class FilterModule:
    """What Ansible asks for."""

    def filters(self):
        """The filters by their names."""
        return {"migrated_settings": migrated_settings, "beside_haproxy": beside_haproxy}
