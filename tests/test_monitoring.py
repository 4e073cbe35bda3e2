"""Dashboard, alert rules, scrape configuration and KEDA's queries name metrics that a running server exposes."""

import json
import re
from dataclasses import dataclass, field

import promql_parser
import pytest
import requests
import yaml

from cloudvid_stages.gpu import GAUGES
from deploy.exporter import EXPORTER, METRICS, Exporter
from support import ROOT
from support.manifests import of_kind, pods, queries

FOLDER = ROOT / "deploy/monitoring"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())
PROMETHEUS = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
FROM_SCRAPING = {"job", "instance", "namespace", "pod", "node"}  # labels that Prometheus adds to each sample
BY_PROMETHEUS = {"up"}  # metrics that Prometheus makes
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@dataclass
class Names:
    """What PromQL expressions name."""

    metrics: dict[str, set[str]] = field(default_factory=dict)
    """Each metric, and the labels that its selectors match."""
    grouped: set[str] = field(default_factory=set)
    """Labels of `by` and `on`."""
    values: set[tuple[str, str]] = field(default_factory=set)
    """Labels and the values that a selector compares them to."""

    def read(self, expression: str) -> "Names":
        """Add what the expression names; Grafana's variables stand for something of their kind.

        Raises:
            ValueError: Prometheus would not take it.
        """
        plain = expression.replace("$__rate_interval", "5m").replace("$stage", ".*")
        promql_parser.walk(promql_parser.parse(plain), self._visit)
        return self

    def _visit(self, node) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = node.matchers.matchers
            self.metrics.setdefault(node.name, set()).update(matcher.name for matcher in matchers)
            self.values |= {(each.name, each.value) for each in matchers if each.op in _COMPARE}
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            self.grouped |= set(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier and node.modifier.matching:
            self.grouped |= set(node.modifier.matching.labels)


_COMPARE = (promql_parser.MatchOp.Equal, promql_parser.MatchOp.NotEqual)


def expressions() -> dict[str, str]:
    """Every PromQL expression of the repository, by where it stands."""
    found = {
        f"panel {panel['title']!r} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]
    }
    found |= {f"alert {rule['alert']}": rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]}
    for overlay in ("overlays/keda", "overlays/kserve"):
        found |= {f"{overlay} {number}": query for number, query in enumerate(queries(overlay))}
    return found


@pytest.fixture(scope="module")
def exposed(server) -> dict[str, set[str]]:
    """Every metric that a server exposes once it has worked, with the labels of its samples."""
    client = server.client()
    picture = client.text_to_image("a lighthouse", width=64, height=64, num_inference_steps=2)
    client.image_to_video(picture.data, num_frames=2, num_inference_steps=2)
    key = json.loads(server.key_file.read_text())["inference"]["key"]
    headers = {"Authorization": f"Bearer {key}"}
    assert requests.post(f"{server.url}/predictions/t2i", json={}, headers=headers, timeout=30).status_code == 422
    port = server.process.port
    status, _, body = Exporter(port, ("t2i", "i2v"), server.key_file).answer("GET", "/metrics")
    assert status == 200
    own = requests.get(f"http://127.0.0.1:{port + METRICS}/metrics", timeout=10).text
    assert set(_samples(own)) <= set(_samples(body.decode())), "the exporter passes on what TorchServe counts"
    return _samples(body.decode())


def _samples(text: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)}
    for name, labels in re.findall(r"^(\w+)\{(.*)\} \S+$", text, re.MULTILINE):
        found[name] |= set(re.findall(r'(\w+)="', labels))
    return found


@pytest.mark.parametrize("place", expressions())
def test_every_expression_is_promql_about_exposed_metrics(place, exposed):
    names = Names().read(expressions()[place])
    assert names.metrics
    assert set(names.metrics) <= set(exposed) | BY_PROMETHEUS | {f"cloudvid_{gauge}" for gauge in GAUGES}
    for metric, labels in names.metrics.items():
        if samples := exposed.get(metric):  # without any sample, as for a GPU that is not there, labels cannot be seen
            assert labels <= samples | FROM_SCRAPING, metric
    labels = set().union(*(exposed.get(metric, set()) for metric in names.metrics))
    if all(exposed.get(metric) for metric in names.metrics):
        assert names.grouped <= labels | FROM_SCRAPING | set(
            re.findall(r'label_replace\(.*?"(\w+)"', expressions()[place])
        )


def test_every_compared_label_value_is_one_the_code_writes():
    sources = [
        *(ROOT / "handlers").rglob("*.py"),
        *(ROOT / "client/cloudvid_schema").glob("*.py"),
        ROOT / "deploy/exporter.py",
    ]
    text = "\n".join(source.read_text() for source in sources)
    names = Names()
    for expression in expressions().values():
        names.read(expression)
    written = {(label, value) for label, value in names.values if label not in FROM_SCRAPING and value != ".*"}
    assert {label for label, _ in written} == {"stage", "status", "outcome", "phase"}
    for _, value in written:
        assert re.search(rf"""["']{value}["']""", text), value


def test_the_dashboard_shows_every_kind_of_figure():
    names = Names()
    for panel in PANELS:
        for target in panel["targets"]:
            names.read(target["expr"])
    assert set(names.metrics) >= {
        "cloudvid_pending_requests",
        "cloudvid_workers",
        "cloudvid_requests_total",
        "cloudvid_phase_seconds_total",
        "cloudvid_peak_memory_bytes",
        "cloudvid_gpu_memory_used_bytes",
    }


def test_each_dashboard_panel_has_a_place_and_data_source():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "stage"}
    for panel in PANELS:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_every_alert_has_a_severity_and_a_remedy():
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert set(rule["annotations"]) == {"summary", "description"}
    documented = (ROOT / "docs/monitoring.md").read_text()
    for rule in (rule for group in ALERTS["groups"] for rule in group["rules"]):
        assert f"`{rule['alert']}`" in documented


def test_prometheus_scrapes_the_exporter_and_the_pods_inside_port():
    host, cluster = PROMETHEUS["scrape_configs"]
    assert host["static_configs"] == [{"targets": [f"127.0.0.1:{8080 + EXPORTER}"]}]
    assert all(job["job_name"].startswith("cloudvid-") for job in (host, cluster)), "the alert CloudVidDown says so"
    (discovery,) = cluster["kubernetes_sd_configs"]
    (keep,) = [rule for rule in cluster["relabel_configs"] if rule.get("action") == "keep"]
    name, port = keep["regex"].split(";")
    for _, labels, _ in pods("base"):
        assert labels["app.kubernetes.io/name"] == name
    for deployment in of_kind("base", "Deployment"):
        assert deployment["metadata"]["namespace"] in discovery["namespaces"]["names"]
        spec = deployment["spec"]["template"]["spec"]
        assert port in {each["name"] for part in spec["containers"] for each in part.get("ports", ())}
    assert PROMETHEUS["rule_files"] == ["alerts.yml"]
