// One connection, followed through the host: the steps as a list, and what to do where it fails.
import { useEffect, useState } from "react";
import type { FormEvent, ReactNode } from "react";
import { AlertActionLink, Button, Form, FormGroup, Grid, GridItem, ModalBody, ModalFooter, ModalHeader, TextInput } from "@patternfly/react-core";
import CheckCircleIcon from "@patternfly/react-icons/dist/esm/icons/check-circle-icon";
import ExclamationCircleIcon from "@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon";
import QuestionCircleIcon from "@patternfly/react-icons/dist/esm/icons/question-circle-icon";
import { isOwn } from "./fields";
import { Dialog, InView, Message, busy } from "./parts";
import { call } from "./varlink";
import { connectionTo, shown } from "./text";
import { English, causeText, isEnglish, stepText } from "./words";
import type { Explanation, Opening, Step } from "./types";

const _ = cockpit.gettext;

// Causes that another entry, or another text of it, takes away.
const IN_ENTRY = ["unclaimed", "claimed", "source-refused", "wrong-interface", "no-such-domain", "no-such-network", "wrong-family", "no-address",
                  "address-refused", "guest-refuses", "guest-unreachable"];

export interface Mending { openings: Opening[]; main: string; isAdmin: boolean; onAct: (action: "add" | "change", opening?: Opening) => void }

export function ExplainDialog({ opening, onClose, ...mending }: Mending & { opening: Opening | null; onClose: () => void }) {
    const [connection, setConnection] = useState(opening ? connectionTo(opening) : "");
    const [source, setSource] = useState("");
    const [found, setFound] = useState<Explanation | null>(null);
    const [failure, setFailure] = useState("");
    const [isAsking, setIsAsking] = useState(false);

    const ask = () => {
        setIsAsking(true);
        setFailure("");
        call<Explanation>("Explain", { connection: connection.trim(), source: source.trim() || null })
            .then(setFound, (error: Error) => { setFound(null); setFailure(error.message) })
            .finally(() => setIsAsking(false));
    };
    // Which address of a route a guest has, the user knows; where the route is not in force, any will do.
    const isClear = opening && (opening.kind !== "route" || opening.state !== "active");
    // eslint-disable-next-line react-hooks/exhaustive-deps -- asked once for the row that the dialog was opened from
    useEffect(() => { if (isClear) ask() }, []);
    const submit = (event: FormEvent) => {
        event.preventDefault();
        ask();
    };
    return (
        <Dialog variant="medium" onClose={onClose} aria-labelledby="explain-title">
            <ModalHeader title={_("Explain a connection")} labelId="explain-title" description={_("Follows a connection through this host, and says where it stops and what helps. Nothing is changed.")} />
            <ModalBody>
                <Form onSubmit={submit} id="explain">
                    <Grid hasGutter md={6}>
                        <GridItem>
                            <FormGroup label={_("To")} fieldId="explain-to" isRequired>
                                <TextInput id="explain-to" value={connection} onChange={(_event, text) => setConnection(text)} placeholder="198.51.100.7:8000/tcp" isRequired />
                            </FormGroup>
                        </GridItem>
                        <GridItem>
                            <FormGroup label={_("From (empty: anywhere outside)")} fieldId="explain-from">
                                <TextInput id="explain-from" value={source} onChange={(_event, text) => setSource(text)} placeholder="203.0.113.9" />
                            </FormGroup>
                        </GridItem>
                    </Grid>
                </Form>
                <div aria-live="polite">
                    {failure && <Message variant="danger" title={<English text={failure} />} />}
                    {found && <Answer found={found} {...mending} />}
                </div>
            </ModalBody>
            <ModalFooter>
                <Button type="submit" form="explain" {...busy(isAsking)} isDisabled={isAsking || !connection.trim()}>{_("Explain")}</Button>
                <Button variant="link" onClick={() => onClose()}>{_("Done")}</Button>
            </ModalFooter>
        </Dialog>
    );
}

function Answer({ found, ...mending }: Mending & { found: Explanation }) {
    return (
        <>
            <h2 className="answer"><English text={found.connection} /></h2>
            <ol className="steps">{found.steps.map((step, index) => <OneStep key={index} step={step} />)}</ol>
            <Verdict found={found} links={mend(found, mending)} />
        </>
    );
}

// What to do, or that it works: the daemon's sentence, below one in the language of the session.
function Verdict({ found, links }: { found: Explanation; links: ReactNode }) {
    const isDoubtful = found.steps.some(step => step.state === "unknown");
    const fine = isEnglish ? "" : isDoubtful ? _("As far as this host can tell, it works.") : _("It works.");
    const title = found.works ? fine : causeText(found.cause);
    const sentence = <English text={found.sentence} />;
    return (
        <InView of={found}>
            <Message variant={found.works ? "success" : "danger"} title={title || sentence} actionLinks={links}>{title && sentence}</Message>
        </InView>
    );
}

// Leads to the form, where that is what helps, and the entry is the page's own or none yet.
function mend({ cause, entry }: Explanation, { openings, main, isAdmin, onAct }: Mending): ReactNode {
    const own = entry && openings.find(each => isOwn(each, main) && each.line === entry.line && each.file === entry.file);
    if (!isAdmin || !cause || !IN_ENTRY.includes(cause))
        return null;
    if (own)
        return <AlertActionLink onClick={() => onAct("change", own)}>{_("Change the entry")}</AlertActionLink>;
    return cause === "unclaimed" ? <AlertActionLink onClick={() => onAct("add")}>{_("Add a forward")}</AlertActionLink> : null;
}

function OneStep({ step }: { step: Step }) {
    const [Icon, word, colour] = {
        ok: [CheckCircleIcon, _("fine"), "success"] as const,
        no: [ExclamationCircleIcon, _("fails here"), "danger"] as const,
        unknown: [QuestionCircleIcon, _("not known"), "warning"] as const,
    }[step.state];
    return (
        <li className={step.state}>
            <Icon color={`var(--pf-t--global--icon--color--status--${colour}--default)`} aria-label={word} role="img" />
            <div>
                <strong>{stepText(step.step)}</strong><English text={step.text} />
                {step.state === "no" && step.chain?.rule && <div><code>{shown(step.chain.rule.text)}</code></div>}
            </div>
        </li>
    );
}
