// Follows Cockpit's choice of light or dark: the shell keeps it in localStorage, and says when it changes.

const DARK = "pf-v6-theme-dark";

export function followTheme(): void {
    const preference = window.matchMedia("(prefers-color-scheme: dark)");
    const apply = (style?: string) => {
        const chosen = style ?? localStorage.getItem("shell:style") ?? "auto";
        document.documentElement.classList.toggle(DARK, chosen === "dark" || (chosen === "auto" && preference.matches));
    };
    window.addEventListener("storage", event => {
        if (event.key === "shell:style")
            apply();
    });
    window.addEventListener("cockpit-style", event => apply((event as CustomEvent<{ style: string }>).detail.style));
    preference.addEventListener("change", () => apply());
    apply();
}
