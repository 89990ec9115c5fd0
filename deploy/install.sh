#!/bin/sh
# Installs the agent from the files of a release, or upgrades it without losing a connection:
#
#     INSTALL_AGENT_URL=https://… sh install.sh                 the binary and the service
#     INSTALL_AGENT_DIR=/media/release sh install.sh init       from a directory, offline; then: agent init
#     … sh install.sh join --invite-file /root/invite           then: agent join --invite-file …
#
# Arguments are a command of the agent that is run in the end. Variables:
#
#   INSTALL_AGENT_URL           where the files of a release are: agent-VERSION-linux-PROCESSOR.tar.gz, SHA256SUMS
#   INSTALL_AGENT_DIR           a directory with these files, in place of a URL
#   INSTALL_AGENT_VERSION       which version; without it, the one in SHA256SUMS
#   INSTALL_AGENT_SHA256        the archive's checksum, in place of the one in SHA256SUMS
#   INSTALL_AGENT_MINISIGN_KEY  the public key that has to have signed SHA256SUMS (SHA256SUMS.minisig); needs minisign
#   INSTALL_AGENT_INIT          systemd, openrc, procd, runit or none, where it can't be told
#   INSTALL_AGENT_SKIP_START    true: install, and start nothing
#
# Nothing is installed whose checksum is not known. The way back is: agent uninstall, with --purge for its state.
set -eu

say() { echo "install.sh: $*"; }
fail() {
    say "$*" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

bin=/usr/local/bin/agent

# What is here.
[ "$(id -u)" = 0 ] || fail "only root can install the agent; repeat it with sudo"
if [ -e /usr/lib/systemd/system/agent.service ] || [ -e /lib/systemd/system/agent.service ]; then
    fail "the package agent-ha is installed here; upgrade it with the package manager, or remove it first"
fi
[ "$(uname -s)" = Linux ] || fail "the agent runs on Linux alone, and this is $(uname -s)"
case $(uname -m) in
x86_64 | amd64) processor=x86_64 ;;
aarch64 | arm64) processor=aarch64 ;;
armv7* | armv8l) processor=armv7 ;;
riscv64) processor=riscv64 ;;
*) fail "there is no agent for this processor: $(uname -m)" ;;
esac
init=${INSTALL_AGENT_INIT:-}
if [ -z "$init" ]; then
    if [ -d /run/systemd/system ]; then
        init=systemd
    elif [ -d /run/openrc ]; then
        init=openrc
    elif [ -x /sbin/procd ]; then
        init=procd
    elif [ -d /run/runit ] || [ -d /run/runit.stopit ] || has runsvdir; then
        init=runit
    else
        init=none
    fi
fi
case $init in
systemd | openrc | procd | runit | none) ;;
*) fail "INSTALL_AGENT_INIT=$init: expected systemd, openrc, procd, runit or none" ;;
esac

# The files.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# Puts a file of the release into the work directory.
get() {
    if [ -n "${INSTALL_AGENT_DIR:-}" ]; then
        [ -f "$INSTALL_AGENT_DIR/$1" ] || return 1
        cp "$INSTALL_AGENT_DIR/$1" "$work/$1"
    elif has curl; then
        curl -sfL --retry 3 -o "$work/$1" "${INSTALL_AGENT_URL%/}/$1"
    elif has wget; then
        wget -q -O "$work/$1" "${INSTALL_AGENT_URL%/}/$1"
    else
        fail "curl or wget is needed to load ${INSTALL_AGENT_URL%/}/$1"
    fi
}
where=${INSTALL_AGENT_DIR:-${INSTALL_AGENT_URL:-}}
[ -n "$where" ] || fail "set INSTALL_AGENT_URL, or INSTALL_AGENT_DIR for a directory, to where the release's files are"

sum=${INSTALL_AGENT_SHA256:-}
version=${INSTALL_AGENT_VERSION:-}
version=${version#v}
if [ -z "$sum" ] || [ -z "$version" ]; then
    get SHA256SUMS || fail "SHA256SUMS is not in $where, so nothing says what the archive has to be"
    if [ -n "${INSTALL_AGENT_MINISIGN_KEY:-}" ]; then
        has minisign || fail "INSTALL_AGENT_MINISIGN_KEY is set, and minisign is not installed"
        get SHA256SUMS.minisig || fail "SHA256SUMS.minisig is not in $where"
        minisign -Vqm "$work/SHA256SUMS" -P "$INSTALL_AGENT_MINISIGN_KEY" ||
            fail "SHA256SUMS is not signed with the key in INSTALL_AGENT_MINISIGN_KEY"
        say "SHA256SUMS has the right signature"
    fi
    line=$(grep -E "^[0-9a-f]{64} [ *]agent-${version:-[^/ ]*}-linux-$processor\.tar\.gz\$" "$work/SHA256SUMS" || true)
    [ -n "$line" ] || fail "SHA256SUMS in $where has no agent-${version:-VERSION}-linux-$processor.tar.gz"
    [ "$(echo "$line" | wc -l)" = 1 ] ||
        fail "SHA256SUMS in $where has several versions; name one in INSTALL_AGENT_VERSION"
    [ -n "$sum" ] || sum=${line%% *}
    archive=${line#* [ *]}
else
    archive=agent-$version-linux-$processor.tar.gz
fi
get "$archive" || fail "$archive is not in $where"
has sha256sum || fail "sha256sum is needed to check $archive"
is=$(sha256sum "$work/$archive")
[ "${is%% *}" = "$sum" ] || fail "$archive has the wrong checksum: ${is%% *}, expected $sum; nothing was changed"
say "$archive has the right checksum"
tar -xzf "$work/$archive" -C "$work"
from=$work/${archive%.tar.gz}
told=$("$from/agent" --version) || fail "the agent does not run on this machine"

# Puts a file in its place as a whole, also when it is a program that runs.
put() {
    mkdir -p "${2%/*}"
    cp "$1" "$2.new"
    chmod 0755 "$2.new"
    mv -f "$2.new" "$2"
}
# Where init or join were told another directory, the services of init systems other than systemd read it there.
# shellcheck source=/dev/null
[ ! -r /etc/agent/service.env ] || . /etc/agent/service.env
is_member() { [ -e "${AGENT_STATE_DIR:-/var/lib/agent}/node" ]; }
start=true
[ "${INSTALL_AGENT_SKIP_START:-false}" != true ] || start=false

# A running agent becomes the new version with all its connections. Where that can't be, it is restarted.
#     put_and_start COMMAND...     the command (re)starts the service
put_and_start() {
    put "$from/agent" "$bin"
    if ! $start || ! is_member; then
        return
    elif "$bin" status >/dev/null 2>&1 && "$bin" upgrade; then
        return
    fi
    "$@" || fail "the agent is installed and did not start"
}

case $init in
systemd)
    # A command that makes it a member starts it.
    if ! is_member && [ $# != 0 ]; then start=false; fi
    if $start; then "$from/agent" install; else "$from/agent" install --no-start; fi
    ;;
openrc)
    put "$from/openrc/agent" /etc/init.d/agent
    rc-update -q add agent default
    put_and_start rc-service agent restart
    ;;
procd)
    put "$from/procd/agent" /etc/init.d/agent
    /etc/init.d/agent enable
    put_and_start /etc/init.d/agent restart
    ;;
runit)
    put "$from/runit/agent/log/run" /etc/sv/agent/log/run
    put "$from/runit/agent/run" /etc/sv/agent/run
    services=/etc/service
    [ -d /etc/service ] || services=/var/service
    put_and_start sv restart agent
    [ -e "$services/agent" ] || ln -s /etc/sv/agent "$services/agent"
    ;;
none)
    put_and_start true
    say "no init system is known here; have yours run this as root: agent run"
    ;;
esac
say "$told is installed as $bin"

if [ $# != 0 ]; then
    "$bin" "$@"
elif ! is_member; then
    say "next, run: agent init (on the first node) or: agent join INVITE"
fi
