// Varlink over a channel of Cockpit's: JSON objects with a NUL byte after each. The channel is binary, since the bridge
// of Cockpit 287 turns NUL into U+FFFD in text.

const SOCKET = "/run/kvm-portfwd/control.sock";
const INTERFACE = "kvm.portfwd.Manager";

export class CallError extends Error {
    // `kind` is the short name of the error, or Cockpit's word for why the channel closed.
    constructor(readonly kind: string, readonly parameters: Record<string, unknown> = {}) {
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
    let rest = new Uint8Array(0);
    channel.addEventListener("message", (_event, data) => {
        const all = new Uint8Array(rest.length + data.length);
        all.set(rest);
        all.set(data, rest.length);
        let start = 0;
        for (let end = all.indexOf(0, rest.length); end >= 0; end = all.indexOf(0, start)) {
            const text = new TextDecoder().decode(all.subarray(start, end));
            start = end + 1;
            heard(JSON.parse(text) as Reply);
        }
        rest = all.slice(start);
    });
    channel.addEventListener("close", (_event, options) => ended(options.problem ?? "disconnected"));
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
                reject(new CallError(problem));
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
