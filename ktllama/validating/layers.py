"""The residual stream after every layer, token by token: how far llama.cpp's is from the reference's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ktllama.validating.positions import Floats, ratio

Hidden: TypeAlias = npt.NDArray[np.float32]
Experts: TypeAlias = npt.NDArray[np.int64]


#: What float32 and bfloat16 lose when a layer's part is added to the residual stream, of the sum's length.
SUM_ROUNDING = {"float64": 1.2e-7, "float32": 1.2e-7, "bfloat16": 8e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerErrors:
    """One layer, T tokens.

    ``relative`` holds, for every token, |difference| / |reference| of the layer's output, with the errors of all layers
    up to it. ``own`` is what the layer itself gets wrong: the reference's layer is given llama.cpp's input, and the
    difference is taken relative to what the layer adds to it.

    ``flipped`` marks the tokens for which the router chose other experts than the reference's; ``own_flipped`` those
    for which it does so though given the same input. Both are None for a dense layer. ``chosen`` is then what the
    reference chose and what llama.cpp chose, both (T, experts used) in ascending order, and ``nudges`` (T) how far the
    router's input must be off to explain what ``own_flipped`` marks (:func:`ktllama.validating.choices.nudges`).
    """

    layer: int
    relative: Floats
    own: Floats
    flipped: npt.NDArray[np.bool_] | None = None
    own_flipped: npt.NDArray[np.bool_] | None = None
    chosen: tuple[Experts, Experts] | None = None
    nudges: Floats | None = None

    @property
    def median(self) -> float:
        """The typical token's error."""
        return float(np.median(self.relative))

    @property
    def median_own(self) -> float:
        """The layer's own part in it, of a typical token."""
        return float(np.median(self.own))

    @property
    def worst(self) -> float:
        """The worst token's error."""
        return float(self.relative.max())

    @property
    def worst_position(self) -> int:
        """Where it is."""
        return int(self.relative.argmax())

    @property
    def n_flipped(self) -> int:
        """Tokens that other experts worked on."""
        return 0 if self.flipped is None else int(self.flipped.sum())

    def flip(self, position: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The experts that only the reference chose for a token, and those that only llama.cpp chose."""
        if self.chosen is None:
            return (), ()
        reference, llama = (set(chosen[position].tolist()) for chosen in self.chosen)
        return tuple(sorted(reference - llama)), tuple(sorted(llama - reference))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What one layer gave: matrices (T, width).

    ``reference`` in the reference's own pass; ``llama`` in llama.cpp's; ``given`` is llama.cpp's input of the layer,
    and ``led`` what the reference's layer makes of that.
    """

    reference: Hidden
    llama: Hidden
    given: Hidden
    led: Hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """The experts (T, experts used) that a router chose in the same three passes.

    ``nudges`` (T) is how far its input must be off to explain that ``led`` is not ``llama``.
    """

    reference: npt.NDArray[np.integer]
    llama: npt.NDArray[np.integer]
    led: npt.NDArray[np.integer]
    nudges: Floats


def compare_layer(layer: int, outputs: Outputs, routing: Routing | None, dtype: str) -> LayerErrors:
    """Compare one layer of a reference that computed in ``dtype``; ``routing`` is None for a dense layer."""
    relative = ratio(_lengths(outputs.llama, outputs.reference), _lengths(outputs.reference))
    own = own_errors(outputs, dtype)
    if routing is None:
        return LayerErrors(layer=layer, relative=relative, own=own)
    chosen = _ascending(routing.reference), _ascending(routing.llama)
    return LayerErrors(
        layer=layer,
        relative=relative,
        own=own,
        flipped=(chosen[0] != chosen[1]).any(axis=1),
        own_flipped=(_ascending(routing.led) != chosen[1]).any(axis=1),
        chosen=chosen,
        nudges=routing.nudges,
    )


def own_errors(outputs: Outputs, dtype: str) -> Floats:
    """The error that a layer makes by itself, over what it adds (T); the rounding of the sum does not count."""
    rounding = SUM_ROUNDING[dtype] * _lengths(outputs.led)
    error = np.maximum(0.0, _lengths(outputs.llama, outputs.led) - rounding)
    return ratio(error, _lengths(outputs.led, outputs.given))


def _lengths(rows: Hidden, less: Hidden | None = None) -> Floats:
    """The length of every row, or of its difference; infinite where it holds what is no number."""
    wide = rows.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths: Floats = np.linalg.norm(wide if less is None else wide - less, axis=1)
    lengths[~np.isfinite(lengths)] = np.inf
    return lengths


def _ascending(chosen: npt.NDArray[np.integer]) -> Experts:
    """A router's choice in ascending order, so that equal rows are equal sets."""
    return np.sort(chosen.astype(np.int64), axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A token for which llama.cpp chose other experts in a layer: ``gone`` instead of which it used ``came``."""

    position: int
    layer: int
    gone: tuple[int, ...]
    came: tuple[int, ...]


def first_flip(layers: tuple[LayerErrors, ...], position: int | None = None) -> Flip | None:
    """The first flipped expert of all by layer, then by position; of one position, if one is given."""
    for found in layers:
        if found.flipped is None:
            continue
        at = np.flatnonzero(found.flipped) if position is None else [position] if found.flipped[position] else []
        if len(at):
            gone, came = found.flip(int(at[0]))
            return Flip(position=int(at[0]), layer=found.layer, gone=gone, came=came)
    return None


def flipped_positions(layers: tuple[LayerErrors, ...], n_positions: int) -> npt.NDArray[np.bool_]:
    """The positions at which some layer used other experts."""
    flipped = np.zeros(n_positions, np.bool_)
    for found in layers:
        if found.flipped is not None:
            flipped |= found.flipped
    return flipped
