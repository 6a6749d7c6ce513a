#!/bin/sh
# Run as root on an emulated machine, with the package and its own test for distributions beside it: has the service do
# what it can do, on nftables and on iptables-legacy, and says what AppArmor refused it meanwhile.
# shellcheck disable=SC1091,SC2154
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root SYSTEMD_COLORS=0 SYSTEMD_URLIFY=0 AUTOPKGTEST_TMP=/tmp/autopkgtest
mkdir "$AUTOPKGTEST_TMP"
# What defines a guest, and a client in a network namespace of its own; not what is done with them.
sed '/^trap clean_up EXIT/,$d' /srv/guest >/srv/functions
. /srv/functions
set +e

# did WHAT COMMAND...: says whether a command succeeds within half a minute.
did() {
    what=$1
    shift
    for _ in $(seq 60); do
        if "$@" >/srv/last 2>&1; then
            echo "did: $what"
            return
        fi
        sleep 0.5
    done
    echo "did not: $what: $(tail -n 20 /srv/last)"
}

asks() {
    ip netns exec "$name" curl --silent --fail --max-time 3 "$1" | grep -q "^hello "
}

asks_here() {
    curl --silent --fail --max-time 3 "$1" | grep -q "${2:-^hello }"
}

refuses() {
    ! asks "$1"
}

label_of() {
    cat "/proc/$1/attr/current"
}

is_confined() {
    for pid in $(systemctl show --property MainPID --value kvm-portfwd.service) $(pgrep -f fwdaemon.legacy); do
        [ "$(label_of "$pid")" = "kvm-portfwd (enforce)" ] || return 1
    done
}

# Asks the control socket what it has a process of its own for.
questions() {
    python3 -I - <<'ASK'
import json, socket
for method, parameters in ("Plan", {}), ("Inventory", {}), ("Check", {"text": ""}):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect("/run/kvm-portfwd/control.sock")
        client.sendall(json.dumps({"method": f"kvm.portfwd.Manager.{method}", "parameters": parameters}).encode() + b"\0")
        answer = b""
        while not answer.endswith(b"\0"):
            answer += client.recv(65536)
    assert "error" not in json.loads(answer[:-1]), (method, answer)
ASK
}

dpkg --force-confold --install /srv/kvm-portfwd.deb >/dev/null
mkdir -p /var/lib/prometheus/node-exporter /srv/lists
echo 203.0.113.128/25 >/srv/lists/denied.txt
printf 'secret\n' >/etc/portfwd.etcd-password
chmod 600 /etc/portfwd.etcd-password
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=lab -keyout /dev/null \
    -out /etc/ssl/etcd-ca.pem 2>/dev/null
build_root
build_client
ip address add 2001:db8::1/64 dev "$name" nodad
define_guest >/dev/null
cat >/etc/portfwd.toml <<'CONFIG'
[daemon]
libvirt = ["lxc:///system", "qemu:///system"]
localhost = true
deny = ["set:denied", "set:banned"]
auto_ports = "20000-20009"
keep_guests_online = true
[metrics]
textfile = "/var/lib/prometheus/node-exporter/kvm_portfwd.prom"
listen = "127.0.0.1:9750"
[fleet]
etcd = ["https://192.0.2.42:2379", "https://etcd.example:2379"]
ca = "/etc/ssl/etcd-ca.pem"
user = "host"
password_file = "/etc/portfwd.etcd-password"
[[set]]
name = "denied"
file = "/srv/lists/denied.txt"
[[set]]
name = "banned"
external = true
CONFIG
cat >/etc/portfwd.d/guest.toml <<CONFIG
[[forward]]
domain = "$name"
ports = ["8041:80", "auto:22", "5300:53/udp"]
log = true
rate = "100/second"
max_open = 100
[[nat]]
domain = "$name"
public = "192.0.2.43"
assign = "$name"
[[route]]
network = "$name"
addresses = ["203.0.113.64/29", "2001:db8:64::/64"]
proxy = "$name"
CONFIG
virsh --quiet --connect lxc:///system start "$name"

for side in nft legacy; do
    for program in iptables ip6tables; do
        update-alternatives --quiet --set "$program" "/usr/sbin/$program-$side"
    done
    systemctl restart libvirtd.service
    systemctl restart kvm-portfwd.service
    did "$side: a forward" asks "$page"
    did "$side: confined" is_confined
    did "$side: a public address" asks http://192.0.2.43/
    # The rest is the same program whatever the rules are in, and takes long in an emulator.
    if [ "$side" = nft ]; then
        did "nft: on loopback" asks_here http://127.0.0.1:8041/
        did "nft: a file of metrics" test -s /var/lib/prometheus/node-exporter/kvm_portfwd.prom
        did "nft: metrics are served" asks_here http://127.0.0.1:9750/metrics kvm_portfwd_build_info
        did "nft: a status" kvm-portfwd status --json
        did "nft: questions" questions
        did "nft: opened for a while" kvm-portfwd open "$name" 9041:80 --for 1h
        did "nft: reached there" asks http://192.0.2.41:9041/
        did "nft: closed" kvm-portfwd close "$name" 9041:80
        did "nft: another configuration" kvm-portfwd reload --confirm 60s
        did "nft: confirmed" kvm-portfwd confirm
        echo 192.0.2.42 >>/srv/lists/denied.txt
        did "nft: denied by a file" refuses "$page"
        sed -i '$d' /srv/lists/denied.txt
        did "nft: let in again" asks "$page"
        nft delete table ip kvm_portfwd
    else
        iptables-legacy --table nat --flush
    fi
    did "$side: healed" asks "$page"
    systemctl kill --signal=KILL kvm-portfwd.service
    did "$side: started again" kvm-portfwd status --json
    did "$side: a forward after that" asks "$page"
done
systemctl stop kvm-portfwd.service
did "stopped" kvm-portfwd flush
did "a secret is refused" sh -c '! aa-exec --profile=kvm-portfwd -- /usr/bin/python3 -c "open(\"/etc/shadow\")"'
dmesg | sed -n 's/.*apparmor="DENIED"/refused:/p' | grep 'profile="kvm-portfwd"' | grep -v 'name="/etc/shadow"'
journalctl --no-pager --output=cat --unit=kvm-portfwd.service | sed 's/^/journal: /'
echo "over"
