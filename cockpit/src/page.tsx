// The page as a whole: what to do where there is no daemon, or its health above what it keeps open.
import { useEffect, useState } from "react";
import {
    AlertActionCloseButton, AlertGroup, Bullseye, Button, EmptyState, EmptyStateActions, EmptyStateBody, EmptyStateFooter,
    Page as Frame, PageSection, Stack, StackItem,
} from "@patternfly/react-core";
import PlusCircleIcon from "@patternfly/react-icons/dist/esm/icons/plus-circle-icon";
import PluggedIcon from "@patternfly/react-icons/dist/esm/icons/unplugged-icon";
import LockIcon from "@patternfly/react-icons/dist/esm/icons/lock-icon";
import { CloseDialog, RemoveDialog } from "./ending";
import { EntryDialog } from "./entry";
import { ExplainDialog } from "./explain";
import { Health } from "./health";
import { HistoryDialog } from "./history";
import { Openings } from "./openings";
import { useDaemon, useIsAdmin } from "./daemon";
import { Message, Waiting } from "./parts";
import { standingOf } from "./standing";
import type { Opening } from "./types";

const _ = cockpit.gettext;

interface Done { text: string; later: string }

const NOTHING_DONE: Done = { text: "", later: "" };

export type Action = "add" | "change" | "remove" | "close" | "explain" | "history";

export function Page() {
    const { status, problem } = useDaemon();
    const isAdmin = useIsAdmin();
    const [dialog, setDialog] = useState<{ action: Action; opening: Opening | null } | null>(null);
    const [done, setDone] = useState(NOTHING_DONE);
    const act = (action: Action, opening: Opening | null = null) => {
        setDone(NOTHING_DONE);
        setDialog({ action, opening });
    };
    const close = (text = "", later = "") => {
        setDialog(null);
        setDone({ text, later });
    };
    const notices = <Notices done={done} onClose={() => setDone(NOTHING_DONE)} />;

    if (!status)
        return (
            <Frame className="pf-m-no-sidebar">
                <PageSection isFilled hasBodyWrapper={false}>{problem ? <Away problem={problem} isAdmin={isAdmin} /> : <Bullseye><Waiting text={_("Asking the daemon")} /></Bullseye>}</PageSection>
                {notices}
            </Frame>
        );
    const opening = dialog?.opening ?? null;
    const file = status.configuration.file;
    const saving = { main: file, standing: standingOf(status.configuration), onClose: close };
    return (
        <Frame className="pf-m-no-sidebar">
            <PageSection hasBodyWrapper={false}>
                <Stack hasGutter>
                    <Health status={status} isAdmin={isAdmin} onDone={close} />
                    <StackItem><Openings openings={status.openings} isAdmin={isAdmin} main={file} onAct={act} /></StackItem>
                </Stack>
            </PageSection>
            {dialog?.action === "explain" && <ExplainDialog opening={opening} onClose={close} openings={status.openings} main={file} isAdmin={isAdmin} onAct={act} />}
            {dialog?.action === "history" && opening && <HistoryDialog opening={opening} onClose={close} />}
            {dialog?.action === "add" && <EntryDialog {...saving} opening={null} />}
            {dialog?.action === "change" && <EntryDialog {...saving} opening={opening} />}
            {dialog?.action === "remove" && opening && <RemoveDialog {...saving} opening={opening} />}
            {dialog?.action === "close" && opening && <CloseDialog opening={opening} onClose={close} />}
            {notices}
        </Frame>
    );
}

// What was done, and why it is not in force yet: that stays until it is closed.
function Notices({ done: { text, later }, onClose }: { done: Done; onClose: () => void }) {
    const closing = <AlertActionCloseButton aria-label={_("Close")} onClose={onClose} />;
    return (
        <AlertGroup isToast isLiveRegion>
            {text && (later
                ? <Message key={later} isInline={false} variant="warning" title={text} actionClose={closing}>{later}</Message>
                : <Message key={text} isInline={false} variant="success" title={text} timeout={8000} onTimeout={onClose} actionClose={closing} />)}
        </AlertGroup>
    );
}

// Why there is no status, and what helps.
function Away({ problem, isAdmin }: { problem: string; isAdmin: boolean }) {
    const [failure, setFailure] = useState("");
    const [isActive, setIsActive] = useState(false);
    // It runs where only its socket was removed, which it makes again.
    useEffect(() => {
        const ask = () => void cockpit.spawn(["systemctl", "is-active", "kvm-portfwd.service"], { err: "ignore" }).then(() => setIsActive(true), () => setIsActive(false));
        ask();
        const asking = window.setInterval(ask, 3000);
        return () => window.clearInterval(asking);
    }, []);
    if (problem === "access-denied" || problem === "PermissionDenied")
        return (
            <EmptyState titleText={_("You may not see the port forwards")} headingLevel="h1" icon={LockIcon} variant="lg">
                <EmptyStateBody>{_("Become an administrator in Cockpit, or a member of the group that [control] group in /etc/portfwd.toml names.")}</EmptyStateBody>
            </EmptyState>
        );
    const start = () => {
        setFailure("");
        cockpit.spawn(["systemctl", "start", "kvm-portfwd.service"], { superuser: "require", err: "message" })
            .catch((error: { message?: string }) => setFailure(error.message ?? String(error)));
    };
    return (
        <EmptyState titleText={_("The daemon kvm-portfwd does not answer")} headingLevel="h1" icon={PluggedIcon} variant="lg">
            <EmptyStateBody>
                {isActive
                    ? _("It runs, but cannot be reached at its socket, which it makes again by itself. This page continues then.")
                    : _("Its rules stay in the kernel, but nothing follows the guests. This page continues by itself once it runs.")}
                {failure && <Message variant="danger" title={failure} />}
            </EmptyStateBody>
            {!isActive &&
                <EmptyStateFooter>
                    <EmptyStateActions>
                        <Button onClick={start} isDisabled={!isAdmin}>{_("Start the service")}</Button>
                    </EmptyStateActions>
                </EmptyStateFooter>}
        </EmptyState>
    );
}

export function Nothing({ isAdmin, onAdd }: { isAdmin: boolean; onAdd: () => void }) {
    return (
        <EmptyState titleText={_("Nothing is forwarded yet")} headingLevel="h3" icon={PlusCircleIcon}>
            <EmptyStateBody>{_("A forward makes a port of a virtual machine reachable from outside this host.")}</EmptyStateBody>
            <EmptyStateFooter>
                <EmptyStateActions>
                    <Button onClick={onAdd} isDisabled={!isAdmin}>{_("Add a forward")}</Button>
                </EmptyStateActions>
            </EmptyStateFooter>
        </EmptyState>
    );
}
