# SPDX-License-Identifier: Apache-2.0
"""``fairflare predict``: what a finished model says of each of the site's own records. Files for its own eyes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairflare.cli.own import (
    CatalogPath,
    ModelPath,
    SiteName,
    private_folder,
    progress_bar,
    read_own_entry,
    write_private,
)
from fairflare.cli.report import SplitName

if TYPE_CHECKING:
    from rich.console import Console

    from fairflare.data.manifest import SiteData
    from fairflare.engine.at_site import ModelFile, Named
    from fairflare.plan import SegmentationTask
    from fairflare.policy import Entry

TABLE, INDEX, MASKS, OVERLAYS = "predictions.csv", "index.csv", "masks", "overlays"


def predict(
    model: ModelPath,
    catalog: CatalogPath,
    out: Annotated[Path, typer.Option(help="Folder for the predictions; new or empty, readable by you only.")],
    site: SiteName = None,
    split: Annotated[SplitName, typer.Option(help="Which records to predict.")] = SplitName.test,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Segmentation: also pictures of image, truth and prediction.")
    ] = False,
) -> None:
    """Write what a model says of each of this site's records. These are patient data: they stay here.

    Classification: predictions.csv, with each record's id, the probability of every label, and the label decided for
    (of two labels at the plan's threshold, chosen on this site's own validation records, or at one half).
    Segmentation: masks with the plan's mask values at the size of each image, numbered; index.csv says whose they are.
    The manifest must hold labels or masks, as for training: data without them cannot be predicted by this version.
    """
    from rich.console import Console

    from fairflare.data.manifest import load
    from fairflare.engine.at_site import named_records, read_model_file
    from fairflare.plan import SegmentationTask

    found = read_model_file(model)
    task = found.plan.task
    if overlay and not isinstance(task, SegmentationTask):
        raise typer.BadParameter("--overlay is for segmentation; this model tells labels of whole records apart")
    _, entry = read_own_entry(catalog, site, task.data_set)
    folder = private_folder(out)
    data = load(found.plan, entry)
    named = named_records(found.plan, entry, data, split.value)
    console = Console()
    if isinstance(task, SegmentationTask):
        _masks(console, found, task, entry, named, folder, overlay=overlay)
        what = f"{len(named)} masks, and {INDEX}, which says whose they are"
    else:
        what = f"{TABLE}: {len(named)} records; {_table(console, found, data, named, folder / TABLE)}"
    console.print(f"{folder}: {what}", markup=False, highlight=False, soft_wrap=True)
    console.print("These are patient data: they stay here.", style="bold")


def _table(console: Console, model: ModelFile, data: SiteData, named: Named, file: Path) -> str:
    """Write the predictions; returns how the label was decided for, in words."""
    from fairflare.engine.at_site import decision_of, predictions_of, score, site_sums

    plan = model.plan
    validation = score(model, data.validation)
    decision = decision_of(plan, site_sums(plan, validation, data.validation, plan.cells.minimum).sums)
    with progress_bar(console, "records") as progress:
        found = predictions_of(plan, score(model, named.records, progress), decision)
    if found.probability is None or found.called is None:
        raise TypeError("got no probabilities, expected those of a classification")
    labels = plan.task.labels
    rows = [
        [name, *(f"{value:.6f}" for value in values), labels[called]]
        for name, values, called in zip(named.ids, found.probability.tolist(), found.called.tolist(), strict=True)
    ]
    head = ["id", *(f"probability_{label}" for label in labels), "predicted"]
    write_private(file, _csv(head, rows))
    if len(labels) > 2:
        return "the label with the largest probability is predicted"
    source = "best balanced accuracy on this site's validation records" if decision.chosen else "fixed"
    return f"'{labels[1]}' is predicted from a probability of {decision.threshold:.4g} on ({source})"


def _masks(
    console: Console, model: ModelFile, task: SegmentationTask, entry: Entry, named: Named, folder: Path,
    *, overlay: bool,
) -> None:  # fmt: skip
    """Write a mask for each image. Ids may hold anything, so files have numbers for names."""
    from fairflare.data.files import find, image_root
    from fairflare.data.images import stored_size
    from fairflare.engine.at_site import predicted_masks
    from fairflare.engine.pictures import side_by_side

    for name in (MASKS, OVERLAYS) if overlay else (MASKS,):
        private_folder(folder / name)
    paths = find(image_root(entry), "file", named.files).paths
    rows = []
    with progress_bar(console, "masks", len(named)) as progress:
        for at, labels in enumerate(predicted_masks(model, named.records)):
            path, name = paths[at], f"{at + 1:06d}.png"
            if path is None or named.records.masks is None:
                raise TypeError("got an image without a file or a mask, expected those that were loaded")
            write_private(folder / MASKS / name, _png(task, labels, stored_size(path)))
            if overlay:
                truth = named.records.masks[at].astype("int64")
                picture = side_by_side(named.records.inputs[at], truth, labels.astype("int64"))
                write_private(folder / OVERLAYS / name, picture)
            rows.append([named.ids[at], f"{MASKS}/{name}"])
            progress(at + 1, len(named))
    write_private(folder / INDEX, _csv(["id", "file"], rows))


def _png(task: SegmentationTask, labels: object, size: tuple[int, int]) -> bytes:
    """Labels (height, width) as a grey PNG of the image's own size, with the plan's mask values and nothing else."""
    import numpy as np
    from PIL import Image

    grey = np.array(task.mask_values, dtype=np.uint8)[np.asarray(labels)]
    image = Image.fromarray(grey)
    stream = io.BytesIO()
    (image if image.size == size else image.resize(size, Image.Resampling.NEAREST)).save(stream, format="PNG")
    return stream.getvalue()


def _csv(head: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return stream.getvalue().encode()
