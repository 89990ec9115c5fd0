"""Parts about hosts that are not as the others: an ordinary user with sudo, rpm, a balancer behind a name, the page."""
from __future__ import annotations

import classic
import lab
from common import (CHOSEN, SETTINGS, Load, as_packages, ensure, first_and_second_run, nothing_left, stayed, vip_of,
                    wait_until_serving)
from controller import Controller

NAME = "api.example.org"
# What a node does with the name: where it leads, and whether an apiserver answers there.
ASK = """
import socket, ssl, urllib.request
print(socket.getaddrinfo({name!r}, 6443, type=socket.SOCK_STREAM)[0][4][0])
tls = ssl._create_unverified_context()
print(urllib.request.urlopen("https://{name}:6443/readyz", context=tls, timeout=10).status)
"""


def part_sudo(binary):
    """All as an ordinary user whom sudo asks for a password, with each version; root cannot log in."""
    with lab.Lab(1, 1, 0) as the_lab:
        for machine in the_lab.machines:
            machine.exec("useradd", "--create-home", "--home-dir", "/srv/ops", "--shell", "/bin/bash", "ops")
            machine.exec("chpasswd", stdin="ops:a secret\n")
            classic.put(machine, "/etc/sudoers.d/ops", "ops ALL=(ALL) ALL\n")
            machine.exec("install", "-d", "-o", "ops", "-m", "700", "/srv/ops/.ssh")
            machine.exec("install", "-o", "ops", "-m", "600", "/root/.ssh/authorized_keys", "/srv/ops/.ssh/authorized_keys")
            machine.exec("rm", "/root/.ssh/authorized_keys")
        newer = the_lab.dir / "newer"
        newer.write_bytes(binary.read_bytes() + b"newer")
        for version in CHOSEN:
            controller = Controller(the_lab, version, binary)
            controller.user = "ops"
            controller.write_inventory()
            given = {"ansible_become_password": "a secret", "agent_config": {"web": {"listen": "127.0.0.1:1936"}}}
            first_and_second_run(controller, given)
            wait_until_serving(the_lab.machines, 1)
            with Load(the_lab["w1"].space, "127.0.0.1:16443") as proxy:
                controller.play("upgrade", {**given, "agent_binary": str(newer)})
            proxy.lost_nothing()
            controller.play("rotate", given)
            controller.play("remove", {**given, "node": "w1"})
            nothing_left(the_lab["w1"])
            controller.play("cleanup", given)
            for machine in the_lab.machines:
                nothing_left(machine)


def part_rpm(binary):
    """The same with rpm itself, on machines that have it beside dpkg: a run, an upgrade under load, and nothing left."""
    with lab.Lab(1, 1, 0) as the_lab:
        old, new = as_packages(the_lab, binary, "rpm")
        for version in CHOSEN:
            controller = Controller(the_lab, version, binary)
            given = {**SETTINGS, "agent_binary": "", "agent_package": old}
            first_and_second_run(controller, given)
            wait_until_serving(the_lab.machines, 1)
            before = vip_of(the_lab.machines)
            with Load(the_lab["w1"].space, "127.0.0.1:16443") as proxy:
                controller.play("upgrade", {**given, "agent_package": new})
            proxy.lost_nothing()
            stayed(the_lab.machines, before)
            again = controller.play("upgrade", {**given, "agent_package": new})
            ensure(again.total() == 0, again.text)
            for machine in the_lab.machines:
                installed = machine.exec("rpm", "-q", "agent-ha").stdout
                ensure(installed.startswith("agent-ha-0.1.1"), f"{machine.name} has {installed}")
            controller.play("cleanup", given)
            for machine in the_lab.machines:
                nothing_left(machine)


def part_name(binary):
    """One balancer behind a DNS name is retired, and the nodes keep the name: it leads to themselves."""
    with lab.Lab(3, 1, 1) as the_lab:
        first, second, worker, balancer = (the_lab[name] for name in ("m1", "m2", "w1", "lb1"))
        # It is to become a master later.
        second.exec("systemctl", "stop", "apiserver")
        classic.one_balancer(the_lab, balancer)
        for machine in the_lab.machines:
            # What stands for the DNS.
            classic.put(machine, "/etc/hosts", f"127.0.0.1 localhost\n{balancer.address} {NAME}\n")
        before = worker.exec("cat", "/etc/hosts").stdout

        def leads(machine, where):
            said = machine.exec("python3", "-c", ASK.format(name=NAME)).stdout.split()
            ensure(said == [where, "200"], f"{machine.name}: {NAME} leads to {said}")

        leads(worker, balancer.address)
        controller = Controller(the_lab, "2.14", binary)
        given = {"agent_endpoint_name": NAME, "agent_migrate_wait": 5, "agent_migrate_accept": True}
        with Load(the_lab.controller, f"{balancer.address}:6443") as outside:
            said = controller.play("migrate", given)
            ensure(f"lb1 serves clients that are no nodes: {lab.CONTROLLER}." in said.text, said.text)
        ensure(outside.result["failed"] == 0, f"new connections failed: {outside.result}")
        for machine in (first, worker, balancer):
            leads(machine, "127.0.0.1")
        ensure(NAME in second.exec("cat", "/etc/hosts").stdout.splitlines()[-1], "a master without an apiserver has it")
        again = controller.play("migrate", given)
        ensure(again.total() == 0 and f"lb1 serves clients that are no nodes: {lab.CONTROLLER}." in again.text
               and again.text.count("serves clients that") == 1, again.text)

        controller = Controller(the_lab, "2.19", binary)
        second.exec("systemctl", "start", "apiserver")
        wait_until_serving(the_lab.machines, 3)
        # The balancer's own settings now stand in the inventory.
        controller.play("site", given)
        leads(second, "127.0.0.1")
        ensure(controller.play("site", given).total() == 0, "a second run changes something")
        ensure(controller.play("site", given, "--check", "--diff").total() == 0, "check mode would change something")
        controller.play("remove", {**given, "node": "lb1"})
        nothing_left(balancer)
        ensure(balancer.exec("cat", "/etc/hosts").stdout == before, balancer.exec("cat", "/etc/hosts").stdout)
        leads(worker, "127.0.0.1")
        first.exec("systemctl", "stop", "apiserver")
        lab.until("the worker's name leads to the other master", lambda: worker.exec(
            "python3", "-c", ASK.format(name=NAME), check=False).returncode == 0, 10)
        first.exec("systemctl", "start", "apiserver")
        # Given back.
        controller.write_inventory(leave_out=("lb1",))
        controller.play("site")
        ensure(worker.exec("cat", "/etc/hosts").stdout == before, worker.exec("cat", "/etc/hosts").stdout)
        ensure(":6443" not in worker.exec("ss", "-Hltn").stdout, "the worker still listens")
        worker.exec("mkdir", "-p", "/etc/cloud/cloud.cfg.d")
        classic.put(worker, "/etc/cloud/cloud.cfg.d/hosts.cfg", "manage_etc_hosts: true\n")
        refused = controller.play("site", given, code=2)
        ensure("manage_etc_hosts to false in /etc/cloud/cloud.cfg.d/hosts.cfg" in refused.text, refused.text)
        controller.play("site", given, "--limit", "m1,m2,m3")
        controller.play("cleanup", given)
        for machine in (first, second, worker, the_lab["m3"]):
            nothing_left(machine)


def part_page(binary):
    """The page through the virtual IP, as behind haproxy: with the user and the password alone, from any machine."""
    with lab.Lab(1, 1, 1) as the_lab:
        controller = Controller(the_lab, "2.19", binary)
        web = {"listen": ["127.0.0.1:1936", "0.0.0.0:8404"]}
        refused = controller.play("site", {**SETTINGS, "agent_config": {"web": web}}, code=2)
        ensure("password" in refused.text, refused.text)
        web.update({"user": "ops", "password": "correct horse battery"})
        said = controller.play("site", {**SETTINGS, "agent_config": {"web": web}}, "-vvv", "--diff")
        ensure("correct horse" not in said.text, "the password is shown")
        wait_until_serving(the_lab.machines, 1)
        vip_of(the_lab.machines)
        asks = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]
        for path in ("/", "/stats", "/stats;csv", "/metrics"):
            url = f"http://{lab.VIP}:8404{path}"
            ensure(the_lab.inside(*asks, url) == "401", f"{path} without a password")
            ensure(the_lab.inside(*asks, "--user", "ops:correct horse battery", url) == "200", f"{path} with it")
