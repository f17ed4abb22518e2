"""Datasets on a bucket are those on disk, but for the place; its outage is no example's fault."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from pipeline import run as stages
from pipeline.dataset import Run
from pipeline.jobs import make_submission
from pipeline.parts import image_digest
from pipeline.report.gallery import Packer
from pipeline.report.sheet import run_sheet
from pipeline.single import explain
from pipeline.studies.base import Evidence
from pipeline.verify import verify
from schemas.config import Component, RunConfig
from schemas.example import Example
from schemas.limits import Limits
from tests.conftest import Recipe
from tests.proxy import Proxy, Rule
from tests.runs import assert_same_run
from tests.s3 import BUCKET, reach
from workers import catalog
from workers.datasets.base import Dataset
from workers.datasets.folders import Folder
from workers.datasets.photos import Photos
from workers.datasets.vqa import VQA
from workers.errors import BadExample, Outage, UserError
from workers.images import FileSizes, decode, decode_map
from workers.objects import Bucket
from workers.place import BucketPath
from workers.world.files import Places, WorldConfig, write_changing_priors, write_world

URL = f"s3://{BUCKET}"
SPLIT = "val2014"
METHODS = {"attention": {}, "saliency": {}, "word_gradient": {}}
PLACES = Places(Path(), SPLIT)
Section = dict[str, Any]


def upload(folder: Path, url: str) -> str:
    """Every file of a folder, below the URL."""
    bucket, files = Bucket(url), [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda p: bucket.put(p.relative_to(folder).as_posix(), p.read_bytes()), files)
        )
    return url


def official(root: Path | str) -> Section:
    """The embedded world's val2014 as the official files it consists of."""
    files = {"questions": PLACES.questions, "annotations": PLACES.annotations, "hat": PLACES.hat}
    return {
        "name": "vqa",
        "root": str(root),
        "images": ".",
        **{k: str(p) for k, p in files.items()},
    }


@pytest.fixture(scope="module")
def remote(world: Path, endpoint: str) -> str:
    """The small world, on the bucket."""
    return upload(world, f"{URL}/data/world")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that does not answer is given up soon."""
    monkeypatch.setenv("VQATLAS_S3_RETRY", "0.3")
    monkeypatch.setenv("VQATLAS_S3_TIMEOUT", "5")


@pytest.fixture
def proxy(endpoint: str, monkeypatch: pytest.MonkeyPatch, impatient: None) -> Iterator[Proxy]:
    with Proxy(endpoint) as between:
        reach(monkeypatch, between.url)
        yield between


# --- the same examples ---------------------------------------------------------------------------


def build(section: Section) -> Dataset:
    return catalog.dataset(Component(**section))


def changing_priors(folder: Path) -> Section:
    for split in ("train2014", "val2014"):
        write_world(folder, WorldConfig(split=split, scenes=4, seed=1))
    write_changing_priors(folder)
    files = {key: f"vqacp_v1_test_{key}.json" for key in ("questions", "annotations")}
    return {"name": "vqa_cp", "images": ".", **files}


def photographs(folder: Path) -> Section:
    for number, name in enumerate(("dog.png", "deep/er/cat.png", "a b#c?%2e.png", "übrig.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9 + number, 12), (number, 50, 90)).save(folder / name)
    files = ("dog.png", "cat.png", "deep//er/./cat.png", "a b#c?%2e.png", "deep/../übrig.png")
    records = [{"image_id": i, "file": f, "question": "what?"} for i, f in enumerate(files)]
    (folder / "photos.json").write_text(json.dumps(records))
    return {"name": "photos", "questions": "photos.json"}


def shapes_of_easy_vqa(folder: Path) -> Section:
    (folder / "test" / "images").mkdir(parents=True)
    for number in range(2):
        image = Image.new("RGB", (16, 16), (240, 240, 240))
        image.paste((200, 10, 10), (3, 3, 9 + number, 9))
        image.save(folder / "test" / "images" / f"{number}.png")
    asked = [["what?", "circle", 0], ["is it red?", "yes", 1], ["is it blue?", "no", 1]]
    (folder / "test" / "questions.json").write_text(json.dumps(asked))
    return {"name": "easy_vqa"}


def small_world(folder: Path) -> Section:
    write_world(folder, WorldConfig(scenes=3, seed=2))
    return {key: value for key, value in official("").items() if key != "root"}


@pytest.mark.parametrize(
    "make",
    [small_world, changing_priors, photographs, shapes_of_easy_vqa],
    ids=lambda f: f.__name__,
)
def test_dataset_on_a_bucket_equals_the_one_on_disk(
    make: Callable[[Path], Section], tmp_path: Path, endpoint: str
) -> None:
    section = make(tmp_path)
    url = upload(tmp_path, f"{URL}/equal/{make.__name__}")
    here, there = build({**section, "root": str(tmp_path)}), build({**section, "root": url})
    mine, theirs = list(here.examples()), list(there.examples())
    assert len(mine) > 2
    assert [moved(e, str(tmp_path), url) for e in mine] == theirs
    assert image_digest(mine, FileSizes()) == image_digest(theirs, FileSizes())
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(decode(one.image, Limits()), decode(other.image, Limits()))
        maps = zip(here.human_maps(one), there.human_maps(other), strict=True)
        assert all(np.array_equal(a, b) for a, b in maps)


def moved(example: Example, old: str, new: str) -> Example:
    """The example with its files in another place."""
    assert example.image.startswith(f"{old}/")
    maps = tuple(path.replace(old, new) for path in example.human_maps)
    return replace(example, image=example.image.replace(old, new), human_maps=maps)


def test_fields_may_be_on_disk_and_on_a_bucket(world: Path, remote: str) -> None:
    both = {"images": (str(world), remote), "hat": (f"{world}/vqahat_val", f"{remote}/vqahat_val")}
    plain = list(build(official(world)).examples())
    for root, other in ((str(world), 1), (remote, 0)):
        fields = {key: places[other] for key, places in both.items()}
        mixed = list(build({**official(root), **fields}).examples())
        assert {e.image.rpartition("/val2014/")[0] for e in mixed} == {both["images"][other]}
        assert {p.rpartition("/")[0] for e in mixed for p in e.human_maps} == {both["hat"][other]}
        assert [moved(e, both["images"][other], str(world)) for e in mixed] == plain
    questions = f"{remote}/{PLACES.questions}"
    asked = list(build({**official(world), "questions": questions}).examples())
    assert asked == plain


def test_object_of_too_many_bytes_is_refused_unread(endpoint: str) -> None:
    Bucket(URL).put("large.png", bytes(5000))
    with pytest.raises(BadExample, match="has 5,000 bytes, the limit is 4,999; scale the image"):
        decode(f"{URL}/large.png", Limits(max_bytes=4999))
    with pytest.raises(BadExample, match="not an image in a known format"):
        decode(f"{URL}/large.png", Limits(max_bytes=5000))


def test_whole_bucket_may_be_a_root(endpoint: str) -> None:
    Bucket(URL).put("whole.json", b'[{"image_id": 1, "file": "whole.png", "question": "what?"}]')
    (example,) = Photos(root=URL, questions="whole.json").examples()
    assert example.image == f"{URL}/whole.png"


# --- what leads astray ---------------------------------------------------------------------------


def asked_about(file: str, prefix: str) -> Photos:
    record = {"image_id": 1, "file": file, "question": "what is it?"}
    Bucket(f"{URL}/{prefix}").put("root/photos.json", json.dumps([record]).encode())
    return Photos(root=f"{URL}/{prefix}/root", questions="photos.json")


@pytest.mark.parametrize(
    ("file", "to"),
    [
        ("../secret.png", f"{URL}/astray/secret.png"),
        ("deep/../../secret.png", f"{URL}/astray/secret.png"),
        ("../../../../../secret.png", f"{URL}/secret.png"),
        ("..", f"{URL}/astray"),
        (f"{URL}/astray/secret.png", f"{URL}/astray/secret.png"),
        (f"{URL}/astray/root/../secret.png", f"{URL}/astray/secret.png"),
        (f"{URL}/astray/rootless/secret.png", f"{URL}/astray/rootless/secret.png"),
        ("s3://another/astray/root/secret.png", "s3://another/astray/root/secret.png"),
        ("/etc/hostname", "/etc/hostname"),
        ("/astray/root/secret.png", "/astray/root/secret.png"),
    ],
)
def test_path_out_of_the_root_is_refused(file: str, to: str, endpoint: str) -> None:
    Bucket(f"{URL}/astray").put("secret.png", b"secret")
    root = f"{URL}/astray/root"
    with pytest.raises(UserError) as refused:
        list(asked_about(file, "astray").examples())
    assert str(refused.value) == (
        f"{root}/photos.json: questions[0]: {file!r} leads outside {root}, to {to}; "
        "move the file into that folder or name a folder that holds both"
    )


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("a\0b", "a control character in a key"),
        ("a\nb", "a control character in a key"),
        ("ü" * 600, "a key of more than 1024 bytes"),
        ("s3://", "is no bucket's name"),
        ("s3://a b/c", "is no bucket's name"),
    ],
)
def test_name_that_no_key_can_have_is_refused(file: str, reason: str, endpoint: str) -> None:
    with pytest.raises(UserError, match=r"photos\.json: questions\[0\]: .* is not a path") as no:
        list(asked_about(file, "named").examples())
    assert reason in str(no.value)


@pytest.mark.parametrize(
    "file", ["%2e%2e/secret.png", "..%2fsecret.png", "..\\secret.png", "%2E%2E%2Fsecret.png"]
)
def test_escape_in_a_key_is_taken_literally(file: str, endpoint: str, tmp_path: Path) -> None:
    """The secret lies where a decoded escape would lead."""
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    upload(tmp_path, f"{URL}/escaped")
    (example,) = asked_about(file, "escaped").examples()
    assert example.image == f"{URL}/escaped/root/{file}"
    with pytest.raises(BadExample, match="the image file is missing"):
        decode(example.image, Limits())


def test_coco_split_out_of_the_image_folder_is_refused(endpoint: str) -> None:
    question = {"question_id": 1, "image_id": 2, "question": "what?", "coco_split": "../.."}
    bucket = Bucket(f"{URL}/split")
    bucket.put("q.json", json.dumps([question]).encode())
    bucket.put("images/x.jpg", b"")
    section = {"name": "vqa_cp", "root": f"{URL}/split", "questions": "q.json"}
    with pytest.raises(
        UserError, match=rf"question_id 1: '../..' leads outside {URL}/split/images"
    ):
        list(build(section).examples())


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        ("gs://bucket/vqa", "gs:// is not known; use a path, or s3://bucket/prefix"),
        ("http://host/vqa", "http:// is not known"),
        ("s3://", "'' is no bucket's name; write s3://bucket/prefix"),
        ("s3:///vqa", "is no bucket's name"),
        ("s3://bucket:9000/vqa", "is no bucket's name"),
        ("s3://bucket/a\nb", "a control character in a key"),
    ],
)
def test_root_that_is_no_place_is_refused(root: str, reason: str, endpoint: str) -> None:
    with pytest.raises(UserError, match=r"^dataset\.root: ") as refused:
        build({"name": "photos", "root": root, "questions": "q.json"})
    assert reason in str(refused.value)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    for section in (
        {"name": "photos", "root": "s3://me:hunter2@bucket/vqa", "questions": "q.json"},
        {**official("/data"), "hat": "s3://me:hunter2@bucket/hat"},
    ):
        with pytest.raises(UserError, match="from the environment alone: take them out") as refused:
            build(section)
        assert "hunter2" not in str(refused.value)


def test_place_that_path_has_spoilt_is_refused() -> None:
    with pytest.raises(ValidationError, match="Path makes s3:/ of s3://"):
        VQA(root=Path("s3://bucket/vqa"), questions="q.json")


def test_shapes_on_a_bucket_are_refused_with_the_remedy(recipe: Recipe, tmp_path: Path) -> None:
    section = {"name": "shapes", "root": f"{URL}/shapes", "scenes": 8}
    with pytest.raises(UserError, match=r"shapes draws its files on disk.*copy.*`name: vqa`"):
        stages.run(recipe(dataset=section), tmp_path / "run")


def test_recipe_keeps_a_url_and_a_model_has_none(recipe: Recipe) -> None:
    config = recipe(dataset=official("s3://bucket/vqa"))
    assert config.dataset.options["root"] == "s3://bucket/vqa"
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    fields = {"root": "s3://b/vqa//x/../y/", "questions": "s3://c/q.json", "hat": "/data/hat"}
    dataset = build({**official(""), **fields})
    assert dataset.model_dump(mode="json", include=set(fields)) == {
        "root": "s3://b/vqa/y", "questions": "s3://c/q.json", "hat": "/data/hat",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"model\.checkpoint: s3://b/w: .* from disk alone"):
        recipe(model={"name": "kazemi", "checkpoint": "s3://b/w"})


def test_job_takes_a_dataset_on_a_bucket_and_no_other_url(recipe: Recipe, tmp_path: Path) -> None:
    path, ray = tmp_path / "recipe.yaml", {"executor": "ray"}
    data = recipe(dataset=official("s3://bucket/vqa"), resources=ray).model_dump(mode="json")
    path.write_text(yaml.safe_dump(data))
    submission = make_submission(path, [], "s3://bucket/run", retry_failed=False, evaluate=True)
    assert submission.recipe["dataset"]["root"] == "s3://bucket/vqa"
    for other in ("gs://bucket/vqa", "data"):
        with pytest.raises(UserError, match=r"^dataset\.root: "):
            make_submission(path, [f"dataset.root={other}"], "s3://b/r", False, False)


# --- what is not there ---------------------------------------------------------------------------


def test_missing_files_are_told_as_on_disk(endpoint: str) -> None:
    root = f"{URL}/nothing"
    with pytest.raises(UserError) as refused:
        list(build(official(root)).examples())
    assert str(refused.value) == (
        f"{root}/{PLACES.questions}: cannot be read (No such file or directory); "
        "correct the path or download the file"
    )
    Bucket(root).put("q.json", b"[]")
    with pytest.raises(UserError, match=rf"{root}/images: no such folder of images; correct"):
        list(VQA(root=root, questions="q.json").examples())
    with pytest.raises(BadExample, match=rf"{root}/a\.png: the image file is missing"):
        decode(f"{root}/a.png", Limits())
    Bucket(root).put("a.png", b"")
    with pytest.raises(BadExample, match=r"a\.png: the image file is empty \(0 bytes\)"):
        decode_map(f"{root}/a.png")
    Bucket(root).put("a.png", b"no image")
    with pytest.raises(BadExample, match=r"a\.png: not an image in a known format"):
        decode(f"{root}/a.png", Limits())


def test_bucket_that_is_not_there_is_an_outage(endpoint: str, impatient: None) -> None:
    for act in (
        lambda: list(build(official("s3://nosuch/vqa")).examples()),
        lambda: decode("s3://nosuch/a.png", Limits()),
        lambda: FileSizes().of("s3://nosuch/images/a.png"),
        lambda: Folder(BucketPath.parse("s3://nosuch/images")),
    ):
        with pytest.raises(Outage, match=r"s3://nosuch/.*: there is no such bucket; make it"):
            act()


def test_bucket_that_refuses_names_no_key(proxy: Proxy) -> None:
    proxy.begin(Rule("403", first=1, last=None, reads=True))
    with pytest.raises(Outage, match=r"a\.png: the bucket refuses .* AWS_ACCESS_KEY_ID") as refused:
        decode(f"{URL}/a.png", Limits())
    assert "tester" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_large_object_is_read_in_parts(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.objects.PART", 1000)
    data = np.random.default_rng(0).bytes(3500)
    Bucket(URL).put("large", data)
    proxy.begin(Rule("500", first=1, last=None, reads=True, only="/large", every=2))
    assert BucketPath.parse(f"{URL}/large").read_bytes() == data
    assert proxy.requests == 2 * (1 + 4)


# --- requests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(endpoint: str) -> list[str]:
    """Names of images that take two requests to list."""
    names = [f"{number:012d}.jpg" for number in range(1_100)]
    bucket = Bucket(f"{URL}/many")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: bucket.put(f"val2014/{name}", b"12"), names))
    asked = [{"question_id": i, "image_id": i, "question": "what?"} for i in range(1_100)]
    bucket.put("q.json", json.dumps({"data_subtype": SPLIT, "questions": asked}).encode())
    return names


def test_folder_of_many_images_takes_a_request_a_thousand(many: list[str], proxy: Proxy) -> None:
    examples = list(VQA(root=f"{URL}/many", questions="q.json", images=Path()).examples())
    assert [e.image.rpartition("/")[2] for e in examples] == many
    assert proxy.requests == 1 + 1 + 2, "the questions, the images' folder, its split's"
    proxy.begin(None)
    sizes = FileSizes()
    assert {sizes.of(e.image) for e in examples} == {2}
    assert sizes.of(f"{URL}/many/val2014/none.jpg") == -1
    assert proxy.requests == 2


# --- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_disk(recipe: Recipe, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over files on disk, evaluated."""
    root = tmp_path_factory.mktemp("disk") / "run"
    stages.run(recipe(dataset=official(world), methods=METHODS), root)
    stages.evaluate(root)
    return root


@pytest.fixture(scope="module")
def from_bucket(recipe: Recipe, remote: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run over objects."""
    root = tmp_path_factory.mktemp("bucket") / "run"
    stages.run(recipe(dataset=official(remote), methods=METHODS), root)
    assert stages.evaluate(root).failed_examples == 0
    return root


def assert_same_metrics(first: Path, second: Path) -> None:
    """Equal to the last bit."""
    key = ["question_id", "method", "target", "metric", "annotator", "value", "status"]
    frames = [
        Run(root).metrics[key].sort_values(key[:5], ignore_index=True) for root in (first, second)
    ]
    assert len(frames[0]) > 100
    pd.testing.assert_frame_equal(*frames, check_exact=True)


def assert_same_maps(first: Path, second: Path) -> None:
    """The same rows, and the same bytes of maps."""
    assert_same_run(first, second)
    chunks = [chunk.relative_to(first) for chunk in sorted(first.glob("maps.zarr/*/*/c.*"))]
    assert len(chunks) > 8
    assert all((first / c).read_bytes() == (second / c).read_bytes() for c in chunks)


def test_run_from_a_bucket_equals_one_from_disk(
    remote: str, from_disk: Path, from_bucket: Path, tmp_path: Path
) -> None:
    assert_same_maps(from_disk, from_bucket)
    assert_same_metrics(from_disk, from_bucket)
    assert Run(from_bucket).examples.image.str.startswith(f"{remote}/val2014/COCO_").all()
    assert verify(from_bucket, sample=3).problems == 0
    run_sheet(from_bucket, tmp_path / "sheet.png", rows=2)
    assert decode(tmp_path / "sheet.png", Limits()).shape[1] > 400
    written = [path.read_bytes() for path in from_bucket.rglob("*") if path.is_file()]
    assert not any(b"secret" in data or b"tester" in data for data in written)


def test_run_of_moved_data_goes_on(
    recipe: Recipe, world: Path, remote: str, from_disk: Path, tmp_path: Path
) -> None:
    """Begun on disk, extended from the bucket, evaluated from either."""
    root, narrow = tmp_path / "run", {"attention": {}}
    stages.run(recipe(dataset=official(world), methods=narrow), root)
    result = stages.run(recipe(dataset=official(remote), methods=METHODS), root)
    assert result.tasks == 4
    stages.evaluate(root, [f"dataset.root={remote}"])
    assert_same_run(from_disk, root)
    assert stages.evaluate(root).tasks == 0
    assert stages.run(recipe(dataset=official(world), methods=METHODS), root).tasks == 0


def test_run_over_other_images_on_the_bucket_is_refused(
    recipe: Recipe, world: Path, tmp_path: Path, endpoint: str
) -> None:
    url = upload(world, f"{URL}/data/changed")
    stages.run(recipe(dataset=official(world), methods={"attention": {}}), tmp_path / "run")
    image = next(path.name for path in (world / SPLIT).iterdir())
    Bucket(url).put(f"{SPLIT}/{image}", b"another")
    with pytest.raises(UserError, match="are not the size they were when the run began"):
        stages.run(recipe(dataset=official(url), methods={"attention": {}}), tmp_path / "run")


def test_missing_image_fails_alone(
    recipe: Recipe, world: Path, tmp_path: Path, endpoint: str
) -> None:
    url = upload(world, f"{URL}/data/missing")
    image = sorted(path.name for path in (world / SPLIT).iterdir())[2]
    Bucket(url).delete(f"{SPLIT}/{image}")
    config = recipe(dataset=official(url), methods={"attention": {}})
    assert stages.run(config, tmp_path / "run").failed_examples == 3
    run = Run(tmp_path / "run")
    (missing,) = set(run.failures.message)
    place = f"{url}/{SPLIT}/{Path(image).with_suffix('.jpg')}"
    assert missing.startswith(f"{place}: the image file is missing; download it")
    assert (run.examples.status == "ok").sum() == 21


def test_empty_image_fails_alone_and_is_explained_when_it_is_there(
    recipe: Recipe, world: Path, from_disk: Path, tmp_path: Path, endpoint: str
) -> None:
    url = upload(world, f"{URL}/data/empty")
    image = sorted(path.name for path in (world / SPLIT).iterdir())[2]
    Bucket(url).put(f"{SPLIT}/{image}", b"")
    config = recipe(dataset=official(url), methods=METHODS)
    assert stages.run(config, tmp_path / "run").failed_examples == 3
    Bucket(url).put(f"{SPLIT}/{image}", (world / SPLIT / image).read_bytes())
    assert stages.retry(tmp_path / "run").failed_examples == 0
    assert_same_run(from_disk, tmp_path / "run")


def test_outage_in_mid_run_stops_it_and_the_same_command_goes_on(
    recipe: Recipe, remote: str, from_disk: Path, proxy: Proxy, tmp_path: Path
) -> None:
    root, config = tmp_path / "run", recipe(dataset=official(remote), methods=METHODS)
    proxy.begin(Rule("500", first=5, last=None, reads=True, only="/COCO_"))
    with pytest.raises(UserError) as stopped:
        stages.run(config, root)
    said = str(stopped.value)
    assert said.startswith(f"explain stopped: {remote}/{SPLIT}/COCO_")
    assert "the bucket does not answer as it should" in said
    assert said.endswith("Finished shards are kept: the same command goes on from there.")
    assert "secret" not in said
    begun = Run(root)
    assert 0 < len(begun.examples) < 24
    assert (begun.examples.status == "ok").all()
    assert len(begun.failures) == 0
    proxy.begin(None)
    assert stages.run(config, root).failed_examples == 0
    assert_same_maps(from_disk, root)


def test_outage_of_human_maps_stops_the_evaluation(
    recipe: Recipe, world: Path, remote: str, from_disk: Path, proxy: Proxy, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    maps = {"hat": f"{remote}/{PLACES.hat}"}
    stages.run(recipe(dataset={**official(world), **maps}, methods=METHODS), root)
    proxy.begin(Rule("reset", first=30, last=None, reads=True, only="_1.png"))
    with pytest.raises(UserError, match=rf"evaluate stopped: {remote}/vqahat_val/\d+_1\.png: "):
        stages.evaluate(root)
    proxy.begin(None)
    assert stages.evaluate(root).failed_examples == 0
    assert_same_metrics(from_disk, root)


@pytest.mark.parametrize("only", ["questions.json", "list-type"])
def test_outage_before_the_work_is_told(
    only: str, recipe: Recipe, remote: str, proxy: Proxy, tmp_path: Path
) -> None:
    """While questions are read, and while folders are listed."""
    proxy.begin(Rule("500", first=1, last=None, reads=True, only=only))
    with pytest.raises(Outage, match=rf"{remote}.*: the bucket does not answer"):
        stages.run(recipe(dataset=official(remote)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_report_without_its_bucket_says_what_it_does_not_show(
    from_bucket: Path, proxy: Proxy
) -> None:
    """A kind of file is asked for once, not each of them for as long as a bucket is waited for."""
    evidence = Evidence(Run(from_bucket))
    chosen = Run(from_bucket).examples.question_id.tolist()[:7]
    shown = Packer(evidence).pack(chosen, 14)
    assert shown.notes == []
    assert all(image["source"] for image in shown.images)
    proxy.begin(Rule("403", first=1, last=None, reads=True, only=".png"))
    dark = Packer(evidence).pack(chosen, 14)
    assert proxy.requests == 2
    assert len(dark.notes) == 2
    assert all("the bucket refuses" in note for note in dark.notes)
    assert not any(image["source"] for image in dark.images)


def test_one_picture_may_lie_on_a_bucket(world: Path, remote: str, checkpoint: Path) -> None:
    example = next(build(official(world)).examples())
    there = f"{remote}/{SPLIT}/{Path(example.image).name}"
    mine, theirs = (
        explain(str(checkpoint), image, example.question, ["saliency"])
        for image in (example.image, there)
    )
    np.testing.assert_array_equal(mine.maps["saliency"]["map"], theirs.maps["saliency"]["map"])
