"""HessianVectors: the curvature of the loss at frozen weights, and the noise along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import Project, Sketch, splitmix64, validate
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.frozen import FrozenLoss, in_mode
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout, copy_into
from tracelab_collectors.products import HessianProducts, Krylov, inner, lanczos, ritz
from tracelab_collectors.rehearsal import refusing
from tracelab_collectors.scheduled import Scheduled, at_least
from tracelab_collectors.sketching import ARRAYS, Sketcher, sketcher

__all__ = ["HessianVectors"]

_STEP = ("step",)
_PAIR = ("step", "eigenpair")
_CURVATURE = "loss/weight^2"
_REHEARSED = 8
FORMS = 32


@dataclass(frozen=True)
class HessianVectors(Scheduled):
    r"""The Hessian H of the mean loss at frozen weights, by its products with vectors.

    At each step of its schedule, without a trace left in the training run: quadratic forms
    :math:`v' H v` of vectors of random signs, exactly and by layer; coefficients of Lanczos'
    recurrence from random starts; eigenvalues at the upper end of the spectrum with their
    residuals; and, at the same weights, gradients of independent minibatches along their
    eigenvectors. ``tracelab.stats.spectrum`` makes traces and densities of them.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`. The Hessian is that
        of the chosen layers alone.
    vectors : int
        Vectors of random signs; 0 for none.
    lanczos_steps : int
        Steps of the recurrence; 0 for none, and then no eigenpairs.
    starts : int
        Random starts of it.
    top : int
        Eigenpairs, of the largest eigenvalues: at most `lanczos_steps`.
    examples : int, optional
        Examples over which the loss is averaged, drawn once. None: all of the data.
    data_batch_size : int, optional
        Examples per piece. Default: all of them, whose graph is then kept for all products, which
        is fastest and takes the memory of a backward pass over as many.
    noise_batches : int
        Minibatches whose gradients are measured along the eigenvectors; 0 for none.
    batch_size : int
        Examples of each, drawn with replacement.
    noise_forms : int, optional
        Of how many of them :math:`\zeta' H \zeta` is measured, with :math:`\zeta` their gradient
        less that of the loss above. Default: 32, or all if there are fewer.
    sketch : Sketch or sequence of Sketch, optional
        How products and eigenvectors are kept, if at all; at most one of each kind.
    mode : {"eval"}, optional
        Put the model into evaluation mode for the measurement (the default), or, with None, leave
        it in its mode: batch normalisation in training mode makes the loss no mean over examples,
        and dropout draws the same masks for every product.

    Raises
    ------
    UsageError
        If a number is out of range, or the mode, the sketches or the schedule are invalid.

    Notes
    -----
    A product costs 2 to 2.7 gradients of as many examples, and 3.2 to 3.6 with several pieces.
    Lanczos keeps its `lanczos_steps` vectors in memory. The signs of vector i at step t are those
    of ``Project(1, seed=...)`` with the seed in the variable ``vector_seed``, by coordinate of the
    network: they are never stored.
    """

    every: InitVar[int | Schedule] = 1000
    vectors: int = 30
    lanczos_steps: int = 32
    starts: int = 1
    top: int = 5
    examples: int | None = 512
    data_batch_size: int | None = None
    noise_batches: int = 64
    batch_size: int = 64
    noise_forms: int | None = None
    sketch: Sketch | Sequence[Sketch] | None = None
    mode: str | None = "eval"
    name: str = "hessian"
    kind: str = field(default="hessian", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        if self.sketch is not None:
            object.__setattr__(self, "sketch", validate(self.sketch))
        whose = "HessianVectors'"
        at_least(0, **{f"{whose} noise_batches": self.noise_batches})
        if self.noise_forms is None:
            object.__setattr__(self, "noise_forms", min(FORMS, self.noise_batches))
        for name in ("vectors", "lanczos_steps", "top", "noise_forms"):
            at_least(0, **{f"{whose} {name}": getattr(self, name)})
        for name in ("starts", "examples", "data_batch_size", "batch_size"):
            if getattr(self, name) is not None:
                at_least(1, **{f"{whose} {name}": getattr(self, name)})
        if self.mode not in ("eval", None):
            raise UsageError(f"{whose} mode must be 'eval' or None, got {self.mode!r}")
        if not self.vectors and not self.lanczos_steps:
            raise UsageError(f"{whose} vectors and lanczos_steps are both 0: nothing is recorded")
        if self.top > self.lanczos_steps:
            raise UsageError(
                f"{whose} top={self.top} eigenpairs take at least as many lanczos_steps, got "
                f"{self.lanczos_steps}"
            )
        if (self.noise_forms or 0) > self.noise_batches:
            raise UsageError(
                f"{whose} noise_forms={self.noise_forms} exceeds noise_batches="
                f"{self.noise_batches}, whose gradients they are of"
            )

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run, after a product over a few examples.

        Raises
        ------
        UsageError
            If the run has no loss or no data, weights are sharded, or the loss has no second
            derivative.
        """
        data, loss = Indexed.of_run(run, self.whose)
        layout = self.layout(run)
        sketches = () if self.sketch is None else validate(self.sketch)
        sketch = None
        if sketches:
            sketch = sketcher(sketches, layout, dtype=run.dtype, device=run.device)
        seed = int(splitmix64(run.seed, 0, 1)[0]) >> 2
        chosen = data.drawn(self.examples, seed)

        def measurement(indices: Tensor) -> _Measurement:
            frozen = FrozenLoss.of_run(run, loss, layout)
            row = torch.zeros(layout.size, dtype=run.dtype, device=run.device)
            return _Measurement(self, frozen, data, indices, layout, sketch, row)

        def measure(block: Block) -> dict[str, Tensor]:
            step = int(splitmix64(seed, block.steps[0], 1)[0]) >> 2
            return measurement(chosen).row(step)

        remedy = "the loss must have second derivatives; leave the collector out if it has none"
        with refusing(self.whose, "on the first examples", remedy):
            measurement(chosen[:_REHEARSED]).product(seed)
        return Recording(
            layout,
            measure,
            sketches=sketches,
            attrs={
                "n_weights": sum(layout.numel),
                "n_examples": len(chosen),
                "n_data": data.size,
                "batch_size": self.batch_size,
                "replacement": True,
                "mode": self.mode or "as trained",
            },
            variables=self.variables(sketches),
            probe=True,
        )

    def variables(self, sketches: Sequence[Sketch] = ()) -> tuple[Variable, ...]:
        """Return what its group holds."""
        found = []
        arrays = [ARRAYS[type(each)] for each in sketches]

        def add(
            name: str, dims: tuple[str, ...], units: str, text: str, dtype: str = "float64"
        ) -> None:
            found.append(Variable(name, dims, units, dtype, text))

        add("numel", ("step", "layer"), "1", "number of weights of the layer", "int64")
        add("loss_gradient_norm", _STEP, "loss/weight", "norm of the gradient of the same loss")
        if self.vectors:
            by_vector = ("step", "vector")
            add("vector_seed", by_vector, "1", "seed of the signs of each vector", "int64")
            add("form", ("step", "layer", "vector"), _CURVATURE,
                "layer's part of v'Hv, v of random signs; its expectation is the trace of the "
                "layer's diagonal block, and the sum over layers is v'Hv")  # fmt: skip
            add("product_squared_norm", by_vector, "(loss/weight^2)^2", "||Hv||^2")
            for array in arrays:
                add(f"product_{array}", (*by_vector, *_inner(array)), _CURVATURE,
                    "sketch of Hv", "float32")  # fmt: skip
        if self.lanczos_steps:
            recurrence = ("step", "start", "lanczos")
            add("lanczos_diagonal", recurrence, _CURVATURE, "diagonal of Lanczos' matrix")
            add("lanczos_beside", recurrence, _CURVATURE,
                "beside it; the last is the norm of what remains")  # fmt: skip
        if self.top:
            add("eigenvalue", _PAIR, _CURVATURE, "largest Ritz values, falling")
            add("residual", _PAIR, _CURVATURE, "||Hu - eigenvalue u||")
            add("eigenvector_share", (*_PAIR, "layer"), "1", "layer's part of ||u||^2 = 1")
            add("gradient_along", _PAIR, "loss/weight", "gradient of the same loss, along u")
            for array in arrays:
                add(f"eigenvector_{array}", (*_PAIR, *_inner(array)), "1",
                    "sketch of u", "float32")  # fmt: skip
        if self.noise_batches:
            by_batch = ("step", "batch")
            add("noise_squared_norm", by_batch, "(loss/weight)^2",
                "||g_b - g||^2, g the gradient of the same loss")  # fmt: skip
            add("noise_overlap", by_batch, "(loss/weight)^2",
                "(g_b - g)'(g_a - g), a the batch before: mean square ||C||_F^2")  # fmt: skip
            if self.top:
                add("noise_along", (*by_batch, "eigenpair"), "loss/weight",
                    "minibatch gradient along u, not centred")  # fmt: skip
        if self.noise_forms:
            add("noise_form", ("step", "formed"), "loss^3/weight^4",
                "(g_b - g)'H(g_b - g) of the first minibatches")  # fmt: skip
        return tuple(found)


def _inner(array: str) -> tuple[str, ...]:
    return {"projected": ("layer", "direction"), "histogram": ("layer", "bin")}.get(
        array, ("coordinate",)
    )


@dataclass(frozen=True)
class _Measurement:
    """What one row needs."""

    collector: HessianVectors
    loss: FrozenLoss
    data: Indexed
    indices: Tensor
    layout: Layout
    sketch: Sketcher | None
    like: Tensor

    def row(self, seed: int) -> dict[str, Tensor]:
        """Return the arrays of one row, with a leading dimension of 1."""
        with in_mode(self.collector.mode, *self.loss.roots), forked_generators(seed):
            hessian = self._hessian(seed)
            gradient = hessian.gradient(self.like)
            arrays = {
                "numel": torch.tensor(self.layout.numel),
                "loss_gradient_norm": inner(gradient, gradient).sqrt().reshape(()),
            }
            arrays |= self._forms(hessian, seed)
            vectors = self._eigenpairs(hessian, seed, arrays)
            if vectors is not None:
                arrays["gradient_along"] = inner(vectors, gradient)
            arrays |= self._noise(hessian, gradient, vectors, seed)
        return {name: values.unsqueeze(0) for name, values in arrays.items()}

    def product(self, seed: int) -> Tensor:
        """Return one product."""
        with in_mode(self.collector.mode, *self.loss.roots), forked_generators(seed):
            return self._hessian(seed)(self._signs(seed))

    def _hessian(self, seed: int) -> HessianProducts:
        piece = self.collector.data_batch_size or len(self.indices)
        return HessianProducts(
            self.loss, self.data, self.indices, self.layout, piece=piece, seed=seed
        )

    def _signs(self, seed: int) -> Tensor:
        """Return a flat vector of signs that depend on the seed and the coordinate alone."""
        project = Project(1, seed=seed)
        layout = self.layout
        signs = [
            torch.from_numpy(project.signs(offset, numel)).view(shape)
            for offset, numel, shape in zip(
                layout.offsets, layout.numel, layout.shapes, strict=True
            )
        ]
        return layout.flat(signs, dtype=self.like.dtype, device=self.like.device)

    def _forms(self, hessian: HessianProducts, seed: int) -> dict[str, Tensor]:
        count = self.collector.vectors
        if not count:
            return {}
        seeds = [int(each) >> 2 for each in splitmix64(seed, 1, count)]
        forms, norms, sketches = [], [], []
        for each in seeds:
            signs = self._signs(each)
            image = hessian(signs)
            parts = zip(self.layout.views(signs), self.layout.views(image), strict=True)
            forms.append(torch.stack([inner(v.flatten(), hv.flatten()) for v, hv in parts]))
            norms.append(inner(image, image))
            if self.sketch is not None:
                sketches.append(self.sketch(image.unsqueeze(0)))
        found = {
            "vector_seed": torch.tensor(seeds),
            "form": torch.stack(forms, dim=1),
            "product_squared_norm": torch.stack(norms),
        }
        return found | _gathered("product", sketches)

    def _eigenpairs(
        self, hessian: HessianProducts, seed: int, arrays: dict[str, Tensor]
    ) -> Tensor | None:
        """Write the recurrences and eigenpairs; return the eigenvectors, (eigenpair, size)."""
        collector = self.collector
        if not collector.lanczos_steps:
            return None
        seeds = [int(each) >> 2 for each in splitmix64(seed, 1 << 32, collector.starts)]
        first: Krylov | None = None
        diagonals, besides = [], []
        for each in seeds:
            generator = torch.Generator().manual_seed(each)
            normal = [torch.randn(shape, generator=generator) for shape in self.layout.shapes]
            start = self.layout.flat(normal, dtype=self.like.dtype, device=self.like.device)
            found = lanczos(hessian, start, collector.lanczos_steps)
            diagonals.append(found.diagonal)
            besides.append(found.beside)
            first = first or found
        arrays["lanczos_diagonal"], arrays["lanczos_beside"] = map(
            torch.stack, (diagonals, besides)
        )
        if not collector.top or first is None:
            return None
        values, vectors, residuals = ritz(first, collector.top)
        arrays["eigenvalue"], arrays["residual"] = values, residuals
        arrays["eigenvector_share"] = torch.stack(
            [inner(part.flatten(1), part.flatten(1)) for part in self._parts(vectors)], dim=1
        )
        if self.sketch is not None:
            arrays |= _gathered("eigenvector", [self.sketch(each[None]) for each in vectors])
        return vectors

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """Return the layers of rows, each of shape (row, weight)."""
        starts, numels = self.layout.starts, self.layout.numel
        return [rows[:, a : a + n] for a, n in zip(starts, numels, strict=False)]

    def _noise(
        self, hessian: HessianProducts, gradient: Tensor, vectors: Tensor | None, seed: int
    ) -> dict[str, Tensor]:
        collector = self.collector
        if not collector.noise_batches:
            return {}
        generator = torch.Generator().manual_seed(seed)
        norms, overlaps, along, forms = [], [], [], []
        row, before = self.like.clone(), self.like * torch.nan
        for number in range(collector.noise_batches):
            drawn = torch.randint(self.data.size, (collector.batch_size,), generator=generator)
            _, found = self.loss.gradient(self.data.batch(drawn))
            copy_into(self.layout.views(row), found)
            if vectors is not None:
                along.append(inner(vectors, row))
            noise = row - gradient
            norms.append(inner(noise, noise))
            overlaps.append(inner(noise, before))
            before = noise
            if number < (collector.noise_forms or 0):
                forms.append(inner(noise, hessian(noise)))
        arrays = {
            "noise_squared_norm": torch.stack(norms),
            "noise_overlap": torch.stack(overlaps),
        }
        if along:
            arrays["noise_along"] = torch.stack(along)
        if forms:
            arrays["noise_form"] = torch.stack(forms)
        return arrays


def _gathered(prefix: str, sketches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = sketches[0] if sketches else ()
    return {f"{prefix}_{name}": torch.cat([each[name] for each in sketches]) for name in names}
