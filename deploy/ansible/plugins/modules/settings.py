#!/usr/bin/python
"""The module settings: cluster-wide settings of agent."""
from __future__ import annotations

DOCUMENTATION = r"""
module: settings
short_description: Cluster-wide settings of agent
description:
  - Sets what C(agent set) sets and removes what C(agent unset) removes, and changes nothing that is so already.
  - Run it on one master. Settings that are not named stay as they are.
options:
  settings:
    description: Values by their keys. The value null removes a key and all below it.
    type: dict
    required: true
  agent:
    description: Path of the agent's binary.
    type: path
    default: /usr/local/bin/agent
attributes:
  check_mode:
    description: Says what would change.
    support: full
  diff_mode:
    description: Shows the settings before and after.
    support: full
author:
  - The authors of agent (@agent)
"""

EXAMPLES = r"""
- name: Give the cluster a virtual IP, and no weights of its own
  agent.ha.settings:
    settings:
      vip: 10.0.0.50
      weight.m2: null
  run_once: true
"""

RETURN = r"""
changes:
  description: What C(agent) said of each change.
  type: list
  elements: str
  returned: success
"""

import json

from ansible.module_utils.basic import AnsibleModule


def text(value):
    """A value as `agent set` takes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ",".join(text(one) for one in value)
    return str(value)


def found(module, agent, *key):
    """What is set at a key and below it, or at all. A short key, as `balance`, stands for the one that the agent has."""
    code, out, err = module.run_command([agent, "get", *key, "--json"])
    if code != 0:
        module.fail_json(msg=(err or out).strip(), rc=code)
    return {one["key"]: one["value"] for one in json.loads(out)["settings"]}


def below(module, agent, key, everything):
    """What is set at a key that is to be removed, and below it. A whole service or virtual IP is no setting that the
    agent could be asked for."""
    kind, dot, name = key.partition(".")
    if kind in ("service", "vip") and dot and name:
        return {one: value for one, value in everything().items() if one == key or one.startswith(key + ".")}
    return found(module, agent, key)


def at(settings, key):
    """The value of the very key."""
    if key in settings:
        return settings[key]
    others = [name for name in settings if not name.startswith(key + ".")]
    return settings[others[0]] if len(others) == 1 else None


def main():
    """Compares, and then has the agent change what differs."""
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "dict", "required": True},
            "agent": {"type": "path", "default": "/usr/local/bin/agent"},
        },
        supports_check_mode=True,
    )
    agent, wanted = module.params["agent"], module.params["settings"]
    before, after, to_set, to_unset = {}, {}, [], []
    for key, value in wanted.items():
        if value is None:
            settings = below(module, agent, key, lambda: found(module, agent))
            before.update(settings)
            if settings:
                to_unset.append(key)
            continue
        settings = found(module, agent, key)
        new, old = text(value), at(settings, key)
        after[key] = new
        if old is not None:
            before[key] = old
        if old != new:
            to_set.append(f"{key}={new}")
    changes = []
    changed = bool(to_set or to_unset)
    if changed and not module.check_mode:
        changed = False
        # Removed first: what is set may not be right beside what goes.
        for command, arguments in (("unset", to_unset), ("set", to_set)):
            if not arguments:
                continue
            code, out, err = module.run_command([agent, command] + arguments)
            if code != 0:
                module.fail_json(msg=(err or out).strip(), rc=code, changes=changes)
            lines = [line for line in out.splitlines() if line.strip()]
            changes.extend(lines)
            # The agent may write a value in another way than the playbook: it knows what is the same.
            changed = changed or any(" -> " in line for line in lines)

    def shown(of):
        return "".join(f"{key}={value}\n" for key, value in sorted(of.items()))

    diff = {"before": shown(before), "after": shown(after)}
    module.exit_json(changed=changed, changes=changes, diff=diff)


if __name__ == "__main__":
    main()
