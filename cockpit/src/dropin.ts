// The page's own drop-in, as text: its entries, and what a form makes of one. What it does not change stays as it is,
// byte for byte, comments too.

export const NAME = "cockpit.toml";
export type Kind = "forward" | "nat" | "route";
type Value = string | number | boolean | string[];
export type Keys = Record<string, Value>;

// An entry of the file: lines count from 1, and `end` is that after its last. Without `keys` it was written by hand in a
// way that the form cannot show.
export interface Entry { kind: string; start: number; end: number; keys: Keys | null }

const HEADER = /^\s*\[\[\s*(\w+)\s*\]\]\s*(#.*)?$/;

export function entries(text: string): Entry[] {
    const lines = text.split("\n");
    const starts = lines.flatMap((line, index) => HEADER.test(line) ? [index] : []);
    return starts.map((start, index) => {
        const next = starts[index + 1] ?? lines.length;
        let end = next;
        // What stands above the next entry belongs to that.
        while (end > start + 1 && /^\s*(#.*)?$/.test(lines[end - 1] ?? ""))
            end--;
        return { kind: HEADER.exec(lines[start] ?? "")?.[1] ?? "", start: start + 1, end: end + 1, keys: read(lines.slice(start + 1, end)) };
    });
}

// Finds the entry that begins at or stands around a line, if it is still of that kind and about that guest or network:
// the file may have been changed since the daemon read it. A name that is no plain one, a pattern or UUID, is let pass.
export function entryAt(text: string | null, line: number | null, kind: string, owner: string): Entry | null {
    const found = entries(text ?? "").find(each => line !== null && each.start <= line && line < each.end);
    if (!found || found.kind !== kind)
        return null;
    const name = found.keys?.[kind === "route" ? "network" : "domain"];
    return typeof name !== "string" || name === owner || /[*?[]|^[0-9a-f-]{36}$/i.test(name) ? found : null;
}

// Reads keys whose values are JSON too, as the page writes them; null where there is more.
function read(lines: string[]): Keys | null {
    const keys: Keys = {};
    for (let index = 0; index < lines.length; index++) {
        const line = lines[index] ?? "";
        if (!line.trim())
            continue;
        const match = /^\s*(\w+)\s*=\s*(.*)$/.exec(line);
        if (!match)
            return null;
        let written = match[2] ?? "";
        while (written.startsWith("[") && !written.trimEnd().endsWith("]") && index + 1 < lines.length)
            written += lines[++index] ?? "";
        const value = json(written);
        if (value === undefined)
            return null;
        keys[match[1] ?? ""] = value;
    }
    return keys;
}

function json(written: string): Value | undefined {
    let value: unknown;
    try {
        value = JSON.parse(written.replace(/,\s*\]\s*$/, "]"));
    } catch {
        return undefined;
    }
    if (Array.isArray(value))
        return value.every(item => typeof item === "string") ? value as string[] : undefined;
    return ["string", "number", "boolean"].includes(typeof value) ? value as Value : undefined;
}

// Gives the lines of an entry.
export function linesOf(text: string | null, entry: Entry): string[] {
    return (text ?? "").split("\n").slice(entry.start - 1, entry.end - 1);
}

// Writes an entry: each key on a line of its own, and each item of an array, so that a problem's line leads to its field.
export function written(kind: Kind, keys: Keys): string[] {
    const lines = [`[[${kind}]]`];
    for (const [key, value] of Object.entries(keys)) {
        if (Array.isArray(value))
            lines.push(`${key} = [`, ...value.map(item => `    ${quoted(item)},`), "]");
        else
            lines.push(`${key} = ${typeof value === "string" ? quoted(value) : value}`);
    }
    return lines;
}

// TOML's basic strings are JSON's, but for the character DEL.
function quoted(text: string): string {
    return JSON.stringify(text).replace(/\x7f/g, "\\u007f");
}

const HEAD = "# Written by the page \"Port forwards\" of Cockpit, which keeps what is added here by hand.\n";

// Gives the text with an entry in the place of another, at the end, or removed; and at which line it begins. The text is
// null where nothing is left.
export function changed(text: string | null, old: Entry | null, lines: string[] | null): { text: string | null; line: number } {
    const before = (text ?? HEAD).split("\n");
    if (old) {
        before.splice(old.start - 1, old.end - old.start, ...lines ?? []);
        const rest = before.join("\n").replace(/\n{3,}/g, "\n\n");
        return { text: lines || entries(rest).length || hasMore(rest) ? (lines ? before.join("\n") : rest) : null, line: old.start };
    }
    while (before.length && !before[before.length - 1]?.trim())
        before.pop();
    const start = before.length + 2;
    return { text: [...before, "", ...lines ?? [], ""].join("\n"), line: start };
}

function hasMore(text: string): boolean {
    return text.replace(HEAD, "").trim() !== "";
}

// Names the field that a line of an entry is about: `ports.1` is the second item of the array `ports`.
export function fieldAt(lines: string[], index: number): string | null {
    for (let at = index; at > 0; at--) {
        const match = /^(\w+) = (\[?)$|^(\w+) = /.exec(lines[at] ?? "");
        if (match)
            return at === index ? match[1] ?? match[3] ?? null : `${match[1]}.${index - at - 1}`;
    }
    return null;
}
