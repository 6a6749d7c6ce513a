// Bundles the page into dist.new/, which is the same for the same package-lock.json: no dates, no absolute paths.
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { build } from "esbuild";
import gettext from "gettext-parser";

const OUT = "dist.new";
const STYLES = ["node_modules/@patternfly/react-core/", "node_modules/@patternfly/react-styles/"];

// Cockpit has PatternFly's fonts, and serves them; its background pictures are for themes that Cockpit has not.
const withoutAssets = {
    name: "without assets",
    setup({ onLoad }) {
        onLoad({ filter: /react-core[/\\]dist[/\\]styles[/\\]base\.css$/ }, ({ path }) => ({
            contents: readFileSync(path, "utf8").replace(/@font-face\s*\{[^}]*\}/g, "").replace(/url\("\.\/assets\/images\/[^"]*"\)/g, "none"),
            loader: "css",
        }));
    },
};

// PatternFly imports the style of each component, whether or not the component is used: leave out those whose module
// has nothing in the bundle.
const onlyUsedStyles = used => ({
    name: "only used styles",
    setup({ onLoad }) {
        onLoad({ filter: /react-styles[/\\]css[/\\].*\.css$/ }, ({ path }) =>
            used.has(relative("", path).replace(/\.css$/, "")) ? undefined : { contents: "", loader: "css" });
    },
});

rmSync(OUT, { recursive: true, force: true });
mkdirSync(OUT);
const options = {
    entryPoints: { index: "src/index.tsx" },
    outdir: OUT,
    bundle: true,
    minify: true,
    format: "iife",
    target: ["es2020"],
    jsx: "automatic",
    define: { "process.env.NODE_ENV": '"production"' },
    external: ["../../static/*"],
    legalComments: "none",
    metafile: true,
    plugins: [withoutAssets],
    logLevel: "warning",
};
const { metafile } = await build({ ...options, write: false });
const modules = Object.entries(metafile.outputs[`${OUT}/index.js`].inputs).filter(([, { bytesInOutput }]) => bytesInOutput > 0);
await build({ ...options, plugins: [withoutAssets, onlyUsedStyles(new Set(modules.map(([path]) => path.replace(/\.m?js$/, ""))))] });
cpSync("src/index.html", join(OUT, "index.html"));
cpSync("manifest.json", join(OUT, "manifest.json"));
// Most icons of @patternfly/react-icons are made of those of another package, which it names in its package.json.
const ICONS = `Font Awesome Free 5.15.4, CC-BY-4.0

Copyright Fonticons, Inc. (https://fontawesome.com). The icons in the page that are not PatternFly's own are of Font
Awesome Free, in the form that @patternfly/react-icons has given them, under the Creative Commons Attribution 4.0
International licence: https://creativecommons.org/licenses/by/4.0/
`;
writeFileSync(join(OUT, "LICENSES.txt"), licences([...modules.map(([path]) => path), ...STYLES]));
for (const file of readdirSync("po").filter(name => name.endsWith(".po")).sort())
    translate(file);

// The npm packages that are part of the bundle, each with its version and the text of its licence.
function licences(inputs) {
    const names = inputs.map(path => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]).filter(Boolean);
    return [...new Set(names)].sort().map(name => {
        const folder = join("node_modules", name);
        const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
        const file = readdirSync(folder).sort().find(entry => /^licen[cs]e/i.test(entry));
        const text = file ? readFileSync(join(folder, file), "utf8").trim() : "See https://spdx.org/licenses/" + license;
        return `${name} ${version}, ${license}\n\n${text}\n`;
    }).concat(ICONS).join("\n" + "-".repeat(80) + "\n\n");
}

// Writes what cockpit.js reads: po.LANGUAGE.js for the page, po.manifest.LANGUAGE.js for its place in the menu.
function translate(file) {
    const language = file.replace(/\.po$/, "");
    const po = gettext.po.parse(readFileSync(join("po", file)));
    const known = Object.values(po.translations[""]).filter(entry => entry.msgid);
    const missing = [...texts()].filter(text => !known.some(entry => entry.msgid === text && entry.msgstr.every(Boolean)));
    if (missing.length)
        throw new Error(`${file} lacks: ${missing.map(text => JSON.stringify(text)).join(", ")}`);
    const needless = known.filter(entry => !texts().has(entry.msgid)).map(entry => entry.msgid);
    if (needless.length)
        throw new Error(`${file} has what the page does not say: ${needless.map(text => JSON.stringify(text)).join(", ")}`);
    const plural = /plural=([^;]+)/.exec(po.headers["Plural-Forms"])[1];
    const head = `"":{"plural-forms":(n)=>${plural},"language":"${language}","language-direction":"ltr"}`;
    const write = (name, entries) => writeFileSync(join(OUT, name), `cockpit.locale({${[head, ...entries.map(entry =>
        `${JSON.stringify(entry.msgid)}:${JSON.stringify([entry.msgid_plural ?? null, ...entry.msgstr])}`)].join(",\n")}});\n`);
    const label = labels();
    write(`po.${language}.js`, known);
    write(`po.manifest.${language}.js`, known.filter(entry => label.has(entry.msgid)));
}

function labels() {
    const { menu } = JSON.parse(readFileSync("manifest.json", "utf8"));
    return new Set(Object.values(menu).map(item => item.label));
}

// Every text of the source that is to be translated: _("…") and the first of cockpit.ngettext("…", "…", n).
function texts() {
    const found = labels();
    for (const name of readdirSync("src").filter(entry => /\.tsx?$/.test(entry))) {
        const source = readFileSync(join("src", name), "utf8");
        for (const match of source.matchAll(/(?:\b_|ngettext)\(\s*("(?:[^"\\]|\\.)*")/g))
            found.add(JSON.parse(match[1]));
    }
    return found;
}
