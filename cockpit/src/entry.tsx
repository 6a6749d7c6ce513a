// Adding and changing an entry of the page's own drop-in, and opening ports for a while.
import { useEffect, useState } from "react";
import type { FormEvent, ReactNode } from "react";
import { Alert, Button, Form, Modal, ModalBody, ModalFooter, ModalHeader } from "@patternfly/react-core";
import { changed, entryAt, fieldAt, written } from "./dropin";
import type { Entry } from "./dropin";
import { EMPTY, SHOWN, fieldsOf, keysOf, portText, words } from "./fields";
import type { Fields } from "./fields";
import { Inputs } from "./inputs";
import { NotSaved, check, pathOf, read, save } from "./saving";
import type { Written } from "./saving";
import { call } from "./varlink";
import { English, failureText } from "./words";
import type { Inventory, Opening, Problem } from "./types";

const _ = cockpit.gettext;

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
    const [failures, setFailures] = useState<ReactNode[]>([]);
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
        }, (error: unknown) => setFailures([failureText(error)]));
    }, [main, opening]);

    const set = (some: Partial<Fields>) => {
        setFields({ ...fields, ...some });
        setWarnings([]);
    };

    // Each problem goes to the field whose line it names, and the rest above the form.
    const show = (problems: Problem[], lines: string[], line: number) => {
        const beside: Record<string, string> = {};
        const above: ReactNode[] = [];
        for (const problem of problems) {
            const at = problem.file === pathOf(main) ? problem.line - line : -1;
            const field = at >= 0 && at < lines.length ? fieldAt(lines, at) ?? (lines.length > 1 ? SHOWN[fields.kind][0] : null) : null;
            if (field && !beside[field])
                beside[field] = problem.text;
            else
                above.push(<English text={at >= 0 ? problem.text : `${problem.file}:${problem.line}: ${problem.text}`} />);
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
            .catch((error: unknown) => setFailures([failureText(error), ...(error instanceof NotSaved ? error.problems : []).map(problem => <English text={problem.text} />)]))
            .finally(() => setIsBusy(false));
    };

    return (
        <Modal isOpen variant="medium" onClose={() => onClose()} aria-labelledby="entry-title" elementToFocus="#entry-domain">
            <ModalHeader title={opening ? _("Change an entry") : _("Make a guest reachable")} labelId="entry-title" />
            <ModalBody>
                <Form id="entry" onSubmit={submit} noValidate>
                    {failures.map((text, index) => <Alert key={index} isInline variant="danger" title={text} />)}
                    {isByHand
                        ? <Alert isInline variant="info" title={cockpit.format(_("This entry was written by hand in a form that this page does not know; change it in $0"), pathOf(main))} />
                        : <Inputs fields={fields} set={set} wrong={wrong} inventory={inventory} seconds={seconds} setSeconds={setSeconds} isNew={!opening} />}
                    {warnings.length > 0 &&
                        <Alert isInline variant="warning" title={_("Something on this host has this port already")}>
                            {warnings.map((text, index) => <p key={index}><English text={text} /></p>)}
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
