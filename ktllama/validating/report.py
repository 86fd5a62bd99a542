"""The outcome of a validation as one value, and the sentences that say what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ktllama import devices
from ktllama.model.modules import block_of
from ktllama.placing.ir import Placement
from ktllama.units import counted
from ktllama.validating.comparison import Comparison
from ktllama.validating.layers import Flip, LayerErrors, first_flip, flipped_positions
from ktllama.validating.positions import Floats, PositionErrors
from ktllama.validating.suspects import Suspect, far_off, first_suspect, largest

#: The mean KL divergence, in nats, to which rounding may be carried by a text that the model does not know.
CARRIED_KL = 2e-2

#: Where no more than this is expected, a layer that does not go wrong is as good as right; of a quantized KV cache or a
#: reference in bfloat16 more is.
_SHARP = 5e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """llama.cpp's pass over ``tokens`` beside the reference's.

    ``devices`` gives the devices of every layer as rules name them, that of its KV cache first; ``output_devices``
    those of the output, and ``output`` its own errors at some positions. ``rules`` names the rules, ``model`` and
    ``reference`` the files. ``max_kl`` is the limit of the mean KL divergence; where the user gave one
    (``limit_given``), it alone decides.
    """

    name: str
    architecture: str
    model: str
    reference: str
    rules: str
    tokens: tuple[int, ...]
    comparison: Comparison
    positions: PositionErrors
    layers: tuple[LayerErrors, ...]
    output: Floats
    devices: Mapping[int, tuple[str, ...]]
    output_devices: tuple[str, ...]
    max_kl: float
    limit_given: bool = False

    @property
    def mean_kl(self) -> float:
        """KL(reference‖llama.cpp) in nats, the mean over all positions."""
        return float(self.positions.kl.mean())

    @property
    def within(self) -> bool:
        """Whether the mean KL divergence is no more than was allowed."""
        return self.mean_kl <= self.max_kl

    @property
    def carried(self) -> bool:
        """Whether what is past the limit is rounding that all layers carried on.

        That can be said where the reference rounds as llama.cpp does in every layer, little is left that may differ,
        and none goes wrong by itself, not even for one token.
        """
        compared = self.comparison
        sharp = all(compared.rounded) and max(compared.expected(0), compared.expected(None)) <= _SHARP
        past = not self.limit_given and not self.within
        return past and sharp and self._certain is None and not self._far_off and self.mean_kl <= CARRIED_KL

    @property
    def ok(self) -> bool:
        """The verdict. Unless the user gave a limit, a layer that certainly goes wrong is one that fails, too."""
        if self.limit_given:
            return self.within
        return self._certain is None and (self.within or self.carried)

    @property
    def suspect(self) -> Suspect | None:
        """The layer that goes wrong; where it fails without one, the one furthest past what is expected, if any is."""
        found = self._certain
        return found if found is not None or self.ok else largest(self.layers, self.comparison.expected)

    @property
    def _certain(self) -> Suspect | None:
        return first_suspect(self.layers, self.output, self.comparison.expected)

    @property
    def _far_off(self) -> bool:
        """Whether no rounding explains what some layer makes of some token."""
        return any(far_off(found, self.comparison.expected(found.layer)).any() for found in self.layers)

    @property
    def activations(self) -> str:
        """How the reference rounds activations: ``exact``, ``llama.cpp``, or ``mixed`` where layers differ."""
        rounded = self.comparison.rounded
        return "llama.cpp" if all(rounded) else "mixed" if any(rounded) else "exact"

    @property
    def first_flip(self) -> Flip | None:
        """The first token, by layer, for which llama.cpp chose other experts."""
        return first_flip(self.layers)

    @property
    def n_flips(self) -> int:
        """Pairs of token and layer with other experts."""
        return sum(found.n_flipped for found in self.layers)

    @property
    def n_choices(self) -> int:
        """Pairs of token and layer with a choice of experts."""
        return len(self.tokens) * sum(found.flipped is not None for found in self.layers)

    @property
    def n_flipped_positions(self) -> int:
        """Positions at which some layer chose other experts."""
        return int(flipped_positions(self.layers, len(self.tokens)).sum())

    @property
    def worst_position(self) -> int:
        """Where the logits are furthest apart."""
        return int(self.positions.max_abs.argmax())

    def devices_of(self, suspect: Suspect) -> tuple[str, ...]:
        """Where a suspect computes."""
        return self.output_devices if suspect.layer is None else self.devices[suspect.layer]


def devices_by_layer(placement: Placement) -> dict[int, tuple[str, ...]]:
    """Every layer's devices: first that of its KV cache, then those that hold other tensors of it."""
    found = {layer: [device] for layer, device in placement.layers.items()}
    for tensor in placement.tensors.values():
        layer = block_of(tensor.name)
        if layer in found and tensor.device not in found[layer]:
            found[layer].append(tensor.device)
    return {layer: (names[0], *sorted(names[1:], key=devices.order)) for layer, names in found.items()}


def verdict(report: Report) -> str:
    """Pass or fail, with both numbers, and with the reason where they do not decide."""
    said = f"mean KL divergence {number(report.mean_kl)}"
    if report.carried:
        return (
            f"{said}, past {number(report.max_kl)}, but every layer is right given the same input: rounding that was "
            f"carried on, within {number(CARRIED_KL)}"
        )
    if report.within and not report.ok:
        return f"{said}, within the limit of {number(report.max_kl)}, but a layer goes WRONG"
    return f"{said}, {'within' if report.within else 'PAST'} the limit of {number(report.max_kl)}"


def suspicion(report: Report) -> str | None:
    """Which layer on which device goes wrong, or that none does though it fails; None where it passes."""
    found = report.suspect
    if found is None:
        return None if report.ok else "no layer stands out: each adds no more than is expected of it"
    where = "the output (output_norm, output)" if found.layer is None else f"layer {found.layer}"
    on = " and ".join(report.devices_of(found))
    error, expected = number(found.error), number(report.comparison.expected(found.layer))
    if not found.certain:
        said = f"the largest error is added by {where} on {on}: {error} for one token, expected about {expected}"
        return f"no layer stands out; {said}"
    before = " (or the embedding before it)" if found.layer == 0 else ""
    share = "" if found.share > 0.5 else f" for {percentage(found.share)} of the tokens"
    return (
        f"{where} on {on} goes wrong first{before}: given the same input, it is off by {error} of what it adds{share}, "
        f"where about {expected} is expected"
    )


def flips(report: Report) -> str | None:
    """What flipped experts have to do with the differences, or None where no router chose otherwise."""
    first = report.first_flip
    if first is None:
        return None
    said = (
        f"flipped experts: {report.n_flips} of {report.n_choices} choices differ, at {report.n_flipped_positions} of "
        f"{counted(len(report.tokens), 'position')}; first in layer {first.layer} at position {first.position}, "
        f"{_listed(first.came)} instead of {_listed(first.gone)}"
    )
    calm = ~flipped_positions(report.layers, len(report.tokens))
    if calm.any():
        said += f"; without these positions the mean KL divergence is {number(float(report.positions.kl[calm].mean()))}"
    at_worst = first_flip(report.layers, report.worst_position)
    if at_worst is not None:
        where = f"at position {report.worst_position}"
        said += f"; the largest difference, {where}, follows a flip in layer {at_worst.layer}"
    return said


def sources(report: Report) -> list[str]:
    """Why the two sides may differ at all, and by how much each reason is expected to change what a layer adds."""
    return [f"{source.what}: about {number(source.relative)}" for source in report.comparison.sources]


def totals(report: Report) -> list[tuple[str, str]]:
    """The figures over all positions, as names and values."""
    found = report.positions
    perplexities = found.perplexities()
    return [
        ("KL divergence, mean", number(report.mean_kl)),
        ("KL divergence, worst", f"{number(float(found.kl.max()))} at position {int(found.kl.argmax())}"),
        ("|Δ logit|, mean", number(float(found.mean_abs.mean()))),
        ("|Δ logit|, worst", f"{number(float(found.max_abs.max()))} at position {report.worst_position}"),
        ("same most likely token", percentage(float(found.top1.mean()))),
        ("same five most likely", percentage(float(found.top5.mean()))),
        ("perplexity, reference", "-" if perplexities is None else f"{perplexities[0]:.4f}"),
        ("perplexity, llama.cpp", "-" if perplexities is None else f"{perplexities[1]:.4f}"),
    ]


def worst_positions(report: Report, n_shown: int) -> list[int]:
    """The positions with the largest KL divergence, worst first."""
    return [int(position) for position in np.argsort(-report.positions.kl, kind="stable")[:n_shown]]


def number(value: float) -> str:
    """Three significant digits, small numbers as 1.2e-05."""
    return "0" if value == 0 else f"{value:.3g}"


def percentage(share: float) -> str:
    """A share in percent; 100% is all of them."""
    return f"{100 * share:.4g}%" if share in (0.0, 1.0) else f"{min(100 * share, 99.99):.2f}%"


def _listed(experts: tuple[int, ...]) -> str:
    return f"expert{'s' if len(experts) > 1 else ''} {', '.join(str(expert) for expert in experts)}"
