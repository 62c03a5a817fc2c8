"""Makes one damaged trace readable in a draft: what cannot be read is dropped, and said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tracelab.errors import DamagedError, TraceError
from tracelab.trace.health.damage import Damage
from tracelab.trace.health.drafts import Draft
from tracelab.trace.health.layertable import mend_layer_table
from tracelab.trace.health.losses import Mended
from tracelab.trace.health.members import document_at
from tracelab.trace.health.mendrows import mend_rows
from tracelab.trace.health.rebuilding import rebuild
from tracelab.trace.health.recutting import keep_rows
from tracelab.trace.health.tables import coordinates, layer_names, put_table
from tracelab.trace.health.verification import Report
from tracelab.trace.inside import RESULTS
from tracelab.trace.places.locations import Location
from tracelab.trace.reading.labels import labels_of, stored_values
from tracelab.trace.reading.shardform import form
from tracelab.trace.reading.snapshot import ROOT, Group, Snapshot, take
from tracelab.trace.writing import documents

__all__ = ["mend"]

_TABLES = ("coordinate_layer", "coordinate_index")

Document = dict[str, Any]


def mend(location: Location, draft: Draft, report: Report) -> Mended:
    """Make a trace readable in a draft.

    Parameters
    ----------
    location : Location
        The damaged trace.
    draft : Draft
        Links to its files; what changes is put there. Without a folder nothing is written, and
        only what would be dropped is found.
    report : Report
        What is damaged.
    """
    done = Mended()
    snapshot = _snapshot(location, done)
    members = _members(snapshot)
    by_group: defaultdict[str, list[Damage]] = defaultdict(list)
    for damage in report.damages:
        if damage.kind == "result":
            draft.remove(damage.group)
            done.lose(damage.group, f"{damage.group}: the result; it can be computed again")
        elif damage.kind == "document" and damage.group in snapshot.groups:
            done.restored.append(f"{damage.path}: its document, from the root document")
        elif damage.group:
            by_group[damage.group].append(damage)
    for name in sorted(by_group, key=lambda name: name != "layers"):
        if name not in snapshot.groups:
            draft.remove(name)
            done.lose(name, f"{name}: {by_group[name][0].reason}")
        elif name == "layers":
            _mend_layers(location, draft, snapshot, by_group[name], done)
        else:
            _mend_group(location, draft, snapshot, name, by_group[name], members, done)
    for path, document in members.items():
        # Also of what was never damaged: rewritten where it differs from the root document.
        _put_document(location, draft, path, document)
    attributes = _attributes(snapshot.attrs, done)
    draft.put(ROOT, [documents.dump(documents.root(attributes, members))])
    return done


def _snapshot(location: Location, done: Mended) -> Snapshot:
    try:
        return take(location)
    except TraceError:
        rebuilt = rebuild(location)
        if rebuilt is None:
            raise
        done.restored.append("the root document, from those of groups and arrays")
        for sentence in rebuilt.lost:
            done.lose("", sentence)
        return rebuilt.snapshot


def _members(snapshot: Snapshot) -> dict[str, Document]:
    found: dict[str, Document] = {}
    for name, group in snapshot.groups.items():
        found[name] = documents.group(dict(group.attrs))
        found |= {f"{name}/{array}": dict(each) for array, each in group.arrays.items()}
    return dict(sorted(found.items()))


def _put_document(location: Location, draft: Draft, path: str, document: Document) -> None:
    if document_at(location, path) != document:
        draft.put(f"{path}/{ROOT}", [documents.dump(document)])


def _mend_layers(
    location: Location, draft: Draft, snapshot: Snapshot, damages: Sequence[Damage], done: Mended
) -> None:
    damaged = {damage.array for damage in damages}
    restored, lost = mend_layer_table(location, draft, snapshot, damaged)
    done.restored += [f"layers/{name}: {how}" for name, how in restored.items()]
    for name, how in lost.items():
        done.lose("layers", f"layers/{name}: {how}", name)


def _mend_group(
    location: Location,
    draft: Draft,
    snapshot: Snapshot,
    name: str,
    damages: Sequence[Damage],
    members: dict[str, Document],
    done: Mended,
) -> None:
    group = snapshot.groups[name]
    labels = labels_of(location, group)
    damaged = {damage.array for damage in damages}
    if "layer" in damaged:
        names = layer_names(location, group, _known_names(location, snapshot, name))
        if names is None:
            draft.remove(name)
            for path in [path for path in members if path.split("/")[0] == name]:
                del members[path]
            done.lose(
                name,
                f"{name}: all of it; the names of its layers cannot be read, and nothing else in "
                "the trace says which layers they are",
            )
            return
        put_table(draft, f"{name}/layer", group.arrays["layer"], names[0])
        if names[1]:
            done.restored.append(f"{name}/layer: the names of layers, as its checksum shows")
        else:
            sentence = "the names of its layers, taken to be those of the trace, in their order"
            done.lose(name, f"{name}/layer: {sentence}", "layer")
    gone = _without_tables(location, draft, snapshot, group, damaged & set(_TABLES), done)
    for array in sorted(damaged - {"layer", *_TABLES} - gone):
        stored = form(group.arrays[array])
        if (
            stored is None
            or not stored.indexed
            or group.arrays[array]["dimension_names"][:1] != ["step"]
        ):
            gone.add(array)
            done.lose(
                name, f"{name}/{array}: all of it; it is not stored as tracelab stores rows", array
            )
    for array in gone:
        draft.remove(f"{name}/{array}")
        del members[f"{name}/{array}"]
    keep = mend_rows(location, draft, group, labels, damages, gone, done)
    attributes = dict(group.attrs)
    if gone & set(_TABLES):
        attributes.pop("coordinates", None)
    if gone or not keep.all() or any(loss.group == name for loss in done.dropped):
        attributes["complete"] = False
    members[name] = documents.group(attributes)
    left = Group(
        name,
        attributes,
        {array: document for array, document in group.arrays.items() if array not in gone},
        group.sizes,
    )
    if not keep.all():
        for array, document in keep_rows(draft, left, keep).items():
            members[f"{name}/{array}"] = document


def _known_names(location: Location, snapshot: Snapshot, but: str) -> list[tuple[str, ...]]:
    """Return names of layers that the trace holds, those of the layer table first."""
    found = []
    for name in sorted(snapshot.groups, key=lambda name: name != "layers"):
        if name != but and "layer" in snapshot.groups[name].arrays:
            names = labels_of(location, snapshot.groups[name]).layers
            if names is not None:
                found.append(names)
    return found


def _without_tables(
    location: Location,
    draft: Draft,
    snapshot: Snapshot,
    group: Group,
    damaged: set[str],
    done: Mended,
) -> set[str]:
    """Make coordinate tables anew; return the arrays that mean nothing without them."""
    if not damaged:
        return set()
    numel = _numel(location, snapshot, group)
    tables = None if numel is None else coordinates(location, group, numel)
    if tables is not None:
        for name in sorted(damaged):
            put_table(draft, f"{group.name}/{name}", group.arrays[name], tables[name])
            done.restored.append(f"{group.name}/{name}: from its sketch, as its checksum shows")
        return set()
    gone = {
        name
        for name, document in group.arrays.items()
        if "coordinate" in document["dimension_names"]
    }
    for name in sorted(gone):
        done.lose(
            group.name,
            f"{group.name}/{name}: all of it; which coordinates of which layers were recorded "
            "cannot be read",
            name,
        )
    return gone


def _numel(location: Location, snapshot: Snapshot, group: Group) -> dict[str, int] | None:
    try:
        table = snapshot.groups["layers"]
        names = stored_values(location, "layers/layer", table.arrays["layer"])
        sizes = stored_values(location, "layers/numel", table.arrays["numel"])
        every = {str(name): int(size) for name, size in zip(names, sizes, strict=True)}
        own = stored_values(location, f"{group.name}/layer", group.arrays["layer"])
        return {str(name): every[str(name)] for name in own}
    except (DamagedError, KeyError):
        return None


def _attributes(attrs: Mapping[str, Any], done: Mended) -> dict[str, Any]:
    """Return the root attributes of the repaired trace."""
    now = datetime.now(UTC).isoformat()
    earlier = attrs.get("repairs")
    entry = {
        "created": now,
        "dropped": [loss.sentence for loss in done.dropped],
        "restored": list(done.restored),
    }
    found = {**attrs, "repairs": [*(earlier if isinstance(earlier, list) else []), entry]}
    # Results are made from rows, and can be made again.
    recorded = [loss for loss in done.dropped if not loss.group.startswith(f"{RESULTS}/")]
    if recorded:
        generation = attrs.get("generation", 0)
        found["generation"] = (generation if isinstance(generation, int) else 0) + 1
        reasons = attrs.get("incomplete_reasons")
        reason = f"damaged; repaired on {now[:10]}: {len(recorded)} things dropped, see `repairs`"
        found["incomplete_reasons"] = [*(reasons if isinstance(reasons, list) else []), reason]
        found["state"] = "incomplete"
    return found
