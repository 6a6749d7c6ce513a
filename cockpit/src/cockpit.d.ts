// The part of Cockpit's API that the page uses; ../base1/cockpit.js defines it.

interface CockpitEvents {
    addEventListener(name: string, listener: (event: Event, ...words: never[]) => void): void;
    removeEventListener(name: string, listener: (event: Event, ...words: never[]) => void): void;
}

interface CockpitChannel {
    send(message: Uint8Array | string): void;
    close(problem?: string): void;
    addEventListener(name: "message", listener: (event: Event, data: Uint8Array) => void): void;
    addEventListener(name: "close", listener: (event: Event, options: { problem?: string; message?: string }) => void): void;
}

interface CockpitPermission extends CockpitEvents {
    allowed: boolean | null;
    close(): void;
}

interface CockpitFile {
    read(): CockpitReading;
    replace(content: string | null, tag?: string): Promise<string>;
    close(): void;
}

// Cockpit's own kind of promise, which is kept with two values; an async function must not await it.
interface CockpitReading {
    then<T>(done: (content: string | null, tag: string) => T): Promise<T>;
}

interface CockpitProcess extends Promise<string> {
    close(problem?: string): void;
}

interface Cockpit {
    channel(options: Record<string, unknown>): CockpitChannel;
    file(path: string, options?: Record<string, unknown>): CockpitFile;
    spawn(argv: string[], options?: Record<string, unknown>): CockpitProcess;
    permission(options: { admin: boolean }): CockpitPermission;
    gettext(text: string): string;
    ngettext(one: string, many: string, count: number): string;
    format(template: string, ...words: (string | number)[]): string;
    language: string;
    transport: CockpitEvents;
}

declare const cockpit: Cockpit;
