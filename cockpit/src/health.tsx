// How the daemon is: where the rules are and why, libvirt, what was removed last and by what, and what is wrong.
import type { ReactNode } from "react";
import {
    Card, CardBody, DescriptionList, DescriptionListDescription, DescriptionListGroup, DescriptionListTerm,
    StackItem,
} from "@patternfly/react-core";
import { Message } from "./parts";
import { Confirmation, standingOf } from "./standing";
import { moment } from "./text";
import type { Fleet, Late, Status } from "./types";
import { AtPlace, English, lateText } from "./words";

const _ = cockpit.gettext;

export function Health({ status, isAdmin, onDone }: { status: Status; isAdmin: boolean; onDone: (text: string) => void }) {
    const { backend, configuration, fleet, libvirt, restored } = status;
    const last = restored[restored.length - 1];
    return (
        <>
            <StackItem><Card component="section" isCompact aria-label={_("Health")}>
                <CardBody>
                    <DescriptionList columnModifier={{ default: "1Col", md: "2Col", xl: "3Col" }} isCompact>
                        <Item term={_("Rules")}>{backend ? <>{where(backend)}: <English text={backend.reason} /></> : _("not known yet")}</Item>
                        <Item term="libvirt">{libvirt.map(each => <div key={each.uri}>{each.uri}: {each.connected ? _("connected") : each.last_error ? <English text={each.last_error} /> : _("not connected")}</div>)}</Item>
                        {fleet && <Item term="etcd">{heard(fleet)}</Item>}
                        <Item term={_("Last removed by others")}>
                            {last ? <>{moment(last.at)}: <English text={last.what} />{others(last)} (<English text={last.cause} />)</> : _("nothing since the start")}
                        </Item>
                    </DescriptionList>
                </CardBody>
            </Card></StackItem>
            {libvirt.some(each => !each.connected) && <StackItem><Message variant="warning" title={_("libvirt does not answer")}>{_("What is open stays open; guests that start or stop meanwhile are not followed.")}</Message></StackItem>}
            {status.last_look?.error && <StackItem><Message variant="danger" title={_("The kernel did not take the rules")}><English text={status.last_look.error} /></Message></StackItem>}
            {configuration.refused_problems.length > 0 &&
                <StackItem><Message variant="danger" title={_("The configuration on the disk is wrong; the one before stays in force")}>
                    <ul>{configuration.refused_problems.slice(0, 10).map((problem, index) => <li key={index}><AtPlace problem={problem} /></li>)}</ul>
                </Message></StackItem>}
            {standingOf(configuration) && <StackItem><Confirmation configuration={configuration} isAdmin={isAdmin} onDone={onDone} /></StackItem>}
            {fleet && isAlone(fleet) && <StackItem><Message variant="warning" title={_("Most members of etcd do not answer")}>{_("The table as it was last read stays in force; public addresses that hosts share follow on_partition.")}</Message></StackItem>}
            {status.late?.length > 0 && <StackItem><Behind late={status.late} /></StackItem>}
            <Lost lines={status.lost_log_lines} events={status.lost_connection_events} />
            {status.problems.length > 0 && <StackItem><Problems problems={status.problems} /></StackItem>}
        </>
    );
}

function Problems({ problems }: { problems: string[] }) {
    const title = cockpit.format(cockpit.ngettext("$0 problem on this host", "$0 problems on this host", problems.length), problems.length);
    return (
        <Message isExpandable={problems.length > 1} variant="warning" title={problems.length > 1 ? title : <English text={problems[0] ?? ""} />}>
            {problems.length > 1 && <ul>{problems.map((text, index) => <li key={index} className="break"><English text={text} /></li>)}</ul>}
        </Message>
    );
}

// What takes longer than it should; nothing waits for it, so that nobody would notice.
function Behind({ late }: { late: Late[] }) {
    return (
        <Message variant="warning" title={_("The daemon waits for something longer than it should")}>
            <ul>{late.map(({ job, about, seconds }, index) =>
                <li key={index} className="break">{cockpit.format(_("$0, $1 s so far"), lateText(job, about ?? ""), Math.round(seconds))}</li>)}</ul>
        </Message>
    );
}

function Lost({ lines, events }: { lines: number; events: number }) {
    const lost = [
        ...lines ? [cockpit.format(cockpit.ngettext("$0 line, so that histories have gaps", "$0 lines, so that histories have gaps", lines), lines)] : [],
        ...events ? [cockpit.format(cockpit.ngettext("$0 begin or end of a connection", "$0 begins and ends of connections", events), events)] : [],
    ];
    return lost.length > 0 && (
        <StackItem><Message variant="warning" title={_("The journal did not take in time, since the daemon started:")}>
            <ul>{lost.map(text => <li key={text}>{text}</li>)}</ul>
        </Message></StackItem>
    );
}

function isAlone({ answering, members }: Fleet): boolean {
    return 2 * answering <= members;
}

function heard({ answering, members, revision, age_seconds }: Fleet): string {
    const age = age_seconds === null ? _("nothing heard yet") : cockpit.format(_("heard of $0 s ago"), Math.round(age_seconds));
    return `${cockpit.format(_("$0 of $1 members answer"), answering, members)}, ${cockpit.format(_("revision $0"), revision)}, ${age}`;
}

function Item({ term, children }: { term: string; children: ReactNode }) {
    return (
        <DescriptionListGroup>
            <DescriptionListTerm>{term}</DescriptionListTerm>
            <DescriptionListDescription className="break">{children}</DescriptionListDescription>
        </DescriptionListGroup>
    );
}

function where({ name, title }: { name: string; title?: string }): string {
    return cockpit.format(_("in $0"), title ?? name);
}

function others({ more }: { more: number }): string {
    return more ? ` ${cockpit.format(cockpit.ngettext("and $0 more", "and $0 more", more), more)}` : "";
}
