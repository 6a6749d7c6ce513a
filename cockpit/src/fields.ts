// What the form shows of an entry, and the entry that it makes.
import { pathOf } from "./saving";
import type { Entry, Keys, Kind } from "./dropin";
import type { Opening } from "./types";

export function isOwn(opening: Opening, main: string): boolean {
    return opening.file === pathOf(main);
}

export interface Port { host: string; guest: string; protocol: string }

// What the form shows. Keys of the entry that it does not show are kept in `others`.
export interface Fields {
    kind: Kind; domain: string; network: string; ports: Port[]; listen: string; sources: string; masquerade: boolean;
    address: string; interface: string; public: string; assign: string; addresses: string; proxy: string; others: Keys;
}

export const EMPTY: Fields = {
    kind: "forward", domain: "", network: "", ports: [{ host: "", guest: "", protocol: "tcp" }], listen: "", sources: "",
    masquerade: false, address: "", interface: "", public: "", assign: "", addresses: "", proxy: "", others: {},
};
export const SHOWN: Record<Kind, string[]> = {
    forward: ["domain", "ports", "listen", "sources", "interface", "address", "masquerade"],
    nat: ["domain", "public", "assign", "address"],
    route: ["network", "addresses", "proxy"],
};

// What of it ports have that are open for a while.
export function forAWhile({ domain, ports, sources }: Fields): Fields {
    return { ...EMPTY, domain, ports, sources };
}

function list(value: unknown): string[] {
    return value === undefined ? [] : Array.isArray(value) ? value.map(String) : [String(value)];
}

export function fieldsOf(entry: Entry): Fields | null {
    if (!entry.keys || !(entry.kind in SHOWN))
        return null;
    const kind = entry.kind as Kind;
    const { domain = "", network = "", assign = "", proxy = "", masquerade = false, ...rest } = entry.keys;
    const others = Object.fromEntries(Object.entries(rest).filter(([key]) => !SHOWN[kind].includes(key)));
    if (kind !== "route" && network)
        others["network"] = network;
    return {
        kind, domain: String(domain), network: kind === "route" ? String(network) : "", ports: list(rest["ports"]).map(portFrom),
        listen: list(rest["listen"]).join(", "), sources: list(rest["sources"]).join(", "), masquerade: masquerade === true,
        address: list(rest["address"]).join(", "), interface: String(rest["interface"] ?? ""),
        public: list(rest["public"]).join(", "), assign: String(assign), addresses: list(rest["addresses"]).join(", "), proxy: String(proxy), others,
    };
}

// "198.51.100.7:8000:80/udp" is the port 8000 of that address, and 80 of the guest.
function portFrom(text: string): Port {
    const [ports = "", protocol = "tcp"] = text.split("/");
    const match = /^((?:\[[^\]]*\]|\d+\.\d+\.\d+\.\d+):)?([^:]*)(?::(.*))?$/.exec(ports);
    return match ? { host: `${match[1] ?? ""}${match[2]}`, guest: match[3] ?? "", protocol } : { host: ports, guest: "", protocol };
}

export function portText({ host, guest, protocol }: Port): string {
    return `${host.trim()}${guest.trim() && guest.trim() !== host.trim() ? `:${guest.trim()}` : ""}${protocol === "tcp" ? "" : `/${protocol}`}`;
}

export function words(text: string): string[] {
    return text.split(/[\s,]+/).filter(Boolean);
}

export function keysOf(fields: Fields): Keys {
    const keys: Keys = {};
    const put = (key: string, value: string | string[] | boolean) => {
        if (typeof value === "boolean" ? value : value.length)
            keys[key] = value;
    };
    if (fields.kind === "route") {
        keys["network"] = fields.network;
        keys["addresses"] = words(fields.addresses);
        put("proxy", fields.proxy);
    } else {
        keys["domain"] = fields.domain.trim();
        if (fields.kind === "nat") {
            keys["public"] = fields.public.trim();
            put("assign", fields.assign);
        } else {
            keys["ports"] = fields.ports.map(portText);
            put("listen", words(fields.listen));
            put("sources", words(fields.sources));
            put("interface", fields.interface.trim());
            put("masquerade", fields.masquerade);
        }
        put("address", fields.address.trim());
    }
    return { ...keys, ...fields.others };
}
