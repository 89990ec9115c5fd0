"""What the classic guides write: haproxy on every node, haproxy and keepalived on balancers."""
import time

import common
import lab

HAPROXY = """
global
    log /dev/log local0
    maxconn 4096
    user haproxy
    group haproxy

defaults
    mode tcp
    log global
    option tcplog
    timeout connect 5s
    timeout client 1h
    timeout server 1h

frontend kube
    bind {bind}
    default_backend masters

backend masters
    balance roundrobin
    option httpchk GET /readyz
    http-check expect status {expect}
    default-server check check-ssl verify none inter 1000 rise 2 fall 2 slowstart 60s maxconn 250 maxqueue 256 weight 100
    server m1 10.77.0.11:6443
    server m2 10.77.0.12:6443
    server m3 10.77.0.13:6443

listen stats
    bind 127.0.0.1:8404
    mode http
    stats enable
    stats uri /
    stats refresh 5s
    stats hide-version
    stats auth admin:{password}
"""
KEEPALIVED = """
global_defs {{
    router_id {name}
}}
vrrp_script chk_haproxy {{
    script "/usr/bin/killall -0 haproxy"
    interval 2
    weight -20
}}
vrrp_instance VI_1 {{
    state {state}
    interface eth0
    virtual_router_id 51
    priority {priority}
    advert_int 1
    authentication {{
        auth_type PASS
        auth_pass 12345678
    }}
    virtual_ipaddress {{
        {vip}/24 dev eth0 label eth0:0
    }}
    track_script {{
        chk_haproxy
    }}
}}
"""


def put(machine, path, text):
    """Writes a file of a machine that runs."""
    machine.exec("tee", path, stdin=text)


def set_up(the_lab, password="correct horse"):
    """haproxy on all, keepalived on the balancers, as their roles leave them."""
    for machine in the_lab.machines:
        balancer = machine.name.startswith("lb")
        bind = "0.0.0.0:6443" if balancer else "127.0.0.1:16443"
        put(machine, "/etc/haproxy/haproxy.cfg",
            HAPROXY.format(bind=bind, expect=200, password=password.replace(" ", "-")))
        machine.exec("systemctl", "enable", "--now", "--quiet", "haproxy")
        if balancer:
            first = machine.name == "lb1"
            text = KEEPALIVED.format(name=machine.name, state="MASTER" if first else "BACKUP", vip=lab.VIP,
                                     priority=255 if first else 254)
            put(machine, "/etc/keepalived/keepalived.conf", text)
            machine.exec("systemctl", "enable", "--now", "--quiet", "keepalived")
    lab.until("keepalived has the virtual IP", lambda: owners(the_lab) == ["lb1"], 20)


def one_balancer(the_lab, machine):
    """haproxy on one machine, for all nodes: without keepalived."""
    put(machine, "/etc/haproxy/haproxy.cfg", HAPROXY.format(bind="0.0.0.0:6443", expect=200, password="correct-horse"))
    machine.exec("systemctl", "enable", "--now", "--quiet", "haproxy")

    def serves():
        with common.Load(the_lab.controller, f"{machine.address}:6443") as load:
            time.sleep(1)
        return load.result["failed"] == 0 and load.result["slow"] == 0

    lab.until("haproxy knows which masters serve", serves)


def owners(the_lab):
    """Who has the virtual IP."""
    return [m.name for m in the_lab.machines if f" {lab.VIP}/" in m.exec("ip", "-o", "address").stdout]
