"""What a cell is: the identity that its key is the hash of."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objbench.cells.files import canonical
from objbench.cells.result import CellResult, Status
from objbench.options import option

MIXTURE = "gmm"
"""The name that the options of the mixture go by: `-o gmm.components=10`."""


@dataclass(frozen=True)
class MixtureConfig:
    """What `-o gmm.KEY=VALUE` sets; part of the identity of a cell whose detector does not cluster."""

    components: int = option(10, "Gaussians, one a cluster", low=1)
    covariance: str = option("full", "shape of each Gaussian", choices=["full", "diag", "tied", "spherical"])
    restarts: int = option(5, "fits from different starts; the likeliest is kept", low=1)
    seed: int = option(0, "of the starts", low=0)
    standardise: bool = option(False, "scale every latent to unit variance first")
    pca: int = option(0, "reduce the latents to so many principal components first; 0 does not", low=0)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training to run. Equal identities have equal keys, whatever the order, paths or display names."""

    identity: dict[str, Any]
    """Everything that the cell's figures depend on, as JSON values."""
    model_config: dict[str, Any]
    data_config: dict[str, Any]
    """The whole configs: also what is not part of the identity, such as where files lie."""

    @property
    def key(self) -> str:
        """The first 16 hex digits of the identity's sha256: the name of the cell's directory."""
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.identity['model']} on {self.identity['data']}, seed {self.identity['seed']}"

    def result(self, status: Status, **known: Any) -> CellResult:
        """Its result as far as it is known."""
        return CellResult(
            cell=self.key,
            model=self.identity["model"],
            data=self.identity["data"],
            protocol=self.identity["protocol"]["name"],
            seed=self.identity["seed"],
            status=status,
            model_config=self.identity["model_config"],
            data_config=self.identity["data_config"],
            **known,
        )


def identity_of(config: Any) -> dict[str, Any]:
    """A config's values, but for those that change no result (`option(..., identity=False)`)."""
    return {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.metadata.get("identity", True)
    }


def source_hash(target: str) -> str:
    """A hash of the plugin that "package.module:Name" lies in: its package's Python, or its lone file."""
    module = importlib.import_module(target.partition(":")[0])
    file = Path(str(module.__file__))
    digest = hashlib.sha256()
    if not module.__package__:
        digest.update(file.read_bytes())
    else:
        for path in sorted(file.parent.rglob("*.py")):
            digest.update(path.relative_to(file.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """JSON values in which equal numbers are equal texts: 1.0 becomes 1, a tuple becomes a list."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
