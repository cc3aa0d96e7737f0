"""Harvesting: a model reads a text once, and each wanted layer's vectors become a store.

Steps, under a lease on the recipe's work folder: find (or convert) the model, tokenize, make parts,
then per layer shuffle the parts into segments and write the manifest. Whatever kills it, the next
call goes on from the parts that are done; a store that exists is only ever extended.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from scaling.activations import embedded
from scaling.activations.crew import node_crew
from scaling.activations.harvest_pass import HarvestPass, keep_contexts
from scaling.activations.manifest import SPLITS, load_manifest
from scaling.activations.parts import FOLDER
from scaling.activations.progress import Meter, ProgressCallback
from scaling.activations.request import HarvestRequest
from scaling.activations.shared_crew import HELPERS, ROUND, help_harvest
from scaling.storage.atomic import remove_temporaries
from scaling.storage.lease import Lease, holder

LEASE_TIMEOUT_S = 60.0
POLL_S = 0.5


def ensure_stores(request: HarvestRequest, report: ProgressCallback) -> None:
    """Make the stores of all wanted layers hold what is wanted, and of a stream keep the token ids;
    returns at once if all is there.

    A second caller waits for the first, then finds everything done.

    Raises:
        UserError: too little text, a full disk, non-finite activations, a model that cannot be
            loaded. Nothing unfinished is taken for a store.
    """
    if request.is_complete():
        return
    meter = Meter(report)
    with _leased(request.work, meter) as lease:
        if not request.is_complete():
            _harvest(request, lease, meter)


def help_stores(request: HarvestRequest, node: int) -> None:
    """Make parts for the process that holds the lease on the work folder, while there is one."""
    seen = False

    def is_over() -> bool:
        nonlocal seen
        led = holder(request.work, timeout_s=LEASE_TIMEOUT_S) is not None
        seen = seen or led
        return not led and (seen or request.is_complete())

    if not is_over():
        label = f"{node}-"
        make = partial(node_crew, processes=request.processes, label=label)
        help_harvest(request.work, node, make, is_over)


def _harvest(request: HarvestRequest, lease: Lease, meter: Meter) -> None:
    request.check_layers()
    request.check_disk()
    parts = request.work / FOLDER
    parts.mkdir(exist_ok=True)
    (request.work / ROUND).unlink(missing_ok=True)  # of a leader that was killed
    remove_temporaries(parts)
    model = _find_model(request, meter)
    if request.shape is not None:
        keep_contexts(request, request.shape, model, meter)
    for one_pass in _passes(request, model, meter):
        one_pass.make_parts()
        for layer in one_pass.layers:
            lease.check()
            one_pass.commit(layer)
    _clear(request.work)


def _find_model(request: HarvestRequest, meter: Meter) -> Path:
    """The model as a local folder: converted or downloaded where it is not one."""
    if request.model == embedded.EMBEDDED:
        folder = embedded.model_folder(request.data_dir)
        with _leased(folder.with_name(folder.name + ".work"), meter):
            return embedded.convert_model(
                request.data_dir,
                lambda done, total: meter.tell("convert", done, total, "tensors"),
            )
    from scaling.activations.subject import ModelLocation, local_folder

    return local_folder(ModelLocation(request.model_path, request.revision))


def _passes(request: HarvestRequest, model: Path, meter: Meter) -> list[HarvestPass]:
    """Layers that lack the same vectors share a pass over the text."""
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for layer, rows in request.missing().items():
        manifest = load_manifest(request.store(layer))
        first = [manifest.next_part(split) if manifest else 0 for split in SPLITS]
        need = tuple(zip(first, (rows[split] for split in SPLITS), strict=True))
        alike.setdefault(need, []).append(layer)
    return [
        HarvestPass(request, model, tuple(layers), dict(zip(SPLITS, need, strict=True)), meter)
        for need, layers in alike.items()
    ]


def _clear(work: Path) -> None:
    shutil.rmtree(work / FOLDER)
    shutil.rmtree(work / HELPERS, ignore_errors=True)
    for pattern in ("contexts*", "member-*.log", "job.json"):
        for path in work.glob(pattern):
            path.unlink()


@contextmanager
def _leased(folder: Path, meter: Meter) -> Iterator[Lease]:
    """Hold the lease on `folder`, waiting for whoever has it."""
    started = time.monotonic()
    while (lease := Lease.acquire(folder, timeout_s=LEASE_TIMEOUT_S)) is None:
        meter.tell("wait", int(time.monotonic() - started), 0, "s")
        time.sleep(POLL_S)
    with lease:
        yield lease
