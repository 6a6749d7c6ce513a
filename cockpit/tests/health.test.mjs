// What the page says of the daemon's state, and that it says nothing where nothing is wrong.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createElement } from "react";
import { renderToStaticMarkup } from "react-dom/server";

const format = (template, ...words) => template.replace(/\$(\d)/g, (_match, index) => words[index]);
globalThis.cockpit = { gettext: text => text, ngettext: (one, many, count) => count === 1 ? one : many, format, language: "en-us" };
const { Health } = await import("../node_modules/.tested/health.mjs");

const GOOD = {
    backend: null, libvirt: [], restored: [], problems: [], last_look: null, fleet: null, late: [], lost_log_lines: 0, lost_connection_events: 0,
    configuration: { file: "/etc/portfwd.toml", refused_problems: [], confirm_by: null, remaining_seconds: null, unconfirmed: false },
};
const WAITS = { ...GOOD.configuration, confirm_by: "2026-12-01T12:00:00.000Z", remaining_seconds: 75 };

function said(some, isAdmin = true) {
    const html = renderToStaticMarkup(createElement(Health, { status: { ...GOOD, ...some }, isAdmin, onDone() {} }));
    return html.replace(/<[^>]*>/g, " ").replace(/&#x27;/g, "'").replace(/\s+/g, " ");
}

test("where nothing is wrong there is no warning", () => {
    assert.doesNotMatch(said({}), /Warning|Error/);
});

test("what waits to be confirmed says for how long, and an administrator can keep it", () => {
    assert.match(said({ configuration: WAITS }), /Warning: .*comes back: .*\(75 seconds left\).*kvm-portfwd confirm .*Keep this configuration/);
    assert.doesNotMatch(said({ configuration: WAITS }, false), /Keep this configuration/);
});

test("what was not confirmed in time is told as long as the files have it", () => {
    assert.match(said({ configuration: { ...GOOD.configuration, unconfirmed: true } }), /Error: The files are not what is in force/);
});

test("what takes long and what was lost is told", () => {
    assert.match(said({ late: [{ job: "libvirt", about: "qemu:///system", seconds: 12.3 }] }), /an answer of libvirt at qemu:\/\/\/system, 12 s so far/);
    assert.match(said({ lost_log_lines: 1, lost_connection_events: 2 }), /1 line, so that .*2 begins and ends of connections/);
    assert.doesNotMatch(said({ lost_log_lines: 1 }), /begins and ends/);
});

test("etcd is shown, and warned of where most of it does not answer", () => {
    const fleet = { answering: 2, members: 3, revision: 17, age_seconds: 1.2, entries: 4 };
    assert.match(said({ fleet }), /2 of 3 members answer, revision 17, heard of 1 s ago/);
    assert.doesNotMatch(said({ fleet }), /Warning/);
    assert.match(said({ fleet: { ...fleet, answering: 1, age_seconds: null } }), /nothing heard yet.*Most members of etcd do not answer/);
});
