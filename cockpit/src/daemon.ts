// The daemon's status, live: asked for when the daemon says that something changed, and for figures every few seconds.
import { useEffect, useState } from "react";
import { CallError, call, watch } from "./varlink";
import type { Status } from "./types";

const FIGURES_MS = 5000;
const AGAIN_MS = 2000;

export interface Daemon {
    status: Status | null;
    // Cockpit's word for why there is no connection; empty where there is one, and before it is known.
    problem: string;
}

export function useDaemon(): Daemon {
    const [daemon, setDaemon] = useState<Daemon>({ status: null, problem: "" });
    useEffect(() => {
        let isThere = true;
        let isAsking = false;
        let isStale = false;
        let again: number | undefined;
        let watching: { close(): void } | null = null;

        // One at a time: while an answer is awaited, any number of changes lead to one more question.
        async function ask() {
            if (isAsking) {
                isStale = true;
                return;
            }
            isAsking = true;
            try {
                const status = await call<Status>("Status");
                if (isThere)
                    setDaemon({ status, problem: "" });
            } catch (error) {
                lost(error instanceof CallError ? error.kind : String(error));
            }
            isAsking = false;
            if (isStale && isThere) {
                isStale = false;
                void ask();
            }
        }

        function lost(problem: string) {
            if (!isThere)
                return;
            setDaemon({ status: null, problem });
            watching?.close();
            watching = null;
            window.clearTimeout(again);
            again = window.setTimeout(follow, AGAIN_MS);
        }

        function follow() {
            watching?.close();
            // The first answer only says that it begins; the status that follows is asked for without waiting for it.
            let isBegun = false;
            watching = watch(() => {
                if (isBegun)
                    void ask();
                isBegun = true;
            }, lost);
            void ask();
        }

        follow();
        const figures = window.setInterval(() => {
            if (watching && !document.hidden)
                void ask();
        }, FIGURES_MS);
        return () => {
            isThere = false;
            window.clearInterval(figures);
            window.clearTimeout(again);
            watching?.close();
        };
    }, []);
    return daemon;
}

// Whether this session may change anything: Cockpit's own escalation decides.
export function useIsAdmin(): boolean {
    const [isAdmin, setIsAdmin] = useState(false);
    useEffect(() => {
        const permission = cockpit.permission({ admin: true });
        const changed = () => setIsAdmin(permission.allowed === true);
        permission.addEventListener("changed", changed);
        changed();
        return () => permission.close();
    }, []);
    return isAdmin;
}
