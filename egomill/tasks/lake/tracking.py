"""How well: runs, metrics and adapters in MLflow, which is imported only when something is tracked (it takes six seconds).

Everything goes through a client and explicit run ids, never through MLflow's "active run": a training that is restarted, or whose
losses come from another process, must find its run again. Which data a run saw is a dataset input that names the release and the table
versions; its source can be reopened in any process that has this package installed (entry point `mlflow.dataset_source`).

An adapter's files lie where MLflow keeps artifacts: a folder, which is read in place, or behind a server or in an object store. From there
each machine fetches a version once, into `cache()`, where the newest `CACHED` stay.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from egomill.schemas.fingerprint import digest
from egomill.schemas.text import plain
from egomill.tasks.lake.connection import connected, flat, greet, quoted, texts
from egomill.tasks.lake.dataset_source import LanceSource

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
log = logging.getLogger(__name__)
CHAMPION, CANDIDATE = "champion", "candidate"
ROLLING = "rolling_back"  # tag of a champion that is losing its place
BY = "egomill.run"  # tag of runs: the lake's run that started it
_QUOTED = "?uri=true"
CACHED = 8  # adapters that a machine keeps: one of the paper's size has 3 GB


@dataclass(frozen=True)
class Adapter:
    """A registered adapter: `folder` holds its files on this machine ("": not fetched), `spec` ("name@v3") is how tables name it."""

    name: str
    version: str
    run_id: str
    folder: str
    tags: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        return f"{self.name}@v{self.version}"


def cache() -> Path:
    """Where this machine keeps adapters that it fetched."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egomill" / "adapters"


@dataclass(frozen=True)
class Tracker:
    """An MLflow store: `sqlite:///path/mlflow.db` (artifacts go to `mlartifacts` beside it) or a server's address.

    A value: workers get a copy and open their own connection.
    """

    uri: str
    experiment: str = "egomill"

    @staticmethod
    def beside(lake_uri: str) -> Tracker:
        """The default store of a lake on disk. ValueError for an object store, where a server has to be named."""
        if "://" in lake_uri:
            raise ValueError(f"the lake {lake_uri} is no folder: name an MLflow server, with --tracking or MLFLOW_TRACKING_URI")
        path = str(Path(lake_uri).absolute() / "mlflow.db")  # of an address what follows a question mark is options, but of a file's quoted
        return Tracker(f"sqlite:///file:{quote(path)}{_QUOTED}" if "?" in path else f"sqlite:///{path}")

    @staticmethod
    def of(uri: str, lake_uri: str) -> Tracker:
        """The store at `uri`, or where that is empty the lake's own. OSError where it is a server that does not answer."""
        if uri:
            greet(uri)
        return Tracker(uri) if uri else Tracker.beside(lake_uri)

    @property
    def database(self) -> Path | None:
        """The file of the store; None for a server."""
        if not self.uri.startswith("sqlite:///"):
            return None
        path = self.uri.removeprefix("sqlite:///")
        return Path(unquote(path.removeprefix("file:").removesuffix(_QUOTED)) if path.endswith(_QUOTED) else path).absolute()

    @property
    def client(self) -> Any:
        return connected(self.uri, self.database)

    # -- runs ------------------------------------------------------------------------------------------------------

    def start(self, name: str, tags: Mapping[str, str] | None = None) -> str:
        """A new run; returns its id."""
        return self.client.create_run(self._experiment(), run_name=plain(name, 200), tags=texts(tags or {})).info.run_id

    def resume(self, run_id: str) -> None:
        self.client.update_run(run_id, status="RUNNING")

    def unfinished(self, tags: Mapping[str, str]) -> str:
        """The newest run with these tags that did not finish (running, failed or killed); "" where there is none."""
        where = " AND ".join(f"tags.`{name}` = {quoted(value)}" for name, value in tags.items())
        found = self.client.search_runs([self._experiment()], filter_string=f"attributes.status != 'FINISHED' AND {where}", max_results=1)
        return found[0].info.run_id if found else ""

    def end(self, run_id: str, status: str = "FINISHED") -> None:
        """status: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)

    def running(self) -> dict[str, str]:
        """{run that says it is under way: the lake's run that started it}."""
        found = self.client.search_runs([self._experiment()], filter_string="attributes.status = 'RUNNING'")
        return {run.info.run_id: run.data.tags.get(BY, "") for run in found}

    def registered(self, run_id: str) -> bool:
        """Whether an adapter came of the run."""
        return bool(self.client.search_model_versions(f"run_id = '{run_id}'"))

    def started_by(self, run_id: str) -> str:
        """The lake's run that started it, or went on with it last."""
        return self.client.get_run(run_id).data.tags.get(BY, "")

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            return found.experiment_id
        artifacts = (self.database.parent / "mlartifacts").as_uri() if self.database else None
        try:
            return self.client.create_experiment(self.experiment, artifact_location=artifacts)
        except MlflowException:  # another process was first
            return self.client.get_experiment_by_name(self.experiment).experiment_id

    def params(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Nested settings as `section.key`. MLflow refuses to change a parameter of a run, and so do we."""
        from mlflow.entities import Param

        self.client.log_batch(run_id, params=[Param(k, v) for k, v in texts(dict(flat(values))).items()])

    def tags(self, run_id: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in texts(values).items()])

    def metrics(self, run_id: str, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Many steps at once: (step, {name: value}); a step logged again by a resumed run is kept twice (readers take the last)."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(k, float(v), now, step) for step, values in rows for k, v in values.items()]
        for i in range(0, len(points), 1000):
            self.client.log_batch(run_id, metrics=points[i : i + 1000])

    def history(self, run_id: str, name: str) -> dict[int, float]:
        """{step: value}; where a step was logged twice, the last."""
        return {p.step: p.value for p in sorted(self.client.get_metric_history(run_id, name), key=lambda p: (p.step, p.timestamp))}

    def newest(self, run_id: str) -> tuple[int, dict[str, float]]:
        """The last step of which a loss was logged, and the newest values of all metrics. ValueError where there is none yet."""
        steps = [point.step for point in self.client.get_metric_history(run_id, "loss")]
        return max(steps), self.client.get_run(run_id).data.metrics

    def image(self, run_id: str, picture: Any, path: str) -> None:
        """picture: uint8 [H, W, 3]; path: within the run's artifacts, ending in .png."""
        self.client.log_image(run_id, picture, artifact_file=path)

    def artifacts(self, run_id: str, folder: str | Path, path: str | None = None) -> None:
        self.client.log_artifacts(run_id, str(folder), path)

    def artifact(self, run_id: str, file: str | Path, path: str | None = None) -> None:
        self.client.log_artifact(run_id, str(file), path)

    def dataset(self, run_id: str, release: str, lake_uri: str, tables: Mapping[str, int], context: str = "training") -> str:
        """Write down which release and table versions the run reads; returns the digest, by which `runs_of` finds the run."""
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        source: Any = LanceSource(lake_uri, dict(tables))
        made = MetaDataset(source, name=release, digest=digest(dict(tables)))
        entity = made._to_mlflow_entity()
        self.client.log_inputs(run_id, datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", context)])])
        return entity.digest

    def runs_of(self, dataset_digest: str) -> list[str]:
        """The runs that read exactly these table versions."""
        found = self.client.search_runs([self._experiment()], filter_string=f"dataset.digest = {quoted(dataset_digest)}")
        return [run.info.run_id for run in found]

    def inputs(self, run_id: str) -> list[dict]:
        """[{name, digest, uri, tables}] of a run."""
        found = self.client.get_run(run_id).inputs.dataset_inputs
        return [{"name": i.dataset.name, "digest": i.dataset.digest, **json.loads(i.dataset.source)} for i in found]

    # -- adapters --------------------------------------------------------------------------------------------------

    def register(self, name: str, folder: str | Path, run_id: str, tags: Mapping[str, str]) -> Adapter:
        """Keep an adapter's files with the run and make them the next version of `name`."""
        from mlflow.exceptions import MlflowException

        self.artifacts(run_id, folder, "adapter")
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self.client.get_run(run_id).info.artifact_uri}/adapter"
        made = self.client.create_model_version(name, source=source, run_id=run_id, tags=texts(tags))
        return self.resolve(f"{name}/{made.version}")

    def alias(self, adapter: Adapter, alias: str) -> None:
        """Point an alias at a version. It leaves the version it stood at."""
        self.client.set_registered_model_alias(adapter.name, alias, adapter.version)

    def tag_adapter(self, adapter: Adapter, tags: Mapping[str, str]) -> None:
        self.tag_version(adapter.name, adapter.version, tags)

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Tags on a registered version, without fetching its files."""
        for key, value in texts(tags).items():
            self.client.set_model_version_tag(name, version, key, value)

    def find(self, spec: str) -> Adapter:
        """The adapter that "name@alias", "name@v3" or "name/3" means, without its files. ValueError where there is none."""
        from mlflow.exceptions import MlflowException

        name, at, alias = spec.partition("@")
        try:
            if at and not (alias[:1] == "v" and alias[1:].isdigit()):
                found = self.client.get_model_version_by_alias(name, alias)
            else:
                name, _, version = spec.replace("@v", "/").rpartition("/")
                found = self.client.get_model_version(name, version)
        except MlflowException as error:
            raise ValueError(f"no adapter {spec!r}: {error.message}") from None
        return Adapter(found.name, str(found.version), found.run_id, "", dict(found.tags), tuple(found.aliases))

    def resolve(self, spec: str) -> Adapter:
        """`find`, with the files on this machine."""
        found = self.find(spec)
        return replace(found, folder=self._fetch(found))

    def folder(self, spec: str) -> str:
        """Where `spec`'s files lie on the machine that asks: for workers, whose machine may be another than the driver's."""
        return self.resolve(spec).folder

    def _fetch(self, adapter: Adapter) -> str:
        place = urlsplit(self.client.get_run(adapter.run_id).info.artifact_uri)
        if place.scheme in ("", "file"):
            folder = Path(unquote(place.path) if place.scheme else place.path) / "adapter"
            if not folder.is_dir():
                raise OSError(f"the files of {adapter.spec} are gone: there is no folder {folder}. Put it back, or train again")
            return str(folder)  # nothing is copied
        home = cache()
        home.mkdir(parents=True, exist_ok=True)
        folder = home / f"{adapter.run_id}-v{adapter.version}"
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of the actors that a machine starts at once one fetches, and the others wait
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=home) as half:
                    os.rename(self.client.download_artifacts(adapter.run_id, "adapter", half), folder)
            os.utime(folder)
        kept = sorted(home.glob("*-v*[0-9]"), key=lambda old: old.stat().st_mtime)
        for old in kept[:-CACHED]:
            shutil.rmtree(old, ignore_errors=True)
        return str(folder)

    def nominate(self, adapter: Adapter) -> None:
        """Make it the candidate, unless a newer version is. Asked of an adapter that was registered before, it mends what a crash left."""
        now = self._at(adapter.name, CANDIDATE)
        if now is None or int(now.version) < int(adapter.version):
            self.alias(adapter, CANDIDATE)

    def promote(self, adapter: Adapter, why: str) -> None:
        """Make it champion, and write down why and whom it replaced: that is where `roll_back` returns to."""
        before = self._champion(adapter.name)
        if before is None or before.spec != adapter.spec:
            self.tag_adapter(adapter, {"champion_before": before.spec if before else ""})
        self.alias(adapter, CHAMPION)
        self.tag_adapter(adapter, {"promoted": why})

    def roll_back(self, name: str) -> tuple[Adapter, Adapter]:
        """Give the champion's place back to the one before; returns (who lost it, who has it). ValueError where there is none before."""
        now = self._champion(name)
        if now is None:
            raise ValueError(f"{name} has no champion, so there is nothing to roll back")
        before = now.tags.get("champion_before", "")
        if not before:
            raise ValueError(f"{now.spec} replaced nobody, so there is nobody to go back to")
        restored = self.find(before)
        self.tag_adapter(now, {ROLLING: f"to {restored.spec}"})  # `settle` goes on from here
        self.alias(restored, CHAMPION)
        self.settle(name)
        return now, restored

    def settle(self, name: str) -> None:
        """End what a crash broke off between two writes: who was to be rolled back is, and a champion says that it was promoted."""
        for row in self.adapters(name):
            if (to := row["tags"].get(ROLLING)) and CHAMPION in row["aliases"]:
                self.roll_back(name)
            elif to:
                self.tag_version(name, row["version"], {"rolled_back": to})
                self.client.delete_model_version_tag(name, row["version"], ROLLING)
            elif CHAMPION in row["aliases"] and "champion_before" in row["tags"] and "promoted" not in row["tags"]:
                self.tag_version(name, row["version"], {"promoted": "(broken off before the reason was written)"})

    def champion(self, name: str) -> Adapter | None:
        """The adapter of that alias, with its files."""
        found = self._champion(name)
        return found and replace(found, folder=self._fetch(found))

    def _champion(self, name: str) -> Adapter | None:
        return self._at(name, CHAMPION)

    def _at(self, name: str, alias: str) -> Adapter | None:
        try:
            return self.find(f"{name}@{alias}")
        except ValueError:
            return None

    def exists(self) -> bool:
        """Whether there is a store: asking a database that is not there would make one."""
        return self.database is None or self.database.is_file()

    def names(self) -> list[str]:
        """Of all registered adapters."""
        return [model.name for model in self.client.search_registered_models(max_results=1000)]

    def runs_on(self, release: str) -> list[str]:
        """The runs that trained on a release, whether or not an adapter came of it."""
        found, token = [], None
        while True:
            page = self.client.search_runs([self._experiment()], filter_string=f"tags.release = {quoted(release)}", page_token=token)
            found += [run.info.run_id for run in page]
            if not (token := page.token):
                return found

    def files(self, run_id: str, path: str = "") -> list[str]:
        """Paths of a run's artifacts below `path`."""
        found = []
        for entry in self.client.list_artifacts(run_id, path or None):
            found += self.files(run_id, entry.path) if entry.is_dir else [entry.path]
        return found

    def page(self) -> Any:
        """The application that `mlflow server` runs, of this store, whose artifacts lie beside it."""
        from mlflow.server import constants
        from mlflow.server.handlers import initialize_backend_stores

        files = str(self.database.parent / "mlartifacts") if self.database else ""
        os.environ |= {constants.BACKEND_STORE_URI_ENV_VAR: self.uri, constants.REGISTRY_STORE_URI_ENV_VAR: self.uri}
        os.environ |= {constants.SERVE_ARTIFACTS_ENV_VAR: "true", constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/"}
        os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = files
        initialize_backend_stores(self.uri, self.uri, "mlflow-artifacts:/")
        from mlflow.server.fastapi_app import app

        return app

    def remove(self, run_id: str, path: str) -> bool:
        """Delete one of a run's artifacts. False where it is still there: the store does not let us."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        place = self.client.get_run(run_id).info.artifact_uri
        try:
            get_artifact_repository(place, tracking_uri=self.uri).delete_artifacts(path)
        except Exception as error:  # each kind of store has its own
            log.warning("%s of run %s was not deleted: %s", path, run_id, error)
        return path not in self.files(run_id)

    def only(self) -> str:
        """The name of the adapter where one alone is registered. ValueError where there is a choice, or none."""
        names = self.names()
        if len(names) != 1:
            raise ValueError(f"which adapter? registered at {self.uri}: {', '.join(names) or 'none'}")
        return names[0]

    def adapters(self, name: str) -> list[dict]:
        """Every version, oldest first: {version, run_id, tags, aliases}."""
        found = sorted(self.client.search_model_versions(f"name = {quoted(name)}"), key=lambda v: int(v.version))
        by_version: dict[str, list[str]] = {}
        if found:
            for alias, version in self.client.get_registered_model(name).aliases.items():
                by_version.setdefault(str(version), []).append(alias)
        return [
            {"version": str(v.version), "run_id": v.run_id, "tags": dict(v.tags), "aliases": sorted(by_version.get(str(v.version), []))}
            for v in found
        ]
