// Words and figures as people read them, in the language of the session.
import type { Opening } from "./types";

const _ = cockpit.gettext;
const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function stateText(state: Opening["state"]): string {
    return { active: _("Active"), waiting: _("Waiting"), refused: _("Refused") }[state];
}

export function moment(at: string): string {
    return new Date(at).toLocaleString(cockpit.language.replace("_", "-"), { dateStyle: "medium", timeStyle: "medium" });
}

// By the daemon's clocks: that of the browser may be another.
export function remaining(seconds: number): string {
    if (seconds < 120)
        return cockpit.format(cockpit.ngettext("$0 second left", "$0 seconds left", seconds), seconds);
    const minutes = Math.floor(seconds / 60);
    if (minutes < 60)
        return cockpit.format(cockpit.ngettext("$0 minute left", "$0 minutes left", minutes), minutes);
    const hours = Math.floor(minutes / 60);
    if (hours < 48)
        return cockpit.format(_("$0 h $1 min left"), hours, minutes % 60);
    return cockpit.format(_("$0 days left"), Math.floor(hours / 24));
}

// Cockpit 287 writes no unit where that is one byte.
export function sizeText(bytes: number): string {
    const power = bytes < 1000 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log10(bytes) / 3));
    const figure = new Intl.NumberFormat(cockpit.language.replace("_", "-"), { maximumSignificantDigits: 3 }).format(bytes / 1000 ** power);
    return `${figure} ${UNITS[power]}`;
}

// Text of others in which nothing is hidden: what could not be seen, or turns the direction of writing, is escaped.
export function shown(text: string): string {
    return text.replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\u2028\u2029]/gu, letter => `\\u{${letter.codePointAt(0)?.toString(16)}}`);
}

// What `explain` is asked of an entry, or nothing where it has no port that one could connect to. Where that could be any,
// it is that of web servers.
export function connectionTo({ kind, address, ports, protocol, family, subnet }: Opening): string {
    if (kind === "route")
        return subnet ? `${firstOf(subnet)}:443` : "";
    if (kind === "nat" && !address)
        return "";
    const host = !address ? "" : family === 6 ? `[${address}]` : address;
    const port = kind === "nat" ? "443" : (ports ?? "").split("-")[0] ?? "";
    return port ? `${host}:${port}${protocol && protocol !== "tcp" ? `/${protocol}` : ""}` : "";
}

// The first address of a network that a guest can have.
function firstOf(subnet: string): string {
    const [address = "", bits = ""] = subnet.split("/");
    if (address.includes(":"))
        return `[${address.endsWith("::") && bits !== "128" ? `${address}1` : address}]`;
    const last = Number(address.split(".")[3]) + (Number(bits) < 31 ? 1 : 0);
    return address.replace(/\d+$/, String(last));
}
