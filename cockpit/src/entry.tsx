// Adding, changing and removing an entry of the page's own drop-in, and what is open for a while.
import { useEffect, useState } from "react";
import type { FormEvent, ReactNode } from "react";
import {
    Alert, Button, Checkbox, ExpandableSection, Form, FormGroup, FormHelperText, FormSelect, FormSelectOption, HelperText, HelperTextItem,
    Modal, ModalBody, ModalFooter, ModalHeader, Radio, Stack, StackItem, TextInput,
} from "@patternfly/react-core";
import MinusCircleIcon from "@patternfly/react-icons/dist/esm/icons/minus-circle-icon";
import PlusCircleIcon from "@patternfly/react-icons/dist/esm/icons/plus-circle-icon";
import { changed, entryAt, fieldAt, written } from "./dropin";
import type { Entry, Keys, Kind } from "./dropin";
import { NotSaved, check, pathOf, read, save } from "./saving";
import type { Written } from "./saving";
import { shown } from "./text";
import { call } from "./varlink";
import type { Inventory, Opening, Problem } from "./types";

const _ = cockpit.gettext;

export function isOwn(opening: Opening, main: string): boolean {
    return opening.file === pathOf(main);
}

interface Port { host: string; guest: string; protocol: string }

// What the form shows. Keys of the entry that it does not show are kept in `others`.
interface Fields {
    kind: Kind; domain: string; network: string; ports: Port[]; listen: string; sources: string; masquerade: boolean;
    address: string; interface: string; public: string; assign: string; addresses: string; proxy: string; others: Keys;
}

const EMPTY: Fields = {
    kind: "forward", domain: "", network: "", ports: [{ host: "", guest: "", protocol: "tcp" }], listen: "", sources: "",
    masquerade: false, address: "", interface: "", public: "", assign: "", addresses: "", proxy: "", others: {},
};
const SHOWN: Record<Kind, string[]> = {
    forward: ["domain", "ports", "listen", "sources", "interface", "address", "masquerade"],
    nat: ["domain", "public", "assign", "address"],
    route: ["network", "addresses", "proxy"],
};

function list(value: unknown): string[] {
    return value === undefined ? [] : Array.isArray(value) ? value.map(String) : [String(value)];
}

function fieldsOf(entry: Entry): Fields | null {
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

function portText({ host, guest, protocol }: Port): string {
    return `${host.trim()}${guest.trim() && guest.trim() !== host.trim() ? `:${guest.trim()}` : ""}${protocol === "tcp" ? "" : `/${protocol}`}`;
}

function words(text: string): string[] {
    return text.split(/[\s,]+/).filter(Boolean);
}

function keysOf(fields: Fields): Keys {
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

const NOWHERE: Inventory = { domains: [], networks: [], addresses: [] };

function useInventory(): Inventory {
    const [inventory, setInventory] = useState(NOWHERE);
    // Without it there is nothing to choose from, but everything can be typed.
    useEffect(() => { call<Inventory>("Inventory").then(setInventory, () => undefined) }, []);
    return inventory;
}

export function EntryDialog({ main, opening, onClose }: { main: string; opening: Opening | null; onClose: (done?: string) => void }) {
    const inventory = useInventory();
    const [before, setBefore] = useState<Written | null>(null);
    const [entry, setEntry] = useState<Entry | null>(null);
    const [fields, setFields] = useState<Fields>(EMPTY);
    const [seconds, setSeconds] = useState("");
    const [wrong, setWrong] = useState<Record<string, string>>({});
    const [failures, setFailures] = useState<string[]>([]);
    const [warnings, setWarnings] = useState<string[]>([]);
    const [isBusy, setIsBusy] = useState(false);
    const [isByHand, setIsByHand] = useState(false);

    useEffect(() => {
        read(main).then(found => {
            setBefore(found);
            if (!opening)
                return;
            const there = entryAt(found.text, opening.line, opening.kind, opening.owner);
            const filled = there ? fieldsOf(there) : null;
            setEntry(there);
            setIsByHand(!filled);
            if (filled)
                setFields(filled);
        }, (error: { message?: string }) => setFailures([error.message ?? String(error)]));
    }, [main, opening]);

    const set = (some: Partial<Fields>) => {
        setFields({ ...fields, ...some });
        setWarnings([]);
    };

    // Each problem goes to the field whose line it names, and the rest above the form.
    const show = (problems: Problem[], lines: string[], line: number) => {
        const beside: Record<string, string> = {};
        const above: string[] = [];
        for (const problem of problems) {
            const at = problem.file === pathOf(main) ? problem.line - line : -1;
            const field = at >= 0 && at < lines.length ? fieldAt(lines, at) ?? (lines.length > 1 ? SHOWN[fields.kind][0] : null) : null;
            if (field && !beside[field])
                beside[field] = problem.text;
            else
                above.push(at >= 0 ? problem.text : `${problem.file}:${problem.line}: ${problem.text}`);
        }
        setWrong(beside);
        setFailures(above);
    };

    const saveEntry = async () => {
        if (!before)
            return;
        const lines = written(fields.kind, keysOf(fields));
        const next = changed(before.text, entry, lines);
        const checked = await check(next.text);
        show(checked.problems, lines, next.line);
        if (checked.problems.length)
            return;
        if (checked.warnings.length && !warnings.length) {
            setWarnings(checked.warnings);
            return;
        }
        await save(main, before, next.text);
        onClose(opening ? _("The entry was changed") : _("The entry was added"));
    };

    const openForAWhile = async () => {
        const wish = { domain: fields.domain.trim(), ports: fields.ports.map(portText), sources: words(fields.sources), seconds: Number(seconds) };
        await call("Open", wish);
        onClose(_("The ports are open for a while"));
    };

    const submit = (event: FormEvent) => {
        event.preventDefault();
        setIsBusy(true);
        setFailures([]);
        setWrong({});
        (seconds ? openForAWhile() : saveEntry())
            .catch((error: Error) => setFailures([error.message, ...(error instanceof NotSaved ? error.problems.map(problem => problem.text) : [])]))
            .finally(() => setIsBusy(false));
    };

    return (
        <Modal isOpen variant="medium" onClose={() => onClose()} aria-labelledby="entry-title">
            <ModalHeader title={opening ? _("Change an entry") : _("Make a guest reachable")} labelId="entry-title" />
            <ModalBody>
                <Form id="entry" onSubmit={submit} noValidate>
                    {failures.map((text, index) => <Alert key={index} isInline variant="danger" title={shown(text)} />)}
                    {isByHand
                        ? <Alert isInline variant="info" title={cockpit.format(_("This entry was written by hand in a form that this page does not know; change it in $0"), pathOf(main))} />
                        : <Inputs fields={fields} set={set} wrong={wrong} inventory={inventory} seconds={seconds} setSeconds={setSeconds} isNew={!opening} />}
                    {warnings.length > 0 &&
                        <Alert isInline variant="warning" title={_("Something on this host has this port already")}>
                            {warnings.map((text, index) => <p key={index}>{shown(text)}</p>)}
                        </Alert>}
                </Form>
            </ModalBody>
            <ModalFooter>
                <Button type="submit" form="entry" isLoading={isBusy} isDisabled={isBusy || !before || isByHand}>
                    {warnings.length ? _("Save anyway") : opening ? _("Save") : _("Add")}
                </Button>
                <Button variant="link" onClick={() => onClose()}>{_("Cancel")}</Button>
            </ModalFooter>
        </Modal>
    );
}

interface InputsProps {
    fields: Fields; set: (some: Partial<Fields>) => void; wrong: Record<string, string>; inventory: Inventory;
    seconds: string; setSeconds: (text: string) => void; isNew: boolean;
}

function Inputs({ fields, set, wrong, inventory, seconds, setSeconds, isNew }: InputsProps) {
    const outside = [...new Set(inventory.addresses.filter(each => each.outside).map(each => each.interface))];
    const addresses = inventory.addresses.map(each => ({ value: each.address, label: each.interface }));
    const guests = inventory.domains.map(each => ({ value: each.name, label: each.running ? _("running") : _("not running") }));
    return (
        <>
            {isNew && !seconds &&
                <FormGroup role="radiogroup" isInline label={_("What")} fieldId="entry-kind">
                    {([["forward", _("Ports")], ["nat", _("A public address")], ["route", _("Addresses of a network")]] as const).map(([kind, label]) =>
                        <Radio key={kind} id={`entry-${kind}`} name="kind" label={label} isChecked={fields.kind === kind} onChange={() => set({ kind })} />)}
                </FormGroup>}
            {fields.kind !== "route" && <Text id="domain" label={_("Guest")} value={fields.domain} set={domain => set({ domain })} wrong={wrong} choices={guests} isRequired />}
            {fields.kind === "forward" &&
                <>
                    <Ports ports={fields.ports} set={ports => set({ ports })} wrong={wrong} />
                    {!seconds && <Text id="listen" label={_("Listen on (empty: every address of this host)")} value={fields.listen} set={listen => set({ listen })} wrong={wrong} choices={addresses} />}
                    <Text id="sources" label={_("Who may connect (empty: anyone)")} value={fields.sources} set={sources => set({ sources })} wrong={wrong} hint={_("Addresses and networks, such as 203.0.113.0/24")} />
                    {isNew &&
                        <FormGroup label={_("How long")} fieldId="entry-seconds">
                            <FormSelect id="entry-seconds" value={seconds} onChange={(_event, text) => setSeconds(text)}>
                                {[["", _("Until it is removed")], ["3600", _("One hour")], ["28800", _("Eight hours")], ["86400", _("One day")], ["604800", _("One week")]].map(([value, label]) => <FormSelectOption key={value} value={value} label={label ?? ""} />)}
                            </FormSelect>
                        </FormGroup>}
                    {!seconds &&
                        <ExpandableSection toggleText={_("More")} isIndented>
                            <Stack hasGutter>
                                <StackItem><GuestAddress value={fields.address} set={address => set({ address })} wrong={wrong} /></StackItem>
                                <StackItem><Text id="interface" label={_("Only what comes in by this interface (empty: any)")} value={fields.interface} set={text => set({ interface: text })} wrong={wrong} choices={outside.map(value => ({ value, label: "" }))} /></StackItem>
                                <StackItem><Checkbox id="entry-masquerade" label={_("The guest sees an address of this host, not the client's")} isChecked={fields.masquerade} onChange={(_event, masquerade) => set({ masquerade })} /></StackItem>
                            </Stack>
                        </ExpandableSection>}
                </>}
            {fields.kind === "nat" &&
                <>
                    <Text id="public" label={_("Public address")} value={fields.public} set={text => set({ public: text })} wrong={wrong} isRequired />
                    <Text id="assign" label={_("Hold it on this interface (empty: nowhere)")} value={fields.assign} set={assign => set({ assign })} wrong={wrong} choices={outside.map(value => ({ value, label: "" }))} />
                    <GuestAddress value={fields.address} set={address => set({ address })} wrong={wrong} />
                </>}
            {fields.kind === "route" &&
                <>
                    <Text id="network" label={_("Network")} value={fields.network} set={network => set({ network })} wrong={wrong} choices={inventory.networks.map(each => ({ value: each.name, label: each.subnets.join(", ") }))} isRequired />
                    <Text id="addresses" label={_("Addresses that its guests have")} value={fields.addresses} set={text => set({ addresses: text })} wrong={wrong} isRequired />
                    <Text id="proxy" label={_("Answer for them on this interface (empty: nowhere)")} value={fields.proxy} set={proxy => set({ proxy })} wrong={wrong} choices={outside.map(value => ({ value, label: "" }))} />
                </>}
        </>
    );
}

function GuestAddress({ value, set, wrong }: { value: string; set: (text: string) => void; wrong: Record<string, string> }) {
    return <Text id="address" label={_("Address of the guest (empty: libvirt is asked)")} value={value} set={set} wrong={wrong} />;
}

interface TextProps {
    id: string; label: string; value: string; set: (text: string) => void; wrong: Record<string, string>; hint?: string;
    choices?: { value: string; label: string }[]; isRequired?: boolean;
}

function Text({ id, label, value, set, wrong, hint = "", choices = [], isRequired = false }: TextProps) {
    const problem = Object.entries(wrong).find(([field]) => field.split(".")[0] === id)?.[1] ?? "";
    const name = `entry-${id}`;
    return (
        <FormGroup label={label} fieldId={name} isRequired={isRequired}>
            <TextInput id={name} value={value} onChange={(_event, text) => set(text)} isRequired={isRequired} list={`${name}-choices`}
                       validated={problem ? "error" : "default"} aria-describedby={`${name}-help`} aria-invalid={!!problem} autoComplete="off" />
            <datalist id={`${name}-choices`}>{choices.map(choice => <option key={choice.value} value={choice.value}>{choice.label}</option>)}</datalist>
            <Help id={`${name}-help`} problem={problem} hint={hint} />
        </FormGroup>
    );
}

function Help({ id, problem, hint = "" }: { id: string; problem: string; hint?: string }): ReactNode {
    return (
        <FormHelperText>
            <HelperText id={id} isLiveRegion>{(problem || hint) && <HelperTextItem variant={problem ? "error" : "default"}>{shown(problem || hint)}</HelperTextItem>}</HelperText>
        </FormHelperText>
    );
}

function Ports({ ports, set, wrong }: { ports: Port[]; set: (ports: Port[]) => void; wrong: Record<string, string> }) {
    const put = (index: number, some: Partial<Port>) => set(ports.map((port, at) => at === index ? { ...port, ...some } : port));
    return (
        <FormGroup role="group" label={_("Ports")} fieldId="entry-ports" isRequired>
            {ports.map((port, index) => {
                const problem = wrong[`ports.${index}`] ?? (index === 0 ? wrong["ports"] ?? "" : "");
                const help = `entry-ports-${index}-help`;
                return (
                    <div key={index}>
                        <div className="ports">
                            <TextInput aria-label={_("Port of this host")} placeholder={_("Port of this host")} id={`entry-host-${index}`} value={port.host} onChange={(_event, host) => put(index, { host })} validated={problem ? "error" : "default"} aria-describedby={help} aria-invalid={!!problem} />
                            <TextInput aria-label={_("Port of the guest (empty: the same)")} placeholder={_("Port of the guest")} id={`entry-guest-${index}`} value={port.guest} onChange={(_event, guest) => put(index, { guest })} aria-describedby={help} />
                            <FormSelect aria-label={_("Protocol")} id={`entry-protocol-${index}`} value={port.protocol} onChange={(_event, protocol) => put(index, { protocol })}>
                                {["tcp", "udp", "tcp+udp", "sctp"].map(each => <FormSelectOption key={each} value={each} label={each.toUpperCase()} />)}
                            </FormSelect>
                            <Button variant="plain" aria-label={_("Remove this port")} icon={<MinusCircleIcon />} isDisabled={ports.length === 1} onClick={() => set(ports.filter((_port, at) => at !== index))} />
                        </div>
                        <Help id={help} problem={problem} />
                    </div>
                );
            })}
            <Button variant="link" isInline icon={<PlusCircleIcon />} onClick={() => set([...ports, { host: "", guest: "", protocol: "tcp" }])}>{_("Add a port")}</Button>
        </FormGroup>
    );
}

export function RemoveDialog({ main, opening, onClose }: { main: string; opening: Opening; onClose: (done?: string) => void }) {
    const remove = async () => {
        const before = await read(main);
        const entry = entryAt(before.text, opening.line, opening.kind, opening.owner);
        if (!entry)
            throw new NotSaved(_("The file was changed meanwhile, so nothing was written. Close this dialog, and try again."));
        const { text } = changed(before.text, entry, null);
        const { problems } = await check(text);
        if (problems.length)
            throw new NotSaved(problems.map(problem => problem.text).join("; "));
        await save(main, before, text);
        onClose(_("The entry was removed"));
    };
    return (
        <Question title={_("Remove this entry?")} verb={_("Remove")} onSure={remove} onClose={onClose}>
            {cockpit.format(_("$0 is reachable no more at any address or port of the entry that $1 is of; connections end."), shown(opening.owner), opening.listens)}
        </Question>
    );
}

export function CloseDialog({ opening, onClose }: { opening: Opening; onClose: (done?: string) => void }) {
    const shut = async () => {
        await call("Close", { domain: opening.owner, ports: [opening.opened_ports ?? ""] });
        onClose(_("The port is closed"));
    };
    return (
        <Question title={_("Close it now?")} verb={_("Close")} onSure={shut} onClose={onClose}>
            {cockpit.format(_("$0 is reachable no more at $1; connections end."), shown(opening.owner), opening.listens)}
        </Question>
    );
}

interface QuestionProps { title: string; verb: string; onSure: () => Promise<void>; onClose: () => void; children: ReactNode }

function Question({ title, verb, onSure, onClose, children }: QuestionProps) {
    const [failure, setFailure] = useState("");
    const [isBusy, setIsBusy] = useState(false);
    const sure = () => {
        setIsBusy(true);
        onSure().catch((error: Error) => { setFailure(error.message); setIsBusy(false) });
    };
    return (
        <Modal isOpen variant="small" onClose={() => onClose()} aria-labelledby="question-title" aria-describedby="question-text">
            <ModalHeader title={title} titleIconVariant="warning" labelId="question-title" />
            <ModalBody id="question-text">
                {failure && <Alert isInline variant="danger" title={shown(failure)} />}
                {children}
            </ModalBody>
            <ModalFooter>
                <Button variant="danger" onClick={sure} isLoading={isBusy} isDisabled={isBusy}>{verb}</Button>
                <Button variant="link" onClick={() => onClose()}>{_("Cancel")}</Button>
            </ModalFooter>
        </Modal>
    );
}
