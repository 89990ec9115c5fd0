"""Ansible on the lab's controller: each version in an environment of its own, the collection built and installed."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import lab

COLLECTION = lab.HERE.parent
# The oldest that the collection supports, and one of today.
VERSIONS = {"2.14": "ansible-core==2.14.18", "2.19": "ansible-core==2.19.14"}
LINT = ("ansible-lint==26.10.1", "ansible-core==2.19.14")
# Refuses the collection, and is refused in turn.
TOO_OLD = {"2.13": "ansible-core==2.13.13"}


def environment(name, *packages):
    """The directory of programs of a virtual environment with these packages; made where it is missing."""
    path = lab.target() / f"venv-{name}"
    done = path / "done"
    wanted = " ".join(packages)
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        if subprocess.run([sys.executable, "-c", "import ensurepip"], check=False).returncode != 0:
            lab.run(lab.REPOSITORY / "tests/install", "no-such-tool:python3-venv")
        lab.run(sys.executable, "-m", "venv", "--clear", path)
        lab.run(path / "bin/pip", "--quiet", "install", *packages)
        done.write_text(wanted, encoding="utf-8")
    return path / "bin"


class Recap:
    """What a playbook did."""

    def __init__(self, code, text, seconds):
        self.code, self.text, self.seconds = code, text, seconds
        recap = text.rpartition("PLAY RECAP")[2]
        self.changed = {host: int(n) for host, n in re.findall(r"^(\S+)\s+:.*?changed=(\d+)", recap, re.M)}

    def total(self):
        """How many tasks changed something."""
        return sum(self.changed.values())


class Controller:
    """One version of Ansible with the collection, an inventory, and a log."""

    def __init__(self, the_lab, version, agent, packages=None):
        self.lab, self.version, self.agent, self.user = the_lab, version, agent, "root"
        self.programs = environment(version, *(packages or (VERSIONS[version],)))
        self.dir = the_lab.dir / f"controller-{version}"
        self.dir.mkdir()
        self.log = self.dir / "ansible.log"
        self.env = {
            "HOME": str(self.dir), "PATH": f"{self.programs}:{os.environ['PATH']}", "LANG": "C.UTF-8",
            "ANSIBLE_HOST_KEY_CHECKING": "0", "ANSIBLE_COLLECTIONS_PATH": str(self.dir),
            "ANSIBLE_COLLECTIONS_PATHS": str(self.dir),
            "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOG_PATH": str(self.log),
            "ANSIBLE_LOCALHOST_WARNING": "0", "ANSIBLE_DEPRECATION_WARNINGS": "0",
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60s -o ControlPath=%d/.ssh-%C "
                                "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        }
        lab.run("cp", "-a", COLLECTION, self.dir / "source")
        made = lab.run(self.programs / "ansible-galaxy", "collection", "build", "--output-path", self.dir,
                       cwd=self.dir / "source", env=self.env).split()[-1]
        lab.run(self.programs / "ansible-galaxy", "collection", "install", "-p", self.dir, made,
                *(["--offline"] if packages is None else []), env=self.env)
        self.inventory = self.dir / "inventory.yml"
        self.write_inventory()

    def write_inventory(self, leave_out=()):
        """Masters, workers and ha, as a YAML inventory, which JSON is too."""

        def hosts(start):
            return {m.name: {"ansible_host": m.address} for m in self.lab.named(start) if m.name not in leave_out}

        groups = {name: {"hosts": hosts(start)} for name, start in (("masters", "m"), ("workers", "w"), ("ha", "lb"))}
        common = {"ansible_user": self.user, "ansible_ssh_private_key_file": str(self.lab.dir / "key"),
                  "ansible_python_interpreter": "/usr/bin/python3"}
        inventory = {"all": {"vars": common, "children": groups}}
        self.inventory.write_text(json.dumps(inventory, indent=1), encoding="utf-8")

    def begin(self, playbook, variables=None, *flags, pipelining=True):
        """Starts a playbook of the collection."""
        given = {"agent_binary": str(self.agent), **(variables or {})}
        file = self.dir / f"vars-{time.monotonic_ns()}.json"
        file.write_text(json.dumps(given), encoding="utf-8")
        command = ["ip", "netns", "exec", self.lab.controller, str(self.programs / "ansible-playbook"),
                   "-i", str(self.inventory), f"agent.ha.{playbook}", "-e", f"@{file}", *flags]
        env = {**self.env, "ANSIBLE_PIPELINING": str(int(pipelining))}
        return subprocess.Popen(command, env=env, cwd=self.dir, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def play(self, playbook, variables=None, *flags, code=0, pipelining=True):
        """Runs a playbook of the collection, which has to succeed, or to fail where another code is given; None for either."""
        began = time.monotonic()
        process = self.begin(playbook, variables, *flags, pipelining=pipelining)
        text, _ = process.communicate()
        recap = Recap(process.returncode, text, time.monotonic() - began)
        shown = " ".join([playbook, *flags])
        print(f"    {self.version} {shown}: {recap.seconds:.1f} s, changed {recap.changed or 'nothing'}", flush=True)
        if code is not None and (process.returncode == 0) != (code == 0):
            raise RuntimeError(f"{shown} ended with {process.returncode}:\n{text}")
        return recap
