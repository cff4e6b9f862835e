"""The deployment files, checked without a server; tests/stack runs them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_timespan.otel.semconv import ATTRIBUTES, BOUNDARIES_S, INSTRUMENTS
from tests.backends import COLLECTOR_CONFIG, COMPOSE_FILE, JAEGER_CONFIG, PROMETHEUS_CONFIG, ROOT, prometheus_features
from tests.stack.naming import label_name, series_names

GRAFANA = ROOT / "deploy/grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
YAML_FILES = [
    COLLECTOR_CONFIG,
    COMPOSE_FILE,
    JAEGER_CONFIG,
    PROMETHEUS_CONFIG,
    *sorted((ROOT / "deploy").rglob("*.yaml")),
]
# The names that the native `stack` sets, with what they are in compose.
COLLECTOR_VARIABLES = {
    "OTLP_GRPC_ENDPOINT": "0.0.0.0:4317",
    "OTLP_HTTP_ENDPOINT": "0.0.0.0:4318",
    "HEALTH_ENDPOINT": "0.0.0.0:13133",
    "PROMETHEUS_EXPORTER_ENDPOINT": "0.0.0.0:8889",
    "JAEGER_OTLP_ENDPOINT": "jaeger:4317",
    "STORAGE_DIR": "/var/lib/otelcol",
}
JAEGER_VARIABLES = {
    "JAEGER_OTLP_GRPC_ENDPOINT": "0.0.0.0:4317",
    "JAEGER_QUERY_ENDPOINT": "0.0.0.0:16686",
    "JAEGER_QUERY_GRPC_ENDPOINT": "0.0.0.0:16685",
    "JAEGER_HEALTH_ENDPOINT": "0.0.0.0:13134",
    "PROMETHEUS_URL": "http://prometheus:9090",
}


def load(path: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(path.read_text())


def panels(dashboard: Any) -> Iterator[Any]:
    """The panels that draw something, those of rows too."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


@pytest.fixture(scope="module")
def compose() -> Any:
    """docker-compose.yml."""
    return load(COMPOSE_FILE)


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> Any:
    """Each dashboard."""
    return json.loads(request.param.read_text())


@pytest.mark.parametrize("path", sorted(set(YAML_FILES)), ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml(path: Path) -> None:
    """Every file is YAML and says in its first line what it is."""
    assert load(path)
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("path", "expected"), [(COLLECTOR_CONFIG, COLLECTOR_VARIABLES), (JAEGER_CONFIG, JAEGER_VARIABLES)]
)
def test_addresses_are_variables(path: Path, expected: dict[str, str]) -> None:
    """Every address comes from a variable with compose's name as its default, so the file runs natively too."""
    text = path.read_text()
    assert dict(re.findall(r"\$\{env:(\w+):-([^}]*)\}", text)) == expected
    without = re.sub(r"\$\{env:[^}]*\}", "", re.sub(r"#.*", "", text))
    assert not re.search(r"\b\d+\.\d+\.\d+\.\d+\b|localhost", without)


def test_collector_keeps_what_it_acknowledged() -> None:
    """No batch processor; the queue for Jaeger is on disk, batches by itself and never stops retrying."""
    config = load(COLLECTOR_CONFIG)
    assert not [name for name in config["processors"] if name.startswith("batch")]
    exporter = config["exporters"]["otlp_grpc/jaeger"]
    assert exporter["sending_queue"]["storage"] == "file_storage"
    assert exporter["sending_queue"]["batch"]["max_size"] > 0
    assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"
    assert "file_storage" in config["service"]["extensions"]
    for pipeline in config["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"


def test_collector_exports_exemplars() -> None:
    """OpenMetrics is on, and metrics of short programs stay long enough to be seen."""
    exporter = load(COLLECTOR_CONFIG)["exporters"]["prometheus"]
    assert exporter["enable_open_metrics"] is True
    assert exporter["metric_expiration"] == "60m"


def test_histograms_reach_prometheus_in_the_advised_boundaries() -> None:
    """The collector knows the boundaries of the catalogue, for histograms that come as exponential ones."""
    config = load(COLLECTOR_CONFIG)
    assert "transform/histograms" in config["service"]["pipelines"]["metrics"]["processors"]
    convert, repair = (
        group["statements"][0] for group in config["processors"]["transform/histograms"]["metric_statements"]
    )
    found = [[float(text) for text in re.search(r"\[ ?(0[^\]]*)\]", one)[1].split(",")] for one in (convert, repair)]  # type: ignore[index]
    assert found == [[0.0, *BOUNDARIES_S], [*BOUNDARIES_S]]
    assert load(PROMETHEUS_CONFIG)["global"]["scrape_native_histograms"] is True


def test_series_carry_few_labels() -> None:
    """What a resource says is in target_info, not on each series of each process."""
    assert load(COLLECTOR_CONFIG)["exporters"]["prometheus"]["resource_to_telemetry_conversion"]["enabled"] is False


def test_messages_fit() -> None:
    """A batch that the collector may send is one that Jaeger takes, at 16 KiB a span and more."""
    exporter = load(COLLECTOR_CONFIG)["exporters"]["otlp_grpc/jaeger"]
    limit = load(JAEGER_CONFIG)["receivers"]["otlp"]["protocols"]["grpc"]["max_recv_msg_size_mib"]
    assert exporter["sending_queue"]["batch"]["max_size"] * 16 / 1024 <= limit


def test_images_are_pinned(compose: Any) -> None:
    """Every image has a full version."""
    for service in compose["services"].values():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])


def test_ports_are_on_loopback(compose: Any) -> None:
    """Nothing is published beyond this machine."""
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


def test_services_have_health_checks(compose: Any) -> None:
    """`docker compose up --wait` says when everything answers."""
    assert all(service["healthcheck"]["test"][0] == "CMD" for service in compose["services"].values())


def test_mounted_files_exist(compose: Any) -> None:
    """Every file that compose mounts is there, and every named volume is declared."""
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"], source


def test_files_meet_their_mounts(compose: Any) -> None:
    """The folders and files that the programs are told of are those that are mounted."""
    targets = {v.split(":")[1] for service in compose["services"].values() for v in service["volumes"]}
    provider = load(GRAFANA / "provisioning/dashboards/dashboards.yaml")["providers"][0]
    assert provider["options"]["path"] in targets
    assert COLLECTOR_VARIABLES["STORAGE_DIR"] in targets
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (GRAFANA / "dashboards" / Path(home).name).exists()
    for service in compose["services"].values():
        for argument in service.get("command", []):
            if match := re.match(r"--config(?:\.file)?=(/.*)", argument):
                assert match[1] in targets


def test_prometheus_keeps_exemplars() -> None:
    """Exemplars and start times are behind flags, and the scrape is as frequent as the exports of a busy program."""
    assert prometheus_features() == {"exemplar-storage", "created-timestamp-zero-ingestion"}
    config = load(PROMETHEUS_CONFIG)
    assert config["global"]["scrape_interval"] == "1s"
    assert all(job["honor_labels"] for job in config["scrape_configs"])


def test_data_sources_are_linked() -> None:
    """An exemplar opens its trace in Jaeger, and a span finds its metrics in Prometheus."""
    sources = {s["uid"]: s for s in load(GRAFANA / "provisioning/datasources/datasources.yaml")["datasources"]}
    exemplars = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert [(e["name"], sources[e["datasourceUid"]]["type"]) for e in exemplars] == [("trace_id", "jaeger")]
    assert sources[sources["jaeger"]["jsonData"]["tracesToMetrics"]["datasourceUid"]]["type"] == "prometheus"


DASHBOARD = {
    "annotations", "description", "editable", "graphTooltip", "links", "panels", "refresh", "schemaVersion", "tags",
    "templating", "time", "timezone", "title", "uid", "version",
}  # fmt: skip
DRAWN = {"datasource", "description", "fieldConfig", "gridPos", "id", "options", "targets", "title", "type"}
PANEL = {
    "row": {"collapsed", "gridPos", "id", "panels", "title", "type"},
    "stat": DRAWN,
    "timeseries": DRAWN,
    "table": {*DRAWN, "transformations"},
}
"""What Grafana's schema 39 has, as far as it is used: a slip in a key would be passed over in silence."""


def test_dashboard_schema(dashboard: Any) -> None:
    """Dashboards and panels have the keys that Grafana knows, all that are needed and no other."""
    assert dashboard.keys() == DASHBOARD
    for panel in dashboard["panels"]:
        assert panel.keys() - {"repeat"} == PANEL[panel["type"]], panel["title"]
        if panel["type"] != "row":
            assert panel["fieldConfig"].keys() == {"defaults", "overrides"}
            assert panel["fieldConfig"]["defaults"].keys() <= {"custom", "min", "thresholds", "unit"}
            matchers = [override["matcher"] for override in panel["fieldConfig"]["overrides"]]
            assert all(matcher["id"] == "byName" and matcher["options"] for matcher in matchers)


def test_dashboard_form(dashboard: Any) -> None:
    """A dashboard has an id of its own, known data sources, and panels that do not overlap."""
    assert dashboard["uid"].startswith("otel-timespan-") and len(dashboard["uid"]) <= 40
    assert dashboard["title"] and dashboard["description"] and dashboard["schemaVersion"] >= 39
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        left, top, width, height = (panel["gridPos"][k] for k in "xywh")
        cells = {(x, y) for x in range(left, left + width) for y in range(top, top + height)}
        assert not cells & taken, panel["title"]
        assert left + width <= 24
        taken |= cells


PROMETHEUS, JAEGER = ({"type": name, "uid": name} for name in ("prometheus", "jaeger"))
TARGETS = {
    "prometheus": {"refId", "datasource", "expr", "legendFormat", "exemplar", "format", "instant", "range"},
    "jaeger": {"refId", "datasource", "queryType", "service", "tags", "limit"},
}
"""What a query consists of, by data source."""


def test_dashboard_panels(dashboard: Any) -> None:
    """Every panel says what it shows, in which unit, and asks data sources that are there, each in its own words."""
    for panel in panels(dashboard):
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] in (PROMETHEUS, JAEGER), panel["title"]
            assert target.keys() == TARGETS[panel["datasource"]["type"]], panel["title"]
            assert all(target[key] for key in target.keys() & {"expr", "legendFormat", "service", "tags", "limit"})
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_tables_name_their_columns(dashboard: Any) -> None:
    """A table asks for what stands in one moment, puts several answers into one, and sorts by a column that it has."""
    for panel in (panel for panel in panels(dashboard) if panel["type"] == "table"):
        steps = {step["id"]: step["options"] for step in panel["transformations"]}
        assert steps.keys() <= {"merge", "organize", "sortBy"} and ("merge" in steps) == (len(panel["targets"]) > 1)
        names = {
            p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "displayName"
        }
        names |= set(steps.get("organize", {}).get("renameByName", {}).values())
        assert {one["displayName"] for one in panel["options"]["sortBy"]} <= names
        assert all(target["instant"] and target["format"] == "table" for target in panel["targets"] if "expr" in target)


def test_variables_are_declared_and_used(dashboard: Any) -> None:
    """Whatever a dashboard fills in is declared in it or Grafana's own, and nothing is declared for nobody."""
    declared = [variable["name"] for variable in dashboard["templating"]["list"]]
    used = set(
        re.findall(r"\$(\w+)", json.dumps([dashboard["panels"], dashboard["annotations"], dashboard["templating"]]))
    )
    own = {"__all", "__range", "__interval", "__rate_interval", "__rate_interval_ms"}
    assert used - own == set(declared) and len(set(declared)) == len(declared)


def test_dashboards_show_runs_and_alerts(dashboard: Any) -> None:
    """Lines in every panel say when a run ended and how, and when an alert fired."""
    annotations = {one["name"]: one for one in dashboard["annotations"]["list"]}
    assert annotations.keys() == {"Runs that ended", "Alerts"}
    for annotation in annotations.values():
        assert annotation["enable"] and annotation["datasource"] == annotation["target"]["datasource"] == PROMETHEUS
        shown = re.findall(r"{{(\w+)}}", annotation["titleFormat"] + annotation["textFormat"])
        assert shown and set(annotation["tagKeys"].split(",")) <= {*shown, "severity"}


def test_whole_traces_are_fetched_when_somebody_asks() -> None:
    """Jaeger answers a search with all spans of each trace: no dashboard with one asks again by itself."""
    for path in DASHBOARDS:
        loaded = json.loads(path.read_text())
        if any(panel["datasource"] == JAEGER for panel in panels(loaded)):
            assert loaded["refresh"] == "" and path.stem == "runs"


def test_dashboards_have_ids_of_their_own() -> None:
    """No two dashboards share an id or a title."""
    loaded = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({d["uid"] for d in loaded}) == len({d["title"] for d in loaded}) == len(loaded) > 0


def test_duration_panels_show_exemplars() -> None:
    """Each panel of task and run durations asks for exemplars, and no panel of anything without them does."""
    overview = json.loads((GRAFANA / "dashboards/overview.json").read_text())
    with_exemplars = {panel["title"] for panel in panels(overview) if any(t.get("exemplar") for t in panel["targets"])}
    assert {"Task duration, p50 and p95", "Run duration, p50 and p95"} <= with_exemplars


def expressions() -> Iterator[tuple[str, str]]:
    """Every query of the dashboards, alerts and data sources, with where it stands."""
    for path in DASHBOARDS:
        loaded = json.loads(path.read_text())
        for annotation in loaded["annotations"]["list"]:
            yield f"{path.stem}: {annotation['name']}", annotation["target"]["expr"]
        for panel in panels(loaded):
            for target in panel["targets"]:
                if target["datasource"] == PROMETHEUS:
                    yield f"{path.stem}: {panel['title']}", target["expr"]
    for path in sorted((ROOT / "deploy/prometheus/rules").glob("*.yaml")):
        for group in load(path)["groups"]:
            for rule in group["rules"]:
                yield rule["alert"], rule["expr"]
    for source in load(GRAFANA / "provisioning/datasources/datasources.yaml")["datasources"]:
        for query in source["jsonData"].get("tracesToMetrics", {}).get("queries", []):
            yield query["name"], query["query"]


def test_queries_name_what_the_catalogue_declares() -> None:
    """Every metric and label in a query is one that the bridge emits."""
    names = {name for instrument in INSTRUMENTS for name in series_names(instrument)}
    keys = {a.key for a in ATTRIBUTES} | {key for instrument in INSTRUMENTS for key in instrument.attributes}
    labels = {label_name(key) for key in keys} | {"job", "le", "exporter", "alertstate"}
    for where, expression in expressions():
        grouped = {label.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(",")}
        matched = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
        assert grouped | matched <= labels, where
        metrics = re.findall(r"\btimespan_\w+", re.sub(r"by \([^)]*\)|\{[^}]*\}", "", expression))
        assert set(metrics) <= names, where


def test_the_collector_asks_for_attributes_of_the_catalogue() -> None:
    """By these it knows tasks, how long their bodies took, and spans that stand for many."""
    keys = set(re.findall(r'span\.attributes\["([^"]+)"\]', COLLECTOR_CONFIG.read_text()))
    assert keys and keys <= {attribute.key for attribute in ATTRIBUTES}


def test_searches_name_what_the_catalogue_declares() -> None:
    """The tags by which traces are searched are attributes of roots."""
    of_roots = {attribute.key for attribute in ATTRIBUTES if "dag" in re.split(r"[,;] ?", attribute.on)}
    targets = [t for path in DASHBOARDS for panel in panels(json.loads(path.read_text())) for t in panel["targets"]]
    keys = {tag.partition("=")[0] for t in targets if t["datasource"] == JAEGER for tag in t["tags"].split()}
    assert keys and keys <= of_roots


def test_every_instrument_is_shown() -> None:
    """No instrument of the catalogue is missing from the dashboards."""
    text = " ".join(expression for where, expression in expressions() if ":" in where)
    accounting = {"timespan.spans.recorded"}  # the sum of two others that are shown
    hidden = [i.name for i in INSTRUMENTS if not any(re.search(rf"\b{n}\b", text) for n in series_names(i))]
    assert set(hidden) == accounting


def test_alerts_say_what_to_do() -> None:
    """Every alert has a severity, a summary and a next step."""
    for path in sorted((ROOT / "deploy/prometheus/rules").glob("*.yaml")):
        for group in load(path)["groups"]:
            for rule in group["rules"]:
                assert rule["labels"]["severity"] in {"info", "warning", "critical"}
                assert rule["annotations"]["summary"] and rule["annotations"]["description"].endswith(".")
