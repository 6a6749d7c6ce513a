// Removing an entry of the page's own drop-in, and closing what is open for a while.
import { useEffect, useState } from "react";
import type { ReactNode } from "react";
import { Button, ModalBody, ModalFooter, ModalHeader } from "@patternfly/react-core";
import { changed, entryAt, linesOf } from "./dropin";
import { Dialog, InView, Message, busy } from "./parts";
import { NotSaved, check, read, save } from "./saving";
import type { Written } from "./saving";
import { SavingMeanwhile } from "./standing";
import type { Standing } from "./standing";
import { shown } from "./text";
import { call } from "./varlink";
import { AtPlace, failureText } from "./words";
import type { Opening } from "./types";

const _ = cockpit.gettext;

interface RemoveDialogProps { main: string; standing: Standing; opening: Opening; onClose: (done?: string, later?: string) => void }

export function RemoveDialog({ main, standing, opening, onClose }: RemoveDialogProps) {
    const [told, setTold] = useState<Standing>("");
    const [before, setBefore] = useState<Written | null>(null);
    const [failure, setFailure] = useState<ReactNode>("");
    useEffect(() => {
        read(main).then(setBefore, (error: unknown) => setFailure(failureText(error)));
    }, [main]);
    const entry = before && entryAt(before.text, opening.line, opening.kind, opening.owner);
    const remove = async () => {
        setTold(standing);
        if (!["", told].includes(standing))
            return;
        if (!before || !entry)
            throw new NotSaved(_("The file was changed meanwhile, so nothing was written. Close this dialog, and try again."));
        const { text } = changed(before.text, entry, null);
        const { problems } = await check(text);
        if (problems.length)
            throw new NotSaved(_("The rest of the configuration would be wrong, so nothing was written"), problems);
        const later = await save(main, before, text).catch((error: unknown) => {
            if (error instanceof NotSaved && error.now)
                setBefore(error.now);
            throw error;
        });
        onClose(_("The entry was removed"), later);
    };
    return (
        <Question title={_("Remove this entry?")} verb={told ? _("Remove anyway") : _("Remove")} onSure={remove} onClose={onClose} isReady={!!before}>
            {failure && <Message variant="danger" title={failure} />}
            <p>{cockpit.format(_("$0 is reachable no more at any address or port of this entry; connections end."), shown(opening.owner))}</p>
            {before && entry && <pre className="entry">{linesOf(before.text, entry).map(shown).join("\n")}</pre>}
            {told && <InView of={told}><SavingMeanwhile standing={told} /></InView>}
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
            <p>{cockpit.format(_("$0 is reachable no more at $1; connections end."), shown(opening.owner), opening.listens)}</p>
        </Question>
    );
}

interface QuestionProps { title: string; verb: string; onSure: () => Promise<void>; onClose: () => void; isReady?: boolean; children: ReactNode }

function Question({ title, verb, onSure, onClose, isReady = true, children }: QuestionProps) {
    const [failure, setFailure] = useState<unknown>(null);
    const [isBusy, setIsBusy] = useState(false);
    const problems = failure instanceof NotSaved ? failure.problems : [];
    const sure = () => {
        setIsBusy(true);
        setFailure(null);
        onSure().catch(setFailure).finally(() => setIsBusy(false));
    };
    return (
        <Dialog variant="small" onClose={onClose} aria-labelledby="question-title" aria-describedby="question-text">
            <ModalHeader title={title} titleIconVariant="warning" labelId="question-title" />
            <ModalBody id="question-text">
                {failure !== null &&
                    <Message variant="danger" title={failureText(failure)}>
                        {problems.length > 0 && <ul>{problems.map((problem, index) => <li key={index}><AtPlace problem={problem} /></li>)}</ul>}
                    </Message>}
                {children}
            </ModalBody>
            <ModalFooter>
                <Button variant="danger" onClick={sure} {...busy(isBusy)} isDisabled={isBusy || !isReady}>{verb}</Button>
                <Button variant="link" onClick={() => onClose()}>{_("Cancel")}</Button>
            </ModalFooter>
        </Dialog>
    );
}
