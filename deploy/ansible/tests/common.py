"""What the parts of the tests have in common: a client that counts, and what has to hold of machines."""
from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

import lab
from controller import COLLECTION, VERSIONS

# AGENT_ANSIBLE names those to run with, separated by blanks.
CHOSEN = [version for version in VERSIONS if version in os.environ.get("AGENT_ANSIBLE", version).split()]
CLIENT = COLLECTION / "playbooks/files/client.py"


def agent_binary():
    """The agent that is installed."""
    named = os.environ.get("AGENT_BIN")
    if named:
        return pathlib.Path(named).resolve()
    found = sorted(lab.REPOSITORY.glob("target/*-unknown-linux-*/release/agent"))
    if not found:
        raise RuntimeError("no agent: set AGENT_BIN, or run deploy/build")
    return found[0]


def ensure(right, what):
    """Fails with what is wrong."""
    if not right:
        raise RuntimeError(what() if callable(what) else what)


def status(machine):
    """`agent status --json`."""
    return json.loads(machine.exec("agent", "status", "--json").stdout)


def wait_until_serving(machines, masters):
    """Waits until each serves as many masters and sees all members up."""

    def is_well(machine):
        now = status(machine)
        kube = next(one for one in now["services"] if one["name"] == "kube-api")
        ready = [one for one in kube["backends"] if one["state"] == "ready"]
        up = [one for one in now["members"] if one["state"] == "up"]
        return len(ready) == masters and len(up) == len(machines)

    for machine in machines:
        lab.until(f"{machine.name} serves", lambda machine=machine: is_well(machine), 30)


def vip_of(machines):
    """The owner and the epoch of the virtual IP, once all agree on an owner."""

    def agreed():
        said = {(v["owner"], v["epoch"]) for machine in machines for v in status(machine)["vips"]}
        return said.pop() if len(said) == 1 and None not in next(iter(said)) else None

    return lab.until("all agree on the owner of the virtual IP", agreed, 30)


def stayed(machines, before):
    """The virtual IP has the owner and the epoch of before; if not, what the nodes tell of it."""
    after = vip_of(machines)
    if after != before:
        told = "".join(f"{machine.name}:\n" + machine.exec("agent", "events").stdout for machine in machines)
        raise RuntimeError(f"the virtual IP has moved: {before}, {after}\n{told}")


class Load:
    """A client in a namespace, while the block runs."""

    def __init__(self, space, place, rate=20, held=4):
        self.command = ["ip", "netns", "exec", space, sys.executable, str(CLIENT), place, "900", str(rate), str(held)]
        self.process = None
        self.result = {}

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        said, _ = self.process.communicate(timeout=30)
        self.result = json.loads(said)
        print(f"    client: {json.dumps(self.result)}", flush=True)

    def lost_nothing(self):
        """No request failed and nothing that was held was lost."""
        one = self.result
        ensure(one["requests"] > 20 and one["failed"] == 0 and one["resets"] == 0, f"clients noticed: {one}")


def nothing_left(machine):
    """No unit, address, port or file of the agent."""
    left = []
    for path in ("/etc/systemd/system/agent.service", "/usr/local/bin/agent", "/usr/local/bin/agent.previous",
                 "/usr/bin/agent", "/lib/systemd/system/agent.service", "/var/cache/agent",
                 "/var/lib/agent", "/etc/agent", "/run/agent", "/etc/systemd/system/agent.service.d"):
        if machine.exec("test", "-e", path, check=False).returncode == 0:
            left.append(path)
    listens = machine.exec("ss", "-Hltnup").stdout
    left += [line for line in listens.splitlines() if '"agent"' in line or ":7646" in line]
    left += [line for line in machine.exec("ip", "-o", "-4", "address").stdout.splitlines() if lab.VIP in line]
    left += [line for line in machine.exec("cat", "/etc/hosts", check=False).stdout.splitlines() if "agent.ha" in line]
    ensure(not left, f"{machine.name}: left over: {left}")


def no_invites(controller, text):
    """No invite in the output, the controller's log, the journals and the files of the machines."""
    ensure("agent1" not in text and "agent1" not in controller.log.read_text(encoding="utf-8"), "an invite is logged")
    join = text.partition("agent.ha.agent : Join]")[2].partition("TASK [")[0]
    ensure("SSH: EXEC" in join and "PUT" not in join, f"what joins is written to a file:\n{join}")
    for machine in controller.lab.machines:
        journal = machine.exec("journalctl", "--no-pager", "-o", "cat").stdout
        ensure("agent1" not in journal, f"{machine.name}: an invite is in the journal")
        found = machine.exec("grep", "-rlE", "agent1[a-z0-9]{20}", "/root", "/tmp", "/var/tmp", "/var/log", "/etc",
                             check=False).stdout
        ensure(not found, f"{machine.name}: an invite is in {found}")


@contextlib.contextmanager
def tempdir():
    """A directory that goes again."""
    import tempfile

    with tempfile.TemporaryDirectory() as at:
        yield pathlib.Path(at)


def first_and_second_run(controller, variables):
    """Check mode on fresh hosts, the first run, the second, and check mode on installed hosts."""
    dry = controller.play("site", variables, "--check", "--diff")
    ensure(dry.total() > 0, "check mode on fresh hosts says that nothing would change")
    for machine in controller.lab.machines:
        nothing_left(machine)
    # Without pipelining Ansible writes what it runs into files of the host, with its arguments.
    first = controller.play("site", variables, "--diff", "-vvv", pipelining=False)
    no_invites(controller, first.text)
    ensure(first.total() > 0, "the first run changed nothing")
    second = controller.play("site", variables)
    ensure(second.total() == 0, f"the second run changed something:\n{second.text}")
    third = controller.play("site", variables, "--check", "--diff")
    ensure(third.total() == 0, f"check mode would change something:\n{third.text}")
    # What would change is said, and does not.
    more = {**variables, "agent_config": {**variables.get("agent_config", {}), "log": {"level": "debug"}}}
    fourth = controller.play("site", more, "--check", "--diff", "--tags", "agent_config")
    ensure('+level = "debug"' in fourth.text and fourth.total() > 0, f"no difference is shown:\n{fourth.text}")
    wrong = controller.play("site", {**variables, "agent_config": {"foo": 1}}, code=2)
    ensure("foo: unknown key" in wrong.text, f"the mistake is not named:\n{wrong.text}")


SETTINGS = {"agent_vip": lab.VIP, "agent_cluster": "lab"}


def as_packages(the_lab, binary, kind="deb"):
    """Two packages of different versions, with the same program."""
    path = f"{lab.run(lab.REPOSITORY / 'tests/nfpm').strip()}:{os.environ['PATH']}"
    made = []
    for version in ("0.1.0", "0.1.1"):
        env = {**os.environ, "PATH": path, "VERSION": version}
        made.append(lab.run(lab.REPOSITORY / "deploy/package", binary, the_lab.dir, kind, env=env).split()[-1])
    return made
