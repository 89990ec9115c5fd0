//! Tests of the installation, into a directory, with a systemctl that only remembers.

use std::cell::RefCell;

use super::*;

struct Machine {
    dir: tempfile::TempDir,
    calls: RefCell<Vec<String>>,
}

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("download"), "version 1").unwrap();
        let machine = Machine { dir, calls: RefCell::default() };
        machine.has("var/lib/agent/node", "");
        machine
    }

    /// With the package, whose program holds this.
    fn packaged(program: &str) -> Machine {
        let machine = Machine::new();
        machine.has("usr/lib/systemd/system/agent.service", &UNIT.replace("usr/local/bin", "usr/bin"));
        machine.has(package::PROGRAM, program);
        machine.has("var/lib/dpkg/info/agent-ha.list", "");
        machine
    }

    fn has(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn with<T>(
        &self,
        act: impl FnOnce(&TargetHost<'_>, &mut dyn FnMut(&str)) -> anyhow::Result<T>,
    ) -> Vec<String> {
        self.tried(act).unwrap()
    }

    fn tried<T>(
        &self,
        act: impl FnOnce(&TargetHost<'_>, &mut dyn FnMut(&str)) -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<String>> {
        let systemctl = |args: &[&str]| {
            self.calls.borrow_mut().push(args.join(" "));
            Ok(())
        };
        let root = self.dir.path().join("root");
        let mut said = Vec::new();
        let host = TargetHost { root: root.clone(), systemctl: &systemctl };
        act(&host, &mut |line| said.push(line.replace(&*root.to_string_lossy(), "")))?;
        Ok(said)
    }

    fn install(&self, settings: &CommandSettings, start: bool) -> Vec<String> {
        let binary = fs::read(self.dir.path().join("download")).unwrap();
        self.with(|host, say| host.install(&binary, settings, start, say))
    }

    fn calls(&self) -> Vec<String> {
        self.calls.take()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }
}

fn settings() -> CommandSettings {
    CommandSettings { config: proto::config::Config::default(), global: super::super::Global::default() }
}

#[test]
fn a_first_installation_writes_enables_and_starts() {
    let machine = Machine::new();
    let said = machine.install(&settings(), true);
    assert_eq!(
        said,
        [
            "wrote /usr/local/bin/agent",
            "wrote /etc/systemd/system/agent.service",
            "enabled at boot",
            "started"
        ]
    );
    assert_eq!(machine.calls(), ["daemon-reload", "enable --quiet agent.service", "restart agent.service"]);
    assert_eq!(fs::read_to_string(machine.path(UNIT_PATH)).unwrap(), UNIT);
    let binary = fs::metadata(machine.path(BINARY_PATH)).unwrap();
    assert_eq!(binary.permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(machine.path("usr/local/bin")).unwrap().count(), 1, "nothing is left over");
}

#[test]
fn repeated_it_changes_nothing_and_a_running_agent_is_left_alone() {
    let machine = Machine::new();
    machine.install(&settings(), true);
    machine.calls();
    let said = machine.install(&settings(), true);
    assert_eq!(said[0], "/usr/local/bin/agent is up to date");
    assert_eq!(machine.calls(), ["enable --quiet agent.service", "start agent.service"]);
}

#[test]
fn a_newer_binary_replaces_the_older_and_restarts_it() {
    let machine = Machine::new();
    machine.install(&settings(), true);
    machine.calls();
    fs::write(machine.dir.path().join("download"), "version 2").unwrap();
    machine.install(&settings(), true);
    assert_eq!(machine.calls().last().unwrap(), "restart agent.service");
    assert_eq!(fs::read_to_string(machine.path(BINARY_PATH)).unwrap(), "version 2");
}

#[test]
fn what_stands_in_the_way_of_the_new_file_is_not_written_through() {
    let machine = Machine::new();
    let (bin, other) = (machine.path("usr/local/bin"), machine.dir.path().join("other"));
    fs::create_dir_all(&bin).unwrap();
    fs::write(&other, "not yours").unwrap();
    let trap = bin.join(format!(".agent.{}", std::process::id()));
    std::os::unix::fs::symlink(&other, trap).unwrap();
    std::os::unix::fs::symlink(&other, bin.join("agent")).unwrap();
    machine.install(&settings(), false);
    assert_eq!(fs::read_to_string(&other).unwrap(), "not yours");
    let about = fs::symlink_metadata(machine.path(BINARY_PATH)).unwrap();
    assert!(about.is_file() && is_ours(&about, 0o755));
}

#[test]
fn one_that_others_may_write_is_replaced_though_it_holds_the_same() {
    let machine = Machine::new();
    machine.install(&settings(), false);
    let binary = machine.path(BINARY_PATH);
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(machine.install(&settings(), false)[0], "wrote /usr/local/bin/agent");
    assert!(is_ours(&fs::metadata(&binary).unwrap(), 0o755));
}

/// Set in the process that has its own binary swapped.
const SWAPPED: &str = "AGENT_TEST_SWAPPED";

#[test]
fn the_program_that_runs_is_installed_and_not_what_lies_where_it_was() {
    let name = "cli::install::tests::the_program_that_runs_is_installed_and_not_what_lies_where_it_was";
    let own = std::env::current_exe().unwrap();
    if let Some(original) = std::env::var_os(SWAPPED) {
        let evil = own.with_extension("evil");
        fs::write(&evil, "evil").unwrap();
        fs::rename(&evil, &own).unwrap();
        assert!(running_program().unwrap() == fs::read(original).unwrap());
        return;
    }
    let dir = crate::testing::trusted_dir();
    let copy = dir.path().join("copy");
    fs::copy(&own, &copy).unwrap();
    let run = std::process::Command::new(&copy).args(["--exact", name]).env(SWAPPED, &own).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
    assert_eq!(fs::read_to_string(&copy).unwrap(), "evil", "it was not swapped");
}

#[test]
fn options_become_a_drop_in_that_goes_with_them() {
    let machine = Machine::new();
    let mut other = settings();
    other.global.state_dir = Some("/srv/agent".to_owned());
    other.config.state_dir = "/srv/agent".to_owned();
    machine.install(&other, false);
    assert!(!machine.calls().iter().any(|call| call.starts_with("start") || call.starts_with("restart")));
    let text = fs::read_to_string(machine.path(DROP_IN_PATH)).unwrap();
    assert!(text.contains("ReadWritePaths=\"/srv/agent\""), "{text}");
    machine.install(&settings(), false);
    assert!(!machine.path(DROP_IN_PATH).exists());
}

#[test]
fn uninstalling_removes_what_was_installed_and_can_be_repeated() {
    let machine = Machine::new();
    machine.install(&settings(), true);
    machine.calls();
    machine.has("usr/local/bin/agent.previous", "version 0");
    machine.with(|host, say| host.uninstall(say));
    assert_eq!(fs::read_dir(machine.path("usr/local/bin")).unwrap().count(), 0, "something is left");
    assert_eq!(machine.calls(), ["disable --quiet --now agent.service", "daemon-reload"]);
    assert!(!machine.path(UNIT_PATH).exists() && !machine.path(BINARY_PATH).exists());
    assert_eq!(machine.with(|host, say| host.uninstall(say)), ["nothing was installed"]);
    assert!(machine.calls().is_empty());
}

#[test]
fn the_units_and_the_binary_of_a_package_are_used_and_left_alone() {
    let machine = Machine::packaged("version 1");
    let said = machine.install(&settings(), true);
    assert_eq!(said, ["using the unit and the binary of the package agent-ha", "enabled at boot", "started"]);
    assert_eq!(machine.calls(), ["enable --quiet agent.service", "start agent.service"]);
    assert!(!machine.path(UNIT_PATH).exists() && !machine.path(BINARY_PATH).exists());
    let said = machine.with(|host, say| host.uninstall(say));
    assert_eq!(said[0], "stopped and disabled");
    assert_eq!(
        said[1],
        "kept the unit and the binary of the package agent-ha; to remove them: apt-get remove agent-ha"
    );
    assert!(machine.path(package::PROGRAM).exists());
}

#[test]
fn options_on_a_packaged_machine_start_the_packages_program() {
    let machine = Machine::packaged("version 1");
    let mut other = settings();
    other.global.config = Some("/etc/other.toml".into());
    machine.install(&other, true);
    let text = fs::read_to_string(machine.path(DROP_IN_PATH)).unwrap();
    assert!(text.contains("ExecStart=/usr/bin/agent --config \"/etc/other.toml\" run"), "{text}");
}

#[test]
fn what_was_installed_before_makes_way_for_the_package() {
    let machine = Machine::new();
    machine.install(&settings(), true);
    machine.calls();
    machine.has("lib/systemd/system/agent.service", &UNIT.replace("usr/local/bin", "usr/bin"));
    machine.has(package::PROGRAM, "version 1");
    let said = machine.install(&settings(), true);
    let removed = ["removed /etc/systemd/system/agent.service", "removed /usr/local/bin/agent"];
    assert_eq!(said[1..3], removed);
    assert_eq!(machine.calls(), ["daemon-reload", "enable --quiet agent.service", "restart agent.service"]);
}

#[test]
fn another_program_than_the_packages_changes_nothing_and_is_told_what_to_do() {
    let machine = Machine::packaged("version 2");
    let refused = machine.tried(|host, say| host.install(b"version 1", &settings(), true, say));
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("/usr/bin/agent") && why.contains("apt-get remove agent-ha"), "{why}");
    assert!(machine.calls().is_empty() && !machine.path(UNIT_PATH).exists());
}

#[test]
fn a_node_that_is_no_member_is_not_started() {
    let machine = Machine::new();
    fs::remove_file(machine.path("var/lib/agent/node")).unwrap();
    let said = machine.install(&settings(), true);
    assert!(said.last().unwrap().starts_with("not started: this node is not a member"), "{said:?}");
    assert_eq!(machine.calls(), ["daemon-reload", "enable --quiet agent.service"]);
    // What the unit wants is what is looked for.
    for file in MEMBER {
        assert!(UNIT.contains(&format!("\nConditionPathExists=|/var/lib/agent/{file}\n")), "{file}");
    }
}

/// The directives of systemd 252 that the unit may use: a misspelt one would be passed over in silence.
const KNOWN: &str = "
    After Before ConditionPathExists Description StartLimitIntervalSec
    CapabilityBoundingSet DevicePolicy ExecReload ExecStart FileDescriptorStoreMax InaccessiblePaths KeyringMode
    KillMode LimitCORE LimitNOFILE LockPersonality MemoryMax
    MemoryDenyWriteExecute NoNewPrivileges NotifyAccess OOMScoreAdjust PrivateDevices PrivateMounts PrivateTmp
    ProcSubset ProtectClock ProtectControlGroups ProtectHome ProtectHostname ProtectKernelLogs
    ProtectKernelModules ProtectKernelTunables ProtectProc ProtectSystem RemoveIPC Restart
    RestartPreventExitStatus RestartSec RestrictAddressFamilies RestrictNamespaces RestrictRealtime
    RestrictSUIDSGID RuntimeDirectory RuntimeDirectoryMode RuntimeDirectoryPreserve StateDirectory
    StateDirectoryMode SystemCallArchitectures SystemCallErrorNumber SystemCallFilter TasksMax
    TimeoutStartSec TimeoutStopSec Type UMask WatchdogSec
    WantedBy";

#[test]
fn the_unit_is_made_of_directives_that_systemd_252_knows() {
    let mut sections = Vec::new();
    for line in UNIT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with('[') {
            sections.push(line);
            continue;
        }
        let (key, value) = line.split_once('=').expect(line);
        assert!(KNOWN.split_whitespace().any(|known| known == key), "unknown directive {key}");
        assert!(!value.trim().is_empty(), "{key} is empty");
    }
    assert_eq!(sections, ["[Unit]", "[Service]", "[Install]"]);
}

#[test]
fn the_clusters_own_keys_are_hidden_and_what_the_agent_reads_is_not() {
    let lines = UNIT.lines().filter_map(|line| line.strip_prefix("InaccessiblePaths="));
    let hidden: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    // One that is missing must not keep the agent from starting.
    let hidden: Vec<&str> = hidden.iter().map(|path| path.strip_prefix('-').expect(path)).collect();
    let is_hidden = |path: &str| hidden.iter().any(|hidden| Path::new(path).starts_with(hidden));
    let mut keys: Vec<String> = ["ca.key", "etcd/ca.key", "front-proxy-ca.key", "sa.key"]
        .map(|key| format!("/etc/kubernetes/pki/{key}"))
        .to_vec();
    for server in ["/var/lib/rancher/k3s/server", "/var/lib/rancher/rke2/server"] {
        let names =
            ["client-ca.key", "server-ca.key", "request-header-ca.key", "service.key", "etcd/peer-ca.key"];
        keys.extend(names.map(|key| format!("{server}/tls/{key}")));
        keys.push(format!("{server}/db/state.db"));
    }
    for key in keys {
        assert!(is_hidden(&key), "{key} is not hidden");
    }
    let rancher = [
        "agent/client-kubelet.crt",
        "agent/client-kubelet.key",
        "agent/server-ca.crt",
        "agent/kubelet.kubeconfig",
        "server/tls/client-admin.crt",
        "server/tls/client-admin.key",
        "server/tls/server-ca.crt",
        "server/cred/admin.kubeconfig",
    ];
    let of = |name: &str| rancher.map(|file| format!("/var/lib/rancher/{name}/{file}"));
    let kubeadm = [
        "/var/lib/kubelet/pki/kubelet-client-current.pem",
        "/etc/kubernetes/pki/ca.crt",
        "/etc/kubernetes/pki/apiserver-kubelet-client.crt",
        "/etc/kubernetes/pki/apiserver-kubelet-client.key",
        "/etc/kubernetes/kubelet.conf",
        "/etc/kubernetes/manifests/kube-apiserver.yaml",
    ];
    for file in of("k3s").iter().chain(&of("rke2")).map(String::as_str).chain(kubeadm) {
        assert!(!is_hidden(file), "{file} is needed");
    }
}

#[test]
fn nothing_stops_with_the_agent_and_the_kubernetes_units_come_after_it() {
    for binding in ["Requires=", "BindsTo=", "PartOf=", "Requisite=", "Upholds=", "Conflicts="] {
        assert!(!UNIT.lines().any(|line| line.starts_with(binding)), "{binding}");
    }
    let before = UNIT.lines().find_map(|line| line.strip_prefix("Before=")).unwrap();
    for unit in ["k3s", "k3s-agent", "rke2-server", "rke2-agent", "kubelet"] {
        assert!(before.split(' ').any(|found| found == format!("{unit}.service")), "{unit}");
    }
    assert!(UNIT.contains(&format!("ExecStart=/{BINARY_PATH} run\n")));
}
