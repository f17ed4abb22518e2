"""Question Grad-CAM against its literal replica, its identities, and its stored vectors."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.reference import question_grad_cam as reference
from workers.errors import BadExample, UserError
from workers.methods.base import Scene
from workers.methods.gradients import GradCam
from workers.methods.question_grad_cam import NOTHING_OWN, QuestionGradCam
from workers.models import deeper_lstm
from workers.models.base import Geometry, Tokens, freeze
from workers.models.deeper_lstm import DeeperLSTM, DeeperLSTMConfig

CONFIG = DeeperLSTMConfig(
    trunk="small",
    channels=(4, 6, 8),
    image_size=40,
    pool=3,
    fully=(30, 20),
    embedding=4,
    state=5,
    combine=70,
    tokeniser="simple",
    words=("what", "color", "is", "the", "circle", "UNK"),
    answers=("red", "blue", "yes"),
)
SIZES = (3, 2, 2)
"""Pooling, fully connected layers, LSTM layers."""
QUESTIONS: list[Tokens] = [("what", "color", "is", "the", "circle"), ("circle",), ("is", "zebra")]


def tiny(dtype: torch.dtype = torch.float64) -> DeeperLSTM:
    model = deeper_lstm.untrained(CONFIG, 3)
    model.answer.weight.data.mul_(30)
    for weight in (model.question.embedding.weight, model.question.lstm.weight_hh_l1):
        weight.data.mul_(5)  # so that questions differ
    model.question_in.weight.data.mul_(8)
    return freeze(model.to(dtype))


@pytest.fixture
def model() -> DeeperLSTM:
    return tiny()


def scene(model: DeeperLSTM, questions: list[Tokens] = QUESTIONS, **fields: object) -> Scene:
    """Two rows a question: the prediction, and a truth that differs from it."""
    generator = torch.Generator().manual_seed(5)
    canvas = 255 * torch.rand(3, 40, 40, generator=generator, dtype=torch.float64)
    ids = [QUESTIONS.index(question) for question in questions]
    made = Scene(model, canvas.to(model.dtype), questions, ids, [None] * len(questions), **fields)
    made.truths = [(answer + 1) % 3 for answer in made.predictions]
    return made


def replicas(scene: Scene, method: QuestionGradCam) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The replica's signed maps of every row, and each question's sensitivities and word."""
    w = {name: tensor.numpy() for name, tensor in scene.model.state_dict().items()}
    features = scene.features[0].numpy()
    indices = [[CONFIG.words.index(t) if t in CONFIG.words else 5 for t in q] for q in QUESTIONS]
    found = [
        reference.sensitivity(w, features, i, method.sensitivity, method.word, SIZES)
        for i in indices
    ]
    n = CONFIG.combine if method.n == "all" else method.n
    tops = [reference.top(values, n) for values, _ in found]
    kept = [
        top - set().union(*(tops[:q] + tops[q + 1 :])) if method.not_shared else top
        for q, top in enumerate(tops)
    ]
    maps = [
        reference.question_grad_cam(
            w, features, indices[r.question], r.answer, method.score, kept[r.question], SIZES
        )
        for r in scene.rows
    ]
    return np.array(maps), np.array([v for v, _ in found]), np.array([k for _, k in found])


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    scale = np.abs(wanted).max()
    assert scale > 0
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 3, "score": "probability"},
        {"n": 12, "sensitivity": "l2", "score": "log_probability"},
        {"n": 5, "sensitivity": "word"},
        {"n": 5, "sensitivity": "word", "word": 0},
        {"n": 5, "sensitivity": "word", "word": -1},
        {"n": 20, "not_shared": True},
        {"n": 20, "sensitivity": "word", "not_shared": True},
        {"n": "all"},
    ],
)
def test_question_grad_cam_equals_the_literal_replica(
    model: DeeperLSTM, options: dict[str, object]
) -> None:
    method, made = QuestionGradCam(**options), scene(model)
    maps, vectors, words = replicas(made, method)
    arrays = method.explain(made).arrays
    close(arrays["sensitivity"], vectors)
    close(arrays["signed"], maps)
    np.testing.assert_array_equal(arrays["map"], np.maximum(arrays["signed"], 0))
    assert np.ptp(maps, axis=(1, 2)).any()
    if method.sensitivity == "word":
        assert arrays["word"][:, 0].tolist() == words.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("score", ["logit", "probability", "log_probability"])
@pytest.mark.parametrize("n", ["all", CONFIG.combine])
def test_all_neurons_are_exactly_grad_cam(dtype: torch.dtype, score: str, n: int | str) -> None:
    made = scene(tiny(dtype))
    plain = GradCam(score=score).explain(made).arrays
    for sensitivity in ("row_sum", "l2", "word", "random"):
        method = QuestionGradCam(n=n, sensitivity=sensitivity, score=score)
        arrays = method.explain(made).arrays
        for name in ("map", "signed"):
            np.testing.assert_array_equal(arrays[name], plain[name])


def test_maps_of_the_parts_add_up_to_the_whole(model: DeeperLSTM) -> None:
    """A map is linear in the gradient that passes: the top n and the others make Grad-CAM."""
    made = scene(model)
    whole = GradCam().explain(made).arrays["signed"]
    maps = [QuestionGradCam(n=n).explain(made).arrays["signed"] for n in range(1, 71)]
    np.testing.assert_allclose(maps[-1], whole, rtol=0, atol=1e-12)
    steps = np.diff(np.array(maps), axis=0)
    np.testing.assert_allclose(maps[0] + steps.sum(0), whole, rtol=0, atol=1e-12)
    assert all(np.abs(step).max() > 0 for step in steps), "each neuron has its share"


@pytest.mark.parametrize(
    "options", [{}, {"sensitivity": "l2"}, {"sensitivity": "word"}, {"not_shared": True}]
)
def test_questions_together_equal_questions_alone(
    model: DeeperLSTM, options: dict[str, object]
) -> None:
    """Also where another question's neurons matter: the scene knows the image's questions."""
    method = QuestionGradCam(n=20, **options)
    asked = dict(enumerate(QUESTIONS))
    together = method.explain(scene(model, image_questions=asked)).arrays
    alone = [method.explain(scene(model, [q], image_questions=asked)).arrays for q in QUESTIONS]
    for name, array in together.items():
        close(array + 1.0, np.concatenate([arrays[name] for arrays in alone]) + 1.0)


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_batch_size_changes_nothing(model: DeeperLSTM, batch: int) -> None:
    for sensitivity in ("row_sum", "l2", "word"):
        method = QuestionGradCam(sensitivity=sensitivity)
        arrays = method.explain(scene(model, batch=batch)).arrays
        for name, wanted in method.explain(scene(model)).arrays.items():
            close(arrays[name] + 1.0, wanted + 1.0)


def test_every_n_shares_one_head_pass(model: DeeperLSTM) -> None:
    made, passes = scene(model, gradients=True), []
    made.output  # the clean answers  # noqa: B018
    model.image.register_forward_hook(lambda *given: passes.append(1))
    for n in (1, 5, 25, "all"):
        QuestionGradCam(n=n).explain(made)
    assert len(passes) == 2, "one to the combine layer, one for the sensitivities"


def test_neurons_of_equal_questions_are_all_shared(model: DeeperLSTM) -> None:
    asked = {0: QUESTIONS[0], 1: QUESTIONS[0], 2: QUESTIONS[2]}
    result = QuestionGradCam(n=5, not_shared=True).explain(
        scene(model, [QUESTIONS[0]], image_questions=asked)
    )
    assert not result.arrays["map"].any()
    assert result.reasons == {0: NOTHING_OWN, 1: NOTHING_OWN}


def test_a_question_alone_on_its_image_shares_nothing(model: DeeperLSTM) -> None:
    alone = scene(model, QUESTIONS[:1])
    own, plain = (QuestionGradCam(n=5, not_shared=flag).explain(alone) for flag in (True, False))
    np.testing.assert_array_equal(own.arrays["signed"], plain.arrays["signed"])
    assert own.reasons == {}


def test_neurons_picked_blindly_are_the_question_s_own(model: DeeperLSTM) -> None:
    method, made = QuestionGradCam(n=20, sensitivity="random"), scene(model)
    drawn = method.explain(made).arrays["sensitivity"]
    assert drawn.shape == (3, 70)
    assert len({tuple(row) for row in drawn.tolist()}) == 3
    assert (drawn >= 0).all()
    assert (drawn < 1).all()
    again = method.explain(scene(model, QUESTIONS[1:])).arrays["sensitivity"]
    np.testing.assert_array_equal(again, drawn[1:])
    kept = method._chosen(made, torch.from_numpy(np.asarray(drawn)))
    assert kept.sum(1).tolist() == [20, 20, 20]


def test_equal_sensitivities_go_to_the_lower_neuron(model: DeeperLSTM) -> None:
    top = QuestionGradCam(n=3)._top(torch.tensor([[1.0, 2.0, 1.0, 1.0, 2.0], [0.0] * 5]))
    assert top.tolist() == [[True, True, False, False, True], [True, True, True, False, False]]


@pytest.mark.parametrize("word", [5, -6])
def test_a_word_that_is_not_there_is_refused(model: DeeperLSTM, word: int) -> None:
    with pytest.raises(BadExample) as caught:
        QuestionGradCam(sensitivity="word", word=word).explain(scene(model, QUESTIONS[:1]))
    assert str(caught.value) == (
        f"question_grad_cam: word {word} is asked for, the question has 5 words; choose a position "
        "that every question has, or max"
    )


def test_too_many_neurons_are_refused() -> None:
    geometry = Geometry(input_height=4, input_width=4, combine=70)
    assert QuestionGradCam(n=70).arrays(geometry)[-1].shape == (70,)
    assert len(QuestionGradCam(n="all", store_sensitivity=False).arrays(geometry)) == 2
    with pytest.raises(UserError) as caught:
        QuestionGradCam(n=71).arrays(geometry)
    assert str(caught.value) == (
        "question_grad_cam: n is 71, the model's combine layer has 70 neurons; choose 1 to 70, or "
        "all."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n is 0; give 1 or more neurons, or all"),
        ({"word": 1}, "word goes with sensitivity: word"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        QuestionGradCam(**options)
    assert caught.value.errors()[0]["msg"] == f"Value error, {message}"


def test_model_is_left_as_it_was(model: DeeperLSTM) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for sensitivity in ("row_sum", "l2", "word"):
        QuestionGradCam(sensitivity=sensitivity).explain(scene(model))
    with pytest.raises(BadExample):
        QuestionGradCam(sensitivity="word", word=9).explain(scene(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(module.training for module in model.modules())
