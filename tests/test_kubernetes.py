"""The Kubernetes objects: each valid by the real schemas, and all of them in agreement with each other and the code."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject

from cloudvid_schema import __version__
from support import ROOT
from support.manifests import FOLDER, OVERLAYS, WORKLOADS, containers, of_kind, pods, render, selects, stages

VERSIONS = ("1.33", "1.37")  # the oldest and the newest Kubernetes that the objects are checked against
OWN_SCHEMAS = ("ScaledObject", "InferenceService")  # resources of others, each with a test of its own below
STAGES = {"t2i", "i2v"}

# Fields of KServe that we use besides a pod's own, as its Python models name them (PyPI kserve 0.21.0,
# kserve/models/v1beta1_inference_service_spec.py and v1beta1_predictor_spec.py); the package itself needs forty others.
KSERVE_SPEC = {"predictor"}
KSERVE_PREDICTOR = {"minReplicas": int, "deploymentStrategy": dict}


def settings(stage: str) -> dict:
    return yaml.safe_load((ROOT / f"handlers/{stage}.yaml").read_text())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid_by_kubernetes_own_schema(overlay, version):
    """Strictly: a field that the schema does not know is refused, and so is a kind without a schema."""
    resources = [resource for resource in render(overlay) if resource["kind"] not in OWN_SCHEMAS]
    assert resources
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)


def test_a_misspelt_field_is_refused():
    (deployment, _) = of_kind("base", "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", ["overlays/keda", "overlays/kserve"])
def test_every_scaled_object_is_valid_by_kedas_schema(overlay):
    """The models are made from KEDA's CRD and drop what they do not know: nothing may get lost."""
    found = of_kind(overlay, "ScaledObject")
    assert len(found) == 2
    for resource in found:
        known = ScaledObject.model_validate(resource).model_dump(by_alias=True, exclude_unset=True, mode="json")
        assert known == resource


def test_every_inference_service_has_kserves_fields_and_a_valid_pod():
    assert not of_kind("overlays/kserve", "Deployment", "Service"), "KServe makes them"
    found = of_kind("overlays/kserve", "InferenceService")
    assert len(found) == 2
    for resource in found:
        assert resource["apiVersion"] == "serving.kserve.io/v1beta1"
        assert set(resource["spec"]) == KSERVE_SPEC
        spec = resource["spec"]["predictor"]
        for field, kind in KSERVE_PREDICTOR.items():
            assert isinstance(spec.pop(field), kind)
        assert spec["containers"][0]["name"] == "kserve-container"
        for version in VERSIONS:
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": spec}
            kubernetes_validate.validate(pod, version, strict=True)


def test_kserve_runs_the_same_pods_as_the_deployments():
    def comparable(overlay):
        return {stage: (labels, containers(spec), spec["volumes"]) for stage, labels, spec in stages(overlay)}

    def unnamed(pods):
        return {
            stage: [labels, [part | {"name": ""} for part in parts.values()], volumes]
            for stage, (labels, parts, volumes) in pods.items()
        }

    assert unnamed(comparable("overlays/kserve")) == unnamed(comparable("overlays/keda"))


@pytest.mark.parametrize("overlay", WORKLOADS)
def test_each_stage_has_one_workload_that_serves_it_alone(overlay):
    served = {stage: containers(spec)["server"]["args"] for stage, _, spec in stages(overlay)}
    assert served == {stage: ["serve", stage, "--port=8080"] for stage in STAGES}


@pytest.mark.parametrize("overlay", WORKLOADS)
def test_every_selector_takes_only_its_own_stages_pods(overlay):
    labels = {name: labels for name, labels, _ in pods(overlay)}
    for resource in of_kind(overlay, "Deployment", "Service", "PodDisruptionBudget"):
        selector = resource["spec"]["selector"]
        selector = {"matchLabels": selector} if resource["kind"] == "Service" else selector
        assert [name for name in labels if selects(selector, labels[name])] == [resource["metadata"]["name"]]
    assert len(of_kind(overlay, "PodDisruptionBudget")) == len(STAGES)
    for _, own, spec in stages(overlay):
        (constraint,) = spec["topologySpreadConstraints"]
        assert [each for each in labels.values() if selects(constraint["labelSelector"], each)] == [own]


@pytest.mark.parametrize("overlay", WORKLOADS)
def test_every_port_that_is_named_is_one_of_a_container(overlay):
    for stage, labels, spec in stages(overlay):
        ports = {port["name"]: port["containerPort"] for each in spec["containers"] for port in each.get("ports", ())}
        assert set(ports) == {"http", "inside"}
        for service in of_kind(overlay, "Service"):
            if service["spec"]["selector"]["app.kubernetes.io/component"] == stage:
                assert {port["targetPort"] for port in service["spec"]["ports"]} == {"http"}
        for policy in of_kind(overlay, "NetworkPolicy"):
            if selects(policy["spec"]["podSelector"], labels):
                for rule in policy["spec"].get("ingress", ()):
                    assert {port["port"] for port in rule["ports"]} < set(ports)
        probes = {name: each for name, each in containers(spec)["server"].items() if name.endswith("Probe")}
        assert set(probes) == {"startupProbe", "readinessProbe", "livenessProbe"}
        assert {probe["httpGet"]["port"] for probe in probes.values()} == {ports["inside"]}
        assert containers(spec)["proxy"]["livenessProbe"]["tcpSocket"]["port"] in ports


@pytest.mark.parametrize("overlay", WORKLOADS)
def test_the_probes_ask_for_ready_workers_of_their_own_stage(overlay):
    for stage, _, spec in stages(overlay):
        server = containers(spec)["server"]
        paths = {name: server[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
        assert paths == {
            "startupProbe": f"/ready?stage={stage}",
            "readinessProbe": f"/ready?stage={stage}",
            "livenessProbe": "/live",
        }
        startup = server["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] > settings(stage)["startupTimeout"]
        assert (
            startup["terminationGracePeriodSeconds"] == server["livenessProbe"]["terminationGracePeriodSeconds"] < 120
        )


@pytest.mark.parametrize("overlay", WORKLOADS)
def test_a_pod_that_goes_has_time_for_the_longest_job(overlay):
    longest = max(settings(stage)["responseTimeout"] for stage in STAGES)
    for _, _, spec in stages(overlay):
        parts = containers(spec)
        pause = int(parts["proxy"]["lifecycle"]["preStop"]["exec"]["command"][1])
        (script,) = [part for part in parts["server"]["lifecycle"]["preStop"]["exec"]["command"] if "sleep" in part]
        (later,) = re.findall(r"^sleep (\d+);", script)
        assert pause < int(later), "the server waits for the proxy, not the other way round"
        assert spec["terminationGracePeriodSeconds"] > longest + int(later) + 60


@pytest.mark.parametrize("overlay", ["overlays/keda", "overlays/kserve"])
def test_only_its_scaled_object_sets_a_targets_replicas(overlay):
    targets = {
        stage: name for name, labels, _ in pods(overlay) if (stage := labels["app.kubernetes.io/component"]) in STAGES
    }
    if overlay == "overlays/kserve":  # KServe names the Deployment so
        targets = {stage: f"{name}-predictor" for stage, name in targets.items()}
    for resource in of_kind(overlay, "ScaledObject"):
        stage = resource["metadata"]["labels"]["app.kubernetes.io/component"]
        assert resource["spec"]["scaleTargetRef"]["name"] == targets.pop(stage)
        assert resource["spec"]["minReplicaCount"] >= 1, "no pod, no queue, and nothing that would call for a pod"
        (trigger,) = resource["spec"]["triggers"]
        assert (
            trigger["metadata"]["query"] == f'sum(cloudvid_pending_requests{{namespace="cloudvid", stage="{stage}"}})'
        )
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert not targets
    assert not any("replicas" in resource["spec"] for resource in of_kind(overlay, "Deployment"))


@pytest.mark.parametrize("overlay", WORKLOADS)
def test_every_image_is_the_one_of_this_version(overlay):
    images = {each["image"] for _, _, spec in pods(overlay) for each in containers(spec).values()}
    assert images == {f"cloudvid:{__version__}"}


@pytest.mark.parametrize("overlay", WORKLOADS)
def test_every_pod_is_confined(overlay):
    for _, _, spec in pods(overlay):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False, "CLOUDVID_T2I_... is where a stage reads its settings"
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"))
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for each in containers(spec).values():
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
            assert each["resources"]["requests"]
            assert each["resources"]["limits"]["memory"]
    (namespace,) = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", WORKLOADS)
def test_mounts_name_volumes_and_volumes_name_objects(overlay):
    claims = {resource["metadata"]["name"] for resource in of_kind(overlay, "PersistentVolumeClaim")}
    maps = {resource["metadata"]["name"] for resource in of_kind(overlay, "ConfigMap")}
    for _, _, spec in pods(overlay):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounted = {mount["name"] for each in containers(spec).values() for mount in each.get("volumeMounts", ())}
        assert mounted == set(volumes)
        named = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in volumes.values()
            if "persistentVolumeClaim" in volume
        }
        assert named <= claims
        sources = [source for each in containers(spec).values() for source in each.get("envFrom", ())]
        assert sources
        assert {source["configMapRef"]["name"] for source in sources} <= maps


@pytest.mark.parametrize("overlay", WORKLOADS)
def test_only_proxy_and_fetching_job_see_their_tokens(overlay):
    for name, _, spec in pods(overlay):
        for part, each in containers(spec).items():
            assert ("tokens" in {mount["name"] for mount in each.get("volumeMounts", ())}) == (part == "proxy")
            assert ("HF_TOKEN" in {variable["name"] for variable in each.get("env", ())}) == (
                name == "cloudvid-weights"
            )


@pytest.mark.parametrize("overlay", WORKLOADS)
def test_only_named_traffic_reaches_or_leaves_a_pod(overlay):
    policies = [resource["spec"] for resource in of_kind(overlay, "NetworkPolicy")]
    for _, labels, _ in pods(overlay):
        mine = [policy for policy in policies if selects(policy["podSelector"], labels)]
        closed = [policy for policy in mine if set(policy) == {"podSelector", "policyTypes"}]
        assert [policy["policyTypes"] for policy in closed] == [["Ingress", "Egress"]]
        has_egress = any("egress" in policy for policy in mine)
        assert has_egress == (labels["app.kubernetes.io/component"] == "weights"), (
            "a server asks the network for nothing"
        )
        for policy in mine:
            for rule in policy.get("ingress", ()):
                names = {port["port"] for port in rule["ports"]}
                spaces = [peer.get("namespaceSelector", {}).get("matchLabels") for peer in rule["from"]]
                assert (names == {"inside"}) == ({"kubernetes.io/metadata.name": "monitoring"} in spaces)


def test_the_gpu_overlay_gives_each_server_exactly_one_gpu():
    for stage, _, spec in stages("overlays/gpu"):
        assert containers(spec)["server"]["resources"]["limits"]["nvidia.com/gpu"] == 1, stage
        assert spec["containers"][0]["name"] == "proxy"
    for deployment in of_kind("overlays/gpu", "Deployment"):
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": "10%"}


def test_the_demo_overlay_needs_no_volume_weights_or_network():
    """Through the component for images that have their weights in them."""
    assert not of_kind("overlays/demo", "Job", "PersistentVolumeClaim")
    assert not any("egress" in policy["spec"] for policy in of_kind("overlays/demo", "NetworkPolicy"))
    (values,) = [resource["data"] for resource in of_kind("overlays/demo", "ConfigMap")]
    assert values["PROFILE"] == "demo"
    for _, _, spec in stages("overlays/demo"):
        assert not spec["initContainers"]


def test_the_front_sends_each_stage_unbuffered_to_its_service():
    (ingress,) = of_kind("front", "Ingress")
    services = {
        resource["metadata"]["name"]: {port["name"] for port in resource["spec"]["ports"]}
        for resource in of_kind("base", "Service")
    }
    (rule,) = ingress["spec"]["rules"]
    routes = {path["path"]: path["backend"]["service"] for path in rule["http"]["paths"]}
    for stage in STAGES:
        assert routes[f"/predictions/{stage}"]["name"] == f"cloudvid-{stage}"
    for service in routes.values():
        assert service["port"]["name"] in services[service["name"]]
    longest = str(max(settings(stage)["responseTimeout"] for stage in STAGES))
    annotations = ingress["metadata"]["annotations"]
    for prefix, off, seconds in (("nginx.org/", "False", "s"), ("nginx.ingress.kubernetes.io/", "off", "")):
        assert annotations[f"{prefix}proxy-buffering"] == off
        assert annotations[f"{prefix}proxy-read-timeout"] == longest + seconds
        assert "non_idempotent" not in annotations[f"{prefix}proxy-next-upstream"]
    lines = (ROOT / "config.properties").read_text().splitlines()
    (size,) = [int(line.partition("=")[2]) for line in lines if line.startswith("max_request_size=")]
    assert annotations["nginx.org/client-max-body-size"] == f"{size // 2**20}m"
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{size // 2**20}m"


def test_every_yaml_file_is_part_of_an_overlay():
    """A file that no kustomization names would never be checked."""
    named = set()
    for kustomization in FOLDER.rglob("kustomization.yaml"):
        content = yaml.safe_load(kustomization.read_text())
        paths = [*content.get("resources", ()), *content.get("configurations", ())]
        paths += content.get("components", ())
        paths += [patch["path"] for patch in content.get("patches", ()) if "path" in patch]
        named |= {(kustomization.parent / path).resolve() for path in paths}
    files: set[Path] = {path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert files <= named
