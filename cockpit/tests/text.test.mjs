// What an entry is explained by, and how long something stays.
import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.cockpit = {
    language: "en-us",
    gettext: text => text,
    ngettext: (one, many, count) => count === 1 ? one : many,
    format: (template, ...words) => template.replace(/\$(\d)/g, (_match, index) => words[index]),
};
const { connectionTo, remaining, sizeText } = await import("../node_modules/.tested/text.mjs");

test("a forward is explained by its first port", () => {
    assert.equal(connectionTo({ kind: "forward", address: null, ports: "8000-8009", protocol: "tcp" }), ":8000");
    assert.equal(connectionTo({ kind: "forward", address: "2001:db8::7", family: 6, ports: "53", protocol: "udp" }), "[2001:db8::7]:53/udp");
});

test("a route is explained by the first address that a guest can have", () => {
    const asked = { "203.0.113.64/29": "203.0.113.65:443", "203.0.113.66/32": "203.0.113.66:443", "203.0.113.66/31": "203.0.113.66:443",
                    "2001:db8:1::/64": "[2001:db8:1::1]:443", "2001:db8::/128": "[2001:db8::]:443", "2001:db8::8/125": "[2001:db8::8]:443" };
    for (const [subnet, connection] of Object.entries(asked))
        assert.equal(connectionTo({ kind: "route", subnet }), connection);
});

test("what ends says how long it stays, and never longer", () => {
    const said = { 0: "0 seconds left", 1: "1 second left", 119: "119 seconds left", 179: "2 minutes left", 28799: "7 h 59 min left", 28800: "8 h 0 min left",
                   604800: "7 days left" };
    for (const [seconds, text] of Object.entries(said))
        assert.equal(remaining(Number(seconds)), text);
});

test("a size has its unit", () => {
    const said = { 0: "0 B", 999: "999 B", 1000: "1 kB", 123456: "123 kB", 1550000: "1.55 MB", 5e15: "5,000 TB" };
    for (const [bytes, text] of Object.entries(said))
        assert.equal(sizeText(Number(bytes)), text);
});
