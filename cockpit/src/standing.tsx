// What is to be confirmed, or was not in time: what that means for the administrator, and for what is saved meanwhile.
import { useState } from "react";
import { AlertActionLink } from "@patternfly/react-core";
import { Message } from "./parts";
import { moment, remaining } from "./text";
import type { Status } from "./types";
import { call } from "./varlink";
import { English, Sentence } from "./words";

const _ = cockpit.gettext;

// "waits": the configuration before comes back unless the one in force is confirmed; "over": it has come back, and the
// files hold what was not confirmed.
export type Standing = "" | "waits" | "over";

export function standingOf({ unconfirmed, confirm_by }: Status["configuration"]): Standing {
    return unconfirmed ? "over" : confirm_by ? "waits" : "";
}

export function Confirmation({ configuration, isAdmin, onDone }: { configuration: Status["configuration"]; isAdmin: boolean; onDone: (text: string) => void }) {
    const standing = standingOf(configuration);
    if (standing === "over")
        return (
            <Message variant="danger" title={_("The files are not what is in force: they were not confirmed in time")}>
                <Sentence text={_("The configuration before them is in force again. Saving here or `kvm-portfwd reload` brings the files into force as they are, and nothing takes them back then. `kvm-portfwd reload --confirm 2m` tries them once more.")} />
            </Message>
        );
    return standing && <Waits configuration={configuration} isAdmin={isAdmin} onDone={onDone} />;
}

function Waits({ configuration: { confirm_by, remaining_seconds = null }, isAdmin, onDone }: { configuration: Status["configuration"]; isAdmin: boolean; onDone: (text: string) => void }) {
    const [failure, setFailure] = useState("");
    const keep = () => {
        call("Confirm").then(() => onDone(_("The configuration is kept")), (error: Error) => setFailure(error.message));
    };
    const until = cockpit.format(_("Unless it is confirmed, the configuration before comes back: $0"), moment(confirm_by ?? ""));
    return (
        <Message variant="warning" title={remaining_seconds === null ? until : `${until} (${remaining(remaining_seconds)})`}
                 actionLinks={isAdmin && <AlertActionLink onClick={keep}>{_("Keep this configuration")}</AlertActionLink>}>
            <Sentence text={_("What is in force now was loaded with `kvm-portfwd reload --confirm`. If it lets you and others in as it should, keep it, as `kvm-portfwd confirm` does; otherwise wait, or correct it.")} />
            {failure && <div><English text={failure} /></div>}
        </Message>
    );
}

// What is asked before something is saved in such a state.
export function SavingMeanwhile({ standing }: { standing: Standing }) {
    if (standing === "over")
        return (
            <Message variant="warning" title={_("This also brings the rest of the files into force, which was not confirmed in time")}>
                {_("If that kept somebody out, it does so again, and nothing takes it back.")}
            </Message>
        );
    return standing && (
        <Message variant="warning" title={_("The configuration in force still waits to be confirmed")}>
            {_("Unless that is done, this change goes out of force with it, though the file keeps it.")}
        </Message>
    );
}
