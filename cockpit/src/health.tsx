// How the daemon is: where the rules are and why, libvirt, what was removed last and by what, and what is wrong.
import { useState } from "react";
import type { ReactNode } from "react";
import {
    AlertActionLink, Card, CardBody, DescriptionList, DescriptionListDescription, DescriptionListGroup, DescriptionListTerm,
    StackItem,
} from "@patternfly/react-core";
import { Message } from "./parts";
import { call } from "./varlink";
import { moment } from "./text";
import type { Status } from "./types";
import { English } from "./words";

const _ = cockpit.gettext;

export function Health({ status, isAdmin, onDone }: { status: Status; isAdmin: boolean; onDone: (text: string) => void }) {
    const { backend, configuration, libvirt, restored } = status;
    const last = restored[restored.length - 1];
    return (
        <>
            <StackItem><Card component="section" isCompact aria-label={_("Health")}>
                <CardBody>
                    <DescriptionList columnModifier={{ default: "1Col", md: "2Col", xl: "3Col" }} isCompact>
                        <Item term={_("Rules")}>{backend ? <>{where(backend)}: <English text={backend.reason} /></> : _("not known yet")}</Item>
                        <Item term="libvirt">{libvirt.map(each => <div key={each.uri}>{each.uri}: {each.connected ? _("connected") : each.last_error ? <English text={each.last_error} /> : _("not connected")}</div>)}</Item>
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
                    <ul>{configuration.refused_problems.slice(0, 10).map((problem, index) => <li key={index} className="break">{problem.file}:{problem.line}: <English text={problem.text} /></li>)}</ul>
                </Message></StackItem>}
            {configuration.confirm_by && <StackItem><Confirm by={configuration.confirm_by} isAdmin={isAdmin} onDone={onDone} /></StackItem>}
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

function Confirm({ by, isAdmin, onDone }: { by: string; isAdmin: boolean; onDone: (text: string) => void }) {
    const [failure, setFailure] = useState("");
    const keep = () => {
        call("Confirm").then(() => onDone(_("The configuration is kept")), (error: Error) => setFailure(error.message));
    };
    return (
        <Message variant="warning" title={cockpit.format(_("Unless it is confirmed, the configuration before comes back: $0"), moment(by))}
                 actionLinks={isAdmin && <AlertActionLink onClick={keep}>{_("Keep this configuration")}</AlertActionLink>}>{failure && <English text={failure} />}</Message>
    );
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
