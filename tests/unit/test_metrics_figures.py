"""What Prometheus is given: conventional names and units, one series for each thing, and every name of a guest."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from fwdaemon.core.admission import Admission, Rate
from fwdaemon.core.state import Desired, Dropped
from fwdaemon.core.types import FleetState, Job
from fwdaemon.metrics.exposition import Exposition
from fwdaemon.metrics.figures import BOUNDS_S, Cause, Tally, metrics_of
from fwdaemon.status.model import Status
from fwdaemon.status.rows import Facts, Readings, rows
from tests.unit import statuses
from tests.unit.forwards import forward, some_states

MANUAL = Path(__file__).parents[2] / "man/portfwd.toml.5"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def exposed(status: Status, tally: Tally | None = None) -> Mapping[str, Metric]:
    """Every metric by its name, as a collector reads them."""
    text = Exposition(lambda: metrics_of(status, tally or Tally(), NOW)).text().decode()
    return {metric.name: metric for metric in text_string_to_metric_families(text)}


def values(metric: Metric, *labels: str) -> Mapping[tuple[str, ...], float]:
    """Every value by some of its labels."""
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in metric.samples}


def value(found: Mapping[str, Metric], name: str) -> float:
    (sample,) = found[f"kvm_portfwd_{name}"].samples
    return float(sample.value)


def test_every_metric_is_here_and_follows_the_conventions() -> None:
    found = exposed(statuses.status())
    assert {name.removeprefix("kvm_portfwd_"): metric.type for name, metric in found.items()} == {
        "auto_ports": "gauge",
        "build_info": "gauge",
        "claims_held": "gauge",
        "config_last_reload_success_timestamp_seconds": "gauge",
        "config_last_reload_successful": "gauge",
        "config_problems": "gauge",
        "connection_log_lost": "counter",
        "connections": "counter",
        "denied": "counter",
        "dropped": "counter",
        "ended_connections": "counter",
        "etcd_members": "gauge",
        "etcd_members_answering": "gauge",
        "late_seconds": "gauge",
        "libvirt_connected": "gauge",
        "limited_sources": "gauge",
        "log_lines_lost": "counter",
        "metrics_timestamp_seconds": "gauge",
        "open_connections": "gauge",
        "open_connections_bytes": "gauge",
        "openings": "gauge",
        "problems": "gauge",
        "reconcile_duration_seconds": "histogram",
        "reconciles": "counter",
        "restores": "counter",
        "table_entries": "gauge",
        "table_revision": "gauge",
    }
    for name, metric in found.items():
        faults(name, metric)


def test_the_manual_names_every_metric_and_cause() -> None:
    text, found = MANUAL.read_text(), exposed(statuses.status())
    heads = re.findall(r"^\.It Va (.+)$", text, re.MULTILINE)
    names = {f"{name}_total" if metric.type == "counter" else name for name, metric in found.items()}
    assert {f"kvm_portfwd_{name}" for head in heads for name in head.split(" , ")} == names
    assert {str(cause) for cause in Cause} <= set(re.findall(r"^\.Ql (\S+)", text, re.MULTILINE))


def faults(name: str, metric: Metric) -> None:
    """Assert what `promtool check metrics` asks of a metric."""
    assert re.fullmatch(r"kvm_portfwd_[a-z]+(_[a-z]+)*", name)
    assert metric.documentation.endswith(".")
    assert not set(name.split("_")) & {"gauge", "counter", "histogram", "summary", "count", "sum", "bucket"}
    assert not set(name.split("_")) & {"ms", "milliseconds", "minutes", "kilobytes", "kb", "percent"}
    suffixes = {sample.name.removeprefix(name) for sample in metric.samples}
    assert suffixes <= {"counter": {"_total"}, "histogram": {"_bucket", "_count", "_sum"}}.get(metric.type, {""})
    assert all(re.fullmatch("[a-z]+", label) for sample in metric.samples for label in sample.labels)
    assert len({tuple(sorted(sample.labels)) for sample in metric.samples if sample.name.endswith(name)}) <= 1


def test_exposures_are_counted_by_kind_and_state() -> None:
    counted = values(exposed(statuses.status())["kvm_portfwd_openings"], "kind", "state")
    # Of `statuses`: web and game in IPv4, web and the route in IPv6 that is refused, and what waits.
    assert counted == {
        ("forward", "active"): 2,
        ("forward", "refused"): 1,
        ("forward", "waiting"): 5,
        ("nat", "active"): 1,
        ("nat", "refused"): 0,
        ("nat", "waiting"): 1,
        ("route", "active"): 0,
        ("route", "refused"): 1,
        ("route", "waiting"): 1,
    }


def test_how_it_is_with_etcd_is_shown_where_there_is_a_fleet() -> None:
    told = statuses.status()
    held = (ip_address("198.51.100.8"), ip_address("2001:db8::88"))
    for fleet, expected in ((FleetState(2, 3, 812, None, 5, held), (3, 2, 812, 5, 2)), (None, ())):
        found = exposed(replace(told, header=replace(told.header, fleet=fleet)))
        names = ("etcd_members", "etcd_members_answering", "table_revision", "table_entries", "claims_held")
        assert tuple(value(found, name) for name in names if f"kvm_portfwd_{name}" in found) == expected


def test_connections_are_counted_where_somebody_counts() -> None:
    found = exposed(statuses.status())
    labels = ("domain", "network", "kind", "family", "protocol", "address", "ports", "interface")
    assert values(found["kvm_portfwd_connections"], *labels) == {
        ("game", "", "forward", "4", "udp", "198.51.100.7", "27015-27030", "eth0"): 0,
        ("post", "", "nat", "4", "", "198.51.100.9", "", ""): 7,
        ("web1", "", "forward", "4", "tcp", "*", "80", ""): 1234,
    }
    assert values(found["kvm_portfwd_open_connections"], "domain", "network", "family", "address") == {
        ("", "lab", "6", "2001:db8:1::/64"): 0,
        ("game", "", "4", "198.51.100.7"): 0,
        ("post", "", "4", "198.51.100.9"): 1,
        ("web1", "", "4", "*"): 12,
        ("web1", "", "6", "*"): 0,
    }
    # The kernel counts bytes only where it is configured to.
    assert values(found["kvm_portfwd_open_connections_bytes"], "domain") == {("web1",): 98765}


def test_who_is_kept_out_is_counted_where_that_is_asked() -> None:
    limited = replace(forward("tcp *:80", "192.168.122.10:80"), admission=Admission(rate=Rate(10, "minute")))
    plain = forward("tcp *:81", "192.168.122.10:81")
    clients = {ip_address("192.0.2.1"): 5, ip_address("192.0.2.2"): None}
    dropped = Dropped({limited: 7}, {"office": 3, "listed": 4}, {limited.counted_as: clients})
    desired = Desired().having([limited, plain])
    listed = rows(Facts(statuses.read(""), desired, desired), Readings(dropped=dropped))
    found = exposed(Status(statuses.header(), listed, denied=dropped.by_set))
    assert values(found["kvm_portfwd_dropped"], "ports") == {("80",): 7}
    assert values(found["kvm_portfwd_limited_sources"], "ports") == {("80",): 2}
    assert values(found["kvm_portfwd_denied"], "set") == {("office",): 3, ("listed",): 4}


def test_forwards_that_differ_in_their_sources_only_are_one_series() -> None:
    near = forward("tcp *:80", "192.168.122.10:80", sources=("203.0.113.0/24",))
    far = forward("tcp *:80", "192.168.122.10:81", sources=("192.0.2.0/24",))
    desired = Desired().having([near, far])
    facts = Facts(statuses.read(""), desired, desired)
    status = Status(statuses.header(), rows(facts, Readings({near: 3, far: 4})))
    assert values(exposed(status)["kvm_portfwd_connections"], "ports") == {("80",): 7}


@given(some_states(), st.integers(0, 3))
def test_no_series_comes_twice(desired: Desired, number: int) -> None:
    """One that does makes a node exporter refuse the whole file."""
    facts = Facts(statuses.read(""), desired, desired)
    counted = Readings(dict.fromkeys(desired.exposures, number), dict.fromkeys(desired.exposures, (number, number)))
    found = exposed(Status(statuses.header(), rows(facts, counted)))
    series = Counter(
        (sample.name, *sorted(sample.labels.items())) for metric in found.values() for sample in metric.samples
    )
    assert set(series.values()) == {1}
    assert sum(sample.value for sample in found["kvm_portfwd_connections"].samples) == number * len(desired.exposures)


@pytest.mark.parametrize("name", [statuses.HOSTILE, '"} 1\nup 1\n#', "\\", "\\n", "é\u2028\r", "a,b=c{d}"])
def test_a_name_may_hold_anything(name: str) -> None:
    exposure = forward("tcp *:80", "192.168.122.10:80", domain=name)
    desired = Desired().having([exposure])
    facts = Facts(statuses.read(""), desired, desired)
    found = exposed(Status(statuses.header(), rows(facts, Readings({exposure: 1}))))
    assert values(found["kvm_portfwd_connections"], "domain") == {(name,): 1}
    assert all(metric.startswith("kvm_portfwd_") for metric in found)


def test_libvirt_and_the_build() -> None:
    found = exposed(statuses.status())
    assert values(found["kvm_portfwd_libvirt_connected"], "uri") == {("qemu:///system",): 1, ("lxc:///system",): 0}
    assert values(found["kvm_portfwd_build_info"], "version") == {("0.1.0",): 1}
    assert value(found, "metrics_timestamp_seconds") == NOW.timestamp()
    assert value(found, "problems") == 1


def test_work_that_takes_too_long_and_lines_that_were_lost() -> None:
    found = exposed(statuses.status())
    late = values(found["kvm_portfwd_late_seconds"], "job")
    assert set(late) == {(job.value,) for job in Job}
    assert {job: seconds for (job,), seconds in late.items() if seconds} == {"connections": 12.25, "libvirt": 61}
    assert value(found, "log_lines_lost") == 17
    assert value(found, "connection_log_lost") == 5


def test_a_configuration_that_was_refused_and_one_that_was_not() -> None:
    status = statuses.status()
    refused = exposed(status)
    assert value(refused, "config_last_reload_successful") == 0
    assert value(refused, "config_problems") == 2
    assert value(refused, "config_last_reload_success_timestamp_seconds") == statuses.BEGAN.timestamp()
    configuration = replace(status.header.configuration, refused=None)
    taken = exposed(replace(status, header=replace(status.header, configuration=configuration)))
    assert value(taken, "config_last_reload_successful") == 1
    assert value(taken, "config_problems") == 0


def test_what_was_counted_of_the_work() -> None:
    seconds = (0.0005, 0.001, 0.3, 31.0)
    tally = Tally()
    for each in seconds:
        tally = tally.failed(each)
    found = exposed(statuses.status(), replace(tally, ended=5))
    assert values(found["kvm_portfwd_reconciles"], "result") == {("unchanged",): 0, ("changed",): 0, ("failed",): 4}
    assert set(values(found["kvm_portfwd_restores"], "cause").values()) == {0}
    assert value(found, "ended_connections") == 5
    histogram = found["kvm_portfwd_reconcile_duration_seconds"].samples
    buckets = {float(sample.labels["le"]): sample.value for sample in histogram if sample.labels}
    expected = {bound: sum(each <= bound for each in seconds) for bound in (*BOUNDS_S, float("inf"))}
    assert buckets == expected
    rest = {sample.name.rpartition("_")[2]: sample.value for sample in histogram if not sample.labels}
    assert rest == {"count": 4, "sum": pytest.approx(sum(seconds))}
