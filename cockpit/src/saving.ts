// How the page's drop-in is changed: the daemon checks it before anything is written, a file that was changed meanwhile
// is not overwritten, and what the daemon does not take up is taken back.
import { CallError, call } from "./varlink";
import { NAME } from "./dropin";
import type { Checked, Problem, Reloaded } from "./types";

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

export class NotSaved extends Error {
    constructor(text: string, readonly problems: Problem[] = []) {
        super(text);
    }
}

// Writes the text if the file is still as `before`, and has it put in force.
export async function save(main: string, before: Written, text: string | null): Promise<void> {
    const file = cockpit.file(pathOf(main), { superuser: "require" });
    let tag: string;
    try {
        if (before.text === null)
            await cockpit.spawn(["mkdir", "-p", "-m", "0755", pathOf(main).replace(/\/[^/]*$/, "")], { superuser: "require", err: "message" });
        tag = await file.replace(text, before.tag);
    } catch (error) {
        const { problem, message } = error as { problem?: string; message?: string };
        if (problem === "change-conflict")
            throw new NotSaved(_("The file was changed meanwhile, so nothing was written. Close this dialog, and try again."));
        throw new NotSaved(message ?? problem ?? String(error));
    }
    try {
        const { failure } = await call<Reloaded>("Reload");
        if (failure)
            throw new NotSaved(cockpit.format(_("It was written, and the kernel will take it later: $0"), failure));
    } catch (error) {
        if (!(error instanceof CallError))
            throw error;
        await file.replace(before.text, tag);
        throw new NotSaved(cockpit.format(_("The daemon did not take it, so the file is as before: $0"), error.message), problemsOf(error));
    }
}

function problemsOf(error: CallError): Problem[] {
    return Array.isArray(error.parameters["problems"]) ? error.parameters["problems"] as Problem[] : [];
}
