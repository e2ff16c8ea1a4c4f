"""The paper's method: updates off the significant representations of the old tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .. import _core
from ..bfloat16 import from_bfloat16, to_bfloat16
from ..config import Config
from ..errors import CheckpointError
from .base import Strategy

# What float32 can keep: a basis that is less orthonormal is made so again.
TOLERANCE = 1e-6

# What this layer does to old features no norm and no later layer softens: most of an increment's harm came by it
# (benchmarks/RESULTS.md). So it is tethered by so much more.
_LAST, _LAST_TETHER = "unet.out.2.weight", 10.0

# Of a file whose task is not done.
STAYS = "within a task free_gamma, frozen and projection stay as they were, and so does cdad"


class CDAD(Strategy):
    """Updates stay orthogonal to the input features of the old tasks (paper, Eqs. 6 and 7); parameters without such
    features (biases, norms) are frozen on incremental tasks.

    Of what the bases leave free, a new task gets the directions that its own features take, up to a share ``free_gamma`` of
    their energy and ``max_directions``, in whose coordinates AdamW works: at gamma 0.99, 16 to 20 % of the width on real products.
    In the others the new features have next to nothing, and a step there would move what the old ones have left in them.

    What is ``frozen`` stays as the first task left it, so that its features need no bases.

    A ``tether`` draws weights back to what they were when the task began. What the bases leave of the old features (a hundredth of
    their energy at gamma 0.99) lies evenly over a new task's directions, so that the harm of a change goes by its square there. AdamW's
    steps are as long where a gradient is noise alone; drawn back, weights stay changed where gradients agree."""

    def __init__(self, config):
        super().__init__(config)
        self.bases: dict[str, np.ndarray] = {}
        self._narrow: dict[str, np.ndarray] = {}  # what checkpoints hold where that is not the bases themselves
        self._free: dict[str, np.ndarray] = {}  # within a task: the directions [k, d] that are its own
        self._free_capped: list[float] = []  # the share of its energy that max_directions took from them: mean and largest
        self._without: list[str] = []  # what was frozen when the bases were collected
        self._anchor: np.ndarray | None = None  # within a task: all weights as they were when it began

    @property
    def kept_blocks(self) -> int:
        return int(self.config.tether > 0)

    @property
    def ready(self) -> bool:
        return bool(self.bases) and all(_is_within(scope, self.config.frozen) for scope in self._without)

    def collected(self, weights):
        frozen = self.config.frozen
        for scope in frozen:
            if not any(_is_within(name, [scope]) for name in weights):
                parts = sorted({".".join(name.split(".")[:2]) for name in weights})
                raise ValueError(f"continual.frozen: no weight's name begins with {scope!r} up to a dot; parts are {', '.join(parts)}")
        if not (found := [name for name in weights if not _is_within(name, frozen)]):
            raise ValueError(f"continual.frozen is {list(frozen)}, which leaves later tasks nothing to learn with")
        return found

    @staticmethod
    def moves_everywhere(config: Config) -> bool:
        """Whether a new task gets every direction off the bases. Without a condition the denoiser may read noise alone, and no
        task has directions of its own."""
        c = config.continual
        return c.free_gamma >= 1 or c.projection == "gradient" or config.condition == "none"

    def before_task(self, model, classes, index, step, progress):
        if index == 0:
            return
        if step == 0 and not self.moves_everywhere(model.config):
            # What bases are capped at is no bound of these: full ones would leave a task nothing to move.
            c = self.config
            found = model.collect_bases(classes, progress, gamma=c.free_gamma, max_rank_share=1.0, max_added=c.max_directions)
            self._free_capped = _mean_and_largest(found) if c.max_directions else []
            self._free = {name: np.ascontiguousarray(U[:, self._width(name) :].T) for name, (U, _, _) in found.items()}
        if step == 0:
            self._anchor = model._trainer.block("weights").copy() if self.config.tether > 0 else None
        elif self.config.tether > 0 and self._anchor is None:
            raise CheckpointError("the task began without continual.tether, and goes on without it alone")
        self.restrict(model, index)

    def restrict(self, model, index):
        if index == 0:
            return
        whole = self.moves_everywhere(model.config)
        for name in model.params.shapes():
            basis = None if _is_within(name, self.config.frozen) else self.bases.get(name)
            if basis is None or whole:
                model._trainer.protect(name, basis, frozen=basis is None)
            elif name in self._free:
                model._trainer.confine(name, self._free[name])
            else:  # another configuration's task, of which a file has no more
                raise CheckpointError(f"it has no directions of {name}: {STAYS}")
        model._trainer.tether(self._anchor, self.config.tether, {_LAST: _LAST_TETHER * self.config.tether})

    def after_task(self, model, classes, progress):
        found = model.collect_bases(classes, progress)
        checked = {name: orthonormal(U, self._width(name)) for name, (U, _, _) in found.items()}
        new = {name: U for name, (U, _) in checked.items()}
        ranks = [U.shape[1] / U.shape[0] for U in new.values()]
        report = {
            "rank_share": float(np.mean(ranks)),
            "rank_share_max": max(ranks),
            "orthonormality_error": max(error for _, error in checked.values()),
        }
        if self._free:
            shares = sorted(V.shape[0] / V.shape[1] for V in self._free.values())  # which a file brings in another order
            report["free_share"] = float(np.mean(shares))
        if self._free_capped:
            report |= dict(zip(("free_capped", "free_capped_max"), self._free_capped, strict=True))
        if self.config.max_rank_share < 1:
            report |= dict(zip(("energy_capped", "energy_capped_max"), _mean_and_largest(found), strict=True))
        kept = self._stored(new)
        if model.config.training.ema_decay > 0:
            # Features are the average's, which draws: later, on its way to other weights, it would move along them, and in what
            # is frozen, too.
            model._trainer.set_block("weights", model._trainer.block("ema"))
        model._trainer.tether(None)
        # Without a call between, at whose end a signal's exception could come: half of it is no place to go on from.
        without, free = list(self.config.frozen), {}
        (self.bases, self._narrow), self._without, self._free, self._free_capped, self._anchor = kept, without, free, [], None
        return report

    def _width(self, name: str) -> int:
        return self.bases[name].shape[1] if name in self.bases else 0

    def _stored(self, bases: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The bases as they are used, and as checkpoints hold them: in 16 bits directions are rounded once, when they are
        new, and what is used is what a load would give, so that a run goes on from a checkpoint to the same bits."""
        if self.config.basis_dtype == "float32":
            return bases, {}
        narrow = {}
        for name, U in bases.items():
            old = self._narrow.get(name)
            new = _narrowed(U[:, old.shape[1] :] if old is not None else U, self.config.basis_dtype)
            narrow[name] = np.concatenate([old, new], axis=1) if old is not None else new
        return _all_widened(narrow), narrow

    def tensors(self):
        kept = {f"basis/{name}": U for name, U in (self._narrow or self.bases).items()}
        kept |= {f"free/{name}": V for name, V in self._free.items()}
        return kept if self._anchor is None else kept | {"strategy/anchor": self._anchor}

    @property
    def memory_bytes(self) -> int:
        kept = sum(a.nbytes for kept in (self.bases, self._narrow, self._free) for a in kept.values())
        return kept if self._anchor is None else kept + self._anchor.nbytes

    def state(self):
        return {"frozen": self._without, "free_capped": self._free_capped}

    def restore(self, tensors, state):
        self._without, self._anchor = list(state.get("frozen", [])), tensors.get("strategy/anchor")
        self._free_capped = list(state.get("free_capped", []))
        kept = {k.removeprefix("basis/"): v for k, v in tensors.items() if k.startswith("basis/")}
        self._free = {k.removeprefix("free/"): v for k, v in tensors.items() if k.startswith("free/")}
        wanted = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[self.config.basis_dtype]
        self.bases = _all_widened(kept)
        if all(U.dtype == wanted for U in kept.values()):
            self._narrow = {} if wanted == np.float32 else kept
        else:  # a checkpoint of another basis_dtype
            self._narrow = {}
            self.bases, self._narrow = self._stored(self.bases)


def _mean_and_largest(found: Mapping[str, tuple[np.ndarray, float, float]]) -> list[float]:
    """Of the shares of the energy that caps took from weights' bases."""
    capped = [share for _, _, share in found.values()]
    return [float(np.mean(capped)), max(capped)]


def _is_within(name: str, scopes: Iterable[str]) -> bool:
    """Whether a weight or a part of a network is one of these, or a part of one."""
    return any(f"{name}.".startswith(f"{scope}.") for scope in scopes)


def orthonormality_error(U: np.ndarray, first: int = 0) -> float:
    """The largest element of |U^T U - I| in the columns from ``first`` on; 0 where there is none."""
    worst = 0.0
    for start in range(first, U.shape[1], 256):  # a part at a time: the square of a wide basis is larger than it
        part = U[:, start : start + 256].astype(np.float64)
        square = part.T @ U
        square[np.arange(part.shape[1]), start + np.arange(part.shape[1])] -= 1
        worst = max(worst, float(np.abs(square).max()))
    return worst


def orthonormal(U: np.ndarray, known: int) -> tuple[np.ndarray, float]:
    """U [d, rank], whose first ``known`` columns are known to be orthonormal, and the error found in the others; made
    orthonormal again where that is above `TOLERANCE`."""
    U, error = np.ascontiguousarray(U), orthonormality_error(U, known)
    return (_orthonormalised(U) if error > TOLERANCE else U), error


def _orthonormalised(U: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(_core.orthonormalise(np.ascontiguousarray(U.T)).T)


def _narrowed(U: np.ndarray, dtype: str) -> np.ndarray:
    return U.astype(np.float16) if dtype == "float16" else to_bfloat16(U)


def _widened(kept: np.ndarray) -> np.ndarray:
    if kept.dtype == np.float32:
        return kept
    return _orthonormalised(kept.astype(np.float32) if kept.dtype == np.float16 else from_bfloat16(kept))


def _all_widened(kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Factorisations run in the calling thread without the interpreter's lock, so weights go side by side.
    with ThreadPoolExecutor(_core.get_threads()) as pool:
        return dict(zip(kept, pool.map(_widened, kept.values()), strict=True))
