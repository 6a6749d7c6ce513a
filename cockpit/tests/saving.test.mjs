// What becomes of the page's file, and what the user reads, as the daemon answers this or that, or not at all.
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

const FILE = "/etc/portfwd.d/cockpit.toml";
const REFUSED = { error: "kvm.portfwd.Manager.ConfigurationRefused", parameters: { problems: [{ file: FILE, line: 3, text: "wrong" }] } };
let file, answers, asked;

// As Cockpit's, of which the page uses this much: a file has a new tag each time that it is written.
globalThis.cockpit = {
    gettext: text => text,
    format: (template, ...words) => template.replace(/\$(\d)/g, (_match, index) => words[index]),
    spawn: async () => "",
    file: () => ({
        async replace(content, tag) {
            if (tag !== file.tag)
                throw { problem: "change-conflict" };
            file = { text: content, tag: `${tag}+` };
            return file.tag;
        },
    }),
    channel() {
        const listeners = {};
        return {
            addEventListener: (name, listener) => { listeners[name] = listener },
            close() {},
            send(message) {
                const { method, parameters } = JSON.parse(new TextDecoder().decode(message.subarray(0, -1)));
                const name = method.split(".").pop();
                asked.push(name);
                const answer = answers[name](parameters);
                queueMicrotask(() => answer
                    ? listeners.message({}, new TextEncoder().encode(`${JSON.stringify(answer)}\0`))
                    : listeners.close({}, { problem: "disconnected" }));
            },
        };
    },
};
const { NotSaved, check, openPorts, save } = await import("../node_modules/.tested/saving.mjs");

const BEFORE = { text: "before", tag: "1" };

beforeEach(() => {
    file = { ...BEFORE };
    answers = {};
    asked = [];
});

function saved(before = BEFORE) {
    return save("/etc/portfwd.toml", before, "after");
}

test("what the daemon takes is written, and there is nothing more to say", async () => {
    answers.Reload = () => ({ parameters: { failure: null } });
    assert.equal(await saved(), "");
    assert.equal(file.text, "after");
});

test("what the kernel does not take yet stays written, and that is said", async () => {
    answers.Reload = () => ({ parameters: { failure: "no nft" } });
    assert.match(await saved(), /not taken it yet.*no nft/);
    assert.equal(file.text, "after");
});

test("what the daemon refuses is taken back, and can be mended and saved from there", async () => {
    answers.Reload = () => REFUSED;
    const error = await saved().catch(found => found);
    assert.ok(error instanceof NotSaved);
    assert.match(error.message, /as before/);
    assert.equal(error.problems[0].text, "wrong");
    assert.equal(file.text, "before");
    answers.Reload = () => ({ parameters: { failure: null } });
    assert.equal(await saved(error.now), "");
    assert.equal(file.text, "after");
});

test("what the daemon refuses, and another wrote over meanwhile, is not touched again", async () => {
    answers.Reload = () => {
        file = { text: "another's", tag: "another's" };
        return REFUSED;
    };
    const error = await saved().catch(found => found);
    assert.match(error.message, /could not be put back.*change-conflict/);
    assert.equal(error.now, null);
    assert.equal(file.text, "another's");
});

test("without an answer the daemon may have taken it, so it stays written, and that is said", async () => {
    answers.Reload = () => null;
    assert.match(await saved(), /did not say whether it has taken it \(disconnected\)/);
    assert.equal(file.text, "after");
});

test("what was changed since it was read is not overwritten, and the daemon is not asked", async () => {
    file = { text: "another's", tag: "2" };
    await assert.rejects(saved(), /changed meanwhile/);
    assert.equal(file.text, "another's");
    assert.deepEqual(asked, []);
});

test("ports that the kernel does not open yet are not said to be open", async () => {
    const wish = { domain: "web1", ports: ["80"], sources: [], seconds: 60 };
    answers.Open = () => ({ parameters: { openings: [], failure: "no nft" } });
    assert.match(await openPorts(wish), /not taken it yet.*no nft/);
    answers.Open = () => ({ parameters: { openings: [], failure: null } });
    assert.equal(await openPorts(wish), "");
});

test("a check warns of what is new, and says what it could not look at", async () => {
    answers.Check = ({ text }) => ({ parameters: { problems: [], warnings: text ? ["old", "new"] : ["old"], unchecked: "no nft" } });
    assert.deepEqual(await check("after"), { problems: [], warnings: ["new"], unchecked: "no nft" });
});
