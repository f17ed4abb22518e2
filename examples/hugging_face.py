"""From a Hugging Face name to maps, a contact sheet and a table: a walk-through.

    python examples/hugging_face.py dandelin/vilt-b32-finetuned-vqa photos/ questions.json --out OUT

``photos/`` is a folder with images and with ``questions.json``, a list of entries like
``{"image_id": 1, "file": "dog.jpg", "question": "is it asleep?"}``. A model that writes its answers
(BLIP, Qwen-VL, SmolVLM ...) also needs those it may choose from: ``--answers yes no``.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout that is not installed

from pipeline import open_run
from pipeline.check import check
from pipeline.recipe import parse
from pipeline.report.sheet import run_sheet
from pipeline.report.terminal import print_model
from pipeline.run import run


def main(arguments: list[str] | None = None) -> None:
    """The whole way, one step after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name on the Hub, or a folder of save_pretrained")
    parser.add_argument("root", help="the folder with the images")
    parser.add_argument("questions", help="a JSON list in that folder")
    parser.add_argument("--answers", nargs="+", default=[])
    parser.add_argument("--grid", type=int, default=8)
    parser.add_argument("--out", default="runs/hugging_face")
    given = parser.parse_args(arguments)

    # 1. A recipe: what to explain, by what. As a file it would be YAML with the same keys.
    config = parse(
        {
            "dataset": {"name": "photos", "root": given.root, "questions": given.questions},
            "model": {"kind": "huggingface", "path": given.model, "answers": given.answers},
            "methods": {"occlusion": {"grid": given.grid}, "word_occlusion": {}},
            "targets": ["predicted"],
            "resources": {"executor": "local"},
        },
        "hugging_face.py",
    )

    # 2. Can the model be trusted with it? Deterministic, indifferent to its batch, differentiable?
    if not print_model(check(config)):
        sys.exit(1)

    # 3. Maps. Started again after an interruption, it goes on where it was.
    run(config, given.out)

    # 4. A picture of some of them.
    run_sheet(given.out, Path(given.out) / "sheet.png")

    # 5. Questions to the results, in pandas: which word matters most to each answer?
    results = open_run(given.out)
    words = results.words[results.words.status != "failed"].copy()
    words["word"] = [w.tokens[w.importances.argmax()] for w in words.itertuples()]
    answers = results.examples[["question_id", "question", "prediction", "confidence"]]
    print(words[["question_id", "word"]].merge(answers, on="question_id").to_string(index=False))
    print(f"sheet: {given.out}/sheet.png")


if __name__ == "__main__":
    main()
