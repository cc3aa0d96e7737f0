"""`scaling.load_autoencoder`: finds out what a path or an id is of, and reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scaling.errors import UserError
from scaling.interchange import hub, native, openai, sae_lens, sparsify
from scaling.interchange.model import Facts, LoadedAutoencoder
from scaling.interchange.portable import Portable

_FOLDERS: dict[str, tuple[tuple[str, ...], Callable[[Path], Portable]]] = {
    "native": ((native.CONFIG, native.WEIGHTS), native.read),
    "sae_lens": ((sae_lens.CONFIG, sae_lens.WEIGHTS), sae_lens.read),
    "sparsify": ((sparsify.CONFIG, sparsify.WEIGHTS), sparsify.read),
    "openai": ((openai.WEIGHTS,), lambda folder: openai.read(folder / openai.WEIGHTS)),
}
"""Of each format the files that a folder of it has, and its reader."""
_PICKLES = (".pt", ".pth", ".bin")
_FROM_HUB = tuple(
    sorted({name for key in _FOLDERS if key != "openai" for name in _FOLDERS[key][0]})
)


def load_autoencoder(source: str | Path) -> LoadedAutoencoder:
    """An autoencoder for raw activations, on the CPU in float32.

    `source` is a folder of `python -m scaling.export` (any format), of sae-lens or of eai-sparsify;
    a `.pt` file as OpenAI released them; or an id on the Hugging Face hub (OWNER/NAME,
    OWNER/NAME/FOLDER, @REVISION). No file that is read can run code.

    Raises:
        UserError: nothing is there, it is of no known format, damaged, unsafe, or holds what cannot
            be computed here; the message says which, and what to do.
    """
    path = Path(source)
    if _exists(path):
        return _read(path, str(source))
    hub_id = hub.HubId.parse(str(source))
    if hub_id is None:
        raise UserError(f"{source}: there is no such file or folder, and it is no id of the hub.")
    try:
        folder = hub.download(hub_id, _FROM_HUB)
    except UserError as error:
        raise UserError(f"{source} is no path on this machine, and {error}") from error
    if not any((folder / file).is_file() for file in _FROM_HUB):
        raise UserError(
            f"{source}: the repository has none of {', '.join(_FROM_HUB)} there: give the folder "
            "within the repository, OWNER/NAME/FOLDER."
        )
    return _read(folder, str(source))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for a file may still be meant as an id
        return False


def _read(path: Path, source: str) -> LoadedAutoencoder:
    name, portable = _portable(path)
    _check_finite(path, portable)
    return LoadedAutoencoder(portable, Facts.of(portable, source=source, format_name=name))


def _check_finite(path: Path, portable: Portable) -> None:
    """Of finite tensors too the options of a format, folded in, may make what is none."""
    weights = dict(portable.weights)
    if "r_mag" in weights:
        weights["r_mag"] = weights["r_mag"].exp()
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(
                f"{path}: {name} of the autoencoder is not finite once the options of the "
                "format are applied to what the file holds (a decoder row of norm 0, or values "
                "beyond float32): it has no reconstruction. Take another checkpoint."
            )


def _portable(path: Path) -> tuple[str, Portable]:
    if path.is_file():
        if path.suffix not in _PICKLES:
            raise UserError(f"{path} is a file: give the folder it is in, or a .pt file.")
        return "openai", openai.read(path)
    for name, (files, read) in _FOLDERS.items():
        if all((path / file).is_file() for file in files):
            return name, read(path)
    raise UserError(f"{path} holds no autoencoder in a known format. {_hint(path)}")


def _hint(path: Path) -> str:
    if (path / "plan.json").exists():
        return f"It is a run: export it first, python -m scaling.export {path}."
    within = sorted(
        folder.name
        for folder in (path.iterdir() if path.is_dir() else ())
        if any(all((folder / file).is_file() for file in files) for files, _ in _FOLDERS.values())
    )
    if within:
        return f"Folders in it do: name one of them ({', '.join(within[:8])})."
    known = [f"{name} ({' and '.join(files)})" for name, (files, _) in _FOLDERS.items()]
    return f"Known are {'; '.join(known)}."
