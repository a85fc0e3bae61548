/**
 * What runs on a new machine: constant text, so that it can be read, checked and tested as it is. What differs from
 * machine to machine comes from files beside it (cloud-init.ts).
 */

/** Everything of the set-up; gone when it has succeeded. */
export const SETUP_DIRECTORY = '/var/lib/katafract-setup';

/** What a node needs besides the agent, and what keeps its system whole. */
export const BASE_PACKAGES = [
  'ca-certificates',
  'iproute2',
  'iptables',
  'unattended-upgrades',
  'wireguard-tools',
] as const;

/**
 * Every step may be repeated: whatever fails ends the run, and systemd begins anew. The token is read by the agent from
 * its file: it is in no argument, no variable and no output.
 */
export const SETUP_SCRIPT = `#!/bin/sh
# Takes this machine to an enrolled exit node. Run by katafract-setup.service until it has succeeded once.
set -eu
export DEBIAN_FRONTEND=noninteractive

apt() {
  apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Options::=--force-confold "$@"
}

# What the operator wants done first, such as joining the mesh: the rest may only be reachable through it.
bootstrap() {
  [ -e bootstrap ] && [ ! -e bootstrap.done ] || return 0
  ./bootstrap </dev/null
  touch bootstrap.done
}

install_packages() {
  # This kernel may bring no WireGuard.
  wireguard=
  [ -d /sys/module/wireguard ] || modprobe -q wireguard 2>/dev/null || wireguard=wireguard-go
  agent=katafract-agent
  if [ -n "\${KATAFRACT_DEB_URL:-}" ]; then
    agent=./katafract-agent.deb
    rm -f "$agent"
    /usr/lib/apt/apt-helper download-file "$KATAFRACT_DEB_URL" "$agent" "SHA256:$KATAFRACT_DEB_SHA256"
    echo "$KATAFRACT_DEB_SHA256  $agent" | sha256sum --check --strict --quiet
  else
    install -D -m 0644 apt.asc /etc/apt/keyrings/katafract.asc
    install -D -m 0644 apt.sources /etc/apt/sources.list.d/katafract.sources
  fi
  apt update
  apt install --no-install-recommends ${BASE_PACKAGES.join(' ')} $wireguard "$agent"
}

# Nobody is to log in here by a password: the provider may have set one, and mailed it.
lock_passwords() {
  passwd --quiet --lock root
}

# The machine's own address, where it was not told another: the one that its default route leaves from.
endpoint_host() {
  if [ -n "\${KATAFRACT_ENDPOINT_HOST:-}" ]; then
    echo "$KATAFRACT_ENDPOINT_HOST"
  else
    ip -4 -o route get 192.0.2.1 | sed -n 's/.* src \\([0-9.]*\\).*/\\1/p'
  fi
}

enroll() {
  [ -e /var/lib/katafract-agent/node.json ] && return 0
  host=$(endpoint_host)
  katafract-agent enroll --controller "$KATAFRACT_CONTROLLER" --token-file ${SETUP_DIRECTORY}/token \\
    --endpoint "$host:$KATAFRACT_ENDPOINT_PORT"
}

# The user data held the token and whatever the bootstrap script holds; cloud-init keeps copies of it, and would fetch
# it again at the next boot. This machine is never set up anew (it is replaced), so cloud-init is done here.
forget() {
  if command -v cloud-init >/dev/null; then
    timeout 600 cloud-init status --wait >/dev/null 2>&1 || true
    touch /etc/cloud/cloud-init.disabled
    cloud-init clean --seed
    rm -rf /run/cloud-init/instance-data*.json /run/cloud-init/combined-cloud-config.json
  fi
  systemctl disable katafract-setup.service
  rm -rf /etc/systemd/system/katafract-setup.service ${SETUP_DIRECTORY}
}

main() {
  cd ${SETUP_DIRECTORY}
  bootstrap
  lock_passwords
  install_packages
  enroll
  rm -f token
  systemctl enable katafract-agent.service
  systemctl restart katafract-agent.service
  forget
  echo "this machine is a node now"
  exit 0
}

main
`;

/** Tries for some ten minutes at least, and stays \`failed\`; what it says is also on the provider's console. */
export const SETUP_UNIT = `[Unit]
Description=Katafract: take this machine to an enrolled node
ConditionPathExists=${SETUP_DIRECTORY}/setup
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=6h
StartLimitBurst=30

[Service]
Type=oneshot
EnvironmentFile=${SETUP_DIRECTORY}/environment
ExecStart=${SETUP_DIRECTORY}/setup
Restart=on-failure
RestartSec=20s
TimeoutStartSec=30min
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
`;
