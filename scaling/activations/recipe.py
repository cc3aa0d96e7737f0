"""What determines harvested vectors: the identity of a harvest, without any path or machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.activations import embedded
from scaling.activations.fingerprint import fingerprint_files
from scaling.activations.text import TextSource
from scaling.errors import UserError
from scaling.storage.hashing import canonical_json, sha256_hex

if TYPE_CHECKING:
    from scaling.config import HarvestConfig

HARVEST_VERSION = 1
"""Raise it when the same recipe would give other vectors."""
ID_DIGITS = 12
PART_CONTEXTS = 64
"""Contexts per part, rounded to whole batches: the unit of resuming and of sharing work."""
_MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")


@dataclass(frozen=True)
class Recipe:
    """Two harvests with equal recipes give equal vectors, one possibly more of them."""

    model: str
    """Fingerprint of the model's content (for a hub model its name and revision)."""
    text: str
    """Fingerprint of the text's content."""
    context: int
    drop_positions: int
    outlier_factor: float
    normalization: str
    store_dtype: str
    model_dtype: str
    eval_fraction: float
    seed: int
    batch_contexts: int
    harvest_version: int = HARVEST_VERSION

    def __post_init__(self) -> None:
        for key, value, fault, allowed in (
            ("context", self.context, self.context < 1, "1 or more"),
            ("drop_positions", self.drop_positions, self.drop_positions < 0, "0 or more"),
            ("batch_contexts", self.batch_contexts, self.batch_contexts < 1, "1 or more"),
            ("outlier_factor", self.outlier_factor, self.outlier_factor <= 1, "above 1"),
            ("eval_fraction", self.eval_fraction, not 0 < self.eval_fraction < 1, "0 to 1"),
            ("seed", self.seed, self.seed < 0, "0 or more"),
        ):
            if fault:
                raise UserError(f"activations.{key}={value} is out of range. Set it to {allowed}.")
        if self.drop_positions >= self.context:
            raise UserError(
                f"activations.drop_positions={self.drop_positions} leaves nothing of "
                f"activations.context={self.context}: lower it."
            )

    @property
    def id(self) -> str:
        return sha256_hex(canonical_json(asdict(self)))[:ID_DIGITS]

    @property
    def rows_per_context(self) -> int:
        return self.context - self.drop_positions

    @property
    def part_contexts(self) -> int:
        return self.batch_contexts * max(1, PART_CONTEXTS // self.batch_contexts)

    def parts_for(self, n_rows: int) -> int:
        """Parts that give so many vectors, outliers not counted."""
        return -(-n_rows // (self.part_contexts * self.rows_per_context))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_recipe(config: HarvestConfig, text: TextSource) -> Recipe:
    """The recipe of what `config` asks for.

    Raises:
        UserError: a value out of range, or a model folder that is not one.
    """
    return Recipe(
        model=model_fingerprint(config.model, config.revision),
        text=text.fingerprint(),
        context=config.context,
        drop_positions=config.drop_positions,
        outlier_factor=config.outlier_factor,
        normalization=str(config.normalization),
        store_dtype=str(config.store_dtype),
        model_dtype=str(config.model_dtype),
        eval_fraction=config.eval_fraction,
        seed=config.seed,
        batch_contexts=config.batch_contexts,
    )


def is_local_model(name: str) -> bool:
    """Whether `activations.model` is meant as a folder rather than as a hub name."""
    path = Path(name).expanduser()
    return path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def model_fingerprint(model: str, revision: str | None) -> str:
    """Names the content of the model that `activations.model` means.

    Raises:
        UserError: a folder that holds no model.
    """
    if model == embedded.EMBEDDED:
        return embedded.model_fingerprint()
    if not is_local_model(model):
        return f"hub:{model}@{revision or 'main'}"
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        state = "has no config.json" if folder.is_dir() else "does not exist"
        raise UserError(
            f"activations.model={model!r} {state}: give a folder with a Hugging Face causal "
            "LM (config.json, safetensors, tokenizer), the name of one on the hub, or 'embedded'."
        )
    files = [path for pattern in _MODEL_FILES for path in folder.glob(pattern)]
    return f"files:{fingerprint_files(folder, files)}"
