"""Run a stage over what is pending: the only `map_batches`.

A stage is a value; its worker is a plain callable, a row in, a row (or several, or `Rejected`) out, and runs as well without Ray. The
runner asks three questions of the tables (what goes in, what is there already, what has failed before), hands shards of keys to Ray actors
(those of a handful of rows to processes of our own: a Ray would take longer to come up), and commits shards as they come back. Killing it
at any moment costs the shards in flight and nothing else: the next run asks again.

Only keys travel: actors read their rows at pinned versions and write their results as files that the driver then commits.
What is asked of whole tables is asked in Arrow; Python sees only the rows that are to be made.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import queue
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from egomill.schemas.config import Resources
from egomill.schemas.fingerprint import check_code, code_parts, content_of, digest
from egomill.schemas.item import Item
from egomill.schemas.outcome import Rejected, Report, StageFailed
from egomill.schemas.tables import KEYS, LONG, TABLES, as_stored, silent
from egomill.tasks.lake import recipes
from egomill.tasks.lake.tables import Damaged, Lake, intact, one_of
from egomill.tasks.lake.watch import Journal, Watch

log = logging.getLogger(__name__)
pc: Any = pyarrow.compute  # which makes its functions while it is imported: type checkers cannot see them
Worker = Callable[[dict], dict | list[dict] | Rejected]
MEMORY = 64 * 1024**2  # bytes of inputs, and of results, that an actor holds at a time (a single row may be more)
SHOWN = 5  # failed rows of one reason that are logged with all they left; the table holds them all
PATIENCE = 10.0  # seconds that finished rows wait to be committed with others at most
FEW = 8  # rows that need no Ray
AT_ONCE = 5000  # rows in one commit at most: filters that name a hundred thousand keys are slow
STATES = ("current", "rejected", "failed", "blocked", "pending", "gone")


@dataclass(frozen=True)
class Stage:
    """What makes a table. `reads` names tables and columns, of `LONG` tables the names of rows; the first is iterated, and the worker gets
    {table: {column: value}}."""

    name: str
    reads: dict[str, tuple[str, ...]]
    config: dict
    worker: Callable[[], Worker]  # called once an actor: heavy models load here
    weights: str = ""
    constants: dict[str, str] = field(default_factory=dict)  # further key columns, the same for all rows
    where: str = ""  # SQL filter on the first table; name a table of several keys first, and pick one of its rows a clip here
    also: tuple[str, ...] = ()  # modules beside the worker's whose code makes the rows, and that it does not import: a method's

    @property
    def id(self) -> str:
        """The stage's name in failures and reports."""
        return "/".join((self.name, *self.constants.values()))

    @property
    def parent(self) -> str:
        """The column of the made table that holds the input's key: takes make clips, clips make the rest."""
        return KEYS[next(iter(self.reads))][0] if self.reads else KEYS[self.name][0]

    @property
    def module(self) -> str:
        made_by = self.worker.func if isinstance(self.worker, functools.partial) else self.worker
        return made_by.__module__

    @property
    def mine(self) -> str:
        """SQL filter: this stage's rows in its table, which it may share with other adapters' or models' ("" where it is alone)."""
        return " AND ".join(one_of(column, [value]) for column, value in self.constants.items())

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        """What makes every row of the stage: what is read, settings, code, weights, the shape of the table."""
        made = {"stage": self.name, "reads": list(self.reads), "config": self.config, "code": code_parts(self.module, *self.also)}
        made |= {"weights": self.weights, "columns": str(TABLES[self.name]), "constants": self.constants}
        return json.loads(json.dumps(made))  # tuples as lists, as the lake gives them back

    @functools.cached_property
    def recipe(self) -> str:
        return digest(self.parts)

    def fingerprint(self, inputs: list[str]) -> str:
        """What makes one row: the recipe, and the contents of what the row is made from."""
        return digest(self.recipe, inputs)

    def fingerprints(self, inputs: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """`fingerprint` of every row of a table of contents, and those contents as a JSON list."""
        made, told, quoted = [], [], json.encoder.encode_basestring_ascii
        recipe = f"[{quoted(self.recipe)},"  # a digest is that of the JSON of its arguments
        for batch in inputs.to_batches(64 * 1024):
            texts = [f"[{','.join(map(quoted, row))}]" for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]
            told.append(pa.array(texts, pa.string()))
            made.append(pa.array([hashlib.sha256(f"{recipe}{text}]".encode()).hexdigest()[:32] for text in texts], pa.string()))
        return pa.chunked_array(made, pa.string()), pa.chunked_array(told, pa.string())


def run(
    stage: Stage,
    lake: Lake,
    run_id: str,
    resources: Resources,
    keys: Iterable[str] | None = None,
    items: list[Item] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Make what is missing or stale of `stage`'s table, over `keys` (None: all inputs) or over `items`.

    Returns the report; raises StageFailed, with the report as its argument, above `resources.failure_threshold`.
    """
    started = time.monotonic()
    versions = {table: lake.version(table) for table in stage.reads}
    ledger = pending(stage, lake, keys, items, resources.attempts, versions)
    states = {state: ledger.filter(pc.equal(ledger["state"], state)) for state in STATES}
    report = Report(stage.id, inputs=len(ledger) - len(states["gone"]), outputs=len(states["current"]))
    for status in ("rejected", "failed"):
        setattr(report, status, len(states[status]))
        report.reasons.update({c["values"]: c["counts"] for c in states[status]["reason"].value_counts().to_pylist()})

    for gone in _slices(states["gone"], AT_ONCE):
        replace = _among(stage, gone["key"].to_pylist())
        lake.commit(stage.name, None, replace=replace, properties={"run_id": run_id, "retired": str(len(gone))})
        report.retired += len(gone)

    if len(states["pending"]) or len(states["blocked"]):
        recipes.record(lake, stage.parts)
    made = None
    if len(states["pending"]):
        from egomill.tasks.lake.cluster import connect

        few = _few(stage, len(states["pending"]), resources)
        if not few:
            connect()  # here, and not where results are waited for: a local Ray dies with the thread that started it
        made = (_here if few else _on_ray)(stage, lake, run_id, versions, states["pending"], items, resources)
    seen, todo = 0, len(states["blocked"]) + len(states["pending"])
    for fragments, outcomes in itertools.chain(_blocked(states["blocked"]), _as_they_come(made) if made else ()):
        _record(stage, lake, run_id, fragments, outcomes)
        for outcome in outcomes:
            for level, text in outcome.get("said", ()):
                log.log(level, "%s %s: %s", stage.id, outcome["key"], text)
            setattr(report, outcome["status"], getattr(report, outcome["status"]) + 1)
            if outcome["status"] == "outputs":
                report.computed += 1
                continue
            report.reasons[outcome["reason"]] += 1
            if outcome["status"] == "failed" and report.reasons[outcome["reason"]] <= SHOWN:
                log.warning("%s %s failed: %s\n%s", stage.id, outcome["key"], outcome["reason"], outcome["detail"])
        seen += len(outcomes)
        if progress:
            progress(seen, todo)

    report.seconds = time.monotonic() - started
    if report.failed > resources.failure_threshold * max(report.inputs, 1):
        raise StageFailed(report)
    return report


def retry(lake: Lake, reason: str, stage: str = "") -> int:
    """Make the rejected and failed rows of this reason (and of this stage's id; "": of all) pending again, with all their attempts.

    They stay among the failures until they are tried. Returns how many; ValueError where no row has that reason.
    """
    where = " AND ".join(one_of(column, [value]) for column, value in (("reason", reason), ("stage", stage)) if value)
    rows = lake.read("failures", where=where).to_pylist()
    if not rows:
        known = sorted(set(lake.read("failures", ["reason"])["reason"].to_pylist()))
        raise ValueError(f"no row failed with {reason!r}{f' in {stage}' if stage else ''}; there are: {', '.join(known) or 'no failures'}")
    lake.upsert("failures", [{**row, "fingerprint": "", "attempt": 0} for row in rows])
    return len(rows)


# -- what is to be done ------------------------------------------------------------------------------------------------


def pending(
    stage: Stage,
    lake: Lake,
    keys: Iterable[str] | None = None,
    items: list[Item] | None = None,
    attempts: int = 3,
    versions: dict[str, int] | None = None,
) -> pa.Table:
    """What a run of the stage would do, as a table, one row an input, sorted by key. Changes nothing.

    `key`; `fingerprint` that its row ought to have; `inputs`, the contents it would be made from, as JSON; `made`, the fingerprint that it
    has (null: there is no row); `missing`, the tables that have no row for it (null: none); `state`; `reason` of an earlier rejection or
    failure; `attempt`, the number of the next one; `noted`, whether the failures name it. The states: "current"; "rejected" and "failed"
    for good, that is until data or code change; "blocked" by what is missing; "pending"; "gone", a row of the made table whose input is no
    more (all else but key and made null).
    """
    versions = {table: lake.version(table) for table in stage.reads} if versions is None else versions
    wanted, every = _wanted(stage, lake, versions, keys, items)
    made = _made(stage, lake)
    past = lake.read("failures", ["key", "fingerprint", "status", "reason", "attempt"], one_of("stage", [stage.id]))
    past = past.rename_columns(["key", "tried", "status", "reason", "attempt"])
    found = wanted.join(made, "key").join(past, "key").sort_by("key")

    current = pc.fill_null(pc.equal(found["made"], found["fingerprint"]), False)
    again = pc.fill_null(pc.equal(found["tried"], found["fingerprint"]), False)
    # Rejected data stays rejected until it or the check changes; our own failures get a bounded number of attempts.
    over = pc.or_(pc.equal(found["status"], "rejected"), pc.greater_equal(found["attempt"], attempts))
    open_ = pc.if_else(pc.is_valid(found["missing"]), "blocked", "pending")
    state = pc.if_else(current, "current", pc.if_else(pc.fill_null(pc.and_(again, over), False), found["status"], open_))
    columns = {name: found[name] for name in ("key", "fingerprint", "inputs", "made", "missing", "reason")}
    attempt = pc.if_else(again, pc.add(found["attempt"], 1), 1)
    ledger = pa.table({**columns, "state": state, "attempt": attempt, "noted": pc.is_valid(found["tried"])})
    if every is None:
        return ledger
    gone = made.join(every, "key", join_type="left anti").sort_by("key")
    return pa.concat_tables([ledger, gone.append_column("state", pa.array(["gone"] * len(gone), pa.string()))], promote_options="default")


def _wanted(
    stage: Stage, lake: Lake, versions: dict[str, int], keys: Iterable[str] | None, items: list[Item] | None
) -> tuple[pa.Table, pa.Table | None]:
    """(key, fingerprint, inputs, missing) of the inputs; and all keys there are (None: unknown, takes on disk come and go)."""
    if items is not None:
        made, told = stage.fingerprints(pa.table({"on disk": pa.array([item.digest for item in items], pa.string())}))
        missing = pa.nulls(len(items), pa.string())
        return pa.table({"key": [i.key for i in items], "fingerprint": made, "inputs": told, "missing": missing}, _WANTED), None
    first, *others = versions
    inputs = _contents_in(stage, lake, first, versions[first], stage.where)
    every = inputs.select(["key"])
    if keys is not None:
        inputs = inputs.join(pa.table({"key": pa.array(list(keys), pa.string())}), "key", join_type="left semi")
    for table in others:
        inputs = inputs.join(_contents_in(stage, lake, table, versions[table]), "key")
    absent = zip(*(pc.is_null(inputs[table]).to_pylist() for table in others), strict=True) if others else ((),) * len(inputs)
    lacking = [", ".join(table for table, gone in zip(others, row, strict=True) if gone) or None for row in absent]
    missing = pa.array(lacking, pa.string())
    parts = pa.table({table: pc.fill_null(inputs[table], "") for table in versions})
    made, told = stage.fingerprints(parts)
    return pa.table({"key": inputs["key"], "fingerprint": made, "inputs": told, "missing": missing}, _WANTED), every


_WANTED = pa.schema([(name, pa.string()) for name in ("key", "fingerprint", "inputs", "missing")])


def _contents_in(stage: Stage, lake: Lake, table: str, version: int, where: str = "") -> pa.Table:
    """(key, `table`): the content of each key's row; of a `LONG` table a digest of those that the stage reads."""
    if table not in LONG:
        return _by_key(lake.read(table, [KEYS[table][0], "content"], where, version), table)
    rows = lake.read(table, [KEYS[table][0], "name", "content"], _and(one_of("name", stage.reads[table]), where), version)
    by_key: dict[str, list[tuple[str, str]]] = {}
    for key, *named in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        by_key.setdefault(key, []).append((named[0], named[1]))
    contents = [digest(*sorted(named)) for named in by_key.values()]
    return pa.table({"key": pa.array(list(by_key), pa.string()), table: pa.array(contents, pa.string())})


def _made(stage: Stage, lake: Lake) -> pa.Table:
    """(key, `made`): the fingerprint of what each input's row was made with; "" where not all of its rows are there, or they disagree."""
    if stage.name not in LONG:
        return _by_key(lake.read(stage.name, [stage.parent, "fingerprint"], stage.mine), "made")
    rows = lake.read(stage.name, [stage.parent, "fingerprint", "names"], stage.mine)
    rows = pa.table({"key": rows[0], "fp": rows[1], "of": pc.list_value_length(rows["names"])})
    found = rows.group_by("key").aggregate([("fp", "min"), ("fp", "max"), ("of", "min"), ("of", "count")])
    whole = pc.and_(pc.equal(found["fp_min"], found["fp_max"]), pc.equal(found["of_min"], found["of_count"]))
    return pa.table({"key": found["key"], "made": pc.if_else(pc.fill_null(whole, False), found["fp_max"], "")})


def _by_key(rows: pa.Table, name: str) -> pa.Table:
    """(key, `name`) from a table of keys and digests, a row a key; "" where a key's rows (clips of one take) disagree."""
    if pc.count_distinct(rows[0]).as_py() == len(rows):
        return rows.rename_columns(["key", name])
    found = rows.rename_columns(["key", "fp"]).group_by("key").aggregate([("fp", "min"), ("fp", "max")])
    agreed = pc.if_else(pc.equal(found["fp_min"], found["fp_max"]), found["fp_max"], "")
    return pa.table({"key": found["key"], name: agreed})


def _among(stage: Stage, keys: Iterable[str]) -> str:
    return _and(one_of(stage.parent, keys), stage.mine)


def _and(*conditions: str) -> str:
    """SQL filters in one; "" is none."""
    return " AND ".join(f"({condition})" for condition in conditions if condition)


# -- what was done -----------------------------------------------------------------------------------------------------

# What travels of a row: its line of the ledger, and on the way back with status, reason and detail.
_Result = tuple[list[str], list[dict]]  # fragments as `lake.write_fragments` gives them, outcomes


def _record(stage: Stage, lake: Lake, run_id: str, fragments: list[str], outcomes: list[dict]) -> None:
    """Make shards visible: their rows first, then their failures. A crash between the two costs a recomputation of the failures."""
    stale = [o["key"] for o in outcomes if o["made"] is not None]
    counts = {status: str(sum(o["status"] == status for o in outcomes)) for status in ("outputs", "rejected", "failed")}
    lake.commit(stage.name, fragments, _among(stage, stale) if stale else "", {"run_id": run_id, "stage": stage.id, **counts})
    about = {"stage": stage.id, "recipe": stage.recipe, "run_id": run_id, "at": datetime.now(UTC)}
    columns = ("key", "fingerprint", "status", "reason", "detail", "attempt")
    bad = [o for o in outcomes if o["status"] != "outputs"]
    lake.upsert("failures", [{**about, "inputs": json.loads(o["inputs"]), **{c: o[c] for c in columns}} for o in bad])
    healed = [o["key"] for o in outcomes if o["status"] == "outputs" and o["noted"]]
    if healed:
        lake.commit("failures", None, replace=f"{one_of('stage', [stage.id])} AND {one_of('key', healed)}")


def _blocked(rows: pa.Table) -> Iterator[_Result]:
    for part in _slices(rows, AT_ONCE):
        yield [], [{**row, "status": "rejected", "reason": "upstream", "detail": row["missing"]} for row in part.to_pylist()]


def _as_they_come(results: Generator[_Result]) -> Iterator[_Result]:
    """All results that arrived while the last ones were committed and for a while after, at once, so that commits take a tenth of the time:
    where rows are made faster than they are committed, commits grow.

    Whoever stops asking (a commit failed) ends the work behind it at its next result, so that its actors hold no processor any more.
    """
    arrived: queue.SimpleQueue = queue.SimpleQueue()
    stop = threading.Event()

    def pump() -> None:
        try:
            with closing(results):
                for result in results:
                    arrived.put(result)
                    if stop.is_set():
                        return
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=pump, daemon=True).start()
    due = 0.0
    try:
        while True:
            fragments, outcomes, got = [], [], arrived.get()
            while isinstance(got, tuple):
                fragments += got[0]
                outcomes += got[1]
                if len(outcomes) >= AT_ONCE:
                    break
                try:
                    got = arrived.get(timeout=max(0.0, due - time.monotonic()))
                except queue.Empty:
                    break
            if outcomes:
                begun = time.monotonic()
                yield fragments, outcomes
                took = time.monotonic() - begun
                due = begun + took + min(9 * took, PATIENCE)
            if isinstance(got, BaseException):
                raise got
            if got is None:
                return
    finally:
        stop.set()


def _slices(rows: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(rows), size):
        yield rows.slice(start, size)


# -- who does it -------------------------------------------------------------------------------------------------------


class Actor:
    """A process of a stage: holds the worker (and its models), turns shards of keys into written fragments and outcomes.

    Its name `me` is that of the process before it, where that died; `ask(method, *arguments)` reaches the journal of both.
    """

    def __init__(
        self, stage: Stage, lake: Lake, run_id: str, versions: dict[str, int], resources: Resources, me: str, ask: Callable[..., Any]
    ) -> None:
        import torch

        torch.set_num_threads(1)  # actors share the machine; parallelism is theirs
        self.stage, self.lake, self.run_id, self.versions, self.least = stage, lake, run_id, versions, resources.shard
        seconds = resources.timeouts.get(stage.name, resources.timeout)
        self.watch = Watch(Path(tempfile.gettempdir()) / f"egomill-{me}.words", ask, seconds, resources.timeout_per_second)
        self.watch.making(f"worker {me}")
        check_code(stage.parts["code"])  # which the driver wrote down
        self.worker = stage.worker()
        self.watch.made(f"worker {me}")

    def work(self, rows: list[dict]) -> _Result:
        fragments, outcomes, made, size = [], [], [], 0
        with self.watch.shard([row["key"] for row in rows]) as lost:
            for row, inputs in self._read(rows, lost):
                with self.watch.row(row["key"]), heard() as said:
                    results, outcome, nbytes = self._one(row, inputs)
                made, size = made + results, size + nbytes
                outcomes.append({**row, **outcome, "said": said})
                if size > MEMORY:
                    fragments.append(self.lake.write_fragments(self.stage.name, made))
                    made, size = [], 0
            if made:
                fragments.append(self.lake.write_fragments(self.stage.name, made))
            for row in rows:
                if row["key"] in lost:
                    reason, detail = lost[row["key"]]
                    outcomes.append({**row, "status": "failed", "reason": reason, "detail": detail})
        return fragments, outcomes

    def _one(self, row: dict, inputs: dict) -> tuple[list[dict], dict, int]:
        """A row's results, its outcome, and the bytes of the results. A result that does not fit the table is a failure like any other."""
        try:
            result = self.worker(handed(self.stage.reads, inputs))
            if isinstance(result, Rejected):
                return [], {"status": "rejected", "reason": result.reason, "detail": result.detail[:8000]}, 0
            made_by = {"recipe": self.stage.recipe, "inputs": json.loads(row["inputs"]), "run_id": self.run_id}
            results = [{**r, "fingerprint": row["fingerprint"], **made_by} for r in finished(self.stage, row["key"], result)]
            if len({tuple(r[column] for column in KEYS[self.stage.name]) for r in results}) < len(results):
                raise ValueError("the worker made two rows of one key")
            return results, {"status": "outputs"}, pa.Table.from_pylist(results, TABLES[self.stage.name]).nbytes
        except (Exception, SystemExit) as error:
            detail = "".join(traceback.format_exception(error))[-8000:]
            return [], {"status": "failed", "reason": type(error).__name__, "detail": detail}, 0

    def _read(self, rows: list[dict], lost: dict) -> Iterator[tuple[dict, dict]]:
        """Rows with their inputs; as many are read at a time as memory allows."""
        rows = [row for row in rows if row["key"] not in lost]
        size = self.least
        while rows:
            part, rows = rows[:size], rows[size:]
            if "item" in part[0]:
                yield from ((row, row.pop("item")) for row in part)
                continue
            try:
                inputs, nbytes = read_rows(self.lake, self.stage.reads, self.versions, [row["key"] for row in part], self.stage.where)
            except Damaged as error:
                if len(part) > 1:  # not all of them: one by one
                    size, rows = 1, part + rows
                    continue
                inputs, nbytes = {part[0]["key"]: {"damaged": error}}, MEMORY
            size = max(self.least, len(part) * MEMORY // max(nbytes, 1))
            yield from ((row, inputs[row["key"]]) for row in part)


class _RayActor(Actor):
    """On Ray, where the journal is an actor, too."""

    def __init__(self, journal: Any, **arguments: Any) -> None:
        import ray

        context = ray.get_runtime_context()
        ray.get(journal.met.remote(context.current_actor))

        def ask(method: str, *arguments: Any) -> Any:  # calls arrive in their order; whose answer nobody needs is not waited for
            answer = getattr(journal, method).remote(*arguments)
            return ray.get(answer) if method == "begin" else None

        super().__init__(**arguments, me=str(context.get_actor_id()), ask=ask)  # the same after a restart

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"result": [json.dumps(self.work(json.loads(str(batch["job"][0]))))]}


class _Ear(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.said) < 50 and record.levelno >= (logging.INFO if record.name.startswith("egomill") else logging.WARNING):
            self.said.append((record.levelno, self.format(record)[:8000]))


@contextmanager
def heard() -> Iterator[list[tuple[int, str]]]:
    """What is logged meanwhile, (level, text): our own information and everybody's warnings. It reaches the driver with the row."""
    ear, root = _Ear(), logging.getLogger()
    ours = logging.getLogger("egomill")
    if ours.level != logging.INFO:  # which every setting makes all loggers forget
        ours.setLevel(logging.INFO)
    root.addHandler(ear)
    try:
        yield ear.said
    finally:
        root.removeHandler(ear)


Reads = dict[str, tuple[str, ...]]


def read_rows(lake: Lake, reads: Reads, versions: dict[str, int], keys: list[str], where: str = "") -> tuple[dict[str, dict], int]:
    """Each key's whole rows, {key: {table: {column: value}}}, of `LONG` tables a list of rows; and how many bytes that is. `where` is of
    the first table. See `handed`."""
    rows: dict[str, dict] = {key: {} for key in keys}
    nbytes = 0
    for i, (table, names) in enumerate(reads.items()):
        key = KEYS[table][0]
        named = one_of("name", names) if table in LONG else ""
        found = lake.read(table, None, _and(one_of(key, keys), where if i == 0 else "", named), versions[table])
        nbytes += found.nbytes
        for values in found.to_pylist():
            if table in LONG:
                rows[values[key]].setdefault(table, []).append(values)
            else:
                rows[values[key]][table] = values
    return rows, nbytes


def handed(reads: Reads, inputs: dict) -> dict:
    """What a worker gets of whole rows: the key and the columns that it reads. Damaged where a row is not what was committed."""
    if not reads:
        return inputs
    if "damaged" in inputs:
        raise inputs["damaged"]
    for table, found in inputs.items():
        for row in found if table in LONG else (found,):
            intact(table, row)
    whole = {t: opened(t, found, reads[t]) if t in LONG else found for t, found in inputs.items()}
    return {t: {c: row.get(c) for c in dict.fromkeys((KEYS[t][0], *reads[t]))} for t, row in whole.items()}


def opened(table: str, rows: list[dict], wanted: Iterable[str] = ()) -> dict:
    """Rows of one key of a `LONG` table as one: {key column: key, name: value, ...}. Damaged where one that is wanted is gone."""
    first, value = KEYS[table][0], TABLES[table].names[-1]
    lacking = set(rows[0]["names"] or ()) & set(wanted) - {row["name"] for row in rows}
    if lacking:
        raise Damaged(f"table {table} has no row {rows[0][first]} {sorted(lacking)[0]} any more: `egomill repair`, then rebuild")
    return {first: rows[0][first], **{row["name"]: row[value] for row in rows}}


def finished(stage: Stage, key: str, result: dict | list[dict]) -> list[dict]:
    """A worker's answer as rows of the stage's table, with their content: its own word for it, or the digest of all values."""
    rows = result if isinstance(result, list) else [{stage.parent: key, **result}]
    stored = as_stored(stage.name, [{**r, **stage.constants} for r in rows])
    return [{**r, "content": r["content"] or content_of(r, silent(stage.name, r))} for r in stored]


@contextmanager
def one_thread() -> Iterator[None]:
    """Arithmetic as in a stage's actors: sums depend on how many threads share them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shards(rows: pa.Table, items: list[Item] | None, resources: Resources, at_once: int) -> list[list[dict]]:
    """Lines of the ledger, of items with the item, in parts for `at_once` actors."""
    at_hand = {item.key: {"item": item.row} for item in items or []}
    each = -(-len(rows) // (resources.shard * at_once))  # shards for every actor the same, or at the end one works alone
    size = -(-len(rows) // min(each * at_once, resources.shards))
    return [[{**row, **at_hand.get(row["key"], {})} for row in part.to_pylist()] for part in _slices(rows, size)]


def _few(stage: Stage, rows: int, resources: Resources) -> bool:
    """Whether so many rows are sooner made in processes of our own. What asks for GPUs, or for more than is here, Ray places or refuses."""
    from egomill.tasks.lake.cluster import address, cpus

    return rows <= FEW and not address() and not resources.gpus.get(stage.name) and resources.cpus.get(stage.name, 1.0) <= cpus()


def _here(
    stage: Stage, lake: Lake, run_id: str, versions: dict[str, int], rows: pa.Table, items: list[Item] | None, resources: Resources
) -> Generator[_Result]:
    """As `_on_ray`, in processes of our own."""
    from ray import cloudpickle  # code of ours for a process of ours, as it travels to Ray's

    from egomill.tasks.lake import child, cluster

    cpus = resources.cpus.get(stage.name, 1.0)
    at_once = min(len(rows), resources.actors.get(stage.name, len(rows)), int(cluster.cpus() / cpus) if cpus else len(rows))
    arguments = {"stage": stage, "lake": lake, "run_id": run_id, "versions": versions, "resources": resources}
    yield from child.each(_shards(rows, items, resources, at_once), at_once, max(1, int(cpus)), cloudpickle.dumps(arguments))


def _on_ray(
    stage: Stage, lake: Lake, run_id: str, versions: dict[str, int], rows: pa.Table, items: list[Item] | None, resources: Resources
) -> Generator[_Result]:
    """Results as shards finish, in whatever order. Ray restarts an actor that dies and gives it its shard again; `watch` bounds that.

    However it ends, its actors end with it: after an error Ray Data leaves them, and the next stage would wait for their processors.
    """
    import ray.data
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from egomill.tasks.lake.cluster import require

    # The journal stays on the driver's machine: one that dies must not take it along.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    journal: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Journal).remote()
    arguments = {"stage": stage, "lake": lake, "run_id": run_id, "versions": versions, "resources": resources, "journal": journal}
    cpus, gpus = resources.cpus.get(stage.name, 1.0), resources.gpus.get(stage.name, 0.0)
    require(f"resources: an actor of {stage.name}", cpus, gpus)
    there, most = ray.cluster_resources(), resources.actors.get(stage.name, len(rows))
    fit = [int(there.get(kind, 0) / each) for kind, each in (("CPU", cpus), ("GPU", gpus)) if each]
    at_once = max(1, min(most, len(rows), *fit))
    jobs = [{"job": json.dumps(shard)} for shard in _shards(rows, items, resources, at_once)]
    table = ray.data.from_items(jobs, override_num_blocks=len(jobs))
    # Ray Data would start with one actor and add others when half of a short stage is over.
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(jobs)), initial_size=min(at_once, len(jobs)))
    done = table.map_batches(_RayActor, fn_constructor_kwargs=arguments, batch_size=1, compute=pool, num_cpus=cpus, num_gpus=gpus or None)
    try:
        for row in done.iter_rows():
            fragments, outcomes = json.loads(row["result"])
            yield fragments, outcomes
    finally:
        if ray.is_initialized():
            with suppress(RayError):  # Ray itself went: so did they
                for process in (*ray.get(journal.met.remote(), timeout=10), journal):
                    ray.kill(process)
