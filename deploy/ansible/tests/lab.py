"""Whole machines with systemd on a bridge, in network namespaces of their own, and a controller beside them.

Everything has names of its own, and goes when the lab ends, however it ends.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
NETWORK = "10.77.0."
CONTROLLER = NETWORK + "1"
VIP = NETWORK + "50"
BOOT_SECONDS = 60
PACKAGES = (
    "systemd-sysv,dbus,libpam-systemd,udev,iproute2,procps,kmod,openssh-server,python3,psmisc,"
    "haproxy,keepalived,nginx-light,ufw,firewalld,sudo,rpm"
)
START = r"""
echo $$ >"$1/cgroup.procs" &&
mount -t overlay machine -o "lowerdir=$2,upperdir=$3/upper,workdir=$3/work" "$3/root" &&
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --register=no --keep-unit \
    --kill-signal=SIGRTMIN+3 --directory="$3/root" --machine="$4" --network-namespace-path="$5" \
    --capability=CAP_NET_ADMIN,CAP_NET_RAW --console=pipe --boot
"""
APISERVER = """
daemon off;
pid /run/apiserver.pid;
error_log stderr;
events { worker_connections 4000; }
http {
    access_log off;
    keepalive_timeout 3600;
    keepalive_requests 1000000;
    default_type text/plain;
    server {
        listen 6443 ssl backlog=4096;
        ssl_certificate /etc/kubernetes/pki/apiserver.crt;
        ssl_certificate_key /etc/kubernetes/pki/apiserver.key;
        location = /readyz { return 200 'ok'; }
        location / { return 200 '$hostname\\n'; }
    }
}
"""
APISERVER_UNIT = """
[Unit]
Description=What stands for an apiserver
[Service]
ExecStart=/usr/sbin/nginx -e stderr -c /etc/kubernetes/apiserver.conf
[Install]
WantedBy=multi-user.target
"""


def run(*command, **more):
    """A command that has to succeed; its output."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **more)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def until(what, check, seconds=30.0):
    """Waits until a check returns something true."""
    end = time.monotonic() + seconds
    while True:
        last = check()
        if last:
            return last
        if time.monotonic() > end:
            raise RuntimeError(f"not in {seconds} s: {what}")
        time.sleep(0.1)


def target():
    """Where what is made once is kept."""
    path = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "ansible"
    path.mkdir(parents=True, exist_ok=True)
    return path


def tree():
    """The files that machines boot from; made where they are missing."""
    release = run("sh", "-c", '. /etc/os-release && echo "$VERSION_CODENAME"').strip()
    path = target() / f"tree-{release}"
    with open(f"{path}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = pathlib.Path(f"{path}.done")
        if not done.exists() or done.read_text(encoding="utf-8") != PACKAGES:
            run(REPOSITORY / "tests/install", "mmdebstrap:mmdebstrap", "systemd-nspawn:systemd-container",
                "ssh:openssh-client")
            shutil.rmtree(path, ignore_errors=True)
            run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", release, path)
            (path / "etc/fstab").write_text("", encoding="utf-8")
            (path / "etc/machine-id").write_text("", encoding="utf-8")
            # Tests start what they need of these.
            for unit in ("haproxy", "keepalived", "nginx", "ufw", "firewalld"):
                run("systemctl", f"--root={path}", "disable", "--quiet", unit)
            done.write_text(PACKAGES, encoding="utf-8")
    return path


class Machine:
    """A machine with systemd."""

    def __init__(self, lab, name, number, is_master):
        self.lab, self.name, self.address = lab, name, f"{NETWORK}{number}"
        self.space = f"{lab.name}-{name}"
        self.dir = lab.dir / name
        unified = pathlib.Path("/sys/fs/cgroup/unified")
        self.group = (unified if unified.is_dir() else unified.parent) / self.space
        self.process = None
        lab.port(self.space, f"{self.address}/24")
        for part in ("upper/etc", "upper/root/.ssh", "work", "root"):
            (self.dir / part).mkdir(parents=True)
        self.write("/etc/hostname", f"{name}\n")
        self.write("/root/.ssh/authorized_keys", (lab.dir / "key.pub").read_text(encoding="utf-8"))
        (self.dir / "upper/root/.ssh").chmod(0o700)
        (self.dir / "upper/root").chmod(0o700)
        if is_master:
            for file in ("ca.crt", "apiserver.crt", "apiserver.key"):
                self.write(f"/etc/kubernetes/pki/{file}", (lab.dir / file).read_text(encoding="utf-8"))
            self.write("/etc/kubernetes/apiserver.conf", APISERVER)
            self.write("/etc/systemd/system/apiserver.service", APISERVER_UNIT)
            wants = self.dir / "upper/etc/systemd/system/multi-user.target.wants"
            wants.mkdir(parents=True)
            (wants / "apiserver.service").symlink_to("/etc/systemd/system/apiserver.service")

    def write(self, path, text, mode=0o644):
        """Writes a file of the machine before it boots."""
        file = self.dir / "upper" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)

    def power_on(self):
        """Starts to boot."""
        self.group.mkdir(exist_ok=True)
        with open(self.dir / "console.log", "ab") as console:
            # pylint: disable-next=consider-using-with
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--", "sh", "-c", START, "sh", str(self.group), str(self.lab.tree),
                 str(self.dir), self.name, f"/run/netns/{self.space}"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True)

    def systemd(self):
        """The process id of its systemd, or none."""
        with contextlib.suppress(OSError, AttributeError):
            children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text("ascii")
            return children.split()[0] if children.strip() else None
        return None

    def exec(self, *command, check=True, stdin=None):
        """Runs a command inside."""
        pid = self.systemd()
        if pid is None:
            return subprocess.CompletedProcess(command, 255, "", "it is off")
        done = subprocess.run(
            ["timeout", "--kill-after=1", "60", "nsenter", "--target", pid, "--mount", "--uts", "--ipc", "--pid",
             "--net", "--cgroup", "--", "env", "-i", "HOME=/root",
             "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *command],
            capture_output=True, text=True, check=False, input=stdin)
        if check and done.returncode != 0:
            raise RuntimeError(f"{self.name}# {' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def wait_until_booted(self):
        """Waits until all has started, and nothing has failed."""

        def is_up():
            state = self.exec("systemctl", "is-system-running", check=False).stdout.strip()
            if state == "degraded":
                raise RuntimeError(f"{self.name}: {self.exec('systemctl', '--failed', check=False).stdout}")
            return state == "running"

        until(f"{self.name} has booted", is_up, BOOT_SECONDS)

    def power_off(self):
        """Takes its power away."""
        if self.process is not None:
            pid = self.systemd()
            if pid is not None:
                os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(20)
            self.process = None
        for hierarchy in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"):
            remove_groups(pathlib.Path(hierarchy) / self.space)


def remove_groups(group):
    """Removes a control group and all below it, as far as they are empty."""
    if not group.is_dir():
        return
    for below in group.iterdir():
        if below.is_dir():
            remove_groups(below)
    with contextlib.suppress(OSError):
        group.rmdir()


class Lab:
    """The machines, the bridge between them, and the controller's namespace."""

    def __init__(self, masters, workers, balancers):
        self.name = f"ansible-{os.getpid()}"
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.tree = tree()
        self.spaces, self.machines = [], []
        self.space("switch")
        run("ip", "-n", f"{self.name}-switch", "link", "add", "br0", "type", "bridge")
        run("ip", "-n", f"{self.name}-switch", "link", "set", "br0", "up")
        self.controller = f"{self.name}-controller"
        self.port(self.controller, f"{CONTROLLER}/24")
        self.certificates()
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / "key")
        for kind, letter, count, base in (("m", "m", masters, 10), ("w", "w", workers, 20), ("b", "lb", balancers, 30)):
            for i in range(1, count + 1):
                self.machines.append(Machine(self, f"{letter}{i}", base + i, kind == "m"))

    def space(self, name):
        """Makes a network namespace."""
        full = name if name.startswith(self.name) else f"{self.name}-{name}"
        run("ip", "netns", "add", full)
        self.spaces.append(full)
        run("ip", "-n", full, "link", "set", "lo", "up")

    def port(self, space, address):
        """Makes a network namespace with a port at the switch."""
        self.space(space)
        at_switch = f"p{len(self.spaces)}"
        run("ip", "-n", f"{self.name}-switch", "link", "add", at_switch, "type", "veth",
            "peer", "name", "eth0", "netns", space)
        run("ip", "-n", f"{self.name}-switch", "link", "set", at_switch, "master", "br0", "up")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "address", "add", address, "dev", "eth0")

    def certificates(self):
        """An authority, and a certificate as an apiserver's."""
        at = str(self.dir)
        new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        run(*new, "-x509", "-subj", "/CN=kubernetes", "-keyout", f"{at}/ca.key", "-out", f"{at}/ca.crt")
        run(*new, "-subj", "/CN=kube-apiserver", "-keyout", f"{at}/apiserver.key", "-out", f"{at}/apiserver.csr")
        (self.dir / "names").write_text(
            f"subjectAltName=DNS:kubernetes,IP:127.0.0.1,IP:{VIP}\n", encoding="utf-8")
        run("openssl", "x509", "-req", "-in", f"{at}/apiserver.csr", "-CA", f"{at}/ca.crt", "-CAkey", f"{at}/ca.key",
            "-CAcreateserial", "-days", "2", "-extfile", f"{at}/names", "-out", f"{at}/apiserver.crt")

    def __enter__(self):
        for machine in self.machines:
            machine.power_on()
        for machine in self.machines:
            machine.wait_until_booted()
        return self

    def __exit__(self, *_):
        if os.environ.get("AGENT_LAB_WAIT"):
            print(f"the lab {self.name} waits for Enter", file=sys.stderr)
            sys.stdin.readline()
        self.close()

    def close(self):
        """Takes everything away."""
        for machine in self.machines:
            machine.power_off()
        for space in reversed(self.spaces):
            subprocess.run(["ip", "netns", "delete", space], check=False)
        if os.environ.get("AGENT_LAB_KEEP"):
            print(f"kept: {self.dir}")
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    def __getitem__(self, name):
        return next(machine for machine in self.machines if machine.name == name)

    def named(self, start):
        """The machines whose names start so."""
        return [machine for machine in self.machines if machine.name.startswith(start)]

    def inside(self, *command, **more):
        """Runs a command on the controller."""
        return run("ip", "netns", "exec", self.controller, *command, **more)
