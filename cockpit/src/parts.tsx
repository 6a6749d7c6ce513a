// Parts of PatternFly's that say something by themselves, if only to a screen reader: here in the language of the session.
import { useEffect, useRef } from "react";
import type { ReactNode } from "react";
import { Alert, Modal, Spinner } from "@patternfly/react-core";
import type { AlertProps } from "@patternfly/react-core";
import { ModalBoxCloseButton } from "@patternfly/react-core/dist/esm/components/Modal/ModalBoxCloseButton";

const _ = cockpit.gettext;

interface DialogProps {
    variant: "small" | "medium"; onClose: () => void; children: ReactNode;
    "aria-labelledby": string; "aria-describedby"?: string; elementToFocus?: string;
}

export function Dialog({ onClose, children, ...rest }: DialogProps) {
    return (
        <Modal isOpen onEscapePress={() => onClose()} {...rest}>
            <ModalBoxCloseButton aria-label={_("Close")} onClose={() => onClose()} />
            {children}
        </Modal>
    );
}

const KINDS = { success: _("Done:"), info: _("Note:"), warning: _("Warning:"), danger: _("Error:") };

export function Message({ variant, ...rest }: Omit<AlertProps, "variant" | "ref"> & { variant: keyof typeof KINDS }) {
    return <Alert isInline variant={variant} variantLabel={KINDS[variant]} toggleAriaLabel={_("Details")} {...rest} />;
}

// What is not to be overlooked because it would have to be scrolled to; `of` is what it is about.
export function InView({ of, children }: { of: unknown; children: ReactNode }) {
    const place = useRef<HTMLDivElement>(null);
    useEffect(() => { place.current?.scrollIntoView({ block: "nearest" }) }, [of]);
    return <div ref={place} className="messages">{children}</div>;
}

export function Waiting({ text }: { text: string }) {
    return <Spinner aria-label={text} aria-valuetext={_("Please wait")} />;
}

// What a button has while what it does goes on.
export function busy(isLoading: boolean) {
    return { isLoading, spinnerAriaLabel: _("Please wait"), spinnerAriaValueText: _("Please wait") };
}
