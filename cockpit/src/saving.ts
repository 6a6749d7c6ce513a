// How the page's drop-in is changed: the daemon checks it before anything is written, a file that was changed meanwhile
// is not overwritten, and what the daemon does not take up is taken back.
import { CallError, call } from "./varlink";
import { NAME } from "./dropin";
import type { Checked, Opened, Problem, Reloaded } from "./types";

const _ = cockpit.gettext;

export interface Written { text: string | null; tag: string }

export function pathOf(main: string): string {
    return `${main.replace(/\.toml$/, "")}.d/${NAME}`;
}

export function read(main: string): Promise<Written> {
    return cockpit.file(pathOf(main), { superuser: "try" }).read().then((text, tag) => ({ text, tag }));
}

// What is wrong with a text, and what conflicts with it that does not conflict with what is there now.
export async function check(text: string | null): Promise<Checked> {
    const checked = await call<Checked>("Check", { drop_in: NAME, text });
    if (checked.problems.length || !checked.warnings.length)
        return checked;
    const before = await call<Checked>("Check");
    return { ...checked, warnings: checked.warnings.filter(warning => !before.warnings.includes(warning)) };
}

// `now` is what the file holds since, where that is known.
export class NotSaved extends Error {
    constructor(text: string, readonly problems: Problem[] = [], readonly now: Written | null = null) {
        super(text);
    }
}

// Writes the text if the file is still as `before`, and has it put in force. Gives why it is not in force yet, or nothing.
export async function save(main: string, before: Written, text: string | null): Promise<string> {
    const file = cockpit.file(pathOf(main), { superuser: "require" });
    const tag = await write(file, main, before, text);
    try {
        return later((await call<Reloaded>("Reload")).failure);
    } catch (error) {
        if (!(error instanceof CallError))
            throw error;
        // It was checked, so that the daemon has taken it, or does when it reads it next.
        if (!error.isAnswer)
            return cockpit.format(_("The daemon did not say whether it has taken it ($0); it does when it is started or reloaded next."), error.message);
        throw await takenBack(file, before.text, tag, error);
    }
}

async function write(file: CockpitFile, main: string, before: Written, text: string | null): Promise<string> {
    try {
        if (before.text === null)
            await cockpit.spawn(["mkdir", "-p", "-m", "0755", pathOf(main).replace(/\/[^/]*$/, "")], { superuser: "require", err: "message" });
        return await file.replace(text, before.tag);
    } catch (error) {
        if ((error as { problem?: string }).problem === "change-conflict")
            throw new NotSaved(_("The file was changed meanwhile, so nothing was written. Close this dialog, and try again."));
        throw new NotSaved(saidBy(error));
    }
}

// Writes what was there before, unless the file was changed again, and says so.
async function takenBack(file: CockpitFile, text: string | null, tag: string, refusal: CallError): Promise<NotSaved> {
    try {
        const now = { text, tag: await file.replace(text, tag) };
        return new NotSaved(cockpit.format(_("The daemon did not take it, so the file is as before: $0"), refusal.message), problemsOf(refusal), now);
    } catch (error) {
        const texts = [refusal.message, saidBy(error)];
        return new NotSaved(cockpit.format(_("The daemon did not take it, and the file could not be put back: $0"), texts.join("; ")), problemsOf(refusal));
    }
}

export interface Wish extends Record<string, unknown> { domain: string; ports: string[]; sources: string[]; seconds: number }

// Opens ports for a while. Gives why they are not open yet, or nothing.
export async function openPorts(wish: Wish): Promise<string> {
    return later((await call<Opened>("Open", wish)).failure);
}

function later(failure: string | null): string {
    return failure ? cockpit.format(_("The kernel has not taken it yet, and is asked again: $0"), failure) : "";
}

function saidBy(error: unknown): string {
    const { problem, message } = error as { problem?: string; message?: string };
    return message ?? problem ?? String(error);
}

function problemsOf(error: CallError): Problem[] {
    return Array.isArray(error.parameters["problems"]) ? error.parameters["problems"] as Problem[] : [];
}
