"""Maps from a transformer's attention against what their papers say, written out."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from math import isqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.report.sheet import single_sheet
from pipeline.single import explain
from tests import hub
from tests.reference import attention as reference
from tests.test_huggingface import Checkpoints, build, photo
from workers.errors import BadExample, UserError
from workers.methods import token_attention
from workers.methods.base import Scene
from workers.methods.token_attention import (
    AttentionRollout,
    CrossGradCam,
    Relevance,
    WordRelevance,
    on_cells,
)
from workers.methods.words import WordGradient
from workers.models import generative
from workers.models.base import Capability, HeadOutput, VQAModel
from workers.models.tiles import Tiles, tiles_of
from workers.models.tokens import word_tokens

QUESTION = ("what", "is", "the", "xylophonic", "dog", "?")
LETTERS = {"bert": [1, 1, 1, 10, 1, 1]}
ONE_SEQUENCE = ("vilt", "llava", "qwen2_vl", "paligemma", "idefics3")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def models(checkpoints: Checkpoints) -> dict[str, VQAModel]:
    sizes = {"vilt": 48, "qwen2_vl": 48, "idefics3": 48}
    names = (*ONE_SEQUENCE, "blip")
    return {
        name: build(hub.section(name, checkpoints(name), image_size=sizes.get(name)))
        for name in names
    }


@pytest.fixture
def scene(models: dict[str, VQAModel]) -> Callable[[str], Scene]:
    def make(name: str) -> Scene:
        canvas, _ = models[name].prepare(square())
        return Scene(models[name], canvas, [QUESTION], (1,), (None,), targets=("predicted",))

    return make


def square() -> np.ndarray:
    """A photo that every processor takes as it is, but for its scale."""
    return photo(48, 48)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    scale = np.abs(wanted).max()
    assert scale > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * scale)


class Literal:
    """The literal pass of a model with one sequence: which tokens are what."""

    def __init__(self, name: str, folder: Path, scene: Scene) -> None:
        answer = scene.rows[0].answer
        question = " ".join(QUESTION)
        if name == "vilt":
            self.seen, text = reference.vilt(folder, square(), question, answer)
            self.image, self.pieces = list(range(text + 1, text + 37)), [""]
            self.output = [0]
            self.words, start = [], 1
            for count in LETTERS["bert"]:
                self.words.append(list(range(start, start + count)))
                start += count
            return
        self.seen, prompt, tail = reference.generative(
            folder, square(), question, hub.ANSWERS[answer]
        )
        marker = scene.model.net.config.image_token_id  # type: ignore[union-attr]
        self.image = [i for i, token in enumerate(prompt) if token == marker]
        self.pieces = scene.model.tokenizer.convert_ids_to_tokens(prompt)  # type: ignore[operator,union-attr]
        self.output = list(range(len(prompt) - 1, len(prompt) - 1 + tail))
        self.words = bytes_of_words(scene.model, prompt)

    def cells(self, tokens: np.ndarray) -> np.ndarray:
        """Values of the image's tokens ``(..., token)`` as maps ``(..., y, x)``."""
        if "<global-img>" not in self.pieces:
            return tokens.reshape(*tokens.shape[:-1], isqrt(tokens.shape[-1]), -1)
        flat = tokens.reshape(-1, tokens.shape[-1])
        maps = [reference.painted(values, self.pieces, (4, 4)) for values in flat]
        return np.stack(maps).reshape(*tokens.shape[:-1], 4, 4)


def bytes_of_words(model: VQAModel, prompt: list[int]) -> list[list[int]]:
    """The tiny tokenisers have a token a byte: each word's, and the space behind it."""
    letters = [str(model.tokenizer.convert_ids_to_tokens(i)) for i in prompt]  # type: ignore[operator,union-attr]
    text = "".join(letter if len(letter) == 1 else "\0" for letter in letters)
    start, end = text.rindex("Ġ".join(QUESTION)), 0
    words = []
    for word in QUESTION:
        end = min(start + len(word) + 1, text.rindex("?") + 1)
        words.append(list(range(start, end)))
        start = end
    return words


@pytest.mark.parametrize("name", ONE_SEQUENCE)
def test_maps_of_one_sequence_equal_their_papers(
    name: str, scene: Callable[[str], Scene], checkpoints: Checkpoints
) -> None:
    own = scene(name)
    literal = Literal(name, checkpoints(name), own)
    flows = {
        AttentionRollout: reference.rollout(literal.seen.heads),
        Relevance: reference.relevance(literal.seen),
    }
    for method, flow in flows.items():
        arrays = method().explain(own).arrays
        close(arrays["map"][0], literal.cells(flow[literal.output][:, literal.image].mean(0)))
        check_words(arrays["words"][0], literal.cells(flow[:, literal.image]), literal.words)
    cams = literal.cells(reference.cross_cams(literal.seen, 0)[:, literal.image])
    arrays = CrossGradCam(layer=0).explain(own).arrays
    close(arrays["map"][0], cams[[t for word in literal.words for t in word]].mean(0))
    check_words(arrays["words"][0], cams, literal.words)
    scores = WordRelevance().explain(own).importances[0]
    flow = flows[Relevance][literal.output].mean(0)
    close(scores, np.array([flow[word].sum() for word in literal.words]))


def check_words(found: np.ndarray, tokens: np.ndarray, words: list[list[int]]) -> None:
    """The maps of a word's tokens summed up; nothing behind the last word."""
    wanted = np.stack([tokens[word].sum(0) for word in words])
    close(found[: len(words)].reshape(wanted.shape), wanted)
    assert not found[len(words) :].any()


def test_maps_of_three_sequences_equal_their_papers(
    scene: Callable[[str], Scene], checkpoints: Checkpoints
) -> None:
    own = scene("blip")
    answer = hub.ANSWERS[own.rows[0].answer]
    seen = reference.blip(checkpoints("blip"), square(), " ".join(QUESTION), answer)
    words = [list(range(1, 2)), [2], [3], list(range(4, 14)), [14], [15]]
    flows = {
        AttentionRollout: reference.rollout_of_three(seen),
        Relevance: reference.relevance_of_three(seen),
    }
    for method, flow in flows.items():
        arrays = method().explain(own).arrays
        close(arrays["map"][0].ravel(), flow["ai"][:, 1:].mean(0))
        check_words(arrays["words"][0], flow["ti"][:, 1:], words)
    scores = WordRelevance().explain(own).importances[0]
    read = flows[Relevance]["at"].mean(0)
    close(scores, np.array([read[word].sum() for word in words]))
    for layer in (0, 1):
        cams = reference.cross_cams(seen["ti"], layer)[:, 1:]
        arrays = CrossGradCam(layer=layer).explain(own).arrays
        close(arrays["map"][0].ravel(), cams[1:16].mean(0))
        check_words(arrays["words"][0], cams, words)
    assert np.array_equal(arrays["map"], CrossGradCam().explain(own).arrays["map"])


@pytest.mark.parametrize("name", [*ONE_SEQUENCE, "blip"])
def test_attention_is_read_from_the_pass_that_answers(
    name: str, scene: Callable[[str], Scene]
) -> None:
    own = scene(name)
    everything = range(len(hub.ANSWERS))
    seen = own.model.attend(own.canvas, QUESTION, everything)  # type: ignore[operator]
    torch.testing.assert_close(seen.logits.detach(), own.output.logits[0], rtol=1e-5, atol=2e-5)
    embedded = own.model.embed(own.canvas, QUESTION, everything)  # type: ignore[operator]
    assert torch.equal(embedded.logits.detach(), own.output.logits[0])
    for layer in seen.layers:
        rows = layer.probabilities.detach().sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows))


@pytest.mark.parametrize("name", [*ONE_SEQUENCE, "blip"])
def test_one_answer_explained_alone_is_what_it_is_among_all(
    name: str, scene: Callable[[str], Scene]
) -> None:
    """A logit has its own sequence only; of a probability it is one of several."""
    own = scene(name)
    row = own.rows[0]
    alone, among = (
        own.model.attend(own.canvas, QUESTION, answers)  # type: ignore[operator]
        for answers in ([row.answer], range(len(hub.ANSWERS)))
    )
    for one, many in zip(alone.layers, among.layers, strict=True):
        number = row.answer if len(many.probabilities) > 1 else 0
        length = one.probabilities.shape[-2]
        part = many.probabilities[number, :, :length, : one.probabilities.shape[-1]]
        torch.testing.assert_close(one.probabilities[0], part, rtol=1e-4, atol=1e-5)
    for method in (Relevance(score="probability"), CrossGradCam(score="log_probability")):
        assert np.isfinite(method.explain(own).arrays["words"]).all()


@pytest.mark.parametrize("name", [*ONE_SEQUENCE, "blip"])
@pytest.mark.parametrize("score", ["logit", "log_probability"])
def test_word_gradient_is_what_a_small_step_says(
    name: str, score: str, scene: Callable[[str], Scene]
) -> None:
    """Along a word's own embeddings, which is what the sum of gradient times input measures."""
    own = scene(name)
    model, answer, step = own.model, own.rows[0].answer, 1e-2
    found = WordGradient(score=score, reduction="grad_x_input").explain(own).importances[0]
    words = model.embed(own.canvas, QUESTION, [answer]).words  # type: ignore[operator]

    def moved(word: int, by: float) -> float:
        def scale(module: object, given: object, output: torch.Tensor) -> torch.Tensor:
            if output.shape[1] > words[word][-1] and not done:
                done.append(True)
                output = output.clone()
                output[:, list(words[word])] *= 1 + by
            return output

        done: list[bool] = []
        handle = model.word_embeddings.register_forward_hook(scale)  # type: ignore[union-attr]
        with torch.no_grad():
            logits = model.logits(own.canvas[None], [QUESTION])[0].double()
        handle.remove()
        return float((logits if score == "logit" else logits.log_softmax(-1))[answer])

    wanted = [(moved(w, step) - moved(w, -step)) / (2 * step) for w in range(len(QUESTION))]
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02 * np.abs(wanted).max())


def test_sub_tokens_of_a_word_are_found_by_its_letters(models: dict[str, VQAModel]) -> None:
    tokenizer = models["llava"].tokenizer
    text = "<s>USER: is it red ?\nis it red ? Be brief."
    found = word_tokens(tokenizer, ("is", "it", "red", "?"), text)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    letters = [tokenizer.decode([ids[t] for t in word]) for word in found]  # type: ignore[union-attr]
    assert letters == ["is ", "it ", "red ", "?"]
    assert found[0][0] == text.rindex("is it") - len("<s>") + 1


def test_geometry_is_the_grid_of_image_tokens(models: dict[str, VQAModel]) -> None:
    """Of tiles that of all their tokens: 2 x 2 tiles of 2 x 2."""
    for name, cells in (("qwen2_vl", (3, 3)), ("idefics3", (4, 4))):
        geometry = models[name].geometry
        assert (geometry.token_height, geometry.token_width) == cells


def test_model_without_a_grid_of_image_tokens_has_no_maps_of_them(
    models: dict[str, VQAModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy(models["idefics3"])
    monkeypatch.setattr(generative, "TILED", ())
    other.lay_out()  # type: ignore[operator]
    assert Capability.TOKENS not in other.provides
    assert Capability.EMBEDDINGS in other.provides


def test_tiles_that_do_not_add_up_are_no_grid() -> None:
    assert tiles_of(20, 5, (2, 2)) == Tiles(2, 2, 2)
    assert tiles_of(4, 1, (0, 0)) == Tiles(0, 0, 2)
    assert Tiles(0, 0, 2).cells == (2, 2)
    assert tiles_of(20, 5, (2, 1)) is None
    assert tiles_of(15, 5, (2, 2)) is None


@pytest.mark.parametrize("grid", [(2, 2), (3, 1), (2, 3)])
def test_spread_over_cells_keeps_the_sum(grid: tuple[int, int]) -> None:
    tiles = Tiles(*grid, 2)
    values = torch.rand(5, 4 * (grid[0] * grid[1] + 1), dtype=torch.float64)
    cells = on_cells(values, tiles.cover())
    assert cells.shape == (5, tiles.cells[0] * tiles.cells[1])
    torch.testing.assert_close(cells.sum(-1), values.sum(-1))


@torch.no_grad()
def test_painted_cell_changes_the_tokens_that_cover_it(
    checkpoints: Checkpoints,
) -> None:
    """Of a vision tower without layers, which mixes nothing: the tile's token alone, and of the
    thumbnail the one there, beyond what its resizing smears."""
    model = build(hub.section("idefics3", checkpoints("idefics3"), image_size=64))
    model.net.model.vision_model.encoder.layers = torch.nn.ModuleList()  # type: ignore[union-attr]
    canvas = torch.full((3, 64, 64), 100.0)
    cover = Tiles(2, 2, 2).cover()
    assert cover is not None
    clean = model.features(model.seen(canvas[None]))  # type: ignore[operator]
    for cell in range(16):
        y, x = divmod(cell, 4)
        painted = canvas.clone()
        painted[:, 16 * y + 6 : 16 * y + 10, 16 * x + 6 : 16 * x + 10] = 200
        moved = (model.features(model.seen(painted[None])) - clean).abs().sum(-1)  # type: ignore[operator]
        tiles, small = moved[:16], moved[16:]
        assert tiles.nonzero().flatten().tolist() == [int(cover[0, cell])]
        assert int(small.argmax()) + 16 == int(cover[1, cell])


def test_limits_are_told(scene: Callable[[str], Scene]) -> None:
    own = scene("vilt")
    with pytest.raises(BadExample, match="has 6 words, the limit of this method's maps is 5"):
        Relevance(longest=5).explain(own)
    with pytest.raises(UserError, match=r"layer 2 is not there.* in 2 layers, so choose 0 to 1"):
        CrossGradCam(layer=2).explain(own)


def test_relevance_flows_once_for_map_and_words(
    scene: Callable[[str], Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    flows, whole = [], token_attention.relevance
    monkeypatch.setattr(token_attention, "relevance", lambda seen: flows.append(1) or whole(seen))
    own = scene("llava")
    Relevance().explain(own)
    WordRelevance().explain(own)
    assert len(flows) == 1
    WordRelevance(score="log_probability").explain(own)
    assert len(flows) == 2


def test_explain_draws_a_row_of_words_for_each_method(
    models: dict[str, VQAModel], tmp_path: Path
) -> None:
    result = explain(models["blip"], photo(), " ".join(QUESTION), ["relevance", "cross_grad_cam"])
    assert result.maps["relevance"]["words"].shape == (24, 4, 4)
    heights = []
    for chosen in (result, replace(result, maps={"relevance": result.maps["relevance"]})):
        single_sheet(chosen, tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as sheet:
            heights.append(sheet.height)
    assert heights[0] * 2 == heights[1] * 3


def test_attention_that_is_not_what_answered_is_refused(scene: Callable[[str], Scene]) -> None:
    own = scene("vilt")
    other = own.output.logits.clone()
    own.output = HeadOutput(other + 0.5)
    with pytest.raises(BadExample, match=r"differ by 0\.5 from those of its fast kernel"):
        Relevance().explain(own)
