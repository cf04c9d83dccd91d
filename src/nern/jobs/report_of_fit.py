"""What a report tells of what `nern.fit` gave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from nern.analysis.content import Content, Evaluation, NetworkContent, Part
from nern.api import Fitted
from nern.files import tensors_of
from nern.jobs.report_inputs import NO_IMAGES_ASKED_FOR, as_kernels, walks
from nern.tasks.own import BatchesSet

NO_SCORES = "it gives no scores of classes, or the data have no labels"


def content_of_fit(fitted: Fitted, images: int | None) -> Content:
    """What a page tells of a fitted NeRN. Errors: see `nern.report`."""
    original, nern, ordering = fitted.original, fitted.nern, fitted.ordering
    with torch.no_grad():
        weights = [weight.detach().cpu() for weight in nern.table.views(nern.reconstruct())]
    ordered = [walk for walk in walks(ordering, nern.table.shapes) if walk is not None]
    test = None if fitted.task is None else fitted.task.test
    figures: dict[str, Any] = {} if test is None else fitted.evaluate()
    evaluation: Evaluation | str = "nern.fit was given no `test`"
    if test is not None and "top1" not in figures["original"]:
        evaluation = NO_SCORES
    elif images == 0:
        evaluation = NO_IMAGES_ASKED_FOR
    elif isinstance(test, BatchesSet):
        first, _ = next(iter(test.batches(1)))
        evaluation = Evaluation(original, replace(test, limit=images), original(first).shape[1], 1, dict(fitted.beside))
    network = NetworkContent(
        name=original.name,
        layers=original.weight_names,
        weights=weights,
        original=as_kernels(original.weights),
        ordered=ordered or None,
        figures={"test": figures} if figures and evaluation != NO_SCORES else {},
        evaluation=evaluation,
    )
    tensors = tensors_of(original.network).values()
    represented = sum(weight.nbytes for weight in original.weights)
    return Content(
        title=original.name,
        networks=[network],
        represented=nern.table.num_weights,
        predictor=nern.num_parameters,
        sizes=[
            Part("represented weights, by the predictor", represented, 4 * nern.num_parameters),
            Part("order of the kernels", None, ordering.bits() / 8),
            Part("all the rest, kept as it is", *[sum(t.nbytes for t in tensors) - represented] * 2),
        ],
        sizes_about="Bytes in float32, before any rounding, and of the ordering the least that any code takes.",
        ordering="" if ordering.mode == "none" else ordering.mode,
        best_step=fitted.steps,
    )
