// The table of all that is open, or should be.
import { memo, useMemo, useState } from "react";
import {
    Button, Card, CardBody, CardHeader, CardTitle, EmptyState, FormSelect, FormSelectOption, Label, MenuToggle, Pagination,
    SearchInput, Toolbar, ToolbarContent, ToolbarItem,
} from "@patternfly/react-core";
import { ActionsColumn, Table, Tbody, Td, Th, Thead, Tr } from "@patternfly/react-table";
import type { CustomActionsToggleProps, IAction } from "@patternfly/react-table";
import CheckCircleIcon from "@patternfly/react-icons/dist/esm/icons/check-circle-icon";
import ClockIcon from "@patternfly/react-icons/dist/esm/icons/clock-icon";
import EllipsisIcon from "@patternfly/react-icons/dist/esm/icons/rh-ui-ellipsis-vertical-fill-icon";
import ExclamationCircleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon";
import HourglassIcon from "@patternfly/react-icons/dist/esm/icons/hourglass-half-icon";
import { isOwn } from "./fields";
import { Nothing } from "./page";
import type { Action } from "./page";
import { connectionTo, remaining, shown, sizeText, stateText } from "./text";
import type { Opening } from "./types";
import { Reason, Sentence } from "./words";

const _ = cockpit.gettext;

const PAGES = {
    paginationAriaLabel: _("Pages of the table"), itemsPerPage: _("Rows on a page"), perPageSuffix: _("on a page"), ofWord: _("of"),
    toPreviousPageAriaLabel: _("Previous page"), toNextPageAriaLabel: _("Next page"),
};

interface Acting { isAdmin: boolean; main: string; onAct: (action: Action, opening?: Opening | null) => void }

export function Openings({ openings, ...acting }: Acting & { openings: Opening[] }) {
    const [wanted, setWanted] = useState("");
    const [state, setState] = useState("");
    const [page, setPage] = useState(1);
    const [perPage, setPerPage] = useState(20);
    const found = useMemo(() => {
        const words = wanted.toLowerCase().split(/\s+/);
        return openings.filter(opening => (!state || opening.state === state) && words.every(word => haystack(opening).includes(word)));
    }, [openings, wanted, state]);
    const last = Math.max(1, Math.ceil(found.length / perPage));
    const at = Math.min(page, last);
    const paged = found.slice((at - 1) * perPage, at * perPage);
    const pagination = (
        <Pagination itemCount={found.length} page={at} perPage={perPage} isCompact
                    onSetPage={(_event, next) => setPage(next)} onPerPageSelect={(_event, next) => setPerPage(next)}
                    titles={PAGES} />
    );
    return (
        <Card component="section">
            <CardHeader hasWrap actions={{ hasNoOffset: true, actions: <Tools {...acting} /> }}>
                <CardTitle component="h1">{_("Port forwards")}</CardTitle>
            </CardHeader>
            <CardBody>
                {openings.length === 0
                    ? <Nothing isAdmin={acting.isAdmin} onAdd={() => acting.onAct("add")} />
                    : <>
                        <Toolbar inset={{ default: "insetNone" }}>
                            <ToolbarContent>
                                <ToolbarItem><SearchInput aria-label={_("Filter by guest, address or port")} placeholder={_("Filter by guest, address or port")} value={wanted} onChange={(_event, text) => setWanted(text)} onClear={() => setWanted("")} resetButtonLabel={_("Clear the filter")} /></ToolbarItem>
                                <ToolbarItem>
                                    <FormSelect aria-label={_("State")} value={state} onChange={(_event, chosen) => setState(chosen)}>
                                        <FormSelectOption value="" label={_("Every state")} />
                                        {(["active", "waiting", "refused"] as const).map(each => <FormSelectOption key={each} value={each} label={stateText(each)} />)}
                                    </FormSelect>
                                </ToolbarItem>
                                {openings.length > 20 && <ToolbarItem variant="pagination">{pagination}</ToolbarItem>}
                            </ToolbarContent>
                        </Toolbar>
                        <Table variant="compact" aria-label={_("Port forwards")} gridBreakPoint="grid-lg">
                            <Thead>
                                <Tr>
                                    <Th modifier="wrap">{_("Guest or network")}</Th><Th>{_("State")}</Th><Th>{_("Listens on")}</Th><Th>{_("Leads to")}</Th>
                                    <Th modifier="fitContent">{_("Connections")}</Th><Th modifier="fitContent">{_("Open now")}</Th><Th screenReaderText={_("Actions")} />
                                </Tr>
                            </Thead>
                            <Tbody>{paged.map((opening, index) => <Row key={`${keyOf(opening)} ${index}`} opening={opening} {...acting} />)}</Tbody>
                        </Table>
                        {paged.some(isUncounted) && <p className="note subtle"><Sentence text={_("Bytes are not counted: this host counts those of connections that begin while `net.netfilter.nf_conntrack_acct` is 1.")} /></p>}
                        {found.length === 0 && <EmptyState titleText={_("Nothing fits the filter")} headingLevel="h3" />}
                    </>}
            </CardBody>
        </Card>
    );
}

function Tools({ isAdmin, onAct }: Acting) {
    return (
        <>
            <Button variant="secondary" onClick={() => onAct("explain")}>{_("Explain a connection")}</Button>{" "}
            <Button onClick={() => onAct("add")} isDisabled={!isAdmin}>{_("Add")}</Button>
        </>
    );
}

function keyOf(opening: Opening): string {
    return `${opening.owner_kind} ${opening.owner} ${opening.listens} ${opening.family} ${opening.file} ${opening.line}`;
}

function haystack(opening: Opening): string {
    return `${opening.owner} ${opening.listens} ${opening.leads_to ?? ""} ${opening.reason ?? ""}`.toLowerCase();
}

// Drawn again only where something of it is other than before: of a thousand rows, that is a few at a time.
const Row = memo(function Row({ opening, isAdmin, main, onAct }: Acting & { opening: Opening }) {
    return (
        <Tr>
            <Td dataLabel={_("Guest or network")} className="break">
                {shown(opening.owner)}
                {opening.remaining_seconds !== null && <div><Label isCompact icon={<HourglassIcon />}>{remaining(opening.remaining_seconds)}</Label></div>}
            </Td>
            <Td dataLabel={_("State")}>
                <div><State state={opening.state} /></div>
                {opening.reason && <Reason reason={opening.reason} kinds={opening.reason_kinds} />}
                {opening.state !== "active" && connectionTo(opening) && <Button variant="link" isInline size="sm" onClick={() => onAct("explain", opening)}>{_("What helps?")}</Button>}
            </Td>
            <Td dataLabel={_("Listens on")}><span className="address">{opening.listens}</span></Td>
            <Td dataLabel={_("Leads to")} className={shownIf(opening.leads_to)}><span className="address">{opening.leads_to ?? "–"}</span></Td>
            <Td dataLabel={_("Connections")} className={shownIf(opening.connections)}>{opening.connections ?? "–"}</Td>
            <Td dataLabel={_("Open now")} className={`figure ${shownIf(opening.open_connections)}`}>{openNow(opening)}</Td>
            <Td isActionCell><ActionsColumn items={actions(opening, main, isAdmin, onAct)} actionsToggle={toggle => <Menu of={`${shown(opening.owner)}, ${opening.listens}`} {...toggle} />} /></Td>
        </Tr>
    );
}, (before, after) => before.isAdmin === after.isAdmin && JSON.stringify(before.opening) === JSON.stringify(after.opening));

// What opens the menu of a row, which a screen reader reads without the row.
function Menu({ of, onToggle, isOpen, toggleRef }: CustomActionsToggleProps & { of: string }) {
    return <MenuToggle ref={toggleRef} aria-label={cockpit.format(_("Actions for $0"), of)} onClick={onToggle} isExpanded={isOpen} variant="plain" icon={<EllipsisIcon />} />;
}

// Names what a narrow page leaves out.
function shownIf(figure: unknown): string {
    return figure === null ? "none" : "";
}

function isUncounted({ open_connections, open_bytes }: Opening): boolean {
    return !!open_connections && open_bytes === null;
}

function openNow({ open_connections, open_bytes }: Opening): string {
    if (!open_connections)
        return open_connections === 0 ? "0" : "–";
    return open_bytes === null ? `${open_connections}` : `${open_connections} · ${sizeText(open_bytes)}`;
}

function State({ state }: { state: Opening["state"] }) {
    const [status, Icon] = { active: ["success", CheckCircleIcon] as const, waiting: ["warning", ClockIcon] as const, refused: ["danger", ExclamationCircleIcon] as const }[state];
    return <Label isCompact status={status} icon={<Icon />}>{stateText(state)}</Label>;
}

function actions(opening: Opening, main: string, isAdmin: boolean, onAct: Acting["onAct"]): IAction[] {
    const item = (title: string, action: Action, isDisabled = false): IAction => ({ title, isDisabled, onClick: () => onAct(action, opening) });
    const items = [item(_("Explain"), "explain", !connectionTo(opening)), item(_("History"), "history")];
    if (opening.until)
        return [...items, item(_("Close"), "close", !isAdmin)];
    if (isOwn(opening, main))
        return [...items, item(_("Change"), "change", !isAdmin), item(_("Remove"), "remove", !isAdmin)];
    const title = opening.file ? cockpit.format(_("Written in $0"), `${opening.file}:${opening.line}`) : _("Asked for by the guest");
    return [...items, { title, isDisabled: true }];
}
