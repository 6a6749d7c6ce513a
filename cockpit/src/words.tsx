// What the daemon says, which is English: in other languages the page says the same by the kinds that the daemon gives
// with its sentences. A sentence that has more than its kind, such as an address, stands below that as it is.
import type { ReactNode } from "react";
import { shown } from "./text";
import type { Problem } from "./types";
import { CallError } from "./varlink";

const _ = cockpit.gettext;
export const isEnglish = cockpit.language.startsWith("en");

// A sentence of the daemon's.
export function English({ text }: { text: string }) {
    return <span lang="en"><Sentence text={text} /></span>;
}

// A sentence in which commands stand in backquotes.
export function Sentence({ text }: { text: string }) {
    return <>{shown(text).split("`").map((part, index) => index % 2 ? <code key={index}>{part}</code> : part)}</>;
}

// What is wrong at one place of the configuration, and where that is.
export function AtPlace({ problem: { file, line, text } }: { problem: Problem }) {
    return <span className="break">{shown(file)}:{line}: <English text={text} /></span>;
}

// Why something failed: in the daemon's words, in Cockpit's, or in ours.
export function failureText(error: unknown): ReactNode {
    const { message } = error as { message?: string };
    return error instanceof CallError ? <English text={error.message} /> : shown(message ?? String(error));
}

// Why something waits or is refused.
export function Reason({ reason, kinds }: { reason: string; kinds: string[] }) {
    const said = isEnglish ? [] : kinds.map(kind => WHOLE[kind] ?? IN_PART[kind]).filter(Boolean);
    if (!said.length)
        return <div className="reason"><English text={reason} /></div>;
    return (
        <div className="reason">
            {said.join("; ")}
            {(said.length < kinds.length || kinds.some(kind => !WHOLE[kind])) && <div className="subtle"><English text={reason} /></div>}
        </div>
    );
}

// What the daemon is late with.
export function lateText(job: string, about: string): string {
    return cockpit.format(LATE[job] ?? job, shown(about));
}

// What is wrong with a connection, and what helps; empty where the daemon's sentence says it best.
export function causeText(cause: string | null): string {
    return isEnglish || !cause ? "" : CAUSES[cause] ?? "";
}

export function stepText(step: string): string {
    return isEnglish ? step : STEPS[step] ?? step;
}

// Kinds that say all there is to say.
const WHOLE: Record<string, string> = {
    "no-answer": _("libvirt has not answered yet"),
    "no-such-domain": _("libvirt knows no such guest"),
    "domain-not-running": _("the guest is not running"),
    "arriving": _("the guest is arriving from another host"),
    "arrived": _("the guest has arrived, and is paused"),
    "handed-over": _("the guest was handed over to another host"),
    "no-bridge": _("the network has no bridge to route to"),
    "bridge-name": _("the name of its bridge fits in no rule"),
    "user-mode": _("its network is user-mode, which this host cannot reach: give it an interface on a libvirt network"),
    "no-address": _("its address is not known yet: no lease, guest agent or neighbour names one"),
    "sockets-unknown": _("the kernel does not report which ports processes of this host have"),
    "no-running-domain": _("no running guest has such a name"),
};

// Kinds of sentences that name an address, a port, a guest or a place besides.
const IN_PART: Record<string, string> = {
    "no-such-network": _("there is no such network"),
    "network-not-active": _("the network is not active"),
    "no-interface": _("the guest has no such network interface"),
    "several-interfaces": _("the guest has several network interfaces: choose one"),
    "no-fitting-interface": _("no interface of the guest can have this address"),
    "macvtap": _("the guest is on macvtap, where this host does not reach it: connect to the guest itself, or give it an interface on a libvirt network"),
    "no-subnet": _("the network has no addresses of this family"),
    "subnets-unknown": _("which addresses belong to its network is not known: enter the address of the guest"),
    "address-of-host": _("the address belongs to this host"),
    "address-of-subnet": _("the address is that of the network itself"),
    "address-special": _("no guest can be reached at this address"),
    "address-outside": _("the address is outside the network of the guest"),
    "address-of-another": _("the address belongs to another guest"),
    "address-contested": _("several guests claim the address"),
    "held-elsewhere": _("another machine has the address now"),
    "claimed": _("it is taken already"),
    "assigned": _("it is an automatic port of a guest"),
    "no-free-port": _("none of the automatic ports is free"),
    "not-allowed": _("no [[allow]] covers what the guest asks for"),
    "not-own-address": _("the guest is not known to have this address"),
    "misread": _("what the guest asks for is written wrong"),
    "no-claim": _("etcd has not given the address to this host"),
    "claimed-by-host": _("another host has the address"),
    "not-removed": _("it is to be removed, which has not succeeded yet"),
};

const CAUSES: Record<string, string> = {
    "configuration-refused": _("The configuration is wrong: correct it, and reload."),
    "libvirt-unreachable": _("libvirt does not answer: start it."),
    "not-our-address": _("This host does not have the address, so nothing for it arrives here."),
    "held-elsewhere": _("Another machine has the address now."),
    "only-from-host": _("Only this host itself reaches this address: connect to another one."),
    "unclaimed": _("No entry is for this port: add one."),
    "not-allowed": _("The guest asks for it itself, and no [[allow]] covers that: write one where it is to have it."),
    "claimed": _("It is taken already: choose another port or address, or free this one."),
    "localhost-off": _("Forwards do not answer on this loopback address."),
    "source-refused": _("The entry is for other clients: add this one to those who may connect."),
    "wrong-interface": _("The entry is only for what comes in by another interface."),
    "no-such-domain": _("libvirt knows no such guest: correct its name."),
    "domain-not-running": _("The guest is not running: start it."),
    "no-such-network": _("There is no such network: correct its name."),
    "network-not-active": _("The network is not active: start it."),
    "wrong-family": _("The guest has no address of this family, IPv4 or IPv6."),
    "no-address": _("The address of the guest is not known: let it take one by DHCP, or enter it."),
    "address-refused": _("The address of the guest cannot be right: correct it."),
    "not-reached": _("This host does not reach the guest by its network."),
    "unplugged": _("The guest is not plugged into its bridge: plug it in again."),
    "reverse-path": _("The reverse path filter drops packets of this client: its way back is another one."),
    "refused-early": _("A firewall drops it before it is forwarded: admit it there."),
    "untracked": _("A rule of another program keeps the connection from being tracked."),
    "taken": _("A rule of another program takes the connection: exempt it there."),
    "daemon-not-running": _("The rules are missing, and the daemon does not run: start it."),
    "not-loaded": _("The rules are missing, though the daemon runs: have it reload."),
    "bridge-down": _("The bridge of the guest is switched off: switch it on."),
    "route-astray": _("The route to the address leads elsewhere."),
    "forwarding-off": _("This host forwards nothing: switch forwarding on."),
    "confined": _("This host forwards to guests alone, as it forwarded nothing before."),
    "gate-shut": _("The rule that lets forwards through is missing in a chain."),
    "refused-on-purpose": _("It is refused on purpose, by address or list."),
    "refused": _("A firewall refuses it: admit it there."),
    "dockers-policy": _("Docker's policy refuses it: keep_guests_online = true lets guests through."),
    "hairpin-off": _("The bridge sends nothing back to where it came from: switch hairpin mode on."),
    "guest-refuses": _("Nothing listens on this port in the guest: start the service there."),
    "guest-silent": _("The guest does not answer on this port: have its firewall admit it."),
    "guest-unreachable": _("The guest is not there at its address: correct the address, or its network."),
    "no-way-back": _("The guest answers its own network only: give it a default route."),
    "answer-astray": _("The answers of the guest take another way: give it its default route through this host."),
};

const STEPS: Record<string, string> = {
    "address": _("address"),
    "admission": _("admission"),
    "answer": _("answer"),
    "configuration": _("configuration"),
    "daemon": _("daemon"),
    "domain": _("guest"),
    "entry": _("entry"),
    "forwarding": _("forwarding"),
    "guest": _("address of the guest"),
    "hairpin": _("hairpin mode"),
    "libvirt": "libvirt",
    "host socket": _("process of this host"),
    "network": _("network"),
    "plugged in": _("bridge"),
    "policy routing": _("policy routing"),
    "proxy": _("proxy"),
    "reverse path": _("reverse path"),
    "route": _("route"),
    "translation": _("translation"),
    "way back": _("way back"),
};

const LATE: Record<string, string> = {
    "agents": _("an answer of a guest's agent, asked through $0"),
    "answers": _("an answer to plan, check or explain"),
    "configuration": _("the reading of the configuration"),
    "conflicts": _("the look at rules and sockets of others"),
    "connections": _("the sweep of connections"),
    "counters": _("the counting of connections"),
    "external-sets": _("the writing of what external sets hold"),
    "groups": _("an answer of the group database"),
    "inventory": _("the kernel's answer about links, addresses and neighbours"),
    "last-good": _("the writing of the last good configuration"),
    "libvirt": _("an answer of libvirt at $0"),
    "log": _("the writing of log lines"),
    "loopback": _("a change of what answers on 127.0.0.1 and ::1"),
    "metrics": _("the making of metrics"),
    "probes": _("a search for silent guests"),
    "reconcile": _("a comparison with the kernel"),
    "sets": _("the reading of files of sets"),
    "status": _("the making of a status"),
    "systemd": _("what systemd is to be notified of"),
    "temporary": _("the writing of what is open for a while"),
};
