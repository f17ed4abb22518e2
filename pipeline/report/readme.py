"""Result tables in a README, written again from a run: ``python -m pipeline.report.readme RUN
--block demo``.

The table stands between ``<!-- table:demo -->`` and ``<!-- /table -->``; nothing else is touched.
"""

import argparse
import re
import sys
from pathlib import Path

from pipeline.dataset import Run
from pipeline.run import stored_config
from pipeline.studies.agreement import agreement
from pipeline.studies.summary import Bootstrap
from pipeline.studies.tables import side_by_side, to_markdown
from workers.errors import UserError

TARGET = "predicted"
METRICS = ("rank_correlation", "ty_iou", "ty_f1")


def method_table(root: str) -> str:
    """A GitHub table of every method of a run, as ``evaluate`` prints it."""
    run = Run(root)
    if not len(run.metrics):
        raise UserError(
            f"{root} has no metrics: run `python run_pipeline.py evaluate {root}` first."
        )
    table = agreement(run.metrics, run.examples, Bootstrap(seed=stored_config(root).seed))
    shown = [metric for metric in METRICS if (table["metric"] == metric).any()]
    return to_markdown(side_by_side(table, TARGET, shown))


def replace_block(text: str, block: str, table: str, where: str) -> str:
    """``text`` with a table between the markers of a block."""
    pattern = rf"(<!-- table:{re.escape(block)} -->\n).*?(<!-- /table -->)"
    found = re.findall(pattern, text, re.DOTALL)
    if len(found) != 1:
        raise UserError(
            f"{where}: {len(found)} blocks <!-- table:{block} --> ... <!-- /table -->; there must "
            "be one, each marker on a line of its own."
        )
    return re.sub(pattern, lambda m: f"{m[1]}\n{table}\n{m[2]}", text, flags=re.DOTALL)


def rewrite(path: Path, block: str, root: str) -> None:
    """Write a run's table into a file's block."""
    text = replace_block(path.read_text(), block, method_table(root), str(path))
    path.write_text(text)


def main() -> None:
    """The command; a user's mistake is one message."""
    parser = argparse.ArgumentParser(description="Write a run's table of methods into a README.")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--block", required=True, help="name in <!-- table:NAME -->")
    parser.add_argument("--file", type=Path, default=Path("README.md"))
    given = parser.parse_args()
    try:
        rewrite(given.file, given.block, given.run)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
