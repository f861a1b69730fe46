"""Reads safetensors headers before any weights, and writes files whole or not at all."""

import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

MAX_HEADER_BYTES = 16 * 2**20  # a 7 B model's header is 0.1 MiB
MAX_TENSORS = 20_000
MAX_NAME = 512  # characters of a tensor's name
MAX_METADATA = 2**20  # characters of a file's metadata
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip

# Kinds of file that people save under the wrong name, by their first bytes.
IMPOSTORS = {
    b"PK\x03\x04": "a PyTorch pickle (.ckpt, .pt), which can run code; convert it to safetensors",
    b"\x80\x02": "a Python pickle, which can run code; convert it to safetensors",
    b"GGUF": "a GGUF file under another name; give it the ending .gguf",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; download the real file",
    b"<": "a web page, not a model; the download failed, fetch the file again",
}


@dataclass(frozen=True)
class TensorInfo:
    """The entry of one tensor in a header."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int = 0  # of its first byte in a GGUF file


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Reads the entries of all tensors in the header of one safetensors file.

    Stricter than the format: no duplicate names, no unknown dtypes, no gaps, overlaps or trailing bytes.
    Raises ValueError saying what is wrong with the file.
    """
    raw, num_bytes = _read_raw_header(path)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} has a damaged safetensors header ({error}); download it again"
        ) from None
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} has a damaged safetensors header (no object); download it again")
    _check_metadata(path, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise ValueError(f"{path.name} lists {len(header)} tensors, at most {MAX_TENSORS} are accepted")
    for key in header:  # names end up in messages, and an unpaired surrogate there would stop ComfyUI's queue
        if len(key) > MAX_NAME or not key.isprintable():
            raise ValueError(f"{path.name} has a tensor with the name {key[:50]!a}; download it again")
    _check_layout(path, header, num_bytes)
    return {key: TensorInfo(entry["dtype"], tuple(entry["shape"]), path) for key, entry in header.items()}


def _read_raw_header(path: Path) -> tuple[bytes, int]:
    """Reads a file's header -> its bytes, and how many bytes follow."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(32)
            length = int.from_bytes(start[:8], "little")
            if length > MAX_HEADER_BYTES or 8 + length > size or start[8:9] not in (b"{", b" "):
                raise ValueError(f"{path.name} {_fault(start, length, size)}")
            file.seek(8)
            return file.read(length), size - 8 - length
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror}); check its permissions") from None


def _fault(start: bytes, length: int, size: int) -> str:
    """Names by the first bytes what a file is instead of safetensors."""
    for magic, meaning in IMPOSTORS.items():
        if start.startswith(magic):
            return f"is {meaning}"
    if size < 10:
        return f"is empty ({size} bytes); download it again"
    if start[8:9] not in (b"{", b" "):
        return "has a damaged safetensors header or is another kind of file; download it again"
    return f"is cut off: its header should take {length} bytes, the file has {size}; download it again"


def _check_metadata(path: Path, metadata: object) -> None:
    texts = [*metadata.keys(), *metadata.values()] if isinstance(metadata, dict) else None
    if (
        texts is None
        or not all(isinstance(text, str) for text in texts)
        or sum(map(len, texts)) > MAX_METADATA
    ):
        raise ValueError(f"{path.name} has damaged metadata in its safetensors header; download it again")


def _unique(pairs: list[tuple[str, object]]) -> dict:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name appears twice")
    return entries


def _check_layout(path: Path, header: Mapping[str, dict], num_bytes: int) -> None:
    """Raises ValueError unless the tensors' bytes follow each other, fit their shapes and fill the file."""
    position = 0
    for key, entry in sorted(header.items(), key=lambda item: _offsets(path, *item)):
        begin, end = _offsets(path, key, entry)
        needed = math.prod(entry["shape"]) * DTYPE_BITS[entry["dtype"]] // 8
        if begin != position or end - begin != needed:
            raise ValueError(
                f"{path.name} has a damaged safetensors header: the bytes of {key!r} do not fit its shape"
            )
        if end > num_bytes:
            missing = max(_offsets(path, *item)[1] for item in header.items()) - num_bytes
            raise ValueError(
                f"{path.name} is cut off: {missing} bytes are missing, from {key!r} on; download it again"
            )
        position = end
    if position != num_bytes:
        raise ValueError(
            f"{path.name} has {num_bytes - position} bytes after its last tensor; download it again"
        )


def _offsets(path: Path, key: str, entry: object) -> tuple[int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            dtype in DTYPE_BITS and len(shape) <= 8 and all(type(n) is int and n >= 0 for n in shape)
        ):
            return begin, end
    raise ValueError(
        f"{path.name} has a damaged or unsupported entry for the tensor {key!r} in its safetensors header"
    )


def model_files(path: Path) -> list[Path]:
    """Finds a model's safetensors files: the file itself, those of a folder's index, or its only one.

    Raises ValueError when the folder is incomplete or ambiguous.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path.name} is neither a file nor a folder")
    indexes = sorted(path.glob("*.safetensors.index.json"))
    files = sorted(path.glob("*.safetensors"))
    if len(indexes) == 1:
        return _indexed_files(indexes[0])
    plain = [path / f"{stem}.safetensors" for stem in ("diffusion_pytorch_model", "model")]
    chosen = [file for file in plain if file in files] or files
    if len(chosen) == 1 and not indexes:
        return chosen
    if not files:
        raise ValueError(f"the folder {path.name} holds no .safetensors file")
    raise ValueError(
        f"the folder {path.name} holds {len(files)} .safetensors files and {len(indexes)} indexes, one "
        "index is needed; download the model.safetensors.index.json that belongs to these files"
    )


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index.name} lists no files (no weight_map); download it again")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or not name.isprintable():
            raise ValueError(f"{index.name} names {name!a}, which is no plain file name; download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not (index.parent / name).is_file():
            raise ValueError(
                f"{name} is missing in the folder {index.parent.name}, its index lists it; download it"
            )
    return [index.parent / name for name in names]


def check_index(folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises ValueError when a folder's index contradicts its files."""
    for index in folder.glob("*.safetensors.index.json"):
        weight_map = read_json(index)["weight_map"]
        for key in sorted({*weight_map, *tensors}):
            found = tensors[key].file.name if key in tensors else "nowhere"
            if weight_map.get(key) != found:
                raise ValueError(
                    f"{index.name} has {key!a} in {weight_map.get(key)!a}, but it lies in {found}; download "
                    "the index and its files again"
                )


def read_headers(files: Iterable[Path]) -> dict[str, TensorInfo]:
    """Reads the headers of all shards. Raises ValueError when two of them hold the same tensor."""
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for key, info in read_header(file).items():
            if key in tensors:
                raise ValueError(f"both {tensors[key].file.name} and {file.name} hold the tensor {key!r}")
            tensors[key] = info
    return tensors


def read_json(path: Path) -> dict:
    """Reads a small JSON file. Raises ValueError when it is large or not an object."""
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise ValueError(f"{path.name} is {path.stat().st_size} bytes long, too large for a config or index")
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no JSON object; download it again")
    return value


def write_json(value: Mapping, path: Path) -> None:
    """Writes a JSON file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file whole or not at all: a failure leaves what was there before."""
    tensors = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), metadata={"format": "pt", **(metadata or {})})


def write_folder(tensors: Mapping[str, Tensor], folder: Path, stem: str, max_shard_bytes: int) -> None:
    """Writes `stem`.safetensors into the folder, or shards of at most `max_shard_bytes` with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / f"{stem}.safetensors.index.json"
    index.unlink(missing_ok=True)  # an earlier model's, which would lead to its shards
    before = set(folder.glob(f"{stem}*.safetensors"))
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for key, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][key] = tensor
        filled += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        name = f"{stem}{part}.safetensors"
        write_tensors(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
    for stale in before - {folder / name for name in weight_map.values()}:
        stale.unlink()
    if len(shards) > 1:  # last, so that a folder cut short has no index and is refused
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json({"metadata": {"total_size": total}, "weight_map": weight_map}, index)


class replacing:
    """Opens a temporary file beside the target, which replaces it when the block succeeds."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Path:
        self.temporary = self.path.with_name(f".{self.path.name[:100]}.{uuid.uuid4().hex}.part")
        handle = os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        # The mode of any new file here, while safetensors makes private ones.
        self.mode = os.fstat(handle).st_mode & 0o777
        os.close(handle)
        return self.temporary

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                with self.temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                self.temporary.chmod(self.mode)
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)
