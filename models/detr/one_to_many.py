"""One-to-many matching in training: more queries learn from an object, one answers for it.

One-to-one matching makes predictions without duplicates and gives every object a single positive,
from which features learn slowly. Two papers add queries that only training has, to the same
decoder and heads:

* H-DETR's hybrid branch (Jia et al., CVPR 2023, arXiv 2207.13080, section 3.2): one more set of
  queries, matched one to one with every object ``k`` times over;
* Group DETR (Chen et al., ICCV 2023, arXiv 2207.13085, section 3.2): more sets of queries, each
  matched one to one with the objects.

Here both are one thing: ``groups`` of queries, matched with targets that are repeated ``repeats``
times (hybrid: one group, k repeats; Group DETR with K groups: K - 1 groups, one repeat). Groups do
not see each other in self attention, the matching queries see none of them, and so what these
predict is what they would without.

A model appends the groups' queries behind its matching ones (:class:`GroupQueries` has contents
and anchors for them), gives its decoder :func:`group_mask`, and returns their predictions of all
layers as ``many_outputs``::

    {"pred_logits": [N, B, G * Q, C], "pred_boxes": [N, B, G * Q, 4], "groups": G, "repeats": k}

which :class:`OneToManyCriterion` scores beside the rest.

Unlike in the papers: with proposals of an encoder, all groups begin at the same, best ones, told
apart by a learned content (in H-DETR the extra queries are the proposals that rank below, in
Group DETR every group has its own head). Unlike in Group DETR, the mean over the extra groups
stands beside the loss of the first with a weight, instead of one mean over all; with weight K - 1
the two differ by the factor K.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.detr.anchors import Anchors
from zoo.models.detr.denoising import DenoisingQueries
from zoo.types import Criterion, Losses, Target


def group_mask(
    sizes: Sequence[int],
    denoising: DenoisingQueries | None = None,
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Who may attend to whom in the decoder's self attention, True where allowed.

    The order is: the denoising queries (L of them), the ``sizes[0]`` matching ones, then groups of
    ``sizes[1:]`` queries. Of the first two that is
    :meth:`zoo.models.detr.denoising.DenoisingQueries.attention_mask`; a group's queries see each
    other and nothing else. [B or 1, 1, L + Q, L + Q], with Q the sum of ``sizes``; on the
    denoising queries' device where there are any, else on ``device``.
    """
    if not sizes or min(sizes) < 0:
        raise ValueError(f"{list(sizes)} are not the sizes of one group of queries or more")
    first, rest = sizes[0], list(sizes[1:])
    if denoising is not None:
        one = denoising.attention_mask(first)
    else:
        one = torch.ones(1, 1, first, first, dtype=torch.bool, device=device)
    begun = one.shape[-1]
    whole = begun + sum(rest)
    allowed = one.new_zeros(len(one), 1, whole, whole)
    allowed[..., :begun, :begun] = one
    for start, size in zip(itertools.accumulate([begun, *rest]), rest, strict=False):
        allowed[..., start : start + size, start : start + size] = True
    return allowed


class GroupQueries(nn.Module):
    """Contents and anchors of ``groups`` of ``size`` queries, which only training has.

    With ``learned`` the anchors are parameters of their own, which begin as
    :class:`zoo.models.detr.anchors.Anchors` do with ``anchor_sizes``; else each group begins at
    the first ``size`` of the matching queries. A learned vector a group is added to its contents.
    """

    def __init__(
        self,
        groups: int,
        size: int,
        dim: int,
        *,
        learned: bool,
        anchor_sizes: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if groups < 1 or size < 1:
            raise ZooError(
                f"{groups} groups of {size} queries are none; set both to 1 or more, or leave the "
                "one-to-many branch out"
            )
        self.groups, self.size = groups, size
        self.kind = nn.Embedding(groups, dim)
        # Small against contents, and not 0, or groups that begin alike would stay alike.
        nn.init.normal_(self.kind.weight, std=0.1)
        self.anchors = (
            Anchors(groups * size, freeze_xy=False, sizes=anchor_sizes) if learned else None
        )

    def forward(self, content: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """From the matching queries' contents [B, Q, D] and anchors' logits [B, Q, 4].

        Returns contents [B, G * S, D] and anchors' logits [B, G * S, 4], group by group. S is
        ``size``, or Q where that is less and nothing is learned.
        """
        size = self.size if self.anchors is not None else min(self.size, content.shape[1])
        kinds = self.kind.weight.to(content.dtype).repeat_interleave(size, dim=0)
        if self.anchors is not None:
            own = self.anchors().to(anchors.dtype).expand(len(anchors), -1, -1)
            return kinds.expand(len(content), -1, -1), own
        copies = (1, self.groups, 1)
        return content[:, :size].repeat(copies) + kinds, anchors[:, :size].repeat(copies)


def repeat_targets(targets: Sequence[Target], times: int) -> list[Target]:
    """Targets in which every object occurs ``times`` times: what one-to-many matching matches.

    ``labels`` and ``boxes`` are laid end to end ``times`` times; ``image_id`` is kept.
    """
    if times < 1:
        raise ZooError(f"objects can't be matched {times} times; repeat them 1 time or more")
    out: list[Target] = []
    for target in targets:
        labels, boxes = target["labels"].repeat(times), target["boxes"].repeat(times, 1)
        known = {k: target[k] for k in ("image_id",) if k in target}
        out.append({**known, "labels": labels, "boxes": boxes})
    return out


def fold_groups(values: Tensor, groups: int) -> Tensor:
    """Groups as further layers: [N, B, G * Q, C] to [N * G, B, Q, C], layer by layer.

    A matcher and a criterion that treat layers alike and apart then do so with groups.
    """
    layers, batch, queries, channels = values.shape
    if groups < 1 or queries % groups:
        raise ValueError(f"{queries} queries are not {groups} groups of the same size")
    split = values.reshape(layers, batch, groups, queries // groups, channels)
    return split.transpose(1, 2).flatten(0, 1)


class OneToManyCriterion:
    """A criterion that scores ``many_outputs``, too, if there are any.

    ``criterion`` scores outputs without them, and each group by itself: its normalisers are those
    of one group, with the repeated objects. The total is that of the criterion plus ``weight``
    times the mean over groups. Terms of the groups' mean have ``many_`` before them.
    """

    def __init__(self, criterion: Criterion, *, weight: float = 1.0) -> None:
        if weight < 0:
            raise ZooError(f"the one-to-many losses' weight is {weight}; it has to be 0 or more")
        self.criterion = criterion
        self.weight = weight

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> Losses:
        """Losses of outputs as the module's docstring describes; raises what the criterion does."""
        one = self.criterion({k: v for k, v in outputs.items() if k != "many_outputs"}, targets)
        many = outputs.get("many_outputs")
        if many is None:
            return one
        groups = int(many["groups"])
        logits, boxes = (fold_groups(many[k], groups) for k in ("pred_logits", "pred_boxes"))
        *earlier, last = [
            {"pred_logits": c, "pred_boxes": b} for c, b in zip(logits, boxes, strict=True)
        ]
        folded = {**last, "aux_outputs": earlier}
        extra = self.criterion(folded, repeat_targets(targets, int(many["repeats"])))
        terms = {f"many_{k}": v for k, v in _mean_terms(extra.terms, groups).items()}
        return Losses(one.total + self.weight / groups * extra.total, {**one.terms, **terms})


def _mean_terms(terms: Mapping[str, Tensor], groups: int) -> dict[str, Tensor]:
    """Terms of N * G folded layers to terms of N: means over the groups of each layer.

    ``loss_ce_3`` is that of folded layer 3, ``loss_ce`` that of the last one.
    """
    by_name: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for name, value in terms.items():
        head, _, tail = name.rpartition("_")
        place = int(tail) if tail.isdigit() else len(terms)
        by_name[head if tail.isdigit() else name].append((place, value))
    out: dict[str, Tensor] = {}
    for name, found in by_name.items():
        values = [value for _, value in sorted(found, key=lambda item: item[0])]
        *earlier, last = torch.stack(values).unflatten(0, (-1, groups)).mean(1).unbind()
        out[name] = last
        out.update({f"{name}_{n}": value for n, value in enumerate(earlier)})
    return out
