"""Prometheus reads our alert rules, metrics and dashboard, and each rule fires when it should and not otherwise."""

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from fwdaemon.metrics.exposition import Exposition
from fwdaemon.metrics.figures import Tally, metrics_of
from tests.unit import programs, statuses

ROOT: Final = Path(__file__).parents[2]
RULES: Final = ROOT / "etc/examples/prometheus/kvm-portfwd.rules.yml"
SCRAPE: Final = ROOT / "etc/examples/prometheus/scrape.yml"
DASHBOARD: Final = ROOT / "etc/examples/grafana/kvm-portfwd.json"
CASES: Final = Path(__file__).parent / "alerts.yml"


def promtool(*words: str | Path, given: bytes = b"") -> str:
    argv = [programs.find("promtool"), *map(str, words)]
    done = subprocess.run(argv, input=given, capture_output=True, check=False, timeout=60)  # noqa: S603  words of ours
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    return output


def exposition() -> bytes:
    """Give the metrics of a host that has some of everything."""
    return Exposition(lambda: metrics_of(statuses.status(), Tally(), datetime.now(UTC))).text()


def expressions() -> list[str]:
    """Give what the panels ask for; Grafana's own variables are filled in as it would."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return [text.replace("$__rate_interval", "2m").replace("$host", "web.*") for text in found]


def test_alert_rules_are_valid_and_fire_when_they_should() -> None:
    promtool("check", "rules", RULES)
    promtool("test", "rules", CASES)


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))
    fired = re.findall(r'alertname="(\w+)"', CASES.read_text(encoding="utf-8"))
    assert sorted(alerts) == sorted(fired)


def test_prometheus_takes_the_scrape_configuration() -> None:
    promtool("check", "config", SCRAPE)


def test_prometheus_has_nothing_to_say_against_the_metrics() -> None:
    assert promtool("check", "metrics", given=exposition()) == ""


def test_rules_and_dashboard_name_metrics_that_exist() -> None:
    names = set(re.findall(r"^(?:# TYPE )?(kvm_portfwd_\w+)", exposition().decode(), re.MULTILINE))
    texts = (RULES.read_text(encoding="utf-8"), DASHBOARD.read_text(encoding="utf-8"))
    asked = {name for text in texts for name in re.findall(r"kvm_portfwd_\w+", text)}
    assert asked
    assert asked <= names


def test_prometheus_understands_each_panel_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_promtool_would_notice_a_rule_that_does_not_fire(tmp_path: Path) -> None:
    for file in (RULES, CASES):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    rules = tmp_path / RULES.name
    rules.write_text(rules.read_text(encoding="utf-8").replace("_problems > 0", "_problems > 9"), encoding="utf-8")
    cases = tmp_path / CASES.name
    cases.write_text(cases.read_text(encoding="utf-8").replace("../../etc/examples/prometheus/", ""), encoding="utf-8")
    with pytest.raises(AssertionError, match="KvmPortfwdProblems"):
        promtool("test", "rules", cases)
