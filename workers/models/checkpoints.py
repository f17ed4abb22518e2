"""Reading weight files of others: nothing in them is executed, and every tensor is checked."""

import mmap
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from schemas.base import Frozen
from workers.errors import UserError

_TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")
"""How ``torch.save`` files begin: a zip archive since 1.6, a pickled magic number before."""

_DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)
"""What ``torch.load`` raises on bytes that are not what it expects (found by flipping bytes)."""

Config = TypeVar("Config", bound=Frozen)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise UserError(
            f"cannot read the weights {path}: {error.strerror}; give the path of a weight file"
        ) from error


def is_safetensors(path: Path) -> bool:
    """Whether the file begins like safetensors: a length of eight bytes, then a JSON object."""
    return _head(path)[8:9] == b"{"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, on the CPU, and the file's metadata."""
    if not is_safetensors(path):
        raise UserError(f"{path} is not a safetensors file; give one that ends in .safetensors")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path} is a damaged safetensors file; copy or make it again") from error


def read_format(path: Path) -> str | None:
    """What form of ours a safetensors file says it has; its tensors are not read."""
    if not is_safetensors(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format")
    except SafetensorError:
        return None


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU, as long as it is tensors in plain containers.

    ``weights_only`` refuses every other class, so that a file cannot run code.
    """
    if not _head(path).startswith(_TORCH_MAGIC):
        raise UserError(
            f"{path} is neither a safetensors file nor a PyTorch checkpoint; give one of the two"
        )
    _refuse_bomb(path)
    try:
        with warnings.catch_warnings():  # of other pickle protocols, which load or fail anyway
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise UserError(
            f"{path} is damaged, or holds more than tensors in plain containers, which could run "
            "code and is not loaded; copy it again, or save only its state_dict"
        ) from error


def _refuse_bomb(path: Path) -> None:
    """``torch.save`` writes tensors as they are, so what it wrote unpacks to no more than its size.

    ``bytearray`` is the one class ``weights_only`` allows that makes gigabytes out of a number.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, *_DAMAGED):
        members = []  # an old file is no zip, and a damaged one fails to load
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > size or any(member.compress_type for member in members):
        raise UserError(
            f"{path} is packed, {unpacked} bytes in {size}, which no file of torch.save is; copy "
            "it again, or save only its state_dict"
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(b"bytearray") >= 0:
            raise UserError(
                f"{path} holds a bytearray, which can claim any amount of memory; save only its "
                "state_dict"
            )


def read_weights(path: Path) -> Any:
    """What a file of either format holds."""
    return read_safetensors(path)[0] if is_safetensors(path) else read_torch(path)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """A file that is a state_dict and nothing else, in either format."""
    return as_state_dict(read_weights(path), str(path), path.stat().st_size)


def as_state_dict(found: Any, where: str, size: int) -> dict[str, Tensor]:
    """``found`` without the ``module.`` prefix of DataParallel, once it is tensors by name, and of
    no more bytes than the file they came from, ``size``."""
    if not isinstance(found, Mapping):
        raise UserError(
            f"{where} is a {type(found).__name__}, not a state_dict; save model.state_dict()"
        )
    for name, value in found.items():
        if not isinstance(name, str):
            raise UserError(
                f"{where}: a tensor is named by a {type(name).__name__}; save model.state_dict()"
            )
        if not isinstance(value, Tensor):
            raise UserError(
                f"{where}: entry {name!r} is a {type(value).__name__}, not a tensor; "
                "save model.state_dict()"
            )
        if not _plain(value):
            raise UserError(
                f"{where}: entry {name!r:.200} is a view, a sparse or quantised tensor or one "
                "without values; save model.state_dict() of a plain model"
            )
    _refuse_claims(found, where, size)
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def _refuse_claims(found: Mapping[str, Tensor], where: str, size: int) -> None:
    """A tensor can be made of its length alone, without a value of it in the file."""
    storages = [tensor.untyped_storage() for tensor in found.values()]
    claimed = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if claimed > size:
        raise UserError(
            f"{where}: its tensors take {claimed} bytes, the whole file {size}; save "
            "model.state_dict() again"
        )


def _plain(tensor: Tensor) -> bool:
    """Whether each value has bytes of its own in the file: an expanded view claims any size."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def length_of(
    weights: Mapping[str, Tensor], name: str, axis: int, where: Path | str, remedy: str
) -> int:
    """A size that an axis of a tensor tells."""
    if name not in weights or weights[name].ndim <= axis:
        first = ", ".join(f"{n!r} {_shape(t)}" for n, t in list(weights.items())[:3])
        raise UserError(
            f"{where} has no tensor {name!r} with {axis + 1} axes or more, which the model needs; "
            f"its first tensors are {first or 'none'}; {remedy}"
        )
    return weights[name].shape[axis]


def folded(weights: Mapping[str, Tensor], path: Path, remedy: str) -> dict[str, Tensor]:
    """``weight = g v / ||v||`` in place of each pair ``weight_g, weight_v`` (Salimans and Kingma
    2016, equation 2). With one ``g`` a layer the norm is that of all of ``v``; with one an output
    it is that of each row."""
    found = dict(weights)
    for name in [name for name in weights if name.endswith(("weight_g", "weight_v"))]:
        stem = name[:-2]
        g, v = weights.get(f"{stem}_g"), weights.get(f"{stem}_v")
        if g is None or v is None or v.ndim != 2 or g.numel() not in (1, len(v)):
            shapes = [None if tensor is None else list(tensor.shape) for tensor in (g, v)]
            raise UserError(
                f"{path}: {stem}_g has shape {shapes[0]} and {stem}_v {shapes[1]}; a scale and a "
                f"matrix belong together; {remedy}"
            )
        del found[name]
        norm = v.norm() if g.numel() == 1 else v.norm(dim=1, keepdim=True)
        found[stem] = v * (g.reshape(-1, 1) / norm)
    return found


def load_weights(
    model: nn.Module, found: Mapping[str, Tensor], path: Path | str, remedy: str
) -> None:
    """Give ``model`` its weights, or say which tensors of the file are missing, extra or misshapen,
    the first of them with their shapes.

    BatchNorm's batch counters may be missing, as they are in files older than PyTorch 0.4.1.
    """
    wanted = model.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = {n: t for n, t in wanted.items() if n not in found and n not in counters}
    refuse_extra({n: list(t.shape) for n, t in found.items() if n not in wanted}, path, remedy)
    if missing:
        told = first_of({name: list(tensor.shape) for name, tensor in missing.items()})
        raise UserError(f"{path} lacks {told}, which the model needs; {remedy}")
    for name, tensor in wanted.items():
        own = found.get(name, tensor)
        if own.shape != tensor.shape:
            raise UserError(
                f"{path}: tensor {name!r} has shape {_shape(own)}, the model needs "
                f"{_shape(tensor)}; {remedy}"
            )
        if own.dtype.is_floating_point != tensor.dtype.is_floating_point:
            raise UserError(
                f"{path}: tensor {name!r} is of {own.dtype}, the model needs {tensor.dtype}; "
                f"{remedy}"
            )
    model.load_state_dict(found, strict=False)


def refuse_extra(shapes: Mapping[str, Sequence[int] | None], path: Path | str, remedy: str) -> None:
    """A file that holds more than the model is of another model, whose maps would be wrong."""
    if shapes:
        raise UserError(
            f"{path} has {first_of(shapes)}, which the model has no place for; {remedy}"
        )


def first_of(shapes: Mapping[str, Sequence[int] | None]) -> str:
    """The first of some tensors, and how many there are; None is a shape that is not known."""
    named = [(name, "" if s is None else f" {list(s)}") for name, s in list(shapes.items())[:3]]
    if len(shapes) == 1:
        name, shape = named[0]
        return f"a tensor {name!r}{' of shape' if shape else ''}{shape}"
    return f"{len(shapes)} tensors, first " + ", ".join(f"{n!r}{shape}" for n, shape in named)


def save_model(
    model: nn.Module,
    config: Frozen,
    path: Path,
    form: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Weights and configuration of one of our models in a safetensors file, which names its
    ``form``; ``float16`` weights take half the place and are loaded as float32."""
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor)
        .detach()
        .cpu()
        .contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, path, {"format": form, "config": config.model_dump_json()})


def read_model(
    path: Path, form: str, schema: type[Config], remedy: str
) -> tuple[Config, dict[str, Tensor]]:
    """Configuration and weights of a file that ``save_model`` wrote."""
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != form:
        raise UserError(
            f"{path} says its format is {metadata.get('format')!r}, only {form!r} can be read; "
            f"{remedy}"
        )
    try:
        return schema.model_validate_json(metadata.get("config", "")), tensors
    except ValidationError as error:
        raise UserError(
            f"{path} holds no valid configuration ({first_error(error)}); {remedy}"
        ) from error


def first_error(error: ValidationError) -> str:
    """Field and reason of the first thing wrong with a configuration."""
    first = error.errors()[0]
    return ": ".join([*map(str, first["loc"]), first["msg"]])


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
