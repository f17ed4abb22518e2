"""Small files of regions and of models that see them, laid out as the real ones are."""

import base64
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

REGIONS, CHANNELS = 6, 8
HEIGHT, WIDTH = 90, 120
GRID = (96, 4, 4)
"""What the small trunk gives of 32 pixels."""
IMAGES = (1, 42, 7)
WORDS = ("what", "is", "the", "colour", "of", "this", "red", "dog", "color", "'s")
ANSWERS = ("yes", "no", "red", "two dogs")


class Detected(NamedTuple):
    """Boxes in pixels ``(region, 4)`` and features ``(region, channel)`` of one image."""

    boxes: np.ndarray
    features: np.ndarray


def detected(image_id: int, regions: int = REGIONS) -> Detected:
    """Boxes anywhere in an image of ``WIDTH`` x ``HEIGHT``, features as after a ReLU."""
    drawn = np.random.default_rng(image_id)
    corners = np.sort(drawn.random((regions, 2, 2)), 1).reshape(-1, 4)
    boxes = corners * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    features = np.maximum(drawn.normal(0.5, 1, (regions, CHANNELS)), 0)
    return Detected(boxes.astype(np.float32), features.astype(np.float32))


def write_hdf5(path: Path, images: Mapping[int, Detected], spatial: bool = True) -> Path:
    """``{split}36.hdf5`` and its index, rows in the order of the images."""
    found = list(images.values())
    boxes = np.stack([one.boxes for one in found])
    sides = np.array([WIDTH, HEIGHT] * 2)
    size = (boxes[..., 2:] - boxes[..., :2]) / sides[:2]
    with h5py.File(path, "w") as file:
        file["image_features"] = np.stack([one.features for one in found])
        file["image_bb"] = boxes
        if spatial:
            file["spatial_features"] = np.concatenate([boxes / sides, size], 2).astype(np.float32)
    index = {image: row for row, image in enumerate(images)}
    path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps(index, protocol=0))
    return path


def write_adaptive(path: Path, images: Mapping[int, Detected]) -> Path:
    """``{split}.hdf5`` with any number of regions an image, along one axis."""
    sides, ends = (
        np.array([WIDTH, HEIGHT] * 2),
        np.cumsum([len(one.boxes) for one in images.values()]),
    )
    boxes = np.concatenate([one.boxes for one in images.values()]) / sides
    with h5py.File(path, "w") as file:
        file["image_features"] = np.concatenate([one.features for one in images.values()])
        file["spatial_features"] = np.concatenate([boxes, boxes[:, :2]], 1).astype(np.float32)
        file["pos_boxes"] = np.stack([[0, *ends[:-1]], ends], 1)
    index = {image: row for row, image in enumerate(images)}
    path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps(index, protocol=0))
    return path


def write_tsv(path: Path, images: Mapping[int, Detected], lxmert: bool = False) -> Path:
    """Six columns as bottom-up-attention has them, or LXMERT's ten."""
    lines = []
    for image, (boxes, features) in images.items():
        arrays = [str(len(boxes)), encoded(boxes), encoded(features)]
        columns = [str(image), str(WIDTH), str(HEIGHT)]
        if lxmert:
            classes = [encoded(np.zeros(len(boxes), kind)) for kind in ("<i8", "<f4") * 2]
            columns = [f"COCO_val2014_{image:012d}", str(HEIGHT), str(WIDTH), *classes]
        lines.append("\t".join([*columns, *arrays]))
    path.write_text("\n".join(lines) + "\n")
    return path


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def grid(image_id: int) -> np.ndarray:
    """Features ``(channel, y, x)`` in half precision, as a trunk's last ReLU gives them."""
    drawn = np.random.default_rng(image_id).normal(0.5, 1, GRID)
    return np.maximum(drawn, 0).astype(np.float16)


def write_grids(path: Path, images: Mapping[int, np.ndarray]) -> Path:
    """``resnet-14x14.h5``."""
    with h5py.File(path, "w", libver="latest") as file:
        file["features"] = np.stack(list(images.values()))
        file["ids"] = np.array(list(images), np.int32)
    return path


def kazemi_weights() -> dict[str, torch.Tensor]:
    """A state_dict of pytorch-vqa's network as DataParallel saved it, its sizes small."""
    drawn = torch.Generator().manual_seed(5)
    words, embedding, state, hidden, channels = len(WORDS), 5, 6, 7, GRID[0]
    shapes: dict[str, tuple[int, ...]] = {
        "text.embedding.weight": (words + 1, embedding),
        "text.lstm.weight_ih_l0": (4 * state, embedding),
        "text.lstm.weight_hh_l0": (4 * state, state),
        "text.lstm.bias_ih_l0": (4 * state,),
        "text.lstm.bias_hh_l0": (4 * state,),
        "attention.v_conv.weight": (8, channels, 1, 1),
        "attention.q_lin.weight": (8, state),
        "attention.q_lin.bias": (8,),
        "attention.x_conv.weight": (2, 8, 1, 1),
        "attention.x_conv.bias": (2,),
        "classifier.lin1.weight": (hidden, 2 * channels + state),
        "classifier.lin1.bias": (hidden,),
        "classifier.lin2.weight": (len(ANSWERS), hidden),
        "classifier.lin2.bias": (len(ANSWERS),),
    }
    return {f"module.{n}": torch.randn(*shape, generator=drawn) for n, shape in shapes.items()}


def kazemi(folder: Path) -> None:
    """Everything a recipe of ``kazemi`` on stored features names."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {word: i for i, word in enumerate(WORDS, 1)}
    vocabulary = {"question": numbers, "answer": {a: i for i, a in enumerate(ANSWERS)}}
    config = {"image_size": 32, "central_fraction": 0.875}
    released = {"weights": kazemi_weights(), "vocab": vocabulary, "config": config}
    torch.save(released, folder / "released.pth")
    write_grids(folder / "resnet-14x14.h5", {image: grid(image) for image in IMAGES})


def kazemi_section(folder: Path, **options: object) -> dict[str, Any]:
    """A recipe's model section; the small trunk gives 4 x 4 cells of 32 pixels."""
    return {
        "name": "kazemi",
        "checkpoint": str(folder / "released.pth"),
        "features": str(folder / "resnet-14x14.h5"),
        "trunk": "small",
        **options,
    }


def write_folder(path: Path, images: Mapping[int, Detected]) -> Path:
    """MMF's array a file, with the boxes beside it."""
    path.mkdir(exist_ok=True)
    for image, (boxes, features) in images.items():
        name = f"COCO_val2014_{image:012d}"
        np.save(path / f"{name}.npy", features)
        np.save(path / f"{name}_boxes.npy", boxes)
    return path


def cells_of(image_id: int) -> np.ndarray:
    """A ResNet's features ``(1, y, x, channel)`` of an image."""
    drawn = np.random.default_rng(image_id + 100).normal(0.5, 1, (1, 2, 3, CHANNELS))
    return np.maximum(drawn, 0).astype(np.float32)


def write_cells(path: Path, images: Sequence[int] = IMAGES) -> Path:
    """MMF's array a file of a feature map."""
    path.mkdir(exist_ok=True)
    for image in images:
        np.save(path / f"COCO_val2014_{image:012d}.npy", cells_of(image))
    return path


def pythia_weights(grid: bool = False) -> dict[str, torch.Tensor]:
    """A state_dict of MMF's ``pythia``; with a ResNet's features beside the detector's."""
    drawn = torch.Generator().manual_seed(7)
    state, convolution, glimpses, encoded, hidden, joint = 6, 5, 2, 7, 9, 11
    question = glimpses * state

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=drawn)

    def normed(name: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
        g = torch.tensor(3.0 + len(name) % 3)
        return {
            f"{name}.bias": matrix(outputs) * 0.3,
            f"{name}.weight_g": g,
            f"{name}.weight_v": matrix(outputs, inputs),
        }

    def plain(name: str, outputs: int, *inputs: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": matrix(outputs, *inputs), f"{name}.bias": matrix(outputs)}

    text, lstm = "text_embeddings.0.module", "text_embeddings.0.module.recurrent_unit"
    found = {
        "word_embedding.weight": matrix(len(WORDS) + 4, 5),
        f"{lstm}.weight_ih_l0": matrix(4 * state, 5),
        f"{lstm}.weight_hh_l0": matrix(4 * state, state),
        f"{lstm}.bias_ih_l0": matrix(4 * state),
        f"{lstm}.bias_hh_l0": matrix(4 * state),
        **plain(f"{text}.conv1", convolution, state, 1),
        **plain(f"{text}.conv2", glimpses, convolution, 1),
        **plain("image_feature_encoders.0.lc", encoded, CHANNELS),
    }
    seen = [encoded, CHANNELS] if grid else [encoded]
    for i, channels in enumerate(seen):
        name = f"image_feature_embeddings_list.{i}.0.image_attention_model.module"
        found |= normed(f"{name}.combination_layer.module.fa_image.layers.0", hidden, channels)
        found |= normed(f"{name}.combination_layer.module.fa_txt.layers.0", hidden, question)
        found |= normed(f"{name}.transform.module.lc", 1, hidden)
    layer = "image_text_multi_modal_combine_layer.module"
    found |= normed(f"{layer}.fa_image.layers.0", joint, sum(seen))
    found |= normed(f"{layer}.fa_txt.layers.0", joint, question)
    for kind, size in (("text", 4), ("image", 8)):
        found |= normed(f"classifier.module.f_o_{kind}.layers.0", size, joint)
        found |= plain(f"classifier.module.linear_{kind}", len(ANSWERS) + 1, size)
    return found


def pythia(folder: Path, grid: bool = False) -> None:
    """Everything a recipe of ``pythia`` names."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": pythia_weights(grid), "best_update": 22000}, folder / "pythia.pth")
    (folder / "vocabulary_100k.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "answers_vqa.txt").write_text("\n".join(("<unk>", *ANSWERS)) + "\n")
    write_tsv(folder / "val36.tsv", {image: detected(image) for image in IMAGES})
    write_cells(folder / "resnet152")


def pythia_section(folder: Path, **options: object) -> dict[str, Any]:
    """A recipe's model section."""
    return {
        "name": "pythia",
        "checkpoint": str(folder / "pythia.pth"),
        "vocabulary": str(folder / "vocabulary_100k.txt"),
        "answers_file": str(folder / "answers_vqa.txt"),
        "features": str(folder / "val36.tsv"),
        **options,
    }


def updn_weights(words: int = len(WORDS)) -> dict[str, torch.Tensor]:
    """A state_dict of ``baseline0_newatt`` as DataParallel saved it."""
    drawn = torch.Generator().manual_seed(3)
    hidden, embedding = 10, 5

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=drawn)

    layers = {
        "v_att.v_proj.main.0": (hidden, CHANNELS),
        "v_att.q_proj.main.0": (hidden, hidden),
        "v_att.linear": (1, hidden),
        "q_net.main.0": (hidden, hidden),
        "v_net.main.0": (hidden, CHANNELS),
        "classifier.main.0": (2 * hidden, hidden),
        "classifier.main.3": (len(ANSWERS), 2 * hidden),
    }
    found = {
        "w_emb.emb.weight": matrix(words + 1, embedding),
        "q_emb.rnn.weight_ih_l0": matrix(3 * hidden, embedding),
        "q_emb.rnn.weight_hh_l0": matrix(3 * hidden, hidden),
        "q_emb.rnn.bias_ih_l0": matrix(3 * hidden),
        "q_emb.rnn.bias_hh_l0": matrix(3 * hidden),
    }
    for name, shape in layers.items():
        found[f"{name}.bias"] = matrix(shape[0]) * 0.3
        found[f"{name}.weight_g"] = torch.tensor(4.0 + len(name) % 3)
        found[f"{name}.weight_v"] = matrix(*shape)
    return {f"module.{name}": tensor for name, tensor in found.items()}


def concatenating_weights() -> dict[str, torch.Tensor]:
    """A state_dict of ``baseline0``: its attention sees region and question as one vector."""
    drawn, hidden = torch.Generator().manual_seed(4), 10
    found = {n: t for n, t in updn_weights().items() if "v_proj" not in n and "q_proj" not in n}
    name = "module.v_att.nonlinear.main.0"
    found[f"{name}.bias"] = torch.randn(hidden, generator=drawn) * 0.3
    found[f"{name}.weight_g"] = torch.tensor(5.0)
    found[f"{name}.weight_v"] = torch.randn(hidden, CHANNELS + hidden, generator=drawn)
    return found


def fork_weights() -> dict[str, torch.Tensor]:
    """A state_dict of the fork: two attentions of one more layer, the GRU written out."""
    drawn, found = torch.Generator().manual_seed(5), {}
    for name, tensor in updn_weights().items():
        name = name.removeprefix("module.")
        if name.startswith("q_emb.rnn."):
            kind, side = name.removeprefix("q_emb.rnn.").removesuffix("_l0").split("_")
            found[f"q_emb.rnn.gru_cell.weight_{side}.{kind}"] = tensor
        elif name.startswith("v_att."):
            for i in (1, 2):
                noise = torch.randn(tensor.shape, generator=drawn) * 0.5
                found[name.replace("v_att.", f"gv_att_{i}.")] = tensor + noise
        else:
            found[name.replace("v_net.", "gv_net.")] = tensor
    for i in (1, 2):
        name = f"gv_att_{i}.nonlinear.main.0"
        found[f"{name}.bias"] = torch.randn(10, generator=drawn)
        found[f"{name}.weight_g"] = torch.tensor(3.0 + i)
        found[f"{name}.weight_v"] = torch.randn(10, 10, generator=drawn)
    return found


def updn(folder: Path) -> None:
    """Everything a recipe of ``updn`` names."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(updn_weights(), folder / "model.pth")
    dictionary = [{word: i for i, word in enumerate(WORDS)}, list(WORDS)]
    (folder / "dictionary.pkl").write_bytes(pickle.dumps(dictionary, protocol=2))
    (folder / "label2ans.pkl").write_bytes(pickle.dumps(list(ANSWERS), protocol=0))
    (folder / "label2ans.json").write_text(json.dumps(ANSWERS))
    write_hdf5(folder / "val36.hdf5", {image: detected(image) for image in IMAGES})


def section(folder: Path, **options: object) -> dict[str, Any]:
    """A recipe's model section."""
    return {
        "name": "updn",
        "checkpoint": str(folder / "model.pth"),
        "dictionary": str(folder / "dictionary.pkl"),
        "answers_file": str(folder / "label2ans.pkl"),
        "features": str(folder / "val36.hdf5"),
        **options,
    }


def without(name: str) -> Callable[[dict], dict]:
    """What takes the tensors out of a checkpoint whose key has the name in it."""
    return lambda weights: {key: tensor for key, tensor in weights.items() if name not in key}
