// How the page changes its drop-in: what it does not change stays, byte for byte.
import assert from "node:assert/strict";
import { test } from "node:test";
import { changed, entries, entryAt, fieldAt, linesOf, written } from "../node_modules/.tested/dropin.mjs";

const BY_HAND = `# mine
[[forward]]
domain = "web1"     # as libvirt has it
ports = ["80"]

# for the game
[[forward]]
domain = "game"
ports = [
    "27015/udp",
]
`;

test("an entry is added at the end, and its line is told", () => {
    const { text, line } = changed(BY_HAND, null, written("forward", { domain: "db", ports: ["5432"] }));
    assert.ok(text.startsWith(BY_HAND));
    assert.equal(text.split("\n")[line - 1], "[[forward]]");
    assert.equal(text.split("\n")[line], 'domain = "db"');
});

test("an entry is changed, and all else stays", () => {
    const [, game] = entries(BY_HAND);
    const { text } = changed(BY_HAND, game, written("forward", { domain: "game", ports: ["27016/udp"] }));
    assert.equal(text, BY_HAND.replace("27015", "27016"));
});

test("an entry is removed, and what stands above the next one stays", () => {
    const [web] = entries(BY_HAND);
    const { text } = changed(BY_HAND, web, null);
    assert.equal(text, BY_HAND.replace(/\[\[forward\]\]\ndomain = "web1".*\nports = \["80"\]\n/, "").replace("\n\n\n", "\n\n"));
});

test("nothing is left of the file when its only entry is removed, but for what was written by hand", () => {
    const { text } = changed(null, null, written("forward", { domain: "web1", ports: ["80"] }));
    assert.equal(changed(text, entries(text)[0], null).text, null);
    const more = text.replace("[[forward]]", "# mine\n\n[[forward]]");
    assert.match(changed(more, entries(more)[0], null).text, /# mine/);
});

test("an entry in another form than the page's is known, and not read", () => {
    const [web, game] = entries(BY_HAND);
    assert.equal(web.keys, null);
    assert.deepEqual(game.keys, { domain: "game", ports: ["27015/udp"] });
});

test("an entry about another guest than the one that was there is not taken for it", () => {
    assert.equal(entryAt(BY_HAND, 7, "forward", "game").start, 7);
    assert.equal(entryAt(BY_HAND, 7, "forward", "web1"), null);
    assert.equal(entryAt(BY_HAND, 7, "nat", "game"), null);
    assert.equal(entryAt(BY_HAND, 99, "forward", "game"), null);
    assert.equal(entryAt(null, 1, "forward", "game"), null);
});

test("the lines of an entry are those that go with it", () => {
    const [, game] = entries(BY_HAND);
    assert.deepEqual(linesOf(BY_HAND, game), ["[[forward]]", 'domain = "game"', "ports = [", '    "27015/udp",', "]"]);
});

test("a name of a guest cannot end its string, or begin another entry", () => {
    const name = 'a"\n[[route]]\nnetwork = "x\u007f\\';
    const lines = written("forward", { domain: name, ports: ["80"] });
    assert.equal(lines.length, 5);
    assert.equal(entries(lines.join("\n")).length, 1);
    assert.equal(lines[1], 'domain = "a\\"\\n[[route]]\\nnetwork = \\"x\\u007f\\\\"');
});

test("a line tells its field, and which of several it is", () => {
    const lines = written("forward", { domain: "web1", ports: ["80", "81"], masquerade: true });
    assert.deepEqual(lines.map((_line, index) => fieldAt(lines, index)),
                     [null, "domain", "ports", "ports.0", "ports.1", "ports.2", "masquerade"]);
});
