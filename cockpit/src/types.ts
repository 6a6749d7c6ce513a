// What the methods of kvm.portfwd.Manager give; fwdaemon/control/kvm.portfwd.Manager.varlink describes them.

export interface Problem { file: string; line: number; text: string }

export interface Opening {
    owner: string;
    owner_kind: "domain" | "network";
    state: "active" | "waiting" | "refused";
    reason: string | null;
    reason_kinds: string[];
    listens: string;
    leads_to: string | null;
    kind: "forward" | "nat" | "route";
    family: 4 | 6 | null;
    protocol: string | null;
    address: string | null;
    ports: string | null;
    subnet: string | null;
    target_ports: string | null;
    file: string | null;
    line: number | null;
    until: string | null;
    remaining_seconds: number | null;
    opened_by: string | null;
    opened_ports: string | null;
    connections: number | null;
    open_connections: number | null;
    open_bytes: number | null;
}

export interface Fleet { answering: number; members: number; revision: number; age_seconds: number | null; entries: number }

export interface Late { job: string; about: string | null; seconds: number }

export interface Status {
    version: string;
    daemon: { pid: number; since: string } | null;
    backend: { name: string; title?: string; reason: string } | null;
    configuration: {
        file: string;
        last_good: boolean;
        refused_at: string | null;
        confirm_by: string | null;
        remaining_seconds: number | null;
        unconfirmed: boolean;
        refused_problems: Problem[];
    };
    libvirt: { uri: string; connected: boolean; since: string; last_error: string | null }[];
    last_look: { at: string; error: string | null } | null;
    restored: { at: string; what: string; more: number; cause: string }[];
    problems: string[];
    fleet: Fleet | null;
    late: Late[];
    lost_log_lines: number;
    lost_connection_events: number;
    counts: { active: number; waiting: number; refused: number };
    openings: Opening[];
}

export interface Step {
    step: string;
    state: "ok" | "no" | "unknown";
    text: string;
    cause: string | null;
    chain: { owner: string; rule: { chain: string; text: string } | null } | null;
}

export interface Explanation {
    connection: string;
    works: boolean;
    cause: string | null;
    entry: { file: string; line: number } | null;
    sentence: string;
    steps: Step[];
}

export interface Checked { problems: Problem[]; warnings: string[]; unchecked: string | null }

export interface Reloaded { failure: string | null }

export interface Opened { failure: string | null }

export interface Inventory {
    domains: { name: string; running: boolean; addresses: string[] }[];
    networks: { name: string; active: boolean; subnets: string[] }[];
    addresses: { address: string; interface: string; outside: boolean }[];
}
