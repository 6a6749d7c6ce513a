// Varlink over a channel of Cockpit's: JSON objects with a NUL byte after each. The channel is binary, since the bridge
// of Cockpit 287 turns NUL into U+FFFD in text.

const SOCKET = "/run/kvm-portfwd/control.sock";
const INTERFACE = "kvm.portfwd.Manager";

// How the bridge of Cockpit 337 says EACCES, in every language; its word for the problem is "terminated".
const IS_FORBIDDEN = /^\[Errno 13\]/;

export class CallError extends Error {
    // `kind` is the short name of the error, or, where that is no answer of the daemon's, Cockpit's word for why the channel
    // closed: what was asked for may have been done then.
    constructor(readonly kind: string, readonly parameters: Record<string, unknown> = {}, readonly isAnswer = true) {
        super(sentence(kind, parameters));
    }
}

function sentence(kind: string, parameters: Record<string, unknown>): string {
    const reasons = parameters["reasons"];
    return Array.isArray(reasons) ? reasons.join("; ") : kind;
}

interface Reply {
    parameters?: unknown;
    error?: string;
    continues?: boolean;
}

interface Conversation {
    close(): void;
}

function open(method: string, parameters: unknown, more: boolean, heard: (reply: Reply) => void, ended: (problem: string) => void): Conversation {
    const channel = cockpit.channel({ payload: "stream", unix: SOCKET, binary: true, superuser: "try" });
    // The status of many forwards comes in a hundred pieces.
    let decoder = new TextDecoder();
    let pieces: string[] = [];
    channel.addEventListener("message", (_event, data) => {
        let start = 0;
        for (let end = data.indexOf(0); end >= 0; end = data.indexOf(0, start)) {
            const text = pieces.join("") + decoder.decode(data.subarray(start, end));
            start = end + 1;
            decoder = new TextDecoder();
            pieces = [];
            heard(JSON.parse(text) as Reply);
        }
        pieces.push(decoder.decode(data.subarray(start), { stream: true }));
    });
    channel.addEventListener("close", (_event, { problem = "disconnected", message = "" }) => ended(IS_FORBIDDEN.test(message) ? "access-denied" : problem));
    const call = JSON.stringify({ method: `${INTERFACE}.${method}`, parameters, more });
    channel.send(new TextEncoder().encode(`${call}\0`));
    return channel;
}

export function call<T>(method: string, parameters: Record<string, unknown> = {}): Promise<T> {
    return new Promise((resolve, reject) => {
        let isAnswered = false;
        const channel = open(method, parameters, false, reply => {
            isAnswered = true;
            if (reply.error)
                reject(new CallError(reply.error.split(".").pop() ?? "", (reply.parameters ?? {}) as Record<string, unknown>));
            else
                resolve(reply.parameters as T);
            channel.close();
        }, problem => {
            if (!isAnswered)
                reject(new CallError(problem, {}, false));
        });
    });
}

// Calls `changed` now, and whenever the status would say something else; `ended` when the daemon has gone.
export function watch(changed: () => void, ended: (problem: string) => void): Conversation {
    let isOpen = true;
    const channel = open("Watch", {}, true, reply => {
        if (!reply.error)
            changed();
    }, problem => {
        if (isOpen)
            ended(problem);
    });
    return {
        close() {
            isOpen = false;
            channel.close();
        },
    };
}
