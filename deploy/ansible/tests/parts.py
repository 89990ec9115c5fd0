"""The parts of the tests."""
from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import traceback

import lab
from controller import COLLECTION, LINT, TOO_OLD, VERSIONS, Controller, environment

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
                 "/var/lib/agent", "/etc/agent", "/run/agent", "/etc/systemd/system/agent.service.d"):
        if machine.exec("test", "-e", path, check=False).returncode == 0:
            left.append(path)
    listens = machine.exec("ss", "-Hltnup").stdout
    left += [line for line in listens.splitlines() if '"agent"' in line or ":7646" in line]
    left += [line for line in machine.exec("ip", "-o", "-4", "address").stdout.splitlines() if lab.VIP in line]
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


def part_filter(_):
    """The filter's TOML is read again as what it was, by Python's own reader."""
    import tomllib

    programs = environment("2.14", VERSIONS["2.14"])
    script = (
        "import json, sys, importlib.util as u\n"
        f"s = u.spec_from_file_location('f', {str(COLLECTION / 'plugins/filter/to_toml.py')!r})\n"
        "m = u.module_from_spec(s); s.loader.exec_module(m)\n"
        "for one in json.load(sys.stdin):\n"
        "    try: print(json.dumps(m.to_toml(one)))\n"
        "    except Exception as e: print(json.dumps({'error': str(e)}))\n")
    good = [
        {}, {"a": 1}, {"a": True, "b": 1.5, "c": "x\"y\\z\n\t\u0001ü", "d": []},
        {"web": {"listen": ["127.0.0.1:1936"]}, "name": "m1"},
        {"service": [{"name": "a", "check": {"kind": "tcp"}}, {"name": "b", "port": 443}], "log": {"level": "info"}},
        {"vip": {"10.0.0.50": {"check": "/x"}}, "a.b": 1, "": 2, "list": [[1, 2], ["a"]], "empty": {}},
    ]
    bad = [{"a": None}, {"a": {"b": [None]}}, [1], "x"]
    said = lab.run(programs / "python", "-c", script, input=json.dumps(good + bad)).splitlines()
    for one, line in zip(good, said):
        text = json.loads(line)
        ensure(tomllib.loads(text) == one, f"{one} became {text}")
    for one, line in zip(bad, said[len(good):]):
        ensure("error" in json.loads(line), f"{one} became {line}")
    ensure("a.b is" in said[len(good) + 1], said[len(good) + 1])


def part_lint(_):
    """ansible-lint at its production profile."""
    programs = environment("lint", *LINT)
    with tempdir() as at:
        # Found by its name, as where it is installed.
        source = at / "ansible_collections/agent/ha"
        shutil.copytree(COLLECTION, source, ignore=shutil.ignore_patterns(".ansible", "__pycache__"))
        env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(at), "NO_COLOR": "1",
               "ANSIBLE_COLLECTIONS_PATH": str(at)}
        done = subprocess.run([programs / "ansible-lint", "--offline", "--profile", "production", "--strict"],
                              cwd=source, env=env, capture_output=True, text=True, check=False)
        print("    " + (done.stdout + done.stderr).strip().replace("\n", "\n    "))
        ensure(done.returncode == 0, "ansible-lint is not content")


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


def part_smoke(binary):
    """One master and one worker, with the newest version."""
    with lab.Lab(1, 1, 0) as the_lab:
        controller = Controller(the_lab, "2.19", binary)
        first_and_second_run(controller, {"agent_settings": {"balance": "round-robin"}})
        wait_until_serving(the_lab.machines, 1)
        controller.play("cleanup")
        for machine in the_lab.machines:
            nothing_left(machine)


def part_site(binary):
    """Three masters, a worker and two balancers, with each version; cleanup between."""
    variables = {
        "agent_vip": lab.VIP, "agent_cluster": "lab",
        "agent_settings": {"service.kube-api.check.interval": "500ms", "balance": "round-robin"},
        "agent_config": {"web": {"listen": "127.0.0.1:1936"}},
    }
    with lab.Lab(3, 1, 2) as the_lab:
        for version in VERSIONS:
            controller = Controller(the_lab, version, binary)
            first_and_second_run(controller, variables)
            wait_until_serving(the_lab.machines, 3)
            controller.play("cleanup")
            for machine in the_lab.machines:
                nothing_left(machine)


def part_old(binary):
    """A version of Ansible that is too old is refused in a sentence."""
    with lab.Lab(0, 1, 0) as the_lab:
        for version, package in TOO_OLD.items():
            said = Controller(the_lab, version, binary, (package,)).play("site", code=2).text
            sentence = f"The collection agent.ha needs ansible-core 2.14 or later, and this is {version}"
            ensure(sentence in said, said)
        nothing_left(the_lab["w1"])


SETTINGS = {"agent_vip": lab.VIP, "agent_cluster": "lab"}


def as_package():
    """Two packages of different versions to upgrade between: AGENT_DEBS has them, separated by a blank."""
    return [pathlib.Path(name) for name in os.environ.get("AGENT_DEBS", "").split()]


def part_upgrade(binary):
    """A new binary under load loses nothing; a broken one stops at the first; a key; a node that is removed."""
    with lab.Lab(3, 1, 2) as the_lab:
        newer, broken = the_lab.dir / "newer", the_lab.dir / "broken"
        # Another file that is the same program.
        newer.write_bytes(binary.read_bytes() + b"newer")
        broken.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        controllers = [Controller(the_lab, version, binary) for version in VERSIONS]
        controllers[0].play("site", SETTINGS)
        wait_until_serving(the_lab.machines, 3)
        worker, first = the_lab["w1"], the_lab["m1"]
        given = {**SETTINGS, "agent_binary": str(newer)}
        for controller, file in zip(controllers, (newer, binary)):
            given["agent_binary"] = str(file)
            before = vip_of(the_lab.machines)
            dry = controller.play("upgrade", given, "--check")
            ensure(set(dry.changed.values()) == {1}, dry.text)
            with Load(worker.space, "127.0.0.1:16443") as proxy, Load(the_lab.controller, f"{lab.VIP}:6443") as vip:
                upgraded = controller.play("upgrade", given)
            proxy.lost_nothing()
            vip.lost_nothing()
            order = [line.split("[")[1].split("]")[0] for line in upgraded.text.splitlines()
                     if line.startswith("changed: [") and upgraded.text]
            hosts = list(dict.fromkeys(order))
            ensure(hosts[-3:] == ["m1", "m2", "m3"], f"the order is {hosts}")
            for machine in the_lab.machines:
                ensure(machine.exec("sha256sum", "/usr/local/bin/agent").stdout.split()[0]
                       == lab.run("sha256sum", file).split()[0], f"{machine.name} has another binary")
            after = vip_of(the_lab.machines)
            ensure(after == before, f"the virtual IP has moved: {before}, {after}")
            ensure("drain" not in first.exec("agent", "get").stdout, "a master is still drained")
            again = controller.play("upgrade", given)
            ensure(again.total() == 0, again.text)
        stopped = controllers[1].play("upgrade", {**SETTINGS, "agent_binary": str(broken)}, code=2)
        ensure("PLAY [Upgrade masters" not in stopped.text and "can't replace the running agent" in stopped.text,
               stopped.text)
        touched = [host for host, line in ((h, l) for l in stopped.text.splitlines() for h in ("lb1", "lb2", "m1"))
                   if line.startswith("changed: [" + host)]
        ensure(not touched, f"it went on to {touched}")
        wait_until_serving(the_lab.machines, 3)

        epoch = status(first)["cluster"]["key_epoch"]
        controllers[0].play("rotate")
        for machine in the_lab.machines:
            ensure(status(machine)["cluster"]["key_epoch"] == epoch + 1, f"{machine.name} has another key")
        remove(the_lab, controllers)


def remove(the_lab, controllers):
    """One node, a master under load, and one that is off."""
    names = lambda: sorted(one["name"] for one in status(the_lab["m1"])["members"])  # noqa: E731
    with Load(the_lab["w1"].space, "127.0.0.1:16443") as proxy:
        controllers[0].play("remove", {"node": "lb2"})
        nothing_left(the_lab["lb2"])
        ensure(names() == ["lb1", "m1", "m2", "m3", "w1"], names)
    proxy.lost_nothing()
    with Load(the_lab["w1"].space, "127.0.0.1:16443") as proxy:
        controllers[1].play("remove", {"node": "m3"})
        nothing_left(the_lab["m3"])
        ensure(names() == ["lb1", "m1", "m2", "w1"], names)
    ensure(proxy.result["failed"] == 0, f"new connections failed: {proxy.result}")
    the_lab["lb1"].power_off()
    controllers[1].play("remove", {"node": "lb1"})
    ensure(names() == ["m1", "m2", "w1"], names)
    wrong = controllers[1].play("remove", {"node": "w9"}, code=2)
    ensure("Name one host of the inventory: -e node=w1" in wrong.text, wrong.text)


PARTS = {"filter": part_filter, "lint": part_lint, "old": part_old, "site": part_site, "upgrade": part_upgrade}


def run_all(names):
    """Runs the parts, each whatever became of the others, and ends with a line that counts."""
    binary = agent_binary()
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        try:
            (PARTS.get(name) or globals()[f"part_{name}"])(binary)
            print(f"ok {name}, {time.monotonic() - began:.0f} s", flush=True)
        except Exception:  # pylint: disable=broad-exception-caught
            traceback.print_exc()
            print(f"FAILED {name}", flush=True)
            failed.append(name)
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed", flush=True)
    return 1 if failed else 0
