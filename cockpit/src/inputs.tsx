// The fields of the form: what an entry can name is offered, and each problem stands beside its field.
import type { ReactNode } from "react";
import {
    Button, Checkbox, ExpandableSection, FormGroup, FormHelperText, FormSelect, FormSelectOption, HelperText, HelperTextItem, Label,
    LabelGroup, Radio, Stack, StackItem, TextInput,
} from "@patternfly/react-core";
import MinusCircleIcon from "@patternfly/react-icons/dist/esm/icons/minus-circle-icon";
import PlusCircleIcon from "@patternfly/react-icons/dist/esm/icons/plus-circle-icon";
import type { Fields, Port } from "./fields";
import { shown } from "./text";
import { English } from "./words";
import type { Inventory } from "./types";

const _ = cockpit.gettext;

interface InputsProps {
    fields: Fields; set: (some: Partial<Fields>) => void; wrong: Record<string, string>; inventory: Inventory;
    seconds: string; setSeconds: (text: string) => void; isNew: boolean;
}

export function Inputs({ fields, set, wrong, inventory, seconds, setSeconds, isNew }: InputsProps) {
    const leadOut = inventory.addresses.filter(each => each.outside && isRouted(each.address));
    const outside = [...new Set(leadOut.map(each => each.interface))];
    const addresses = (leadOut.length ? leadOut : inventory.addresses).map(each => ({ value: each.address, label: each.interface }));
    const guest = inventory.domains.find(each => each.name === fields.domain.trim());
    const guestAddress = <GuestAddress value={fields.address} set={address => set({ address })} wrong={wrong} choices={guest?.addresses ?? []} />;
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
                                <StackItem>{guestAddress}</StackItem>
                                <StackItem><Text id="interface" label={_("Only what comes in by this interface (empty: any)")} value={fields.interface} set={text => set({ interface: text })} wrong={wrong} choices={outside.map(value => ({ value, label: "" }))} /></StackItem>
                                <StackItem><Checkbox id="entry-masquerade" label={_("The guest sees an address of this host, not the client's")} isChecked={fields.masquerade} onChange={(_event, masquerade) => set({ masquerade })} /></StackItem>
                            </Stack>
                        </ExpandableSection>}
                </>}
            {fields.kind === "nat" &&
                <>
                    <Text id="public" label={_("Public address")} value={fields.public} set={text => set({ public: text })} wrong={wrong} isRequired />
                    <Text id="assign" label={_("Hold it on this interface (empty: nowhere)")} value={fields.assign} set={assign => set({ assign })} wrong={wrong} choices={outside.map(value => ({ value, label: "" }))} />
                    {guestAddress}
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

interface GuestAddressProps { value: string; set: (text: string) => void; wrong: Record<string, string>; choices: string[] }

// Only what the chosen guest has now is offered.
function GuestAddress({ choices, ...rest }: GuestAddressProps) {
    return <Text id="address" label={_("Address of the guest (empty: libvirt is asked)")} choices={choices.filter(isRouted).map(value => ({ value, label: "" }))} {...rest} />;
}

function isRouted(address: string): boolean {
    return !/^fe80:/i.test(address);
}

interface TextProps {
    id: string; label: string; value: string; set: (text: string) => void; wrong: Record<string, string>; hint?: string;
    choices?: { value: string; label: string }[]; isRequired?: boolean;
}

// So many choices are shown at once; the field offers all.
const FEW = 6;

function Text({ id, label, value, set, wrong, hint = "", choices = [], isRequired = false }: TextProps) {
    const problem = Object.entries(wrong).find(([field]) => field.split(".")[0] === id)?.[1] ?? "";
    const name = `entry-${id}`;
    return (
        <FormGroup label={label} fieldId={name} isRequired={isRequired}>
            <TextInput id={name} value={value} onChange={(_event, text) => set(text)} isRequired={isRequired} list={`${name}-choices`}
                       validated={problem ? "error" : "default"} aria-describedby={`${name}-help`} aria-invalid={!!problem} autoComplete="off" />
            <datalist id={`${name}-choices`}>{choices.map(choice => <option key={choice.value} value={choice.value}>{choice.label}</option>)}</datalist>
            {!value && choices.length > 0 &&
                <LabelGroup className="choices" numLabels={FEW} aria-label={cockpit.format(_("Choices for: $0"), label)} collapsedText={_("${remaining} more")} expandedText={_("Fewer")}>
                    {choices.map(choice => <Label key={choice.value} isCompact variant="outline" onClick={() => set(choice.value)}>{shown(choice.value)}{choice.label && ` (${shown(choice.label)})`}</Label>)}
                </LabelGroup>}
            <Help id={`${name}-help`} problem={problem} hint={hint} />
        </FormGroup>
    );
}

function Help({ id, problem, hint = "" }: { id: string; problem: string; hint?: string }): ReactNode {
    return (
        <FormHelperText>
            <HelperText id={id} isLiveRegion>{(problem || hint) && <HelperTextItem variant={problem ? "error" : "default"}>{problem ? <English text={problem} /> : hint}</HelperTextItem>}</HelperText>
        </FormHelperText>
    );
}

function Ports({ ports, set, wrong }: { ports: Port[]; set: (ports: Port[]) => void; wrong: Record<string, string> }) {
    const put = (index: number, some: Partial<Port>) => set(ports.map((port, at) => at === index ? { ...port, ...some } : port));
    return (
        <FormGroup role="group" label={_("Ports")} fieldId="entry-ports" isRequired>
            <div className="ports heads" aria-hidden="true"><span>{_("Port of this host")}</span><span>{_("Port of the guest")}</span><span className="wide">{_("Protocol")}</span></div>
            {ports.map((port, index) => {
                const problem = wrong[`ports.${index}`] ?? (index === 0 ? wrong["ports"] ?? "" : "");
                const help = `entry-ports-${index}-help`;
                return (
                    <div key={index}>
                        <div className="ports">
                            <TextInput aria-label={_("Port of this host")} placeholder="8000" id={`entry-host-${index}`} value={port.host} onChange={(_event, host) => put(index, { host })} validated={problem ? "error" : "default"} aria-describedby={help} aria-invalid={!!problem} />
                            <TextInput aria-label={_("Port of the guest (empty: the same)")} placeholder={_("the same")} id={`entry-guest-${index}`} value={port.guest} onChange={(_event, guest) => put(index, { guest })} aria-describedby={help} />
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
