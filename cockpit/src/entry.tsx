// Adding and changing an entry of the page's own drop-in, and opening ports for a while.
import { useEffect, useRef, useState } from "react";
import type { FormEvent, ReactNode } from "react";
import { Button, Form, ModalBody, ModalFooter, ModalHeader } from "@patternfly/react-core";
import { changed, entryAt, fieldAt, written } from "./dropin";
import type { Entry } from "./dropin";
import { EMPTY, SHOWN, fieldsOf, forAWhile, keysOf, portText, words } from "./fields";
import type { Fields } from "./fields";
import { Inputs } from "./inputs";
import { Dialog, InView, Message, Waiting, busy } from "./parts";
import { NotSaved, check, openPorts, pathOf, read, save } from "./saving";
import type { Written } from "./saving";
import { SavingMeanwhile } from "./standing";
import type { Standing } from "./standing";
import { call } from "./varlink";
import { AtPlace, English, failureText } from "./words";
import type { Checked, Inventory, Opening, Problem } from "./types";

const _ = cockpit.gettext;

const NOWHERE: Inventory = { domains: [], networks: [], addresses: [] };

function useInventory(): Inventory {
    const [inventory, setInventory] = useState(NOWHERE);
    // Without it there is nothing to choose from, but everything can be typed.
    useEffect(() => { call<Inventory>("Inventory").then(setInventory, () => undefined) }, []);
    return inventory;
}

interface EntryDialogProps { main: string; standing: Standing; opening: Opening | null; onClose: (done?: string, later?: string) => void }

export function EntryDialog({ main, standing, opening, onClose }: EntryDialogProps) {
    const inventory = useInventory();
    const [before, setBefore] = useState<Written | null>(null);
    const [entry, setEntry] = useState<Entry | null>(null);
    const [fields, setFields] = useState<Fields>(EMPTY);
    const [seconds, setSeconds] = useState("");
    const [wrong, setWrong] = useState<Record<string, string>>({});
    const [failures, setFailures] = useState<ReactNode[]>([]);
    // What is asked about before anything is done: who has a port, what could not be looked at, and what else comes or goes.
    const [warnings, setWarnings] = useState<string[]>([]);
    const [unchecked, setUnchecked] = useState("");
    const [told, setTold] = useState<Standing>("");
    const isAsked = warnings.length > 0 || unchecked !== "" || (told !== "" && !seconds);
    // What is open for a while is written to no file, and loads none.
    const standingNow = useRef<Standing>("");
    standingNow.current = seconds ? "" : standing;
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
        }, (error: unknown) => setFailures([failureText(error)]));
    }, [main, opening]);

    const set = (some: Partial<Fields>) => {
        setFields({ ...fields, ...some });
        setWarnings([]);
        setUnchecked("");
        setTold("");
    };

    // Each problem goes to the field whose line it names, and the rest above the form. What is open for a while is no matter of
    // the other entries.
    const show = (problems: Problem[], lines: string[], line: number): boolean => {
        const beside: Record<string, string> = {};
        const above: ReactNode[] = [];
        for (const problem of problems) {
            const at = problem.file === pathOf(main) ? problem.line - line : -1;
            const isOwn = at >= 0 && at < lines.length;
            const field = isOwn ? fieldAt(lines, at) ?? (lines.length > 1 ? SHOWN[fields.kind][0] : null) : null;
            if (field && !beside[field])
                beside[field] = problem.text;
            else if (isOwn || !seconds)
                above.push(isOwn ? <English text={problem.text} /> : <AtPlace problem={problem} />);
        }
        setWrong(beside);
        setFailures(above);
        return above.length > 0 || Object.keys(beside).length > 0;
    };

    // Whether there is something that the user was not asked about yet.
    const ask = (checked: Checked): boolean => {
        const isNew = checked.warnings.some(warning => !warnings.includes(warning)) || (checked.unchecked ?? unchecked) !== unchecked
            || !["", told].includes(standingNow.current);
        setTold(standingNow.current);
        setWarnings(checked.warnings);
        setUnchecked(checked.unchecked ?? "");
        return isNew;
    };

    // Gives the text of the file with the entry, once that is right.
    const draft = async (found: Written): Promise<{ text: string | null } | null> => {
        const lines = written(fields.kind, keysOf(seconds ? forAWhile(fields) : fields));
        const next = changed(found.text, entry, lines);
        const checked = await check(next.text);
        return show(checked.problems, lines, next.line) || ask(checked) ? null : next;
    };

    const saveEntry = async (found: Written) => {
        const next = await draft(found);
        if (!next)
            return;
        const later = await save(main, found, next.text);
        onClose(opening ? _("The entry was changed") : _("The entry was added"), later);
    };

    const openForAWhile = async (found: Written) => {
        if (!await draft(found))
            return;
        const later = await openPorts({ domain: fields.domain.trim(), ports: fields.ports.map(portText), sources: words(fields.sources), seconds: Number(seconds) });
        onClose(_("The ports are open for a while"), later);
    };

    const fail = (error: unknown) => {
        const problems = error instanceof NotSaved ? error.problems : [];
        setFailures([failureText(error), ...problems.map(problem => <AtPlace problem={problem} />)]);
        if (error instanceof NotSaved && error.now)
            setBefore(error.now);
    };

    const submit = (event: FormEvent) => {
        event.preventDefault();
        if (!before)
            return;
        setIsBusy(true);
        setFailures([]);
        setWrong({});
        (seconds ? openForAWhile : saveEntry)(before)
            .catch(fail)
            .finally(() => setIsBusy(false));
    };

    const title = <ModalHeader title={opening ? _("Change an entry") : _("Make a guest reachable")} labelId="entry-title" />;
    // What is typed before the entry is there would be mixed with it.
    if (opening && !before && !failures.length)
        return <Dialog key="reading" variant="medium" onClose={onClose} aria-labelledby="entry-title">{title}<ModalBody><Waiting text={_("Reading the entry")} /></ModalBody></Dialog>;
    return (
        <Dialog key="form" variant="medium" onClose={onClose} aria-labelledby="entry-title" {...isByHand ? {} : { elementToFocus: opening?.kind === "route" ? "#entry-network" : "#entry-domain" }}>
            {title}
            <ModalBody>
                <Form id="entry" onSubmit={submit} noValidate>
                    {failures.length > 0 && <InView of={failures}>{failures.map((text, index) => <Message key={index} variant="danger" title={text} />)}</InView>}
                    {isByHand
                        ? <Message variant="info" title={cockpit.format(_("This entry was written by hand in a form that this page does not know; change it in $0"), pathOf(main))} />
                        : <Inputs fields={fields} set={set} wrong={wrong} inventory={inventory} seconds={seconds} setSeconds={setSeconds} isNew={!opening} />}
                    {isAsked &&
                        <InView of={[...warnings, unchecked, told].join()}>
                            {warnings.length > 0 &&
                                <Message variant="warning" title={_("Something on this host has this port already")}>
                                    {warnings.map((text, index) => <p key={index}><English text={text} /></p>)}
                                </Message>}
                            {unchecked && <Message variant="warning" title={_("Whether something on this host has this port is not known")}><English text={unchecked} /></Message>}
                            <SavingMeanwhile standing={seconds ? "" : told} />
                        </InView>}
                </Form>
            </ModalBody>
            <ModalFooter>
                <Button type="submit" form="entry" {...busy(isBusy)} isDisabled={isBusy || !before || isByHand}>
                    {isAsked ? (seconds ? _("Open anyway") : _("Save anyway")) : opening ? _("Save") : _("Add")}
                </Button>
                <Button variant="link" onClick={() => onClose()}>{_("Cancel")}</Button>
            </ModalFooter>
        </Dialog>
    );
}
