"""The files of deploy/: against the schemas of the tools, and against one another.

Kubernetes' own kinds meet its JSON schemas (`kubernetes-validate` carries them). No package of a registry carries the custom resource
definitions of KubeRay, so RayCluster and RayJob meet three things instead: their pods the core schema, their fields the list below,
which is transcribed from KubeRay's API reference, and the whole RayCluster the code by which Ray's own autoscaler reads it.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from egomill.flows.up import POOL
from egomill.schemas.config import Profile

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
NO_OBJECTS = {"kustomization.yaml", "prefect.yaml"}
OBJECTS = [
    (path.name, document)
    for path in sorted(DEPLOY.glob("*.yaml"))
    if path.name not in NO_OBJECTS
    for document in yaml.safe_load_all(path.read_text())
]
CLUSTER = next(o for _, o in OBJECTS if o["kind"] == "RayCluster")
JOB = next(o for _, o in OBJECTS if o["kind"] == "RayJob")
GROUPS = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
TEMPLATES = [group["template"] for group in GROUPS] + [o["spec"]["template"] for _, o in OBJECTS if o["kind"] == "Deployment"]
CONTAINERS = [container for template in TEMPLATES for container in template["spec"]["containers"]]
SETTINGS = dict(line.split("=", 1) for line in (DEPLOY / "settings.env").read_text().splitlines() if line and line[0] != "#")
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#")
PAGE = (ROOT / "docs/deploy.md").read_text()


def closed(required: str, **properties: dict) -> dict:
    return {"type": "object", "required": required.split(), "properties": properties, "additionalProperties": False}


TEXT, WHOLE, YES, OBJECT = ({"type": kind} for kind in ("string", "integer", "boolean", "object"))
TEXTS = {"type": "object", "additionalProperties": TEXT}
GROUP = {"rayStartParams": TEXTS, "template": OBJECT, "resources": TEXTS, "labels": TEXTS}
AUTOSCALER = closed(
    "",
    version={"enum": ["v1", "v2"]},
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    idleTimeoutSeconds=WHOLE,
    image=TEXT,
    imagePullPolicy=TEXT,
    resources=OBJECT,
    securityContext=OBJECT,
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
)
BOUNDS = dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds"), WHOLE)
RAY_CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=closed("", mode={"enum": ["disabled", "token"]}, secretName=TEXT, enableK8sTokenAuth=YES),
    enableInTreeAutoscaling=YES,
    autoscalerOptions=AUTOSCALER,
    gcsFaultToleranceOptions=OBJECT,
    headServiceAnnotations=TEXTS,
    managedBy=TEXT,
    suspend=YES,
    upgradeStrategy=OBJECT,
    headGroupSpec=closed("template", **GROUP, serviceType=TEXT, headService=OBJECT, enableIngress=YES),
    workerGroupSpecs={
        "type": "array",
        "items": closed("groupName minReplicas maxReplicas template", **GROUP, **BOUNDS, groupName=TEXT, scaleStrategy=OBJECT, suspend=YES),
    },
)
RAY_JOB = closed(
    "entrypoint",
    entrypoint=TEXT,
    entrypointNumCpus={"type": "number"},
    clusterSelector=TEXTS,
    rayClusterSpec=RAY_CLUSTER,
    runtimeEnvYAML=TEXT,
    submissionMode=TEXT,
    submitterPodTemplate=OBJECT,
    shutdownAfterJobFinishes=YES,
    ttlSecondsAfterFinished=WHOLE,
    activeDeadlineSeconds=WHOLE,
    backoffLimit=WHOLE,
    metadata=TEXTS,
    suspend=YES,
)


def found(tree, key: str) -> list:
    """All values of a key, however deep."""
    if isinstance(tree, list):
        return [value for item in tree for value in found(item, key)]
    if not isinstance(tree, dict):
        return []
    return [tree[k] for k in tree if k == key] + [value for item in tree.values() for value in found(item, key)]


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_schemas_take_every_object_and_every_pod_of_the_ray_cluster(version):
    core = [o for _, o in OBJECTS if not o["apiVersion"].startswith("ray.io/")]
    pods = [{"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]} for group in GROUPS]
    assert len(core) >= 9
    for document in core + pods:
        kubernetes_validate.validate(document, version, strict=True)
    broken = {**core[0], "spelled": "wrong"}
    with pytest.raises(kubernetes_validate.ValidationError, match="spelled"):
        kubernetes_validate.validate(broken, version, strict=True)


def test_ray_objects_have_the_fields_that_kuberay_documents():
    for document, spec in ((CLUSTER, RAY_CLUSTER), (JOB, RAY_JOB)):
        assert document["apiVersion"] == "ray.io/v1"
        jsonschema.Draft202012Validator(spec).validate(document["spec"])
    assert JOB["spec"]["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    assert JOB["metadata"]["namespace"] == yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["namespace"]


def test_rays_autoscaler_reads_the_cluster_and_the_profile_fits_in():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    document = {**CLUSTER, "metadata": {**CLUSTER["metadata"], "namespace": "egomill"}}
    types = _derive_autoscaling_config_from_ray_cr(document)["available_node_types"]  # Ray holds it against a schema of its own
    assert set(types) == {"headgroup", "cpu", "gpu"}
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert all(types[name]["min_workers"] <= types[name]["max_workers"] for name in types)

    profile, gpu = Profile.load(str(DEPLOY / "cluster.toml")), types["gpu"]["resources"]
    assert profile.train.gpu
    assert profile.train.workers <= gpu["GPU"] * types["gpu"]["max_workers"]
    for stage, share in profile.resources.gpus.items():
        actors = int(1 / share) * gpu["GPU"]
        assert actors * profile.resources.cpus.get(stage, 1.0) <= gpu["CPU"], f"{stage}: a GPU pod has GPUs that no CPU is left for"
    assert max(profile.resources.cpus.values()) <= types["cpu"]["resources"]["CPU"]


def test_the_clusters_profile_makes_the_rows_of_paper():
    ours, paper = Profile.load(str(DEPLOY / "cluster.toml")), Profile.load("paper")
    for section in ("clips", "depth", "model", "generate"):
        assert getattr(ours, section) == getattr(paper, section), f"rows made under one profile are stale under the other: {section}"


def test_what_is_named_is_there():
    made = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["configMapGenerator"]
    names = {(o["kind"], o["metadata"].get("name")) for _, o in OBJECTS} | {("ConfigMap", m["name"]) for m in made}
    for kind, key, field in (
        ("ConfigMap", "configMapRef", "name"),
        ("ConfigMap", "configMapKeyRef", "name"),
        ("ConfigMap", "configMap", "name"),
        ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
    ):
        for reference in found(TEMPLATES, key):
            assert (kind, reference[field]) in names, f"no {kind} {reference[field]}"
    assert {("ServiceAccount", account) for account in found(TEMPLATES, "serviceAccountName")} <= names
    assert {reference["key"] for reference in found(TEMPLATES, "configMapKeyRef")} <= set(SETTINGS)

    head = f"{CLUSTER['metadata']['name']}-head-svc"  # as KubeRay names it
    ports = {(o["metadata"]["name"], str(p["port"])) for _, o in OBJECTS if o["kind"] == "Service" for p in o["spec"]["ports"]}
    ports |= {(head, "6379"), (head, "8265"), ("127.0.0.1", "4200")}
    values = [*SETTINGS.values(), *(v["value"] for variables in found(TEMPLATES, "env") for v in variables if "value" in v)]
    addresses = [address for value in values for address in re.findall(r"^(?:http://)?([\w.-]+):(\d+)(?:/api)?$", value)]
    assert len(addresses) >= 3
    assert set(addresses) <= ports
    for service in (o for _, o in OBJECTS if o["kind"] == "Service"):
        target = next(o for _, o in OBJECTS if o["kind"] == "Deployment" and o["metadata"]["name"] == service["metadata"]["name"])
        assert target["spec"]["template"]["metadata"]["labels"] == target["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= {p["containerPort"] for p in found(target, "ports")[0]}


def test_secrets_are_named_on_the_page_and_their_values_nowhere():
    assert not [name for name, o in OBJECTS if o["kind"] == "Secret"]
    references = found(TEMPLATES, "secretKeyRef")
    named = {r["name"] for r in references + found(TEMPLATES, "secretRef")} | {CLUSTER["spec"]["authOptions"]["secretName"]}
    assert named >= {"egomill-databases", "egomill-ray"}
    for secret in sorted(named | {r["key"] for r in references}):
        assert f"`{secret}`" in PAGE, f"docs/deploy.md does not name {secret}"
    secretive = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY|DATABASE|STORE_URI")
    assert not [name for name in SETTINGS if secretive.search(name)]
    for variable in (v for variables in found(TEMPLATES, "env") for v in variables if secretive.search(v["name"])):
        assert "secretKeyRef" in variable["valueFrom"], f"{variable['name']} stands here in clear"


def test_every_pod_is_of_the_one_image_and_nobody_special():
    assert {container["image"] for container in CONTAINERS} == {"egomill"}
    for template in TEMPLATES:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["enableServiceLinks"] is False  # MLFLOW_PORT=tcp://… is not what MLflow expects
        for container in spec["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert set(container["resources"]) == {"limits", "requests"}
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= {volume["name"] for volume in spec.get("volumes", [])}
    assert not {o["kind"] for _, o in OBJECTS} & {"Ingress", "HTTPRoute"}
    assert {o["spec"]["type"] for _, o in OBJECTS if o["kind"] == "Service"} == {"ClusterIP"}
    assert CLUSTER["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_every_ray_node_has_shared_memory_within_its_own():
    from ray.autoscaler._private.kuberay.utils import parse_quantity

    worker = next(o["spec"]["template"] for _, o in OBJECTS if o["metadata"].get("name") == "prefect-worker")
    for template in [*(group["template"] for group in GROUPS), worker]:
        container = template["spec"]["containers"][0]
        mounted = next(mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm")
        shm = next(volume["emptyDir"] for volume in template["spec"]["volumes"] if volume["name"] == mounted)
        assert shm["medium"] == "Memory"
        assert parse_quantity(shm["sizeLimit"]) < parse_quantity(container["resources"]["limits"]["memory"]) / 2
    asks = {v["name"]: v for v in worker["spec"]["containers"][0]["env"]}  # the worker joins by hand what KubeRay arranges for its own pods
    options = CLUSTER["spec"]["authOptions"]
    assert asks["RAY_AUTH_MODE"]["value"] == options["mode"]
    assert asks["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": options["secretName"], "key": "auth_token"}


def test_the_image_is_what_the_pins_say():
    text = (DEPLOY / "Dockerfile").read_text()
    assert CLUSTER["spec"]["rayVersion"] == PINNED["ray"]
    python = re.search(r"^FROM python:(\d+\.\d+)-", text, re.M)
    assert python
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={python[1]},' in project
    copied = [source for line in re.findall(r"^COPY (.+)$", text, re.M) for source in line.split()[:-1]]
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == let_in
    for source in copied:
        assert (ROOT / source).exists(), f"the Dockerfile copies {source}"
    assert "-c constraints.txt" in text
    assert re.search(r"^USER 1000$", text, re.M)
    extra = re.search(r"'\.\[(\w+)\]'", text)
    assert extra
    declared = ast.literal_eval(re.search(rf"^{extra[1]} = (\[.*?\])$", project, re.M | re.S)[1])  # type: ignore[index]
    for requirement in map(Requirement, declared):
        assert requirement.specifier.contains(PINNED[requirement.name])


def test_the_deployments_are_those_of_the_top_with_the_clusters_places():
    top, ours = ({d["name"]: d for d in yaml.safe_load((at / "prefect.yaml").read_text())["deployments"]} for at in (ROOT, DEPLOY))
    assert set(ours) == set(top)
    for name, deployment in ours.items():
        assert deployment["entrypoint"] == top[name]["entrypoint"]
        for setting in ("concurrency_limit", "triggers"):
            assert deployment.get(setting) == top[name].get(setting)
        assert deployment["work_pool"]["name"] == POOL
        file, _, flow = deployment["entrypoint"].partition(":")
        functions = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
        defined = next(function for function in functions if function.name == flow)
        assert set(deployment["parameters"]) <= {argument.arg for argument in defined.args.args}
        assert set(re.findall(r"\{\{ \$(\w+) \}\}", str(deployment))) <= set(SETTINGS)
    worker = next(c for c in CONTAINERS if c["name"] == "worker")
    assert f"--pool {POOL}" in worker["args"][0]
    files = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["configMapGenerator"][1]["files"]
    paths = set(re.findall(r"/etc/egomill/([\w.]+)", (DEPLOY / "prefect.yaml").read_text() + worker["args"][0] + JOB["spec"]["entrypoint"]))
    assert paths <= set(files)


def test_kustomize_builds_it_with_one_image_in_one_namespace():
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which has kustomize in it, is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(DEPLOY)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    chosen = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    (image,) = chosen["images"]
    assert set(found(built, "image")) == {f"{image['newName']}:{image['newTag']}"}
    assert {o["metadata"].get("namespace", o["metadata"]["name"]) for o in built} == {chosen["namespace"]}
    assert {o["kind"] for o in built} == {o["kind"] for _, o in OBJECTS} - {"RayJob"} | {"ConfigMap"}
    for document in built:
        if document["kind"] != "RayCluster":
            kubernetes_validate.validate(document, "1.37", strict=True)
    cluster = next(o for o in built if o["kind"] == "RayCluster")
    jsonschema.Draft202012Validator(RAY_CLUSTER).validate(cluster["spec"])
