// What the journal says of one guest or network.
import { useEffect, useState } from "react";
import { ModalBody, ModalHeader } from "@patternfly/react-core";
import { Dialog, Message, Waiting } from "./parts";
import { moment, shown } from "./text";
import type { Opening } from "./types";
import { English } from "./words";

const _ = cockpit.gettext;
const MOST = 200;

interface Line { at: string; text: string }

export function HistoryDialog({ opening, onClose }: { opening: Opening; onClose: () => void }) {
    const [lines, setLines] = useState<Line[] | null>(null);
    const [failure, setFailure] = useState("");
    const field = opening.owner_kind === "domain" ? "PORTFWD_DOMAIN" : "PORTFWD_NETWORK";
    useEffect(() => {
        const argv = ["journalctl", "--output=json", "--no-pager", "--quiet", "--reverse", `--lines=${MOST}`, "_SYSTEMD_UNIT=kvm-portfwd.service", `${field}=${opening.owner}`];
        const reading = cockpit.spawn(argv, { superuser: "try", err: "message" });
        reading.then(output => setLines(output.split("\n").filter(Boolean).map(read)), (error: { message?: string }) => setFailure(error.message ?? String(error)));
        return () => reading.close();
    }, [field, opening.owner]);
    return (
        <Dialog variant="medium" onClose={onClose} aria-labelledby="history-title">
            <ModalHeader title={cockpit.format(_("History of $0"), shown(opening.owner))} labelId="history-title" />
            <ModalBody tabIndex={0} aria-label={_("Entries of the journal")}>
                {failure && <Message variant="danger" title={failure} />}
                {!lines && !failure && <Waiting text={_("Reading the journal")} />}
                {lines?.length === 0 && _("The journal has no entries, or this user may not read them.")}
                <ul className="log">{lines?.map((line, index) => <li key={index}><span className="subtle">{line.at}</span> <English text={line.text} /></li>)}</ul>
            </ModalBody>
        </Dialog>
    );
}

function read(line: string): Line {
    const entry = JSON.parse(line) as { MESSAGE: string | number[] | null; __REALTIME_TIMESTAMP: string };
    const text = Array.isArray(entry.MESSAGE) ? new TextDecoder().decode(new Uint8Array(entry.MESSAGE)) : entry.MESSAGE ?? "";
    return { at: moment(new Date(Number(entry.__REALTIME_TIMESTAMP) / 1000).toISOString()), text };
}
