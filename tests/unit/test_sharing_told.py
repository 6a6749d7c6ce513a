"""What is reported of what domains ask for: in the journal, in the status, and by `explain`."""

import logging
from dataclasses import replace

import pytest

from fwdaemon.audit import lines
from fwdaemon.audit.throttle import Rations
from fwdaemon.core.inventory import Element, Inventory, Metadata
from fwdaemon.core.report import Cause as Why
from fwdaemon.explain.report import Cause, Report, as_object, as_text
from fwdaemon.resolve.placement import Placer
from fwdaemon.status.rows import Facts, Readings, rows
from tests.unit import trace_scene
from tests.unit.asking import (
    HOST,
    NETWORKS,
    PUBLIC,
    config,
    domain,
    element,
    forward,
    live,
    placed,
    refused,
)

HERE = {"listen": "198.51.100.7"}


def test_what_is_misread_is_told_and_the_rest_is_open() -> None:
    desired = placed(domain("ci-1", 1, forward("80x"), forward("8000")))
    assert live(desired) == {"ci-1 tcp *:8000"}
    ((what, reason),) = refused(desired).items()
    assert (what, reason[:28]) == ("ci-1 metadata", 'forward 1: ports[1]: "80x" i')


def test_a_domain_fills_no_journal_by_asking() -> None:
    rations = Rations()
    many = [
        item for n in range(1, 3) for item in placed(domain(f"ci-{n}", n, forward("22 23 24 25 26 27 28 29"))).waiting
    ]
    assert [item.owner.name for item in rations.admitted(many, 0.0)] == ["ci-1"] * 6 + ["ci-2"] * 6
    assert not rations.admitted(many, 59.0)
    assert len(rations.admitted(many, 61.0)) == 12


def test_a_domain_that_waits_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fwdaemon.audit")
    stopped = placed(replace(domain("ci-1", 1, forward("8000 8001 22")), running=False))
    lines.waiting(stopped.waiting)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "waiting ci-1: the domain is not running (domain ci-1",
        "declined ci-1: tcp *:22",
    ]


def test_the_journal_names_the_element_and_the_policy_of_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fwdaemon.audit")
    text = PUBLIC.replace('"53"]', '"40000-40002"]') + '[daemon]\nauto_ports = "40000-40002"\n'
    asked = domain("ci-1", 1, forward("22"), element("nat", public="192.0.2.70"), forward("auto:22 8000:80", **HERE))
    placer = Placer({})
    desired = placer.place(config(text), Inventory((asked,), NETWORKS, HOST))
    lines.assigned(placer.assigned)
    for exposure in sorted(desired.exposures, key=lambda item: item.listens_at()):
        lines.exposure("added", exposure, Why())
    lines.waiting(desired.waiting)
    assigned, *rest = [record.getMessage() for record in caplog.records]
    assert assigned.endswith(" to ci-1: tcp 22 (domain ci-1, metadata: forward 2; allowed by /portfwd.toml:2)")
    assert rest[-1].endswith("does not cover ports tcp 22 (domain ci-1, metadata: forward 1)")
    assert rest[0].startswith("added ci-1: all of 192.0.2.70 -> 192.168.122.1 (")
    assert len(rest) == 4
    assert all(line.endswith("; allowed by /portfwd.toml:2)") for line in rest[:3])
    causes = [vars(record)["journal"]["PORTFWD_CAUSE"] for record in caplog.records[:4]]
    assert all(cause.endswith("allowed by /portfwd.toml:2") for cause in causes)


def test_what_is_wrong_is_told_with_the_element_that_it_is_in(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fwdaemon.audit")
    elements = element("nat", public="192.0.2.70"), forward("8000"), forward("80x"), element("nta"), forward("81x")
    lines.waiting(item for item in placed(domain("ci-1", 1, *elements)).waiting if item.claim and not item.claim.ports)
    told = [record.getMessage().partition(' "')[0] for record in caplog.records[1:]]
    wrong = ("forward 2: ports[1]:", "forwards: unknown element", "forward 3: ports[1]:")
    assert told == [f"declined ci-1: domain ci-1, metadata: {what}" for what in wrong]


def test_the_status_says_where_each_comes_from_and_why_the_rest_is_refused() -> None:
    desired = placed(domain("ci-1", 1, forward("8000 22")), replace(domain("ci-2", 2, forward("53")), running=False))
    shown = {row.listens: row.as_json() for row in rows(Facts(config(), desired, desired), Readings())}
    assert {
        listens: (row["state"], row["origin"], row["allowed_by"], row["file"]) for listens, row in shown.items()
    } == {
        "tcp *:8000": ("active", "domain ci-1, metadata: forward 1", "/portfwd.toml:2", None),
        "tcp *:22": ("refused", "domain ci-1, metadata: forward 1", None, None),
        "tcp *:53": ("waiting", "domain ci-2, metadata: forward 1", "/portfwd.toml:2", None),
    }
    assert shown["tcp *:22"]["reason_kinds"] == ["not-allowed"]


def test_explain_follows_what_a_definition_asks_for() -> None:
    web = replace(trace_scene.WEB, metadata=Metadata((forward("8000:80 22"),)))
    policy = '[[allow]]\ndomains = "web"\nports = "8000"\n'
    open_ = trace_scene.told(text=policy, said=trace_scene.libvirt(web))
    assert trace_scene.cause(open_) is None
    assert "domain web, metadata: forward 1" in as_text(open_, terminal=False, unicode=False)
    assigned = trace_scene.libvirt(replace(web, metadata=Metadata((forward("auto:80"),))))
    pool = policy + '[daemon]\nauto_ports = "8000-8000"\n'
    assert trace_scene.cause(trace_scene.told(text=pool, said=assigned)) is None
    shut = trace_scene.told("198.51.100.1:22", text=policy, said=trace_scene.libvirt(web))
    assert trace_scene.cause(shut) is Cause.NOT_ALLOWED
    assert "does not cover ports tcp 22" in as_text(shut, terminal=False, unicode=False)
    assert "write an [[allow]] for that in /etc/portfwd.toml" in shut.sentence
    assert as_object(shut)["entry"] is None


def test_explain_says_what_gives_a_definition_what_is_refused_for_another_reason() -> None:
    policy = '[[allow]]\ndomains = "web"\nports = "8000"\n'
    there = '[[forward]]\ndomain = "other"\nports = ["198.51.100.9:8000:80"]\n'

    def told(asked: Element, text: str = policy) -> Report:
        web = replace(trace_scene.WEB, metadata=Metadata((asked,)))
        return trace_scene.told(text=text, said=trace_scene.libvirt(web))

    taken = told(forward("8000:80"), policy + there)
    assert trace_scene.cause(taken) is Cause.CLAIMED
    assert taken.sentence == (
        "Write another port of the host in the metadata of domain web, or take this one away from other"
        " (/etc/portfwd.toml:4)."
    )
    strange = told(forward("8000:80", address="192.168.122.77"))
    assert trace_scene.cause(strange) is Cause.ADDRESS_REFUSED
    assert strange.sentence == "Write an address that the guest has, or none, in the metadata of domain web."
