"""The parts of the tests."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback

import classic
import hosts
import lab
from common import (CHOSEN, SETTINGS, Load, agent_binary, as_packages, ensure, first_and_second_run, nothing_left, status,
                    stayed, tempdir, vip_of, wait_until_serving)
from controller import COLLECTION, LINT, TOO_OLD, VERSIONS, Controller, environment

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
    migrated()


def migrated():
    """What the filters make of what `agent migrate` prints."""
    import importlib.util
    import tomllib

    spec = importlib.util.spec_from_file_location("migration", COLLECTION / "plugins/filter/migration.py")
    filters = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(filters)
    text = ('[web]\nlisten = ["127.0.0.1:8404"]\n\n[[service]]\nname = "join"\nport = 9345\n\n[health]\nlisten = ["*"]\n'
            "# ==== What to do ====\n#   agent set vip={0} vip.{0}.candidates={1},NODE2 vip.{0}.priority.{1}=255\n")
    beside = tomllib.loads(filters.beside_haproxy(text))
    ensure(beside == {"web": {"listen": []}, "service": [
        {"share-port": True, "name": "join", "port": 9345}, {"name": "kube-api", "share-port": True}]}, beside)
    both = filters.migrated_settings([text.format("10.0.0.50", "lb1"), text.format("10.0.0.50", "lb2"), "# nothing"])
    ensure(both == {"vip": "10.0.0.50", "vip.10.0.0.50.candidates": "lb1,lb2", "vip.10.0.0.50.priority.lb1": "255",
                    "vip.10.0.0.50.priority.lb2": "255"}, both)


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
        for version in CHOSEN:
            controller = Controller(the_lab, version, binary)
            first_and_second_run(controller, variables)
            wait_until_serving(the_lab.machines, 3)
            controller.play("cleanup")
            for machine in the_lab.machines:
                nothing_left(machine)


def part_trouble(binary):
    """A first master that is off, so that nobody knows of a cluster; then a balancer, and the master again."""
    with lab.Lab(2, 1, 1) as the_lab:
        controller = Controller(the_lab, "2.14", binary)
        first, worker, balancer = (the_lab[name] for name in ("m1", "w1", "lb1"))

        def site(off):
            off.power_off()
            return controller.play("site", SETTINGS, code=2)

        refused = site(first)
        ensure("No master that was reached is a member, and these were not reached: m1" in refused.text, refused.text)
        first.power_on()
        first.wait_until_booted()
        controller.play("site", SETTINGS)
        wait_until_serving(the_lab.machines, 2)
        # It is still one of the candidates, and no other host is held up.
        without = site(balancer)
        ensure(without.total() == 0 and "failed=1" not in without.text, without.text)
        balancer.power_on()
        balancer.wait_until_booted()
        controller.play("remove", {"node": "w1"})
        joined = site(first)
        ensure(joined.changed["w1"] > 0, joined.text)
        now = status(worker)
        ensure(now["node"]["name"] == "w1" and len(now["members"]) == 4, now["members"])


def part_old(binary):
    """A version of Ansible that is too old is refused in a sentence."""
    with lab.Lab(0, 1, 0) as the_lab:
        for version, package in TOO_OLD.items():
            said = Controller(the_lab, version, binary, (package,)).play("site", code=2).text
            sentence = f"The collection agent.ha needs ansible-core 2.14 or later, and this is {version}"
            ensure(sentence in said, said)
        nothing_left(the_lab["w1"])


def part_package(binary):
    """The same with packages: first and second run, an upgrade under load, and nothing left."""
    with lab.Lab(2, 1, 1) as the_lab:
        old, new = as_packages(the_lab, binary)
        for version in CHOSEN:
            controller = Controller(the_lab, version, binary)
            given = {**SETTINGS, "agent_binary": "", "agent_package": old}
            first_and_second_run(controller, given)
            wait_until_serving(the_lab.machines, 2)
            before = vip_of(the_lab.machines)
            with Load(the_lab["w1"].space, "127.0.0.1:16443") as proxy, \
                    Load(the_lab.controller, f"{lab.VIP}:6443") as vip:
                controller.play("upgrade", {**given, "agent_package": new})
            proxy.lost_nothing()
            vip.lost_nothing()
            stayed(the_lab.machines, before)
            again = controller.play("upgrade", {**given, "agent_package": new})
            ensure(again.total() == 0, again.text)
            for machine in the_lab.machines:
                installed = machine.exec("dpkg-query", "--show", "--showformat", "${Version}", "agent-ha").stdout
                ensure(installed.startswith("0.1.1"), f"{machine.name} has {installed}")
            controller.play("cleanup", given)
            for machine in the_lab.machines:
                nothing_left(machine)


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
            stayed(the_lab.machines, before)
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


def taken_by_a_stranger(the_lab, controller, variables):
    """The agents do not take over what a machine outside of the cluster answers for: all is as before."""
    stranger = ["ip", "-n", the_lab.controller, "address"]
    lab.run(*stranger, "add", f"{lab.VIP}/32", "dev", "lo")
    said = controller.play("migrate", variables, code=2)
    ensure("did not take over" in said.text, said.text)
    lab.run(*stranger, "delete", f"{lab.VIP}/32", "dev", "lo")
    lab.until("keepalived has the virtual IP", lambda: "lb1" in classic.owners(the_lab), 20)
    for machine in the_lab.machines:
        for unit in ["haproxy"] + (["keepalived"] if machine.name.startswith("lb") else []):
            ensure(machine.exec("systemctl", "is-active", unit).stdout.strip() == "active", f"{machine.name}: {unit}")


def part_migrate(binary):
    """From haproxy and keepalived under load, with each version; and back."""
    for version in reversed(CHOSEN):
        with lab.Lab(3, 1, 2) as the_lab:
            # A password that is too short for the status page is not carried over.
            classic.set_up(the_lab, "secret" if version == "2.14" else "correct horse")
            controller = Controller(the_lab, version, binary)
            refused = controller.play("migrate", {}, code=2) if version == "2.14" else None
            if refused:
                ensure("Not everything of" in refused.text, refused.text)
            accept = {"agent_migrate_accept": True, "agent_migrate_wait": 10}
            if version == "2.19":
                taken_by_a_stranger(the_lab, controller, accept)
            with Load(the_lab["w1"].space, "127.0.0.1:16443") as local, \
                    Load(the_lab.controller, f"{lab.VIP}:6443") as vip:
                controller.play("migrate", accept)
            for load in (local, vip):
                ensure(load.result["failed"] == 0, f"new connections failed: {load.result}")
            # Half a second without the address is ten connections that wait; a slow machine has both clients wait.
            ensure(vip.result["slow"] - local.result["slow"] < 10, f"clients waited for the virtual IP: {vip.result}")
            for machine in the_lab.machines:
                route = machine.exec("ip", "route", "show", "table", "local", lab.VIP).stdout
                ensure("dev lo" not in route, f"{machine.name}: a route is left: {route}")
                for unit in ("haproxy", "keepalived"):
                    state = machine.exec("systemctl", "is-active", unit, check=False).stdout.strip()
                    ensure(state == "inactive", f"{machine.name}: {unit} is {state}")
                ensure("share-port" not in machine.exec("cat", "/etc/agent/agent.toml").stdout, "a port is shared")
            wait_until_serving(the_lab.machines, 3)
            owner, _ = vip_of(the_lab.machines)
            ensure(classic.owners(the_lab) == [owner] == ["lb1"], f"{owner} owns it, {classic.owners(the_lab)} have it")
            again = controller.play("migrate", accept)
            ensure(again.total() == 0, again.text)
            with Load(the_lab["w1"].space, "127.0.0.1:16443") as local, \
                    Load(the_lab.controller, f"{lab.VIP}:6443") as vip:
                controller.play("migrate", {"agent_migrate_back": True})
            lab.until("keepalived has the virtual IP", lambda lab_now=the_lab: classic.owners(lab_now) == ["lb1"], 20)
            for load in (local, vip):
                ensure(load.result["failed"] == 0, f"new connections failed: {load.result}")


def part_drill(binary):
    """The drills pass, and leave all running; one that can not be passed fails, and leaves all running, too."""
    units = {"agent_drill_stop": "systemctl stop apiserver", "agent_drill_start": "systemctl start apiserver"}
    with lab.Lab(3, 1, 2) as the_lab:
        for version in CHOSEN:
            controller = Controller(the_lab, version, binary)
            controller.play("site", SETTINGS)
            wait_until_serving(the_lab.machines, 3)
            vip_of(the_lab.machines)
            said = controller.play("drill", units).text
            print("    " + said.partition("agent_drill_results")[2].partition("PLAY RECAP")[0].replace("\n", "\n    "))
            wait_until_serving(the_lab.machines, 3)
        stuck = {**units, "agent_drill_stop": "sh -c 'systemctl stop apiserver; false'"}
        controller.play("drill", stuck, code=2)
        wait_until_serving(the_lab.machines, 3)
        for master in the_lab.named("m"):
            ensure(master.exec("systemctl", "is-active", "apiserver").stdout.strip() == "active", master.name)


def part_firewall(binary):
    """ufw on one node and firewalld on another: refused with the commands, opened, closed again."""
    with lab.Lab(1, 2, 0) as the_lab:
        controller = Controller(the_lab, "2.14", binary)
        with_ufw, with_firewalld = the_lab["w1"], the_lab["w2"]
        with_ufw.exec("ufw", "allow", "22/tcp")
        with_ufw.exec("ufw", "--force", "enable")
        with_firewalld.exec("systemctl", "start", "firewalld")
        with_firewalld.exec("firewall-cmd", "--add-service=ssh")
        checked = controller.play("site", {"agent_firewall": "check"}, code=2)
        for command in ("ufw allow 7646/tcp", "ufw allow 7646/udp", "firewall-cmd --permanent --add-port=7646/udp"):
            ensure(command in checked.text, f"{command} is not named: {checked.text}")
        for machine in (with_ufw, with_firewalld):
            nothing_left(machine)
        dry = controller.play("site", {}, "--check", "--tags", "agent_firewall")
        ensure("would run: ufw allow 7646/tcp" in dry.text, dry.text)
        controller.play("site")
        wait_until_serving(the_lab.machines, 1)
        again = controller.play("site")
        ensure(again.total() == 0, again.text)
        with_firewalld.exec("firewall-cmd", "--reload")
        controller.play("cleanup")
        ensure("7646" not in with_ufw.exec("ufw", "status").stdout, "ufw still has the port")
        for more in ([], ["--permanent"]):
            ensure("7646" not in with_firewalld.exec("firewall-cmd", *more, "--list-ports").stdout, "firewalld has it")


KUBECTL = r'''#!/usr/bin/python3
"""ConfigMaps in files."""
import json, pathlib, sys
args = sys.argv[1:]
at = pathlib.Path("/var/tmp/kubectl")
with (at / "log").open("a") as log:
    log.write(" ".join(args[:6]) + "\\n")
if "get" in args:
    file = at / args[args.index("configmap") + 1]
    print(file.read_text() if file.exists() else "")
elif "patch" in args:
    file = at / args[args.index("configmap") + 1]
    old = json.loads(file.read_text())
    old["data"].update(json.loads(args[-1])["data"])
    file.write_text(json.dumps(old))
'''


def part_kubernetes(binary):
    """What k3s, RKE2 and kubeadm read afterwards, that nothing else changes, and what is refused."""
    with lab.Lab(2, 1, 0) as the_lab:
        controller = Controller(the_lab, "2.14", binary)
        controller.play("site")
        first, second, worker = (the_lab[name] for name in ("m1", "m2", "w1"))

        def says(machine, path, wanted):
            found = machine.exec("cat", path, check=False).stdout
            ensure(found.splitlines()[1:] == wanted, f"{machine.name}:{path}: {found}")

        def twice(variables):
            ensure(controller.play("kubernetes", variables, "--check").total() > 0, "check mode changes nothing")
            controller.play("kubernetes", variables)
            again = controller.play("kubernetes", variables)
            ensure(again.total() == 0, again.text)

        twice({"kubernetes_distribution": "k3s"})
        says(first, "/etc/rancher/k3s/config.yaml.d/90-agent.yaml", [])
        says(second, "/etc/rancher/k3s/config.yaml.d/90-agent.yaml", ['server: "https://127.0.0.1:16443"'])
        says(worker, "/etc/rancher/k3s/config.yaml.d/90-agent.yaml",
             ['server: "https://127.0.0.1:16443"', "disable-apiserver-lb: true"])
        classic.put(worker, "/etc/systemd/system/k3s-agent.service", "[Service]\nExecStart=k3s agent --server x\n")
        said = controller.play("kubernetes", {"kubernetes_distribution": "k3s"}, code=2).text
        ensure("has --server, which counts more" in said, said)

        twice({"kubernetes_distribution": "rke2"})
        says(first, "/etc/rancher/rke2/config.yaml.d/90-agent.yaml", [])
        says(second, "/etc/rancher/rke2/config.yaml.d/90-agent.yaml", ['server: "https://127.0.0.1:19345"'])
        says(worker, "/etc/rancher/rke2/config.yaml.d/90-agent.yaml", ['server: "https://127.0.0.1:9345"'])
        listens = {m.name: m.exec("ss", "-Hltn").stdout for m in the_lab.machines}
        ensure(":9345" in listens["w1"] and "127.0.0.1:9345" not in listens["m2"] and ":19345" in listens["m2"], listens)
        classic.put(second, "/etc/rancher/rke2/config.yaml", "embedded-registry: true\n")
        said = controller.play("kubernetes", {"kubernetes_distribution": "rke2"}, code=2).text
        ensure("has embedded-registry" in said, said)

        kubeconfig = "clusters:\n- cluster:\n    server: https://10.77.0.11:6443\n  name: kubernetes\n"
        for machine in the_lab.machines:
            machine.exec("mkdir", "-p", "/etc/kubernetes", "/var/tmp/kubectl")
            classic.put(machine, "/etc/kubernetes/kubelet.conf", kubeconfig)
        for master in (first, second):
            classic.put(master, "/etc/kubernetes/admin.conf", kubeconfig)
        classic.put(first, "/usr/local/bin/kubectl", KUBECTL)
        first.exec("chmod", "755", "/usr/local/bin/kubectl")
        maps = {"kubeadm-config": {"ClusterConfiguration": "apiVersion: kubeadm.k8s.io/v1beta4\nkind: C\n"},
                "cluster-info": {"kubeconfig": kubeconfig}, "kube-proxy": {"kubeconfig.conf": kubeconfig, "x": "y"}}
        for name, data in maps.items():
            classic.put(first, f"/var/tmp/kubectl/{name}", json.dumps({"data": data}))
        kubeadm = {"kubernetes_distribution": "kubeadm", "kubernetes_kubectl": "/usr/local/bin/kubectl"}
        twice({**kubeadm, "kubernetes_restart": False})
        pointed = kubeconfig.replace("10.77.0.11:6443", "127.0.0.1:16443")
        for machine, file, wanted in ((worker, "kubelet", pointed), (second, "kubelet", kubeconfig),
                                      (second, "admin", pointed)):
            found = machine.exec("cat", f"/etc/kubernetes/{file}.conf").stdout
            ensure(found == wanted, f"{machine.name} {file}: {found}")
        for name, key, wanted in (
                ("kubeadm-config", "ClusterConfiguration",
                 "controlPlaneEndpoint: 127.0.0.1:16443\n" + maps["kubeadm-config"]["ClusterConfiguration"]),
                ("cluster-info", "kubeconfig", pointed), ("kube-proxy", "kubeconfig.conf", pointed)):
            found = json.loads(first.exec("cat", f"/var/tmp/kubectl/{name}").stdout)["data"][key]
            ensure(found.strip() == wanted.strip(), f"{name}: {found!r}")
        said = controller.play("kubernetes", {**kubeadm, "kubernetes_endpoint": "10.222.0.1:16443"}, code=2).text
        ensure("is not for 10.222.0.1" in said, said)


PARTS = {
    "filter": part_filter, "lint": part_lint, "old": part_old, "trouble": part_trouble, "site": part_site,
    "firewall": part_firewall, "upgrade": part_upgrade, "package": part_package, "rpm": hosts.part_rpm,
    "sudo": hosts.part_sudo, "migrate": part_migrate, "name": hosts.part_name, "page": hosts.part_page,
    "kubernetes": part_kubernetes, "drill": part_drill,
}


def run_all(names):
    """Runs the parts, each whatever became of the others, and ends with a line that counts."""
    binary = agent_binary()
    # So that the machines go, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
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
