"""Every input, damaged in thousands of ways: read, or refused in our own words, soon and small.

VQATLAS_FUZZ=20000 pytest tests/test_fuzz.py feeds that many inputs in all, and VQATLAS_FUZZ_SEED
draws others than the usual ones. docs/faults.md says what is fuzzed.
"""

import io
import json
import math
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.recipe import override, parse, read_recipe
from schemas.config import RunConfig
from schemas.example import Example
from schemas.limits import Limits
from tests import torch7
from tests.conftest import Recipe
from tests.fuzz import fragments, pickles, recipes, weights
from tests.fuzz.bounds import bounds, ceiling
from tests.fuzz.damage import damaged
from tests.fuzz.tangle import tangled, written
from workers import catalog
from workers.datasets.base import Dataset
from workers.datasets.easy_vqa import EasyVQA
from workers.datasets.photos import Photos
from workers.datasets.vqa import VQA
from workers.datasets.vqa_cp import VQACP
from workers.errors import BadExample, UserError
from workers.images import decode, decode_map
from workers.models import kazemi, pytorch_vqa
from workers.models.checkpoints import load_weights, read_state_dict, read_torch
from workers.models.kazemi import Kazemi, KazemiConfig
from workers.models.torch7 import read_torch7
from workers.store import Store, fragment_key

INPUTS = int(os.environ.get("VQATLAS_FUZZ", "2000"))
"""Of all tests together."""
SEED = os.environ.get("VQATLAS_FUZZ_SEED")
TINY = KazemiConfig(
    trunk="small",
    channels=(2, 3, 4, 5),
    image_size=24,
    embedding=4,
    state=5,
    attention=6,
    hidden=7,
    words=("is", "it", "red"),
    answers=("no", "yes"),
)
RECORD_KEYS = ("question_id", "image_id", "question", "answers", "answer", "file", "coco_split")
JSON_TOKENS = tuple(
    token.encode()
    for token in ("NaN", "1e999", '"\\ud800"', "[" * 3000, "9" * 5000, ",", '"', "{", "]", "\0")
)


def fuzz(strategy: st.SearchStrategy, share: float, feed: Callable[[Any], object]) -> None:
    """Feed this share of all inputs; each ends within the bounds, read or refused with a reason."""
    count, space = math.ceil(INPUTS * share), ceiling()
    fed = 0

    @settings(
        max_examples=count,
        derandomize=SEED is None,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(given_input: Any) -> None:
        nonlocal fed
        fed += 1
        with bounds(space):
            refused(feed, given_input)

    (one if SEED is None else seed(int(SEED))(one))()
    assert fed >= count


def refused(feed: Callable[[Any], object], given_input: Any) -> None:
    """What is not read is refused with a message that any terminal can print."""
    try:
        feed(given_input)
    except (UserError, BadExample) as error:
        assert 20 < len(str(error)) < 20_000
        str(error).encode()


# --- recipes ------------------------------------------------------------------------------------


def accept(config: RunConfig) -> None:
    """Everything the configuration names is built, and ``run.json`` would give it back."""
    catalog.dataset(config.dataset)
    catalog.model_spec(config.model)
    catalog.methods(config.methods)
    catalog.metrics(config.metrics)
    stored = json.loads(config.model_dump_json())
    assert parse(stored, "run.json").model_dump_json() == config.model_dump_json()


@pytest.fixture(scope="module")
def recipe_files() -> list[bytes]:
    return [path.read_bytes() for path in sorted(Path("recipes").glob("*.yaml"))]


@pytest.fixture(scope="module")
def recipe_values(recipe_files: list[bytes]) -> list[dict[str, Any]]:
    full = {
        **yaml.safe_load(recipe_files[0]),
        "limits": {"min_side": 8, "max_aspect": 32.0},
        "precision": "float32",
        "resources": {"workers": 2, "batch": 8, "gpus_per_worker": 0.5},
        "methods": {
            "rough": {"method": "occlusion", "approximate": {"bound": 0.5}, "patch": [1, 2, 3]},
            "rise": {"masks": 8},
        },
    }
    return [*map(yaml.safe_load, recipe_files), full]


def test_recipe_bytes(recipe_files: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        accept(read_recipe(path))

    fuzz(damaged(recipe_files, recipes.TOKENS), 0.10, feed)


def test_recipe_structure(recipe_values: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"

    def feed(value: Any) -> None:
        path.write_text(written(value))
        accept(read_recipe(path))

    fuzz(tangled(recipe_values, recipes.NAMES), 0.10, feed)


def test_recipe_bombs(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"

    def feed(text: str) -> None:
        path.write_text(text)
        accept(read_recipe(path))

    fuzz(recipes.bombs(), 0.02, feed)


def test_recipe_overrides(recipe_values: list[dict[str, Any]]) -> None:
    given_values = st.lists(recipes.assignments(), min_size=1, max_size=3)
    fuzz(
        given_values,
        0.05,
        lambda overrides: accept(parse(override(recipe_values[0], overrides), "recipe")),
    )


# --- official files -----------------------------------------------------------------------------


def read(dataset: Dataset) -> None:
    """All of it; what is accepted stays in its folder and can be written as a row."""
    for example in dataset.examples():
        TypeAdapter(Example).dump_json(example)
        assert Path(example.image).is_relative_to(dataset.root.resolve())
    dataset.bad_records()


def feed_json(dataset: Dataset, path: Path) -> Callable[[Any], None]:
    """Bytes, or a value, as the dataset's file, read strictly and with ``skip_bad``."""

    def feed(content: Any) -> None:
        raw = content if isinstance(content, bytes) else written(content).encode()
        path.write_bytes(raw)
        read(dataset.model_copy(update={"skip_bad": True}))
        read(dataset)

    return feed


def either(files: Sequence[Path], keys: Sequence[str] = RECORD_KEYS) -> st.SearchStrategy:
    """The files' bytes damaged, or their content."""
    raw = [path.read_bytes() for path in files]
    values = [json.loads(data) for data in raw]
    return st.one_of(damaged(raw, JSON_TOKENS), tangled(values, keys))


@pytest.fixture
def vqa(shared_data: Path, tmp_path: Path) -> VQA:
    """The real v2 sample, copied to be damaged."""
    source = shared_data / "vqav2-mini" / "test_fixtures" / "vision" / "vqav2"
    for path in source.glob("*.json"):
        shutil.copyfile(path, tmp_path / path.name)
    (tmp_path / "images").mkdir()
    files = {"questions": "questions.json", "annotations": "annotations.json"}
    return VQA.model_validate({"root": tmp_path, "split": "train2014", **files})


@pytest.mark.parametrize("file", ["questions", "annotations"])
def test_vqa_json(vqa: VQA, file: str) -> None:
    path = vqa.root / f"{file}.json"
    fuzz(either([path]), 0.05, feed_json(vqa, path))


def test_vqa_cp_json(vqa: VQA) -> None:
    path = vqa.root / "questions.json"
    records = json.loads(path.read_bytes())["questions"]
    listed = [{**record, "coco_split": "train2014"} for record in records]
    path.write_text(json.dumps(listed))
    dataset = VQACP(root=vqa.root, questions=path)
    fuzz(either([path]), 0.03, feed_json(dataset, path))


def test_photos_json(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    shutil.copyfile(shared_data / "coco-mm-explain" / "questions_from_notebook.json", path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder in (".", "a", "a/b"):
        (tmp_path / folder / "dog.jpg").touch()
    (tmp_path / "\udcff").mkdir()
    (tmp_path / "\udcff" / "cat.jpg").touch()
    strategy = either([path], (*RECORD_KEYS, "dog.jpg", "a/dog.jpg", "cat.jpg"))
    fuzz(strategy, 0.03, feed_json(Photos(root=tmp_path, questions=path), path))


def test_easy_vqa_json(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "easy-vqa" / "easy_vqa" / "data" / "test" / "questions.json"
    path = tmp_path / "test" / "questions.json"
    path.parent.mkdir()
    path.write_text(json.dumps(json.loads(source.read_bytes())[:12]))
    dataset = EasyVQA(root=tmp_path, questions_per_image=2)
    fuzz(either([path]), 0.03, feed_json(dataset, path))


# --- pictures -----------------------------------------------------------------------------------

SAVED = (
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {}),
    ("PNG", "I;16", {}),
    ("JPEG", "RGB", {"quality": 50}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "CMYK", {}),
    ("WEBP", "RGB", {}),
    ("BMP", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "L", {}),
    ("GIF", "P", {}),
)
IMAGE_TOKENS = (
    b"IHDR",
    b"IDAT",
    b"IEND",
    b"tRNS",
    b"PLTE",
    b"acTL",
    b"iCCP",
    b"zTXt",
    b"eXIf",
    b"Exif\0\0",
    b"II*\0",
    b"MM\0*",
    b"\xff\xd8",
    b"\xff\xd9",
    b"\xff\xda",
    b"\xff\xc2",
    b"\xff\xe1\xff\xff",
    b"\0\x01\x86\xa0\0\x01\x86\xa0",
    b"\xff\xff\xff\xff",
    b"VP8X",
)


def pictures(shared_data: Path) -> list[bytes]:
    """Small pictures of every format, and a real photograph's beginning."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    found = []
    for form, mode, options in SAVED:
        sink = io.BytesIO()
        image = Image.fromarray(noise)
        image = Image.fromarray(noise[..., 0].astype("u2")) if "16" in mode else image.convert(mode)
        image.save(sink, form, exif=exif, **options) if form != "GIF" else image.save(sink, form)
        found.append(sink.getvalue())
    photo = next((shared_data / "coco-mm-explain").rglob("*.jpg"))
    return [*found, photo.read_bytes()]


def test_image_bytes(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.png"

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        pixels = decode(path, Limits())
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3

    fuzz(damaged(pictures(shared_data), IMAGE_TOKENS), 0.12, feed)


def test_human_maps(shared_data: Path, tmp_path: Path) -> None:
    """Names in the folder, and the maps' bytes."""
    folder = tmp_path / "hat"
    folder.mkdir()
    digits = st.text(alphabet="0123٣７²", min_size=1, max_size=90)
    names = st.one_of(
        st.builds("{}_{}.png".format, digits, digits),
        st.sampled_from(("1_1.png", "01_1.png", "1_1.PNG", "1_1.png\n", "_.png", "\udcff_1.png")),
    )
    seeds = [data for data in pictures(shared_data) if data.startswith(b"\x89PNG")]
    example = Example(question_id=1, image_id=1, image="", question="")
    questions = tmp_path / "questions.json"
    asked = {"question_id": 1, "image_id": 1, "question": "?", "coco_split": "val2014"}
    questions.write_text(json.dumps([asked]))
    (tmp_path / "images").mkdir()
    dataset = VQACP(root=tmp_path, questions=questions, hat=folder)

    def feed(found: dict[str, bytes]) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name, data in found.items():
            (folder / name).write_bytes(data)
        for name in found:
            if name.isascii():
                refused(decode_map, folder / name)
        for example in dataset.examples():
            assert all((m >= 0).all() and (m <= 1).all() for m in dataset.human_maps(example))

    assert dataset.human_maps(example) == []
    content = st.one_of(damaged(seeds, IMAGE_TOKENS), st.sampled_from(seeds))
    fuzz(st.dictionaries(names, content, min_size=1, max_size=3), 0.07, feed)


# --- weights ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Kazemi:
    torch.manual_seed(0)
    return Kazemi(TINY)


def test_safetensors(tiny: Kazemi, tmp_path: Path) -> None:
    """Header, settings and tensors, loaded into a model that is there already."""
    path = tmp_path / "model.safetensors"
    kazemi.save(tiny, path)
    sound = path.read_bytes()

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        _, tensors = kazemi.read(path)
        load_weights(tiny, tensors, path, "save the model again")

    strategy = st.one_of(weights.safetensors(sound), damaged([sound], JSON_TOKENS))
    fuzz(strategy, 0.07, feed)


def released(tiny: Kazemi) -> dict[str, Any]:
    """What pytorch-vqa would have saved of the model."""
    head = {k: v for k, v in tiny.state_dict().items() if not k.startswith("trunk_net.")}
    return {
        "config": {"image_size": 64, "central_fraction": 0.5},
        "weights": {f"module.{name}": tensor for name, tensor in head.items()},
        "vocab": {"question": {"red": 3, "is": 1, "it": 2}, "answer": {"yes": 1, "no": 0}},
    }


def saved(content: object, zipped: bool = True) -> bytes:
    sink = io.BytesIO()
    torch.save(content, sink, _use_new_zipfile_serialization=zipped)
    return sink.getvalue()


def feed_torch(path: Path) -> Callable[[bytes], None]:
    def feed(data: bytes) -> None:
        path.write_bytes(data)
        refused(read_state_dict, path)
        config, tensors = pytorch_vqa.read(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data)
        assert len(config.words) + len(config.answers) <= len(data)

    return feed


def test_torch_bytes(tiny: Kazemi, tmp_path: Path) -> None:
    """Both forms of ``torch.save``, and zips with the wrong members."""
    content = released(tiny)
    seeds = [saved(content), saved(content, zipped=False), saved(dict(tiny.state_dict()))]
    tokens = [*pickles.CALLS, *pickles.HARMLESS, b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06"]
    strategy = st.one_of(damaged(seeds, tokens), weights.archives(seeds[0]))
    fuzz(strategy, 0.07, feed_torch(tmp_path / "model.pth"))
    assert pickles.SUNG == []


def test_torch7_bytes(tmp_path: Path) -> None:
    """Files of Torch7 with and without versions, tables in tables, and names met again."""
    path = tmp_path / "model.t7"
    flat, opt = np.arange(40, dtype=np.float32), {"size": 200, "gpu": True, 1: None}
    value = {"opt": opt, "again": opt, "w": torch7.cuda(flat), "part": flat[3:9], "d": flat * 2.0}
    seeds = [torch7.dumps(value), torch7.dumps(value, versions=False), torch7.dumps({"w": flat})]
    integers = [struct.pack("<i", kind) for kind in range(9)]
    tokens = [*integers, b"V 1", b"torch.FloatTensor", b"torch.DoubleStorage", b"nn.Linear"]

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        read_torch7(path)

    fuzz(damaged(seeds, tokens), 0.05, feed)


VIEWS: dict[str, torch.Tensor] = {
    "long": torch.zeros(1).expand(10**12),
    "wide": torch.zeros(1).expand(10**6, 10**6),
    "turned": torch.zeros(3, 4).T,
    "empty": torch.zeros(0, 2**40),
    "scalar": torch.zeros(()),
    "complex": torch.zeros(4, dtype=torch.complex64),
    "truths": torch.zeros(4, dtype=torch.bool),
    "meta": torch.empty(10**12, device="meta"),
    "sparse": torch.zeros(5, 5).to_sparse(),
    "undefined": torch.full((4,), float("nan")),
    "parameter": torch.nn.Parameter(torch.zeros(2)),
}
KINDS = (torch.complex64, torch.int64, torch.float16, torch.bool)
"""Tensors that are small in a file and large, or strange, out of it."""


def plain(value: Any, keys: Sequence[str]) -> st.SearchStrategy:
    """The value as it is, or tangled, as long as ``torch.save`` can write it."""
    changed = tangled([value], keys).filter(lambda found: "Deep" not in repr(found))
    return st.one_of(st.just(value), changed)


def test_torch_values(tiny: Kazemi, tmp_path: Path) -> None:
    """Sound files of the wrong things."""
    content = released(tiny)
    names = st.sampled_from(sorted(content["weights"]))
    path = tmp_path / "model.pth"
    head = torch.nn.ModuleDict(
        {"text": tiny.text, "attention": tiny.attention, "classifier": tiny.classifier}
    )

    def swap(name: str, by: str | torch.dtype) -> torch.Tensor:
        return VIEWS[by] if isinstance(by, str) else content["weights"][name].to(by)

    def feed(changes: tuple[dict[str, str | torch.dtype], Any, Any]) -> None:
        swapped, vocab, config = changes
        swapped_in = {**content["weights"], **{k: swap(k, by) for k, by in swapped.items()}}
        path.write_bytes(saved({"config": config, "weights": swapped_in, "vocab": vocab}))
        _, tensors = pytorch_vqa.read(path)
        load_weights(head, tensors, path, "give another")

    strategy = st.tuples(
        st.dictionaries(names, st.sampled_from((*VIEWS, *KINDS)), max_size=2),
        plain(content["vocab"], ("question", "answer", "1")),
        plain(content["config"], ("image_size", "central_fraction")),
    )
    fuzz(strategy, 0.04, feed)


def test_pickles_call_nothing(tmp_path: Path) -> None:
    def feed(drawn: tuple[bytes, int]) -> None:
        program, form = drawn
        wrapped = (pickles.legacy(program), pickles.zipped(program), pickles.zipped(program, True))
        path = tmp_path / "model.pth"
        path.write_bytes(wrapped[form])
        refused(read_torch, path)
        assert pickles.SUNG == []

    fuzz(st.tuples(pickles.programs(), st.integers(0, 2)), 0.04, feed)


@pytest.mark.parametrize("body", pickles.CALLS)
def test_every_pickle_calls_when_it_is_trusted(body: bytes) -> None:
    try:
        pickle.loads(b"\x80\x04" + body + b".")
        assert pickles.SUNG
    finally:
        pickles.SUNG.clear()


def test_zip_bomb_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(weights.bomb())
    with bounds(ceiling()), pytest.raises(UserError, match="is packed"):
        read_torch(path)


# --- a run's own files --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "run"


@pytest.fixture
def finished(finished_folder: Path, recipe: Recipe) -> Path:
    """A run with maps, words and metrics."""
    if not finished_folder.exists():
        methods = {"grad_cam": {}, "word_gradient": {}}
        metrics: dict[str, Any] = {"rank_correlation": {}}
        stages.run(recipe(methods=methods, metrics=metrics), finished_folder)
        stages.evaluate(finished_folder)
    return finished_folder


def restored(path: Path, feed: Callable[[], object]) -> Callable[[Any], None]:
    """Feed what is read with other bytes, or another value, at ``path``; put back after."""
    sound = path.read_bytes()

    def once(content: Any) -> None:
        raw = content if isinstance(content, bytes) else written(content).encode()
        path.write_bytes(raw)
        try:
            feed()
        finally:
            path.write_bytes(sound)

    return once


def test_run_json(finished: Path) -> None:
    path = finished / "run.json"

    def feed() -> None:
        refused(lambda root: Run(root).examples, finished)
        stages.stored_config(finished)

    fuzz(either([path], ("recipe", "targets")), 0.05, restored(path, feed))


def test_definitions_json(finished: Path) -> None:
    path = finished / "definitions" / "image" / "grad_cam.json"

    def feed() -> None:
        refused(lambda root: Run(root).definitions, finished)
        stages.stored_config(finished)

    fuzz(either([path], ("label", "arrays", "kind")), 0.03, restored(path, feed))


Scan = Callable[[Path, Path], object]


def reads_notes(root: Path, path: Path) -> None:
    """What the driver reads of a fragment: who wrote it, and what for."""
    refused(lambda name: Store(root).attempt_of(path.parent.name, name), path.name)
    Store(root).labels(fragment_key(path.name)[1], path.parent.name, path.name)


def reads_shard(root: Path, path: Path) -> None:
    """What a worker reads of its own shard."""
    Store(root).read_shard(path.parent.name, int(path.stem.split("-")[1]))


def reads_table(root: Path, path: Path) -> None:
    """What a user reads."""
    getattr(Run(root), path.parent.name)


@pytest.mark.xfail(
    strict=True,
    raises=(pa.ArrowException, OSError, KeyError, ValueError),
    reason="fragments of other columns or notes, and damage met by a reader, are not refused",
)
@pytest.mark.parametrize("scan", [reads_notes, reads_shard, reads_table])
def test_parquet_fragments(finished: Path, scan: Scan) -> None:
    tables = ("examples", "maps", "words", "metrics")
    paths = [min((finished / table).glob("*.parquet")) for table in tables]

    def feed(drawn: tuple[int, bytes]) -> None:
        at, data = drawn
        restored(paths[at], lambda: scan(finished, paths[at]))(data)

    seeds = [path.read_bytes() for path in paths]
    choices = [
        st.tuples(st.just(i), st.one_of(damaged([data]), fragments.fragments(data)))
        for i, data in enumerate(seeds)
    ]
    fuzz(st.one_of(choices), 0.02, feed)
